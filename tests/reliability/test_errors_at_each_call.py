"""Every call of the file system fails once, and from then on for ever; whoever uses the workflow goes on after it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from reliability.faults import KINDS, WORKLOADS, Client, Failing, Fault, check_all, open_files, prepared
from reliability.tiers import Figures, Tier
from support import memory_folder

from iso_orchestrator import read_workflow_record
from iso_orchestrator.store import FileStore

# What a disk without room or rights does not keep anyone from; with the others reading fails too, and says so.
READABLE = ("ENOSPC", "EDQUOT", "EROFS", "short", "half, then ENOSPC")


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def early_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal is folded when it has two kilobytes; no call depends on how fast the machine is."""
    monkeypatch.setattr("iso_orchestrator.store.file.log._LOOK_EVERY", 1e9)
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_BYTES", 2000)
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_RATIO", 0.0)


def run(root: Path, workload: str, *faults: Fault) -> Failing:
    """One life of a client whose calls fail, and the check of what it leaves."""
    prepared(root, workload)
    files = open_files()
    fs = Failing(*faults)
    client = Client(root, fs)
    WORKLOADS[workload](client)
    if fs.struck and all(fault.kind in READABLE for fault in faults):
        check_reading(client)
    client.leave()
    fs.healed = True
    check_all(root, client.diary)
    if workload == "delete":
        check_other(client)
    assert open_files() == files, "files were left open"
    assert fs.struck or client.diary.errors == [], client.diary.errors
    return fs


def check_reading(client: Client) -> None:
    """The disk is as it is: what was acknowledged can be read."""
    if client.diary.told["note"]:
        record = read_workflow_record("w", store=client.store)
        assert set(client.diary.told["note"]) <= {event.message for event in record.events}


def check_other(client: Client) -> None:
    """The other workflow is the old one, the new one or gone, and can be deleted."""
    found = FileStore(client.root).read("other")
    notes = [event.message for event in found.events if event.type == "note"] if found else []
    assert notes in ([], ["old"], ["new"], ["old", "new"])
    assert FileStore(client.root).delete("other") is (found is not None)
    assert FileStore(client.root).read("other") is None


def cases(root: Path, workload: str) -> list[Fault]:
    """One fault for each call that can fail, in each way that it can; a run without any goes well."""
    untouched = run(root, workload)
    return [
        Fault(kind, at, for_ever)
        for kind in KINDS
        for at in range(1, untouched.can_fail(kind) + 1)
        for for_ever in (False, True)
    ]


def try_all(root: Path, workload: str, chosen: list[tuple[Fault, ...]]) -> int:
    """Run them; how many of them struck."""
    struck = 0
    for number, faults in enumerate(chosen):
        try:
            struck += bool(run(root / str(number), workload, *faults).struck)
        except BaseException as error:
            error.add_note(f"{workload}: {faults}")
            raise
        finally:
            shutil.rmtree(root / str(number), ignore_errors=True)
    return struck


def some(faults: list[Fault], tier: Tier, workload: str, randomness: random.Random) -> list[Fault]:
    """All of them, or a few in the quick tier."""
    if tier.name != "quick":
        return faults
    return randomness.sample(faults, min(len(faults), 8))


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_any_call_that_fails_is_a_typed_error_and_loses_nothing(
    memory: Path, tier: Tier, figures: Figures, workload: str, for_ever: bool
) -> None:
    """Whichever call fails how: a StoreError, nothing acknowledged that is not durable, and a record that is sound."""
    randomness = tier.random(f"errors {workload} {for_ever}")
    root = memory / f"{workload} {for_ever}"
    faults = [fault for fault in cases(root / "untouched", workload) if fault.for_ever is for_ever]
    chosen = some(faults, tier, workload, randomness)
    struck = try_all(root, workload, [(fault,) for fault in chosen])
    assert struck == len(chosen), "a call that can fail was not there"
    figures.add(5, f"calls that fail {'for ever' if for_ever else 'once'}", len(chosen))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_two_calls_that_fail_lose_nothing(memory: Path, tier: Tier, figures: Figures, workload: str) -> None:
    """What is done about one failure may fail too."""
    randomness = tier.random(f"pairs of errors {workload}")
    root = memory / f"{workload} pairs"
    faults = [fault for fault in cases(root / "untouched", workload) if not fault.for_ever]
    chosen = [close_pair(faults, randomness) for _ in range(tier.count(quick=3, full=200, soak=20_000))]
    try_all(root, workload, chosen)
    figures.add(5, "pairs of calls that fail", len(chosen))


def close_pair(faults: list[Fault], randomness: random.Random) -> tuple[Fault, ...]:
    """A failure and another soon after it: most likely in what is done about the first."""
    one = randomness.choice(faults)
    return one, Fault(randomness.choice(["EIO", one.kind]), one.at + randomness.randint(1, 8))
