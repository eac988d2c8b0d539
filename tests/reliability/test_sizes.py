"""Row 24: large workflows, many workflows, large results. Costs are counted, not timed."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from reliability.tiers import Figures, Tier
from support import at, new_fold, note, put

from iso_orchestrator import Workflow
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore, WorkflowLog
from iso_orchestrator.store.file import log as log_module
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.views.cli import main

ROW = 24
TENTHS = 10
SLACK = 300_000  # bytes: what the interpreter and its libraries allocate at their first use
READ_AT_ONCE = 1 << 24  # bytes: of a small file too, since nobody asks first how large it is


class CountingFS(FileSystem):
    """The real file system, with figures.

    Attributes:
        calls: How many of each method.
        written: Bytes that were taken.
        lines: Of those, what came in small writes, as single facts do.
        opened: Descriptors that are open now.
        most: The most that were open at one time.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.written = self.lines = self.opened = self.most = 0


def _counted(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def call(self: CountingFS, *args: Any) -> Any:
        self.calls[name] += 1
        found = real(self, *args)
        if name == "write_at":
            self.written += found
            self.lines += found if found < 4096 else 0
        elif name.startswith("open_"):
            self.opened += 1
            self.most = max(self.most, self.opened)
        elif name == "close":
            self.opened -= 1
        return found

    return call


for _name in [name for name in vars(FileSystem) if not name.startswith("_")]:
    setattr(CountingFS, _name, _counted(_name))


def cost(fs: CountingFS, work: Callable[[], object]) -> tuple[Counter[str], int]:
    """The calls that *work* makes, and the bytes that it writes in lines."""
    calls, lines = Counter(fs.calls), fs.lines
    work()
    return fs.calls - calls, fs.lines - lines


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most memory, in bytes, that what is done inside holds at one time, over what was held before."""
    gc.collect()
    tracemalloc.start()
    found: list[int] = []
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def memory(work: Callable[[], object]) -> int:
    """The peak of *work*, in bytes."""
    with peak() as found:
        work()
    return found[0]


@pytest.fixture
def early_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal is folded where it is small already, so that folds are part of the figures."""
    monkeypatch.setattr(log_module, "_CHECKPOINT_AT_BYTES", 1 << 16)


# A million facts in a workflow


def append_all(log: WorkflowLog, projection: Projection, facts: Iterator[f.Fact], each: int) -> Projection:
    for first in facts:
        batch = [first, *(fact for _, fact in zip(range(each - 1), facts, strict=False))]
        projection = put(log, projection, *batch)
    return projection


def test_a_fact_costs_the_same_however_many_came_before(root: Path, tier: Tier, figures: Figures) -> None:
    """Calls and bytes of the first tenth of a long workflow's facts are those of the last."""
    count = tier.count(quick=2000, full=100_000, soak=1_000_000)
    fs = CountingFS()
    log, projection = FileStore(root, fs).open("w", new_fold)

    def tenth(number: int) -> None:
        nonlocal projection
        for seq in range(number * count // TENTHS, (number + 1) * count // TENTHS):
            projection = put(log, projection, note(f"{seq:09}", seq))

    costs = [cost(fs, lambda number=number: tenth(number)) for number in range(TENTHS)]
    lines = count // TENTHS
    calls_each = [sum(calls.values()) / lines for calls, _ in costs]
    bytes_each = [written / lines for _, written in costs]
    assert max(calls_each) < 4.2, calls_each  # the lock apart: two looks at the files, and a write
    assert max(calls_each) - min(calls_each) < 0.2, calls_each
    assert max(bytes_each) - min(bytes_each) < 10, bytes_each
    assert fs.most <= 8
    log.detach(projection)
    assert fs.opened == 0
    reread = FileStore(root).read("w")
    assert reread is not None
    assert reread.seq == count
    figures.add(ROW, "facts in a workflow", count)


def test_folds_bear_a_constant_share(root: Path, tier: Tier, figures: Figures, early_folds: None) -> None:
    """All that is written, folds included, is at most some times what is told, however long the workflow goes on."""
    count = tier.count(quick=4000, full=40_000, soak=400_000)
    fs = CountingFS()
    log, projection = FileStore(root, fs).open("w", new_fold)
    shares = []
    for seq in range(count):  # one in ten stays in the record, and the others replace what came before
        kept = note(f"{seq:09}" + "x" * 50, seq)
        projection = put(
            log, projection, kept if seq % 10 == 0 else f.HeartbeatRecorded(at(seq), "beat", "x" * 50, silent=True)
        )
        if (seq + 1) % (count // TENTHS) == 0:
            shares.append(fs.written / fs.lines)
    assert fs.calls["replace"] > 4, "there was no fold"
    assert max(shares) < 2.5, shares
    log.detach(projection)
    figures.add(ROW, "facts in workflows that fold", count)


def test_facts_that_leave_no_trace_take_no_memory(root: Path, tier: Tier, figures: Figures, early_folds: None) -> None:
    """Heartbeats without an event can go on for ever: the second thousand takes no more memory than the first."""
    count = tier.count(quick=1000, full=20_000, soak=200_000)
    log, projection = FileStore(root).open("w", new_fold)

    def beats(start: int) -> None:
        nonlocal projection
        for seq in range(start, start + count):
            projection = put(log, projection, f.HeartbeatRecorded(at(seq), "beat", {"n": seq}, silent=True))

    beats(0)
    first, second = memory(lambda: beats(count)), memory(lambda: beats(2 * count))
    assert second < first + SLACK
    assert first < 20 * (1 << 16)  # a journal's worth, and not the facts'
    log.detach(projection)
    assert Path(FileStore(root).path_of("w")).stat().st_size < 2000
    figures.add(ROW, "heartbeats in a row", 3 * count)


@pytest.mark.slow
def test_reading_takes_memory_by_the_size_of_the_files(root: Path, tier: Tier, figures: Figures) -> None:
    """Opening, looking and checking take a few times the files' size, whether these are small or large."""
    for count in (tier.count(quick=500, full=8_000, soak=100_000), tier.count(quick=2000, full=32_000, soak=400_000)):
        store = FileStore(root / str(count))
        log, projection = store.open("w", new_fold)
        append_all(log, projection, (note(f"{seq:09}" + "x" * 100, seq) for seq in range(count)), 100)
        log.close()
        size = sum(path.stat().st_size for path in Path(store.root, "workflows").iterdir())
        peaks = {
            "look": _peak_of_a_look(store),
            "verify": _peak_of_a_check(store.root),
            "open": _peak_of_an_opening(store),
        }
        assert max(peaks.values()) < 2 * READ_AT_ONCE + 8 * size, (size, peaks)
        figures.add(ROW, "facts read back", count)


def _peak_of_a_look(store: FileStore) -> int:
    return memory(lambda: store.read("w"))


def _peak_of_a_check(root: str) -> int:
    return memory(lambda: _exhaust(FileStore(root).verify()))


def _peak_of_an_opening(store: FileStore) -> int:
    return memory(lambda: _open_and_leave(store, "w"))


def _open_and_leave(store: FileStore, workflow_id: str) -> None:
    log, projection = store.open(workflow_id, new_fold)
    log.detach(projection)


# Ten thousand steps


def test_a_step_costs_the_same_however_many_came_before(root: Path, tier: Tier, figures: Figures) -> None:
    """A step is the same calls at the start and at the end of many, and one that is recorded writes nothing."""
    count = tier.count(quick=500, full=10_000, soak=50_000)
    fs = CountingFS()
    workflow = Workflow("w", store=FileStore(root, fs))
    tenth = count // TENTHS

    def run(start: int) -> None:
        for number in range(start, start + tenth):
            assert workflow.run_step(f"step {number:06}", lambda number=number: {"n": number})["n"] == number

    with workflow:
        costs = [cost(fs, lambda start=start: run(start)) for start in range(0, count, tenth)]
        again, written = cost(fs, lambda: run(0))
    per_step = [sum(calls.values()) / tenth for calls, _ in costs]
    assert max(per_step) - min(per_step) < 1, per_step
    assert max(calls["sync"] for calls, _ in costs) <= tenth + 5
    assert written == 0
    assert sum(again.values()) <= 4 * tenth
    assert fs.opened == 0
    assert fs.most <= 8
    reopened = Workflow("w", store=FileStore(root, fs))
    opening, _ = cost(fs, lambda: reopened.record)
    assert sum(opening.values()) <= 40
    reopened.close()
    figures.add(ROW, "steps in a workflow", count)


def test_keys_and_leases_leave_no_descriptor_open(root: Path, tier: Tier, figures: Figures) -> None:
    """However many mutexes, leases and submitted steps there were, only the 16 mutexes taken last are still open."""
    count = tier.count(quick=100, full=2000, soak=10_000)
    fs = CountingFS()
    with Workflow("w", store=FileStore(root, fs)) as workflow:
        body = workflow.step(name="step {number}")(lambda number: number)
        workflow.append_event("opened")
        before = fs.opened
        for number in range(count):
            with workflow.mutex(f"key {number}"):
                workflow.touch_lease(f"lease {number % 50}", holder="me", ttl=60)
        assert sum(future.result() for future in [body.submit(number) for number in range(count)]) >= 0
        assert fs.opened == before + 16
        assert fs.most <= before + 16 + 5
    assert fs.opened == 0
    assert list(root.glob("locks/*/mutex/*")) == []
    figures.add(ROW, "mutexes, leases and submitted steps", 3 * count)


# Ten thousand workflows in a root


def make_workflows(root: Path, numbers: range) -> None:
    store = FileStore(root)
    for number in numbers:
        log, projection = store.open(f"workflow {number}", lambda number=number: new_fold(f"workflow {number}"))
        log.detach(put(log, projection, note(number)))


def test_a_workflow_costs_the_same_however_many_are_beside_it(
    root: Path, tier: Tier, figures: Figures, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opening one of many is the calls of opening the only one; listing and checking are so many calls a workflow."""
    count = tier.count(quick=200, full=3000, soak=10_000)
    fs = CountingFS()
    store = FileStore(root, fs)

    def use_one(name: str) -> None:
        log, projection = store.open(name, lambda: new_fold(name))
        log.detach(put(log, projection, note("one")))

    use_one("first")  # makes the root
    alone = cost(fs, lambda: use_one("alone"))[0]
    make_workflows(root, range(count))
    assert cost(fs, lambda: use_one("among"))[0] == alone

    def one_by_one() -> None:
        assert sum(isinstance(projection, Projection) for projection in store.list()) == count + 3

    listing, _ = cost(fs, one_by_one)
    assert sum(listing.values()) <= 9 * (count + 3) + 10
    assert sum(cost(fs, lambda: _exhaust(FileStore(root, fs).verify()))[0].values()) <= 40 * (count + 3) + 10
    assert fs.opened == 0
    assert main(["list", "--dir", str(root)]) == 0
    assert capsys.readouterr().out.count("\n") == count + 4
    figures.add(ROW, "workflows in a root", count)


@pytest.mark.slow
def test_a_listing_holds_one_workflow_at_a_time(root: Path, tier: Tier, figures: Figures) -> None:
    """Memory of going through a root grows by its names alone, not by its records."""
    count = tier.count(quick=50, full=500, soak=5000)
    peaks = []
    for size in (count, 4 * count):
        folder = root / str(size)
        store = FileStore(folder)
        for number in range(size):
            projection = new_fold(str(number), state="x" * 20_000)
            log, projection = store.open(str(number), lambda projection=projection: projection)
            log.detach(projection)
        peaks.append((_peak_of_a_listing(store), _peak_of_a_check(store.root)))
    for one, four in zip(*peaks, strict=True):
        assert four - one < 3 * count * 3000, peaks  # a few names and verdicts each, where a record has 20,000
    figures.add(ROW, "workflows opened in turn", 5 * count)


def _peak_of_a_listing(store: FileStore) -> int:
    return memory(lambda: _exhaust(store.list()))


def _exhaust(items: Any) -> None:
    for _ in items:
        pass


def test_workflows_that_are_open_have_three_files_each(root: Path, tier: Tier, figures: Figures) -> None:
    """An open workflow is a lock, a run file and a journal, and none of them once it is closed."""
    count = tier.count(quick=50, full=250, soak=250)
    fs = CountingFS()
    store = FileStore(root, fs)
    held = [store.open(str(number), lambda number=number: new_fold(str(number))) for number in range(count)]
    assert fs.opened == 3 * count
    for log, projection in held:
        log.detach(projection)
    assert fs.opened == 0
    figures.add(ROW, "workflows open at one time", count)


# Results of 50 MB


def test_a_large_result_is_written_once_and_folded_once(
    root: Path, tier: Tier, figures: Figures, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result of many megabytes is recorded, read back by another process's eyes, and shown as a line."""
    size = tier.count(quick=1, full=10, soak=50) << 20
    result = {"text": "ä" * (size // 6)}  # six bytes each, as it is escaped
    fs = CountingFS()
    workflow = Workflow("w", store=FileStore(root, fs))
    with workflow:
        workflow.run_step("large", lambda: result)
        told = fs.written
    assert size <= told <= 2.2 * size  # its line, and an early fold where it is longer than a journal should be
    assert fs.written <= 3.2 * size
    assert Workflow("w", store=FileStore(root)).run_step("large", lambda: None) == result
    assert main(["show", "--dir", str(root), "w"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 300
    figures.add(ROW, "megabytes in a result", size >> 20)


@pytest.mark.slow
def test_a_large_result_takes_a_few_times_its_size_of_memory(root: Path, tier: Tier, figures: Figures) -> None:
    """Recording, opening, looking and checking take memory in proportion to the result, not to its square."""
    for size in (tier.count(quick=1, full=3, soak=12) << 20, tier.count(quick=4, full=12, soak=50) << 20):
        workflow, text = Workflow("w", dir=root / str(size)), "x" * size
        store = FileStore(workflow.dir)
        peaks = {
            "run": _peak_of_a_step(workflow, text),
            "fold": memory(workflow.close),
            "look": _peak_of_a_look(store),
            "open": _peak_of_an_opening(store),
            "verify": _peak_of_a_check(store.root),
        }
        assert max(peaks.values()) < 2 * READ_AT_ONCE + 8 * size, (size, peaks)
        figures.add(ROW, "megabytes in results, with their memory", size >> 20)


def _peak_of_a_step(workflow: Workflow, text: str) -> int:
    return memory(lambda: workflow.run_step("large", lambda: text))
