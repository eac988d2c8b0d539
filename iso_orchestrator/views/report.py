"""Records as text for terminals, and as JSON. No recorded text can drive a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.codec.records import write
from iso_orchestrator.commands.model import heartbeat_key
from iso_orchestrator.record.model import (
    ErrorInfo,
    Json,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowStatus,
    WorkflowSummary,
    lease_status,
)
from iso_orchestrator.record.projection import Projection, Wait
from iso_orchestrator.record.workflow_record import WorkflowRecord

_CELL = 100  # characters, at most: results and errors can be long, and `--json` shows all of them
_MOST = 1e12  # seconds, or dollars; what is more is no result of a command
_EVENTS = 20  # the last ones are shown


GONE = "its process is gone; the next run takes it over"


def record_text(projection: Projection, path: str, status: str, lives: Callable[[str], bool]) -> str:
    """Show a workflow on a terminal: its path, status, steps, logs, last events, heartbeats and leases.

    Args:
        projection: The workflow.
        path: Of its record.
        status: As `status_text` shows it.
        lives: Whether the process with that id lives.
    """
    record = projection.record()
    parts = [
        _head(record, path, status),
        _section(
            "steps",
            len(record.steps),
            ["name", "status", "attempts", "updated", "result or error"],
            (_step_row(step, projection, lives) for step in record.steps.values()),
        ),
        _log_section(projection),
        _section(
            "events",
            len(record.events),
            ["at", "type", "message", "detail"],
            (_event_row(event) for event in record.events[-_EVENTS:]),
        ),
        _section(
            "heartbeats",
            len(record.heartbeats),
            ["key", "at", "detail"],
            ((beat.key, time_text(beat.at), _json_cell(beat.detail)) for beat in record.heartbeats.values()),
        ),
        _section(
            "leases",
            len(record.leases),
            ["key", "status", "holder", "token", "expires", "detail"],
            (
                (
                    lease.key,
                    lease_status(lease),
                    lease.holder,
                    str(lease.token),
                    time_text(lease.expires_at),
                    _json_cell(lease.detail),
                )
                for lease in record.leases.values()
            ),
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def status_text(projection: Projection, now: datetime, *, is_alive: bool) -> str:
    """Show the status, and whether the processes that the record has runs of have died. When they did is not known."""
    if is_alive or not projection.runs or projection.status is not WorkflowStatus.RUNNING:
        return projection.status
    died = "its process died" if len(projection.runs) == 1 else "its processes died"
    return f"running ({died}, last seen {_age(now - projection.updated_at)} ago; the next run resumes it)"


def summaries_text(summaries: Iterable[tuple[WorkflowSummary, str]]) -> str:
    """Show workflows on a terminal, one a line, each with its status as `status_text` shows it."""
    rows = [
        (
            summary.workflow_id,
            status,
            _count(summary.steps),
            time_text(summary.updated_at),
            _error_cell(summary.last_error),
        )
        for summary, status in summaries
    ]
    return text_table(["workflow", "status", "steps", "updated", "last error"], rows)


def summary_json(summary: WorkflowSummary) -> dict[str, Json]:
    """Turn a summary into JSON, with keys in camelCase as in a record, and a count for every step status."""
    return {**write(summary), "steps": {status.value: summary.steps.get(status, 0) for status in StepStatus}}


def json_text(value: Json) -> str:
    """Write JSON for people and programs: indented, and in ASCII, so that it cannot drive a terminal."""
    return json.dumps(value, indent=2, allow_nan=False)


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Align rows of text in columns, to the left; cells are escaped and cut.

    Example:
        >>> print(text_table(["job", "status"], [("a", "completed"), ("b\x1b[31m", "failed")]))
        job        status
        a          completed
        b\x1b[31m  failed
    """
    lines = [[_cell(text) for text in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def time_text(moment: datetime) -> str:
    """Show a time in UTC.

    Example:
        >>> time_text(datetime(2026, 5, 14, 8, tzinfo=UTC))
        '2026-05-14 08:00:00Z'
    """
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _age(age: timedelta) -> str:
    """Show a time span in one unit.

    Example:
        >>> [_age(timedelta(seconds=seconds)) for seconds in (-1, 59.9, 3_600, 3 * 86_400)]
        ['0 s', '59 s', '1 h', '3 days']
    """
    seconds = max(0, int(age.total_seconds()))
    units = (("days", 2 * 86_400, 86_400), ("h", 3_600, 3_600), ("min", 60, 60), ("s", 0, 1))
    return next(f"{seconds // size} {unit}" for unit, least, size in units if seconds >= least)


def wait_text(wait: Wait) -> str:
    """Say what a step waits for, and until when."""
    return f"waits for {f'the limit of {wait.key}' if wait.key else 'its limit'} until {time_text(wait.until)}"


def _head(record: WorkflowRecord, path: str, status: str) -> str:
    lines = [
        f"{_cell(record.workflow_id)}: {status}",
        f"created {time_text(record.created_at)}, updated {time_text(record.updated_at)}",
        f"state: {_cell(_json_cell(record.state))}",
        f"record: {escape_terminal(path)}",
    ]
    if record.last_error is not None:
        lines.append(f"last error: {_cell(_error_cell(record.last_error))}")
    return "\n".join(lines)


def _section(what: str, count: int, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    if not count:
        return ""
    shown = list(rows)
    title = f"{what} ({count})" if len(shown) == count else f"{what} ({count}, the last {len(shown)})"
    return f"{title}\n{text_table(head, shown)}"


def _log_section(projection: Projection) -> str:
    """List the logs of commands, with whole paths: a path that is cut cannot be opened."""
    found = ((name, projection.commands[name].log) for name in projection.steps if name in projection.commands)
    lines = [f"{_cell(name)}: {escape_terminal(path)}" for name, path in found]
    return "\n".join([f"logs ({len(lines)})", *lines]) if lines else ""


def _step_row(step: StepRecord, projection: Projection, lives: Callable[[str], bool]) -> Sequence[str]:
    owner = projection.owner(step.name)
    outcome = GONE if owner is not None and not lives(owner) else _error_cell(step.error)
    if step.status is StepStatus.COMPLETED:
        is_command = step.name in projection.commands
        outcome = _json_cell(step.result) if not is_command else _command_cell(step, projection)
    elif step.error is None and (wait := projection.waits.get(step.name)) is not None:
        outcome = wait_text(wait)
    return step.name, step.status, str(step.attempts), time_text(step.updated_at), outcome


def _command_cell(step: StepRecord, projection: Projection) -> str:
    """Show the result of a command. A function of the user's may have made what was parsed, and another program all."""
    match step.result:
        case {"exit_code": int(code), "duration": int() | float() as seconds} if 0 <= seconds < _MOST:
            parts = [f"exit {code} in {seconds:.1f} s"]
        case _:
            return _json_cell(step.result)
    beat = projection.heartbeats.get(heartbeat_key(step.name))
    match beat and beat.detail, step.result.get("parsed"):
        case {"agent": str()}, {"outcome": str(outcome), **rest}:
            parts.append(outcome)
            match rest:
                case {"cost_usd": int() | float() as cost} if 0 <= cost < _MOST:
                    parts.append(f"${cost:.4f}")
    return ", ".join(parts)


def _event_row(event: WorkflowEvent) -> Sequence[str]:
    return time_text(event.at), event.type, event.message or "", _json_cell(event.detail)


def _count(steps: Mapping[StepStatus, int]) -> str:
    return ", ".join(f"{steps[status]} {status}" for status in StepStatus if steps.get(status))


def _error_cell(error: ErrorInfo | None) -> str:
    if error is None:
        return ""
    return f"{error.name}: {error.message}" if error.message else error.name  # Ctrl-C has no message


def _json_cell(value: Json) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    escaped = escape_terminal(text[: _CELL + 1])  # escaping makes a text longer, never shorter
    return escaped if len(escaped) <= _CELL else f"{escaped[: _CELL - 3]}..."
