"""Where workflows are kept if neither `dir` nor `store` says so: what the environment says."""

from __future__ import annotations

import os
import subprocess
import sys
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


SCRIPT = """
import logging, os
logging.basicConfig()
from iso_orchestrator import Workflow
with Workflow("batch", **eval(os.environ.get("OPTIONS", "{}"))):
    pass
"""


def warnings_of(script: Path, folder: Path, **environment: str) -> str:
    """Run *script* in *folder*; what it wrote to standard error."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        check=True,
        text=True,
    )
    return ran.stderr


@pytest.mark.slow
def test_a_workflow_that_begins_anew_in_another_folder_warns(tmp_path: Path) -> None:
    """If the default root is one beside the script, or in a parent folder, one that begins in another folder warns."""
    home = tmp_path / "home"
    home.mkdir()
    script = home / "script.py"
    script.write_text(SCRIPT)
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text(SCRIPT)
    assert warnings_of(script, home) == ""
    old = home / ".iso-orchestrator"
    for place, path in ((tmp_path / "away", script), (home / "a" / "b", elsewhere)):
        said = warnings_of(path, place)
        assert said.count("begins anew") == 1
        assert f"begins anew in {place}/.iso-orchestrator, and a record of it is in {old}: " in said
        assert f"run in {home}, or set ISO_ORCHESTRATOR_DIR={old}" in said
        assert warnings_of(path, place) == ""  # the record is there now
    assert warnings_of(elsewhere, tmp_path / "beside") == ""
    for number, said_so in enumerate(
        (
            {"OPTIONS": "{'dir': '.iso-orchestrator'}"},
            {"OPTIONS": "{'store': 'memory://here'}"},
            {"ISO_ORCHESTRATOR_DIR": "mine"},
            {"ISO_ORCHESTRATOR_STORE": "memory://here"},
        )
    ):
        assert warnings_of(script, tmp_path / f"given {number}", **said_so) == ""
