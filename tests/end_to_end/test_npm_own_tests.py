"""The npm package's own tests, said against this library."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from iso_orchestrator import (
    LeaseConflictError,
    LeaseStatus,
    StepStatus,
    Workflow,
    WorkflowStatus,
    current_step,
    lease_status,
    open_workflow,
    read_workflow_record,
    run_workflow,
)

pytestmark = pytest.mark.slow

NOON = datetime(2026, 5, 14, 12, 0, 0, tzinfo=UTC)


def test_a_step_runs_once_however_often_it_is_called_and_the_workflow_run(tmp_path: Path) -> None:
    """A completed step is not run again, neither by a second call nor by a second run."""
    calls: list[str] = []

    def cleanup(mark: str) -> dict[str, bool]:
        calls.append(mark)
        return {"cleaned": mark == "first"}

    def job(workflow: Workflow) -> Any:
        first = workflow.run_step("cleanup", cleanup, "first")
        again = workflow.run_step("cleanup", cleanup, "again")
        assert (first, again) == ({"cleaned": True}, {"cleaned": True})
        workflow.update_state(lambda state: {"applied": state["applied"] + 1})
        return first

    done = run_workflow("clean-once", job, dir=tmp_path, initial_state={"applied": 0})
    assert done.value == {"cleaned": True}
    assert done.record.state == {"applied": 1}
    assert done.record.steps["cleanup"].status is StepStatus.COMPLETED

    later = run_workflow(
        "clean-once",
        lambda workflow: workflow.run_step("cleanup", cleanup, "later"),
        dir=tmp_path,
        initial_state={"applied": 999},
    )
    assert later.value == {"cleaned": True}
    assert calls == ["first"]

    record = read_workflow_record("clean-once", dir=tmp_path)
    assert record.state == {"applied": 1}
    assert record.status is WorkflowStatus.COMPLETED
    assert record.steps["cleanup"].attempts == 1


def test_a_step_is_retried_and_its_last_result_is_kept(tmp_path: Path) -> None:
    """A step that fails twice and then succeeds is completed, with three attempts and the third's result."""
    attempts: list[int] = []

    def submit() -> dict[str, Any]:
        attempt = current_step().attempt
        attempts.append(attempt)
        if attempt < 3:
            raise ConnectionError(f"attempt {attempt} failed")
        return {"attempt": attempt, "status": "ok"}

    def job(workflow: Workflow) -> Any:
        result = workflow.run_step("submit", submit, retry=3)
        workflow.update_state({"ok": True})
        return result

    done = run_workflow("retry-me", job, dir=tmp_path, initial_state={"ok": False})

    assert attempts == [1, 2, 3]
    step = done.record.steps["submit"]
    assert (step.status, step.attempts, step.error) == (StepStatus.COMPLETED, 3, None)
    assert step.result == done.value == {"attempt": 3, "status": "ok"}
    assert done.record.state == {"ok": True}


def test_items_of_one_key_take_turns_while_other_keys_run_beside_them(tmp_path: Path) -> None:
    """Items of one key never overlap, those of other keys do, and results keep the items' order."""
    workflow = open_workflow("three-keys", dir=tmp_path, initial_state={"seen": 0})
    items = [("a1", "alpha"), ("a2", "alpha"), ("b1", "beta"), ("b2", "beta"), ("c1", "gamma")]
    three_at_once = threading.Barrier(3)
    guard = threading.Lock()
    running: list[str] = []
    most = 0
    overlaps: list[str] = []

    def visit(item: tuple[str, str]) -> str:
        nonlocal most
        name, key = item
        with guard:
            if key in running:
                overlaps.append(name)
            running.append(key)
            most = max(most, len(running))
        if name.endswith("1"):
            three_at_once.wait(timeout=10)
        with guard:
            running.remove(key)
        return name

    summary = workflow.run_for_each(items, visit, max_parallel=3, mutex_key=lambda item: item[1])
    workflow.close()

    assert overlaps == []
    assert most == 3
    assert (summary.fulfilled, summary.rejected) == (5, 0)
    assert [result.value for result in summary.results] == ["a1", "a2", "b1", "b2", "c1"]


def test_the_last_heartbeat_of_a_key_is_in_the_record(tmp_path: Path) -> None:
    """A heartbeat has its key, its time and its detail, for whoever reads the record."""
    workflow = open_workflow("heartbeats", dir=tmp_path, initial_state={"ok": True}, now=lambda: NOON)

    beat = workflow.heartbeat("robot:1", {"phase": "loading"})

    assert (beat.key, beat.at, beat.detail) == ("robot:1", NOON, {"phase": "loading"})
    assert read_workflow_record("heartbeats", dir=tmp_path).heartbeats["robot:1"] == beat
    workflow.close()


def test_a_lease_is_acquired_renewed_refused_taken_over_and_released(tmp_path: Path) -> None:
    """A lease is its holder's until it runs out or is released, and anybody's after that."""
    now = NOON
    workflow = open_workflow("leases", dir=tmp_path, initial_state={"ok": True}, now=lambda: now)
    key = "slot:7"

    acquired = workflow.touch_lease(key, holder="alpha", ttl=30, detail={"stage": "opened"})
    assert (acquired.acquired_at, acquired.heartbeat_at) == (NOON, NOON)
    assert acquired.expires_at == NOON + timedelta(seconds=30)
    assert lease_status(acquired, now) is LeaseStatus.ACTIVE

    now = NOON + timedelta(seconds=10)
    renewed = workflow.touch_lease(key, holder="alpha", ttl=30, detail={"stage": "half filled in"})
    assert (renewed.acquired_at, renewed.heartbeat_at) == (NOON, now)
    assert renewed.expires_at == NOON + timedelta(seconds=40)
    assert renewed.detail == {"stage": "half filled in"}

    with pytest.raises(LeaseConflictError) as refused:
        workflow.touch_lease(key, holder="beta", ttl=30)
    assert (refused.value.lease_key, refused.value.current_holder) == (key, "alpha")

    now = NOON + timedelta(seconds=41)
    taken_over = workflow.touch_lease(key, holder="beta", ttl=15)
    assert (taken_over.holder, taken_over.acquired_at) == ("beta", now)
    assert lease_status(taken_over, now) is LeaseStatus.ACTIVE

    now = NOON + timedelta(seconds=42)
    released = workflow.release_lease(key, "beta")
    assert released is not None
    assert released.released_at == now
    assert lease_status(released, now) is LeaseStatus.RELEASED

    kept = read_workflow_record("leases", dir=tmp_path).leases[key]
    assert (kept.holder, kept.released_at) == ("beta", now)
    workflow.close()
