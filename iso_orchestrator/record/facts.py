"""What can happen to a workflow: one immutable class for each fact, with its effect on the record.

Features decide which facts to append; nothing else changes a record. A new fact needs a class here and a row in the
page of the format. What it changes in a `Projection` goes into snapshots by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, TypeVar

import attrs

from iso_orchestrator.record.events import (
    RUN_DIED,
    add_end,
    add_event,
    add_interruptions,
    add_run,
    add_start,
    error_json,
    last_seen,
)
from iso_orchestrator.record.model import (
    ABSENT,
    ErrorInfo,
    Heartbeat,
    Json,
    Lease,
    StepStatus,
    WorkflowEvent,
    WorkflowStatus,
    format_time,
)
from iso_orchestrator.record.projection import LastCommand, LeaseClock, LiveRun, StepState, Wait

if TYPE_CHECKING:
    from iso_orchestrator.record.projection import Projection


_CTRL_C = KeyboardInterrupt.__name__


@attrs.frozen
class Fact:
    """Something that happened at the time *at*."""

    tag: ClassVar[str]
    at: datetime

    def apply_to(self, projection: Projection) -> None:
        """Change *projection*, whose sequence counts this fact already."""
        raise NotImplementedError


FACTS: dict[str, type[Fact]] = {}
"""Every kind of fact by its tag."""

F = TypeVar("F", bound=Fact)


def _tagged(tag: str) -> Callable[[type[F]], type[F]]:
    """Name a kind of fact in journals. Tags are the format: they never change."""

    def register(kind: type[F]) -> type[F]:
        kind.tag = tag
        FACTS[tag] = kind
        return kind

    return register


@_tagged("run.started")
@attrs.frozen
class RunStarted(Fact):
    """A process entered `with workflow:`. It holds the liveness file *owner*.

    Attributes:
        argv: The first words of its command line.
        cwd: The folder that it was in.
        traceparent: The trace that its environment names, as the W3C writes it.
    """

    run: str
    owner: str
    pid: int
    host: str
    argv: tuple[str, ...] = ()
    cwd: str | None = None
    traceparent: str | None = None

    def apply_to(self, projection: Projection) -> None:
        if not projection.runs:
            projection.run_failed = False
            projection.last_error = None
        number = projection.count_run()
        projection.runs[self.run] = LiveRun(self.owner, self.pid, self.host, self.at, number)
        projection.status = WorkflowStatus.RUNNING
        add_run(projection, self, number)


@_tagged("run.ended")
@attrs.frozen
class RunEnded(Fact):
    """A run ended normally, or with *error*."""

    run: str
    error: ErrorInfo | None = None

    def apply_to(self, projection: Projection) -> None:
        run = projection.runs.pop(self.run, None)
        is_cut_short = self.error is not None and self.error.name == _CTRL_C
        add_end(projection, self.at, run, self.error)
        projection.end_run(self.error, is_cut_short=is_cut_short)


@_tagged("run.died")
@attrs.frozen
class RunDied(Fact):
    """Another process found that the process of a run is gone, which was last seen alive at *last_seen*."""

    run: str
    last_seen: datetime | None = None

    def apply_to(self, projection: Projection) -> None:
        run = projection.runs.pop(self.run, None)
        if run is not None:
            add_interruptions(projection, run, self)
        who = f"process {run.pid} on {run.host}, running since {run.since.isoformat()}" if run else "its process"
        error = ErrorInfo(RUN_DIED, f"{who} is gone without having ended its run")
        add_end(projection, self.at, run, error, {"died": True, **last_seen(self)})
        projection.end_run(error, is_cut_short=True)


@_tagged("step.started")
@attrs.frozen
class StepStarted(Fact):
    """An attempt at a step began, in the process *owner*. `Origin` says what *code* and *arguments* are.

    Attributes:
        item: Of a `for_each`: the number of that, and the item's index; empty outside of one.
        of: How many attempts its call makes at most.
        parent: The step in whose body it was called.
        fn: The function, where the name does not begin with that of it.
        timeout: Seconds.
    """

    step: str
    attempt: int
    owner: str
    idempotency_key: str | None = None
    version: str | None = None
    code: str | None = None
    arguments: Json = None
    item: tuple[int, ...] = ()
    of: int = 1
    parent: str | None = None
    fn: str | None = None
    if_interrupted: str = "rerun"
    timeout: float | None = None

    def apply_to(self, projection: Projection) -> None:
        projection.waits.pop(self.step, None)
        before = projection.steps.get(self.step)
        step = projection.steps[self.step] = StepState(
            self.step,
            StepStatus.RUNNING,
            self.attempt,
            updated_at=self.at,
            started_at=self.at,
            idempotency_key=self.idempotency_key,
            owner=self.owner,
            version=self.version,
            code=self.code,
            arguments=self.arguments,
            limited=0 if before is None else before.limited,
        )
        step.seq = projection.seq
        add_start(projection, self)


@_tagged("step.completed")
@attrs.frozen
class StepCompleted(Fact):
    """An attempt succeeded.

    Attributes:
        state: The workflow's new state, if the step updated it.
        usage: What its agent used: see the page of the format.
    """

    step: str
    result: Json
    state: Json = ABSENT
    usage: Json = None

    def apply_to(self, projection: Projection) -> None:
        step = projection.steps[self.step]
        step.status = StepStatus.COMPLETED
        step.updated_at = step.completed_at = self.at
        step.result = self.result
        step.error = None
        step.owner = None
        step.limited = 0
        step.seq = projection.seq
        if not projection.run_failed:  # the error that failed a run outlives later steps of overlapping runs
            projection.last_error = None
        detail: dict[str, Json] = {"step": step.name, "attempt": step.attempts}
        if self.usage is not None:
            detail["usage"] = self.usage
        add_event(projection, self.at, "step.completed", detail)
        if self.state is not ABSENT:
            projection.state = self.state
            add_event(projection, self.at, "state.updated")


@_tagged("step.failed")
@attrs.frozen
class StepFailed(Fact):
    """An attempt failed. With *retrying* its process keeps the step and will try again, after a pause at *retry_at*."""

    step: str
    error: ErrorInfo
    retrying: bool = False
    retry_at: datetime | None = None
    usage: Json = None

    def apply_to(self, projection: Projection) -> None:
        step = projection.steps[self.step]
        step.fail(self.at, projection.seq, self.error)
        step.limited = 0
        projection.last_error = self.error
        detail = {"step": self.step, "attempt": step.attempts, "error": error_json(self.error)}
        if self.usage is not None:
            detail["usage"] = self.usage
        if self.retry_at is not None:
            detail["retryAt"] = format_time(self.retry_at)
        add_event(projection, self.at, "step.retrying" if self.retrying else "step.failed", detail)
        if not self.retrying:
            step.owner = None


@_tagged("step.limited")
@attrs.frozen
class StepLimited(Fact):
    """An attempt met a usage limit, and does not count.

    Before *until* neither the step nor any other step with the limit key *key* begins.
    """

    step: str
    until: datetime
    key: str | None = None
    usage: Json = None

    def apply_to(self, projection: Projection) -> None:
        step = projection.steps[self.step]
        projection.drop_expired_limits(self.at)
        if projection.step_limits.get(self.step, self.until) <= self.until:
            projection.step_limits[self.step] = self.until
            keys = {**projection.step_limit_keys, self.step: self.key}
            projection.step_limit_keys = {
                step: key for step in projection.step_limits if (key := keys.get(step)) is not None
            }
        if self.key is not None:
            projection.limits[self.key] = max(self.until, projection.limits.get(self.key, self.until))
        if step.owner is not None:
            projection.waits[self.step] = Wait(step.owner, self.at, self.until, self.key)
        until = self.until.isoformat(timespec="seconds")
        step.fail(self.at, projection.seq, ErrorInfo("Limited", f"{self.key or 'the step'} is limited until {until}"))
        detail = {"step": self.step, "attempt": step.attempts, "until": until, "limitKey": self.key}
        if self.usage is not None:
            detail["usage"] = self.usage
        add_event(projection, self.at, "step.limited", detail)
        step.attempts -= 1
        step.limited += 1


@_tagged("step.waiting")
@attrs.frozen
class StepWaiting(Fact):
    """A call of a step, in the process *owner*, waits until a limit ends; with `until=None` it no longer waits."""

    step: str
    owner: str
    until: datetime | None = None
    key: str | None = None
    item: tuple[int, ...] = ()

    def apply_to(self, projection: Projection) -> None:
        before = projection.waits.get(self.step)
        is_new = before is None or before.owner != self.owner  # else a new limit follows one that it waited for
        projection.drop_expired_limits(self.at)
        if self.until is not None:
            projection.waits[self.step] = Wait(self.owner, self.at, self.until, self.key)
            if not is_new:
                return
            until = self.until.isoformat(timespec="seconds")
            detail: dict[str, Json] = {"step": self.step, "until": until, "limitKey": self.key}
            if self.item:
                detail["item"] = list(self.item)
            add_event(projection, self.at, "step.waiting", detail)
        elif (wait := projection.waits.get(self.step)) is not None and wait.owner == self.owner:
            del projection.waits[self.step]


@_tagged("step.abandoned")
@attrs.frozen
class StepAbandoned(Fact):
    """An attempt ended without an outcome, so that no caller has to wait for it."""

    step: str

    def apply_to(self, projection: Projection) -> None:
        step = projection.steps[self.step]
        step.owner = None
        add_event(projection, self.at, "step.abandoned", {"step": self.step, "attempt": step.attempts})


@_tagged("step.stopped")
@attrs.frozen
class StepStopped(Fact):
    """The process *pid* asked for the end of an attempt: its command is ended, and no attempt follows."""

    step: str
    attempt: int
    pid: int

    def apply_to(self, projection: Projection) -> None:
        projection.steps[self.step].stopped_by = self.pid
        detail = {"step": self.step, "attempt": self.attempt, "pid": self.pid}
        add_event(projection, self.at, "step.stopped", detail)


@_tagged("steps.reset")
@attrs.frozen
class StepsReset(Fact):
    """The process *pid* removed steps, so that they run again."""

    steps: tuple[str, ...]
    pid: int | None = None

    def apply_to(self, projection: Projection) -> None:
        detail: dict[str, Json] = {"steps": list(self.steps)}
        if self.pid is not None:
            detail["pid"] = self.pid
        add_event(projection, self.at, "steps.reset", detail)
        for name in self.steps:
            projection.steps.pop(name, None)
            projection.waits.pop(name, None)
            until, key = projection.step_limits.pop(name, None), projection.step_limit_keys.pop(name, None)
            # Lift the limit of the key too, if this step set it: a wrong one could not be lifted otherwise.
            if until is not None and key is not None and projection.limits.get(key) == until:
                del projection.limits[key]


@_tagged("state.updated")
@attrs.frozen
class StateUpdated(Fact):
    """The state was replaced."""

    state: Json

    def apply_to(self, projection: Projection) -> None:
        projection.state = self.state
        add_event(projection, self.at, "state.updated")


@_tagged("status.set")
@attrs.frozen
class StatusSet(Fact):
    """The user set the status."""

    status: WorkflowStatus
    error: ErrorInfo | None = None

    def apply_to(self, projection: Projection) -> None:
        projection.status = self.status
        projection.last_error = self.error
        detail = {"error": error_json(self.error)} if self.error else None
        add_event(projection, self.at, f"workflow.{self.status}", detail)


@_tagged("commands.marked")
@attrs.frozen
class CommandsMarked(Fact):
    """The workflow's first command is about to begin. The process tags of all commands are derived from *seed*."""

    seed: str

    def apply_to(self, projection: Projection) -> None:
        projection.command_seed = self.seed


@_tagged("command.begun")
@attrs.frozen
class CommandBegun(Fact):
    """A step's command is about to begin. No process of an earlier one is left.

    Attributes:
        mark: The tag by which its processes are found.
        log: The file of its standard output.
    """

    step: str
    mark: str
    log: str

    def apply_to(self, projection: Projection) -> None:
        projection.commands[self.step] = LastCommand(self.mark, self.log)
        step = projection.steps.get(self.step)
        attempt = {} if step is None else {"attempt": step.attempts}
        add_event(projection, self.at, "command.begun", {"step": self.step, **attempt, "log": self.log})


@_tagged("event.appended")
@attrs.frozen
class EventAppended(Fact):
    """An event was added that changes nothing else."""

    type: str
    message: str | None = None
    detail: Json = None

    def apply_to(self, projection: Projection) -> None:
        projection.events.append(WorkflowEvent(self.at, self.type, self.message, self.detail))


@_tagged("heartbeat.recorded")
@attrs.frozen
class HeartbeatRecorded(Fact):
    """A heartbeat was recorded; a *silent* one, within a background series, without an event."""

    key: str
    detail: Json = None
    silent: bool = False

    def apply_to(self, projection: Projection) -> None:
        projection.heartbeats[self.key] = Heartbeat(self.key, self.at, self.detail)
        if not self.silent:
            detail = {"key": self.key, "hasDetail": self.detail is not None}
            add_event(projection, self.at, "heartbeat.recorded", detail)


@_tagged("lease.touched")
@attrs.frozen
class LeaseTouched(Fact):
    """A lease was acquired, or renewed by its holder.

    Attributes:
        ttl: Seconds.
        boot_id: The boot of the machine that *boot_expires*, in seconds, counts from; both None without a boot clock.
    """

    key: str
    holder: str
    ttl: float
    acquired_at: datetime
    expires_at: datetime
    token: int
    renewed: bool
    detail: Json = None
    boot_id: str | None = None
    boot_expires: float | None = None

    def apply_to(self, projection: Projection) -> None:
        projection.leases[self.key] = Lease(
            key=self.key,
            holder=self.holder,
            acquired_at=self.acquired_at,
            heartbeat_at=self.at,
            expires_at=self.expires_at,
            detail=self.detail,
            token=self.token,
        )
        projection.tokens[self.key] = self.token
        if self.boot_id is None or self.boot_expires is None:
            projection.lease_clocks.pop(self.key, None)
        else:
            projection.lease_clocks[self.key] = LeaseClock(self.boot_id, self.boot_expires)
        milliseconds = round(min(self.ttl, 1e300) * 1000, 3)  # a journal may hold any float, but inf is not JSON
        ttl_ms = int(milliseconds) if milliseconds % 1 == 0 else milliseconds
        detail = {"key": self.key, "holder": self.holder, "ttlMs": ttl_ms}
        add_event(projection, self.at, "lease.renewed" if self.renewed else "lease.acquired", detail)


@_tagged("lease.released")
@attrs.frozen
class LeaseReleased(Fact):
    """A lease was released."""

    key: str

    def apply_to(self, projection: Projection) -> None:
        lease = projection.leases[self.key]
        projection.leases[self.key] = attrs.evolve(lease, released_at=self.at)
        projection.lease_clocks.pop(self.key, None)
        add_event(projection, self.at, "lease.released", {"key": self.key, "holder": lease.holder})
