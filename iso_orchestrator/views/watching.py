"""`watch W`: wait for the end of a workflow's run, with a line a minute, and at what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.history import Batch, History, Outcome, WaitFor
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import monotonic, sleep
from iso_orchestrator.text import money_text, seconds_text, time_text
from iso_orchestrator.views.live import read_history
from iso_orchestrator.views.top import time_left
from iso_orchestrator.views.words import exit_code, is_running, items_of, status_words, steps_of, waiting_for

_EVERY = 60.0  # seconds between two lines
_PAUSE = 0.3  # seconds between two looks
_SHARE = 10  # times as long as a look takes is between two, so that a large record is not read all the time


def watch(store: Store, workflow_id: str, timeout: float | None, say: Callable[[str], object]) -> int:
    """Say a line now, each minute, when a step fails or a limit begins or ends, and at the end.

    Args:
        store: The store.
        workflow_id: The workflow.
        timeout: Seconds until it gives up; None for no limit.
        say: Is called with each line, which drives no terminal.

    Returns:
        The exit code: 0; 10 it ended with failures; 11 its process died; 12 it has not ended yet.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
    """
    begun = monotonic()
    said_at, known = begun - _EVERY, None
    while True:
        looked_at = monotonic()
        history = read_history(store, workflow_id)
        now, state = monotonic(), _state(history)
        is_over = not is_running(history) or (timeout is not None and now - begun >= timeout)
        if is_over or state != known or now - said_at >= _EVERY:
            say(escape_terminal(line_of(history)))
            said_at, known = now, state
        if is_over:
            return exit_code(history)
        pause = max(_PAUSE, _SHARE * (now - looked_at))
        sleep(pause if timeout is None else max(0.0, min(pause, begun + timeout - now)))


def _state(history: History) -> tuple[int, list[str | None]]:
    """What a line says at once when it changes: how many steps failed, and which limits are in force."""
    failed = sum(step.outcome is Outcome.FAILED for step in steps_of(history))
    return failed, [limit.key for limit in history.limits if limit.until > history.now]


def line_of(history: History) -> str:
    """A line for a log: "22:49:47 nightly review: 37 of 60 done, 1 failed, 29 s gone, about 20 s left, $1.60"."""
    batches = [batch for batch in history.batches if batch.ended is None and batch.total] if history.is_alive else []
    batch = batches[0] if len(batches) == 1 else None
    parts = [*_counts(history, batch), *_waits(history)]
    begun = history.begun if batch is None else batch.begun
    if is_running(history):
        parts.append(f"{seconds_text((history.now - begun).total_seconds())} gone")
        left = time_left(history)
        parts += [] if left is None else [f"about {seconds_text(left)} left"]
    else:
        parts.append(f"{seconds_text(history.totals.took)} taken")
    if history.totals.cost is not None:
        parts.append(money_text(history.totals.cost))
    name = f" {batch.name}" if batch is not None else ""
    end = "" if is_running(history) else f" {status_words(history)[1]}:"
    return f"{time_text(history.now)} {history.workflow_id}{name}{end or ':'} {', '.join(parts)}"


def _counts(history: History, batch: Batch | None) -> list[str]:
    steps = steps_of(history) if batch is None else items_of(history, batch)
    done, failed = (sum(step.outcome is one for step in steps) for one in (Outcome.COMPLETED, Outcome.FAILED))
    total = len(steps) if batch is None or batch.total is None else batch.total
    return [f"{done} of {total} done", *([f"{failed} failed"] if failed and is_running(history) else [])]


def _waits(history: History) -> Iterator[str]:
    for limit in history.limits:
        if limit.until - history.now <= timedelta():
            continue
        waits = [waiting_for(step) for step in history.steps]
        count = sum(wait is not None and wait.kind is WaitFor.LIMIT and wait.key == limit.key for wait in waits)
        yield f"{count} wait for {limit.key or 'a limit'} until {time_text(limit.until, history.now)}"
