"""Items of a `for_each` that cannot go on now, and the thread that looks whether they can."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from iso_orchestrator.errors import Limited
from iso_orchestrator.steps.blocked import Blocked, end_waits
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.events import OneShotEvent, start

T = TypeVar("T")


class ParkedItems(Generic[T]):
    """The parked items of one `for_each`.

    Args:
        on_free: Is called with items that may go on, and are no longer parked.
        is_stopped: Whether the `for_each`, or one around it, starts nothing more.
        fail: Ends the `for_each` with an error.
    """

    def __init__(
        self,
        on_free: Callable[[Sequence[T]], None],
        is_stopped: Callable[[], bool],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._on_free = on_free
        self._is_stopped = is_stopped
        self._fail = fail
        # What follows changes under the lock only.
        self._guard = threading.Lock()
        self._parked: dict[T, Blocked] = {}
        self._looks_at: dict[T, float] = {}  # when to look whether an item can go on, by `monotonic`
        self._wake: OneShotEvent | None = None  # of the thread that looks; None: there is none

    def add(self, item: T, blocked: Blocked) -> None:
        """Park an item.

        Raises:
            RuntimeError: No thread can be started.
        """
        with self._guard:
            self._parked[item], self._looks_at[item] = blocked, 0.0
            wake = self._wake
            if wake is None:
                self._wake = OneShotEvent()
            else:
                wake.set()
        if wake is None:
            start(threading.Thread(target=self._watch, name="iso-orchestrator for_each parked", daemon=True).start)

    def drop(self) -> None:
        """Drop all items, and record that their steps no longer wait."""
        with self._guard:
            parked, self._parked = self._parked, {}
            if self._wake is not None:
                self._wake.set()
        end_waits(parked.values())

    def _watch(self) -> None:
        """Look at parked items, as long as there are any."""
        try:
            while (wake := self._next_wake()) is not None:
                self._refuse_stopped()
                wake.wait(max(0.0, self._look() - monotonic()))
        except BaseException as error:  # noqa: BLE001 - the thread that called the for_each raises it
            self._fail(error)

    def _next_wake(self) -> OneShotEvent | None:
        with self._guard:
            self._wake = OneShotEvent() if self._parked else None
            return self._wake

    def _refuse_stopped(self) -> None:
        """End the `for_each` if one around it was stopped, so that it waits for no limit."""
        if self._is_stopped():
            with self._guard:
                limits = [blocked.limit for blocked in self._parked.values() if blocked.limit is not None]
            if limits:
                self._fail(Limited(limits[0].until, limits[0].key))

    def _look(self) -> float:
        """Free the items that can go on; when to look again, by `monotonic`."""
        with self._guard:
            looks = [(item, blocked, self._looks_at[item]) for item, blocked in self._parked.items()]
        free: list[T] = []
        later: dict[T, float] = {}
        for item, blocked, looks_at in looks:
            if looks_at > monotonic():
                later[item] = looks_at
            elif seconds := blocked.pause(len(looks)):
                later[item] = monotonic() + seconds
            else:
                free.append(item)
        with self._guard:
            self._looks_at |= later
            free = [item for item in free if self._parked.pop(item, None) is not None]
            for item in free:
                del self._looks_at[item]
        self._on_free(free)
        return min(later.values(), default=-math.inf)
