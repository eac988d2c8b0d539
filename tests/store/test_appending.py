"""Appending facts and syncing them, and what a failed sync means."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, T0, WatchedFS, caught_up, failing, lines_of, looked_at, note, notes_of, put
from support_store import BROKEN, NO_SPACE, Full, die, looks, opened

from iso_orchestrator.errors import StoreError
from iso_orchestrator.record import facts as f
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.group_commit import GroupCommit
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.system.filesystem import FileSystem

# Appending and syncing.


def test_append_is_one_write_and_no_sync(root: Path) -> None:
    """A fact, or several of one moment, cost one write; only a thread that waits for the disk pays for a sync."""
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


def test_fact_that_cannot_be_checkpointed_is_not_written(root: Path, paths: Paths) -> None:
    """A fact about a step that does not exist is not left in the journal: the record could not be opened again."""
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
    assert other.is_alive(log.process_id)  # its threads may still run steps
    log.retire()
    assert not other.is_alive(log.process_id)
    assert Path(paths.journal).read_bytes() == journal
    assert fs.count("sync", "replace") == 0
    its = put(other, its, note("other"))
    other.sync(its.seq)
    log.detach(None)
    assert fs.count("sync", "write_at", "replace") == 0


def test_what_a_failed_sync_left_is_written_anew_by_the_next_that_opens(root: Path) -> None:
    """The process lives on, since its threads may run steps. But its bytes may be read and not be durable."""
    fs, next_fs = WatchedFS(), WatchedFS()
    log, projection = opened(root, fs)
    projection = put(log, projection, note("lost"))
    fs.before = failing(BROKEN, "sync")
    with pytest.raises(StoreError, match="Input/output error"):
        log.sync(projection.seq)
    fs.before = None
    other, its = opened(root, next_fs)
    assert other.is_alive(log.process_id)
    assert next_fs.count("replace") == 2  # a fresh pair, synced by this process
    assert notes_of(its) == ["lost"]
    other.close()
    log.close()


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
    """When the leader's sync fails, all threads that waited for it get the error."""
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
def test_failed_sync_of_a_checkpoint_is_as_bad(root: Path, early_checkpoints: None, call: str, after: int) -> None:
    """A sync that fails while a fresh pair is written makes the store dead too, and no fact is lost."""
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
    """A process that cannot sync what it found does not open the workflow, and leaves nothing locked."""
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
