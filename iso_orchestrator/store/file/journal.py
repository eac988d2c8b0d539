"""The bytes of a journal, as docs/format.md defines them: a header line, then a line for each fact."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import attrs

from iso_orchestrator.codec import decode, encode, fact_from_json, fact_to_json
from iso_orchestrator.errors import CorruptRecordError, FormatVersionError
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.model import Json

JOURNAL_FORMAT = 1
_CRC_SIZE = len(',"crc":"00000000"}')


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
        mark: The highest sequence up to which a line says that the journal was synced.
    """

    lines: list[Line]
    end: int
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
        FormatVersionError: A newer release wrote it.
    """
    end = data.find(b"\n") + 1
    body = _open(data[: end - 1], 0) if end else None
    fields = _object(body) if body is not None else None
    if body is None or not isinstance(fields, dict):
        raise CorruptRecordError(path, 0, "the first line is damaged")
    if fields.get("journal") != JOURNAL_FORMAT:
        raise FormatVersionError(path, f"journal format {fields.get('journal')!r}")
    workflow_id, base, snapshot = (fields.get(key) for key in ("workflow", "base", "snapshot"))
    if type(workflow_id) is not str or type(base) is not int or type(snapshot) is not str:
        raise CorruptRecordError(path, 0, "the first line lacks a field, or has one of another type")
    return Header(workflow_id, base, snapshot, crc32(body), end)


def scan(data: bytes, header: Header, start: int, next_seq: int, synced: int, path: str) -> Scan:
    """Decode the lines of a journal from one of its lines to its end.

    Args:
        data: The bytes from there to the end.
        header: The journal's first line.
        start: Offset of *data* in the journal, in bytes.
        next_seq: Sequence that the first of the lines must have.
        synced: The sequence up to which the journal is known to be synced, whatever its lines say.
        path: The journal's path, for errors.

    Raises:
        CorruptRecordError: A line is damaged that was synced, so that no crash explains the damage.
        FormatVersionError: A newer release wrote a line.
    """
    lines: list[Line] = []
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        line = _line(data[position:end], header.crc, path)
        if line is None or line.seq != next_seq:
            break
        lines.append(line)
        position, next_seq = end + 1, next_seq + 1
    mark = max(synced, lines[-1].synced if lines else 0, _mark_after(data, position, header.crc, path))
    if position < len(data) and next_seq <= mark:
        raise CorruptRecordError(
            path,
            start + position,
            f"fact {next_seq} is damaged, and facts up to {mark} were synced",
            f"facts up to {next_seq - 1} are sound, nothing was changed",
        )
    return Scan(lines, start + position, mark)


def _mark_after(data: bytes, position: int, crc: int, path: str) -> int:
    """The highest mark in the sound lines after the first bad one."""
    if position == len(data):
        return 0
    lines = (_line(line, crc, path) for line in data[position:].split(b"\n"))
    return max((line.synced for line in lines if line is not None), default=0)


def _line(data: bytes, crc: int, path: str) -> Line | None:
    body = _open(data, crc)
    fields = _object(body) if body is not None else None
    if fields is None:
        return None
    seq, synced, tag = fields.pop("seq", None), fields.pop("synced", None), fields.pop("fact", None)
    if type(seq) is not int or type(synced) is not int:
        return None
    try:
        return Line(seq, synced, fact_from_json(tag, fields, path))
    except ValueError:
        return None


def _object(body: bytes) -> dict[str, Json] | None:
    try:
        value = decode(body + b"}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _open(line: bytes, start: int) -> bytes | None:
    """The body of a line without its checksum; None where the checksum is wrong."""
    body = line[:-_CRC_SIZE]
    return body if body and _close(body, start) == line + b"\n" else None


def _close(body: bytes, start: int) -> bytes:
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body, start))
