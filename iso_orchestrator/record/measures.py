"""Where the attempts of a history are drawn, when nothing ran, and what all of it adds up to."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

import attrs

from iso_orchestrator.record.history import (
    AttemptSpan,
    Batch,
    Gap,
    Outcome,
    RunSpan,
    StepHistory,
    Totals,
    WaitFor,
    WaitSpan,
)

_SHORT = timedelta(seconds=2)  # the longest time without work that is no gap
_NO_PROCESS = "no process"

_Span: TypeAlias = tuple[datetime, datetime]


@attrs.define(eq=False)
class Bar:
    """An attempt that gets a place among the workers.

    Attributes:
        order: Settles which of two came first that began at one time.
        after: The attempt before it, if its thread did nothing else in between.
        inside: The attempt in which it ran.
        held_until: When its thread was free: after a back-off, or after the attempts that followed.
    """

    begun: datetime
    ended: datetime | None = attrs.field(default=None, kw_only=True)
    order: int = attrs.field(default=0, kw_only=True)
    after: Bar | None = attrs.field(default=None, kw_only=True)
    inside: Bar | None = attrs.field(default=None, kw_only=True)
    held_until: datetime = attrs.field(default=attrs.Factory(lambda bar: bar.begun, takes_self=True), kw_only=True)
    worker: int = attrs.field(default=0, kw_only=True)
    depth: int = attrs.field(default=0, kw_only=True)


def place(bars: Iterable[Bar], now: datetime) -> None:
    """Give each bar the smallest place that is free when it begins.

    Those that one thread made in a row stay in one place, and one that ran inside another lies in the place of that,
    unless one lies there already.
    """
    ordered = sorted(bars, key=lambda bar: (bar.begun, bar.order))
    for bar in reversed(ordered):
        bar.held_until = max(_end(bar, now), bar.held_until)
        if bar.after is not None and _follows(bar, bar.after):
            bar.after.held_until = bar.held_until
        else:
            bar.after = None
    lying: list[list[Bar]] = []  # by place: the bars there that go on, each inside the one before it
    free: list[int] = []
    taken: list[tuple[datetime, int]] = []
    for bar in ordered:
        if bar.after is not None:
            bar.worker, bar.depth = bar.after.worker, bar.after.depth
            lying[bar.worker][bar.depth :] = [bar]  # what ran inside the one before has ended
            continue
        while taken and taken[0][0] <= bar.begun:
            heapq.heappush(free, heapq.heappop(taken)[1])
        around = bar.inside
        if around is not None and around.begun <= bar.begun and bar.held_until <= _end(around, now):
            stack = lying[around.worker]
            while stack and stack[-1] is not around and stack[-1].held_until <= bar.begun:
                stack.pop()
            if stack and stack[-1] is around:
                bar.worker, bar.depth = around.worker, around.depth + 1
                stack.append(bar)
                continue
        if not free:
            heapq.heappush(free, len(lying))
            lying.append([])
        bar.worker = heapq.heappop(free)
        lying[bar.worker] = [bar]
        heapq.heappush(taken, (bar.held_until, bar.worker))


def _follows(bar: Bar, before: Bar) -> bool:
    """Whether the clocks agree that it does."""
    return (
        before.ended is not None and before.ended <= bar.begun and (before.begun, before.order) < (bar.begun, bar.order)
    )


def measure(
    runs: Sequence[RunSpan], steps: Sequence[StepHistory], batches: Sequence[Batch], now: datetime
) -> tuple[tuple[Gap, ...], Totals]:
    """Find the gaps of a history, and add it up. Nested attempts are part of the time of those around them."""
    attempts = [span for step in steps for span in step.attempts]
    waits = [span for step in steps for span in step.waits]
    ran, waited, had_run = _times(attempts, now), _times(waits, now), _times(runs, now)
    times = [*ran, *waited, *had_run]
    whole = [(min(begun for begun, _ in times), max(ended for _, ended in times))] if times else []
    working, with_run = _union(ran), _union(had_run)
    idle = list(_without(whole, working))
    absent = list(_without(idle, with_run))
    reason = _Reasons(waits, waited)
    gaps = [(span, _NO_PROCESS) for span in absent if span[1] - span[0] > _SHORT]
    gaps += [(span, reason(*span)) for span in _without(idle, absent) if span[1] - span[0] > _SHORT]

    work: dict[Outcome, timedelta] = dict.fromkeys(Outcome, timedelta())
    for span, (begun, ended) in zip(attempts, ran, strict=True):
        if span.depth == 0:
            work[span.outcome] += ended - begun
    waiting: dict[WaitFor, timedelta] = dict.fromkeys(WaitFor, timedelta())
    for wait, (begun, ended) in zip(waits, waited, strict=True):
        waiting[wait.kind] += ended - begun
    used = [(span.outcome, span.usage) for span in attempts if span.usage is not None]
    costs = [(outcome, usage.cost_usd) for outcome, usage in used if usage.cost_usd is not None]
    kept = _kept(runs, steps)
    all_work, there = _total(work.values()), _length(whole) - _length(absent)
    widths = [min(batch.max_parallel, batch.total or batch.max_parallel) for batch in batches if batch.max_parallel]
    totals = Totals(
        steps=Counter([step.outcome for step in steps if not step.is_reset]),
        attempts=Counter([span.outcome for span in attempts]),
        took=_length(whole).total_seconds(),
        away=_length(absent).total_seconds(),
        work=all_work.total_seconds(),
        counted=work[Outcome.COMPLETED].total_seconds(),
        failed=(work[Outcome.FAILED] + work[Outcome.RETRIED]).total_seconds(),
        lost=work[Outcome.INTERRUPTED].total_seconds(),
        waited={kind: time.total_seconds() for kind, time in waiting.items() if time},
        busy=all_work / there if there else 0.0,
        workers=max([1 + span.worker for span in attempts] + widths, default=0),
        cost=sum(cost for _, cost in costs) if costs else None,
        cost_failed=sum((cost for outcome, cost in costs if outcome is not Outcome.COMPLETED), 0.0),
        input_tokens=sum(usage.input_tokens or 0 for _, usage in used),
        output_tokens=sum(usage.output_tokens or 0 for _, usage in used),
        kept_steps=len(kept),
        kept_work=_kept_work(kept, now).total_seconds(),
        kept_cost=sum((usage.cost_usd or 0.0 for step in kept if (usage := step.attempts[-1].usage) is not None), 0.0),
        deaths=sum(run.has_died for run in runs),
    )
    return tuple(Gap(*span, reason, reason == _NO_PROCESS) for span, reason in sorted(gaps)), totals


def _kept(runs: Sequence[RunSpan], steps: Sequence[StepHistory]) -> list[StepHistory]:
    """The steps that completed before the last run began, so that they did not run in it."""
    if len(runs) < 2:
        return []
    last = runs[-1].begun
    completed = [step for step in steps if step.outcome is Outcome.COMPLETED and not step.is_reset]
    return [step for step in completed if step.ended is not None and step.ended <= last]


def _kept_work(kept: list[StepHistory], now: datetime) -> timedelta:
    """The time of the attempts that completed; of nested ones only where what was around them was not kept."""
    names = {step.name for step in kept}
    spans = [step.attempts[-1] for step in kept if step.attempts[-1].depth == 0 or step.parent not in names]
    return _length(_times(spans, now))


class _Reasons:
    """Says why nothing ran in a time; it is asked about later and later times."""

    def __init__(self, waits: Sequence[WaitSpan], times: Sequence[_Span]) -> None:
        found = [(*time, (wait.kind, wait.key)) for wait, time in zip(waits, times, strict=True)]
        self._coming = sorted(found, key=lambda wait: wait[0], reverse=True)
        self._going: list[tuple[datetime, int]] = []
        self._what: list[tuple[WaitFor, str | None]] = []
        self._counts: Counter[tuple[WaitFor, str | None]] = Counter()

    def __call__(self, begun: datetime, ended: datetime) -> str:
        while self._coming and self._coming[-1][0] < ended:
            _, end, what = self._coming.pop()
            self._counts[what] += 1
            heapq.heappush(self._going, (end, len(self._what)))
            self._what.append(what)
        while self._going and self._going[0][0] <= begun:
            self._counts[self._what[heapq.heappop(self._going)[1]]] -= 1
        found = self._counts.most_common(1)
        if not found or found[0][1] == 0:
            return "nothing ran"
        match found[0][0]:
            case WaitFor.LIMIT, key:
                return f"all waited for {key or 'a usage limit'}"
            case WaitFor.KEY, key:
                return f"all waited for the key {key}"
            case WaitFor.BACKOFF, _:
                return "all waited for their next attempts"
            case _:
                return "all waited for another process"


def _end(span: RunSpan | AttemptSpan | WaitSpan | Bar, now: datetime) -> datetime:
    return max(span.begun, now) if span.ended is None else span.ended


def _times(spans: Sequence[RunSpan] | Sequence[AttemptSpan] | Sequence[WaitSpan], now: datetime) -> list[_Span]:
    return [(span.begun, span.ended or max(span.begun, now)) for span in spans]


def _length(spans: Iterable[_Span]) -> timedelta:
    return _total(ended - begun for begun, ended in spans)


def _total(times: Iterable[timedelta]) -> timedelta:
    return sum(times, timedelta())


def _union(spans: Iterable[_Span]) -> list[_Span]:
    """What the spans cover, in order, without overlaps."""
    covered: list[_Span] = []
    for begun, ended in sorted(spans):
        if covered and begun <= covered[-1][1]:
            covered[-1] = covered[-1][0], max(covered[-1][1], ended)
        else:
            covered.append((begun, ended))
    return covered


def _without(spans: list[_Span], covered: list[_Span]) -> Iterator[_Span]:
    """The parts of *spans* that are not covered. Both are in order, without overlaps."""
    index = 0
    for begun, ended in spans:
        while index < len(covered) and covered[index][1] <= begun:
            index += 1
        at = index
        while at < len(covered) and covered[at][0] < ended:
            if covered[at][0] > begun:
                yield begun, covered[at][0]
            begun = max(begun, covered[at][1])
            at += 1
        index = max(index, at - 1)
        if begun < ended:
            yield begun, ended
