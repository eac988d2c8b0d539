"""What becomes of a workflow whose objects are dropped, and of one whose root is removed while it is open."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import DEADLINE, wait_until
from support_processes import in_thread

from iso_orchestrator import LeaseLostError, Limited, StoreError, Workflow, current_workflow
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.log import RecordLock
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.system.filesystem import FileSystem

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only the count of references frees what was dropped."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def descriptors(root: Path) -> list[str]:
    """The files in *root* that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(f"{root}/")]


def refuse(*_: object) -> None:
    raise ValueError("refused")


def run_steps(workflow: Workflow) -> None:
    workflow.run_step("one", lambda: 1)
    with pytest.raises(ValueError, match="refused"):
        workflow.run_step("two", refuse, retry=2)
    with pytest.raises(TypeError):
        workflow.run_step("three", object)


def decorate_steps(workflow: Workflow) -> None:
    @workflow.step
    def twice(n: int) -> int:
        return 2 * n

    assert twice(1) == 2
    assert twice.submit(2).result() == 4


def submit_what_fails(workflow: Workflow) -> None:
    refused = workflow.step(name="refused")(refuse)
    with pytest.raises(ValueError, match="refused"):
        refused.submit().result()


def fan_out(workflow: Workflow) -> None:
    workflow.run_for_each([1, 2, 3], lambda n: n, mutex_key="key", max_parallel=2, progress=False)
    workflow.run_for_each([1, 2, 3], refuse, mutex_key="key", stop_on_error=False, progress=False)
    with pytest.raises(ValueError, match="refused"):
        workflow.run_for_each([1, 2, 3], refuse, progress=False)


def park(workflow: Workflow) -> None:
    calls: list[int] = []

    def ask(number: int) -> None:
        calls.append(number)
        if len(calls) == 1:
            raise Limited(datetime.now(UTC) + timedelta(seconds=0.05))
        refuse(number)

    workflow.run_for_each([1, 2], workflow.step(ask), stop_on_error=False, progress=False)
    assert calls == [1, 2, 1]


def coordinate(workflow: Workflow) -> None:
    with workflow.mutex("key"), workflow.lease("slot"), workflow.heartbeating("beat"):
        workflow.update_state({"n": 1})
    assert workflow.state == {"n": 1}


def run_runs(workflow: Workflow) -> None:
    with workflow:
        workflow.run_step("inside", lambda: 1)
    with pytest.raises(ValueError, match="refused"):
        workflow.run(refuse)
    workflow.append_event("after")


@pytest.mark.parametrize("use", [run_steps, decorate_steps, submit_what_fails, fan_out, park, coordinate, run_runs])
def test_a_dropped_workflow_frees_its_descriptors(
    tmp_path: Path, no_collector: None, use: Callable[[Workflow], None]
) -> None:
    """Without a collector, as soon as it and its steps are dropped. The snapshot is written, as by `close`."""
    workflow = Workflow("w", dir=tmp_path)
    use(workflow)
    assert descriptors(tmp_path)
    del workflow
    wait_until(lambda: not descriptors(tmp_path), what="the end")  # a worker may be about to end
    assert FileStore(tmp_path).is_checkpointed("w")
    wait_until(lambda: all("iso-orchestrator_" not in thread.name for thread in threading.enumerate()))


def test_hundreds_of_dropped_workflows_use_no_descriptors(tmp_path: Path, no_collector: None) -> None:
    """A process may use any number of workflows, one after the other."""
    for number in range(100):
        Workflow(f"w{number}", dir=tmp_path).append_event("note")
        assert descriptors(tmp_path) == []


@pytest.mark.parametrize("first", [True, False], ids=["the first", "the second"])
def test_closing_is_not_kept_back_by_a_dropped_object(tmp_path: Path, no_collector: None, first: bool) -> None:
    """Of two objects of one workflow, the last one that is closed or dropped closes it."""
    one, other = Workflow("w", dir=tmp_path), Workflow("w", dir=tmp_path)
    one.append_event("one")
    other.append_event("other")
    kept = other if first else one
    del one, other
    assert descriptors(tmp_path)
    kept.close()
    assert descriptors(tmp_path) == []
    assert FileStore(tmp_path).is_checkpointed("w")


def test_a_step_outlives_the_object_that_made_it(tmp_path: Path, no_collector: None) -> None:
    """A step keeps what it needs of its workflow, which is current in its body."""
    step = Workflow("w", dir=tmp_path).step(name="it")(lambda: current_workflow().run_step("inner", lambda: 7))
    assert step() == 7
    assert descriptors(tmp_path)
    del step
    assert descriptors(tmp_path) == []


def test_dropping_waits_for_no_other_process(tmp_path: Path, no_collector: None) -> None:
    """If the record is locked then, nothing is written, as after a kill. The next use finds everything."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.append_event("note")
    lock = RecordLock(FileSystem(), Paths.candidates(str(tmp_path), "w")[1])
    lock.take()
    del workflow  # were the lock waited for, then for ever: it belongs to this thread
    assert descriptors(tmp_path) == [lock.path]
    lock.close()
    assert [event.type for event in Workflow("w", dir=tmp_path).record.events] == ["note"]


def remove_root(workflow: Workflow) -> None:
    """Remove the root of an open workflow, and wait until its files are due to be looked at."""
    session = workflow._runtime.session()
    shutil.rmtree(workflow.dir)
    wait_until(lambda: not session.log.is_current())


def test_a_removed_root_is_made_again(tmp_path: Path) -> None:
    """An idle workflow begins anew with the next use. Looking makes nothing."""
    workflow = Workflow("w", dir=tmp_path / "root", initial_state={"n": 0})
    workflow.run_step("it", lambda: 1)
    workflow.update_state({"n": 1})
    remove_root(workflow)
    assert workflow.state == {"n": 0}
    assert not (tmp_path / "root").exists()
    assert workflow.run_step("it", lambda: 2) == 2
    remove_root(workflow)
    workflow.append_event("note")
    assert [event.type for event in workflow.record.events] == ["note"]
    remove_root(workflow)
    with workflow:
        pass
    assert [event.type for event in workflow.record.events] == ["workflow.running", "workflow.completed"]
    assert descriptors(tmp_path) == []


def test_a_run_whose_root_is_removed_is_told_once(tmp_path: Path) -> None:
    """The run gets the error at its next call. What it does after that is recorded in a new root."""
    workflow = Workflow("w", dir=tmp_path / "root")
    with pytest.raises(StoreError, match=r"is gone: .* start again"), workflow:
        workflow.run_step("it", lambda: 1)
        remove_root(workflow)
        with pytest.raises(StoreError, match=r"is gone: .* start again"):
            workflow.run_step("it", lambda: 2)
        assert not (tmp_path / "root").exists()
        assert workflow.run_step("it", lambda: 2) == 2
    with workflow:
        assert workflow.run_step("it", lambda: 3) == 2
    assert descriptors(tmp_path) == []


def test_a_step_whose_root_is_removed_does_not_run_again(tmp_path: Path) -> None:
    """Its result belongs to the removed record: its caller is told, and another call begins anew."""
    workflow, calls = Workflow("w", dir=tmp_path / "root"), []

    def body() -> int:
        calls.append(1)
        if len(calls) == 1:
            remove_root(workflow)
        return len(calls)

    with pytest.raises(StoreError, match=r"step 'it' succeeded, .* is gone"):
        workflow.run_step("it", body)
    assert calls == [1]
    assert workflow.run_step("it", body) == 2
    workflow.close()


def test_a_lease_in_a_removed_root_is_lost(tmp_path: Path) -> None:
    """Nothing is recorded under its token in the root that comes after it."""
    workflow = Workflow("w", dir=tmp_path / "root")
    with pytest.raises(StoreError, match="is gone"), workflow.lease("slot"):
        remove_root(workflow)
        with pytest.raises(StoreError, match="is gone"):
            workflow.append_event("note")
        with pytest.raises(LeaseLostError):
            workflow.append_event("note")
    workflow.append_event("later")
    assert [event.type for event in workflow.record.events] == ["later"]
    workflow.close()


def test_threads_of_one_workflow_survive_a_removed_root(tmp_path: Path) -> None:
    """Each call either fails with that error or is recorded in the new root, and none hangs."""
    workflow = Workflow("w", dir=tmp_path / "root")
    workflow.append_event("note")
    remove_root(workflow)
    step = workflow.step(name="it:{n}")(lambda n: n)
    futures = [step.submit(n) for n in range(20)]
    wait(futures)
    results = [future.result() for future in futures if not isinstance(future.exception(), StoreError)]
    assert set(workflow.record.steps) == {f"it:{n}" for n in results}
    workflow.close()


@pytest.mark.slow
def test_the_collector_may_close_workflows_in_the_middle_of_anything(tmp_path: Path) -> None:
    """Threads drop their objects in cycles while they and others use the same workflows: no call fails or hangs."""
    threshold = gc.get_threshold()
    gc.set_threshold(50)

    def use(number: int) -> None:
        for turn in range(60):
            workflow = Workflow(f"w{(number + turn) % 3}", dir=tmp_path)
            cycle: list[object] = [workflow]
            cycle.append(cycle)
            with workflow.mutex("key", scope="store"):
                workflow.run_step(f"{number}:{turn}", lambda: 1)
            workflow.update_state(lambda _, turn=turn: Workflow(f"x{turn}", dir=tmp_path).workflow_id)
            with workflow:
                workflow.append_event("note")

    try:
        futures = [in_thread(use, number) for number in range(6)]
        for future in futures:
            future.result(DEADLINE)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert descriptors(tmp_path) == []
    records = [Workflow(f"w{number}", dir=tmp_path).record for number in range(3)]
    assert sum(len(record.steps) for record in records) == 360
