"""Every workload over every peer that is installed, in turn: `python benchmarks/run.py`.

Prints the tables, keeps what was measured in `benchmarks/results.json`, and writes the tables and the plot to the page
and the short table to the README; with `--only`, those of one workload. With `--peers` or `--quick` it only prints.
`python benchmarks/install.py` brings the peers. What is measured in is a new folder in `benchmarks/.runs`, or in
BENCH_DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import postgres
import tables
from bounds import figures
from measure import Bench, Report, count_syncs, measure
from results import Results, cells_of, keep, machine, versions
from suite import OURS, PEERS, Case, Peer, cases

ROUNDS = 3
SLOW = 6.0  # seconds of one run: such a peer takes part in one round


def main() -> int:
    workloads = list(dict.fromkeys(case.workload for case in cases(quick=False)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="small runs without peers, within a minute; writes nothing"
    )
    parser.add_argument("--only", choices=workloads, metavar="WORKLOAD", help=f"one of {', '.join(workloads)}")
    parser.add_argument("--peers", metavar="A,B", help=f"of {', '.join(peer.name for peer in PEERS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"{ROUNDS}, or 1 with --quick")
    given = parser.parse_args()
    names = [name.strip() for name in given.peers.split(",")] if given.peers else [peer.name for peer in PEERS]
    if given.quick and not given.peers:
        names = [OURS]
    if unknown := set(names) - {peer.name for peer in PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    chosen = [case for case in cases(given.quick) if given.only in (None, case.workload)]
    is_kept = not given.quick and not given.peers
    rounds = given.rounds or (1 if given.quick else ROUNDS)
    with bench([peer for peer in PEERS if peer.name in names]) as (place, peers):
        results = run(place, peers, chosen, rounds, keep if is_kept else lambda results: results)
    if is_kept:
        tables.write(results)
    print(tables.page(results))
    print(figures(results))
    print(*results["failures"], sep="\n", file=sys.stderr)
    return 1 if results["failures"] else 0


@contextlib.contextmanager
def bench(wanted: Sequence[Peer]) -> Iterator[tuple[Bench, list[Peer]]]:
    """A folder and, if a peer needs it, a PostgreSQL server; with the peers that are there."""
    root = Path(os.environ.get("BENCH_DIR") or Path(__file__).parent / ".runs")
    root.mkdir(parents=True, exist_ok=True)
    (root / ".gitignore").write_text("*\n")
    place = Path(tempfile.mkdtemp(dir=root))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        server = None
        if any(peer.postgres for peer in wanted) and postgres.binaries() is not None:
            place.chmod(0o711)  # the server's user has to get to its folder
            server = stack.enter_context(postgres.cluster(place / "postgres"))
        made = Bench(place, server)
        yield made, [peer for peer in wanted if made.is_there(peer)]


def run(
    place: Bench, peers: Sequence[Peer], chosen: Sequence[Case], rounds: int, kept: Callable[[Results], Results]
) -> Results:
    """All that was chosen; kept after every case."""
    results: Results = {
        "machine": machine(),
        "versions": versions(peers),
        "measured": {},
        "syncs": {},
        "cells": [],
        "failures": [],
    }
    if any(case.workload == "chain" for case in chosen):
        results["syncs"] = {
            peer.name: attempt(results, f"syncs of {peer.name}", lambda p=peer: count_syncs(place, p)) for peer in peers
        }
    whole = results
    for case in chosen:
        runs = list(one_case(place, peers, case, rounds, results))
        began = results["measured"].get(case.workload, [runs[0]["at"]])[0]
        results["measured"][case.workload] = [began, runs[-1]["at"]]
        results["cells"] += cells_of(runs)
        whole = kept(results)
    return whole


def one_case(
    place: Bench, peers: Sequence[Peer], case: Case, rounds: int, results: Results
) -> Iterator[dict[str, Any]]:
    """Round by round, each begun by another peer."""
    able = [peer for peer in peers if not case.peers or peer.name in case.peers]
    slow: dict[str, float] = defaultdict(float)
    for number in range(min(rounds, case.rounds)):
        for peer in rotated(able, number):
            if slow[peer.name] > SLOW:
                continue
            started = datetime.now(UTC)
            what = f"{case.workload}, {case.label}, {peer.name}"
            report = attempt(results, what, lambda p=peer: measure(place, p, case))
            slow[peer.name] = (datetime.now(UTC) - started).total_seconds()
            if "cannot" in report:
                able = [other for other in able if other is not peer]
            tell(f"{what}, round {number + 1}", report)
            yield {
                "workload": case.workload,
                "label": case.label,
                "peer": peer.name,
                "round": number,
                "asked": case.parameters.get("steps"),
                "at": started.isoformat(timespec="seconds"),
                "report": report,
            }


def attempt(results: Results, what: str, work: Callable[[], Report]) -> Report:
    """What it gives; a failure is written down, and the others go on."""
    try:
        return work()
    except Exception as error:
        results["failures"].append(f"{what}: {type(error).__name__}: {error}")
        return {"cannot": "it failed"}


def rotated(peers: Sequence[Peer], by: int) -> list[Peer]:
    by %= max(len(peers), 1)
    return [*peers[by:], *peers[:by]]


def tell(what: str, report: Report) -> None:
    outcome = report.get("cannot") or f"{report.get('seconds', 0.0):.4f} s, {report.get('done', '-')} done"
    print(f"{what}: {outcome}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
