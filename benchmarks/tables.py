"""What was measured, as Markdown: `python benchmarks/tables.py` writes its page, the plot and the README's table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bounds import figures
from install import install, python_of
from layout import cell, count, percent, plain, seconds, size, table, times
from results import (
    RESULTS,
    Results,
    Value,
    again,
    closing,
    cpu_share,
    journal_share,
    labels,
    measured_peers,
    median,
    mutex_time,
    opened_steps,
    opening,
    over_optimum,
    per_step,
    ratio,
    runs_of,
    value_of,
    written_per_step,
    written_share,
)
from suite import OURS

HERE = Path(__file__).parent


def write(results: Results) -> None:
    """Draw the plot, and put the tables where they belong."""
    put(HERE / "README.md", "tables", f"{page(results)}\n### The figures to reach\n\n{figures(results)}")
    put(HERE.parent / "README.md", "figures", short_table(results))
    try:
        install("plot")
        subprocess.run([str(python_of("plot")), str(HERE / "plot.py")], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no plot: {error}", file=sys.stderr)


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; nothing when they are not there."""
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    path.write_text(marked.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", path.read_text()))


def page(results: Results) -> str:
    """All tables of what was measured."""
    one_case = ("chain", "1,000")
    in_and_out = {"opened": opening, "left": closing, "opened again": again(opening), "left again": again(closing)}
    sections = {
        "The machine, and the versions": machine_table(results),
        "The peers, and what they sync": peers_table(results),
        "A chain: one step, by the number of steps": grid(results, "chain", per_step),
        "The same resumed: one recorded step": grid(results, "chain", again(per_step)),
        "The same of 1,000: getting in and out": columns(results, one_case, in_and_out, seconds),
        "The same: memory at the peak": grid(results, "chain", lambda report: report.get("peak"), size),
        "The same: bytes that the process wrote, a step": grid(results, "chain", written_per_step, size),
        "Fan-out: one item": grid(results, "fan-out", per_step),
        "Fan-out: items a second": grid(results, "fan-out", lambda report: 1 / per_step(report), count),
        "Four processes on one workflow: one step": grid(results, "four processes", per_step),
        "A mutex: taken and left; from one's release to the other's having it": grid(results, "mutex", mutex_time),
        "CPU of a process that waits for a mutex": grid(results, "waiting", cpu_share, percent),
        "Keyed fan-out, over its optimum": grid(results, "keyed fan-out", over_optimum, times),
        "Large results: one step": grid(results, "large results", per_step),
        "The same read back": grid(results, "large results", again(per_step)),
        f"A record of {opened_steps(results):,} steps": opening_table(results),
        "Bytes written over the bytes of results and names": bytes_table(results),
        "Import, over a bare interpreter": import_table(results),
    }
    return "\n".join(f"### {title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def short_table(results: Results) -> str:
    """Five rows for a reader who decides in a minute."""
    opened = f"{opened_steps(results):,} recorded steps, opened and all returned"
    rows: list[tuple[str, str, str, Value]] = [
        ("one durable step after another, of 1,000", "chain", "1,000", per_step),
        ("one step of a fan-out over 8 workers", "fan-out", "8 workers, empty", per_step),
        ("one step, four processes on one workflow", "four processes", "4 x 250 steps", per_step),
        ("one recorded result returned, of 1,000", "chain", "1,000", again(per_step)),
        (opened, "opening", "after a clean end", lambda report: report["opening"] + report["seconds"]),
    ]
    peers = [OURS, "DBOS on SQLite", "npm package"]
    lines = [("", *peers)]
    lines += [
        (what, *(compared(results, workload, label, peer, of, seconds) or "not measured" for peer in peers))
        for what, workload, label, of in rows
    ]
    return table(lines)


def machine_table(results: Results) -> str:
    moments = sorted(run["at"] for run in results["runs"])
    lines = [("", ""), ("measured", f"{moments[0]} to {moments[-1]}")]
    lines += list(results["machine"].items())
    lines += [(name, version) for name, version in results["versions"].items()]
    return table(lines)


def peers_table(results: Results) -> str:
    lines = [("peer", "what it does about a result", "syncs in a step, counted by the kernel")]
    for peer in measured_peers(results):
        counted = results["syncs"].get(peer.name, {})
        lines.append((peer.name, peer.keeps, counted.get("cannot") or cell(counted.get("syncs"), plain)))
    return table(lines)


def opening_table(results: Results) -> str:
    parts: dict[str, tuple[Value, Callable[[float], str]]] = {
        "opened": (opening, seconds),
        "all resumed": (lambda report: report["seconds"], seconds),
        "left (the fold)": (closing, seconds),
        "peak memory": (lambda report: report["peak"], size),
        "with the fold": (lambda report: report["peak_closed"], size),
        "looked at without a lock": (lambda report: report["read"]["seconds"], seconds),
        "its peak": (lambda report: report["read"]["peak"], size),
    }
    lines = [("", *parts)]
    lines += [
        (label, *(cell(value_of(results, "opening", label, OURS, of), shown) for of, shown in parts.values()))
        for label in labels(results, "opening")
    ]
    return table(lines)


def bytes_table(results: Results) -> str:
    lines = [("steps", "journal alone", "all with folds")]
    for label in labels(results, "bytes"):
        parts = (value_of(results, "bytes", label, OURS, of) for of in (journal_share, written_share))
        lines.append((label, *(cell(part, times) for part in parts)))
    return table(lines)


def import_table(results: Results) -> str:
    lines = [("module", "time")]
    for peer in measured_peers(results):
        for module in (peer.imports, "cattrs" if peer.name == OURS else None):
            value = value_of(results, "import", "module", peer.name, lambda report, m=module: report.get(m))  # type: ignore[misc]
            if module is not None and value is not None:
                lines.append((f"`{module}`", seconds(value)))
    return table(lines)


def grid(
    results: Results,
    workload: str,
    of: Value,
    shown: Callable[[float], str] | None = None,
) -> str:
    """A line a peer, a column a case: the median, and that of the ratios to ours within the rounds."""
    wanted = labels(results, workload)
    lines = [("", *wanted)]
    for peer in measured_peers(results):
        cells = [grid_cell(results, workload, label, peer.name, of, shown or seconds) for label in wanted]
        if any(text[:1].isdigit() for text in cells):
            lines.append((peer.name, *cells))
    return table(lines)


def grid_cell(results: Results, workload: str, label: str, peer: str, of: Value, shown: Callable[[float], str]) -> str:
    found = runs_of(results, workload, label, peer)
    text = compared(results, workload, label, peer, of, shown)
    if not text:
        return next((f"({run['report']['cannot']})" for run in found if "cannot" in run["report"]), "")
    done = median(run["report"].get("done") for run in found if "done" in run["report"])
    asked = found[0]["asked"]
    if done is not None and asked is not None and done < asked:
        text += f", {done:,.0f} done"
    return text


def compared(results: Results, workload: str, label: str, peer: str, of: Value, shown: Callable[[float], str]) -> str:
    """A value, and how many times ours it is; nothing where it was not measured."""
    value = value_of(results, workload, label, peer, of)
    if value is None:
        return ""
    times_ours = None if peer == OURS else ratio(results, workload, label, peer, of)
    return shown(value) if times_ours is None else f"{shown(value)} ({times(times_ours)})"


def columns(results: Results, case: tuple[str, str], parts: dict[str, Value], shown: Callable[[float], str]) -> str:
    lines = [("", *parts)]
    for peer in measured_peers(results):
        values = [value_of(results, *case, peer.name, of) for of in parts.values()]
        if any(value is not None for value in values):
            lines.append((peer.name, *(cell(value, shown) for value in values)))
    return table(lines)


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text()))
