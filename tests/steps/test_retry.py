"""Retries: which failures of a step are tried again, how often and when."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tenacity
from support import DEADLINE
from support_processes import PAUSE, child, in_thread, killed

from iso_orchestrator import (
    LeaseLostError,
    Retry,
    RetryContext,
    StepStatus,
    StepTimeoutError,
    Workflow,
    current_step,
    read_workflow_record,
)


class Flaky:
    """A body that raises the given errors one after the other, and then returns the number of its calls."""

    def __init__(self, *errors: BaseException) -> None:
        self.calls = 0
        self._errors = list(errors)

    def __call__(self) -> int:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return self.calls


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds slept between attempts; nothing really sleeps."""
    slept: list[float] = []
    monkeypatch.setattr("iso_orchestrator.steps.call.pause", slept.append)
    return slept


def types_of_events(workflow: Workflow) -> list[str]:
    return [event.type for event in workflow.record.events]


# How often


def test_a_step_is_tried_once_unless_told(workflow: Workflow) -> None:
    """Without `retry` the first error is raised."""
    flaky = Flaky(ConnectionError("first"))
    with pytest.raises(ConnectionError, match="first"):
        workflow.run_step("flaky", flaky)
    assert flaky.calls == 1


def test_retry_counts_all_attempts(workflow: Workflow) -> None:
    """`retry=3` makes three attempts in all, each on record, and the last error is raised."""
    flaky = Flaky(*(ConnectionError(f"call {number}") for number in range(1, 4)))
    with pytest.raises(ConnectionError, match="call 3"):
        workflow.run_step("flaky", flaky, retry=3)
    assert flaky.calls == 3
    assert types_of_events(workflow) == [
        *["step.started", "step.retrying"] * 2,
        *["step.started", "step.failed"],
    ]
    attempts = [event.detail["attempt"] for event in workflow.record.events if event.type == "step.started"]
    assert attempts == [1, 2, 3]
    step = workflow.record.steps["flaky"]
    assert (step.status, step.attempts, step.error.message) == (StepStatus.FAILED, 3, "call 3")


def test_a_step_that_succeeds_is_not_tried_again(workflow: Workflow) -> None:
    """The first success ends the attempts, and earlier failures leave no error."""
    flaky = Flaky(ConnectionError(), TimeoutError())
    assert workflow.run_step("flaky", flaky, retry=5) == 3
    step = workflow.record.steps["flaky"]
    assert (step.status, step.attempts, step.error) == (StepStatus.COMPLETED, 3, None)
    assert types_of_events(workflow).count("step.retrying") == 2


def test_between_attempts_the_step_says_that_it_failed(workflow: Workflow) -> None:
    """While a step waits for its retry, the record has the failure and says that it is being retried."""
    seen = []

    def look(error: Exception, context: RetryContext) -> bool:
        return True

    def body() -> str:
        if current_step().attempt == 1:
            raise ConnectionError("down")
        seen.append([event.type for event in workflow.record.events])
        return "up"

    workflow.run_step("flaky", body, retry=Retry(attempts=2, should_retry=look))
    assert seen == [["step.started", "step.retrying", "step.started"]]


def test_the_budget_is_for_one_call(workflow: Workflow) -> None:
    """Each call has all its attempts, and the record counts those of all calls."""
    flaky = Flaky(*(ConnectionError() for _ in range(5)))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            workflow.run_step("flaky", flaky, retry=2)
    assert workflow.run_step("flaky", flaky, retry=2) == 6
    assert workflow.record.steps["flaky"].attempts == 6


@pytest.mark.slow
def test_attempts_are_counted_over_crashes(tmp_path: Path) -> None:
    """Attempts of a killed process count in the record, but not in the budget of the next call."""
    code = """
        def body():
            say(current_step().attempt)
            if current_step().attempt < 2:
                raise ConnectionError
            hear()
        workflow.run_step("flaky", body, retry=5)
    """
    killed(code, tmp_path, "2")
    attempts = []

    def body() -> str:
        attempts.append((current_step().attempt, current_step().max_attempts))
        if len(attempts) < 3:
            raise ConnectionError
        return "done"

    workflow = Workflow("w", dir=tmp_path)
    assert workflow.run_step("flaky", body, retry=3) == "done"
    assert attempts == [(1, 3), (2, 3), (3, 3)]
    assert workflow.record.steps["flaky"].attempts == 5
    workflow.close()


# Which errors


@pytest.mark.parametrize(
    ("on", "error", "calls"),
    [
        (ConnectionError, ConnectionResetError(), 2),
        (ConnectionError, ValueError(), 1),
        ((ValueError, ConnectionError), ValueError(), 2),
        ((ValueError, ConnectionError), LookupError(), 1),
    ],
)
def test_only_chosen_errors_are_retried(workflow: Workflow, on: Any, error: Exception, calls: int) -> None:
    """Only the exceptions in `on` and their subclasses are retried."""
    flaky = Flaky(error)
    if calls == 1:
        with pytest.raises(type(error)):
            workflow.run_step("flaky", flaky, retry=Retry(attempts=3, on=on))
    else:
        assert workflow.run_step("flaky", flaky, retry=Retry(attempts=3, on=on)) == calls
    assert flaky.calls == calls


def test_should_retry_decides_with_the_error_and_the_attempt(workflow: Workflow) -> None:
    """`should_retry` is called after each failure except the last, and its False ends the attempts."""
    asked = []

    def should_retry(error: Exception, context: RetryContext) -> bool:
        asked.append((str(error), context.step, context.attempt, context.max_attempts))
        return context.attempt < 2

    flaky = Flaky(*(ConnectionError(f"call {number}") for number in range(1, 5)))
    with pytest.raises(ConnectionError, match="call 2"):
        workflow.run_step("flaky", flaky, retry=Retry(attempts=4, should_retry=should_retry))
    assert asked == [("call 1", "flaky", 1, 4), ("call 2", "flaky", 2, 4)]


def test_should_retry_is_asked_besides_on(workflow: Workflow) -> None:
    """An error that is not in `on` is not retried, whatever `should_retry` would return."""
    with pytest.raises(ValueError, match="first"):
        workflow.run_step(
            "flaky",
            Flaky(ValueError("first")),
            retry=Retry(attempts=3, on=ConnectionError, should_retry=lambda *_: True),
        )


def test_a_should_retry_that_raises_does_not_hide_the_error(workflow: Workflow) -> None:
    """If `should_retry` raises, the step's own error is raised, with a note about the other."""

    def broken(error: Exception, context: RetryContext) -> bool:
        raise ZeroDivisionError("should_retry is broken")

    with pytest.raises(ConnectionError) as raised:
        workflow.run_step("flaky", Flaky(ConnectionError()), retry=Retry(attempts=3, should_retry=broken))
    assert "should_retry is broken" in raised.value.__notes__[0]
    assert workflow.record.steps["flaky"].status is StepStatus.FAILED


class Interruption(BaseException):
    """A BaseException that is neither an Exception nor built in."""


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), Interruption("stop")]
)
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_what_is_no_exception_is_recorded_and_goes_on(
    workflow: Workflow, error: BaseException, timeout: float | None
) -> None:
    """An interrupt is recorded as the failure of the step, and raised without a retry."""
    flaky = Flaky(error)
    with pytest.raises(type(error)) as raised:
        workflow.run_step("flaky", flaky, retry=Retry(attempts=5, should_retry=lambda *_: True), timeout=timeout)
    assert raised.value is error
    step = workflow.record.steps["flaky"]
    assert (flaky.calls, step.status, step.error.name) == (1, StepStatus.FAILED, type(error).__name__)
    assert workflow.run_step("flaky", flaky) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "code", "name"),
    [("raise KeyboardInterrupt", None, "KeyboardInterrupt"), ("sys.exit(3)", 3, "SystemExit")],
)
def test_an_interrupt_ends_the_process_as_ever(tmp_path: Path, statement: str, code: int | None, name: str) -> None:
    """A script that is interrupted in a step ends as without the library, and its record says so."""
    source = f"""
        sys.stderr = open(os.devnull, "w")
        def body():
            {statement}
        with workflow:
            workflow.run_step("body", body, retry=3)
    """
    with child(source, tmp_path) as process:
        ended = process.process.wait(DEADLINE)
    assert ended == code if code is not None else ended != 0
    record = read_workflow_record("w", dir=tmp_path)
    assert (record.status, record.last_error.name) == ("failed", name)
    assert (record.steps["body"].status, record.steps["body"].attempts) == (StepStatus.FAILED, 1)


def test_a_lost_lease_is_not_retried(workflow: Workflow) -> None:
    """A step that lost its lease is not retried."""
    flaky = Flaky(LeaseLostError("slot", 1, 2))
    with pytest.raises(LeaseLostError):
        workflow.run_step("flaky", flaky, retry=3)
    assert flaky.calls == 1


# When


def test_there_is_no_wait_unless_told(workflow: Workflow, pauses: list[float]) -> None:
    """Without `wait` the next attempt starts at once."""
    workflow.run_step("flaky", Flaky(ConnectionError(), ConnectionError()), retry=3)
    assert sum(pauses) == 0


def test_wait_is_seconds_between_attempts(workflow: Workflow, pauses: list[float]) -> None:
    """A number is the pause after each failed attempt except the last."""
    with pytest.raises(ConnectionError):
        workflow.run_step("flaky", Flaky(*[ConnectionError()] * 3), retry=Retry(attempts=3, wait=1.5))
    assert pauses == [1.5, 1.5]


class wait_for_error(tenacity.wait.wait_base):  # noqa: N801 - named as tenacity names them
    """A wait strategy that looks at the failure."""

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        assert retry_state.outcome is not None
        return float(str(retry_state.outcome.exception()))


STRATEGIES: list[tuple[Callable[[Any], float], list[float]]] = [
    (tenacity.wait_fixed(2), [2, 2, 2, 2]),
    (tenacity.wait_none(), [0, 0, 0, 0]),
    (tenacity.wait_exponential(multiplier=1, max=5), [1, 2, 4, 5]),
    (tenacity.wait_incrementing(start=1, increment=3), [1, 4, 7, 10]),
    (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(9)), [1, 9, 9, 9]),
    (tenacity.wait_fixed(1) + tenacity.wait_fixed(2), [3, 3, 3, 3]),
    (tenacity.wait_exception(lambda error: 10 * float(str(error))), [10, 20, 30, 40]),
    (wait_for_error(), [1, 2, 3, 4]),
    (lambda retry_state: retry_state.attempt_number / 2, [0.5, 1, 1.5, 2]),
]


@pytest.mark.parametrize(("wait", "expected"), STRATEGIES, ids=[type(wait).__name__ for wait, _ in STRATEGIES])
def test_wait_may_be_any_strategy_of_tenacity(
    workflow: Workflow, pauses: list[float], wait: Callable[[Any], float], expected: list[float]
) -> None:
    """A wait strategy of tenacity, a sum or chain of them, or a function, sets each pause."""
    errors = [ConnectionError(str(number)) for number in range(1, 5)]
    assert workflow.run_step("flaky", Flaky(*errors), retry=Retry(attempts=5, wait=wait)) == 5
    assert pauses == pytest.approx(expected)


def test_a_random_wait_stays_in_its_bounds(workflow: Workflow, pauses: list[float]) -> None:
    """Random strategies stay in their bounds, and differ from pause to pause."""
    wait = tenacity.wait_random(1, 2) + tenacity.wait_random_exponential(multiplier=1, max=3)
    workflow.run_step("flaky", Flaky(*[ConnectionError()] * 5), retry=Retry(attempts=6, wait=wait))
    assert len(set(pauses)) == 5
    assert all(1 <= pause <= 5 for pause in pauses)


def test_a_wait_strategy_that_raises_does_not_hide_the_error(workflow: Workflow) -> None:
    """If the wait strategy raises, the step's own error is raised, and the step counts as failed."""

    def broken(retry_state: object) -> float:
        raise ZeroDivisionError("the strategy is broken")

    with pytest.raises(ConnectionError):
        workflow.run_step("flaky", Flaky(ConnectionError()), retry=Retry(attempts=3, wait=broken))
    assert workflow.run_step("flaky", Flaky()) == 1


@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan])
def test_a_wait_strategy_without_a_number_does_not_hide_the_error(workflow: Workflow, seconds: float) -> None:
    """Where the next attempt would never come, the step's own error is raised, with a note that says why."""
    with pytest.raises(ConnectionError, match="down") as raised:
        workflow.run_step("flaky", Flaky(ConnectionError("down")), retry=Retry(attempts=3, wait=lambda _: seconds))
    assert f"wait returned {seconds}" in raised.value.__notes__[0]
    assert workflow.record.steps["flaky"].status is StepStatus.FAILED


def test_an_interrupt_ends_the_wait(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the pause between two attempts; the step stays failed, and runs at the next call."""

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("iso_orchestrator.steps.call.pause", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workflow.run_step("flaky", Flaky(ConnectionError("down")), retry=Retry(attempts=3, wait=3600))
    step = workflow.record.steps["flaky"]
    assert (step.status, step.error.message) == (StepStatus.FAILED, "down")
    assert in_thread(workflow.run_step, "flaky", Flaky()).result(DEADLINE) == 1


@pytest.mark.parametrize("kind", [StepTimeoutError, TimeoutError])
def test_a_timeout_is_retried_like_any_error(workflow: Workflow, kind: type[Exception]) -> None:
    """An attempt that timed out is retried if `on` has its error or a base of it."""
    gate = threading.Event()

    def slow() -> int:
        if current_step().attempt == 1:
            gate.wait(DEADLINE)
        return current_step().attempt

    assert workflow.run_step("slow", slow, timeout=PAUSE, retry=Retry(attempts=2, on=kind)) == 2
    gate.set()


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"attempts": 0}, ValueError),
        ({"attempts": -1}, ValueError),
        ({"attempts": 1.5}, TypeError),
        ({"attempts": True}, TypeError),
        ({"attempts": "3"}, TypeError),
        ({"on": ()}, TypeError),
        ({"on": "ValueError"}, TypeError),
        ({"on": ValueError("an instance")}, TypeError),
        ({"on": KeyboardInterrupt}, TypeError),
        ({"on": (ValueError, SystemExit)}, TypeError),
        ({"should_retry": True}, TypeError),
        ({"wait": -1}, ValueError),
        ({"wait": float("nan")}, ValueError),
        ({"wait": float("inf")}, ValueError),
        ({"wait": "1"}, TypeError),
        ({"wait": True}, TypeError),
        ({"wait": None}, TypeError),
    ],
)
def test_wrong_options_of_retry_raise_at_once(options: dict[str, Any], kind: type[Exception]) -> None:
    """`Retry` raises for a wrong argument when it is made."""
    with pytest.raises(kind):
        Retry(**options)


@pytest.mark.parametrize(("retry", "kind"), [(0, ValueError), (-2, ValueError), (2.0, TypeError), (None, TypeError)])
def test_a_wrong_retry_raises_at_decoration(workflow: Workflow, retry: Any, kind: type[Exception]) -> None:
    """A wrong option `retry` raises at decoration."""
    with pytest.raises(kind):
        workflow.step(retry=retry)
    with pytest.raises(kind):
        workflow.run_step("step", Flaky(), retry=retry)
    assert workflow.record.steps == {}


def test_a_retry_says_what_it_is() -> None:
    """`Retry` has defaults, and compares by value."""
    assert (Retry().attempts, Retry().on, Retry().should_retry, Retry().wait) == (3, Exception, None, 0.0)
    assert Retry(attempts=2, wait=1) == Retry(attempts=2, wait=1)
