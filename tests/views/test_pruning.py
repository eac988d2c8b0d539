"""`prune`: lists what is old with its sizes, and removes it only if told to."""

from __future__ import annotations

import os

import pytest
from support import tree
from support_processes import child

from iso_orchestrator import Workflow, list_workflows
from iso_orchestrator.views.cli import main
from iso_orchestrator.views.pruning import size_text


@pytest.fixture
def prune(tmp_path, capsys):
    """Run `prune`; returns its output."""

    def prune(*args: str) -> str:
        assert main(["prune", *args, "--dir", str(tmp_path)]) == 0
        return capsys.readouterr().out

    return prune


@pytest.fixture
def three(tmp_path):
    """Two completed workflows, and one with a failed step."""
    for name in ("old", "new"):
        with Workflow(name, dir=tmp_path) as workflow:
            workflow.run_step("save", lambda: 1)
    failing = Workflow("failing", dir=tmp_path)
    with failing, pytest.raises(OSError, match="no space"):
        failing.run_step("save", _fails)


def _fails() -> None:
    raise OSError("no space")


def _ids(root) -> set[str]:
    return {found.workflow_id for found in list_workflows(root)}


@pytest.mark.usefixtures("three")
def test_nothing_is_removed_without_yes(tmp_path, prune):
    before = tree(tmp_path)
    out = prune("--older-than", "0s", "--failed")
    assert all(name in out for name in ("old", "new", "failing"))
    assert "would be freed; --yes removes them" in out
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("three")
def test_workflows_with_failures_go_only_if_told_to(tmp_path, prune):
    assert "failing" not in prune("--older-than", "0s", "--yes")
    assert _ids(tmp_path) == {"failing"}
    assert "--failed means 1 with failures or interrupted" in prune("--older-than", "0s")
    prune("--older-than", "0s", "--yes", "--failed")
    assert _ids(tmp_path) == set()


@pytest.mark.usefixtures("three")
def test_the_newest_stay_and_by_default_all_of_the_last_month(tmp_path, prune):
    assert "nothing to remove" in prune("--failed")
    prune("--keep", "2", "--yes", "--failed")
    assert _ids(tmp_path) == {"new", "failing"}
    prune("--keep", "0", "--yes", "--failed")
    assert _ids(tmp_path) == set()


def test_a_workflow_that_a_process_uses_stays(tmp_path, prune):
    with child('with workflow: workflow.run_step("save", lambda: (say("ready"), hear()))', tmp_path) as process:
        assert process.line() == "ready"
        assert "nothing to remove" in prune("--older-than", "0s", "--failed", "--yes")
        process.say()
        process.end()
    assert _ids(tmp_path) == {"w"}


@pytest.mark.slow
def test_logs_alone_are_removed_and_the_record_stays(tmp_path, prune):
    workflow = Workflow("w", dir=tmp_path)
    with workflow:
        workflow.command(name="say")(lambda: ["echo", "hello"])()
    logs = tmp_path / "logs" / os.path.basename(workflow.record_path).removesuffix(".json")
    assert any(logs.iterdir())
    out = prune("--older-than", "0s", "--logs", "--yes")
    assert "removed" in out
    assert not logs.exists() or not any(logs.iterdir())
    assert workflow.record.steps["say"].result["stdout"] == "hello\n"


def test_sizes_are_shown_in_the_unit_that_they_fill():
    assert [size_text(size) for size in (999, 999_999, 1_000_000, 10**9)] == ["1 kB", "1000 kB", "1.0 MB", "1.0 GB"]
