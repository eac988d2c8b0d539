"""Liveness files: which processes of a workflow are alive."""

from __future__ import annotations

import os
from pathlib import Path

from support import only, run_python, wait_until
from support_processes import state_of

from iso_orchestrator.store.liveness import LivenessFiles
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

FS = FileSystem()


def test_run_file_lives_as_long_as_its_process(tmp_path: Path) -> None:
    """A process is alive, for itself and for others, until it removes or releases its file, or is killed."""
    one, other = LivenessFiles(FS, str(tmp_path)), LivenessFiles(FS, str(tmp_path))
    owner = one.create()
    assert one.is_alive(owner)
    assert other.is_alive(owner)
    assert other.other_user(()) == owner
    assert one.other_user([owner]) is None  # oneself does not count
    one.remove()
    assert not other.is_alive(owner)
    assert os.listdir(tmp_path) == []

    owner = one.create()
    one.release()
    assert not one.is_alive(owner)
    assert not other.is_alive(owner)
    assert other.other_user([owner]) is None
    other.sweep()
    assert os.listdir(tmp_path) == []


def test_killed_process_is_dead_and_swept(tmp_path: Path) -> None:
    """The liveness file of a killed process names it until the file is swept."""
    code = (
        "import sys\nfrom iso_orchestrator.system.filesystem import FileSystem\n"
        "from iso_orchestrator.store.liveness import LivenessFiles\n"
        "runs = LivenessFiles(FileSystem(), sys.argv[1]); print(runs.create()); input()\n"
    )
    runs = LivenessFiles(FS, str(tmp_path))
    with run_python(code, tmp_path) as child:
        owner = child.line()
        assert runs.is_alive(owner)
        assert runs.info(owner).pid == child.pid
        child.kill()
        assert not runs.is_alive(owner)
    assert runs.info(owner).pid == child.pid
    runs.sweep()
    assert runs.info(owner) == ProcessInfo()
    assert os.listdir(tmp_path) == []


def test_two_that_ask_do_not_take_each_other_for_the_owner(tmp_path: Path) -> None:
    """A probe of a dead owner's file does not look alive to another probe."""
    runs = LivenessFiles(FS, str(tmp_path))
    owner = runs.create()
    runs.release()
    probe = FileLock(FS, str(tmp_path / only(os.listdir(tmp_path))))
    probe.open_read()
    assert probe.try_acquire(shared=True)
    assert not LivenessFiles(FS, str(tmp_path)).is_alive(owner)
    probe.close()


def test_forked_child_does_not_keep_its_parent_alive(tmp_path: Path) -> None:
    """The liveness file of a killed process is free although its forked child lives."""
    code = (
        "import os, sys\nfrom iso_orchestrator.system.filesystem import FileSystem\n"
        "from iso_orchestrator.store.liveness import LivenessFiles\n"
        "runs = LivenessFiles(FileSystem(), sys.argv[1]); owner = runs.create()\n"
        "if os.fork() == 0:\n    runs.release(); print(owner, os.getpid()); input(); os._exit(0)\n"
        "os.wait()\n"
    )
    runs = LivenessFiles(FS, str(tmp_path))
    with run_python(code, tmp_path) as child:
        owner, pid = child.line().split()
        assert runs.is_alive(owner)
        child.kill()
        assert not runs.is_alive(owner)
        assert state_of(int(pid)) in "SR"
        child.say()
        wait_until(lambda: state_of(int(pid)) == "Z", what="the end of the forked child")
