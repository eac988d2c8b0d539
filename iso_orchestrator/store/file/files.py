"""Whole files: reading them, and giving a new one a name so that a crash leaves the old or the new."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import FileSystem, is_refusal

__all__ = [
    "SyncError",
    "atomic_write",
    "exists",
    "make_folders",
    "missing_folders",
    "read_all",
    "read_file",
    "remove",
    "store_error",
    "sync_file",
    "sync_folder",
    "write_all",
]

_CHUNK = 1 << 24  # bytes


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
