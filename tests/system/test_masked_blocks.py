"""Masked blocks defer Ctrl-C to their end, and waits inside of them do not."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import CodeType, FrameType

import pytest
from support import DEADLINE, wait_until
from support_fanout import is_waiting
from support_processes import in_thread

from iso_orchestrator.system.events import OneShotEvent, wait_until_free
from iso_orchestrator.system.interrupts import (
    deferred,
    interruptible,
    is_interrupted,
    masked,
    masked_with_undo,
    postponed,
    unmasked,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGINT cannot be sent to one process elsewhere")


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """SIGINT raises, though a shell may have this process ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def press_when_waiting(*names: str) -> None:
    """Press Ctrl-C when the main thread waits in a lock."""
    main = threading.main_thread().ident
    assert main is not None

    def work() -> None:
        wait_until(lambda: is_waiting(main, *names))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=work).start()


def test_ctrl_c_in_a_masked_block_is_raised_at_its_end() -> None:
    """All statements of the block run, then KeyboardInterrupt is raised once."""
    done = []
    with pytest.raises(KeyboardInterrupt), masked():
        press()
        done.append(is_interrupted())
        press()
        with masked():
            done.append("inner")
        done.append("end")
    assert done == [True, "inner", "end"]
    with masked():
        assert not is_interrupted()


def test_an_error_of_a_masked_block_is_the_context_of_ctrl_c() -> None:
    """KeyboardInterrupt wins, and the traceback shows both."""
    with pytest.raises(KeyboardInterrupt) as raised, masked():
        press()
        raise ValueError("no")
    assert isinstance(raised.value.__context__, ValueError)


def test_ctrl_c_in_an_unmasked_block_is_raised_at_once() -> None:
    """Code after it in the unmasked block does not run; the masked block around it may end what it began."""
    done = []
    with masked():
        with pytest.raises(KeyboardInterrupt), unmasked():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            press()
            done.append("not reached")
        press()
        done.append("cleaned up")
        with pytest.raises(KeyboardInterrupt), unmasked():
            done.append("not reached")
    assert done == ["cleaned up"]


def test_ctrl_c_ends_a_wait_once() -> None:
    """After it the masked block is masked again, at once: a second one waits for the end of the block."""
    done = []
    with pytest.raises(KeyboardInterrupt), masked():
        with pytest.raises(KeyboardInterrupt), interruptible():
            try:
                press()
            finally:
                press()
                done.append("after the second")
        press()
        done.append("cleaned up")
    assert done == ["after the second", "cleaned up"]


def test_ctrl_c_before_a_wait_begins_ends_it() -> None:
    """The wait does not begin, and the masked block goes on."""
    done = []
    with masked():
        press()
        with pytest.raises(KeyboardInterrupt), interruptible():
            done.append("not reached")
        done.append("cleaned up")
    assert done == ["cleaned up"]


def test_a_block_that_an_error_or_ctrl_c_ends_is_undone() -> None:
    """While Ctrl-C is deferred, also if that has come when the block had ended."""
    undone: list[BaseException] = []

    def work(fail: Callable[[], object], late: Callable[[], object]) -> None:
        block = masked_with_undo()
        try:
            with block:
                fail()
            late()
        except BaseException as error:
            block.mask_again()
            try:
                press()
                undone.append(error)
            finally:
                block.end()
            raise

    work(int, int)
    assert undone == []
    for steps in ((press, int), (lambda: 1 / 0, int), (int, press)):
        with pytest.raises(KeyboardInterrupt):
            work(*steps)
    assert [type(error) for error in undone] == [KeyboardInterrupt, ZeroDivisionError, KeyboardInterrupt]
    assert [error.__context__ for error in undone] == [None] * 3
    with pytest.raises(KeyboardInterrupt), masked():
        with pytest.raises(ZeroDivisionError):
            work(lambda: 1 / 0, int)
        undone.append(ValueError("the block around it is masked"))
    assert len(undone) == 5


def test_a_handler_of_the_programs_own_is_left_alone() -> None:
    """Its signal comes out inside of a masked block, as the program wants it."""

    def handler(*_: object) -> None:
        raise SystemExit("mine")

    signal.signal(signal.SIGINT, handler)
    try:
        done = []
        with pytest.raises(SystemExit), masked():
            press()
            done.append("not reached")
        assert done == []
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_handler_that_the_users_code_installs_stays() -> None:
    """An unmasked block may change the handler for good."""

    def handler(*_: object) -> None:
        pass

    with masked():
        with unmasked():
            signal.signal(signal.SIGINT, handler)
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is handler


def test_other_threads_mask_nothing() -> None:
    """Python raises Ctrl-C in the main thread alone, which another thread's block does not change."""
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with masked(), unmasked():
            inside.set()
            assert go_on.wait(DEADLINE)

    other = in_thread(work)
    assert inside.wait(DEADLINE)
    with pytest.raises(KeyboardInterrupt):
        press()
    go_on.set()
    other.result(DEADLINE)


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_ctrl_c_ends_a_wait_for_an_event(timeout: float | None) -> None:
    """In a masked block too, and the event can be waited for again."""
    event = OneShotEvent()
    with masked():
        press_when_waiting()
        with pytest.raises(KeyboardInterrupt):
            event.wait(timeout)
    event.set()
    assert event.wait(timeout)


def test_ctrl_c_ends_a_wait_for_a_lock() -> None:
    """The lock stays with its holder."""
    lock = threading.Lock()
    with lock:
        press_when_waiting("wait_until_free")
        with pytest.raises(KeyboardInterrupt), masked():
            wait_until_free(lock)
        assert lock.locked()
    assert not lock.locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_child_forked_beside_a_masked_block_has_the_default_handler() -> None:
    """Its main thread is the one that forked, which is in no masked block."""

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with masked():
        assert in_thread(fork).result(DEADLINE) == 0


def press_in(code: CodeType) -> None:
    """Press Ctrl-C when the main thread begins to run *code*."""

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is code:
            sys.settrace(None)
            press()

    sys.settrace(trace)


@pytest.mark.parametrize("is_nested", [False, True])
def test_ctrl_c_as_a_deferred_block_is_left_leaves_no_handler(is_nested: bool) -> None:
    """The second one, before the block's own code has put back the handler: the masked block around it does that."""
    noticed = []
    around = deferred(lambda: noticed.append("around")) if is_nested else nullcontext()
    with pytest.raises(KeyboardInterrupt), masked(), around, masked(), deferred(lambda: noticed.append("here")):
        press()
        press_in(deferred.__exit__.__code__)
    assert noticed == ["here"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_postponed_is_raised_after_the_masked_block() -> None:
    """The rest of the unmasked block is masked, and so is a last block of the user's code."""
    done = []
    with pytest.raises(KeyboardInterrupt), masked():
        with unmasked():
            try:
                press()
            except KeyboardInterrupt as error:
                with postponed(error):
                    press()
            with masked():
                done.append("rest")
        with unmasked(is_last=True):
            done.append("last")
        done.append("end")
    assert done == ["rest", "last", "end"]


def test_what_the_programs_own_handler_raises_is_not_postponed() -> None:
    """Nothing would raise it again, where no SIGTERM is masked either."""

    def handle(*_: object) -> None:
        raise KeyboardInterrupt("mine")

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, handle)
    try:
        with pytest.raises(KeyboardInterrupt, match="mine"), masked(), unmasked():
            try:
                press()
            except KeyboardInterrupt as error:
                with postponed(error):
                    pass
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, before)
