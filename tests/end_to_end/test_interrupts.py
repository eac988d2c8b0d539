"""What a signal handler raises inside the package leaves nothing locked, waiting or taken for dead."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import DEADLINE, WatchedFS, failing
from support_processes import child

from iso_orchestrator import FileStore, MutexTimeoutError, StoreError, Workflow, WorkflowUsageError

pytestmark = pytest.mark.slow


class InterruptAt:
    """Sends this thread SIGINT as the package's function of that number is called, and keeps the KeyboardInterrupt.

    Attributes:
        at: What function that was; None before.
    """

    def __init__(self, number: int) -> None:
        self.at: str | None = None
        self._left = number

    def __enter__(self) -> None:
        self._handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._before = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        sys.settrace(self._before)
        assert signal.signal(signal.SIGINT, self._handler) is signal.default_int_handler
        return kind is KeyboardInterrupt

    def _called(self, frame: FrameType, _: str, __: object) -> None:
        if f"{os.sep}iso_orchestrator{os.sep}" not in frame.f_code.co_filename:
            return
        self._left -= 1
        if self._left == 0:
            self.at = frame.f_code.co_qualname
            signal.raise_signal(signal.SIGINT)


def is_free(path: Path) -> bool:
    """Whether another process could take that lock now."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def fails() -> None:
    raise ValueError("no")


@pytest.mark.parametrize("body", [lambda: 1, fails], ids=["succeeds", "fails"])
def test_an_interrupt_at_any_call_lets_the_step_go(tmp_path: Path, body: Any) -> None:
    """Ctrl-C as any function of the package begins keeps no workflow from being closed."""
    for number in count(1):
        workflow = Workflow(f"w-{number}", dir=tmp_path)
        workflow.run_step("before", lambda: 0)
        session = workflow._runtime.session()
        interrupts = InterruptAt(number)
        try:
            with interrupts:
                workflow.run_step("step", body)
        except ValueError:
            pass
        assert not session.is_in_flight("step"), interrupts.at
        assert workflow.run_step("step", lambda: 1) == 1
        workflow.close()
        assert session.is_closed, interrupts.at
        if interrupts.at is None:
            break
    assert number > 50


@pytest.mark.parametrize("look", [True, False], ids=["a look", "an event"])
def test_an_interrupt_at_any_call_frees_the_record_for_other_processes(tmp_path: Path, look: bool) -> None:
    """A notebook whose cell was interrupted is idle: nobody must wait until it does something again."""
    with Workflow("w", dir=tmp_path) as workflow:
        workflow.append_event("before")
        (lock,) = tmp_path.glob("locks/*/record.flock")
        for number in count(1):
            workflow.append_event("between")  # what was interrupted before has all to be read again
            interrupts = InterruptAt(number)
            with interrupts:
                workflow.state if look else workflow.append_event("event")
            assert is_free(lock), interrupts.at
            if interrupts.at is None:
                break
    assert number > 15


@pytest.mark.parametrize("call", ["write_at", "sync", "size", "open_new"])
def test_what_an_alarm_raises_is_no_failure_of_the_disk(tmp_path: Path, call: str) -> None:
    """TimeoutError is an OSError: a handler that raises it gets it back, and the store goes on."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    if call != "open_new":
        workflow.run_step("before", lambda: 0)
    alarm = TimeoutError("my deadline")
    fs.before = failing(alarm, call)
    with pytest.raises(TimeoutError) as raised:
        workflow.run_step("step", lambda: 1)
    assert raised.value is alarm
    fs.before = None
    assert workflow.run_step("step", lambda: 1) == 1
    workflow.close()
    with Workflow("w", dir=tmp_path) as workflow:
        assert workflow.run_step("step", lambda: 2) == 1


ALARMS = """
import signal
armed, rung = False, 0
def ring(*_):
    if armed:
        raise TimeoutError("my deadline")
signal.signal(signal.SIGALRM, ring)
for number in range(60):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + number * 0.00002)
        for step in range(50):
            workflow.run_step(f"step-{number}-{step}", lambda: 1)
        armed = False
    except TimeoutError:
        rung += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert workflow.run_step(f"after-{number}", lambda: 1) == 1
workflow.close()
say(rung)
"""


def test_real_alarms_leave_the_store_alive(tmp_path: Path) -> None:
    """Steps under an alarm, as people time out what cannot be: their own error, and never a dead store."""
    with child(ALARMS, tmp_path) as process:
        assert int(process.line(DEADLINE)) > 0
        process.end()


class HandleAt:
    """Sends this thread SIGUSR1, whose handler is given, as the package's function of that number is called."""

    def __init__(self, number: int, handle: Callable[[], object]) -> None:
        self.has_come = False
        self._left = number
        self._handle = handle

    def __enter__(self) -> None:
        self._handler = signal.signal(signal.SIGUSR1, lambda *_: self._handle())
        self._before = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        signal.signal(signal.SIGUSR1, self._handler)

    def _called(self, frame: FrameType, _: str, __: object) -> None:
        if f"{os.sep}iso_orchestrator{os.sep}" in frame.f_code.co_filename and not self.has_come:
            self._left -= 1
            if self._left == 0:
                self.has_come = True
                signal.raise_signal(signal.SIGUSR1)


def test_a_signal_handler_may_use_the_workflow_at_any_place(tmp_path: Path) -> None:
    """It records, or is told that it came in the middle of something. It does not wait for what it has interrupted."""
    recorded = refused = 0
    for number in (*range(1, 40, 3), *range(40, 4000, 47)):
        workflow = Workflow("w", dir=tmp_path / str(number))

        def handle(workflow: Workflow = workflow) -> None:
            nonlocal recorded, refused
            try:
                workflow.append_event("signal")
                recorded += 1
            except WorkflowUsageError as error:
                assert "signal handler" in str(error)
                refused += 1

        at = HandleAt(number, handle)
        with at, workflow:
            assert workflow.run_step("step", lambda: 1) == 1
            with workflow.mutex("slot"):
                workflow.update_state({"n": number})
        assert workflow.state == {"n": number}
        if not at.has_come:
            break
    assert min(recorded, refused) > 0


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    with Workflow("w", dir=tmp_path) as workflow:
        yield workflow


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()], ids=type)
def test_a_mutex_whose_thread_does_not_start_can_be_had_later(
    tmp_path: Path, workflow: Workflow, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """No thread is to be had to wait for another process: an error now, and no mutex that is lost for good."""
    with workflow.mutex("k"):
        pass
    (path,) = tmp_path.glob("locks/*/mutex/k*.lock")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        real = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "iso-orchestrator-mutex":
                raise error
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(type(error)), workflow.mutex("k", timeout=DEADLINE):
            pass
        monkeypatch.undo()
        with pytest.raises(MutexTimeoutError), workflow.mutex("k", timeout=0.05):
            pass
    with workflow.mutex("k", timeout=DEADLINE):
        assert not is_free(path)


def test_a_step_that_is_given_up_while_others_are_recorded_is_not_forgotten(workflow: Workflow) -> None:
    """Of two attempts that end without an outcome at one time, both are recorded as abandoned in the end."""
    session = workflow._runtime.session()
    session.ensure_open()
    real = session.transact

    def transact(*args: Any, **named: Any) -> Any:
        answer = real(*args, **named)
        session._orphans.add("late")
        return answer

    session._orphans.add("early")
    session.transact = transact  # type: ignore[method-assign]  # another thread adds its own just after it
    session._abandon(ending="early")
    assert session._orphans == {"late"}
    session._orphans.clear()


def test_a_failed_sync_still_kills_the_store(tmp_path: Path) -> None:
    """What the system refuses has a number."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    workflow.run_step("before", lambda: 0)
    fs.before = failing(TimeoutError(110, "Connection timed out"), "sync")
    with pytest.raises(StoreError):
        workflow.run_step("step", lambda: 1)
    fs.before = None
    with pytest.raises(StoreError, match="dead"):
        workflow.run_step("step", lambda: 1)
