"""Mutexes between processes: a file each, whose lock the kernel frees when its holder dies."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeAlias

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.files import remove, store_error
from iso_orchestrator.store.liveness import PROCESS_SIZE, process_json, read_process
from iso_orchestrator.store.names import is_mutex_file_name, mutex_file_name
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.clock import nap
from iso_orchestrator.system.events import start
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

_log = logging.getLogger("iso_orchestrator")

_LOOK_EVERY = 0.5  # seconds between two looks whether the files of held mutexes are still there
_KEPT_OPEN = 16  # free mutexes of each open workflow

_Name: TypeAlias = tuple[str, bool]  # key, and whether it is of the whole store


class FileMutex:
    """A mutex between processes, in a file that names its holder.

    Args:
        fs: The file system.
        path: The file; made, with its folder, when it is missing.
        keep: Called with the mutex when its user disposes of it, the file still open; default: close the file.

    Attributes:
        is_lost: Whether the file was removed, and another process has made a new one, while this process has the mutex.
    """

    def __init__(self, fs: FileSystem, path: str, keep: Callable[[FileMutex], None] | None = None) -> None:
        self._fs = fs
        self._file = FileLock(fs, path)
        self._keep = keep
        self.is_lost = False

    def try_acquire(self) -> bool:
        """Take the mutex if it is free."""
        return self.take() and _watch.add(self)

    def acquire(self) -> None:
        """Take the mutex; wait as long as that takes."""
        self.take(self._wait)
        _watch.add(self)

    def release(self) -> None:
        """Free the mutex. The file stays open, so that the next `acquire` is cheap."""
        _watch.discard(self)
        self.is_lost = False
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
        _watch.discard(self)
        self.is_lost = False
        self._file.close()

    def check(self) -> None:
        """Raise StoreError if the file was removed and another process has made a new one."""
        _watch.look_at(self)
        if self.is_lost:
            raise StoreError(
                f"{self._file.path} was removed while this process held the mutex, and another process has used it "
                "meanwhile: check what both have done, and keep what removes files away from the folder of locks"
            )

    def restore_name(self) -> None:
        """If the file of the mutex, which is held, was removed: make and lock a new one."""
        if self.is_lost or self._file.is_at_path():
            return
        fresh = FileLock(self._fs, self._file.path)
        try:
            self._make_folders()
            fresh.open_new()
            self.is_lost = not fresh.try_acquire() or not fresh.is_at_path()
            if not self.is_lost:
                self._file, fresh = fresh, self._file
                self._write_holder(self._file)
        except FileExistsError:
            self.is_lost = True
        finally:
            fresh.close()
        _log.warning(
            "%s was removed while this process held the mutex; %s",
            self._file.path,
            "another process has taken it" if self.is_lost else "it was made again",
        )

    def holder(self) -> ProcessInfo:
        """The process that has the mutex, as its file says."""
        return read_process(self._fs, self._file.path)

    def _wait(self) -> bool:
        self._file.acquire()
        return True

    def take(self, lock: Callable[[], bool] | None = None) -> bool:
        """Lock the file that has the mutex's name, by *lock* or by a try, and do not watch over it."""
        lock = lock or self._file.try_acquire
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
            self._write_holder(self._file)
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
            self._make_folders()
            self._file.open()

    def _make_folders(self) -> None:
        folder = os.path.dirname(self._file.path)
        for path in (os.path.dirname(os.path.dirname(folder)), os.path.dirname(folder), folder):
            self._fs.make_folder(path)

    def _write_holder(self, file: FileLock) -> None:
        self._fs.write_at(file.fd, process_json().ljust(PROCESS_SIZE), 0)


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
            if mutex.take():
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


class _Watch:
    """Looks at the files of the mutexes that this process holds, in a thread that runs while it holds any.

    A program that cleans up may remove such a file. Then the lock excludes no process that comes later.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: set[FileMutex] = set()
        self._has_thread = False

    def add(self, mutex: FileMutex) -> bool:
        """Watch over a mutex that is held; always true."""
        with self._guard:
            self._held.add(mutex)
            if not self._has_thread:
                thread = threading.Thread(target=self._run, name="iso-orchestrator-mutex-files", daemon=True)
                with suppress(RuntimeError):  # no more threads: `check` looks too
                    start(thread.start)
                    self._has_thread = True
        return True

    def discard(self, mutex: FileMutex) -> None:
        """Watch over the mutex no more. No look at its file goes on when this returns."""
        with self._guard:
            self._held.discard(mutex)

    def look_at(self, mutex: FileMutex) -> None:
        """Look at the file of a mutex now."""
        with self._guard:
            if mutex in self._held:
                self._look_at(mutex)

    def _run(self) -> None:
        while True:
            nap(_LOOK_EVERY)
            with self._guard:
                if not self._held:
                    self._has_thread = False
                    return
                for mutex in self._held:
                    self._look_at(mutex)

    def _look_at(self, mutex: FileMutex) -> None:
        with suppress(OSError, StoreError):  # the next look tries again
            mutex.restore_name()


_watch = _Watch()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch.__init__)  # type: ignore[misc]  # its thread and its locks are the parent's
