"""Runs, steps, attempts and waits of a history in the making."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import attrs

from iso_orchestrator.record.details import Detail, Item, get, usage_of_result
from iso_orchestrator.record.history import (
    AttemptSpan,
    Batch,
    LimitSpan,
    Outcome,
    RunSpan,
    StepHistory,
    Usage,
    WaitFor,
    WaitSpan,
)
from iso_orchestrator.record.measures import Bar
from iso_orchestrator.record.model import ErrorInfo, Json, StepRecord, StepStatus

_CUT = timedelta(seconds=1)  # the event of a limit has its end in whole seconds, rounded down


@attrs.define(eq=False)
class RunDraft:
    """A run.

    Attributes:
        last_seen: The time of the last event that its process wrote, as far as that is known.
        recorded: Its number in details; None for those of earlier releases.
        steps: Those that run or wait in it.
        batches: Those that go on in it.
    """

    number: int
    begun: datetime
    last_seen: datetime
    recorded: int | None
    detail: Detail
    ended: datetime | None = None
    outcome: Outcome = Outcome.RUNNING
    has_died: bool = False
    found_dead: datetime | None = None
    error: ErrorInfo | None = None
    steps: dict[str, StepDraft] = attrs.field(factory=dict)
    batches: dict[int, BatchDraft] = attrs.field(factory=dict)

    def see(self, at: datetime) -> None:
        """Note that its process was alive then. What it does after its end does not make it longer."""
        if self.ended is None and at > self.last_seen:
            self.last_seen = at

    def span(self) -> RunSpan:
        """The run as views see it."""
        argv = self.detail.get("argv")
        return RunSpan(
            self.number,
            self.begun,
            self.ended,
            self.outcome,
            pid=get(self.detail, "pid", int),
            host=get(self.detail, "host", str),
            has_died=self.has_died,
            found_dead=self.found_dead,
            error=self.error,
            argv=tuple(map(str, argv)) if isinstance(argv, list) else (),
            cwd=get(self.detail, "cwd", str),
        )


@attrs.define(eq=False)
class AttemptDraft(Bar):
    """An attempt at a step."""

    step: str
    number: int
    run: RunDraft | None
    outcome: Outcome = Outcome.RUNNING
    error: ErrorInfo | None = None
    usage: Usage | None = None
    log: str | None = None
    limit_until: datetime | None = None
    limit_key: str | None = None

    def span(self) -> AttemptSpan:
        """The attempt as views see it, when it has its place."""
        return AttemptSpan(
            self.step,
            self.number,
            self.begun,
            self.ended,
            self.outcome,
            self.worker,
            depth=self.depth,
            error=self.error,
            run=None if self.run is None else self.run.number,
            usage=self.usage,
            log=self.log,
            limit_until=self.limit_until,
            limit_key=self.limit_key,
        )


@attrs.define(eq=False)
class WaitDraft:
    """A wait of a step. *attempt* is the one beside which it is drawn."""

    step: str
    kind: WaitFor
    begun: datetime
    attempt: AttemptDraft | None
    until: datetime | None = None
    key: str | None = None
    holder: str | None = None
    met_by: str | None = None
    ended: datetime | None = None

    def span(self) -> WaitSpan:
        """The wait as views see it, when the attempt has its place."""
        return WaitSpan(
            self.step,
            self.kind,
            self.begun,
            self.ended,
            until=self.until,
            key=self.key,
            holder=self.holder,
            met_by=self.met_by,
            worker=0 if self.attempt is None else self.attempt.worker,
        )


@attrs.define(eq=False)
class BatchDraft:
    """A call of a `for_each`. Its items are those of which the first step has begun."""

    number: int
    begun: datetime
    run: RunDraft | None
    detail: Detail
    ended: datetime | None = None
    counts: Detail | None = None  # of the event of its end
    items: dict[int, StepDraft] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """That of its function."""
        return get(self.detail, "name", str) or "for_each"

    def finished(self) -> Batch:
        """The batch as views see it."""
        counts = self.counts
        if counts is None:
            found = Counter(step.outcome() for step in self.items.values())
            counts = {"fulfilled": found[Outcome.COMPLETED], "rejected": found[Outcome.FAILED]}
        return Batch(
            self.number,
            self.name,
            self.begun,
            self.ended,
            total=get(self.detail, "total", int),
            max_parallel=get(self.detail, "maxParallel", int),
            fulfilled=get(counts, "fulfilled", int) or 0,
            rejected=get(counts, "rejected", int) or 0,
            replayed=get(counts, "replayed", int) or 0,
            unstarted=get(counts, "unstarted", int) or 0,
            run=None if self.run is None else self.run.number,
        )


@attrs.define(eq=False)
class StepDraft:
    """A step.

    Attributes:
        run: The run that works on it, or was the last to do so.
        attempt: The attempt that runs.
        wait: What it waits for now, except for keys that its body waits for.
        onlookers: The waits of other processes for its end.
        detail: That of the event of its last begin.
    """

    name: str
    number: int
    run: RunDraft | None = None
    attempts: list[AttemptDraft] = attrs.field(factory=list)
    waits: list[WaitDraft] = attrs.field(factory=list)
    attempt: AttemptDraft | None = None
    wait: WaitDraft | None = None
    onlookers: list[WaitDraft] = attrs.field(factory=list)
    detail: Detail = attrs.field(factory=dict)
    item: Item | None = None
    key: str | None = None
    retry_at: datetime | None = None
    is_reset: bool = False

    def end_wait(self, at: datetime) -> WaitDraft | None:
        """End what it waits for."""
        wait, self.wait = self.wait, None
        if wait is not None:
            if wait.kind is WaitFor.LIMIT and wait.until is not None:
                at = min(at, wait.until + _CUT)  # after that it waited for a worker
            wait.ended = max(wait.begun, at)
        return wait

    def end_attempt(self, at: datetime, outcome: Outcome, number: int | None = None) -> AttemptDraft | None:
        """End the attempt that runs, or the one with that number, which seemed to be interrupted."""
        attempt, self.attempt = self.attempt, None
        if attempt is None and self.attempts and number == self.attempts[-1].number:
            attempt = self.attempts[-1] if self.attempts[-1].outcome is Outcome.INTERRUPTED else None
        if attempt is not None:
            attempt.ended, attempt.outcome = max(attempt.begun, at), outcome
        return attempt

    def interrupt(self, at: datetime) -> None:
        """Its process is gone, or has left it."""
        self.end_attempt(at, Outcome.INTERRUPTED)
        self.end_wait(at)
        self.dismiss(at)

    def dismiss(self, at: datetime) -> None:
        """End the waits of other processes."""
        for wait in self.onlookers:
            wait.ended = max(wait.begun, at)
        self.onlookers.clear()

    def is_busy(self) -> bool:
        """Whether it runs or waits."""
        return self.attempt is not None or self.wait is not None

    def outcome(self) -> Outcome:
        """What came of it, by the events alone."""
        if self.attempt is not None:
            return Outcome.RUNNING
        if self.wait is not None:
            return Outcome.WAITING
        last = self.attempts[-1].outcome if self.attempts else Outcome.INTERRUPTED
        return Outcome.INTERRUPTED if last is Outcome.RETRIED else last


@attrs.define(eq=False)
class LimitDrafts:
    """The usage limits.

    Attributes:
        last: The index of the last one of each key.
    """

    spans: list[LimitSpan] = attrs.field(factory=list)
    last: dict[str, int] = attrs.field(factory=dict)

    def met_by(self, key: str | None) -> str | None:
        """The step that met the last limit of a key first."""
        return self.spans[self.last[key]].met_by if key in self.last else None

    def meet(self, step: str, key: str | None, at: datetime, until: datetime) -> str:
        """Add a limit, or the later end of one that goes on: the step that met it first."""
        index = None if key is None else self.last.get(key)
        if index is not None and at < (known := self.spans[index]).until:
            self.spans[index] = attrs.evolve(known, until=max(until, known.until))
            return known.met_by
        if key is not None:
            self.last[key] = len(self.spans)
        self.spans.append(LimitSpan(key, at, until, step))
        return step

    def lift(self, step: StepDraft, at: datetime) -> None:
        """End the limit that a step met in its last attempt, as a reset does, unless another step met a later end."""
        if not step.attempts or step.attempts[-1].limit_until is None:
            return
        key, until = step.attempts[-1].limit_key, step.attempts[-1].limit_until
        for index, span in enumerate(self.spans):
            is_own = key is not None or span.met_by == step.name
            if is_own and (span.key, span.until) == (key, until):
                self.spans[index] = attrs.evolve(span, until=min(span.until, at))


def history_of_step(step: StepDraft, known: StepRecord | None, log: str | None) -> StepHistory:
    """The step as views see it, when its attempts have their places; *log* is that of its last command, if known."""
    last = step.attempts[-1] if step.attempts else None
    is_completed = known is not None and known.status is StepStatus.COMPLETED
    if last is not None and is_completed and last.usage is None and known is not None:
        last.usage = usage_of_result(known.result)
    log = log or next((attempt.log for attempt in reversed(step.attempts) if attempt.log), None)
    if last is not None and last.log is None:
        last.log = log
    return StepHistory(
        step.name,
        step.number,
        group_of(step.name),
        Outcome.COMPLETED if is_completed else step.outcome(),
        attempts=tuple([attempt.span() for attempt in step.attempts]),
        waits=tuple([wait.span() for wait in step.waits]),
        attempt_count=known.attempts if known is not None else last.number if last is not None else 0,
        retry_at=step.retry_at if step.wait is not None else None,
        key=step.key,
        batch=None if step.item is None else step.item[0],
        item=None if step.item is None else step.item[1],
        result=known.result if known is not None and is_completed else None,
        error=known.error if known is not None else None if last is None else last.error,
        log=log,
        is_reset=step.is_reset or (known is None and bool(step.attempts)),
        **{_FIELDS[key]: value for key, value in step.detail.items() if key in _FIELDS and _is_fit(key, value)},
    )


_FIELDS = {
    "of": "attempts_allowed",
    "fn": "function",
    "parent": "parent",
    "idempotencyKey": "idempotency_key",
    "version": "version",
    "ifInterrupted": "if_interrupted",
    "timeout": "timeout",
}  # of the detail of a begin, and how a `StepHistory` calls them


def _is_fit(key: str, value: Json) -> bool:
    return type(value) in {"of": (int,), "timeout": (int, float)}.get(key, (str,))


def group_of(name: str) -> str:
    """The name up to the first ":" or "(".

    Example:
        >>> group_of("review:shop:cart"), group_of("fetch(page=1)"), group_of("cleanup")
        ('review', 'fetch', 'cleanup')
    """
    return name.partition(":")[0].partition("(")[0] or name
