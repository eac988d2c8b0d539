"""Ending all that a command has started: asked first, then killed, until nobody is left."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain

import attrs

from iso_orchestrator.errors import CommandLeftoverError
from iso_orchestrator.system.clock import Backoff, monotonic
from iso_orchestrator.system.processes.table import Process
from iso_orchestrator.system.processes.tree import is_alive, living_tree, marked, process_table

__all__ = ["GRACE", "KILLING", "end_tree"]

GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""

KILLING = 10.0
"""Seconds of SIGKILL, after which it is no use."""

_LOOK_AGAIN = 0.2  # seconds between two looks for new ones while known ones are waited for


def end_tree(
    mark: str,
    *,
    grace: float = GRACE,
    known: Collection[Process] = (),
    is_urgent: Callable[[], bool] = lambda: False,
) -> int:
    """End all who have *mark*, and their descendants: SIGTERM, time to finish, SIGKILL, until nobody is left.

    Args:
        mark: Whom to end.
        grace: Seconds that they have to finish.
        known: Processes that are ended with their descendants whether or not they have the mark.
        is_urgent: Asked again and again; once it is true, the time to finish is over.

    Returns:
        How many there were.

    Raises:
        CommandLeftoverError: Some are left.
        WorkflowUsageError: This process is one of them; or there is neither ``/proc`` nor psutil.
    """
    return _Ending(mark, set(known), is_urgent, monotonic() + grace).run()


@attrs.define
class _Ending:
    mark: str
    met: set[Process]
    is_urgent: Callable[[], bool]
    kill_at: float
    killing_since: float | None = None
    asked: set[Process] = attrs.field(factory=set)

    def run(self) -> int:
        while living := living_tree(self.mark, self.met):
            self.met |= living
            if self._is_time_to_kill():
                self._kill(living)
            else:
                self._request_key(living)
            self.asked |= living
        return len(self.asked)

    def _is_time_to_kill(self) -> bool:
        return self.killing_since is not None or monotonic() >= self.kill_at or self.is_urgent()

    def _request_key(self, living: set[Process]) -> None:
        for process in _parents_first(living - self.asked):
            process_table().terminate(process)
        _rest(living, self.kill_at, self.is_urgent)

    def _kill(self, living: set[Process]) -> None:
        now = monotonic()
        self.killing_since = now if self.killing_since is None else self.killing_since
        if now - self.killing_since >= KILLING:
            raise CommandLeftoverError(tuple(sorted(process.pid for process in living)), KILLING)
        # At once when they are seen: those who hand over to children again and again are gone a moment later.
        for process in chain(_parents_first(living), marked(self.mark)):
            process_table().kill(process)
        _rest(living, self.killing_since + KILLING, lambda: False)


def _parents_first(processes: Collection[Process]) -> list[Process]:
    """So that none starts another child because it has lost one."""
    return sorted(processes, key=lambda process: (process.started, process.pid))


def _rest(processes: Collection[Process], until: float, is_urgent: Callable[[], bool]) -> None:
    """Wait until all of them have ended, or it is time to look for others."""
    until = min(until, monotonic() + _LOOK_AGAIN)
    pause = Backoff()
    while monotonic() < until and not is_urgent() and any(is_alive(process) for process in processes):
        pause.rest()
