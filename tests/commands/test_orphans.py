"""Orphans: the processes that a killed runner leaves of a command, and what the next run does about them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import DEADLINE, run_python, wait_until
from support_commands import FOREVER, command_run, find, kill_all, shell, wait_for_file
from support_processes import in_thread

from iso_orchestrator import CommandLeftoverError
from iso_orchestrator.checks import unique_name
from iso_orchestrator.commands import output
from iso_orchestrator.commands.output import is_output_open
from iso_orchestrator.commands.process import await_orphans, end_orphans
from iso_orchestrator.system import processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the programs of these tests are for a POSIX system"),
]

RUNNER = """
import sys
from support_commands import *
command_run(Path(sys.argv[1]), shell(sys.argv[2]), tag=sys.argv[3], if_runner_dies="leave").run()
"""


@contextmanager
def killed_runner(folder: Path, code: str) -> Iterator[str]:
    """The tag of a command whose runner is killed as soon as there is a file "ready"."""
    tag = unique_name()
    try:
        with run_python(RUNNER, folder, code, tag) as child:
            wait_for_file(folder / "ready")
            child.kill()
        yield tag
    finally:
        kill_all(tag)


def log(folder: Path) -> str:
    return str(folder / "out.log")


def is_open(folder: Path) -> bool:
    return is_output_open(log(folder))


def test_orphans_are_ended_and_counted(tmp_path: Path) -> None:
    """Orphans are ended in any session and under any parent; where none is left, the count is 0."""
    code = f"(setsid sleep {FOREVER} &); echo > {tmp_path}/ready; sleep {FOREVER}"
    with killed_runner(tmp_path, code) as tag:
        wait_until(lambda: len(find(tag)) == 3)
        assert end_orphans(tag, log(tmp_path), grace=0.2) == 3
        assert end_orphans(tag, log(tmp_path), grace=0.2) == 0
        assert find(tag) == []


def test_orphans_are_waited_for(tmp_path: Path) -> None:
    """The wait ends when they have ended by themselves, or at its limit; their output is complete."""
    code = f"echo > {tmp_path}/ready; while ! [ -e {tmp_path}/go ]; do sleep 0.01; done; echo done"
    with killed_runner(tmp_path, code) as tag:
        assert not await_orphans(tag, log(tmp_path), timeout=0.1)
        (tmp_path / "go").touch()
        assert await_orphans(tag, log(tmp_path))
        assert Path(log(tmp_path)).read_text() == "done\n"
        assert await_orphans(tag, log(tmp_path), timeout=0)


def test_a_command_that_is_about_to_begin_is_not_missed(tmp_path: Path) -> None:
    """A process that was forked for it has its output open before it has the tag."""
    tag = unique_name()
    with Path(log(tmp_path)).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Stays between the fork and the program until it reads a line.
        code = f"read line; ISO_ORCHESTRATOR_MARK={tag} exec sleep {FOREVER}"
        process = subprocess.Popen(shell(code), stdin=subprocess.PIPE, stdout=file, start_new_session=True)
    assert process.stdin is not None
    try:
        ending = in_thread(end_orphans, tag, log(tmp_path), grace=0.2)
        assert not await_orphans(tag, log(tmp_path), timeout=0.1)
        assert not ending.done()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert ending.result(DEADLINE) == 1
        assert process.wait(DEADLINE) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_a_command_does_not_begin_while_an_unknown_process_has_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file that a descendant without the tag, whose parents have ended, has open."""
    monkeypatch.setattr(processes, "KILLING", 0.2)
    monkeypatch.setattr(output, "_HOLDING", 0.1)
    stranger_code = f"echo $$ > {tmp_path}/pid; exec sleep {FOREVER}"
    code = f"(setsid env -i PATH=\"$PATH\" sh -c '{stranger_code}' &) ; echo > {tmp_path}/ready; sleep {FOREVER}"
    with killed_runner(tmp_path, code) as tag:
        stranger = int(wait_for_file(tmp_path / "pid"))
        kill_all(tag)
        assert is_open(tmp_path)
        with pytest.raises(CommandLeftoverError, match=r"out\.log"):
            end_orphans(tag, log(tmp_path), grace=0.2)
        with pytest.raises(CommandLeftoverError, match=r"out\.log"):
            command_run(tmp_path, ["echo"]).run()
        os.kill(stranger, signal.SIGKILL)
        wait_until(lambda: not is_open(tmp_path))
        assert end_orphans(tag, log(tmp_path), grace=0.2) == 0


def test_a_command_that_runs_has_its_output_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands write to one file one after the other, never at one time; a missing file is not open."""
    monkeypatch.setattr(output, "_HOLDING", 0.1)
    assert not is_open(tmp_path)
    code = f"echo > {tmp_path}/ready; while ! [ -e {tmp_path}/go ]; do sleep 0.01; done"
    running = in_thread(command_run(tmp_path, shell(code)).run)
    wait_for_file(tmp_path / "ready")
    assert is_open(tmp_path)
    with pytest.raises(CommandLeftoverError, match="still open"):
        command_run(tmp_path, ["echo"]).run()
    (tmp_path / "go").touch()
    running.result(DEADLINE)
    assert not is_open(tmp_path)
    assert command_run(tmp_path, ["echo", "next"]).run().stdout == "next\n"


def test_a_forked_child_of_the_runner_does_not_keep_the_output(tmp_path: Path) -> None:
    """It outlives a runner that is killed, and is not taken for the command."""
    code = """
import os, sys, threading
from support_commands import *
run = command_run(Path(sys.argv[1]), shell(sys.argv[2]), tag=sys.argv[3], if_runner_dies="leave")
threading.Thread(target=run.run).start()
wait_for_file(Path(sys.argv[1], "ready"))
if os.fork() == 0:
    print("forked")
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
"""
    tag = unique_name()
    with run_python(code, tmp_path, f"echo > {tmp_path}/ready; sleep {FOREVER}", tag) as child:
        assert child.line() == "forked"
        child.process.kill()
        child.process.wait(DEADLINE)
        assert end_orphans(tag, log(tmp_path), grace=0.2) == 2
