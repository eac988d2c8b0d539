"""Waiting that a signal cannot break.

`threading.Condition` and `Event` take and free their locks in Python code. An error that a signal handler raises
in the midst of it, as Ctrl-C does, leaves them locked for ever, or frees what is not locked. What follows waits in
single calls of the interpreter, which a signal ends cleanly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Condition", "OneShotEvent", "start"]


T = TypeVar("T")


def start(begin: Callable[[], T]) -> T:
    """Call what starts a thread; an interrupt in the midst of it comes out as itself, and the thread may have begun.

    Raises:
        RuntimeError: There are no threads to be had.
    """
    try:
        return begin()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            # It waits in a condition, which then frees a lock that it does not have.
            raise error.__context__ from None
        raise


class OneShotEvent:
    """An event that happens once."""

    def __init__(self) -> None:
        self._is_set = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Let it happen. For one thread at a time."""
        if not self._is_set:
            self._is_set = True
            self._gate.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it; whether it has happened.

        Args:
            timeout: Seconds. With one, only one thread may wait: who has waited so shuts the gate behind himself.
        """
        if self._is_set:
            return True
        if timeout is not None:
            return self._gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        with self._gate:
            return True


class Condition:
    """A lock, and a way to wait for what happens under it.

    Attributes:
        guard: The lock. It is taken in a `with`, since that takes and frees it in single steps.
    """

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self._waiting: list[OneShotEvent] = []

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Return when *holds* is true, which is asked under the lock. Not to be called under it."""
        while True:
            with self.guard:
                if holds():
                    return
                latch = OneShotEvent()
                self._waiting.append(latch)
            latch.wait()

    def notify(self) -> None:
        """Let all ask again who wait. Under the lock."""
        if self._waiting:
            for latch in self._waiting:
                latch.set()
            self._waiting.clear()
