"""Ctrl-C may come between any two bytecodes: what that needs, for the whole package.

Python raises `KeyboardInterrupt` in the main thread, wherever that thread is. Between two changes that belong together
(a step is noted as running, and its start is written) this would leave one of the two. So the package defers Ctrl-C, as
Haskell masks asynchronous exceptions (Marlow et al. 2001, "Asynchronous Exceptions in Haskell"):

- `with masked():` is for code that must run to its end. A Ctrl-C inside is noted, and raised when the block ends.
- `with unmasked():` is inside of such a block, for all that can take long: the user's code, and waits. There Ctrl-C is
  raised at once.

Both do nothing in other threads, where Python raises no Ctrl-C. They also do nothing where the program ignores SIGINT,
or has a handler of its own: what that one raises, or a handler of another signal, comes out wherever it comes. The
record on disk stays true even then, since what a broken transaction has written is read again from the disk. But a
lock or a waiter of this process may be left behind.
"""

from __future__ import annotations

import os
import sys
import threading

# The functions of the module `signal` convert to enums and back, which takes many times as long as the call itself.
from _signal import SIGINT, default_int_handler, getsignal, signal  # type: ignore[import-not-found]
from collections.abc import Callable, Iterator
from threading import get_ident
from types import FrameType, TracebackType
from typing import TypeVar

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.notes import contextmanager

T = TypeVar("T")

# Seconds. Ctrl-C that comes just before the system call of a wait does not end that call: the next one does not begin.
LONGEST_WAIT = 1.0

_main = threading.main_thread().ident
_is_noted = False  # whether Ctrl-C has come in a masked block, and was not raised yet


def _note(_: int, __: FrameType | None) -> None:
    global _is_noted
    _is_noted = True


class masked:  # noqa: N801 - used like a function; a generator would cost three times as much
    """Defer Ctrl-C to the end of the block.

    The installed SIGINT handler tells whether a masked block is active: no second variable could disagree with it.

    Raises:
        KeyboardInterrupt: Ctrl-C came inside. At the end of the outermost block.
    """

    __slots__ = ("_is_outermost",)

    def __enter__(self) -> None:
        self._is_outermost = get_ident() == _main and getsignal(SIGINT) is default_int_handler
        if self._is_outermost:
            _install()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._is_outermost:
            _restore()


class unmasked:  # noqa: N801 - as above
    """Let Ctrl-C through in a block inside of a masked one.

    Raises:
        KeyboardInterrupt: At once, if Ctrl-C has come already, and as soon as it comes.
    """

    __slots__ = ("_was_masked",)

    def __enter__(self) -> None:
        self._was_masked = get_ident() == _main and getsignal(SIGINT) is _note
        if self._was_masked:
            try:
                _restore()
            except BaseException:
                _install()  # __exit__ will not run, since the block was not entered
                raise

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._was_masked and getsignal(SIGINT) is default_int_handler:
            _install()


@contextmanager
def undo_on_error(undo: Callable[[], object]) -> Iterator[None]:
    """Call *undo* when the block raises, Ctrl-C included; the error goes on."""
    try:
        yield
    except BaseException:
        undo()
        raise


def is_interrupted() -> bool:
    """Whether Ctrl-C has come in this masked block, for work that it should shorten."""
    return _is_noted and get_ident() == _main


def wait_until_free(lock: threading.Lock) -> None:
    """Let Ctrl-C end the wait for a lock that is about to be taken in a masked block."""
    if lock.locked():
        with unmasked(), lock:
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
        with unmasked():
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


def _install() -> None:
    global _is_noted
    _is_noted = False
    try:
        signal(SIGINT, _note)
    except BaseException:  # another signal's handler raised: __exit__ will not run, since the block was not entered
        signal(SIGINT, default_int_handler)
        raise


def _restore() -> None:
    global _is_noted
    if getsignal(SIGINT) is _note:  # else the user's code has installed a handler, which stays
        signal(SIGINT, default_int_handler)
    if _is_noted:
        _is_noted = False
        raise KeyboardInterrupt


def _forget_after_fork() -> None:
    # Another thread may have forked while the parent's main thread was in a masked block. That thread is the child's
    # main thread, and is in no block.
    global _main, _is_noted
    if _main != get_ident():
        _main, _is_noted = get_ident(), False
        if getsignal(SIGINT) is _note:
            signal(SIGINT, default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
