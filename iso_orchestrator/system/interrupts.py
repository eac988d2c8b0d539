"""Ctrl-C may come between any two bytecodes: what that needs, for the whole package.

Python raises `KeyboardInterrupt` in the main thread, wherever that thread is. Between two changes that belong together
(a step is noted as running, and its start is written) this would leave one of the two. So the package defers Ctrl-C, as
Haskell masks asynchronous exceptions (Marlow et al. 2001, "Asynchronous Exceptions in Haskell"):

- `with masked():` is for code that must run to its end. A Ctrl-C inside is noted, and raised when the block ends.
- `with unmasked():` is inside of such a block, for all that can take long: the user's code, and waits. There Ctrl-C is
  raised at once.

- `with deferred(notice):`, likewise, is for the user's code that is let finish: the first Ctrl-C calls *notice*, and
  only the next one is raised.
- `with at_work():` is around all of this package's work. In it SIGTERM does what Ctrl-C does, and after it the program
  dies of SIGTERM, unless the program has a handler of its own.

All do nothing in other threads, where Python raises no Ctrl-C. Where the program ignores SIGINT, or has a handler of
its own, they defer SIGTERM alone: what that handler raises, or one of another signal, comes out wherever it comes. The
record on disk stays true even then, since what a broken transaction has written is read again from the disk. But a
lock or a waiter of this process may be left behind.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading

# The functions of the module `signal` convert to enums and back, which takes many times as long as the call itself.
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIGINT,
    SIGTERM,
    default_int_handler,
    getsignal,
    signal,
)
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, TypeVar

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.notes import contextmanager

T = TypeVar("T")

# Seconds. Ctrl-C that comes just before the system call of a wait does not end that call: the next one does not begin.
LONGEST_WAIT = 1.0

_main = threading.main_thread().ident
_is_noted = False  # whether Ctrl-C has come in a masked block, and was not raised yet
_is_terminated = False  # whether SIGTERM has come
_outside: tuple[int, Any] = SIGINT, default_int_handler  # a signal, and its handler outside of the masked block
_works: set[at_work] = set()  # those of the main thread
_exit_functions: list[Callable[[], object]] = []


def _note(number: int, _: FrameType | None) -> None:
    global _is_noted
    _is_noted = True
    _note_signal(number)


def _note_signal(number: int) -> None:
    global _is_terminated
    _is_terminated = _is_terminated or number == SIGTERM


def _terminate(number: int, frame: FrameType | None) -> None:
    if not _works:  # the last work was left in another thread, which cannot put back the handler
        _die()
    _note_signal(number)
    _, handler = _current_handler()
    (default_int_handler if handler is _terminate else handler)(number, frame)


class masked:  # noqa: N801 - used like a function; a generator would cost three times as much
    """Defer Ctrl-C to the end of the block.

    The installed handler tells whether a masked block is active: no second variable could disagree with it.

    Raises:
        KeyboardInterrupt: Ctrl-C came inside. At the end of the outermost block.
    """

    __slots__ = ("_is_outermost",)

    def __enter__(self) -> None:
        self._is_outermost = get_ident() == _main and _mask()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._is_outermost:
            _unmask()


class unmasked:  # noqa: N801 - as above
    """Let Ctrl-C through in a block inside of a masked one.

    Raises:
        KeyboardInterrupt: At once, if Ctrl-C has come already, and as soon as it comes.
    """

    __slots__ = ("_was_masked",)

    def __enter__(self) -> None:
        self._was_masked = _is_masked()
        if self._was_masked:
            try:
                _unmask()
            except BaseException:
                _mask()  # __exit__ will not run, since the block was not entered
                raise

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._was_masked:
            _mask()


class deferred:  # noqa: N801 - as above
    """Let a block inside of a masked one finish at the first Ctrl-C.

    Args:
        notice: Called at the first Ctrl-C, in the middle of the block.

    Raises:
        KeyboardInterrupt: At once, if Ctrl-C has come already; and at the second one.
    """

    __slots__ = ("_before", "_is_noticed", "_notice", "_number", "_was_masked")

    def __init__(self, notice: Callable[[], object]) -> None:
        self._notice = notice
        self._is_noticed = False

    def __enter__(self) -> None:
        self._was_masked = _is_masked()
        if self._was_masked:
            self._number, self._before = _outside
            try:
                _unmask()
                signal(self._number, self)
            except BaseException:
                _mask()
                raise

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._was_masked and getsignal(self._number) is self:  # else the user's code has installed a handler
            _install(self._number, self._before)

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Handle the signal."""
        _note_signal(number)
        if self._is_noticed:
            raise KeyboardInterrupt
        self._is_noticed = True
        self._notice()


class at_work:  # noqa: N801 - as above
    """Let SIGTERM end the work of the main thread as Ctrl-C does, and then the program, as it would have at once.

    It is left alone where the program has a handler of its own, or ignores it. Windows has no such signal.
    """

    def __enter__(self) -> None:
        if get_ident() != _main or os.name != "posix":
            return
        handler = getsignal(SIGTERM)
        if handler is SIG_DFL or _works:
            _works.add(self)
        if handler is SIG_DFL:
            signal(SIGTERM, _terminate)

    def __exit__(self, *_: object) -> None:
        if self not in _works:
            return
        _works.discard(self)
        if not _works and get_ident() == _main:
            if getsignal(SIGTERM) is _terminate:
                signal(SIGTERM, SIG_DFL)
            _die_if_terminated()


def at_exit(function: Callable[[], object]) -> None:
    """Call *function* when the program ends, by SIGTERM too if that came during work."""
    atexit.register(function)
    _exit_functions.append(function)


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


def _current_handler() -> tuple[int, Any]:
    """The handler that tells what an interrupt does now: SIGINT's, or SIGTERM's where SIGINT is the program's own."""
    handler = getsignal(SIGINT)
    if handler is default_int_handler or handler is _note or isinstance(handler, deferred):
        return SIGINT, handler
    return SIGTERM, getsignal(SIGTERM)


def _is_masked() -> bool:
    return get_ident() == _main and (getsignal(SIGINT) is _note or _current_handler()[1] is _note)


def _mask() -> bool:
    """Note interrupts from now on; False if they are noted already, or go to the program's own handlers."""
    number, handler = SIGINT, getsignal(SIGINT)
    if handler is not default_int_handler:
        number, handler = _current_handler()
        if handler is not _terminate and not isinstance(handler, deferred):
            return False
    _install(number, handler)
    return True


def _install(number: int, handler: Any) -> None:
    global _is_noted, _outside
    _is_noted, _outside = False, (number, handler)
    try:
        signal(number, _note)
    except BaseException:  # another signal's handler raised: __exit__ will not run, since the block was not entered
        signal(number, handler)
        raise


def _unmask() -> None:
    global _is_noted
    number, handler = _outside
    if getsignal(number) is _note:  # else the user's code has installed a handler, which stays
        signal(number, handler)
    if _is_noted:
        _is_noted = False
        (handler if isinstance(handler, deferred) else default_int_handler)(SIGINT, None)


def _die_if_terminated() -> None:
    if not _is_terminated:
        return
    try:
        for function in reversed(_exit_functions):
            with suppress(Exception):
                function()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # it may be closed, or None
                stream.flush()
    finally:
        _die()


def _die() -> None:
    signal(SIGTERM, SIG_DFL)
    os.kill(os.getpid(), SIGTERM)


atexit.register(_die_if_terminated)  # the first that is registered is the last that is called


def _forget_after_fork() -> None:
    # The child is in no work of the parent. Another thread may have forked while the parent's main thread was in a
    # masked block. That thread is the child's main thread, and is in no block.
    global _main, _is_noted, _is_terminated
    is_other_thread = _main != get_ident()
    _main, _is_terminated = get_ident(), False
    _works.clear()
    if is_other_thread:
        _is_noted = False
    for number, default in ((SIGINT, default_int_handler), (SIGTERM, SIG_DFL)):
        handler = getsignal(number)
        if isinstance(handler, deferred) or handler is _terminate or (handler is _note and is_other_thread):
            signal(number, default)
    _unblock_after_fork()


# What comes to a child before Python has cleared its signals would be lost: a child that is ended at once would live.
_blocked: dict[int, Any] = {}  # the signals that threads had blocked before they fork


def _block_before_fork() -> None:
    if _works:
        _blocked[get_ident()] = pthread_sigmask(SIG_BLOCK, (SIGTERM,))


def _unblock_after_fork() -> None:
    if (signals := _blocked.pop(get_ident(), None)) is not None:
        pthread_sigmask(SIG_SETMASK, signals)


if hasattr(os, "register_at_fork"):
    from signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask

    os.register_at_fork(
        before=_block_before_fork, after_in_parent=_unblock_after_fork, after_in_child=_forget_after_fork
    )
