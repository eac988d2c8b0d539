"""Whether items are so short that one worker does them all sooner than several would."""

from __future__ import annotations

import threading

from iso_orchestrator.system.clock import monotonic

__all__ = ["LONG", "Pace"]

LONG = 0.005  # seconds after which an item that goes on is not short
_SHORT = 0.0003  # seconds of an item, for each that is worked on at that time: they wait for each other
_SHORT_AT_MOST = 0.002
_SURE = 16  # short items, less two for each that was not
_SUREST = 1024  # what that grows to, as items turn out to be long all the same
_DOUBT = 8  # items fewer than that, and it is sure no more


class Pace:
    """How long the items of one `for_each` take. Not safe for threads: the scheduler's lock is held around it.

    Threads that compute take the interpreter's lock from each other at every system call: on two cores, eight that do
    short steps take twice as long as one. So one goes on alone while items are short, another looks whether it gets on,
    as the monitor of Go's scheduler does for its threads, and the others leave.

    Attributes:
        is_short: Whether most of the last items were short.
    """

    def __init__(self) -> None:
        self.is_short = True  # before the first has ended: one worker alone finds out best
        self._sure = _SURE
        self._score = _SURE
        self._began: dict[int, float] = {}  # when, by thread

    def begin(self) -> None:
        """This thread begins an item."""
        self._began[threading.get_ident()] = monotonic()

    def end(self) -> None:
        """It has ended it."""
        now, at_work = monotonic(), len(self._began)
        took = now - self._began.pop(threading.get_ident(), now)
        if took < min(_SHORT * at_work, _SHORT_AT_MOST):
            self._score = min(self._score + 1, self._sure + _DOUBT)
            self.is_short = self.is_short or self._score >= self._sure
        else:
            self._score = max(self._score - 2, 0)
            self.is_short = self.is_short and self._score > self._sure - _DOUBT

    @property
    def is_anybody_at_work(self) -> bool:
        """Whether anybody is at an item."""
        return bool(self._began)

    def one_is_enough(self) -> bool:
        """Whether items are short, and somebody is at one that may be so too."""
        if not (self.is_short and self._began):
            return False
        since = monotonic() - LONG
        return any(began > since for began in self._began.values())

    def found_long(self) -> None:
        """One has turned out to be long. Next time be surer: whoever is wrong keeps the others from their work."""
        self.is_short, self._score, self._sure = False, 0, min(2 * self._sure, _SUREST)
