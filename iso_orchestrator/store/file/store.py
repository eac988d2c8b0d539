"""The file store: a folder of workflows."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from iso_orchestrator.errors import StoreError, WorkflowBusyError, WorkflowNotFoundError
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.log import FileWorkflowLog, RecordLock, locked_record
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.snapshot import combine, read_once, read_unlocked, write_pair
from iso_orchestrator.store.files import (
    atomic_write,
    exists,
    make_folders,
    missing_folders,
    read_file,
    remove,
    store_error,
    store_errors,
    write_all,
)
from iso_orchestrator.store.liveness import LivenessFiles
from iso_orchestrator.store.protocol import Size, Store, WorkflowLog
from iso_orchestrator.system.filesystem import FileSystem, folders_above
from iso_orchestrator.system.interrupts import undo_on_error

if TYPE_CHECKING:
    from iso_orchestrator.store.maintenance import RepairOptions, RepairReport, WorkflowCheck

_log = logging.getLogger("iso_orchestrator")
_warned: set[str] = set()  # roots on network file systems: one warning each is enough


class FileStore(Store):
    """The store in a folder, `.iso-orchestrator/` by default.

    Args:
        root: The folder, made at first use. A relative path starts from the current directory of now.
        fs: The file system; tests put a double in its place.

    Attributes:
        root: The folder's absolute path.
    """

    _is_default = False  # whether it depends on the current folder alone which root this is

    def __init__(self, root: str | os.PathLike[str], fs: FileSystem | None = None) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self._identity = ("file", os.path.realpath(self.root))
        self._fs = fs or FileSystem()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the folder."""
        return FileStore, (self.root,)

    @property
    def identity(self) -> tuple[str, str]:
        """Equal for two stores on one folder, by whatever path."""
        return self._identity

    @property
    def display_name(self) -> str:
        """The folder's path."""
        return self.root

    @store_errors
    def open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        """Open a workflow for appending; made from *new* when there is none."""

        def begin() -> Projection:
            if self._is_default:
                self._warn_of_other_record(workflow_id)
            return new()

        self._make_root()
        full, short = Paths.candidates(self.root, workflow_id)
        for paths in [full] if exists(self._fs, full.snapshot, full.journal) else [short, full]:
            log = FileWorkflowLog(self._fs, paths, RecordLock(self._fs, paths))
            with undo_on_error(log.close):
                log.record_lock.take()
                projection = log.open(begin, lambda projection: projection.workflow_id == workflow_id)
                log.unlock()
            if projection is not None:
                return log, projection
        raise StoreError(f"both names of workflow {workflow_id!r} are taken by other ids; use another root")

    @store_errors
    def read(self, workflow_id: str) -> Projection | None:
        """Read a workflow; nothing is locked, made or changed."""
        for paths in Paths.candidates(self.root, workflow_id):
            projection = read_unlocked(self._fs, paths).projection
            if projection is not None and projection.workflow_id == workflow_id:
                return projection
        return None

    def list(self) -> Iterator[Projection | StoreError]:
        """Read all workflows, in the order of their file names."""
        names = self._list_folder(Paths(self.root, "").folder)
        for name in sorted({name.rpartition(".")[0] for name in names if name.endswith((".json", ".journal"))}):
            try:
                projection = self._read_named(name)
            except StoreError as error:
                yield error
            else:
                if projection is not None:
                    yield projection

    @store_errors
    def delete(self, workflow_id: str) -> bool:
        """Remove a workflow with its logs and locks; False when there is none."""
        for paths in Paths.candidates(self.root, workflow_id):
            if self._is_of(paths, workflow_id):
                return self._delete(paths, workflow_id)
        return False

    @store_errors
    def delete_logs(self, workflow_id: str) -> None:
        """Remove the logs of a workflow's commands, in this store; those in a `log_dir` stay."""
        paths = self._paths_of(workflow_id)
        lock = RecordLock(self._fs, paths)
        try:
            lock.take()
            self._refuse_users(paths, workflow_id)
            self._remove_logs(paths)
        finally:
            lock.close()

    @store_errors
    def size_of(self, workflow_id: str) -> Size:
        """How much space a workflow takes, with what was kept of damaged files."""
        paths = self._paths_of(workflow_id)
        record = [os.path.join(paths.folder, name) for name in self._fs.list_folder(paths.folder) if paths.owns(name)]
        logs = [os.path.join(paths.logs, name) for name in self._fs.list_folder(paths.logs)]
        return Size(self._size_of(record), self._size_of(logs))

    @store_errors
    def is_alive(self, workflow_id: str, process_id: str) -> bool:
        """Whether that process still has the workflow open, as far as that can be found out."""
        try:
            return LivenessFiles(self._fs, self._paths_of(workflow_id).runs).is_alive(process_id)
        except StoreError:
            return True

    @store_errors
    def location_id(self) -> str:
        """The number of the workflows' folder on its device: a rename keeps it, and a copy has another."""
        folder = self._fs.identify_path(Paths(self.root, "").folder)
        return "" if folder is None else f"{folder.st_dev}:{folder.st_ino}"

    @store_errors
    def path_of(self, workflow_id: str) -> str:
        """Where the workflow's snapshot is, or would be."""
        return self._paths_of(workflow_id).snapshot

    @store_errors
    def is_checkpointed(self, workflow_id: str) -> bool:
        """Whether the snapshot has all facts of the workflow."""
        pair = read_unlocked(self._fs, self._paths_of(workflow_id))
        return pair.projection is not None and not pair.lines

    def verify(self, workflow_id: str | None = None) -> Iterable[WorkflowCheck]:
        """Check the files of a workflow, or all of the store; see `Store.verify`."""
        from iso_orchestrator.store.file.repair.verify import verify_all, verify_one  # rarely used

        if workflow_id is None:
            return verify_all(self._fs, self.root)
        found = verify_one(self._fs, self.root, workflow_id)
        if found is None:
            raise WorkflowNotFoundError(workflow_id, self.root)
        return [found]

    def repair(self, workflow_id: str, options: RepairOptions) -> RepairReport:
        """Make a damaged workflow one that opens; see `Store.repair`."""
        from iso_orchestrator.store.file.repair.repair import repair  # rarely used

        return repair(self._fs, self.root, workflow_id, options)

    @store_errors
    def backup(self, workflow_id: str, path: str | os.PathLike[str]) -> int:
        """Copy a workflow into a new tar file, which also works while processes use it.

        The files have their places in the root there: unpack it in an empty root, or in one without the workflow.
        Steps and runs that go on now count as interrupted in the copy.

        Args:
            workflow_id: The workflow.
            path: Where to put the file, which must not exist.

        Returns:
            How many facts are in the copy: all that were recorded before the call, at least.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
            StoreError: The workflow is damaged, or the file exists or cannot be written.
        """
        for paths in Paths.candidates(self.root, workflow_id):
            if exists(self._fs, paths.snapshot, paths.journal):
                with locked_record(self._fs, paths):
                    snapshot, journal = read_file(self._fs, paths.snapshot), read_file(self._fs, paths.journal)
                pair = combine(snapshot, journal, paths)
                if pair.projection is not None and pair.projection.workflow_id == workflow_id:
                    if journal is not None and pair.header is not None:
                        journal = journal[: pair.end]  # without a torn tail
                    files = {paths.snapshot: snapshot, paths.journal: journal}
                    liveness = LivenessFiles(self._fs, paths.runs)
                    for owner in pair.projection.owners():  # which may live, and does not use the copy
                        if (certificate := liveness.certificate(owner)) is not None:
                            files[certificate] = b""
                    self._write_tar(os.path.abspath(path), files, pair.projection.updated_at.timestamp())
                    return pair.projection.seq
        raise WorkflowNotFoundError(workflow_id, self.root)

    def _write_tar(self, path: str, files: dict[str, bytes | None], changed_at: float) -> None:
        import tarfile  # rarely used

        buffer = io.BytesIO()
        owner = self._fs.identify_path(self.root)
        with tarfile.TarFile(fileobj=buffer, mode="w") as tar:
            for file, data in files.items():
                if data is not None:
                    info = tarfile.TarInfo(os.path.relpath(file, self.root))
                    info.size, info.mode, info.mtime = len(data), 0o600, int(changed_at)
                    if owner is not None:  # for root, who unpacks it: with 0 the owner could not use the copy
                        info.uid, info.gid = owner.st_uid, owner.st_gid
                    tar.addfile(info, io.BytesIO(data))
        try:
            if exists(self._fs, path):
                raise StoreError(f"{path} exists: remove it, or give another name")
            fd, _ = atomic_write(self._fs, path, buffer.getvalue(), aside=f"{path}.{secrets.token_hex(4)}.new")
            self._fs.close(fd)
        except OSError as error:
            raise store_error(path, error) from error

    def _paths_of(self, workflow_id: str) -> Paths:
        full, short = Paths.candidates(self.root, workflow_id)
        return full if exists(self._fs, full.snapshot, full.journal) else short

    def _has(self, workflow_id: str) -> bool:
        paths = self._paths_of(workflow_id)
        return exists(self._fs, paths.snapshot, paths.journal)

    # Reading.

    @store_errors
    def _list_folder(self, folder: str) -> Sequence[str]:
        return self._fs.list_folder(folder)

    @store_errors
    def _read_named(self, name: str) -> Projection | None:
        return read_unlocked(self._fs, Paths(self.root, name)).projection

    # Making the root.

    def _make_root(self) -> None:
        self._warn_of_network()
        missing = missing_folders(self._fs, self.root)
        if missing:
            with suppress(PermissionError):  # a process without the right to look there has made nothing there
                # A try that was killed may have made the folder above the first missing one, and not synced its name.
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
                "%s is on a network file system (%s), where locks and syncs may not work as they must; "
                "use a folder on a disk of this machine",
                self.root,
                kind,
            )

    def _warn_of_other_record(self, workflow_id: str) -> None:
        """Warn where a user may have meant to continue a workflow, and was in another folder than last time."""
        here, name = os.path.split(self.root)
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        folders = [*([os.path.dirname(os.path.abspath(script))] if script else []), *folders_above(here)]
        for folder in folders:
            other = FileStore(os.path.join(folder, name), self._fs)
            with suppress(OSError, StoreError):  # a folder that this process may not look into
                if other.identity != self.identity and other._has(workflow_id):
                    _log.warning(
                        "workflow %r begins anew in %s, and a record of it is in %s: to continue that one, run in %s, "
                        "or set ISO_ORCHESTRATOR_DIR=%s, or give dir=; dir=%r says that a new one is meant",
                        *(workflow_id, self.root, other.root, folder, other.root, name),
                    )
                    return

    def _hide_from_git(self) -> None:
        path = os.path.join(self.root, ".gitignore")
        if self._fs.identify_path(path) is not None:
            return
        try:
            fd = self._fs.open_new(path)
        except FileExistsError:  # another process was faster: there is no lock for the root
            return
        try:
            write_all(self._fs, fd, b"*\n", 0)
        finally:
            self._fs.close(fd)

    # Deleting.

    def _is_of(self, paths: Paths, workflow_id: str) -> bool:
        """Whether these are the workflow's files, or damaged ones that can be: users want to delete those most."""
        if not exists(self._fs, paths.snapshot, paths.journal):
            return False
        try:
            projection = read_unlocked(self._fs, paths).projection
        except StoreError:
            return True
        return projection is None or projection.workflow_id == workflow_id

    def _delete(self, paths: Paths, workflow_id: str) -> bool:
        lock = RecordLock(self._fs, paths)
        try:
            lock.take()
            if not self._is_of(paths, workflow_id):  # another process was faster
                self._remove_locks(paths)
                return False
            self._refuse_users(paths, workflow_id)
            LivenessFiles(self._fs, paths.runs).sweep()
            self._checkpoint_before_removal(paths, lock)
            # The journal first: without its snapshot it would be a conflict, while a snapshot alone is a record.
            remove(self._fs, paths.journal)
            self._fs.sync_folder(paths.folder)
            remove(self._fs, paths.snapshot)
            for name in self._fs.list_folder(paths.folder):
                if paths.owns(name):
                    remove(self._fs, os.path.join(paths.folder, name))
            self._fs.sync_folder(paths.folder)
            self._remove_logs(paths)
            self._remove_locks(paths)
            return True
        finally:
            lock.close()

    def _refuse_users(self, paths: Paths, workflow_id: str) -> None:
        liveness = LivenessFiles(self._fs, paths.runs)
        if (process_id := liveness.other_user(self._owners(paths))) is not None:
            info = liveness.info(process_id)
            raise WorkflowBusyError(workflow_id, info.pid, info.host, info.since)

    def _size_of(self, paths: Iterable[str]) -> int:
        found = [self._fs.identify_path(path) for path in paths]
        return sum(info.st_blocks * 512 for info in found if info is not None)

    def _owners(self, paths: Paths) -> set[str]:
        try:
            projection = read_once(self._fs, paths).projection
        except StoreError:
            return set()  # it is damaged
        return set() if projection is None else projection.owners()

    def _checkpoint_before_removal(self, paths: Paths, lock: RecordLock) -> None:
        """Put all facts into the snapshot, so that a crash during the removal leaves the whole record or none."""
        try:
            pair = read_once(self._fs, paths)
        except StoreError:
            return  # it is damaged already
        if pair.projection is None or not pair.lines:
            return
        try:
            lock.begin_generation()
            write_pair(self._fs, paths, pair.projection)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise  # a full disk is a reason to delete

    def _remove_lock(self, path: str) -> None:
        """Remove a mutex: a file of ours, or a folder of the npm package's."""
        try:
            remove(self._fs, path)
        except (IsADirectoryError, PermissionError):  # which of the two depends on the platform
            remove(self._fs, os.path.join(path, "owner.json"))
            self._fs.remove_folder(path)

    def _remove_logs(self, paths: Paths) -> None:
        for name in self._fs.list_folder(paths.logs):
            with suppress(OSError):  # a folder that a user put there stays
                remove(self._fs, os.path.join(paths.logs, name))
        self._remove_folder(paths.logs)

    def _remove_locks(self, paths: Paths) -> None:
        for name in self._fs.list_folder(paths.mutexes):
            self._remove_lock(os.path.join(paths.mutexes, name))
        self._remove_lock(os.path.join(paths.locks, "record.lock"))  # the npm package's, left by a kill
        self._remove_folder(paths.mutexes)
        self._remove_folder(paths.runs)
        remove(self._fs, paths.record_lock)
        self._remove_folder(paths.locks)  # it stays where another process has made a new lock in it by now

    def _remove_folder(self, path: str) -> None:
        with suppress(OSError):
            self._fs.remove_folder(path)

    def _as_store_error(self, error: OSError) -> StoreError:
        return store_error(self.root, error)


# File systems of other machines, those of a virtual machine's host among them, by the names that Linux gives them.
_TYPES = re.compile(
    r"9p|acfs|afs|beegfs|ceph|cifs|coda|fakeowner|gfs2?|glusterfs|gpfs|hgfs|lustre|mmfs|ncpfs|nfs4?|ocfs2|orangefs|"
    r"panfs|prl_fs|pvfs2|smb3|smbfs|vboxsf|virtiofs|vmhgfs|wekafs|fuse|fuse\.(?!.*portal).+"
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def network_type(mounts: str, path: str) -> str | None:
    r"""The type of the network file system that *path* is on; None where it is on none, or that is not known.

    Args:
        mounts: The content of `/proc/self/mountinfo`: a line a mount, its folder the fifth word, its type after a dash.
        path: An absolute path.

    Example:
        >>> mounts = "36 35 98:0 / /home rw - ext4 /dev/sda1 rw\n40 36 0:5 / /home/me rw - nfs4 host:/me rw"
        >>> network_type(mounts, "/home/me/.iso-orchestrator"), network_type(mounts, "/home/you")
        ('nfs4', None)
    """
    found = (-1, "")
    for line in mounts.splitlines():
        head, _, tail = line.partition(" - ")
        words, kind = head.split(" "), tail.partition(" ")[0]
        if len(words) < 5 or not kind:
            continue
        folder = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), words[4])
        if _is_inside(path, folder):
            found = max((len(folder), kind), found, key=lambda mount: mount[0])  # the last one of a folder hides others
    return found[1] if _TYPES.fullmatch(found[1]) else None


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)
