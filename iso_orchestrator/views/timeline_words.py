"""What a timeline says of a workflow in words, as HTML or plain text."""

from __future__ import annotations

import html
import re
from collections import defaultdict

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.history import History, Outcome, StepHistory
from iso_orchestrator.record.model import ErrorInfo
from iso_orchestrator.text import counted, money_text, seconds_text
from iso_orchestrator.views.words import expected_steps, failed_steps, seconds_left


def safe(text: str) -> str:
    """A text as HTML, with controls and what turns its direction spelled out."""
    return html.escape(escape_terminal(text))


def duration(seconds: float) -> str:
    """A time span that no line end splits."""
    return seconds_text(seconds).replace(" ", "\xa0")


def lede(history: History) -> str:
    """What came of a workflow, in one sentence or two."""
    totals = history.totals
    parts = [f"{totals.steps.get(Outcome.COMPLETED, 0)} of {counted(expected_steps(history), 'step')} completed"]
    parts += [
        f"{count} {outcome.value}"
        for outcome in (Outcome.FAILED, Outcome.RUNNING, Outcome.WAITING, Outcome.INTERRUPTED)
        if (count := totals.steps.get(outcome, 0))
    ]
    left = seconds_left(history)
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


def causes(history: History) -> list[tuple[ErrorInfo, list[StepHistory]]]:
    """The failed steps by what failed: the class of the error, and its message with all numbers made equal."""
    found: defaultdict[tuple[str, str], list[StepHistory]] = defaultdict(list)
    for step in failed_steps(history):
        message = error_of(step).message.replace(repr(step.name), "").replace(step.name, "")
        found[error_of(step).name, re.sub(r"[0-9a-f]{8,}|\d+", "0", message)].append(step)
    return [(error_of(steps[0]), steps) for steps in sorted(found.values(), key=len, reverse=True)]


def error_of(step: StepHistory) -> ErrorInfo:
    """Why a step failed."""
    return step.error or next((span.error for span in reversed(step.attempts) if span.error), ErrorInfo("Error", ""))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
