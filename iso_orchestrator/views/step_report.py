"""`show W STEP`: a step's facts, its attempts and waits, its error, the user's frames, and its log's last words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.record.history import AttemptSpan, History, Outcome, StepHistory, WaitSpan, seconds_in
from iso_orchestrator.record.model import ErrorInfo
from iso_orchestrator.text import counted, money_text, seconds_text, time_text
from iso_orchestrator.views.causes import advice, shortened, user_frames
from iso_orchestrator.views.terminal import Cell, Column, Style, Terminal, style_of
from iso_orchestrator.views.words import (
    attempt_text,
    cost_text,
    fact_lines,
    joined,
    met_first,
    outcome_text,
    result_text,
    seconds_of,
    wait_text,
)

_TRIES = 40  # attempts and waits that are listed, the last ones


def step_lines(
    history: History, step: StepHistory, terminal: Terminal, last_words: Sequence[str], attempt: int | None = None
) -> list[str]:
    """Show a step, or one attempt at it.

    Args:
        history: Of its workflow.
        step: The step.
        terminal: Where it is shown.
        last_words: The last lines of its log, or of the attempt's.
        attempt: The number of the attempt.

    Raises:
        WorkflowUsageError: There is no such attempt.
    """
    span = None if attempt is None else attempt_of(step, attempt)
    outcome, error = (step.outcome, step.error) if span is None else (span.outcome, span.error)
    last = [terminal.line((f"last words in its log (logs W '#{step.number}' has all of it)", Style.DIM))]
    return joined(
        [
            [
                terminal.line(
                    terminal.sign(outcome),
                    " ",
                    (terminal.name(step.name, terminal.width - len(str(step.number)) - 5), Style.HEAD),
                    f"  #{step.number}",
                )
            ],
            _fact_lines(history, step, terminal, span),
            _try_lines(history, step, terminal, span),
            [] if error is None or outcome is Outcome.COMPLETED else _error_lines(error, terminal),
            [*last, *(terminal.line(line, indent=2) for line in last_words)] if last_words else [],
            [] if attempt else terminal.lines(_what_next(step), Style.DIM),
        ]
    )


def attempt_of(step: StepHistory, number: int) -> AttemptSpan:
    """The attempt with that number.

    Raises:
        WorkflowUsageError: There is none.
    """
    found = next((span for span in reversed(step.attempts) if span.number == number), None)
    if found is None:
        known = ", ".join(str(span.number) for span in step.attempts) or "none"
        raise WorkflowUsageError(f"step {step.name!r} has no attempt {number} on record; it has {known}")
    return found


def _fact_lines(history: History, step: StepHistory, terminal: Terminal, span: AttemptSpan | None) -> list[str]:
    return fact_lines(_facts(history, step) if span is None else _attempt_facts(history, span), terminal)


def _facts(history: History, step: StepHistory) -> Iterator[tuple[str, str]]:
    yield "state", _state(history, step)
    if step.begun is not None:
        work = seconds_in(step.attempts, history.now)
        waits = seconds_in(step.waits, history.now)
        took = f"{time_text(step.begun, history.now)} UTC, took {seconds_text(seconds_of(step, history.now))}"
        waited = f": {seconds_text(work)} of work, {seconds_text(waits)} of waiting" if waits >= 0.0005 else ""
        yield "began", took + waited
    if step.key is not None:
        yield "key", step.key
    if step.item is not None:
        batch = next((batch for batch in history.batches if batch.number == step.batch), None)
        total = f" of {batch.total}" if batch is not None and batch.total is not None else ""
        yield "item", f"{step.item + 1}{total}" + ("" if batch is None else f" in {batch.name}")
    if step.parent is not None:
        yield "within", step.parent
    if step.function is not None:
        yield "function", step.function
    if step.idempotency_key is not None:
        yield "idempotency key", step.idempotency_key
    if step.version is not None:
        yield "version", step.version
    if cost := cost_text([step]):
        yield "cost", cost
    if step.session_id is not None:
        yield "session", step.session_id
    if step.outcome is Outcome.COMPLETED and step.result is not None:
        yield "result", result_text(step)
    if step.log is not None:
        yield "log", step.log


def _attempt_facts(history: History, span: AttemptSpan) -> Iterator[tuple[str, str]]:
    yield "attempt", f"{span.number}, {span.outcome.value}"
    yield "began", f"{time_text(span.begun, history.now)} UTC, took {seconds_text(seconds_in([span], history.now))}"
    if span.run is not None:
        yield "run", str(span.run)
    if span.limit_until is not None:
        key = f" of {span.limit_key}" if span.limit_key else ""
        yield "limit", f"it met the limit{key} until {time_text(span.limit_until, history.now)}"
    if span.usage is not None and span.usage.cost_usd is not None:
        yield "cost", money_text(span.usage.cost_usd)
    if span.usage is not None and span.usage.session_id is not None:
        yield "session", span.usage.session_id
    if span.log is not None:
        yield "log", span.log


def _state(history: History, step: StepHistory) -> str:
    attempts = counted(step.attempt_count, "attempt")
    match step.outcome:
        case Outcome.COMPLETED | Outcome.FAILED:
            return f"{step.outcome.value} after {attempts}" if step.attempt_count > 1 else step.outcome.value
        case Outcome.RUNNING:
            allowed = f" of {step.attempts_allowed}" if (step.attempts_allowed or 1) > 1 else ""
            return f"running, attempt {step.attempt_count}{allowed}"
        case _:
            return outcome_text(step, history.now)


def _what_next(step: StepHistory) -> str:
    if step.is_reset:
        return "it was reset: it runs again when it is called"
    match step.outcome:
        case Outcome.COMPLETED:
            return f"it does not run again, unless `reset W {_quoted(step)}` forgets it"
        case Outcome.FAILED:
            return "it runs again in the next run of the script; reset is not needed"
        case Outcome.INTERRUPTED:
            if step.if_interrupted == "fail":
                return "the next run refuses it, as if_interrupted='fail' says, until it is reset"
            return "the next run of the script takes it over"
        case _:
            return ""


def _quoted(step: StepHistory) -> str:
    return f"'{step.name}'" if step.name.isprintable() and "'" not in step.name else "STEP"


def _try_lines(history: History, step: StepHistory, terminal: Terminal, span: AttemptSpan | None) -> list[str]:
    spans: list[AttemptSpan | WaitSpan] = [*step.attempts, *step.waits] if span is None else []
    if len(spans) < 2:
        return []
    columns = [
        Column("try", is_right=True),
        Column("began"),
        Column("took", is_right=True),
        Column("what", is_last=True),
        Column("cost", is_right=True),
    ]
    spans.sort(key=lambda one: one.begun)
    lines = terminal.table(columns, [_try_row(history, step, one) for one in spans[-_TRIES:]])
    if len(spans) > _TRIES:
        lines.insert(1, terminal.line((f"({len(spans) - _TRIES} earlier attempts and waits)", Style.DIM)))
    return lines


def _try_row(history: History, step: StepHistory, span: AttemptSpan | WaitSpan) -> list[Cell]:
    took = seconds_text(seconds_in([span], history.now))
    begun = time_text(span.begun, step.begun)
    if isinstance(span, WaitSpan):
        return ["", begun, took, wait_text(span, partial(time_text, today=history.now)) + met_first(span), ""]
    usage = span.usage
    cost = money_text(usage.cost_usd) if usage is not None and usage.cost_usd is not None else ""
    return [str(span.number), begun, took, (attempt_text(span), style_of(span.outcome)), cost]


def _error_lines(error: ErrorInfo, terminal: Terminal) -> list[str]:
    texts = f"{error.name}: {shortened(error.message)}".splitlines() if error.message else [error.name]
    lines = [line for text in texts for line in terminal.lines(text, hanging=2)]
    head = terminal.text(error.name)
    if lines[0].startswith(head):
        lines[0] = terminal.paint(head, Style.FAILED) + lines[0][len(head) :]
    if text := advice(error.message):
        lines += terminal.lines(f"{text}.")
    frames, left_out = user_frames(error.stack or "")
    if frames:
        note = f" ({counted(left_out, 'frame')} of libraries left out)" if left_out else ""
        lines += ["", terminal.line((f"traceback{note}", Style.DIM))]
        lines += [terminal.line(line) for line in frames]
    return lines
