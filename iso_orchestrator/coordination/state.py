"""What a workflow records besides steps: its state, events, heartbeats and status; and forgetting steps."""

from __future__ import annotations

import fnmatch
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import copy_context
from typing import Any

from iso_orchestrator.checks import check_key, check_seconds
from iso_orchestrator.codec import plain_json, updated_state
from iso_orchestrator.errors import LeaseLostError, WorkflowBusyError, WorkflowUsageError
from iso_orchestrator.notes import contextmanager, message_of, suppressed_as_note
from iso_orchestrator.record.facts import EventAppended, Fact, HeartbeatRecorded, StateUpdated, StatusSet, StepsReset
from iso_orchestrator.record.model import ErrorInfo, Heartbeat, Json, WorkflowEvent, WorkflowStatus
from iso_orchestrator.record.projection import Projection, copy_json
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.runtime.context import current_scope
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.system.events import OneShotEvent, start
from iso_orchestrator.system.interrupts import masked, unmasked

_log = logging.getLogger("iso_orchestrator")


def update_state(runtime: WorkflowRuntime, update: Any) -> Json:
    """Replace the state by *update*, or by what *update* returns for the state; the new state."""
    at = runtime.clock.now()
    value = None if callable(update) else plain_json(update, "the state")

    def decide(projection: Projection) -> tuple[Sequence[Fact], Json]:
        state = value
        if callable(update):
            with unmasked():
                state = updated_state(update, projection.state)
        return [StateUpdated(at, state)], copy_json(state)

    return runtime.transact(decide)


def update_with_step(runtime: WorkflowRuntime, update: Any) -> None:
    """Let the completion of the current step call *update*."""
    attempt = current_scope().attempt
    if attempt is None or attempt.session is not runtime.session():
        raise WorkflowUsageError("update_state(..., with_step=True) belongs inside a step of this workflow")
    if not callable(update):
        raise TypeError("update_state(..., with_step=True) takes a function of the state, not a state")
    if attempt.is_recorded:
        raise WorkflowUsageError(
            f"step {attempt.flight.name!r} has ended, so that update_state(..., with_step=True) would be lost: "
            "let its body wait for its threads and tasks"
        )
    attempt.updates.append(update)


def append_event(runtime: WorkflowRuntime, kind: str, message: str | None, detail: Any) -> WorkflowEvent:
    """Append an event."""
    check_key(kind, "an event's type")
    if message is not None and not isinstance(message, str):
        raise TypeError(f"an event's message must be a str or None, not {type(message).__name__}")
    value = _detail(detail, f"the detail of event {kind!r}")
    event = WorkflowEvent(runtime.clock.now(), kind, message, copy_json(value))
    return runtime.transact(lambda _: ([EventAppended(event.at, kind, message, value)], event))


def heartbeat(runtime: WorkflowRuntime, key: str, detail: Any, *, silent: bool = False) -> Heartbeat:
    """Record that *key* is alive; *silent* records no event."""
    check_key(key, "a heartbeat's key")
    value = _detail(detail, f"the detail of heartbeat {key!r}")
    beat = Heartbeat(key, runtime.clock.now(), copy_json(value))
    return runtime.transact(lambda _: ([HeartbeatRecorded(beat.at, key, value, silent)], beat))


def heartbeating(runtime: WorkflowRuntime, key: str, every: float, detail: Any) -> AbstractContextManager[None]:
    """Beat each *every* seconds in the background; the first and the last beat record an event."""
    check_key(key, "a heartbeat's key")
    if check_seconds(every, "every") is None:
        raise TypeError("every must be seconds, not None")
    return _beating(runtime, key, every, detail)


@contextmanager
def _beating(runtime: WorkflowRuntime, key: str, every: float, detail: Any) -> Iterator[None]:
    heartbeat(runtime, key, detail)

    def beat() -> bool:
        try:
            heartbeat(runtime, key, detail, silent=True)
        except LeaseLostError:
            return False
        return True

    def last_beat(_: object, error: BaseException | None, __: object) -> None:
        with suppressed_as_note(error, f"the last heartbeat {key!r} was not recorded"):
            heartbeat(runtime, key, detail)

    with ExitStack() as stack:
        stack.push(last_beat)
        stack.enter_context(repeat(beat, every, f"heartbeat {key}"))
        yield


@contextmanager
def repeat(work: Callable[[], bool], every: float, name: str) -> Iterator[None]:
    """Call *work* each *every* seconds in a background thread and a copy of this context, until it returns False.

    What it raises is logged, and it is called again: a full disk, or a clock of the user's that raises once.
    """
    stop = OneShotEvent()

    def run() -> None:
        goes_on = True
        while goes_on and not stop.wait(every):
            try:
                goes_on = work()
            except Exception as error:  # noqa: BLE001 - see above
                _log.warning("%s was not recorded: %s", name, message_of(error))

    context = copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name=f"iso-orchestrator {name}"[:60], daemon=True)
    try:
        start(thread.start)
        yield
    finally:
        with masked():
            stop.set()
            if thread.ident is not None:  # it has begun
                thread.join()


def set_status(
    runtime: WorkflowRuntime, status: WorkflowStatus | str, error: BaseException | str | None
) -> WorkflowRecord:
    """Set the status by hand."""
    at, value = runtime.clock.now(), _status(status)
    info = None if error is None else _error_info(error)
    with runtime.acquire() as session:
        session.transact(lambda _: ([StatusSet(at, value, info)], None))
        return runtime.record()


def reset_steps(runtime: WorkflowRuntime, name_or_pattern: str) -> list[str]:
    """Forget the steps of that exact name, else those that match the pattern; their names.

    Raises:
        WorkflowBusyError: One of them is running.
    """
    check_key(name_or_pattern, "a step's name or pattern")
    at = runtime.clock.now()

    with runtime.acquire() as session:

        def decide(projection: Projection) -> tuple[Sequence[Fact], list[str] | WorkflowBusyError]:
            names = _matching(projection, name_or_pattern)
            for name in names:
                owner = projection.owner(name)
                # One that waits for a limit has no body that runs, and goes on when its limit is lifted.
                if owner is not None and name not in projection.waits and _is_running(session, name, owner):
                    process = session.log.process_info(owner)
                    error = WorkflowBusyError(
                        session.workflow_id, process.pid, process.host, process.since, f"step {name!r}"
                    )
                    return (), error
            return ([StepsReset(at, tuple(names), os.getpid())] if names else ()), names

        outcome = session.transact(decide)
    if isinstance(outcome, WorkflowBusyError):
        raise outcome
    return outcome


def _matching(projection: Projection, name_or_pattern: str) -> list[str]:
    if name_or_pattern in projection.steps:
        return [name_or_pattern]
    return [name for name in projection.steps if fnmatch.fnmatchcase(name, name_or_pattern)]


def _is_running(session: Session, name: str, owner: str) -> bool:
    return session.is_in_flight(name) if owner == session.log.process_id else session.log.is_alive(owner)


def _status(status: str) -> WorkflowStatus:
    try:
        return WorkflowStatus(status)
    except ValueError:
        raise ValueError(f"a status is one of {', '.join(WorkflowStatus)}; not {status!r}") from None


def _error_info(error: BaseException | str) -> ErrorInfo:
    if not isinstance(error, BaseException | str):
        raise TypeError(f"an error is an exception or a str, not {error!r:.80}")
    return ErrorInfo("Error", error) if isinstance(error, str) else ErrorInfo.of(error)


def _detail(detail: Any, subject: str) -> Json:
    return None if detail is None else plain_json(detail, subject)
