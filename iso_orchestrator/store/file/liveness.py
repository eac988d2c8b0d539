"""Run files: each process that uses a workflow holds one, so that whether it lives is never a guess."""

from __future__ import annotations

import os
import re
import threading
from datetime import datetime
from functools import lru_cache

import attrs

from iso_orchestrator.checks import host_name, unique_name
from iso_orchestrator.codec import decode, encode
from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.file.files import remove, write_all
from iso_orchestrator.store.protocol import ProcessInfo
from iso_orchestrator.system.clock import SystemClock
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["OWNER_SIZE", "LivenessFiles", "owner_json", "read_owner"]

OWNER_SIZE = 512  # bytes, padded with spaces: a longer holder's end must not stand behind a shorter one
_clock = SystemClock()
_SUFFIX = ".flock"
_OWNER = re.compile("[0-9a-f]{16}")  # what `unique_name` makes; a record may name anything


@attrs.frozen
class Survey:
    """The run files of others: one that lives, if any does, and those whose processes are gone."""

    living: str | None
    dead: list[str]


class LivenessFiles:
    """The run files of one workflow. `enter`, `leave` and `sweep` need the record's lock."""

    def __init__(self, fs: FileSystem, folder: str) -> None:
        self._fs = fs
        self._folder = folder
        self._held: FileLock | None = None
        self._guard = threading.Lock()

    def enter(self) -> str:
        """Make a run file for this process; its name is the owner's."""
        owner = unique_name()
        self._fs.make_folder(self._folder)
        lock = FileLock(self._fs, self._path(owner))
        self._held = lock  # before it is locked: whatever happens then, `give_up` lets go of it
        try:
            lock.open_new()
            lock.acquire()
            write_all(self._fs, lock.fd, owner_json(), 0)
        except BaseException:
            self.leave()
            raise
        return owner

    def leave(self) -> None:
        """Give the run file up and remove it."""
        held = self.give_up()
        if held is not None:
            remove(self._fs, held.path)

    def give_up(self) -> FileLock | None:
        """Give the run file up where nothing can be written: to others this process is dead. Any thread may."""
        with self._guard:
            held, self._held = self._held, None
            if held is not None:
                held.close()
        return held

    def survey(self) -> Survey:
        """Who else uses the workflow, and who died of it."""
        owners = [name.removesuffix(_SUFFIX) for name in self._fs.list_folder(self._folder)]
        others = {owner: self.is_alive(owner) for owner in owners if not self._is_own(owner)}
        living = next((owner for owner, lives in others.items() if lives), None)
        return Survey(living, [owner for owner, lives in others.items() if not lives])

    def sweep(self) -> str | None:
        """Remove the run files of dead processes; another owner that lives, if any does."""
        found = self.survey()
        for owner in found.dead:
            remove(self._fs, self._path(owner))
        return found.living

    def is_alive(self, owner: str) -> bool:
        """Whether the process that made that run file still holds it."""
        if self._is_own(owner):
            return True
        if not _OWNER.fullmatch(owner):
            return False
        probe = FileLock(self._fs, self._path(owner))
        try:
            probe.open_read()
        except FileNotFoundError:
            return False
        try:
            # Shared: two that ask at one time must not take each other for the owner.
            return not probe.try_acquire(shared=True)
        finally:
            probe.close()

    def info(self, owner: str) -> ProcessInfo:
        """Which process made that run file."""
        if not _OWNER.fullmatch(owner):
            return ProcessInfo()
        return read_owner(self._fs, self._path(owner))

    def _path(self, owner: str) -> str:
        return os.path.join(self._folder, f"{owner}{_SUFFIX}")

    def _is_own(self, owner: str) -> bool:
        return self._held is not None and self._held.path == self._path(owner)


def owner_json() -> bytes:
    """This process, as lock files name it from now on."""
    return f'{{"pid":{os.getpid()},"host":{_host_json()},"since":"{_clock.now().isoformat()}"}}'.encode("ascii")


def read_owner(fs: FileSystem, path: str) -> ProcessInfo:
    """The process that a lock file names, as far as it can be read."""
    try:
        fd = fs.open_read(path)
        try:
            data = decode(fs.read_at(fd, OWNER_SIZE, 0))
        finally:
            fs.close(fd)
        return ProcessInfo(int(data["pid"]), str(data["host"]), datetime.fromisoformat(data["since"]))
    except (OSError, StoreError, ValueError, LookupError, TypeError, ArithmeticError):
        return ProcessInfo()


@lru_cache(maxsize=1)
def _host_json() -> str:
    return encode(host_name())
