"""Ctrl-C may come between any two bytecodes: what that needs, for the whole package.

Python raises `KeyboardInterrupt` in the main thread, wherever that thread is. Between two changes that belong together
(a step is noted as running, and its start is written) this would leave one of the two. So the package defers Ctrl-C, as
Haskell masks asynchronous exceptions (Marlow et al. 2001, "Asynchronous Exceptions in Haskell"):

- `with masked():` is for code that must run to its end. A Ctrl-C inside is noted, and raised when the block ends.
- `with unmasked():` is inside of such a block, for the user's code. There Ctrl-C is raised at once, as ever.
- `with interruptible():` is inside of such a block, for waits. There Ctrl-C is raised at once, and once: whatever comes
  after it finds the masked block as it was. So the clean-up that follows runs to its end, however often Ctrl-C comes.

All do nothing in other threads, where Python raises no Ctrl-C. They also do nothing where the program ignores SIGINT,
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
from functools import partial
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


def _interrupt(_: int, __: FrameType | None) -> None:
    signal(SIGINT, _note)
    raise KeyboardInterrupt


class masked:  # noqa: N801 - used like a function; a generator would cost three times as much
    """Defer Ctrl-C to the end of the block.

    The installed SIGINT handler tells whether a masked block is active: no second variable could disagree with it.

    Raises:
        KeyboardInterrupt: Ctrl-C came inside. At the end of the outermost block.
    """

    __slots__ = ("_handler",)

    def __enter__(self) -> None:
        self._handler = getsignal(SIGINT) if get_ident() == _main else None
        if self._handler is default_int_handler or self._handler is _interrupt:
            _install(self._handler)
        else:
            self._handler = None  # not the outermost block

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            _restore(self._handler)


class masked_with_undo(masked):  # noqa: N801 - as above
    """A masked block for a function that must not be left half-way, or done without its caller's knowing.

    Ctrl-C that comes between the end of the block and the return of the function is raised there, and Python calls no
    `__exit__` then. So the function ends with

        except BaseException:
            if not block.is_undone:
                block.mask_again()
                block.undo(error)
            raise

    Args:
        undo: Called once with the error that leaves the block, Ctrl-C included, while that is still deferred.

    Attributes:
        is_undone: Whether *undo* was called.
        mask_again: Masks Ctrl-C. Written in C: a function in Python begins by raising Ctrl-C that has come.
    """

    __slots__ = ("_undo", "is_undone", "mask_again")

    def __init__(self, undo: Callable[[BaseException], object]) -> None:
        self._handler, self._undo = None, undo
        self.is_undone, self.mask_again = False, _NOTHING

    def __enter__(self) -> None:
        super().__enter__()
        if self._handler is not None:
            self.mask_again = _MASK

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or (self._handler is not None and _is_noted):
            self.undo(error or KeyboardInterrupt())
        else:
            super().__exit__(kind, error, trace)

    def undo(self, error: BaseException) -> None:
        """Undo the block, and end it."""
        self.is_undone = True
        try:
            self._undo(error)
        finally:
            super().__exit__(type(error), error, error.__traceback__)


_MASK: Callable[[], object] = partial(signal, SIGINT, _note)
_NOTHING: Callable[[], object] = bool


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
                _restore(default_int_handler)
            except BaseException:
                _install(default_int_handler)  # __exit__ will not run, since the block was not entered
                raise

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._was_masked and getsignal(SIGINT) is default_int_handler:
            _install(default_int_handler)


class interruptible:  # noqa: N801 - as above
    """Let Ctrl-C end a wait in a masked block. The block is masked again as soon as it has come.

    Raises:
        KeyboardInterrupt: At once, if Ctrl-C has come already, and as soon as it comes.
    """

    __slots__ = ("_was_masked",)

    def __enter__(self) -> None:
        self._was_masked = get_ident() == _main and getsignal(SIGINT) is _note
        if self._was_masked:
            _restore(_interrupt)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._was_masked and getsignal(SIGINT) is _interrupt:
            signal(SIGINT, _note)


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


def _install(handler: Callable[[int, FrameType | None], object]) -> None:
    global _is_noted
    _is_noted = False
    try:
        signal(SIGINT, _note)
    except BaseException:  # another signal's handler raised: __exit__ will not run, since the block was not entered
        signal(SIGINT, handler)
        raise


def _restore(handler: Callable[[int, FrameType | None], object]) -> None:
    global _is_noted
    if getsignal(SIGINT) is _note:  # else the user's code has installed a handler, which stays
        signal(SIGINT, handler)
    if _is_noted:
        _is_noted = False
        if handler is _interrupt:  # it would have ended the wait
            signal(SIGINT, _note)
        raise KeyboardInterrupt


def _forget_after_fork() -> None:
    # Another thread may have forked while the parent's main thread was in a masked block. That thread is the child's
    # main thread, and is in no block.
    global _main, _is_noted
    if _main != get_ident():
        _main, _is_noted = get_ident(), False
        if getsignal(SIGINT) in (_note, _interrupt):
            signal(SIGINT, default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
