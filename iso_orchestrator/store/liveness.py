"""Liveness files: each process that uses a workflow holds a locked one, so that its life is never a guess."""

from __future__ import annotations

import os
import re
import threading
from datetime import datetime
from functools import cache

import attrs

from iso_orchestrator.checks import host_name, unique_name
from iso_orchestrator.codec import decode, encode
from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.files import remove, write_all
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.clock import SystemClock
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.system.interrupts import undo_on_error

PROCESS_SIZE = 512  # bytes, padded with spaces, so that a short name overwrites all of a longer one
_clock = SystemClock()
_SUFFIX = ".flock"
_PROCESS_ID = re.compile("[0-9a-f]{16}")  # as `unique_name` makes it; a record may contain any text


@attrs.frozen
class Survey:
    """The ids of the other processes of a workflow: one that lives, if any does, and all that are dead."""

    living: str | None
    dead: list[str]


class LivenessFiles:
    """The liveness files of one workflow. `create`, `remove` and `sweep` need the record's lock.

    Args:
        fs: The file system.
        folder: The folder of the files.
    """

    def __init__(self, fs: FileSystem, folder: str) -> None:
        self._fs = fs
        self._folder = folder
        self._held: FileLock | None = None
        self._guard = threading.Lock()

    def create(self) -> str:
        """Make and lock the file of this process; its process id."""
        process_id = unique_name()
        self._fs.make_folder(self._folder)
        lock = FileLock(self._fs, self._path(process_id))
        self._held = lock  # before it is locked, so that `release` frees it at whatever point this fails
        with undo_on_error(self.remove):
            lock.open_new()
            lock.acquire()
            if not self._is_locked(process_id):
                raise StoreError(
                    f"{lock.path} can be locked twice, so that locks exclude no process from this folder: "
                    "use a root on a disk of this machine"
                )
            write_all(self._fs, lock.fd, process_json(), 0)
        return process_id

    def remove(self) -> None:
        """Release and remove the file of this process."""
        held = self.release()
        if held is not None:
            remove(self._fs, held.path)

    def release(self) -> FileLock | None:
        """Release the file of this process, which is then dead to others. It stays; any thread may call this."""
        with self._guard:
            held, self._held = self._held, None
            if held is not None:
                held.close()
        return held

    def survey(self) -> Survey:
        """Find the other processes that use the workflow, and those that died while they used it."""
        process_ids = [name.removesuffix(_SUFFIX) for name in self._fs.list_folder(self._folder)]
        others = {process_id: self.is_alive(process_id) for process_id in process_ids if not self._is_own(process_id)}
        living = next((process_id for process_id, lives in others.items() if lives), None)
        return Survey(living, [process_id for process_id, lives in others.items() if not lives])

    def sweep(self) -> str | None:
        """Remove the files of dead processes; the id of another process that lives, if any does."""
        found = self.survey()
        for process_id in found.dead:
            remove(self._fs, self._path(process_id))
        return found.living

    def is_alive(self, process_id: str) -> bool:
        """Whether that process still holds its file."""
        if self._is_own(process_id):
            return True
        if not _PROCESS_ID.fullmatch(process_id):
            return False
        try:
            return self._is_locked(process_id)
        except FileNotFoundError:
            return False

    def info(self, process_id: str) -> ProcessInfo:
        """What that process wrote into its file."""
        if not _PROCESS_ID.fullmatch(process_id):
            return ProcessInfo()
        return read_process(self._fs, self._path(process_id))

    def _is_locked(self, process_id: str) -> bool:
        probe = FileLock(self._fs, self._path(process_id))
        probe.open_read()
        try:
            # Shared: two probes at one time must not take each other for the process.
            return not probe.try_acquire(shared=True)
        finally:
            probe.close()

    def _path(self, process_id: str) -> str:
        return os.path.join(self._folder, f"{process_id}{_SUFFIX}")

    def _is_own(self, process_id: str) -> bool:
        return self._held is not None and self._held.path == self._path(process_id)


def process_json() -> bytes:
    """This process, as lock files name it: pid, host and the present moment."""
    return f'{{"pid":{os.getpid()},"host":{_host_json()},"since":"{_clock.now().isoformat()}"}}'.encode("ascii")


def read_process(fs: FileSystem, path: str) -> ProcessInfo:
    """The process that a lock file names; all None where the file cannot be read."""
    try:
        fd = fs.open_read(path)
        try:
            data = decode(fs.read_at(fd, PROCESS_SIZE, 0))
        finally:
            fs.close(fd)
        return ProcessInfo(int(data["pid"]), str(data["host"]), datetime.fromisoformat(data["since"]))
    except (OSError, StoreError, ValueError, LookupError, TypeError, ArithmeticError):
        return ProcessInfo()


@cache
def _host_json() -> str:
    return encode(host_name())
