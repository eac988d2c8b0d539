"""A `for_each` on record: when it begins, and with which counts it ends."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support import T0, wait_until
from support_processes import child, in_thread

from iso_orchestrator import MemoryStore, Workflow

FIELDS = ("batch", "fulfilled", "rejected", "replayed", "unstarted")


def details(workflow: Workflow, type_: str) -> list[Any]:
    return [event.detail for event in workflow.record.events if event.type == type_]


def counts(workflow: Workflow) -> list[tuple[int, ...]]:
    return [tuple(detail[field] for field in FIELDS[1:]) for detail in details(workflow, "batch.ended")]


def test_it_has_a_begin_and_an_end(workflow: Workflow) -> None:
    """They have its number, function, total and width, and what came of its items."""

    def work(n: int) -> int:
        if n == 2:
            raise ValueError("no")
        return n

    with workflow:
        workflow.run_for_each([1, 2, 3], work, max_parallel=2, stop_on_error=False)
        workflow.run_for_each(iter([1, 3]), work)
    first, second = details(workflow, "batch.started")
    assert first == {"batch": first["batch"], "name": "work", "total": 3, "maxParallel": 2, "run": 1}
    assert second == {"batch": second["batch"], "name": "work", "total": None, "maxParallel": 1, "run": 1}
    assert [detail["batch"] for detail in details(workflow, "batch.ended")] == [first["batch"], second["batch"]]
    assert first["batch"] < second["batch"]
    assert counts(workflow) == [(2, 1, 0, 0), (2, 0, 0, 0)]


def test_items_on_record_are_counted_apart(workflow: Workflow) -> None:
    """An item is one if all its steps were on record; one that has called no step is none."""
    step = workflow.step(name="s{n}")(lambda n: n)
    with workflow:
        workflow.run_for_each([1, 2], step)
        workflow.run_for_each([1, 2, 3], step, max_parallel=2)

        def two(n: int) -> int:
            return step(n) + step(n + 10)

        workflow.run_for_each([1], two)
        workflow.run_for_each([1, 2], two)
        workflow.run_for_each([1], lambda n: n)
    assert [replayed for _, _, replayed, _ in counts(workflow)] == [0, 2, 0, 1, 0]


def test_a_batch_that_stops_tells_what_has_not_begun(workflow: Workflow) -> None:
    """With a list that is all the rest; with an iterator what was read of it."""

    def fail(n: int) -> None:
        raise ValueError(n)

    with workflow, pytest.raises(ValueError, match="1"):
        workflow.run_for_each([1, 2, 3], fail)
    assert counts(workflow) == [(0, 1, 0, 2)]


def test_a_batch_inside_a_batch_has_its_own_number(workflow: Workflow) -> None:
    """Steps belong to the innermost one."""

    def outer(n: int) -> None:
        workflow.run_for_each([n, n + 1], lambda m: workflow.run_step(f"s{m}", int))

    with workflow:
        workflow.run_for_each([10], outer)
    numbers = {detail["name"]: detail["batch"] for detail in details(workflow, "batch.started")}
    assert [detail["item"] for detail in details(workflow, "step.started")] == [
        [numbers["<lambda>"], 0],
        [numbers["<lambda>"], 1],
    ]
    assert len(set(numbers.values())) == 2


def test_a_failure_to_record_it_is_none_of_the_batch() -> None:
    """Items that use no workflow run, whatever the store does."""
    times = iter([T0, T0])  # for the record, and before
    workflow = Workflow("w", store=MemoryStore(), now=lambda: next(times))
    assert workflow.run_for_each([1, 2], lambda n: n).values() == [1, 2]
    with pytest.raises(StopIteration):
        workflow.append_event("that", "was it")


HOLD = """
with workflow, workflow.mutex("slot"):
    say("held")
    hear()
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are on record after a fraction of a second."""
    monkeypatch.setattr("iso_orchestrator.runtime.waits._SHORT", 0.02)
    for module in ("runtime.waits", "fanout.scheduler"):
        monkeypatch.setattr(f"iso_orchestrator.{module}.LONGEST_WAIT", 0.02)


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found on Linux")
def test_waits_of_items_for_a_key_are_on_record(tmp_path: Path) -> None:
    """Each has the item, the process that holds the key, and in the end since when it was wanted and granted."""
    with child(HOLD, tmp_path) as holder:
        assert holder.line() == "held"
        workflow = Workflow("w", dir=tmp_path)
        with workflow:
            batch = in_thread(
                workflow.run_for_each, ["slot", "other"], lambda _: None, mutex_key=lambda n: n, max_parallel=2
            )
            wait_until(lambda: details(workflow, "mutex.waiting"))
            holder.say()
            batch.result()
    (waiting,) = details(workflow, "mutex.waiting")
    number = details(workflow, "batch.started")[0]["batch"]
    assert waiting == {"key": "slot", "item": [number, 0], "holder": holder.pid, "run": 2}
    (acquired,) = [detail for detail in details(workflow, "mutex.acquired") if "since" in detail]
    assert (acquired["key"], acquired["item"], acquired["run"]) == ("slot", [number, 0], 2)
    assert acquired["since"] < acquired["granted"]


@pytest.mark.usefixtures("impatient")
def test_a_wait_of_an_item_for_another_thread_s_key_is_on_record(workflow: Workflow) -> None:
    """Its holder is this process."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            held.set()
            go_on.wait(10)

    with workflow:
        holder = in_thread(hold)
        held.wait(10)
        batch = in_thread(workflow.run_for_each, [1], lambda _: None, mutex_key=lambda _: "slot", max_parallel=2)
        wait_until(lambda: details(workflow, "mutex.waiting"))
        go_on.set()
        batch.result()
        holder.result()
    assert len(details(workflow, "mutex.waiting")) == 1


RUN = """
with workflow:
    workflow.run_step("shared", lambda: (say("runs"), hear()))
"""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("is_item", [False, True])
def test_a_wait_for_another_process_s_run_of_a_step_is_on_record(tmp_path: Path, is_item: bool) -> None:
    """It has the process, and the item if the step is called in one."""
    with child(RUN, tmp_path) as runner:
        assert runner.line() == "runs"
        workflow = Workflow("w", dir=tmp_path)
        step = workflow.step(name="shared")(lambda: None)
        with workflow:
            if is_item:
                shared = workflow.step(name="shared")(lambda _: None)
                call = in_thread(workflow.run_for_each, [1], shared, max_parallel=2)
            else:
                call = in_thread(step)
            wait_until(lambda: details(workflow, "step.waiting"))
            runner.say()
            call.result()
    (waiting,) = details(workflow, "step.waiting")
    assert (waiting["step"], waiting["for"], waiting["holder"]) == ("shared", "process", runner.pid)
    assert ("item" in waiting) is is_item
