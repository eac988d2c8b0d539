"""Row 17: whatever stands in the files of a store, it is read, or refused with an error that is documented."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from reliability.golden.make import FACTS
from reliability.tiers import Figures, Tier
from support import T0, note, put

from iso_orchestrator import StoreError, Workflow, WorkflowRecord
from iso_orchestrator.codec import projection_from_snapshot
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.snapshot import read_files
from iso_orchestrator.store.names import mutex_file_name, record_names
from iso_orchestrator.system.filesystem import FileSystem

PARTS = 4
SLOWEST = 10.0  # seconds for one case; what does not hang takes a thousandth
ID = "w"
NAME = record_names(ID).short
SNAPSHOT, JOURNAL = f"workflows/{NAME}.json", f"workflows/{NAME}.journal"
LOCKS = f"locks/{NAME}"
RUN = f"{LOCKS}/runs/{'0' * 16}.flock"
MUTEX = f"{LOCKS}/mutex/{mutex_file_name('key')}"
OTHERS = [f"{LOCKS}/record.flock", RUN, MUTEX, ".gitignore"]

Files = dict[str, bytes]
Records = dict[int, WorkflowRecord]


# Valid files to begin with.


def _files(root: str) -> Files:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = f"{folder}/{name}"
            with open(path, "rb") as file:
                found[path[len(root) + 1 :]] = file.read()
    return found


def _samples(folder: Path) -> list[Files]:
    """Pairs with facts of every kind: in the journal, in the snapshot, and in both."""
    samples = []
    for folded, more in ((0, 5), (0, 15), (0, len(FACTS)), (len(FACTS), 0), (6, 9), (23, 5)):
        root = os.path.join(folder, "samples")
        _append(root, FACTS[:folded])
        samples.append(_append(root, FACTS[folded : folded + more]))
        shutil.rmtree(root)
    return samples


def _append(root: str, facts: list[f.Fact]) -> Files:
    """Append *facts* and leave; snapshot and journal as they were before that."""
    log, projection = FileStore(root).open(ID, lambda: Projection.new(ID, T0, {"n": 0}))
    for fact in facts:
        put(log, projection, fact)
        log.sync(projection.seq)
    files = _files(root)
    log.detach(None)
    return {path: files[path] for path in (SNAPSHOT, JOURNAL)}


# Ways to damage them.

_HOSTILE_TEXT = ["", "\ud800", "\0", "\x1b]0;x\x07", "A" * 5_000, "2026-05-14T12:00:00Z", "0001-01-01T00:00:00+14:00"]
_HOSTILE: list[Any] = [
    *_HOSTILE_TEXT,
    None,
    True,
    0,
    -1,
    2**63,
    10**300,
    0.1,
    -0.0,
    1e308,
    [],
    {},
    [[]],
    {"": None},
    ["step"],
    {"name": {"name": 1}},
    "completed",
    "9999-12-31T23:59:59.999Z",
    "2026-05-14",
]
# What no JSON value of Python stands for, by a mark that is replaced in the text.
_RAW = [
    "1e999",
    "-1e999",
    "NaN",
    "9" * 5_000,
    "[" * 20_000,
    "[" * 300 + "]" * 300,
    "[" * 900 + "]" * 900,
    '"\\ud800"',
    "1.0",
]
_MARK = "\x7fraw\x7f"


def _hostile(rng: random.Random) -> Any:
    return _MARK + str(rng.randrange(len(_RAW))) if rng.random() < 0.3 else rng.choice(_HOSTILE)


def _encode(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"))
    for index, raw in enumerate(_RAW):
        text = text.replace(json.dumps(_MARK + str(index)), raw)
    return text.encode()


def _mutate_value(rng: random.Random, value: Any) -> Any:
    """*value* with one place of it replaced, left out, or added."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return _hostile(rng)
    if isinstance(value, list):
        index = rng.randrange(len(value))
        return [*value[:index], _mutate_value(rng, value[index]), *value[index + 1 :]]
    key = rng.choice(list(value))
    kind = rng.random()
    if kind < 0.1:
        return {name: item for name, item in value.items() if name != key}
    if kind < 0.2:
        return {**value, rng.choice([*_HOSTILE_TEXT, "name", "format", "token", "unknown"]): _hostile(rng)}
    return {**value, key: _mutate_value(rng, value[key])}


def _close(body: bytes, start: int) -> bytes:
    """A journal's line, by docs/format.md: the checksum is right, whatever the line says."""
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body, start))


def _journal(header: dict[str, Any], facts: list[dict[str, Any]]) -> bytes:
    body = _encode(header)[:-1]
    start = crc32(body)
    return _close(body, 0) + b"".join(_close(_encode(fact)[:-1], start) for fact in facts)


def _taken_apart(journal: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *lines = [json.loads(line) for line in journal.splitlines()]
    for line in (header, *lines):
        del line["crc"]
    return header, lines


def _mutated_facts(rng: random.Random, files: Files, samples: list[Files]) -> Files:
    """Facts that a broken writer, and no disk, would have made: all checksums are right."""
    header, facts = _taken_apart(files[JOURNAL])
    if not facts or rng.random() < 0.2:
        header = _mutate_value(rng, header) if rng.random() < 0.9 else _hostile(rng)
        return {**files, JOURNAL: _journal(header if isinstance(header, dict) else {"journal": header}, facts)}
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(facts))
        kind = rng.random()
        if kind < 0.7:
            mutated = _mutate_value(rng, facts[index])
            facts[index] = mutated if isinstance(mutated, dict) and mutated else {"seq": mutated}
        elif kind < 0.8:
            facts[index] = {**facts[index], **{key: rng.choice(facts).get(key) for key in ("seq", "synced")}}
        elif kind < 0.9:
            facts[index] = {**rng.choice(facts), "seq": facts[index].get("seq", 1)}
        else:
            facts[index:index] = [rng.choice(facts)]
    return {**files, JOURNAL: _journal(header, facts)}


def _mutated_snapshot(rng: random.Random, files: Files, samples: list[Files]) -> Files:
    """A record that another program has changed, with a journal that goes on from it, or none."""
    record = json.loads(files[SNAPSHOT])
    for _ in range(rng.randint(1, 3)):
        mutated = _mutate_value(rng, record)
        record = mutated if isinstance(mutated, dict) or rng.random() < 0.1 else record
        if not isinstance(record, dict) or not record:
            break
    snapshot = _encode(record)
    if rng.random() < 0.3:
        return {SNAPSHOT: snapshot}
    header, facts = _taken_apart(files[JOURNAL])
    if rng.random() < 0.8:
        header["snapshot"] = hashlib.sha256(snapshot).hexdigest()
    return {SNAPSHOT: snapshot, JOURNAL: _journal(header, facts)}


def _damaged_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """What disks, editors and other programs make of a file."""
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        size = rng.choice([1, 1, 2, 16, 512])
        data = rng.choice(_DAMAGES)(rng, data, other, at, size)
    return data


_DAMAGES: list[Callable[[random.Random, bytes, bytes, int, int], bytes]] = [
    lambda rng, data, other, at, size: data[:at],
    lambda rng, data, other, at, size: data[at:],
    lambda rng, data, other, at, size: data[:at] + data[at + size :],
    lambda rng, data, other, at, size: data[:at] + rng.randbytes(size) + data[at + size :],
    lambda rng, data, other, at, size: data[:at] + rng.randbytes(size) + data[at:],
    lambda rng, data, other, at, size: data[:at] + bytes(size) + data[at + size :],
    lambda rng, data, other, at, size: data[:at] + data[at : at + size] * 2 + data[at + size :],
    lambda rng, data, other, at, size: (
        data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]
    ),
    lambda rng, data, other, at, size: data[:at] + other[at:],
    lambda rng, data, other, at, size: data + other[at : at + size],
    lambda rng, data, other, at, size: (
        data[:at] + rng.choice([b"\n", b"\n\n", b"{", b"}", b'"', b"\\", b",", b"\r"]) + data[at:]
    ),
    lambda rng, data, other, at, size: b"\n".join(_shuffled(rng, data.split(b"\n"))),
]


def _shuffled(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def _damaged_file(rng: random.Random, files: Files, samples: list[Files]) -> Files:
    path = rng.choice(list(files))
    other = rng.choice(samples)
    return {**files, path: _damaged_bytes(rng, files[path], other.get(path, b""))}


def _random_bytes(rng: random.Random, files: Files, samples: list[Files]) -> Files:
    path = rng.choice(list(files))
    garbage = rng.choice([rng.randbytes, lambda size: bytes(rng.choices(b'{}[]",:0123456789eE\\un\n', k=size))])
    return {**files, path: garbage(rng.choice([0, 1, 16, 200, 3_000]))}


def _mixed(rng: random.Random, files: Files, samples: list[Files]) -> Files:
    """Two sound files that do not belong together, or one of them alone."""
    mixed = {**files, **{path: rng.choice(samples).get(path, b"") for path in files if rng.random() < 0.5}}
    if rng.random() < 0.4:
        del mixed[rng.choice(list(mixed))]
    return mixed


def _other_files(rng: random.Random, files: Files, samples: list[Files]) -> Files:
    """Rubbish where locks are, and where nothing is."""
    made = dict(files)
    for path in rng.sample([*OTHERS, f"workflows/{NAME}.torn-5", f"{SNAPSHOT}.new", f"{JOURNAL}.new", "x"], 3):
        owner = _encode(_mutate_value(rng, {"pid": 1, "host": "h", "since": "2026-05-14T12:00:00+00:00"}))
        made[path] = rng.choice([b"", rng.randbytes(40), owner, rng.choice(list(files.values()))])
    if rng.random() < 0.3:
        made[f"{LOCKS}/runs/{rng.choice(['x', 'a b.flock', '.flock', '-'])}"] = b"{}"
    return made


_WAYS: list[tuple[Callable[[random.Random, Files, list[Files]], Files], int]] = [
    (_damaged_file, 6),
    (_mutated_facts, 6),
    (_mutated_snapshot, 6),
    (_random_bytes, 1),
    (_mixed, 1),
    (_other_files, 2),
]


def _case(rng: random.Random, root: str, samples: list[Files], prefixes: list[Records]) -> Case:
    way = rng.choices([way for way, _ in _WAYS], [weight for _, weight in _WAYS])[0]
    index = rng.randrange(len(samples))
    files = way(rng, samples[index], samples)
    by_disk = way in (_damaged_file, _random_bytes) and files.get(SNAPSHOT) == samples[index][SNAPSHOT]
    return Case(root, files, prefixes[index] if by_disk else None)


def _prefixes(files: Files) -> Records:
    """The records that the first facts after a snapshot make, by sequence."""
    projection = projection_from_snapshot(files[SNAPSHOT], SNAPSHOT)
    records = {projection.seq: projection.record()}
    for fact in FACTS[projection.seq :]:  # those of other samples too, whose journals have the same first line
        projection.apply(fact)
        records[projection.seq] = projection.record()
    return records


# What is tried on them.


class Case:
    """A root with these files in it, and what is done there.

    Attributes:
        prefixes: Where only a journal's bytes are damaged, the records that may be read.
        refused: Whether a reader got an error.
    """

    def __init__(self, root: str, files: Files, prefixes: Records | None = None) -> None:
        self.root = root
        self.files = files
        self.prefixes = prefixes
        self.refused = False
        self._paths = Paths(root, NAME)

    def write(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in ("workflows", f"{LOCKS}/runs", f"{LOCKS}/mutex"):
            os.makedirs(os.path.join(self.root, folder))
        for path, data in self.files.items():
            with open(os.path.join(self.root, path), "wb") as file:
                file.write(data)

    def try_reading(self) -> None:
        """A reader gets a record that it can show, or an error, and changes nothing."""
        try:
            projection = self._read()
            self._show(projection)
        except StoreError:
            self.refused = True
        else:
            told = (
                self.prefixes is None or projection is None or projection.record() == self.prefixes.get(projection.seq)
            )
            assert told, "what is read is not what the first facts had made"
        assert _files(self.root) == self.files, "a reader changed something"

    def _read(self) -> Projection | None:
        fs = FileSystem()
        try:
            fd = fs.open_existing(self._paths.journal)
        except FileNotFoundError:
            return read_files(fs, self._paths, None).projection
        try:
            return read_files(fs, self._paths, fd).projection
        finally:
            fs.close(fd)

    def _show(self, projection: Projection | None) -> None:
        if projection is not None:
            str(projection.record())
            str(projection.summary())

    def try_using(self) -> None:
        """Whoever opens gets all that a reader got, and can go on with it; else nothing of the record is changed."""
        store = FileStore(self.root)
        try:
            log, projection = store.open(ID, self._new)
        except StoreError as error:
            self._assert_kept(error)
            return
        try:
            assert projection.workflow_id == ID
            projection = put(log, projection, note("more"))
            log.sync(projection.seq)
            holder = log.mutex("key", whole_store=False).holder()
            assert holder.pid is None or isinstance(holder.pid, int)
        finally:
            log.detach(None)
        again = store.read(ID)
        assert again is not None
        assert again.record() == projection.record(), "what was written is not what is read"
        assert again.events[-1].message == "more"
        self._assert_tail_kept()

    def _new(self) -> Projection:
        return Projection.new(ID, note("").at, {"new": True})

    def _assert_kept(self, error: StoreError) -> None:
        left = _files(self.root)
        for path in (SNAPSHOT, JOURNAL):
            kept = left.get(path) == self.files.get(path)
            assert kept, f"{path} was damaged, and was changed all the same; the error was {error}"

    def _assert_tail_kept(self) -> None:
        """Bytes of a journal that nobody could read are in a file beside it."""
        journal = self.files.get(JOURNAL, b"")
        left = _files(self.root)
        for path, data in left.items():
            if ".torn-" in path and path not in self.files:
                offset = int(path.rpartition("-")[2])
                assert data in (journal[offset:], self.files.get(SNAPSHOT)), f"{path} is not what was torn off"

    def try_looking(self) -> None:
        """The list of all workflows, and what a user calls first."""
        store = FileStore(self.root)
        for found in store.list():
            if isinstance(found, Projection):
                self._show(found)
        try:
            record = Workflow(ID, dir=self.root).record
        except StoreError:
            return
        assert isinstance(record, WorkflowRecord)
        record._repr_html_()

    def try_working(self) -> None:
        """A user's calls go on with what is there, or say what is wrong with it."""
        workflow = Workflow(ID, dir=self.root)
        try:
            workflow.run_step("fetch:1", lambda: {"n": 1}, idempotency_key="key", version=2)
            workflow.run_step("new", lambda: 1)
            workflow.reset("f*")
            workflow.touch_lease("new", holder="alpha", ttl=5)
            with workflow:
                workflow.update_state({"n": 2})
        except StoreError:
            return
        finally:
            _close_quietly(workflow)


def _close_quietly(workflow: Workflow) -> None:
    try:
        workflow.close()
    except StoreError:
        return


def _try_all(case: Case, *, thoroughly: bool) -> None:
    case.write()
    case.try_reading()
    if thoroughly and not case.refused:  # who is refused has been waiting for a tenth of a second
        case.try_looking()
    case.try_using()
    if thoroughly:
        case.write()
        case.try_working()


class Violations:
    """What went wrong, the first case of each kind told in full."""

    def __init__(self) -> None:
        self.count = 0
        self._first: dict[str, str] = {}

    def add(self, case: str, files: Files, error: Exception) -> None:
        self.count += 1
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {os.path.basename(place.filename)}, {place.name}"
        if kind not in self._first:
            told = "".join(traceback.format_exception(error)[-6:])[-2_000:]
            shown = "\n".join(f"{path}: {data!r:.2000}" for path, data in files.items())
            self._first[kind] = f"{kind}: {case}\n{told}\n{shown}"

    def __str__(self) -> str:
        return "\n\n".join([f"{self.count} cases, of {len(self._first)} kinds", *self._first.values()])


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_are_read_or_refused(tier: Tier, figures: Figures, folder: Path, part: int) -> None:
    """Fuzzed bytes and mutated files give a record or a documented error, and nothing damaged is overwritten."""
    count = tier.count(quick=400, full=20_000, soak=10_000_000) // PARTS
    samples = _samples(folder)
    prefixes = [_prefixes(files) for files in samples]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    violations, refused, slowest = Violations(), 0, 0.0
    for number in range(count):
        rng = tier.random(f"test_damaged_files_are_read_or_refused {part} {number}")
        case = _case(rng, os.path.join(folder, "root"), samples, prefixes)
        start = time.monotonic()
        try:
            _try_all(case, thoroughly=number % 20 == 0)
        except Exception as error:
            violations.add(f"case {number} of part {part}", case.files, error)
        slowest = max(slowest, time.monotonic() - start)
        refused += case.refused
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    figures.add(17, "fuzzed and mutated files", count, violations.count)
    assert not violations.count, str(violations)
    assert slowest < SLOWEST
    assert 0.1 < refused / count < 0.9, "the cases say little when nearly all of them are of one kind"
    assert grown < 100 << 20, f"the process grew by {grown} bytes over files of some kilobytes"


_BULK: dict[str, Callable[[int], bytes]] = {
    "deep lists": lambda size: b"[" * size,
    "many lists": lambda size: b"[" + b"[]," * (size // 3) + b"[]]",
    "many objects": lambda size: b"[" + b'{"":0},' * (size // 7) + b"{}]",
    "one number": lambda size: b"9" * size,
    "one text": lambda size: b'"' + b"\\u0000" * (size // 6) + b'"',
    "line feeds": lambda size: b"\n" * size,
    "zeros": bytes,
    "escapes": lambda size: b"\\" * size,
}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["snapshot", "journal", "a fact", "the state"])
@pytest.mark.parametrize("name", _BULK)
def test_memory_is_bounded_by_the_size_of_the_files(
    tier: Tier, figures: Figures, folder: Path, name: str, place: str
) -> None:
    """A large file costs a multiple of its size, whatever is in it."""
    size = tier.pick(quick=1 << 16, full=1 << 19, soak=1 << 24)
    samples, bulk = _samples(folder), _BULK[name](size)
    files = dict(samples[0])
    if place == "snapshot":
        files[SNAPSHOT] = bulk
    elif place == "journal":
        files[JOURNAL] += bulk
    elif place == "a fact":
        header = files[JOURNAL].splitlines(keepends=True)[0]
        start = crc32(header[: header.rindex(b',"crc"')])
        files[JOURNAL] = header + _close(b'{"seq":1,"synced":0,"fact":"state.updated","state":' + bulk, start)
    else:
        files = {SNAPSHOT: files[SNAPSHOT].replace(b'"state":{"n":0}', b'"state":' + bulk)}
    assert sum(map(len, files.values())) > size / 2
    case = Case(os.path.join(folder, "root"), files)
    case.write()
    tracemalloc.start()
    try:
        case.try_reading()
        case.try_using()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    buffer = 24 << 20  # bytes; files are read into one of 16 MiB
    # Three characters can be an object of 64 bytes and its place, of which a state and its copy are made.
    assert peak < 128 * sum(map(len, files.values())) + buffer
    figures.add(17, "large files, by peak memory", 1)
