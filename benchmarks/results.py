"""What was measured: one cell for each case and peer, kept in `results.json`, and read by name."""

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

Report = dict[str, Any]  # what a program has answered
Run = dict[str, Any]  # a report, with its workload, label, peer and round
Cell = dict[str, Any]
Results = dict[str, Any]
Measure = Callable[[Report], float | None]


def part(name: str) -> Measure:
    return lambda report: report.get(name)


def again(measure: Measure) -> Measure:
    """The same measure of the resumed run."""
    return lambda report: measure(report["again"])


def per_step(report: Report) -> float:
    return report["seconds"] / max(report.get("done", 1), 1)


def over(one: str, other: str) -> Measure:
    return lambda report: report[one] / report[other] if report[other] else None


MEASURES: dict[str, dict[str, Measure]] = {
    "chain": {
        "step": per_step,
        "resumed": again(per_step),
        "opened": part("opening"),
        "closed": part("closing"),
        "opened again": again(part("opening")),
        "closed again": again(part("closing")),
        "memory": part("peak"),
        "written": lambda report: report["bytes"] / max(report["done"], 1) or None,  # 0: a server writes
        "second half": lambda report: report["seconds"] / report["first_half"] - 1 if report["first_half"] else None,
    },
    "single sync": {
        "write": part("raw"),
        "step over write": over("step", "raw"),
        "item over write": over("fanned", "raw"),
    },
    "fan-out": {"step": per_step},
    "four processes": {"step": per_step},
    "mutex": {"step": per_step},
    "waiting": {"cpu": lambda report: 100 * report["cpu"]},
    "keyed fan-out": {"over optimum": over("seconds", "optimum")},
    "large results": {"step": per_step, "resumed": again(per_step)},
    "bytes": {"journal": over("journal", "useful"), "all files": over("written", "useful")},
    "opening": {
        "opened": part("opening"),
        "resumed": part("seconds"),
        "opened and resumed": lambda report: report["opening"] + report["seconds"],
        "closed": part("closing"),
        "memory": part("peak"),
        "memory when closed": part("peak_closed"),
        "read": lambda report: report["read"].get("seconds"),
        "memory of the reader": lambda report: report["read"].get("peak"),
    },
    "command": {"extra": lambda block: block["step"] - block["plain"]},
    "import": {
        "package": part("package"),
        "cattrs": part("cattrs"),
        "over cattrs": lambda report: report["package"] / report["cattrs"] if "cattrs" in report else None,
    },
}


def cells_of(runs: Sequence[Run]) -> list[Cell]:
    """The cells of one case: one for each peer that took part."""
    return [cell_of(runs, peer) for peer in dict.fromkeys(run["peer"] for run in runs)]


def cell_of(runs: Sequence[Run], peer: str) -> Cell:
    """The values of a peer: for each measure the median, the lowest, the highest, and the ratio to this library."""
    cell = {name: runs[0][name] for name in ("workload", "label", "asked")} | {"peer": peer}
    found = reports(runs, peer)
    if not found:
        return cell | {"cannot": next(run["report"]["cannot"] for run in runs if run["peer"] == peer)}
    values = {}
    for name, measure in MEASURES[cell["workload"]].items():
        if samples := samples_of(runs, peer, measure):
            ratio = median(ratios(runs, peer, OURS, measure))
            values[name] = shortened([statistics.median(samples), min(samples), max(samples), ratio])
    return cell | {"done": median(report.get("done") for report in found.values()), "values": values}


def reports(runs: Sequence[Run], peer: str) -> dict[int, Report]:
    """By round, without those that the peer could not do."""
    return {run["round"]: run["report"] for run in runs if run["peer"] == peer and "cannot" not in run["report"]}


def samples_of(runs: Sequence[Run], peer: str, measure: Measure) -> list[float]:
    """The values of all rounds."""
    return [value for report in reports(runs, peer).values() for value in sampled(report, measure)]


def sampled(report: Report, measure: Measure) -> list[float]:
    """The values of one run: one, or one for each of its blocks."""
    values = [measure(each) for each in report.get("blocks", [report])]
    return [value for value in values if value is not None]


def ratios(runs: Sequence[Run], peer: str, base: str, measure: Measure) -> list[float]:
    """How many times the base's value a peer's is, in each round in which both took part."""
    bases = reports(runs, base)
    both = [
        (median(sampled(report, measure)), median(sampled(bases[number], measure)))
        for number, report in reports(runs, peer).items()
        if number in bases
    ]
    return [value / other for value, other in both if value is not None and other]


def keep(results: Results) -> Results:
    """Save results, in place of earlier ones of the same workloads.

    Returns:
        All results that are saved now.
    """
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"measured": {}, "versions": {}, "cells": []}
    kept = {
        "machine": results["machine"],
        "versions": old["versions"] | results["versions"],
        "measured": old["measured"] | results["measured"],
        "syncs": results["syncs"] or old.get("syncs", {}),
        "cells": [cell for cell in old["cells"] if cell["workload"] not in results["measured"]] + results["cells"],
    }
    head = {name: value for name, value in kept.items() if name != "cells"}
    lines = ",\n".join(json.dumps(cell) for cell in kept["cells"])
    RESULTS.write_text(f'{json.dumps(head)[:-1]}, "cells": [\n{lines}\n]}}\n')
    return kept | {"failures": results["failures"]}


def shortened(values: Iterable[float | None]) -> list[float | None]:
    """The values with six digits: the rest is noise."""
    return [None if value is None else float(f"{value:.6g}") for value in values]


def cell_in(results: Results, workload: str, label: str, peer: str) -> Cell:
    """One cell; an empty one where nothing was measured."""
    wanted = (workload, label, peer)
    found = (cell for cell in results["cells"] if (cell["workload"], cell["label"], cell["peer"]) == wanted)
    return next(found, {})


def values_of(results: Results, workload: str, label: str, peer: str, measure: str) -> list[float]:
    """The median of a measure, the lowest and the highest value; nothing where it was not measured."""
    return cell_in(results, workload, label, peer).get("values", {}).get(measure, [])[:3]


def value_of(results: Results, workload: str, label: str, peer: str, measure: str) -> float | None:
    """The median of a measure; None where it was not measured."""
    return next(iter(values_of(results, workload, label, peer, measure)), None)


def ratio(results: Results, workload: str, label: str, peer: str, measure: str) -> float | None:
    """How many times this library's value a peer's is: the median over the rounds."""
    values = cell_in(results, workload, label, peer).get("values", {})
    return values[measure][3] if measure in values else None


def labels(results: Results, workload: str) -> list[str]:
    return list(dict.fromkeys(cell["label"] for cell in results["cells"] if cell["workload"] == workload))


def measured_peers(results: Results) -> list[Peer]:
    there = {cell["peer"] for cell in results["cells"]}
    return [peer for peer in PEERS if peer.name in there]


def opened_steps(results: Results) -> int:
    return next((cell["asked"] for cell in results["cells"] if cell["workload"] == "opening"), OPENED)


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def machine() -> dict[str, str]:
    """The system, its cores and its Python."""
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
    }


def versions(peers: Sequence[Peer]) -> dict[str, str]:
    """The versions in the peers' environments."""
    found = {"iso-orchestrator": metadata.version("iso-orchestrator")}
    for name in dict.fromkeys(peer.environment for peer in peers if peer.environment):
        found |= json.loads((ENVIRONMENTS / name / "installed.json").read_text())
    if any(peer.postgres for peer in peers) and (programs := postgres.binaries()) is not None:
        found["PostgreSQL"] = postgres.call(programs / "postgres", "--version").split()[2]
    return found
