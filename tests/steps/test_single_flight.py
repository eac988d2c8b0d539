"""One runner for a step at a time, over threads and processes; the others get its outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, WatchedFS, wait_until
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import (
    LeaseLostError,
    OrchestratorError,
    StepFailedError,
    StepStatus,
    Workflow,
    WorkflowUsageError,
    current_step,
)
from iso_orchestrator.store import FileStore


class Gate:
    """A body that ends when it is told to, and as it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.error: BaseException | None = None

    def __call__(self) -> str:
        self.calls += 1
        self.entered.set()
        assert self.opened.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        return f"call {self.calls}"

    def open(self, error: BaseException | None = None) -> None:
        self.error = error
        self.opened.set()


# What a child runs: a step that says it is in, and ends as it is told to.
GATE = """
def body():
    say("in")
    order = hear()
    if order == "fail":
        raise ConnectionError("no route")
    return f"{order} by {os.getpid()}"
try:
    say(workflow.run_step("gate", body))
except OrchestratorError as error:
    say(type(error).__name__)
except ConnectionError as error:
    say(f"its own {error}")
workflow.close()
"""


# Threads


@pytest.mark.parametrize("shared", [True, False], ids=["one object", "an object each"])
def test_threads_share_one_running(tmp_path: Path, shared: bool) -> None:
    """Threads that call a step while it runs get its one result, through one `Workflow` or many."""
    workflows = [Workflow("w", dir=tmp_path) for _ in range(5)]
    gate = Gate()
    futures = [in_thread(workflows[0 if shared else index].run_step, "gate", gate) for index in range(5)]
    assert gate.entered.wait(DEADLINE)
    assert_waits(futures[-1])
    gate.open()
    assert [future.result(DEADLINE) for future in futures] == ["call 1"] * 5
    assert gate.calls == 1
    assert workflows[0].record.steps["gate"].attempts == 1
    for workflow in workflows:
        workflow.close()


def test_threads_share_one_failure(workflow: Workflow) -> None:
    """Threads that wait for a step that fails get the same exception, and do not run it themselves."""
    gate = Gate()
    runner = in_thread(workflow.run_step, "gate", gate)
    assert gate.entered.wait(DEADLINE)
    waiters = [in_thread(workflow.run_step, "gate", gate, retry=3) for _ in range(3)]
    assert_waits(waiters[-1])
    error = ConnectionError("no route")
    gate.open(error)
    for future in (runner, *waiters):
        assert future.exception(DEADLINE) is error
    assert gate.calls == 1


def test_a_waiter_waits_for_all_attempts(workflow: Workflow) -> None:
    """An attempt that is retried is no outcome yet."""
    gates = [Gate(), Gate()]

    def body() -> str:
        return gates[current_step().attempt - 1]()

    runner = in_thread(workflow.run_step, "gate", body, retry=2)
    assert gates[0].entered.wait(DEADLINE)
    waiter = in_thread(workflow.run_step, "gate", pytest.fail)
    gates[0].open(ConnectionError("first"))
    assert gates[1].entered.wait(DEADLINE)
    assert_waits(waiter)
    gates[1].open()
    assert [runner.result(DEADLINE), waiter.result(DEADLINE)] == ["call 1"] * 2


def test_an_interrupt_is_its_threads_own(workflow: Workflow) -> None:
    """Threads that wait for a step that was interrupted are told that it failed, and are not interrupted themselves."""
    gate = Gate()
    runner = in_thread(workflow.run_step, "gate", gate)
    assert gate.entered.wait(DEADLINE)
    waiter = in_thread(workflow.run_step, "gate", pytest.fail)
    assert_waits(waiter)
    gate.open(KeyboardInterrupt())
    assert isinstance(runner.exception(DEADLINE), KeyboardInterrupt)
    error = waiter.exception(DEADLINE)
    assert isinstance(error, StepFailedError)
    assert (error.step_name, error.error.name) == ("gate", "KeyboardInterrupt")


def test_a_failure_is_shared_by_those_who_waited(workflow: Workflow) -> None:
    """Who calls after the failure runs the step anew."""
    gate = Gate()
    gate.open(ConnectionError())
    with pytest.raises(ConnectionError):
        workflow.run_step("gate", gate)
    gate.open()
    assert workflow.run_step("gate", gate) == "call 2"


@pytest.mark.parametrize("options", [{"idempotency_key": "b"}, {"version": 2}], ids=["key", "version"])
def test_a_step_of_another_identity_waits_its_turn(workflow: Workflow, options: dict[str, Any]) -> None:
    """Another key or version is no other step: it waits for the one that runs, and then runs itself."""
    gates = [Gate(), Gate()]
    runner = in_thread(workflow.run_step, "gate", gates[0], idempotency_key="a")
    assert gates[0].entered.wait(DEADLINE)
    other = in_thread(workflow.run_step, "gate", gates[1], **options)
    assert_waits(other)
    assert gates[1].calls == 0
    gates[0].open()
    gates[1].open()
    assert [runner.result(DEADLINE), other.result(DEADLINE)] == ["call 1", "call 1"]
    assert gates[1].calls == 1


def test_steps_of_different_names_run_at_the_same_time(workflow: Workflow) -> None:
    """Only calls of one step wait for each other."""
    barrier = threading.Barrier(3, timeout=DEADLINE)
    futures = [in_thread(workflow.run_step, f"step {number}", barrier.wait) for number in range(3)]
    assert sorted(future.result(DEADLINE) for future in futures) == [0, 1, 2]


def test_a_waiter_whose_runner_was_fenced_out_runs_the_step(workflow: Workflow) -> None:
    """An attempt that lost its lease has no outcome: another thread that waited for it takes the step over."""
    gate = Gate()

    def under_lease() -> str:
        with workflow.lease("slot", holder="one", ttl=60):
            return workflow.run_step("gate", gate)

    runner = in_thread(under_lease)
    assert gate.entered.wait(DEADLINE)
    waiter = in_thread(workflow.run_step, "gate", lambda: "the waiter's")
    assert_waits(waiter)
    workflow.release_lease("slot")
    workflow.touch_lease("slot", holder="two", ttl=60)
    gate.open()
    assert isinstance(runner.exception(DEADLINE), LeaseLostError)
    assert waiter.result(DEADLINE) == "the waiter's"


# Steps that would wait for ever


def test_a_step_that_calls_itself_raises(workflow: Workflow) -> None:
    """A step that calls itself by name raises, and does not hang; so it does through another step."""

    def direct() -> None:
        workflow.run_step("direct", direct)

    @workflow.step
    def ping() -> None:
        pong()

    @workflow.step
    def pong() -> None:
        ping()

    for call in (lambda: workflow.run_step("direct", direct), ping):
        error = in_thread(call).exception(DEADLINE)
        assert isinstance(error, WorkflowUsageError)
        assert "called itself" in str(error)


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_a_step_that_calls_itself_on_another_thread_raises(
    workflow: Workflow, tmp_path: Path, timeout: float | None
) -> None:
    """It is found through the wait for the result, and through another `Workflow` of the same id."""
    other = Workflow("w", dir=tmp_path)

    @other.step(name="loop", timeout=timeout)
    def loop() -> None: ...

    bodies: dict[str, Callable[[], Any]] = {
        "submit": lambda: loop.submit().result(),
        "for_each": lambda: workflow.run_for_each([1], lambda _: loop()),
        "other object": loop,
    }
    for way, body in bodies.items():
        error = in_thread(workflow.run_step, "loop", body).exception(DEADLINE)
        assert isinstance(error, WorkflowUsageError), way
    other.close()


def test_the_same_function_with_other_arguments_is_no_recursion(workflow: Workflow) -> None:
    """A recursive function whose arguments shrink is many steps."""

    @workflow.step
    def factorial(number: int) -> int:
        return 1 if number == 0 else number * factorial(number - 1)

    assert factorial(5) == 120
    assert len(workflow.record.steps) == 6


def test_two_steps_that_wait_for_each_other_raise(workflow: Workflow) -> None:
    """Two threads whose steps call each other's step are told so, and neither hangs."""
    both_run = threading.Barrier(2, timeout=DEADLINE)

    def first() -> str:
        both_run.wait()
        return workflow.run_step("second", second)

    def second() -> str:
        both_run.wait()
        return workflow.run_step("first", first)

    futures = [in_thread(workflow.run_step, "first", first), in_thread(workflow.run_step, "second", second)]
    errors = [future.exception(DEADLINE) for future in futures]
    assert any(isinstance(error, WorkflowUsageError) and "each other" in str(error) for error in errors)
    assert all(isinstance(error, OrchestratorError) for error in errors)


def test_a_circle_of_three_steps_raises(workflow: Workflow) -> None:
    """So are three threads whose steps wait in a circle."""
    all_run = threading.Barrier(3, timeout=DEADLINE)

    def body(number: int) -> None:
        all_run.wait()
        workflow.run_step(f"step {(number + 1) % 3}", lambda: pytest.fail("it is running already"))

    futures = [in_thread(workflow.run_step, f"step {number}", body, number) for number in range(3)]
    errors = [future.exception(DEADLINE) for future in futures]
    assert all(isinstance(error, WorkflowUsageError) for error in errors)


def test_a_circle_through_one_of_many_items_raises(workflow: Workflow) -> None:
    """A step whose items wait for several steps is part of a circle by each of them."""
    quick, slow = Gate(), Gate()

    def items() -> None:
        workflow.run_for_each(["slow", "quick"], lambda name: workflow.run_step(name, pytest.fail), max_parallel=2)

    def turns_back() -> None:
        slow()
        workflow.run_step("items", pytest.fail)

    others = [in_thread(workflow.run_step, "slow", turns_back), in_thread(workflow.run_step, "quick", quick)]
    assert slow.entered.wait(DEADLINE)
    assert quick.entered.wait(DEADLINE)
    outer = in_thread(workflow.run_step, "items", items)
    wait_until(lambda: "items" in workflow.record.steps)
    assert_waits(outer)
    quick.open()
    assert others[1].result(DEADLINE) == "call 1"
    slow.open()
    assert isinstance(others[0].exception(DEADLINE / 4), WorkflowUsageError)
    assert isinstance(outer.exception(DEADLINE / 4), WorkflowUsageError)


def test_waiting_for_a_step_that_waits_for_none_is_no_circle(workflow: Workflow) -> None:
    """Steps that wait for one common step are served when it ends."""
    gate = Gate()
    runner = in_thread(workflow.run_step, "gate", gate)
    assert gate.entered.wait(DEADLINE)
    futures = [
        in_thread(workflow.run_step, f"outer {number}", lambda: workflow.run_step("gate", pytest.fail))
        for number in range(3)
    ]
    assert_waits(futures[-1])
    gate.open()
    assert [future.result(DEADLINE) for future in (runner, *futures)] == ["call 1"] * 4


# Processes


@pytest.mark.slow
def test_processes_share_one_running(workflow: Workflow, tmp_path: Path) -> None:
    """A process that calls a step while another runs it waits, and gets its result."""
    with child(GATE, tmp_path) as runner:
        assert runner.line() == "in"
        waiter = in_thread(workflow.run_step, "gate", pytest.fail)
        assert_waits(waiter)
        runner.say("done")
        assert waiter.result(DEADLINE) == runner.line() == f"done by {runner.pid}"
    assert workflow.record.steps["gate"].attempts == 1


@pytest.mark.slow
def test_a_failure_in_another_process_is_told(workflow: Workflow, tmp_path: Path) -> None:
    """A process that waits for another's failure gets `StepFailedError` with what is recorded of it."""
    with child(GATE, tmp_path) as runner:
        assert runner.line() == "in"
        waiter = in_thread(workflow.run_step, "gate", pytest.fail, retry=3)
        assert_waits(waiter)
        runner.say("fail")
        assert runner.line() == "its own no route"
    error = waiter.exception(DEADLINE)
    assert isinstance(error, StepFailedError)
    assert (error.step_name, error.error.name, error.error.message) == ("gate", "ConnectionError", "no route")
    assert "no route" in str(error)
    assert error.error == workflow.record.steps["gate"].error
    assert workflow.run_step("gate", lambda: "my own") == "my own"


@pytest.mark.slow
def test_another_process_waits_for_all_attempts(workflow: Workflow, tmp_path: Path) -> None:
    """A failure that is retried in another process is no outcome, and a retry that succeeds is one."""
    code = """
        def body():
            say(f"attempt {current_step().attempt}")
            if hear() == "fail":
                raise ConnectionError
            return "done"
        workflow.run_step("gate", body, retry=2)
        workflow.close()
    """
    with child(code, tmp_path) as runner:
        assert runner.line() == "attempt 1"
        waiter = in_thread(workflow.run_step, "gate", pytest.fail)
        assert_waits(waiter)
        runner.say("fail")
        assert runner.line() == "attempt 2"
        assert_waits(waiter)
        runner.say("succeed")
        assert waiter.result(DEADLINE) == "done"


def test_a_killed_runner_is_followed_at_once(workflow: Workflow, tmp_path: Path) -> None:
    """When the runner is killed a waiting process takes the step over, without waiting for any time to run out."""
    with child(GATE, tmp_path) as runner:
        assert runner.line() == "in"
        taken_over = threading.Event()

        def body() -> str:
            taken_over.set()
            return "taken over"

        waiter = in_thread(workflow.run_step, "gate", body)
        assert_waits(waiter)
        runner.kill()
        killed_at = time.monotonic()
        assert taken_over.wait(DEADLINE)
        assert time.monotonic() - killed_at < 2
        assert waiter.result(DEADLINE) == "taken over"
    step = workflow.record.steps["gate"]
    assert (step.status, step.attempts) == (StepStatus.COMPLETED, 2)


@pytest.mark.slow
def test_of_several_waiters_one_follows_a_killed_runner(workflow: Workflow, tmp_path: Path) -> None:
    """One of those who waited, in whatever process, runs the step, and the rest wait for that one."""
    with child(GATE, tmp_path) as runner:
        assert runner.line() == "in"
        gate = Gate()
        gate.open()
        waiters = [in_thread(workflow.run_step, "gate", gate) for _ in range(3)]
        with child(GATE, tmp_path) as other:
            assert_waits(waiters[-1])
            assert_waits(other)
            other.say("done")
            runner.kill()
            results = {waiter.result(DEADLINE) for waiter in waiters}
            assert results in ({"call 1"}, {f"done by {other.pid}"})
            assert other.end()[-1:] == list(results)
    assert gate.calls == (results == {"call 1"})
    assert workflow.record.steps["gate"].attempts == 2


def test_a_stopped_runner_is_alive(workflow: Workflow, tmp_path: Path) -> None:
    """A process that is stopped keeps its step however long that takes, and goes on with it."""
    with child(GATE, tmp_path) as runner:
        assert runner.line() == "in"
        runner.stop()
        waiter = in_thread(workflow.run_step, "gate", pytest.fail)
        assert_waits(waiter)
        runner.go_on()
        runner.say("done")
        assert waiter.result(DEADLINE) == f"done by {runner.pid}"


def test_a_process_that_exits_in_the_midst_of_a_step_is_dead(workflow: Workflow, tmp_path: Path) -> None:
    """A runner that leaves by `os._exit`, its step in a thread, keeps nobody waiting."""
    code = """
        def body():
            say("in")
            threading.Event().wait()
        threading.Thread(target=workflow.run_step, args=("gate", body), daemon=True).start()
        hear()
        os._exit(0)
    """
    with child(code, tmp_path) as runner:
        assert runner.line() == "in"
        waiter = in_thread(workflow.run_step, "gate", lambda: "taken over")
        assert_waits(waiter)
        runner.say()
        assert waiter.result(DEADLINE) == "taken over"


def test_a_wait_for_another_process_outlives_a_run_in_this_one(workflow: Workflow, tmp_path: Path) -> None:
    """A thread that waits for another process's step is not disturbed when another thread ends its run."""
    with child(GATE, tmp_path) as runner:
        assert runner.line() == "in"
        waiter = in_thread(workflow.run_step, "gate", pytest.fail)
        assert_waits(waiter)
        with workflow:
            pass
        assert_waits(waiter)
        runner.say("done")
        assert waiter.result(DEADLINE) == f"done by {runner.pid}"


@pytest.mark.slow
def test_a_completion_is_seen_by_a_process_that_has_read_the_record_before(workflow: Workflow, tmp_path: Path) -> None:
    """What another process has completed since is not run again."""
    assert workflow.record.steps == {}
    with child(GATE, tmp_path) as runner:
        assert runner.line() == "in"
        runner.say("done")
        result = runner.line()
        runner.end()
    assert workflow.run_step("gate", pytest.fail) == result


def test_a_call_begun_after_a_reset_runs_the_body(tmp_path: Path) -> None:
    """A step that waits for its sync, and is reset meanwhile by another process, hands its outcome to no new caller."""
    in_sync, go_on, armed = threading.Event(), threading.Event(), threading.Event()

    def before(name: str, _: tuple[Any, ...]) -> None:
        if name == "sync" and armed.is_set() and threading.current_thread() is not threading.main_thread():
            in_sync.set()
            assert go_on.wait(DEADLINE)

    there = FileStore(tmp_path)
    there._identity = ("file", "as another process has it")
    here, other = Workflow("w", store=FileStore(tmp_path, WatchedFS(before))), Workflow("w", store=there)
    here.append_event("opened")
    other.append_event("opened")

    def body() -> str:
        armed.set()
        return "first"

    first = in_thread(here.run_step, "s", body)
    assert in_sync.wait(DEADLINE)
    assert other.reset("s") == ["s"]
    second = in_thread(here.run_step, "s", lambda: "second")
    assert_waits(second)
    go_on.set()
    assert (first.result(DEADLINE), second.result(DEADLINE)) == ("first", "second")


def test_a_step_inside_itself_by_another_path_of_the_root_raises(tmp_path: Path) -> None:
    """A folder that is mounted twice is two stores for this process, which would wait for itself."""
    store, same = FileStore(tmp_path), FileStore(tmp_path)
    same._identity = ("file", "where it is mounted too")
    one, other = Workflow("w", store=store), Workflow("w", store=same)
    with pytest.raises(WorkflowUsageError, match="called itself"):
        one.run_step("it", lambda: other.run_step("it", lambda: 1))
    one.close()
    other.close()
