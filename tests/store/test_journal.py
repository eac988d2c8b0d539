from __future__ import annotations

import json
import random
import re
from pathlib import Path
from zlib import crc32

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import T0, at, note, only
from support_facts import FACT_KINDS

from iso_orchestrator.errors import CorruptRecordError, FormatVersionError
from iso_orchestrator.record import facts as f
from iso_orchestrator.store.file.journal import Header, Scan, encode_header, encode_lines, parse_header, scan

PATH = "/root/workflows/w.journal"
BASE = 7
FACTS: list[f.Fact] = [
    note("one"),
    f.StepStarted(at(1), "a", 1, "owner"),
    f.StepCompleted(at(2), "a", {"é": "\x1b[31m", "n": [1.5, None]}),
    note("four", 3),
    note("five", 4),
]
# Each line says up to where the journal was known synced: the third was written after the first two were.
SYNCED = [7, 7, 9, 9, 10]


def journal(facts: list[f.Fact] = FACTS, synced: list[int] = SYNCED, base: int = BASE, name: str = "w") -> bytes:
    data = encode_header(name, base, "0" * 64)
    crc = parse_header(data, PATH).crc
    for seq, (fact, mark) in enumerate(zip(facts, synced, strict=True), base + 1):
        data += encode_lines([fact], seq, mark, crc)
    return data


def scanned(data: bytes, synced: int = BASE) -> tuple[Header, Scan]:
    header = parse_header(data, PATH)
    return header, scan(data[header.size :], header, header.size, header.base + 1, synced, PATH)


def ends(data: bytes) -> list[int]:
    """The offset after each line."""
    return [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]


JOURNAL = journal()
ENDS = ends(JOURNAL)


def test_every_line_is_one_json_document() -> None:
    """`jq` and `tail -f` can read a journal: each line is an object with its sequence, its fact and its checksum."""
    header, *lines = [json.loads(line) for line in JOURNAL.splitlines()]
    assert list(header) == ["journal", "workflow", "base", "snapshot", "crc"]
    assert (header["journal"], header["workflow"], header["base"]) == (1, "w", BASE)
    assert [line["seq"] for line in lines] == [8, 9, 10, 11, 12]
    assert [line["synced"] for line in lines] == SYNCED
    assert [line["fact"] for line in lines] == [
        "event.appended",
        "step.started",
        "step.completed",
        "event.appended",
        "event.appended",
    ]
    assert all(list(line)[:3] == ["seq", "synced", "fact"] and list(line)[-1] == "crc" for line in lines)
    assert lines[2]["result"] == {"é": "\x1b[31m", "n": [1.5, None]}


def test_journal_is_printable_ascii() -> None:
    """No recorded text can drive the terminal that a journal is printed on."""
    assert all(line.decode("ascii").isprintable() for line in JOURNAL.splitlines())


def test_checksums_are_what_the_format_says() -> None:
    """Each checksum is the CRC-32 of what stands before it, the lines' begun from the header's."""
    start = 0
    for line in JOURNAL.splitlines():
        body, crc = line.split(b',"crc":"')
        assert crc == b'%08x"}' % crc32(body, start)
        start = start or crc32(body)


def test_what_was_written_is_read() -> None:
    """A sound journal gives all its facts, its end and its mark."""
    header, found = scanned(JOURNAL)
    assert (header.workflow_id, header.base, header.snapshot, header.size) == ("w", BASE, "0" * 64, ENDS[0])
    assert [line.fact for line in found.lines] == FACTS
    assert [(line.seq, line.synced) for line in found.lines] == list(zip(range(8, 13), SYNCED, strict=True))
    assert (found.end, found.mark) == (len(JOURNAL), 10)


def test_lines_are_read_from_any_place_in_the_midst() -> None:
    """A scan can start at any line of the journal."""
    header = parse_header(JOURNAL, PATH)
    found = scan(JOURNAL[ENDS[2] :], header, ENDS[2], 10, 9, PATH)
    assert [line.seq for line in found.lines] == [10, 11, 12]
    assert (found.end, found.mark) == (len(JOURNAL), 10)


def test_journal_that_ends_anywhere_gives_whole_lines() -> None:
    """A journal cut at any byte gives the whole lines before the cut; without its header it is damaged."""
    for length in range(len(JOURNAL)):
        data = JOURNAL[:length]
        if length < ENDS[0]:
            with pytest.raises(CorruptRecordError) as caught:
                scanned(data)
            assert (caught.value.path, caught.value.offset) == (PATH, 0), length
            continue
        whole = [end for end in ENDS if end <= length]
        _, found = scanned(data)
        assert [line.fact for line in found.lines] == FACTS[: len(whole) - 1], length
        assert found.end == whole[-1], length


def test_flipped_bit_is_noticed_wherever_it_is() -> None:
    """A flipped bit is damage before a line that tells of a sync, and begins a torn tail after it."""
    for place in range(len(JOURNAL)):
        data = bytearray(JOURNAL)
        data[place] ^= 1 << random.Random(place).randrange(8)  # the same bit for the same place
        if place < ENDS[0]:
            with pytest.raises((CorruptRecordError, FormatVersionError)) as caught:
                scanned(bytes(data))
            assert getattr(caught.value, "offset", 0) == 0, place
        else:
            check_flipped_line(bytes(data), place)


def check_flipped_line(data: bytes, place: int) -> None:
    bad = sum(end <= place for end in ENDS) - 1  # the index of the line that has the place
    # A flip of a line's end makes one bad line of two.
    last_bad = bad + 1 if place == ENDS[bad + 1] - 1 else bad
    mark = max([BASE, *SYNCED[:bad], *SYNCED[last_bad + 1 :]])
    if BASE + 1 + bad <= mark:
        with pytest.raises(CorruptRecordError) as damage:
            scanned(data)
        assert (damage.value.path, damage.value.offset) == (PATH, ENDS[bad]), place
    else:
        _, found = scanned(data)
        assert [line.fact for line in found.lines] == FACTS[:bad], place
        assert (found.end, found.mark) == (ENDS[bad], mark), place


def test_damage_before_the_mark_names_what_is_sound() -> None:
    """Damage that no crash explains says where it is, which facts were synced, and which are sound."""
    data = JOURNAL[: ENDS[1]] + b"x" + JOURNAL[ENDS[1] + 1 :]
    with pytest.raises(CorruptRecordError, match=r"byte .*fact 9 is damaged.* up to 10 .*up to 8 are sound") as caught:
        scanned(data)
    assert caught.value.offset == ENDS[1]


def test_caller_may_know_more_syncs_than_the_lines() -> None:
    """What a process itself knows to be synced counts as a mark."""
    data = JOURNAL[: ENDS[4]] + b"x" + JOURNAL[ENDS[4] + 1 :]
    assert len(scanned(data)[1].lines) == 4
    with pytest.raises(CorruptRecordError):
        scanned(data, synced=12)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_gap_in_the_sequence_is_damage(lost: int) -> None:
    """A line that is missing before the mark is damage at its place, though all others are sound."""
    data = JOURNAL[: ENDS[lost - 1]] + JOURNAL[ENDS[lost] :]
    with pytest.raises(CorruptRecordError) as caught:
        scanned(data)
    assert caught.value.offset == ENDS[lost - 1]


@pytest.mark.parametrize("lost", [4, 5])
def test_gap_behind_the_mark_ends_the_journal(lost: int) -> None:
    """After the mark no line is taken across a gap."""
    data = JOURNAL[: ENDS[lost - 1]] + JOURNAL[ENDS[lost] :]
    mark = max(SYNCED[: lost - 1] + SYNCED[lost:])
    assert mark < BASE + lost
    _, found = scanned(data)
    assert [line.seq for line in found.lines] == list(range(8, 7 + lost))


@pytest.mark.parametrize("order", [(0, 0, 1), (1, 0, 2), (0, 2, 1)])
def test_lines_out_of_order_end_the_journal(order: tuple[int, ...]) -> None:
    """A line that comes twice, or too early, is not taken."""
    lines = journal(FACTS[:3], [7, 7, 7]).splitlines(keepends=True)
    _, found = scanned(lines[0] + b"".join(lines[1 + index] for index in order))
    assert len(found.lines) == next(index for index, place in enumerate(order) if index != place)


def test_line_of_another_journal_does_not_pass() -> None:
    """A sound line of another journal, as a recycled block has it, is not taken for a line of this one."""
    other = journal(base=BASE, name="other")
    mixed = JOURNAL[: ENDS[3]] + other[ends(other)[3] :]
    _, found = scanned(mixed)
    assert [line.seq for line in found.lines] == [8, 9, 10]
    assert found.end == ENDS[3]


@pytest.mark.parametrize("tail", [b"\0" * 600, b"\xff" * 600, b"\n" * 3, b"{}\n" * 9, JOURNAL, b'{"seq":13}\n'])
def test_rubbish_behind_the_last_line_is_the_torn_tail(tail: bytes) -> None:
    """Zeros, garbage and old bytes after the last line change nothing before them."""
    _, found = scanned(JOURNAL + tail)
    assert [line.fact for line in found.lines] == FACTS
    assert found.end == len(JOURNAL)


def sealed(body: str, start: int = 0) -> bytes:
    """A line with a right checksum, whatever is in it."""
    return b'%b,"crc":"%08x"}\n' % (body.encode(), crc32(body.encode(), start))


def test_newer_journal_is_not_guessed_at() -> None:
    """A journal of a newer format says so, even if its header has other fields."""
    with pytest.raises(FormatVersionError, match=r"journal format 2.*upgrade") as caught:
        parse_header(sealed('{"journal":2,"shape":"other"'), PATH)
    assert caught.value.path == PATH


HEADERS = [
    b"",
    b"\n",
    b"{}\n",
    b"\0" * 64 + b"\n",
    JOURNAL[: ENDS[0] - 1],
    JOURNAL[1 : ENDS[0]],
]


@pytest.mark.parametrize("data", HEADERS)
def test_header_that_is_none_is_damage_at_the_first_byte(data: bytes) -> None:
    """A first line with a wrong checksum is damage."""
    with pytest.raises(CorruptRecordError) as caught:
        parse_header(data, PATH)
    assert (caught.value.path, caught.value.offset) == (PATH, 0)


SOUND_HEADERS = [
    "[1",
    '"text"',
    '{"journal":1',
    '{"journal":1,"workflow":"w","base":7',
    '{"journal":1,"workflow":"w","base":"7","snapshot":"0"',
    '{"journal":1,"workflow":"w","base":true,"snapshot":"0"',
    '{"journal":1,"workflow":7,"base":7,"snapshot":"0"',
    '{"journal":1,"workflow":"w","base":7,"snapshot":null',
]


@pytest.mark.parametrize("body", SOUND_HEADERS)
def test_sound_header_that_cannot_be_read_is_no_damage(body: str) -> None:
    """A first line with a right checksum that this process cannot read was written so, and is no damage."""
    with pytest.raises(FormatVersionError, match=r"a sound line at byte 0 .*nothing was changed"):
        parse_header(sealed(body), PATH)


BODIES = [
    "[13",
    '{"seq":13',
    '{"seq":"13","synced":7,"fact":"step.abandoned","at":"2026-05-14T12:00:00.000Z","step":"a"',
    '{"seq":13,"synced":true,"fact":"step.abandoned","at":"2026-05-14T12:00:00.000Z","step":"a"',
    '{"seq":13,"synced":7,"fact":"step.abandoned","at":"2026-05-14T12:00:00.000Z"',
    '{"seq":13,"synced":7,"fact":"step.abandoned","at":"2026-05-14T12:00:00.000Z","step":7',
    '{"seq":13,"synced":7,"fact":"step.abandoned","at":"2026-05-14T12:00:00.000Z","step":"a","mood":"good"',
    '{"seq":13,"synced":7,"fact":"status.set","at":"2026-05-14T12:00:00.000Z","status":"paused"',
    '{"seq":13,"synced":7,"fact":"step.paused","at":"2026-05-14T12:00:00.000Z"',
    '{"seq":13,"synced":7,"fact":"state.updated","at":"2026-05-14T12:00:00.000Z","state":NaN',
    '{"seq":13,"synced":7,"fact":"state.updated","at":"2026-05-14T12:00:00.000Z","state":' + "[" * 100_000,
    '{"seq":13,"synced":7,"fact":"state.updated","at":"2026-05-14T12:00:00.000Z","state":' + "9" * 5000,
]


def test_line_that_stands_for_itself_does_not_pass() -> None:
    """A line whose checksum is right by itself, and not begun from the header's, is of no journal."""
    body = '{"seq":13,"synced":7,"fact":"step.abandoned","at":"2026-05-14T12:00:00.000Z","step":"a"'
    assert len(scanned(JOURNAL + sealed(body))[1].lines) == len(FACTS)
    assert len(scanned(JOURNAL + sealed(body, parse_header(JOURNAL, PATH).crc))[1].lines) == len(FACTS) + 1


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("before", [b"", b"torn\n"], ids=["sound", "torn"])
def test_sound_line_that_cannot_be_read_is_neither_skipped_nor_torn(body: str, before: bytes) -> None:
    """A line with a right checksum that this process cannot read raises with its place, in a torn tail too."""
    line = sealed(body, parse_header(JOURNAL, PATH).crc)
    offset = len(JOURNAL + before)
    with pytest.raises(FormatVersionError, match=f"byte {offset} .*nothing was changed: upgrade") as caught:
        scanned(JOURNAL + before + line)
    assert caught.value.path == PATH


@given(st.binary(max_size=200), st.integers(0, len(JOURNAL)), st.integers(0, 50))
def test_any_bytes_give_facts_or_a_typed_error(rubbish: bytes, place: int, cut: int) -> None:
    """Whatever stands in the file: right facts in order, or one of the documented errors."""
    data = JOURNAL[:place] + rubbish + JOURNAL[place + cut :]
    try:
        _, found = scanned(data)
    except (CorruptRecordError, FormatVersionError):
        return
    assert [line.fact for line in found.lines] == FACTS[: len(found.lines)]


FORMAT = (Path(__file__).parents[2] / "iso_orchestrator/docs/format.md").read_text("utf-8")


def test_worked_example_is_what_the_code_writes() -> None:
    """The example of docs/format.md is a journal that this release writes, to the byte."""
    example = FORMAT.partition("Worked example")[2].split("```")[1].removeprefix("text\n").encode()
    header = parse_header(example, PATH)
    found = scan(example[header.size :], header, header.size, header.base + 1, header.base, PATH)
    assert found.end == len(example)
    assert [type(line.fact) for line in found.lines] == [f.StepStarted, f.StepCompleted, f.StateUpdated]
    again = encode_header(header.workflow_id, header.base, header.snapshot)
    for line in found.lines:
        again += encode_lines([line.fact], line.seq, line.synced, header.crc)
    assert again == example


@pytest.mark.parametrize("kind", FACT_KINDS, ids=lambda kind: kind.__name__)
def test_format_page_lists_every_fact_with_its_fields(kind: type[f.Fact]) -> None:
    """The table of docs/format.md has each fact, with the keys that it has on disk."""
    words = re.findall("[A-Z][a-z]+", kind.__name__)
    tag = f"{'.'.join(words)}".lower()
    row = only(re.findall(rf"^\| `{re.escape(tag)}` \|.*\| (.*) \|$", FORMAT, re.MULTILINE))
    names = [field.name for field in attrs.fields(kind) if field.name != "at"]
    assert re.findall("`([a-zA-Z]+)`", row) == [
        head + "".join(word.title() for word in rest) for head, *rest in (name.split("_") for name in names)
    ]


def test_times_are_written_in_milliseconds() -> None:
    """A journal's times are ISO 8601 in UTC with milliseconds."""
    line = json.loads(encode_lines([note("x")], 1, 0, 0))
    assert line["at"] == "2026-05-14T12:00:00.007Z" == T0.isoformat(timespec="milliseconds").replace("+00:00", "Z")
