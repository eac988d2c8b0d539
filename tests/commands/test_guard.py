"""The guard: the process that ends the commands of a process that has been killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import DEADLINE, Child, run_python, wait_until
from support_commands import FOREVER, command_run, find, kill_all, shell, wait_for_file
from support_processes import PROLOGUE

from iso_orchestrator import Workflow
from iso_orchestrator.checks import unique_name
from iso_orchestrator.system import guard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these tests look at processes in /proc"),
]

# What it runs has a process in another session, and ignores SIGTERM.
STUBBORN = f"trap '' TERM; (setsid sleep {FOREVER} &); echo > ready; while :; do sleep 0.05; done"

RUNNER = """
import os, sys, threading
from support_commands import *
from iso_orchestrator.system import guard

tag, code = sys.argv[1:]
def run(folder=Path.cwd(), **options):
    command_run(folder, shell(code), tag=tag, **options).run()
def begin(**options):
    threading.Thread(target=run, kwargs=options, daemon=True).start()
    wait_for_file(Path("ready"))
"""


@pytest.fixture
def tag() -> Iterator[str]:
    """The process tag of a command, whose processes are killed after the test."""
    tag = unique_name()
    yield tag
    kill_all(tag)


def runner(folder: Path, tag: str, code: str, command: str = STUBBORN) -> Child:
    """A process that can `begin` to `run` a command."""
    return run_python(RUNNER + code, tag, command, cwd=folder)


def guards_of(pid: int) -> list[psutil.Process]:
    """The guards of a process, without what starts them."""
    return [process for process in psutil.process_iter() if _is_guard(process, pid)]


def _is_guard(process: psutil.Process, pid: int) -> bool:
    try:
        args = process.cmdline()
        return guard._GUARD.split("\n")[0] in " ".join(args) and str(pid) in args and process.ppid() != pid
    except psutil.Error:
        return False


def guard_of(pid: int) -> psutil.Process:
    (found,) = wait_until(lambda: guards_of(pid), what="a guard")
    return found


def wait_for_the_guards_end(pid: int) -> None:
    wait_until(lambda: not guards_of(pid), what="the end of the guard")


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_commands_of_a_killed_runner_are_ended(tmp_path: Path, tag: str, has_pidfd: bool) -> None:
    """In any session, with or without SIGTERM. A forked child of the runner lives on, and keeps none of them alive."""
    code = f"""
if not {has_pidfd}:  # as on macOS
    guard._GUARD = guard._GUARD.replace("pidfd_open", "no_such_function")
begin()
if os.fork() == 0:
    print(os.getpid())
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
"""
    with runner(tmp_path, tag, code) as child:
        forked = psutil.Process(int(child.line()))
        assert len(find(tag)) >= 2
        child.kill()
        wait_until(lambda: not find(tag))
        assert forked.is_running()


def test_os_exit_ends_commands_too(tmp_path: Path, tag: str) -> None:
    """It runs nothing of what Python does at its exit."""
    with runner(tmp_path, tag, "begin(); input(); os._exit(3)") as child:
        wait_until(lambda: len(find(tag)) >= 2)
        child.say()
        assert child.process.wait(DEADLINE) == 3
        wait_until(lambda: not find(tag))


def test_a_command_can_outlive_its_runner(tmp_path: Path, tag: str) -> None:
    """`if_runner_dies="leave"` leaves it alone, also where the guard ends another one."""
    code = f"""
begin(if_runner_dies="leave")
os.mkdir("other")
command_run(Path("other").resolve(), ["sleep", "{FOREVER}"]).run()
"""
    with runner(tmp_path, tag, code) as child:
        pid = guard_of(child.pid).pid
        child.kill()
        wait_until(lambda: not psutil.pid_exists(pid))
        assert len(find(tag)) >= 2


def test_a_guard_keeps_nothing_of_its_runner(tmp_path: Path, tag: str) -> None:
    """No descriptor, no folder, no terminal, and no place among its children."""
    with runner(tmp_path, tag, "begin(); print('begun'); input()") as child:
        assert child.line() == "begun"
        found = guard_of(child.pid)
        fds = [os.readlink(fd) for fd in Path(f"/proc/{found.pid}/fd").iterdir()]
        assert [fd for fd in fds if not fd.startswith(("pipe:", "/dev/null", "anon_inode:[pidfd]"))] == []
        assert sum(fd.startswith("pipe:") for fd in fds) == 1
        assert found.cwd() == "/"
        assert os.getsid(found.pid) != os.getsid(child.pid)
        assert found.pid not in [each.pid for each in psutil.Process(child.pid).children(recursive=True)]
        child.kill()
        wait_until(lambda: not find(tag))


def test_a_runner_that_ends_has_no_guard(tmp_path: Path, tag: str) -> None:
    """The guard ends with it, and whoever reads its output is told of the end."""
    code = RUNNER + "run(); run(); print(os.getpid())"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tag, "echo"],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, **path},
        timeout=DEADLINE,
        check=True,
    )
    wait_for_the_guards_end(int(done.stdout))


def test_no_signal_of_a_terminal_ends_a_guard(tmp_path: Path, tag: str) -> None:
    """`killall` has sent it SIGTERM too, and it has to end what the runner leaves."""
    with runner(tmp_path, tag, "begin(); print('begun'); input()") as child:
        assert child.line() == "begun"
        found = guard_of(child.pid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            found.send_signal(number)
        child.kill()
        wait_until(lambda: not find(tag))


def test_a_guard_that_was_killed_is_replaced(tmp_path: Path, tag: str) -> None:
    """By the next command. The new guard ends those that began before, too."""
    code = """
begin()
for _ in sys.stdin:
    command_run(Path("next").resolve(), ["true"]).run()
    print("ran")
"""
    (tmp_path / "next").mkdir()
    with runner(tmp_path, tag, code) as child:
        first = guard_of(child.pid)
        first.kill()
        wait_for_the_guards_end(child.pid)
        child.say()
        assert child.line() == "ran"
        assert guard_of(child.pid).pid != first.pid
        child.kill()
        wait_until(lambda: not find(tag))


def test_code_that_closes_the_pipe_ends_no_command(tmp_path: Path, tag: str) -> None:
    """A guard without the pipe sees that the runner lives. The file that has the pipe's number then is safe."""
    code = """
begin()
print("begun")
input()
fd = guard._pipe[0]
os.close(fd)
with open("file", "wb", buffering=0) as file:
    os.dup2(file.fileno(), fd)
    guard.dismiss()
    os.write(fd, b"its own")
print("closed")
input()
"""
    with runner(tmp_path, tag, code, f"echo > ready; exec sleep {FOREVER}") as child:
        assert child.line() == "begun"
        found = guard_of(child.pid)
        waits = found.num_ctx_switches().voluntary
        child.say()
        assert child.line() == "closed"
        wait_until(lambda: found.num_ctx_switches().voluntary > waits, what="a look at the pipe, and the next wait")
        assert len(find(tag)) == 1
        assert (tmp_path / "file").read_bytes() == b"its own"
        child.kill()
        wait_until(lambda: not find(tag))


def test_a_command_runs_without_a_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If none can be started, one warning says what that means."""
    monkeypatch.setattr(guard, "_pipe", None)
    monkeypatch.setattr(guard, "_has_warned", False)
    monkeypatch.setattr(guard, "_START_WITHIN", 0.1)
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o700)
    for executable in (str(tmp_path / "none"), "", "/bin/false", str(hanging)):
        monkeypatch.setattr(sys, "executable", executable)
        assert command_run(tmp_path, ["true"]).run().exit_code == 0
    assert caplog.text.count("no guard can be started") == 1
    assert guard._pipe is None


def test_commands_of_a_command_are_ended(tmp_path: Path, tag: str) -> None:
    """A runner inside of a command dies with it, and so do its commands."""
    inner = RUNNER + f"\ntag = {unique_name()!r}\nos.mkdir('inner')\nrun(Path('inner').resolve())"
    code = f"""
inner = [sys.executable, "-c", {inner!r}, tag, code]
command_run(Path.cwd(), inner, tag=tag).run()
"""
    with runner(tmp_path, tag, code) as child:
        wait_for_file(tmp_path / "ready")
        child.kill()
        wait_until(lambda: not find(tag))


def test_a_step_whose_command_the_guard_has_ended_runs_again(tmp_path: Path) -> None:
    """Its record is that of any killed run."""
    code = """
@workflow.command
def work():
    return ["sh", "-c", 'echo $$ > "$1/pid"; exec sleep 1000', "sh", root]
work()
"""
    with run_python(PROLOGUE + code, tmp_path) as child:
        pid = int(wait_for_file(tmp_path / "pid"))
        child.kill()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    workflow = Workflow("w", dir=tmp_path)
    result = workflow.command(name="work", parse="text")(lambda: shell("echo again"))()
    assert result.parsed == "again\n"
    assert workflow.record.steps["work"].attempts == 2
    workflow.close()
