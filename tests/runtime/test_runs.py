"""Runs and the life of a workflow: start, end, death, overlap, looking, closing, forgetting, deleting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import DEADLINE, T0, lines_of, only, tree
from support_processes import assert_waits, child, in_thread, killed

from iso_orchestrator import (
    MemoryStore,
    NoActiveWorkflowError,
    OrchestratorError,
    RunResult,
    StepStatus,
    StoreError,
    Workflow,
    WorkflowBusyError,
    WorkflowNotFoundError,
    WorkflowStatus,
    WorkflowUsageError,
    current_workflow,
    delete_workflow,
    list_workflows,
    open_workflow,
    read_workflow_record,
    run_workflow,
)
from iso_orchestrator.store import FileStore


def run_events(workflow: Workflow) -> list[str]:
    return [event.type.partition(".")[2] for event in workflow.record.events if event.type.startswith("workflow.")]


def journal_of(workflow: Workflow) -> list[bytes]:
    """The facts that are not folded into the snapshot."""
    return lines_of(Path(workflow.record_path).with_suffix(".journal"))[1:]


def snapshot_of(workflow: Workflow) -> dict[str, Any]:
    return json.loads(Path(workflow.record_path).read_bytes())


# A process that is in a run, and ends it as it is told to.
RUN = """
with workflow:
    say("in")
    if hear() == "fail":
        sys.stderr = open(os.devnull, "w")
        raise ConnectionError("no route")
"""


# Construction


def test_constructing_touches_no_disk(tmp_path: Path) -> None:
    """Neither a `Workflow` nor its path, its steps or its looks make anything."""
    root = tmp_path / "root"
    workflow = Workflow("w", dir=root, initial_state={"count": 0})

    @workflow.step
    def step() -> None: ...

    @workflow.for_each()
    def many(item: int) -> None: ...

    workflow.mutex("key")
    assert Path(workflow.record_path).is_relative_to(root)
    assert workflow.state == {"count": 0}
    assert workflow.record.status is WorkflowStatus.IDLE
    repr(workflow)
    assert not root.exists()


def test_looking_shows_what_would_be_written_first(tmp_path: Path) -> None:
    """The record of a workflow that is not there is the one that its first use writes, but for the time."""
    workflow = Workflow("w", dir=tmp_path, initial_state={"count": 0}, now=lambda: T0)
    before = workflow.record
    opened = open_workflow("w", dir=tmp_path, initial_state={"count": 0}, now=lambda: T0)
    assert before == opened.record == read_workflow_record("w", dir=tmp_path)
    opened.close()


def test_the_first_use_makes_the_record(tmp_path: Path) -> None:
    """The first step, event or run makes the record; its status is idle without a run."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.append_event("began")
    assert read_workflow_record("w", dir=tmp_path).status is WorkflowStatus.IDLE
    workflow.close()


def test_the_folder_is_made_absolute_at_construction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is the one of the moment of construction, wherever the process goes afterwards."""
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    workflow = Workflow("w")
    assert workflow.dir == str(tmp_path / "one" / ".iso-orchestrator")
    monkeypatch.chdir(tmp_path)
    workflow.run_step("step", lambda: 1)
    workflow.close()
    assert (tmp_path / "one" / ".iso-orchestrator" / ".gitignore").read_text() == "*\n"
    assert not (tmp_path / ".iso-orchestrator").exists()


@attrs.frozen
class Progress:
    """A state that is no JSON by itself."""

    done: int
    root: Path


def test_the_initial_state_is_written_once(tmp_path: Path) -> None:
    """An initial state may be what cattrs unstructures; a record that is there keeps its own."""
    for initial in (Progress(1, Path("a")), {"done": 9}):
        workflow = Workflow("w", dir=tmp_path, initial_state=initial)
        workflow.append_event("used")
        assert workflow.state == {"done": 1, "root": "a"}
        workflow.close()


def test_the_initial_state_is_copied(tmp_path: Path) -> None:
    """What happens to the given state after construction does not reach the record, and nothing reaches the default."""
    given: dict[str, Any] = {"jobs": []}
    workflow = Workflow("w", dir=tmp_path, initial_state=given)
    given["jobs"].append(1)
    workflow.state["jobs"].append(2)
    workflow.update_state(lambda state: {"jobs": [*state["jobs"], 3]})
    assert workflow.state == {"jobs": [3]}
    workflow.close()
    plain = Workflow("plain", dir=tmp_path)
    plain.update_state(lambda state: state.setdefault("a", 1) and state)
    assert Workflow("other", dir=tmp_path).state == {}
    plain.close()


def test_a_state_may_be_anything_that_json_holds(tmp_path: Path) -> None:
    """A state may be None, which is a value like any other, or what cattrs unstructures; it is read back as JSON."""
    workflow = Workflow("w", dir=tmp_path, initial_state=None)
    assert workflow.update_state(lambda state: state) is None
    for value, expected in ((Progress(2, Path("b")), {"done": 2, "root": "b"}), ((1, (2,)), [1, [2]]), (0, 0)):
        assert workflow.update_state(value) == expected
        assert workflow.update_state(lambda _, value=value: value) == expected
        workflow.close()
        assert workflow.state == expected
        assert type(workflow.state) is type(expected)
    with pytest.raises(TypeError, match="return"):
        workflow.update_state(lambda _: None)
    assert workflow.update_state(None) is None
    workflow.close()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"on_busy": "steal"}, ValueError),
        ({"max_workers": 0}, ValueError),
        ({"max_workers": 1.5}, TypeError),
        ({"now": 7}, TypeError),
        ({"now": lambda: datetime(2026, 5, 14)}, ValueError),
        ({"now": lambda: 0}, TypeError),
        ({"store": "gopher://disk"}, StoreError),
        ({"store": 7}, TypeError),
        ({"dir": 7}, TypeError),
        ({"initial_state": object()}, TypeError),
        ({"dirr": "x"}, TypeError),
    ],
    ids=range(11),
)
def test_wrong_options_raise_at_construction(tmp_path: Path, options: dict[str, Any], kind: type[Exception]) -> None:
    """What cannot work raises when the workflow is constructed, and nothing is made."""
    with pytest.raises(kind):
        Workflow("w", **{"dir": tmp_path, **options})
    assert tree(tmp_path) == {}


# Runs


def test_a_run_is_running_and_then_completed(workflow: Workflow) -> None:
    """Inside of its `with` a workflow is running, after it completed; `with` gives the workflow."""
    with workflow as entered:
        assert entered is workflow
        assert current_workflow() is workflow
        assert workflow.record.status is WorkflowStatus.RUNNING
    assert workflow.record.status is WorkflowStatus.COMPLETED
    assert run_events(workflow) == ["running", "completed"]


@pytest.mark.parametrize("error", [LookupError("not there"), KeyboardInterrupt(), SystemExit(0)], ids=repr)
def test_a_run_that_raises_has_failed(workflow: Workflow, error: BaseException) -> None:
    """An error that leaves a run is recorded as its last error, and goes on."""
    with pytest.raises(type(error)) as raised, workflow:
        raise error
    assert raised.value is error
    record = workflow.record
    assert record.status is WorkflowStatus.FAILED
    assert (record.last_error.name, record.last_error.message) == (type(error).__name__, str(error))
    assert __file__ in record.last_error.stack
    assert run_events(workflow) == ["running", "failed"]


def test_a_step_error_that_is_caught_is_no_failure_of_the_run(workflow: Workflow) -> None:
    """A run that ends well has completed, whatever happened to its steps."""

    def fail() -> None:
        raise ConnectionError

    with workflow, pytest.raises(ConnectionError):
        workflow.run_step("fail", fail)
    assert (workflow.record.status, workflow.record.last_error) == (WorkflowStatus.COMPLETED, None)


def test_the_next_run_starts_afresh(workflow: Workflow) -> None:
    """A run after a failed one is running without an error, and its end is what counts."""
    with pytest.raises(ConnectionError), workflow:
        raise ConnectionError
    with workflow:
        assert (workflow.record.status, workflow.record.last_error) == (WorkflowStatus.RUNNING, None)
    assert workflow.record.status is WorkflowStatus.COMPLETED


def test_a_run_cannot_be_nested_in_itself(workflow: Workflow) -> None:
    """A `with` of the same workflow inside raises, on its own threads too, and the outer run goes on unharmed."""

    def enter() -> None:
        with workflow:
            pytest.fail("it was entered")

    with workflow:
        for call in (
            enter,
            lambda: workflow.run(lambda _: enter()),
            lambda: workflow.run_step("nested", enter),
            lambda: workflow.run_for_each([1], lambda _: enter()),
        ):
            with pytest.raises(OrchestratorError, match="inside of itself"):
                call()
        assert workflow.record.status is WorkflowStatus.RUNNING
    assert workflow.record.status is WorkflowStatus.COMPLETED
    assert run_events(workflow) == ["running", "completed"]


def test_using_a_workflow_without_with_is_no_run(workflow: Workflow) -> None:
    """Steps, state and events alone leave the status idle."""
    workflow.run_step("step", lambda: 1)
    workflow.update_state(1)
    assert (workflow.record.status, run_events(workflow)) == (WorkflowStatus.IDLE, [])


def test_run_gives_the_value_and_the_record(tmp_path: Path) -> None:
    """`run` calls a function with the workflow, as a run."""
    workflow = Workflow("w", dir=tmp_path)

    def fn(given: Workflow) -> str:
        assert given is workflow
        assert given.record.status is WorkflowStatus.RUNNING
        return given.run_step("step", lambda: "value")

    result = workflow.run(fn)
    assert isinstance(result, RunResult)
    assert (result.value, result.record.status) == ("value", WorkflowStatus.COMPLETED)
    assert list(result.record.steps) == ["step"]


def test_run_lets_the_error_go_on(workflow: Workflow) -> None:
    """What the function raises is recorded and raised."""
    with pytest.raises(ZeroDivisionError):
        workflow.run(lambda _: 1 // 0)
    assert workflow.record.status is WorkflowStatus.FAILED


def test_run_workflow_takes_all_options(tmp_path: Path) -> None:
    """`run_workflow` makes the workflow, runs the function and gives its value and record."""
    result = run_workflow("w", lambda workflow: workflow.state, dir=tmp_path, initial_state=[1], now=lambda: T0)
    assert (result.value, result.record.status, result.record.workflow_id) == ([1], WorkflowStatus.COMPLETED, "w")
    assert result.record.updated_at == T0.replace(microsecond=7000)
    with pytest.raises(TypeError):
        run_workflow("w", lambda workflow: None, folder=tmp_path)


def test_open_workflow_makes_the_record_at_once(tmp_path: Path) -> None:
    """`open_workflow` creates; a workflow that is there is taken as it is."""
    workflow = open_workflow("w", dir=tmp_path, initial_state=1)
    assert read_workflow_record("w", dir=tmp_path).state == 1
    workflow.close()
    again = open_workflow("w", dir=tmp_path, initial_state=2)
    assert again.state == 1
    again.close()


# Runs that overlap


def test_runs_of_one_workflow_may_overlap(tmp_path: Path) -> None:
    """By default another live run is shared with: the workflow is running until the last one ends."""
    first, second = Workflow("w", dir=tmp_path), Workflow("w", dir=tmp_path)
    with first:
        with second:
            assert second.record.status is WorkflowStatus.RUNNING
        assert first.record.status is WorkflowStatus.RUNNING
    assert first.record.status is WorkflowStatus.COMPLETED
    assert run_events(first) == ["running", "running", "completed", "completed"]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_failure_of_one_is_the_groups(tmp_path: Path, which: str) -> None:
    """Runs that overlap have failed if any of them failed, the last to end or not; its error is kept."""
    with child(RUN, tmp_path) as process:
        assert process.line() == "in"
        workflow = Workflow("w", dir=tmp_path)
        if which == "first":
            with workflow:
                process.say("fail")
                assert process.process.wait(DEADLINE) == 1
                assert workflow.record.status is WorkflowStatus.RUNNING
                workflow.run_step("goes on", lambda: 1)
        else:
            with workflow:
                pass
            assert workflow.record.status is WorkflowStatus.RUNNING
            process.say("fail")
            assert process.process.wait(DEADLINE) == 1
    record = workflow.record
    assert record.status is WorkflowStatus.FAILED
    assert record.last_error is not None
    assert record.last_error.message == "no route"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=lambda end: end.name)
def test_what_one_run_left_the_other_completes(tmp_path: Path, end: signal.Signals) -> None:
    """A run that was killed, or ended by Ctrl-C, fails nothing if the other run goes on and completes."""
    code = "sys.stderr = open(os.devnull, 'w')\nwith workflow:\n    say('in')\n    wait_for_ctrl_c()\n"
    with child(code, tmp_path) as process:
        assert process.line() == "in"
        workflow = Workflow("w", dir=tmp_path)
        with workflow:
            process.process.send_signal(end)
            process.process.wait(DEADLINE)
            assert (workflow.record.status, workflow.record.is_alive) == (WorkflowStatus.RUNNING, True)
    record = read_workflow_record("w", dir=tmp_path)
    assert (record.status, record.is_alive, record.last_error) == (WorkflowStatus.COMPLETED, False, None)
    assert run_events(workflow) == ["running", "running", "failed", "completed"]
    assert snapshot_of(workflow)["status"] == "completed"


def test_a_run_that_died_is_not_alive(tmp_path: Path) -> None:
    """`is_alive` tells a run that goes on from one whose process is gone; the status stays running for now."""
    with child(RUN, tmp_path) as process:
        assert process.line() == "in"
        workflow = Workflow("w", dir=tmp_path)
        for _ in range(2):
            assert (workflow.record.status, workflow.record.is_alive) == (WorkflowStatus.RUNNING, True)
            assert read_workflow_record("w", dir=tmp_path).is_alive
            workflow.append_event("a process without a run")
        process.kill()
        assert (workflow.record.status, workflow.record.is_alive) == (WorkflowStatus.RUNNING, False)
        assert not read_workflow_record("w", dir=tmp_path).is_alive
    workflow.close()  # a process that is about to end records the death
    assert snapshot_of(workflow)["status"] == workflow.record.status == WorkflowStatus.FAILED
    assert run_events(workflow) == ["running", "failed"]


def test_a_run_in_memory_is_alive() -> None:
    """`is_alive` in every store: inside of a run, and not before or after."""
    workflow = Workflow("w", store=MemoryStore())
    assert not workflow.record.is_alive
    with workflow:
        assert workflow.record.is_alive
        assert workflow.set_status("idle").is_alive
    assert not workflow.record.is_alive


def test_a_group_ends_with_its_last_run(tmp_path: Path) -> None:
    """A failure does not outlive its group: the next run alone decides."""
    first, second = Workflow("w", dir=tmp_path), Workflow("w", dir=tmp_path)
    with pytest.raises(ConnectionError), first:
        with second:
            pass
        raise ConnectionError
    assert first.record.status is WorkflowStatus.FAILED
    with second:
        pass
    assert first.record.status is WorkflowStatus.COMPLETED


def test_one_object_serves_runs_of_several_threads(workflow: Workflow) -> None:
    """Each thread has a run of its own through one `Workflow`, with a context of its own."""
    both = threading.Barrier(2, timeout=DEADLINE)

    def run(number: int) -> int:
        with workflow:
            both.wait()
            assert current_workflow() is workflow
            result = workflow.run_step(f"step {number}", lambda: number)
            both.wait()
        return result

    futures = [in_thread(run, number) for number in range(2)]
    assert [future.result(DEADLINE) for future in futures] == [0, 1]
    assert sorted(run_events(workflow)) == ["completed"] * 2 + ["running"] * 2
    assert workflow.record.status is WorkflowStatus.COMPLETED


def test_a_submitted_step_may_be_a_run(tmp_path: Path) -> None:
    """What closes the workflow from inside its own threads waits for none of them."""
    workflow = Workflow("w", dir=tmp_path)

    @workflow.step
    def night() -> int:
        with workflow:
            return int(workflow.run_step("inner", lambda: 1))

    assert night.submit().result(DEADLINE) == 1
    assert {name: step.status.value for name, step in workflow.record.steps.items()} == {
        "inner": "completed",
        "night": "completed",
    }
    workflow.close()


def test_a_run_cancels_only_its_own_submitted_work(tmp_path: Path) -> None:
    """A run that fails in one thread drops nothing that another thread's run has submitted."""
    workflow = Workflow("w", dir=tmp_path, max_workers=1)
    gate, failed = threading.Event(), threading.Event()

    @workflow.step
    def work(number: int) -> int:
        gate.wait(DEADLINE)
        return number

    def other() -> list[int]:
        with workflow:
            futures = [work.submit(number) for number in range(2)]
            submitted.set()
            assert failed.wait(DEADLINE)
            return [future.result(DEADLINE) for future in futures]

    submitted = threading.Event()
    running = in_thread(other)
    assert submitted.wait(DEADLINE)
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(ConnectionError), workflow:
        raise ConnectionError
    failed.set()
    assert running.result(DEADLINE) == [0, 1]


# on_busy


@pytest.mark.slow
def test_a_busy_workflow_can_be_refused(tmp_path: Path) -> None:
    """`on_busy="fail"` raises while another run is alive, says whose it is and since when, and records no run."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    with child(RUN, tmp_path) as process:
        assert process.line() == "in"
        workflow = Workflow("w", dir=tmp_path, on_busy="fail")
        with pytest.raises(WorkflowBusyError, match="'w'") as raised, workflow:
            pytest.fail("it was entered")
        assert (raised.value.workflow_id, raised.value.pid) == ("w", process.pid)
        assert raised.value.host == socket.gethostname()
        assert before < raised.value.since < datetime.now(UTC)
        assert run_events(workflow) == ["running"]
        assert str(process.pid) in str(raised.value)
        process.say()
        process.end()
    with workflow:
        assert workflow.record.status is WorkflowStatus.RUNNING


def test_another_run_of_this_process_is_busy_too(tmp_path: Path) -> None:
    """A run in another thread of this process, or around this one, is another live run."""
    workflow = Workflow("w", dir=tmp_path, on_busy="fail")
    with Workflow("w", dir=tmp_path), pytest.raises(WorkflowBusyError) as raised, workflow:
        pytest.fail("it was entered")
    assert raised.value.pid == os.getpid()
    with workflow:
        pass


def test_a_process_without_a_run_is_not_busy(tmp_path: Path) -> None:
    """A process that only uses steps, or looks, keeps nobody from running."""
    code = """
        workflow.run_step("step", lambda: 1)
        say("used")
        hear()
        workflow.close()
    """
    with child(code, tmp_path) as process:
        assert process.line() == "used"
        with Workflow("w", dir=tmp_path, on_busy="fail") as workflow:
            assert workflow.run_step("step", pytest.fail) == 1
        process.say()
        process.end()


@pytest.mark.parametrize("on_busy", ["fail", "wait"])
def test_a_dead_run_is_not_busy(tmp_path: Path, on_busy: Any) -> None:
    """A run whose process was killed is neither refused nor waited for."""
    killed(RUN, tmp_path, "in")
    with Workflow("w", dir=tmp_path, on_busy=on_busy) as workflow:
        assert run_events(workflow) == ["running", "failed", "running"]
    assert workflow.record.status is WorkflowStatus.COMPLETED


@pytest.mark.slow
@pytest.mark.parametrize("end", ["end", "kill"])
def test_a_busy_workflow_can_be_waited_for(tmp_path: Path, end: str) -> None:
    """`on_busy="wait"` begins when the other run has ended, or died."""
    workflow = Workflow("w", dir=tmp_path, on_busy="wait")

    def run() -> list[str]:
        with workflow:
            return run_events(workflow)

    with child(RUN, tmp_path) as process:
        assert process.line() == "in"
        waiter = in_thread(run)
        assert_waits(waiter)
        if end == "kill":
            process.kill()
        else:
            process.say()
        expected = "failed" if end == "kill" else "completed"
        assert waiter.result(DEADLINE) == ["running", expected, "running"]


def test_waiters_of_one_process_run_one_after_the_other(tmp_path: Path) -> None:
    """Of many that wait none overlaps another, through one object or several."""
    inside = 0
    most = 0

    def run(workflow: Workflow) -> None:
        nonlocal inside, most
        with workflow:
            inside += 1
            most = max(most, inside)
            workflow.append_event("in")
            inside -= 1

    workflows = [Workflow("w", dir=tmp_path, on_busy="wait") for _ in range(2)]
    futures = [in_thread(run, workflows[number % 2]) for number in range(6)]
    for future in futures:
        future.result(DEADLINE)
    assert most == 1
    assert run_events(workflows[0]) == ["running", "completed"] * 6


def test_a_run_that_would_wait_for_the_one_around_it_raises(tmp_path: Path) -> None:
    """A wait that could never end raises."""
    waiting = Workflow("w", dir=tmp_path, on_busy="wait")
    with Workflow("w", dir=tmp_path), pytest.raises(OrchestratorError, match="never ends"), waiting:
        pytest.fail("it was entered")


# Runs that died


@pytest.mark.slow
def test_a_killed_run_is_running_to_a_reader(tmp_path: Path) -> None:
    """A reader writes nothing, so that it shows what was last known."""
    killed(RUN, tmp_path, "in")
    before = tree(tmp_path)
    assert read_workflow_record("w", dir=tmp_path).status is WorkflowStatus.RUNNING
    assert tree(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        lambda root: open_workflow("w", dir=root),
        lambda root: Workflow("w", dir=root).append_event("used"),
        lambda root: Workflow("w", dir=root).run_step("step", lambda: 1),
    ],
    ids=["open_workflow", "append_event", "run_step"],
)
def test_the_next_to_open_records_that_a_run_died(tmp_path: Path, use: Callable[[Path], object]) -> None:
    """Whoever opens the workflow next, for a run or not, records that the killed run is no more."""
    with child(RUN, tmp_path) as process:
        assert process.line() == "in"
        process.kill()
    user = use(tmp_path)
    record = read_workflow_record("w", dir=tmp_path)
    assert record.status is WorkflowStatus.FAILED
    assert record.last_error is not None
    assert str(process.pid) in record.last_error.message
    del user
    Workflow("w", dir=tmp_path).close()


@pytest.mark.slow
def test_a_run_of_a_stopped_process_is_alive(tmp_path: Path) -> None:
    """A run is dead when its process is, not when it has not been heard of."""
    with child(RUN, tmp_path) as process:
        assert process.line() == "in"
        process.stop()
        with Workflow("w", dir=tmp_path) as workflow:
            assert run_events(workflow) == ["running", "running"]
        assert workflow.record.status is WorkflowStatus.RUNNING
        process.go_on()
        process.say()
        process.end()
    assert workflow.record.status is WorkflowStatus.COMPLETED


# Closing


def test_closing_writes_the_snapshot(tmp_path: Path) -> None:
    """What is in the journal while a workflow is in use is in the snapshot after `close()`."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.run_step("step", lambda: "result")
    assert snapshot_of(workflow)["steps"] == {}
    assert journal_of(workflow)
    workflow.close()
    assert snapshot_of(workflow)["steps"]["step"]["result"] == "result"
    assert journal_of(workflow) == []


def test_the_end_of_a_run_writes_the_snapshot(tmp_path: Path) -> None:
    """After a `with` there is nothing to close."""
    with Workflow("w", dir=tmp_path) as workflow:
        workflow.run_step("step", lambda: "result")
    assert snapshot_of(workflow)["status"] == "completed"
    assert journal_of(workflow) == []


def test_a_closed_workflow_opens_again(tmp_path: Path) -> None:
    """Closing ends nothing for good, and closing twice, or what was never used, does nothing."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.close()
    assert tree(tmp_path) == {}
    for number in range(3):
        assert workflow.run_step(f"step {number}", lambda number=number: number) == number
        workflow.close()
        workflow.close()
    assert len(workflow.record.steps) == 3
    assert len(snapshot_of(workflow)["steps"]) == 3


def test_a_submit_opens_a_closed_workflow_again(workflow: Workflow) -> None:
    """The threads of a closed workflow come back with the next use."""
    double = workflow.step(name="double:{n}")(lambda n: 2 * n)
    assert double.submit(1).result(DEADLINE) == 2
    workflow.close()
    assert double.submit(2).result(DEADLINE) == 4


def test_closing_waits_for_what_was_submitted(tmp_path: Path) -> None:
    """`close()` lets submitted steps end, and their results are in the snapshot."""
    workflow = Workflow("w", dir=tmp_path)
    gate = threading.Event()
    work = workflow.step(name="work")(lambda: gate.wait(DEADLINE))
    work.submit()
    closing = in_thread(workflow.close)
    assert_waits(closing)
    gate.set()
    closing.result(DEADLINE)
    assert snapshot_of(workflow)["steps"]["work"]["status"] == "completed"


def test_closing_what_nobody_changed_changes_nothing(tmp_path: Path) -> None:
    """Opening and closing a folded record leaves its bytes alone."""
    Workflow("w", dir=tmp_path).run_step("step", lambda: 1)
    open_workflow("w", dir=tmp_path).close()
    folder = tmp_path / "workflows"
    for path in folder.iterdir():
        before = (path.read_bytes(), path.stat().st_ino)
        open_workflow("w", dir=tmp_path).close()
        assert (path.read_bytes(), path.stat().st_ino) == before


def test_a_run_cannot_be_closed_from_inside(workflow: Workflow) -> None:
    """`close()` inside a run raises, and the run goes on."""
    with workflow:
        with pytest.raises(OrchestratorError, match="inside a run"):
            workflow.close()
        assert workflow.run_step("step", lambda: 1) == 1


@pytest.mark.slow
def test_the_last_to_close_folds(tmp_path: Path) -> None:
    """While another process uses the workflow the journal stays; the last one writes the snapshot."""
    code = """
        workflow.run_step("theirs", lambda: 1)
        say("used")
        hear()
        workflow.close()
    """
    with child(code, tmp_path) as process:
        assert process.line() == "used"
        workflow = Workflow("w", dir=tmp_path)
        workflow.run_step("mine", lambda: 1)
        workflow.close()
        assert snapshot_of(workflow)["steps"] == {}
        process.say()
        process.end()
    assert list(snapshot_of(workflow)["steps"]) == ["theirs", "mine"]


def test_one_of_two_objects_may_close(tmp_path: Path) -> None:
    """An object that is closed takes nothing from another one of the same workflow in this process."""
    first, second = Workflow("w", dir=tmp_path), Workflow("w", dir=tmp_path)
    first.run_step("step", lambda: 1)
    second.append_event("used")
    first.close()
    assert journal_of(first)
    assert second.run_step("step", pytest.fail) == 1
    second.close()
    assert journal_of(first) == []


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "1 // 0"])
def test_the_end_of_the_interpreter_folds(tmp_path: Path, ending: str) -> None:
    """A script that never closes its workflow leaves a snapshot, however it ends."""
    code = f"""
        workflow.run_step("step", lambda: 1)
        workflow.step(name="submitted")(lambda: 2).submit()
        sys.stderr = open(os.devnull, "w")
        {ending}
    """
    with child(code, tmp_path) as process:
        process.process.wait(DEADLINE)
    workflow = Workflow("w", dir=tmp_path)
    assert {name: step["result"] for name, step in snapshot_of(workflow)["steps"].items()} == {
        "step": 1,
        "submitted": 2,
    }
    assert journal_of(workflow) == []
    assert not any("runs/" in path and path.endswith(".flock") for path in tree(tmp_path))


# Time


def test_the_end_of_the_interpreter_waits_for_no_daemon_thread(tmp_path: Path) -> None:
    """A thread in a function given to update_state() is left where it is, and nothing of it is recorded."""
    code = """
        def update(state):
            say("inside")
            time.sleep(3600)
        workflow.append_event("note")
        threading.Thread(target=workflow.update_state, args=[update], daemon=True).start()
    """
    with child(code, tmp_path) as process:
        assert process.line() == "inside"
        assert process.process.wait(DEADLINE) == 0
    assert [event.type for event in Workflow("w", dir=tmp_path).record.events] == ["note"]


def test_an_injected_clock_is_the_only_one(tmp_path: Path) -> None:
    """`now=` gives every time in the record, in UTC and cut to milliseconds."""
    moment = datetime(2001, 2, 3, 4, 5, 6, 789999, tzinfo=timezone(timedelta(hours=2)))
    with Workflow("w", dir=tmp_path, now=lambda: moment) as workflow:
        workflow.run_step("step", lambda: 1)
        workflow.heartbeat("beat")
        workflow.touch_lease("lease", holder="me", ttl=1)
        with workflow.mutex("key"):
            workflow.update_state(1)
    expected = datetime(2001, 2, 3, 2, 5, 6, 789000, tzinfo=UTC)
    record = workflow.record
    step = only(record.steps.values())
    times = [record.created_at, record.updated_at, step.started_at, step.completed_at, step.updated_at]
    times += [record.heartbeats["beat"].at, record.leases["lease"].acquired_at, *[event.at for event in record.events]]
    assert set(times) == {expected}
    assert {time.tzinfo for time in times} == {UTC}


def test_times_are_aware_and_of_now(workflow: Workflow) -> None:
    """Without `now=` times are the wall clock's, aware UTC, without microseconds."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    workflow.run_step("step", lambda: 1)
    for moment in (workflow.record.created_at, workflow.record.steps["step"].completed_at):
        assert before <= moment <= datetime.now(UTC)
        assert moment.tzinfo is UTC
        assert moment.microsecond % 1000 == 0


def test_a_clock_that_runs_back_changes_no_order(tmp_path: Path) -> None:
    """Events are in the order in which they happened, whatever the clock says."""
    times = iter(T0 - timedelta(hours=number) for number in range(1000))
    workflow = Workflow("w", dir=tmp_path, now=lambda: next(times))
    for number in range(3):
        workflow.append_event(f"event {number}")
    workflow.close()
    assert [event.type for event in workflow.record.events] == ["event 0", "event 1", "event 2"]


# Reading, listing, deleting


def test_reading_creates_nothing(tmp_path: Path) -> None:
    """An unknown workflow raises, and neither reading nor listing makes a folder."""
    root = tmp_path / "root"
    with pytest.raises(WorkflowNotFoundError, match="nobody") as raised:
        read_workflow_record("nobody", dir=root)
    assert isinstance(raised.value, LookupError)
    assert (raised.value.workflow_id, raised.value.root) == ("nobody", str(root))
    assert list(list_workflows(dir=root)) == []
    assert list(list_workflows(root)) == []
    assert not root.exists()


def test_reading_sees_what_is_not_folded(workflow: Workflow, tmp_path: Path) -> None:
    """A reader has all that live processes have written, and changes nothing."""
    with workflow:
        workflow.run_step("step", lambda: 1)
        before = tree(tmp_path)
        record = read_workflow_record("w", dir=tmp_path)
        assert record == workflow.record
        assert tree(tmp_path) == before
    assert record.steps["step"].result == 1


@pytest.mark.slow
def test_the_record_of_another_process_is_seen_at_once(workflow: Workflow, tmp_path: Path) -> None:
    """`record` and `state` have all that other processes wrote before."""
    code = """
        workflow.update_state({"count": 7})
        say("written")
        hear()
    """
    workflow.append_event("opened")
    with child(code, tmp_path) as process:
        assert process.line() == "written"
        assert workflow.state == workflow.record.state == {"count": 7}
        process.say()
        process.end()


def test_a_list_tells_all_workflows(tmp_path: Path) -> None:
    """Each workflow of a root is in the list, with its status, its times and its steps counted by theirs."""

    def fail() -> None:
        raise ConnectionError("no route")

    for name in ("a", "b/..", "Ł"):
        with pytest.raises(ConnectionError), Workflow(name, dir=tmp_path) as workflow:
            workflow.run_step("one", lambda: 1)
            workflow.run_step("two", fail)
    open_workflow("idle", dir=tmp_path).close()
    found = {summary.workflow_id: summary for summary in list_workflows(dir=tmp_path)}
    assert set(found) == {"a", "b/..", "Ł", "idle"}
    summary = found["b/.."]
    record = read_workflow_record("b/..", dir=tmp_path)
    assert (summary.status, summary.last_error.message) == (WorkflowStatus.FAILED, "no route")
    assert (summary.created_at, summary.updated_at) == (record.created_at, record.updated_at)
    assert dict(summary.steps) == {StepStatus.COMPLETED: 1, StepStatus.FAILED: 1}
    assert found["idle"].status is WorkflowStatus.IDLE


def test_a_damaged_workflow_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that cannot be read is left out of the list with a warning."""
    for name in ("good", "bad"):
        open_workflow(name, dir=tmp_path).close()
    Path(Workflow("bad", dir=tmp_path).record_path).write_text("{")
    assert [summary.workflow_id for summary in list_workflows(dir=tmp_path)] == ["good"]
    assert "bad-" in caplog.text


def test_deleting_removes_all(tmp_path: Path) -> None:
    """A deleted workflow leaves no file and no lock; the others stay; the id starts anew."""
    for name in ("gone", "kept"):
        with Workflow(name, dir=tmp_path, initial_state=1) as workflow, workflow.mutex("key"):
            workflow.run_step("step", lambda: 1)
            workflow.update_state(2)
    delete_workflow("gone", dir=tmp_path)
    assert not any("gone" in path for path in tree(tmp_path))
    assert [summary.workflow_id for summary in list_workflows(dir=tmp_path)] == ["kept"]
    with pytest.raises(WorkflowNotFoundError):
        read_workflow_record("gone", dir=tmp_path)
    with pytest.raises(WorkflowNotFoundError):
        delete_workflow("gone", dir=tmp_path)
    fresh = Workflow("gone", dir=tmp_path, initial_state=1)
    assert fresh.run_step("step", lambda: "anew") == "anew"
    assert fresh.state == 1
    fresh.close()


@pytest.mark.slow
def test_a_workflow_in_use_is_not_deleted(tmp_path: Path) -> None:
    """While a process uses a workflow, this one or another, deleting it is refused and changes nothing."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.run_step("step", lambda: 1)
    with pytest.raises(WorkflowBusyError) as raised:
        delete_workflow("w", dir=tmp_path)
    assert raised.value.pid == os.getpid()
    workflow.close()
    with child(RUN, tmp_path) as process:
        assert process.line() == "in"
        with pytest.raises(WorkflowBusyError) as raised:
            delete_workflow("w", dir=tmp_path)
        assert raised.value.pid == process.pid
        assert workflow.run_step("step", pytest.fail) == 1
        workflow.close()
        process.kill()
    delete_workflow("w", dir=tmp_path)
    assert list(list_workflows(dir=tmp_path)) == []


@pytest.mark.parametrize("url", [False, True], ids=["a store", "a URL"])
def test_a_store_takes_the_place_of_the_folder(tmp_path: Path, url: bool) -> None:
    """All functions take a store, or a URL that names one."""
    store = f"file://{tmp_path}/a%20b" if url else FileStore(tmp_path / "a b")
    assert run_workflow("w", lambda workflow: 1, store=store, dir=tmp_path / "unused").value == 1
    assert read_workflow_record("w", store=store) == read_workflow_record("w", dir=tmp_path / "a b")
    assert len(list(list_workflows(store=store))) == 1
    delete_workflow("w", store=store)
    assert list(list_workflows(store=store)) == []
    assert not (tmp_path / "unused").exists()


def test_a_memory_store_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow in memory works without a disk, and resumes in its process."""
    monkeypatch.chdir(tmp_path)
    store = MemoryStore()
    for _ in range(2):
        with Workflow("w", store=store) as workflow:
            assert workflow.run_step("step", lambda: 1) == 1
    assert workflow.record.steps["step"].attempts == 1
    assert tree(tmp_path) == {}


# reset


def test_a_reset_step_runs_again(workflow: Workflow) -> None:
    """A forgotten step runs again, its attempts counted from 1, and its history is kept."""
    results = iter(["first", "second"])
    workflow.run_step("step", lambda: next(results))
    assert workflow.reset("step") == ["step"]
    assert workflow.record.steps == {}
    assert workflow.run_step("step", lambda: next(results)) == "second"
    assert workflow.record.steps["step"].attempts == 1
    completed = [event for event in workflow.record.events if event.type == "step.completed"]
    assert len(completed) == 2


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("fetch:*", ["fetch:1", "fetch:2"]),
        ("fetch:?", ["fetch:1", "fetch:2"]),
        ("fetch:[2-9]", ["fetch:2"]),
        ("*", ["fetch:1", "fetch:2", "Fetch:3", "job[1]", "job1", "*"]),
        ("FETCH:*", []),
        ("job[1]", ["job[1]"]),
        ("nothing", []),
    ],
)
def test_reset_takes_a_name_or_a_pattern(tmp_path: Path, pattern: str, names: list[str]) -> None:
    """A step of exactly that name is meant alone, else all that match the pattern; their names come back."""
    workflow = Workflow("w", dir=tmp_path)
    all_names = ["fetch:1", "fetch:2", "Fetch:3", "job[1]", "job1", *(["*"] if pattern != "*" else [])]
    for name in all_names:
        workflow.run_step(name, lambda: 1)
    expected = [name for name in names if name in all_names]
    assert workflow.reset(pattern) == expected
    assert list(workflow.record.steps) == [name for name in all_names if name not in expected]
    workflow.close()


@pytest.mark.slow
def test_a_running_step_is_not_reset(workflow: Workflow, tmp_path: Path) -> None:
    """A step that a live thread or process runs is refused, and with it all that the pattern chose."""
    workflow.run_step("step 1", lambda: 1)
    gate = threading.Event()
    runner = in_thread(workflow.run_step, "step 2", gate.wait, DEADLINE)
    while "step 2" not in workflow.record.steps:
        assert not runner.done()
    with pytest.raises(WorkflowBusyError, match="step 2") as raised:
        workflow.reset("step *")
    assert raised.value.pid == os.getpid()
    gate.set()
    assert runner.result(DEADLINE)
    assert set(workflow.record.steps) == {"step 1", "step 2"}
    code = """
        def body():
            say("in")
            hear()
        workflow.run_step("step 3", body)
    """
    with child(code, tmp_path) as process:
        assert process.line() == "in"
        with pytest.raises(WorkflowBusyError, match="step 3") as raised:
            workflow.reset("step *")
        assert raised.value.pid == process.pid
        process.kill()
        assert workflow.reset("step *") == ["step 1", "step 2", "step 3"]


def test_a_failed_step_can_be_reset(workflow: Workflow) -> None:
    """Failed steps are forgotten like completed ones."""
    with pytest.raises(ZeroDivisionError):
        workflow.run_step("step", lambda: 1 // 0)
    assert workflow.reset("step") == ["step"]
    assert workflow.record.steps == {}


# set_status


def test_the_status_can_be_set_by_hand(workflow: Workflow) -> None:
    """`set_status` sets status and error, appends the event, and returns the record."""
    record = workflow.set_status("failed", ConnectionError("no route"))
    assert (record.status, record.last_error.message) == (WorkflowStatus.FAILED, "no route")
    assert workflow.set_status(WorkflowStatus.FAILED, "a text").last_error.message == "a text"
    record = workflow.set_status("idle")
    assert (record.status, record.last_error) == (WorkflowStatus.IDLE, None)
    assert [event.type for event in record.events] == ["workflow.failed", "workflow.failed", "workflow.idle"]
    assert record == workflow.record
    with pytest.raises(ValueError, match="done"):
        workflow.set_status("done")


@pytest.mark.slow
def test_a_python_without_a_tty_needs_nothing(tmp_path: Path) -> None:
    """A script may have no standard streams at all: a run writes to none of them."""
    code = """
        sys.stdin = sys.stderr = None
        out, sys.stdout = sys.stdout, None
        with workflow:
            workflow.run_for_each([1], lambda item: workflow.run_step(f"step {item}", lambda: 1))
        sys.stdout = out
        say("done")
    """
    with child(code, tmp_path) as process:
        assert process.line() == "done"
    assert sys.stderr is not None


def test_runs_of_two_tasks_of_one_thread_may_overlap(tmp_path: Path) -> None:
    """Each task ends its own run, in whatever order they end, and the last one leaves nothing running."""
    workflow = Workflow("w", dir=tmp_path)

    async def run(begun: asyncio.Event, go_on: asyncio.Event) -> None:
        with workflow:
            begun.set()
            await go_on.wait()
            assert current_workflow() is workflow

    async def main() -> None:
        events = [asyncio.Event() for _ in range(4)]
        first = asyncio.create_task(run(events[0], events[1]))
        second = asyncio.create_task(run(events[2], events[3]))
        await events[0].wait()
        await events[2].wait()
        assert len(workflow._runtime.runs) == 2
        for event, task in ((events[1], first), (events[3], second)):
            event.set()
            await task

    asyncio.run(main())
    assert workflow.record.status is WorkflowStatus.COMPLETED
    with workflow:
        pass


def test_a_run_may_end_in_another_thread(tmp_path: Path) -> None:
    """Its end is recorded, and the thread that began it may begin another one."""
    workflow = Workflow("w", dir=tmp_path)

    def begin_here_and_end_elsewhere() -> None:
        stack = ExitStack()
        stack.enter_context(workflow)
        with ThreadPoolExecutor() as pool:
            pool.submit(stack.close).result()
        assert workflow.record.status is WorkflowStatus.COMPLETED
        with workflow:
            assert workflow.record.status is WorkflowStatus.RUNNING

    copy_context().run(begin_here_and_end_elsewhere)  # the workflow stays current where it was entered
    workflow.close()


def test_the_end_of_one_of_several_runs_in_another_thread_raises(tmp_path: Path) -> None:
    """It could end the wrong one. All of them can still be ended where they were begun."""
    workflow = Workflow("w", dir=tmp_path)
    with ThreadPoolExecutor() as pool, workflow:
        pool.submit(workflow.__enter__).result()
        with ThreadPoolExecutor() as other, pytest.raises(WorkflowUsageError, match="2 runs go on"):
            other.submit(workflow.__exit__, None, None, None).result()
        pool.submit(workflow.__exit__, None, None, None).result()
    assert workflow.record.status is WorkflowStatus.COMPLETED


def test_runs_may_end_in_another_order_than_they_began(tmp_path: Path) -> None:
    """What is current after that is the run that goes on."""
    first, second = Workflow("first", dir=tmp_path), Workflow("second", dir=tmp_path)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert current_workflow() is second
    second.__exit__(None, None, None)
    with pytest.raises(NoActiveWorkflowError):
        current_workflow()
    for workflow in (first, second):
        assert workflow.record.status is WorkflowStatus.COMPLETED
        with workflow:
            assert current_workflow() is workflow
