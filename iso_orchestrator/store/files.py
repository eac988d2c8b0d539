"""Whole files: read them, and replace them so that a crash leaves the old file or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import FileSystem, is_os_error, other_owner
from iso_orchestrator.system.interrupts import undo_on_error

_CHUNK = 1 << 24  # bytes

P = ParamSpec("P")
R = TypeVar("R")


class SyncError(OSError):
    """A sync failed: bytes written since the last one may be lost, although they can still be read."""


def store_error(path: str, error: OSError) -> StoreError:
    """What the operating system reported about *path*, with what to do next.

    Raises:
        OSError: *error* itself, where a signal handler raised it.
    """
    if not is_os_error(error):
        raise error
    if isinstance(error, PermissionError):
        place = error.filename if isinstance(error.filename, str) else path
        if (advice := other_owner(place)) is not None:
            return StoreError(f"{place}: {error.strerror}; {advice}")
    return StoreError(f"{path}: {error.strerror or error}; check the disk's space and the rights, then run again")


class _ReportsErrors(Protocol):
    def _as_store_error(self, error: OSError) -> StoreError: ...


S = TypeVar("S", bound=_ReportsErrors)


def store_errors(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorate a method so that its OSErrors become StoreErrors, by its object's `_as_store_error`."""

    @wraps(method)
    def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            raise self._as_store_error(error) from error

    return wrapper


def read_all(fs: FileSystem, fd: int, start: int = 0) -> bytes:
    """Read an open file from byte *start* to its end."""
    parts = []
    while part := fs.read_at(fd, _CHUNK, start):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_file(fs: FileSystem, path: str) -> bytes | None:
    """Read a file; None when there is none."""
    try:
        fd = fs.open_read(path)
    except FileNotFoundError:
        return None
    try:
        return read_all(fs, fd)
    finally:
        fs.close(fd)


def write_all(fs: FileSystem, fd: int, data: bytes, offset: int) -> None:
    """Write all of *data* at *offset*, in as many calls as the file system needs."""
    taken = fs.write_at(fd, data, offset)
    while taken < len(data):
        more = fs.write_at(fd, memoryview(data)[taken:], offset + taken)
        if more == 0:
            raise OSError(errno.EIO, f"nothing more can be written after byte {offset + taken}")
        taken += more


def atomic_write(fs: FileSystem, path: str, data: bytes, *, aside: str | None = None) -> tuple[int, os.stat_result]:
    """Put a file with *data* at *path*, durably, in place of any other.

    A crash at any point leaves the old file or the new one, whole. Until it is whole it has the name *aside*; by
    default one that is the same at each call, so that no two may run at one time.

    Returns:
        The descriptor of the new file, which is still open, and which file it is.

    Raises:
        SyncError: A sync failed.
    """
    aside = aside or f"{path}.new"
    remove(fs, aside)  # left by a process that was killed here: it no longer has the lock
    fd = fs.open_new(aside)

    def undo() -> None:
        fs.close(fd)
        with suppress(OSError):
            remove(fs, aside)  # a full disk needs the space

    with undo_on_error(undo):
        write_all(fs, fd, data, 0)
        sync_file(fs, fd)
        fs.replace(aside, path)
        sync_folder(fs, os.path.dirname(path))
        return fd, fs.identify(fd)


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
    """Make the names in a folder durable.

    Raises:
        SyncError: That failed.
    """
    try:
        fs.sync_folder(path)
    except OSError as error:
        raise _sync_error(error, f"a sync of {path}") from error


def _sync_error(error: OSError, what: str) -> SyncError:
    if not is_os_error(error):
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
    """Whether any of these files exists."""
    return any(fs.identify_path(path) is not None for path in paths)


def missing_folders(fs: FileSystem, path: str) -> list[str]:
    """The folder *path* and its parents, as far as they do not exist; the topmost first."""
    missing: list[str] = []
    while fs.identify_path(path) is None:
        missing.insert(0, path)
        path = os.path.dirname(path)
    return missing


def make_folders(fs: FileSystem, *paths: str) -> None:
    """Make folders in this order, where they are missing, and make their names durable."""
    for path in paths:
        if fs.make_folder(path):
            sync_folder(fs, os.path.dirname(path))
