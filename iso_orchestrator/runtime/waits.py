"""What waits for what in this process, to find waits that would never end.

The graph is built only while a thread waits. Its nodes are threads, steps in flight, items that wait for their mutex,
and queues for a thread. Each one knows what it waits for (`Node.wait`), and a wait knows what has to go on for its end
(`Wait.blockers`). A thread looks for a deadlock when it begins to wait and each second after that. What is unknown
counts as something that goes on: the user's own locks, other processes. So does a wait that a timeout ends, for a mutex
or for the body of a step. One thing is taken for a wait that need not be one: a step is said to wait for the threads of
the user's own that run in a copy of its context, as `asyncio.to_thread` does.

Nothing is locked to read the graph, and it may change meanwhile. But each wait, hold and step in flight is an object of
its own. If two readings give the same objects, then all these waits were there at one time between the two.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import attrs

from iso_orchestrator.checks import host_name
from iso_orchestrator.errors import DeadlockError
from iso_orchestrator.notes import describe_process
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.events import LONGEST_WAIT
from iso_orchestrator.system.interrupts import masked

_log = logging.getLogger("iso_orchestrator")

_SHORT, _PATIENCE = 1.0, 5.0  # seconds after which a wait is logged, and warned of


@attrs.frozen(eq=False)
class Wait:
    """A wait that is under way.

    Attributes:
        who: What waits, for messages.
        what: What it waits for, for messages; empty: nothing to tell.
        blockers: The nodes that have to go on before it can end; none: it can end.
        any_will_do: Whether one of them is enough, as when it waits for a free thread. Otherwise it takes all.
    """

    who: object
    what: str
    blockers: Callable[[], Sequence[Node]]
    any_will_do: bool = False


class Node(Protocol):
    """What can wait, and be waited for."""

    @property
    def wait(self) -> Wait | None:
        """What it waits for; None: it goes on. The same object as long as it is the same wait."""
        ...


@attrs.define(eq=False)
class WaitingNode:
    """A node that waits for one thing after another, and gives way in a deadlock."""

    wait: Wait | None = None


@attrs.define(eq=False)
class ThreadNode(WaitingNode):
    """A thread. Unlike its identifier, the node is never used again for another thread."""

    thread: threading.Thread = attrs.field(factory=threading.current_thread)

    def __str__(self) -> str:
        return f"thread {self.thread.name!r}"


class _Here(threading.local):
    def __init__(self) -> None:
        self.node = ThreadNode()


_here = _Here()


def current_node() -> ThreadNode:
    """The node of this thread."""
    return _here.node


@contextmanager
def noted(wait: Wait) -> Iterator[ThreadNode]:
    """Note that this thread waits inside of the `with`."""
    node = _here.node
    with masked():  # a wait that stays noted would be taken for one that is under way
        before, node.wait = node.wait, wait
        try:
            yield node
        finally:
            node.wait = before


def wait_until(is_over: Callable[[float], bool], wait: Wait, look: Callable[[], object] = lambda: None) -> None:
    """Wait until *is_over*, a function that waits for so many seconds, returns True.

    Args:
        is_over: It may be called in a masked block, and lets Ctrl-C through.
        wait: What it waits for.
        look: Called each second.

    Raises:
        DeadlockError: It would never end.
    """
    with noted(wait) as node:
        while True:
            error = find_deadlock(node)
            if error is not None:
                raise error
            if is_over(LONGEST_WAIT):
                return
            look()


def find_deadlock(node: WaitingNode) -> DeadlockError | None:
    """The error to raise in *node*, if it waits in a circle, which then does not count as waiting any more."""
    with _finding:
        stuck = _stuck_with(node)
        if node not in stuck or _stuck_with(node) != stuck:
            return None
        circle = _circle(node, stuck)
        if circle is not None:
            node.wait = None  # the others of the circle wait on: this one gives way
    if circle is None:
        return None
    return DeadlockError((*(f"{wait.who} waits for {wait.what}" for wait in circle), str(circle[0].who)))


_Graph = dict[Node, tuple[Wait | None, tuple[Node, ...]]]


def _stuck_with(node: Node) -> _Graph:
    """The nodes that *node* waits for, directly or through others, without those that can go on."""
    graph: _Graph = {}
    unread = [node]
    while unread:
        if (found := unread.pop()) not in graph:
            wait = found.wait
            graph[found] = wait, () if wait is None else tuple(wait.blockers())
            unread += graph[found][1]
    while free := [found for found, (wait, blockers) in graph.items() if _can_go_on(wait, blockers, graph)]:
        for found in free:
            del graph[found]
    return graph


def _can_go_on(wait: Wait | None, blockers: tuple[Node, ...], stuck: _Graph) -> bool:
    enough = any if wait is not None and wait.any_will_do else all
    return not blockers or enough(blocker not in stuck for blocker in blockers)


def _circle(node: Node, stuck: _Graph) -> list[Wait] | None:
    """The waits on the shortest way from *node* to itself, those that tell something."""
    ways: list[tuple[Node, ...]] = [(node,)]
    seen: set[Node] = set()
    for way in ways:  # which grows meanwhile
        for blocker in stuck[way[-1]][1]:
            if blocker is node:
                return [wait for step in way if (wait := stuck[step][0]) is not None and wait.what]
            if blocker in stuck and blocker not in seen:
                seen.add(blocker)
                ways.append((*way, blocker))
    return None


@attrs.define
class Patience:
    """Logs a wait for another process and puts it on record, and warns of a long one, again with growing pauses.

    Attributes:
        who: What waits.
        what: What it waits for.
        holder: The process that has it.
        record: Puts the wait on record. It must not raise.
    """

    who: object
    what: str
    holder: Callable[[], ProcessInfo]
    record: Callable[[], object]
    _is_recorded: bool = attrs.field(init=False, default=False)
    _began: float = attrs.field(init=False, factory=monotonic)
    _next: float = attrs.field(init=False, factory=lambda: min(_SHORT, _PATIENCE))

    def note(self) -> None:
        """Put the wait on record, once, if it is time to."""
        if not self._is_recorded and monotonic() - self._began >= min(_SHORT, _PATIENCE):
            self._is_recorded = True
            self.record()

    def look(self) -> None:
        """Put the wait on record, and warn, if it is time to."""
        self.note()
        seconds = monotonic() - self._began
        if seconds < self._next:
            return
        level = logging.INFO if self._next < _PATIENCE else logging.WARNING
        self._next = max(2 * seconds, _PATIENCE)
        if not _log.isEnabledFor(level):
            return
        from iso_orchestrator.system.processes import command_line  # psutil is loaded late

        process = self.holder()
        runs = command_line(process.pid) if process.pid is not None and process.host == host_name() else None
        name = describe_process(process.pid, process.host, process.since) + (f" ({runs!r:.200})" if runs else "")
        _log.log(level, "%s has waited %.0f s for %s, which is held by %s", self.who, seconds, self.what, name)


_finding = threading.Lock()


def _reset_in_child() -> None:
    global _finding
    _finding = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
