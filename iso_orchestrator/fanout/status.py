"""How far a batch is, in words: for a line of a terminal, and as a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, tzinfo
from operator import itemgetter
from typing import NamedTuple

import attrs

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.text import cut, money_text, seconds_text, time_text, width

_LEAST_LABEL = 16  # columns
_LEAST_BAR = 8
_LONGEST_BAR = 40
_TIMED = 3  # items after which the time left is told


class Signs(NamedTuple):
    """What a line is drawn with."""

    done: str
    left: str
    ellipsis: str


LINES = Signs("━", "─", "…")
ASCII = Signs("=", ".", "...")


@attrs.frozen
class LimitInForce:
    """A limit that *steps* wait for, as it is at the time *now*. Its end is shown in *zone*; None: this machine's."""

    steps: int
    key: str
    until: datetime
    now: datetime
    zone: tzinfo | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until it ends."""
        return (self.until - self.now).total_seconds()

    def __str__(self) -> str:
        until = time_text(self.until, self.now, self.zone)
        return f"{self.steps} {'waits' if self.steps == 1 else 'wait'} for {self.key} until {until}"


def soonest_limit(
    waits: Iterable[tuple[str | None, datetime | None]], now: datetime, zone: tzinfo | None = None
) -> LimitInForce | None:
    """The limit that ends first of those that steps wait for, given as the key and the end of each wait.

    A step that waited is on record as waiting until its turn has come, which may be long after the limit.
    """
    ahead = [(key, until) for key, until in waits if until is not None and until > now]
    if not ahead:
        return None
    key, until = min(ahead, key=itemgetter(1))
    steps = Counter(other for other, _ in ahead)[key]
    return LimitInForce(steps, "a limit" if key is None else escape_terminal(key), until, now, zone)


def time_left(left: int, ended: int, seconds: float, max_parallel: int, limit: float) -> float | None:
    """About how many seconds the rest of a batch takes; None if too little is known, or nothing is left.

    Args:
        left: Items that have not ended.
        ended: Items that have ended in this run.
        seconds: How long those held a worker, all together.
        max_parallel: Items at a time.
        limit: Seconds until a limit ends that is in force.
    """
    return left * seconds / ended / min(left, max_parallel) + limit if left and ended >= _TIMED else None


@attrs.frozen
class BatchStatus:
    """How far a batch is.

    Attributes:
        label: Without characters that control a terminal.
        total: Items; None: not known.
        replayed: Items whose results were on record before.
        limit: What steps wait for.
        seconds_left: None: not known.
        cost: US dollars.
        is_over: Whether no more items run.
    """

    label: str
    total: int | None
    done: int
    failed: int
    replayed: int
    limit: LimitInForce | None
    seconds_gone: float
    seconds_left: float | None
    cost: float
    is_over: bool

    def sentence(self) -> str:
        """All of it, for a log.

        Example:
            >>> BatchStatus("review", 60, 37, 1, 21, None, 29.1, 19.84, 1.6, False).sentence()
            'review: 37 of 60 done (21 from the record), 1 failed, 29.1 s gone, about 19.8 s left, $1.60'
        """
        done = f"{self.done} done" if self.total is None else f"{self.done} of {self.total} done"
        parts = [done + self._from_record, *self._troubles()]
        parts.append(f"{seconds_text(self.seconds_gone)}{'' if self.is_over else ' gone'}")
        if self.seconds_left is not None:
            parts.append(f"about {seconds_text(self.seconds_left)} left")
        return f"{self.label}: {', '.join([*parts, *self._costs()])}"

    def line(self, columns: int, signs: Signs = LINES) -> str:
        """What fits into a line: first the bar gives way, then the label is cut, then words are left out.

        Example:
            >>> status = BatchStatus("review", 60, 37, 1, 0, None, 29.1, 19.84, 1.6, False)
            >>> status.line(60), status.line(38)
            ('review 37/60 ━━━━━━━━━───────  1 failed  ~19.8 s left  $1.60', 'review 37/60  1 failed  ~19.8 s left')
        """
        count = (f"{self.done} done" if self.total is None else f"{self.done}/{self.total}") + self._from_record
        words = [*self._troubles()]
        if self.is_over:
            words.append(seconds_text(self.seconds_gone))
        elif self.seconds_left is not None:
            words.append(f"~{seconds_text(self.seconds_left)} left")
        words += self._costs()
        least = min(width(self.label), _LEAST_LABEL) + 1 + width(count)
        while words and columns < least + width("".join(words)) + 2 * len(words):
            words.pop()
        tail = "".join(f"  {word}" for word in words)
        room = columns - 1 - width(count) - width(tail)  # for the label and the bar
        label = cut(self.label, max(room - 1 - _LEAST_BAR, _LEAST_LABEL), signs.ellipsis)
        length = min(room - width(label) - 1, _LONGEST_BAR)
        if self.total and length >= _LEAST_BAR:
            done = min(length, length * self.done // self.total)
            return f"{label} {count} {signs.done * done}{signs.left * (length - done)}{tail}"
        return cut(f"{label} {count}{tail}", columns, signs.ellipsis)

    @property
    def _from_record(self) -> str:
        return f" ({self.replayed} from the record)" if self.replayed else ""

    def _troubles(self) -> list[str]:
        failed = [f"{self.failed} failed"] if self.failed else []
        return failed if self.limit is None else [*failed, str(self.limit)]

    def _costs(self) -> list[str]:
        return [money_text(self.cost)] if self.cost else []
