"""Where a workflow's files are: the names that ids and keys become, and the paths in a root."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from typing import NamedTuple

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import FileSystem

_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_MUTEX = re.compile(r"-[0-9a-f]{40}\.lock$")


class RecordNames(NamedTuple):
    """The two names that a workflow's files can have, without a suffix."""

    short: str  # the npm package's name for the id
    full: str  # for an id whose short name another id has taken


def record_names(workflow_id: str) -> RecordNames:
    """The file names of a workflow's record, the short one exactly as the npm package makes it.

    Example:
        >>> record_names("Batch 7").short
        'batch-7-fd5ca858'
    """
    stem, digest = _stem(workflow_id), _sha1(workflow_id)
    return RecordNames(short=f"{stem}-{digest[:8]}", full=f"{stem}-{digest}")


def mutex_file_name(key: str) -> str:
    """The file name of a mutex. It has the whole hash, since two keys must never share a lock."""
    return f"{safe_name(key)}.lock"


def is_mutex_file_name(name: str) -> bool:
    """Whether a file can be a mutex of ours: those of the npm package are folders with a shorter hash."""
    return _MUTEX.search(name) is not None


def safe_name(text: str) -> str:
    """A file name for any text: a readable part, and a hash that no other text has."""
    return f"{_stem(text)}-{_sha1(text)}"


class Paths:
    """The paths of one workflow's files. Joined once, since every fact needs two of them.

    Args:
        root: The folder of the store.
        name: The name of the workflow's files, without a suffix.

    Attributes:
        folder: The folder with the records of all workflows.
        snapshot: The record in the npm package's format.
        journal: The facts since the snapshot.
        locks: The folder with all locks of the workflow.
        record_lock: Held during every change of snapshot and journal.
        logs: The folder for the output of its commands.
        runs: The folder of liveness files.
        mutexes: The folder of mutexes.
        store_mutexes: The folder of mutexes of the whole store. No workflow's files have its name: it has no hash.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.folder = os.path.join(root, "workflows")
        self.snapshot = os.path.join(self.folder, f"{name}.json")
        self.journal = os.path.join(self.folder, f"{name}.journal")
        self.locks = os.path.join(root, "locks", name)
        self.logs = os.path.join(root, "logs", name)
        self.record_lock = os.path.join(self.locks, "record.flock")
        self.runs = os.path.join(self.locks, "runs")
        self.mutexes = os.path.join(self.locks, "mutex")
        self.store_mutexes = os.path.join(root, "locks", "_store", "mutex")

    @classmethod
    def candidates(cls, root: str, workflow_id: str) -> tuple[Paths, Paths]:
        """The two places where a workflow's files can be, in the order in which to look.

        The first has the full name, which is only used where another id took the short name before.
        """
        names = record_names(workflow_id)
        return cls(root, names.full), cls(root, names.short)

    def torn(self, offset: int, number: int = 1) -> str:
        """Where the torn tail from byte *offset* on is kept; *number* counts the tails of that offset from 1."""
        return os.path.join(self.folder, f"{self.name}.torn-{offset}{'' if number == 1 else f'-{number}'}")


def refuse_links(fs: FileSystem, paths: Paths) -> None:
    """Refuse a root in which a folder is a link: files would be made or removed in a place outside of the root.

    The root itself may be a link: its owner decides where it is.

    Raises:
        StoreError: A folder is a link or a file.
    """
    above = {os.path.dirname(path) for path in (paths.logs, paths.locks, paths.store_mutexes)}
    own = (paths.folder, paths.logs, paths.locks, paths.runs, paths.mutexes, paths.store_mutexes)
    for path in (*sorted(above), *own):
        info = fs.identify_path(path)
        if info is not None and not stat.S_ISDIR(info.st_mode):
            raise StoreError(f"{path} is a link or a file where a folder should be: remove it, or use another root")


def _stem(text: str) -> str:
    return _UNSAFE.sub("-", text.strip().lower()).strip("-")[:48] or "workflow"


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
