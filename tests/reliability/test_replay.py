"""Durability: every state that a crash may leave of recorded work is opened, and has what was acknowledged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from reliability.replay import (
    ROOT,
    WORKFLOW,
    Checker,
    DiskOperation,
    LockFiles,
    Machine,
    Made,
    Operation,
    State,
    Synced,
    Violation,
    Wrote,
)
from reliability.tiers import Figures, Tier
from reliability.workloads import OPERATIONS, SCRIPTS, World, early_folds, killed, played, recorded, short_sequences
from support import note, notes_of, put, tree

from iso_orchestrator.errors import CorruptRecordError
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.system.filesystem import FileSystem

PARTS = 8  # of the short sequences, so that workers share them


@pytest.fixture(autouse=True)
def _early_folds() -> Iterator[None]:
    with early_folds():
        yield


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "iso_orchestrator")  # a torn tail is warned of, thousands of times


def add(figures: Figures, checker: Checker) -> None:
    for model, count in checker.states.items():
        figures.add(1, f"crash states, {model} model", count)
    figures.add(1, "crash states of recoveries from them", checker.recoveries)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_short_sequence_loses_what_was_acknowledged(
    part: int, locks: LockFiles, tier: Tier, figures: Figures
) -> None:
    """Whatever one to three operations a crash follows, the record is a prefix with everything acknowledged."""
    draw = tier.random(f"short sequences {part}")
    checker = Checker(locks, draw)
    target = tier.count(quick=800, full=50_000, soak=2_000_000) // PARTS
    own = short_sequences(3)[part::PARTS]
    for names in own if tier.name != "quick" else [own[0], *draw.sample(own, 1)]:
        replay(checker, names, locks, share=0.05 if len(names) == 3 else 1.0, torn=0.01, inside=0.02)
    inside = tier.share(quick=0.05, full=0.3, soak=0.3)
    while checker.count < target:
        replay(checker, draw.choice(own), locks, share=1.0, torn=0.1, inside=inside)
    add(figures, checker)


def replay(
    checker: Checker, names: Sequence[str], locks: LockFiles, *, share: float, torn: float, inside: float
) -> None:
    log, since = recorded(locks, names)
    checker.replay(log, ", ".join(names) or "opening", since=since, share=share, torn=torn, inside=inside)


FOUND = ("delete", "small, delete", "small, delete_of_dead", "unsynced, delete_of_dead")  # they lost something once


@pytest.mark.parametrize("names", FOUND)
def test_no_sequence_that_once_did_loses_anything(names: str, locks: LockFiles, tier: Tier) -> None:
    """Sequences that broke a promise once are tried in every run, at every operation."""
    replay(Checker(locks, tier.random(names)), names.split(", "), locks, share=1.0, torn=0.01, inside=0.01)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_loses_what_was_acknowledged(name: str, locks: LockFiles, tier: Tier, figures: Figures) -> None:
    """What a user was told by any call is there after a crash at any operation of that call or later."""
    checker = Checker(locks, tier.random(f"script {name}"))
    checker.replay(
        played(locks, name),
        name,
        share=tier.share(quick=0.25, full=0.3, soak=1.0),
        torn=tier.share(quick=0.01, full=0.2, soak=1.0),
        inside=tier.share(quick=0.02, full=0.1, soak=1.0),
    )
    add(figures, checker)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_a_killed_process_left_is_not_taken_for_durable(
    part: int, locks: LockFiles, tier: Tier, figures: Figures
) -> None:
    """A process is killed at any operation, the next one is told of what it left, and only then the power goes."""
    draw = tier.random(f"killed {part}")
    checker = Checker(locks, draw)
    own = short_sequences(2)[part::PARTS]
    kills = 0
    for names in own if tier.name != "quick" else [own[0], *draw.sample(own, 1)]:
        clean, since = recorded(locks, names)
        first, end = (sum(isinstance(operation, DiskOperation) for operation in log) for log in (clean[:since], clean))
        moments = range(first + 1, end + 1)
        count = tier.pick(quick=1, full=2 if len(names) == 2 else end, soak=end)
        for fatal in draw.sample(moments, min(count, len(moments))):
            kills += 1
            log, since = killed(locks, names, fatal)
            what = f"{', '.join(names) or 'opening'}, killed after operation {fatal}"
            share = tier.share(quick=0.2, full=0.15, soak=1.0)
            checker.replay(log, what, since=since, share=share, torn=0.01, inside=0.01)
    figures.add(1, "kills, each followed by crashes", kills)
    add(figures, checker)


def test_no_long_sequence_loses_what_was_acknowledged(locks: LockFiles, tier: Tier, figures: Figures) -> None:
    """Nor do longer sequences, drawn at random and made shorter where one fails."""
    checker = Checker(locks, tier.random("long sequences"))

    @hypothesis.seed(tier.seed)
    @hypothesis.settings(
        max_examples=tier.count(quick=2, full=40, soak=5_000),
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.lists(st.sampled_from(list(OPERATIONS)), min_size=4, max_size=12))
    def try_one(names: list[str]) -> None:
        log, _ = recorded(locks, names)
        checker.replay(log, ", ".join(names), share=0.2, torn=0.01, inside=0.01)

    try_one()
    add(figures, checker)


LIES: dict[str, type[Operation]] = {"files": Wrote, "names": Made}


@pytest.mark.parametrize("lie", LIES)
def test_a_disk_that_lies_is_found_out(lie: str, locks: LockFiles, tier: Tier) -> None:
    """The replay can fail: where syncs of files, or of folders, do nothing, it says what was lost."""
    log, _ = recorded(locks, ["small", "reopen"])
    lied = {operation.number for operation in log if isinstance(operation, Wrote)}
    is_lie = (lambda number: number in lied) if lie == "files" else (lambda number: number not in lied)
    true = [operation for operation in log if not (isinstance(operation, Synced) and is_lie(operation.number))]
    with pytest.raises(Violation):
        Checker(locks, tier.random(lie)).replay(true, f"lies about {lie}", torn=0, inside=0)


def test_damage_is_told_from_a_torn_tail(locks: LockFiles, tier: Tier, figures: Figures) -> None:
    """A line lost or mangled before one that says it was synced is never dropped in silence, whatever else is there."""
    count = 0
    for names in (["unsynced"] * 3, ["small", "batch", "unsynced"], ["step", "large", "lease", "unsynced"]):
        state = left_by(locks, names)
        path = next(path for path in state if path.endswith(".journal"))
        lines = (state[path] or b"").splitlines(keepends=True)
        marks = [json.loads(line).get("synced", 0) for line in lines]
        for index in range(1, len(lines)):
            for damaged in (b"", lines[index][:-1] + b"x\n", bytes(len(lines[index])), flipped(lines[index])):
                count += 1
                journal = b"".join([*lines[:index], damaged, *lines[index + 1 :]])
                bad = {index} if damaged[-1:] != b"\0" else {index, index + 1}  # the next has no beginning any more
                is_damage = index <= max(mark for other, mark in enumerate(marks) if other not in bad)
                assert_taken(locks, {**state, path: journal}, index - 1, is_damage=is_damage)
    figures.add(1, "lines lost or mangled where that may be damage", count)


def left_by(locks: LockFiles, names: Sequence[str]) -> State:
    """What is on the disk when the process is killed."""
    machine = Machine(locks)
    try:
        world = World(machine)
        world.begin()
        for name in names:
            OPERATIONS[name](world)
        return machine.state()
    finally:
        machine.power_off()


def flipped(line: bytes) -> bytes:
    """A line that says something else, as well-formed as before."""
    return line.replace(b'"at":"2026', b'"at":"2036')


def assert_taken(locks: LockFiles, state: State, whole: int, *, is_damage: bool) -> None:
    """Damage is refused and left as it is; a torn tail leaves the *whole* facts before it."""
    machine = Machine(locks, state)
    try:
        store = FileStore(ROOT, machine.process())
        if not is_damage:
            assert store.open(WORKFLOW, no_new_one)[1].seq == whole
            return
        with pytest.raises(CorruptRecordError):
            store.open(WORKFLOW, no_new_one)
        assert machine.state().items() >= state.items()
    finally:
        machine.power_off()


def no_new_one() -> Projection:
    raise AssertionError("there is a record")


def test_the_machine_is_as_the_real_file_system(locks: LockFiles, tmp_path: Path) -> None:
    """What the replay is played on does with a store's calls what the real file system does."""
    machine = Machine(locks)
    real, made = tmp_path / "folder" / "root", FileStore(ROOT, machine.process())
    for store in (FileStore(real), made):
        for round_ in range(2):
            log, projection = store.open(WORKFLOW, lambda: Projection.new(WORKFLOW, note("").at, {}))
            projection = put(log, projection, note(round_), note("more"))
            assert notes_of(projection)[-1] == "more"
            log.detach(projection)
        other, projection = store.open("other", lambda: Projection.new("other", note("").at, {}))
        other.detach(put(other, projection, note("other")))
        assert store.delete("other")
    kept = {path: data for path, (_, data) in tree(real).items()}
    assert {path.removeprefix(f"{ROOT}/"): data or b"" for path, data in machine.state().items() if path > ROOT} == kept
    machine.power_off()
    methods = [name for name in vars(FileSystem) if not name.startswith("_")]
    assert all(name in vars(type(made._fs)) for name in methods), "a call of the real file system would get through"
