"""The history of a workflow, made from the events of its record. No I/O and no clock.

The events are read once, in their order, into drafts of runs, steps, attempts and waits. Records of earlier releases
say less, and what they leave out is derived where it is certain. Events can be appended by users and by other programs
too, so a detail of the wrong type counts as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypeVar

import attrs

from iso_orchestrator.record.history import (
    AttemptSpan,
    Batch,
    History,
    LimitSpan,
    Outcome,
    RunSpan,
    StepHistory,
    Usage,
    WaitFor,
    WaitSpan,
)
from iso_orchestrator.record.measures import Bar, gaps_of, place, totals_of
from iso_orchestrator.record.model import ErrorInfo, Json, StepRecord, StepStatus, WorkflowRecord

T = TypeVar("T")
_Detail: TypeAlias = Mapping[str, Any]

_INTERRUPTIONS = {KeyboardInterrupt.__name__, SystemExit.__name__}
_DIED = "RunDied"  # the name of the error that `run.died` records
_CUT = timedelta(seconds=1)  # the event of a limit has its end in whole seconds, rounded down


def history_of(
    record: WorkflowRecord, *, now: datetime, dead: Collection[str] = (), logs: Mapping[str, str] | None = None
) -> History:
    """Reconstruct what happened in a workflow.

    Args:
        record: Of the workflow. With `is_alive` False all its runs that have not ended are taken as dead.
        now: When that was so.
        dead: The steps that run or wait on record, but whose process is gone.
        logs: The log of the last command of each step: only records of this release have it in their events.
    """
    reader = _Reader(now)
    for event in record.events:
        handler = _HANDLERS.get(event.type)
        if handler is not None and isinstance(event.detail, dict | None):
            handler(reader, event.at, event.detail or {})
        reader.see(event.at, event.type)
    reader.end(record, frozenset(dead))
    return reader.history(record, logs or {})


@attrs.define(eq=False)
class _Run:
    number: int
    begun: datetime
    last_seen: datetime
    recorded: int | None  # its number in details; None for those of earlier releases
    detail: _Detail
    ended: datetime | None = None
    outcome: Outcome = Outcome.RUNNING
    has_died: bool = False
    found_dead: datetime | None = None
    error: ErrorInfo | None = None
    steps: dict[str, _Step] = attrs.field(factory=dict)  # that run or wait in it

    def span(self) -> RunSpan:
        argv = self.detail.get("argv")
        return RunSpan(
            self.number,
            self.begun,
            self.ended,
            self.outcome,
            pid=_get(self.detail, "pid", int),
            host=_get(self.detail, "host", str),
            has_died=self.has_died,
            found_dead=self.found_dead,
            error=self.error,
            argv=tuple(map(str, argv)) if isinstance(argv, list) else (),
            cwd=_get(self.detail, "cwd", str),
        )


@attrs.define(eq=False)
class _Attempt(Bar):
    step: str
    number: int
    run: _Run | None
    outcome: Outcome = Outcome.RUNNING
    error: ErrorInfo | None = None
    usage: Usage | None = None
    log: str | None = None
    limit_until: datetime | None = None
    limit_key: str | None = None

    def span(self) -> AttemptSpan:
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
class _Wait:
    step: str
    kind: WaitFor
    begun: datetime
    attempt: _Attempt | None  # beside which it is drawn
    until: datetime | None = None
    key: str | None = None
    holder: str | None = None
    met_by: str | None = None
    ended: datetime | None = None

    def span(self) -> WaitSpan:
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
class _Step:
    name: str
    number: int
    run: _Run | None = None  # that has it in hand, or had it last
    attempts: list[_Attempt] = attrs.field(factory=list)
    waits: list[_Wait] = attrs.field(factory=list)
    attempt: _Attempt | None = None  # the one that runs
    wait: _Wait | None = None  # what it waits for
    detail: _Detail = attrs.field(factory=dict)  # of its last begin
    item: tuple[int, int] | None = None
    key: str | None = None
    retry_at: datetime | None = None
    is_reset: bool = False

    def end_wait(self, at: datetime) -> _Wait | None:
        wait, self.wait = self.wait, None
        if wait is not None:
            if wait.kind is WaitFor.LIMIT and wait.until is not None:
                at = min(at, wait.until + _CUT)  # after that it waited for a worker
            wait.ended = max(wait.begun, at)
        return wait

    def end_attempt(self, at: datetime, outcome: Outcome, number: int | None = None) -> _Attempt | None:
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

    def outcome(self) -> Outcome:
        if self.attempt is not None:
            return Outcome.RUNNING
        if self.wait is not None:
            return Outcome.WAITING
        last = self.attempts[-1].outcome if self.attempts else Outcome.INTERRUPTED
        return Outcome.INTERRUPTED if last is Outcome.RETRIED else last


class _Reader:
    """The drafts of a history, after the events so far."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._last_seen: datetime | None = None  # the last event
        self._count = 0  # of attempts
        self._runs: list[_Run] = []
        self._alive: list[_Run] = []
        self._recorded: dict[int, _Run] = {}  # by their numbers in details
        self._steps: dict[str, _Step] = {}
        self._limits: list[LimitSpan] = []
        self._by_key: dict[str, int] = {}  # the index of the last limit of each key

    def see(self, at: datetime, kind: str) -> None:
        """Note that a process was alive then: the only one that has a run, if no event says which."""
        self._last_seen = at if self._last_seen is None else max(self._last_seen, at)
        if len(self._alive) == 1 and self._alive[0].recorded is None and kind != "steps.reset":
            run = self._alive[0]
            run.last_seen = max(run.last_seen, at)

    def begin_run(self, at: datetime, detail: _Detail) -> None:
        recorded = _get(detail, "run", int)
        run = _Run(len(self._runs) + 1, at, at, recorded, detail)
        self._runs.append(run)
        self._alive.append(run)
        if recorded is not None:
            self._recorded[recorded] = run

    def end_run(self, at: datetime, detail: _Detail) -> None:
        error = _error(detail.get("error"))
        run = self._ended_run(detail, error)
        if run is None:
            return
        has_died = detail.get("died") is True or (error is not None and error.name == _DIED)
        if has_died:
            self._bury(run, _time(detail, "lastSeen"), found_dead=at)
        else:
            self._end_run(run, at)
            run.outcome = _outcome_of(error)
        run.error = error

    def _ended_run(self, detail: _Detail, error: ErrorInfo | None) -> _Run | None:
        recorded = _get(detail, "run", int)
        if recorded is not None:
            run = self._recorded.get(recorded)
            return run if run in self._alive else None
        # Without a number the status may have been set by hand, so that no run of this release has ended.
        found = [run for run in self._alive if run.recorded is None]
        if error is not None and error.name == _DIED:
            found = [run for run in found if f"since {run.begun.isoformat()} " in error.message] or found
        return found[0] if found else None

    def _bury(self, run: _Run, last_seen: datetime | None, found_dead: datetime | None) -> None:
        run.has_died, run.found_dead = True, found_dead
        self._end_run(run, run.last_seen if last_seen is None else max(last_seen, run.last_seen))
        run.outcome = Outcome.INTERRUPTED

    def _end_run(self, run: _Run, at: datetime) -> None:
        run.ended = at = max(run.begun, at)
        self._alive.remove(run)
        for step in run.steps.values():
            step.interrupt(at)
        run.steps.clear()

    def begin_step(self, at: datetime, detail: _Detail) -> None:
        step = self._step_of(detail)
        if step is None:
            return
        run = self._run_of(detail)
        if step.attempt is not None:  # its process died, or has left it
            left = step.run
            step.interrupt(at if left is None else min(at, left.last_seen))
        waited = step.end_wait(at)
        number = _get(detail, "attempt", int) or len(step.attempts) + 1
        self._count += 1
        attempt = _Attempt(at, step.name, number, run, order=self._count)
        if waited is not None and waited.kind is WaitFor.BACKOFF and waited.attempt is not None:
            attempt.after = waited.attempt
        around = self._steps.get(parent) if (parent := _get(detail, "parent", str)) is not None else None
        attempt.inside = None if around is None else around.attempt
        for wait in reversed(step.waits):
            if wait.attempt is not None:
                break
            wait.attempt = attempt
        step.attempt = attempt
        step.attempts.append(attempt)
        step.is_reset, step.detail, step.retry_at = False, detail, None
        self._hold(step, run, at)

    def complete_step(self, at: datetime, detail: _Detail) -> None:
        self._end_attempt(at, detail, Outcome.COMPLETED)

    def fail_step(self, at: datetime, detail: _Detail) -> None:
        self._end_attempt(at, detail, _outcome_of(_error(detail.get("error"))))

    def retry_step(self, at: datetime, detail: _Detail) -> None:
        attempt = self._end_attempt(at, detail, Outcome.RETRIED)
        if attempt is not None:
            step = self._steps[attempt.step]
            step.retry_at = _time(detail, "retryAt")
            self._begin_wait(step, attempt.run, _Wait(step.name, WaitFor.BACKOFF, at, attempt, until=step.retry_at))

    def limit_step(self, at: datetime, detail: _Detail) -> None:
        attempt = self._end_attempt(at, detail, Outcome.RETRIED)
        until, key = _time(detail, "until"), _get(detail, "limitKey", str)
        if attempt is None or until is None:
            return
        attempt.limit_until, attempt.limit_key = until, key
        met_by = self._meet_limit(attempt.step, key, at, until)
        step = self._steps[attempt.step]
        wait = _Wait(step.name, WaitFor.LIMIT, at, attempt, until=until, key=key, met_by=met_by)
        self._begin_wait(step, attempt.run, wait)

    def wait_step(self, at: datetime, detail: _Detail) -> None:
        step = self._step_of(detail)
        if step is None:
            return
        attempt = step.attempts[-1] if step.attempts else None
        if detail.get("for") == "process":
            wait = _Wait(step.name, WaitFor.PROCESS, at, attempt, holder=_holder(detail))
        else:
            key, until = _get(detail, "limitKey", str), _time(detail, "until")
            known = self._limits[self._by_key[key]] if key is not None and key in self._by_key else None
            met_by = None if known is None else known.met_by
            wait = _Wait(step.name, WaitFor.LIMIT, at, attempt, until=until, key=key, met_by=met_by)
        if step.attempt is None:
            self._begin_wait(step, self._run_of(detail), wait)

    def interrupt_step(self, at: datetime, detail: _Detail) -> None:
        step = self._known(detail)
        if step is not None:
            step.interrupt(_time(detail, "lastSeen") or at)

    def abandon_step(self, at: datetime, detail: _Detail) -> None:
        step = self._known(detail)
        if step is not None:
            step.interrupt(at)

    def reset_steps(self, at: datetime, detail: _Detail) -> None:
        names = detail.get("steps")
        for name in names if isinstance(names, list) else ():
            step = self._steps.get(name) if isinstance(name, str) else None
            if step is not None:
                step.interrupt(at)
                step.is_reset = True

    def begin_command(self, _at: datetime, detail: _Detail) -> None:
        step = self._known(detail)
        if step is not None and step.attempt is not None:
            step.attempt.log = _get(detail, "log", str)

    def end(self, record: WorkflowRecord, dead: frozenset[str]) -> None:
        """End what the record has as running, and what no process does any more."""
        if not record.is_alive:
            for run in list(self._alive):
                self._bury(run, None, found_dead=None)
        for step in self._steps.values():
            known = record.steps.get(step.name)
            if known is None or step.name in dead or (step.attempt and known.status is not StepStatus.RUNNING):
                last_seen = self._last_seen if step.run is None else step.run.last_seen
                step.interrupt(last_seen or self._now)
        for name, known in record.steps.items():
            if name not in self._steps:
                self._add_without_events(known)

    def history(self, record: WorkflowRecord, logs: Mapping[str, str]) -> History:
        attempts = [attempt for step in self._steps.values() for attempt in step.attempts]
        for step in self._steps.values():
            for wait in step.waits:
                if wait.kind is WaitFor.BACKOFF and wait.attempt is not None:
                    wait.attempt.held_until = wait.ended or self._now
        place(attempts, self._now)
        steps = tuple(_history_of_step(step, record.steps.get(step.name), logs) for step in self._steps.values())
        runs = tuple(run.span() for run in self._runs)
        batches: tuple[Batch, ...] = ()
        gaps = gaps_of(runs, steps, self._now)
        return History(
            record.workflow_id,
            record.status,
            record.created_at,
            record.updated_at,
            self._now,
            record.is_alive,
            runs,
            steps,
            tuple(self._limits),
            batches,
            gaps,
            totals_of(runs, steps, batches, self._now),
            state=record.state,
            last_error=record.last_error,
        )

    def _end_attempt(self, at: datetime, detail: _Detail, outcome: Outcome) -> _Attempt | None:
        step = self._known(detail)
        if step is None:
            return None
        step.end_wait(at)
        attempt = step.end_attempt(at, outcome, _get(detail, "attempt", int))
        if attempt is not None:
            attempt.error, attempt.usage = _error(detail.get("error")), _usage(detail.get("usage"))
            if attempt.run is not None:
                attempt.run.steps.pop(step.name, None)
                attempt.run.last_seen = max(attempt.run.last_seen, at)
        return attempt

    def _begin_wait(self, step: _Step, run: _Run | None, wait: _Wait) -> None:
        if step.wait is not None and step.wait.kind is not wait.kind:
            step.end_wait(wait.begun)
        if step.wait is None:
            step.wait = wait
            step.waits.append(wait)
        self._hold(step, run, wait.begun)

    def _hold(self, step: _Step, run: _Run | None, at: datetime) -> None:
        if step.run is not run and step.run is not None:
            step.run.steps.pop(step.name, None)
        step.run = run
        if run is not None and run.ended is None:
            run.steps[step.name] = step
            run.last_seen = max(run.last_seen, at)

    def _meet_limit(self, step: str, key: str | None, at: datetime, until: datetime) -> str:
        """Add a limit, or the later end of one that goes on: the step that met it first."""
        index = None if key is None else self._by_key.get(key)
        if index is not None and at < (known := self._limits[index]).until:
            self._limits[index] = attrs.evolve(known, until=max(until, known.until))
            return known.met_by
        if key is not None:
            self._by_key[key] = len(self._limits)
        self._limits.append(LimitSpan(key, at, until, step))
        return step

    def _known(self, detail: _Detail) -> _Step | None:
        name = detail.get("step")
        return self._steps.get(name) if isinstance(name, str) else None

    def _step_of(self, detail: _Detail) -> _Step | None:
        """The step of an event, which may be the first about it."""
        name = detail.get("step")
        if not isinstance(name, str):
            return None
        step = self._steps.get(name)
        if step is None:
            step = self._steps[name] = _Step(name, len(self._steps) + 1)
        match detail.get("item"):
            case [int(batch), int(index)]:
                step.item = batch, index
        return step

    def _run_of(self, detail: _Detail) -> _Run | None:
        recorded = _get(detail, "run", int)
        if recorded is not None:
            return self._recorded.get(recorded)
        if "pid" in detail or len(self._alive) != 1 or self._alive[0].recorded is not None:
            return None
        return self._alive[0]

    def _add_without_events(self, known: StepRecord) -> None:
        """Add a step that another program wrote without its events."""
        step = self._steps[known.name] = _Step(known.name, len(self._steps) + 1)
        if known.started_at is None:
            return
        attempt = _Attempt(known.started_at, known.name, known.attempts, None)
        step.attempts.append(attempt)
        outcome = Outcome.COMPLETED if known.status is StepStatus.COMPLETED else _outcome_of(known.error)
        attempt.outcome = Outcome.INTERRUPTED if known.status is StepStatus.RUNNING else outcome
        attempt.ended = max(known.started_at, known.completed_at or known.updated_at)
        attempt.error = known.error


_HANDLERS: dict[str, Callable[[_Reader, datetime, _Detail], None]] = {
    "workflow.running": _Reader.begin_run,
    "workflow.completed": _Reader.end_run,
    "workflow.failed": _Reader.end_run,
    "step.started": _Reader.begin_step,
    "step.completed": _Reader.complete_step,
    "step.failed": _Reader.fail_step,
    "step.retrying": _Reader.retry_step,
    "step.limited": _Reader.limit_step,
    "step.waiting": _Reader.wait_step,
    "step.interrupted": _Reader.interrupt_step,
    "step.abandoned": _Reader.abandon_step,
    "steps.reset": _Reader.reset_steps,
    "command.begun": _Reader.begin_command,
}


def _history_of_step(step: _Step, known: StepRecord | None, logs: Mapping[str, str]) -> StepHistory:
    last = step.attempts[-1] if step.attempts else None
    is_completed = known is not None and known.status is StepStatus.COMPLETED
    if last is not None and is_completed and last.usage is None and known is not None:
        last.usage = _usage_of_result(known.result)
    log = logs.get(step.name) or next((attempt.log for attempt in reversed(step.attempts) if attempt.log), None)
    if last is not None and last.log is None:
        last.log = log
    detail = step.detail
    return StepHistory(
        step.name,
        step.number,
        _group(step.name),
        Outcome.COMPLETED if is_completed else step.outcome(),
        attempts=tuple([attempt.span() for attempt in step.attempts]),
        waits=tuple([wait.span() for wait in step.waits]),
        attempt_count=known.attempts if known is not None else last.number if last is not None else 0,
        attempts_allowed=_get(detail, "of", int),
        retry_at=step.retry_at if step.wait is not None else None,
        key=step.key,
        batch=None if step.item is None else step.item[0],
        item=None if step.item is None else step.item[1],
        function=_get(detail, "fn", str),
        parent=_get(detail, "parent", str),
        result=known.result if known is not None and is_completed else None,
        error=known.error if known is not None else None if last is None else last.error,
        log=log,
        idempotency_key=_get(detail, "idempotencyKey", str),
        version=_get(detail, "version", str),
        if_interrupted=_get(detail, "ifInterrupted", str) or "rerun",
        timeout=_get(detail, "timeout", int, float),
        is_reset=step.is_reset or (known is None and bool(step.attempts)),
    )


def _group(name: str) -> str:
    """The name up to the first ":" or "(".

    Example:
        >>> _group("review:shop:cart"), _group("fetch(page=1)"), _group("cleanup")
        ('review', 'fetch', 'cleanup')
    """
    return min(name.split(":", 1)[0], name.split("(", 1)[0], key=len) or name


def _outcome_of(error: ErrorInfo | None) -> Outcome:
    """What comes of a run or step that ended with *error*."""
    if error is None:
        return Outcome.COMPLETED
    return Outcome.INTERRUPTED if error.name in _INTERRUPTIONS else Outcome.FAILED


def _error(value: Json) -> ErrorInfo | None:
    match value:
        case {"name": str(name), "message": str(message)}:
            texts = {key: text for key in ("stack", "code", "cause") if isinstance(text := value.get(key), str)}
            return ErrorInfo(name, message, **texts)
    return None


def _usage(value: Json) -> Usage | None:
    if not isinstance(value, dict):
        return None
    return Usage(
        _get(value, "agent", str),
        _get(value, "outcome", str),
        _get(value, "costUsd", int, float),
        _get(value, "inputTokens", int),
        _get(value, "outputTokens", int),
        _get(value, "sessionId", str),
    )


def _usage_of_result(result: Json) -> Usage | None:
    """What an agent used, from the result of its step: earlier releases recorded it nowhere else."""
    match result:
        case {"exit_code": int(), "parsed": {"agent": str(agent), "outcome": str(outcome)} as parsed}:
            tokens = parsed.get("usage")
            counts = tokens if isinstance(tokens, dict) else {}
            return Usage(
                agent,
                outcome,
                _get(parsed, "cost_usd", int, float),
                _get(counts, "input_tokens", int),
                _get(counts, "output_tokens", int),
                _get(parsed, "session_id", str),
            )
    return None


def _holder(detail: _Detail) -> str | None:
    match detail.get("holder"):
        case int(pid):
            return f"pid {pid}"
        case str(name):
            return name
    return None


def _time(detail: _Detail, key: str) -> datetime | None:
    text = detail.get(key)
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment


def _get(detail: _Detail, key: str, *kinds: type[T]) -> T | None:
    value = detail.get(key)
    return value if type(value) in kinds else None
