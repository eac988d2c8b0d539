"""Programs that clean up remove lock files of living processes: what then is still excluded, and who is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import WatchedFS, only, run_python, wait_until
from support_processes import assert_waits, child, in_thread, killed

from iso_orchestrator import StoreError, Workflow, WorkflowBusyError, delete_workflow
from iso_orchestrator.store import FileStore, liveness
from iso_orchestrator.store import mutex as mutex_module
from iso_orchestrator.store.liveness import LivenessFiles
from iso_orchestrator.system.filesystem import FileSystem

HOLD = "workflow.run_step('step', lambda: (say('running'), hear()) and 'theirs')\n"


def clean(root: Path) -> None:
    """What a cleaner of stale locks does."""
    shutil.rmtree(root / "locks")


def runs(root: Path) -> Path:
    return only((root / "locks").glob("*/runs"))


@pytest.mark.parametrize("what", ["the file", "all locks"])
def test_step_of_a_process_without_its_file_is_not_begun_again(tmp_path: Path, what: str) -> None:
    """A running step is waited for although its process's liveness file was removed, until that process ends."""
    with child(HOLD, tmp_path) as process:
        assert process.line() == "running"
        if what == "all locks":
            clean(tmp_path)
        else:
            only(runs(tmp_path).iterdir()).unlink()
        workflow = Workflow("w", dir=tmp_path)
        waiter = in_thread(workflow.run_step, "step", lambda: "mine")
        assert_waits(waiter)
        with pytest.raises(WorkflowBusyError):
            delete_workflow("w", dir=tmp_path)
        process.kill()
        assert waiter.result(20) == "mine"
        workflow.close()


def test_run_of_a_process_without_its_file_goes_on(tmp_path: Path) -> None:
    """A run is not taken for dead because its process's liveness file was removed."""
    with child("with workflow:\n    say('in'); hear()\n", tmp_path) as process:
        assert process.line() == "in"
        clean(tmp_path)
        with pytest.raises(WorkflowBusyError, match=str(process.pid)), Workflow("w", dir=tmp_path, on_busy="fail"):
            pytest.fail("it was entered")
        process.kill()
        with Workflow("w", dir=tmp_path, on_busy="fail") as workflow:
            assert workflow.record.last_error is None or workflow.record.last_error.name == "RunDied"


def test_process_whose_record_lock_was_removed_records_nothing_more(tmp_path: Path) -> None:
    """What a process could write beside another one is not acknowledged, and its steps are free when it says so."""
    code = HOLD.replace("workflow.", "try:\n    workflow.", 1) + "except StoreError as error:\n    say(error); hear()\n"
    with child(code, tmp_path) as process:
        assert process.line() == "running"
        clean(tmp_path)
        workflow = Workflow("w", dir=tmp_path)
        waiter = in_thread(workflow.run_step, "step", lambda: "mine")
        assert_waits(waiter)
        process.say()
        assert "record.flock was removed while the workflow was in use" in process.line()
        assert waiter.result(20) == "mine"
        workflow.close()


def test_nothing_is_acknowledged_that_was_written_without_the_lock(tmp_path: Path) -> None:
    """A lock that is removed in the middle of a transaction is noticed before the caller is told that all is well."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs))
    workflow.append_event("opened")

    def before(name: str, _: object) -> None:
        if name == "write_at":
            fs.before = None
            clean(tmp_path)

    fs.before = before
    with pytest.raises(StoreError, match="was removed"):
        workflow.append_event("written without the lock")
    with pytest.raises(StoreError, match=r"dead in this process.*was removed"):
        workflow.append_event("refused")


def test_dead_process_leaves_a_certificate_as_long_as_the_record_names_it(tmp_path: Path) -> None:
    """Its file is renamed by the next process, and removed when the step that it ran is another's."""
    killed(HOLD, tmp_path, "running")
    workflow = Workflow("w", dir=tmp_path)
    workflow.append_event("opened")
    assert sorted(path.suffix for path in runs(tmp_path).iterdir()) == [".dead", ".flock"]
    assert workflow.run_step("step", lambda: "mine") == "mine"
    workflow.close()
    assert not (tmp_path / "locks").exists() or list(runs(tmp_path).iterdir()) == []


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on another machine than its children."""
    monkeypatch.setattr(liveness, "_whereabouts", lambda: ("1" * 8, "1" * 8, "1" * 8))


def test_process_that_cannot_be_looked_for_is_not_taken_for_dead(tmp_path: Path, elsewhere: None) -> None:
    """From another machine a missing file is an error with advice, which works. An unlocked file proves a death."""
    killed(HOLD, tmp_path, "running")
    workflow = Workflow("w", dir=tmp_path)
    workflow.append_event("opened")
    certificate = only(runs(tmp_path).glob("*.dead"))
    certificate.unlink()
    with pytest.raises(StoreError, match=r"was removed.*make the file .*\.dead") as caught:
        workflow.run_step("step", lambda: "mine")
    with pytest.raises(StoreError, match="was removed"):
        workflow.reset("step")
    assert str(certificate) in str(caught.value)
    certificate.touch()
    assert workflow.run_step("step", lambda: "mine") == "mine"
    workflow.close()


def test_wait_for_a_run_that_cannot_be_looked_for_ends(tmp_path: Path, elsewhere: None) -> None:
    """A call that waits for such a run raises, since it might wait for ever."""
    killed("with workflow:\n    say('in'); hear()\n", tmp_path, "in")
    only(runs(tmp_path).iterdir()).unlink()
    with pytest.raises(StoreError, match="was removed"), Workflow("w", dir=tmp_path, on_busy="wait"):
        pytest.fail("it was entered")


def test_reused_process_number_is_another_process(tmp_path: Path) -> None:
    """A process that started after the one on record had opened the workflow is not taken for that one."""
    fs = FileSystem()
    files = LivenessFiles(fs, str(tmp_path))
    name, _, since, *place = files.create().split("-")
    with run_python("print(); input()") as process:
        process.line()
        later = str(int(since) + 3_600_000)
        assert files.is_alive("-".join(["0" * 16, str(process.pid), later, *place]))
        assert not files.is_alive("-".join(["0" * 16, str(process.pid), str(int(since) - 3_600_000), *place]))
    assert not files.is_alive("-".join(["0" * 16, str(process.pid), later, *place]))
    assert not files.is_alive("-".join([name, str(os.getpid()), since, "1" * 8, *place[1:]]))  # of an earlier boot
    files.remove()


# Mutexes


def mutex_file(root: Path) -> Path:
    return only((root / "locks").glob("*/mutex/*.lock"))


@pytest.mark.parametrize("scope", ["workflow", "store"])
def test_held_mutex_is_given_its_file_back(tmp_path: Path, scope: Any) -> None:
    """The file of a mutex that is held is made again within a second, and no other process gets the mutex."""
    workflow = Workflow("w", dir=tmp_path)
    with workflow.mutex("key", scope=scope):
        mutex_file(tmp_path).unlink()
        wait_until(lambda: list((tmp_path / "locks").glob("*/mutex/*.lock")), deadline=5)
        code = f"with workflow.mutex('key', scope={scope!r}):\n    say('entered')\n"
        with child(code, tmp_path) as process:
            assert_waits(process)
            process.kill()
    with workflow.mutex("key", scope=scope, timeout=0):
        pass
    workflow.close()


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread looks at the files of mutexes: as if another process were faster."""
    watch = mutex_module._Watch()
    watch._has_thread = True
    monkeypatch.setattr(mutex_module, "_watch", watch)


def test_two_holders_are_told(tmp_path: Path, unwatched: None) -> None:
    """A mutex that another process took after its file was removed raises when its first holder leaves it."""
    workflow = Workflow("w", dir=tmp_path)
    with child("with workflow.mutex('key'):\n    say('entered'); hear()\n", tmp_path) as process:
        with pytest.raises(StoreError, match="another process has used it"), workflow.mutex("key"):
            mutex_file(tmp_path).unlink()
            assert process.line() == "entered"
        taken = in_thread(lambda: workflow.mutex("key").__enter__())
        assert_waits(taken)
        process.say()
        taken.result(20)
        process.end()


def test_lost_mutex_is_not_handed_on(tmp_path: Path, unwatched: None) -> None:
    """The next waiter of the process that lost a mutex waits for the other process, and is told nothing."""
    workflow = Workflow("w", dir=tmp_path)
    with child("with workflow.mutex('key'):\n    say('entered'); hear()\n", tmp_path) as process:

        def enter() -> str:
            with workflow.mutex("key"):
                return "mine"

        with pytest.raises(StoreError), workflow.mutex("key"):
            waiter = in_thread(enter)
            mutex_file(tmp_path).unlink()
            assert process.line() == "entered"
        assert_waits(waiter)
        process.say()
        assert waiter.result(20) == "mine"
        process.end()
    workflow.close()


def test_loss_of_a_mutex_does_not_hide_an_error(tmp_path: Path, unwatched: None) -> None:
    """An error that leaves the block keeps its type; the loss is a note on it."""
    workflow = Workflow("w", dir=tmp_path)
    with child("with workflow.mutex('key'):\n    say('entered')\n", tmp_path) as process:
        with pytest.raises(ValueError, match="mine") as caught, workflow.mutex("key"):
            mutex_file(tmp_path).unlink()
            assert process.line() == "entered"
            raise ValueError("mine")
        assert "another process has used it" in "".join(caught.value.__notes__)
    workflow.close()


def test_no_thread_is_left_when_no_mutex_is_held(tmp_path: Path) -> None:
    """A program that has held a mutex has no thread of this package a second later."""
    code = (
        "import sys, threading\nfrom support import wait_until\nfrom iso_orchestrator import Workflow\n"
        "with Workflow('w', dir=sys.argv[1]).mutex('key'):\n    assert threading.active_count() == 2\n"
        "wait_until(lambda: threading.active_count() == 1, deadline=5)\n"
    )
    with run_python(code, tmp_path) as process:
        process.end()
