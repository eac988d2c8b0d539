"""Waits that would never end raise `DeadlockError`, and a long wait for another process is warned of."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Child, wait_until
from support_fanout import blocked, new_seed
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import (
    DeadlockError,
    MemoryStore,
    MutexTimeoutError,
    Rejected,
    StepTimeoutError,
    Workflow,
)


@pytest.fixture
def workflow() -> Iterator[Workflow]:
    workflow = Workflow("w", store=MemoryStore(), max_workers=2)
    yield workflow
    in_thread(workflow.close).result(DEADLINE)


def outcomes(*works: Callable[[], Any]) -> tuple[list[Any], list[DeadlockError]]:
    """What functions return, each in a thread of its own, and the deadlocks that they were told of."""
    futures = [in_thread(work) for work in works]
    errors = [future.exception(DEADLINE) for future in futures]
    values = [future.result() for future, error in zip(futures, errors, strict=True) if error is None]
    assert all(error is None or isinstance(error, DeadlockError) for error in errors), errors
    return values, [error for error in errors if isinstance(error, DeadlockError)]


# Threads


def test_mutexes_in_two_orders(workflow: Workflow) -> None:
    """One thread is told of both mutexes, and the other one gets both."""
    barrier = threading.Barrier(2, timeout=DEADLINE)

    def enter(outer: str, inner: str) -> str:
        with workflow.mutex(outer):
            barrier.wait()
            with workflow.mutex(inner):
                return outer

    values, (error,) = outcomes(lambda: enter("a", "b"), lambda: enter("b", "a"))
    assert len(values) == 1
    assert "mutex 'a'" in str(error)
    assert "mutex 'b'" in str(error)
    assert enter_alone(workflow, "a", "b")


def enter_alone(workflow: Workflow, *keys: str) -> bool:
    for key in keys:
        with workflow.mutex(key, timeout=0):
            pass
    return True


def test_a_wait_with_a_timeout_is_no_deadlock(workflow: Workflow) -> None:
    """It ends by itself, and the other thread goes on then."""
    barrier = threading.Barrier(2, timeout=DEADLINE)

    def enter(outer: str, inner: str, timeout: float | None) -> str:
        with workflow.mutex(outer):
            barrier.wait()
            with workflow.mutex(inner, timeout=timeout):
                return outer

    waiter = in_thread(enter, "a", "b", None)
    with pytest.raises(MutexTimeoutError):
        in_thread(enter, "b", "a", 0.1).result(DEADLINE)
    assert waiter.result(DEADLINE) == "a"


@pytest.mark.parametrize("timeout", [None, 0.5])
def test_a_mutex_and_a_step(workflow: Workflow, timeout: float | None) -> None:
    """A step needs a mutex whose holder waits for the step. Only if the step has no timeout, this would never end."""
    running, held = threading.Event(), threading.Event()

    def body() -> str:
        running.set()
        assert held.wait(DEADLINE)
        with workflow.mutex("slot"):
            return "from the step"

    def hold() -> Any:
        assert running.wait(DEADLINE)
        with workflow.mutex("slot"):
            held.set()
            return workflow.run_step("step", body)

    error = in_thread(workflow.run_step, "step", body, timeout=timeout).exception
    other = in_thread(hold)
    found = [error(DEADLINE), other.exception(DEADLINE)]
    if timeout is None:
        assert any(isinstance(one, DeadlockError) and "step 'step'" in str(one) for one in found), found
    else:
        assert {type(one) for one in found} == {StepTimeoutError}
    assert in_thread(enter_waiting, workflow, 1).result(DEADLINE) == 1


def test_a_step_that_is_called_by_the_holder_of_what_its_left_body_needs(workflow: Workflow) -> None:
    """The body waits on for the mutex, but nobody waits for the body."""
    holds, may_call = threading.Event(), threading.Event()

    def hold() -> Any:
        with workflow.mutex("slot"):
            holds.set()
            assert may_call.wait(DEADLINE)
            return workflow.run_step("step", lambda: "from the holder")

    def body() -> None:
        with workflow.mutex("slot"):
            pass

    holder = in_thread(hold)
    assert holds.wait(DEADLINE)
    with pytest.raises(StepTimeoutError):
        workflow.run_step("step", body, timeout=0.05)
    may_call.set()
    assert holder.result(DEADLINE) == "from the holder"


def test_bodies_that_were_left_find_their_deadlocks(workflow: Workflow) -> None:
    """What a body holds and waits for after its timeout is no less a part of a circle."""
    barrier = threading.Barrier(2, timeout=DEADLINE)
    found: list[Future[None]] = [Future(), Future()]

    def enter(number: int, *keys: str) -> None:
        with workflow.mutex(keys[0]):
            barrier.wait()
            threading.Event().wait(0.2)  # until its caller has left it
            try:
                with workflow.mutex(keys[1]):
                    found[number].set_result(None)
            except DeadlockError as error:
                found[number].set_exception(error)

    for number, keys in enumerate(("ab", "ba")):
        in_thread(workflow.run_step, keys, enter, number, *keys, timeout=0.1)
    errors = [future.exception(DEADLINE) for future in found]
    assert sorted(type(error).__name__ for error in errors) == ["DeadlockError", "NoneType"]


def test_a_step_in_an_empty_context_is_told_from_others(workflow: Workflow) -> None:
    """A step that calls itself raises whatever context and thread its body is in."""
    calls: list[int] = []

    def body() -> Any:
        calls.append(len(calls))
        return contextvars.Context().run(workflow.run_step, "loop", body)

    for timeout in (None, DEADLINE):
        with pytest.raises(DeadlockError, match="loop"):
            in_thread(workflow.run_step, "loop", body, timeout=timeout).result(DEADLINE)
    assert calls == [0, 1]


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_greenlets_of_one_thread(workflow: Workflow, timeout: float | None) -> None:
    """A greenlet that calls a step which another one of its thread runs would block both."""
    greenlet = pytest.importorskip("greenlet")
    calls: list[int] = []

    def inner() -> str:
        with pytest.raises(DeadlockError, match="loop"):
            workflow.run_step("loop", body)
        with pytest.raises(DeadlockError, match="slot"), workflow.mutex("slot"):
            pass
        return workflow.run_step("other", lambda: "other")

    def body() -> Any:
        calls.append(len(calls))
        with workflow.mutex("slot"):
            return greenlet.greenlet(inner).switch()

    assert in_thread(workflow.run_step, "loop", body, timeout=timeout).result(DEADLINE) == "other"
    assert calls == [0]


def test_a_thread_that_waits_for_itself(workflow: Workflow) -> None:
    """So does a thread in another context, and one asyncio task waits for another of its thread."""

    def enter() -> None:
        with workflow.mutex("slot"):
            pass

    def body() -> None:
        with workflow.mutex("slot"):
            contextvars.Context().run(enter)

    async def hold() -> None:
        with workflow.mutex("slot"):
            await asyncio.sleep(0)

    async def main() -> list[Any]:
        return await asyncio.gather(hold(), hold(), return_exceptions=True)

    with pytest.raises(DeadlockError, match="slot"):
        in_thread(workflow.run_step, "step", body).result(DEADLINE)
    first, second = in_thread(lambda: asyncio.run(main())).result(DEADLINE)
    assert first is None
    assert isinstance(second, DeadlockError)


def test_two_workflows_that_update_each_other(workflow: Workflow) -> None:
    """Two functions given to `update_state` use the other one's workflow."""
    other = Workflow("other", store=MemoryStore())
    meeting = threading.Barrier(2, timeout=DEADLINE)

    def update(mine: Workflow, yours: Workflow) -> Any:
        def function(state: Any) -> Any:
            meeting.wait()
            return yours.update_state({"by": mine.workflow_id})

        return mine.update_state(function)

    values, errors = outcomes(lambda: update(workflow, other), lambda: update(other, workflow))
    assert (len(values), len(errors)) == (1, 1)
    other.close()


# Items


@pytest.mark.parametrize("stop_on_error", [True, False])
def test_for_each_in_for_each_with_crossing_keys(workflow: Workflow, stop_on_error: bool) -> None:
    """Two items each hold the key that the items of the other one need."""
    barrier = threading.Barrier(2, timeout=DEADLINE)

    def outer(item: str) -> Any:
        barrier.wait()
        other = "b" if item == "a" else "a"
        return workflow.run_for_each([1], lambda _: other, mutex_key=other, progress=False).values()

    options: Any = {"max_parallel": 2, "mutex_key": lambda item: item, "stop_on_error": stop_on_error}
    batch = in_thread(workflow.run_for_each, "ab", outer, **options)
    if stop_on_error:
        assert isinstance(batch.exception(DEADLINE), DeadlockError)
    else:
        summary = batch.result(DEADLINE)
        assert (summary.fulfilled, summary.rejected) == (1, 1)
        reason = next(result.reason for result in summary.results if isinstance(result, Rejected))
        assert isinstance(reason, DeadlockError)
        assert "mutex 'a'" in str(reason)
        assert "mutex 'b'" in str(reason)
    assert in_thread(enter_alone, workflow, "a", "b").result(DEADLINE)


def test_a_for_each_whose_items_need_what_waits_for_it(workflow: Workflow) -> None:
    """A thread holds the key of the items, and waits for a step that waits for them."""
    running, held = threading.Event(), threading.Event()

    def body() -> Any:
        running.set()
        assert held.wait(DEADLINE)
        return workflow.run_for_each([1], lambda _: "in", mutex_key="slot").values()

    def hold() -> Any:
        assert running.wait(DEADLINE)
        with workflow.mutex("slot"):
            held.set()
            return workflow.run_step("step", body)

    futures = [in_thread(workflow.run_step, "step", body), in_thread(hold)]
    assert any(isinstance(future.exception(DEADLINE), DeadlockError) for future in futures)


@pytest.mark.slow
def test_keys_and_mutexes_in_any_order(workflow: Workflow) -> None:
    """Every thread and item ends, however they wait for each other, and all that they had is free."""
    draws = [random.Random(f"{new_seed()} {number}") for number in range(4)]

    def enter(draw: random.Random, depth: int) -> None:
        try:
            if draw.random() < 0.3:
                workflow.run_for_each([1, 2], lambda _: go_on(draw, depth), mutex_key=draw.choice("abc"))
            else:
                with workflow.mutex(draw.choice("abc")):
                    go_on(draw, depth)
        except DeadlockError:
            refused.append(depth)

    def go_on(draw: random.Random, depth: int) -> None:
        if depth < 3:
            enter(draw, depth + 1)

    def wander(draw: random.Random) -> None:
        for _ in range(6):
            enter(draw, 0)

    refused: list[int] = []
    futures = [in_thread(wander, draw) for draw in draws]
    assert [future.exception(DEADLINE) for future in futures] == [None] * 4
    assert enter_alone(workflow, *"abc")
    assert refused


def test_for_each_in_for_each_on_one_executor(workflow: Workflow) -> None:
    """All threads of an executor wait for items that wait for a thread of it."""
    barrier = threading.Barrier(2, timeout=DEADLINE)
    with ThreadPoolExecutor(2) as executor:

        def outer(item: int) -> Any:
            barrier.wait()
            return workflow.run_for_each([1], lambda _: item, executor=executor).values()

        batch = in_thread(workflow.run_for_each, [1, 2], outer, max_parallel=2, executor=executor, stop_on_error=False)
        summary = batch.result(DEADLINE)
    reasons = [result.reason for result in summary.results if isinstance(result, Rejected)]
    assert [type(reason) for reason in reasons] == [DeadlockError]
    assert summary.fulfilled == 1


def test_for_each_in_for_each_on_an_executor_with_room_runs(workflow: Workflow) -> None:
    """One thread that is free is enough."""
    with ThreadPoolExecutor(3) as executor:

        def outer(item: int) -> Any:
            return workflow.run_for_each([1, 2, 3], lambda _: item, executor=executor).values()

        batch = in_thread(workflow.run_for_each, range(20), outer, max_parallel=2, executor=executor)
        assert batch.result(DEADLINE).fulfilled == 20


# Submitted steps


def test_a_submitted_step_may_call_the_step_that_submitted_it(workflow: Workflow) -> None:
    """Nobody waits for it: it gets the result as soon as there is one. If that step waits for it, one is refused."""

    @workflow.step
    def fetch() -> str:
        return f"next to {read(wait=False)}"

    @workflow.step
    def read(*, wait: bool) -> str:
        future = fetch.submit()
        wait_until(future.running)
        return future.result() if wait else "read"

    assert read(wait=False) == "read"
    assert fetch() == "next to read"

    @workflow.step
    def fetch_for_it() -> str:
        return waits()

    @workflow.step
    def waits() -> str:
        return fetch_for_it.submit().result()

    assert isinstance(in_thread(waits).exception(DEADLINE), DeadlockError)


def test_a_submitted_step_waits_for_a_step_that_waits_for_its_caller(workflow: Workflow) -> None:
    """The caller has submitted it and goes on, so that all three end."""
    submitted, asked, may_end = threading.Event(), threading.Event(), threading.Event()

    def first() -> str:
        workflow.step(name="third")(third).submit()
        assert may_end.wait(DEADLINE)
        return "first"

    def second() -> str:
        asked.set()
        return workflow.run_step("first", first)

    def third() -> str:
        assert asked.wait(DEADLINE)
        submitted.set()
        return workflow.run_step("second", second)

    one, two = in_thread(workflow.run_step, "first", first), in_thread(workflow.run_step, "second", second)
    assert submitted.wait(DEADLINE)
    threading.Event().wait(1.2)  # each of them looks at least once
    may_end.set()
    assert [one.result(DEADLINE), two.result(DEADLINE)] == ["first", "first"]
    assert workflow.run_step("third", third) == "first"


def test_a_context_that_is_used_after_its_step_is_no_part_of_it(workflow: Workflow) -> None:
    """A task or thread that a step has started, and that outlives it, may call that step."""
    contexts: list[contextvars.Context] = []

    def body() -> str:
        contexts.append(contextvars.copy_context())
        return f"run {len(contexts)}"

    workflow.run_step("step", body)
    workflow.reset("step")
    assert in_thread(contexts[0].run, workflow.run_step, "step", body).result(DEADLINE) == "run 2"


def test_a_pool_whose_thread_waits_for_one_that_waits_for_the_pool() -> None:
    """A submitted step needs a mutex whose holder waits for the step that comes after it, and there is one thread."""
    workflow = Workflow("one", store=MemoryStore(), max_workers=1)
    begun = threading.Event()

    @workflow.step
    def needs_the_slot() -> None:
        begun.set()
        with workflow.mutex("slot"):
            pass

    def hold() -> Any:
        with workflow.mutex("slot"):
            needs_the_slot.submit()
            assert begun.wait(DEADLINE)
            return workflow.step(name="next")(lambda: 1).submit().result()

    values, errors = outcomes(hold)
    assert values == [1] or "mutex 'slot'" in str(errors[0])
    in_thread(workflow.close).result(DEADLINE)


def test_close_in_an_item_of_a_submitted_step(workflow: Workflow) -> None:
    """It would wait for the step that waits for the item."""

    @workflow.step
    def step() -> Any:
        return workflow.run_for_each([1], lambda _: workflow.close(), max_parallel=2).fulfilled

    error = step.submit().exception(DEADLINE)
    assert isinstance(error, DeadlockError)
    assert "submitted" in str(error)


def test_a_long_wait_without_a_circle_is_none(workflow: Workflow) -> None:
    """Many threads, items and steps that wait for one holder get it when it leaves."""
    with workflow.mutex("slot"):
        waiters = [blocked(enter_waiting, workflow, number) for number in range(3)]
        waiters.append(in_thread(workflow.run_for_each, range(5), lambda n: n, mutex_key="slot", max_parallel=2))
        threading.Event().wait(1.2)  # each of them looks at least once
    assert [waiter.exception(DEADLINE) for waiter in waiters] == [None] * 4


def enter_waiting(workflow: Workflow, number: int) -> int:
    with workflow.mutex("slot"):
        return workflow.run_step(f"step {number}", lambda: number)


# Other processes


WARN_SOON = """
    import logging
    from iso_orchestrator.runtime import waits
    waits._PATIENCE = 0.5
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
"""


def warning(process: Child) -> str:
    while not (line := process.line(DEADLINE)).startswith("WARNING iso_orchestrator"):
        pass
    return line


@pytest.mark.parametrize(
    ("held", "wait"),
    [
        ("mutex 'slot'", 'with workflow.mutex("slot"): say("in")'),
        ("mutex 'slot'", 'with workflow.mutex("slot", timeout=DEADLINE): say("in")'),
        ("mutex 'slot'", 'workflow.run_for_each([1], lambda _: say("in"), mutex_key="slot")'),
        ("step 'step'", 'workflow.run_step("step", lambda: None); say("in")'),
    ],
)
def test_a_long_wait_for_another_process_is_warned_of(tmp_path: Path, held: str, wait: str) -> None:
    """The warning names the workflow, the holder, since when it has it, and what it runs."""
    workflow = Workflow("w", dir=tmp_path)
    running, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            workflow.run_step("step", lambda: running.set() or may_end.wait(DEADLINE))

    holder = in_thread(hold)
    assert running.wait(DEADLINE)
    with child(f"{WARN_SOON}\n    {wait}\n", tmp_path) as process:
        lines = [warning(process), warning(process)]
        assert all("workflow 'w': " in line for line in lines), lines
        assert all(held in line and f"process {threading.main_thread().native_id}" in line for line in lines), lines
        assert "since" in lines[0]
        assert "python" in lines[0]
        may_end.set()
        assert process.line() == "in"
        process.end()
    holder.result(DEADLINE)
    workflow.close()


@pytest.mark.slow
def test_mutexes_in_two_orders_in_two_processes(tmp_path: Path) -> None:
    """No process knows both waits: each one warns of the other, and a timeout ends them."""
    enter = (
        WARN_SOON
        + """
    with workflow.mutex(OUTER):
        say("held")
        hear()
        try:
            with workflow.mutex(INNER, timeout=TIMEOUT):
                say("in")
        except MutexTimeoutError:
            say("late")
"""
    )
    first = enter.replace("OUTER", "'a'").replace("INNER", "'b'").replace("TIMEOUT", "None")
    second = enter.replace("OUTER", "'b'").replace("INNER", "'a'").replace("TIMEOUT", "3")
    with child(first, tmp_path) as one, child(second, tmp_path) as two:
        assert [process.line() for process in (one, two)] == ["held", "held"]
        for process in (one, two):
            process.say()
        assert f"process {two.pid}" in warning(one)
        assert f"process {one.pid}" in warning(two)
        while (line := two.line()) != "late":
            assert line.startswith("WARNING")
        while (line := one.line()) != "in":
            assert line.startswith("WARNING")


def test_a_short_wait_for_another_process_is_not_warned_of(tmp_path: Path) -> None:
    """Only waits of more than five seconds are."""
    workflow = Workflow("w", dir=tmp_path)
    code = """
        import logging
        logging.basicConfig(format="%(levelname)s", stream=sys.stdout)
        with workflow.mutex("slot"):
            say("in")
    """
    with workflow.mutex("slot"), child(code, tmp_path) as process:
        assert_waits(process)
    workflow.close()


def test_a_deadlock_at_the_end_of_a_run_hides_no_error(workflow: Workflow) -> None:
    """A submitted step needs a mutex that is held around the run: the error that ends the run goes on, with a note."""

    @workflow.step
    def needs_the_slot() -> None:
        with workflow.mutex("slot"):
            pass

    with workflow.mutex("slot"), pytest.raises(ValueError, match="mine") as caught, workflow:
        future = needs_the_slot.submit()
        wait_until(future.running)
        raise ValueError("mine")
    assert workflow.record.last_error is not None
    assert workflow.record.last_error.name == "ValueError"
    if isinstance(future.exception(DEADLINE), DeadlockError):  # either the step gets it, or the end of the run
        return
    assert "submitted steps were not waited for" in caught.value.__notes__[0]
