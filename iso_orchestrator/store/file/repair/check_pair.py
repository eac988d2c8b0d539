"""What is sound, torn or damaged of a workflow's two files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs

from iso_orchestrator.errors import CorruptRecordError, RecordConflictError, StoreError
from iso_orchestrator.store.file.files import exists, read_all, read_file, store_error
from iso_orchestrator.store.file.journal import parse_header, scan
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.repair.verdict import FileCheck, Verdict, by_error, judge, unless_linked
from iso_orchestrator.store.file.snapshot import SnapshotAndJournal, digest, read_files, read_once
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["check_pair", "paths_of"]

_TRIES = 20
_PAUSE = 0.005  # seconds between two tries: a live writer's fold takes a few of them

T = TypeVar("T")


def check_pair(fs: FileSystem, paths: Paths) -> tuple[str | None, int | None, list[FileCheck]]:
    """A workflow's id and the number of its facts, where they can be read, and how its files are."""
    found = _look(fs, paths)
    if not isinstance(found, SnapshotAndJournal):
        return next(iter(_ids_in(fs, paths)), None), None, _unreadable(fs, paths, found)
    files = _readable(fs, paths, found)
    return (
        (found.projection.workflow_id, found.projection.seq, files)
        if found.projection is not None
        else (None, None, files)
    )


def paths_of(fs: FileSystem, root: str, workflow_id: str) -> Paths | None:
    """Where the workflow's files are, damaged ones included: those that name another id are not taken for its own."""
    for paths in Paths.candidates(root, workflow_id):
        if exists(fs, paths.snapshot, paths.journal):
            found = _ids_in(fs, paths)
            if not found or workflow_id in found:
                return paths
    return None


def _look(fs: FileSystem, paths: Paths) -> SnapshotAndJournal | StoreError:
    """As a reader does: a writer at work can make the files seem torn, or not to fit."""
    tries_left = _TRIES
    while True:
        tries_left -= 1
        found: SnapshotAndJournal | StoreError
        try:
            found = read_once(fs, paths)
            if not found.tail:
                return found
        except (CorruptRecordError, RecordConflictError) as error:
            found = error
        except StoreError as error:
            return error
        except OSError as error:
            return store_error(paths.journal, error)
        if not tries_left:
            return found
        sleep(_PAUSE)


def _readable(fs: FileSystem, paths: Paths, pair: SnapshotAndJournal) -> list[FileCheck]:
    files = []
    if pair.blank:
        says = "it is empty, and no journal goes with it: nothing is there; the next opening begins anew"
        files.append(FileCheck(paths.snapshot, Verdict.TORN, says, 0))
    elif pair.projection is not None:
        files.append(FileCheck(paths.snapshot, Verdict.SOUND, f"{sum(pair.projection.summary().steps.values())} steps"))
    if pair.header is None:
        if pair.projection is not None and _is_there(fs, paths.journal):
            says = "the snapshot has all of it, or was written by another program since: the journal is done with"
            files.append(FileCheck(paths.journal, Verdict.SOUND, says))
    elif pair.tail:
        says = (
            f"{pair.lines} sound facts, and {len(pair.tail)} bytes behind them that a crash has torn or that are being "
            "written now: no damage, the next opening keeps them aside"
        )
        files.append(FileCheck(paths.journal, Verdict.TORN, says, pair.end))
    else:
        files.append(FileCheck(paths.journal, Verdict.SOUND, f"{pair.lines} facts since the snapshot"))
    return [unless_linked(fs, file) if file.path == paths.journal else file for file in files]


def _unreadable(fs: FileSystem, paths: Paths, error: StoreError) -> list[FileCheck]:
    """Each file by itself, since together they tell only of the first that is wrong."""
    files = [
        judge(paths.snapshot, lambda: _snapshot_alone(fs, paths)),
        judge(paths.journal, lambda: _scan(fs, paths)),
    ]
    if isinstance(error, RecordConflictError) and all(file.verdict is Verdict.SOUND for file in files):
        says = (
            "another program wrote it, or removed it, while the journal held facts that it lacks: see `repair --help`"
        )
        files[0] = attrs.evolve(files[0], verdict=Verdict.CONFLICT, says=says)
    elif all(file.verdict is Verdict.SOUND for file in files):  # a line that is whole and cannot be folded
        path, offset = getattr(error, "path", paths.journal), getattr(error, "offset", None)
        files = [file for file in files if file.path != path] + [by_error(path, error, offset)]
    return files


def _snapshot_alone(fs: FileSystem, paths: Paths) -> str:
    if not _is_there(fs, paths.snapshot):
        return "there is none"
    projection = read_files(fs, paths, None).projection
    if projection is None:
        raise CorruptRecordError(paths.snapshot, 0, "it is empty, and a journal goes with it")
    return "a record by itself"


def _scan(fs: FileSystem, paths: Paths) -> str:
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
    goes_with = "this snapshot" if snapshot is not None and digest(snapshot) == header.snapshot else "another snapshot"
    return f"{len(found.lines)} sound facts behind fact {header.base} of {goes_with}"


def _ids_in(fs: FileSystem, paths: Paths) -> list[str]:
    """The ids that the files say, as far as they can be read; the snapshot's first."""

    def by_snapshot() -> str | None:
        projection = read_files(fs, paths, None).projection
        return projection.workflow_id if projection is not None else None

    def by_journal() -> str | None:
        data = read_file(fs, paths.journal)
        return parse_header(data, paths.journal).workflow_id if data is not None else None

    return [found for found in (_or_none(by_snapshot), _or_none(by_journal)) if found is not None]


def _or_none(look: Callable[[], T | None]) -> T | None:
    try:
        return look()
    except (StoreError, OSError):
        return None


def _is_there(fs: FileSystem, path: str) -> bool:
    return fs.identify_path(path) is not None
