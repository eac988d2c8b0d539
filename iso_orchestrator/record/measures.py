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
_LOST = {Outcome.INTERRUPTED}
_FAILED = {Outcome.FAILED, Outcome.RETRIED}

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
    held_until: datetime | None = attrs.field(default=None, kw_only=True)
    worker: int = attrs.field(default=0, kw_only=True)
    depth: int = attrs.field(default=0, kw_only=True)


def place(bars: Iterable[Bar], now: datetime) -> None:
    """Give each bar the smallest place that is free when it begins.

    Those that one thread made in a row stay in one place, and one that ran inside another lies in the place of that,
    unless one lies there already.
    """
    ordered = sorted(bars, key=lambda bar: (bar.begun, bar.order))
    until: dict[int, datetime] = {}  # by id: when the place of a bar is free again
    for bar in reversed(ordered):
        until[id(bar)] = max(_end(bar, now), bar.held_until or bar.begun, until.get(id(bar), bar.begun))
        if bar.after is not None and not _follows(bar, bar.after):
            bar.after = None
        if bar.after is not None:
            until[id(bar.after)] = until[id(bar)]
    lying: list[list[Bar]] = []  # by place: the bars there that go on, each inside the one before it
    free: list[int] = []
    taken: list[tuple[datetime, int]] = []
    for bar in ordered:
        if bar.after is not None:
            bar.worker, bar.depth = bar.after.worker, bar.after.depth
            if lying[bar.worker] and lying[bar.worker][-1] is bar.after:
                lying[bar.worker][-1] = bar  # what runs inside lies in this attempt
            continue
        while taken and taken[0][0] <= bar.begun:
            heapq.heappush(free, heapq.heappop(taken)[1])
        around = bar.inside
        if around is not None and around.begun <= bar.begun and until[id(bar)] <= _end(around, now):
            stack = lying[around.worker]
            while stack and until[id(stack[-1])] <= bar.begun:
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
        heapq.heappush(taken, (until[id(bar)], bar.worker))


def _follows(bar: Bar, before: Bar) -> bool:
    """Whether the clocks agree that it does."""
    return (
        before.ended is not None and before.ended <= bar.begun and (before.begun, before.order) < (bar.begun, bar.order)
    )


def gaps_of(runs: Sequence[RunSpan], steps: Sequence[StepHistory], now: datetime) -> tuple[Gap, ...]:
    """The times of more than 2 seconds in which no attempt ran."""
    working = _union((span.begun, _end(span, now)) for span in _attempts(steps))
    present = _union((run.begun, _end(run, now)) for run in runs)
    whole = _whole(runs, steps, now)
    idle = list(_without(whole, working))
    absent = list(_without(idle, present))
    waiting = _without(idle, absent)
    parts = [*((span, True) for span in absent), *((span, False) for span in waiting)]
    found = sorted(part for part in parts if part[0][1] - part[0][0] > _SHORT)
    reason = _Reasons(steps, now)
    return tuple(
        Gap(begun, ended, "no process" if is_absent else reason(begun, ended), is_absent)
        for (begun, ended), is_absent in found
    )


def totals_of(runs: Sequence[RunSpan], steps: Sequence[StepHistory], batches: Sequence[Batch], now: datetime) -> Totals:
    """Add up a history. Nested attempts are part of the time of those around them, and not counted again."""
    whole = _whole(runs, steps, now)
    took = sum((ended - begun for begun, ended in whole), timedelta())
    attempts = list(_attempts(steps))
    present = _union([*((s.begun, _end(s, now)) for s in attempts), *((run.begun, _end(run, now)) for run in runs)])
    there = sum((ended - begun for begun, ended in present), timedelta())
    work: Counter[Outcome] = Counter()
    for span in attempts:
        if span.depth == 0:
            work[span.outcome] += _microseconds(span, now)
    waited: Counter[WaitFor] = Counter()
    for step in steps:
        for wait in step.waits:
            waited[wait.kind] += _microseconds(wait, now)
    used = [(span.outcome, span.usage) for span in attempts if span.usage is not None]
    costs = [(outcome, usage.cost_usd) for outcome, usage in used if usage.cost_usd is not None]
    kept = _kept(runs, steps)
    seconds = there.total_seconds()
    widths = [min(batch.max_parallel, batch.total or batch.max_parallel) for batch in batches if batch.max_parallel]
    return Totals(
        steps=Counter(step.outcome for step in steps if not step.is_reset),
        attempts=Counter(span.outcome for span in attempts),
        took=took.total_seconds(),
        away=max(0.0, (took - there).total_seconds()),
        work=sum(work.values()) / 1e6,
        counted=work[Outcome.COMPLETED] / 1e6,
        failed=sum(work[outcome] for outcome in _FAILED) / 1e6,
        lost=work[Outcome.INTERRUPTED] / 1e6,
        waited={kind: micros / 1e6 for kind, micros in waited.items()},
        busy=sum(work.values()) / 1e6 / seconds if seconds else 0.0,
        workers=max([1 + span.worker for span in attempts] + widths, default=0),
        cost=sum(cost for _, cost in costs) if costs else None,
        cost_failed=sum((cost for outcome, cost in costs if outcome is not Outcome.COMPLETED), 0.0),
        input_tokens=sum(usage.input_tokens or 0 for _, usage in used),
        output_tokens=sum(usage.output_tokens or 0 for _, usage in used),
        kept_steps=len(kept),
        kept_work=sum(_microseconds(span, now) for span in kept) / 1e6,
        kept_cost=sum((span.usage.cost_usd or 0.0 for span in kept if span.usage is not None), 0.0),
        deaths=sum(run.has_died for run in runs),
    )


def _kept(runs: Sequence[RunSpan], steps: Sequence[StepHistory]) -> list[AttemptSpan]:
    """The attempts that completed before the last run began, so that their steps did not run in it."""
    if len(runs) < 2:
        return []
    return [
        step.attempts[-1]
        for step in steps
        if step.outcome is Outcome.COMPLETED
        and step.attempts
        and _end(step.attempts[-1], runs[-1].begun) <= runs[-1].begun
    ]


class _Reasons:
    """Says why nothing ran in a time; it is asked about later and later times."""

    def __init__(self, steps: Sequence[StepHistory], now: datetime) -> None:
        waits = ((wait.begun, _end(wait, now), (wait.kind, wait.key)) for step in steps for wait in step.waits)
        self._coming = sorted(waits, key=lambda wait: wait[0], reverse=True)
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


def _attempts(steps: Sequence[StepHistory]) -> Iterator[AttemptSpan]:
    return (span for step in steps for span in step.attempts)


def _end(span: RunSpan | AttemptSpan | WaitSpan | Bar, now: datetime) -> datetime:
    return max(span.begun, now) if span.ended is None else span.ended


def _microseconds(span: AttemptSpan | WaitSpan, now: datetime) -> int:
    return (_end(span, now) - span.begun) // timedelta(microseconds=1)


def _whole(runs: Sequence[RunSpan], steps: Sequence[StepHistory], now: datetime) -> list[_Span]:
    """From the first begin to the last end; empty where nothing began."""
    spans: list[RunSpan | AttemptSpan | WaitSpan] = [
        *runs,
        *_attempts(steps),
        *(wait for step in steps for wait in step.waits),
    ]
    if not spans:
        return []
    return [(min(span.begun for span in spans), max(_end(span, now) for span in spans))]


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
