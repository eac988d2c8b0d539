"""Submitted steps that wait for submitted steps: the pool goes on, however they wait, and its threads go again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, wait_until
from support_processes import child, in_thread

from iso_orchestrator import MemoryStore, Workflow, WorkflowStatus, read_workflow_record

Futures = list[Future[int]]


def wait_for_all(futures: Futures) -> list[int]:
    assert not wait(futures).not_done
    return [future.result() for future in futures]


def wait_for_one_after_the_other(futures: Futures) -> list[int]:
    found: list[int] = []
    left = set(futures)
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        found += [future.result() for future in done]
    return found


def errors_of(futures: Futures) -> list[int]:
    assert [future.exception() for future in futures] == [None] * len(futures)
    return [future.result() for future in futures]


WAYS: dict[str, Callable[[Futures], list[int]]] = {
    "result": lambda futures: [future.result() for future in futures],
    "result in time": lambda futures: [future.result(DEADLINE) for future in futures],
    "exception": errors_of,
    "wait": wait_for_all,
    "wait for the first": wait_for_one_after_the_other,
    "as_completed": lambda futures: [future.result() for future in as_completed(futures)],
}


def pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "iso-orchestrator submit"]


def family(workflow: Workflow, of_all: Callable[[Futures], list[int]], **options: Any) -> Callable[[int], Future[int]]:
    """Submit a parent, which submits three children and waits for them."""

    @workflow.step
    def inner(number: int, part: int) -> int:
        return number * part

    @workflow.step(**options)
    def outer(number: int) -> int:
        return sum(of_all([inner.submit(number, part) for part in range(3)]))

    return outer.submit


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("parents", "max_workers"), [(40, 32), (2, 2), (3, 1)])
def test_threads_that_wait_for_the_pool_stop_nothing(way: str, parents: int, max_workers: int) -> None:
    """All threads of a pool may wait for what it has to run, in each way in which one can wait for a future."""
    workflow = Workflow("w", store=MemoryStore(), max_workers=max_workers)
    submit = family(workflow, WAYS[way])
    futures = [submit(number) for number in range(parents)]
    assert [future.result(DEADLINE) for future in futures] == [3 * number for number in range(parents)]
    in_thread(workflow.close).result(DEADLINE)


@pytest.mark.parametrize("way", WAYS)
def test_threads_that_work_for_one_of_the_pool_may_wait(way: str) -> None:
    """The thread of a step's timeout, and those of a `for_each`, wait in the place of the thread that they work for."""
    workflow = Workflow("w", store=MemoryStore(), max_workers=1)

    def in_items(futures: Futures) -> list[int]:
        found = workflow.run_for_each(futures, lambda future: WAYS[way]([future])[0], max_parallel=3)
        return list(found.values())

    assert [family(workflow, WAYS[way], timeout=DEADLINE, name="limited:{number}")(2).result(DEADLINE)] == [6]
    assert [family(workflow, in_items, name="fanned out:{number}")(3).result(DEADLINE)] == [9]
    in_thread(workflow.close).result(DEADLINE)


def test_pools_may_wait_for_each_other() -> None:
    """A thread of one workflow's pool waits for another pool, whose thread waits for the first."""
    one, other = (Workflow(name, store=MemoryStore(), max_workers=1) for name in ("one", "other"))

    @one.step
    def last() -> str:
        return "last"

    @other.step
    def between() -> str:
        return last.submit().result()

    @one.step
    def first() -> str:
        return between.submit().result()

    assert first.submit().result(DEADLINE) == "last"
    for workflow in (one, other):
        in_thread(workflow.close).result(DEADLINE)


def test_threads_that_do_not_wait_are_no_more_than_max_workers() -> None:
    """What is waited for is the next to begin, so that few threads serve many parents; in the end there is none."""
    workflow = Workflow("w", store=MemoryStore(), max_workers=2)
    working: list[int] = []
    at_work: list[int] = []
    alive: list[int] = []

    @workflow.step
    def inner(number: int) -> int:
        working.append(number)
        at_work.append(len(working))
        alive.append(len(pool_threads()))
        working.remove(number)
        return number

    outer = workflow.step(name="outer:{number}")(lambda number: inner.submit(number).result())
    futures = [outer.submit(number) for number in range(100)]
    assert [future.result(DEADLINE) for future in futures] == list(range(100))
    assert max(at_work) <= 2
    assert max(alive) <= 8  # two that work, two for each of them that wait or are about to end
    wait_until(lambda: pool_threads() == [])
    assert inner.submit(7).result(DEADLINE) == 7
    in_thread(workflow.close).result(DEADLINE)


@pytest.mark.slow
def test_ctrl_c_ends_a_pool_whose_threads_wait(tmp_path: Path) -> None:
    """Ctrl-C ends a run in which all parents wait: no child begins any more, and the run is recorded as failed."""
    code = """
        sys.stderr = open(os.devnull, "w")
        gate = threading.Event()
        workflow = Workflow("w", dir=root, max_workers=2)

        @workflow.step
        def inner(number):
            if number == 20:
                say("in")
                while not stopping:
                    time.sleep(0.01)
            return number

        @workflow.step
        def outer(number):
            return inner.submit(number).result()

        stopping = []
        with workflow:
            futures = [outer.submit(number) for number in range(40)]
            try:
                for future in futures:
                    future.result()
            finally:
                stopping.append(True)
    """
    with child(code, tmp_path) as process:
        assert process.line() == "in"
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(DEADLINE) != 0
    record = read_workflow_record("w", dir=tmp_path)
    assert record.status is WorkflowStatus.FAILED
    assert record.last_error is not None
    assert record.last_error.name == "KeyboardInterrupt"
    assert (
        len([step for step in record.steps.values() if step.name.startswith("outer") and step.result is not None]) < 40
    )
