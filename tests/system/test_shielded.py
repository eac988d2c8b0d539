"""Work that an interrupt hurries and does not break off."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from support import wait_until

from iso_orchestrator.system.shielded import run_uninterrupted


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises, though a shell may have this process ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_work_is_done_in_another_thread() -> None:
    """No signal handler runs there."""
    threads: list[threading.Thread] = []
    run_uninterrupted(lambda _: threads.append(threading.current_thread()))
    assert threads
    assert threads[0] is not threading.main_thread()


def test_an_error_of_the_work_is_the_callers() -> None:
    """As if it had been done here."""
    with pytest.raises(ZeroDivisionError):
        run_uninterrupted(lambda _: 1 / 0)


@pytest.mark.skipif(os.name != "posix", reason="SIGINT cannot be sent to one process elsewhere")
def test_interrupts_hurry_the_work_and_are_raised_when_it_is_done(interrupts: None) -> None:
    """However many come."""
    done: list[str] = []

    def work(is_urgent: Callable[[], bool]) -> None:
        assert not is_urgent()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(is_urgent)
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        run_uninterrupted(work)
    assert done == ["all of it"]


def test_where_no_thread_can_be_had_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter is about to end."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads: list[threading.Thread] = []
    run_uninterrupted(lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.main_thread()]
