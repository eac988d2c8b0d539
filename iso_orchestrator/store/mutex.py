"""Mutexes between processes: a file each, whose lock the kernel frees when its holder dies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeAlias

from iso_orchestrator.store.files import remove, store_error
from iso_orchestrator.store.liveness import PROCESS_SIZE, process_json, read_process
from iso_orchestrator.store.names import is_mutex_file_name, mutex_file_name
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

_KEPT_OPEN = 16  # free mutexes of each open workflow

_Name: TypeAlias = tuple[str, bool]  # key, and whether it is of the whole store


class FileMutex:
    """A mutex between processes, in a file that names its holder.

    Args:
        fs: The file system.
        path: The file; made, with its folder, when it is missing.
        keep: Called with the mutex when its user disposes of it, the file still open; default: close the file.
    """

    def __init__(self, fs: FileSystem, path: str, keep: Callable[[FileMutex], None] | None = None) -> None:
        self._fs = fs
        self._file = FileLock(fs, path)
        self._keep = keep

    def try_acquire(self) -> bool:
        """Take the mutex if it is free."""
        return self._take(self._file.try_acquire)

    def acquire(self) -> None:
        """Take the mutex; wait as long as that takes."""
        self._take(self._wait)

    def release(self) -> None:
        """Free the mutex. The file stays open, so that the next `acquire` is cheap."""
        try:
            self._file.release()
        except Exception:
            self.close()
            raise

    def dispose(self) -> None:
        """Give a free mutex back to `MutexFiles`, which may give it to another user or close it."""
        if self._keep is None:
            self.close()
        else:
            self._keep(self)

    def close(self) -> None:
        """Close the file, which frees the lock."""
        self._file.close()

    def holder(self) -> ProcessInfo:
        """The process that has the mutex, as its file says."""
        return read_process(self._fs, self._file.path)

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
            self._fs.write_at(self._file.fd, process_json().ljust(PROCESS_SIZE), 0)
        except OSError as error:
            self.close()
            raise store_error(self._file.path, error) from error
        except Exception:
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
    """The mutexes that this process has of one workflow. The last ones used stay open, since they are used again.

    Args:
        fs: The file system.
        folder: The folder of the workflow's mutexes.
        store_folder: The folder of mutexes of the whole store.
    """

    def __init__(self, fs: FileSystem, folder: str, store_folder: str) -> None:
        self._fs = fs
        self._folder = folder
        self._store_folder = store_folder
        self._free: dict[_Name, FileMutex] = {}
        self._guard = threading.Lock()
        self._is_closed = False

    def mutex(self, key: str, *, whole_store: bool) -> FileMutex:
        """The mutex of *key*, of the workflow or of the whole store, for one user until it is disposed of."""
        name = (key, whole_store)
        with self._guard:
            known = self._free.pop(name, None)
        if known is not None:
            return known
        folder = self._store_folder if whole_store else self._folder
        path = os.path.join(folder, mutex_file_name(key))
        return FileMutex(self._fs, path, lambda mutex: self._keep(name, mutex))

    def sweep(self) -> None:
        """Remove the files of the workflow's mutexes that no process has."""
        for name in filter(is_mutex_file_name, self._fs.list_folder(self._folder)):
            path = os.path.join(self._folder, name)
            mutex = FileMutex(self._fs, path)
            if mutex.try_acquire():
                try:
                    remove(self._fs, path)
                finally:
                    mutex.close()

    def close(self) -> None:
        """Close the free mutexes; each of the others is closed when its user disposes of it."""
        with self._guard:
            self._is_closed = True
            free, self._free = list(self._free.values()), {}
        with ExitStack() as stack:  # an error of one keeps none of the others open
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
