from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
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
    at,
    caught_up,
    failing,
    lines_of,
    looked_at,
    new_fold,
    note,
    notes_of,
    only,
    put,
    refusal,
    run_python,
    tree,
    wait_until,
    waits_for_a_lock,
)

from iso_orchestrator.checks import record_names
from iso_orchestrator.codec import snapshot_from_projection
from iso_orchestrator.errors import (
    CorruptRecordError,
    FormatVersionError,
    RecordConflictError,
    StoreError,
    WorkflowBusyError,
)
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.files import Paths
from iso_orchestrator.store.file.group_commit import GroupCommit
from iso_orchestrator.store.file.log import FileWorkflowLog
from iso_orchestrator.system.filesystem import FileSystem

NPM = Path(__file__).parents[1] / "data/npm-0.2.0"
TWINS = ("batch!/!///!!///!/!!/", "batch!!/!!//!!/!!!//!")  # two ids of one short name
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def paths(root: Path) -> Paths:
    return Paths(str(root), record_names("w").short)


@pytest.fixture
def early_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals are folded at a kilobyte: `rotate` makes one so long."""
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_BYTES", 1000)
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_RATIO", 0.0)


@pytest.fixture(autouse=True)
def no_log_stays_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logs: list[FileWorkflowLog] = []
    real = FileWorkflowLog.__init__

    def init(log: FileWorkflowLog, *args: Any) -> None:
        real(log, *args)
        logs.append(log)

    monkeypatch.setattr(FileWorkflowLog, "__init__", init)
    yield
    for log in logs:
        log.close()


def opened(root: Path, fs: FileSystem | None = None, workflow_id: str = "w") -> tuple[FileWorkflowLog, Projection]:
    log, projection = FileStore(root, fs).open(workflow_id, lambda: new_fold(workflow_id))
    assert isinstance(log, FileWorkflowLog)
    return log, projection


def die(log: FileWorkflowLog) -> None:
    """What is left of a hold when its process is killed: its files, without their locks."""
    log.close()


def rotate(log: FileWorkflowLog, projection: Projection, text: str = "long") -> Projection:
    """Append so much that the journal is folded, with `early_folds`."""
    before = os.stat(log._paths.journal).st_ino
    projection = put(log, projection, note(text), f.EventAppended(T0, "filler", "x" * 1000))
    assert os.stat(log._paths.journal).st_ino != before
    return projection


def pair_of(paths: Paths) -> tuple[bytes, bytes]:
    return Path(paths.snapshot).read_bytes(), Path(paths.journal).read_bytes()


def written_by_node(paths: Paths, **changes: Any) -> bytes:
    """Another program replaces the snapshot as the npm package does; the new bytes."""
    document = {**json.loads(Path(paths.snapshot).read_bytes()), "updatedAt": "2027-01-01T00:00:00.000Z", **changes}
    data = json.dumps(document, indent=2).encode() + b"\n"
    aside = Path(paths.snapshot + ".tmp")
    aside.write_bytes(data)
    aside.rename(paths.snapshot)
    return data


def looks(root: Path, *messages: str) -> None:
    """Readers and whoever opens the workflow see these notes, now and again."""
    assert notes_of(looked_at(FileStore(root))) == list(messages)
    for _ in range(2):
        log, projection = opened(root)
        assert notes_of(projection) == list(messages)
        log.detach(projection)
    assert notes_of(looked_at(FileStore(root))) == list(messages)


# The first steps: making the root, the record and the files.


def test_files_are_for_their_owner_alone(root: Path) -> None:
    """Whatever the umask says, files are 0600 and folders 0700, and git leaves the root alone."""
    before = os.umask(0)
    try:
        log, projection = opened(root / "deep" / "er")
        put(log, projection, note("one"))
        mutex = log.mutex("k", whole_store=True)
        mutex.acquire()
    finally:
        os.umask(before)
    found = tree(root.parent)
    assert {stat.S_IMODE(mode) for mode, _ in found.values() if stat.S_ISDIR(mode)} == {0o700}
    assert {stat.S_IMODE(mode) for mode, _ in found.values() if stat.S_ISREG(mode)} == {0o600}
    assert found["root/deep/er/.gitignore"][1] == b"*\n"
    mutex.release()
    log.detach(projection)


OPENER = """
import sys
from support import *
from iso_orchestrator.store import FileStore

store = FileStore(sys.argv[1])
print("ready")
input()
log, fold = store.open("w", lambda: new_fold("w", {"by": sys.argv[2]}))
fold = put(log, fold, note(sys.argv[2]))
log.sync(fold.seq)
log.detach(fold)
print(fold.state["by"])
"""


@pytest.mark.slow
def test_many_processes_that_open_at_once_make_one_record(root: Path) -> None:
    """Of processes that all find nothing, one makes the record, and all others use it."""
    children = [run_python(OPENER, root, name) for name in "abcde"]
    try:
        for child in children:
            assert child.line() == "ready"
        for child in children:
            child.say()
        makers = {child.line() for child in children}
        for child in children:
            assert child.end() == []
    finally:
        for child in children:
            child.__exit__()
    maker = only(makers)
    projection = looked_at(FileStore(root))
    assert projection.state == {"by": maker}
    assert sorted(map(str, notes_of(projection))) == list("abcde")


def test_root_that_two_make_at_once_is_made_by_both(root: Path) -> None:
    """A process that finds every file made by another just before it could is not disturbed."""
    helper = FileStore(root)

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name in ("open_new", "open_write", "make_folder") and not root.joinpath("locks").exists():
            helper.open("other", lambda: new_fold("other"))[0].detach(None)

    _, projection = opened(root, WatchedFS(before))
    assert projection.workflow_id == "w"
    assert sorted(
        projection.workflow_id for projection in FileStore(root).list() if isinstance(projection, Projection)
    ) == ["other", "w"]


@pytest.mark.parametrize("missing", [False, True])
def test_looking_makes_and_changes_nothing(root: Path, missing: bool) -> None:
    """Reading, listing and asking for a path touch no file, in a root that is not there as in one that is in use."""
    store = FileStore(root)
    if not missing:
        log, projection = opened(root)
        put(log, projection, note("one"))
    before = tree(root.parent)
    assert (store.read("w") is None) is missing
    assert store.read("unknown") is None
    assert len(list(store.list())) == (0 if missing else 1)
    assert store.path_of("w").startswith(str(root))
    if missing:
        assert store.delete("w") is False
    assert tree(root.parent) == before


def test_looking_opens_nothing_for_writing(root: Path) -> None:
    """A reader needs no right to write: it makes only calls that change nothing."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    fs = WatchedFS()
    FileStore(root, fs).read("w")
    list(FileStore(root, fs).list())
    assert {name for name, _ in fs.calls} <= {
        "open_read",
        "read_at",
        "close",
        "list_folder",
        "identify",
        "identify_path",
    }


@pytest.mark.parametrize("where", ["", "below"])
def test_root_that_is_a_file_is_refused(root: Path, where: str) -> None:
    """A root that is a file, or under one, raises StoreError for every use, and the file stays as it was."""
    root.write_text("mine")
    store = FileStore(root / where)
    uses: list[Callable[[], Any]] = [
        lambda: store.open("w", new_fold),
        lambda: store.read("w"),
        lambda: list(store.list()),
        lambda: store.delete("w"),
        lambda: store.path_of("w"),
    ]
    for use in uses:
        with pytest.raises(StoreError, match=str(root)):
            use()
    assert root.read_text() == "mine"


def test_relative_root_is_where_it_was_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative root belongs to the current directory of the moment at which it was named."""
    monkeypatch.chdir(tmp_path)
    store = FileStore("root")
    monkeypatch.chdir("/")
    log, projection = store.open("w", new_fold)
    log.detach(projection)
    assert (root / "workflows").is_dir()
    assert store.identity == FileStore(root).identity


# Appending and syncing.


def test_append_is_one_write_and_no_sync(root: Path) -> None:
    """A fact, or several of one moment, cost one write; only who waits for the disk pays for a sync, one for all."""
    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.calls.clear()
    projection = put(log, projection, note("one"))
    projection = put(log, projection, note("two"), note("three"))
    assert (fs.count("write_at"), fs.count("sync", "sync_folder")) == (2, 0)
    log.sync(projection.seq)
    assert (fs.count("sync"), fs.count("sync_folder")) == (1, 0)
    log.sync(projection.seq)
    log.sync(0)
    assert fs.count("sync") == 1


def test_lines_tell_up_to_where_the_journal_was_synced(root: Path, paths: Paths) -> None:
    """A line that is written after a sync says so, and one of another process says what that knows."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    projection = put(log, projection, note("two"))
    log.sync(projection.seq)
    projection = put(log, projection, note("three"))
    other, its = opened(root)
    put(other, its, note("four"))
    assert [json.loads(line)["synced"] for line in lines_of(paths.journal)[1:]] == [0, 0, 2, 3]


def test_threads_share_a_sync(root: Path) -> None:
    """Threads that wait while one syncs are all served by the next sync."""
    in_sync, go_on = threading.Event(), threading.Event()

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "sync" and threading.current_thread() is not threading.main_thread():
            in_sync.set()
            assert go_on.wait(DEADLINE)

    fs = WatchedFS(before)
    log, projection = opened(root, fs)
    fs.calls.clear()
    projection = put(log, projection, note(0))
    threads = [threading.Thread(target=log.sync, args=(projection.seq,))]
    threads[0].start()
    assert in_sync.wait(DEADLINE)
    for number in range(1, 8):
        projection = put(log, projection, note(number))
        threads.append(threading.Thread(target=log.sync, args=(projection.seq,)))
        threads[-1].start()
    go_on.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert fs.count("sync") == 2


def test_waiting_thread_is_not_served_by_a_sync_that_began_before_its_write(root: Path) -> None:
    """A sync under way covers what was written before it, and nothing later."""
    in_sync, go_on = threading.Event(), threading.Event()
    served: list[str] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "sync" and threading.current_thread().name == "first":
            in_sync.set()
            assert go_on.wait(DEADLINE)

    fs = WatchedFS(before)
    log, projection = opened(root, fs)
    projection = put(log, projection, note("early"))
    first = threading.Thread(name="first", target=lambda seq=projection.seq: (log.sync(seq), served.append("first")))
    first.start()
    assert in_sync.wait(DEADLINE)
    projection = put(log, projection, note("late"))
    before_late = fs.count("sync")
    second = threading.Thread(target=lambda seq=projection.seq: (log.sync(seq), served.append("second")))
    second.start()
    go_on.set()
    first.join(DEADLINE)
    second.join(DEADLINE)
    assert sorted(served) == ["first", "second"]
    assert fs.count("sync") == before_late + 1


class Stingy(FileSystem):
    """Takes few bytes at a time."""

    def __init__(self, most: int) -> None:
        self.most = most

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return super().write_at(fd, data[: self.most], offset)


def test_short_writes_lose_nothing(root: Path) -> None:
    """A file system that takes seven bytes a call gets all of them, one call after another."""
    log, projection = opened(root, Stingy(7))
    projection = put(log, projection, note("one"), note("two"))
    log.detach(put(log, projection, note("three")))
    looks(root, "one", "two", "three")


def test_write_that_takes_nothing_is_an_error_and_no_hang(root: Path) -> None:
    """A file system that takes no byte at all makes the append fail."""
    fs = Stingy(1 << 20)
    log, projection = opened(root, fs)
    projection = put(log, projection, note("one"))
    fs.most = 0
    with pytest.raises(StoreError):
        put(log, projection, note("two"))
    fs.most = 1 << 20
    put(log, caught_up(log, None), note("three"))
    assert notes_of(looked_at(FileStore(root))) == ["one", "three"]


class Full(FileSystem):
    """A disk with so many bytes left; the write that meets its end takes what fits."""

    def __init__(self) -> None:
        self.left = 1 << 30

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if self.left == 0:
            raise NO_SPACE
        taken = super().write_at(fd, data[: self.left], offset)
        self.left -= taken
        return taken


@pytest.mark.parametrize("left", [0, 1, 60, 150])
def test_full_disk_leaves_a_sound_journal(root: Path, paths: Paths, left: int) -> None:
    """An append that finds the disk full raises, takes its half line back, and can be done when there is room."""
    fs = Full()
    log, projection = opened(root, fs)
    other, its = opened(root)
    projection = put(log, projection, note("one"))
    before = Path(paths.journal).read_bytes()
    fs.left = left
    with pytest.raises(StoreError, match=r"No space left.*space"):
        put(log, projection, note("two"), note("x" * 300))
    assert Path(paths.journal).read_bytes() == before
    assert notes_of(put(other, its, note("other"))) == ["one", "other"]
    fs.left = 1 << 30
    projection = put(log, caught_up(log, None), note("three"))
    log.sync(projection.seq)
    assert notes_of(projection) == notes_of(looked_at(FileStore(root))) == ["one", "other", "three"]


def test_half_line_that_cannot_be_taken_back_is_cut_by_the_next(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where not even the cut works, the next writer, this process or another, finds a torn tail and cuts it."""
    fs = WatchedFS()
    log, projection = opened(root, fs)
    other, its = opened(root)
    projection = put(log, projection, note("one"))

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "write_at":
            os.pwrite(args[0], args[1][:40], args[2])
            raise NO_SPACE
        if name == "truncate":
            raise BROKEN

    fs.before = before
    with pytest.raises(StoreError):
        put(log, projection, note("two"))
    fs.before = None
    assert notes_of(looked_at(FileStore(root))) == ["one"]
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        assert notes_of(put(other, its, note("other"))) == ["one", "other"]
    assert "torn" in caplog.text
    assert notes_of(put(log, caught_up(log, None), note("three"))) == ["one", "other", "three"]


def test_interrupt_within_an_append_neither_loses_nor_doubles_a_fact(root: Path) -> None:
    """A Ctrl-C between the write and its bookkeeping leaves a record that is read anew, with the fact, once."""
    fs = WatchedFS()
    log, projection = opened(root, fs)

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "write_at":
            os.pwrite(args[0], args[1], args[2])
            raise KeyboardInterrupt

    fs.before = before
    with pytest.raises(KeyboardInterrupt):
        put(log, projection, note("one"))
    fs.before = None
    projection = put(log, caught_up(log, None), note("two"))
    assert notes_of(projection) == ["one", "two"]
    log.detach(projection)
    looks(root, "one", "two")


def test_fact_that_cannot_be_folded_is_not_written(root: Path, paths: Paths) -> None:
    """A fact about a step that is not there is not left in the journal: nobody could open the record again."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    for fact in (f.StepCompleted(T0, "never", 1), f.LeaseReleased(T0, "never")):
        before = Path(paths.journal).read_bytes()
        with pytest.raises(LookupError, match="never"):
            put(log, projection, fact)
        assert Path(paths.journal).read_bytes() == before
        projection = caught_up(log, None)
    log.detach(put(log, projection, note("two")))
    looks(root, "one", "two")


def test_value_that_is_no_json_is_not_written(root: Path, paths: Paths) -> None:
    """A fact that cannot be encoded leaves the journal as it was."""
    log, projection = opened(root)
    before = Path(paths.journal).read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        put(log, projection, note("good"), f.StateUpdated(T0, float("nan")))
    assert Path(paths.journal).read_bytes() == before
    assert notes_of(caught_up(log, None)) == []


# Failed syncs.


def test_after_a_failed_sync_the_store_is_dead_in_this_process(root: Path, paths: Paths) -> None:
    """A failed sync is never tried again, nothing is appended any more, and to others this process is dead."""
    fs = WatchedFS()
    log, projection = opened(root, fs)
    other, its = opened(root)
    projection = put(log, projection, note("lost"))
    fs.before = failing(BROKEN, "sync")
    with pytest.raises(StoreError, match="Input/output error"):
        log.sync(projection.seq)
    fs.before = None
    fs.calls.clear()
    journal = Path(paths.journal).read_bytes()
    uses: list[Callable[[], Any]] = [
        lambda: log.sync(projection.seq),
        lambda: log.sync(0),
        log.lock,
        lambda: log.append(projection, [note("x")]),
    ]
    for use in uses:
        with pytest.raises(StoreError, match=r"dead in this process.*start the process again"):
            use()
    assert not log.is_current()
    assert not other.is_alive(log.process_id)
    assert Path(paths.journal).read_bytes() == journal
    assert fs.count("sync", "write_at", "replace") == 0
    its = put(other, its, note("other"))
    other.sync(its.seq)
    log.detach(None)
    assert fs.count("sync", "write_at", "replace") == 0


def test_second_sync_that_would_go_well_is_not_tried() -> None:
    """A sync that failed once is not asked again: the kernel would say yes without the pages that it gave up."""
    calls: list[int] = []

    def sync_file() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise BROKEN

    group = GroupCommit(sync_file)
    group.written = 2
    for seq in (1, 2, 0):
        with pytest.raises(StoreError, match="Input/output error"):
            group.wait_for(seq)
    assert (len(calls), group.synced) == (1, 0)


def test_threads_that_wait_for_a_sync_that_fails_all_hear_of_it(root: Path) -> None:
    """When the leader's sync fails, those that waited for it are not told that they were served."""
    in_sync, go_on = threading.Event(), threading.Event()

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "sync":
            in_sync.set()
            assert go_on.wait(DEADLINE)
            raise BROKEN

    fs = WatchedFS()
    log, projection = opened(root, fs)
    projection = put(log, projection, note("one"))
    fs.before = before
    fs.calls.clear()
    outcomes: list[str] = []

    def wait(seq: int) -> None:
        try:
            log.sync(seq)
        except StoreError as error:
            outcomes.append(str(error))
        else:
            outcomes.append("served")

    threads = [threading.Thread(target=wait, args=(projection.seq,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert in_sync.wait(DEADLINE)
    go_on.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(outcomes) == 4
    assert all("Input/output error" in outcome for outcome in outcomes)
    assert fs.count("sync") == 1


@pytest.mark.parametrize("call", ["sync", "sync_folder"])
@pytest.mark.parametrize("after", [0, 1])
def test_failed_sync_of_a_fold_is_as_bad(root: Path, early_folds: None, call: str, after: int) -> None:
    """A sync that fails while a journal is folded makes the store dead too, and no fact is lost by it."""
    fs = WatchedFS()
    log, projection = opened(root, fs)
    projection = put(log, projection, note("one"))
    fs.before = failing(BROKEN, call, after=after)
    with pytest.raises(StoreError, match="Input/output error"):
        put(log, projection, note("two"), note("x" * 1000))
    fs.before = None
    with pytest.raises(StoreError, match="dead"):
        log.lock()
    die(log)
    looks(root, "one", "two", "x" * 1000)


def test_failed_sync_of_opening_is_an_error_and_no_hold(root: Path, paths: Paths) -> None:
    """Who cannot sync what it found does not open it, and nothing stays locked."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    with pytest.raises(StoreError, match="Input/output error"):
        opened(root, WatchedFS(failing(BROKEN, "sync")))
    owners = [name.removesuffix(".flock") for name in os.listdir(paths.runs)]
    assert len(owners) == 2, "who heard of the failed sync counts as dead to those who come next"
    assert [owner for owner in owners if log.is_alive(owner)] == [log.process_id]
    die(log)
    with pytest.raises(StoreError, match="Input/output error"):
        opened(root, WatchedFS(failing(BROKEN, "sync")))
    looks(root, "one")


# Opening after others.


def test_opening_beside_others_syncs_what_they_wrote(root: Path, paths: Paths) -> None:
    """Who opens a journal in use syncs it and its folder before it answers, and lets it stay."""
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
    """What another process wrote is synced before anybody here is told that it lasts."""
    log, projection = opened(root)
    fs = WatchedFS()
    other, its = opened(root, fs)
    put(log, projection, note("one"))
    its = caught_up(other, its)
    fs.calls.clear()
    other.sync(its.seq)
    assert fs.count("sync") == 1


def test_what_another_process_has_synced_is_not_synced_again(root: Path) -> None:
    """A line that tells of a sync spares the sync to who reads it."""
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
    """Opening what was closed well writes nothing but a run file."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    before = pair_of(paths), os.stat(paths.journal).st_ino, os.stat(paths.snapshot).st_ino
    log, projection = opened(root)
    log.detach(projection)
    assert (pair_of(paths), os.stat(paths.journal).st_ino, os.stat(paths.snapshot).st_ino) == before


def test_fold_is_durable_before_it_is_visible(root: Path, paths: Paths) -> None:
    """Each file of a fold is written aside, synced, renamed and its folder synced, first the snapshot's."""
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
    """A folder's name is synced in the one above it: without that a power cut takes all that is in it."""
    fs = WatchedFS()
    opened(root / "deep", fs)
    for folder in (root, root / "deep", root / "deep" / "workflows"):
        made = fs.calls.index(("make_folder", (str(folder),)))
        synced = fs.calls.index(("sync_folder", (str(folder.parent),)), made)
        used = next(index for index, (name, args) in enumerate(fs.calls) if index > made and f"{folder}/" in str(args))
        assert synced < used


def test_last_to_leave_folds_and_not_the_first(root: Path, paths: Paths) -> None:
    """While others go on a leaving process lets the journal be; the last one folds it."""
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


def test_last_to_leave_folds_what_the_others_wrote(root: Path, paths: Paths) -> None:
    """A hold that never caught up folds everything when it is the last."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    log_a.detach(put(log_a, a, note("a")))
    log_b.detach(b)
    assert len(lines_of(paths.journal)) == 1
    looks(root, "a")


def test_last_to_leave_sweeps_mutexes_that_nobody_holds(root: Path, paths: Paths) -> None:
    """Mutex files go with the last process, but for one that is held."""
    log, projection = opened(root)
    held, free = log.mutex("held", whole_store=False), log.mutex("free", whole_store=False)
    held.acquire()
    free.acquire()
    free.release()
    log.detach(projection)
    assert only(os.listdir(paths.mutexes)).startswith("held-")
    held.release()


@pytest.mark.slow
def test_killed_process_is_no_reason_to_wait(root: Path) -> None:
    """A process that is killed while it holds the record's lock hands it on at once."""
    code = (
        "import sys\nfrom support import *\nfrom iso_orchestrator.store import FileStore\n"
        "log, fold = FileStore(sys.argv[1]).open('w', new_fold)\n"
        "put(log, fold, note('one')); log.lock(); print(log.process_id); input()\n"
    )
    with run_python(code, root) as child:
        owner = child.line()
        threading.Timer(0.05, child.kill).start()
        log, projection = opened(root)
        assert notes_of(projection) == ["one"]
        assert not log.is_alive(owner)


@pytest.mark.slow
def test_process_that_stands_still_within_the_lock_loses_nothing(root: Path) -> None:
    """While a process is stopped inside of the record's lock its peers wait, and go on after it when it wakes."""
    code = (
        "import sys\nfrom support import *\nfrom iso_orchestrator.store import FileStore\n"
        "log, fold = FileStore(sys.argv[1]).open('w', new_fold)\n"
        "log.lock(); fold = log.catch_up(fold); print('inside'); input()\n"
        "log.append(fold, [note('stopped')]); log.unlock(); log.detach(fold)\n"
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


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["log.detach_after_fork()", "pass"])
def test_forked_child_takes_nothing_from_its_parent(root: Path, deed: str) -> None:
    """A process that forks stays alive for others, keeps its lock and its place, whatever becomes of the child."""
    code = (
        "import os, sys\nfrom support import *\nfrom iso_orchestrator.store import FileStore\n"
        "log, fold = FileStore(sys.argv[1]).open('w', new_fold)\n"
        "log.lock(); fold = log.catch_up(fold)\n"
        f"if os.fork() == 0:\n    {deed}\n    os._exit(0)\n"
        "os.wait(); print(log.process_id); input()\n"
        "log.append(fold, [note('parent')]); log.unlock(); log.sync(fold.seq); log.detach(fold)\n"
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


# Following others over folds.


def test_fold_is_followed_by_those_that_go_on(root: Path, early_folds: None) -> None:
    """A process finds the new journal after another's fold, and has what the old one said before."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    b = put(log_b, b, note("before"))
    rotate(log_b, b, "folded")
    assert not log_a.is_current()
    a = put(log_a, a, note("after"))
    assert notes_of(a) == ["before", "folded", "after"]
    assert notes_of(caught_up(log_b, None)) == notes_of(a)


def test_two_folds_are_followed_at_once(root: Path, early_folds: None) -> None:
    """A process that slept over two folds loads anew, and misses nothing."""
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


def test_processes_fold_in_turns_and_lose_nothing(root: Path, early_folds: None) -> None:
    """Folds by one and the other, with appends of both in between, leave every fact once and in order."""
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


def test_reader_is_not_disturbed_by_folds(root: Path, early_folds: None) -> None:
    """Whoever reads while journals are folded sees a record, never an error, and never less than before."""
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


def test_journal_that_outgrows_its_share_is_folded(root: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that is long, and many times what its record is, is folded in the midst of the work."""
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_BYTES", 20_000)
    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.calls.clear()
    folded_at = []
    for number in range(100):
        before = fs.count("replace")
        projection = put(log, projection, f.StateUpdated(T0, {"number": number, "pad": "x" * 1000}))
        folded_at += [number] if fs.count("replace") > before else []
    # At 20,000 bytes: some 18 facts of 1,100 bytes, of which the record has the last, and the event of each. These add
    # up: in the end the snapshot is more than a quarter of 20,000 bytes, and the journal has to be twice as long.
    gaps = [after - before for before, after in pairwise([0, *folded_at])]
    assert len(gaps) == 4
    assert all(15 < gap < 20 for gap in gaps[:-1])
    assert 30 < gaps[-1] < 40
    snapshot = json.loads(Path(paths.snapshot).read_bytes())
    assert snapshot["isoOrchestrator"]["seq"] == folded_at[-1] + 1
    assert snapshot["state"]["number"] == folded_at[-1]
    log.sync(projection.seq)
    assert looked_at(FileStore(root)).state == {"number": 99, "pad": "x" * 1000}


def test_journal_that_is_all_record_is_folded_at_the_end_only(
    root: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written twice where no fold would make the files shorter; what grows later is looked at again."""
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
    """Whether it is worth folding is not asked again at each fact until the threshold has caught up with its length."""
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
def test_fold_that_finds_the_disk_full_is_put_off(
    root: Path, early_folds: None, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A fold in the midst of the work that fails is reported, and what was appended stands; later it is done."""
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


def test_fold_that_fails_half_way_does_not_part_the_pair(root: Path, early_folds: None) -> None:
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


def test_failed_fold_leaves_no_rubbish_on_a_full_disk(root: Path, paths: Paths) -> None:
    """What a fold wrote aside before the disk was full is removed: the room is needed."""
    fs = Full()
    log, projection = opened(root, fs)
    projection = put(log, projection, note("x" * 1000))
    fs.left = 500
    with pytest.raises(StoreError, match="No space left"):
        log.detach(projection)
    assert [name for name in os.listdir(paths.folder) if name.endswith(".new")] == []
    looks(root, "x" * 1000)


# Torn tails and damage.


TAILS = {
    "half a line": b'{"seq":2,"synced":0,"fact":"event.app',
    "zeros": b"\0" * 700,
    "garbage": b"\xde\xad\n\xbe\xef" * 30,
    "a good line behind a bad one": b"rubbish\n",
}


def tear(paths: Paths, kind: str) -> bytes:
    """Put a torn tail at the end of the journal; its bytes."""
    tail = TAILS[kind]
    if kind.startswith("a good line"):
        tail += lines_of(paths.journal)[-1].replace(b'"seq":1', b'"seq":3')
    with open(paths.journal, "ab") as file:
        file.write(tail)
    return tail


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize("alive", [False, True])
def test_torn_tail_is_kept_aside_reported_and_cut(
    root: Path, paths: Paths, caplog: pytest.LogCaptureFixture, kind: str, alive: bool
) -> None:
    """Opening a torn journal succeeds: what is sound is there, the rest is kept beside it and told of in the log."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    end = os.stat(paths.journal).st_size
    if not alive:
        die(log)
    tail = tear(paths, kind)
    assert notes_of(looked_at(FileStore(root))) == ["one"]  # a reader cuts nothing
    assert os.stat(paths.journal).st_size == end + len(tail)
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        other, its = opened(root)
    assert notes_of(its) == ["one"]
    assert Path(paths.torn(end)).read_bytes() == tail
    assert str(end) in only(caplog.messages)
    assert paths.torn(end) in only(caplog.messages)
    its = put(other, its, note("two"))
    if alive:
        assert notes_of(put(log, projection, note("three"))) == ["one", "two", "three"]
        assert notes_of(caught_up(other, its)) == ["one", "two", "three"]
    assert notes_of(looked_at(FileStore(root)))[:2] == ["one", "two"]


def test_a_second_torn_tail_of_one_place_is_kept_beside_the_first(root: Path, paths: Paths) -> None:
    """What was kept aside is not overwritten by what is torn at the same offset later."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    end = os.stat(paths.journal).st_size
    for number in (1, 2, 3):
        with open(paths.journal, "ab") as file:
            file.write(b"torn %d" % number)
        projection = caught_up(log, projection)
        assert os.stat(paths.journal).st_size == end
    assert [Path(paths.torn(end, number)).read_bytes() for number in (1, 2, 3)] == [b"torn 1", b"torn 2", b"torn 3"]
    log.detach(projection)
    assert FileStore(root).delete("w")
    assert os.listdir(paths.folder) == []


@pytest.mark.parametrize("kind", TAILS)
def test_torn_tail_of_a_killed_peer_is_cut_while_going_on(
    root: Path, paths: Paths, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A process in the midst of its work cuts the half line of one that was killed, before it appends."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    end = os.stat(paths.journal).st_size
    tail = tear(paths, kind)
    assert not log.is_current()
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        projection = put(log, projection, note("two"))
    assert Path(paths.torn(end)).read_bytes() == tail
    assert len(caplog.messages) == 1
    assert [json.loads(line)["seq"] for line in lines_of(paths.journal)[1:]] == [1, 2]
    assert notes_of(looked_at(FileStore(root))) == notes_of(projection) == ["one", "two"]


def test_torn_tail_of_a_journal_without_lines(root: Path, paths: Paths) -> None:
    """A journal whose first line was torn has none, and takes new ones."""
    log, _ = opened(root)
    die(log)
    end = os.stat(paths.journal).st_size
    with open(paths.journal, "ab") as file:
        file.write(b"\0" * 9)
    log, projection = opened(root)
    assert (projection.seq, os.stat(paths.journal).st_size) == (0, end)
    log.detach(put(log, projection, note("one")))
    looks(root, "one")


def test_damage_before_a_mark_is_never_written_over(root: Path, paths: Paths) -> None:
    """A bad line before one that tells of a sync raises with file and offset for all, and changes nothing."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    log.sync(projection.seq)
    put(log, projection, note("two"))
    die(log)
    header, first, second = lines_of(paths.journal)
    Path(paths.journal).write_bytes(header + first.replace(b"one", b"uno") + second)
    before = tree(root / "workflows")
    store = FileStore(root)
    for use in (lambda: store.open("w", new_fold), lambda: store.read("w")):
        with pytest.raises(CorruptRecordError) as caught:
            use()
        assert (caught.value.path, caught.value.offset) == (paths.journal, len(header))
    assert isinstance(only(store.list()), CorruptRecordError)
    assert tree(root / "workflows") == before


@pytest.mark.parametrize("name", ["snapshot", "journal"])
@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 400, b"[1]\n", b'{"version":1}', b"\xff\xfe", b"[" * 9000])
def test_file_that_is_none_of_ours_raises_and_stays(root: Path, paths: Paths, name: str, data: bytes) -> None:
    """A snapshot or a first line that no crash leaves raises CorruptRecordError, and is not touched."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    die(log)
    path = getattr(paths, name)
    Path(path).write_bytes(data)
    before = tree(root / "workflows")
    store = FileStore(root)
    for use in (lambda: store.open("w", new_fold), lambda: store.read("w")):
        with pytest.raises(CorruptRecordError) as caught:
            use()
        assert caught.value.path == path
    assert isinstance(only(store.list()), CorruptRecordError)
    assert tree(root / "workflows") == before


@pytest.mark.parametrize("data", [b"", b"\0" * 300, b"\n"])
def test_blank_snapshot_without_a_journal_is_begun_anew(
    root: Path, paths: Paths, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """A record that another program lost in a power cut does not stand in the way, and is kept aside."""
    os.makedirs(paths.folder)
    Path(paths.snapshot).write_bytes(data)
    assert FileStore(root).read("w") is None
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    assert Path(paths.torn(0)).read_bytes() == data
    assert paths.torn(0) in caplog.text
    looks(root, "one")


def test_newer_formats_are_refused_and_left_alone(root: Path, paths: Paths) -> None:
    """Files of a newer release raise FormatVersionError for whoever opens or reads, and stay as they are."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    document = json.loads(Path(paths.snapshot).read_bytes())
    os.unlink(paths.journal)
    for part in ({"version": 2}, {"isoOrchestrator": {**document["isoOrchestrator"], "format": 2}}):
        Path(paths.snapshot).write_text(json.dumps({**document, **part}))
        before = tree(root / "workflows")
        for use in (lambda: opened(root), lambda: FileStore(root).read("w")):
            with pytest.raises(FormatVersionError, match="upgrade") as caught:
                use()
            assert caught.value.path == paths.snapshot
        assert tree(root / "workflows") == before


# Crashes within a fold.


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
import os, signal, sys
from support import *
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import log as module

def before(name, args):
    if name == "replace" and args[1].endswith(".journal") and armed:
        os.kill(os.getpid(), signal.SIGKILL)

armed = []
module._CHECKPOINT_AT_BYTES = module._CHECKPOINT_AT_RATIO = 0
log, fold = FileStore(sys.argv[1], WatchedFS(before)).open("w", new_fold)
armed.append(1)
print("open")
input()
put(log, fold, note("last words"))
"""


def killed_between_the_renames(root: Path) -> Child:
    child = run_python(KILLED_IN_A_FOLD, root)
    assert child.line() == "open"
    return child


def test_fold_that_was_killed_between_its_renames_is_done_again(root: Path, paths: Paths) -> None:
    """A new snapshot beside the old journal is whole for readers, and a fresh pair for who opens it."""
    with killed_between_the_renames(root) as child:
        child.say()
        assert child.process.wait(DEADLINE) == -9
    snapshot, journal = pair_of(paths)
    assert json.loads(snapshot)["isoOrchestrator"]["seq"] == 1
    assert b"last words" in journal
    looks(root, "last words")
    assert len(lines_of(paths.journal)) == 1


@pytest.mark.slow
def test_fold_that_was_killed_between_its_renames_is_done_by_a_live_peer(root: Path, paths: Paths) -> None:
    """A process that goes on beside the killed one finds the new snapshot, and parts with nothing."""
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
def test_fold_of_one_who_opens_is_seen_by_a_live_peer_at_once(
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


class Crash(BaseException):
    """The process is gone."""


def crashing_at(number: int) -> WatchedFS:
    """A file system whose process is killed before its call of that number: from then on nothing but closing works."""
    fs = WatchedFS()

    def before(name: str, args: tuple[Any, ...]) -> None:
        if len(fs.calls) > number and name != "close":
            raise Crash

    fs.before = before
    return fs


def lifetime(root: Path, fs: FileSystem, acknowledged: list[str]) -> None:
    """Open, append, sync, fold in the midst, append, leave; what was synced is noted as acknowledged."""
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


@pytest.mark.slow
@pytest.mark.parametrize("peer", [False, True], ids=["alone", "beside a peer"])
@pytest.mark.parametrize("torn_before", [False, True], ids=["new", "recovering"])
def test_crash_before_any_call_loses_nothing(root: Path, early_folds: None, peer: bool, torn_before: bool) -> None:
    """A process killed before any one of its calls leaves a record with all that it acknowledged, for all who come."""
    texts = ["one", "two", "long" * 300, "three"]
    number, finished = 0, False
    while not finished:
        place = root / str(number)
        peer_log, peer_fold = prepared(place, peer=peer, torn=torn_before)
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
            assert notes_of(put(peer_log, peer_fold, note("peer")))[-1 - len(found) :] == [*found, "peer"], number
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
    """As `lifetime`, by a process that goes on after each error, with what the disk says."""
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


@pytest.mark.slow
@pytest.mark.parametrize("peer", [False, True], ids=["alone", "beside a peer"])
def test_any_call_that_fails_is_a_typed_error(root: Path, early_folds: None, peer: bool) -> None:
    """Whichever call the system refuses: a StoreError or no harm; what was acknowledged stays, and work goes on."""
    texts = ["one", "two", "long" * 300, "three"]
    number, finished = 0, False
    while not finished:
        place = root / str(number)
        peer_log, peer_fold = prepared(place, peer=peer, torn=True)
        acknowledged: list[str] = []
        fs = refusing_at(number, NO_SPACE)
        with suppress(StoreError):  # of opening
            stubborn_lifetime(place, fs, acknowledged)
        finished = len(fs.calls) <= number
        found = [text for text in notes_of(looked_at(FileStore(place))) if text != "earlier"]
        assert found == [text for text in texts if text in found], number
        assert set(found) >= set(acknowledged), number
        if peer_log is not None:
            assert notes_of(put(peer_log, peer_fold, note("peer")))[-1 - len(found) :] == [*found, "peer"], number
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


# Other programs.


def test_foreign_snapshot_under_a_journal_with_facts_is_a_conflict(root: Path, paths: Paths) -> None:
    """If another program wrote the snapshot while the journal held newer facts, nobody goes on, and both files stay."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    written_by_node(paths)
    before = tree(root / "workflows")
    store = FileStore(root)
    uses: list[Callable[[], Any]] = [
        lambda: store.read("w"),
        lambda: store.open("w", new_fold),
        lambda: put(log, projection, note("two")),
        lambda: caught_up(log, None),
        lambda: log.detach(projection),
        lambda: store.open("w", new_fold),  # with nobody alive
    ]
    for use in uses:
        with pytest.raises(RecordConflictError) as caught:
            use()
        assert (caught.value.path, caught.value.journal_path) == (paths.snapshot, paths.journal)
        assert tree(root / "workflows") == before
    assert isinstance(only(store.list()), RecordConflictError)


def test_foreign_snapshot_under_a_journal_without_facts_wins(root: Path, paths: Paths) -> None:
    """A workflow that was closed well, and then changed by another program, is taken as that left it."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    written_by_node(paths, state={"by": "node"})
    assert looked_at(FileStore(root)).state == {"by": "node"}
    log, projection = opened(root)
    assert projection.state == {"by": "node"}
    log.detach(put(log, projection, note("two")))
    assert looked_at(FileStore(root)).state == {"by": "node"}
    looks(root, "one", "two")


def test_foreign_snapshot_is_seen_by_a_process_that_has_written_nothing_yet(root: Path, paths: Paths) -> None:
    """Who has the workflow open, and nothing in the journal, goes on from what another program wrote."""
    log, projection = opened(root)
    written_by_node(paths, state={"by": "node"})
    projection = put(log, projection, note("one"))
    assert projection.state == {"by": "node"}
    log.detach(projection)
    assert looked_at(FileStore(root)).state == {"by": "node"}


def test_foreign_snapshot_is_not_lost_by_who_leaves(root: Path, paths: Paths) -> None:
    """The last to leave does not fold over a snapshot that another program wrote."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    data = written_by_node(paths, state={"by": "node"})
    with pytest.raises(RecordConflictError):
        log.detach(projection)
    assert Path(paths.snapshot).read_bytes() == data
    assert len(lines_of(paths.journal)) == 2


def test_foreign_snapshot_is_not_lost_by_growth(root: Path, paths: Paths, early_folds: None) -> None:
    """A journal that has to be folded is not folded over a foreign snapshot that appeared within the append."""
    data: list[bytes] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "write_at" and len(args[1]) > 1000:
            fs.before = None
            data.append(written_by_node(paths, state={"by": "node"}))

    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.before = before
    put(log, projection, note("x" * 1000))
    assert [Path(paths.snapshot).read_bytes()] == data
    assert b"x" * 1000 in Path(paths.journal).read_bytes()
    assert isinstance(refusal(log, projection), RecordConflictError)


def test_foreign_snapshot_is_not_lost_by_who_follows_a_fold(root: Path, paths: Paths, early_folds: None) -> None:
    """A process that goes over to a peer's new journal notices that the snapshot is not the journal's."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    rotate(log_b, b, "folded")
    die(log_b)
    written_by_node(paths, state={"by": "node"})
    a = put(log_a, a, note("after"))
    assert a.state == {"by": "node"}  # the new journal had no facts
    log_a.detach(a)
    assert looked_at(FileStore(root)).state == {"by": "node"}
    looks(root, "folded", "after")


def test_snapshot_that_is_only_touched_is_no_conflict(root: Path, paths: Paths) -> None:
    """A backup, a chmod or a copy back changes no byte, and disturbs nobody."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    os.utime(paths.snapshot)
    projection = put(log, projection, note("two"))
    shutil.copy(paths.snapshot, f"{paths.snapshot}.copy")
    os.replace(f"{paths.snapshot}.copy", paths.snapshot)
    log.detach(put(log, projection, note("three")))
    looks(root, "one", "two", "three")


def test_missing_snapshot_under_a_journal_is_a_conflict(root: Path, paths: Paths) -> None:
    """A journal whose snapshot is gone cannot be read, and is not taken for nothing."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    die(log)
    os.unlink(paths.snapshot)
    before = tree(root / "workflows")
    with pytest.raises(RecordConflictError):
        opened(root)
    with pytest.raises(RecordConflictError):
        FileStore(root).read("w")
    assert tree(root / "workflows") == before


def test_npm_record_is_gone_on_with_and_given_back(root: Path) -> None:
    """A record begun under Node is found by its name, and after our work holds all of it, in Node's own keys."""
    original = json.loads((NPM / "failed.json").read_bytes())
    store = FileStore(root)
    path = Path(store.path_of(original["workflowId"]))
    assert path.name == "nightly-batch-7-a2377942.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**original, "dashboard": [1]}, indent=2))
    log, projection = store.open(original["workflowId"], new_fold)
    projection = put(
        log, projection, f.StepStarted(at(1), "ours", 1, log.process_id), f.StepCompleted(at(2), "ours", None)
    )
    log.detach(projection)
    written = json.loads(path.read_bytes())
    assert written["dashboard"] == [1]
    assert written["steps"].pop("ours") == {
        "name": "ours",
        "status": "completed",
        "attempts": 1,
        "startedAt": "2026-05-14T12:00:01.007Z",
        "updatedAt": "2026-05-14T12:00:02.007Z",
        "completedAt": "2026-05-14T12:00:02.007Z",
        "result": None,
    }
    for key in ("steps", "state", "heartbeats", "leases", "createdAt", "version", "workflowId"):
        assert written[key] == original[key]
    assert written["events"][: len(original["events"])] == original["events"]


# Names that collide.


@pytest.mark.parametrize("ids", [TWINS, TWINS[::-1]])
def test_ids_of_one_short_name_have_two_records(root: Path, ids: tuple[str, str]) -> None:
    """The second id takes the long name; both are found again by whoever opens, reads, lists and deletes."""
    store = FileStore(root)
    first, second = ids
    for workflow_id in ids:
        log, projection = opened(root, workflow_id=workflow_id)
        assert projection.workflow_id == workflow_id
        log.detach(put(log, projection, note(f"of {workflow_id}")))
    for workflow_id in ids:
        assert notes_of(looked_at(store, workflow_id)) == [f"of {workflow_id}"]
        log, projection = opened(root, workflow_id=workflow_id)
        assert notes_of(projection) == [f"of {workflow_id}"]
        assert log.path == store.path_of(workflow_id)
        log.detach(projection)
    assert store.path_of(first) != store.path_of(second)
    assert {projection.workflow_id for projection in store.list() if isinstance(projection, Projection)} == set(ids)
    assert store.delete(first)
    assert store.read(first) is None
    assert notes_of(looked_at(store, second)) == [f"of {second}"]
    log, projection = opened(root, workflow_id=first)
    assert notes_of(projection) == []
    log.detach(projection)
    assert notes_of(looked_at(store, second)) == [f"of {second}"]


def test_id_that_is_not_there_is_not_read_or_deleted_under_its_twins_name(root: Path) -> None:
    """A workflow whose short name another id has is not there, and asking for it harms nobody."""
    store = FileStore(root)
    log, projection = opened(root, workflow_id=TWINS[0])
    log.detach(put(log, projection, note("mine")))
    assert store.read(TWINS[1]) is None
    assert store.delete(TWINS[1]) is False
    assert notes_of(looked_at(store, TWINS[0])) == ["mine"]


def test_twins_are_used_at_one_time(root: Path) -> None:
    """Two ids of one short name exclude each other in nothing."""
    log_a, a = opened(root, workflow_id=TWINS[0])
    log_b, b = opened(root, workflow_id=TWINS[1])
    log_a.lock()
    assert notes_of(put(log_b, b, note("b"))) == ["b"]
    log_a.unlock()
    assert notes_of(put(log_a, a, note("a"))) == ["a"]
    one, other = log_a.mutex("k", whole_store=False), log_b.mutex("k", whole_store=False)
    assert one.try_acquire()
    assert other.try_acquire()
    one.release()
    other.release()


# What should not stand there.


@pytest.mark.parametrize("name", ["snapshot", "journal", "record_lock"])
@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_what_is_planted_at_a_files_name_is_refused(root: Path, paths: Paths, name: str, kind: str) -> None:
    """A symlink, a FIFO or a folder at a file's name is a StoreError without a hang; no target is touched."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    path, target = Path(getattr(paths, name)), root.parent / "target"
    target.write_bytes(path.read_bytes())
    path.unlink()
    plant = {"symlink": lambda: path.symlink_to(target), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}
    plant[kind]()
    before = target.read_bytes()
    store = FileStore(root)
    with pytest.raises(StoreError):
        store.open("w", new_fold)
    if name == "record_lock":
        assert notes_of(looked_at(store)) == ["one"]  # readers take no lock
    else:
        with pytest.raises(StoreError):
            store.read("w")
        assert isinstance(only(store.list()), StoreError)
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["journal", "record_lock"])
def test_second_name_of_a_file_is_refused(root: Path, paths: Paths, name: str) -> None:
    """A hard link at the name of a file that is written in place is a StoreError: the other name may be anybody's."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    path, target = Path(getattr(paths, name)), root.parent / "target"
    os.link(path, target)
    before = target.read_bytes()
    with pytest.raises(StoreError, match="hard link"):
        opened(root)
    assert target.read_bytes() == before
    assert notes_of(looked_at(FileStore(root))) == ["one"]
    target.unlink()
    looks(root, "one")


def test_what_is_planted_among_the_run_files_is_refused(root: Path, paths: Paths) -> None:
    """A FIFO or symlink in the place of a run file is a StoreError and no hang."""
    log, projection = opened(root)
    log.detach(projection)
    os.mkfifo(Path(paths.runs) / f"{'0' * 16}.flock")
    with pytest.raises(StoreError, match="not a regular file"):
        opened(root)


def test_one_damaged_record_does_not_hide_the_others(root: Path, paths: Paths) -> None:
    """A list has an error in the place of a record that cannot be read, and all others."""
    for workflow_id in ("a", "w", "z"):
        log, projection = opened(root, workflow_id=workflow_id)
        log.detach(projection)
    Path(paths.snapshot).write_bytes(b"{")
    Path(paths.journal).unlink()
    (Path(paths.folder) / "notes.txt").write_text("not ours")
    found = list(FileStore(root).list())
    assert [entry.workflow_id for entry in found if isinstance(entry, Projection)] == ["a", "z"]
    assert [type(entry) for entry in found if not isinstance(entry, Projection)] == [CorruptRecordError]


def test_root_that_is_removed_under_a_process_is_an_error(root: Path) -> None:
    """Who had the workflow open when its folder was removed does not go on in the one that was made since."""
    log, projection = opened(root)
    projection = put(log, projection, note("old"))
    shutil.rmtree(root)
    refusal(log, projection)
    other, its = opened(root)
    for known in (projection, None):
        with pytest.raises(StoreError):
            put(log, known, note("stray"))
    assert notes_of(put(other, its, note("new"))) == ["new"]
    assert notes_of(looked_at(FileStore(root))) == ["new"]


def test_new_root_in_the_place_of_an_empty_one_is_noticed_too(root: Path) -> None:
    """The same where the old record had no facts, so that the new one looks like what came next."""
    log, projection = opened(root)
    shutil.rmtree(root)
    opened(root)
    with pytest.raises(StoreError):
        put(log, projection, note("stray"))
    assert notes_of(looked_at(FileStore(root))) == []


# Deleting.


def test_delete_leaves_no_file_of_the_workflow(root: Path, paths: Paths) -> None:
    """All files of a deleted workflow are gone, torn tails and locks among them, and nothing of others'."""
    log, projection = opened(root, workflow_id="other")
    log.detach(projection)
    before = tree(root)
    log, projection = opened(root)
    put(log, projection, note("one"))
    log.mutex("k", whole_store=False).try_acquire()
    die(log)
    tear(paths, "half a line")
    log, projection = opened(root)
    log.detach(projection)
    assert FileStore(root).delete("w")
    assert tree(root) == before


def test_delete_of_what_a_killed_process_used(root: Path) -> None:
    """A workflow whose process was killed can be deleted; one that lives is named with its process."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    with pytest.raises(WorkflowBusyError) as caught:
        FileStore(root).delete("w")
    assert caught.value.pid == os.getpid()
    die(log)
    assert FileStore(root).delete("w")


def test_crash_within_a_delete_leaves_a_record_or_none(root: Path) -> None:
    """A process killed before any call of a delete leaves the workflow whole or gone, and it can be deleted again."""
    number, finished = 0, False
    while not finished:
        place = root / str(number)
        log, projection = opened(place)
        log.detach(put(log, projection, note("one")))
        with suppress(Crash):
            finished = FileStore(place, crashing_at(number)).delete("w")
        projection = FileStore(place).read("w")
        assert projection is None or notes_of(projection) == ["one"], number
        assert FileStore(place).delete("w") is (projection is not None), number
        assert FileStore(place).read("w") is None
        assert os.listdir(place / "workflows") == [], number
        number += 1
    assert number > 15


@pytest.mark.parametrize("name", ["snapshot", "journal"])
def test_damaged_record_can_be_deleted(root: Path, paths: Paths, name: str) -> None:
    """A record that cannot be read can be deleted, as the message says."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    die(log)
    Path(getattr(paths, name)).write_bytes(b"rubbish")
    assert FileStore(root).delete("w")
    assert FileStore(root).read("w") is None
    assert os.listdir(paths.folder) == []


@pytest.mark.slow
def test_delete_between_the_steps_of_an_opening(root: Path, paths: Paths) -> None:
    """Who opens while another deletes gets a new record, at whatever moment that happens."""
    for number in range(40):
        place = root / str(number)
        log, projection = opened(place)
        log.detach(put(log, projection, note("old")))
        fs = WatchedFS()
        deleted: list[bool] = []

        def before(
            name: str,
            args: tuple[Any, ...],
            fs: WatchedFS = fs,
            place: Path = place,
            at_call: int = number,
            deleted: list[bool] = deleted,
        ) -> None:
            if len(fs.calls) == at_call + 1 and not locked(place):
                deleted.append(FileStore(place).delete("w"))

        fs.before = before
        log, projection = opened(place, fs)
        assert notes_of(projection) == ([] if deleted else ["old"]), number
        log.detach(put(log, projection, note("new")))
        assert notes_of(looked_at(FileStore(place)))[-1] == "new", number


def locked(place: Path) -> bool:
    """Whether somebody holds the record's lock: who deletes would wait for ever."""
    lock = Paths(str(place), record_names("w").short).record_lock
    if not os.path.exists(lock):
        return False
    import fcntl

    with open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_two_that_delete_at_once(root: Path, paths: Paths) -> None:
    """Of two that delete one workflow both end well, and nothing is left."""
    log, projection = opened(root)
    log.detach(projection)
    log, _ = opened(root)
    log.lock()
    outcomes: list[Any] = []

    def delete() -> None:
        try:
            outcomes.append(FileStore(root).delete("w"))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=delete) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: waits_for_a_lock(os.getpid()), what="the wait for the lock")
    die(log)
    for thread in threads:
        thread.join(DEADLINE)
    assert [type(outcome) for outcome in outcomes] == [bool, bool]
    assert True in outcomes
    assert FileStore(root).read("w") is None
    assert os.listdir(paths.folder) == []
