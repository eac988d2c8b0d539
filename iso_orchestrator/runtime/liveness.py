"""Waiting for what other processes do, cheaply; and which runs are alive."""

from __future__ import annotations

from datetime import datetime

import attrs

from iso_orchestrator.record.facts import Fact, RunDied
from iso_orchestrator.record.projection import Fold, LiveRun
from iso_orchestrator.store import Log
from iso_orchestrator.system.clock import sleep

__all__ = ["Pause", "dead_runs", "live_runs"]

_FIRST_PAUSE = 0.0005  # seconds
_LONGEST_PAUSE = 0.02  # at some 20 microseconds a look, a process waits at a thousandth of a core


@attrs.define(eq=False, repr=False)
class Pause:
    """The pause between two looks: short at first, then long enough to cost nothing."""

    seconds: float = _FIRST_PAUSE

    def rest(self) -> None:
        """Let time go by."""
        sleep(self.seconds)
        self.seconds = min(2 * self.seconds, _LONGEST_PAUSE)


def live_runs(fold: Fold, log: Log, here: set[str]) -> dict[str, LiveRun]:
    """The runs that go on, those *here* among them, which are this process's."""
    return {run: live for run, live in fold.runs.items() if _goes_on(run, live, log, here)}


def dead_runs(fold: Fold, log: Log, here: set[str], at: datetime) -> list[Fact]:
    """The facts that runs have died."""
    return [RunDied(at, run) for run, live in fold.runs.items() if not _goes_on(run, live, log, here)]


def _goes_on(run: str, live: LiveRun, log: Log, here: set[str]) -> bool:
    return run in here if live.owner == log.owner else log.is_alive(live.owner)
