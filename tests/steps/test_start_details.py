"""What the record tells of an attempt besides its outcome: where it belongs, what is allowed, when the next one is."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import WatchedFS
from support_processes import child

from iso_orchestrator import FileStore, MemoryStore, Retry, StepTimeoutError, Workflow, read_workflow_record


def details(workflow: Workflow, type_: str) -> list[Any]:
    return [event.detail for event in workflow.record.events if event.type == type_]


def without_names(detail: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in detail.items() if key not in ("step", "attempt", "idempotencyKey", "run")}


def plain() -> int:
    return 1


def test_a_plain_start_tells_nothing_that_is_the_default(workflow: Workflow) -> None:
    """It has its run, and the process where there is no run."""
    step = workflow.step(plain)
    with workflow:
        step()
    workflow.reset("plain")
    step()
    first, second = details(workflow, "step.started")
    assert first == {"step": "plain", "attempt": 1, "idempotencyKey": None, "run": 1}
    assert second == {"step": "plain", "attempt": 1, "idempotencyKey": None, "pid": os.getpid()}
    assert details(workflow, "steps.reset") == [{"steps": ["plain"], "pid": os.getpid()}]


def test_a_start_tells_the_options_that_are_not_the_default(workflow: Workflow) -> None:
    """Attempts allowed, what to do after a death, the time limit, the version; and the function where names differ."""
    with workflow:
        workflow.step(name="pay:1", retry=3, if_interrupted="fail", timeout=60, version="2")(plain)()
        workflow.step(name="plain:1")(plain)()
        workflow.run_step("lambda", lambda: 1)
        workflow.command(name="true", timeout=9.5)(command)()
    found = [without_names(detail) for detail in details(workflow, "step.started")]
    assert found == [
        {"of": 3, "ifInterrupted": "fail", "timeout": 60, "version": "2", "fn": "plain"},
        {},
        {},
        {"timeout": 9.5, "fn": "command"},
    ]
    (begun,) = details(workflow, "command.begun")
    assert (begun["step"], begun["attempt"]) == ("true", 1)
    assert Path(begun["log"]).exists()


def command() -> list[str]:
    return ["true"]


def test_a_nested_step_names_its_parent(workflow: Workflow) -> None:
    """It is the innermost step around the call; a step after it has none."""

    def outer() -> int:
        return workflow.run_step("inner", lambda: workflow.run_step("innermost", plain))

    with workflow:
        workflow.run_step("outer", outer)
        workflow.run_step("after", plain)
    parents = {detail["step"]: detail.get("parent") for detail in details(workflow, "step.started")}
    assert parents == {"outer": None, "inner": "outer", "innermost": "inner", "after": None}


def test_an_item_is_named_by_its_step_and_by_what_is_nested(workflow: Workflow) -> None:
    """A step of an item, and one in the body of that, have the batch and the index; a submitted one has none."""

    @workflow.step(name="s{n}")
    def work(n: int) -> int:
        return workflow.run_step(f"nested {n}", plain)

    with workflow:
        workflow.run_for_each([7, 8], lambda n: work(n), max_parallel=2)
        work.submit(9).result()
    items = {detail["step"]: detail.get("item") for detail in details(workflow, "step.started")}
    (batch,) = [detail["batch"] for detail in details(workflow, "batch.started")]
    assert items == {
        "s7": [batch, 0],
        "nested 7": [batch, 0],
        "s8": [batch, 1],
        "nested 8": [batch, 1],
        "s9": None,
        "nested 9": None,
    }


def test_a_failure_tells_when_the_next_attempt_is_due(workflow: Workflow) -> None:
    """The last one, and one without a pause, do not."""
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ValueError("no")

    with workflow, pytest.raises(ValueError, match="no"):
        workflow.run_step("a", fail, retry=Retry(3, wait=lambda _: 0.05 if len(calls) == 1 else 0))
    first, second = details(workflow, "step.retrying")
    (event,) = [event for event in workflow.record.events if event.detail == first]
    assert (datetime.fromisoformat(first["retryAt"]) - event.at).total_seconds() == 0.05
    assert "retryAt" not in second
    assert "retryAt" not in details(workflow, "step.failed")[0]


def test_a_pause_without_end_is_recorded_too() -> None:
    """A retry policy may say any number of seconds, and a time on record has an end."""
    workflow = Workflow("w", store=MemoryStore())

    def fail() -> None:
        raise ValueError("no")

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt), workflow:
        patch.setattr("iso_orchestrator.steps.call.pause", interrupted)
        workflow.run_step("a", fail, retry=Retry(2, wait=lambda _: 1e12))
    assert details(workflow, "step.retrying")[0]["retryAt"].startswith("20")


def test_errors_of_the_library_have_a_short_code(workflow: Workflow) -> None:
    """It is in the record, so that nobody has to cut it out of a message."""
    with workflow:
        with pytest.raises(StepTimeoutError):
            workflow.run_step("slow", lambda: __import__("time").sleep(0.5), timeout=0.01)
        with pytest.raises(Exception, match="exit code 1"):
            workflow.command(name="false")(lambda: ["false"])()
        with pytest.raises(Exception, match="accept"):
            workflow.run_step("no", plain, accept=lambda _: False)
    codes = {detail["step"]: detail["error"]["code"] for detail in details(workflow, "step.failed")}
    assert codes == {"slow": "step.timeout", "false": "command.exit", "no": "step.rejected"}


def test_a_run_tells_how_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line is cut: 20 words of 200 characters; a trace counts if it is one."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "x" * 300, *map(str, range(50))])
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    workflow = Workflow("w", dir=tmp_path)
    with workflow:
        pass
    monkeypatch.setenv("TRACEPARENT", "\x1b[31m")
    with workflow:
        pass
    first, second = details(workflow, "workflow.running")
    assert (first["run"], first["pid"], first["cwd"]) == (1, os.getpid(), os.getcwd())
    assert first["argv"] == ["python", "x" * 200, *map(str, range(18))]
    assert first["traceparent"].endswith("-01")
    assert second["run"] == 2
    assert "traceparent" not in second


def test_a_death_is_dated_by_the_last_fact_before_it(tmp_path: Path) -> None:
    """The attempt that was running is interrupted, and the run has died, at the time of what was recorded last."""
    code = """
    with workflow:
        workflow.run_step("done", int)
        workflow.run_step("killed", lambda: (say("runs"), hear()))
    """
    with child(code, tmp_path) as process:
        process.line()
        process.kill()
    last = read_workflow_record("w", dir=tmp_path).updated_at
    with Workflow("w", dir=tmp_path) as workflow:
        pass
    (interrupted,) = details(workflow, "step.interrupted")
    assert (interrupted["step"], interrupted["attempt"]) == ("killed", 1)
    assert datetime.fromisoformat(interrupted["lastSeen"]) == last
    (failed,) = details(workflow, "workflow.failed")
    assert (failed["died"], failed["run"], datetime.fromisoformat(failed["lastSeen"])) == (True, 1, last)


def test_no_detail_costs_a_sync(tmp_path: Path) -> None:
    """1,000 steps of one caller are 1,000 syncs, besides those of the run; items with keys are as many."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs))
    with workflow:
        before = fs.count("sync")
        for number in range(1000):
            workflow.run_step(f"step {number}", plain)
        assert fs.count("sync") - before == 1000
        before = fs.count("sync")
        workflow.run_for_each(
            range(50), lambda n: workflow.run_step(f"item {n}", plain), mutex_key=lambda n: str(n % 5)
        )
        assert fs.count("sync") - before == 50
    size = next(tmp_path.glob("workflows/*.journal")).stat().st_size
    assert size > 0
