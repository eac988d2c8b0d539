"""Mutexes between processes: one file each, whose lock the kernel frees when its holder dies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeAlias

from iso_orchestrator.store.file.files import store_error
from iso_orchestrator.store.file.liveness import OWNER_SIZE, owner_json, read_owner
from iso_orchestrator.store.file.paths import Paths, mutex_file_name
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["FileMutex", "MutexFiles"]

_KEPT_OPEN = 16  # free mutexes, of each workflow that is open

_Name: TypeAlias = tuple[str, bool]


class FileMutex:
    """A mutex between processes, in a file that says who has it.

    Args:
        fs: The file system.
        path: The file; made, with its folder, when it is missing.
        keep: Is given the mutex when its user has let it go, its file open; default: the file is closed.
    """

    def __init__(self, fs: FileSystem, path: str, keep: Callable[[FileMutex], None] | None = None) -> None:
        self._fs = fs
        self._file = FileLock(fs, path)
        self._keep = keep

    def try_acquire(self) -> bool:
        """Take it if it is free."""
        return self._take(self._file.try_acquire)

    def acquire(self) -> None:
        """Take it, however long that takes."""
        self._take(self._wait)

    def release(self) -> None:
        """Give it back; the file stays open for whoever takes it next."""
        try:
            self._file.release()
        except BaseException:
            self.close()
            raise

    def dispose(self) -> None:
        """Be done with it. Not before: while it is in use nobody else may have it, and close it."""
        if self._keep is None:
            self.close()
        else:
            self._keep(self)

    def close(self) -> None:
        """Close the file, which frees the lock."""
        self._file.close()

    def holder(self) -> ProcessInfo:
        """Who has it, as its file says."""
        return read_owner(self._fs, self._file.path)

    def _wait(self) -> bool:
        self._file.acquire()
        return True

    def _take(self, lock: Callable[[], bool]) -> bool:
        try:
            while True:
                if self._file.fd < 0:
                    self._open()
                if not lock():
                    self.close()
                    return False
                if self._file.is_at_path():
                    break
                self.close()
            self._fs.write_at(self._file.fd, owner_json().ljust(OWNER_SIZE), 0)
        except OSError as error:
            self.close()
            raise store_error(self._file.path, error) from error
        except BaseException:
            self.close()
            raise
        return True

    def _open(self) -> None:
        try:
            self._file.open()
        except FileNotFoundError:
            folder = os.path.dirname(self._file.path)
            self._fs.make_folder(os.path.dirname(folder))
            self._fs.make_folder(folder)
            self._file.open()


class MutexFiles:
    """The mutexes that a process has of one workflow. Those taken last stay open: people take the same ones again."""

    def __init__(self, fs: FileSystem, paths: Paths) -> None:
        self._fs = fs
        self._paths = paths
        self._free: dict[_Name, FileMutex] = {}
        self._guard = threading.Lock()
        self._is_closed = False

    def mutex(self, key: str, *, whole_store: bool) -> FileMutex:
        """The mutex of that key, of the workflow or of the whole store, for one user until it is released."""
        name = (key, whole_store)
        with self._guard:
            known = self._free.pop(name, None)
        if known is not None:
            return known
        folder = self._paths.store_mutexes if whole_store else self._paths.mutexes
        path = os.path.join(folder, mutex_file_name(key))
        return FileMutex(self._fs, path, lambda mutex: self._keep(name, mutex))

    def close(self) -> None:
        """Close those that are free; the others are closed when they are released."""
        with self._guard:
            self._is_closed = True
            free, self._free = list(self._free.values()), {}
        with ExitStack() as stack:  # whatever becomes of one, the others are closed
            for mutex in free:
                stack.callback(mutex.close)

    def _keep(self, name: _Name, mutex: FileMutex) -> None:
        with self._guard:
            if self._is_closed or name in self._free:
                unwanted = mutex
            else:
                self._free[name] = mutex
                if len(self._free) <= _KEPT_OPEN:
                    return
                unwanted = self._free.pop(next(iter(self._free)))
        unwanted.close()
