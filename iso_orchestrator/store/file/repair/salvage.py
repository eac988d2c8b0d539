"""The bytes of damaged files: how far they are sound, and what can be read behind that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from iso_orchestrator.codec import decode, encode, is_as_written, projection_from_snapshot, snapshot_from_projection
from iso_orchestrator.errors import CorruptRecordError, RecordConflictError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.journal import Header, Line, encode_header, parse_header, scan
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.snapshot import digest, replay

__all__ = ["Sound", "edited", "goes_on_from", "keep_tokens", "read_journal", "read_snapshot", "sound_prefix", "take_in"]


@attrs.frozen
class Sound:
    """What is sound of a journal.

    Attributes:
        header: As it is, or as it must have been where it is damaged.
        lines: Up to the first bad one.
        behind: Sound ones behind that, in order.
        end: Offset of the first bad one.
        lost: Up to which sequence facts are known to have been there.
        unread: Bytes from there to the end of the file.
    """

    header: Header
    lines: list[Line]
    behind: list[Line]
    end: int
    lost: int
    unread: int

    @property
    def seq(self) -> int:
        """Sequence of the last fact before the first bad line."""
        return self.header.base + len(self.lines)


def read_snapshot(data: bytes | None, path: str) -> Projection | None:
    """The fold of a snapshot; None where it is missing or damaged.

    Raises:
        FormatVersionError: A newer release wrote it.
    """
    if data is None:
        return None
    try:
        return projection_from_snapshot(data, path)
    except (ValueError, RecursionError):
        return None


def read_journal(data: bytes, snapshot: bytes | None, path: str) -> Sound | None:
    """What is sound of a journal; None where nothing tells what its header was.

    Raises:
        FormatVersionError: A newer release wrote it.
    """
    header = _header(data, snapshot, path)
    if header is None:
        return None
    try:
        found = scan(data[header.size :], header, header.size, header.base + 1, header.base, path)
        end = found.end
    except CorruptRecordError as error:
        end = error.offset
        found = scan(data[header.size : end], header, header.size, header.base + 1, header.base, path)
    behind = _behind(data[end:], header, path)
    lost = max([found.mark, *(line.seq for line in behind)])
    return Sound(header, found.lines, behind, end, lost, len(data) - end)


def goes_on_from(sound: Sound, snapshot: bytes) -> bool:
    """Whether that is the journal's own snapshot."""
    return sound.header.snapshot == digest(snapshot)


def sound_prefix(snapshot: bytes, sound: Sound | None, paths: Paths) -> tuple[Projection, int]:
    """The longest record that snapshot and journal prove, and how many of the journal's lines are in it.

    Raises:
        RecordConflictError: The snapshot is not the journal's.
    """
    projection = projection_from_snapshot(snapshot, paths.snapshot)
    if sound is None or not sound.lines:
        return projection, 0
    if not goes_on_from(sound, snapshot):
        if projection.seq < sound.seq or not is_as_written(snapshot):
            raise RecordConflictError(paths.snapshot, paths.journal)
        return projection, len(sound.lines)
    for count, line in enumerate(sound.lines):
        try:
            replay(projection, [line], paths.journal)
        except CorruptRecordError:
            # A fact that cannot be folded may have changed half of what it speaks of.
            projection = projection_from_snapshot(snapshot, paths.snapshot)
            replay(projection, sound.lines[:count], paths.journal)
            return projection, count
    return projection, len(sound.lines)


def take_in(projection: Projection, lines: Sequence[Line], path: str) -> list[Line]:
    """Fold *lines* into a record that they do not go on from; those that speak of what is not there."""
    left = []
    for line in lines:
        try:
            replay(projection, [line], path)
        except CorruptRecordError:
            left.append(line)
    return left


def edited(projection: Projection, path: str, edit: Callable[[dict[str, Any]], None]) -> Projection:
    """*fold* with its snapshot's JSON changed by *edit*."""
    document = decode(snapshot_from_projection(projection))
    edit(document)
    return projection_from_snapshot(encode(document).encode("ascii"), path)


def keep_tokens(document: dict[str, Any], behind: Sequence[Line], unreadable: int) -> None:
    """Raise the leases' tokens past all that may have been handed out by facts that are lost: none is twice."""
    tokens = document["isoOrchestrator"]["tokens"]
    for line in behind:
        if isinstance(line.fact, f.LeaseTouched):
            tokens[line.fact.key] = max(tokens.get(line.fact.key, 0), line.fact.token)
    for key in tokens:
        tokens[key] += unreadable


def _header(data: bytes, snapshot: bytes | None, path: str) -> Header | None:
    try:
        return parse_header(data, path)
    except CorruptRecordError:
        if snapshot is None or (projection := read_snapshot(snapshot, path)) is None:
            return None
    # What it says all follows from the snapshot that it goes on from. Its checksum begins those of the lines, so that
    # none of them fits when this is not that snapshot.
    return parse_header(encode_header(projection.workflow_id, projection.seq, digest(snapshot)), path)


def _behind(data: bytes, header: Header, path: str) -> list[Line]:
    found: dict[int, Line] = {}
    for raw in data.split(b"\n"):
        try:
            fields = decode(raw)
        except (ValueError, RecursionError):
            continue
        seq = fields.get("seq") if isinstance(fields, dict) else None
        if type(seq) is int:
            try:
                lines = scan(raw + b"\n", header, 0, seq, 0, path).lines
            except CorruptRecordError:  # sound to look at, but for its checksum
                continue
            found.update((line.seq, line) for line in lines)
    return [found[seq] for seq in sorted(found)]
