"""Snapshot and journal together: read them as one record, and write a fresh pair."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress

import attrs

from iso_orchestrator.codec import is_as_written, projection_from_snapshot, snapshot_from_projection
from iso_orchestrator.errors import CorruptRecordError, FormatVersionError, RecordConflictError
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.journal import SEAL_SIZE, Header, Line, encode_header, parse_header, scan
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.files import atomic_write, read_all, read_file
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.collector import collector_paused
from iso_orchestrator.system.filesystem import FileSystem

_READ_TRIES = 20
_READ_PAUSE = 0.005  # seconds; writing a fresh pair of a large record takes a few of them


@attrs.frozen
class SnapshotAndJournal:
    """What a workflow's two files say.

    Attributes:
        projection: The record that they make together; None when there is none.
        header: The journal's first line; None when the journal is no part of the record.
        lines: How many facts of the record are in the journal alone.
        end: Offset after the journal's last sound line, in bytes.
        tail: The bytes after it, or those of a blank snapshot.
        blank: Whether the snapshot is an empty file without a journal.
        foreign: Whether another program made the snapshot, without a sequence of ours.
    """

    projection: Projection | None
    header: Header | None = None
    lines: int = 0
    end: int = 0
    tail: bytes = b""
    blank: bool = False
    foreign: bool = False


@attrs.define
class OpenJournal:
    """A journal that this process has open.

    Attributes:
        fd: Its descriptor.
        file: Which file it is.
        header: Its first line.
        end: Offset after the last line that this process has read or written, in bytes.
        seal: The last bytes of that line, with its checksum.
    """

    fd: int
    file: os.stat_result
    header: Header
    end: int
    seal: bytes


def read_files(fs: FileSystem, paths: Paths, journal_fd: int | None) -> SnapshotAndJournal:
    """Read a workflow's files, the journal from the open *journal_fd*.

    Raises:
        CorruptRecordError: One of them is damaged.
        FormatVersionError: A newer release wrote one of them.
        RecordConflictError: They do not belong together.
    """
    journal = None if journal_fd is None else read_all(fs, journal_fd)
    # The journal first: then the snapshot may be newer, which is fine, but never older.
    return combine(read_file(fs, paths.snapshot), journal, paths)


def combine(snapshot: bytes | None, journal: bytes | None, paths: Paths) -> SnapshotAndJournal:
    """What the bytes of a workflow's files make together; see `read_files`."""
    with collector_paused():
        return _combine(snapshot, journal, paths)


def read_once(fs: FileSystem, paths: Paths) -> SnapshotAndJournal:
    """Read a workflow's files, as `read_files`. A checkpoint at the same time can make them seem not to fit."""
    try:
        fd = fs.open_read(paths.journal)
    except FileNotFoundError:
        return read_files(fs, paths, None)
    try:
        return read_files(fs, paths, fd)
    finally:
        fs.close(fd)


def read_unlocked(
    fs: FileSystem, paths: Paths, *, is_settled: Callable[[SnapshotAndJournal], bool] = lambda _: True
) -> SnapshotAndJournal:
    """Read a workflow's files without its lock: try again while they do not fit, as during a checkpoint.

    Args:
        fs: The file system.
        paths: The workflow's paths.
        is_settled: Whether what was read need not be read again; the last try is taken as it is.

    Raises:
        StoreError: As `read_files`, at the last try.
    """
    for _ in range(_READ_TRIES - 1):
        with suppress(RecordConflictError, CorruptRecordError):
            pair = read_once(fs, paths)
            if is_settled(pair):
                return pair
        sleep(_READ_PAUSE)
    return read_once(fs, paths)


def write_pair(fs: FileSystem, paths: Paths, projection: Projection) -> None:
    """Replace a workflow's files by a fresh pair, durably. Needs the record's lock, and a new generation of it."""
    snapshot = snapshot_from_projection(projection)
    write_snapshot(fs, paths, snapshot)
    fs.close(write_journal(fs, paths, projection, snapshot).fd)


def write_snapshot(fs: FileSystem, paths: Paths, snapshot: bytes) -> os.stat_result:
    """Replace the snapshot, durably; which file it is now."""
    fd, file = atomic_write(fs, paths.snapshot, snapshot)
    fs.close(fd)
    return file


def write_journal(fs: FileSystem, paths: Paths, projection: Projection, snapshot: bytes) -> OpenJournal:
    """Replace the journal by an empty one that continues *snapshot*, durably."""
    data = encode_header(projection.workflow_id, projection.seq, digest(snapshot))
    header = parse_header(data, paths.journal)
    fd, file = atomic_write(fs, paths.journal, data)
    return OpenJournal(fd, file, header, header.size, data[-SEAL_SIZE:])


def digest(snapshot: bytes) -> str:
    """The SHA-256 by which a journal names its snapshot."""
    return hashlib.sha256(snapshot).hexdigest()


def read_snapshot(snapshot: bytes, path: str) -> Projection:
    """The record in a snapshot.

    Raises:
        CorruptRecordError: It is no record.
        FormatVersionError: It is one, and cannot be read here.
    """
    try:
        return projection_from_snapshot(snapshot, path)
    except ValueError as error:
        if is_as_written(snapshot):
            raise FormatVersionError(path, f"a sound record ({error})") from error
        raise CorruptRecordError(path, getattr(error, "pos", 0), f"it is no workflow record: {error}") from error


def replay(projection: Projection, lines: list[Line], path: str) -> None:
    """Apply *lines* to the *projection* that they continue.

    Raises:
        CorruptRecordError: A fact is about something that does not exist.
    """
    for line in lines:
        try:
            projection.apply(line.fact)
        except LookupError as error:
            raise CorruptRecordError(path, 0, f"fact {line.seq} is about {error}, which does not exist") from error


def _combine(snapshot: bytes | None, journal: bytes | None, paths: Paths) -> SnapshotAndJournal:
    if journal is None:
        if snapshot is None or not snapshot.strip(b"\0 \t\r\n"):
            return SnapshotAndJournal(None, tail=snapshot or b"", blank=snapshot is not None)
        return _snapshot_alone(snapshot, read_snapshot(snapshot, paths.snapshot))
    header = parse_header(journal, paths.journal)
    found = scan(journal[header.size :], header, header.size, header.base + 1, header.base, paths.journal)
    if snapshot is None or digest(snapshot) != header.snapshot:
        return take_snapshot(snapshot, header, found.lines, paths)
    projection = read_snapshot(snapshot, paths.snapshot)
    if projection.seq != header.base:
        reason = f"it continues fact {header.base}, and its snapshot ends with fact {projection.seq}"
        raise CorruptRecordError(paths.journal, 0, reason)
    replay(projection, found.lines, paths.journal)
    return SnapshotAndJournal(projection, header, len(found.lines), found.end, journal[found.end :])


def take_snapshot(snapshot: bytes | None, header: Header, lines: list[Line], paths: Paths) -> SnapshotAndJournal:
    """The record of a snapshot that is not the journal's own, if it has all facts of the journal.

    Raises:
        RecordConflictError: It has not.
    """
    if snapshot is None:
        raise RecordConflictError(paths.snapshot, paths.journal)
    pair = _snapshot_alone(snapshot, projection := read_snapshot(snapshot, paths.snapshot))
    if projection.seq < header.base and not pair.foreign:
        reason = (
            f"it is an older copy, which ends with fact {projection.seq}, while the journal continues fact "
            f"{header.base}, and the facts between are in neither"
        )
        raise RecordConflictError(paths.snapshot, paths.journal, reason)
    if lines and (projection.seq < header.base + len(lines) or not is_as_written(snapshot)):
        raise RecordConflictError(paths.snapshot, paths.journal)
    return pair


def _snapshot_alone(snapshot: bytes, projection: Projection) -> SnapshotAndJournal:
    return SnapshotAndJournal(projection, foreign=projection.seq == 0 and not is_as_written(snapshot))
