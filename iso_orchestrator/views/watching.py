"""`watch W`: wait for the end of a workflow's run, with a line a minute, and at what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.fanout.status import BatchStatus, soonest_limit
from iso_orchestrator.record.history import History, WaitFor
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import monotonic, sleep
from iso_orchestrator.text import time_text
from iso_orchestrator.views.live import read_history
from iso_orchestrator.views.words import (
    done_and_failed,
    exit_code,
    failed_steps,
    is_running,
    items_of,
    seconds_left,
    status_words,
    steps_of,
    waiting_for,
)

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
    return len(failed_steps(history)), [limit.key for limit in history.limits_in_force]


def line_of(history: History) -> str:
    """A line for a log, in the words of a batch's progress: "22:49:47 nightly review: 37 of 60 done, 1 failed, ..."."""
    is_on = is_running(history)
    batches = [batch for batch in history.open_batches if batch.total] if is_on else []
    batch = batches[0] if len(batches) == 1 else None
    steps = steps_of(history) if batch is None else items_of(history, batch)
    waits = [wait for step in history.steps if (wait := waiting_for(step)) is not None]
    limited = ((wait.key, wait.until) for wait in waits if wait.kind is WaitFor.LIMIT)
    done, failed = done_and_failed(steps)
    about = [history.workflow_id] if batch is None else [history.workflow_id, batch.name]
    begun = history.begun if batch is None else batch.begun
    status = BatchStatus(
        label=" ".join(about if is_on else [*about, status_words(history)[1]]),
        total=len(steps) if batch is None else batch.total,
        done=done,
        failed=failed if is_on else 0,  # which the words of the status say
        replayed=0,
        limit=soonest_limit(limited, history.now, UTC) if is_on else None,
        seconds_gone=(history.now - begun).total_seconds() if is_on else history.totals.took,
        seconds_left=seconds_left(history) if is_on else None,
        cost=history.totals.cost or 0.0,
        is_over=not is_on,
    )
    return f"{time_text(history.now)} {status.sentence()}"
