"""Items of a `for_each` that are done and not yet on the disk, and who sees to it that they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["AT_MOST", "Settling"]

AT_MOST = 64  # items at a time: what a power cut could take

T = TypeVar("T")


class Settling(Generic[T]):
    """Whoever would wait for the next sync starts another item: a sync takes longer than all else in a short step.

    Args:
        guard: The scheduler's lock.
        finish: Told of each item when it is on the disk: whether it succeeded, and its value or error.
    """

    def __init__(self, guard: threading.RLock, finish: Callable[[T, bool, Any], None]) -> None:
        self._guard = guard
        self._finish = finish
        self._waiting: list[tuple[T, Any, Callable[[], None]]] = []
        self._in_hand = 0
        self.is_at_it = False  # somebody is, and takes what is added meanwhile too

    def add(self, item: T, value: Any, settle: Callable[[], None], *, is_left: Callable[[], bool]) -> None:
        """Have an item settled: by this worker, or by one that settles those of others.

        Args:
            item: Which one.
            value: What it came to.
            settle: Returns when that is on the disk.
            is_left: Whether it may be left to a later call of `add` or `rest`. Asked under the lock.
        """
        with self._guard:
            self._waiting.append((item, value, settle))
            has_room = len(self._waiting) + self._in_hand <= AT_MOST
            if has_room and (self.is_at_it or is_left()):
                return
        self._settle()

    def rest(self) -> None:
        """Settle what was left, if nobody is at it."""
        with self._guard:
            if self.is_at_it or not self._waiting:
                return
        self._settle()

    def _settle(self) -> None:
        with self._guard:
            is_first, self.is_at_it = not self.is_at_it, True
        while self._settle_all(is_first) and is_first:
            pass

    def _settle_all(self, is_first: bool) -> bool:
        """Settle what waits for it; whether anything did."""
        with self._guard:
            waiting, self._waiting = self._waiting, []
            self._in_hand += len(waiting)
            if not waiting and is_first:
                self.is_at_it = False
        for item, value, settle in waiting:
            try:
                settle()
            except BaseException as error:  # noqa: BLE001 - it is the item's outcome
                self._finish(item, False, error)
            else:
                self._finish(item, True, value)
        with self._guard:
            self._in_hand -= len(waiting)
        return bool(waiting)
