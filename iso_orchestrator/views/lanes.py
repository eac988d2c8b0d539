"""What the workers did over the time, drawn with characters: a line a worker, a column a stretch of time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby

import attrs

from iso_orchestrator.record.history import Gap, History, Outcome, WaitFor
from iso_orchestrator.text import time_text
from iso_orchestrator.views.drawing import named_gaps
from iso_orchestrator.views.terminal import Span, Style, Terminal, style_of

_MOST = 12  # workers that have a line
_SHORTEST = 20  # columns; in fewer nothing can be seen
_TICK = 18  # columns between two times
_SQUEEZED = 3  # columns of a long time in which nothing ran

Mark = tuple[str, Style]
"""A character and its colour."""

_NOTHING: Mark = (" ", Style.PLAIN)
_ATTEMPTS: dict[Outcome, Mark] = {
    Outcome.COMPLETED: ("━", style_of(Outcome.COMPLETED)),
    Outcome.RUNNING: ("━", style_of(Outcome.RUNNING)),
    Outcome.RETRIED: ("↻", style_of(Outcome.RETRIED)),
    Outcome.INTERRUPTED: ("†", style_of(Outcome.INTERRUPTED)),
    Outcome.FAILED: ("✕", style_of(Outcome.FAILED)),
}
_WAITS: dict[WaitFor, Mark] = {
    WaitFor.LIMIT: ("░", Style.LIMIT),
    WaitFor.BACKOFF: ("·", Style.BACKOFF),
    WaitFor.KEY: ("·", Style.DIM),
    WaitFor.PROCESS: ("·", Style.DIM),
}
# However short they are, these are seen; the last one most.
_NEVER_HIDDEN = [_ATTEMPTS[Outcome.INTERRUPTED], _ATTEMPTS[Outcome.FAILED]]


def lane_lines(history: History, terminal: Terminal) -> list[str]:
    """Draw what each worker did; no lines where nothing ran, or the terminal is too narrow."""
    bars = list(_bars(history))
    workers = 1 + max((worker for worker, *_ in bars), default=-1)
    label = len(f"worker {workers}")
    columns = terminal.width - label - 1
    if not workers or columns < _SHORTEST:
        return []
    axis = _Axis.of(history, columns)
    lanes: dict[int, list[tuple[Mark, float, float]]] = defaultdict(list)
    for worker, mark, begun, ended in bars:
        if worker < _MOST:
            lanes[worker].append((mark, axis.column(begun), axis.column(ended)))
    lines = [terminal.line((f"{'':{label + 1}}{axis.ticks()}", Style.DIM))]
    for worker in range(min(workers, _MOST)):
        marks = _drawn(lanes[worker], columns)
        spans: list[Span] = [
            ("".join(char for char, _ in group), style) for style, group in groupby(marks, lambda m: m[1])
        ]
        lines.append(terminal.line((f"{f'worker {worker + 1}':{label}} ", Style.DIM), *spans))
    if workers > _MOST:
        lines.append(terminal.line((f"and {workers - _MOST} more workers", Style.DIM)))
    return lines


def _bars(history: History) -> Iterator[tuple[int, Mark, datetime, datetime]]:
    for step in history.steps:
        for span in step.attempts:
            if span.depth == 0 or span.outcome is Outcome.FAILED:
                yield span.worker, _ATTEMPTS[span.outcome], span.begun, span.ended or history.now
        for wait in step.waits:
            yield wait.worker, _WAITS[wait.kind], wait.begun, wait.ended or history.now


def _drawn(bars: Iterable[tuple[Mark, float, float]], columns: int) -> list[Mark]:
    """A mark for each column: of what took the most of it, or of what must be seen."""
    shares: list[dict[Mark, float]] = [{} for _ in range(columns)]
    for mark, begin, end in bars:
        for column in range(min(int(begin), columns - 1), min(int(end), columns - 1) + 1):
            share = min(end, column + 1) - max(begin, column)
            if share > 0 or begin == end or mark in _NEVER_HIDDEN:
                shares[column][mark] = shares[column].get(mark, 0) + max(share, 1e-9)
    return [_mark_of(found) for found in shares]


def _mark_of(shares: dict[Mark, float]) -> Mark:
    for mark in reversed(_NEVER_HIDDEN):
        if mark in shares:
            return mark
    return max(shares, key=shares.__getitem__, default=_NOTHING)


@attrs.frozen
class _Axis:
    """Which column a moment has. Long times in which nothing ran have few columns each."""

    moments: Sequence[datetime]
    columns: Sequence[float]  # of each moment

    @classmethod
    def of(cls, history: History, columns: int) -> _Axis:
        begun, ended = history.begun, max(history.ended, history.begun + timedelta(milliseconds=1))
        whole = (ended - begun).total_seconds()
        gaps, is_squeezed = named_gaps(history)
        within = [gap for gap in gaps if is_squeezed and begun <= gap.begun and gap.ended <= ended]
        squeezed = within[: columns // (2 * _SQUEEZED)]
        rest = whole - sum(map(_seconds, squeezed))
        a_second = (columns - _SQUEEZED * len(squeezed)) / rest if rest else 0.0
        moments, places = [begun], [0.0]
        for gap in squeezed:
            moments += [gap.begun, gap.ended]
            place = places[-1] + (gap.begun - moments[-3]).total_seconds() * a_second
            places += [place, place + _SQUEEZED]
        return cls([*moments, ended], [*places, float(columns)])

    def column(self, moment: datetime) -> float:
        """Where *moment* is, in columns from 0 on."""
        number = min(max(bisect_left(self.moments, moment), 1), len(self.moments) - 1)
        before, after = self.moments[number - 1], self.moments[number]
        begin, end = self.columns[number - 1], self.columns[number]
        length = (after - before).total_seconds()
        place = begin + (end - begin) * ((moment - before).total_seconds() / length if length else 1.0)
        return min(max(place, 0.0), self.columns[-1])

    def ticks(self) -> str:
        """The times at some columns."""
        text = ""
        while len(text) + len("HH:MM:SS") <= self.columns[-1]:
            text += f"{time_text(self._moment(len(text))):{_TICK}}"
        return text[: int(self.columns[-1])].rstrip()

    def _moment(self, column: int) -> datetime:
        number = min(max(bisect_right(self.columns, column), 1), len(self.columns) - 1)
        begin, end = self.columns[number - 1], self.columns[number]
        share = (column - begin) / (end - begin) if end > begin else 0.0
        return self.moments[number - 1] + (self.moments[number] - self.moments[number - 1]) * share


def _seconds(gap: Gap) -> float:
    return (gap.ended - gap.begun).total_seconds()
