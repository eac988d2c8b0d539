"""What is current where code runs: the workflow, the step, the item; and the free decorators that go by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE
from support_processes import in_thread

from iso_orchestrator import (
    NoActiveWorkflowError,
    OrchestratorError,
    StepNameError,
    Workflow,
    WorkflowUsageError,
    current_item,
    current_step,
    current_workflow,
    for_each,
    run_workflow,
    step,
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Workflow]:
    other = Workflow("other", dir=tmp_path)
    yield other
    other.close()


def current_id() -> str | None:
    try:
        return current_workflow().workflow_id
    except NoActiveWorkflowError:
        return None


# Free functions, as a module of steps would have them.


@step
def fetch(page: int) -> str:
    return f"{current_workflow().workflow_id} {page}"


@step(name="shout:{word}", retry=2)
def shout(word: str) -> str:
    """Say it louder."""
    return word.upper()


@for_each(max_parallel=2, mutex_key="{item}")
def visit(item: str, greeting: str = "Hi") -> str:
    return f"{greeting} {item} of {current_workflow().workflow_id}"


# The workflow


def test_a_with_makes_it_current(workflow: Workflow) -> None:
    """Inside of `with workflow` it is current, and behind it nothing is."""
    assert current_id() is None
    with workflow as entered:
        assert entered is workflow
        assert current_workflow() is workflow
    assert current_id() is None


def test_an_error_leaves_nothing_current(workflow: Workflow) -> None:
    """However a run ends, what was current before is current behind it."""
    for kind in (ValueError, KeyboardInterrupt):
        with pytest.raises(kind), workflow:
            raise kind("no")
        assert current_id() is None


def test_the_innermost_run_is_current(workflow: Workflow, other: Workflow) -> None:
    """A run of another workflow inside takes its place for as long as it lasts."""
    with workflow:
        with other:
            assert current_workflow() is other
            with pytest.raises(WorkflowUsageError), workflow:
                pytest.fail("a run inside of itself began")
            assert current_workflow() is other
        assert current_workflow() is workflow


WAYS: dict[str, Callable[[Workflow], Any]] = {
    "run_step": lambda workflow: workflow.run_step("a", current_id),
    "a step with a timeout": lambda workflow: workflow.run_step("b", current_id, timeout=DEADLINE),
    "a decorated step": lambda workflow: workflow.step(name="c")(current_id)(),
    "submit": lambda workflow: workflow.step(name="d")(current_id).submit().result(DEADLINE),
    "run_for_each": lambda workflow: workflow.run_for_each([1], lambda _: current_id()).values()[0],
    "keyed items": lambda workflow: workflow.run_for_each([1], lambda _: current_id(), mutex_key="k").values()[0],
    "for_each": lambda workflow: workflow.for_each(max_parallel=2)(lambda _: current_id())([1]).values()[0],
    "run": lambda workflow: workflow.run(lambda _: current_id()).value,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_function_that_a_workflow_runs_has_it_current(workflow: Workflow, way: str) -> None:
    """Without a `with` too, and in worker threads; behind it nothing is current."""
    assert WAYS[way](workflow) == "w"
    assert current_id() is None


@pytest.mark.parametrize("way", WAYS)
def test_a_function_of_one_workflow_inside_of_another_has_its_own_current(
    workflow: Workflow, other: Workflow, way: str
) -> None:
    """Whose function it is decides, not where it is called from."""
    with other:
        assert WAYS[way](workflow) == "w"
        assert current_workflow() is other


def test_run_workflow_makes_it_current(tmp_path: Path) -> None:
    """The function gets the workflow, and it is current."""
    result = run_workflow("w", lambda workflow: current_workflow() is workflow, dir=tmp_path)
    assert result.value is True


def test_a_plain_thread_has_nothing_current(workflow: Workflow) -> None:
    """Threads that nobody gave a context begin with none, as context variables do."""
    with workflow:
        assert in_thread(current_id).result(DEADLINE) is None


def test_threads_have_a_current_workflow_each(workflow: Workflow, other: Workflow) -> None:
    """Two threads in two runs at the same time do not see each other's."""
    both = threading.Barrier(2)

    def run(mine: Workflow) -> bool:
        with mine:
            both.wait(DEADLINE)
            is_mine = current_workflow() is mine
            both.wait(DEADLINE)
            return is_mine

    futures = [in_thread(run, mine) for mine in (workflow, other)]
    assert [future.result(DEADLINE) for future in futures] == [True, True]


def test_one_workflow_can_be_run_by_several_threads(workflow: Workflow) -> None:
    """Each thread's `with` is a run of its own, and each ends its own."""
    both = threading.Barrier(2)

    def run(name: str) -> str:
        with workflow:
            both.wait(DEADLINE)
            done: str = workflow.run_step(name, str, name)
            both.wait(DEADLINE)
        assert current_id() is None
        return done

    futures = [in_thread(run, name) for name in "ab"]
    assert [future.result(DEADLINE) for future in futures] == ["a", "b"]
    types = [event.type for event in workflow.record.events]
    assert (types.count("workflow.running"), types.count("workflow.completed")) == (2, 2)


def test_tasks_of_one_loop_have_a_current_workflow_each(workflow: Workflow, other: Workflow) -> None:
    """Two tasks that are in their runs at the same time do not see each other's."""

    async def run(mine: Workflow) -> list[bool]:
        seen = []
        with mine:
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(current_workflow() is mine)
        return seen

    async def both() -> list[list[bool]]:
        return await asyncio.gather(run(workflow), run(other))

    assert asyncio.run(both()) == [[True] * 3, [True] * 3]


def test_everything_works_inside_of_a_running_loop(workflow: Workflow) -> None:
    """Plain calls from a coroutine do what they do elsewhere."""

    async def job() -> list[str]:
        with workflow, workflow.mutex("slot"), workflow.lease("lease"), workflow.heartbeating("beat"):
            workflow.run_step("step", str, 1)
            return [await asyncio.to_thread(fetch, 1), *visit(["a", "b"]).values()]

    assert asyncio.run(job()) == ["w 1", "Hi a of w", "Hi b of w"]


def test_context_variables_of_the_caller_reach_every_function(workflow: Workflow) -> None:
    """Steps, submitted ones and ones with a timeout see what their caller has set."""
    user: ContextVar[str] = ContextVar("user", default="nobody")
    user.set("ada")
    assert workflow.run_step("a", user.get) == "ada"
    assert workflow.run_step("b", user.get, timeout=DEADLINE) == "ada"
    assert workflow.step(name="c")(lambda: user.get()).submit().result(DEADLINE) == "ada"


# The step


def test_outside_of_a_step_there_is_none(workflow: Workflow) -> None:
    """Looking for a current step raises where there is none, in a run too."""
    with pytest.raises(NoActiveWorkflowError):
        current_step()
    with workflow, pytest.raises(NoActiveWorkflowError):
        current_step()


def test_a_step_knows_what_it_is(workflow: Workflow) -> None:
    """Name, attempt, attempts in all and key are those of the call."""

    @workflow.step(name="pay:{order}", idempotency_key="key:{order}", retry=3)
    def pay(order: int) -> list[Any]:
        context = current_step()
        if context.attempt < 3:
            raise OSError("again")
        return [context.name, context.attempt, context.max_attempts, context.idempotency_key]

    assert pay(7) == ["pay:7", 3, 3, "key:7"]
    assert workflow.run_step("plain", lambda: [current_step().idempotency_key, current_step().max_attempts]) == [
        None,
        1,
    ]


def test_attempts_are_counted_anew_in_each_call(workflow: Workflow) -> None:
    """A second call of a step that failed begins at 1."""
    seen: list[int] = []

    def fail() -> None:
        seen.append(current_step().attempt)
        raise OSError("no")

    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            workflow.run_step("step", fail, retry=2)
    assert seen == [1, 2, 1, 2]


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_the_innermost_step_is_current(workflow: Workflow, timeout: float | None) -> None:
    """A step inside takes the place of the one around it for as long as it runs."""

    def name() -> str:
        return current_step().name

    def outer() -> list[str]:
        return [name(), workflow.run_step("inner", name, timeout=timeout), name()]

    assert workflow.run_step("outer", outer, timeout=timeout) == ["outer", "inner", "outer"]
    with pytest.raises(NoActiveWorkflowError):
        current_step()


def test_a_submitted_step_knows_what_it_is(workflow: Workflow) -> None:
    """In whatever thread it runs."""

    @workflow.step
    def whoami(number: int) -> str:
        return current_step().name

    assert [future.result(DEADLINE) for future in [whoami.submit(n) for n in range(3)]] == [
        whoami.step_name(n) for n in range(3)
    ]


# The item


def test_outside_of_an_item_there_is_none(workflow: Workflow) -> None:
    """Looking for a current item raises where there is none."""
    with pytest.raises(NoActiveWorkflowError):
        current_item()
    with workflow, pytest.raises(NoActiveWorkflowError):
        workflow.run_step("step", current_item)
    workflow.run_for_each([1], str)
    with pytest.raises(NoActiveWorkflowError):
        current_item()


def test_a_step_inside_of_an_item_knows_both(workflow: Workflow) -> None:
    """Item and step are current at once, and a for_each inside of a step leaves the step."""

    def both() -> list[Any]:
        return [current_step().name, current_item().index]

    summary = workflow.run_for_each("ab", lambda letter: workflow.run_step(letter, both, timeout=DEADLINE))
    assert summary.values() == [["a", 0], ["b", 1]]
    assert workflow.run_step("outer", lambda: workflow.run_for_each([0], lambda _: both()).values()) == [["outer", 0]]


# Free decorators


def test_a_free_step_is_a_step_of_whatever_is_current(workflow: Workflow, other: Workflow) -> None:
    """One function serves many workflows, each with a record of its own."""
    with workflow:
        assert [fetch(1), fetch(1), fetch(2)] == ["w 1", "w 1", "w 2"]
    with other:
        assert fetch(1) == "other 1"
    assert set(workflow.record.steps) == {fetch.step_name(1), fetch.step_name(2)}
    assert set(other.record.steps) == {fetch.step_name(1)}


def test_free_decorators_take_the_options_of_the_methods(workflow: Workflow) -> None:
    """Name, retries, keys: all as with the method."""
    with workflow:
        assert shout("hey") == "HEY"
        assert visit(["a", "b"], "Dear").values() == ["Dear a of w", "Dear b of w"]
    assert list(workflow.record.steps) == ["shout:hey"]
    keys = [event.detail["key"] for event in workflow.record.events if event.type == "mutex.acquired"]
    assert sorted(keys) == ["a", "b"]


def test_free_functions_keep_what_they_are(workflow: Workflow) -> None:
    """Name, docstring and the plain function are there without a workflow."""
    assert (shout.__name__, shout.__doc__) == ("shout", "Say it louder.")
    assert shout.fn("hey") == "HEY"
    assert shout.step_name("hey") == "shout:hey"
    assert visit.fn.__name__ == "visit"


def test_where_no_workflow_is_current_they_raise() -> None:
    """The error is one that a caller would catch as a RuntimeError, and says what to do."""
    for call in (lambda: fetch(1), lambda: visit(["a"]), lambda: fetch.submit(1)):
        with pytest.raises(NoActiveWorkflowError, match="with workflow") as raised:
            call()
        assert isinstance(raised.value, RuntimeError)
        assert isinstance(raised.value, OrchestratorError)
    with pytest.raises(NoActiveWorkflowError):
        current_workflow()


def test_free_functions_work_wherever_a_workflow_is_current(workflow: Workflow) -> None:
    """In steps and items, in their threads, without any `with`."""
    assert workflow.run_step("outer", lambda: fetch(1), timeout=DEADLINE) == "w 1"
    assert workflow.run_for_each([2, 3], fetch, max_parallel=2).values() == ["w 2", "w 3"]
    assert workflow.run_step("items", lambda: visit(["a"]).values()) == ["Hi a of w"]
    with workflow:
        assert fetch.submit(4).result(DEADLINE) == "w 4"
        assert workflow.run_for_each([5], lambda page: fetch.submit(page).result(DEADLINE)).values() == ["w 5"]


def test_a_free_for_each_of_free_steps_resumes(workflow: Workflow) -> None:
    """Stacked, they go on where they were, in whatever workflow."""
    ran: list[int] = []

    @for_each(max_parallel=2)
    @step(name="double:{number}")
    def double(number: int) -> int:
        ran.append(number)
        return 2 * number

    for _ in range(2):
        with workflow:
            assert double([1, 2, 3]).values() == [2, 4, 6]
    assert sorted(ran) == [1, 2, 3]


def test_wrong_options_of_free_decorators_raise_at_decoration() -> None:
    """They need no workflow to be wrong."""
    for wrong in (
        lambda: step(retry=0),
        lambda: step(timeout=-1),
        lambda: for_each(max_parallel=0),
        lambda: for_each(mutex_scope="planet"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"."):
            wrong()


def test_two_free_steps_of_one_name_raise_where_both_are_used(workflow: Workflow) -> None:
    """Two functions that claim one constant name do not get each other's results."""

    def one() -> int:
        return 1

    def two() -> int:
        return 2

    first, second = step(name="same")(one), step(name="same")(two)
    with workflow:
        assert first() == 1
        with pytest.raises(StepNameError, match="same"):
            second()
        assert first() == 1


def test_a_pool_of_ones_own_gets_what_is_current_by_a_copied_context(workflow: Workflow) -> None:
    """As everywhere in Python, a context is handed to other threads by copying it."""
    from contextvars import copy_context

    with workflow, ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_id).result(DEADLINE) is None
        assert pool.submit(copy_context().run, fetch, 1).result(DEADLINE) == "w 1"
