"""What a timeline says of a workflow in words, as HTML or plain text."""

from __future__ import annotations

import html
import re
from collections import defaultdict

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.history import History, Outcome, StepHistory
from iso_orchestrator.record.model import ErrorInfo, WorkflowStatus
from iso_orchestrator.text import money_text, seconds_text
from iso_orchestrator.views.top import time_left
from iso_orchestrator.views.words import counted, unstarted

SIGNS = {
    Outcome.FAILED: "✕",
    Outcome.RUNNING: "●",
    Outcome.WAITING: "◔",
    Outcome.INTERRUPTED: "†",
    Outcome.COMPLETED: "✓",
}


def safe(text: str) -> str:
    """A text as HTML, with controls and what turns its direction spelled out."""
    return html.escape(escape_terminal(text))


def duration(seconds: float) -> str:
    """A time span that no line end splits."""
    return seconds_text(seconds).replace(" ", "\xa0")


def headline(history: History) -> tuple[Outcome, str]:
    """The state of a workflow, and its words. One whose steps failed is never just "completed"."""
    failed = history.totals.steps.get(Outcome.FAILED, 0)
    part = f", {counted(failed, 'step')} failed" if failed else ""
    if history.is_alive:
        return Outcome.RUNNING, f"Running{part}"
    if history.status is WorkflowStatus.RUNNING:
        return Outcome.INTERRUPTED, f"Interrupted: its process died{part}"
    is_failed = failed or history.status is WorkflowStatus.FAILED
    return Outcome.FAILED if is_failed else Outcome.COMPLETED, f"{history.status.value.capitalize()}{part}"


def lede(history: History) -> str:
    """What came of a workflow, in one sentence or two."""
    totals = history.totals
    parts = [f"{totals.steps.get(Outcome.COMPLETED, 0)} of {counted(expected_steps(history), 'step')} completed"]
    parts += [
        f"{count} {outcome.value}"
        for outcome in (Outcome.FAILED, Outcome.RUNNING, Outcome.WAITING, Outcome.INTERRUPTED)
        if (count := totals.steps.get(outcome, 0))
    ]
    left = time_left(history) if history.is_alive else None
    text = f"{', '.join(parts)}, in {duration(totals.took)}{'' if left is None else f', about {duration(left)} left'}."
    if totals.deaths:
        resumed = " and it was resumed" if len(history.runs) > 1 and not history.runs[-1].has_died else ""
        text += f" Its process died {_times(totals.deaths)}{resumed}"
    elif totals.kept_steps:
        text += f" It ran {_times(len(history.runs))}"
    if totals.kept_steps:
        cost = f", {money_text(totals.kept_cost)}" if totals.kept_cost else ""
        text += f": {counted(totals.kept_steps, 'finished step')} ({duration(totals.kept_work)} of work{cost}) "
        text += "did not run again"
    lost = f", {duration(totals.lost)} of work was lost" if totals.lost else ""
    return f"{text}{lost}." if totals.deaths or totals.kept_steps else text


def expected_steps(history: History) -> int:
    """The steps on record, and the items of running batches that have not begun."""
    return sum(history.totals.steps.values()) + unstarted(history)


def causes(history: History) -> list[tuple[ErrorInfo, list[StepHistory]]]:
    """The failed steps by what failed: the class of the error, and its message with all numbers made equal."""
    found: defaultdict[tuple[str, str], list[StepHistory]] = defaultdict(list)
    for step in failed_steps(history):
        message = error_of(step).message.replace(repr(step.name), "").replace(step.name, "")
        found[error_of(step).name, re.sub(r"[0-9a-f]{8,}|\d+", "0", message)].append(step)
    return [(error_of(steps[0]), steps) for steps in sorted(found.values(), key=len, reverse=True)]


def failed_steps(history: History) -> list[StepHistory]:
    """The steps that failed, the first one first."""
    return [step for step in history.steps if step.outcome is Outcome.FAILED and not step.is_reset]


def error_of(step: StepHistory) -> ErrorInfo:
    """Why a step failed."""
    return step.error or next((span.error for span in reversed(step.attempts) if span.error), ErrorInfo("Error", ""))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
