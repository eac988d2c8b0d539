"""What is sound, torn or damaged in a folder of workflows. Looks only: nothing is locked, made or changed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from iso_orchestrator.store.file.files import store_error
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.repair.check_pair import check_pair, paths_of
from iso_orchestrator.store.file.repair.verdict import FileCheck, Verdict, WorkflowCheck, by_error, unless_linked
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["check_all", "check_one"]

_BESIDE = re.compile(r"(?P<name>.+)\.(?:torn-[\d-]+(?:\.new)?|(?:json|journal)\..+)")
_KEPT = re.compile(r".+\.(?:torn-[\d-]+|(?:json|journal)\.kept-\d+)")


def check_all(fs: FileSystem, root: str) -> Iterator[WorkflowCheck]:
    """Check every file of a root, one workflow after the other.

    Raises:
        StoreError: The root cannot be looked at.
    """
    folder, locks = Paths(root, "").folder, os.path.join(root, "locks")
    try:
        found, lock_names = fs.list_folder(folder), fs.list_folder(locks)
    except OSError as error:
        raise store_error(root, error) from error
    beside: dict[str, list[str]] = {}
    strange = []
    for file in found:
        name, _, suffix = file.rpartition(".")
        if name and suffix in ("json", "journal"):
            beside.setdefault(name, [])
        elif match := _BESIDE.fullmatch(file):
            beside.setdefault(match["name"], []).append(file)
        else:
            strange.append(os.path.join(folder, file))
    for name in sorted({*beside, *lock_names}):
        yield _check(fs, Paths(root, name), beside.get(name, []))
    if strange:
        yield WorkflowCheck("", None, None, tuple(_stranger(path) for path in strange))


def check_one(fs: FileSystem, root: str, workflow_id: str) -> WorkflowCheck | None:
    """Check the files of one workflow; None when there are none.

    Raises:
        StoreError: The root cannot be looked at.
    """
    try:
        paths = paths_of(fs, root, workflow_id)
        if paths is None:
            return None
        found = fs.list_folder(paths.folder)
    except OSError as error:
        raise store_error(root, error) from error
    return _check(fs, paths, [file for file in found if (m := _BESIDE.fullmatch(file)) and m["name"] == paths.name])


def _check(fs: FileSystem, paths: Paths, beside: list[str]) -> WorkflowCheck:
    workflow_id, facts, files = check_pair(fs, paths)
    files += [_check_beside(fs, os.path.join(paths.folder, file)) for file in beside]
    return WorkflowCheck(paths.name, workflow_id, facts, (*files, *_check_locks(fs, paths.locks)))


def _check_beside(fs: FileSystem, path: str) -> FileCheck:
    if _KEPT.fullmatch(path):
        return unless_linked(fs, FileCheck(path, Verdict.SOUND, "kept aside; `delete` removes it too"))
    says = "left by a process that was killed, or being written now; no part of the record"
    return unless_linked(fs, FileCheck(path, Verdict.SOUND, says))


def _check_locks(fs: FileSystem, folder: str) -> Iterator[FileCheck]:
    """All under a folder of locks that is no plain file in a plain folder; what is well is not named one by one."""
    try:
        info = fs.identify_path(folder)
        if info is None:
            return
        if not stat.S_ISDIR(info.st_mode):
            yield unless_linked(fs, FileCheck(folder, Verdict.SOUND, "a file"))
            return
        names = fs.list_folder(folder)
    except OSError as error:
        yield by_error(folder, store_error(folder, error), None)
        return
    for name in names:
        path = os.path.join(folder, name)
        info = fs.identify_path(path)
        if info is not None and stat.S_ISDIR(info.st_mode):
            yield from _check_locks(fs, path)
        elif (checked := unless_linked(fs, FileCheck(path, Verdict.SOUND, ""))).verdict is not Verdict.SOUND:
            yield checked


def _stranger(path: str) -> FileCheck:
    return FileCheck(path, Verdict.SOUND, "none of this library's; left alone")
