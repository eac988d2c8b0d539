"""`iso-orchestrator watch`: it waits for the end of a run, and its exit code tells how that was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import DEADLINE, Child, Run, run_python
from support_processes import child

from iso_orchestrator import Workflow

BATCH = """
def item(number):
    def body():
        say("go")
        if hear() == "fail":
            raise OSError(f"no space for {number}")
    return workflow.run_step(f"save:{number}", body)

with workflow:
    workflow.run_for_each([1, 2], item, stop_on_error=False, progress=False)
"""


@contextmanager
def watcher(root: Path, *options: str) -> Iterator[Child]:
    """Run `watch w` in a process of its own."""
    code = "import sys; from iso_orchestrator.views.cli import main; sys.exit(main(sys.argv[1:]))"
    with run_python(code, "watch", "--dir", root, "w", *options) as process:
        yield process


def code_of(process: Child) -> int:
    return process.process.wait(DEADLINE)


@pytest.mark.slow
def test_each_failure_and_the_end_have_a_line(tmp_path: Path) -> None:
    """`watch` says how far the batch is, at once when a step fails, and how it ended; the code is 10 after failures."""
    with child(BATCH, tmp_path) as runner:
        assert runner.line() == "go"
        with watcher(tmp_path) as watching:
            assert re.fullmatch(r"\d\d:\d\d:\d\d w item: 0 of 2 done, .* gone", watching.line())
            runner.say("fail")
            assert re.fullmatch(r"\d\d:\d\d:\d\d w item: 0 of 2 done, 1 failed, .* gone", watching.line())
            assert runner.line() == "go"
            runner.say("done")
            assert re.fullmatch(r"\d\d:\d\d:\d\d w completed, 1 failed: 1 of 2 done, [0-9.]+ m?s", watching.line())
            assert code_of(watching) == 10
        runner.end()


@pytest.mark.slow
def test_a_run_that_dies_is_told(tmp_path: Path) -> None:
    """When the process is killed `watch` ends with 11; while it lives `--timeout` ends it with 12."""
    with child(BATCH, tmp_path) as runner:
        assert runner.line() == "go"
        with watcher(tmp_path, "--timeout", "0.1") as watching:
            assert "0 of 2 done" in watching.line()
            assert code_of(watching) == 12
        with watcher(tmp_path) as watching:
            assert "0 of 2 done" in watching.line()
            runner.kill()
            assert " w interrupted: 0 of " in watching.line()
            assert code_of(watching) == 11


def test_what_has_ended_is_said_at_once(workflow: Workflow, run: Run) -> None:
    """A workflow that has completed ends `watch` with 0; an unknown one with 1 and one line."""
    with workflow:
        workflow.run_step("save", lambda: 1)
    code, out, err = run("watch", "w")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"\d\d:\d\d:\d\d w completed: 1 of 1 done, [0-9.]+ m?s\n", out)
    assert run("watch")[0] == 0
    code, out, err = run("watch", "nobody")
    assert (code, out, err.count("\n")) == (1, "", 1)
