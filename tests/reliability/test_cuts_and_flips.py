"""The two files of a workflow cut at every byte, and each of their bits turned over."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest
from reliability.faults import notes_in, paths_of
from reliability.tiers import Figures, Tier
from support import looked_at, memory_folder, new_fold, note, notes_of, put, tree

from iso_orchestrator import CorruptRecordError, RecordConflictError, Workflow, WorkflowRecord
from iso_orchestrator.codec import fact_from_json, projection_from_snapshot
from iso_orchestrator.errors import FormatVersionError
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.snapshot import read_files
from iso_orchestrator.system.filesystem import FileSystem


class Files(FileSystem):
    """A folder in this process's memory, read only; a descriptor is a file's place in it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._names = list(files)
        self._data = list(files.values())

    def open_read(self, path: str) -> int:
        if path not in self._names:
            raise FileNotFoundError(path)
        return self._names.index(path)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        return self._data[fd][offset : offset + size]

    def close(self, fd: int) -> None:
        pass


@attrs.frozen
class Line:
    """A line of a sound journal."""

    data: bytes
    seq: int
    synced: int


@attrs.frozen
class Sound:
    """A sound workflow on disk.

    Attributes:
        lines: Those of the journal, after its first.
        records: The record after none, one, two, ... of them.
    """

    snapshot: bytes
    journal: bytes
    lines: Sequence[Line]
    records: Sequence[WorkflowRecord]


@attrs.frozen
class Torn:
    """What is to be found: so many lines, and after them a tail that counts for nothing."""

    lines: int
    end: int


@attrs.frozen
class Damaged:
    """What is to be found: damage at that byte of the journal."""

    offset: int


PATHS = Paths("/root", "w")


def begin(workflow: Workflow) -> None:
    with workflow:
        workflow.run_step("fetch", lambda: {"pages": [1, 2]})
        workflow.touch_lease("slot", holder="alpha", ttl=30)


def go_on(workflow: Workflow) -> None:
    workflow.run_step("apply", lambda: {"outcome": "APPLIED"}, idempotency_key="k")
    workflow.update_state({"done": 1})
    with workflow.mutex("account"):
        workflow.append_event("note", "inside", {"é": [None, 1.5]})
    workflow.heartbeat("worker")


def made(root: Path, *lives: Callable[[Workflow], None]) -> Sound:
    """What those lives leave, one after the other, when the last of them is killed."""
    workflow = Workflow("w", dir=root, initial_state={})
    for life in lives[:-1]:
        life(workflow)
        workflow.close()
    lives[-1](workflow)
    paths = paths_of(root)
    files = Path(paths.snapshot).read_bytes(), Path(paths.journal).read_bytes()
    workflow.close()
    shutil.rmtree(root)
    return sound(*files)


def sound(snapshot: bytes, journal: bytes) -> Sound:
    """What the lines of the journal make of the snapshot, one after the other."""
    projection = projection_from_snapshot(snapshot, PATHS.snapshot)
    lines, records = [], [projection.record()]
    for data in journal.splitlines(keepends=True)[1:]:
        fields = json.loads(data)
        lines.append(Line(data, fields.pop("seq"), fields.pop("synced")))
        del fields["crc"]
        projection.apply(fact_from_json(fields.pop("fact"), fields))
        records.append(projection.record())
    return Sound(snapshot, journal, lines, records)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def workflows(memory: Path) -> dict[str, Sound]:
    """One that was killed in its first life, and one that was killed in its second."""
    found = {"new": made(memory / "new", go_on), "old": made(memory / "old", begin, go_on)}
    assert all(len(each.lines) > 6 and any(line.synced for line in each.lines[:-2]) for each in found.values())
    return found


def expected(whole: Sound, journal: bytes) -> Torn | Damaged:
    """What the format promises of a damaged journal: a piece is good if it is a line of the whole one."""
    header = whole.journal.splitlines(keepends=True)[0]
    if not journal.startswith(header):
        return Damaged(0)
    good = {line.data.rstrip(b"\n"): line for line in whole.lines}
    pieces = journal[len(header) :].splitlines(keepends=True)
    number, end = 0, len(header)
    while number < len(pieces) and pieces[number] == whole.lines[number].data:
        end += len(pieces[number])
        number += 1
    # What says that it was synced is true, even where the end of its own line is gone.
    said = [good[piece.rstrip(b"\n")].synced for piece in pieces if piece.rstrip(b"\n") in good]
    mark = max(said, default=0)
    if number < len(pieces) and whole.lines[number].seq <= mark:
        return Damaged(end)
    return Torn(number, end)


def read(snapshot: bytes | None, journal: bytes | None) -> Projection | None:
    """What the two files make, in memory."""
    found = {PATHS.snapshot: snapshot, PATHS.journal: journal}
    fs = Files({path: data for path, data in found.items() if data is not None})
    return read_files(fs, PATHS, None if journal is None else fs.open_read(PATHS.journal)).projection


def check_reading(whole: Sound, journal: bytes) -> None:
    """A reader of a damaged journal finds what is expected."""
    outcome = expected(whole, journal)
    if isinstance(outcome, Damaged):
        with pytest.raises(CorruptRecordError) as caught:
            read(whole.snapshot, journal)
        assert (caught.value.path, caught.value.offset) == (PATHS.journal, outcome.offset)
    else:
        projection = read(whole.snapshot, journal)
        assert projection is not None
        assert projection.record() == whole.records[outcome.lines]


def check_opening(root: Path, whole: Sound, journal: bytes) -> None:
    """Who opens a damaged journal goes on from what is sound, or changes nothing."""
    paths = paths_of(root)
    os.makedirs(paths.folder)
    Path(paths.snapshot).write_bytes(whole.snapshot)
    Path(paths.journal).write_bytes(journal)
    Path(paths.journal).chmod(0o600)  # or an opening would do that
    store = FileStore(root)
    outcome = expected(whole, journal)
    if isinstance(outcome, Damaged):
        before = tree(paths.folder)
        with pytest.raises(CorruptRecordError) as caught:
            store.open("w", new_fold)
        assert (caught.value.path, caught.value.offset) == (paths.journal, outcome.offset)
        assert tree(paths.folder) == before
        return
    log, projection = store.open("w", new_fold)
    record = whole.records[outcome.lines]
    assert projection.record() == record
    tail = journal[outcome.end :]
    torn = Path(paths.torn(outcome.end))
    assert (torn.read_bytes() if torn.exists() else b"") == tail
    projection = put(log, projection, note("after"))
    log.sync(projection.seq)
    log.detach(projection)
    again = looked_at(store)
    assert again.record().steps == record.steps
    assert notes_of(again) == [*notes_in(record), "after"]


def flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def flips(data: bytes, tier: Tier, name: str) -> list[tuple[int, int]]:
    """Every bit of every byte; one bit of every byte where a change is tried in a minute."""
    randomness = tier.random(name)
    bits = tier.pick(quick=1, full=8, soak=8)
    return [(place, bit) for place in range(len(data)) for bit in randomness.sample(range(8), bits)]


def each(name: str, cases: Sequence[tuple[object, ...]], check: Callable[..., None]) -> int:
    """Check all *cases*; an error tells which it was."""
    for case in cases:
        try:
            check(*case)
        except BaseException as error:
            error.add_note(f"{name}: {case}")
            raise
    return len(cases)


@pytest.mark.parametrize("age", ["new", "old"])
def test_a_journal_that_ends_anywhere_gives_its_whole_lines(
    workflows: dict[str, Sound], figures: Figures, age: str
) -> None:
    """Cut at any byte it gives what its whole lines say; cut in its first line it is damaged at byte 0."""
    whole = workflows[age]
    cuts = [(end,) for end in range(len(whole.journal))]
    figures.add(2, "cuts of a journal", each(age, cuts, lambda end: check_reading(whole, whole.journal[:end])))


@pytest.mark.parametrize("age", ["new", "old"])
def test_a_flipped_bit_of_a_journal_is_noticed(
    workflows: dict[str, Sound], tier: Tier, figures: Figures, age: str
) -> None:
    """It is the torn tail's begin after what was synced, and before that damage with its offset."""
    whole = workflows[age]
    places = flips(whole.journal, tier, f"journal {age}")
    count = each(age, places, lambda *place: check_reading(whole, flipped(whole.journal, *place)))
    figures.add(2, "bits of a journal flipped", count)


@pytest.mark.parametrize("age", ["new", "old"])
def test_what_is_sound_of_a_journal_is_gone_on_from(
    workflows: dict[str, Sound], memory: Path, tier: Tier, figures: Figures, age: str
) -> None:
    """Whoever opens a torn journal keeps the tail aside, and loses nothing before it; a damaged one stays as it is."""
    whole = workflows[age]
    randomness = tier.random(f"openings {age}")
    damaged = [whole.journal[:end] for end in range(len(whole.journal))]
    damaged += [flipped(whole.journal, place, randomness.randrange(8)) for place in range(len(whole.journal))]
    count = min(tier.count(quick=120, full=2000, soak=10_000), len(damaged))
    root = memory / f"openings {age}"

    def check(number: int) -> None:
        check_opening(root, whole, damaged[number])
        shutil.rmtree(root)

    each(age, [(number,) for number in randomness.sample(range(len(damaged)), count)], check)
    figures.add(2, "damaged journals opened", count)


def refuses(snapshot: bytes, journal: bytes | None) -> None:
    """The snapshot is not taken for one; the error names it."""
    with pytest.raises((CorruptRecordError, RecordConflictError, FormatVersionError)) as caught:
        read(snapshot, journal)
    assert caught.value.path == PATHS.snapshot


def check_alone(whole: Sound, snapshot: bytes, journal: bytes | None) -> None:
    """A snapshot without facts after it may be anybody's: it is refused by name, or taken as it is."""
    try:
        projection = read(snapshot, journal)
    except (CorruptRecordError, FormatVersionError) as error:
        assert error.path == PATHS.snapshot
    else:
        assert projection is not None or snapshot.strip(b"\0 \n\r\t") == b""
        assert projection is None or len(snapshot) == len(whole.snapshot) or projection.record() == whole.records[0]


@pytest.mark.parametrize("age", ["new", "old"])
def test_a_snapshot_that_is_cut_anywhere_is_refused(workflows: dict[str, Sound], figures: Figures, age: str) -> None:
    """Facts that go on from another snapshot than this are not folded into it, and not dropped."""
    whole = workflows[age]
    header = whole.journal.splitlines(keepends=True)[0]
    cuts = [(end,) for end in range(len(whole.snapshot))]
    count = each(age, cuts, lambda end: refuses(whole.snapshot[:end], whole.journal))
    count += each(age, cuts, lambda end: check_alone(whole, whole.snapshot[:end], header))
    count += each(age, cuts, lambda end: check_alone(whole, whole.snapshot[:end], None))
    figures.add(2, "cuts of a snapshot", count)


@pytest.mark.parametrize("age", ["new", "old"])
def test_a_flipped_bit_of_a_snapshot_under_facts_is_noticed(
    workflows: dict[str, Sound], tier: Tier, figures: Figures, age: str
) -> None:
    """With facts in the journal no bit of their snapshot can be another: nothing is dropped, nothing made up."""
    whole = workflows[age]
    places = flips(whole.snapshot, tier, f"snapshot {age}")
    count = each(age, places, lambda *place: refuses(flipped(whole.snapshot, *place), whole.journal))
    figures.add(2, "bits of a snapshot flipped", count)


@pytest.mark.parametrize("age", ["new", "old"])
def test_a_snapshot_is_not_made_newer_than_its_facts_by_a_flipped_bit(workflows: dict[str, Sound], age: str) -> None:
    """A sequence that reads higher than it is does not make the journal one that is done with."""
    whole = workflows[age]
    number = whole.snapshot.index(b'"seq":') + len(b'"seq":')
    for bit in range(8):
        changed = flipped(whole.snapshot, number, bit)
        if changed[number : number + 1].isdigit():
            refuses(changed, whole.journal)


@pytest.mark.parametrize("age", ["new", "old"])
def test_a_flipped_bit_of_a_snapshot_alone_is_a_typed_error_at_worst(
    workflows: dict[str, Sound], tier: Tier, figures: Figures, age: str
) -> None:
    """A snapshot that no facts go on from is read or refused by name, whatever is in it."""
    whole = workflows[age]
    places = flips(whole.snapshot, tier, f"snapshot alone {age}")
    count = each(age, places, lambda *place: check_alone(whole, flipped(whole.snapshot, *place), None))
    figures.add(2, "bits of a snapshot flipped", count)


@pytest.mark.parametrize("age", ["new", "old"])
def test_two_wounds_of_a_journal_are_noticed(
    workflows: dict[str, Sound], tier: Tier, figures: Figures, age: str
) -> None:
    """Two flipped bits, or one of a journal that is cut too, are told as one is."""
    whole = workflows[age]
    randomness = tier.random(f"pairs {age}")
    seeds = [(randomness.randrange(1 << 32),) for _ in range(tier.count(quick=300, full=5000, soak=1_000_000))]
    figures.add(
        2, "pairs of damaged places", each(age, seeds, lambda seed: check_reading(whole, wounded(whole.journal, seed)))
    )


def wounded(journal: bytes, seed: int) -> bytes:
    """Two wounds, most of them near each other."""
    randomness = random.Random(seed)
    first = randomness.randrange(len(journal))
    second = randomness.choice(
        [randomness.randrange(len(journal)), min(first + randomness.randrange(1, 200), len(journal) - 1)]
    )
    journal = flipped(journal, first, randomness.randrange(8))
    return randomness.choice([journal[:second], flipped(journal, second, randomness.randrange(8))])
