"""Mutexes in files, over processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import DEADLINE, WatchedFS, failing, run_python, wait_until, waits_for_a_lock
from support_processes import state_of

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.mutex import FileMutex
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.filesystem import FileSystem

FS = FileSystem()

TAKE = """
import os, subprocess, sys
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.store.mutex import FileMutex

mutex = FileMutex(FileSystem(), sys.argv[1])
mutex.acquire()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "mutex" / "key.lock")


def is_free(path: str) -> bool:
    mutex = FileMutex(FS, path)
    if not mutex.try_acquire():
        return False
    mutex.release()
    return True


def test_killed_holder_frees_its_mutex(path: str) -> None:
    """A mutex is held while its holder lives, and free when the holder was killed."""
    with run_python(TAKE + "print('taken'); input()", path) as child:
        assert child.line() == "taken"
        assert not is_free(path)
        child.kill()
        assert is_free(path)


def test_who_waits_gets_the_mutex_of_a_killed_holder(path: str) -> None:
    """A waiter gets the mutex when its holder is killed."""
    with run_python(TAKE + "print('taken'); input()", path) as child:
        assert child.line() == "taken"
        mutex = FileMutex(FS, path)
        thread = threading.Thread(target=mutex.acquire)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        child.kill()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert not is_free(path)
        mutex.release()


def test_stopped_holder_keeps_its_mutex(path: str) -> None:
    """No lock is stolen by age: a stopped process keeps its mutex."""
    with run_python(TAKE + "print('taken'); input(); mutex.release(); print('freed'); input()", path) as child:
        assert child.line() == "taken"
        child.stop()
        long_ago = datetime.now(UTC).timestamp() - 10**6
        os.utime(path, (long_ago, long_ago))
        assert not is_free(path)
        child.go_on()
        child.say()
        assert child.line() == "freed"
        assert is_free(path)


def test_command_that_outlives_a_killed_holder_does_not_hold_its_mutex(path: str) -> None:
    """A process that the holder has started does not inherit the lock, even if it inherits files."""
    start = "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, close_fds=False)\n"
    with run_python(TAKE + start + "print(child.pid); input()", path) as holder:
        command = int(holder.line())
        assert not is_free(path)
        holder.kill()
        assert is_free(path)
        wait_until(lambda: not Path(f"/proc/{command}").exists() or state_of(command) == "Z", what="the command's end")


FORKED = {
    "exits at once": "os._exit(0)",
    "exits as Python does": "sys.exit(0)",
    "releases": "mutex.release(); os._exit(0)",
    "collects": "import gc; del mutex; gc.collect(); os._exit(0)",
}


@pytest.mark.parametrize("deed", FORKED.values(), ids=FORKED.keys())
def test_forked_child_does_not_free_its_parents_mutex(path: str, deed: str) -> None:
    """Whatever a forked child does with a lock that it got from its parent, the parent has it."""
    code = f"pid = os.fork()\nif pid == 0:\n    {deed}\nos.waitpid(pid, 0)\nprint('taken')\ninput()\nmutex.release()\n"
    with run_python(TAKE + code, path) as child:
        assert child.line() == "taken"
        assert not is_free(path)
        child.say()
        child.end()
        assert is_free(path)


def test_forked_child_does_not_keep_its_parents_mutex(path: str) -> None:
    """A child that outlives its killed parent holds none of the parent's mutexes."""
    code = "if os.fork() == 0:\n    print(os.getpid()); input(); os._exit(0)\nos.wait()\n"
    with run_python(TAKE + code, path) as child:
        pid = int(child.line())
        assert not is_free(path)
        child.kill()
        assert state_of(pid) in "SR"
        assert is_free(path)
        child.say()  # the forked child reads it, and ends
        wait_until(lambda: state_of(pid) == "Z", what="the end of the forked child")


def test_forked_child_can_take_the_mutex_itself(path: str) -> None:
    """A child waits for its parent's lock as everybody does, and gets it after the release."""
    code = (
        "if os.fork() == 0:\n"
        "    other = FileMutex(FileSystem(), sys.argv[1])\n"
        "    print(other.try_acquire())\n"
        "    other.acquire(); print('child'); input(); os._exit(0)\n"
        "input()\nmutex.release()\nos.wait()\n"
    )
    with run_python(TAKE + code, path) as child:
        assert child.line() == "False"
        child.say()
        assert child.line() == "child"
        assert not is_free(path)
        child.say()
        child.end()


def test_mutex_says_who_has_it(path: str) -> None:
    """The file of a mutex names the process, the host and the moment; a short name leaves no end of a long one."""
    with run_python(TAKE + "print(os.getpid()); input()", path) as child:
        pid = int(child.line())
        found = FileMutex(FS, path).holder()
        assert (found.pid, found.host) == (pid, socket.gethostname())
        assert found.since is not None
        assert abs(datetime.now(UTC) - found.since) < timedelta(minutes=1)
        child.kill()
    Path(path).write_bytes(b'{"pid": 1, "host": "' + b"x" * 200 + b'"}')
    mutex = FileMutex(FS, path)
    assert mutex.try_acquire()
    assert mutex.holder().pid == os.getpid()
    mutex.release()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"pid":"x"}', b"\xff" * 600, b'{"pid":1,"host":"h"}'])
def test_unreadable_holder_is_unknown(path: str, data: bytes) -> None:
    """A lock file without readable content names no holder, and raises nothing."""
    Path(path).parent.mkdir()
    Path(path).write_bytes(data)
    assert FileMutex(FS, path).holder() == ProcessInfo()


def test_lock_on_a_file_that_lost_its_name_is_none(path: str) -> None:
    """A waiter for a mutex whose file is swept meanwhile takes the new file of that name."""
    holder, waiter = FileMutex(FS, path), FileMutex(FS, path)
    holder.acquire()
    thread = threading.Thread(target=waiter.acquire)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    os.unlink(path)
    holder.release()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert os.path.exists(path)
    assert not is_free(path)
    waiter.release()


def test_threads_do_not_share_a_lock(path: str) -> None:
    """Two locks on one file in one process exclude each other."""
    one, other = FileMutex(FS, path), FileMutex(FS, path)
    assert one.try_acquire()
    assert not other.try_acquire()
    other.release()  # it has nothing to give back, and frees nobody else's
    assert not is_free(path)
    one.release()


def test_waiting_for_a_mutex_ends_with_a_signal(path: str) -> None:
    """Ctrl-C ends the wait for a mutex."""
    code = (
        "import signal\n"
        "signal.signal(signal.SIGUSR1, signal.default_int_handler)\n"
        "print('waits')\n"
        "try:\n    FileMutex(FileSystem(), sys.argv[1]).acquire()\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    mutex = FileMutex(FS, path)
    mutex.acquire()
    with run_python(TAKE.replace("mutex.acquire()", "") + code, path) as child:
        assert child.line() == "waits"
        wait_until(lambda: waits_for_a_lock(child.pid), what="the wait in the kernel")
        child.process.send_signal(signal.SIGUSR1)
        assert child.line() == "interrupted"
        child.end()
    assert not is_free(path)
    mutex.release()


def planted_link(path: Path) -> None:
    path.symlink_to(path.parent / "target")


def planted_hard_link(path: Path) -> None:
    (path.parent / "victim").write_bytes(b"precious")
    os.link(path.parent / "victim", path)


def planted_fifo(path: Path) -> None:
    os.mkfifo(path)


def planted_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [planted_link, planted_hard_link, planted_fifo, planted_folder])
def test_what_is_planted_at_a_mutexs_name_is_refused(path: str, plant: Callable[[Path], None]) -> None:
    """A link, a FIFO or a folder under a lock's name raises StoreError with the path, without a hang or a write."""
    Path(path).parent.mkdir()
    plant(Path(path))
    for take in (FileMutex(FS, path).try_acquire, FileMutex(FS, path).acquire):
        with pytest.raises(StoreError, match=r"key\.lock"):
            take()
    assert not (Path(path).parent / "target").exists()
    if (victim := Path(path).parent / "victim").exists():
        assert victim.read_bytes() == b"precious"
    assert FileMutex(FS, path).holder() == ProcessInfo()


@pytest.mark.parametrize("call", ["open_write", "write_at", "make_folder", "identify"])
def test_mutex_that_cannot_be_taken_raises_and_holds_nothing(path: str, call: str) -> None:
    """A full disk or a folder without rights is a StoreError, and the mutex is free for others."""
    fs = WatchedFS(failing(OSError(28, "No space left on device"), call))
    with pytest.raises(StoreError, match="No space left"):
        FileMutex(fs, path).acquire()
    assert is_free(path)
