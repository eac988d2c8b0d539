"""`why`: whether a step ran, runs or will run again, and what holds it back."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import pairwise

from iso_orchestrator.record.details import get
from iso_orchestrator.record.history import AttemptSpan, History, Outcome, StepHistory, WaitFor
from iso_orchestrator.record.model import WorkflowEvent
from iso_orchestrator.record.projection import Projection, StepState
from iso_orchestrator.text import seconds_text, time_text
from iso_orchestrator.views.causes import brief
from iso_orchestrator.views.terminal import Terminal, style_of
from iso_orchestrator.views.words import attempt_text, fact_lines, limit_name, outcome_text, steps_of, waiting_for

_NEAR = 3  # names like one that is not on record
_TRIES = 12  # attempts that are told, the last ones


def why_lines(projection: Projection, history: History, step: StepHistory, terminal: Terminal) -> list[str]:
    """Say what became of a step, what the next run does with it and why, what holds it back, and how it got there.

    Args:
        projection: The workflow.
        history: Of it.
        step: The step.
        terminal: Where it is shown.
    """
    head = terminal.lines(_head(history, step), style_of(step.outcome), hanging=2)
    sign = terminal.line(terminal.sign(step.outcome))
    return [f"{sign} {head[0]}", *head[1:], *fact_lines(_facts(projection, history, step), terminal)]


def unknown(history: History, name: str) -> str:
    """Say that no step has the name, and which ones have a name like it."""
    near = difflib.get_close_matches(name, [step.name for step in history.steps], _NEAR, 0.5)
    like = f"; names like it: {', '.join(near)}. A step whose name has changed is another step" if near else ""
    return f"step {name!r} is not on record: a call with that name runs{like}"


def _head(history: History, step: StepHistory) -> str:
    if step.is_reset:
        return "was reset, and has not run since"
    last = step.attempts[-1] if step.attempts else None
    allowed = step.attempts_allowed or 1
    # The number counts the attempts of earlier calls too, of which each one may make as many as are allowed.
    attempt = f"attempt {step.attempt_count}" + (f" of {allowed}" if 1 < allowed >= step.attempt_count else "")
    at = "" if last is None or last.ended is None else f" at {time_text(last.ended, history.now)}"
    error = "" if step.error is None else f": {brief(step.error)}"
    match step.outcome:
        case Outcome.COMPLETED:
            return f"completed in {attempt}{at}"
        case Outcome.FAILED:
            return f"failed in {attempt}{at}{error}"
        case Outcome.RUNNING:
            since = "" if last is None else f" since {time_text(last.begun, history.now)}"
            return f"running, {attempt}{since}{_process(history, last)}"
        case Outcome.INTERRUPTED:
            return f"interrupted in {attempt}{at}{error or ': its process died'}"
        case _:
            return outcome_text(step, history.now)


def _process(history: History, span: AttemptSpan | None) -> str:
    run = next((run for run in history.runs if span is not None and run.number == span.run), None)
    return "" if run is None or run.pid is None else f", in pid {run.pid}" + (f" on {run.host}" if run.host else "")


def _facts(projection: Projection, history: History, step: StepHistory) -> Iterator[tuple[str, str]]:
    yield "next run", _next_run(step)
    if step.outcome is not Outcome.COMPLETED or step.is_reset:
        yield "held back", _held_back(history, step)
    if step.attempts:
        yield "history", _told(history, projection.events, step)
    state = projection.steps.get(step.name)
    if state is not None and state.code is not None:
        yield "made by", _origin(state)


def _next_run(step: StepHistory) -> str:
    session = f"; its agent's session {step.session_id} can be continued" if step.session_id else ""
    following = f"runs again, as attempt {step.attempt_count + 1}"
    if step.is_reset:
        return "runs it as a new step: what was recorded is forgotten"
    match step.outcome:
        case Outcome.COMPLETED:
            key, version = step.idempotency_key or "none", step.version or "none"
            return (
                f"does not run it, unless its name, its idempotency key ({key}) or version ({version}) changes, its "
                'result is older than max_age, on_change="rerun" finds other code or arguments, or after `reset`'
            )
        case Outcome.FAILED:
            return f"{following}: failed steps are not kept{session}"
        case Outcome.INTERRUPTED if step.if_interrupted == "fail":
            return "is refused: if_interrupted=fail, and its outcome is not known; after `reset` it runs"
        case Outcome.INTERRUPTED:
            return f"takes it over, as attempt {step.attempt_count + 1}{session}"
        case Outcome.RUNNING:
            return "another process that calls it waits, and takes its result"
        case _:
            return f"goes on by itself; if its process ends before, the next run {following}"


def _held_back(history: History, step: StepHistory) -> str:
    if (wait := waiting_for(step)) is not None:
        left = "" if wait.until is None else f", in {seconds_text((wait.until - history.now).total_seconds())}"
        return outcome_text(step, history.now) + left
    if step.outcome is Outcome.RUNNING:
        return "by nothing: it runs"
    keys = {wait.key for wait in step.waits if wait.kind is WaitFor.LIMIT}
    keys |= {span.limit_key for span in step.attempts if span.limit_until is not None}
    met = [limit for limit in history.limits if limit.key in keys and (limit.key or limit.met_by == step.name)]
    if in_force := [limit for limit in met if limit in history.limits_in_force]:
        last = max(in_force, key=lambda limit: limit.until)
        left = seconds_text((last.until - history.now).total_seconds())
        return f"by {limit_name(last.key)} until {time_text(last.until, history.now)}, in {left}"
    holder = _holder(history, step)
    if holder is not None:
        return f"by key {step.key}, which step {holder.name!r} has"
    free = [f"key {step.key} is free"] if step.key is not None else []
    over = [f"{limit_name(met[-1].key)} ended at {time_text(met[-1].until, history.now)}"] if met else []
    reasons = ", ".join([*free, *over])
    return f"by nothing{reasons and f': {reasons}'}" + ("" if history.is_alive else "; no process has a run now")


def _holder(history: History, step: StepHistory) -> StepHistory | None:
    running = [other for other in steps_of(history) if other.outcome is Outcome.RUNNING and other.name != step.name]
    return next((other for other in running if step.key is not None and other.key == step.key), None)


def _told(history: History, events: Sequence[WorkflowEvent], step: StepHistory) -> str:
    causes = _causes(events, step.name)[-len(step.attempts) :]
    causes = [""] * (len(step.attempts) - len(causes)) + causes
    limits = [
        any(wait.kind is WaitFor.LIMIT and before.begun <= wait.begun < after.begun for wait in step.waits)
        for before, after in pairwise(step.attempts)
    ]
    told = []
    for span, cause, after_limit in zip(step.attempts, causes, [False, *limits], strict=True):
        word = attempt_text(span).partition(",")[0]
        at = time_text(span.ended or span.begun, history.now)
        notes = [note for note in (cause, "limit in between" if after_limit else "") if note]
        told.append(f"{span.number} {word} {at}" + (f" ({', '.join(notes)})" if notes else ""))
    more = f"{len(told) - _TRIES} before; " if len(told) > _TRIES else ""
    return more + "; ".join(told[-_TRIES:])


def _origin(state: StepState) -> str:
    """What the next call compares its function and arguments with."""
    arguments = state.arguments if isinstance(state.arguments, dict) else {}
    shown = ", ".join(f"{name}={text}" for name, text in arguments.items())
    return f"code {state.code}" + (f", with {shown}" if shown else "")


def _causes(events: Sequence[WorkflowEvent], name: str) -> list[str]:
    """Why each attempt at a step began although the step was completed before, or taken over; "" for others."""
    causes, why_again, before = list[str](), "", dict[str, object]()
    for event in events:
        detail = event.detail if isinstance(event.detail, dict) else {}
        if event.type == "steps.reset" and name in (get(detail, "steps", list) or ()):
            why_again = "it was reset"
        if detail.get("step") != name:
            continue
        if event.type == "step.completed":
            why_again = 'its result was too old, or on_change="rerun"'
        elif event.type == "step.interrupted":
            why_again = "taken over from a process that died"
        elif event.type == "step.started":
            now = {key: detail.get(key) for key in ("idempotencyKey", "version")}
            changed = [key for key in now if before and now[key] != before[key]]
            words = {"idempotencyKey": "idempotency key", "version": "version"}
            changes = [f"its {words[key]} was {before[key] or 'none'}, is {now[key] or 'none'}" for key in changed]
            causes.append(", ".join(changes) or why_again)
            why_again, before = "", now
    return causes
