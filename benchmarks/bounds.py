"""The figures to reach: what was measured, what was wanted, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from layout import percent, plain, seconds, size, table, times
from results import (
    Results,
    again,
    cpu_share,
    journal_share,
    labels,
    median,
    most,
    mutex_time,
    opened_steps,
    over_optimum,
    per_step,
    ratio,
    reports,
    value_of,
    written_share,
)
from suite import CHAIN, OURS, shapes


def figures(results: Results) -> str:
    """The figures to reach, with what was measured."""
    lines = [("what", "measured", "wanted", "")]
    lines += [(row.what, row.measured, row.wanted, row.verdict) for row in rows(results)]
    return table(lines)


@dataclass(frozen=True)
class Row:
    """One figure: what it is of, the median, how it is written, and its bound."""

    what: str
    value: float | None
    shown: Callable[[float], str]
    bound: float | None = None
    at_least: bool = False
    more: str = ""

    @property
    def measured(self) -> str:
        return "not measured" if self.value is None else self.shown(self.value) + self.more

    @property
    def wanted(self) -> str:
        if self.bound is None:
            return ""
        return f"{'at least' if self.at_least else 'at most'} {self.shown(self.bound)}"

    @property
    def verdict(self) -> str:
        if self.value is None or self.bound is None:
            return ""
        return "met" if (self.value >= self.bound if self.at_least else self.value <= self.bound) else "missed"


def rows(results: Results) -> Iterator[Row]:
    """Every figure of the list, in its order."""
    blocks = [block for report in reports(results, "single sync", None, OURS) for block in report["blocks"]]
    yield Row("one appended `write` + `fdatasync` of 400 bytes", median(b["raw"] for b in blocks), seconds)
    yield Row(
        "one sequential durable step, over that write, in blocks by turns",
        median(block["step"] / block["raw"] for block in blocks),
        times,
        1.2,
    )
    yield Row("syncs in a step", results["syncs"].get(OURS, {}).get("syncs"), plain)
    chains = labels(results, "chain") or [f"{CHAIN[-1]:,}"]
    steps = int(chains[-1].replace(",", ""))
    yield Row(
        f"steps {steps // 2 + 1:,} to {steps:,}, folds included, over steps 1 to {steps // 2:,}",
        median(r["seconds"] / r["first_half"] - 1 for r in reports(results, "chain", chains[-1], OURS)),
        times,
        1.1,
    )
    yield Row(
        "fan-out over 8 workers, per step, over that same single sync",
        median(block["fanned"] / block["raw"] for block in blocks),
        times,
        0.6,
    )
    yield Row("recorded result returned", value_of(results, "chain", chains[-1], OURS, again(per_step)), seconds, 10e-6)
    yield from opening_rows(results)
    yield over("npm package's step, at 1,000 steps, over ours", results, "npm package", "chain", "1,000", 60)
    yield over("DBOS on SQLite, a step at 1,000 steps, over ours", results, "DBOS on SQLite", "chain", "1,000", 10)
    eight = "8 workers, empty"
    yield over(
        "fan-out over 8 workers, items a second, over DBOS on SQLite", results, "DBOS on SQLite", "fan-out", eight, 40
    )
    yield over("the same, over diskcache, which does not sync", results, "diskcache", "fan-out", eight, 2)
    yield Row(
        "mutex uncontended, its two events included",
        value_of(results, "mutex", "uncontended", OURS, per_step),
        seconds,
        50e-6,
    )
    for between, bound in (("threads", 0.1e-3), ("processes", 1e-3)):
        for held in [label for label in labels(results, "mutex") if f"between {between}" in label]:
            yield Row(
                f"mutex handed over {held}, at the median",
                value_of(results, "mutex", held, OURS, mutex_time),
                seconds,
                bound,
            )
    waits = value_of(results, "waiting", "held 3 s", OURS, cpu_share)
    yield Row("CPU of a process that waits for a mutex", waits, percent, 2)
    keyed = [
        value_of(results, "keyed fan-out", label, OURS, over_optimum) for label in labels(results, "keyed fan-out")
    ]
    yield Row(f"keyed fan-out over its optimum, the worst of {len(shapes())} shapes", most(keyed), times, 1.05)
    yield from bytes_rows(results)
    yield Row(
        "`import iso_orchestrator` over `import cattrs`",
        value_of(results, "import", "module", OURS, lambda report: report["iso_orchestrator"] / report["cattrs"]),
        times,
        1.25,
    )


def opening_rows(results: Results) -> Iterator[Row]:
    clean = reports(results, "opening", "after a clean end", OURS)
    projection = median(report["closing"] for report in clean)
    yield Row(
        f"{opened_steps(results):,} completed steps opened and resumed",
        median(report["opening"] + report["seconds"] for report in clean),
        seconds,
        2.5,
        more="" if projection is None else f"; the fold {seconds(projection)}",
    )
    yield Row("its memory at the peak", median(report["peak"] for report in clean), size, 600e6)


def bytes_rows(results: Results) -> Iterator[Row]:
    weighed = labels(results, "bytes")
    journal = most(value_of(results, "bytes", label, OURS, journal_share) for label in weighed)
    yield Row("bytes written over bytes of result and name: the journal, at the most", journal, times, 2.5)
    for kind, bound in (("200 B", 6.0), ("2,000 B", 3.0)):
        sized = [label for label in weighed if label.endswith(f"of {kind}")]
        worst = most(value_of(results, "bytes", label, OURS, written_share) for label in sized)
        yield Row(f"all with folds, at {kind}, at the most", worst, times, bound)


def over(what: str, results: Results, peer: str, workload: str, label: str, bound: float) -> Row:
    return Row(what, ratio(results, workload, label, peer, per_step), times, bound, at_least=True)
