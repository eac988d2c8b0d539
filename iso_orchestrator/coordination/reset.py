"""Forgetting steps, so that they run again."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from datetime import datetime

from iso_orchestrator.checks import check_key
from iso_orchestrator.errors import WorkflowBusyError
from iso_orchestrator.record.facts import Fact, StepsReset
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session

__all__ = ["reset_steps"]


def reset_steps(runtime: WorkflowRuntime, name_or_pattern: str) -> list[str]:
    """Forget the steps of that exact name, else those that match the pattern; their names."""
    check_key(name_or_pattern, "a step's name or pattern")
    with runtime.using() as session:
        return _reset(session, runtime.clock.now(), name_or_pattern)


def _reset(session: Session, at: datetime, name_or_pattern: str) -> list[str]:

    def decide(projection: Projection) -> tuple[Sequence[Fact], list[str] | WorkflowBusyError]:
        names = _chosen(projection, name_or_pattern)
        running = next((name for name in names if _is_running(projection, session, name)), None)
        if running is not None:
            who = session.log.process_info(projection.owner(running) or "")
            return (), WorkflowBusyError(session.workflow_id, who.pid, who.host, who.since, f"step {running!r}")
        return ([StepsReset(at, tuple(names))] if names else ()), names

    outcome = session.transact(decide)
    if isinstance(outcome, WorkflowBusyError):
        raise outcome
    return outcome


def _chosen(projection: Projection, name_or_pattern: str) -> list[str]:
    if name_or_pattern in projection.steps:
        return [name_or_pattern]
    return [name for name in projection.steps if fnmatch.fnmatchcase(name, name_or_pattern)]


def _is_running(projection: Projection, session: Session, name: str) -> bool:
    owner = projection.owner(name)
    if owner == session.log.process_id:
        return session.is_in_flight(name)
    return owner is not None and session.log.is_alive(owner)
