"""Bringing back what is sound of a damaged workflow, when somebody asks for it. What it replaces is kept beside."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from iso_orchestrator.errors import (
    CorruptRecordError,
    OrchestratorError,
    RecordConflictError,
    WorkflowBusyError,
    WorkflowNotFoundError,
)
from iso_orchestrator.store.file.files import atomic_write, make_folders, read_file, store_error
from iso_orchestrator.store.file.liveness import LivenessFiles
from iso_orchestrator.store.file.log import FileWorkflowLog
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.repair.check_pair import paths_of
from iso_orchestrator.store.file.repair.plan import Choices, Repaired, plan_of
from iso_orchestrator.store.file.snapshot import read_once
from iso_orchestrator.store.file.store import lock_record
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["repair"]

_NOTHING_ASKED = Choices()


def repair(root: str, workflow_id: str, choices: Choices = _NOTHING_ASKED, *, fs: FileSystem | None = None) -> Repaired:
    """Make a damaged workflow one that opens, from what is sound of it. A sound one is left as it is.

    Args:
        root: The folder of workflows.
        workflow_id: Which.
        choices: What may be given up for it.
        fs: The file system; tests put a double in its place.

    Raises:
        CorruptRecordError: Nothing sound is left, or not without what `Choices.without_snapshot` gives up.
        RecordConflictError: It would take a merge.
        UndecidedError: It would take a choice.
        WorkflowBusyError: A live process uses the workflow.
        WorkflowNotFoundError: There is none.
        StoreError: The files cannot be read or written; nothing was changed, or the copies are all that was made.
    """
    fs, root = fs or FileSystem(), os.path.abspath(root)
    try:
        paths = paths_of(fs, root, workflow_id)
        if paths is None:
            raise WorkflowNotFoundError(workflow_id, root)
        if (done := _if_sound(fs, paths)) is not None:
            return done
        _refuse_in_use(fs, paths, workflow_id)  # before waiting for the lock of somebody who may hold it for long
        with _locked(fs, paths) as lock:
            _refuse_in_use(fs, paths, workflow_id)
            if (done := _if_sound(fs, paths)) is not None:
                return done
            snapshot, journal = read_file(fs, paths.snapshot), read_file(fs, paths.journal)
            plan = plan_of(snapshot, journal, paths, workflow_id, choices)
            kept = [_keep(fs, paths, path) for path in (paths.snapshot, paths.journal)]
            FileWorkflowLog(fs, paths, lock).restore(plan.projection)
            LivenessFiles(fs, paths.runs).sweep()
            return attrs.evolve(plan.report, kept=[path for path in kept if path is not None])
    except OSError as error:
        if isinstance(error, OrchestratorError):
            raise
        raise store_error(root, error) from error


@contextmanager
def _locked(fs: FileSystem, paths: Paths) -> Iterator[FileLock]:
    lock = FileLock(fs, paths.record_lock)
    try:
        make_folders(fs, os.path.join(paths.root, "locks"))  # a root that was copied may have none
        lock_record(fs, lock, paths)
        yield lock
    finally:
        lock.close()


def _refuse_in_use(fs: FileSystem, paths: Paths, workflow_id: str) -> None:
    runs = LivenessFiles(fs, paths.runs)
    if (owner := runs.survey().living) is not None:
        info = runs.info(owner)
        raise WorkflowBusyError(workflow_id, info.pid, info.host, info.since)


def _if_sound(fs: FileSystem, paths: Paths) -> Repaired | None:
    """What there is to say of a workflow that opens as it is; a torn tail is for its next opening."""
    try:
        pair = read_once(fs, paths)
    except (CorruptRecordError, RecordConflictError):
        return None
    return Repaired("nothing", pair.projection.seq if pair.projection is not None else 0)


def _keep(fs: FileSystem, paths: Paths, path: str) -> str | None:
    """A copy of a file beside it, durable; the one of an earlier repair where that is the same."""
    data = read_file(fs, path)
    if data is None:
        return None
    numbers = [0]
    for name in fs.list_folder(paths.folder):
        if match := re.fullmatch(re.escape(path[len(paths.folder) + 1 :]) + r"\.kept-(\d+)", name):
            if read_file(fs, os.path.join(paths.folder, name)) == data:
                return os.path.join(paths.folder, name)
            numbers.append(int(match[1]))
    copy = f"{path}.kept-{max(numbers) + 1}"
    fs.close(atomic_write(fs, copy, data))
    return copy
