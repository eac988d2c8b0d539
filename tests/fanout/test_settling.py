"""Items of a `for_each` that are steps: nobody is told of one before it is on the disk, and nobody idles meanwhile."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, WatchedFS, failing, wait_until
from support_fanout import blocked, is_idle, is_waiting

from iso_orchestrator import FileStore, StoreError, Workflow
from iso_orchestrator.fanout.settling import AT_MOST


class HeldSyncs:
    """A hook of the file system that holds up every sync, once it is shut.

    Attributes:
        waiting: How many threads wait in one.
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
def workflow(tmp_path: Path, syncs: HeldSyncs) -> Iterator[Workflow]:
    with Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(syncs))) as workflow:
        yield workflow


@pytest.mark.slow
def test_others_go_on_while_one_syncs(workflow: Workflow, syncs: HeldSyncs) -> None:
    """Two workers do all items while the first's sync lasts; no outcome is had before it has ended."""
    ran: list[int] = []
    job = workflow.step(lambda number: ran.append(number) or number, name="job-{number}")
    with syncs.shut():
        summary = blocked(workflow.run_for_each, range(20), job, max_parallel=2, progress=False)
        wait_until(lambda: len(ran) == 20)
        assert not summary.done()
        assert syncs.waiting == 1
    assert summary.result(DEADLINE).values() == list(range(20))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 8])
def test_only_so_many_are_unsettled(workflow: Workflow, syncs: HeldSyncs, workers: int) -> None:
    """A sync that takes long does not let the workers run ahead without end."""
    ran: list[int] = []
    job = workflow.step(lambda number: ran.append(number), name="job-{number}")
    with syncs.shut():
        summary = blocked(workflow.run_for_each, range(500), job, max_parallel=workers, progress=False)
        wait_until(lambda: len(ran) >= AT_MOST)
        threads = [thread.ident or 0 for thread in threading.enumerate() if "for_each" in thread.name]
        wait_until(lambda: all(is_waiting(thread) or is_idle(thread) for thread in threads))
        assert AT_MOST <= len(ran) < AT_MOST + workers  # whoever finds so many unsettled waits too, with his own
    assert summary.result(DEADLINE).fulfilled == 500


def test_one_worker_settles_each_item_before_the_next(workflow: Workflow, syncs: HeldSyncs) -> None:
    """With nobody beside it a worker waits for the disk, as a loop of steps does."""
    ran: list[int] = []
    job = workflow.step(lambda number: ran.append(number), name="job-{number}")
    with syncs.shut():
        summary = blocked(workflow.run_for_each, range(5), job, max_parallel=1, progress=False)
        wait_until(lambda: syncs.waiting == 1)
        assert ran == [0]
    assert summary.result(DEADLINE).fulfilled == 5


def test_an_item_with_a_key_keeps_it_until_it_is_settled(workflow: Workflow, syncs: HeldSyncs) -> None:
    """What comes next under the key can rely on what came before."""
    ran: list[int] = []
    job = workflow.step(lambda number: ran.append(number), name="job-{number}")
    with syncs.shut():
        summary = blocked(
            workflow.run_for_each,
            range(6),
            job,
            max_parallel=3,
            mutex_key=lambda number: str(number % 2),
            progress=False,
        )
        wait_until(lambda: syncs.waiting == 1 and len(ran) == 2)
        threads = [thread.ident or 0 for thread in threading.enumerate() if "for_each" in thread.name]
        wait_until(lambda: sum(is_waiting(thread) for thread in threads) == 2)
        assert sorted(ran) == [0, 1]
    assert summary.result(DEADLINE).fulfilled == 6


def test_what_a_function_does_behind_its_step_comes_after_the_sync(workflow: Workflow, syncs: HeldSyncs) -> None:
    """Only an item that is a step, and nothing else, is left to be settled."""
    behind: list[int] = []
    job = workflow.step(lambda number: number, name="job-{number}")
    with syncs.shut():
        summary = blocked(
            workflow.run_for_each, range(9), lambda number: behind.append(job(number)), max_parallel=3, progress=False
        )
        wait_until(lambda: syncs.waiting == 1)
        assert behind == []
    assert summary.result(DEADLINE).fulfilled == 9


def test_items_that_are_the_same_step_run_once(workflow: Workflow, syncs: HeldSyncs) -> None:
    """A step that is recorded and not yet settled is not run again, and nobody has its result before the sync."""
    ran: list[int] = []
    job = workflow.step(lambda number: ran.append(number) or number, name="job-{number}")
    with syncs.shut():
        summary = blocked(workflow.run_for_each, [1, 2, 1, 2, 1], job, max_parallel=2, progress=False)
        wait_until(lambda: len(ran) == 2)
        assert not summary.done()
    assert summary.result(DEADLINE).values() == [1, 2, 1, 2, 1]
    assert sorted(ran) == [1, 2]


def test_items_whose_sync_fails_are_not_told_to_be_done(tmp_path: Path) -> None:
    """Of a sync that fails, all that waited for it are rejected; none of them is taken for completed."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    job = workflow.step(lambda number: number, name="job-{number}")
    assert job(-1) == -1
    fs.before = failing(OSError(errno.EIO, "Input/output error"), "sync")
    summary = workflow.run_for_each(range(30), job, max_parallel=4, stop_on_error=False, progress=False)
    assert summary.rejected == 30
    assert all(isinstance(result.reason, StoreError) for result in summary.results)  # type: ignore[union-attr]  # none is fulfilled
    fs.before = None
    workflow.close()
    again: list[int] = []
    with Workflow("w", dir=tmp_path) as workflow:
        job = workflow.step(lambda number: again.append(number), name="job-{number}")
        job(-1)
        assert again == []


def test_steps_are_let_go_when_they_are_settled(workflow: Workflow) -> None:
    """Another call of the same step, and the end of the workflow, wait for none of them."""
    job = workflow.step(lambda number: number, name="job-{number}")
    workflow.run_for_each(range(100), job, max_parallel=8, progress=False)
    assert workflow._runtime.session().flights == {}
