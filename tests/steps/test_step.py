"""How a step behaves for the code around it: decorator, record, context, timeouts."""

from __future__ import annotations

import errno
import inspect
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import DEADLINE, T0, WatchedFS, only, wait_until
from support_processes import assert_waits, in_thread

import iso_orchestrator
from iso_orchestrator import (
    NoActiveWorkflowError,
    Retry,
    StepRejectedError,
    StepStatus,
    StepTimeoutError,
    StoreError,
    Workflow,
    current_item,
    current_step,
    current_workflow,
    read_workflow_record,
)
from iso_orchestrator.commands.model import CommandKeywords
from iso_orchestrator.commands.step import CommandOptions
from iso_orchestrator.fanout.for_each import ForEachKeywords, ForEachOptions
from iso_orchestrator.steps.options import StepKeywords, StepOptions
from iso_orchestrator.store import FileStore


def event_types(workflow: Workflow) -> list[str]:
    return [event.type for event in workflow.record.events]


# The decorator


def test_a_step_looks_like_its_function(workflow: Workflow) -> None:
    """A decorated function keeps its name, its documentation and its signature."""

    @workflow.step
    def fetch(page: int, *, size: int = 10) -> dict[str, int]:
        """Fetch a page."""
        return {"page": page, "size": size}

    assert (fetch.__name__, fetch.__doc__, fetch.__module__) == ("fetch", "Fetch a page.", __name__)
    assert list(inspect.signature(fetch).parameters) == ["page", "size"]


def test_the_plain_function_of_a_step_records_nothing(workflow: Workflow) -> None:
    """`.fn` is the plain function, and calling it records nothing."""

    @workflow.step
    def double(number: int) -> int:
        return 2 * number

    assert double.fn(4) == 8
    assert workflow.record.steps == {}


def test_both_spellings_of_the_decorator_are_the_same(workflow: Workflow) -> None:
    """`@step` and `@step()` make the same step."""

    def fetch(page: int) -> int:
        return page

    assert workflow.step(fetch)(1) == 1
    assert workflow.step()(fetch)(2) == 2
    assert list(workflow.record.steps) == ["fetch(page=1)", "fetch(page=2)"]


OPTIONS: dict[str, tuple[Any, type]] = {
    "step": (StepKeywords, StepOptions),
    "command": (CommandKeywords, CommandOptions),
    "for_each": (ForEachKeywords, ForEachOptions),
}


@pytest.mark.parametrize("owner", [Workflow, iso_orchestrator])
@pytest.mark.parametrize("name", OPTIONS)
def test_help_shows_each_option(owner: object, name: str) -> None:
    """Each option that a type checker knows has a checked field and a line of documentation, in both spellings."""
    keywords, options = OPTIONS[name]
    fields = {field.alias for field in attrs.fields(options)}
    for option in keywords.__optional_keys__:
        assert option in fields
        assert re.search(rf"^    {option}: ", getattr(owner, name).__doc__, re.MULTILINE)


def test_a_completed_step_is_not_run_again(workflow: Workflow) -> None:
    """The second call of a step returns the first one's result."""
    calls = []

    @workflow.step
    def fetch(page: int) -> int:
        calls.append(page)
        return page * 10

    assert [fetch(1), fetch(2), fetch(1)] == [10, 20, 10]
    assert calls == [1, 2]


@pytest.mark.parametrize("result", [None, 0, "", False, [], {}, 0.0])
def test_a_falsy_result_is_a_result(workflow: Workflow, result: object) -> None:
    """A step that returned a falsy value is completed like any other."""
    assert workflow.run_step("falsy", lambda: result) == result
    assert workflow.run_step("falsy", lambda: pytest.fail("it ran again")) == result


def test_the_record_tells_all_about_a_step(tmp_path: Path) -> None:
    """A completed step's record has its times, attempts, key and result, and its two events."""
    ticks = iter(range(1000))
    workflow = Workflow("w", dir=tmp_path, now=lambda: T0 + timedelta(seconds=next(ticks)))

    @workflow.step(name="pay:{order}", idempotency_key="{order}:{amount}")
    def pay(order: str, amount: float) -> dict[str, float]:
        return {"paid": amount}

    pay("A7", 12.5)
    step = only(workflow.record.steps.values())
    assert (step.name, step.status, step.attempts) == ("pay:A7", StepStatus.COMPLETED, 1)
    assert (step.idempotency_key, step.result, step.error) == ("A7:12.5", {"paid": 12.5}, None)
    assert step.started_at < step.completed_at == step.updated_at
    assert [(event.type, event.detail) for event in workflow.record.events] == [
        ("step.started", {"step": "pay:A7", "attempt": 1, "idempotencyKey": "A7:12.5", "pid": os.getpid()}),
        ("step.completed", {"step": "pay:A7", "attempt": 1}),
    ]
    workflow.close()


def test_the_record_tells_all_about_a_failure(workflow: Workflow) -> None:
    """The record of a failed step, and of its workflow, has the class, message, place, code and cause of the error."""

    class PaymentError(Exception):
        code = "E_DECLINED"

    @workflow.step
    def pay() -> None:
        try:
            raise ConnectionError("the line was cut")
        except ConnectionError as error:
            raise PaymentError("declined") from error

    with pytest.raises(PaymentError, match="declined"):
        pay()
    record = workflow.record
    step = record.steps["pay"]
    assert (step.status, step.attempts, step.completed_at, step.result) == (StepStatus.FAILED, 1, None, None)
    assert (step.error.name, step.error.message, step.error.code) == ("PaymentError", "declined", "E_DECLINED")
    assert step.error.cause == "the line was cut"
    assert "in pay" in step.error.stack
    assert record.last_error == step.error
    assert event_types(workflow) == ["step.started", "step.failed"]


def test_a_failed_step_runs_again_at_the_next_call(workflow: Workflow) -> None:
    """A failure is not cached: the next call is another attempt, and its success is recorded."""
    outcomes = iter([ConnectionError("down"), "up"])

    @workflow.step
    def fetch() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(ConnectionError, match="down"):
        fetch()
    assert [fetch(), fetch()] == ["up", "up"]
    step = workflow.record.steps["fetch"]
    assert (step.status, step.attempts, step.error) == (StepStatus.COMPLETED, 2, None)
    assert workflow.record.last_error is None


def test_wrong_arguments_fail_like_those_of_any_function(workflow: Workflow) -> None:
    """A call that does not fit the signature raises TypeError and records no step."""

    @workflow.step
    def fetch(page: int) -> int:
        return page

    with pytest.raises(TypeError, match="page"):
        fetch()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="leaf"):
        fetch(1, leaf=1)  # type: ignore[call-arg]
    assert workflow.record.steps == {}


def test_a_step_may_call_others(workflow: Workflow) -> None:
    """A step inside a step is a step of its own, and is completed before the outer one."""

    @workflow.step
    def part(number: int) -> int:
        return number

    @workflow.step
    def whole() -> int:
        return part(1) + part(2)

    assert whole() == 3
    completed = [event.detail["step"] for event in workflow.record.events if event.type == "step.completed"]
    assert completed == ["part(number=1)", "part(number=2)", "whole"]


def test_run_step_takes_its_options(workflow: Workflow) -> None:
    """`run_step` passes its arguments on, and takes every option of a step except a name template."""
    outcomes = iter([1, 2, 3])
    accepted = workflow.run_step(
        "pick",
        lambda low, high: low <= next(outcomes) < high,
        2,
        3,
        idempotency_key="k",
        retry=3,
        timeout=DEADLINE,
        accept=bool,
        if_interrupted="fail",
        version=2,
    )
    step = workflow.record.steps["pick"]
    assert (accepted, step.attempts, step.idempotency_key) == (True, 2, "k")


def test_the_name_given_to_run_step_is_literal(workflow: Workflow) -> None:
    """Braces in the name of `run_step` have no special meaning."""
    assert workflow.run_step("{job[company]} {", lambda: 1) == 1
    assert list(workflow.record.steps) == ["{job[company]} {"]


# Threads


def test_submit_runs_the_step_on_a_worker_thread(workflow: Workflow) -> None:
    """`.submit` returns a future of the step's result, which is recorded like any other."""
    threads = []

    @workflow.step
    def double(number: int) -> int:
        threads.append(threading.current_thread())
        return 2 * number

    future = double.submit(4)
    assert isinstance(future, Future)
    assert future.result(DEADLINE) == 8
    assert threads != [threading.current_thread()]
    assert double(4) == 8
    assert len(threads) == 1


def test_an_error_of_a_submitted_step_is_the_futures(workflow: Workflow) -> None:
    """The error of a submitted step is raised by its future."""

    @workflow.step
    def fail() -> None:
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there"):
        fail.submit().result(DEADLINE)
    assert workflow.record.steps["fail"].status is StepStatus.FAILED


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_than_max_workers_run_at_a_time(tmp_path: Path, most: int) -> None:
    """Exactly `max_workers` submitted steps run at a time."""
    workflow = Workflow("w", dir=tmp_path, max_workers=most)
    inside: list[int] = []
    gate = threading.Event()

    @workflow.step
    def work(number: int) -> int:
        inside.append(number)
        assert gate.wait(DEADLINE)
        return number

    futures = [work.submit(number) for number in range(most + 1)]
    wait_until(lambda: len(inside) == most)
    assert_waits(futures[-1])
    assert len(inside) == most
    gate.set()
    assert [future.result(DEADLINE) for future in futures] == list(range(most + 1))
    workflow.close()


def test_the_end_of_a_run_waits_for_what_was_submitted(tmp_path: Path) -> None:
    """A run ends after all submitted steps, and its record has them."""
    with Workflow("w", dir=tmp_path) as workflow:

        @workflow.step
        def work(number: int) -> int:
            return number

        for number in range(5):
            work.submit(number)
    steps = read_workflow_record("w", dir=tmp_path).steps
    assert [step.status for step in steps.values()] == [StepStatus.COMPLETED] * 5


def test_the_end_of_a_run_waits_for_what_submitted_steps_submit(tmp_path: Path) -> None:
    """A run ends after the steps that submitted steps submit, even if nothing waits for their futures."""
    with Workflow("w", dir=tmp_path, max_workers=2) as workflow:

        @workflow.step
        def work(number: int) -> int:
            if number:
                work.submit(number - 1)
            return number

        work.submit(5)
    record = read_workflow_record("w", dir=tmp_path)
    assert [step.status for step in record.steps.values()] == [StepStatus.COMPLETED] * 6
    assert record.events[-1].type == "workflow.completed"


def test_worker_threads_know_what_is_current(workflow: Workflow) -> None:
    """The workflow, the step and the item are current in worker threads too."""
    seen = []

    @workflow.step
    def look(where: str) -> None:
        seen.append((where, current_workflow() is workflow, current_step().name))

    look("here")
    look.submit("submitted").result(DEADLINE)
    workflow.run_for_each(["a", "b"], lambda item: look(f"item {current_item().index}"), max_parallel=2)
    workflow.step(name="limited", timeout=DEADLINE)(lambda: look("in time"))()
    assert sorted(seen) == [
        (where, True, f'look(where="{where}")') for where in ("here", "in time", "item 0", "item 1", "submitted")
    ]


USERS = ContextVar("users", default="nobody")


def test_worker_threads_have_the_users_context(workflow: Workflow) -> None:
    """A user's context variable has its value in every thread that runs functions of the workflow."""
    token = USERS.set("somebody")
    try:
        assert workflow.step(name="submitted")(lambda: USERS.get()).submit().result(DEADLINE) == "somebody"
        assert workflow.run_step("limited", USERS.get, timeout=DEADLINE) == "somebody"
        assert workflow.run_for_each([1, 2], lambda _: USERS.get(), max_parallel=2).values() == ["somebody"] * 2
    finally:
        USERS.reset(token)


# What is current


def test_nothing_is_current_outside(workflow: Workflow) -> None:
    """No workflow, step or item is current before, after and outside of a run."""
    with workflow:
        workflow.run_step("one", lambda: None)
        with pytest.raises(NoActiveWorkflowError):
            current_step()
    for current in (current_workflow, current_step, current_item):
        with pytest.raises(NoActiveWorkflowError, match=current.__name__):
            current()
    with pytest.raises(RuntimeError):
        current_workflow()


def test_a_step_without_a_run_makes_its_workflow_current(workflow: Workflow) -> None:
    """Every function that a workflow runs has it as the current one, with a run or without."""
    assert workflow.run_step("one", lambda: current_workflow().workflow_id) == "w"


def test_the_innermost_workflow_is_the_current_one(tmp_path: Path) -> None:
    """Inside two workflows the inner one is current, and after it the outer one again."""
    inner, outer = Workflow("inner", dir=tmp_path), Workflow("outer", dir=tmp_path)
    with outer:
        with inner:
            assert current_workflow() is inner
            assert outer.run_step("one", lambda: current_workflow().workflow_id) == "outer"
        assert current_workflow() is outer


def test_a_step_knows_its_attempt(workflow: Workflow) -> None:
    """`current_step` tells the name, the attempt of this call, the budget and the key."""
    seen = []

    @workflow.step(name="flaky:{number}", idempotency_key="key {number}", retry=3)
    def flaky(number: int) -> None:
        seen.append(current_step())
        if len(seen) < 2:
            raise ConnectionError

    flaky(7)
    assert [(step.name, step.attempt, step.max_attempts, step.idempotency_key) for step in seen] == [
        ("flaky:7", 1, 3, "key 7"),
        ("flaky:7", 2, 3, "key 7"),
    ]


def test_the_inner_step_is_the_current_one(workflow: Workflow) -> None:
    """Inside a step inside a step the inner one is current, and after it the outer one again."""

    def outer() -> list[str]:
        inner = workflow.run_step("inner", lambda: current_step().name)
        return [inner, current_step().name]

    assert workflow.run_step("outer", outer) == ["inner", "outer"]


# Free decorators


@iso_orchestrator.step(name="free:{number}", retry=2)
def free_double(number: int) -> str:
    return f"{current_workflow().workflow_id}: {2 * number}"


@iso_orchestrator.for_each(max_parallel=2)
def free_many(number: int, plus: int) -> str:
    return f"{free_double(number)} + {plus}"


def test_a_free_step_serves_the_workflow_that_is_current(tmp_path: Path) -> None:
    """A free step is recorded in the workflow that is current at the call."""
    for name in ("one", "two"):
        with Workflow(name, dir=tmp_path) as workflow:
            assert free_double(2) == f"{name}: 4"
            assert free_double.submit(3).result(DEADLINE) == f"{name}: 6"
            assert free_many([4], 1).values() == [f"{name}: 8 + 1"]
        assert list(workflow.record.steps) == ["free:2", "free:3", "free:4"]


def test_a_free_step_works_inside_what_a_workflow_runs(workflow: Workflow) -> None:
    """A free step needs no run: inside a step or an item its workflow is current."""
    assert workflow.run_step("around", lambda: free_double(1)) == "w: 2"
    assert workflow.run_for_each([5], free_double).values() == ["w: 10"]
    assert set(workflow.record.steps) == {"around", "free:1", "free:5"}


@pytest.mark.parametrize("call", [lambda: free_double(1), lambda: free_double.submit(1), lambda: free_many([1], 1)])
def test_a_free_decorator_needs_a_workflow(call: Callable[[], object]) -> None:
    """A free step and a free for_each raise where no workflow is current, and say what to do."""
    with pytest.raises(NoActiveWorkflowError, match="with workflow"):
        call()


def test_a_free_step_tells_its_name_without_a_workflow() -> None:
    """The name of a free step depends on the arguments alone."""
    assert free_double.step_name(3) == "free:3"


# accept


def test_a_refused_result_is_a_failure(workflow: Workflow) -> None:
    """A result that `accept` refuses fails the step, is raised with the result, and is not cached."""
    answers = iter(["bad", "good"])
    ask = workflow.step(name="ask", accept=lambda answer: answer != "bad")(lambda: next(answers))
    with pytest.raises(StepRejectedError, match="ask") as refused:
        ask()
    assert (refused.value.step_name, refused.value.result) == ("ask", "bad")
    step = workflow.record.steps["ask"]
    assert (step.status, step.result, step.error.name) == (StepStatus.FAILED, None, "StepRejectedError")
    assert ask() == "good"


def test_a_refused_result_is_retried(workflow: Workflow) -> None:
    """A refused result counts as a failure, and is retried."""
    answers = iter(["bad", "worse", "good"])
    assert workflow.run_step("ask", lambda: next(answers), retry=3, accept=lambda answer: answer == "good") == "good"
    assert event_types(workflow).count("step.retrying") == 2


def test_a_recorded_result_is_not_asked_about_again(workflow: Workflow) -> None:
    """`accept` is called for new results only."""
    workflow.run_step("ask", lambda: 1)
    assert workflow.run_step("ask", pytest.fail, accept=lambda _: pytest.fail("it was asked")) == 1


def test_accept_sees_what_the_caller_will_get(workflow: Workflow) -> None:
    """`accept` gets a copy of the result as the caller will get it."""
    seen = []

    def accept(result: dict[str, Any]) -> bool:
        seen.append(dict(result))
        result.clear()
        return True

    assert workflow.run_step("ask", lambda: {"pair": (1, 2)}, accept=accept) == {"pair": [1, 2]}
    assert seen == [{"pair": [1, 2]}]
    assert workflow.run_step("ask", pytest.fail) == {"pair": [1, 2]}


def test_what_judges_a_result_knows_the_workflow(workflow: Workflow) -> None:
    """The workflow is current in `accept` and `should_retry`, also in the thread of a timeout."""
    seen = []

    def accept(result: int) -> bool:
        seen.append((current_workflow(), result))
        return result > 1

    def should_retry(error: Exception, _: object) -> bool:
        seen.append((current_workflow(), str(error)))
        return True

    number = count(1)
    retry = Retry(attempts=2, should_retry=should_retry)
    assert workflow.run_step("ask", lambda: next(number), accept=accept, retry=retry, timeout=DEADLINE) == 2
    assert [current for current, _ in seen] == [workflow] * 3


def test_a_step_may_be_named_by_keywords(workflow: Workflow) -> None:
    """`run_step` takes its name and its function by position or by keyword."""
    assert workflow.run_step(name="ask", fn=lambda: 1) == 1


def test_an_error_of_accept_fails_the_step(workflow: Workflow) -> None:
    """An error of `accept` fails the step."""
    with pytest.raises(KeyError, match="ok"):
        workflow.run_step("ask", dict, accept=lambda result: result["ok"])
    assert workflow.record.steps["ask"].status is StepStatus.FAILED


# Timeouts


def test_a_step_that_takes_too_long_fails(workflow: Workflow) -> None:
    """An attempt that outlives its timeout is recorded as failed, and its late result is dropped."""
    gate = threading.Event()
    runners: list[threading.Thread] = []

    def slow() -> str:
        runners.append(threading.current_thread())
        assert gate.wait(DEADLINE)
        return "late"

    with pytest.raises(StepTimeoutError, match="slow") as raised:
        workflow.run_step("slow", slow, timeout=0.02)
    assert isinstance(raised.value, TimeoutError)
    assert (raised.value.step_name, raised.value.timeout) == ("slow", 0.02)
    gate.set()
    runners[0].join(DEADLINE)
    assert runners[0].daemon
    step = workflow.record.steps["slow"]
    assert (step.status, step.error.name, step.result) == (StepStatus.FAILED, "StepTimeoutError", None)


def test_a_timeout_is_retried_beside_the_thread_that_was_left(workflow: Workflow) -> None:
    """A retry does not wait for the thread of an attempt that timed out, and its state update is dropped."""
    gate = threading.Event()
    runners: list[threading.Thread] = []
    workflow.update_state([])

    def slow() -> str:
        runners.append(threading.current_thread())
        attempt = current_step().attempt
        if attempt == 1:
            assert gate.wait(DEADLINE)
        workflow.update_state(lambda state: [*state, attempt], with_step=True)
        return f"attempt {attempt}"

    assert workflow.run_step("slow", slow, timeout=0.05, retry=2) == "attempt 2"
    assert runners[0].is_alive()
    gate.set()
    runners[0].join(DEADLINE)
    assert workflow.state == [2]
    assert workflow.run_step("slow", pytest.fail) == "attempt 2"


def test_a_timeout_counts_for_each_attempt(workflow: Workflow) -> None:
    """The timeout is for one attempt: several together may take longer."""
    gate = threading.Event()
    attempts = []

    def slow() -> None:
        attempts.append(1)
        gate.wait(DEADLINE)

    with pytest.raises(StepTimeoutError):
        workflow.run_step("slow", slow, timeout=0.02, retry=3)
    assert len(attempts) == 3
    gate.set()


def test_a_step_in_time_is_as_without_a_timeout(workflow: Workflow) -> None:
    """A body that ends in time gives its result or its own error."""

    def fail() -> None:
        raise LookupError("its own")

    assert workflow.run_step("quick", lambda: 1, timeout=DEADLINE) == 1
    with pytest.raises(LookupError, match="its own"):
        workflow.run_step("fails", fail, timeout=DEADLINE)


def test_a_mutex_stays_held_until_the_thread_that_was_left_ends(tmp_path: Path) -> None:
    """The key of an item whose step timed out is free only after the step's thread has ended."""
    gate = threading.Event()
    workflow = Workflow("w", dir=tmp_path)

    @workflow.for_each(mutex_key="slot", stop_on_error=False)
    @workflow.step(timeout=0.02)
    def slow(item: int) -> None:
        assert gate.wait(DEADLINE)

    def enter() -> str:
        with workflow.mutex("slot", timeout=DEADLINE):
            return "entered"

    assert slow([1]).rejected == 1
    other = in_thread(enter)
    assert_waits(other)
    gate.set()
    assert other.result(DEADLINE) == "entered"
    workflow.close()


def test_a_mutex_around_a_step_stays_held_too(workflow: Workflow) -> None:
    """A mutex that was entered around a step that timed out is held until the step's thread ends, beyond its `with`."""
    gate = threading.Event()

    def enter() -> str:
        with workflow.mutex("slot", timeout=DEADLINE):
            return "entered"

    with pytest.raises(StepTimeoutError), workflow.mutex("slot"):
        workflow.run_step("slow", gate.wait, DEADLINE, timeout=0.02)
    other = in_thread(enter)
    assert_waits(other)
    gate.set()
    assert other.result(DEADLINE) == "entered"


# Recording is not the body


def test_a_result_that_cannot_be_stored_is_an_error_and_the_body_is_not_run_again(tmp_path: Path) -> None:
    """If the body succeeded and the disk is full, the error says both, and no retry runs the body again."""
    calls = []
    is_full = False

    def before(name: str, _: tuple[Any, ...]) -> None:
        if is_full and name == "write_at":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pay() -> str:
        nonlocal is_full
        calls.append(1)
        is_full = len(calls) == 1
        return f"paid {len(calls)}"

    workflow = Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(before)))
    with pytest.raises(StoreError, match=r"(?s)'pay'.*succeeded.*No space left"):
        workflow.run_step("pay", pay, retry=3)
    assert calls == [1]
    is_full = False
    workflow.close()
    workflow = Workflow("w", dir=tmp_path)
    assert workflow.record.steps["pay"].status is not StepStatus.COMPLETED
    assert workflow.run_step("pay", pay) == "paid 2"
    workflow.close()


def test_a_full_disk_does_not_hide_an_interrupt(tmp_path: Path) -> None:
    """If a failure cannot be recorded, the caller still gets the error or interrupt of the body."""
    is_full = False

    def before(name: str, _: tuple[Any, ...]) -> None:
        if is_full and name == "write_at":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def interrupted() -> None:
        nonlocal is_full
        is_full = True
        raise KeyboardInterrupt

    workflow = Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(before)))
    with pytest.raises(KeyboardInterrupt) as raised:
        workflow.run_step("pay", interrupted, retry=3)
    assert "not recorded" in only(raised.value.__notes__)
    is_full = False
    workflow.close()


class BrokenCodeError(Exception):
    """An error that cannot be described."""

    @property
    def code(self) -> str:
        raise ZeroDivisionError("the code is broken")

    def __str__(self) -> str:
        raise ZeroDivisionError("the message is broken")


class FalsyError(Exception):
    """An error that is falsy."""

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("kind", [BrokenCodeError, FalsyError])
def test_an_odd_error_is_the_users_all_the_same(workflow: Workflow, kind: type[Exception]) -> None:
    """An error that cannot be described, or that is falsy, is recorded by its class and reaches the caller."""
    thrown = kind()

    def fail() -> None:
        raise thrown

    with pytest.raises(kind) as raised:
        workflow.run_step("fail", fail)
    assert raised.value is thrown
    step = workflow.record.steps["fail"]
    assert (step.status, step.error.name) == (StepStatus.FAILED, kind.__name__)


def test_a_clock_that_fails_does_not_hide_the_users_error(tmp_path: Path) -> None:
    """If an injected clock fails while a failure is recorded, the caller still gets the user's error."""
    works = True

    def now() -> Any:
        return T0 if works else None

    def fail() -> None:
        nonlocal works
        works = False
        raise LookupError("the user's own")

    workflow = Workflow("w", dir=tmp_path, now=now)
    with pytest.raises(LookupError, match="the user's own"):
        workflow.run_step("fail", fail)
    works = True
    workflow.close()


# update_state(with_step=True)


def test_a_state_update_comes_with_its_step(workflow: Workflow) -> None:
    """A step's state update is recorded together with its completion, and not again when the step is read."""
    workflow.update_state({"paid": 0})

    def pay() -> str:
        assert workflow.update_state(add_one, with_step=True) is None
        assert workflow.state == {"paid": 0}
        return "receipt"

    for _ in range(2):
        assert workflow.run_step("pay", pay) == "receipt"
        assert workflow.state == {"paid": 1}
        workflow.close()
    assert event_types(workflow)[-2:] == ["step.completed", "state.updated"]


def add_one(state: dict[str, int]) -> dict[str, int]:
    return {**state, "paid": state["paid"] + 1}


def forgets(state: dict[str, int]) -> None:
    state["paid"] += 1


def raises(state: dict[str, int]) -> None:
    raise LookupError("no such account")


@pytest.mark.parametrize(("update", "kind"), [(forgets, TypeError), (raises, LookupError)])
def test_a_state_update_that_fails_fails_its_step(
    workflow: Workflow, update: Callable[..., Any], kind: type[Exception]
) -> None:
    """If the update raises or returns None, the step fails without a retry, and the state is unchanged."""
    workflow.update_state({"paid": 0})
    calls = []

    def pay() -> None:
        calls.append(1)
        workflow.update_state(update, with_step=True)

    with pytest.raises(kind):
        workflow.run_step("pay", pay, retry=3)
    assert (workflow.record.steps["pay"].status, workflow.state, calls) == (StepStatus.FAILED, {"paid": 0}, [1])


# Sharing


def test_what_is_read_from_the_record_is_the_readers_own(workflow: Workflow) -> None:
    """Changes to a result, a record or a state that was read do not reach the record."""
    workflow.update_state({"jobs": [1]})
    workflow.run_step("load", lambda: {"jobs": [1]})["jobs"].append(2)
    workflow.run_step("load", dict)["jobs"].append(3)
    record = workflow.record
    record.steps["load"].result["jobs"].append(4)
    record.state["jobs"].append(5)
    workflow.state["jobs"].append(6)
    assert workflow.run_step("load", dict) == {"jobs": [1]}
    assert workflow.record.steps["load"].result == {"jobs": [1]}
    assert workflow.state == {"jobs": [1]}


def test_what_a_waiting_caller_does_to_a_result_is_its_own(workflow: Workflow) -> None:
    """Two threads that share one run of a step get a copy of the result each."""
    gate = threading.Event()

    def load() -> dict[str, list[int]]:
        assert gate.wait(DEADLINE)
        return {"jobs": [1]}

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(workflow.run_step, "load", load) for _ in range(2)]
        assert_waits(futures[1])
        gate.set()
        first, second = (future.result(DEADLINE) for future in futures)
    first["jobs"].append(2)
    assert second == {"jobs": [1]}
