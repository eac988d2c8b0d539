"""The peers and the cases, as data."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

OURS = "iso_orchestrator"
BEFORE = "before"  # another version of this library, in a comparison


@dataclass(frozen=True)
class Peer:
    """One library that is measured.

    Attributes:
        name: Its name in the tables.
        program: Its module in `peers/`, or its file there.
        environment: Its folder in `.peers/`; None: this interpreter runs it.
        keeps: What it does with a result before the caller has it.
        imports: The module whose import is timed.
        postgres: Whether it needs a PostgreSQL server.
        checkout: The folder of another version of this library, which is imported instead of the installed one.
    """

    name: str
    program: str
    environment: str | None = None
    keeps: str = ""
    imports: str | None = None
    postgres: bool = False
    checkout: str | None = None


@dataclass(frozen=True)
class Case:
    """One workload with its parameters: a column of a table.

    Attributes:
        workload: The table.
        label: The column.
        how: A function of `measure.py`.
        parameters: For the peers' programs.
        peers: Names of those that take part; all when empty.
        rounds: At most so many; fewer for what takes long or does not vary.
    """

    workload: str
    label: str
    how: str
    parameters: dict[str, Any]
    peers: tuple[str, ...] = ()
    rounds: int = 100


PEERS = [
    Peer(OURS, "ours", keeps="the journal is synced; waiting threads share a sync", imports="iso_orchestrator"),
    Peer("npm package", "npm.mjs", "npm", "nothing is synced; the whole record is written twice a step"),
    Peer("DBOS on SQLite", "dbos", "dbos", "SQLite's defaults: rollback journal, synchronous FULL", "dbos"),
    Peer(
        "DBOS on PostgreSQL",
        "dbos",
        "dbos",
        "initdb's defaults: the server syncs its log at each commit",
        postgres=True,
    ),
    Peer("durastep", "durastep", "durastep", "SQLite, WAL, synchronous FULL: one transaction a step", "durastep"),
    Peer(
        "mundane-sdk",
        "mundane",
        "mundane",
        "SQLite, rollback journal, synchronous FULL: two transactions a step",
        "mundane",
    ),
    Peer("diskcache", "diskcache", "diskcache", "WAL, synchronous NORMAL: synced at checkpoints only", "diskcache"),
    Peer("baseline: write + fdatasync", "write", keeps="one sync a step, nothing else"),
    Peer("baseline: SQLite", "sqlite", keeps="WAL, synchronous FULL: one transaction a step"),
    Peer("baseline: threads", "threads", keeps="nothing is kept"),
]

CHAIN = [100, 1_000, 10_000, 50_000]
FAN_OUT = [(1, 0.0), (8, 0.0), (8, 0.005), (32, 0.005)]  # workers, seconds of an item
SIZES = {  # bytes of a result, how many steps
    "1 KB": (1_000, 50),
    "32 KB": (32_000, 50),
    "1 MB": (1_000_000, 10),
    "10 MB": (10_000_000, 3),
    "50 MB": (50_000_000, 2),
}
OPENED = 100_000
CHAIN_LIMIT = 20.0  # seconds; after them a chain is stopped
COUNT_LIMIT = 5.0  # seconds; a slow peer gets as many items as it can do in them


def cases(quick: bool) -> list[Case]:
    """Every case, in the order of the run."""
    scale = 20 if quick else 1
    return [
        *[chain(steps // scale) for steps in (CHAIN[1:] if quick else CHAIN)],
        single_sync(10 if quick else 60),
        *[fan_out(5_000 // scale, *how) for how in FAN_OUT],
        Case("four processes", "4 x 250 steps", "processes", {"steps": 250 // (5 if quick else 1)}),
        mutex(1_000 // scale),
        *[
            hand_over(between, hold, turns // (10 if quick else 1))
            for between in ("threads", "processes")
            for hold, turns in ((0.002, 200), (0.05, 40))
        ],
        Case("waiting", "held 3 s", "waiting", {"do": "hand_over", "steps": 1, "hold": 3.0}),
        *[Case("keyed fan-out", label, "once", {"do": "keyed", **shape}) for label, shape in shapes().items()],
        *[large(label, *how) for label, how in SIZES.items() if not quick or how[0] <= 1_000_000],
        *[weighed(steps // scale, size) for size in (200, 2_000) for steps in (1_000, 50_000)],
        *openings(OPENED // scale),
        command(50 // (5 if quick else 1)),
        imported(3 if quick else 5),
    ]


def compared(quick: bool) -> list[Case]:
    """The cases in which two versions of this library are compared: short ones, for many rounds."""
    scale = 20 if quick else 1
    return [
        chain(1_000 // scale),
        single_sync(2 if quick else 10),
        fan_out(5_000 // scale, 8, 0.0),
        fan_out(1_000 // scale, 8, 0.005),
        mutex(1_000 // scale),
        *[hand_over(between, 0.002, 100 // (10 if quick else 1)) for between in ("threads", "processes")],
        command(20 // (5 if quick else 1)),
        imported(3),
        *openings(OPENED // scale),
    ]


def chain(steps: int) -> Case:
    return Case("chain", f"{steps:,}", "twice", {"do": "chain", "steps": steps, "limit": CHAIN_LIMIT})


def single_sync(blocks: int) -> Case:
    return Case("single sync", "blocks in turn", "once", {"do": "single_sync", "steps": blocks}, (OURS, BEFORE))


def fan_out(items: int, workers: int, pause: float) -> Case:
    label = f"{workers} workers, {f'{pause * 1000:.0f} ms' if pause else 'empty'}"
    return Case("fan-out", label, "once", {"do": "fan_out", "steps": items, "workers": workers, "pause": pause})


def mutex(turns: int) -> Case:
    return Case("mutex", "uncontended", "once", {"do": "mutex", "steps": turns})


def hand_over(between: str, hold: float, turns: int) -> Case:
    label = f"between {between}, held {hold * 1000:.0f} ms"
    parameters = {"do": "hand_over_threads" if between == "threads" else "hand_over", "steps": turns}
    return Case("mutex", label, "once" if between == "threads" else "waiting", {**parameters, "hold": hold})


def large(label: str, size: int, steps: int) -> Case:
    return Case("large results", label, "twice", {"do": "chain", "steps": steps, "size": size, "limit": CHAIN_LIMIT})


def weighed(steps: int, size: int) -> Case:
    parameters = {"do": "chain", "steps": steps, "size": size, "count": True, "limit": 120.0}
    return Case("bytes", f"{steps:,} of {size:,} B", "once", parameters, (OURS,), rounds=1)


def openings(steps: int) -> list[Case]:
    ours = (OURS, BEFORE)
    return [
        Case("opening", label, "opened", {"steps": steps, "leave": leave}, peers, rounds=5)
        for label, leave, peers in (
            ("after a clean end", "close", (*ours, "durastep", "diskcache")),
            ("after a kill", "kill", ours),
        )
    ]


def command(steps: int) -> Case:
    return Case("command", "`true`", "once", {"do": "command", "steps": steps}, (OURS, BEFORE))


def imported(times: int) -> Case:
    return Case("import", "module", "imported", {"times": times})


def shapes() -> dict[str, dict[str, Any]]:
    """Keyed fan-outs: the key and the seconds of each item, and how many run at a time."""
    draw = random.Random(20)
    keys = range(1, 41)
    long_tailed = [
        (f"key-{key}", round(min(0.002 * draw.paretovariate(1.1), 0.1), 4))
        for key in draw.choices(keys, [1 / key for key in keys], k=300)
    ]
    return {
        "one key of 20 and 20 others": {
            "items": [("a", 0.02)] * 20 + [(f"other-{number}", 0.02) for number in range(20)],
            "workers": 4,
        },
        "80 keys of 1": {"items": [(f"key-{number}", 0.02) for number in range(80)], "workers": 4},
        "8 keys of 10, in turn": {"items": [(f"key-{number % 8}", 0.02) for number in range(80)], "workers": 4},
        "8 keys of 10, each in a row": {"items": [(f"key-{number // 10}", 0.02) for number in range(80)], "workers": 4},
        "300 over 40 keys, keys and times long-tailed": {"items": long_tailed, "workers": 8},
    }


def optimum(items: Iterable[tuple[str, float]], workers: int) -> float:
    """Seconds that no scheduler can beat: all workers always busy, or the longest key without a gap."""
    keys: dict[str, float] = {}
    for key, seconds in items:
        keys[key] = keys.get(key, 0.0) + seconds
    return max(sum(keys.values()) / workers, max(keys.values()))
