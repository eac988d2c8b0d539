"""Writing a fresh pair of snapshot and journal, beside other processes and through crashes."""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import (
    DEADLINE,
    T0,
    Child,
    WatchedFS,
    caught_up,
    failing,
    lines_of,
    looked_at,
    new_fold,
    note,
    notes_of,
    put,
    run_python,
)
from support_store import NO_SPACE, Crash, Full, crashing_at, die, looks, opened, pair_of, rotate

from iso_orchestrator.codec import snapshot_from_projection
from iso_orchestrator.errors import StoreError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.log import FileWorkflowLog
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.system.filesystem import FileSystem

# Following checkpoints of other processes.


def test_a_workflow_with_facts_in_its_journal_is_not_checkpointed(root: Path) -> None:
    """Other programs do not read the journal."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    assert not FileStore(root).is_checkpointed("w")


def test_checkpoint_is_followed_by_those_that_go_on(root: Path, early_checkpoints: None) -> None:
    """After another process's checkpoint a process has the facts of the old journal and those of the new one."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    b = put(log_b, b, note("before"))
    rotate(log_b, b, "checkpointed")
    assert not log_a.is_current()
    a = put(log_a, a, note("after"))
    assert notes_of(a) == ["before", "checkpointed", "after"]
    assert notes_of(caught_up(log_b, None)) == notes_of(a)


def test_two_checkpoints_are_followed_at_once(root: Path, early_checkpoints: None) -> None:
    """A process that slept through two checkpoints misses nothing."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    b = rotate(log_b, b, "one")
    b = put(log_b, b, note("two"))
    b = rotate(log_b, b, "three")
    b = put(log_b, b, note("four"))
    a = put(log_a, a, note("five"))
    assert notes_of(a) == ["one", "two", "three", "four", "five"]
    log_a.sync(a.seq)
    log_b.detach(b)
    log_a.detach(a)
    looks(root, "one", "two", "three", "four", "five")


def test_processes_checkpoint_in_turns_and_lose_nothing(root: Path, early_checkpoints: None) -> None:
    """Two processes that append and checkpoint in turns leave every fact once and in order."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    expected = []
    for number in range(12):
        mine, text = number % 2, f"n{number}"
        log, projection = (log_a, a) if mine else (log_b, b)
        projection = rotate(log, projection, text) if number % 3 == 0 else put(log, projection, note(text))
        log.sync(projection.seq)
        a, b = (projection, b) if mine else (a, projection)
        expected.append(text)
    assert notes_of(caught_up(log_a, a)) == notes_of(caught_up(log_b, b)) == expected
    assert notes_of(looked_at(FileStore(root))) == expected


def test_reader_is_not_disturbed_by_checkpoints(root: Path, early_checkpoints: None) -> None:
    """A reader during checkpoints sees a record, never an error, and never less than before."""
    log, projection = opened(root)
    done = threading.Event()
    seen: list[int] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(looked_at(FileStore(root)).seq)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(40):
        projection = rotate(log, projection, str(number)) if number % 2 else put(log, projection, note(number))
    done.set()
    thread.join(DEADLINE)
    assert errors == []
    assert len(seen) > 3
    assert seen == sorted(seen)


def test_reader_between_two_pairs_looks_again(root: Path, paths: Paths) -> None:
    """A reader that got the journal of one pair and the snapshot of another reads both anew."""
    log, projection = opened(root)
    put(log, projection, note("old"))
    die(log)

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "open_read" and args[0] == paths.snapshot:
            fs.before = None
            FileStore(root).delete("w")
            log, projection = FileStore(root).open("w", lambda: new_fold("w", {"incarnation": 2}))
            put(log, projection, note("new"))

    fs = WatchedFS(before)
    assert notes_of(looked_at(FileStore(root, fs))) == ["new"]


def test_journal_that_outgrows_its_share_is_checkpointed(
    root: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that is long, and many times as long as its record, is replaced while the workflow is in use."""
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_BYTES", 20_000)
    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.calls.clear()
    written_at = []
    for number in range(100):
        before = fs.count("replace")
        projection = put(log, projection, f.StateUpdated(T0, {"number": number, "pad": "x" * 1000}))
        written_at += [number] if fs.count("replace") > before else []
    # At 20,000 bytes: some 18 facts of 1,100 bytes, of which the record has the last, and the event of each. These add
    # up: in the end the snapshot is more than a quarter of 20,000 bytes, and the journal has to be twice as long.
    gaps = [after - before for before, after in pairwise([0, *written_at])]
    assert len(gaps) == 4
    assert all(15 < gap < 20 for gap in gaps[:-1])
    assert 30 < gaps[-1] < 40
    snapshot = json.loads(Path(paths.snapshot).read_bytes())
    assert snapshot["isoOrchestrator"]["seq"] == written_at[-1] + 1
    assert snapshot["state"]["number"] == written_at[-1]
    log.sync(projection.seq)
    assert looked_at(FileStore(root)).state == {"number": 99, "pad": "x" * 1000}


def test_journal_that_is_all_record_is_checkpointed_at_the_end_only(
    root: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fresh pair is written where it would not be shorter; as the journal grows that is checked again."""
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_BYTES", 20_000)
    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.calls.clear()
    for number in range(300):
        projection = put(log, projection, f.EventAppended(T0, "note", str(number), "x" * 1000))
    assert fs.count("replace") == 0
    for number in range(3000):
        projection = put(log, projection, f.StateUpdated(T0, {"number": number, "pad": "x" * 1000}))
    assert fs.count("replace") == 2
    log.detach(projection)
    assert fs.count("replace") == 4
    assert notes_of(looked_at(FileStore(root))) == [str(number) for number in range(300)]


def test_long_journal_of_others_is_looked_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that comes to a long journal does not make its snapshot at each fact to see whether it is shorter."""
    log, projection = opened(root)
    for number in range(300):
        projection = put(log, projection, f.EventAppended(T0, "note", str(number), "x" * 1000))
    log.sync(projection.seq)
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_BYTES", 20_000)
    other, seen = opened(root)
    snapshots: list[Projection] = []

    def snapshot(projection: Projection) -> bytes:
        snapshots.append(projection)
        return snapshot_from_projection(projection)

    monkeypatch.setattr("iso_orchestrator.store.file.log.snapshot_from_projection", snapshot)
    for number in range(20):
        seen = put(other, seen, f.EventAppended(T0, "note", str(number)))
    assert len(snapshots) == 1


@pytest.mark.parametrize("ending", [".json.new", ".journal.new"])
def test_checkpoint_that_finds_the_disk_full_is_put_off(
    root: Path, early_checkpoints: None, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint that fails is reported in the log, the appended facts stay, and it is done later."""
    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.before = failing(NO_SPACE, "open_new", ending=ending)
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        projection = put(log, projection, note("one"), note("x" * 1000))
    assert "No space left" in caplog.text
    assert notes_of(looked_at(FileStore(root))) == ["one", "x" * 1000]
    fs.before = None
    projection = put(log, projection, note("two"))
    log.sync(projection.seq)
    log.detach(projection)
    looks(root, "one", "x" * 1000, "two")


def test_checkpoint_that_fails_half_way_does_not_part_the_pair(root: Path, early_checkpoints: None) -> None:
    """A new snapshot beside the old journal is no reason for what is appended next, under the same lock, to be lost."""
    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.before = failing(NO_SPACE, "open_new", ending=".journal.new")
    log.lock()
    projection = log.catch_up(projection)
    log.append(projection, [note("one"), note("x" * 1000)])
    try:
        log.append(projection, [note("two")])
        expected = ["one", "x" * 1000, "two"]
    except StoreError:
        expected = ["one", "x" * 1000]
    log.unlock()
    die(log)
    looks(root, *expected)


def test_failed_checkpoint_leaves_no_rubbish_on_a_full_disk(root: Path, paths: Paths) -> None:
    """What a checkpoint had written before the disk was full is removed: the space is needed."""
    fs = Full()
    log, projection = opened(root, fs)
    projection = put(log, projection, note("x" * 1000))
    fs.left = 500
    with pytest.raises(StoreError, match="No space left"):
        log.detach(projection)
    assert [name for name in os.listdir(paths.folder) if name.endswith(".new")] == []
    looks(root, "x" * 1000)


# Crashes during a checkpoint.


def test_what_a_killed_process_wrote_aside_is_no_hindrance(root: Path, paths: Paths) -> None:
    """Files that were written aside and got no name are written over."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    for path in (paths.snapshot, paths.journal):
        Path(f"{path}.new").write_bytes(b"half of something")
    log.detach(projection)
    assert sorted(os.listdir(paths.folder)) == sorted(
        os.path.basename(path) for path in (paths.snapshot, paths.journal)
    )
    looks(root, "one")


KILLED_IN_A_FOLD = """
import sys
from support import *
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import log as module
from iso_orchestrator.testing import crash_here

def before(name, args):
    if name == "replace" and args[1].endswith(".journal") and armed:
        crash_here()

armed = []
module._CHECKPOINT_AT_BYTES = module._CHECKPOINT_AT_RATIO = 0
log, projection = FileStore(sys.argv[1], WatchedFS(before)).open("w", new_fold)
armed.append(1)
print("open")
input()
put(log, projection, note("last words"))
"""


def killed_between_the_renames(root: Path) -> Child:
    child = run_python(KILLED_IN_A_FOLD, root)
    assert child.line() == "open"
    return child


def test_checkpoint_that_was_killed_between_its_renames_is_done_again(root: Path, paths: Paths) -> None:
    """A new snapshot beside the old journal is a whole record for readers, and opening makes a fresh pair."""
    with killed_between_the_renames(root) as child:
        child.say()
        assert child.process.wait(DEADLINE) == -9
    snapshot, journal = pair_of(paths)
    assert json.loads(snapshot)["isoOrchestrator"]["seq"] == 1
    assert b"last words" in journal
    looks(root, "last words")
    assert len(lines_of(paths.journal)) == 1


def test_checkpoint_that_was_killed_between_its_renames_is_done_by_a_live_peer(root: Path, paths: Paths) -> None:
    """A process that was beside the killed one finds the new snapshot, and loses nothing."""
    log, projection = opened(root)
    projection = put(log, projection, note("first"))
    with killed_between_the_renames(root) as child:
        projection = put(log, projection, note("second"))
        child.say()
        assert child.process.wait(DEADLINE) == -9
    assert notes_of(looked_at(FileStore(root))) == ["first", "second", "last words"]
    projection = put(log, projection, note("after"))
    assert notes_of(projection) == ["first", "second", "last words", "after"]
    log.sync(projection.seq)
    log.detach(projection)
    looks(root, "first", "second", "last words", "after")


@pytest.mark.parametrize("is_killed", [False, True])
def test_checkpoint_of_one_who_opens_is_seen_by_a_live_peer_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """A process that never looks at the names again learns of a new pair, or half of one, by the lock file's length."""
    monkeypatch.setattr("iso_orchestrator.store.file.log._LOOK_EVERY", 1e9)
    log_dead, dead = opened(root)
    log, projection = opened(root)
    put(log_dead, dead, note("first"))
    projection = put(log, projection, note("second"))
    die(log_dead)  # so that the next to open writes a fresh pair

    def before(name: str, args: tuple[Any, ...]) -> None:
        if is_killed and name == "replace" and args[1].endswith(".journal"):
            raise Crash

    with suppress(Crash):
        die(opened(root, WatchedFS(before))[0])
    projection = put(log, projection, note("third"))
    assert notes_of(projection) == ["first", "second", "third"]
    log.sync(projection.seq)
    log.detach(projection)
    looks(root, "first", "second", "third")


def lifetime(root: Path, fs: FileSystem, acknowledged: list[str]) -> None:
    """Open, append, sync, checkpoint, append, detach; what was synced is noted as acknowledged."""
    log, projection = FileStore(root, fs).open("w", new_fold)
    assert isinstance(log, FileWorkflowLog)
    try:
        for text in ("one", "two", "long" * 300, "three"):
            projection = put(log, projection, note(text))
            log.sync(projection.seq)
            acknowledged.append(text)
        log.detach(projection)
    except Crash:
        die(log)
        raise


@pytest.mark.parametrize("peer", [False, True], ids=["alone", "beside a peer"])
@pytest.mark.parametrize("torn_before", [False, True], ids=["new", "recovering"])
def test_crash_before_any_call_loses_nothing(
    root: Path, early_checkpoints: None, peer: bool, torn_before: bool
) -> None:
    """A process killed before any one of its calls leaves a record with all that it acknowledged."""
    texts = ["one", "two", "long" * 300, "three"]
    number, finished = 0, False
    while not finished:
        place = root / str(number)
        peer_log, peer_projection = prepared(place, peer=peer, torn=torn_before)
        acknowledged: list[str] = []
        try:
            lifetime(place, crashing_at(number), acknowledged)
            finished = True
        except Crash:
            pass
        projection = FileStore(place).read("w")
        found = [text for text in notes_of(projection) if text != "earlier"] if projection else []
        assert found == texts[: len(found)], number
        assert len(found) >= len(acknowledged), number
        if peer_log is not None:
            assert notes_of(put(peer_log, peer_projection, note("peer")))[-1 - len(found) :] == [*found, "peer"], number
            found.append("peer")
            die(peer_log)
        log, projection = opened(place)
        assert [text for text in notes_of(projection) if text != "earlier"] == found, number
        log.detach(put(log, projection, note("after")))
        assert notes_of(looked_at(FileStore(place)))[-1 - len(found) :] == [*found, "after"], number
        number += 1
    assert number > 40


def refusing_at(number: int, error: OSError) -> WatchedFS:
    """A file system whose call of that number fails, once."""
    fs = WatchedFS()

    def before(name: str, args: tuple[Any, ...]) -> None:
        if len(fs.calls) == number + 1 and name != "close":
            raise error

    fs.before = before
    return fs


def stubborn_lifetime(root: Path, fs: FileSystem, acknowledged: list[str]) -> None:
    """As `lifetime`, by a process that continues after each error with what is on the disk."""
    log, known = FileStore(root, fs).open("w", new_fold)
    assert isinstance(log, FileWorkflowLog)
    projection: Projection | None = known
    for text in ("one", "two", "long" * 300, "three"):
        try:
            projection = put(log, projection, note(text))  # type: ignore[arg-type]
            log.sync(projection.seq)
            acknowledged.append(text)
        except StoreError:
            projection = None
    try:
        log.detach(projection)
    except StoreError:
        die(log)


@pytest.mark.parametrize("peer", [False, True], ids=["alone", "beside a peer"])
def test_any_call_that_fails_is_a_typed_error(root: Path, early_checkpoints: None, peer: bool) -> None:
    """Whichever call fails, there is a StoreError or no harm; what was acknowledged stays, and work continues."""
    texts = ["one", "two", "long" * 300, "three"]
    number, finished = 0, False
    while not finished:
        place = root / str(number)
        peer_log, peer_projection = prepared(place, peer=peer, torn=True)
        acknowledged: list[str] = []
        fs = refusing_at(number, NO_SPACE)
        with suppress(StoreError):  # of opening
            stubborn_lifetime(place, fs, acknowledged)
        finished = len(fs.calls) <= number
        found = [text for text in notes_of(looked_at(FileStore(place))) if text != "earlier"]
        assert found == [text for text in texts if text in found], number
        assert set(found) >= set(acknowledged), number
        if peer_log is not None:
            assert notes_of(put(peer_log, peer_projection, note("peer")))[-1 - len(found) :] == [*found, "peer"], number
            found.append("peer")
            peer_log.detach(None)
        log, projection = opened(place)
        assert [text for text in notes_of(projection) if text != "earlier"] == found, number
        log.detach(put(log, projection, note("after")))
        assert notes_of(looked_at(FileStore(place)))[-1 - len(found) :] == [*found, "after"], number
        number += 1
    assert number > 40


def prepared(place: Path, *, peer: bool, torn: bool) -> tuple[FileWorkflowLog | None, Projection | None]:
    """A root in which something has happened before, and perhaps a live peer."""
    if torn:
        log, projection = opened(place)
        put(log, projection, note("earlier"))
        die(log)
        with open(log._paths.journal, "ab") as file:
            file.write(b"torn")
    return opened(place) if peer else (None, None)
