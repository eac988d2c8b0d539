"""Copies of a live workflow: snapshots and journals of different moments, and what `backup` makes."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path

from reliability.faults import paths_of
from reliability.oracle import Link, Nursery
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


def write(link: Link, root: str, oracle: str, who: int, count: int, seed: int) -> None:
    """Record notes, and tell after each sync how many of them there are."""
    draw = random.Random(seed)
    fd = os.open(oracle, os.O_RDWR | os.O_CREAT)
    with early_folds():
        log, projection = FileStore(root).open("w", new_fold)
        link.say("open")
        link.hear()
        for number in range(count):
            projection = put(log, projection, note(f"{who} {number} {'x' * draw.choice([1, 700, 16_000])}"))
            log.sync(projection.seq)
            os.pwrite(fd, b"%8d" % (number + 1), 0)
        log.detach(projection)


def counts_of(notes: list[str | None]) -> Counter[str]:
    """How many notes of each process there are; those of one process are in order."""
    found: Counter[str] = Counter()
    for text in notes:
        assert text is not None
        who, number, _ = text.split(" ")
        assert int(number) == found[who]
        found[who] += 1
    return found


def test_a_backup_while_processes_write_has_all_that_was_acknowledged(
    nursery: Nursery, root: Path, tier: Tier, figures: Figures
) -> None:
    """Each backup is sound, and is a prefix of the record with all that was acknowledged before it began."""
    draw = tier.random("backups")
    for number in range(tier.count(quick=1, full=2, soak=400)):
        count = check_backups(nursery, root / str(number), tier.pick(quick=8, full=40, soak=40), draw)
        figures.add(31, "backups of a workflow that four processes write", count)


def check_backups(nursery: Nursery, root: Path, count: int, draw: random.Random) -> int:
    """Back a workflow up until four processes have recorded so many notes each; the number of backups."""
    root.mkdir()
    oracles = {str(who): root / f"oracle {who}" for who in range(4)}
    writers = [
        nursery.start(write, str(root / "live"), str(path), int(who), count, draw.getrandbits(32))
        for who, path in oracles.items()
    ]
    for writer in writers:
        assert writer.hear() == "open"
    for writer in writers:
        writer.say("go")
    acknowledged: list[dict[str, int]] = []
    while not acknowledged or sum(acknowledged[-1].values()) < len(writers) * count:
        acknowledged.append({who: int(path.read_text() or 0) for who, path in oracles.items()})
        FileStore(root / "live").backup("w", root / f"{len(acknowledged)}.tar")
    for writer in writers:
        writer.end()
    final = notes_of(looked_at(FileStore(root / "live")))
    assert counts_of(final) == dict.fromkeys(oracles, count)
    for number, at_least in enumerate(acknowledged, 1):
        with tarfile.open(root / f"{number}.tar") as tar:
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in 3.11.0 to 3.11.3
            tar.extractall(root / f"copy {number}", **safely)
        store = FileStore(root / f"copy {number}")
        assert [check.verdict for check in store.verify()] == [Verdict.SOUND]
        notes = notes_of(looked_at(store))
        assert notes == final[: len(notes)]
        found = counts_of(notes)
        assert all(found[who] >= least for who, least in at_least.items())
    shutil.rmtree(root)
    return len(acknowledged)


def test_files_of_different_moments_lose_nothing_in_silence(root: Path, tier: Tier, figures: Figures) -> None:
    """A pair that `cp` or `tar` took while a process wrote is a whole prefix, or says that it is none."""
    seeds = tier.random("mixed pairs")
    count = tier.count(quick=40, full=300, soak=100_000)
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
