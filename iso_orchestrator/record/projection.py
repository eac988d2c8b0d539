"""The record in the making: facts go in, records come out. No I/O, no clock, no randomness."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from iso_orchestrator.record.model import (
    ErrorInfo,
    Heartbeat,
    Json,
    Lease,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowStatus,
    WorkflowSummary,
)
from iso_orchestrator.record.workflow_record import WorkflowRecord

if TYPE_CHECKING:
    from iso_orchestrator.record.facts import Fact

T = TypeVar("T", WorkflowRecord, WorkflowSummary)


@attrs.frozen
class LiveRun:
    """A run that has started, and has neither ended nor been found dead. Runs are numbered from 1; 0: not known."""

    owner: str
    pid: int
    host: str
    since: datetime
    number: int = 0


_step_record_values = attrgetter(*[field.name for field in attrs.fields(StepRecord)])


@attrs.define
class StepState:
    """A step in the making: the fields of its `StepRecord`, and those that the npm package does not know.

    Attributes:
        owner: The id of the process that runs it; None while no process does.
        version: A part of its identity.
        code: The digest of the code that ran, as `Origin` has it.
        arguments: The arguments that its name does not show, as `Origin` has them.
        limited: How many usage limits in a row its attempts have met, up to the last attempt.
        seq: The sequence of the last fact about it; not part of a snapshot, which is synced whole.
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
    code: str | None = None
    arguments: Json = None
    limited: int = 0
    seq: int = attrs.field(default=0, init=False)

    def fail(self, at: datetime, seq: int, error: ErrorInfo) -> None:
        """Note that the last attempt failed."""
        self.status = StepStatus.FAILED
        self.updated_at = at
        self.completed_at = self.result = None
        self.error = error
        self.seq = seq

    def record(self) -> StepRecord:
        """The step as users see it."""
        return StepRecord(*map(copy_json, _step_record_values(self)))


@attrs.frozen
class LeaseClock:
    """When a lease expires by the boot clock, in seconds since that boot."""

    boot_id: str
    expires: float


@attrs.frozen
class Limit:
    """A usage limit that ends at *until*; *key* names it, if other steps share it."""

    until: datetime
    key: str | None = None


@attrs.frozen
class Wait:
    """A call of a step that waits for the end of a limit, in the process *owner*."""

    owner: str
    since: datetime
    until: datetime
    key: str | None = None


@attrs.frozen
class LastCommand:
    """The last command that a step began: its process tag, and the file of its standard output."""

    mark: str
    log: str


@attrs.define(kw_only=True)
class Projection:
    """A record in the making. A fact changes it in place, so that its cost does not depend on how many came before.

    A snapshot holds all fields. `WorkflowRecord` and `WorkflowSummary` get those that they have too, by their names.

    Attributes:
        seq: The sequence of the last fact.
        run_count: How many runs have started; 0 also where an earlier release has not counted them.
        run_failed: Whether a run of the overlapping group has failed, and was not just cut short while others went on.
        tokens: The highest fencing token of each lease key.
        limits: For each limit key, when its limit ends.
        step_limits: For each step that met a limit, when that ends.
        step_limit_keys: For each step that met a limit with a key, that key.
        waits: Calls of steps that wait for a limit, or waited when their process ended.
        command_seed: What the process tags of the workflow's commands are derived from.
        commands: For each step, reset ones included, the last command, of which processes may be left.
        unknown: Top-level keys of a snapshot that another program wrote.
    """

    workflow_id: str
    status: WorkflowStatus
    created_at: datetime
    updated_at: datetime
    state: Json
    steps: dict[str, StepState] = attrs.field(factory=dict)
    events: list[WorkflowEvent] = attrs.field(factory=list)
    heartbeats: dict[str, Heartbeat] = attrs.field(factory=dict)
    leases: dict[str, Lease] = attrs.field(factory=dict)
    last_error: ErrorInfo | None = None

    seq: int = 0
    runs: dict[str, LiveRun] = attrs.field(factory=dict)
    run_count: int = 0
    run_failed: bool = False
    tokens: dict[str, int] = attrs.field(factory=dict)
    lease_clocks: dict[str, LeaseClock] = attrs.field(factory=dict)
    limits: dict[str, datetime] = attrs.field(factory=dict)
    step_limits: dict[str, datetime] = attrs.field(factory=dict)
    step_limit_keys: dict[str, str] = attrs.field(factory=dict)
    waits: dict[str, Wait] = attrs.field(factory=dict)
    command_seed: str | None = None
    commands: dict[str, LastCommand] = attrs.field(factory=dict)
    unknown: dict[str, Json] = attrs.field(factory=dict)

    @classmethod
    def new(cls, workflow_id: str, at: datetime, state: Json) -> Projection:
        """The record before the first fact."""
        return cls(
            workflow_id=workflow_id, status=WorkflowStatus.IDLE, created_at=at, updated_at=at, state=copy_json(state)
        )

    def apply(self, fact: Fact) -> None:
        """Add *fact* as the next one.

        Example:
            >>> from datetime import UTC
            >>> from iso_orchestrator.record.facts import StateUpdated
            >>> moment = datetime(2026, 5, 14, tzinfo=UTC)
            >>> projection = Projection.new("batch", moment, {"applied": 0})
            >>> projection.apply(StateUpdated(moment, {"applied": 1}))
            >>> projection.record().state
            {'applied': 1}
        """
        self.seq += 1
        self.updated_at = fact.at
        fact.apply_to(self)

    def record(self, *, is_alive: bool = False) -> WorkflowRecord:
        """The record as users see it. It shares no mutable value with this projection."""
        return self._shown_as(
            WorkflowRecord,
            is_alive=is_alive,
            steps={name: self._step_record(name, status) for name, status in self._statuses().items()},
            events=tuple([WorkflowEvent(e.at, e.type, e.message, copy_json(e.detail)) for e in self.events]),
            heartbeats={
                key: attrs.evolve(beat, detail=copy_json(beat.detail)) for key, beat in self.heartbeats.items()
            },
            leases={key: attrs.evolve(lease, detail=copy_json(lease.detail)) for key, lease in self.leases.items()},
        )

    def summary(self) -> WorkflowSummary:
        """The workflow in one line."""
        return self._shown_as(WorkflowSummary, steps=Counter(self._statuses().values()))

    def _statuses(self) -> dict[str, StepStatus]:
        """The status of each step as users see it, also of those that wait for a limit and have not begun."""
        waiting = [name for name, wait in self.waits.items() if wait.until > self.updated_at]
        shown = {name: step.status for name, step in self.steps.items()}
        for name in (*waiting, *(name for name, step in self.steps.items() if step.limited)):
            if shown.get(name, StepStatus.FAILED) is StepStatus.FAILED:
                shown[name] = StepStatus.WAITING
        return shown

    def _step_record(self, name: str, status: StepStatus) -> StepRecord:
        step = self.steps.get(name)
        if step is None:
            return StepRecord(name, status, 0, self.waits[name].since)
        record = step.record()
        return record if record.status is status else attrs.evolve(record, status=status)

    def _shown_as(self, kind: type[T], **made: Any) -> T:
        names = (attrs.fields_dict(kind).keys() & attrs.fields_dict(type(self)).keys()) - made.keys()
        return kind(**made, **{name: copy_json(getattr(self, name)) for name in names})

    def matching(self, name: str, idempotency_key: str | None, version: str | None) -> StepState | None:
        """The step *name*, if its key and version are equal too."""
        step = self.steps.get(name)
        if step is None or step.idempotency_key != idempotency_key or step.version != version:
            return None
        return step

    def limit(self, name: str, limit_key: str | None) -> Limit | None:
        """The limit of a step, which may be over: its own or that of its key, whichever ends later."""
        own = self.step_limits.get(name)
        shared = None if limit_key is None else self.limits.get(limit_key)
        if own is not None and (shared is None or own >= shared):
            return Limit(own, self.step_limit_keys.get(name))
        return None if shared is None else Limit(shared, limit_key)

    def count_run(self) -> int:
        """Count one more run; its number."""
        self.run_count = self.run_count or sum(event.type == "workflow.running" for event in self.events)
        self.run_count += 1
        return self.run_count

    def run_of(self, owner: str) -> int | None:
        """The number of the last run that a process has begun and not ended."""
        for run in reversed(self.runs.values()):
            if run.owner == owner:
                return run.number or None
        return None

    def end_run(self, error: ErrorInfo | None, *, is_cut_short: bool) -> None:
        """Set the status that the workflow has after one of its runs, which is not among `runs` any more, ended.

        A run that was cut short leaves its work to the others: it makes the workflow fail only if it is the last one.
        """
        if error is not None:
            self.run_failed = self.run_failed or not is_cut_short
            self.last_error = error
        if self.runs:
            self.status = WorkflowStatus.RUNNING
        elif self.run_failed or error is not None:
            self.run_failed = True
            self.status = WorkflowStatus.FAILED
        else:
            self.status = WorkflowStatus.COMPLETED
            self.last_error = None

    def drop_expired_limits(self, at: datetime) -> None:
        """Forget limits, and waits for them, that are over at a time."""
        self.limits = {key: until for key, until in self.limits.items() if until > at}
        self.step_limits = {step: until for step, until in self.step_limits.items() if until > at}
        self.step_limit_keys = {step: key for step, key in self.step_limit_keys.items() if step in self.step_limits}
        self.waits = {step: wait for step, wait in self.waits.items() if wait.until > at}

    def last_seen(self, run: LiveRun) -> datetime:
        """The time of the last fact that can be one of the process of *run*."""
        if all(other.owner == run.owner for other in self.runs.values()):
            return self.updated_at
        seen, is_own = run.since, dict[str, bool]()  # by step: whether the process began its last attempt
        for event in self.events:
            detail = event.detail if isinstance(event.detail, dict) else {}
            step, number = detail.get("step"), detail.get("run")
            if event.type == "step.started" and isinstance(step, str):
                is_own[step] = number == run.number
            if number == run.number or (isinstance(step, str) and number is None and is_own.get(step)):
                seen = max(seen, event.at)
        return seen

    def owner(self, name: str) -> str | None:
        """The id of the process that runs a step."""
        step = self.steps.get(name)
        return None if step is None else step.owner

    def owners(self) -> set[str]:
        """The ids of all processes that run or wait for anything."""
        of_steps = {step.owner for step in self.steps.values() if step.owner is not None}
        return of_steps | {run.owner for run in self.runs.values()} | {wait.owner for wait in self.waits.values()}


def copy_json(value: Json) -> Json:
    """A copy of *value* that shares no dict and no list with it."""
    kind = type(value)
    if kind is dict:
        return {key: copy_json(item) if type(item) in _CONTAINERS else item for key, item in value.items()}
    if kind is list:
        return [copy_json(item) if type(item) in _CONTAINERS else item for item in value]
    return value


_CONTAINERS = frozenset({dict, list})
