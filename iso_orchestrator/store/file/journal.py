"""The bytes of a journal, as docs/format.md defines them: a header line, then a line for each fact."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import attrs

from iso_orchestrator.codec import decode, encode, fact_from_json, fact_to_json
from iso_orchestrator.errors import CorruptRecordError, FormatVersionError
from iso_orchestrator.record.facts import Fact

JOURNAL_FORMAT = 1
_CRC_SIZE = len(',"crc":"00000000"}')
SEAL_SIZE = _CRC_SIZE + 1
"""Bytes of the end of a line, from its checksum on."""


@attrs.frozen
class Header:
    """A journal's first line.

    Attributes:
        base: Sequence of the last fact in the snapshot that the journal continues.
        snapshot: SHA-256 of that snapshot, in hex.
        crc: CRC-32 of this line; the checksums of all other lines start from it.
        size: Bytes of the line, with the line feed.
    """

    workflow_id: str
    base: int
    snapshot: str
    crc: int
    size: int


@attrs.frozen
class Line:
    """A sound line: a fact, its sequence, and up to which sequence the journal was synced when it was written."""

    seq: int
    synced: int
    fact: Fact


@attrs.frozen
class Scan:
    """The content of a part of a journal.

    Attributes:
        lines: The sound lines before the first bad one.
        end: Offset after them, in bytes.
        after: The sound lines after the first bad one, in no order.
        mark: The highest sequence up to which the journal was synced, by what any sound line says.
    """

    lines: list[Line]
    end: int
    after: list[Line]
    mark: int


def encode_header(workflow_id: str, base: int, snapshot: str) -> bytes:
    """Encode the first line of a new journal."""
    fields = {"journal": JOURNAL_FORMAT, "workflow": workflow_id, "base": base, "snapshot": snapshot}
    return _close(encode(fields)[:-1].encode("ascii"), 0)


def encode_lines(facts: Sequence[Fact], first_seq: int, synced: int, header_crc: int) -> bytes:
    """Encode the lines of *facts*; the first fact has sequence *first_seq*."""
    lines = []
    for seq, fact in enumerate(facts, first_seq):
        tag, fields = fact_to_json(fact)
        body = encode({"seq": seq, "synced": synced, "fact": tag, **fields})[:-1].encode("ascii")
        lines.append(b'%b,"crc":"%08x"}\n' % (body, crc32(body, header_crc)))
    return lines[0] if len(lines) == 1 else b"".join(lines)


def parse_header(data: bytes, path: str) -> Header:
    """Decode the first line of a journal's bytes.

    Raises:
        CorruptRecordError: It is damaged.
        FormatVersionError: It is sound, and cannot be read here.
    """
    end = data.find(b"\n") + 1
    body = _open(data[: end - 1], 0) if end else None
    if body is None:
        raise CorruptRecordError(path, 0, "the first line is damaged")
    try:
        fields = decode(body + b"}")
        if fields.get("journal") != JOURNAL_FORMAT:
            raise ValueError(f"journal format {fields.get('journal')!r}")
        workflow_id, base, snapshot = (fields.get(key) for key in ("workflow", "base", "snapshot"))
        if type(workflow_id) is not str or type(base) is not int or type(snapshot) is not str:
            raise ValueError("a field is missing, or of another type")
    except ValueError as error:
        raise _unreadable(path, 0, error) from error
    return Header(workflow_id, base, snapshot, crc32(body), end)


def scan(data: bytes, header: Header, start: int, next_seq: int, synced: int, path: str) -> Scan:
    """Decode the lines of a journal, as `read_lines`, if no damage is in what was synced.

    Raises:
        CorruptRecordError: A line is damaged that was synced, so that no crash explains the damage.
        FormatVersionError: A line is sound, and cannot be read here.
    """
    found = read_lines(data, header, start, next_seq, synced, path)
    bad_seq = next_seq + len(found.lines)
    if found.end < start + len(data) and bad_seq <= found.mark:
        raise CorruptRecordError(
            path,
            found.end,
            f"fact {bad_seq} is damaged, and facts up to {found.mark} were synced",
            f"facts up to {bad_seq - 1} are sound, nothing was changed",
        )
    return found


def read_lines(data: bytes, header: Header, start: int, next_seq: int, synced: int, path: str) -> Scan:
    """Decode all sound lines of a journal from one of its lines to its end.

    Args:
        data: The bytes from there to the end.
        header: The journal's first line.
        start: Offset of *data* in the journal, in bytes.
        next_seq: Sequence that the first of the lines must have.
        synced: The sequence up to which the journal is known to be synced, whatever its lines say.
        path: The journal's path, for errors.

    Raises:
        FormatVersionError: A line is sound, and cannot be read here.
    """
    lines: list[Line] = []
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        line = _line(data[position:end], header.crc, path, start + position)
        if line is None or line.seq != next_seq:
            break
        lines.append(line)
        position, next_seq = end + 1, next_seq + 1
    after, place = [], position
    for piece in data[position:].split(b"\n"):
        if (line := _line(piece, header.crc, path, start + place)) is not None:
            after.append(line)
        place += len(piece) + 1
    mark = max([synced, *(line.synced for line in lines[-1:] + after)])
    return Scan(lines, start + position, after, mark)


def _line(data: bytes, crc: int, path: str, offset: int) -> Line | None:
    """A line's fact; None where the checksum is wrong, and only there: such lines are cut as torn."""
    body = _open(data, crc)
    if body is None:
        return None
    try:
        fields = decode(body + b"}")
        seq, synced, tag = fields.pop("seq", None), fields.pop("synced", None), fields.pop("fact", None)
        if type(seq) is not int or type(synced) is not int:
            raise ValueError("a sequence is missing, or of another type")
        return Line(seq, synced, fact_from_json(tag, fields))
    except ValueError as error:
        raise _unreadable(path, offset, error) from error


def _unreadable(path: str, offset: int, error: ValueError) -> FormatVersionError:
    return FormatVersionError(path, f"a sound line at byte {offset} ({error})")


def _open(line: bytes, start: int) -> bytes | None:
    """The body of a line without its checksum; None where the checksum is wrong."""
    body = line[:-_CRC_SIZE]
    return body if body and _close(body, start) == line + b"\n" else None


def _close(body: bytes, start: int) -> bytes:
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body, start))
