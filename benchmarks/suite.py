"""What is measured: the peers and the cases, as data."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OURS = "iso_orchestrator"


@dataclass(frozen=True)
class Peer:
    """Something that is measured.

    Attributes:
        name: As the tables call it.
        program: Its module in `peers/`, or its file there.
        environment: Its folder in `.peers/`; None for what runs in this interpreter.
        keeps: What it does about a result before the caller has it.
        parameters: What its program is told besides the workload.
        imports: The module whose import is timed.
        postgres: Whether it needs a PostgreSQL cluster.
    """

    name: str
    program: str
    environment: str | None
    keeps: str
    parameters: dict[str, Any] = field(default_factory=dict)
    imports: str | None = None
    postgres: bool = False


@dataclass(frozen=True)
class Case:
    """One line of a table.

    Attributes:
        workload: The table.
        label: The line.
        how: A function of `measure.py`.
        parameters: For the peers' programs.
        peers: Names of those that it is for; all when empty.
        rounds: At most so many; for what does not vary.
    """

    workload: str
    label: str
    how: str
    parameters: dict[str, Any]
    peers: tuple[str, ...] = ()
    rounds: int = 100


PEERS = [
    Peer(OURS, "ours", None, "the journal is synced; waiting threads share a sync", imports="iso_orchestrator"),
    Peer("npm package", "npm.mjs", "npm", "nothing is synced; the whole record is written twice a step"),
    Peer(
        "DBOS on SQLite",
        "dbos",
        "dbos",
        "SQLite's defaults: rollback journal, synchronous FULL",
        imports="dbos",
    ),
    Peer(
        "DBOS on PostgreSQL",
        "dbos",
        "dbos",
        "initdb's defaults: the server syncs its log at each commit",
        postgres=True,
    ),
    Peer(
        "LangGraph",
        "langgraph",
        "langgraph",
        "SqliteSaver: WAL, synchronous FULL, by a background thread: the caller has a result before it is written",
        imports="langgraph.func",
    ),
    Peer("redun", "redun", "redun", "SQLite's defaults: rollback journal, synchronous FULL", imports="redun"),
    Peer(
        "Prefect",
        "prefect",
        "prefect",
        "result files are not synced; its server, a process of its own, keeps the states",
        imports="prefect",
    ),
    Peer("joblib.Memory", "joblib", "joblib", "nothing is synced", imports="joblib"),
    Peer(
        "diskcache",
        "diskcache",
        "diskcache",
        "WAL, synchronous NORMAL: synced at checkpoints only",
        imports="diskcache",
    ),
    Peer("floor: write + fdatasync", "write", None, "one sync a step, nothing else"),
    Peer("floor: sqlite3 WAL FULL", "sqlite", None, "one sync a step", {"where": "FULL"}),
    Peer("floor: sqlite3 WAL NORMAL", "sqlite", None, "synced at checkpoints only", {"where": "NORMAL"}),
    Peer("floor: bare threads", "threads", None, "nothing is kept"),
    Peer("floor: flock", "flock", None, "a lock only"),
]

CHAIN = [100, 1_000, 5_000, 10_000, 50_000]
WORKERS = [1, 2, 8, 32]
SIZES = {"1 KB": (1_000, 50), "32 KB": (32_000, 50), "1 MB": (1_000_000, 20), "10 MB": (10_000_000, 5)} | {
    "50 MB": (50_000_000, 2)
}
OPENED = 100_000
CHAIN_LIMIT = 20.0  # seconds; after them a chain is stopped
COUNT_LIMIT = 5.0  # seconds; a slow peer gets as many items as it can do in them


def cases(quick: bool) -> list[Case]:
    """All that is measured, in this order."""
    scale = 20 if quick else 1
    return [
        *[chain(steps // scale) for steps in (CHAIN[1:] if quick else CHAIN)],
        Case("single sync", "blocks in turn", "once", {"do": "single_sync", "steps": 10 if quick else 60}, (OURS,)),
        *[fan_out(5_000 // scale, workers, pause) for pause in (0.0, 0.005) for workers in WORKERS],
        Case("four processes", "4 x 250 steps", "processes", {"steps": 250 // (5 if quick else 1)}),
        Case("mutex", "uncontended", "once", {"do": "mutex", "steps": 1_000 // scale}),
        *[
            hand_over(between, hold, turns // (10 if quick else 1))
            for between in ("threads", "processes")
            for hold, turns in ((0.002, 200), (0.05, 40))
        ],
        Case("waiting", "held 3 s", "waiting", {"do": "hand_over", "steps": 1, "hold": 3.0}),
        *[Case("keyed fan-out", label, "once", {"do": "keyed", **shape}) for label, shape in shapes().items()],
        *[large(label, *how) for label, how in SIZES.items() if not quick or how[0] <= 1_000_000],
        *[weighed(steps, size) for size in (200, 2_000) for steps in (CHAIN[:2] if quick else CHAIN)],
        *[
            Case("opening", label, "opened", {"steps": OPENED // scale, "leave": leave}, (OURS,))
            for label, leave in (("after a clean end", "close"), ("after a kill", "kill"))
        ],
        Case("import", "module", "imported", {"times": 3 if quick else 5}),
    ]


def chain(steps: int) -> Case:
    return Case("chain", f"{steps:,}", "twice", {"do": "chain", "steps": steps, "limit": CHAIN_LIMIT})


def fan_out(items: int, workers: int, pause: float) -> Case:
    label = f"{workers} workers, {f'{pause * 1000:.0f} ms' if pause else 'empty'}"
    return Case("fan-out", label, "once", {"do": "fan_out", "steps": items, "workers": workers, "pause": pause})


def hand_over(between: str, hold: float, turns: int) -> Case:
    label = f"between {between}, held {hold * 1000:.0f} ms"
    parameters = {"do": "hand_over_threads" if between == "threads" else "hand_over", "steps": turns}
    return Case("mutex", label, "once" if between == "threads" else "waiting", {**parameters, "hold": hold})


def large(label: str, size: int, steps: int) -> Case:
    return Case("large results", label, "twice", {"do": "chain", "steps": steps, "size": size, "limit": CHAIN_LIMIT})


def weighed(steps: int, size: int) -> Case:
    parameters = {"do": "chain", "steps": steps, "size": size, "count": True, "limit": 120.0}
    return Case("bytes", f"{steps:,} of {size:,} B", "once", parameters, (OURS,), rounds=1)


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
