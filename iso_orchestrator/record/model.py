"""What users see: records, with the fields of the npm package in snake_case, and texts that can do no harm."""

from __future__ import annotations

import html
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum, StrEnum
from functools import singledispatch
from typing import Any, Final, TypeAlias

import attrs

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.notes import message_of


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT
"""No value, where None is a value."""

Json: TypeAlias = Any
"""JSON: dicts with str keys, lists, str, int, finite float, bool and None, nested."""

_CELL = "text-align:left;vertical-align:top;white-space:pre-wrap"


class WorkflowStatus(StrEnum):
    """The status of a workflow."""

    IDLE = "idle"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class StepStatus(StrEnum):
    """The status of a step; between two attempts it is `failed`, and `waiting` while a process waits for a limit."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    WAITING = "waiting"


class LeaseStatus(StrEnum):
    """Whether a lease is valid."""

    ACTIVE = "active"
    EXPIRED = "expired"
    RELEASED = "released"


class Shown:
    """What a notebook shows."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return html_of(self)


@singledispatch
def html_of(shown: Any) -> str:
    """What a notebook shows: a table of the fields, unless `views.notebook` draws objects of that class."""
    fields = attrs.fields(type(shown))
    rows = [(field.name, value) for field in fields if (value := getattr(shown, field.name)) is not None]
    return html_table(type(shown).__name__, ["field", "value"], rows)


@attrs.frozen
class ErrorInfo(Shown):
    """A recorded error.

    Attributes:
        name: The name of its class.
        message: Its message.
        stack: The traceback as text.
        code: Its attribute `code`, if that is a str.
        cause: The message of its cause.
    """

    name: str
    message: str = attrs.field(repr=lambda text: f"{text!r:.200}")
    stack: str | None = attrs.field(default=None, repr=False)
    code: str | None = None
    cause: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Record *error*. Errors whose `__str__` or attributes raise are recorded too."""
        cause = error.__context__ if error.__cause__ is None else error.__cause__
        return cls(
            name=type(error).__name__,
            message=message_of(error),
            stack=_stack(error),
            code=_code(error),
            cause=None if cause is None else message_of(cause),
        )


@attrs.frozen
class StepRecord(Shown):
    """One step.

    Attributes:
        attempts: How many attempts have begun, those of crashed processes included.
        result: The JSON of what the step returned.
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


@attrs.frozen
class WorkflowEvent(Shown):
    """Something that happened. Events are in the order in which they happened, whatever the clocks said."""

    at: datetime
    type: str
    message: str | None = None
    detail: Json = None


@attrs.frozen
class Heartbeat(Shown):
    """The last heartbeat under a key."""

    key: str
    at: datetime
    detail: Json = None


@attrs.frozen
class Lease(Shown):
    """The right to act under a key until a time.

    Attributes:
        token: A fencing token: grows with every acquisition, and is kept by renewals. Pass it to the resource that the
            lease protects, and let that refuse smaller ones (Kleppmann 2016, "How to do distributed locking").
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
class WorkflowSummary:
    """A workflow in one line; `steps` counts steps by status."""

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
    """Whether *lease* is active, expired or released at *now*, an aware datetime (default: the wall clock).

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
    """Cut *moment* to milliseconds, as records do."""
    beyond = moment.microsecond % 1000
    return moment.replace(microsecond=moment.microsecond - beyond) if beyond else moment


def format_time(moment: datetime) -> str:
    """*moment*, which is in UTC, as records have it."""
    global _second
    of_second = (moment.second, moment.minute, moment.hour, moment.day, moment.month, moment.year)
    known = _second
    if known[0] != of_second:
        known = _second = (of_second, moment.isoformat()[:19])
    return f"{known[1]}.{moment.microsecond // 1000:03d}Z"


# The last second and its text: times come one after the other, and `isoformat` takes as long as all of the rest.
_second: tuple[tuple[int, ...], str] = ((), "")


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Make an HTML table in which all texts are escaped.

    Example:
        >>> html_table("<b>", ["n"], [[1]]).startswith("<table><caption>&lt;b&gt;</caption>")
        True
    """
    header = "".join(f"<th>{_html(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_html(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table><caption>{_html(caption)}</caption><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _html(value: object) -> str:
    return html.escape(escape_terminal(str(value)))


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
