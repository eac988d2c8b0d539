"""What no other test notices: refusals too early, locks without a name, steps taken over, files swapped in a sync."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from reliability.workloads import early_folds
from support import DEADLINE, WatchedFS, new_fold, wait_until, waits_for_a_lock
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import StepFailedError, StepInterruptedError, Workflow
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore, WorkflowLog


@pytest.fixture
def fs() -> WatchedFS:
    return WatchedFS()


@pytest.fixture
def workflow(tmp_path: Path, fs: WatchedFS) -> Iterator[Workflow]:
    """A workflow that is open, on files that are watched."""
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    workflow.append_event("opened")
    yield workflow
    workflow.close()


# A process whose step fails when it is told to, and which is held up in the sync of that.
FAILS = """
def before(name, args):
    if name == "sync" and armed:
        say("syncing")
        hear()

def body():
    global armed
    say("begun")
    hear()
    armed = True
    raise ValueError

armed = False
workflow = Workflow("w", store=FileStore(root, fs=WatchedFS(before)))
workflow.append_event("opened")
try:
    workflow.run_step("step", body)
except ValueError:
    say("failed")
"""


def test_a_failure_that_another_process_has_not_synced_is_synced_before_it_is_told(
    workflow: Workflow, fs: WatchedFS, tmp_path: Path
) -> None:
    """Who waits for a step of another process, and is told that it has failed, has made that durable."""
    with child(FAILS, tmp_path) as process:
        assert process.line() == "begun"
        looks = fs.count("identify_path")
        waiter = in_thread(workflow.run_step, "step", pytest.fail)
        wait_until(lambda: fs.count("identify_path") >= looks + 6)  # it has looked again: it knows whom it waits for
        syncs = fs.count("sync")
        process.say()
        assert process.line() == "syncing"
        with pytest.raises(StepFailedError, match="ValueError"):
            waiter.result(DEADLINE)
        assert fs.count("sync") > syncs
        process.say()
        assert process.line() == "failed"
        process.end()


def test_a_start_that_a_killed_process_has_not_synced_is_synced_before_it_is_told(
    workflow: Workflow, fs: WatchedFS, tmp_path: Path
) -> None:
    """Who is told that a step was interrupted is told so again after a power cut: its start is on the disk by then."""
    with child(FAILS, tmp_path) as process:
        assert process.line() == "begun"
        syncs = fs.count("sync")
        process.kill()
        with pytest.raises(StepInterruptedError):
            workflow.run_step("step", pytest.fail, if_interrupted="fail")
        assert fs.count("sync") > syncs


def test_who_waited_while_a_record_was_deleted_has_the_lock_of_the_next(tmp_path: Path) -> None:
    """A lock whose file has lost its name excludes nobody: whoever gets it takes that of the file that is there."""
    waiters: list[Future[tuple[WorkflowLog, Projection]]] = []

    def before(name: str, args: tuple[object, ...]) -> None:
        if name == "unlink" and str(args[0]).endswith("record.flock"):
            waiters.append(in_thread(FileStore(tmp_path).open, "w", new_fold))
            wait_until(lambda: waits_for_a_lock(os.getpid()))

    log, projection = FileStore(tmp_path).open("w", new_fold)
    log.detach(projection)
    assert FileStore(tmp_path, WatchedFS(before)).delete("w")
    log, projection = waiters[0].result(DEADLINE)
    log.lock()
    other = in_thread(FileStore(tmp_path).open, "w", new_fold)
    assert_waits(other)
    log.unlock()
    for one, its_fold in ((log, projection), other.result(DEADLINE)):
        one.detach(its_fold)


def test_a_step_that_another_process_has_taken_over_is_not_completed_again(workflow: Workflow, tmp_path: Path) -> None:
    """Where a process is said to be dead and lives, the one result is that of the process that ran the step first."""
    code = """
        say(workflow.run_step("step", lambda: "theirs"))
        workflow.close()
    """

    def body() -> str:
        for path in tmp_path.glob("locks/*/runs/*"):
            path.rename(path.with_suffix(".dead"))  # as a user does who follows the advice, and is wrong
        with child(code, tmp_path) as process:
            assert process.line() == "theirs"
            process.end()
        return "mine"

    assert workflow.run_step("step", body) == "theirs"
    assert [event.type for event in workflow.record.events].count("step.completed") == 1


def test_a_journal_is_not_swapped_while_it_is_synced(tmp_path: Path, fs: WatchedFS) -> None:
    """A thread that folds waits for one that syncs: its file would be closed, and its number be another file's."""
    syncing, gate = threading.Event(), threading.Event()

    def before(name: str, _: object) -> None:
        if name == "sync" and not syncing.is_set():
            syncing.set()
            assert gate.wait(DEADLINE)

    with early_folds():
        workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
        workflow.append_event("opened")
        fs.before = before
        runner = in_thread(workflow.run_step, "step", lambda: "result")
        assert syncing.wait(DEADLINE)
        folder = in_thread(workflow.update_state, "." * 20_000)
        wait_until(lambda: fs.count("replace") >= 4)  # twice a pair: the second is there, and not yet in use
        assert_waits(folder)
        gate.set()
        assert runner.result(DEADLINE) == "result"
        assert folder.result(DEADLINE) == "." * 20_000
        workflow.close()
