"""Processes: starting a program, finding all that it has started, and ending it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support import DEADLINE, run_python, wait_until
from support_commands import FOREVER, find, kill_all, python, running, shell, wait_for_file
from support_processes import in_thread

from iso_orchestrator.checks import unique_name
from iso_orchestrator.system import processes
from iso_orchestrator.system.processes import TAG_VARIABLE, end_tree, is_alive, living_tree, tagged_environment

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the programs of these tests are for a POSIX system")

BUSY = "while :; do sleep 0.01; done"


@pytest.fixture
def tag() -> str:
    return unique_name()


def found(tag: str, count: int) -> list[int]:
    """The processes that have *tag*, as soon as there are *count*."""
    return wait_until(lambda: len(pids := find(tag)) == count and pids, what=f"{count} processes")  # type: ignore[no-any-return]


def sessions_of(pids: list[int]) -> set[int]:
    found = set()
    for pid in pids:
        with suppress(ProcessLookupError):
            found.add(os.getsid(pid))
    return found


# Finding


def test_processes_are_found_in_any_session_and_under_any_parent(tag: str) -> None:
    """A child, a process in a session of its own, and one whose parents have ended are found."""
    code = f"sleep {FOREVER} & setsid sleep {FOREVER} & (setsid sh -c 'sleep {FOREVER} & exit' &) ; wait"
    with running(tag, shell(code)) as process:
        pids = wait_until(lambda: len(sessions_of(pids := find(tag))) == 3 and len(pids) == 4 and pids)
        assert process.pid in pids
    assert find(tag) == []


def test_a_command_inside_of_a_command_has_both_tags(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner tag finds the inner command alone, and ending it leaves the outer one."""
    inner = unique_name()
    with running(tag, ["sleep", FOREVER]) as outer_process:
        monkeypatch.setenv(TAG_VARIABLE, tag)
        with running(inner, ["sleep", FOREVER]) as inner_process:
            assert sorted([outer_process.pid, inner_process.pid]) == found(tag, 2)
            assert find(inner) == [inner_process.pid]
            assert end_tree(inner) == 1
            assert inner_process.wait(DEADLINE) == -signal.SIGTERM
            assert find(tag) == [outer_process.pid]


def test_tags_are_added_to_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost tag is the last, also in an environment of the command's own."""
    monkeypatch.setenv(TAG_VARIABLE, "outer")
    assert tagged_environment({"A": "1"}, "inner") == {"A": "1", TAG_VARIABLE: "outer:inner"}
    assert tagged_environment(None, "inner")[TAG_VARIABLE] == "outer:inner"
    monkeypatch.delenv(TAG_VARIABLE)
    assert tagged_environment({TAG_VARIABLE: "another"}, "inner") == {TAG_VARIABLE: "inner"}


@pytest.mark.parametrize("tag", ["", "a:b", "a b", "a\0", "ä"])
def test_a_tag_that_could_be_taken_for_others_is_refused(tag: str) -> None:
    """A tag has no separators, and nothing that no variable can hold."""
    with pytest.raises(ValueError, match="a process tag must be of letters"):
        tagged_environment({}, tag)


def test_a_part_of_a_tag_is_no_tag(tag: str) -> None:
    """Neither its beginning, nor its end, nor the same word in another variable or argument is the tag."""
    env = {**os.environ, "OTHER": tag, "X" + TAG_VARIABLE: tag, TAG_VARIABLE: f"x{tag}:{tag}x"}
    process = subprocess.Popen(shell(f"sleep {FOREVER}; : {TAG_VARIABLE}={tag}"), env=env, start_new_session=True)
    try:
        wait_until(lambda: find(f"x{tag}"))
        assert find(tag) == []
    finally:
        kill_all(f"x{tag}")
        process.wait(DEADLINE)


def test_a_zombie_is_not_alive(tag: str) -> None:
    """A process that has ended is not found, also while its parent has not asked for its exit code."""
    with running(tag, ["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        zombie = psutil.Process(process.pid)
        assert find(tag) == []
        assert not is_alive(zombie)
        assert living_tree(tag, [zombie]) == set()


def test_a_process_is_found_while_it_changes_its_program(tag: str) -> None:
    """Between two programs it has no environment for a moment, and is found all that time."""
    code = (
        "import os, sys; os.execv(sys.executable, [sys.executable, '-I', '-S', '-E', '-c', sys.argv[1], sys.argv[1]])"
    )
    with running(tag, python(code, code)) as process:
        found(tag, 1)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert find(tag) == [process.pid]


@pytest.mark.slow
def test_a_process_that_hands_over_to_its_child_is_found(tag: str) -> None:
    """It forks and exits again and again: each process lives for a moment, and one of them is always found."""
    code = """
import os, time
while True:
    if os.fork():
        os._exit(0)
    time.sleep(0.001)
"""
    with running(tag, python(code)) as process:
        process.wait(DEADLINE)
        for _ in range(100):
            assert any(processes.tagged(tag))
        assert end_tree(tag, grace=0) > 0
        assert find(tag) == []


def test_a_process_that_keeps_its_environment_empty_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks like one that changes its program: a search pauses for it at most 20 ms, and only while it is busy."""
    pauses: list[float] = []
    monkeypatch.setattr(processes, "nap", pauses.append)
    quiet = subprocess.Popen(python("input()"), env={}, stdin=subprocess.PIPE)
    busy = subprocess.Popen(python("while True: pass"), env={})
    try:
        wait_until(lambda: psutil.Process(quiet.pid).status() == psutil.STATUS_SLEEPING)
        assert processes._environment(psutil.Process(quiet.pid)) == {}
        assert pauses == []
        wait_until(lambda: psutil.Process(busy.pid).cpu_times().user > 0.05)
        assert processes._environment(psutil.Process(busy.pid)) == {}
        assert sum(pauses) <= 0.02
    finally:
        for process in (quiet, busy):
            process.kill()
            process.communicate()


# Ending


def test_a_later_process_of_the_same_number_is_not_ended(tag: str) -> None:
    """A process is known by its number and the time of its start."""
    with subprocess.Popen(shell(f"sleep {FOREVER} & wait"), start_new_session=True) as process:
        try:
            earlier = psutil.Process(process.pid)
            earlier._ident = (process.pid, earlier._ident[1] - 1)
            assert not is_alive(earlier)
            assert end_tree(tag, grace=0, known=[earlier]) == 0
            assert process.poll() is None
            assert len(psutil.Process(process.pid).children()) == 1
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_stopped_process_is_woken_to_end(tag: str, tmp_path: Path) -> None:
    """Its handler of SIGTERM runs."""
    code = f"trap 'echo done > {tmp_path}/done; exit' TERM; echo > {tmp_path}/ready; {BUSY}"
    with running(tag, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_alive(psutil.Process(process.pid))
        end_tree(tag, grace=DEADLINE)
        assert wait_for_file(tmp_path / "done") == "done\n"


def test_a_process_that_obeys_is_not_killed(tag: str, tmp_path: Path) -> None:
    """It has time to finish, and the call returns when it has."""
    code = f"trap 'sleep 0.2; echo done > {tmp_path}/done; exit 7' TERM; echo > {tmp_path}/ready; {BUSY}"
    with running(tag, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        began = time.monotonic()
        assert end_tree(tag, grace=DEADLINE) >= 1
        assert time.monotonic() - began < DEADLINE / 2
        assert process.wait(DEADLINE) == 7
        assert (tmp_path / "done").exists()


def test_a_process_that_does_not_obey_is_killed(tag: str, tmp_path: Path) -> None:
    """It is killed after the time to finish, and not before."""
    code = f"trap '' TERM; sleep {FOREVER} & setsid sleep {FOREVER} & echo > {tmp_path}/ready; wait"
    with running(tag, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        found(tag, 3)
        began = time.monotonic()
        assert end_tree(tag, grace=0.3) == 3
        assert time.monotonic() - began >= 0.3
        assert find(tag) == []
        process.wait(DEADLINE)


def test_urgency_takes_the_time_to_finish_away(tag: str, tmp_path: Path) -> None:
    """A process that does not obey is killed then."""
    urgent = threading.Event()
    with running(tag, shell(f"trap '' TERM; echo > {tmp_path}/ready; while :; do sleep 0.01; done")) as process:
        wait_for_file(tmp_path / "ready")
        ending = in_thread(end_tree, tag, grace=1000, is_urgent=urgent.is_set)
        assert process.poll() is None
        urgent.set()
        ending.result(DEADLINE)
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_a_child_without_the_tag_is_ended_with_its_parent(tag: str) -> None:
    """A program with an empty environment is ended, and its children are."""
    with running(tag, shell(f"env -i sh -c 'sleep {FOREVER} & wait' & wait")) as process:
        wait_until(lambda: len(living_tree(tag)) == 3)
        assert len(find(tag)) == 1
        assert end_tree(tag) == 3
        process.wait(DEADLINE)


def test_a_known_process_is_ended_without_the_tag(tag: str) -> None:
    """Its children are ended too."""
    process = subprocess.Popen(shell(f"sleep {FOREVER} & wait"), start_new_session=True)
    known = psutil.Process(process.pid)
    wait_until(lambda: len(living_tree(tag, [known])) == 2)
    assert end_tree(tag, known=[known]) == 2
    process.wait(DEADLINE)


def test_a_process_that_starts_during_the_end_is_ended_too(tag: str, tmp_path: Path) -> None:
    """A program that starts others on SIGTERM, which do not obey, is ended with them."""
    code = (
        f"trap 'setsid sh -c \"trap : TERM; while :; do sleep 0.01; done\" & exit' TERM; echo > {tmp_path}/ready; "
        "while :; do sleep 0.01; done"
    )
    with running(tag, shell(code)) as process:
        wait_for_file(tmp_path / "ready")
        assert end_tree(tag, grace=0.2) >= 2
        assert find(tag) == []
        process.wait(DEADLINE)


@pytest.mark.slow
def test_processes_that_multiply_are_ended(tag: str) -> None:
    """Processes that start others all the time, over thirty at a time, in sessions of their own, are ended."""
    code = """
import os, resource, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for generation in range(5):
    if os.fork() == 0:
        os.setsid()
while True:
    time.sleep(0.02)
    if os.fork() == 0:
        os._exit(0)
    os.wait()
"""
    with running(tag, python(code)) as process:
        wait_until(lambda: len(find(tag)) > 30)
        assert end_tree(tag, grace=0) > 30
        assert find(tag) == []
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_a_process_of_the_tree_cannot_end_the_tree(tag: str) -> None:
    """A process of the tree that asks for its end gets an error, and no process is signalled."""
    code = """
from iso_orchestrator.commands.process import await_orphans, end_orphans
from iso_orchestrator.system.processes import end_tree
from iso_orchestrator import WorkflowUsageError
import sys
for end in (end_tree, end_orphans, await_orphans):
    try:
        end(sys.argv[1], *(["/no/file"] if end is not end_tree else []))
    except WorkflowUsageError as error:
        print(error)
sys.stdin.read()
"""
    env = tagged_environment({}, tag)
    with running(tag, ["sleep", FOREVER]) as process, run_python(code, tag, env=env) as child:
        for _ in range(3):
            assert "inside of the command" in child.line()
        assert process.poll() is None
        child.end()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become another user")
def test_a_process_that_cannot_be_ended_is_named() -> None:
    """Another user's process is left, and the error has its number."""
    code = """
import os, sys
from iso_orchestrator import CommandLeftoverError
from iso_orchestrator.system import processes
import psutil
os.setuid(65534)
processes.KILLING = 0.3
try:
    processes.end_tree("tag", grace=0, known=[psutil.Process(int(sys.argv[1]))])
except CommandLeftoverError as error:
    print(error.pids, error)
"""
    process = subprocess.Popen(["sleep", FOREVER])
    try:
        with run_python(code, process.pid) as child:
            line = child.line()
            assert f"({process.pid},)" in line
            assert "end them" in line
            child.end()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
