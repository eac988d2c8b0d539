"""`for_each`: what it calls, what it returns, what stops it, and which threads it uses."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attrs
import numpy
import pytest
from support import DEADLINE, WatchedFS, failing, wait_until
from support_fanout import Gate, blocked, is_waiting
from support_processes import assert_waits, child, in_thread, killed

from iso_orchestrator import (
    DeadlockError,
    FileStore,
    ForEachSummary,
    Fulfilled,
    Rejected,
    StepNameError,
    StepStatus,
    StoreError,
    Workflow,
    WorkflowUsageError,
    current_item,
)


def double(item: int) -> int:
    return 2 * item


def never(*_: object) -> None:
    pytest.fail("it ran")


# Arguments and results


def test_the_function_is_called_with_each_item_and_the_shared_arguments(workflow: Workflow) -> None:
    """The item comes first, then the arguments that all items share."""

    @workflow.for_each(max_parallel=2)
    def greet(name: str, greeting: str, *, mark: str = ".") -> str:
        return f"{greeting} {name}{mark}"

    assert greet(["Ada", "Bob"], "Dear").values() == ["Dear Ada.", "Dear Bob."]
    assert greet(["Eve"], "Hey", mark="!").values() == ["Hey Eve!"]
    assert greet(["Eve"], greeting="Hi").values() == ["Hi Eve."]


@pytest.mark.parametrize("items", [[1, 2], (1, 2), {1: "a", 2: "b"}, range(1, 3), iter([1, 2]), (n for n in (1, 2))])
def test_any_iterable_has_items(workflow: Workflow, items: Any) -> None:
    """Lists, dicts, iterators and generators all work."""
    assert workflow.run_for_each(items, double).values() == [2, 4]


@pytest.mark.parametrize("items", [[], iter(())])
def test_no_items_give_an_empty_summary(workflow: Workflow, items: Any) -> None:
    """Without items nothing is called, and the summary is empty."""
    summary = workflow.run_for_each(items, never)
    assert (summary.results, summary.fulfilled, summary.rejected, summary.values()) == ([], 0, 0, [])


def test_items_that_are_not_iterable_raise_a_type_error(workflow: Workflow) -> None:
    """The error is the one that a `for` loop raises."""
    with pytest.raises(TypeError, match="not iterable"):
        workflow.run_for_each(5, never)  # type: ignore[arg-type]


def test_the_first_item_runs_before_the_second_is_read(workflow: Workflow) -> None:
    """Items are read while others run."""
    first_ran = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        assert first_ran.wait(DEADLINE), "all items are read before the first one runs"
        yield 2

    workflow.run_for_each(source(), lambda item: first_ran.set())


def test_results_are_in_the_order_of_the_items(workflow: Workflow, gate: Gate) -> None:
    """An item that ends later keeps its place."""
    summary = in_thread(workflow.run_for_each, "abc", gate, max_parallel=3)
    gate.until_in("a", "b", "c")
    for item in "cab":
        gate.open(item)
    assert summary.result(DEADLINE).values() == ["a", "b", "c"]


def test_by_default_one_item_runs_at_a_time_in_order(workflow: Workflow, gate: Gate) -> None:
    """The next item starts when the one before has ended."""
    gate.open()
    workflow.run_for_each(range(20), gate)
    assert (gate.entered, gate.most) == (list(range(20)), 1)


def test_max_parallel_items_run_at_a_time(workflow: Workflow, gate: Gate) -> None:
    """With `max_parallel=3` three items run at once, and never four."""
    summary = in_thread(workflow.run_for_each, range(9), gate, max_parallel=3)
    gate.until_in(0, 1, 2)
    assert_waits(summary)
    assert sorted(gate.entered) == [0, 1, 2]
    gate.open()
    assert summary.result(DEADLINE).fulfilled == 9
    assert gate.most == 3


@pytest.mark.parametrize("short", [1, 300])
def test_all_workers_take_part_after_short_items(workflow: Workflow, short: int) -> None:
    """After any number of short steps `max_parallel` items run at a time: these wait for each other."""
    together = threading.Barrier(8)

    @workflow.step(name="job-{number}")
    def job(number: int) -> None:
        if number >= short:
            together.wait(DEADLINE)

    summary = in_thread(workflow.run_for_each, range(short + 16), job, max_parallel=8)
    assert summary.result(DEADLINE).fulfilled == short + 16


def test_the_next_item_starts_when_any_item_ends(workflow: Workflow, gate: Gate) -> None:
    """A slow item delays no other."""
    summary = in_thread(workflow.run_for_each, range(6), gate, max_parallel=2)
    gate.until_in(0, 1)
    gate.open(1, 2, 3, 4, 5)
    gate.until_in(5)
    assert 0 not in gate.left
    gate.open(0)
    assert summary.result(DEADLINE).fulfilled == 6


def test_a_summary_has_the_outcome_of_each_item(workflow: Workflow) -> None:
    """Class and status say whether an item succeeded, and the counts add up."""
    error = ValueError("odd")

    def refuse_odd(item: int) -> int:
        if item % 2:
            raise error
        return item

    summary = workflow.run_for_each(range(3), refuse_odd, stop_on_error=False)
    assert summary.results == [Fulfilled(0), Rejected(error), Fulfilled(2)]
    assert [result.status for result in summary.results] == ["fulfilled", "rejected", "fulfilled"]
    assert (summary.fulfilled, summary.rejected) == (2, 1)


def test_values_raise_the_first_reason(workflow: Workflow, gate: Gate) -> None:
    """Of several failed items `values` raises the reason of the first in order, not in time."""

    def fail(item: str) -> str:
        gate(item)
        if item == "a":
            return item
        raise LookupError(item)

    summary = in_thread(workflow.run_for_each, "abc", fail, stop_on_error=False, max_parallel=3)
    gate.until_in("a", "b", "c")
    gate.open("c")
    gate.open()
    with pytest.raises(LookupError, match=r"^b\n.*item 1"):
        summary.result(DEADLINE).values()


def test_an_item_knows_its_index(workflow: Workflow) -> None:
    """`current_item` counts from 0, in each worker."""
    summary = workflow.run_for_each("abc", lambda letter: (letter, current_item().index), max_parallel=3)
    assert summary.values() == [("a", 0), ("b", 1), ("c", 2)]


def test_a_for_each_in_an_item_has_items_of_its_own(workflow: Workflow) -> None:
    """Batches nest, and each knows its own items."""

    def outer(row: int) -> tuple[list[int], int]:
        inner = workflow.run_for_each(range(row), lambda _: current_item().index, max_parallel=2)
        return inner.values(), current_item().index

    summary = workflow.run_for_each([2, 3], outer, max_parallel=2)
    assert summary.values() == [([0, 1], 0), ([0, 1, 2], 1)]


def test_the_callers_context_reaches_the_items(workflow: Workflow) -> None:
    """An item sees the context variables of the caller, and what it sets stays in the item."""
    user: ContextVar[str] = ContextVar("user", default="nobody")

    def who(item: int) -> str:
        before = user.get()
        user.set(f"item {item}")
        return before

    user.set("ada")
    assert workflow.run_for_each(range(4), who, max_parallel=2).values() == ["ada"] * 4
    assert user.get() == "ada"


def test_a_completed_item_does_not_run_again(workflow: Workflow) -> None:
    """The second call of a batch runs only the steps that were not completed."""
    ran: list[int] = []
    is_broken = True

    @workflow.for_each(max_parallel=1)
    @workflow.step(name="apply:{job}")
    def apply(job: int) -> int:
        ran.append(job)
        if job == 3 and is_broken:
            raise OSError("no route")
        return job * 10

    with pytest.raises(OSError, match="no route"):
        apply(range(5))
    is_broken = False
    assert apply(range(5)).values() == [0, 10, 20, 30, 40]
    assert ran == [0, 1, 2, 3, 3, 4]


def test_a_killed_batch_continues_where_it_was(tmp_path: Path) -> None:
    """After SIGKILL the items that were completed do not run again, and all others do."""
    code = """
        def apply(item):
            if item == 3:
                say("three")
                hear()
            return "first run"
        workflow.run_for_each(range(6), lambda item: workflow.run_step(f"apply:{item}", apply, item))
    """
    killed(code, tmp_path, "three")
    with Workflow("w", dir=tmp_path) as workflow:
        summary = workflow.run_for_each(range(6), lambda item: workflow.run_step(f"apply:{item}", lambda: "second run"))
    assert summary.values() == ["first run"] * 3 + ["second run"] * 3
    workflow.close()


# Durability


class HeldSyncs:
    """A hook of the file system that holds every sync while it is shut.

    Attributes:
        waiting: The number of threads that wait in a sync.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._open = threading.Event()
        self._open.set()

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "sync" and not self._open.is_set():
            self.waiting += 1
            assert self._open.wait(DEADLINE)

    @contextmanager
    def shut(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()


@pytest.fixture
def syncs() -> HeldSyncs:
    return HeldSyncs()


@pytest.fixture
def synced(tmp_path: Path, syncs: HeldSyncs) -> Iterator[Workflow]:
    """A workflow whose syncs the test can hold."""
    with Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(syncs))) as workflow:
        yield workflow


def test_with_one_worker_a_step_is_durable_before_the_next_item_starts(synced: Workflow, syncs: HeldSyncs) -> None:
    """By default a batch of steps is as durable as a loop of steps."""
    ran: list[int] = []
    job = synced.step(lambda number: ran.append(number), name="job-{number}")
    with syncs.shut():
        summary = blocked(synced.run_for_each, range(5), job)
        wait_until(lambda: syncs.waiting == 1)
        assert ran == [0]
    assert summary.result(DEADLINE).fulfilled == 5


def test_no_result_is_returned_before_it_is_durable(synced: Workflow, syncs: HeldSyncs) -> None:
    """A batch does not end while a sync goes on, and each step runs once, though several items call it."""
    ran: list[int] = []
    job = synced.step(lambda number: ran.append(number) or number, name="job-{number}")
    with syncs.shut():
        summary = blocked(synced.run_for_each, [1, 2, 1, 2, 1], job, max_parallel=2)
        wait_until(lambda: len(ran) == 2)
        assert not summary.done()
    assert summary.result(DEADLINE).values() == [1, 2, 1, 2, 1]
    assert sorted(ran) == [1, 2]


def test_an_item_keeps_its_key_until_its_step_is_durable(synced: Workflow, syncs: HeldSyncs) -> None:
    """The next item of the key can rely on the results of those before it."""
    ran: list[int] = []
    job = synced.step(lambda number: ran.append(number), name="job-{number}")
    with syncs.shut():
        summary = blocked(synced.run_for_each, range(6), job, max_parallel=3, mutex_key=lambda number: str(number % 2))
        wait_until(lambda: syncs.waiting == 1 and len(ran) == 2)
        workers = [thread.ident or 0 for thread in threading.enumerate() if "for_each" in thread.name]
        wait_until(lambda: sum(is_waiting(worker, "wait_for") for worker in workers) == 2)
        assert sorted(ran) == [0, 1]
    assert summary.result(DEADLINE).fulfilled == 6


def test_code_after_a_step_runs_after_the_sync(synced: Workflow, syncs: HeldSyncs) -> None:
    """In an item that calls a step and goes on, the step is durable when it returns."""
    after: list[int] = []
    job = synced.step(lambda number: number, name="job-{number}")
    with syncs.shut():
        summary = blocked(synced.run_for_each, range(9), lambda number: after.append(job(number)), max_parallel=3)
        wait_until(lambda: syncs.waiting == 1)
        assert after == []
    assert summary.result(DEADLINE).fulfilled == 9


def test_items_whose_sync_fails_are_rejected(tmp_path: Path) -> None:
    """All items that waited for the failed sync are rejected."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    job = workflow.step(lambda number: number, name="job-{number}")
    assert job(-1) == -1
    fs.before = failing(OSError(errno.EIO, "Input/output error"), "sync")
    summary = workflow.run_for_each(range(30), job, max_parallel=4, stop_on_error=False)
    assert summary.rejected == 30
    assert all(isinstance(result.reason, StoreError) for result in summary.results if isinstance(result, Rejected))
    fs.before = None
    workflow.close()
    again: list[int] = []
    with Workflow("w", dir=tmp_path) as workflow:
        workflow.step(lambda number: again.append(number), name="job-{number}")(-1)
    assert again == []


# Errors


def test_no_item_starts_after_an_error(workflow: Workflow) -> None:
    """The first error is raised, and the items after it do not run."""
    started: list[int] = []

    def fail_at_two(item: int) -> None:
        started.append(item)
        if item == 2:
            raise ValueError("two is too much")

    with pytest.raises(ValueError, match="two is too much"):
        workflow.run_for_each(range(100), fail_at_two)
    assert started == [0, 1, 2]


def test_the_error_names_the_index_of_the_item(workflow: Workflow) -> None:
    """A note on the error says which item raised it."""

    def fail_late(item: str) -> None:
        if item == "d":
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as raised:
        workflow.run_for_each("abcdef", fail_late)
    assert [note for note in raised.value.__notes__ if "3" in note and "item" in note]


def test_nested_errors_name_every_index(workflow: Workflow) -> None:
    """An error from a nested `for_each` has the index in each batch."""

    def inner(item: int) -> None:
        if item == 5:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as raised:
        workflow.run_for_each("ab", lambda _: workflow.run_for_each(range(9), inner))
    first, second = raised.value.__notes__
    assert "5" in first
    assert "0" in second


def test_running_items_finish_after_an_error(workflow: Workflow, gate: Gate) -> None:
    """The error is raised when the running items have ended, and their results are on record."""

    def work(item: str) -> str:
        if item == "b":
            gate.until_in("a")
            raise ValueError("no")
        return workflow.run_step(item, gate, item)

    summary = in_thread(workflow.run_for_each, "abc", work, max_parallel=2)
    gate.until_in("a")
    assert_waits(summary)
    gate.open()
    with pytest.raises(ValueError, match="no"):
        summary.result(DEADLINE)
    assert {step.name: step.status for step in workflow.record.steps.values()} == {"a": StepStatus.COMPLETED}


def test_of_several_errors_the_first_is_raised(workflow: Workflow, gate: Gate) -> None:
    """An item that fails after the batch was stopped does not replace the first error."""

    def fail(item: str) -> None:
        gate(item)
        raise ValueError(item)

    summary = in_thread(workflow.run_for_each, "ab", fail, max_parallel=2)
    gate.until_in("a", "b")
    gate.open("b")
    assert_waits(summary)
    gate.open()
    with pytest.raises(ValueError, match=r"^b\b"):
        summary.result(DEADLINE)


def test_all_items_run_when_errors_do_not_stop(workflow: Workflow) -> None:
    """`stop_on_error=False` raises nothing, and leaves out no item."""

    def fail(item: int) -> None:
        raise ValueError(item)

    summary = workflow.run_for_each(range(5), fail, stop_on_error=False, max_parallel=2)
    assert [result.reason.args for result in summary.results if isinstance(result, Rejected)] == [
        (0,),
        (1,),
        (2,),
        (3,),
        (4,),
    ]
    assert (summary.fulfilled, summary.rejected) == (0, 5)


class FalseError(Exception):
    """An error that is falsy."""

    def __bool__(self) -> bool:
        return False


def test_a_falsy_error_is_a_reason(workflow: Workflow) -> None:
    """A falsy error is counted, kept and raised like any other."""

    def fail(item: int) -> None:
        raise FalseError("no")

    summary = workflow.run_for_each([1], fail, stop_on_error=False)
    assert (summary.fulfilled, summary.rejected) == (0, 1)
    with pytest.raises(FalseError, match="no"):
        summary.values()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("stop_on_error", [True, False])
def test_an_error_of_the_iterable_is_raised(
    workflow: Workflow, gate: Gate, stop_on_error: bool, kind: type[BaseException]
) -> None:
    """The caller gets an error of the iterable when the running items have ended, whatever `stop_on_error` says."""

    def source() -> Iterator[str]:
        yield "a"
        gate.until_in("a")
        yield "b"
        raise kind("the source")

    with ThreadPoolExecutor(1) as executor:
        summary = in_thread(workflow.run_for_each, source(), gate, stop_on_error=stop_on_error, executor=executor)
        gate.until_in("a")
        assert_waits(summary)
        gate.open()
        with pytest.raises(kind, match="the source"):
            summary.result(DEADLINE)
    assert gate.entered == ["a"]


@pytest.mark.parametrize("stop_on_error", [True, False])
def test_a_falsy_error_of_the_iterable_is_raised(workflow: Workflow, stop_on_error: bool) -> None:
    """An iterable that raises a falsy error has failed."""

    def source() -> Iterator[str]:
        yield "a"
        raise FalseError("the source")

    with pytest.raises(FalseError, match="the source"):
        workflow.run_for_each(source(), str, stop_on_error=stop_on_error)


@pytest.mark.parametrize("stop_on_error", [True, False])
def test_an_error_of_mutex_key_is_raised(workflow: Workflow, gate: Gate, stop_on_error: bool) -> None:
    """The caller gets an error of `mutex_key` when the running items have ended, whatever `stop_on_error` says."""

    def key_of(item: str) -> str:
        if item == "b":
            gate.until_in("a")
            raise LookupError("no key for b")
        return item

    summary = in_thread(workflow.run_for_each, "abc", gate, mutex_key=key_of, stop_on_error=stop_on_error)
    gate.until_in("a")
    assert_waits(summary)
    gate.open()
    with pytest.raises(LookupError, match="no key for b"):
        summary.result(DEADLINE)
    assert gate.entered == ["a"]


def test_an_item_that_has_no_field_of_the_key_is_an_error(workflow: Workflow) -> None:
    """A `mutex_key` that names a missing field raises, whatever `stop_on_error` says."""

    @workflow.for_each(mutex_key="{job[company]}", stop_on_error=False)
    def apply(job: dict[str, str]) -> str:
        return job["company"]

    assert apply([{"company": "A"}]).values() == ["A"]
    with pytest.raises(StepNameError, match="company"):
        apply([{"role": "chef"}])


class Stop(BaseException):
    """An error that is no `Exception`."""


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, Stop])
@pytest.mark.parametrize("stop_on_error", [True, False])
def test_an_error_that_is_no_exception_stops_the_batch(
    workflow: Workflow, stop_on_error: bool, kind: type[BaseException]
) -> None:
    """`SystemExit` and its like reach the caller, whatever `stop_on_error` says."""
    started: list[int] = []

    def leave(item: int) -> None:
        started.append(item)
        if item == 1:
            raise kind(7)

    with pytest.raises(kind) as raised:
        workflow.run_for_each(range(100), leave, stop_on_error=stop_on_error)
    assert raised.value.args == (7,)
    assert started == [0, 1]


def test_a_for_each_can_be_called_again_after_an_error(workflow: Workflow) -> None:
    """A batch that failed keeps no key that the next one would wait for."""
    for kind in (ValueError, SystemExit, ValueError):

        def fail(item: int, kind: type[BaseException] = kind) -> None:
            raise kind(item)

        with pytest.raises(kind):
            workflow.run_for_each(range(10), fail, max_parallel=3, mutex_key=lambda item: str(item % 2))
    assert workflow.run_for_each(range(10), double, max_parallel=3, mutex_key=lambda item: str(item % 2)).fulfilled


# Threads and executors


@pytest.mark.parametrize("key", [None, "same", lambda item: str(item)], ids=["no key", "one key", "keys"])
def test_one_item_at_a_time_runs_in_the_callers_thread(workflow: Workflow, key: Any) -> None:
    """Objects of one thread can be used, as those of sqlite3, and items leave the caller's context as it is."""
    variable: ContextVar[int] = ContextVar("variable", default=-1)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE items (item)")

        @workflow.for_each(mutex_key=key)
        @workflow.step
        def insert(item: int) -> int:
            variable.set(item)
            connection.execute("INSERT INTO items VALUES (?)", (item,))
            return item

        assert insert(iter(range(5))).values() == [0, 1, 2, 3, 4]
        assert connection.execute("SELECT item FROM items").fetchall() == [(0,), (1,), (2,), (3,), (4,)]
    assert variable.get() == -1


def test_items_in_the_callers_thread_may_have_batches_of_their_own(workflow: Workflow) -> None:
    """Also of the caller's thread, and more than are read ahead for one key."""
    summary = workflow.run_for_each(
        range(3), lambda item: workflow.run_for_each(range(1100), lambda one: one * item, mutex_key="inner").values()
    )
    assert [sum(values) for values in summary.values()] == [0, 604_450, 1_208_900]


def test_the_threads_of_a_batch_end_with_it(workflow: Workflow) -> None:
    """A finished batch leaves no worker."""
    workers: set[threading.Thread] = set()
    workflow.run_for_each(range(8), lambda _: workers.add(threading.current_thread()), max_parallel=4)
    for worker in workers:
        worker.join(DEADLINE)
    assert workers
    assert not any(worker.is_alive() for worker in workers)
    assert threading.current_thread() not in workers


def test_items_run_on_the_given_executor(workflow: Workflow) -> None:
    """Items run on its threads, and it stays usable."""
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
        summary = workflow.run_for_each(range(6), lambda _: threading.current_thread().name, executor=pool)
        assert {name.rpartition("_")[0] for name in summary.values()} == {"mine"}
        assert pool.submit(double, 4).result(DEADLINE) == 8


def test_an_executor_may_have_fewer_threads_than_max_parallel(workflow: Workflow, gate: Gate) -> None:
    """As many items run at a time as it has threads."""
    gate.open()
    with ThreadPoolExecutor(1) as pool:
        assert workflow.run_for_each(range(20), gate, executor=pool, max_parallel=8).fulfilled == 20
    assert gate.most == 1


def test_an_executor_may_have_more_threads_than_max_parallel(workflow: Workflow, gate: Gate) -> None:
    """`max_parallel` holds on an executor that could run more."""
    with ThreadPoolExecutor(4) as pool:
        summary = in_thread(workflow.run_for_each, range(6), gate, executor=pool, max_parallel=2)
        gate.until_in(0, 1)
        assert_waits(summary)
        gate.open()
        assert summary.result(DEADLINE).fulfilled == 6
    assert gate.most == 2


def test_a_batch_does_not_wait_for_other_work_on_its_executor(workflow: Workflow) -> None:
    """A batch whose items are done returns, though the executor has not begun one of its workers."""
    blocker, started, go_on = threading.Event(), threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def source() -> Iterator[int]:
            yield 1
            assert started.wait(DEADLINE)
            pool.submit(blocker.wait, DEADLINE)
            yield 2  # starts a second worker, which waits for the blocker to end
            go_on.set()

        def work(item: int) -> int:
            started.set()
            assert go_on.wait(DEADLINE)
            return 2 * item

        summary = in_thread(workflow.run_for_each, source(), work, executor=pool, max_parallel=2)
        try:
            assert summary.result(DEADLINE / 4).values() == [2, 4]
        finally:
            blocker.set()


def test_an_executor_of_processes_is_refused_at_decoration(workflow: Workflow) -> None:
    """Items in other processes could not use the workflow."""
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(TypeError, match="threads"):
            workflow.for_each(executor=pool)
        with pytest.raises(TypeError, match="threads"):
            workflow.run_for_each([1], never, executor=pool)


def test_an_executor_that_was_shut_down_is_an_error(workflow: Workflow) -> None:
    """No item runs, the caller gets the error, and no key stays held."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        workflow.run_for_each([1, 2], never, executor=pool, mutex_key="slot")
    assert workflow.run_for_each([1], double, mutex_key="slot").values() == [2]


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_an_executor_that_is_shut_down_meanwhile_blocks_nothing(workflow: Workflow, cancel_futures: bool) -> None:
    """The batch finishes its items, or raises."""
    pool = ThreadPoolExecutor(1)

    def work(item: int) -> int:
        pool.shutdown(wait=False, cancel_futures=cancel_futures)
        return item

    batch = in_thread(workflow.run_for_each, range(3), work, executor=pool, max_parallel=3)
    with suppress(RuntimeError, CancelledError):
        assert batch.result(DEADLINE / 4).values() == [0, 1, 2]


def test_an_executor_that_is_shut_down_while_a_worker_is_hired_blocks_nothing(workflow: Workflow) -> None:
    """It cancels the worker before under the lock that the submission of the next one waits for."""
    blocker = threading.Event()

    class Pool(ThreadPoolExecutor):
        ends = False

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self.ends:
                ending = threading.Thread(target=lambda: self.shutdown(wait=False, cancel_futures=True), daemon=True)
                ending.start()
                wait_until(lambda: not ending.is_alive() or is_waiting(ending.ident or 0, "_on_worker_done"))
            return super().submit(fn, *args, **kwargs)

    def source() -> Iterator[int]:
        yield 0
        pool.submit(int).result(DEADLINE)  # a worker has asked for the key of 0, and ended
        pool.submit(blocker.wait, DEADLINE)
        yield 1  # its worker waits for the blocker to end
        pool.ends = True
        ready.set()

    pool, ready = Pool(1), threading.Event()

    def free_the_key() -> None:
        with workflow.mutex("k"):
            held.set()
            assert ready.wait(DEADLINE)

    held = threading.Event()
    freeing = in_thread(free_the_key)  # which starts the worker of 0
    assert held.wait(DEADLINE)
    key_of = {0: "k"}.get
    batch = in_thread(workflow.run_for_each, source(), never, executor=pool, max_parallel=3, mutex_key=key_of)
    try:
        with pytest.raises((RuntimeError, CancelledError)):
            batch.result(DEADLINE / 4)
        freeing.result(DEADLINE / 4)
    finally:
        blocker.set()


@pytest.mark.parametrize("count", [1, 2, 50])
def test_an_executor_whose_threads_do_not_begin_is_an_error(workflow: Workflow, count: int) -> None:
    """An initializer that fails breaks the executor, and the caller gets the error."""

    def fail() -> None:
        raise OSError("no connection")

    with ThreadPoolExecutor(4, initializer=fail) as pool, pytest.raises(BrokenThreadPool):
        in_thread(workflow.run_for_each, range(count), never, executor=pool, max_parallel=4).result(DEADLINE)


def test_an_executor_that_refuses_is_an_error(workflow: Workflow) -> None:
    """The caller gets what `submit` raises."""

    class Pool(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise ValueError("closed on Thursdays")

    with pytest.raises(ValueError, match="Thursdays"):
        in_thread(workflow.run_for_each, range(3), never, executor=Pool(1), max_parallel=3).result(DEADLINE)


def test_an_executor_whose_submit_blocks_works(workflow: Workflow) -> None:
    """One that is bounded by a semaphore, as users write them, runs all items."""
    free = threading.Semaphore(1)

    class Pool(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            assert free.acquire(timeout=DEADLINE / 4)
            future = super().submit(fn, *args, **kwargs)
            future.add_done_callback(lambda _: free.release())
            return future

    step = workflow.step(name="job-{number}")(lambda number: number)
    with Pool(1) as pool:
        batch = in_thread(workflow.run_for_each, range(50), step, executor=pool, max_parallel=3)
        assert batch.result(DEADLINE).fulfilled == 50


def test_items_behind_many_that_wait_for_a_key_use_all_workers(workflow: Workflow) -> None:
    """Nearly all items that are read ahead wait for a held key: more are read, since workers are free."""
    held, go_on = threading.Event(), threading.Event()
    together = threading.Barrier(4)

    def hold() -> None:
        with workflow.mutex("k"):
            held.set()
            assert go_on.wait(DEADLINE)

    passed: list[int] = []

    def job(number: int) -> None:
        if number >= 999:
            together.wait(DEADLINE)
            passed.append(number)

    def key_of(number: int) -> str | None:
        return "k" if number < 999 else None

    holding = in_thread(hold)
    assert held.wait(DEADLINE)
    batch = in_thread(workflow.run_for_each, range(1007), job, max_parallel=4, mutex_key=key_of)
    try:
        wait_until(lambda: len(passed) == 8)
    finally:
        go_on.set()
    assert batch.result(DEADLINE).fulfilled == 1007
    holding.result(DEADLINE)


def test_a_batch_whose_workers_were_all_cancelled_raises(workflow: Workflow) -> None:
    """When the executor cancels the workers before any item has run, the caller gets an error."""
    blocker = threading.Event()
    pool = ThreadPoolExecutor(1)
    pool.submit(blocker.wait, DEADLINE)
    batch = in_thread(workflow.run_for_each, range(3), never, executor=pool, max_parallel=3)
    assert_waits(batch)
    pool.shutdown(wait=False, cancel_futures=True)
    try:
        with pytest.raises((RuntimeError, CancelledError)):
            batch.result(DEADLINE / 4)
    finally:
        blocker.set()


@pytest.mark.parametrize("is_submitted", [True, False], ids=["cancels", "refuses"])
def test_an_executor_that_ends_keeps_no_key(workflow: Workflow, is_submitted: bool) -> None:
    """An item that has got its key, and gets no worker, gives the key back."""
    blocker = threading.Event()
    pool = ThreadPoolExecutor(1)
    with workflow.mutex("k"):
        batch = blocked(workflow.run_for_each, [1], never, executor=pool, mutex_key="k")
        pool.submit(blocker.wait, DEADLINE)
        if not is_submitted:
            pool.shutdown(wait=False)
    pool.shutdown(wait=False, cancel_futures=True)
    try:
        with pytest.raises((RuntimeError, CancelledError)):
            batch.result(DEADLINE)
        with workflow.mutex("k", timeout=DEADLINE / 4):
            pass
    finally:
        blocker.set()


OUTLIVES_MAIN = """
import threading, time
all_read = threading.Event()
def source():
    yield from range(300)
    all_read.set()
@workflow.step(name="job-{number}")
def job(number):
    time.sleep(0.02 if number % 20 == 10 else 0.0001)
def run():
    say(workflow.run_for_each(source(), job, max_parallel=4).fulfilled)
    workflow.close()
threading.Thread(target=run).start()
all_read.wait()
"""


def test_a_batch_that_outlives_the_main_thread_runs_all_items(tmp_path: Path) -> None:
    """When no more threads can be started, the workers that are there run the rest."""
    with child(OUTLIVES_MAIN, tmp_path) as process:
        assert process.line(DEADLINE) == "300"
        process.end()


# Inside a mutex


@pytest.mark.parametrize("scope", ["workflow", "store"])
def test_a_for_each_inside_a_mutex_that_its_items_need_raises(workflow: Workflow, scope: Any) -> None:
    """The items would wait for their caller, and the caller for them."""

    @workflow.for_each(mutex_key="{item}", mutex_scope=scope)
    def work(item: str) -> None:
        never()

    def inside(batch: Callable[[], Any]) -> None:
        with workflow.mutex("slot", scope=scope):
            batch()

    for batch in (
        lambda: work(["slot"]),
        lambda: workflow.run_for_each([1], never, mutex_key="slot", mutex_scope=scope),
    ):
        with pytest.raises(WorkflowUsageError, match="slot"):
            in_thread(inside, batch).result(DEADLINE)
    assert workflow.run_for_each([1], double, mutex_key="slot", mutex_scope=scope).values() == [2]


def test_a_nested_for_each_with_the_key_of_its_item_raises(workflow: Workflow) -> None:
    """An item owns its key, and its own items cannot share it."""

    def outer(item: str) -> None:
        workflow.run_for_each([1], never, mutex_key="slot")

    with pytest.raises(WorkflowUsageError, match="slot"):
        in_thread(workflow.run_for_each, ["a"], outer, mutex_key="slot").result(DEADLINE)


def test_a_for_each_inside_another_mutex_runs(workflow: Workflow) -> None:
    """Only the keys of the items matter, and the scope is part of a key."""
    with workflow.mutex("other"), workflow.mutex("slot", scope="store"):
        assert workflow.run_for_each([1, 2], double, mutex_key="slot", max_parallel=2).values() == [2, 4]


# Options


WRONG_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_parallel": 0}, ValueError, "max_parallel"),
    ({"max_parallel": -3}, ValueError, "max_parallel"),
    ({"max_parallel": True}, TypeError, "max_parallel"),
    ({"max_parallel": "2"}, TypeError, "max_parallel"),
    ({"max_parallel": None}, TypeError, "max_parallel"),
    ({"mutex_timeout": -0.1}, ValueError, "mutex_timeout"),
    ({"mutex_timeout": float("nan")}, ValueError, "mutex_timeout"),
    ({"mutex_timeout": "1"}, TypeError, "mutex_timeout"),
    ({"mutex_scope": "planet"}, ValueError, "scope"),
    ({"mutex_key": 7}, TypeError, "mutex_key"),
    ({"mutex_key": " "}, ValueError, "mutex key"),
    ({"executor": object()}, TypeError, "executor"),
    ({"progress": 3}, TypeError, "progress"),
    ({"progress": 0}, TypeError, "progress"),
    ({"progress": b"label"}, TypeError, "progress"),
    ({"stop_on_error": 1}, TypeError, "stop_on_error"),
]


@pytest.mark.parametrize(("options", "kind", "says"), WRONG_OPTIONS, ids=range(len(WRONG_OPTIONS)))
def test_wrong_options_raise_at_decoration(
    workflow: Workflow, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    """A wrong option raises where it is given, not where it is used."""
    with pytest.raises(kind, match=says):
        workflow.for_each(**options)


@pytest.mark.parametrize(("options", "kind", "says"), WRONG_OPTIONS, ids=range(len(WRONG_OPTIONS)))
def test_wrong_options_raise_before_an_item_is_read(
    workflow: Workflow, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    """Without a decorator it raises before anything is read."""
    items = iter([1])
    with pytest.raises(kind, match=says):
        workflow.run_for_each(items, never, **options)
    assert list(items) == [1]


def test_a_malformed_key_raises_at_decoration(workflow: Workflow) -> None:
    """A format string that cannot be parsed raises at once."""
    with pytest.raises((ValueError, TypeError), match="mutex"):

        @workflow.for_each(mutex_key="{job[company]")
        def apply(job: dict[str, str]) -> None: ...


def test_a_key_may_name_the_shared_arguments(workflow: Workflow) -> None:
    """In a decorator `mutex_key` is a format string over all arguments, defaults among them."""

    @workflow.for_each(mutex_key="{region}/{job[company]}/{kind}")
    def apply(job: dict[str, str], region: str, kind: str = "plain") -> None: ...

    apply([{"company": "A"}], "north")
    apply([{"company": "B"}], "south", kind="odd")
    assert mutexes_of(workflow) == ["north/A/plain", "south/B/odd"]


def test_a_key_of_a_function_is_literal(workflow: Workflow) -> None:
    """A key from a function, and the key of `run_for_each`, are no format strings. None is no key."""

    @workflow.for_each(mutex_key=lambda item: item)
    def apply(item: str | None) -> None: ...

    apply(["{item}", None, "b"])
    workflow.run_for_each([1], double, mutex_key="{item}/c")
    assert mutexes_of(workflow) == ["{item}", "b", "{item}/c"]


def mutexes_of(workflow: Workflow) -> list[Any]:
    return [event.detail["key"] for event in workflow.record.events if event.type == "mutex.acquired"]


def test_progress_counts_items_and_failures(workflow: Workflow, capfd: pytest.CaptureFixture[str]) -> None:
    """The display has the label, all items, and the number of failures."""

    def fail(item: int) -> None:
        raise ValueError(item)

    workflow.run_for_each(range(3), fail, stop_on_error=False, progress=True)
    shown = capfd.readouterr().err
    assert "fail" in shown
    assert "3 of 3 done, 3 failed" in shown


def test_a_pipe_gets_no_progress(workflow: Workflow, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written to a pipe unless the option asks for it."""
    workflow.run_for_each(range(3), double)
    workflow.run_for_each(range(3), double, progress="a label")
    assert capfd.readouterr() == ("", "")


def test_a_decorated_function_keeps_its_name(workflow: Workflow) -> None:
    """It has the name and the docstring of the function, and the function in `fn`."""

    @workflow.for_each()
    def apply(item: int) -> int:
        """Do it."""
        return item

    assert (apply.__name__, apply.__doc__, apply.fn(4)) == ("apply", "Do it.", 4)


class Inline(Executor):
    """An executor without threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_without_threads_runs_all_items(workflow: Workflow) -> None:
    """One that calls the worker inside `submit`, as tests do, runs all items."""
    batch = in_thread(workflow.run_for_each, range(5), double, executor=Inline(), max_parallel=2, mutex_key="slot")
    assert batch.result(DEADLINE / 4) == ForEachSummary([Fulfilled(2 * n) for n in range(5)])


# Names


def test_two_items_with_one_name_are_refused(workflow: Workflow) -> None:
    """Different items whose steps have one name raise, and the error shows both: none gets the result of another."""

    @workflow.for_each()
    @workflow.step(name="summarize")
    def summarize(page: str) -> str:
        return f"about {page}"

    with pytest.raises(StepNameError, match=r'(?s)summarize.*"d1" and "d2".*name='):
        summarize(["d1", "d2", "d3"])
    assert workflow.record.steps["summarize"].result == "about d1"


def test_two_items_with_one_name_reject_the_later_one(workflow: Workflow) -> None:
    """With `stop_on_error=False` the later of two different items with one name is rejected."""

    @workflow.for_each(stop_on_error=False)
    @workflow.step(name="{url[0]}")
    def fetch(url: str) -> str:
        return url

    apple, avocado, pear = fetch(["apple", "avocado", "pear"]).results
    assert [apple, pear] == [Fulfilled("apple"), Fulfilled("pear")]
    assert isinstance(avocado.reason, StepNameError)


def test_objects_without_a_faithful_form_are_told_apart(workflow: Workflow) -> None:
    """Items that no text stands for are compared themselves."""
    step = workflow.step(name="open")(lambda lock: 1)
    one, other = threading.Lock(), threading.Lock()
    assert workflow.for_each()(step)([one, one]).values() == [1, 1]
    with pytest.raises(StepNameError, match="two different items"):
        workflow.for_each()(step)([one, other])


def test_equal_items_share_a_result(workflow: Workflow) -> None:
    """The npm package's example has equal items: they are one step, which runs once."""
    calls: list[int] = []

    @workflow.for_each()
    @workflow.step(name="visit:{job[id]}", exclude=["seen"])
    def visit(job: dict[str, int], seen: list[int]) -> int:
        calls.append(job["id"])
        return job["id"]

    assert visit([{"id": 1}, {"id": 1}, {"id": 2}], [1]).values() == [1, 1, 2]
    assert calls == [1, 2]


def test_shared_arguments_tell_no_items_apart(workflow: Workflow) -> None:
    """What all items share may change meanwhile, and may be a secret: it is not compared, and not in the error."""

    @workflow.for_each()
    @workflow.step(name="visit:{page}")
    def visit(page: str, seen: list[str], *, key: str) -> str:
        seen.append(page)
        return key

    seen: list[str] = []
    secret = "sk-2"  # so that the source lines in the traceback do not have it
    assert visit(["a", "a", "b"], seen, key="sk-1").values() == ["sk-1", "sk-1", "sk-1"]
    assert seen == ["a", "b"]
    summarize = workflow.for_each()(workflow.step(name="summarize")(lambda page, key: page))
    with pytest.raises(StepNameError, match='"c" and "d"') as caught, workflow:
        summarize(["c", "d"], secret)
    assert secret not in str(caught.value)
    assert secret not in repr(workflow.record.last_error)


@pytest.mark.parametrize("exclude", [("items",), ("self", "item")])
def test_items_that_are_excluded_share_a_result(workflow: Workflow, exclude: tuple[str, ...]) -> None:
    """Items that are no part of the identity are one step, those of a method and of ``*args`` too."""
    step = workflow.step(name="one", exclude=exclude)
    if "self" in exclude:

        class Site:
            each = workflow.for_each()(step(lambda self, item: item))

        assert Site().each([1, 2]).values() == [1, 1]
    else:
        assert workflow.for_each()(step(lambda *items: items[0]))([1, 2]).values() == [1, 1]


def test_a_class_method_that_is_a_step_has_items(workflow: Workflow) -> None:
    """In any order of the three decorators."""

    def name_of(cls: type, item: int) -> str:
        return f"{cls.__name__}{item}"

    for_each, step = workflow.for_each(), workflow.step(name="{cls.__name__}:{item}")
    for method in (for_each(classmethod(step(name_of))), for_each(step(classmethod(name_of)))):
        site: Any = type("Site", (), {"names": method})
        assert [site.names([1]).values(), site().names([2]).values()] == [["Site1"], ["Site2"]]


def test_methods_of_a_class_with_slots_may_call_super(workflow: Workflow) -> None:
    """`attrs` makes such a class anew, and finds the functions of steps in it that know the old one."""

    class Base:
        def double(self, number: int) -> int:
            return 2 * number

    @attrs.frozen
    class Site(Base):
        scale: int

        @workflow.step(exclude=("self",))
        def one(self, number: int) -> int:
            return self.scale * super().double(number)

        @workflow.for_each()
        @workflow.step(exclude=("self",))
        def many(self, number: int) -> int:
            return self.scale * super().double(number)

    assert [Site(3).one(1), *Site(3).many([2]).values()] == [6, 12]


@pytest.mark.parametrize("annotation", [(int, str), [int], 3, "no such name"])
def test_any_annotation_is_legal(workflow: Workflow, annotation: Any) -> None:
    """One that is no type does not keep a function from being decorated."""

    def double(item: int) -> int:
        return 2 * item

    double.__annotations__ = {"item": annotation, "return": annotation}
    assert workflow.for_each()(double)([1, 2]).values() == [2, 4]


# The summary


def test_notes_name_the_functions(workflow: Workflow) -> None:
    """Each `for_each` that an error passes through adds one, with the name of its function."""

    def page(number: int) -> None:
        raise ValueError("no")

    def site(number: int) -> None:
        workflow.run_for_each([0, number], page)

    with pytest.raises(ValueError, match="no") as caught:
        workflow.run_for_each([1], site, stop_on_error=False).values()
    assert caught.value.__notes__ == [
        f"iso-orchestrator: raised by item 0 of for_each '{name}'" for name in ("page", "site")
    ]


def test_a_note_names_the_index_of_a_reason_made_by_hand() -> None:
    """A `Rejected` that was made without an index has the place in the results."""
    with pytest.raises(ValueError, match="no") as caught:
        ForEachSummary([Fulfilled(1), Rejected(ValueError("no"))]).values()
    assert caught.value.__notes__ == ["iso-orchestrator: raised by item 1 of for_each"]


def test_a_rejected_item_says_which_it_is(workflow: Workflow) -> None:
    """`Rejected` has the item and its index, and the error that `values()` raises has a note."""

    def fail(item: str) -> str:
        raise ValueError(f"no {item}")

    summary = workflow.run_for_each(["a", "b"], fail, stop_on_error=False)
    assert [(result.index, result.item) for result in summary.results] == [(0, "a"), (1, "b")]
    for _ in range(2):
        with pytest.raises(ValueError, match="no a") as caught:
            summary.values()
    assert caught.value.__notes__ == ["iso-orchestrator: raised by item 0 of for_each 'fail'"]


def test_a_summary_and_a_record_are_rows(workflow: Workflow) -> None:
    """`to_dicts()` gives a row for each item, and for each step; both have a short `repr`."""
    error = ValueError("no")

    def apply(item: int) -> int:
        if item:
            raise error
        return workflow.run_step("half", lambda: item / 2)

    summary = workflow.run_for_each([0, 1], apply, stop_on_error=False)
    assert summary.to_dicts() == [
        {"index": 0, "status": "fulfilled", "value": 0.0, "error_type": None, "error": None},
        {"index": 1, "status": "rejected", "value": None, "error_type": "ValueError", "error": error},
    ]
    assert repr(summary) == "<ForEachSummary 1 fulfilled, 1 rejected>"

    def bad() -> None:
        raise error

    with pytest.raises(ValueError, match="no"):
        workflow.run_step("bad", bad)
    record = workflow.record
    assert repr(record) == "<WorkflowRecord 'w' idle: 1/2 steps, 1 failed>"
    rows = record.to_dicts()
    assert [(row["name"], row["status"], row["attempts"], row["result"], row["error"]) for row in rows] == [
        ("half", "completed", 1, 0.0, None),
        ("bad", "failed", 1, None, "ValueError: no"),
    ]
    assert rows[0]["seconds"] >= 0
    assert rows[1]["seconds"] is None


def test_arrays_with_one_name_are_refused(workflow: Workflow) -> None:
    """Items whose comparison has no single answer, as arrays, are different if they are not one object."""

    @workflow.for_each()
    @workflow.step(name="sum:{array[0]}")
    def add(array: Any) -> int:
        return int(array.sum())

    array = numpy.array([1, 2])
    assert add([array, array]).values() == [3, 3]
    with pytest.raises(StepNameError, match=r"(?s)sum:1.*array\(\[1, 2\]\).*array\(\[1, 3\]\)"):
        add([array, numpy.array([1, 3])])


def test_a_generator_of_items_may_hold_a_mutex(workflow: Workflow) -> None:
    """It is closed when the batch stops, whatever refers to it; items that need the mutex are told at once."""

    def items(end: int) -> Iterator[int]:
        with workflow.mutex("slot"):
            yield from range(end)

    def is_free() -> bool:
        with workflow.mutex("slot", timeout=0):
            return True

    def fail(_: int) -> None:
        raise ValueError("no")

    assert workflow.run_for_each(items(3), int).values() == [0, 1, 2]
    source = items(1_000_000)
    with pytest.raises(ValueError, match="no") as caught:
        workflow.run_for_each(source, fail)
    assert caught.tb is not None  # whose frames refer to the generator too
    assert in_thread(is_free).result(DEADLINE)
    with pytest.raises(DeadlockError, match="slot"):
        workflow.run_for_each(items(1_000_000), str, mutex_key="slot")
    with pytest.raises(DeadlockError, match="slot"):
        workflow.run_for_each(items(1_000_000), lambda _: is_free())
    assert in_thread(is_free).result(DEADLINE)
