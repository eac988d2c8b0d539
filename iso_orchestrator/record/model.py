"""The records that users see: the npm package's, field by field, in snake_case."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.record.markup import html_table

__all__ = [
    "ErrorInfo",
    "Heartbeat",
    "Json",
    "Lease",
    "LeaseStatus",
    "StepRecord",
    "StepStatus",
    "WorkflowEvent",
    "WorkflowRecord",
    "WorkflowStatus",
    "WorkflowSummary",
    "lease_status",
    "truncate_to_ms",
]

# Dicts with text keys, lists, texts, ints, finite floats, bools and None, as deep as they go.
Json: TypeAlias = Any

_SHOWN = 200  # rows of a table; a notebook that shows 100,000 steps shows none


class WorkflowStatus(StrEnum):
    """What a workflow is doing."""

    IDLE = "idle"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class StepStatus(StrEnum):
    """What became of a step; a step that is tried again says `failed` in between."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class LeaseStatus(StrEnum):
    """Whether a lease is worth anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    RELEASED = "released"


class _Shown:
    """A record that a notebook shows as a table of its fields."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        rows = [
            (field.name, value)
            for field in attrs.fields(type(self))  # type: ignore[arg-type]  # only attrs classes derive from it
            if (value := getattr(self, field.name)) is not None
        ]
        return html_table(type(self).__name__, ["field", "value"], rows)


@attrs.frozen
class ErrorInfo(_Shown):
    """An error as it is recorded.

    Attributes:
        name: The class of the error.
        message: What it said.
        stack: The traceback as text.
        code: Its `code`, where that is a text.
        cause: What its cause said.
    """

    name: str
    message: str
    stack: str | None = None
    code: str | None = None
    cause: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """What there is to say of *error*, even if it cannot say it itself."""
        cause = error.__cause__ or error.__context__
        return cls(
            name=type(error).__name__,
            message=_message(error),
            stack=_stack(error),
            code=_code(error),
            cause=_message(cause) if cause else None,
        )


@attrs.frozen
class StepRecord(_Shown):
    """One step. `attempts` counts from 1, over crashes too; `result` is JSON."""

    name: str
    status: StepStatus
    attempts: int
    updated_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    idempotency_key: str | None = None
    result: Json = None
    error: ErrorInfo | None = None


@attrs.frozen
class WorkflowEvent(_Shown):
    """Something that happened. The record's events are in the order in which it did, whatever clocks said."""

    at: datetime
    type: str
    message: str | None = None
    detail: Json = None


@attrs.frozen
class Heartbeat(_Shown):
    """The last sign of life under a key."""

    key: str
    at: datetime
    detail: Json = None


@attrs.frozen
class Lease(_Shown):
    """Who may act under a key, and until when.

    Attributes:
        token: Grows with every acquisition, is kept by renewals. Hand it to what the lease protects, and let that
            refuse smaller ones (a fencing token, Kleppmann 2016, "How to do distributed locking").
    """

    key: str
    holder: str
    acquired_at: datetime
    heartbeat_at: datetime
    expires_at: datetime
    released_at: datetime | None = None
    detail: Json = None
    token: int = 0


@attrs.frozen
class WorkflowRecord:
    """A workflow as it stood at one moment; what happens later does not change it."""

    workflow_id: str
    status: WorkflowStatus
    created_at: datetime
    updated_at: datetime
    state: Json
    steps: Mapping[str, StepRecord] = attrs.field(factory=dict)
    events: tuple[WorkflowEvent, ...] = ()
    heartbeats: Mapping[str, Heartbeat] = attrs.field(factory=dict)
    leases: Mapping[str, Lease] = attrs.field(factory=dict)
    last_error: ErrorInfo | None = None
    version: int = 1

    def _repr_html_(self) -> str:
        steps = list(self.steps.values())
        rows = [
            (step.name, step.status, step.attempts, step.updated_at.isoformat(), _outcome(step))
            for step in steps[-_SHOWN:]
        ]
        shown = f", the last {_SHOWN} shown" if len(steps) > _SHOWN else ""
        caption = f"{self.workflow_id}: {self.status}, {len(steps)} steps{shown}, {len(self.events)} events"
        return html_table(caption, ["step", "status", "attempts", "updated", "result or error"], rows)


@attrs.frozen
class WorkflowSummary:
    """A workflow in a line; `steps` counts by status."""

    workflow_id: str
    status: WorkflowStatus
    created_at: datetime
    updated_at: datetime
    steps: Mapping[StepStatus, int]
    last_error: ErrorInfo | None = None

    def _repr_html_(self) -> str:
        rows = [(status.value, count) for status, count in self.steps.items()]
        return html_table(f"{self.workflow_id}: {self.status}", ["step status", "count"], rows)


def lease_status(lease: Lease, now: datetime | None = None) -> LeaseStatus:
    """Whether *lease* is active, expired or released at *now* (aware; default: the wall clock).

    Raises:
        TypeError: *lease* is no Lease, or *now* no datetime.
        ValueError: *now* is naive.

    Example:
        >>> moment = datetime(2026, 5, 14, tzinfo=UTC)
        >>> lease = Lease("slot", "alpha", moment, moment, expires_at=moment)
        >>> lease_status(lease, moment)
        <LeaseStatus.EXPIRED: 'expired'>
    """
    if not isinstance(lease, Lease):
        raise TypeError(f"lease_status takes a Lease, not {lease!r:.80}")
    if now is not None and not isinstance(now, datetime):
        raise TypeError(f"now is a datetime or None, not {now!r:.80}")
    moment = datetime.now(UTC) if now is None else now
    if moment.tzinfo is None:
        raise ValueError("now is a naive datetime: use datetime.now(UTC)")
    if lease.released_at is not None:
        return LeaseStatus.RELEASED
    return LeaseStatus.EXPIRED if lease.expires_at <= truncate_to_ms(moment) else LeaseStatus.ACTIVE


def truncate_to_ms(moment: datetime) -> datetime:
    """*moment* without its microseconds, as records keep it."""
    beyond = moment.microsecond % 1000
    return moment.replace(microsecond=moment.microsecond - beyond) if beyond else moment


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a broken __str__ must not hide the error that has it
        return f"<the message cannot be had: {type(broken).__name__}>"


def _code(error: BaseException) -> str | None:
    try:
        code = getattr(error, "code", None)
    except Exception:  # noqa: BLE001 - as above
        return None
    return code if isinstance(code, str) else None


def _stack(error: BaseException) -> str | None:
    try:
        return "".join(traceback.format_exception(error, limit=50))
    except Exception:  # noqa: BLE001 - as above
        return None


def _outcome(step: StepRecord) -> str:
    if step.error is not None:
        return f"{step.error.name}: {step.error.message}"
    return repr(step.result) if step.status is StepStatus.COMPLETED else ""
