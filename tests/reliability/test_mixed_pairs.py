"""Copies of a live workflow: snapshots and journals of different moments, and what `backup` makes."""

from __future__ import annotations

import os
import random
from pathlib import Path

from reliability.faults import paths_of
from reliability.tiers import Figures, Tier
from reliability.workloads import early_folds
from support import looked_at, new_fold, note, notes_of, put

from iso_orchestrator.errors import RecordConflictError
from iso_orchestrator.record import facts as f
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.journal import parse_header
from iso_orchestrator.store.maintenance import RepairOptions, Verdict


def lease(token: int) -> f.LeaseTouched:
    at = new_fold().created_at
    return f.LeaseTouched(at, "k", "h", 30.0, at, at, token, False)


def check(root: Path, draw: random.Random) -> bool:
    """A snapshot of one moment and a journal of another make a whole prefix, or are a conflict; which it is."""
    log, projection = FileStore(root).open("w", new_fold)
    copies, texts = [], []
    for number in range(draw.randrange(1, 9)):
        texts.append(f"{number} {'x' * draw.choice([1, 700, 16_000])}")  # the longest makes a fresh pair
        projection = put(log, projection, note(texts[-1]), lease(number))
        paths = paths_of(root)
        copies.append((Path(paths.snapshot).read_bytes(), Path(paths.journal).read_bytes()))
    log.close()
    copied = paths_of(root / "copy")
    snapshot, journal = draw.choice(copies)[0], draw.choice(copies)[1]
    os.makedirs(copied.folder)
    Path(copied.snapshot).write_bytes(snapshot)
    Path(copied.journal).write_bytes(journal)
    store = FileStore(root / "copy")
    try:
        log, found = store.open("w", new_fold)
        log.close()
    except RecordConflictError:
        if draw.random() < 0.1:  # it tries again and again, since a checkpoint may go on
            assert [check.verdict for check in store.verify()] == [Verdict.CONFLICT]
        report = store.repair("w", RepairOptions(merge_snapshot=True))
        repaired = looked_at(store)
        base = parse_header(journal, copied.journal).base
        lost = [seq for first, last in report.lost for seq in range(first, last + 1)]
        # Each note that is not in the record is named as lost, and no token is handed out twice.
        assert set(texts[: base // 2]) - set(notes_of(repaired)) == {texts[(seq - 1) // 2] for seq in lost}
        assert repaired.tokens.get("k", 0) >= (base // 2 - 1 if repaired.leases else 0)
        return True
    assert notes_of(found) == texts[: len(notes_of(found))]
    assert found.seq >= parse_header(journal, copied.journal).base
    return False


def test_files_of_different_moments_lose_nothing_in_silence(root: Path, tier: Tier, figures: Figures) -> None:
    """A pair that `cp` or `tar` took while a process wrote is a whole prefix, or says that it is none."""
    seeds = tier.random("mixed pairs")
    count = tier.count(quick=40, full=600, soak=100_000)
    conflicts = 0
    with early_folds():
        for number in range(count):
            seed = seeds.getrandbits(32)
            try:
                conflicts += check(root / str(number), random.Random(seed))
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
    figures.add(31, "snapshots and journals of different moments", count)
    assert conflicts
