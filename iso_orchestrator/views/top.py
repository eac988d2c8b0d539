"""`top`: the steps that run or wait now, how far each workflow is, and the limits in force."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import attrs

from iso_orchestrator.record.history import Batch, History, LimitSpan, Outcome, RunSpan, StepHistory, WaitFor
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import Store
from iso_orchestrator.text import money_text, seconds_text, time_text, width
from iso_orchestrator.views.live import history_as_of
from iso_orchestrator.views.logs import last_line
from iso_orchestrator.views.terminal import Cell, Column, Span, Style, Terminal
from iso_orchestrator.views.words import (
    counted,
    is_running,
    items_of,
    outcome_text,
    status_span,
    status_words,
    steps_of,
    tries,
    unstarted,
    waiting_for,
)

NOTHING = "nothing is running"

_LINE = 200  # characters of a last line
_LEAST_DONE = 3  # items, before the time that is left is guessed
_WAITS = {
    WaitFor.LIMIT: Style.LIMIT,
    WaitFor.BACKOFF: Style.BACKOFF,
    WaitFor.KEY: Style.DIM,
    WaitFor.PROCESS: Style.DIM,
}
_COLUMNS = [
    Column(),
    Column("step", is_name=True),
    Column("try", is_right=True),
    Column("for", is_right=True),
    Column("what", is_last=True),
]


@attrs.frozen
class Looked:
    """A workflow as it is now."""

    projection: Projection
    history: History

    @classmethod
    def of(cls, store: Store, projection: Projection) -> Looked:
        """Look at a workflow that was read."""
        return cls(projection, history_as_of(store, projection))

    @property
    def is_shown(self) -> bool:
        """Whether anything runs, or was left by a process that died, or a limit is in force."""
        outcome, _ = status_words(self.history)
        return outcome in {Outcome.RUNNING, Outcome.INTERRUPTED} or bool(_limits(self.history))

    def active(self) -> list[StepHistory]:
        """The steps that run, then those that wait."""
        steps = steps_of(self.history)
        return [step for one in (Outcome.RUNNING, Outcome.WAITING) for step in steps if step.outcome is one]


def top_lines(
    found: Sequence[Looked], terminal: Terminal, *, rows: int | None = None, chosen: tuple[str, str] | None = None
) -> list[str]:
    """Show workflows, each with its progress, its limits, and the steps that run or wait.

    Args:
        found: The workflows.
        terminal: Where they are shown.
        rows: Lines, at most; what has no room is counted. None for no limit.
        chosen: The workflow and the step that is marked.
    """
    shown = [looked for looked in found if looked.is_shown]
    if not shown:
        return [NOTHING]
    heads = [_head_lines(looked.history, terminal) for looked in shown]
    lines = list[str]()
    left = None if rows is None else rows - sum(map(len, heads)) - (len(heads) - 1)  # lines between workflows are empty
    for number, (looked, head) in enumerate(zip(shown, heads, strict=True)):
        table = _table(looked, terminal, None if left is None else left // (len(shown) - number), chosen)
        lines += [*([""] if lines else []), *head, *table]
        left = None if left is None else left - len(table)
    return lines if rows is None else lines[:rows]


def _head_lines(history: History, terminal: Terminal) -> list[str]:
    lines = [terminal.line((history.workflow_id, Style.HEAD), "  ", *_process(history, terminal))]
    if is_running(history):
        lines.append(_bar_line(history, terminal))
    return [*lines, *(terminal.line((_limit_text(history, limit), Style.LIMIT)) for limit in _limits(history))]


def _limits(history: History) -> list[LimitSpan]:
    return [limit for limit in history.limits if limit.until > history.now]


def _process(history: History, terminal: Terminal) -> list[Span]:
    """The processes that have a run, and since when."""
    runs = [run for run in history.runs if run.ended is None]
    outcome, _ = status_words(history)
    if outcome is Outcome.INTERRUPTED:
        seen = time_text(history.ended, history.now)
        return [*status_span(history, terminal), f", last seen {seen}; the next run resumes it"]
    if outcome is not Outcome.RUNNING:
        return status_span(history, terminal)
    if not runs:
        return [terminal.sign(Outcome.RUNNING), " without a run"]
    took = seconds_text((history.now - runs[0].begun).total_seconds())
    return [terminal.sign(Outcome.RUNNING), f" {', '.join(map(_pid, runs))}, {took}"]


def _pid(run: RunSpan) -> str:
    return f"run {run.number}" if run.pid is None else f"pid {run.pid}"


def _bar_line(history: History, terminal: Terminal) -> str:
    steps = steps_of(history)
    done, failed = (sum(step.outcome is one for step in steps) for one in (Outcome.COMPLETED, Outcome.FAILED))
    total = max(1, len(steps) + unstarted(history))
    spans: list[Span] = [(f"  {failed} failed", Style.FAILED)] if failed else []
    left = time_left(history)
    spans += [] if left is None else [f"  about {seconds_text(left)} left"]
    spans += [] if history.totals.cost is None else [f"  {money_text(history.totals.cost)}"]
    head = f"{done}/{total} "
    room = terminal.width - len(head) - sum(width(span if isinstance(span, str) else span[0]) for span in spans)
    if room < 4:
        return terminal.line(head, *spans)
    full = min(room, room * (done + failed) // total)
    # A failure is seen, however short the bar is.
    red = min(full, max(1, room * failed // total)) if failed else 0
    bar: list[Span] = [
        ("━" * (full - red), Style.COMPLETED),
        ("━" * red, Style.FAILED),
        ("─" * (room - full), Style.DIM),
    ]
    return terminal.line(head, *bar, *spans)


def _open_batches(history: History) -> list[Batch]:
    return [batch for batch in history.batches if batch.ended is None] if history.is_alive else []


def time_left(history: History) -> float | None:
    """About how many seconds the open batch takes from now; None if that is not known."""
    batches = [batch for batch in _open_batches(history) if batch.total is not None]
    if len(batches) != 1 or not (batch := batches[0]).total:
        return None
    done = [step for step in items_of(history, batch) if step.outcome is Outcome.COMPLETED]
    failed = [step for step in steps_of(history) if step.outcome is Outcome.FAILED and step.batch == batch.number]
    ended = [*done, *failed]
    here = [step for step in ended if step.attempts and step.attempts[-1].run == batch.run]
    if len(here) < _LEAST_DONE:
        return None
    held = sum((span.ended - span.begun).total_seconds() for step in here for span in step.attempts if span.ended)
    left = max(0, batch.total - len({step.item for step in ended}))
    rest = max((limit.until - history.now for limit in _limits(history)), default=timedelta()).total_seconds()
    return left * held / len(here) / (batch.max_parallel or 1) + rest


def _limit_text(history: History, limit: LimitSpan) -> str:
    waiting = sum(
        (wait := waiting_for(step)) is not None and wait.kind is WaitFor.LIMIT and wait.key == limit.key
        for step in history.steps
    )
    name = f"limit of {limit.key}" if limit.key else f"limit that {limit.met_by} met"
    left = seconds_text((limit.until - history.now).total_seconds())
    verb = "waits" if waiting == 1 else "wait"
    return f"{name} until {time_text(limit.until, history.now)}, in {left}: {counted(waiting, 'step')} {verb}"


def _table(looked: Looked, terminal: Terminal, lines: int | None, chosen: tuple[str, str] | None) -> list[str]:
    """The steps that run or wait, in at most *lines* lines, an empty one and the head among them."""
    steps, more = looked.active(), 0
    if lines is not None and len(steps) > lines - 2:
        room = max(0, lines - 3)
        more = len(steps) - room
        places = [number for number, step in enumerate(steps) if chosen == (looked.history.workflow_id, step.name)]
        first = places[0] - room + 1 if places else 0  # the chosen one is always to be seen
        steps = steps[max(0, first) :][:room]
    rows = [_row(looked, step, terminal, chosen) for step in steps]
    shown = ["", *terminal.table(_COLUMNS, rows)] if rows else []
    return [*shown, *([terminal.line((f"+{more} more", Style.DIM))] if more else [])]


def _row(looked: Looked, step: StepHistory, terminal: Terminal, chosen: tuple[str, str] | None) -> list[Cell]:
    now, wait = looked.history.now, waiting_for(step)
    style, begun, what = None, None, ""
    if step.outcome is Outcome.RUNNING:
        begun = step.attempts[-1].begun if step.attempts else None
        what = last_line(looked.projection, step.name)[:_LINE]
    elif wait is not None:
        style, begun, what = _WAITS[wait.kind], wait.begun, outcome_text(step, now)
    since = "" if begun is None else seconds_text((now - begun).total_seconds())
    sign = terminal.sign(step.outcome, style)
    if chosen is None:
        return [sign, step.name, tries(step), since, what]
    is_chosen = chosen == (looked.history.workflow_id, step.name)
    name = (step.name, Style.CHOSEN if is_chosen else Style.PLAIN)
    return [[">" if is_chosen else " ", sign], name, tries(step), since, what]
