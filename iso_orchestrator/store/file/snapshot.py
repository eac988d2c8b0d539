"""Snapshot and journal, read together: which of them says what, and where it ends."""

from __future__ import annotations

import attrs

from iso_orchestrator.codec import is_as_written, projection_from_snapshot
from iso_orchestrator.errors import CorruptRecordError, RecordConflictError
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.collector import collector_paused
from iso_orchestrator.store.file.files import read_all, read_file
from iso_orchestrator.store.file.journal import Header, Line, Scan, parse_header, scan
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["SnapshotAndJournal", "digest", "read_files", "read_once", "replay"]


@attrs.frozen(eq=False, repr=False)
class SnapshotAndJournal:
    """A workflow's two files, read.

    Attributes:
        fold: The record that they make together.
        header: The journal's first line; None when the journal has no part in the record.
        lines: How many facts of the record are in the journal alone.
        end: Offset behind the journal's last sound line.
        tail: The bytes behind it, or those of a blank snapshot.
        blank: The snapshot is an empty file that goes with no journal.
    """

    projection: Projection | None
    header: Header | None = None
    lines: int = 0
    end: int = 0
    tail: bytes = b""
    blank: bool = False


def read_files(fs: FileSystem, paths: Paths, journal_fd: int | None) -> SnapshotAndJournal:
    """Read the files of a workflow, its journal from the open *journal_fd*.

    Raises:
        CorruptRecordError: One of them is damaged.
        FormatVersionError: A newer release wrote one of them.
        RecordConflictError: They do not belong together.
    """
    with collector_paused():
        return _read_pair(fs, paths, journal_fd)


def _read_pair(fs: FileSystem, paths: Paths, journal_fd: int | None) -> SnapshotAndJournal:
    journal = b"" if journal_fd is None else read_all(fs, journal_fd)
    # The journal first: the snapshot can then be newer, which is well, but never older.
    snapshot = read_file(fs, paths.snapshot)
    if journal_fd is None:
        if snapshot is None or not snapshot.strip(b"\0 \t\r\n"):
            return SnapshotAndJournal(None, tail=snapshot or b"", blank=snapshot is not None)
        return SnapshotAndJournal(_projection(snapshot, paths))
    header = parse_header(journal, paths.journal)
    found = scan(journal[header.size :], header, header.size, header.base + 1, header.base, paths.journal)
    if snapshot is not None and digest(snapshot) == header.snapshot:
        projection = _projection(snapshot, paths)
        if projection.seq != header.base:
            raise CorruptRecordError(
                paths.journal, 0, f"it goes on from fact {header.base}, its snapshot ends with {projection.seq}"
            )
        replay(projection, found.lines, paths.journal)
        return SnapshotAndJournal(projection, header, len(found.lines), found.end, journal[found.end :])
    return SnapshotAndJournal(_newer_snapshot(snapshot, header, found, paths))


def read_once(fs: FileSystem, paths: Paths) -> SnapshotAndJournal:
    """What a reader makes of the pair now.

    Raises:
        StoreError: It cannot be read.
        OSError: Likewise.
    """
    try:
        fd = fs.open_read(paths.journal)
    except FileNotFoundError:
        return read_files(fs, paths, None)
    try:
        return read_files(fs, paths, fd)
    finally:
        fs.close(fd)


def digest(data: bytes) -> str:
    """What a journal calls its snapshot."""
    import hashlib  # as in `names`

    return hashlib.sha256(data).hexdigest()


def replay(projection: Projection, lines: list[Line], path: str) -> None:
    """Take *lines* in, which go on from *fold*."""
    for line in lines:
        try:
            projection.apply(line.fact)
        except LookupError as error:
            raise CorruptRecordError(path, 0, f"fact {line.seq} speaks of {error}, which is not there") from error


def _newer_snapshot(snapshot: bytes | None, header: Header, found: Scan, paths: Paths) -> Projection:
    """The fold of a snapshot that is not the journal's own, where that is well."""
    if snapshot is None:
        raise RecordConflictError(paths.snapshot, paths.journal)
    projection = _projection(snapshot, paths)
    if found.lines and (projection.seq < header.base + len(found.lines) or not is_as_written(snapshot)):
        raise RecordConflictError(paths.snapshot, paths.journal)
    return projection


def _projection(snapshot: bytes, paths: Paths) -> Projection:
    try:
        return projection_from_snapshot(snapshot, paths.snapshot)
    except (ValueError, RecursionError) as error:
        offset = getattr(error, "pos", 0)
        raise CorruptRecordError(paths.snapshot, offset, f"it is no workflow record: {error}") from error
