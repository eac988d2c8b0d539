"""Threads that wait: an event and a condition whose waits Ctrl-C ends, and how a thread is started."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.system.interrupts import interruptible

T = TypeVar("T")

# Seconds. Ctrl-C that comes just before the system call of a wait does not end that call: the next one does not begin.
LONGEST_WAIT = 1.0


class OneShotEvent:
    """An event that happens once, and a wait that Ctrl-C ends.

    `threading.Event` takes and frees its lock in Python code: what a signal handler raises in between leaves it locked.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        """Whether the event has happened."""
        return self._is_set

    def set(self) -> None:
        """Make the event happen. One thread at a time may call this."""
        if not self._is_set:
            self._is_set = True
            self._gate.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the event; whether it has happened.

        Args:
            timeout: Seconds; None waits for ever.
        """
        if self._is_set:
            return True
        left = threading.TIMEOUT_MAX if timeout is None else timeout
        with interruptible():
            while not self._is_set:
                if self._gate.acquire(timeout=min(left, LONGEST_WAIT)):
                    self._gate.release()
                elif (left := left - LONGEST_WAIT) <= 0:
                    break
        return self._is_set


class Condition:
    """A lock, and a way to wait for what changes under it.

    Attributes:
        guard: The lock. Take it in a `with`, which takes and frees it in single steps of the interpreter.
    """

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self._waiting: list[OneShotEvent] = []

    def wait_until(self, holds: Callable[[], bool], wait: Callable[[OneShotEvent], object] = OneShotEvent.wait) -> None:
        """Return when *holds* is true. It is called under the lock, which the caller must not hold.

        Args:
            holds: Whether the wait is over.
            wait: Waits for an event, after which *holds* is called again.
        """
        while True:
            with self.guard:
                if holds():
                    return
                event = OneShotEvent()
                self._waiting.append(event)
            wait(event)

    def notify(self) -> None:
        """Make all waiting threads look again. The caller holds the lock."""
        for event in self._waiting:
            event.set()
        self._waiting.clear()


def wait_until_free(lock: threading.Lock) -> None:
    """Let Ctrl-C end the wait for a lock that is about to be taken in a masked block."""
    if lock.locked():
        with interruptible(), lock:
            pass


def start(begin: Callable[[], T]) -> T:
    """Call *begin*, which starts a thread. After an interrupt, which comes out as itself, the thread may have begun.

    Raises:
        RuntimeError: No more threads can be started.
    """
    try:
        return begin()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            # Thread.start() waits in a condition, which then releases a lock that it does not have.
            raise error.__context__ from None
        raise


def refuse_green_threads() -> None:
    """Refuse a process in which gevent or eventlet has replaced Python's threads.

    All of its threads are one thread of the kernel, so that one that waits for a lock stops all others for ever, the
    one that has the lock among them.

    Raises:
        WorkflowUsageError: It is one.
    """
    for module, function, name, advice in _GREEN_THREADS:
        if module in sys.modules and getattr(sys.modules[module], function)(name):
            raise WorkflowUsageError(
                f"{module} has replaced the threads of this process, so that a wait for another process may never end: "
                f"leave threads as they are by {advice}, or use workflows in a process of their own"
            )


_GREEN_THREADS = (
    ("gevent.monkey", "is_module_patched", "threading", "gevent.monkey.patch_all(thread=False)"),
    ("eventlet.patcher", "is_monkey_patched", "thread", "eventlet.monkey_patch(thread=False)"),
)
