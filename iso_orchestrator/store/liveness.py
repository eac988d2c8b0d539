"""Liveness files: each process that uses a workflow holds a locked one, so that its life is never a guess.

A missing file proves nothing: programs that clean up may remove it under a living process. So a process id says where
the process runs and since when, and a process without a file is looked for there. The file of a process that was found
dead becomes a *death certificate* as long as the record names the process: another machine could not look for it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from functools import cache
from hashlib import sha1

import attrs

from iso_orchestrator.checks import host_name, unique_name
from iso_orchestrator.codec import decode, encode
from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.files import exists, make_folders, missing_folders, remove, write_all
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.clock import SystemClock, boot_id
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem, pid_namespace
from iso_orchestrator.system.interrupts import undo_on_error

_FAILED_AT = 1024  # where a liveness file says that its process can write no more
_FAILED = b"failed"
PROCESS_SIZE = 512  # bytes, padded with spaces, so that a short name overwrites all of a longer one
_clock = SystemClock()
_SUFFIX = ".flock"
_DEAD = ".dead"
_UNKNOWN = "0" * 8
# As `_new_process_id` makes it, or an earlier release, which had the first part alone. A record may contain any text.
_PROCESS_ID = re.compile("[0-9a-f]{16}(?:-([0-9]{1,10})-([0-9]{1,15})-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8}))?")

_held_here: set[str] = set()  # the files that this process holds


@attrs.frozen
class Survey:
    """The ids of a workflow's other processes: one that lives, if any does, those found dead now, and those before.

    Attributes:
        has_failed: Whether one that lives can write no more: what it wrote last may not be durable.
    """

    living: str | None
    dead: list[str]
    certified: list[str]
    has_failed: bool


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
        self._has_noted_failure = False
        self._guard = threading.Lock()

    def create(self) -> str:
        """Make and lock the file of this process; its process id."""
        process_id = _new_process_id()
        self._fs.make_folder(self._folder)
        lock = FileLock(self._fs, self._path(process_id))
        _held_here.add(os.path.realpath(lock.path))
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
            if held is None or held.fd < 0:
                return held
            _held_here.discard(os.path.realpath(held.path))
            try:
                with suppress(OSError, StoreError):
                    root = os.path.dirname(os.path.dirname(os.path.dirname(self._folder)))
                    # Other processes would look for this one, and find it. In a root that was removed there are none.
                    if not held.is_at_path() and exists(self._fs, root):
                        make_folders(self._fs, *missing_folders(self._fs, self._folder))
                        self._fs.close(self._fs.open_write(held.path.removesuffix(_SUFFIX) + _DEAD))
            finally:
                held.close()
        return held

    def note_failure(self) -> None:
        """Say that this process lives, and that its last facts may not be durable. If that fails, be dead to others."""
        with self._guard:
            held, self._has_noted_failure = self._held if not self._has_noted_failure else None, True
        if held is not None and held.fd >= 0:
            try:
                write_all(self._fs, held.fd, _FAILED, _FAILED_AT)
            except (OSError, StoreError):
                self.release()

    def survey(self) -> Survey:
        """Find the other processes that use the workflow, and those that died while they used it."""
        names = self._fs.list_folder(self._folder)
        process_ids = [name.removesuffix(_SUFFIX) for name in names if not name.endswith(_DEAD)]
        others = {process_id: self.is_alive(process_id) for process_id in process_ids if not self._is_own(process_id)}
        living = next((process_id for process_id, lives in others.items() if lives), None)
        dead = [process_id for process_id, lives in others.items() if not lives]
        certified = [name.removesuffix(_DEAD) for name in names if name.endswith(_DEAD)]
        has_failed = any(lives and self._has_failed(process_id) for process_id, lives in others.items())
        return Survey(living, dead, certified, has_failed)

    def sweep(self, named: Collection[str] = ()) -> None:
        """Remove the files of dead processes, except for a certificate for each that the record names."""
        found = self.survey()
        for process_id in found.dead:
            if process_id in named:
                self._fs.replace(self._path(process_id), self._path(process_id, _DEAD))
            else:
                remove(self._fs, self._path(process_id))
        for process_id in found.certified:
            if process_id not in named:
                remove(self._fs, self._path(process_id, _DEAD))

    def other_user(self, named: Collection[str]) -> str | None:
        """Another process that uses the workflow: one with a file, or of those that the record names; None: none does.

        Raises:
            StoreError: That cannot be found out.
        """
        living = self.survey().living
        return living or next((one for one in named if not self._is_own(one) and self.is_alive(one)), None)

    def is_alive(self, process_id: str) -> bool:
        """Whether that process still holds its file, or lives without one.

        Raises:
            StoreError: It has no file, and it cannot be looked for from here.
        """
        if self._is_own(process_id):
            return True
        match = _PROCESS_ID.fullmatch(process_id)
        if match is None:
            return False
        try:
            return self._is_locked(process_id)
        except FileNotFoundError:
            if match[1] is None or exists(self._fs, self._path(process_id, _DEAD)):
                return False  # the files of an earlier release were removed when their processes were found dead
        pid, since, boot, namespace, host = match.groups()
        here = _whereabouts()
        if (boot, namespace) == here[:2]:
            if int(pid) == os.getpid():
                return os.path.realpath(self._path(process_id)) in _held_here
            from iso_orchestrator.system.processes import runs_since  # rarely used

            return runs_since(int(pid), int(since) / 1000)
        if host == here[2] != _UNKNOWN and _UNKNOWN != boot != here[0] != _UNKNOWN:
            return False  # the machine was started again
        raise StoreError(
            f"process {pid} of another machine or container may still use the workflow: its file "
            f"{self._path(process_id)} was removed, so that this cannot be found out from here. Make sure that it has "
            f"ended, then make the file {self._path(process_id, _DEAD)}"
        )

    def certificate(self, process_id: str) -> str | None:
        """The path of the file that says that a process is dead; None for a text that is no process's id."""
        return self._path(process_id, _DEAD) if _PROCESS_ID.fullmatch(process_id) else None

    def info(self, process_id: str) -> ProcessInfo:
        """What that process wrote into its file."""
        if not _PROCESS_ID.fullmatch(process_id):
            return ProcessInfo()
        found = read_process(self._fs, self._path(process_id))
        return found if found.pid is not None else read_process(self._fs, self._path(process_id, _DEAD))

    def _has_failed(self, process_id: str) -> bool:
        try:
            fd = self._fs.open_read(self._path(process_id))
        except FileNotFoundError:
            return True  # it may have failed: the file that would tell was removed
        try:
            return self._fs.read_at(fd, len(_FAILED), _FAILED_AT) == _FAILED
        finally:
            self._fs.close(fd)

    def _is_locked(self, process_id: str) -> bool:
        probe = FileLock(self._fs, self._path(process_id))
        probe.open_read()
        try:
            # Shared: two probes at one time must not take each other for the process.
            return not probe.try_acquire(shared=True)
        finally:
            probe.close()

    def _path(self, process_id: str, suffix: str = _SUFFIX) -> str:
        return os.path.join(self._folder, f"{process_id}{suffix}")

    def _is_own(self, process_id: str) -> bool:
        return self._held is not None and self._held.path == self._path(process_id)


def _new_process_id() -> str:
    boot = _clock.boot()
    since = boot[1] if boot else _clock.now().timestamp()
    return "-".join([unique_name(), str(os.getpid()), str(int(since * 1000)), *_whereabouts()])


@cache
def _whereabouts() -> tuple[str, str, str]:
    """Hashes of this boot of the machine, of where its process numbers count, and of its name."""
    return _hash(boot_id()), _hash(pid_namespace()), _hash(host_name())


def _hash(text: str) -> str:
    return sha1(text.encode(errors="replace"), usedforsecurity=False).hexdigest()[:8] if text else _UNKNOWN


def is_on_this_machine(process_id: str) -> bool:
    """Whether the process with that id runs where this one does, so that its pid means the same here."""
    match = _PROCESS_ID.fullmatch(process_id)
    return match is not None and (match[3], match[4]) == _whereabouts()[:2]


def process_json() -> bytes:
    """This process, as lock files name it: pid, host and the present moment."""
    return f'{{"pid":{os.getpid()},"host":{_host_json()},"since":"{_clock.now().isoformat()}"}}'.encode("ascii")


def read_process(fs: FileSystem, path: str) -> ProcessInfo:
    """The process that a lock file names; all None where the file cannot be read."""
    try:
        fd = fs.open_read(path)
        try:
            data = decode(fs.read_at(fd, PROCESS_SIZE, 0).rstrip(b"\0"))  # before the place of `_FAILED`
        finally:
            fs.close(fd)
        return ProcessInfo(int(data["pid"]), str(data["host"]), datetime.fromisoformat(data["since"]))
    except (OSError, StoreError, ValueError, LookupError, TypeError, ArithmeticError):
        return ProcessInfo()


@cache
def _host_json() -> str:
    return encode(host_name())
