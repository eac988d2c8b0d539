"""`completion`: real shells complete commands, options, workflows and steps."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iso_orchestrator import Workflow
from iso_orchestrator.views.cli import main
from iso_orchestrator.views.completion import SCRIPTS


@pytest.fixture
def complete(tmp_path, capsys, monkeypatch):
    """The words that fit behind those words."""
    for name in ("batch one", "nightly", "\x1b[31mred"):
        with Workflow(name, dir=tmp_path) as workflow:
            workflow.run_step("review:shop", lambda: 1)
    monkeypatch.setenv("ISO_ORCHESTRATOR_DIR", str(tmp_path))

    def complete(*words: str) -> list[str]:
        assert main(["__complete", "--", *words]) == 0
        return capsys.readouterr().out.splitlines()

    return complete


def test_commands_and_options_are_completed(complete):
    assert complete("sh") == ["show"]
    assert "--version" in complete("--")
    assert complete("show", "--ev") == ["--events"]
    assert complete("export", "nightly", "--format", "c") == ["chrome-trace", "csv"]
    assert complete("completion", "") == sorted(SCRIPTS)


def test_workflows_and_steps_are_completed_but_not_those_that_would_drive_the_terminal(complete):
    assert complete("show", "") == ["batch one", "nightly"]
    assert complete("show", "--json", "nightly", "re") == ["review:shop"]
    assert complete("show", "--events", "3", "ni") == ["nightly"]
    assert complete("logs", "nightly", "review:shop", "") == []
    assert complete("why", "missing", "") == []


def test_the_hidden_command_is_in_no_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "__complete" not in capsys.readouterr().out


def _program(folder: Path) -> None:
    path = folder / "iso-orchestrator"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m iso_orchestrator "$@"\n')
    path.chmod(0o755)


ASK = {
    "bash": """
        eval "$(iso-orchestrator completion bash)"
        COMP_WORDS=(iso-orchestrator show "ba"); COMP_CWORD=2
        _iso_orchestrator
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { :; }
        compadd() { printf '%s\\n' "${(@P)2}"; }
        eval "$(iso-orchestrator completion zsh)"
        words=(iso-orchestrator show ba); CURRENT=3
        _iso_orchestrator
    """,
    "fish": """
        iso-orchestrator completion fish | source
        complete -C 'iso-orchestrator show ba'
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", ASK)
@pytest.mark.usefixtures("complete")
def test_a_real_shell_asks_for_the_words(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    _program(tmp_path)
    repository = str(Path(__file__).parents[2])
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": repository, "HOME": str(tmp_path)}
    done = subprocess.run([shell, "-c", ASK[shell]], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.replace("\\", "").splitlines() == ["batch one"]
