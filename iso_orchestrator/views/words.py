"""What views say of a workflow and of a step in a few words, everywhere the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from iso_orchestrator.record.history import Batch, History, Outcome, StepHistory, WaitFor, WaitSpan
from iso_orchestrator.record.model import Json, WorkflowStatus
from iso_orchestrator.text import money_text, seconds_text, time_text
from iso_orchestrator.views.causes import brief
from iso_orchestrator.views.terminal import NONE, Span, Style, Terminal, style_of

_MOST = 1e12  # seconds; what is more is no result of a command
_FACT_LINES = 6  # of one fact, a long result for example
_CELL = 300  # characters of a result or detail that can be in a cell


def joined(parts: Iterable[Sequence[str]]) -> list[str]:
    """Put an empty line between parts that have lines."""
    lines = list[str]()
    for part in parts:
        lines += ["", *part] if lines and part else part
    return lines


def fact_lines(facts: Iterable[tuple[str, str]], terminal: Terminal) -> list[str]:
    """Show names and what is known under them, in lines of its own column."""
    known = list(facts)
    room = max(len(name) for name, _ in known) + 2
    lines = list[str]()
    for name, text in known:
        first, *more = terminal.lines(text, indent=room)
        lines += [terminal.paint(f"{name:{room}}", Style.DIM) + first[room:], *more[: _FACT_LINES - 1]]
    return lines


def status_words(history: History) -> tuple[Outcome | None, str]:
    """The outcome of a workflow and its words: "completed, 3 failed". A workflow without any run is None, "idle"."""
    failed = sum(step.outcome is Outcome.FAILED for step in steps_of(history))
    also = f", {failed} failed" if failed else ""
    if is_running(history):
        return Outcome.RUNNING, f"running{also}"
    if _is_interrupted(history):
        return Outcome.INTERRUPTED, f"interrupted{also}"
    if history.status is WorkflowStatus.FAILED:
        return Outcome.FAILED, "failed" if failed < 2 else f"failed, {failed} steps"
    words = history.status.value + also
    if failed:
        return Outcome.FAILED, words
    return (Outcome.COMPLETED if history.status is WorkflowStatus.COMPLETED else None), words


def _is_interrupted(history: History) -> bool:
    if history.runs:
        return history.status is WorkflowStatus.RUNNING or history.runs[-1].outcome is Outcome.INTERRUPTED
    return any(step.outcome is Outcome.INTERRUPTED for step in steps_of(history))


def status_span(history: History, terminal: Terminal) -> list[Span]:
    """Sign and words of a workflow's status."""
    outcome, words = status_words(history)
    return [words] if outcome is None else [terminal.sign(outcome), (f" {words}", style_of(outcome))]


def steps_of(history: History) -> list[StepHistory]:
    """The steps that are on record: not those that were reset, and have not run since."""
    return [step for step in history.steps if not step.is_reset]


def items_of(history: History, batch: Batch) -> list[StepHistory]:
    """The steps of a batch's items: also those of the same call in earlier runs, which it takes from the record."""
    call = _call(history, batch)
    batches = {other.number for other in history.batches if _call(history, other) == call}
    return [step for step in steps_of(history) if step.batch in batches]


def _call(history: History, batch: Batch) -> tuple[str, int]:
    """The name of a batch, and how many of that name its run had before."""
    before = (other for other in history.batches if other.number < batch.number and other.run == batch.run)
    return batch.name, sum(other.name == batch.name for other in before)


def unstarted(history: History) -> int:
    """How many items of open batches have not begun."""
    open_batches = [batch for batch in history.batches if batch.ended is None] if history.is_alive else []
    return sum(
        max(0, (batch.total or 0) - len({step.item for step in items_of(history, batch)})) for batch in open_batches
    )


def is_running(history: History) -> bool:
    """Whether a process has a run of the workflow, or one of its steps without a run."""
    return history.is_alive or any(step.outcome in {Outcome.RUNNING, Outcome.WAITING} for step in history.steps)


def what_next(history: History) -> str:
    """What to do with a workflow that ended with failures or died; "" for any other."""
    if status_words(history)[0] not in {Outcome.FAILED, Outcome.INTERRUPTED}:
        return ""
    steps = steps_of(history)
    kept = sum(step.outcome is Outcome.COMPLETED for step in steps)
    failed = sum(step.outcome is Outcome.FAILED for step in steps)
    cut = [step.if_interrupted == "fail" for step in steps if step.outcome is Outcome.INTERRUPTED]
    parts = [f"{counted(kept, 'completed step')} {'is' if kept == 1 else 'are'} kept"] if kept else []
    parts += [f"{failed} failed {_runs(failed)} again"] if failed else []
    parts += [f"{cut.count(False)} interrupted {_runs(cut.count(False))} again"] if False in cut else []
    parts += [f"{cut.count(True)} interrupted {_runs(cut.count(True))} only after `reset`"] if True in cut else []
    cause = "Remove the cause, then run" if failed == 1 else "Remove the causes, then run"
    return f"{cause if failed else 'Run'} the script again{': ' if parts else ''}{', '.join(parts)}."


def _runs(count: int) -> str:
    return "one runs" if count == 1 else "ones run"


def cost_text(steps: Iterable[StepHistory]) -> str:
    """The cost of the attempts of *steps*; "" if none is known."""
    costs = [span.usage.cost_usd for step in steps for span in step.attempts if span.usage is not None]
    known = [cost for cost in costs if cost is not None]
    return money_text(sum(known)) if known else ""


def seconds_of(step: StepHistory, now: datetime) -> float:
    """Seconds from the begin of its first attempt to the end of its last one."""
    begun = step.begun
    return 0.0 if begun is None else ((step.ended or now) - begun).total_seconds()


def tries(step: StepHistory) -> str:
    """Its attempts, and how many are allowed: "2/3"."""
    if not step.attempt_count:
        return NONE
    return str(step.attempt_count) + (f"/{step.attempts_allowed}" if (step.attempts_allowed or 1) > 1 else "")


def outcome_text(step: StepHistory, now: datetime) -> str:
    """The result, the error, or what the step waits for, in one line."""
    if step.outcome is Outcome.WAITING:
        wait = waiting_for(step)
        why = f" ({step.error.name})" if step.error is not None and wait and wait.kind is WaitFor.BACKOFF else ""
        return "waits" if wait is None else wait_text(wait, now) + why
    if step.outcome is Outcome.INTERRUPTED:
        return "interrupted; the next run takes it over"
    if step.outcome is Outcome.COMPLETED:
        return result_text(step)
    return "" if step.error is None else brief(step.error)


def result_text(step: StepHistory) -> str:
    """The result in one line; of a command its exit code, and an agent's answer or what was parsed."""
    match step.result:
        case None:
            return ""
        # A function of the user's may have made what was parsed, and another program all of it.
        case {"exit_code": int(code), "duration": int() | float() as seconds} if step.log and 0 <= seconds < _MOST:
            ended = f"exit {code} in {seconds_text(seconds)}"
        case _:
            return json_text(step.result)
    match step.result.get("parsed"):
        case None:
            return ended
        case {"agent": str(), "outcome": str(outcome), "text": str(text)}:
            return f"{ended}, {outcome}: {' '.join(text[:_CELL].split())}"
        case parsed:
            return f"{ended}: {json_text(parsed)}"


def waiting_for(step: StepHistory) -> WaitSpan | None:
    """The wait that the step is in."""
    return step.waits[-1] if step.waits and step.waits[-1].ended is None else None


def wait_text(wait: WaitSpan, now: datetime) -> str:
    """What a step waits for, or waited for, and until when."""
    at = "" if wait.until is None else time_text(wait.until, now)
    held = f", held by {wait.holder}" if wait.holder else ""
    match wait.kind:
        case WaitFor.LIMIT:
            return f"waits for {_limit(wait)}{at and f' until {at}'}"
        case WaitFor.BACKOFF:
            return f"waits for its next attempt{at and f' at {at}'}"
        case WaitFor.KEY:
            return f"waits for {f'key {wait.key}' if wait.key else 'its key'}{held}"
        case WaitFor.PROCESS:
            return f"waits for {wait.holder or 'another process'}, which runs it"


def _limit(wait: WaitSpan) -> str:
    return f"the limit of {wait.key}" if wait.key else "its limit"


def json_text(value: Json) -> str:
    """JSON in one line, cut."""
    return json.dumps(value, ensure_ascii=False)[:_CELL]


def exit_code(history: History) -> int:
    """How the workflow ended, as an exit code: 0; 10 with failures; 11 its process died; 12 it has not ended."""
    if is_running(history):
        return 12
    if history.runs and (history.status is WorkflowStatus.RUNNING or history.runs[-1].has_died):
        return 11
    has_failed = history.status is WorkflowStatus.FAILED or any(
        step.outcome is Outcome.FAILED for step in steps_of(history)
    )
    return 10 if has_failed else 0


def counted(count: int, what: str) -> str:
    """A number and its noun."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
