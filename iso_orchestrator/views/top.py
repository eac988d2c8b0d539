"""What runs now, since when, with its last line; what waits for which limit; and the limits in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from iso_orchestrator.commands.log import last_line_of
from iso_orchestrator.record.model import StepStatus
from iso_orchestrator.record.projection import Projection, StepState, Wait
from iso_orchestrator.store import Store
from iso_orchestrator.views.logs import log_path
from iso_orchestrator.views.report import text_table

__all__ = ["top_text"]

_LINE = 60  # characters of a last line


def top_text(projections: Iterable[Projection], now: datetime, store: Store) -> str:
    """A table of the steps in hand and of those that wait for a limit; below it one of the limits that have a name.

    Args:
        projections: The workflows.
        now: Aware.
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
            since = _seconds(step.started_at or step.updated_at, now)
            lives = store.is_alive(projection.workflow_id, step.owner)
            what = _what(projection, step, store) if lives else "its process is gone; the next run takes it over"
            yield projection.workflow_id, step.name, str(step.attempts), span(since), what
    for name, wait in waits.items():
        attempts = projection.steps[name].attempts if name in projection.steps else 0
        what = f"waits for {f'the limit of {wait.key}' if wait.key else 'its limit'} until {_time(wait.until)}"
        yield projection.workflow_id, name, str(attempts), span(_seconds(wait.since, now)), what


def _what(projection: Projection, step: StepState, store: Store) -> str:
    if step.status is StepStatus.FAILED:
        return f"waits for its next attempt: {step.error.message if step.error else ''}"
    path = log_path(projection, step.name)
    return last_line_of(store, path)[:_LINE] if path is not None else ""


def _limits(projection: Projection, waits: dict[str, Wait], now: datetime) -> Iterator[tuple[str, ...]]:
    for key, until in projection.limits.items():
        if until > now:
            # Those that met it too, whose process is gone perhaps: they wait for it when they are called.
            met = [name for name, limit in projection.step_limits.items() if limit.key == key]
            names = dict.fromkeys([*met, *(name for name, wait in waits.items() if wait.key == key)])
            yield projection.workflow_id, key, _time(until), span(_seconds(now, until)), ", ".join(names)


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()


def span(seconds: float) -> str:
    """Some seconds, for people.

    Example:
        >>> span(3725.5), span(59.9)
        ('1:02:05', '0:00:59')
    """
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
