"""A table of the steps that run or wait now, and one of the limits in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from iso_orchestrator.commands.output import last_line_of, log_path
from iso_orchestrator.record.model import StepStatus
from iso_orchestrator.record.projection import Projection, StepState, Wait
from iso_orchestrator.store import Store
from iso_orchestrator.views.report import text_table, time_text

_LINE = 60  # characters of a last line


def top_text(projections: Iterable[Projection], now: datetime, store: Store) -> str:
    """Show the steps that run or wait, each with its last line of output, and the limits that have a name.

    Args:
        projections: The workflows.
        now: The time, aware.
        store: Where they are.
    """
    steps: list[tuple[str, ...]] = []
    limits: list[tuple[str, ...]] = []
    for projection in projections:
        waits = _waits(projection, now, store)
        steps += _steps(projection, waits, now, store)
        limits += _limits(projection, waits, now)
    shown = [text_table(["workflow", "step", "attempt", "for", "what"], steps) if steps else "nothing is running"]
    if limits:
        shown.append(text_table(["workflow", "limit", "until", "left", "steps"], limits))
    return "\n\n".join(shown)


def _waits(projection: Projection, now: datetime, store: Store) -> dict[str, Wait]:
    return {
        step: wait
        for step, wait in projection.waits.items()
        if wait.until > now and store.is_alive(projection.workflow_id, wait.owner)
    }


def _steps(projection: Projection, waits: dict[str, Wait], now: datetime, store: Store) -> Iterator[tuple[str, ...]]:
    for step in projection.steps.values():
        if step.owner is not None and step.name not in waits:
            lives = store.is_alive(projection.workflow_id, step.owner)
            what = _activity(projection, step) if lives else "its process is gone; the next run takes it over"
            since = _span(step.started_at or step.updated_at, now)
            yield projection.workflow_id, step.name, str(step.attempts), since, what
    for name, wait in waits.items():
        attempts = projection.steps[name].attempts if name in projection.steps else 0
        what = f"waits for {f'the limit of {wait.key}' if wait.key else 'its limit'} until {time_text(wait.until)}"
        yield projection.workflow_id, name, str(attempts), _span(wait.since, now), what


def _activity(projection: Projection, step: StepState) -> str:
    if step.status is StepStatus.FAILED:
        return f"waits for its next attempt: {step.error.message if step.error else ''}"
    path = log_path(step, projection.heartbeats)
    return last_line_of(path)[:_LINE] if path is not None else ""


def _limits(projection: Projection, waits: dict[str, Wait], now: datetime) -> Iterator[tuple[str, ...]]:
    for key, until in projection.limits.items():
        if until > now:
            # A step that met the limit is shown even if its process is gone: its next call waits for the limit too.
            met = [name for name, met_key in projection.step_limit_keys.items() if met_key == key]
            names = dict.fromkeys([*met, *(name for name, wait in waits.items() if wait.key == key)])
            yield projection.workflow_id, key, time_text(until), _span(now, until), ", ".join(names)


def _span(begin: datetime, end: datetime) -> str:
    """Show the time between two moments as hours, minutes and seconds.

    Example:
        >>> _span(datetime(2026, 5, 14, 8), datetime(2026, 5, 14, 9, 2, 5, 500_000))
        '1:02:05'
    """
    seconds = max(0, int((end - begin).total_seconds()))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
