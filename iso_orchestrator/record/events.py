"""The events that facts leave in the record, and what their details tell: keys in camelCase, as in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from iso_orchestrator.record.model import ErrorInfo, Json, StepStatus, WorkflowEvent, format_time

if TYPE_CHECKING:
    from iso_orchestrator.record.facts import RunDied, RunStarted, StepStarted
    from iso_orchestrator.record.projection import LiveRun, Projection

RUN_DIED = "RunDied"
"""The name of the error of a run whose process was found dead."""

_LONGEST_PID = 10  # digits


def add_event(projection: Projection, at: datetime, type_: str, detail: Json = None) -> None:
    """Add an event without a message."""
    projection.events.append(WorkflowEvent(at, type_, None, detail))


def add_run(projection: Projection, fact: RunStarted, number: int) -> None:
    """Add the event that a run began."""
    detail: dict[str, Json] = {"run": number, "pid": fact.pid, "host": fact.host}
    if fact.argv:
        detail["argv"] = list(fact.argv)
    if fact.cwd is not None:
        detail["cwd"] = fact.cwd
    if fact.traceparent is not None:
        detail["traceparent"] = fact.traceparent
    add_event(projection, fact.at, "workflow.running", detail)


def add_start(projection: Projection, fact: StepStarted) -> None:
    """Add the event that an attempt began, which names its run, or else its process; defaults are left out."""
    detail: dict[str, Json] = {
        "step": fact.step,
        "attempt": fact.attempt,
        "idempotencyKey": fact.idempotency_key,
    }
    if (run := projection.run_of(fact.owner)) is not None:
        detail["run"] = run
    elif (pid := pid_of(fact.owner)) is not None:
        detail["pid"] = pid
    if fact.version is not None:
        detail["version"] = fact.version
    if fact.item:
        detail["item"] = list(fact.item)
    if fact.of > 1:
        detail["of"] = fact.of
    if fact.parent is not None:
        detail["parent"] = fact.parent
    if fact.fn is not None:
        detail["fn"] = fact.fn
    if fact.if_interrupted != "rerun":
        detail["ifInterrupted"] = fact.if_interrupted
    if fact.timeout is not None:
        detail["timeout"] = fact.timeout
    add_event(projection, fact.at, "step.started", detail)


def add_interruptions(projection: Projection, run: LiveRun, fact: RunDied) -> None:
    """Add an event for each attempt that the process of *run* was at when it died."""
    if any(other.owner == run.owner for other in projection.runs.values()):
        return  # with its last run
    for step in projection.steps.values():
        if step.owner == run.owner and step.status is StepStatus.RUNNING:
            detail = {"step": step.name, "attempt": step.attempts, **last_seen(fact)}
            add_event(projection, fact.at, "step.interrupted", detail)


def last_seen(fact: RunDied) -> dict[str, Json]:
    """When the process of a run was last seen alive, if that is known."""
    return {} if fact.last_seen is None else {"lastSeen": format_time(fact.last_seen)}


def add_end(
    projection: Projection,
    at: datetime,
    run: LiveRun | None,
    error: ErrorInfo | None,
    more: Mapping[str, Json] = MappingProxyType({}),
) -> None:
    """Add the event that a run ended, with *more* in its detail."""
    detail = {} if error is None else {"error": error_json(error)}
    if run is not None and run.number:
        detail["run"] = run.number
    add_event(projection, at, "workflow.completed" if error is None else "workflow.failed", {**detail, **more} or None)


def error_json(error: ErrorInfo) -> Json:
    """An error as details have it."""
    return {name: value for name, value in attrs.asdict(error).items() if value is not None}


def pid_of(owner: str) -> int | None:
    """The number of a process, which is the second part of its id; None in ids of earlier releases."""
    pid = owner.split("-", 2)[1:2]
    return int(pid[0]) if pid and pid[0].isascii() and pid[0].isdigit() and len(pid[0]) <= _LONGEST_PID else None
