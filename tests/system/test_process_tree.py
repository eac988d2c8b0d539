"""Finding and ending all that a command has started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support import DEADLINE, run_python, wait_until
from support_commands import FOREVER, kill_all, marked, python, shell, wait_for_file
from support_processes import in_thread

from iso_orchestrator import WorkflowUsageError
from iso_orchestrator.checks import unique_name
from iso_orchestrator.system.processes.ending import end_tree
from iso_orchestrator.system.processes.linux_table import LinuxProcessTable
from iso_orchestrator.system.processes.psutil_table import PsutilProcessTable
from iso_orchestrator.system.processes.table import MARK, Process, ProcessTable
from iso_orchestrator.system.processes.tree import find, is_alive, living_tree, marked_environment

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the programs of these tests are for a POSIX system")

on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="there is no /proc")
BUSY = "while :; do sleep 0.01; done"
TABLES = [pytest.param(LinuxProcessTable, marks=on_linux), PsutilProcessTable]


@pytest.fixture
def mark() -> str:
    return unique_name()


def found(mark: str, count: int) -> list[int]:
    """Those who have *mark*, as soon as they are *count*."""
    return wait_until(lambda: len(pids := find(mark)) == count and pids, what=f"{count} processes")  # type: ignore[no-any-return]


def sessions_of(pids: list[int]) -> set[int]:
    found = set()
    for pid in pids:
        with suppress(ProcessLookupError):
            found.add(os.getsid(pid))
    return found


def process_of(pid: int) -> Process:
    entry = PsutilProcessTable().entry(pid) if not os.path.exists("/proc") else LinuxProcessTable().entry(pid)
    assert entry is not None
    return entry.process


# Finding


def test_all_are_found_whatever_their_sessions_and_parents(mark: str) -> None:
    """A child, one in a session of its own, and one whose parents have ended."""
    code = f"sleep {FOREVER} & setsid sleep {FOREVER} & (setsid sh -c 'sleep {FOREVER} & exit' &) ; wait"
    with marked(mark, shell(code)) as process:
        pids = wait_until(lambda: len(sessions_of(pids := find(mark))) == 3 and len(pids) == 4 and pids)
        assert process.pid in pids
    assert find(mark) == []


def test_a_command_inside_of_a_command_is_found_by_both_marks(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner mark finds the inner one alone, and to end that leaves the outer one, which has no such mark."""
    inner = unique_name()
    with marked(mark, ["sleep", FOREVER]) as outer_process:
        monkeypatch.setenv(MARK, mark)
        with marked(inner, ["sleep", FOREVER]) as inner_process:
            assert sorted([outer_process.pid, inner_process.pid]) == found(mark, 2)
            assert find(inner) == [inner_process.pid]
            assert end_tree(inner) == 1
            assert inner_process.wait(DEADLINE) == -signal.SIGTERM
            assert find(mark) == [outer_process.pid]


def test_marks_are_added_to_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost is the last, also where the command is given an environment of its own."""
    monkeypatch.setenv(MARK, "outer")
    assert marked_environment({"A": "1"}, "inner") == {"A": "1", MARK: "outer:inner"}
    assert marked_environment(None, "inner")[MARK] == "outer:inner"
    monkeypatch.delenv(MARK)
    assert marked_environment({MARK: "another"}, "inner") == {MARK: "inner"}


@pytest.mark.parametrize("mark", ["", "a:b", "a b", "a\0", "ä"])
def test_a_mark_that_could_be_taken_for_others_is_refused(mark: str) -> None:
    """Separators, and what no variable can hold."""
    with pytest.raises(ValueError, match="a mark must be of letters"):
        marked_environment({}, mark)


def test_a_part_of_a_mark_is_no_mark(mark: str) -> None:
    """Neither its beginning, nor its end, nor the same word in another variable or argument."""
    env = {**os.environ, "OTHER": mark, "X" + MARK: mark, MARK: f"x{mark}:{mark}x"}
    process = subprocess.Popen(shell(f"sleep {FOREVER}; : {MARK}={mark}"), env=env, start_new_session=True)
    try:
        wait_until(lambda: find(f"x{mark}"))
        assert find(mark) == []
    finally:
        kill_all(f"x{mark}")
        process.wait(DEADLINE)


def test_a_zombie_is_not_alive(mark: str) -> None:
    """A process whose parent has not taken note of its end is found no more."""
    with marked(mark, ["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        zombie = process_of(process.pid)
        assert find(mark) == []
        assert not is_alive(zombie)
        assert living_tree(mark, [zombie]) == set()


@on_linux
def test_a_process_is_found_while_it_changes_its_program(mark: str) -> None:
    """Between two programs it has no environment for a moment; it is not taken for another's."""
    code = (
        "import os, sys; os.execv(sys.executable, [sys.executable, '-I', '-S', '-E', '-c', sys.argv[1], sys.argv[1]])"
    )
    with marked(mark, python(code, code)) as process:
        found(mark, 1)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert find(mark) == [process.pid]


def test_a_process_that_hands_over_to_its_child_is_found(mark: str) -> None:
    """Again and again it forks and exits: however short each lives, one of them is found."""
    code = """
import os, time
while True:
    if os.fork():
        os._exit(0)
    time.sleep(0.001)
"""
    with marked(mark, python(code)) as process:
        process.wait(DEADLINE)
        for _ in range(100):
            assert find(mark)
        assert end_tree(mark, grace=0) > 0
        assert find(mark) == []


@pytest.mark.parametrize("new_table", TABLES)
def test_tables_say_what_is_known_of_a_process(mark: str, new_table: Callable[[], ProcessTable]) -> None:
    """Its mark, its parent, whether it is alive; nothing of one that is not there."""
    table = new_table()
    with marked(mark, ["sleep", FOREVER]) as process:
        assert process.pid in table.pids()
        wait_until(lambda: table.has(process.pid, mark))
        assert not table.has(process.pid, mark[:-1])
        entry = table.entry(process.pid)
        assert entry is not None
        assert (entry.process.pid, entry.parent, entry.is_alive) == (process.pid, os.getpid(), True)
        assert entry == table.entry(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        entry = table.entry(process.pid)
        assert entry is not None
        assert not entry.is_alive
        assert not table.has(process.pid, mark)
        process.wait()
        assert table.entry(process.pid) is None
        assert not table.has(process.pid, mark)


@pytest.mark.parametrize("new_table", TABLES)
def test_another_process_of_the_same_number_is_not_signalled(mark: str, new_table: Callable[[], ProcessTable]) -> None:
    """Nobody is taken for a process that began at another time."""
    table = new_table()
    with marked(mark, ["sleep", FOREVER]) as process:
        entry = table.entry(process.pid)
        assert entry is not None
        other = Process(process.pid, entry.process.started - 1)
        table.terminate(other)
        table.kill(other)
        table.terminate(entry.process)
        assert process.wait(DEADLINE) == -signal.SIGTERM
        table.terminate(entry.process)
        table.kill(entry.process)


@pytest.mark.parametrize("new_table", TABLES)
def test_a_stopped_process_is_woken_to_end(mark: str, tmp_path: Path, new_table: Callable[[], ProcessTable]) -> None:
    """What it does on SIGTERM gets done."""
    table = new_table()
    code = f"trap 'echo done > {tmp_path}/done; exit' TERM; echo > {tmp_path}/ready; {BUSY}"
    with marked(mark, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        entry = table.entry(process.pid)
        assert entry is not None
        assert entry.is_alive
        table.terminate(entry.process)
        assert wait_for_file(tmp_path / "done") == "done\n"


def test_processes_are_found_by_psutil_where_there_is_no_proc(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it works likewise."""
    table = PsutilProcessTable()
    for module in ("tree", "ending"):
        monkeypatch.setattr(f"iso_orchestrator.system.processes.{module}.process_table", lambda: table)
    with marked(mark, shell(f"sleep {FOREVER} & env -i sleep {FOREVER} & wait")) as process:
        wait_until(lambda: len(living_tree(mark)) == 3)
        assert end_tree(mark) == 3
        process.wait(DEADLINE)


# Ending


def test_who_obeys_is_not_killed(mark: str, tmp_path: Path) -> None:
    """They have time to finish, and the end comes when they have."""
    code = f"trap 'sleep 0.2; echo done > {tmp_path}/done; exit 7' TERM; echo > {tmp_path}/ready; {BUSY}"
    with marked(mark, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        began = time.monotonic()
        assert end_tree(mark, grace=DEADLINE) >= 1
        assert time.monotonic() - began < DEADLINE / 2
        assert process.wait(DEADLINE) == 7
        assert (tmp_path / "done").exists()


def test_who_does_not_obey_is_killed(mark: str, tmp_path: Path) -> None:
    """After the time to finish, and not before."""
    code = f"trap '' TERM; sleep {FOREVER} & setsid sleep {FOREVER} & echo > {tmp_path}/ready; wait"
    with marked(mark, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        found(mark, 3)
        began = time.monotonic()
        assert end_tree(mark, grace=0.3) == 3
        assert time.monotonic() - began >= 0.3
        assert find(mark) == []
        process.wait(DEADLINE)


def test_urgency_takes_the_time_to_finish_away(mark: str, tmp_path: Path) -> None:
    """Those who do not obey are killed then."""
    urgent = threading.Event()
    with marked(mark, shell(f"trap '' TERM; echo > {tmp_path}/ready; while :; do sleep 0.01; done")) as process:
        wait_for_file(tmp_path / "ready")
        ending = in_thread(end_tree, mark, grace=1000, is_urgent=urgent.is_set)
        assert process.poll() is None
        urgent.set()
        ending.result(DEADLINE)
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_a_child_without_the_mark_is_ended_with_its_parent(mark: str) -> None:
    """A program that was given an empty environment, and its children."""
    with marked(mark, shell(f"env -i sh -c 'sleep {FOREVER} & wait' & wait")) as process:
        wait_until(lambda: len(living_tree(mark)) == 3)
        assert len(find(mark)) == 1
        assert end_tree(mark) == 3
        process.wait(DEADLINE)


def test_who_is_known_is_ended_without_the_mark(mark: str) -> None:
    """With its children."""
    process = subprocess.Popen(shell(f"sleep {FOREVER} & wait"), start_new_session=True)
    known = process_of(process.pid)
    wait_until(lambda: len(living_tree(mark, [known])) == 2)
    assert end_tree(mark, known=[known]) == 2
    process.wait(DEADLINE)


def test_who_is_born_while_the_others_are_ended_is_ended_too(mark: str, tmp_path: Path) -> None:
    """A program that starts others when it is asked to end, which do not obey."""
    code = (
        f"trap 'setsid sh -c \"trap : TERM; while :; do sleep 0.01; done\" & exit' TERM; echo > {tmp_path}/ready; "
        "while :; do sleep 0.01; done"
    )
    with marked(mark, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        assert end_tree(mark, grace=0.2) >= 2
        assert find(mark) == []
        process.wait(DEADLINE)


def test_those_who_multiply_are_ended(mark: str) -> None:
    """A program of which each process starts two, up to a hundred at a time, in sessions of their own."""
    code = """
import os, resource, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for generation in range(6):
    if os.fork() == 0:
        os.setsid()
while True:
    time.sleep(0.001)
    if os.fork() == 0:
        os._exit(0)
    os.wait()
"""
    with marked(mark, python(code)) as process:
        wait_until(lambda: len(find(mark)) > 60)
        assert end_tree(mark, grace=0) > 60
        assert find(mark) == []
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_nobody_ends_himself(mark: str) -> None:
    """A process of the tree that asks for its end is refused, and nobody is signalled."""
    code = """
from iso_orchestrator.commands.leftovers import await_leftovers, end_leftovers
from iso_orchestrator.system.processes.ending import end_tree
from iso_orchestrator import WorkflowUsageError
import sys
for end in (end_tree, end_leftovers, await_leftovers):
    try:
        end(sys.argv[1], *(["/no/file"] if end is not end_tree else []))
    except WorkflowUsageError as error:
        print(error)
sys.stdin.read()
"""
    env = marked_environment({}, mark)
    with marked(mark, ["sleep", FOREVER]) as process, run_python(code, mark, env=env) as child:
        for _ in range(3):
            assert "inside of the command" in child.line()
        assert process.poll() is None
        child.end()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become somebody else")
def test_who_cannot_be_ended_is_named() -> None:
    """Another user's process is left, and the error says which."""
    code = """
import os, sys
from iso_orchestrator import CommandLeftoverError
from iso_orchestrator.system.processes import ending
from iso_orchestrator.system.processes.table import Process
os.setuid(65534)
ending.KILLING = 0.3
try:
    ending.end_tree("mark", grace=0, known=[Process(int(sys.argv[1]), float(sys.argv[2]))])
except CommandLeftoverError as error:
    print(error.pids, error)
"""
    process = subprocess.Popen(["sleep", FOREVER])
    try:
        with run_python(code, process.pid, process_of(process.pid).started) as child:
            line = child.line()
            assert f"({process.pid},)" in line
            assert "end them" in line
            child.end()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_without_proc_and_psutil_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found by guessing."""
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    with pytest.raises(WorkflowUsageError, match=r"pip install .iso-orchestrator\[command\]"):
        PsutilProcessTable()
