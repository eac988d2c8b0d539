"""Check which files of a store are sound, torn or damaged. Nothing is locked, made or changed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import TypeVar

import attrs

from iso_orchestrator.errors import CorruptRecordError, RecordConflictError, StoreError
from iso_orchestrator.store.file.journal import parse_header, scan
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.snapshot import SnapshotAndJournal, digest, read_files, read_unlocked
from iso_orchestrator.store.files import exists, read_all, read_file, store_error
from iso_orchestrator.store.maintenance import FileCheck, Verdict, WorkflowCheck
from iso_orchestrator.system.filesystem import FileSystem, refuse_other_owner

_BESIDE = re.compile(r"(?P<name>.+)\.(?:torn-[\d-]+(?:\.new)?|(?:json|journal)\..+)")
_KEPT = re.compile(r".+\.(?:torn-[\d-]+|(?:json|journal)\.kept-\d+)")

T = TypeVar("T")


def verify_all(fs: FileSystem, root: str) -> Iterator[WorkflowCheck]:
    """Check every file of a root, one workflow after the other.

    Raises:
        StoreError: The root cannot be read.
    """
    folder, locks = Paths(root, "").folder, os.path.join(root, "locks")
    try:
        found, lock_names = fs.list_folder(folder), fs.list_folder(locks)
    except OSError as error:
        raise store_error(root, error) from error
    beside: dict[str, list[str]] = {}
    unknown = []
    for file in found:
        name, _, suffix = file.rpartition(".")
        if name and suffix in ("json", "journal"):
            beside.setdefault(name, [])
        elif match := _BESIDE.fullmatch(file):
            beside.setdefault(match["name"], []).append(file)
        else:
            unknown.append(FileCheck(os.path.join(folder, file), Verdict.SOUND, "no file of this library; left alone"))
    for name in sorted({*beside, *lock_names}):
        yield _check_workflow(fs, Paths(root, name), beside.get(name, []))
    if unknown:
        yield WorkflowCheck("", None, None, tuple(unknown))


def verify_one(fs: FileSystem, root: str, workflow_id: str) -> WorkflowCheck | None:
    """Check the files of one workflow; None when there are none.

    Raises:
        StoreError: The root cannot be read.
    """
    try:
        paths = existing_paths(fs, root, workflow_id)
        if paths is None:
            return None
        found = fs.list_folder(paths.folder)
    except OSError as error:
        raise store_error(root, error) from error
    beside = [file for file in found if (match := _BESIDE.fullmatch(file)) and match["name"] == paths.name]
    return _check_workflow(fs, paths, beside)


def existing_paths(fs: FileSystem, root: str, workflow_id: str) -> Paths | None:
    """Where the workflow's files are, damaged ones included; None when there are none.

    Files that name another id are not the workflow's.
    """
    for paths in Paths.candidates(root, workflow_id):
        if exists(fs, paths.snapshot, paths.journal):
            found = _ids_in(fs, paths)
            if not found or workflow_id in found:
                return paths
    return None


def _check_workflow(fs: FileSystem, paths: Paths, beside: list[str]) -> WorkflowCheck:
    workflow_id, facts, files = _check_pair(fs, paths)
    files += [_check_beside(fs, os.path.join(paths.folder, file)) for file in beside]
    return WorkflowCheck(paths.name, workflow_id, facts, (*files, *_check_locks(fs, paths.locks)))


# Snapshot and journal.


def _check_pair(fs: FileSystem, paths: Paths) -> tuple[str | None, int | None, list[FileCheck]]:
    """The workflow's id and the number of its facts, where they can be read, and the state of its two files."""
    try:
        # A pair looks torn too while a process writes to it.
        pair = read_unlocked(fs, paths, is_settled=lambda pair: not pair.tail)
    except StoreError as error:
        return next(iter(_ids_in(fs, paths)), None), None, _check_unreadable(fs, paths, error)
    except OSError as error:
        files = _check_unreadable(fs, paths, store_error(paths.journal, error))
        return next(iter(_ids_in(fs, paths)), None), None, files
    files = _check_readable(fs, paths, pair)
    if pair.projection is None:
        return None, None, files
    return pair.projection.workflow_id, pair.projection.seq, files


def _check_readable(fs: FileSystem, paths: Paths, pair: SnapshotAndJournal) -> list[FileCheck]:
    files = []
    if pair.blank:
        message = "it is empty, and has no journal: nothing is there, the next opening begins anew"
        files.append(FileCheck(paths.snapshot, Verdict.TORN, message, 0))
    elif pair.projection is not None:
        steps = sum(pair.projection.summary().steps.values())
        files.append(FileCheck(paths.snapshot, Verdict.SOUND, f"{steps} steps"))
    if pair.header is None:
        if pair.projection is not None and exists(fs, paths.journal):
            message = "not in use: the snapshot has all of it, or was written by another program since"
            files.append(FileCheck(paths.journal, Verdict.SOUND, message))
    elif pair.tail:
        message = (
            f"{pair.lines} sound facts, then {len(pair.tail)} bytes torn by a crash, or being written now: no damage, "
            "the next opening keeps them aside"
        )
        files.append(FileCheck(paths.journal, Verdict.TORN, message, pair.end))
    else:
        files.append(FileCheck(paths.journal, Verdict.SOUND, f"{pair.lines} facts since the snapshot"))
    return [_unless_linked(fs, file) if file.path == paths.journal else file for file in files]


def _check_unreadable(fs: FileSystem, paths: Paths, error: StoreError) -> list[FileCheck]:
    """Check each file alone: *error*, from reading both, names only the first bad one."""
    files = [
        _check_file(paths.snapshot, lambda: _describe_snapshot(fs, paths)),
        _check_file(paths.journal, lambda: _describe_journal(fs, paths)),
    ]
    if any(file.verdict is not Verdict.SOUND for file in files):
        return files
    if isinstance(error, RecordConflictError):
        message = f"it does not go with the journal: {error.reason}; see `repair --help`"
        return [attrs.evolve(files[0], verdict=Verdict.CONFLICT, message=message), files[1]]
    # A whole line that cannot be applied to the record.
    path, offset = getattr(error, "path", paths.journal), getattr(error, "offset", None)
    return [*(file for file in files if file.path != path), _by_error(path, error, offset)]


def _describe_snapshot(fs: FileSystem, paths: Paths) -> str:
    if not exists(fs, paths.snapshot):
        return "there is none"
    if read_files(fs, paths, None).projection is None:
        raise CorruptRecordError(paths.snapshot, 0, "it is empty, and has a journal")
    return "a record by itself"


def _describe_journal(fs: FileSystem, paths: Paths) -> str:
    try:
        fd = fs.open_read(paths.journal)
    except FileNotFoundError:
        return "there is none"
    try:
        data = read_all(fs, fd)
    finally:
        fs.close(fd)
    header = parse_header(data, paths.journal)
    found = scan(data[header.size :], header, header.size, header.base + 1, header.base, paths.journal)
    snapshot = read_file(fs, paths.snapshot)
    whose = "this snapshot" if snapshot is not None and digest(snapshot) == header.snapshot else "another snapshot"
    return f"{len(found.lines)} sound facts after fact {header.base} of {whose}"


def _ids_in(fs: FileSystem, paths: Paths) -> list[str]:
    """The ids that the files name, as far as they can be read; the snapshot's first."""

    def by_snapshot() -> str | None:
        projection = read_files(fs, paths, None).projection
        return projection.workflow_id if projection is not None else None

    def by_journal() -> str | None:
        data = read_file(fs, paths.journal)
        return parse_header(data, paths.journal).workflow_id if data is not None else None

    return [found for found in (_or_none(by_snapshot), _or_none(by_journal)) if found is not None]


def _or_none(read: Callable[[], T | None]) -> T | None:
    try:
        return read()
    except (StoreError, OSError):
        return None


# Other files.


def _check_beside(fs: FileSystem, path: str) -> FileCheck:
    if _KEPT.fullmatch(path):
        return _unless_linked(fs, FileCheck(path, Verdict.SOUND, "kept aside; `delete` removes it too"))
    message = "left by a process that was killed, or being written now; no part of the record"
    return _unless_linked(fs, FileCheck(path, Verdict.SOUND, message))


def _check_locks(fs: FileSystem, folder: str) -> Iterator[FileCheck]:
    """All that is no plain file in a plain folder under a folder of locks. Sound files are not listed."""
    try:
        info = fs.identify_path(folder)
        if info is None:
            return
        if not stat.S_ISDIR(info.st_mode):
            yield _unless_linked(fs, FileCheck(folder, Verdict.SOUND, "a file"))
            return
        names = fs.list_folder(folder)
    except OSError as error:
        yield _by_error(folder, store_error(folder, error), None)
        return
    for name in names:
        path = os.path.join(folder, name)
        info = fs.identify_path(path)
        if info is not None and stat.S_ISDIR(info.st_mode):
            yield from _check_locks(fs, path)
        elif (checked := _unless_linked(fs, FileCheck(path, Verdict.SOUND, ""))).verdict is not Verdict.SOUND:
            yield checked


# One file.


def _check_file(path: str, describe: Callable[[], str]) -> FileCheck:
    """The state of a file. *describe* reads it, and returns what it contains, or raises."""
    try:
        return FileCheck(path, Verdict.SOUND, describe())
    except StoreError as error:
        return _by_error(path, error, getattr(error, "offset", None))
    except OSError as error:
        return _by_error(path, store_error(path, error), None)


def _by_error(path: str, error: StoreError, offset: int | None) -> FileCheck:
    if isinstance(error, CorruptRecordError):
        return FileCheck(path, Verdict.DAMAGED, f"{error.reason}; {error.kept}", offset)
    return FileCheck(path, Verdict.REFUSED, str(error))


def _unless_linked(fs: FileSystem, file: FileCheck) -> FileCheck:
    """*file*, or that it is refused where the library would not open it."""
    try:
        info = fs.identify_path(file.path)
    except OSError as error:
        return _by_error(file.path, store_error(file.path, error), None)
    if info is None:
        return file
    if not stat.S_ISREG(info.st_mode):
        return FileCheck(file.path, Verdict.REFUSED, "it is not a regular file: remove it")
    if info.st_nlink > 1:
        return FileCheck(file.path, Verdict.REFUSED, "it has another name (a hard link): remove the other")
    try:
        refuse_other_owner(file.path, info)
    except StoreError as error:
        return _by_error(file.path, error, None)
    return file
