"""`why`: what became of a step, what the next run does with it, and what holds it back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import wait_until
from support_processes import child, killed

from iso_orchestrator import Limited, Retry, Workflow
from iso_orchestrator.views.cli import main


@pytest.fixture
def why(tmp_path, capsys, monkeypatch):
    """What `why` prints of a step, as one line of words."""
    monkeypatch.setenv("COLUMNS", "200")

    def why(step: str) -> str:
        assert main(["why", "w", step, "--dir", str(tmp_path)]) == 0
        return " ".join(capsys.readouterr().out.split())

    return why


@pytest.fixture
def workflow(tmp_path):
    with Workflow("w", dir=tmp_path) as workflow:
        yield workflow


def _fails() -> None:
    raise OSError("no space")


def test_a_completed_step_does_not_run_again_and_it_says_what_would_change_that(workflow, why):
    workflow.run_step("save", lambda: 1, idempotency_key="k1", version=2)
    said = why("save")
    assert said.startswith("✓ completed in attempt 1 at ")
    assert "does not run it, unless its name, its idempotency key (k1) or version (2) changes" in said
    assert "made by code 3." in said


def test_another_version_and_another_key_are_told_as_what_made_it_run_again(workflow, why):
    for key, version in (("a", None), ("a", 2), ("b", 2)):
        workflow.run_step("save", lambda: 1, idempotency_key=key, version=version)
    said = why("save")
    assert "(its version was none, is 2)" in said
    assert "(its idempotency key was a, is b)" in said


def test_a_reset_and_a_result_that_was_too_old_are_told_as_what_made_it_run_again(tmp_path, why):
    with Workflow("w", dir=tmp_path) as workflow:
        workflow.run_step("save", lambda: 1)
        workflow.reset("save")
        assert why("save").startswith("✓ was reset, and has not run since next run runs it as a new step")
        workflow.run_step("save", lambda: 1)
        completed = workflow.record.steps["save"].updated_at
        wait_until(lambda: datetime.now(UTC) - completed > timedelta(milliseconds=2))  # times on record are in ms
        workflow.run_step("save", lambda: 1, max_age=timedelta(microseconds=1))
    assert "1 completed" in (said := why("save"))
    assert "(it was reset)" in said
    assert '(its result was too old, or on_change="rerun")' in said


def test_a_failed_step_runs_again_with_the_number_of_its_next_attempt(workflow, why):
    with pytest.raises(OSError, match="no space"):
        workflow.run_step("save", _fails, retry=2)
    said = why("save")
    assert said.startswith("✕ failed in attempt 2 of 2 at ")
    assert "OSError: no space next run runs again, as attempt 3: failed steps are not kept" in said
    assert "held back by nothing" in said


def test_an_interrupted_step_is_taken_over_or_refused(tmp_path, why):
    killed(
        """
        with workflow:
            workflow.run_step("done", lambda: 1)
            threading.Thread(
                target=lambda: workflow.run_step("once", wait_for_ctrl_c, if_interrupted="fail"), daemon=True
            ).start()
            workflow.run_step("save", lambda: (say("ready"), wait_for_ctrl_c()))
        """,
        tmp_path,
        "ready",
    )
    assert "next run takes it over, as attempt 2" in why("save")
    Workflow("w", dir=tmp_path).run_step("save", lambda: 1)
    assert "1 interrupted" in (said := why("save"))
    assert "(taken over from a process that died)" in said


def test_a_step_that_must_not_run_twice_is_refused_by_the_next_run(tmp_path, why):
    killed(
        'workflow.run_step("once", lambda: (say("ready"), wait_for_ctrl_c()), if_interrupted="fail")',
        tmp_path,
        "ready",
    )
    assert "next run is refused: if_interrupted=fail" in why("once")


def test_a_running_step_names_its_process(tmp_path, why):
    with child('with workflow: workflow.run_step("save", lambda: (say("ready"), hear()))', tmp_path) as process:
        assert process.line() == "ready"
        said = why("save")
        assert said.startswith("● running, attempt 1 since ")
        assert f"in pid {process.pid}" in said
        process.say()
        process.end()


def test_a_limit_in_force_is_told_with_its_end(tmp_path, why):
    code = """
        from datetime import UTC, datetime, timedelta
        def limited():
            raise Limited(datetime.now(UTC) + timedelta(hours=1), key="api")
        workflow.run_step("save", limited, limit_key="api")
    """
    with child(code, tmp_path):
        wait_until(lambda: Workflow("w", dir=tmp_path).record.steps.get("save"))
        said = wait_until(lambda: text if (text := why("save")).startswith("◔") else None)
        assert "waits for the limit of api until " in said
        assert "next run goes on by itself" in said
    assert "by the limit of api until " in why("save")


def test_a_key_that_another_step_has_is_told(tmp_path, why):
    code = """
        @workflow.for_each(max_parallel=2, mutex_key="shop", stop_on_error=False)
        @workflow.step(name="step:{n}")
        def work(n):
            if n == 1:
                raise OSError("no space")
            say("ready")
            hear()
        with workflow:
            work([1, 2])
    """
    with child(code, tmp_path) as process:
        assert process.line() == "ready"
        assert "by key shop, which step 'step:2' has" in why("step:1")
        process.say()
        process.end()
    assert "by nothing: key shop is free; no process has a run now" in why("step:1")


def test_a_name_that_is_not_on_record_is_told_with_names_like_it(workflow, tmp_path, capsys):
    workflow.run_step("summarize:a", lambda: 1)
    assert main(["why", "w", "summarise:a", "--dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "step 'summarise:a' is not on record: a call with that name runs" in said
    assert "names like it: summarize:a" in said


def test_an_attempt_that_met_a_limit_is_told_apart(workflow, why):
    limits = iter([Limited(datetime.now(UTC) + timedelta(milliseconds=50))])

    def work() -> int:
        for limit in limits:
            raise limit
        return 1

    workflow.run_step("save", work, retry=Retry(2))
    assert "1 met a usage limit" in (said := why("save"))
    assert "limit in between" in said


def test_it_needs_a_step(workflow, tmp_path: Path, capsys):
    workflow.run_step("save", lambda: 1)
    assert main(["why", "w", "--dir", str(tmp_path)]) == 1
    assert "why needs a step" in capsys.readouterr().err
