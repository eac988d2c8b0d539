"""What the package has for its users' tests, most of which these tests use themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import DEADLINE, T0, tree

from iso_orchestrator import (
    FileStore,
    MemoryStore,
    Workflow,
    WorkflowNotFoundError,
    WorkflowUsageError,
    delete_workflow,
    list_workflows,
    read_workflow_record,
)
from iso_orchestrator.testing import FakeClock, crash_here, in_memory
from iso_orchestrator.views.cli import main


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Records in memory


@pytest.mark.parametrize("store", ["dir", "url", "files", "memory", "memory url", "default"])
def test_a_workflow_that_is_open_already_begins_anew_and_goes_back(tmp_path: Path, store: str) -> None:
    """Nothing reaches the disk inside of the block, and after it the earlier record goes on."""
    options = {
        "dir": {"dir": "root"},
        "url": {"store": f"file://{tmp_path}/root"},
        "files": {"store": FileStore(tmp_path / "root")},
        "memory": {"store": MemoryStore()},
        "memory url": {"store": "memory://test_testing"},
        "default": {},
    }[store]
    workflow = Workflow("w", initial_state=[], **options)  # type: ignore[arg-type]
    calls: list[int] = []

    @workflow.step
    def count() -> int:
        calls.append(len(calls))
        return len(calls)

    assert count() == 1
    for expected in (2, 3):
        with in_memory():
            assert (workflow.state, list(workflow.record.steps)) == ([], [])
            before = set(tree(tmp_path))
            with workflow:
                assert [count(), count()] == [expected, expected]
                workflow.update_state([expected])
            assert workflow.state == [expected]
            assert workflow.record_path == "memory:w"
            with workflow.mutex("key"), workflow.lease("lease"):
                pass
            for _ in range(2):  # closing once does not drop the record
                workflow.close()
                assert count() == expected
        assert set(tree(tmp_path)) <= before  # less, where the open record was closed
    assert (count(), workflow.state, calls) == (1, [], [0, 1, 2])
    workflow.close()


def test_the_functions_and_the_command_line_see_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What reads, lists and deletes by id, folder or URL finds the record in memory, and in its folder alone."""
    with in_memory():
        with Workflow("batch", dir="one", initial_state=1):
            pass
        assert read_workflow_record("batch", dir="one").state == 1
        assert [found.workflow_id for found in list_workflows("one")] == ["batch"]
        assert list_workflows("other") == list_workflows() == []
        assert main(["list", "--dir", "one"]) == 0
        assert "batch" in capsys.readouterr().out
        with Workflow("batch", dir="one") as again:
            assert again.state == 1
        delete_workflow("batch", dir="one")
        with pytest.raises(WorkflowNotFoundError):
            read_workflow_record("batch", dir="one")
    assert tree(tmp_path) == {}


def test_worker_threads_are_in_memory_too(tmp_path: Path) -> None:
    """Submitted steps and items use the records in memory; a block inside of another has its own."""
    with in_memory():
        workflow = Workflow("w")
        double = workflow.step(name="{n}")(_double)
        with workflow:
            assert workflow.run_for_each([1, 2, 3], double, max_parallel=3, progress=False).values() == [2, 4, 6]
            assert double.submit(4).result(DEADLINE) == 8
        with in_memory():
            assert workflow.record.steps == {}
        assert sorted(workflow.record.steps) == ["1", "2", "3", "4"]
    assert tree(tmp_path) == {}


def _double(n: int) -> int:
    return 2 * n


def test_the_output_of_commands_is_dropped_with_the_records(tmp_path: Path) -> None:
    """It is logged in a temporary folder, and read as ever."""
    with in_memory():
        workflow = Workflow("w")
        result = workflow.command(name="echo")(lambda: ["echo", "hello"])()
        assert (result.stdout, Path(result.log_path).read_text()) == ("hello\n", "hello\n")
    assert not os.path.exists(result.log_path)
    assert tree(tmp_path) == {}


def test_records_are_not_replaced_inside_of_a_run(tmp_path: Path) -> None:
    """A run has its record already."""
    with Workflow("w"), pytest.raises(WorkflowUsageError, match=r"in_memory\(\) inside of a run of workflow 'w'"):
        in_memory().__enter__()


# A clock


def test_a_clock_stands_still_until_it_is_moved(tmp_path: Path) -> None:
    """By seconds, by a `timedelta`, back, or to a time; a naive time is refused."""
    clock = FakeClock(T0)
    workflow = Workflow("w", dir=tmp_path, now=clock)
    assert clock() == clock() == T0
    clock.advance(1.5)
    clock.advance(timedelta(minutes=1))
    clock.advance(-1)
    assert workflow.append_event("now").at == T0 + timedelta(seconds=60.5)
    clock.set(T0)
    assert workflow.append_event("then").at == T0
    for naive in (lambda: clock.set(datetime(2026, 1, 1)), lambda: FakeClock(datetime(2026, 1, 1))):
        with pytest.raises(ValueError, match="naive"):
            naive()
    assert FakeClock()() == datetime(2026, 1, 1, tzinfo=UTC)
    workflow.close()


# Crashes

BATCH = """
    from iso_orchestrator import Workflow
    from iso_orchestrator.testing import crash_here

    workflow = Workflow("batch")


    @workflow.step
    def pay(bill):
        print("pays", bill, flush=True)
        crash_here("paid")
        return bill


    with workflow:
        try:
            print(pay(1), pay(2), flush=True)
            crash_here("all paid")
        finally:
            print("cleaned up")
"""


def test_a_process_is_killed_at_a_named_place_alone(tmp_path: Path) -> None:
    """Elsewhere it goes on, and no `finally` runs where it is killed."""
    (tmp_path / "batch.py").write_text(textwrap.dedent(BATCH))

    def run(place: str) -> tuple[int, str]:
        env = {**os.environ, "ISO_ORCHESTRATOR_CRASH_AT": place, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "batch.py"], env=env, capture_output=True, text=True, timeout=DEADLINE)
        return done.returncode, done.stdout

    assert run("paid") == (-signal.SIGKILL, "pays 1\n")
    assert run("all paid") == (-signal.SIGKILL, "pays 1\npays 2\n1 2\n")
    assert run("") == (0, "1 2\ncleaned up\n")


def test_a_place_that_is_not_asked_for_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call may stay in a program."""
    monkeypatch.delenv("ISO_ORCHESTRATOR_CRASH_AT", raising=False)
    crash_here("paid")
    monkeypatch.setenv("ISO_ORCHESTRATOR_CRASH_AT", "unpaid")
    crash_here("paid")
