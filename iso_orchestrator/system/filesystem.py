"""The only door to the file system: a method for each system call, so that tests can put a double in its place."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeGuard

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.interrupts import undo_on_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Not every platform has all of them. NONBLOCK: a FIFO that was put under a file's name must not block its opening.
_SAFE = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_WINDOWS = sys.platform == "win32"
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of <linux/falloc.h>
_TRUST = "ISO_ORCHESTRATOR_TRUST_OWNER"


def is_same_file(one: os.stat_result | None, other: os.stat_result) -> TypeGuard[os.stat_result]:
    """Whether both are the same file, whatever its content was."""
    return one is not None and one.st_ino == other.st_ino and one.st_dev == other.st_dev


def is_os_error(error: OSError) -> bool:
    """Whether the operating system reported it. A signal handler's error, such as TimeoutError, has no number."""
    return error.errno is not None


def is_unchanged(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    """Whether both are the same file with the same bytes, or both None."""
    if one is None or other is None:
        return one is other
    # A rename sets this time too, so another file that was given the same number is told apart.
    return (
        one.st_ctime_ns == other.st_ctime_ns
        and one.st_ino == other.st_ino
        and one.st_size == other.st_size
        and one.st_dev == other.st_dev
    )


def pid_namespace() -> str:
    """What the numbers of processes count in; empty where there is one for the machine."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def refuse_other_owner(path: str, info: os.stat_result) -> None:
    """Raise StoreError where another user owns a file, who may have written anything into it.

    Trusted are this process's effective user, root, and for root the user that called ``sudo``, as git does it.
    """
    if not hasattr(os, "geteuid") or info.st_uid in (0, me := os.geteuid()) or _is_trusted(info.st_uid):
        return
    raise StoreError(
        f"{path} belongs to {_user(info.st_uid)}, and this process runs as {_user(me)}: its content is not trusted. "
        f"Run as its owner, or give it to {_user(me)} by chown, or use another root. {_TRUST}=1 trusts the files of "
        "all users, for a container that maps them"
    )


def _is_trusted(uid: int) -> bool:
    return (os.geteuid() == 0 and str(uid) == os.environ.get("SUDO_UID")) or os.environ.get(_TRUST) == "1"


def _owner_of_new(path: str) -> tuple[int, int] | None:
    """To which user and group root has to give what it makes at *path*: the folder's owner could not use it otherwise.

    None where it may stay as it is. A user who is not trusted gets nothing: root itself would refuse it then.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    folder = os.stat(os.path.dirname(path))
    return (folder.st_uid, folder.st_gid) if folder.st_uid != 0 and _is_trusted(folder.st_uid) else None


def _give(fd: int, owner: tuple[int, int]) -> None:
    with suppress(PermissionError):  # a container that maps users
        os.fchown(fd, *owner)


def other_owner(path: str) -> str | None:
    """What to do about a path to which this process has no right, if another user owns it or its folder."""
    if not hasattr(os, "geteuid"):
        return None
    for place in (path, *folders_above(path)):
        try:
            info = os.lstat(place)
        except OSError:
            continue  # it is in a folder that may not be looked into
        if info.st_uid != os.geteuid():
            me = _user(os.geteuid())
            return (
                f"{place} belongs to {_user(info.st_uid)}, and this process runs as {me}: run as its owner, or give "
                f"all of the root to {me} by `chown -R`, or use another root"
            )
        if place != path:
            return None
    return None


def folders_above(path: str) -> Iterator[str]:
    """The folder that *path* is in, and those above it."""
    while (folder := os.path.dirname(path)) != path:
        yield folder
        path = folder


def _user(uid: int) -> str:
    import pwd  # not on Windows

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


class FileSystem:
    """The real file system. Every method may raise OSError."""

    def open_read(self, path: str) -> int:
        """Open a regular file that exists, for reading."""
        return self._regular(_open(path, os.O_RDONLY), path)

    def open_write(self, path: str) -> int:
        """Open a regular file for reading and writing, made when it is missing."""
        return self._own(_open_or_make(path, os.O_RDWR), path)

    def open_existing(self, path: str) -> int:
        """Open a regular file that exists, for reading and writing."""
        return self._own(_open(path, os.O_RDWR), path)

    def open_new(self, path: str) -> int:
        """Make a file that does not exist yet."""
        return self._regular(_make(path, os.O_RDWR), path)

    def open_append(self, path: str) -> int:
        """Open a regular file, made when it is missing, so that every write goes to its end."""
        return self._own(_open_or_make(path, os.O_RDWR | os.O_APPEND), path)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        """Read at most *size* bytes from *offset* on."""
        return _pread(fd, size, offset)

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at *offset*; how many bytes were written."""
        return _pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file to *size* bytes."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return when the file's bytes are durable."""
        _sync(fd)

    def sync_folder(self, path: str) -> None:
        """Return when the names in a folder are durable; nothing to do where folders cannot be synced."""
        if _WINDOWS:
            return
        fd = _open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def replace(self, source: str, target: str) -> None:
        """Rename *source* to *target*, in place of any file of that name."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        os.unlink(path)

    def make_folder(self, path: str) -> bool:
        """Make one folder; False when it exists."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder should be", path) from None
            return False
        if (owner := _owner_of_new(path)) is not None:
            fd = _open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _give(fd, owner)
            finally:
                os.close(fd)
        return True

    def tighten_folder(self, path: str) -> None:
        """Take all rights on a folder from all other users."""
        if _WINDOWS:
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
        try:
            with suppress(PermissionError):  # a file system without modes, as vfat
                os.fchmod(fd, os.fstat(fd).st_mode & 0o700)
        finally:
            os.close(fd)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def list_folder(self, path: str) -> list[str]:
        """The names in a folder, sorted; no names when it is missing."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def mounts(self) -> str:
        """What is mounted where, in the format of Linux; empty on other systems."""
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""

    def size(self, fd: int) -> int:
        """The size of an open file in bytes, in a quarter of the time of `identify`."""
        return _lseek(fd, 0, os.SEEK_END)

    def identify(self, fd: int) -> os.stat_result:
        """Which file a descriptor has open, and its size and times."""
        return os.fstat(fd)

    def identify_path(self, path: str) -> os.stat_result | None:
        """Which file has that name now; None when no file has it."""
        try:
            return os.lstat(path)
        except FileNotFoundError:
            return None

    def _own(self, fd: int, path: str) -> int:
        """Refuse a file with another name, and take the rights of other users, since it is written in place."""
        info = os.fstat(self._regular(fd, path))
        with undo_on_error(lambda: os.close(fd)):
            if info.st_nlink > 1:
                raise StoreError(f"{path} has another name (a hard link): remove the other, or put a copy in its place")
            if info.st_mode & 0o077 and not _WINDOWS:
                with suppress(PermissionError):  # a file system without modes, as vfat
                    os.fchmod(fd, info.st_mode & 0o700)
        return fd

    def _regular(self, fd: int, path: str) -> int:
        info = os.fstat(fd)
        with undo_on_error(lambda: os.close(fd)):
            if not stat.S_ISREG(info.st_mode):
                raise StoreError(f"{path} is not a regular file: remove it, or use another root")
            refuse_other_owner(path, info)
        return fd


def reopen_without_waits(fd: int) -> int | None:
    """Open the pipe or terminal *fd* once more, for writes that never wait; None for any other file.

    To make *fd* itself so would change it for all processes that share it, the shell among them.

    Raises:
        OSError: The pipe has no reader, or it cannot be opened a second time.
    """
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return None
    return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def free_range(fd: int, offset: int, size: int) -> None:
    """Give the disk space of a part of a file back. The part reads as NULs then, and the file keeps its size.

    Raises:
        OSError: The file system, or this platform, cannot do that.
    """
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    import ctypes  # some milliseconds, for what only a command with gigabytes of output needs

    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    if fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def hole_size(fd: int, offset: int) -> int:
    """How many bytes from *offset* on take no disk space, up to the end of the file. Moves the file's position."""
    if not hasattr(os, "SEEK_DATA"):
        return 0
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) - offset
    except OSError:  # no data follows
        return max(0, os.fstat(fd).st_size - offset)


def stop_appending(fd: int) -> None:
    """Let writes of an open file, of all processes that share it, go where they say, and not to its end."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_APPEND)


def _open(path: str, flags: int) -> int:
    """Open a file, never as descriptor 0, 1 or 2.

    If a standard stream is closed, as in a daemon, its number is the next to be given. What any library prints to the
    stream then goes into the file. So the null device takes the place of a closed stream, for good, as in SQLite.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            if (taken := os.open(os.devnull, os.O_RDONLY)) > 2:  # another thread was faster
                os.close(taken)
    return os.open(path, flags | _SAFE, 0o600)


def _make(path: str, flags: int) -> int:
    owner = _owner_of_new(path)
    fd = _open(path, flags | os.O_CREAT | os.O_EXCL)
    if owner is not None:
        _give(fd, owner)
    return fd


def _open_or_make(path: str, flags: int) -> int:
    with suppress(FileNotFoundError):
        return _open(path, flags)
    with suppress(FileExistsError):  # another process was faster
        return _make(path, flags)
    return _open(path, flags | os.O_CREAT)


def _full_sync() -> Callable[[int], None]:
    if sys.platform == "darwin":  # its fsync stops at the drive's cache
        import fcntl

        return lambda fd: fcntl.fcntl(fd, fcntl.F_FULLFSYNC) and None
    return getattr(os, "fdatasync", os.fsync)


_sync = _full_sync()
_lseek = os.lseek

if hasattr(os, "pread"):
    _pread, _pwrite = os.pread, os.pwrite
else:  # Windows: no other thread moves the position, since each descriptor is used under one lock

    def _pread(fd: int, size: int, offset: int, /) -> bytes:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)

    def _pwrite(fd: int, data: Buffer, offset: int, /) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
