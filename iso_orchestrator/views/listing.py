"""`list`: a line for each workflow."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from iso_orchestrator.record.history import History, Outcome
from iso_orchestrator.text import money_text, seconds_text, time_text
from iso_orchestrator.views.terminal import NONE, Cell, Column, Terminal
from iso_orchestrator.views.words import done_and_failed, is_running, status_span, status_words, steps_of

_COLUMNS = [
    Column("workflow", is_name=True),
    Column("status"),
    Column("steps", is_right=True),
    Column("took", is_right=True),
    Column("cost", is_right=True),
    Column("updated"),
]


def list_lines(histories: Iterable[History], terminal: Terminal) -> list[str]:
    """Show workflows, the one that changed last first."""
    newest_first = sorted(histories, key=lambda history: history.updated_at, reverse=True)
    unknown = NONE if any(history.totals.cost is not None for history in newest_first) else ""
    return terminal.table(_COLUMNS, [_row(history, terminal, unknown) for history in newest_first])


def is_listed(history: History, *, failed: bool, running: bool, since: timedelta | None, now: datetime) -> bool:
    """Whether a workflow is one of those that are asked for: with failures, running, and changed within *since*."""
    if since is not None and now - history.updated_at > since:
        return False
    if not failed and not running:
        return True
    return (failed and status_words(history)[0] is Outcome.FAILED) or (running and is_running(history))


def _row(history: History, terminal: Terminal, unknown: str) -> list[Cell]:
    steps, cost = steps_of(history), history.totals.cost
    return [
        history.workflow_id,
        status_span(history, terminal),
        f"{done_and_failed(steps)[0]}/{len(steps)}",
        seconds_text(history.totals.took) if history.runs or steps else NONE,
        unknown if cost is None else money_text(cost),
        time_text(history.updated_at, history.now),
    ]
