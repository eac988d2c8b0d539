"""Locks of the kernel, through portalocker: the kernel frees them when their process dies."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import attrs

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import FileSystem, is_os_error, is_same_file
from iso_orchestrator.system.interrupts import interruptible, undo_on_error


class FileLock:
    """A lock on a file that stays open, so that taking it costs one system call.

    One instance is for one thread at a time. It removes no file.

    Args:
        fs: The file system.
        path: The file.

    Attributes:
        fd: The open file's descriptor; -1 while it is closed.
    """

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.path = path
        self.fd = -1
        self._file: os.stat_result | None = None  # which file is open, once that was asked
        self._fs = fs
        self._kernel = _kernel()

    def open(self) -> None:
        """Open the file, made when it is missing."""
        with _forking:
            self._opened(self._fs.open_write(self.path))

    def open_new(self) -> None:
        """Make the file, which must not exist."""
        with _forking:
            self._opened(self._fs.open_new(self.path))

    def open_read(self) -> None:
        """Open the file, which must exist, to ask for its lock."""
        with _forking:
            self._opened(self._fs.open_read(self.path))

    def open_append(self) -> None:
        """Open the file, made when it is missing, to write to its end."""
        with _forking:
            self._opened(self._fs.open_append(self.path))

    def acquire(self) -> None:
        """Wait for the lock, in the kernel's queue. Ctrl-C ends the wait."""
        if self.try_acquire():
            return
        try:
            with undo_on_error(self.release), interruptible():  # at Ctrl-C the lock may have been taken just before
                self._kernel.flock(self.fd, self._kernel.exclusive)
        except OSError as error:
            raise self._error("lock", error) from error

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free."""
        kernel = self._kernel
        try:
            kernel.flock(self.fd, (kernel.shared if shared else kernel.exclusive) | kernel.non_blocking)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._error("lock", error) from error
        return True

    def release(self) -> None:
        """Free the lock. Harmless when it is not taken."""
        if self.fd < 0:
            return
        try:
            self._kernel.flock(self.fd, self._kernel.unlock)
        except OSError as error:
            raise self._error("unlock", error) from error

    def close(self) -> None:
        """Close the file, which frees the lock."""
        if self.fd < 0:
            return
        try:
            # First: a signal in between may leave the file open, and must not leave it locked.
            self._kernel.flock(self.fd, self._kernel.unlock)
        finally:
            fd, self.fd = self.fd, -1
            _open_locks.discard(self)
            try:
                self._fs.close(fd)
            except OSError as error:
                raise self._error("close", error) from error

    def close_without_unlock(self) -> None:
        """Close the file, and leave the lock to child processes that inherited the open file."""
        fd, self.fd = self.fd, -1
        _open_locks.discard(self)
        if fd >= 0:
            self._fs.close(fd)

    def is_at_path(self) -> bool:
        """Whether the open file still has its name: a lock on a removed file excludes no other process."""
        if self._file is None:
            self._file = self._fs.identify(self.fd)
        return is_same_file(self._fs.identify_path(self.path), self._file)

    def _error(self, what: str, error: OSError) -> StoreError:
        if not is_os_error(error):
            raise error
        return StoreError(f"cannot {what} {self.path}: {error}")

    def _opened(self, fd: int) -> None:
        self.fd, self._file = fd, None
        _open_locks.add(self)


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()
# Held while a file is opened and put into the set: a child that is forked in between would inherit the file unknown.
# Reentrant, since a signal handler may fork while its own thread opens a lock.
_forking = threading.RLock()


def _close_in_child() -> None:
    global _forking
    _forking = threading.RLock()
    # The child shares the parent's open files: to unlock them would free the parent's locks, and to keep them open
    # would hold the locks after the parent's death.
    for lock in list(_open_locks):
        fd, lock.fd = lock.fd, -1
        if fd >= 0:
            os.close(fd)
    _open_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _forking.acquire(), after_in_parent=lambda: _forking.release(), after_in_child=_close_in_child
    )


def _import_portalocker() -> Any:
    try:
        import portalocker
    except FileNotFoundError:  # it looks up the temporary folder, and this machine has none that can be written
        import tempfile

        tempfile.tempdir = os.curdir
        try:
            import portalocker
        finally:
            tempfile.tempdir = None
    return portalocker


@attrs.frozen
class _Kernel:
    """The system call for locks, called as `fcntl.flock` is, and its flags."""

    flock: Callable[[int, int], object]
    exclusive: int
    shared: int
    non_blocking: int
    unlock: int


@cache
def _kernel() -> _Kernel:
    # With the first lock: the import takes some 40 ms, most of what the whole package takes.
    portalocker = _import_portalocker()
    flags, lockers = portalocker.LockFlags, portalocker.portalocker
    # Named, since `portalocker.portalocker.LOCKER` is a variable that a program may set to `fcntl.lockf`, whose locks
    # do not exclude threads, and are lost when any descriptor of the file is closed. On Linux the function is called
    # directly: 0.5 microseconds a pair, where a locker, which checks the flags each time, takes 5; a step takes the
    # lock twice. A locker would also turn the TimeoutError of a signal handler into an error of the lock.
    flock = _as_flock(portalocker, lockers.MsvcrtLocker()) if os.name == "nt" else lockers.FlockLocker().locker
    return _Kernel(flock, int(flags.EXCLUSIVE), int(flags.SHARED), int(flags.NON_BLOCKING), int(flags.UNBLOCK))


def _as_flock(portalocker: Any, locker: Any) -> Callable[[int, int], object]:
    flags = portalocker.LockFlags

    def flock(fd: int, operation: int) -> None:
        try:
            if operation == flags.UNBLOCK:
                locker.unlock(fd)
            else:
                locker.lock(fd, flags(operation))
        except portalocker.AlreadyLocked as error:
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        except portalocker.LockException as error:
            raise OSError(errno.EIO, str(error)) from error

    return flock
