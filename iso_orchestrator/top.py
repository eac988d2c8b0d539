"""What runs now, since when, with its last line; and what waits for which limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from iso_orchestrator.command_log import last_line_of
from iso_orchestrator.fold import Fold, StepState
from iso_orchestrator.logs import log_path
from iso_orchestrator.model import StepStatus
from iso_orchestrator.report import text_table
from iso_orchestrator.store.file.fs import FileSystem

__all__ = ["top_text"]

_LINE = 60  # characters of a last line


def top_text(folds: Iterable[Fold], now: datetime, is_alive: Callable[[str, str], bool]) -> str:
    """A table of the steps in hand.

    Args:
        folds: The workflows.
        now: Aware.
        is_alive: Whether the process that has a step of a workflow in hand lives.
    """
    rows = [row for fold in folds for row in _rows(fold, now, is_alive)]
    if not rows:
        return "nothing is running"
    return text_table(["workflow", "step", "attempt", "for", "what"], rows)


def _rows(fold: Fold, now: datetime, is_alive: Callable[[str, str], bool]) -> Iterator[tuple[str, str, str, str, str]]:
    for step in fold.steps.values():
        if step.owner is not None:
            since = span((now - (step.started_at or step.updated_at)).total_seconds())
            lives = is_alive(fold.workflow_id, step.owner)
            what = _what(fold, step, now) if lives else "its process is gone; the next run takes it over"
            yield fold.workflow_id, step.name, str(step.attempts), since, what


def _what(fold: Fold, step: StepState, now: datetime) -> str:
    until = fold.step_limits.get(step.name)
    if step.status is StepStatus.FAILED and until is not None and until > now:
        keys = [key for key, end in fold.limits.items() if end == until]
        what = f"waits for the limit of {keys[0]}" if keys else "waits for its limit"
        return f"{what} until {until.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if step.status is StepStatus.FAILED:
        return f"waits for its next attempt: {step.error.message if step.error else ''}"
    path = log_path(fold, step.name)
    return last_line_of(FileSystem(), path)[:_LINE] if path is not None else ""


def span(seconds: float) -> str:
    """Some seconds, for people.

    Example:
        >>> span(3725.5), span(59.9)
        ('1:02:05', '0:00:59')
    """
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
