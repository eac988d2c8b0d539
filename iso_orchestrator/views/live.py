"""What runs now: a table of steps, one of limits, and the log of a step's command, followed while it runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.commands.output import LogReader, last_line_of
from iso_orchestrator.errors import StoreError, WorkflowNotFoundError, WorkflowUsageError
from iso_orchestrator.record.history import History
from iso_orchestrator.record.model import StepStatus
from iso_orchestrator.record.projection import Projection, StepState, Wait
from iso_orchestrator.record.reconstruction import history_of
from iso_orchestrator.store import Store
from iso_orchestrator.store.log_files import LogFile
from iso_orchestrator.system.clock import SystemClock, sleep
from iso_orchestrator.system.collector import collector_paused
from iso_orchestrator.views.report import GONE, text_table, time_text, wait_text

_LINE = 60  # characters of a last line
_LISTED = 5  # steps that wait for one limit; the others are counted
_PAUSE = 0.2  # seconds between two looks at a log that is followed


def top_text(projections: Iterable[Projection], now: datetime, store: Store) -> str:
    """Show the steps that run or wait, each with its last line of output, and the limits that have a name."""
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


def read(store: Store, workflow_id: str) -> Projection:
    """Read a workflow.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        StoreError: It cannot be read.
    """
    projection = store.read(workflow_id)
    if projection is None:
        raise WorkflowNotFoundError(workflow_id, store.display_name)
    return projection


def read_history(store: Store, workflow_id: str, *, now: datetime | None = None) -> History:
    """Read the history of a workflow, as it is at *now* (default: the wall clock).

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        StoreError: It cannot be read.
    """
    projection = read(store, workflow_id)
    gone = {owner for owner in projection.owners() if not store.is_alive(projection.workflow_id, owner)}
    steps = {step.name for step in projection.steps.values() if _is_left(step, gone)}
    with collector_paused():
        return history_of(
            projection.record(is_alive=any(run.owner not in gone for run in projection.runs.values())),
            now=SystemClock().now() if now is None else now,
            dead=steps | {name for name, wait in projection.waits.items() if wait.owner in gone},
            logs={name: command.log for name, command in projection.commands.items()},
        )


def log_lines(store: Store, workflow_id: str, step: str, *, follow: bool) -> Iterator[str]:
    """Yield the lines of a step's log, escaped for a terminal.

    With *follow*, wait for more lines until the step or its process has ended. If the step is tried again, continue
    with the log of the next attempt.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        WorkflowUsageError: There is no such step, or it has no log.
    """
    log: LogReader | None = None
    while True:
        projection = read(store, workflow_id)
        if step not in projection.steps:
            raise WorkflowUsageError(
                f"workflow {projection.workflow_id!r} has no step {step!r}; `show` lists its steps"
            )
        # As the fact of its begin has it: a result is what a function of the user's returned, and could name any file.
        owner, command = projection.owner(step), projection.commands.get(step)
        # Before the last lines are read: a process that ends afterwards has written all of them.
        is_last = not follow or owner is None or not store.is_alive(workflow_id, owner)
        if command is not None and (log is None or log.path != command.log):
            if log is not None:
                yield from _last_lines(log)
            log = _open(command.log, must_exist=is_last)
        if command is None and is_last:
            raise WorkflowUsageError(f"step {step!r} has no log: it is no command, or has not begun")
        if log is not None:
            yield from _last_lines(log) if is_last else map(escape_terminal, log.lines())
        if is_last:
            return
        sleep(_PAUSE)


def _waits(projection: Projection, now: datetime, store: Store) -> dict[str, Wait]:
    return {
        step: wait
        for step, wait in projection.waits.items()
        if wait.until > now and store.is_alive(projection.workflow_id, wait.owner)
    }


def _is_left(step: StepState, gone: set[str]) -> bool:
    """Whether the record has a step as running that no process runs."""
    return step.owner in gone or (step.owner is None and step.status is StepStatus.RUNNING)


def _steps(projection: Projection, waits: dict[str, Wait], now: datetime, store: Store) -> Iterator[tuple[str, ...]]:
    for step in projection.steps.values():
        if step.owner is not None and step.name not in waits:
            lives = store.is_alive(projection.workflow_id, step.owner)
            what = _activity(projection, step) if lives else GONE
            since = _span(step.started_at or step.updated_at, now)
            yield projection.workflow_id, step.name, str(step.attempts), since, what
    counts: Counter[str] = Counter()
    for name, wait in waits.items():
        counts[what := wait_text(wait)] += 1
        if counts[what] <= _LISTED:
            attempts = projection.steps[name].attempts if name in projection.steps else 0
            yield projection.workflow_id, name, str(attempts), _span(wait.since, now), what
    for what, count in counts.items():
        if count > _LISTED:
            yield projection.workflow_id, f"{count - _LISTED} more", "", "", what


def _activity(projection: Projection, step: StepState) -> str:
    if step.status is StepStatus.FAILED:
        return f"waits for its next attempt: {step.error.message if step.error else ''}"
    command = projection.commands.get(step.name)
    try:
        return "" if command is None else last_line_of(command.log)[:_LINE]
    except StoreError as error:
        return f"its log cannot be read: {error}"


def _limits(projection: Projection, waits: dict[str, Wait], now: datetime) -> Iterator[tuple[str, ...]]:
    for key, until in projection.limits.items():
        if until > now:
            # A step that met the limit is shown even if its process is gone: its next call waits for the limit too.
            met = [name for name, met_key in projection.step_limit_keys.items() if met_key == key]
            names = dict.fromkeys([*met, *(name for name, wait in waits.items() if wait.key == key)])
            count = f"{len(names)} steps: " if len(names) > _LISTED else ""
            yield projection.workflow_id, key, time_text(until), _span(now, until), count + ", ".join(names)


def _span(begin: datetime, end: datetime) -> str:
    """Show the time between two moments as hours, minutes and seconds.

    Example:
        >>> _span(datetime(2026, 5, 14, 8), datetime(2026, 5, 14, 9, 2, 5, 500_000))
        '1:02:05'
    """
    seconds = max(0, int((end - begin).total_seconds()))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _open(path: str, *, must_exist: bool) -> LogReader | None:
    file = LogFile.find(path)
    if file is None:
        if not must_exist:
            return None  # the command is about to begin
        raise WorkflowUsageError(f"the log {path!r} does not exist any more: it was removed, or the folder was moved")
    return LogReader(file, longest_line=sys.maxsize)


def _last_lines(log: LogReader) -> Iterator[str]:
    """The lines that are left, also the last one without an end."""
    yield from map(escape_terminal, log.lines())
    yield from map(escape_terminal, log.rest())
    log.close()
