"""Ctrl-C may come between any two bytecodes: what that needs, for the whole package.

Python raises `KeyboardInterrupt` in the main thread, wherever that thread is. Between two changes that belong together
(a step is noted as running, and its start is written) this would leave one of the two. So the package defers Ctrl-C, as
Haskell masks asynchronous exceptions (Marlow et al. 2001, "Asynchronous Exceptions in Haskell"):

- `with masked():` is for code that must run to its end. A Ctrl-C inside is noted, and raised when the block ends.
- `with unmasked():` is inside of such a block, for the user's code. There Ctrl-C is raised at once, as ever.
- `with interruptible():`, likewise, is for waits. There Ctrl-C is raised at once, and once: what comes after it finds
  the masked block as it was. So the clean-up that follows runs to its end, however often Ctrl-C comes.

- `with deferred(notice):`, likewise, is for the user's code that is let finish: the first Ctrl-C calls *notice*, and
  only the next one is raised.
- `with postponed(error):` is where Ctrl-C was raised in an unmasked block, and its result must not get lost. The rest
  of that block is masked too, and Ctrl-C is raised again at the end of the masked block around it.
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
from functools import partial
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, TypeVar

from iso_orchestrator.notes import contextmanager

T = TypeVar("T")

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


def _interrupt(number: int, _: FrameType | None) -> None:
    _note_signal(number)
    signal(_current_handler()[0], _note)
    raise KeyboardInterrupt


class masked:  # noqa: N801 - used like a function; a generator would cost three times as much
    """Defer Ctrl-C to the end of the block.

    The installed handler tells whether a masked block is active: no second variable could disagree with it.

    Raises:
        KeyboardInterrupt: Ctrl-C came inside. At the end of the outermost block.
    """

    __slots__ = ("_before", "_is_outermost")

    def __enter__(self) -> None:
        self._before = _outside
        self._is_outermost = get_ident() == _main and _mask()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_outermost:
            _unmask(self._before)


class masked_with_undo(masked):  # noqa: N801 - as above
    """A masked block that stays masked when an error or Ctrl-C leaves it, until what it has done is undone.

    Ctrl-C may still be raised between the end of the block and the return of the function, where Python calls no
    `__exit__`. So the function ends with

        except BaseException:
            block.mask_again()
            try:
                ...  # undo
            finally:
                block.end()
            raise

    Attributes:
        mask_again: Masks Ctrl-C. Written in C: a function in Python begins by raising Ctrl-C that has come.
    """

    __slots__ = ("_own", "mask_again")

    def __init__(self) -> None:
        self._before = self._own = _outside
        self._is_outermost, self.mask_again = False, _do_nothing

    def __enter__(self) -> None:
        super().__enter__()
        if self._is_outermost:
            self._own, self.mask_again = _outside, _MASKS[_outside[0]]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._is_outermost:
            _raise_what_is_noted(_outside[1])
            _unmask(self._before)

    def end(self) -> None:
        """End a block that an error or Ctrl-C has left."""
        global _outside
        if self._is_outermost:
            _outside = self._own
            _unmask(self._before)


_MASKS: dict[int, Callable[[], object]] = {number: partial(signal, number, _note) for number in (SIGINT, SIGTERM)}
_do_nothing: Callable[[], object] = bool


class unmasked:  # noqa: N801 - as above
    """Let Ctrl-C through in a block inside of a masked one.

    Args:
        is_last: The masked block ends soon after this one, with a result that must not get lost. If Ctrl-C has come
            already, it is not raised before that.

    Raises:
        KeyboardInterrupt: At once, if Ctrl-C has come already, and as soon as it comes.
    """

    __slots__ = ("_is_last", "_was_masked")

    def __init__(self, *, is_last: bool = False) -> None:
        self._is_last = is_last

    def __enter__(self) -> None:
        self._was_masked = _is_masked() and not (self._is_last and _is_noted)
        if self._was_masked:
            try:
                _unmask(_outside)
            except BaseException:
                _mask()  # __exit__ will not run, since the block was not entered
                raise

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._was_masked:
            _mask()


class interruptible:  # noqa: N801 - as above
    """Let Ctrl-C end a wait in a masked block. The block is masked again as soon as it has come.

    Raises:
        KeyboardInterrupt: At once, if Ctrl-C has come already, and as soon as it comes.
    """

    __slots__ = ("_was_masked",)

    def __enter__(self) -> None:
        global _is_noted
        self._was_masked = _is_masked()
        if not self._was_masked:
            return
        signal(_outside[0], _interrupt)
        if _is_noted:
            _is_noted = False
            _interrupt(SIGINT, None)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._was_masked:
            number, handler = _current_handler()
            if handler is _interrupt:
                signal(number, _note)


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
                _unmask(_outside)
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


class postponed:  # noqa: N801 - as above
    """Finish the work of an unmasked block in which Ctrl-C was raised; it is raised again after the masked one around.

    In another thread than the main one only `refuse_interrupted` raises, and what it looks at raises again.

    Args:
        error: What was raised. It is raised at once where the program's own handler did that.
    """

    __slots__ = ("_error", "_is_main")

    def __init__(self, error: KeyboardInterrupt) -> None:
        self._error = error

    def __enter__(self) -> None:
        self._is_main = get_ident() == _main
        if self._is_main and not _mask():
            raise self._error

    def __exit__(self, *_: object) -> None:
        global _is_noted
        if self._is_main:
            _is_noted = True


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


def is_terminated() -> bool:
    """Whether SIGTERM has come, of which the program dies after its work."""
    return _is_terminated


def _current_handler() -> tuple[int, Any]:
    """The handler that tells what an interrupt does now: SIGINT's, or SIGTERM's where SIGINT is the program's own."""
    handler = getsignal(SIGINT)
    if handler in (default_int_handler, _note, _interrupt) or isinstance(handler, deferred):
        return SIGINT, handler
    return SIGTERM, getsignal(SIGTERM)


def _is_masked() -> bool:
    return get_ident() == _main and (getsignal(SIGINT) is _note or _current_handler()[1] is _note)


def _mask() -> bool:
    """Note interrupts from now on; False if they are noted already, or go to the program's own handlers."""
    number, handler = SIGINT, getsignal(SIGINT)
    if handler is not default_int_handler:
        number, handler = _current_handler()
        if handler not in (_terminate, _interrupt) and not isinstance(handler, deferred):
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


def _unmask(outside: tuple[int, Any]) -> None:
    global _outside
    (number, handler), _outside = _outside, outside
    installed = getsignal(number)  # a `deferred` if Ctrl-C came as its `__exit__` began
    if installed is _note or isinstance(installed, deferred):  # else the user's code has installed one, which stays
        signal(number, handler)
    _raise_what_is_noted(handler)


def _raise_what_is_noted(handler: Any) -> None:
    global _is_noted
    if _is_noted:
        _is_noted = False
        (handler if isinstance(handler, deferred) or handler is _interrupt else default_int_handler)(SIGINT, None)


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
        if (
            isinstance(handler, deferred)
            or handler is _terminate
            or (handler in (_note, _interrupt) and is_other_thread)
        ):
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
