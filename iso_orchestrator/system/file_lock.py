"""Locks of the kernel, through portalocker: they free themselves when their process dies."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import attrs

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import FileSystem, is_refusal, is_same_file
from iso_orchestrator.system.interrupts import undo_on_error, unmasked

__all__ = ["FileLock"]


class FileLock:
    """A lock on a file that stays open, so that taking it costs one system call.

    One instance is for one thread at a time. It never unlinks anything.
    """

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.path = path
        self.fd = -1
        self._file: os.stat_result | None = None  # which one it is, once somebody has asked
        self._fs = fs
        self._backend = _portalocker()

    def open(self) -> None:
        """Open the file, made when it is missing."""
        with _forking:
            self._opened(self._fs.open_write(self.path))

    def open_new(self) -> None:
        """Make the file, which is not there yet."""
        with _forking:
            self._opened(self._fs.open_new(self.path))

    def open_read(self) -> None:
        """Open the file, which is there, to ask for its lock."""
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
        backend = self._backend
        try:
            with undo_on_error(self.release), unmasked():  # at Ctrl-C the lock may have been taken just before
                backend.lock(self.fd, backend.exclusive)
        except backend.failed as error:
            raise self._error("lock", error) from error

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free."""
        backend = self._backend
        try:
            backend.lock(self.fd, backend.try_shared if shared else backend.try_exclusive)
        except backend.busy:
            return False
        except backend.failed as error:
            raise self._error("lock", error) from error
        return True

    def release(self) -> None:
        """Free the lock. Harmless when it is not taken."""
        if self.fd < 0:
            return
        backend = self._backend
        try:
            backend.unlock(self.fd, backend.free)
        except backend.failed as error:
            raise self._error("unlock", error) from error

    def close(self) -> None:
        """Close the file, which frees the lock."""
        if self.fd < 0:
            return
        try:
            # First: a signal in between may leave the file open, and must not leave it locked.
            self._backend.unlock(self.fd, self._backend.free)
        finally:
            fd, self.fd = self.fd, -1
            _open_locks.discard(self)
            try:
                self._fs.close(fd)
            except OSError as error:
                raise self._error("close", error) from error

    def length(self) -> int:
        """How long the file is; `grow` makes it longer."""
        return self._fs.size(self.fd)

    def grow(self) -> None:
        """Make the file a byte longer, for others who have it open to see. Needs the lock."""
        self._fs.write_at(self.fd, b"\n", self.length())

    def close_as_it_is(self) -> None:
        """Close the file, and leave the lock to other processes that have it open from here."""
        fd, self.fd = self.fd, -1
        _open_locks.discard(self)
        if fd >= 0:
            self._fs.close(fd)

    def is_at_path(self) -> bool:
        """Whether the file still has its name: one that was unlinked meanwhile excludes nobody."""
        if self._file is None:
            self._file = self._fs.identify(self.fd)
        return is_same_file(self._fs.identify_path(self.path), self._file)

    def _error(self, what: str, error: Exception) -> StoreError:
        if not is_refusal(error):
            raise error
        return StoreError(f"cannot {what} {self.path}: {error}")

    def _opened(self, fd: int) -> None:
        self.fd, self._file = fd, None
        _open_locks.add(self)


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()
# Held while a lock is opened and noted: a child that is forked in between would have the file, and not know of it.
# Reentrant, since a signal handler may fork while its own thread opens a lock.
_forking = threading.RLock()


def _close_in_child() -> None:
    global _forking
    _forking = threading.RLock()
    # The child shares the parent's open files: unlocking would free the parent's locks, and keeping them open
    # would hold them beyond the parent's death.
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
    except FileNotFoundError:  # it asks for the temporary folder, and the machine has none that can be written
        import tempfile

        tempfile.tempdir = os.curdir
        try:
            import portalocker
        finally:
            tempfile.tempdir = None
    return portalocker


@attrs.frozen
class _Portalocker:
    lock: Callable[[int, Any], object]
    unlock: Callable[[int, Any], object]
    free: Any
    exclusive: Any
    try_exclusive: Any
    try_shared: Any
    busy: type[Exception]
    failed: type[Exception]


@lru_cache(maxsize=1)
def _portalocker() -> _Portalocker:
    # Some 40 ms to import, most of the package's whole time: loaded with the first lock.
    portalocker = _import_portalocker()
    lockers = portalocker.portalocker
    flags = portalocker.LockFlags
    locker = lockers.LOCKER
    if os.name == "nt" or not callable(locker) or isinstance(locker, type):
        return _Portalocker(
            lock=portalocker.lock,
            unlock=lambda fd, _: portalocker.unlock(fd),
            free=None,
            exclusive=flags.EXCLUSIVE,
            try_exclusive=flags.EXCLUSIVE | flags.NON_BLOCKING,
            try_shared=flags.SHARED | flags.NON_BLOCKING,
            busy=portalocker.AlreadyLocked,
            failed=portalocker.LockException,
        )
    # Its locker for this platform, called directly: 0.5 microseconds a pair, where `portalocker.lock`, which looks it
    # up and checks the flags each time, takes 5; a step takes the lock twice.
    return _Portalocker(
        lock=locker,
        unlock=locker,
        free=int(flags.UNBLOCK),
        exclusive=int(flags.EXCLUSIVE),
        try_exclusive=int(flags.EXCLUSIVE | flags.NON_BLOCKING),
        try_shared=int(flags.SHARED | flags.NON_BLOCKING),
        busy=BlockingIOError,
        failed=OSError,
    )
