"""Sound lines that one process cannot decode, and another one can: they are no damage, and never cut."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from reliability.faults import paths_of
from reliability.tiers import Figures, Tier
from support import caught_up, looked_at, new_fold, note, notes_of, put, tree, with_stack

from iso_orchestrator import FormatVersionError
from iso_orchestrator.codec import encode
from iso_orchestrator.record import facts as f
from iso_orchestrator.store import FileStore, WorkflowLog
from iso_orchestrator.store.file.journal import parse_header
from iso_orchestrator.store.maintenance import RepairOptions

AT = "2026-05-14T12:00:00.000Z"
LATER: dict[str, dict[str, Any]] = {
    "kind": {"fact": "step.paused", "at": AT, "step": "a"},
    "field": {"fact": "step.abandoned", "at": AT, "step": "a", "mood": "good"},
    "value": {"fact": "status.set", "at": AT, "status": "paused"},
    "type": {"fact": "state.updated", "at": 1778760000, "state": {}},
    "no json": {"fact": "state.updated", "at": AT, "state": float("nan")},
}
"""Facts of later releases."""


@contextmanager
def short_ints() -> Iterator[None]:
    """This process reads no int of more than 640 digits, as under PYTHONINTMAXSTRDIGITS."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def uses(root: Path, log: WorkflowLog) -> list[Callable[[], Any]]:
    """What a process can do with a workflow that another one has open."""
    store = FileStore(root)
    return [
        lambda: store.read("w"),
        lambda: store.open("w", new_fold)[0].close(),
        lambda: list(store.verify()),
        lambda: store.repair("w", RepairOptions()),
        lambda: caught_up(log, None),
        lambda: caught_up(log, None),
    ]


def append_later(root: Path, seq: int, kind: str, torn: bytes) -> None:
    """What a process of a later release appends, after bytes that a crash tore."""
    path = Path(paths_of(root).journal)
    header = parse_header(path.read_bytes(), str(path))
    text = encode if kind != "no json" else lambda fields: str(fields).replace("'", '"').replace("nan", "NaN")
    body = text({"seq": seq, "synced": 0, **LATER[kind]})[:-1].encode()
    with path.open("ab") as file:
        file.write(torn + b'%b,"crc":"%08x"}\n' % (body, crc32(body, header.crc)))


def check(root: Path, draw: random.Random) -> None:
    """A process that cannot decode what a peer appended, or can at times, changes nothing and says so."""
    peer, theirs = FileStore(root).open("w", new_fold)
    mine, _ = FileStore(root).open("w", new_fold)
    try:
        for number in range(draw.randrange(3)):
            theirs = put(peer, theirs, note(number))
        case = draw.choice(["long int", "stack", *LATER])
        if case == "long int":
            value: Any = 10 ** draw.randrange(700, 4000)
            theirs = put(peer, theirs, f.StateUpdated(new_fold().created_at, value))
        elif case == "stack":
            value = None
            for _ in range(draw.randrange(120)):
                value = [value]
            theirs = put(peer, theirs, f.StateUpdated(new_fold().created_at, value))
        else:
            append_later(root, theirs.seq + 1, case, draw.choice([b"", b"torn\n", b"\0" * 9 + b"\n"]))
        peer.sync(theirs.seq)
        before = tree(root / "workflows")
        use = draw.choice(uses(root, mine))
        if case == "stack":
            # Any outcome is right that changes nothing: it depends on the use how much of the stack it takes.
            with suppress(RecursionError):
                with_stack(draw.randrange(5, 60), use)
        elif case == "long int":
            with short_ints():
                is_refused(use)
        else:
            is_refused(use)
        assert tree(root / "workflows") == before
        if case not in LATER:
            assert looked_at(FileStore(root)).state == value
            assert notes_of(put(peer, theirs, note("goes on")))[-1] == "goes on"
    finally:
        mine.close()
        peer.close()


def is_refused(use: Callable[[], Any]) -> None:
    """The use names the place of the line, by an error or in its report."""
    try:
        found = use()
    except FormatVersionError as error:
        assert "a sound line at byte" in str(error)
    else:
        assert "a sound line at byte" in str(found)


def test_a_sound_line_that_cannot_be_decoded_here_is_kept(root: Path, tier: Tier, figures: Figures) -> None:
    """Nothing is cut that a peer was told is recorded, whatever this process can read of it."""
    seeds = tier.random("unreadable")
    count = tier.count(quick=60, full=1000, soak=100_000)
    for number in range(count):
        seed = seeds.getrandbits(32)
        try:
            check(root / str(number), random.Random(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    figures.add(28, "sound lines that a process could not decode", count)
