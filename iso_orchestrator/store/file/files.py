"""Whole files: reading them, and giving a new one a name so that a crash leaves the old or the new."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from iso_orchestrator.checks import RecordNames, record_names
from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import FileSystem, is_refusal

__all__ = [
    "Paths",
    "SyncError",
    "atomic_write",
    "exists",
    "join",
    "make_folders",
    "missing_folders",
    "place_of",
    "read_all",
    "read_file",
    "refuse_links",
    "remove",
    "store_error",
    "sync_file",
    "sync_folder",
    "write_all",
]

_CHUNK = 1 << 24

join = os.path.join


class SyncError(OSError):
    """A sync failed: what the file had since the last one may be gone, whatever can be read."""


def store_error(path: str, error: OSError) -> StoreError:
    """What the operating system refused, with what to do about it.

    Raises:
        OSError: It has refused nothing: *error* itself.
    """
    if not is_refusal(error):
        raise error
    return StoreError(f"{path}: {error.strerror or error}; see to the disk's space and the rights, then run again")


class Paths:
    """Where the files of one workflow are. Joined once: every fact asks for two of them.

    Attributes:
        folder: All workflows' files.
        snapshot: The npm package's file.
        journal: What happened since.
        locks: All locks of the workflow.
        record_lock: Held over every change of snapshot and journal.
        logs: What its commands have written.
        runs: The folder of run files.
        mutexes: The folder of mutexes.
        store_mutexes: That of mutexes of all workflows; no workflow's name lacks a hash.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.folder = join(root, "workflows")
        self.snapshot = join(self.folder, f"{name}.json")
        self.journal = join(self.folder, f"{name}.journal")
        self.locks = join(root, "locks", name)
        self.logs = join(root, "logs", name)
        self.record_lock = join(self.locks, "record.flock")
        self.runs = join(self.locks, "runs")
        self.mutexes = join(self.locks, "mutex")
        self.store_mutexes = join(root, "locks", "_store", "mutex")

    @classmethod
    def candidates(cls, root: str, workflow_id: str) -> tuple[Paths, Paths]:
        """The workflow's own paths, and those that it has where another id took them first, the latter in front."""
        names: RecordNames = record_names(workflow_id)
        return cls(root, names.full), cls(root, names.short)

    def torn(self, offset: int, number: int = 1) -> str:
        """Where a torn tail is kept, the first, the second, ... of that offset."""
        return join(self.folder, f"{self.name}.torn-{offset}{'' if number == 1 else f'-{number}'}")


def place_of(fs: FileSystem, paths: Paths) -> str:
    """The number of the workflows' folder on its device: kept by a rename, and no copy's."""
    folder = fs.identify_path(paths.folder)
    return "" if folder is None else f"{folder.st_dev}:{folder.st_ino}"


def read_all(fs: FileSystem, fd: int, start: int = 0) -> bytes:
    """An open file's bytes from *start* to its end."""
    parts = []
    while part := fs.read_at(fd, _CHUNK, start):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_file(fs: FileSystem, path: str) -> bytes | None:
    """A file's bytes; None when there is no such file."""
    try:
        fd = fs.open_read(path)
    except FileNotFoundError:
        return None
    try:
        return read_all(fs, fd)
    finally:
        fs.close(fd)


def write_all(fs: FileSystem, fd: int, data: bytes, offset: int) -> None:
    """Write all of *data*, however little one call takes."""
    taken = fs.write_at(fd, data, offset)
    while taken < len(data):
        view = memoryview(data)[taken:]
        more = fs.write_at(fd, view, offset + taken)
        if more == 0:
            raise OSError(errno.EIO, f"nothing more can be written behind byte {offset + taken}")
        taken += more


def atomic_write(fs: FileSystem, path: str, data: bytes) -> int:
    """Make *path* a file of *data*, durably, in the place of what had the name; the new file stays open.

    A crash at any point leaves the old file or the new one, whole.
    """
    aside = f"{path}.new"
    remove(fs, aside)  # of a process that was killed here: its owner has the lock no more
    fd = fs.open_new(aside)
    try:
        write_all(fs, fd, data, 0)
        sync_file(fs, fd)
        fs.replace(aside, path)
        sync_folder(fs, os.path.dirname(path))
    except BaseException:
        fs.close(fd)
        with suppress(OSError):
            remove(fs, aside)  # a full disk needs the room
        raise
    return fd


def sync_file(fs: FileSystem, fd: int) -> None:
    """Make a file's bytes durable.

    Raises:
        SyncError: That failed.
    """
    try:
        fs.sync(fd)
    except OSError as error:
        raise _sync_error(error, "a sync") from error


def sync_folder(fs: FileSystem, path: str) -> None:
    """Make a folder's names durable.

    Raises:
        SyncError: That failed.
    """
    try:
        fs.sync_folder(path)
    except OSError as error:
        raise _sync_error(error, f"a sync of {path}") from error


def _sync_error(error: OSError, what: str) -> SyncError:
    if not is_refusal(error):
        raise error
    return SyncError(error.errno, f"{what} failed ({error.strerror})")


def remove(fs: FileSystem, path: str) -> bool:
    """Remove a file; False when there is none."""
    try:
        fs.unlink(path)
    except FileNotFoundError:
        return False
    return True


def exists(fs: FileSystem, *paths: str) -> bool:
    """Whether any of the files is there."""
    return any(fs.identify_path(path) is not None for path in paths)


def refuse_links(fs: FileSystem, paths: Paths) -> None:
    """Raise where a folder of the root is a link: what is made or removed in it would be somebody else's.

    The root itself may be one: that is for its owner to say.
    """
    store_locks = os.path.dirname(paths.store_mutexes)
    locks, logs = os.path.dirname(paths.locks), os.path.dirname(paths.logs)
    for path in (
        paths.folder,
        logs,
        paths.logs,
        locks,
        paths.locks,
        paths.runs,
        paths.mutexes,
        store_locks,
        paths.store_mutexes,
    ):
        info = fs.identify_path(path)
        if info is not None and not stat.S_ISDIR(info.st_mode):
            raise StoreError(f"{path} is a link or a file where a folder should be: remove it, or use another root")


def missing_folders(fs: FileSystem, path: str) -> list[str]:
    """A folder and those above it, as far as they are not there; the uppermost first."""
    missing: list[str] = []
    while fs.identify_path(path) is None:
        missing.insert(0, path)
        path = os.path.dirname(path)
    return missing


def make_folders(fs: FileSystem, *paths: str) -> None:
    """Make folders, each inside the one before or beside it, and their names durable."""
    for path in paths:
        if fs.make_folder(path):
            sync_folder(fs, os.path.dirname(path))
