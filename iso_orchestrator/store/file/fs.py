"""The only door to the file system: one small method a system call, so that tests can put a double in its place."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from iso_orchestrator.errors import StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FileId", "FileSystem"]

# Not every platform has all of them. NONBLOCK: a FIFO planted under a file's name must not hang whoever opens it.
_SAFE = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_WINDOWS = sys.platform == "win32"


class FileId(NamedTuple):
    """Which file a name or a descriptor stands for, and how it is: two that are equal are one unchanged file."""

    device: int
    inode: int
    size: int
    changed: int

    def is_same_file(self, other: FileId | None) -> bool:
        """Whether both are one file, whatever its size was at the time."""
        return other is not None and self.inode == other.inode and self.device == other.device


# Past the Python function that a named tuple's constructor is: each step looks at four files.
_file_id = partial(tuple.__new__, FileId)


class FileSystem:
    """The real file system. Every method may raise OSError."""

    def open_read(self, path: str) -> int:
        """Open a regular file that is there, for reading."""
        return self._regular(os.open(path, os.O_RDONLY | _SAFE), path)

    def open_write(self, path: str) -> int:
        """Open a regular file for reading and writing, made when it is missing."""
        return self._own(os.open(path, os.O_RDWR | os.O_CREAT | _SAFE, 0o600), path)

    def open_existing(self, path: str) -> int:
        """Open a regular file that is there, for reading and writing."""
        return self._own(os.open(path, os.O_RDWR | _SAFE), path)

    def open_new(self, path: str) -> int:
        """Make a file that is not there yet."""
        return self._regular(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, 0o600), path)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        """At most *size* bytes from *offset* on."""
        return _pread(fd, size, offset)

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at *offset*; how many bytes were taken."""
        return _pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return when the file's bytes are on the disk."""
        _sync(fd)

    def sync_folder(self, path: str) -> None:
        """Return when the folder's names are on the disk; nothing to do where folders cannot be synced."""
        if _WINDOWS:
            return
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def replace(self, source: str, target: str) -> None:
        """Give *source* the name *target*, whatever had it."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        os.unlink(path)

    def make_folder(self, path: str) -> bool:
        """Make one folder; False when it is there."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder should be", path) from None
            return False
        return True

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def list_folder(self, path: str) -> list[str]:
        """The names in a folder, sorted; none when it is missing."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def identify(self, fd: int) -> FileId:
        """Which file an open descriptor is."""
        found = os.fstat(fd)
        return _file_id((found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns))

    def identify_path(self, path: str) -> FileId | None:
        """Which file has that name now; None when there is none."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return _file_id((found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns))

    def _own(self, fd: int, path: str) -> int:
        """A file that is written in place must have no other name: it may be anybody's."""
        if os.fstat(self._regular(fd, path)).st_nlink <= 1:
            return fd
        os.close(fd)
        raise StoreError(f"{path} has another name (a hard link): remove the other, or put a copy in its place")

    def _regular(self, fd: int, path: str) -> int:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise StoreError(f"{path} is not a regular file: remove it, or use another root")


def _full_sync() -> Callable[[int], None]:
    if sys.platform == "darwin":  # its fsync stops at the drive's cache
        import fcntl

        return lambda fd: fcntl.fcntl(fd, fcntl.F_FULLFSYNC) and None
    return getattr(os, "fdatasync", os.fsync)


_sync = _full_sync()

if hasattr(os, "pread"):
    _pread, _pwrite = os.pread, os.pwrite
else:  # Windows: nobody else moves the position, since each descriptor is used under one lock

    def _pread(fd: int, size: int, offset: int, /) -> bytes:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)

    def _pwrite(fd: int, data: Buffer, offset: int, /) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
