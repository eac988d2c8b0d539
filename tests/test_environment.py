"""Where workflows are kept if neither `dir` nor `store` says so: what the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from iso_orchestrator import StoreError, Workflow, list_workflows, read_workflow_record
from iso_orchestrator.views.cli import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ISO_ORCHESTRATOR_DIR", raising=False)
    monkeypatch.delenv("ISO_ORCHESTRATOR_STORE", raising=False)


def test_the_folder_of_the_environment_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ISO_ORCHESTRATOR_DIR` is the default of `dir`, also for functions and the command line; arguments count more."""
    monkeypatch.setenv("ISO_ORCHESTRATOR_DIR", str(tmp_path / "shared"))
    with Workflow("batch") as workflow:
        workflow.run_step("add", lambda: 3)
    assert workflow.dir == str(tmp_path / "shared")
    assert [summary.workflow_id for summary in list_workflows()] == ["batch"]
    assert read_workflow_record("batch").steps["add"].result == 3
    assert main(["list"]) == 0
    assert "batch" in capsys.readouterr().out
    assert Workflow("batch", dir="own").dir == str(tmp_path / "own")
    assert list_workflows(dir="own") == []


def test_the_store_of_the_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ISO_ORCHESTRATOR_STORE` is the URL of the default store; an argument, `dir` as well, counts more."""
    monkeypatch.setenv("ISO_ORCHESTRATOR_STORE", f"file://{tmp_path}/there")
    with Workflow("batch"):
        pass
    assert (tmp_path / "there").is_dir()
    assert [summary.workflow_id for summary in list_workflows()] == ["batch"]
    assert list_workflows(dir=".iso-orchestrator") == []
    assert list_workflows(store="memory://environment") == []


@pytest.mark.parametrize("url", ["nosuch://there", "file://["])
def test_an_error_of_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A URL that no store serves is not in the program, so the error says where it is."""
    monkeypatch.setenv("ISO_ORCHESTRATOR_STORE", url)
    with pytest.raises(StoreError, match="ISO_ORCHESTRATOR_STORE"):
        Workflow("batch")


def test_without_both_the_folder_is_here(tmp_path: Path) -> None:
    """The default is `.iso-orchestrator` in the current folder."""
    assert Workflow("batch").dir == str(tmp_path / ".iso-orchestrator")
