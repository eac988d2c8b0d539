"""A folder of workflows."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from iso_orchestrator.errors import (
    CorruptRecordError,
    OrchestratorError,
    RecordConflictError,
    StoreError,
    WorkflowBusyError,
)
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.files import exists, make_folders, missing_folders, remove, store_error, write_all
from iso_orchestrator.store.file.liveness import LivenessFiles
from iso_orchestrator.store.file.log import FileWorkflowLog
from iso_orchestrator.store.file.network import network_type
from iso_orchestrator.store.file.paths import Paths, refuse_links
from iso_orchestrator.store.file.snapshot import read_once
from iso_orchestrator.store.protocol import WorkflowLog
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["FileStore", "lock_record"]

_LOCK_TRIES = 100
_READ_TRIES = 20
_READ_PAUSE = 0.005  # seconds; a fold of a large record takes a few of them

_log = logging.getLogger("iso_orchestrator")
_warned: set[str] = set()  # roots, of whose file systems one word is enough

T = TypeVar("T")


class FileStore:
    """The store in a folder, `.iso-orchestrator/` by default.

    Args:
        root: The folder; made on first use. It may be relative, then to the current directory of now.
        fs: The file system; tests put a double in its place.
    """

    def __init__(self, root: str | os.PathLike[str], fs: FileSystem | None = None) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self.identity = ("file", os.path.realpath(self.root))
        self._fs = fs or FileSystem()

    def open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        """Take hold of a workflow."""
        return self._typed(lambda: self._open(workflow_id, new))

    def read(self, workflow_id: str) -> Projection | None:
        """Look at a workflow."""
        return self._typed(lambda: self._read(workflow_id))

    def list(self) -> Iterator[Projection | StoreError]:
        """Look at all workflows."""
        folder = Paths(self.root, "").folder
        names = self._typed(lambda: self._fs.list_folder(folder))
        found = {name.rpartition(".")[0] for name in names if name.endswith((".json", ".journal"))}
        for name in sorted(found):
            try:
                projection = self._typed(lambda name=name: self._look(Paths(self.root, name)))  # type: ignore[misc]
            except StoreError as error:
                yield error
            else:
                if projection is not None:
                    yield projection

    def location_id(self) -> str:
        """The number of the workflows' folder on its device: a rename keeps it, and a copy has another."""
        folder = self._typed(lambda: self._fs.identify_path(Paths(self.root, "").folder))
        return "" if folder is None else f"{folder.st_dev}:{folder.st_ino}"

    def is_alive(self, workflow_id: str, process_id: str) -> bool:
        """Whether that process still has the workflow open."""
        name = os.path.basename(self.path_of(workflow_id)).removesuffix(".json")
        return self._typed(lambda: LivenessFiles(self._fs, Paths(self.root, name).runs).is_alive(process_id))

    def delete(self, workflow_id: str) -> bool:
        """Remove a workflow."""
        return self._typed(lambda: self._delete(workflow_id))

    def path_of(self, workflow_id: str) -> str:
        """Where its snapshot is, or would be."""
        full, short = Paths.candidates(self.root, workflow_id)
        is_full = self._typed(lambda: exists(self._fs, full.snapshot, full.journal))
        return (full if is_full else short).snapshot

    def _open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        self._make_root()
        full, short = Paths.candidates(self.root, workflow_id)
        first = [full] if exists(self._fs, full.snapshot, full.journal) else [short, full]
        for paths in first:
            log = FileWorkflowLog(self._fs, paths, FileLock(self._fs, paths.record_lock))
            try:
                lock_record(self._fs, log.record_lock, paths)
                projection = log.enter(new, lambda projection: projection.workflow_id == workflow_id)
                log.unlock()
            except BaseException:
                log.close()
                raise
            if projection is not None:
                return log, projection
        raise StoreError(f"both names of workflow {workflow_id!r} are taken by other ids; use another root")

    def _make_root(self) -> None:
        self._warn_of_network()
        missing = missing_folders(self._fs, self.root)
        if missing:
            with suppress(PermissionError):  # who may not look there has not made anything there
                # Where the last try was killed, the folder that it had made last may not be on the disk.
                self._fs.sync_folder(os.path.dirname(os.path.dirname(missing[0])))
        make_folders(self._fs, *(missing or [self.root]))
        self._hide_from_git()
        make_folders(self._fs, Paths(self.root, "").folder, os.path.join(self.root, "locks"))

    def _warn_of_network(self) -> None:
        if self.root in _warned:
            return
        _warned.add(self.root)
        if (kind := network_type(self._fs.mounts(), os.path.realpath(self.root))) is not None:
            _log.warning(
                "%s is on a network file system (%s), whose locks and syncs may not keep what is promised; "
                "use a folder on a disk of this machine",
                self.root,
                kind,
            )

    def _hide_from_git(self) -> None:
        path = os.path.join(self.root, ".gitignore")
        if self._fs.identify_path(path) is not None:
            return
        try:
            fd = self._fs.open_new(path)
        except FileExistsError:  # another process came first: there is no lock for the root
            return
        try:
            write_all(self._fs, fd, b"*\n", 0)
        finally:
            self._fs.close(fd)

    def _read(self, workflow_id: str) -> Projection | None:
        for paths in Paths.candidates(self.root, workflow_id):
            projection = self._look(paths)
            if projection is not None and projection.workflow_id == workflow_id:
                return projection
        return None

    def _look(self, paths: Paths) -> Projection | None:
        """Read without a lock: a fold that goes on meanwhile can make the two files seem not to fit."""
        for tries_left in reversed(range(_READ_TRIES)):
            try:
                return read_once(self._fs, paths).projection
            except (RecordConflictError, CorruptRecordError):
                if not tries_left:
                    raise
                sleep(_READ_PAUSE)
        return None

    def _delete(self, workflow_id: str) -> bool:
        for paths in Paths.candidates(self.root, workflow_id):
            if self._is_of(paths, workflow_id):
                return self._remove(paths, workflow_id)
        return False

    def _is_of(self, paths: Paths, workflow_id: str) -> bool:
        if not exists(self._fs, paths.snapshot, paths.journal):
            return False
        try:
            projection = self._look(paths)
        except StoreError:
            return True  # a damaged record is what people most want to delete
        return projection is None or projection.workflow_id == workflow_id

    def _remove(self, paths: Paths, workflow_id: str) -> bool:
        lock = FileLock(self._fs, paths.record_lock)
        try:
            lock_record(self._fs, lock, paths)
            if not self._is_of(paths, workflow_id):  # somebody else was first
                self._remove_locks(paths)
                return False
            runs = LivenessFiles(self._fs, paths.runs)
            if (owner := runs.sweep()) is not None:
                info = runs.info(owner)
                raise WorkflowBusyError(workflow_id, info.pid, info.host, info.since)
            # The journal first: without its snapshot it would be a conflict, and the snapshot alone is a record.
            self._checkpoint_before_removal(paths, lock)
            remove(self._fs, paths.journal)
            self._fs.sync_folder(paths.folder)
            remove(self._fs, paths.snapshot)
            for name in self._fs.list_folder(paths.folder):
                if name.startswith((f"{paths.name}.torn-", f"{paths.name}.json.", f"{paths.name}.journal.")):
                    remove(self._fs, os.path.join(paths.folder, name))
            self._fs.sync_folder(paths.folder)
            self._remove_logs(paths)
            self._remove_locks(paths)
            return True
        finally:
            lock.close()

    def _checkpoint_before_removal(self, paths: Paths, lock: FileLock) -> None:
        """Have everything in the snapshot: what a crash leaves of a removal must be the whole record or none."""
        try:
            pair = read_once(self._fs, paths)
        except StoreError:
            return  # it is damaged as it is
        if pair.projection is None or not pair.lines:
            return
        try:
            FileWorkflowLog(self._fs, paths, lock).restore(pair.projection)
        except StoreError as error:
            if getattr(error.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
                raise  # a full disk is why people delete

    def _remove_lock(self, path: str) -> None:
        """Remove a mutex: a file of ours, or a folder of the npm package's."""
        try:
            remove(self._fs, path)
        except (IsADirectoryError, PermissionError):  # which of the two depends on the platform
            remove(self._fs, os.path.join(path, "owner.json"))
            self._fs.remove_folder(path)

    def _remove_logs(self, paths: Paths) -> None:
        for name in self._fs.list_folder(paths.logs):
            with suppress(OSError):  # what somebody has put there is left
                remove(self._fs, os.path.join(paths.logs, name))
        self._remove_folder(paths.logs)

    def _remove_locks(self, paths: Paths) -> None:
        for name in self._fs.list_folder(paths.mutexes):
            self._remove_lock(os.path.join(paths.mutexes, name))
        self._remove_lock(os.path.join(paths.locks, "record.lock"))  # the npm package's, left by a kill
        self._remove_folder(paths.mutexes)
        self._remove_folder(paths.runs)
        remove(self._fs, paths.record_lock)
        self._remove_folder(paths.locks)  # it stays where somebody has made a new lock in it by now

    def _remove_folder(self, path: str) -> None:
        with suppress(OSError):
            self._fs.remove_folder(path)

    def _typed(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            if isinstance(error, OrchestratorError):
                raise
            raise store_error(self.root, error) from error


def lock_record(fs: FileSystem, lock: FileLock, paths: Paths) -> None:
    """Take the record's lock, on the file that has its name now: `delete` removes it."""
    refuse_links(fs, paths)
    tries_left = _LOCK_TRIES
    while True:
        try:
            fs.make_folder(paths.locks)
            lock.open()
        except FileNotFoundError:  # `delete` removed the folder in between
            if not (tries_left := tries_left - 1):
                raise
            continue
        lock.acquire()
        if lock.is_at_path():
            return
        lock.close()
