"""Files that another program cuts, or replaces by older copies, while processes use them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from reliability.faults import paths_of
from reliability.tiers import Figures, Tier
from reliability.workloads import early_folds
from support import caught_up, new_fold, note, notes_of, put, tree

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store import FileStore

Files = dict[str, bytes]


def files_of(root: Path) -> Files:
    """The bytes of the pair, by path."""
    paths = paths_of(root)
    return {path: Path(path).read_bytes() for path in (paths.snapshot, paths.journal)}


def write_in_place(files: Files) -> None:
    """As `cp` does."""
    for path, data in files.items():
        Path(path).write_bytes(data)


def rename_over(files: Files) -> None:
    """As `rsync` and `mv` do."""
    for path, data in files.items():
        Path(f"{path}.aside").write_bytes(data)
        os.chmod(f"{path}.aside", 0o600)  # as it was: another mode is put right at the first look
        os.replace(f"{path}.aside", path)


def set_back(root: Path, older: Files, draw: random.Random) -> str:
    """What another program does to the files of a live workflow; its name."""
    journal = paths_of(root).journal
    put_back: Callable[[Files], None] = draw.choice([write_in_place, rename_over])
    kind = draw.choice(["cut", "truncated", "older journal", "older pair"])
    if kind == "cut":
        os.truncate(journal, draw.randrange(os.path.getsize(journal)))
    elif kind == "truncated":
        os.truncate(journal, 0)
    elif kind == "older journal":
        put_back({journal: older[journal]})
    else:
        put_back(older)
    return f"{kind}, {put_back.__name__}"


def check(root: Path, draw: random.Random) -> bool:
    """A live process refuses what has gone back, and changes nothing; whether it had to."""
    log, projection = FileStore(root).open("w", new_fold)
    copies = [files_of(root)]
    texts = []
    for number in range(draw.randrange(1, 8)):
        texts.append(f"{number} {'x' * draw.choice([1, 1, 700, 16_000])}")  # the longest makes a fresh pair
        projection = put(log, projection, note(texts[-1]))
        log.sync(projection.seq)
        copies.append(files_of(root))
    newest, what = copies[-1], set_back(root, draw.choice(copies[:-1]), draw)
    try:
        if draw.random() < 0.5:  # a process that cannot know goes on from there, perhaps past where the live one is
            other, its = FileStore(root).open("w", new_fold)
            for number in range(draw.randrange(1, 8)):
                its = put(other, its, note(f"{number} {'y' * draw.choice([1, 1, 700])}"))
            other.sync(its.seq)
            other.close()
    except StoreError:
        pass
    log._look_at = 0.0  # type: ignore[attr-defined]  # the moment for a look at the names has come
    before = tree(root / "workflows")
    try:
        for known in (projection, None, None):
            try:
                found = caught_up(log, known)
            except StoreError as error:
                assert "byte" in str(error) or "another program" in str(error)
                assert tree(root / "workflows") == before, what
            else:  # at the second try too: an old journal is no loss under a snapshot that has all of it
                assert notes_of(found)[: len(texts)] == texts, f"{what}: accepted"
                return False
        rename_over(newest)
        assert notes_of(put(log, caught_up(log, None), note("again"))) == [*texts, "again"], what
        return True
    finally:
        log.close()


def test_files_that_go_back_under_a_live_process_are_refused(root: Path, tier: Tier, figures: Figures) -> None:
    """A process that has seen a fact goes on from no files without it, whatever another program did to them."""
    seeds = tier.random("gone back")
    count = tier.count(quick=60, full=600, soak=100_000)
    refused = 0
    with early_folds():
        for number in range(count):
            seed = seeds.getrandbits(32)
            try:
                refused += check(root / str(number), random.Random(seed))
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
    figures.add(30, "times that files went back under a live process", count)
    assert refused > count / 2
