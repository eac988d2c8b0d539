"""Waiting for what other processes do, cheaply; and which runs are alive."""

from __future__ import annotations

from datetime import datetime

from iso_orchestrator.record.facts import Fact, RunDied
from iso_orchestrator.record.projection import LiveRun, Projection
from iso_orchestrator.store import WorkflowLog

__all__ = ["dead_runs", "live_runs"]


def live_runs(projection: Projection, log: WorkflowLog, here: set[str]) -> dict[str, LiveRun]:
    """The runs that go on, those *here* among them, which are this process's."""
    return {run: live for run, live in projection.runs.items() if _goes_on(run, live, log, here)}


def dead_runs(projection: Projection, log: WorkflowLog, here: set[str], at: datetime) -> list[Fact]:
    """The facts that runs have died."""
    return [RunDied(at, run) for run, live in projection.runs.items() if not _goes_on(run, live, log, here)]


def _goes_on(run: str, live: LiveRun, log: WorkflowLog, here: set[str]) -> bool:
    return run in here if live.owner == log.process_id else log.is_alive(live.owner)
