"""The figures to reach: what was measured, what was wanted, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from layout import percent, plain, seconds, size, table, times
from results import Results, labels, most, opened_steps, ratio, value_of
from suite import CHAIN, OURS


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
    """Every figure, in the order of the table."""

    def ours(workload: str, label: str, measure: str) -> float | None:
        return value_of(results, workload, label, OURS, measure)

    blocks = ("single sync", "blocks in turn")
    yield Row("one appended `write` + `fdatasync` of 400 bytes", ours(*blocks, "write"), seconds)
    yield Row(
        "one sequential durable step, over that write, in blocks by turns",
        ours(*blocks, "step over write"),
        times,
        1.2,
    )
    yield Row("syncs in a step", results["syncs"].get(OURS, {}).get("syncs"), plain)
    longest = (labels(results, "chain") or [f"{CHAIN[-1]:,}"])[-1]
    steps = int(longest.replace(",", ""))
    yield Row(
        f"steps {steps // 2 + 1:,} to {steps:,}, folds included, over steps 1 to {steps // 2:,}",
        ours("chain", longest, "second half"),
        times,
        1.1,
    )
    yield Row(
        "fan-out over 8 workers, per step, over that same single sync", ours(*blocks, "item over write"), times, 0.6
    )
    yield Row("recorded result returned", ours("chain", longest, "resumed"), seconds, 10e-6)
    clean = ("opening", "after a clean end")
    checkpoint = ours(*clean, "closed")
    yield Row(
        f"{opened_steps(results):,} completed steps opened and resumed",
        ours(*clean, "opened and resumed"),
        seconds,
        2.5,
        more="" if checkpoint is None else f"; the fold {seconds(checkpoint)}",
    )
    yield Row("its memory at the peak", ours(*clean, "memory"), size, 600e6)
    for what, peer, case, bound in (
        ("npm package's step, at 1,000 steps, over ours", "npm package", ("chain", "1,000"), 60),
        ("DBOS on SQLite, a step at 1,000 steps, over ours", "DBOS on SQLite", ("chain", "1,000"), 10),
        (
            "fan-out over 8 workers, items a second, over DBOS on SQLite",
            "DBOS on SQLite",
            ("fan-out", "8 workers, empty"),
            40,
        ),
        ("the same, over diskcache, which does not sync", "diskcache", ("fan-out", "8 workers, empty"), 2),
    ):
        yield Row(what, ratio(results, *case, peer, "step"), times, bound, at_least=True)
    yield Row("mutex uncontended, its two events included", ours("mutex", "uncontended", "step"), seconds, 50e-6)
    for between, bound in (("threads", 0.1e-3), ("processes", 1e-3)):
        for held in [label for label in labels(results, "mutex") if f"between {between}" in label]:
            yield Row(f"mutex handed over {held}, at the median", ours("mutex", held, "step"), seconds, bound)
    yield Row("CPU of a process that waits for a mutex", ours("waiting", "held 3 s", "cpu"), percent, 2)
    shapes = labels(results, "keyed fan-out")
    keyed = most(ours("keyed fan-out", label, "over optimum") for label in shapes)
    yield Row(f"keyed fan-out over its optimum, the worst of {len(shapes)} shapes", keyed, times, 1.05)
    weighed = labels(results, "bytes")
    journal = most(ours("bytes", label, "journal") for label in weighed)
    yield Row("bytes written over bytes of result and name: the journal, at the most", journal, times, 2.5)
    for kind, bound in (("200 B", 6.0), ("2,000 B", 3.0)):
        worst = most(ours("bytes", label, "all files") for label in weighed if label.endswith(f"of {kind}"))
        yield Row(f"all with folds, at {kind}, at the most", worst, times, bound)
    yield Row("`import iso_orchestrator` over `import cattrs`", ours("import", "module", "over cattrs"), times, 1.25)
