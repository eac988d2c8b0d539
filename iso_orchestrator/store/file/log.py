"""One process's access to a workflow's files: append facts, see those of others, write the snapshot."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count

from iso_orchestrator.codec import snapshot_from_projection
from iso_orchestrator.errors import CorruptRecordError, RecordConflictError, StoreError
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.group_commit import GroupCommit
from iso_orchestrator.store.file.journal import SEAL_SIZE, encode_lines, scan
from iso_orchestrator.store.file.paths import Paths, check_folders
from iso_orchestrator.store.file.snapshot import (
    OpenJournal,
    SnapshotAndJournal,
    digest,
    read_files,
    replay,
    write_journal,
    write_snapshot,
)
from iso_orchestrator.store.files import (
    SyncError,
    atomic_write,
    exists,
    make_folders,
    read_all,
    read_file,
    store_error,
    store_errors,
    sync_file,
    sync_folder,
    write_all,
)
from iso_orchestrator.store.liveness import LivenessFiles
from iso_orchestrator.store.mutex import MutexFiles
from iso_orchestrator.store.protocol import ProcessInfo, RemovedError, StoreMutex
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem, is_same_file, is_unchanged

_log = logging.getLogger("iso_orchestrator")

# While the workflow is in use, a fresh pair is written when the journal is longer than this, and so many times as long
# as the snapshot would be. A journal that is mostly results is as long as its snapshot: writing it again only costs.
_CHECKPOINT_AT_BYTES = 1 << 26
_CHECKPOINT_AT_RATIO = 4.0
_LOOK_EVERY = 0.05  # seconds
_LOCK_TRIES = 100


class RecordLock(FileLock):
    """The lock of a workflow's record. Its file grows by a byte for each pair of snapshot and journal.

    Args:
        fs: The file system.
        paths: The workflow's paths.
    """

    def __init__(self, fs: FileSystem, paths: Paths) -> None:
        super().__init__(fs, paths.record_lock)
        self._paths = paths

    def take(self) -> None:
        """Open the file that has the lock's name now, and lock it. `FileStore.delete` removes the file.

        Raises:
            StoreError: A folder of the root is a link, or another user's.
        """
        check_folders(self._fs, self._paths)
        tries_left = _LOCK_TRIES
        while True:
            try:
                self._fs.make_folder(self._paths.locks)
                self.open()
            except FileNotFoundError:  # `delete` removed the folder in between
                if not (tries_left := tries_left - 1):
                    raise
                continue
            self.acquire()
            if self.is_at_path():
                return
            self.close()

    def generation(self) -> int:
        """How many pairs were begun with this lock, as its file says. Needs no lock."""
        return self._fs.size(self.fd)

    def begin_generation(self) -> None:
        """Tell other processes that a pair is being replaced. Needs the lock."""
        self._fs.write_at(self.fd, b"\n", self.generation())


@contextmanager
def locked_record(fs: FileSystem, paths: Paths) -> Iterator[RecordLock]:
    """Hold a workflow's lock without opening the workflow."""
    lock = RecordLock(fs, paths)
    try:
        make_folders(fs, os.path.dirname(paths.locks))  # the copy of a root may have none
        lock.take()
        yield lock
    finally:
        lock.close()


class FileWorkflowLog:
    """One process's access to one workflow: its lock, this process's liveness file, and its place in the journal.

    Args:
        fs: The file system.
        paths: The workflow's paths.
        record_lock: The workflow's lock; the caller of `open` has taken it.
    """

    def __init__(self, fs: FileSystem, paths: Paths, record_lock: RecordLock) -> None:
        self.path = paths.snapshot
        self.logs: str | None = paths.logs
        self.process_id = ""
        self.record_lock = record_lock
        self.unlock = record_lock.release
        self._fs = fs
        self._paths = paths
        self._liveness = LivenessFiles(fs, paths.runs)
        self._mutexes = MutexFiles(fs, paths.mutexes, paths.store_mutexes)
        self._journal: OpenJournal | None = None
        self._snapshot: os.stat_result | None = None  # the file that the journal continues; None while it is replaced
        self._generation = 0  # of the pair that was looked at last
        self._look_at = 0.0  # when to look at the names of the pair again, by the monotonic clock
        self._checkpoint_at = _CHECKPOINT_AT_BYTES
        self._commits = GroupCommit(self._sync_journal)

    def open(self, new: Callable[[], Projection], is_ours: Callable[[Projection], bool]) -> Projection | None:
        """Read the workflow, or make it from *new*; None when another id has these files. Needs the lock."""
        try:
            projection = self._load()
        except SyncError:
            # Leave an unlocked liveness file, as a dead process does. It tells the next process that what it can read
            # may not be durable.
            with suppress(OSError):
                self._liveness.create()
            self._liveness.release()
            raise
        if projection is None:
            projection = new()
            for folder in (self._paths.folder, self._paths.root):  # a killed process may have made them, unsynced
                sync_folder(self._fs, os.path.dirname(folder))
            self._write_pair(projection)
        elif not is_ours(projection):
            self.close()
            return None
        self.process_id = self._liveness.create()
        return projection

    # The transaction.

    def lock(self) -> None:
        """Keep other processes out until `unlock`."""
        self._commits.check()
        self.record_lock.acquire()

    @store_errors
    def catch_up(self, projection: Projection | None) -> Projection:
        """Apply what other processes have appended."""
        journal = self._journal
        if projection is None or journal is None:
            return self._reload()
        # Two lengths tell what processes of this library did, in a sixth of the time of a look at the two names. Writes
        # of other programs are looked for before the first fact, and every `_LOOK_EVERY`.
        if self._is_changed(journal) or journal.end == journal.header.size or monotonic() >= self._look_at:
            return self._look(projection, journal)
        return projection

    @store_errors
    def append(self, projection: Projection, facts: Sequence[Fact]) -> None:
        """Append facts and apply them."""
        commits, journal = self._commits, self._journal
        commits.check()
        if self._snapshot is None or journal is None:
            journal = self._write_pair(projection)  # the last one failed after its snapshot: the old journal is void
        data = encode_lines(facts, projection.seq + 1, commits.synced, journal.header.crc)
        for fact in facts:
            projection.apply(fact)  # first: a fact that cannot be applied must not get into the journal
        try:
            taken = self._fs.write_at(journal.fd, data, journal.end)
            if taken < len(data):
                write_all(self._fs, journal.fd, data[taken:], journal.end + taken)
        except OSError:
            # Half a line, which the next writer would have to take for a crash's.
            self._fs.truncate(journal.fd, journal.end)
            raise
        journal.end += len(data)
        journal.seal = data[-SEAL_SIZE:]
        commits.written = projection.seq
        self._refuse_removed()  # after the write: a process that makes a new lock from now on reads these facts
        if journal.end > self._checkpoint_at:
            self._checkpoint_early(projection, journal)

    def sync(self, seq: int) -> None:
        """Wait until all facts up to *seq* are durable."""
        try:
            self._commits.wait_for(seq)
        except StoreError as error:
            self.fail(str(error))
            raise

    def is_current(self) -> bool:
        """Whether the journal ends at this process's place in it."""
        journal = self._journal
        if journal is None or self._commits.failure is not None or monotonic() >= self._look_at:
            return False
        try:
            return not self._is_changed(journal)
        except OSError:
            return False  # `catch_up` reports the error

    # Other processes.

    @store_errors
    def is_alive(self, process_id: str) -> bool:
        """Whether that process holds its liveness file."""
        return self._liveness.is_alive(process_id)

    def process_info(self, process_id: str) -> ProcessInfo:
        """What that process wrote into its liveness file."""
        return self._liveness.info(process_id)

    def mutex(self, key: str, *, whole_store: bool) -> StoreMutex:
        """The mutex of that key."""
        return self._mutexes.mutex(key, whole_store=whole_store)

    # The end.

    @store_errors
    def detach(self, projection: Projection | None, *, wait: bool = True) -> None:
        """Close the workflow here; the last process to do so writes the snapshot and removes unused files."""
        try:
            if self._commits.failure is None and self._lock_to_detach(wait):
                if self._liveness.survey().living is None:
                    projection = self.catch_up(projection)
                    self._checkpoint_last(projection)
                    self._liveness.sweep(projection.owners())
                if projection is not None and self.process_id not in projection.owners():
                    self._liveness.remove()  # else the file stays, unlocked: it proves that what is on record has ended
        finally:
            self.close()

    def fail(self, reason: str) -> None:
        """Append nothing more."""
        self._commits.fail(reason)
        self._liveness.note_failure()

    def retire(self) -> None:
        """After a failure: release the liveness file. To others this process is dead."""
        if self._commits.failure is not None:
            with suppress(StoreError):
                self._liveness.release()

    def detach_after_fork(self) -> None:
        """In a forked child: close the journal. The locks were closed by the fork."""
        self._close_journal()

    def close(self) -> None:
        """Close all files, which frees their locks. Call it again where a signal interrupted it."""
        with ExitStack() as stack:  # in reverse: another process that gets the record's lock must find this one dead
            for close in (self._close_journal, self.record_lock.close, self._mutexes.close, self._liveness.release):
                stack.callback(close)

    # Reading.

    def _load(self) -> Projection | None:
        """Read the pair, and continue its journal or write a fresh pair."""
        others = self._liveness.survey()
        # A crashed process may have seen a failed sync that no other process was told of, so that bytes that can be
        # read are not durable, whatever a later sync says. Its liveness file tells that until a fresh pair is written.
        is_trusted = others.living is not None and not others.dead and not others.has_failed
        # A lock that has seen no pair was made just now: another program removed the last one, and a process that still
        # has that one open may be about to write into the journal.
        is_new_lock = self.record_lock.generation() == 0
        fd = self._open_journal()
        try:
            snapshot = self._fs.identify_path(self._paths.snapshot)  # before it is read: it may be replaced meanwhile
            pair = read_files(self._fs, self._paths, fd)
            self._refuse_older(pair, fd)
            if pair.tail or pair.blank:
                self._quarantine(pair.end, pair.tail)
            is_clean = (is_trusted or not pair.lines) and not is_new_lock
            if fd is not None and pair.projection is not None and pair.header is not None and is_clean:
                seal = self._fs.read_at(fd, SEAL_SIZE, pair.end - SEAL_SIZE)
                journal = OpenJournal(fd, self._fs.identify(fd), pair.header, pair.end, seal)
                if pair.tail:
                    self._fs.truncate(fd, pair.end)
                # What a killed process wrote or renamed can be read, and need not be durable.
                sync_file(self._fs, fd)
                sync_folder(self._fs, self._paths.folder)
                fd = None
                self._use_journal(journal, pair.projection.seq, snapshot)
            elif pair.projection is not None:
                self._write_pair(pair.projection)
        finally:
            if fd is not None:
                self._fs.close(fd)
        self._liveness.sweep(() if pair.projection is None else pair.projection.owners())
        return pair.projection

    def _reload(self) -> Projection:
        self._refuse_removed()
        projection = self._load()
        if projection is None:
            raise self._removed()
        return projection

    def _is_changed(self, journal: OpenJournal) -> bool:
        """Whether another process has appended to the journal, or has begun another pair."""
        return self._fs.size(journal.fd) != journal.end or self.record_lock.generation() != self._generation

    def _look(self, projection: Projection, journal: OpenJournal) -> Projection:
        """Apply what has changed since the last look, by the names of the pair."""
        self._refuse_removed()
        snapshot_now = self._fs.identify_path(self._paths.snapshot)
        journal_now = self._fs.identify_path(self._paths.journal)
        if not is_same_file(journal_now, journal.file) or not is_unchanged(snapshot_now, self._snapshot):
            # Another process wrote a fresh pair, or died between its renames; or another program wrote the snapshot.
            return self._reload()
        self._refuse_unsealed(journal, journal.fd)
        if journal_now.st_size != journal.end:
            self._read_on(projection, journal)
        self._note_look()
        return projection

    def _read_on(self, projection: Projection, journal: OpenJournal) -> None:
        """Apply the facts after this process's place in the journal, and remove a torn tail after them."""
        data = read_all(self._fs, journal.fd, journal.end)
        found = scan(data, journal.header, journal.end, projection.seq + 1, self._commits.synced, self._paths.journal)
        if found.end < journal.end + len(data):
            self._quarantine(found.end, data[found.end - journal.end :])
            self._fs.truncate(journal.fd, found.end)
        replay(projection, found.lines, self._paths.journal)
        if found.lines:
            journal.seal = data[: found.end - journal.end][-SEAL_SIZE:]
        journal.end = found.end
        self._commits.written = projection.seq
        self._commits.raise_to(found.mark)

    def _use_journal(self, journal: OpenJournal, seq: int, snapshot: os.stat_result | None) -> None:
        """Go on with another journal, in which all facts up to *seq* are durable."""
        with self._commits.swapping(seq):
            old, self._journal = self._journal, journal
            self._snapshot = snapshot
            size = snapshot.st_size if snapshot is not None else 0
            self._checkpoint_at = max(_CHECKPOINT_AT_BYTES, int(_CHECKPOINT_AT_RATIO * size))
            self._commits.written = seq
        if old is not None and old.fd != journal.fd:
            self._fs.close(old.fd)
        self._note_look()

    def _note_look(self) -> None:
        self._generation = self.record_lock.generation()
        self._look_at = monotonic() + _LOOK_EVERY

    def _refuse_removed(self) -> None:
        """Raise where the lock's file was removed: then it keeps no process out of the record."""
        if not self.record_lock.is_at_path():
            error = self._removed()
            self.fail(str(error))
            raise error

    def _removed(self) -> StoreError:
        if exists(self._fs, self._paths.snapshot, self._paths.journal):
            return StoreError(
                f"{self.record_lock.path} was removed while the workflow was in use, so that it keeps no process out: "
                f"keep what removes files away from {self._paths.locks}, and start again"
            )
        return RemovedError(f"{self.path} is gone: the workflow was deleted while it was in use; start again")

    def _refuse_older(self, pair: SnapshotAndJournal, fd: int | None) -> None:
        """Raise where the files lack facts that this process has seen."""
        known = self._journal
        if known is None or pair.projection is None or pair.foreign:
            return
        if pair.projection.seq < self._commits.written:
            raise self._lost(pair.end)
        if fd is not None and pair.header == known.header:
            self._refuse_unsealed(known, fd)
        elif pair.header is not None and self.record_lock.generation() == self._generation:
            raise self._lost(0)  # another journal, and no process of this library has begun one

    def _refuse_unsealed(self, journal: OpenJournal, fd: int) -> None:
        """Raise where the last line that this process has seen of *journal* is not in the file *fd*."""
        if self._fs.read_at(fd, SEAL_SIZE, journal.end - SEAL_SIZE) != journal.seal:
            raise self._lost(min(journal.end, self._fs.size(fd)))

    def _lost(self, offset: int) -> CorruptRecordError:
        reason = (
            f"this process has seen facts up to {self._commits.written}, and not all of them are there: another "
            "program cut the file, or put an older copy in its place"
        )
        return CorruptRecordError(self._paths.journal, offset, reason)

    # Writing.

    def _lock_to_detach(self, wait: bool) -> bool:
        if not wait:
            return self.record_lock.try_acquire()
        self.record_lock.acquire()
        return True

    def _checkpoint_last(self, projection: Projection) -> None:
        if projection.seq > (self._journal.header.base if self._journal is not None else 0):
            self._refuse_foreign_snapshot()
            self._write_pair(projection)
        self._mutexes.sweep()

    def _checkpoint_early(self, projection: Projection, journal: OpenJournal) -> None:
        """Write a fresh pair, if that pays. The facts are safe in the journal even where that fails."""
        try:
            self._refuse_foreign_snapshot()
            snapshot = snapshot_from_projection(projection)
            if len(snapshot) * _CHECKPOINT_AT_RATIO <= journal.end:
                self._write_pair(projection, snapshot)
                return
        except SyncError:
            raise
        except (OSError, RecordConflictError) as error:
            _log.warning("%s: the journal stays long, a fresh snapshot could not be written: %s", self.path, error)
        self._checkpoint_at = 2 * journal.end  # not twice the last limit: others may have made the journal far longer

    def _write_pair(self, projection: Projection, snapshot: bytes | None = None) -> OpenJournal:
        """Replace the pair: first the snapshot of *projection*, then an empty journal that continues it."""
        self._refuse_removed()
        if snapshot is None:
            snapshot = snapshot_from_projection(projection)
        self.record_lock.begin_generation()  # before the renames: a kill between them must not go unnoticed
        written = write_snapshot(self._fs, self._paths, snapshot)
        self._snapshot = None  # until its journal exists
        journal = write_journal(self._fs, self._paths, projection, snapshot)
        self._use_journal(journal, projection.seq, written)
        return journal

    def _refuse_foreign_snapshot(self) -> None:
        if self._journal is None or is_unchanged(self._fs.identify_path(self._paths.snapshot), self._snapshot):
            return
        data = read_file(self._fs, self._paths.snapshot)
        if data is None or digest(data) != self._journal.header.snapshot:
            raise RecordConflictError(self._paths.snapshot, self._paths.journal)

    def _quarantine(self, offset: int, tail: bytes) -> None:
        """Keep the torn end of a file in a file of its own."""
        paths = (self._paths.torn(offset, number) for number in count(1))
        path = next(path for path in paths if not exists(self._fs, path))
        fd, _ = atomic_write(self._fs, path, tail)
        self._fs.close(fd)
        _log.warning("%s: %d bytes after byte %d were torn by a crash; kept in %s", self.path, len(tail), offset, path)

    def _open_journal(self) -> int | None:
        try:
            return self._fs.open_existing(self._paths.journal)
        except FileNotFoundError:
            return None

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            self._fs.close(journal.fd)

    def _sync_journal(self) -> None:
        if self._journal is None:  # closed by the thread that found it removed
            raise self._removed()
        self._fs.sync(self._journal.fd)

    def _as_store_error(self, error: OSError) -> StoreError:
        if isinstance(error, SyncError):
            self.fail(str(error))
        return store_error(self.path, error)
