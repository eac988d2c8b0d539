"""The tables and the plot, from the kept results: `python benchmarks/tables.py` writes them to both pages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bounds import figures
from install import install, python_of
from layout import cell, percent, plain, seconds, size, table, times
from results import (
    MEASURES,
    RESULTS,
    Results,
    Run,
    cell_in,
    labels,
    measured_peers,
    median,
    opened_steps,
    ratio,
    ratios,
    samples_of,
    value_of,
)
from suite import BEFORE, OURS

HERE = Path(__file__).parent

COMPARED: dict[str, dict[str, Callable[[float], str]]] = {
    "chain": {"step": seconds, "resumed": seconds, "opened": seconds, "closed": seconds, "written": size},
    "single sync": {"step over write": times, "item over write": times},
    "fan-out": {"step": seconds},
    "mutex": {"step": seconds},
    "command": {"extra": seconds},
    "import": {"package": seconds},
    "opening": {"opened and resumed": seconds, "closed": seconds, "memory": size},
}


def write(results: Results) -> None:
    """Write the tables to both pages, and draw the plot."""
    put(HERE / "README.md", "tables", f"{page(results)}\n### The figures to reach\n\n{figures(results)}")
    put(HERE.parent / "README.md", "figures", short_table(results))
    try:
        install("plot")
        subprocess.run([str(python_of("plot")), str(HERE / "plot.py")], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no plot: {error}", file=sys.stderr)


def put(path: Path, name: str, text: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->`."""
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    path.write_text(marked.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", path.read_text()))


def page(results: Results) -> str:
    """All tables except the figures to reach."""
    sections = {
        "The machine, and the versions": machine_table(results),
        "The peers, and what they sync": peers_table(results),
        "A chain: one step, by the number of steps": grid(results, "chain", "step"),
        "The same resumed: one recorded step": grid(results, "chain", "resumed"),
        "The same of 1,000: opening and closing": opening_and_closing(results),
        "The same: peak memory": grid(results, "chain", "memory", size),
        "The same: bytes written by the process, a step": grid(results, "chain", "written", size),
        "Fan-out: one item": grid(results, "fan-out", "step"),
        "Four processes on one workflow: one step": grid(results, "four processes", "step"),
        "A mutex: acquired and released; or the time from one's release to the other's acquisition": grid(
            results, "mutex", "step"
        ),
        "CPU of a process that waits for a mutex": grid(results, "waiting", "cpu", percent),
        "Keyed fan-out, over its optimum": grid(results, "keyed fan-out", "over optimum", times),
        "Large results: one step": grid(results, "large results", "step"),
        "The same read back": grid(results, "large results", "resumed"),
        f"A record of {opened_steps(results):,} steps": opening_table(results),
        "Bytes written over the bytes of results and names": bytes_table(results),
        "Import, over a bare interpreter": import_table(results),
    }
    return "\n".join(f"### {title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def short_table(results: Results) -> str:
    """Five rows for a reader who decides in a minute."""
    opened = f"{opened_steps(results):,} recorded steps, opened and all returned"
    rows: list[tuple[str, str, str, str]] = [
        ("one durable step after another, of 1,000", "chain", "1,000", "step"),
        ("one step of a fan-out over 8 workers", "fan-out", "8 workers, empty", "step"),
        ("one step, four processes on one workflow", "four processes", "4 x 250 steps", "step"),
        ("one recorded result returned, of 1,000", "chain", "1,000", "resumed"),
        (opened, "opening", "after a clean end", "opened and resumed"),
    ]
    names = [OURS, "durastep", "mundane-sdk", "DBOS on SQLite", "diskcache", "npm package"]
    peers = [name for name in names if name in {peer.name for peer in measured_peers(results)}]
    lines = [("", *peers)]
    lines += [
        (what, *(compared(results, workload, label, peer, measure, seconds) or "not measured" for peer in peers))
        for what, workload, label, measure in rows
    ]
    return table(lines)


def comparison(cases: Iterable[Sequence[Run]]) -> str:
    """Two versions of this library: a line for each measure of each case."""
    lines = [("workload", "before", "now", "ratio", "lowest to highest, by round")]
    for runs in cases:
        workload, label = runs[0]["workload"], runs[0]["label"]
        for name, show in COMPARED[workload].items():
            measure = MEASURES[workload][name]
            before, now = (cell(median(samples_of(runs, peer, measure)), show) for peer in (BEFORE, OURS))
            found = ratios(runs, OURS, BEFORE, measure)
            spread = f"{times(min(found))} to {times(max(found))}" if found else ""
            lines.append((f"{workload}, {label}: {name}", before, now, cell(median(found), times), spread))
    return table(lines)


def machine_table(results: Results) -> str:
    moments = sorted(moment for both in results["measured"].values() for moment in both)
    lines = [("", ""), ("measured", f"{moments[0]} to {moments[-1]}")]
    lines += list(results["machine"].items())
    lines += list(results["versions"].items())
    return table(lines)


def peers_table(results: Results) -> str:
    lines = [("peer", "what it does about a result", "syncs in a step, counted by the kernel")]
    for peer in measured_peers(results):
        counted = results["syncs"].get(peer.name, {})
        lines.append((peer.name, peer.keeps, counted.get("cannot") or cell(counted.get("syncs"), plain)))
    return table(lines)


def opening_and_closing(results: Results) -> str:
    measures = ("opened", "closed", "opened again", "closed again")
    lines = [("", *measures)]
    for peer in measured_peers(results):
        values = [value_of(results, "chain", "1,000", peer.name, measure) for measure in measures]
        if any(value is not None for value in values):
            lines.append((peer.name, *(cell(value, seconds) for value in values)))
    return table(lines)


def opening_table(results: Results) -> str:
    parts: dict[str, tuple[str, Callable[[float], str]]] = {
        "opened": ("opened", seconds),
        "all resumed": ("resumed", seconds),
        "closed (a checkpoint)": ("closed", seconds),
        "peak memory": ("memory", size),
        "when closed": ("memory when closed", size),
        "read without a lock": ("read", seconds),
        "its peak": ("memory of the reader", size),
    }
    lines = [("", *parts)]
    lines += [
        (label, *(cell(value_of(results, "opening", label, OURS, measure), show) for measure, show in parts.values()))
        for label in labels(results, "opening")
    ]
    return table(lines)


def bytes_table(results: Results) -> str:
    lines = [("steps", "journal alone", "all files")]
    for label in labels(results, "bytes"):
        parts = (value_of(results, "bytes", label, OURS, measure) for measure in ("journal", "all files"))
        lines.append((label, *(cell(part, times) for part in parts)))
    return table(lines)


def import_table(results: Results) -> str:
    lines = [("module", "time")]
    for peer in measured_peers(results):
        for module, measure in ((peer.imports, "package"), ("cattrs", "cattrs")):
            value = value_of(results, "import", "module", peer.name, measure)
            if value is not None:
                lines.append((f"`{module}`", seconds(value)))
    return table(lines)


def grid(results: Results, workload: str, measure: str, show: Callable[[float], str] = seconds) -> str:
    """A line for each peer, a column for each case."""
    wanted = labels(results, workload)
    lines = [("", *wanted)]
    for peer in measured_peers(results):
        cells = [grid_cell(results, workload, label, peer.name, measure, show) for label in wanted]
        if any(text[:1].isdigit() for text in cells):
            lines.append((peer.name, *cells))
    return table(lines)


def grid_cell(
    results: Results, workload: str, label: str, peer: str, measure: str, show: Callable[[float], str]
) -> str:
    found = cell_in(results, workload, label, peer)
    text = compared(results, workload, label, peer, measure, show)
    if not text:
        return f"({found['cannot']})" if "cannot" in found else ""
    done, asked = found["done"], found["asked"]
    return text if None in (done, asked) or done >= asked else f"{text}, {done:,.0f} done"


def compared(results: Results, workload: str, label: str, peer: str, measure: str, show: Callable[[float], str]) -> str:
    """A median with its ratio to this library; nothing where it was not measured."""
    value = value_of(results, workload, label, peer, measure)
    if value is None:
        return ""
    times_ours = None if peer == OURS else ratio(results, workload, label, peer, measure)
    return show(value) if times_ours is None else f"{show(value)} ({times(times_ours)})"


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text()))
