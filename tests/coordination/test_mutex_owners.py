"""Who may enter a mutex again: the same item, attempt or thread, in the same thread and asyncio task."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

import pytest
from support import DEADLINE
from support_fanout import blocked
from support_processes import assert_waits, in_thread

from iso_orchestrator import (
    DeadlockError,
    MemoryStore,
    MutexTimeoutError,
    OrchestratorError,
    StepTimeoutError,
    Workflow,
    WorkflowUsageError,
)
from iso_orchestrator.runtime.context import current_owner

THREADS = 8


@pytest.fixture
def workflow() -> Iterator[Workflow]:
    workflow = Workflow("w", store=MemoryStore())
    yield workflow
    workflow.close()


def is_free(workflow: Workflow, key: str = "slot") -> bool:
    """Whether another thread gets the mutex at once."""

    def take() -> bool:
        try:
            with workflow.mutex(key, timeout=0):
                return True
        except MutexTimeoutError:
            return False

    got: bool = in_thread(take).result(DEADLINE)
    return got


class Room:
    """Counts entries without a lock of its own: threads that are inside at once lose some.

    Attributes:
        count: The entries that were counted.
        most: How many threads were inside at once, at most.
    """

    def __init__(self, workflow: Workflow) -> None:
        self.count = self.most = self._inside = 0
        self._workflow = workflow

    def enter(self) -> None:
        with self._workflow.mutex("slot"):
            self._inside += 1
            self.most = max(self.most, self._inside)
            count = self.count
            threading.Event().wait(0.001)  # another thread runs meanwhile
            self.count = count + 1
            self._inside -= 1


def through_to_thread(work: Callable[[], None]) -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(THREADS)))

    asyncio.run(main())


def through_copied_contexts(work: Callable[[], None]) -> None:
    contexts = [copy_context() for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda context: context.run(work), contexts))


@pytest.mark.parametrize("timeout", [None, DEADLINE], ids=["in its thread", "in a thread of its own"])
@pytest.mark.parametrize("spread", [through_to_thread, through_copied_contexts])
def test_threads_with_a_copy_of_a_steps_context_exclude_each_other(
    workflow: Workflow, spread: Callable[[Callable[[], None]], None], timeout: float | None
) -> None:
    """A copied context makes no thread the owner of what the step, or another thread of it, holds."""
    room = Room(workflow)
    workflow.run_step("spread", lambda: spread(room.enter), timeout=timeout)
    workflow.run_for_each([1], lambda _: spread(room.enter), mutex_key="other")
    spread(room.enter)
    assert (room.most, room.count) == (1, 3 * THREADS)


def test_a_copy_of_the_context_does_not_own_what_its_step_holds(workflow: Workflow) -> None:
    """A thread that a step starts waits until the step has left the mutex."""

    def body() -> str:
        with workflow.mutex("slot"):
            waiter = blocked(copy_context().run, Room(workflow).enter)
        waiter.result(DEADLINE)
        return "left"

    assert workflow.run_step("holds", body) == "left"


def test_tasks_of_one_thread_exclude_each_other(workflow: Workflow) -> None:
    """While a task holds a mutex, no other task of its thread enters it, and it can enter again itself."""

    async def hold(held: asyncio.Event, may_end: asyncio.Event) -> None:
        with workflow.mutex("slot"):
            held.set()
            await may_end.wait()
            with workflow.mutex("slot", timeout=0):
                pass

    async def main() -> None:
        held, may_end = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(held, may_end))
        await held.wait()
        with pytest.raises(MutexTimeoutError), workflow.mutex("slot", timeout=0):
            pass
        may_end.set()
        await holder
        with workflow.mutex("slot", timeout=0):
            pass

    workflow.run_step("tasks", lambda: asyncio.run(main()))
    asyncio.run(main())
    assert is_free(workflow)


@pytest.mark.parametrize("timeout", [None, DEADLINE], ids=["in its thread", "in a thread of its own"])
def test_an_item_may_enter_its_key_in_all_of_its_steps(workflow: Workflow, timeout: float | None) -> None:
    """So may the body and `accept` of a step inside of the item, wherever they run, and a step inside of that."""

    def enter(*_: Any) -> bool:
        with workflow.mutex("slot", timeout=0), workflow.mutex("slot", timeout=0):
            assert not is_free(workflow)
        return True

    def outer(item: str) -> bool:
        return workflow.run_step(f"inner {item}", enter, timeout=timeout, accept=enter) and enter()

    def work(item: str) -> bool:
        return enter() and workflow.run_step(f"outer {item}", outer, item, timeout=timeout, accept=enter) and enter()

    assert workflow.run_for_each("ab", work, mutex_key="slot", max_parallel=2).values() == [True, True]
    assert is_free(workflow)


def test_leaving_what_is_not_held_raises(workflow: Workflow) -> None:
    """As with a lock of the standard library; another entry is left as usual."""
    mutex = workflow.mutex("slot")
    with pytest.raises(RuntimeError, match="not held") as caught:
        mutex.__exit__(None, None, None)
    assert isinstance(caught.value, OrchestratorError)
    with mutex:
        pass
    with pytest.raises(WorkflowUsageError, match="not held"):
        mutex.__exit__(None, None, None)


def test_leaving_does_not_hide_the_error_of_the_body(workflow: Workflow) -> None:
    """The body's own error goes on, with a note."""
    mutex = workflow.mutex("slot")
    with pytest.raises(ValueError, match="no") as caught, mutex:
        mutex.__exit__(None, None, None)
        raise ValueError("no")
    assert "not held" in caught.value.__notes__[0]


def test_what_another_thread_holds_cannot_be_left(workflow: Workflow) -> None:
    """The error names the owner, who still holds it."""
    mutex = workflow.mutex("slot")
    with mutex:
        error = in_thread(mutex.__exit__, None, None, None).exception(DEADLINE)
        assert isinstance(error, WorkflowUsageError)
        assert threading.current_thread().name in str(error)
        assert not is_free(workflow)
    assert is_free(workflow)


@pytest.mark.parametrize("timeout", [None, DEADLINE], ids=["in its thread", "in a thread of its own"])
def test_what_a_step_enters_is_left_in_the_step(workflow: Workflow, timeout: float | None) -> None:
    """It stays held after the step. Leaving it there frees it, and raises an error that names the step."""
    mutex = workflow.mutex("slot")
    workflow.run_step("enters", mutex.__enter__, timeout=timeout)
    assert not is_free(workflow)
    with pytest.raises(WorkflowUsageError, match="entered in step 'enters'"):
        mutex.__exit__(None, None, None)
    assert is_free(workflow)


class Left:
    """A step whose body has outlived its timeout, and does as it is told.

    Args:
        workflow: Of the step.
        first: What the body does before its timeout.
    """

    def __init__(self, workflow: Workflow, first: Callable[[], object] = lambda: None) -> None:
        self._works: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._first = first
        with pytest.raises(StepTimeoutError):
            workflow.run_step("left", self._body, timeout=0.1)

    def do(self, work: Callable[[], Any]) -> Future[Any]:
        """Let the body call *work*."""
        future: Future[Any] = Future()
        self._works.put((work, future))
        return future

    def end(self) -> None:
        """Let the body end."""
        self._works.put(None)

    def _body(self) -> None:
        self._first()
        while (told := self._works.get()) is not None:
            work, future = told
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)


def enters(workflow: Workflow, key: str = "slot", timeout: float | None = None) -> str:
    with workflow.mutex(key, timeout=timeout):
        return "in"


@pytest.mark.parametrize("timeout", [None, DEADLINE])
@pytest.mark.parametrize("by", ["itself", "a step", "a for_each", "a key", "a copied context"])
def test_a_body_that_outlived_its_timeout_does_not_enter_what_is_kept_for_it(
    workflow: Workflow, by: str, timeout: float | None
) -> None:
    """It gets an error, whether its caller is inside or has left, and the mutex is free afterwards."""

    def again() -> Any:
        ways: dict[str, Callable[[], Any]] = {
            "itself": lambda: enters(workflow, timeout=timeout),
            "a step": lambda: workflow.run_step("inner", enters, workflow, timeout=timeout),
            "a for_each": lambda: workflow.run_for_each([1], lambda _: enters(workflow, timeout=timeout)).values(),
            "a key": lambda: workflow.run_for_each([1], str, mutex_key="slot", mutex_timeout=timeout).values(),
            "a copied context": lambda: copy_context().run(enters, workflow, timeout=timeout),
        }
        return ways[by]()

    with workflow.mutex("slot"):
        left = Left(workflow)
        with pytest.raises(DeadlockError, match="slot"):
            left.do(again).result(DEADLINE)
    with pytest.raises(DeadlockError, match="outlived its timeout"):
        left.do(again).result(DEADLINE)
    assert left.do(lambda: enters(workflow, "other")).result(DEADLINE) == "in"
    assert not is_free(workflow)
    left.end()
    assert in_thread(enters, workflow).result(DEADLINE) == "in"


def test_a_body_that_outlived_its_timeout_enters_nothing_that_its_caller_took_later(workflow: Workflow) -> None:
    """It waits until its former caller has left it, as any other thread does, and so do the steps inside of it."""
    left = Left(workflow)
    for work in (lambda: enters(workflow), lambda: workflow.run_step("inner", enters, workflow)):
        with workflow.mutex("slot"):
            entered = left.do(work)
            assert_waits(entered)
        assert entered.result(DEADLINE) == "in"
    left.end()


def test_a_body_that_outlived_its_timeout_leaves_what_it_has_entered(workflow: Workflow) -> None:
    """What it shared with its caller too; until then its caller does not enter it again."""
    mutexes = [workflow.mutex(key) for key in ("slot", "own")]

    def enter() -> None:
        for mutex in mutexes:
            mutex.__enter__()

    def leave() -> None:
        for mutex in mutexes:
            mutex.__exit__(None, None, None)

    with workflow.mutex("slot"):
        left = Left(workflow, enter)
    assert left.do(lambda: enters(workflow)).result(DEADLINE) == "in"  # where it is already
    with pytest.raises(MutexTimeoutError):
        enters(workflow, timeout=0)
    left.do(leave).result(DEADLINE)
    assert is_free(workflow, "own")
    with pytest.raises(MutexTimeoutError):
        enters(workflow, timeout=0)
    left.end()
    assert enters(workflow) == "in"
    assert current_owner().holds == []


def test_what_is_kept_for_a_body_is_kept_for_its_own_steps(workflow: Workflow) -> None:
    """A step inside of it that outlives its own timeout keeps the mutex too."""
    inner: list[Left] = []
    with workflow.mutex("slot"):
        left = Left(workflow)
    left.do(lambda: inner.append(Left(Workflow("inner", store=MemoryStore())))).result(DEADLINE)
    left.end()
    assert_waits(in_thread(enters, workflow, timeout=DEADLINE))
    inner[0].end()
    assert in_thread(enters, workflow).result(DEADLINE) == "in"


def test_a_step_that_leaves_its_callers_mutex_is_told(workflow: Workflow) -> None:
    """It is left where it was entered, or it is an error that says where that was."""
    mutex = workflow.mutex("slot")
    mutex.__enter__()
    with pytest.raises(WorkflowUsageError, match="left outside of it"):
        workflow.run_step("leaves", mutex.__exit__, None, None, None)
    assert is_free(workflow)


def test_no_program_imports_asyncio_for_it() -> None:
    """Whether a task runs is asked of asyncio only if the program uses it."""
    code = """
import sys
from iso_orchestrator import Workflow
with Workflow("w", store="memory://tasks") as workflow, workflow.mutex("slot"):
    workflow.run_step("inside", lambda: workflow.run_for_each([1], lambda _: None) and None)
print("asyncio" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"
