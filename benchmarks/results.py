"""What was measured: keeping it, and asking for medians and for ratios within the rounds."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import postgres
from install import ENVIRONMENTS
from suite import OPENED, OURS, PEERS, Peer

RESULTS = Path(__file__).parent / "results.json"

Report = dict[str, Any]
Results = dict[str, Any]
Value = Callable[[Report], float | None]


def keep(results: Results) -> Results:
    """Save them, in place of earlier ones of the same workloads; all that is saved now."""
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": [], "syncs": {}, "versions": {}}
    again = {run["workload"] for run in results["runs"]}
    kept = {
        **results,
        "runs": [run for run in old["runs"] if run["workload"] not in again] + results["runs"],
        "syncs": results["syncs"] or old["syncs"],
        "versions": old["versions"] | results["versions"],
    }
    head = {name: part for name, part in kept.items() if name not in ("runs", "failures")}
    lines = ",\n".join(json.dumps(shortened(run)) for run in kept["runs"])
    RESULTS.write_text(f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n')
    return kept


def shortened(part: Any) -> Any:
    """The same with six digits: no clock tells more."""
    if isinstance(part, dict):
        return {name: shortened(value) for name, value in part.items()}
    if isinstance(part, list):
        return [shortened(value) for value in part]
    return float(f"{part:.6g}") if isinstance(part, float) else part


def per_step(report: Report) -> float:
    return report["seconds"] / max(report["done"], 1)


def mutex_time(report: Report) -> float:
    return per_step(report) if "done" in report else report["seconds"]


def cpu_share(report: Report) -> float:
    return 100 * report["cpu"]


def opening(report: Report) -> float | None:
    return report.get("opening")


def closing(report: Report) -> float | None:
    return report.get("closing")


def written_per_step(report: Report) -> float | None:
    return report["bytes"] / max(report["done"], 1) or None  # none: all through a server


def over_optimum(report: Report) -> float:
    return report["seconds"] / report["optimum"]


def journal_share(report: Report) -> float:
    return report["journal"] / report["useful"]


def written_share(report: Report) -> float:
    return report["written"] / report["useful"]


def again(of: Value) -> Value:
    """The same of the resumed run."""
    return lambda report: of(report["again"])


def runs_of(results: Results, workload: str, label: str | None, peer: str) -> list[dict[str, Any]]:
    return [
        run
        for run in results["runs"]
        if run["workload"] == workload and run["peer"] == peer and label in (None, run["label"])
    ]


def reports(results: Results, workload: str, label: str | None, peer: str) -> list[Report]:
    found = runs_of(results, workload, label, peer)
    return [run["report"] for run in found if "cannot" not in run["report"]]


def value_of(results: Results, workload: str, label: str, peer: str, of: Value) -> float | None:
    return median(of(report) for report in reports(results, workload, label, peer))


def ratio(results: Results, workload: str, label: str, peer: str, of: Value) -> float | None:
    """How often ours goes into a peer's, at the median of the rounds in which both ran."""
    ours = {run["round"]: run["report"] for run in runs_of(results, workload, label, OURS)}
    both = [
        (of(run["report"]), of(ours[run["round"]]))
        for run in runs_of(results, workload, label, peer)
        if "cannot" not in run["report"] and "cannot" not in ours.get(run["round"], {"cannot": ""})
    ]
    return median(theirs / mine for theirs, mine in both if theirs is not None and mine)


def labels(results: Results, workload: str) -> list[str]:
    return list(dict.fromkeys(run["label"] for run in results["runs"] if run["workload"] == workload))


def measured_peers(results: Results) -> list[Peer]:
    there = {run["peer"] for run in results["runs"]}
    return [peer for peer in PEERS if peer.name in there]


def opened_steps(results: Results) -> int:
    return next((run["asked"] for run in runs_of(results, "opening", None, OURS)), OPENED)


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def machine() -> dict[str, str]:
    """What is known of it."""
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
    }


def versions(peers: Sequence[Peer]) -> dict[str, str]:
    """What stands in the peers' environments."""
    found = {"iso-orchestrator": metadata.version("iso-orchestrator")}
    for name in dict.fromkeys(peer.environment for peer in peers if peer.environment):
        found |= json.loads((ENVIRONMENTS / name / "installed.json").read_text())
    if any(peer.postgres for peer in peers) and (programs := postgres.binaries()) is not None:
        found["PostgreSQL"] = postgres.call(programs / "postgres", "--version").split()[2]
    return found
