"""Records as text for terminals, and as JSON. Every recorded text in it is only text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import attrs

from iso_orchestrator.commands.output import log_path
from iso_orchestrator.record.markup import escape_terminal
from iso_orchestrator.record.model import (
    ErrorInfo,
    Json,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowRecord,
    WorkflowSummary,
    lease_status,
)

__all__ = ["json_text", "record_text", "summaries_text", "summary_json", "text_table"]

_CELL = 100  # characters; results and errors can be of any length, and `--json` has them whole
_EVENTS = 20  # the last ones


def record_text(record: WorkflowRecord, path: str) -> str:
    """A record for a terminal: what it is, its steps, its last events, heartbeats and leases.

    Args:
        record: The record.
        path: Where its snapshot is.
    """
    parts = [
        _head(record, path),
        _section(
            "steps",
            len(record.steps),
            ["name", "status", "attempts", "updated", "result or error"],
            (_step_row(step) for step in record.steps.values()),
        ),
        _logs(record),
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
            ((beat.key, _time(beat.at), _json_cell(beat.detail)) for beat in record.heartbeats.values()),
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
                    _time(lease.expires_at),
                    _json_cell(lease.detail),
                )
                for lease in record.leases.values()
            ),
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def summaries_text(summaries: Iterable[WorkflowSummary]) -> str:
    """Workflows for a terminal, one a line."""
    rows = [
        (
            summary.workflow_id,
            summary.status,
            _count(summary.steps),
            _time(summary.updated_at),
            _error_cell(summary.last_error),
        )
        for summary in summaries
    ]
    return text_table(["workflow", "status", "steps", "updated", "last error"], rows)


def summary_json(summary: WorkflowSummary) -> dict[str, Json]:
    """A summary as JSON, its keys in camelCase as a record's; every step status has its count."""
    fields: dict[str, Json] = {
        "workflowId": summary.workflow_id,
        "status": summary.status.value,
        "createdAt": _iso(summary.created_at),
        "updatedAt": _iso(summary.updated_at),
        "steps": {status.value: summary.steps.get(status, 0) for status in StepStatus},
    }
    if summary.last_error is not None:
        error = attrs.asdict(summary.last_error)
        fields["lastError"] = {name: value for name, value in error.items() if value is not None}
    return fields


def json_text(value: Json) -> str:
    """JSON for people and programs: indented, in ASCII, so that nothing in it drives a terminal."""
    return json.dumps(value, indent=2, allow_nan=False)


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Columns of text, left-aligned; cells are escaped and cut.

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


def _head(record: WorkflowRecord, path: str) -> str:
    lines = [
        f"{_cell(record.workflow_id)}: {record.status}",
        f"created {_time(record.created_at)}, updated {_time(record.updated_at)}",
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


def _logs(record: WorkflowRecord) -> str:
    """Where the commands' output is; whole, since a path that is cut leads nowhere."""
    found = ((step.name, log_path(step, record.heartbeats)) for step in record.steps.values())
    lines = [f"{_cell(name)}: {escape_terminal(path)}" for name, path in found if path is not None]
    return "\n".join([f"logs ({len(lines)})", *lines]) if lines else ""


def _step_row(step: StepRecord) -> Sequence[str]:
    outcome = _error_cell(step.error)
    if step.status is StepStatus.COMPLETED:
        outcome = _command_cell(step.result) or _json_cell(step.result)
    return step.name, step.status, str(step.attempts), _time(step.updated_at), outcome


def _command_cell(result: Json) -> str:
    """What a command came to; "" where the result is another's."""
    match result:
        case {"exit_code": int(code), "duration": int() | float() as seconds, "log_path": str(), "parsed": parsed}:
            return ", ".join([f"exit {code} in {seconds:.1f} s", *_agent_parts(parsed)])
    return ""


def _agent_parts(parsed: Json) -> Iterable[str]:
    match parsed:
        case {"outcome": str(outcome), "cost_usd": cost}:
            return [outcome] if cost is None else [outcome, f"${cost:.4f}"]
    return []


def _event_row(event: WorkflowEvent) -> Sequence[str]:
    return _time(event.at), event.type, event.message or "", _json_cell(event.detail)


def _count(steps: Mapping[StepStatus, int]) -> str:
    return ", ".join(f"{steps[status]} {status}" for status in StepStatus if steps.get(status))


def _error_cell(error: ErrorInfo | None) -> str:
    return f"{error.name}: {error.message}" if error else ""


def _json_cell(value: Json) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    escaped = escape_terminal(text[: _CELL + 1])  # escaping only makes longer
    return escaped if len(escaped) <= _CELL else f"{escaped[: _CELL - 3]}..."


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
