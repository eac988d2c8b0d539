"""Locks on files: what the kernel excludes, and which errors come out."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import portalocker
import pytest
from support import run_python

from iso_orchestrator import Workflow
from iso_orchestrator.errors import MutexTimeoutError, StoreError
from iso_orchestrator.system import file_lock
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

FS = FileSystem()


@pytest.fixture(params=["flock", "portalocker's own functions"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system call, and what takes its place where portalocker has no single function for the platform."""
    real = file_lock._kernel()
    if request.param != "flock":
        made = file_lock._Kernel(
            file_lock._as_flock(portalocker, portalocker.portalocker.FlockLocker()),
            real.exclusive,
            real.shared,
            real.non_blocking,
            real.unlock,
        )
        monkeypatch.setattr(file_lock, "_kernel", lambda: made)


@pytest.fixture
def locks(tmp_path: Path, kernel: None) -> Iterator[tuple[FileLock, FileLock]]:
    """Two locks on one file, as two processes have them."""
    both = FileLock(FS, str(tmp_path / "lock")), FileLock(FS, str(tmp_path / "lock"))
    for lock in both:
        lock.open()
    yield both
    for lock in both:
        lock.close()


def test_one_of_two_locks_is_taken_at_a_time(locks: tuple[FileLock, FileLock]) -> None:
    """A lock that is taken is not free for another on the same file, until it is released or closed."""
    one, other = locks
    one.acquire()
    assert not other.try_acquire()
    assert not other.try_acquire(shared=True)
    one.release()
    assert other.try_acquire()
    assert not one.try_acquire()
    other.close()
    assert one.try_acquire()


def test_shared_locks_do_not_exclude_each_other(locks: tuple[FileLock, FileLock]) -> None:
    """Two shared locks are taken together, and keep an exclusive one out."""
    one, other = locks
    assert one.try_acquire(shared=True)
    assert other.try_acquire(shared=True)
    assert not one.try_acquire()
    other.release()
    assert one.try_acquire()


def test_waiting_ends_when_the_lock_is_free(locks: tuple[FileLock, FileLock]) -> None:
    """A thread that waits for the lock has it as soon as the holder releases it."""
    one, other = locks
    one.acquire()
    thread = threading.Thread(target=other.acquire)
    thread.start()
    one.release()
    thread.join(20)
    assert not thread.is_alive()
    assert not one.try_acquire()


def test_release_that_fails_is_not_silent(locks: tuple[FileLock, FileLock]) -> None:
    """An unlock that the kernel refuses raises StoreError, which names the file."""
    lock = locks[0]
    lock.acquire()
    os.close(lock.fd)
    with pytest.raises(StoreError, match=r"cannot unlock .*lock: "):
        lock.release()
    lock.fd = -1


def test_releasing_and_closing_what_is_closed_is_harmless(locks: tuple[FileLock, FileLock]) -> None:
    """A lock can be released and closed again and again."""
    lock = locks[0]
    for _ in range(2):
        lock.close()
        lock.release()


def test_lock_on_a_removed_file_is_noticed(locks: tuple[FileLock, FileLock]) -> None:
    """A file that lost its name, or whose name another file has, is not at its path."""
    lock = locks[0]
    assert lock.is_at_path()
    os.unlink(lock.path)
    assert not lock.is_at_path()
    Path(lock.path).touch()
    assert not lock.is_at_path()


def test_errors_of_signal_handlers_come_out_as_they_are(tmp_path: Path) -> None:
    """A TimeoutError that a handler raises during the wait is no error of the lock."""
    one, other = FileLock(FS, str(tmp_path / "lock")), FileLock(FS, str(tmp_path / "lock"))
    one.open()
    other.open()
    one.acquire()

    def handler(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(TimeoutError) as caught:
            other.acquire()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert type(caught.value) is TimeoutError
    one.close()
    other.close()


def test_import_needs_no_temporary_folder(tmp_path: Path) -> None:
    """A machine without a temporary folder that can be written has locks too."""
    code = (
        "import sys, tempfile\n"
        "def missing(): raise FileNotFoundError\n"
        "tempfile._get_default_tempdir = missing\n"
        "from iso_orchestrator.system.file_lock import FileLock\n"
        "from iso_orchestrator.system.filesystem import FileSystem\n"
        "lock = FileLock(FileSystem(), sys.argv[1]); lock.open(); print(lock.try_acquire())\n"
    )
    with run_python(code, tmp_path / "lock") as child:
        assert child.line() == "True"


@pytest.mark.parametrize("locker", ["fcntl.lockf", "(lambda *_: None, lambda *_: None)"])
def test_locks_do_not_depend_on_what_a_program_sets_in_portalocker(tmp_path: Path, locker: str) -> None:
    """A program that gives portalocker another locker, for its own files, has a mutex that excludes all others."""
    code = (
        "import fcntl, sys, portalocker\n"
        f"portalocker.portalocker.LOCKER = portalocker.LOCKER = {locker}\n"
        "from iso_orchestrator import Workflow\n"
        "with Workflow('w', dir=sys.argv[1]).mutex('key'):\n    print('held')\n    input()\n"
    )
    with run_python(code, tmp_path) as child:
        assert child.line() == "held"
        workflow = Workflow("w", dir=tmp_path)
        with pytest.raises(MutexTimeoutError), workflow.mutex("key", timeout=0):
            pass
        workflow.close()
        child.say()
        child.end()


def test_locks_that_exclude_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow does not open where a lock can be taken twice, as on some network file systems."""
    real = file_lock._kernel()
    useless = attrs.evolve(real, flock=lambda *_: None)
    monkeypatch.setattr(file_lock, "_kernel", lambda: useless)
    with pytest.raises(StoreError, match="can be locked twice"):
        Workflow("w", dir=tmp_path).append_event("opened")
