"""What views say of a workflow and of a step in a few words, everywhere the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial

from iso_orchestrator.fanout.status import time_left
from iso_orchestrator.record.history import (
    AttemptSpan,
    Batch,
    History,
    Outcome,
    StepHistory,
    WaitFor,
    WaitSpan,
    seconds_in,
)
from iso_orchestrator.record.model import Json, WorkflowStatus
from iso_orchestrator.text import counted, money_text, seconds_text, time_text
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
    failed = len(failed_steps(history))
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


def failed_steps(history: History) -> list[StepHistory]:
    """The steps on record that failed, the first one first."""
    return [step for step in steps_of(history) if step.outcome is Outcome.FAILED]


def done_and_failed(steps: Iterable[StepHistory]) -> tuple[int, int]:
    """How many of *steps* completed, and how many failed."""
    counts = Counter(step.outcome for step in steps)
    return counts[Outcome.COMPLETED], counts[Outcome.FAILED]


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
    return sum(
        max(0, (batch.total or 0) - len({step.item for step in items_of(history, batch)}))
        for batch in history.open_batches
    )


def is_running(history: History) -> bool:
    """Whether a process has a run of the workflow, or one of its steps without a run."""
    return history.is_alive or any(step.outcome in {Outcome.RUNNING, Outcome.WAITING} for step in history.steps)


def expected_steps(history: History) -> int:
    """The steps on record, and the items of open batches that have not begun."""
    return len(steps_of(history)) + unstarted(history)


def seconds_left(history: History) -> float | None:
    """About how many seconds the open batch takes from now; None if that is not known."""
    batches = [batch for batch in history.open_batches if batch.total is not None]
    if len(batches) != 1:
        return None
    batch = batches[0]
    done = [step for step in items_of(history, batch) if step.outcome is Outcome.COMPLETED]
    ended = [*done, *(step for step in failed_steps(history) if step.batch == batch.number)]
    here = [step for step in ended if step.attempts and step.attempts[-1].run == batch.run]
    held = sum(seconds_in(step.attempts, history.now) for step in here)
    left = max(0, (batch.total or 0) - len({step.item for step in ended}))
    rest = max(((limit.until - history.now).total_seconds() for limit in history.limits_in_force), default=0.0)
    return time_left(left, len(here), held, batch.max_parallel or 1, rest)


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
        return "waits" if wait is None else wait_text(wait, partial(time_text, today=now)) + why
    if step.outcome is Outcome.INTERRUPTED:
        return "interrupted; the next run takes it over"
    if step.outcome is Outcome.COMPLETED:
        return result_text(step)
    return "" if step.error is None else brief(step.error)


def attempt_text(span: AttemptSpan) -> str:
    """What came of an attempt."""
    return "met a usage limit" if span.limit_until is not None else span.outcome.value


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


def wait_text(wait: WaitSpan, time: Callable[[datetime], str]) -> str:
    """What a step waits for, or waited for, and until when; *time* shows that."""
    at = "" if wait.until is None else time(wait.until)
    held = f", held by {wait.holder}" if wait.holder else ""
    match wait.kind:
        case WaitFor.LIMIT:
            return f"waits for {limit_name(wait.key)}{at and f' until {at}'}"
        case WaitFor.BACKOFF:
            return f"waits for its next attempt{at and f' at {at}'}"
        case WaitFor.KEY:
            return f"waits for {f'key {wait.key}' if wait.key else 'its key'}{held}"
        case WaitFor.PROCESS:
            return f"waits for {wait.holder or 'another process'}, which runs it"


def met_first(wait: WaitSpan) -> str:
    """Which other step met the limit first that a step waits for: ", met first by ..."; "" for no other."""
    return f", met first by {wait.met_by}" if wait.met_by not in {None, wait.step} else ""


def limit_name(key: str | None) -> str:
    """The limit of a step, by its key."""
    return f"the limit of {key}" if key else "its limit"


def json_text(value: Json) -> str:
    """JSON in one line, cut."""
    return json.dumps(value, ensure_ascii=False)[:_CELL]


def exit_code(history: History) -> int:
    """How the workflow ended, as an exit code: 0; 10 with failures; 11 its process died; 12 it has not ended."""
    if is_running(history):
        return 12
    if history.runs and (history.status is WorkflowStatus.RUNNING or history.runs[-1].has_died):
        return 11
    return 10 if history.status is WorkflowStatus.FAILED or failed_steps(history) else 0
