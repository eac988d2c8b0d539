"""Measure every workload for every peer that is installed, by turns: `python benchmarks/run.py`.

Prints the tables, keeps the results in `benchmarks/results.json`, and writes the tables and the plot to
`benchmarks/README.md` and the short table to `README.md`. With `--only`, one workload is measured and replaced. With
`--peers`, `--quick` or `--against`, nothing is written. `python benchmarks/install.py` installs the peers. The files
of the runs are in a new folder of `benchmarks/.runs`, or of the folder that BENCH_DIR names.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import postgres
import tables
from bounds import figures
from measure import Bench, count_syncs, measure
from results import Report, Results, Run, cells_of, keep, machine, versions
from suite import BEFORE, OURS, PEERS, Case, Peer, cases, compared

ROUNDS = 3
ROUNDS_AGAINST = 9
SLOW = 6.0  # seconds of one run: such a peer takes part in one round


def main() -> int:
    workloads = list(dict.fromkeys(case.workload for case in cases(quick=False)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small runs of this library alone, within a minute")
    parser.add_argument("--only", choices=workloads, metavar="WORKLOAD", help=f"one of {', '.join(workloads)}")
    parser.add_argument("--peers", metavar="A,B", help=f"of {', '.join(peer.name for peer in PEERS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"{ROUNDS}; {ROUNDS_AGAINST} with --against")
    parser.add_argument(
        "--against", type=Path, metavar="PATH", help="compare with the version of this library in another checkout"
    )
    given = parser.parse_args()
    names = [name.strip() for name in given.peers.split(",")] if given.peers else [peer.name for peer in PEERS]
    if given.quick and not given.peers:
        names = [OURS]
    if unknown := set(names) - {peer.name for peer in PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    rounds = given.rounds or (1 if given.quick else ROUNDS_AGAINST if given.against else ROUNDS)
    chosen = [
        case for case in (compared if given.against else cases)(given.quick) if given.only in (None, case.workload)
    ]
    if given.against:
        return compare(given.against.resolve(), chosen, rounds)
    is_kept = not given.quick and not given.peers
    with bench([peer for peer in PEERS if peer.name in names]) as (place, peers):
        results = run(place, peers, chosen, rounds, keep if is_kept else lambda results: results)
    if is_kept:
        tables.write(results)
    print(tables.page(results))
    print(figures(results))
    return exit_code(results["failures"])


def compare(checkout: Path, chosen: Sequence[Case], rounds: int) -> int:
    """Measure two versions of this library by turns, each in new processes, and print a table."""
    ours = PEERS[0]
    before = dataclasses.replace(ours, name=BEFORE, checkout=str(checkout))
    failures: list[str] = []
    with bench([before, ours]) as (place, peers):
        for peer in peers:
            print(f"{peer.name}: {place.package(peer)}")
        if checkout not in place.package(before).parents:
            failures.append(f"{checkout} has no iso_orchestrator: give the folder of a checkout")
            return exit_code(failures)
        runs = [list(one_case(place, peers, case, rounds, failures, slow=math.inf)) for case in chosen]
    print(f"\n{tables.comparison(runs)}")
    return exit_code(failures)


def exit_code(failures: Sequence[str]) -> int:
    """Print the failures; 1 if there are any."""
    print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def bench(wanted: Sequence[Peer]) -> Iterator[tuple[Bench, list[Peer]]]:
    """A new folder, the peers that are installed, and a PostgreSQL server if one of them needs it."""
    root = Path(os.environ.get("BENCH_DIR") or Path(__file__).parent / ".runs")
    root.mkdir(parents=True, exist_ok=True)
    (root / ".gitignore").write_text("*\n")
    place = Path(tempfile.mkdtemp(dir=root))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        server = None
        if any(peer.postgres for peer in wanted) and postgres.binaries() is not None:
            place.chmod(0o711)  # for the server's user, whose folder is in it
            server = stack.enter_context(postgres.cluster(place / "postgres"))
        made = Bench(place, server)
        yield made, [peer for peer in wanted if made.is_there(peer)]


def run(
    place: Bench, peers: Sequence[Peer], chosen: Sequence[Case], rounds: int, kept: Callable[[Results], Results]
) -> Results:
    """Measure all chosen cases, and keep the results after each."""
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
            peer.name: attempt(results["failures"], f"syncs of {peer.name}", lambda p=peer: count_syncs(place, p))
            for peer in peers
        }
    whole = results
    for case in chosen:
        runs = list(one_case(place, peers, case, rounds, results["failures"]))
        if not runs:
            continue
        began = results["measured"].get(case.workload, [runs[0]["at"]])[0]
        results["measured"][case.workload] = [began, runs[-1]["at"]]
        results["cells"] += cells_of(runs)
        whole = kept(results)
    return whole


def one_case(
    place: Bench, peers: Sequence[Peer], case: Case, rounds: int, failures: list[str], slow: float = SLOW
) -> Iterator[Run]:
    """Measure a case in rounds, each begun by another peer. A peer that takes longer than *slow* seconds has one."""
    able = [peer for peer in peers if not case.peers or peer.name in case.peers]
    took: dict[str, float] = defaultdict(float)
    for number in range(min(rounds, case.rounds)):
        for peer in rotated(able, number):
            if took[peer.name] > slow:
                continue
            started = datetime.now(UTC)
            what = f"{case.workload}, {case.label}, {peer.name}"
            report = attempt(failures, what, lambda p=peer: measure(place, p, case))
            took[peer.name] = (datetime.now(UTC) - started).total_seconds()
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


def attempt(failures: list[str], what: str, work: Callable[[], Report]) -> Report:
    """Do the work, and note a failure instead of raising it: the other peers go on."""
    try:
        return work()
    except Exception as error:
        failures.append(f"{what}: {type(error).__name__}: {error}")
        return {"cannot": "it failed"}


def rotated(peers: Sequence[Peer], by: int) -> list[Peer]:
    by %= max(len(peers), 1)
    return [*peers[by:], *peers[:by]]


def tell(what: str, report: Report) -> None:
    outcome = report.get("cannot") or f"{report.get('seconds', 0.0):.4f} s, {report.get('done', '-')} done"
    print(f"{what}: {outcome}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
