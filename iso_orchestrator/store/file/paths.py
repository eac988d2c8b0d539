"""Where the files of a workflow are in a root."""

from __future__ import annotations

import os
import re
import stat

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.names import record_names
from iso_orchestrator.system.filesystem import FileSystem, refuse_other_owner

_OWN = re.compile(r"\.(?:torn-[\d-]+|(?:json|journal)(?:\.new|\.kept-\d+)?)")  # after the name


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

    def owns(self, name: str) -> bool:
        """Whether a file in `folder` is the workflow's: its record, or what was kept or left of an earlier one.

        Names of other workflows can begin like this one's: an id may be anything.
        """
        return name.startswith(self.name) and _OWN.fullmatch(name, len(self.name)) is not None

    def torn(self, offset: int, number: int = 1) -> str:
        """Where the torn tail from byte *offset* on is kept; *number* counts the tails of that offset from 1."""
        return os.path.join(self.folder, f"{self.name}.torn-{offset}{'' if number == 1 else f'-{number}'}")


def check_folders(fs: FileSystem, paths: Paths) -> None:
    """Refuse a root in which a folder is a link or another user's; take the rights on its folders from all others.

    Through a link, files would be made or removed in a place outside of the root. The root itself may be a link, and
    keeps its rights: it may be a folder that was there before, as ``.`` is.

    Raises:
        StoreError: A folder is a link, a file, or another user's.
    """
    root = fs.identify_path(paths.root)
    if root is not None:
        refuse_other_owner(paths.root, root)
    above = {os.path.dirname(path) for path in (paths.logs, paths.locks, paths.store_mutexes)}
    own = (paths.folder, paths.logs, paths.locks, paths.runs, paths.mutexes, paths.store_mutexes)
    for path in (*sorted(above), *own):
        info = fs.identify_path(path)
        if info is None:
            continue
        if not stat.S_ISDIR(info.st_mode):
            raise StoreError(f"{path} is a link or a file where a folder should be: remove it, or use another root")
        refuse_other_owner(path, info)
        if info.st_mode & 0o077:
            fs.tighten_folder(path)
