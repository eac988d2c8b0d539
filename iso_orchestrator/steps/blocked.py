"""Calls of steps that cannot go on now, and give way instead of waiting."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import attrs

from iso_orchestrator.errors import Limited
from iso_orchestrator.record.facts import StepWaiting
from iso_orchestrator.record.projection import Limit

if TYPE_CHECKING:
    from iso_orchestrator.runtime.runtime import WorkflowRuntime
    from iso_orchestrator.steps.call import StepCall

LONGEST_NAP = 0.5  # seconds between two looks while a limit holds: clocks may be set
_LOOK_EVERY = 0.02  # seconds between two looks at the step of another process, which take 0.1 ms each, or
_LOOK_EVERY_FOR_EACH = 0.002  # seconds for each call that waits so, if that makes more
_SHORT_LIMIT = timedelta(seconds=1)  # one that is met again is waited for longer each time, up to
_LONGEST_GROWN = timedelta(hours=1)


@attrs.frozen
class Blocked:
    """The answer of a call that gives way: it cannot go on now. `StepCall.run` continues it.

    Attributes:
        call: The call.
        limit: What it waits for; None: another process runs the step.
    """

    call: StepCall
    limit: Limit | None

    def pause(self, waiting: int) -> float:
        """Seconds until the next look whether it can go on; 0: it can, or it has to find out by itself.

        Args:
            waiting: How many calls wait likewise.
        """
        try:
            if self.limit is not None:
                return max(0.0, min((self.limit.until - self.call.runtime.clock.now()).total_seconds(), LONGEST_NAP))
            return max(_LOOK_EVERY, waiting * _LOOK_EVERY_FOR_EACH) if self.call.is_run_elsewhere() else 0.0
        except Exception:  # noqa: BLE001 - the call itself raises it
            return 0.0


def end_waits(blocked: Iterable[Blocked]) -> None:
    """Record that calls no longer wait for their limits, if that is possible: it only informs those who look."""
    calls: dict[WorkflowRuntime, list[StepCall]] = {}
    for one in blocked:
        if one.limit is not None:
            calls.setdefault(one.call.runtime, []).append(one.call)
    for runtime, waiting in calls.items():
        with suppress(Exception), runtime.acquire() as session:
            at, owner = runtime.clock.now(), session.log.process_id
            facts = [StepWaiting(at, call.name, owner) for call in waiting]
            session.transact(lambda _: (facts, None), durable=False, fences=())  # noqa: B023 - called at once


def end_of_limit(at: datetime, named: datetime, before: int) -> datetime:
    """Until when to wait for a limit that was met *at* a time, after a number of others in a row.

    Example:
        >>> at = datetime(2026, 5, 14)
        >>> [(end_of_limit(at, at, before) - at).total_seconds() for before in range(4)]
        [0.0, 2.0, 4.0, 8.0]
    """
    if not before or named - at > _SHORT_LIMIT:
        return named
    return max(named, at + min(_SHORT_LIMIT * float(2 ** min(before, 32)), _LONGEST_GROWN))


def give_up(limit: Limited, times: int, key: str | None) -> None:
    """Say in *limit*, the last of so many in a row, that it is a failure; *key* is the step's."""
    with suppress(Exception):  # a class of the user's may be frozen
        limit.in_a_row, limit.key = times, limit.key or key
