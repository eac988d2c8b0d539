"""From facts to the record: no I/O, no clock, no randomness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import attrs

from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import (
    ErrorInfo,
    Heartbeat,
    Json,
    Lease,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowRecord,
    WorkflowStatus,
    WorkflowSummary,
)

__all__ = [
    "Event",
    "LastCommand",
    "LeaseClock",
    "Limit",
    "LiveRun",
    "Projection",
    "StepState",
    "Wait",
    "copy_json",
]


R = TypeVar("R")


@attrs.frozen
class LiveRun:
    """A run that has started and neither ended nor been found dead."""

    owner: str
    pid: int
    host: str
    since: datetime


@attrs.define
class StepState:
    """A step in the making: its `StepRecord`, and what the npm package has no place for.

    Attributes:
        owner: The run file of the process that has it in hand; None when nobody has.
        version: Part of its identity.
        seq: Sequence of the last fact about it.
    """

    name: str
    status: StepStatus
    attempts: int
    updated_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    idempotency_key: str | None = None
    result: Json = None
    error: ErrorInfo | None = None
    owner: str | None = None
    version: str | None = None
    seq: int = 0

    def record(self) -> StepRecord:
        """What users see of it."""
        return StepRecord(
            self.name,
            self.status,
            self.attempts,
            self.updated_at,
            self.started_at,
            self.completed_at,
            self.idempotency_key,
            copy_json(self.result),
            self.error,
        )


@attrs.define
class Event:
    """A `WorkflowEvent` in the making: there are two a step, and a frozen object takes three times as long."""

    at: datetime
    type: str
    message: str | None = None
    detail: Json = None

    def record(self) -> WorkflowEvent:
        """What users see of it."""
        return WorkflowEvent(self.at, self.type, self.message, copy_json(self.detail))


@attrs.frozen
class LeaseClock:
    """When a lease runs out by the boot clock, in seconds since that boot."""

    boot_id: str
    expires: float


@attrs.frozen
class Limit:
    """Until when something is limited, and by what; None where that has no name."""

    until: datetime
    key: str | None = None


@attrs.frozen
class Wait:
    """A call of a step that waits for the end of a limit, in the process that holds the run file *owner*."""

    owner: str
    since: datetime
    until: datetime
    key: str | None = None


@attrs.frozen
class LastCommand:
    """The last command that began for a step: its mark, and the file of its standard output."""

    mark: str
    log: str


@attrs.define
class Projection:
    """A record in the making. `apply` changes it in place, so that a fact costs the same however many came before.

    Attributes:
        seq: Sequence of the last fact in it.
        run_failed: Whether a run of the overlapping group has failed.
        limits: Until when what steps name as their `limit_key` is limited.
        step_limits: Until when a step is, whatever it names, and the key of the limit that it met.
        waits: What calls of steps wait for, or waited for when their process ended.
        command_seed: What the marks of the workflow's commands are made of.
        commands: Of steps, those that were reset among them, the command of which something may be left.
        unknown: Top-level keys of a snapshot that nobody here knows.
    """

    workflow_id: str
    created_at: datetime
    updated_at: datetime
    state: Json
    status: WorkflowStatus = WorkflowStatus.IDLE
    last_error: ErrorInfo | None = None
    steps: dict[str, StepState] = attrs.field(factory=dict)
    events: list[Event] = attrs.field(factory=list)
    heartbeats: dict[str, Heartbeat] = attrs.field(factory=dict)
    leases: dict[str, Lease] = attrs.field(factory=dict)
    seq: int = 0
    runs: dict[str, LiveRun] = attrs.field(factory=dict)
    run_failed: bool = False
    tokens: dict[str, int] = attrs.field(factory=dict)
    lease_clocks: dict[str, LeaseClock] = attrs.field(factory=dict)
    limits: dict[str, datetime] = attrs.field(factory=dict)
    step_limits: dict[str, Limit] = attrs.field(factory=dict)
    waits: dict[str, Wait] = attrs.field(factory=dict)
    command_seed: str | None = None
    commands: dict[str, LastCommand] = attrs.field(factory=dict)
    unknown: dict[str, Json] = attrs.field(factory=dict)

    @classmethod
    def new(cls, workflow_id: str, at: datetime, state: Json) -> Projection:
        """The record as it is before anything has happened."""
        return cls(workflow_id=workflow_id, created_at=at, updated_at=at, state=copy_json(state))

    def apply(self, fact: f.Fact) -> None:
        """Take *fact* in, as the next one."""
        self.seq += 1
        self.updated_at = fact.at
        _APPLY[type(fact)](self, fact)

    def record(self) -> WorkflowRecord:
        """The record as users see it: theirs to keep, nothing in it is shared with this fold."""
        return WorkflowRecord(
            workflow_id=self.workflow_id,
            status=self.status,
            created_at=self.created_at,
            updated_at=self.updated_at,
            state=copy_json(self.state),
            steps={name: step.record() for name, step in self.steps.items()},
            events=tuple([event.record() for event in self.events]),
            heartbeats={key: _own(beat, "detail") for key, beat in self.heartbeats.items()},
            leases={key: _own(lease, "detail") for key, lease in self.leases.items()},
            last_error=self.last_error,
        )

    def summary(self) -> WorkflowSummary:
        """The workflow in a line."""
        return WorkflowSummary(
            workflow_id=self.workflow_id,
            status=self.status,
            created_at=self.created_at,
            updated_at=self.updated_at,
            steps=Counter(step.status for step in self.steps.values()),
            last_error=self.last_error,
        )

    def matching(self, name: str, idempotency_key: str | None, version: str | None) -> StepState | None:
        """The step of that name, if it is the same in key and version too."""
        step = self.steps.get(name)
        if step is None or step.idempotency_key != idempotency_key or step.version != version:
            return None
        return step

    def limit(self, name: str, limit_key: str | None) -> Limit | None:
        """What limits a step, or did: its own limit or that of its key, whichever is the longer."""
        if not self.step_limits and not self.limits:
            return None
        own, until = self.step_limits.get(name), None if limit_key is None else self.limits.get(limit_key)
        if until is None or (own is not None and own.until >= until):
            return own
        return Limit(until, limit_key)

    def owner(self, name: str) -> str | None:
        """The run file of the process that has a step in hand."""
        step = self.steps.get(name)
        return None if step is None else step.owner


def copy_json(value: Json) -> Json:
    """A copy of *value* that shares no dict and no list with it."""
    kind = type(value)
    if kind is dict:
        return {key: copy_json(item) if type(item) in _CONTAINERS else item for key, item in value.items()}
    if kind is list:
        return [copy_json(item) if type(item) in _CONTAINERS else item for item in value]
    return value


_CONTAINERS = frozenset({dict, list})


def _own(record: R, name: str) -> R:
    value = getattr(record, name)
    if type(value) is dict or type(value) is list:
        return attrs.evolve(record, **{name: copy_json(value)})  # type: ignore[misc]
    return record


def _event(projection: Projection, fact: f.Fact, kind: str, **detail: Json) -> None:
    projection.events.append(Event(fact.at, kind, None, detail or None))


def _run_started(projection: Projection, fact: f.RunStarted) -> None:
    if not projection.runs:
        projection.run_failed = False
        projection.last_error = None
    projection.runs[fact.run] = LiveRun(fact.owner, fact.pid, fact.host, fact.at)
    projection.status = WorkflowStatus.RUNNING
    _event(projection, fact, "workflow.running")


def _run_ended(projection: Projection, fact: f.RunEnded) -> None:
    projection.runs.pop(fact.run, None)
    _leave_group(projection, fact, fact.error)


def _run_died(projection: Projection, fact: f.RunDied) -> None:
    run = projection.runs.pop(fact.run, None)
    who = f"process {run.pid} on {run.host}, running since {run.since.isoformat()}" if run else "its process"
    _leave_group(projection, fact, ErrorInfo("RunDied", f"{who} is gone without having ended its run"))


def _leave_group(projection: Projection, fact: f.Fact, error: ErrorInfo | None) -> None:
    if error is not None:
        projection.run_failed = True
        projection.last_error = error
        _event(projection, fact, "workflow.failed", error=_error_json(error))
    else:
        _event(projection, fact, "workflow.completed")
    if projection.runs:
        projection.status = WorkflowStatus.RUNNING
    elif projection.run_failed:
        projection.status = WorkflowStatus.FAILED
    else:
        projection.status = WorkflowStatus.COMPLETED
        projection.last_error = None


def _step_started(projection: Projection, fact: f.StepStarted) -> None:
    name, at, key = fact.step, fact.at, fact.idempotency_key
    if projection.waits:
        projection.waits.pop(name, None)
    projection.steps[name] = StepState(
        name, _RUNNING, fact.attempt, at, at, None, key, None, None, fact.owner, fact.version, projection.seq
    )
    projection.events.append(
        Event(at, "step.started", None, {"step": name, "attempt": fact.attempt, "idempotencyKey": key})
    )


def _step_completed(projection: Projection, fact: f.StepCompleted) -> None:
    step, at = projection.steps[fact.step], fact.at
    step.status = _COMPLETED
    step.updated_at = step.completed_at = at
    step.result = fact.result
    step.error = None
    step.owner = None
    step.seq = projection.seq
    if not projection.run_failed:  # what failed a run outlives the steps of those beside it
        projection.last_error = None
    projection.events.append(Event(at, "step.completed", None, {"step": step.name, "attempt": step.attempts}))
    if fact.state is not f.ABSENT:
        projection.state = fact.state
        _event(projection, fact, "state.updated")


def _step_failed(projection: Projection, fact: f.StepFailed) -> None:
    step = projection.steps[fact.step]
    step.status = StepStatus.FAILED
    step.updated_at = fact.at
    step.completed_at = step.result = None
    step.error = projection.last_error = fact.error
    step.seq = projection.seq
    kind = "step.retrying" if fact.retrying else "step.failed"
    _event(projection, fact, kind, step=fact.step, attempt=step.attempts, error=_error_json(fact.error))
    if not fact.retrying:
        step.owner = None


def _step_limited(projection: Projection, fact: f.StepLimited) -> None:
    step = projection.steps[fact.step]
    _forget_what_is_over(projection, fact.at)
    own = projection.step_limits.get(fact.step)
    if own is None or own.until <= fact.until:
        projection.step_limits[fact.step] = Limit(fact.until, fact.key)
    if fact.key is not None:
        projection.limits[fact.key] = max(fact.until, projection.limits.get(fact.key, fact.until))
    if step.owner is not None:
        projection.waits[fact.step] = Wait(step.owner, fact.at, fact.until, fact.key)
    step.status = StepStatus.FAILED
    step.updated_at = fact.at
    step.completed_at = step.result = None
    until = fact.until.isoformat(timespec="seconds")
    step.error = ErrorInfo("Limited", f"{fact.key or 'the step'} is limited until {until}")
    step.seq = projection.seq
    _event(projection, fact, "step.limited", step=fact.step, attempt=step.attempts, until=until, limitKey=fact.key)
    step.attempts -= 1


def _step_waiting(projection: Projection, fact: f.StepWaiting) -> None:
    _forget_what_is_over(projection, fact.at)
    if fact.until is not None:
        projection.waits[fact.step] = Wait(fact.owner, fact.at, fact.until, fact.key)
        until = fact.until.isoformat(timespec="seconds")
        _event(projection, fact, "step.waiting", step=fact.step, until=until, limitKey=fact.key)
    elif (wait := projection.waits.get(fact.step)) is not None and wait.owner == fact.owner:
        del projection.waits[fact.step]


def _forget_what_is_over(projection: Projection, at: datetime) -> None:
    projection.limits = {key: until for key, until in projection.limits.items() if until > at}
    projection.step_limits = {step: limit for step, limit in projection.step_limits.items() if limit.until > at}
    projection.waits = {step: wait for step, wait in projection.waits.items() if wait.until > at}


def _step_abandoned(projection: Projection, fact: f.StepAbandoned) -> None:
    projection.steps[fact.step].owner = None


def _steps_reset(projection: Projection, fact: f.StepsReset) -> None:
    for name in fact.steps:
        projection.steps.pop(name, None)
        limit = projection.step_limits.pop(name, None)
        if limit is not None and limit.key is not None and projection.limits.get(limit.key) == limit.until:
            del projection.limits[limit.key]  # which the step met: nothing else could lift one that was told wrongly


def _state_updated(projection: Projection, fact: f.StateUpdated) -> None:
    projection.state = fact.state
    _event(projection, fact, "state.updated")


def _status_set(projection: Projection, fact: f.StatusSet) -> None:
    projection.status = fact.status
    projection.last_error = fact.error
    detail = {"error": _error_json(fact.error)} if fact.error else {}
    _event(projection, fact, f"workflow.{fact.status}", **detail)


def _commands_marked(projection: Projection, fact: f.CommandsMarked) -> None:
    projection.command_seed = fact.seed


def _command_begun(projection: Projection, fact: f.CommandBegun) -> None:
    projection.commands[fact.step] = LastCommand(fact.mark, fact.log)


def _event_appended(projection: Projection, fact: f.EventAppended) -> None:
    projection.events.append(Event(fact.at, fact.type, fact.message, fact.detail))


def _heartbeat_recorded(projection: Projection, fact: f.HeartbeatRecorded) -> None:
    projection.heartbeats[fact.key] = Heartbeat(fact.key, fact.at, fact.detail)
    if not fact.silent:
        _event(projection, fact, "heartbeat.recorded", key=fact.key, hasDetail=fact.detail is not None)


def _lease_touched(projection: Projection, fact: f.LeaseTouched) -> None:
    projection.leases[fact.key] = Lease(
        key=fact.key,
        holder=fact.holder,
        acquired_at=fact.acquired_at,
        heartbeat_at=fact.at,
        expires_at=fact.expires_at,
        detail=fact.detail,
        token=fact.token,
    )
    projection.tokens[fact.key] = fact.token
    if fact.boot_id is None or fact.boot_expires is None:
        projection.lease_clocks.pop(fact.key, None)
    else:
        projection.lease_clocks[fact.key] = LeaseClock(fact.boot_id, fact.boot_expires)
    kind = "lease.renewed" if fact.renewed else "lease.acquired"
    ttl_ms = round(min(fact.ttl, 1e300) * 1000, 3)  # a line may hold any float, and an infinite one is not JSON
    _event(projection, fact, kind, key=fact.key, holder=fact.holder, ttlMs=int(ttl_ms) if ttl_ms % 1 == 0 else ttl_ms)


def _lease_released(projection: Projection, fact: f.LeaseReleased) -> None:
    lease = projection.leases[fact.key]
    projection.leases[fact.key] = attrs.evolve(lease, released_at=fact.at)
    projection.lease_clocks.pop(fact.key, None)
    _event(projection, fact, "lease.released", key=fact.key, holder=lease.holder)


def _error_json(error: ErrorInfo) -> Json:
    return {name: value for name, value in attrs.asdict(error).items() if value is not None}


# Looked up once: an enum's member by its class takes as long as an attribute of an object.
_RUNNING, _COMPLETED = StepStatus.RUNNING, StepStatus.COMPLETED

_APPLY: dict[type[f.Fact], Callable[[Projection, Any], None]] = {
    f.RunStarted: _run_started,
    f.RunEnded: _run_ended,
    f.RunDied: _run_died,
    f.StepStarted: _step_started,
    f.StepCompleted: _step_completed,
    f.StepFailed: _step_failed,
    f.StepLimited: _step_limited,
    f.StepWaiting: _step_waiting,
    f.StepAbandoned: _step_abandoned,
    f.StepsReset: _steps_reset,
    f.StateUpdated: _state_updated,
    f.StatusSet: _status_set,
    f.CommandsMarked: _commands_marked,
    f.CommandBegun: _command_begun,
    f.EventAppended: _event_appended,
    f.HeartbeatRecorded: _heartbeat_recorded,
    f.LeaseTouched: _lease_touched,
    f.LeaseReleased: _lease_released,
}
