"""`show W`: a workflow's headline and numbers, what its workers did, what failed, and its groups of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from iso_orchestrator.commands.model import heartbeat_key
from iso_orchestrator.record.history import History, Outcome, StepHistory, WaitFor
from iso_orchestrator.record.model import WorkflowEvent, WorkflowStatus, lease_status
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.text import count_text, counted, money_text, seconds_text, time_text
from iso_orchestrator.views.causes import brief
from iso_orchestrator.views.lanes import lane_lines
from iso_orchestrator.views.terminal import NONE, Cell, Column, Style, Terminal
from iso_orchestrator.views.words import (
    cost_text,
    done_and_failed,
    fact_lines,
    failed_steps,
    is_running,
    joined,
    json_text,
    outcome_text,
    seconds_of,
    status_span,
    steps_of,
    tries,
    what_next,
)

_FAILURES = 10  # that are listed; `--failed` shows all
_GROUPS = 12
_WAITS = {WaitFor.LIMIT: "limits", WaitFor.BACKOFF: "back-off", WaitFor.KEY: "keys", WaitFor.PROCESS: "other processes"}


def overview_lines(projection: Projection, history: History, terminal: Terminal, path: str) -> list[str]:
    """Show a workflow; *path* is where its record is."""
    examples = failed_steps(history) or steps_of(history)
    following = what_next(history)
    state = [("state", json_text(history.state))] if history.state else []
    parts = [
        head_lines(history, terminal),
        lane_lines(history, terminal),
        [*failed_lines(history, terminal), *(terminal.lines(following) if following else [])],
        _group_lines(history, terminal),
        _lease_lines(projection, history, terminal),
        _beat_lines(projection, history, terminal),
        fact_lines([*state, ("record", path)], terminal),
        _hint_lines(examples[0], terminal) if examples else [],
    ]
    return joined(parts)


def _hint_lines(step: StepHistory, terminal: Terminal) -> list[str]:
    hint = f"show W --steps: all steps; show W '#{step.number}': one; timeline W: a picture"
    return terminal.lines(hint, Style.DIM)


def head_lines(history: History, terminal: Terminal) -> list[str]:
    """The headline of a workflow, and its numbers."""
    lines = [terminal.line((history.workflow_id, Style.HEAD), "  ", *status_span(history, terminal))]
    if history.steps or history.runs:
        lines += [line for text in _numbers(history) for line in terminal.lines(text)]
    if history.last_error is not None and history.status is WorkflowStatus.FAILED:
        lines.append(terminal.line("ended by ", (brief(history.last_error), Style.FAILED)))
    return lines


def _numbers(history: History) -> Iterator[str]:
    totals, steps = history.totals, steps_of(history)
    yield _times(history)
    states = [f"{totals.steps.get(Outcome.COMPLETED, 0)} of {len(steps)} steps done"]
    states += _counts(totals.steps, {Outcome.RUNNING: "running", Outcome.WAITING: "waiting"})
    attempts = sum(totals.attempts.values())
    ends = _counts(totals.attempts, {Outcome.RETRIED: "failed and tried again", Outcome.INTERRUPTED: "interrupted"})
    yield f"{', '.join(states)}, {counted(attempts, 'attempt')}{': ' if ends else ''}{', '.join(ends)}"
    waits = [f"{_WAITS[kind]} {seconds_text(seconds)}" for kind, seconds in totals.waited.items() if seconds >= 0.0005]
    if waits:
        yield f"waited {seconds_text(sum(totals.waited.values()))}: {', '.join(waits)}"
    if totals.cost is not None or totals.output_tokens:
        failed = f", {money_text(totals.cost_failed)} of it in attempts that failed" if totals.cost_failed else ""
        cost = "cost unknown" if totals.cost is None else f"cost {money_text(totals.cost)}"
        tokens = f"tokens {count_text(totals.output_tokens)} out, {count_text(totals.input_tokens)} in"
        yield f"{cost}{failed}; {tokens}"
    if totals.kept_steps or totals.lost >= 0.0005:
        money = f" and {money_text(totals.kept_cost)}" if totals.kept_cost else ""
        kept = f"{counted(totals.kept_steps, 'step')}, {seconds_text(totals.kept_work)} of work{money} were kept, "
        lost = f"{seconds_text(totals.lost)} was lost"
        yield f"resumed: {kept}{lost}" if totals.kept_steps else f"interrupted: {lost}"


def _times(history: History) -> str:
    totals = history.totals
    begun = time_text(history.begun, history.now)
    is_on = is_running(history)
    ended = "now" if is_on else time_text(history.ended, history.begun)
    parts = [f"{begun} {NONE} {ended} UTC", seconds_text(history.totals.took)]
    if totals.away > 0.045 * totals.took:
        parts[1] += f" ({seconds_text(totals.away)} without a process)"
    if history.runs:
        parts.append(counted(len(history.runs), "run"))
    if totals.deaths:
        parts.append(f"{totals.deaths} died")
    busy = f"; {totals.busy:.1f} of {counted(totals.workers, 'worker')} busy" if totals.workers > 1 else ""
    return ", ".join(parts) + busy


def _counts(counts: Mapping[Outcome, int], words: dict[Outcome, str]) -> list[str]:
    return [f"{count} {word}" for outcome, word in words.items() if (count := counts.get(outcome, 0))]


def failed_lines(history: History, terminal: Terminal) -> list[str]:
    """The steps that failed, and why."""
    failed = failed_steps(history)
    if not failed:
        return []
    lines = [terminal.line((f"failed ({len(failed)})", Style.FAILED))]
    digits = max(len(str(step.number)) for step in failed[:_FAILURES])
    for step in failed[:_FAILURES]:
        number = f"#{step.number:<{digits}}"
        attempts = f"  {counted(step.attempt_count, 'attempt')}"
        room = terminal.width - len(attempts) - digits - 5
        lines.append(
            terminal.line(
                terminal.sign(Outcome.FAILED), f" {number}  ", terminal.name(step.name, room), (attempts, Style.DIM)
            )
        )
        if step.error is not None:
            lines.append(terminal.line(brief(step.error), indent=digits + 5))
    if len(failed) > _FAILURES:
        lines.append(terminal.line((f"and {len(failed) - _FAILURES} more: show W --failed", Style.DIM)))
    return lines


def _group_lines(history: History, terminal: Terminal) -> list[str]:
    groups: dict[str, list[StepHistory]] = {}
    for step in steps_of(history):
        groups.setdefault(step.group, []).append(step)
    columns = [
        Column("group", is_name=True),
        *(Column(head, is_right=True) for head in ("steps", "done", "failed", "attempts", "median", "longest", "cost")),
    ]
    lines = terminal.table(columns, [_group_row(history, *group) for group in list(groups.items())[:_GROUPS]])
    if len(groups) > _GROUPS:
        lines.append(terminal.line((f"and {len(groups) - _GROUPS} more groups", Style.DIM)))
    return lines


def _group_row(history: History, group: str, steps: Sequence[StepHistory]) -> list[Cell]:
    seconds = [((span.ended or history.now) - span.begun).total_seconds() for step in steps for span in step.attempts]
    done, failed = done_and_failed(steps)
    return [
        group,
        str(len(steps)),
        str(done),
        (str(failed), Style.FAILED) if failed else NONE,
        str(sum(step.attempt_count for step in steps)),
        seconds_text(median(seconds)) if seconds else NONE,
        seconds_text(max(seconds)) if seconds else NONE,
        cost_text(steps),
    ]


# All steps, a line each


def steps_lines(history: History, terminal: Terminal) -> list[str]:
    """Show a line for each step: number, name, attempts, time, cost, and its result or error, or what it waits for."""
    columns = [
        Column(),
        Column("#", is_right=True),
        Column("step", is_name=True),
        Column("try", is_right=True),
        Column("took", is_right=True),
        Column("cost", is_right=True),
        Column("result or error", is_last=True),
    ]
    return terminal.table(columns, [_step_row(history, step, terminal) for step in steps_of(history)])


def _step_row(history: History, step: StepHistory, terminal: Terminal) -> list[Cell]:
    return [
        terminal.sign(step.outcome),
        str(step.number),
        step.name,
        tries(step),
        seconds_text(seconds_of(step, history.now)) if step.attempts else NONE,
        cost_text([step]),
        outcome_text(step, history.now),
    ]


# Leases, heartbeats and events


def _lease_lines(projection: Projection, history: History, terminal: Terminal) -> list[str]:
    columns = [
        Column("lease", is_name=True),
        Column("status"),
        Column("holder", is_name=True),
        Column("token", is_right=True),
        Column("expires"),
        Column("detail", is_last=True),
    ]
    rows: list[list[Cell]] = [
        [
            lease.key,
            lease_status(lease, history.now),
            lease.holder,
            str(lease.token),
            time_text(lease.expires_at, history.now),
            "" if lease.detail is None else json_text(lease.detail),
        ]
        for lease in projection.leases.values()
    ]
    return terminal.table(columns, rows)


def _beat_lines(projection: Projection, history: History, terminal: Terminal) -> list[str]:
    """The user's heartbeats: those of commands are shown with their steps."""
    columns = [Column("heartbeat", is_name=True), Column("at"), Column("detail", is_last=True)]
    of_commands = set(map(heartbeat_key, projection.commands))
    rows: list[list[Cell]] = [
        [beat.key, time_text(beat.at, history.now), "" if beat.detail is None else json_text(beat.detail)]
        for beat in projection.heartbeats.values()
        if beat.key not in of_commands
    ]
    return terminal.table(columns, rows)


def events_lines(events: Sequence[WorkflowEvent], terminal: Terminal) -> list[str]:
    """Show events, a line each."""
    columns = [Column("at (UTC)"), Column("event", is_name=True), Column("message and detail", is_last=True)]
    today = events[-1].at if events else None
    rows: list[list[Cell]] = []
    for event in events:
        detail = "" if event.detail is None else json_text(event.detail)
        rows.append([time_text(event.at, today), event.type, "  ".join(filter(None, [event.message, detail]))])
    return terminal.table(columns, rows) or ["no event"]
