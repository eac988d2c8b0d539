"""The figures to reach: the measured value, the wanted bound, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from layout import percent, plain, seconds, size, table, times
from results import Results, labels, opened_steps, ratio, values_of
from suite import CHAIN, OURS


def figures(results: Results) -> str:
    """A table of all figures."""
    lines = [("what", "measured", "lowest to highest", "wanted", "")]
    lines += [(row.what, row.measured, row.spread, row.wanted, row.verdict) for row in rows(results)]
    return table(lines)


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: Its name.
        values: The median, the lowest and the highest; the median alone, or nothing, if no more is known.
        show: Writes a value.
        bound: The wanted value.
        at_least: Whether the bound is a lowest one.
    """

    what: str
    values: Sequence[float]
    show: Callable[[float], str]
    bound: float | None = None
    at_least: bool = False

    @property
    def measured(self) -> str:
        return self.show(self.values[0]) if self.values else "not measured"

    @property
    def spread(self) -> str:
        lowest, highest = self.values[1:3] or (0, 0)
        return f"{self.show(lowest)} to {self.show(highest)}" if lowest < highest else ""

    @property
    def wanted(self) -> str:
        return "" if self.bound is None else f"{'at least' if self.at_least else 'at most'} {self.show(self.bound)}"

    @property
    def verdict(self) -> str:
        if not self.values or self.bound is None:
            return ""
        is_met = self.values[0] >= self.bound if self.at_least else self.values[0] <= self.bound
        return "met" if is_met else "missed"


def rows(results: Results) -> Iterator[Row]:
    """Every figure, in the order of the table."""

    def ours(workload: str, label: str, measure: str) -> Sequence[float]:
        return values_of(results, workload, label, OURS, measure)

    def worst(workload: str, measure: str, ending: str = "") -> Sequence[float]:
        found = [ours(workload, label, measure) for label in labels(results, workload) if label.endswith(ending)]
        return max(found, default=())

    def over_ours(peer: str, workload: str, label: str) -> Sequence[float]:
        value = ratio(results, workload, label, peer, "step")
        return () if value is None else (value,)

    blocks = ("single sync", "blocks in turn")
    longest = (labels(results, "chain") or [f"{CHAIN[-1]:,}"])[-1]
    steps = int(longest.replace(",", ""))
    halves = f"steps {steps // 2 + 1:,} to {steps:,}, checkpoints included, over steps 1 to {steps // 2:,}"
    clean = ("opening", "after a clean end")
    eight = "8 workers, empty"

    yield Row("one appended `write` + `fdatasync` of 400 bytes", ours(*blocks, "write"), seconds)
    yield Row("one sequential step, over that write, in blocks by turns", ours(*blocks, "step over write"), times, 1.2)
    counted = results["syncs"].get(OURS, {})
    yield Row("syncs in a step", [counted["syncs"]] if "syncs" in counted else (), plain)
    yield Row(halves, ours("chain", longest, "second half"), times, 1.1)
    yield Row("an item of a fan-out over 8 workers, over that write", ours(*blocks, "item over write"), times, 1.5)
    yield Row("a recorded result returned", ours("chain", longest, "resumed"), seconds, 10e-6)
    yield Row(f"{opened_steps(results):,} steps opened and resumed", ours(*clean, "opened and resumed"), seconds, 2.5)
    yield Row("the checkpoint at its end", ours(*clean, "closed"), seconds)
    yield Row("its memory at the peak", ours(*clean, "memory"), size, 600e6)
    for what, compared, bound in (
        ("npm package, a step of 1,000, over ours", over_ours("npm package", "chain", "1,000"), 60),
        ("DBOS on SQLite, a step of 1,000, over ours", over_ours("DBOS on SQLite", "chain", "1,000"), 10),
        ("DBOS on SQLite, an item over 8 workers, over ours", over_ours("DBOS on SQLite", "fan-out", eight), 40),
    ):
        yield Row(what, compared, times, bound, at_least=True)
    yield Row("mutex uncontended, its two events included", ours("mutex", "uncontended", "step"), seconds, 50e-6)
    for between, limit in (("threads", 0.1e-3), ("processes", 1e-3)):
        for held in [label for label in labels(results, "mutex") if f"between {between}" in label]:
            yield Row(f"mutex handed over {held}", ours("mutex", held, "step"), seconds, limit)
    yield Row("CPU of a process that waits for a mutex", ours("waiting", "held 3 s", "cpu"), percent, 2)
    keyed = f"keyed fan-out over its optimum, the worst of {len(labels(results, 'keyed fan-out'))} shapes"
    yield Row(keyed, worst("keyed fan-out", "over optimum"), times, 1.05)
    yield Row("bytes written over bytes of result and name: the journal", worst("bytes", "journal"), times, 2.5)
    yield Row("all files, at 200 B", worst("bytes", "all files", "of 200 B"), times, 6)
    yield Row("all files, at 2,000 B", worst("bytes", "all files", "of 2,000 B"), times, 3)
    yield Row("a command as a step, over `subprocess.run`", ours("command", "`true`", "extra"), seconds, 5e-3)
    yield Row("`import iso_orchestrator` over `import cattrs`", ours("import", "module", "over cattrs"), times, 1.25)
