"""One process's hold on a workflow's files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import wraps
from itertools import count
from typing import Concatenate, ParamSpec, TypeVar

import attrs

from iso_orchestrator.codec import snapshot_from_projection
from iso_orchestrator.errors import RecordConflictError, StoreError
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.files import (
    SyncError,
    atomic_write,
    exists,
    read_all,
    read_file,
    remove,
    store_error,
    sync_file,
    sync_folder,
    write_all,
)
from iso_orchestrator.store.file.group_commit import GroupCommit
from iso_orchestrator.store.file.journal import Header, encode_header, encode_lines, parse_header, scan
from iso_orchestrator.store.file.liveness import LivenessFiles
from iso_orchestrator.store.file.mutex import FileMutex, MutexFiles
from iso_orchestrator.store.file.paths import Paths, is_mutex_file_name
from iso_orchestrator.store.file.snapshot import digest, read_files, replay
from iso_orchestrator.store.protocol import ProcessInfo, StoreMutex
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem, is_same_file, is_unchanged

__all__ = ["FileWorkflowLog"]

_log = logging.getLogger("iso_orchestrator")

# In the midst of the work a journal is folded when it is longer than this and so many times the snapshot that would be
# made of it. One that is mostly results is as long as they are: to write them once more would only cost.
_CHECKPOINT_AT_BYTES = 1 << 26
_CHECKPOINT_AT_RATIO = 4.0
_LOOK_EVERY = 0.05  # seconds

P = ParamSpec("P")
R = TypeVar("R")


@attrs.define(eq=False, repr=False)
class _Journal:
    fd: int
    file: os.stat_result
    header: Header
    end: int


def _typed(method: Callable[Concatenate[FileWorkflowLog, P], R]) -> Callable[Concatenate[FileWorkflowLog, P], R]:
    @wraps(method)
    def wrapper(self: FileWorkflowLog, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            raise self._as_typed(error) from error

    return wrapper  # type: ignore[return-value]  # mypy names the wrapper's self


class FileWorkflowLog:
    """A hold on one workflow: its lock, this process's run file, and a place in the journal.

    Args:
        fs: The file system.
        paths: The workflow's.
        record_lock: The workflow's lock, which whoever calls `enter` has.
    """

    def __init__(self, fs: FileSystem, paths: Paths, record_lock: FileLock) -> None:
        self.path = paths.snapshot
        self.logs: str | None = paths.logs
        self.process_id = ""
        self._fs = fs
        self._paths = paths
        self.record_lock = record_lock
        self.unlock = record_lock.release
        self._runs = LivenessFiles(fs, paths.runs)
        self._mutexes = MutexFiles(fs, paths)
        self._journal: _Journal | None = None
        self._snapshot: os.stat_result | None = None
        self._generation = 0  # the lock file's length when the pair was last looked at
        self._look_at = 0.0  # when to look at it again, by the monotonic clock
        self._checkpoint_at = _CHECKPOINT_AT_BYTES
        self._sync = GroupCommit(self._sync_journal)

    def enter(self, new: Callable[[], Projection], is_ours: Callable[[Projection], bool]) -> Projection | None:
        """Read the workflow, or make it from *new*; None when its name belongs to another id."""
        try:
            projection = self._load()
        except SyncError:
            # Who comes next must not take for durable what he can read: as if this process had lived and died here.
            with suppress(OSError):
                self._runs.enter()
            self._runs.give_up()
            raise
        if projection is None:
            projection = new()
            for folder in (self._paths.folder, self._paths.root):  # somebody may have made them and been killed
                sync_folder(self._fs, os.path.dirname(folder))
            self._rotate(projection)
        elif not is_ours(projection):
            self.close()
            return None
        self.process_id = self._runs.enter()
        return projection

    @_typed
    def restore(self, projection: Projection) -> None:
        """Put a fresh pair of *fold* in the place of whatever is there; the caller has the record's lock."""
        try:
            self._rotate(projection)
        finally:
            self.detach_after_fork()

    def lock(self) -> None:
        """Keep other processes out."""
        if self._sync.failure is not None:
            self._sync.check()
        self.record_lock.acquire()

    def catch_up(self, projection: Projection | None) -> Projection:
        """Take in what others have appended."""
        journal = self._journal
        try:
            if projection is None or journal is None:
                return self._reload()
            # What any process of ours does is seen by the two lengths, in a sixth of the time of a look at the paths.
            # What other programs do is looked for before the first fact, and every now and then.
            if self._has_others_facts(journal) or journal.end == journal.header.size or monotonic() >= self._look_at:
                return self._look(projection, journal)
            return projection
        except OSError as error:
            raise self._as_typed(error) from error

    def append(self, projection: Projection, facts: Sequence[Fact]) -> None:
        """Append and apply facts."""
        sync, journal = self._sync, self._journal
        try:
            if sync.failure is not None:
                sync.check()
            if self._snapshot is None or journal is None:
                journal = self._rotate(
                    projection
                )  # a fold was broken off between its renames: the old journal is done with
            data = encode_lines(facts, projection.seq + 1, sync.synced, journal.header.crc)
            for fact in facts:
                projection.apply(fact)  # first: what cannot be folded must not get into the journal
            try:
                taken = self._fs.write_at(journal.fd, data, journal.end)
                if taken < len(data):
                    write_all(self._fs, journal.fd, data[taken:], journal.end + taken)
            except OSError:
                # Half a line, which the next writer would have to take for a crash's.
                self._fs.truncate(journal.fd, journal.end)
                raise
            journal.end += len(data)
            sync.written = projection.seq
            if journal.end > self._checkpoint_at:
                self._checkpoint_early(projection, journal)
        except OSError as error:
            raise self._as_typed(error) from error

    def _as_typed(self, error: OSError) -> StoreError:
        if isinstance(error, SyncError):
            self.fail(str(error))
        return store_error(self.path, error)

    def sync(self, seq: int) -> None:
        """Wait until *seq* is on the disk."""
        try:
            self._sync.wait_for(seq)
        except StoreError as error:
            self.fail(str(error))
            raise

    def is_current(self) -> bool:
        """Whether the journal ends where this process's place in it is."""
        journal = self._journal
        if journal is None or self._sync.failure is not None or monotonic() >= self._look_at:
            return False
        try:
            return not self._has_others_facts(journal)
        except OSError:
            return False  # the locked way says what is wrong

    @_typed
    def is_alive(self, process_id: str) -> bool:
        """Whether that process holds its liveness file."""
        return self._runs.is_alive(process_id)

    def process_info(self, process_id: str) -> ProcessInfo:
        """What that process wrote into its liveness file."""
        return self._runs.info(process_id)

    def mutex(self, key: str, *, whole_store: bool) -> StoreMutex:
        """The mutex of that key."""
        return self._mutexes.mutex(key, whole_store=whole_store)

    @_typed
    def detach(self, projection: Projection | None) -> None:
        """End the hold; the last process to leave folds the journal and sweeps what nobody needs."""
        try:
            if self._sync.failure is None:
                self.record_lock.acquire()
                if self._runs.survey().living is None:
                    self._checkpoint_last(self.catch_up(projection))
                    self._runs.sweep()
                self._runs.leave()
        finally:
            self.close()

    def fail(self, reason: str) -> None:
        """Append nothing more, and let the run file go: to all others this process is dead."""
        self._sync.fail(reason)
        with suppress(StoreError):
            self._runs.give_up()

    def detach_after_fork(self) -> None:
        """In a forked child: the locks are closed already, the journal is left to the parent."""
        journal, self._journal = self._journal, None
        if journal is not None:
            self._fs.close(journal.fd)

    def close(self) -> None:
        """Close all files, which frees their locks. What a signal kept it from, a second call does."""
        with ExitStack() as stack:  # the last one first: who gets the record's lock must not find this process alive
            for close in (self.detach_after_fork, self.record_lock.close, self._mutexes.close, self._runs.give_up):
                stack.callback(close)

    def _load(self) -> Projection | None:
        """The record on disk, with this log's place in its journal; written anew where that is not safe."""
        others = self._runs.survey()
        # Whoever died may have been told of a failed sync that nobody else is told of: what can be read of his
        # is not thereby on the disk, however well a sync of ours goes. His run file says so until it is written anew.
        is_safe = others.living is not None and not others.dead
        projection = self._load_pair(is_safe=is_safe)
        self._runs.sweep()
        return projection

    def _load_pair(self, *, is_safe: bool) -> Projection | None:
        fd = self._open_journal()
        try:
            snapshot = self._fs.identify_path(self._paths.snapshot)  # before it is read: it may be replaced meanwhile
            pair = read_files(self._fs, self._paths, fd)
            if pair.tail or pair.blank:
                self._quarantine(pair.end, pair.tail)
            if fd is not None and pair.header is not None and (is_safe or not pair.lines):
                assert pair.projection is not None
                journal = _Journal(fd, self._fs.identify(fd), pair.header, pair.end)
                self._make_durable(journal, torn=bool(pair.tail))
                fd = None
                self._swap(journal, pair.projection.seq, snapshot)
                return pair.projection
        finally:
            if fd is not None:
                self._fs.close(fd)
        if pair.projection is not None:
            self._rotate(pair.projection)
        return pair.projection

    def _has_others_facts(self, journal: _Journal) -> bool:
        """Whether another process has appended, or put another pair in this one's place."""
        return self._fs.size(journal.fd) != journal.end or self.record_lock.length() != self._generation

    def _look(self, projection: Projection, journal: _Journal) -> Projection:
        """Take in what has changed, by the names of the pair."""
        snapshot_now = self._fs.identify_path(self._paths.snapshot)
        journal_now = self._fs.identify_path(self._paths.journal)
        if not is_same_file(journal_now, journal.file):
            return self._follow(projection, journal)
        if not is_unchanged(snapshot_now, self._snapshot):
            # Another program's write, or a process that died between the two renames of a fold.
            return self._reload()
        if journal_now.st_size != journal.end:
            self._read_on(projection, journal, cut=True)
        self._looked()
        return projection

    def _looked(self) -> None:
        self._generation = self.record_lock.length()
        self._look_at = monotonic() + _LOOK_EVERY

    def _reload(self) -> Projection:
        self._refuse_removed()
        projection = self._load()
        if projection is None:
            raise self._gone()
        return projection

    def _refuse_removed(self) -> None:
        """The lock keeps others out of the record only as long as it has its name."""
        if not self.record_lock.is_at_path():
            raise self._gone()

    def _gone(self) -> StoreError:
        return StoreError(f"{self.path} is gone: somebody removed the workflow while it was in use; start again")

    def _make_durable(self, journal: _Journal, *, torn: bool) -> None:
        if torn:
            self._fs.truncate(journal.fd, journal.end)
        # What a killed process wrote or renamed can be read, and is not thereby on the disk.
        sync_file(self._fs, journal.fd)
        sync_folder(self._fs, self._paths.folder)

    def _swap(self, journal: _Journal, seq: int, snapshot: os.stat_result | None) -> None:
        with self._sync.swapping(seq):
            old, self._journal = self._journal, journal
            self._snapshot = snapshot
            self._checkpoint_at = max(
                _CHECKPOINT_AT_BYTES, int(_CHECKPOINT_AT_RATIO * (snapshot.st_size if snapshot else 0))
            )
            self._sync.written = seq
        if old is not None and old.fd != journal.fd:
            self._fs.close(old.fd)
        self._looked()

    def _follow(self, projection: Projection, journal: _Journal) -> Projection:
        """Go over to the journal that another process has put in the old one's place."""
        self._refuse_removed()
        self._read_on(projection, journal, cut=False)
        fd = self._open_journal()
        if fd is None:
            return self._reload()
        try:
            header = parse_header(read_all(self._fs, fd), self._paths.journal)
            snapshot = self._fs.identify_path(self._paths.snapshot)
            if header.base != projection.seq or not self._is_snapshot_of(header):
                return self._reload()
            sync_folder(self._fs, self._paths.folder)  # who renamed it may have been killed before it could
            new = _Journal(fd, self._fs.identify(fd), header, header.size)
            fd = None
            self._swap(new, projection.seq, snapshot)
        finally:
            if fd is not None:
                self._fs.close(fd)
        return self.catch_up(projection)

    def _read_on(self, projection: Projection, journal: _Journal, *, cut: bool) -> None:
        data = read_all(self._fs, journal.fd, journal.end)
        found = scan(data, journal.header, journal.end, projection.seq + 1, self._sync.synced, self._paths.journal)
        if cut and found.end < journal.end + len(data):
            self._quarantine(found.end, data[found.end - journal.end :])
            self._fs.truncate(journal.fd, found.end)
        replay(projection, found.lines, self._paths.journal)
        journal.end = found.end
        self._sync.written = projection.seq
        self._sync.raise_to(found.mark)

    def _checkpoint_last(self, projection: Projection) -> None:
        if projection.seq > self._base():
            self._refuse_foreign_snapshot()
            self._rotate(projection)
        self._sweep_mutexes()

    def _checkpoint_early(self, projection: Projection, journal: _Journal) -> None:
        """Fold in the midst of the work, if that is worth it and can be done: what was appended is safe either way."""
        try:
            self._refuse_foreign_snapshot()
            snapshot = snapshot_from_projection(projection)
            if len(snapshot) * _CHECKPOINT_AT_RATIO <= journal.end:
                self._rotate(projection, snapshot)
                return
        except SyncError:
            raise
        except (OSError, RecordConflictError) as error:
            _log.warning("%s: the journal is not folded yet: %s", self.path, error)
        self._checkpoint_at = 2 * journal.end  # not twice what it was: others may have made the journal far longer

    def _rotate(self, projection: Projection, snapshot: bytes | None = None) -> _Journal:
        """A fresh pair from *fold*: the snapshot first, then a journal that goes on from it."""
        if snapshot is None:
            snapshot = snapshot_from_projection(projection)
        self.record_lock.grow()  # before anything is renamed: whoever is killed in between has told the others
        fd = atomic_write(self._fs, self._paths.snapshot, snapshot)
        self._snapshot = None  # until the journal that goes with it is there
        try:
            written = self._fs.identify(fd)
        finally:
            self._fs.close(fd)
        data = encode_header(projection.workflow_id, projection.seq, digest(snapshot))
        fd = atomic_write(self._fs, self._paths.journal, data)
        header = parse_header(data, self._paths.journal)
        try:
            journal = _Journal(fd, self._fs.identify(fd), header, header.size)
        except BaseException:
            self._fs.close(fd)
            raise
        self._swap(journal, projection.seq, written)
        return journal

    def _refuse_foreign_snapshot(self) -> None:
        if self._journal is None or is_unchanged(self._fs.identify_path(self._paths.snapshot), self._snapshot):
            return
        if not self._is_snapshot_of(self._journal.header):
            raise RecordConflictError(self._paths.snapshot, self._paths.journal)

    def _is_snapshot_of(self, header: Header) -> bool:
        data = read_file(self._fs, self._paths.snapshot)
        return data is not None and digest(data) == header.snapshot

    def _quarantine(self, offset: int, tail: bytes) -> None:
        paths = (self._paths.torn(offset, number) for number in count(1))
        path = next(path for path in paths if not exists(self._fs, path))
        self._fs.close(atomic_write(self._fs, path, tail))
        _log.warning("%s: %d bytes behind byte %d were torn by a crash; kept in %s", self.path, len(tail), offset, path)

    def _sweep_mutexes(self) -> None:
        for name in filter(is_mutex_file_name, self._fs.list_folder(self._paths.mutexes)):
            mutex = FileMutex(self._fs, os.path.join(self._paths.mutexes, name))
            if mutex.try_acquire():
                try:
                    remove(self._fs, os.path.join(self._paths.mutexes, name))
                finally:
                    mutex.close()

    def _open_journal(self) -> int | None:
        try:
            return self._fs.open_existing(self._paths.journal)
        except FileNotFoundError:
            return None

    def _base(self) -> int:
        return self._journal.header.base if self._journal else 0

    def _sync_journal(self) -> None:
        assert self._journal is not None
        self._fs.sync(self._journal.fd)
