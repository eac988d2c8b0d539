"""The history of a workflow: what ran and waited when, in which run, and what came of it. Every view draws from it.

All times are those of the record: wall clock, in UTC. What a record of an earlier release does not tell is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

import attrs

from iso_orchestrator.record.model import ErrorInfo, Json, WorkflowStatus

T = TypeVar("T", int, float)


class Outcome(StrEnum):
    """What came of a step, or of one attempt at it."""

    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "failed, tried again"  # of attempts alone; one that met a usage limit too
    INTERRUPTED = "interrupted"  # its process died, or Ctrl-C came
    WAITING = "waiting"  # of steps alone: for a limit, its next attempt, a key, or another process
    RUNNING = "running"


class WaitFor(StrEnum):
    """What a step waited for."""

    LIMIT = "limit"
    BACKOFF = "back-off"  # the pause before the next attempt
    KEY = "key"
    PROCESS = "process"  # another one ran the step


@attrs.frozen
class Usage:
    """What an attempt of an agent used; None: its agent did not say."""

    agent: str | None = None
    outcome: str | None = None
    cost_usd: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    session_id: str | None = None


@attrs.frozen
class RunSpan:
    """One process's time in `with workflow:`.

    Attributes:
        number: Runs count from 1.
        ended: When it ended, or was last seen alive if it died; None while it lives.
        outcome: COMPLETED, FAILED, INTERRUPTED (it died, or Ctrl-C came) or RUNNING.
        has_died: Whether its process was gone without having ended the run.
        found_dead: When another process recorded that.
        argv: Its command line.
    """

    number: int
    begun: datetime
    ended: datetime | None
    outcome: Outcome
    pid: int | None = None
    host: str | None = None
    has_died: bool = False
    found_dead: datetime | None = None
    error: ErrorInfo | None = None
    argv: tuple[str, ...] = ()
    cwd: str | None = None


@attrs.frozen
class AttemptSpan:
    """One attempt at a step.

    Attributes:
        number: As in the record: over all runs.
        ended: None while it runs.
        worker: The smallest place that was free when it began, from 0: where views draw it. Attempts of one worker
            overlap only where steps are nested, and then one lies within the other.
        depth: How many attempts of one worker lie around it: 0 but for nested steps.
        run: The number of the run that made it; None for steps outside of a run.
        log: The file of its command's standard output.
    """

    step: str
    number: int
    begun: datetime
    ended: datetime | None
    outcome: Outcome
    worker: int
    depth: int = 0
    error: ErrorInfo | None = None
    run: int | None = None
    usage: Usage | None = None
    log: str | None = None
    limit_until: datetime | None = None  # it met a usage limit, which ends then
    limit_key: str | None = None


@attrs.frozen
class WaitSpan:
    """A wait of a step, before an attempt.

    Attributes:
        ended: None while it waits.
        until: When the limit ends, or the next attempt is due.
        key: The key of the limit or of the mutex.
        holder: Who held the key or ran the step: "pid 2275" or the name of a step.
        met_by: The step that met the limit first.
        worker: Where views draw it: that of the attempt after it, or before it.
    """

    step: str
    kind: WaitFor
    begun: datetime
    ended: datetime | None
    until: datetime | None = None
    key: str | None = None
    holder: str | None = None
    met_by: str | None = None
    worker: int = 0


@attrs.frozen
class LimitSpan:
    """The time of a usage limit. *met_by* is the step that met it first."""

    key: str | None
    begun: datetime
    until: datetime
    met_by: str


@attrs.frozen
class Batch:
    """One call of a `for_each`.

    Attributes:
        total: How many items it has; None if that is not known, since an iterator gives them.
        replayed: How many items were on record already.
        unstarted: How many items had not begun when it ended.
    """

    number: int
    name: str
    begun: datetime
    ended: datetime | None
    total: int | None = None
    max_parallel: int | None = None
    fulfilled: int = 0
    rejected: int = 0
    replayed: int = 0
    unstarted: int = 0
    run: int | None = None


@attrs.frozen
class StepHistory:
    """Everything about one step.

    Attributes:
        number: Steps count from 1, in the order in which they first began or waited. Commands take it as `#34`.
        group: Its name up to the first ":" or "(": steps of one group are alike.
        attempts: Those on record, the first one first. `attempt_count` counts them as `StepRecord.attempts` does.
        attempts_allowed: Of the call that made the last attempt; None if that is not known.
        retry_at: When the next attempt is due, while it waits for that.
        key: The mutex key that it ran under.
        batch: The number of its `for_each`; *item* is its index there.
        parent: The step in whose body it ran.
        result: Of a completed step.
        log: The log of its last command.
        is_reset: Whether it was reset, and has not run since: it is no step of the record any more.
    """

    name: str
    number: int
    group: str
    outcome: Outcome
    attempts: tuple[AttemptSpan, ...] = ()
    waits: tuple[WaitSpan, ...] = ()
    attempt_count: int = 0
    attempts_allowed: int | None = None
    retry_at: datetime | None = None
    key: str | None = None
    batch: int | None = None
    item: int | None = None
    function: str | None = None
    parent: str | None = None
    result: Json = None
    error: ErrorInfo | None = None
    log: str | None = None
    idempotency_key: str | None = None
    version: str | None = None
    if_interrupted: str = "rerun"
    timeout: float | None = None
    is_reset: bool = False

    @property
    def begun(self) -> datetime | None:
        """When its first attempt began."""
        return self.attempts[0].begun if self.attempts else None

    @property
    def ended(self) -> datetime | None:
        """When its last attempt ended; None if it has not."""
        return self.attempts[-1].ended if self.attempts else None

    @property
    def session_id(self) -> str | None:
        """The last session of its agent."""
        used = [attempt.usage for attempt in self.attempts if attempt.usage is not None]
        return next((usage.session_id for usage in reversed(used) if usage.session_id is not None), None)

    def to_row(self, now: datetime) -> dict[str, Any]:
        """What is known of it in one flat row; running attempts and waits count up to *now*."""
        used = [attempt.usage for attempt in self.attempts if attempt.usage is not None]
        return {
            "number": self.number,
            "name": self.name,
            "group": self.group,
            "state": self.outcome.value,
            "attempts": self.attempt_count,
            "began": self.begun,
            "ended": self.ended,
            "work_s": seconds_in(self.attempts, now),
            "waited_s": seconds_in(self.waits, now),
            "key": self.key,
            "batch": self.batch,
            "item": self.item,
            "error_type": None if self.error is None else self.error.name,
            "error": None if self.error is None else self.error.message,
            "agent": next((usage.agent for usage in reversed(used) if usage.agent is not None), None),
            "session_id": self.session_id,
            "cost_usd": _sum(usage.cost_usd for usage in used),
            "input_tokens": _sum(usage.input_tokens for usage in used),
            "output_tokens": _sum(usage.output_tokens for usage in used),
            "log_path": self.log,
            "result": self.result,
        }


@attrs.frozen
class Totals:
    """The numbers of a history. Times are seconds, costs US dollars.

    Attributes:
        steps: How many steps there are, by outcome.
        took: From the first begin to the last end; *away* of it no process had a run.
        work: Of all attempts together; *counted* of it in those that completed, *failed* in those that failed, and
            *lost* in those that were interrupted.
        waited: By what for.
        busy: The mean number of workers that ran something, over the time in which a process had a run.
        workers: How many places there were: the widest `for_each`, or what ran at a time.
        cost: Of all attempts that said; None if none did. *cost_failed* of it in those that did not complete.
        kept_steps, kept_work, kept_cost: What was completed before the last run began, and so did not run again.
    """

    steps: Mapping[Outcome, int]
    attempts: Mapping[Outcome, int]
    took: float
    away: float
    work: float
    counted: float
    failed: float
    lost: float
    waited: Mapping[WaitFor, float]
    busy: float
    workers: int
    cost: float | None
    cost_failed: float
    input_tokens: int
    output_tokens: int
    kept_steps: int
    kept_work: float
    kept_cost: float
    deaths: int


@attrs.frozen
class Gap:
    """A time in which nothing ran: "no process", or "all waited for claude"."""

    begun: datetime
    ended: datetime
    reason: str
    is_without_process: bool


@attrs.frozen
class History:
    """Everything that happened in a workflow.

    Attributes:
        now: When it was looked at: running bars end there.
        is_alive: Whether a process has a run of it now.
        limits: Those that were met, the first one first; some may be in force.
        gaps: Times of more than 2 seconds in which nothing ran, in order.
        item_waits: Waits for keys that go on, of items whose steps have not begun. Their `step` is made of the name of
            the `for_each` and the index of the item: `review[12]`.
    """

    workflow_id: str
    status: WorkflowStatus
    created_at: datetime
    updated_at: datetime
    now: datetime
    is_alive: bool
    runs: tuple[RunSpan, ...]
    steps: tuple[StepHistory, ...]
    limits: tuple[LimitSpan, ...]
    batches: tuple[Batch, ...]
    gaps: tuple[Gap, ...]
    totals: Totals
    state: Json = None
    last_error: ErrorInfo | None = None
    item_waits: tuple[WaitSpan, ...] = ()

    @property
    def limits_in_force(self) -> list[LimitSpan]:
        """Those that have not ended."""
        return [limit for limit in self.limits if limit.until > self.now]

    @property
    def open_batches(self) -> list[Batch]:
        """Those that go on."""
        return [batch for batch in self.batches if batch.ended is None] if self.is_alive else []

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat row for each step, as `WorkflowRecord.to_rows` returns them."""
        return [step.to_row(self.now) for step in self.steps if not step.is_reset]

    @property
    def begun(self) -> datetime:
        """When the first thing began."""
        times = [run.begun for run in self.runs[:1]]
        times += [step.begun for step in self.steps if step.begun is not None]
        return min(times, default=self.created_at)

    @property
    def ended(self) -> datetime:
        """When the last thing ended; now, while a process has a run."""
        return self.now if self.is_alive else self.updated_at


def seconds_in(spans: Sequence[AttemptSpan | WaitSpan], now: datetime) -> float:
    """The seconds of all *spans* together; those that go on count up to *now*."""
    times = ((span.ended or max(span.begun, now)) - span.begun for span in spans)
    return sum(times, timedelta()).total_seconds()


def _sum(numbers: Iterable[T | None]) -> T | None:
    """The sum of those that are known; None if none is."""
    known = [number for number in numbers if number is not None]
    return sum(known[1:], known[0]) if known else None
