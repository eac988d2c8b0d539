"""Opening a workflow that other processes use, or have left."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from support import (
    DEADLINE,
    WatchedFS,
    caught_up,
    lines_of,
    note,
    notes_of,
    only,
    put,
    run_python,
    wait_until,
    waits_for_a_lock,
)
from support_store import die, locked, looks, opened, pair_of

from iso_orchestrator.store.file.paths import Paths


def test_opening_beside_others_syncs_what_they_wrote(root: Path, paths: Paths) -> None:
    """Opening a journal that is in use syncs it and its folder, and does not replace it."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    before = os.stat(paths.journal).st_ino
    fs = WatchedFS()
    other, its = opened(root, fs)
    assert notes_of(its) == ["one"]
    assert os.stat(paths.journal).st_ino == before
    assert fs.count("sync") == 1
    assert ("sync_folder", (paths.folder,)) in fs.calls
    fs.calls.clear()
    other.sync(its.seq)
    assert fs.count("sync") == 0


def test_reading_on_does_not_count_as_synced(root: Path) -> None:
    """Facts that another process wrote are synced before they count as durable here."""
    log, projection = opened(root)
    fs = WatchedFS()
    other, its = opened(root, fs)
    put(log, projection, note("one"))
    its = caught_up(other, its)
    fs.calls.clear()
    other.sync(its.seq)
    assert fs.count("sync") == 1


def test_what_another_process_has_synced_is_not_synced_again(root: Path) -> None:
    """A line that tells of a sync spares its readers that sync."""
    log, projection = opened(root)
    fs = WatchedFS()
    other, its = opened(root, fs)
    projection = put(log, projection, note("one"))
    log.sync(projection.seq)
    put(log, projection, note("two"))
    its = caught_up(other, its)
    fs.calls.clear()
    other.sync(1)
    assert fs.count("sync") == 0
    other.sync(2)
    assert fs.count("sync") == 1


def test_first_to_open_an_unclean_journal_writes_a_fresh_pair(root: Path, paths: Paths) -> None:
    """What a dead process left can be read, and is yet written anew before anything is answered."""
    log, projection = opened(root)
    put(log, projection, note("one"), note("two"))
    die(log)
    old = os.stat(paths.journal).st_ino
    fs = WatchedFS()
    log, projection = opened(root, fs)
    assert notes_of(projection) == ["one", "two"]
    assert os.stat(paths.journal).st_ino != old
    assert len(lines_of(paths.journal)) == 1
    assert json.loads(Path(paths.snapshot).read_bytes())["isoOrchestrator"]["seq"] == 2
    assert fs.count("sync") == 2
    assert put(log, projection, note("three")).seq == 3


def test_clean_journal_is_not_written_anew(root: Path, paths: Paths) -> None:
    """Opening a workflow that was closed well writes a liveness file and nothing else."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    before = pair_of(paths), os.stat(paths.journal).st_ino, os.stat(paths.snapshot).st_ino
    log, projection = opened(root)
    log.detach(projection)
    assert (pair_of(paths), os.stat(paths.journal).st_ino, os.stat(paths.snapshot).st_ino) == before


def test_checkpoint_is_durable_before_it_is_visible(root: Path, paths: Paths) -> None:
    """Each file of a fresh pair is written aside, synced, renamed, and its folder synced; the snapshot comes first."""
    fs = WatchedFS()
    log, projection = opened(root, fs)
    projection = put(log, projection, note("one"))
    fs.calls.clear()
    log.detach(projection)
    shown = {"open_new", "write_at", "sync", "replace", "sync_folder"}
    made = [(name, str(args[0]) if isinstance(args[0], str) else "") for name, args in fs.calls if name in shown]
    assert made == [
        ("write_at", ""),  # of the lock file, for others to see
        ("open_new", f"{paths.snapshot}.new"),
        ("write_at", ""),
        ("sync", ""),
        ("replace", f"{paths.snapshot}.new"),
        ("sync_folder", paths.folder),
        ("open_new", f"{paths.journal}.new"),
        ("write_at", ""),
        ("sync", ""),
        ("replace", f"{paths.journal}.new"),
        ("sync_folder", paths.folder),
    ]


def test_new_folders_are_durable_before_they_are_used(root: Path) -> None:
    """A new folder's name is synced in the folder above: without that a power cut takes all that is in it."""
    fs = WatchedFS()
    opened(root / "deep", fs)
    for folder in (root, root / "deep", root / "deep" / "workflows"):
        made = fs.calls.index(("make_folder", (str(folder),)))
        synced = fs.calls.index(("sync_folder", (str(folder.parent),)), made)
        used = next(index for index, (name, args) in enumerate(fs.calls) if index > made and f"{folder}/" in str(args))
        assert synced < used


def test_last_to_leave_checkpoints_and_not_the_first(root: Path, paths: Paths) -> None:
    """A process that detaches leaves the journal as it is while others use it; the last one writes a fresh pair."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    a = put(log_a, a, note("a"))
    b = put(log_b, b, note("b"))
    before = pair_of(paths)
    log_a.detach(a)
    assert pair_of(paths) == before
    log_b.detach(b)
    assert len(lines_of(paths.journal)) == 1
    document = json.loads(Path(paths.snapshot).read_bytes())
    assert [event["message"] for event in document["events"]] == ["a", "b"]
    assert os.listdir(paths.runs) == []


def test_last_to_leave_checkpoints_what_the_others_wrote(root: Path, paths: Paths) -> None:
    """The last process to detach writes all facts into the snapshot, although it never caught up."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    log_a.detach(put(log_a, a, note("a")))
    log_b.detach(b)
    assert len(lines_of(paths.journal)) == 1
    looks(root, "a")


def test_last_to_detach_sweeps_free_mutexes(root: Path, paths: Paths) -> None:
    """Mutex files go with the last process, but for one that is held."""
    log, projection = opened(root)
    held, free = log.mutex("held", whole_store=False), log.mutex("free", whole_store=False)
    held.acquire()
    free.acquire()
    free.release()
    log.detach(projection)
    assert only(os.listdir(paths.mutexes)).startswith("held-")
    held.release()


def test_killed_process_is_no_reason_to_wait(root: Path) -> None:
    """The record's lock of a killed process is free at once."""
    code = (
        "import sys\nfrom support import *\nfrom iso_orchestrator.store import FileStore\n"
        "log, projection = FileStore(sys.argv[1]).open('w', new_fold)\n"
        "put(log, projection, note('one')); log.lock(); print(log.process_id); input()\n"
    )
    with run_python(code, root) as child:
        owner = child.line()
        threading.Timer(0.05, child.kill).start()
        log, projection = opened(root)
        assert notes_of(projection) == ["one"]
        wait_until(lambda: not log.is_alive(owner), what="the end of the process, whose locks went first")


def test_process_that_stands_still_within_the_lock_loses_nothing(root: Path) -> None:
    """While a process is stopped inside of the record's lock its peers wait, and go on after it when it wakes."""
    code = (
        "import sys\nfrom support import *\nfrom iso_orchestrator.store import FileStore\n"
        "log, projection = FileStore(sys.argv[1]).open('w', new_fold)\n"
        "log.lock(); projection = log.catch_up(projection); print('inside'); input()\n"
        "log.append(projection, [note('stopped')]); log.unlock(); log.detach(projection)\n"
    )
    log, projection = opened(root)
    with run_python(code, root) as child:
        assert child.line() == "inside"
        child.stop()
        found: list[str | None] = []
        thread = threading.Thread(target=lambda: found.extend(notes_of(put(log, projection, note("waited")))))
        thread.start()
        wait_until(lambda: waits_for_a_lock(os.getpid()), what="the wait for the lock")
        child.say()
        assert thread.is_alive()
        child.go_on()
        thread.join(DEADLINE)
        child.end()
    assert found == ["stopped", "waited"]


@pytest.mark.parametrize("deed", ["log.detach_after_fork()", "pass"])
def test_forked_child_takes_nothing_from_its_parent(root: Path, deed: str) -> None:
    """A process that forks stays alive for others, keeps its lock and its place, whatever becomes of the child."""
    code = (
        "import os, sys\nfrom support import *\nfrom iso_orchestrator.store import FileStore\n"
        "log, projection = FileStore(sys.argv[1]).open('w', new_fold)\n"
        "log.lock(); projection = log.catch_up(projection)\n"
        f"if os.fork() == 0:\n    {deed}\n    os._exit(0)\n"
        "os.wait(); print(log.process_id); input()\n"
        "log.append(projection, [note('parent')]); log.unlock(); log.sync(projection.seq); log.detach(projection)\n"
    )
    log, projection = opened(root)
    with run_python(code, root) as child:
        owner = child.line()
        assert log.is_alive(owner)
        assert locked(root)
        child.say()
        child.end()
        assert not log.is_alive(owner)
    assert notes_of(caught_up(log, projection)) == ["parent"]
