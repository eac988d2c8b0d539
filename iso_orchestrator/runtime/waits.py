"""Who waits for whom in this process."""

from __future__ import annotations

import threading

import attrs


@attrs.define(eq=False)
class Node:
    """A thread, as an object: unlike the identifier of a thread, it is never used again for another one.

    Attributes:
        thread: The thread.
    """

    thread: threading.Thread = attrs.field(factory=threading.current_thread)

    def __str__(self) -> str:
        return f"thread {self.thread.name!r}"


class _Here(threading.local):
    def __init__(self) -> None:
        self.node = Node()


_here = _Here()


def current_node() -> Node:
    """The node of this thread."""
    return _here.node
