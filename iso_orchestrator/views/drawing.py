"""A picture of a history that needs no script: a row for each worker, as SVG, and the clock that its texts use."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import attrs

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.history import AttemptSpan, Gap, History, Outcome, WaitFor, WaitSpan
from iso_orchestrator.text import seconds_text, time_text

_PAINTS = {
    Outcome.COMPLETED: "ok",
    Outcome.FAILED: "bad",
    Outcome.RETRIED: "try",
    Outcome.INTERRUPTED: "cut",
    Outcome.RUNNING: "run",
    WaitFor.LIMIT: "lim",
    WaitFor.BACKOFF: "back",
    WaitFor.KEY: "key",
    WaitFor.PROCESS: "key",
}
_FRONT = ("bad", "cut", "try", "lim", "back", "run", "key", "ok")  # which one is seen where several are too thin
_SIGNS = {"bad": "✕", "try": "↻", "cut": "†"}

CLASSES = {
    **{paint: f'class="bars solid-{paint}"' for paint in set(_PAINTS.values())},
    "svg": 'class="static"',
    "text": "",
    "sign": 'class="on-bar"',
    "tick": 'class="tick"',
    "death": 'class="death"',
}
"""How the parts of a picture look: by the style sheet of the page that it is in."""

INLINE = {
    **{
        paint: f'fill="none" stroke="{colour}"'
        for paint, colour in {
            "ok": "#3f8a77",
            "bad": "#c9372c",
            "try": "#b9681a",
            "cut": "#6b7079",
            "run": "#1f6fc4",
            "lim": "#7c55bd",
            "back": "#a47c12",
            "key": "#6e7781",
        }.items()
    },
    "svg": 'font-family="system-ui,sans-serif" font-size="11"',
    "text": 'fill="currentColor" fill-opacity="0.75"',
    "sign": 'fill="#fff" font-weight="700"',
    "tick": 'stroke="currentColor" stroke-opacity="0.15"',
    "death": 'stroke="#c9372c" stroke-width="2"',
}
"""How they look by themselves, on light and on dark ground."""

_WIDTH, _LEFT, _TOP = 1180, 80, 30
_MOST_LANES = 60
_LEAST_PART = 0.045  # of the time is what a gap is named from
_SQUEEZED = 0.035  # of the rest of the time is what a squeezed gap gets
_SQUEEZE_FROM = 0.3
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)  # seconds


@attrs.frozen
class Clock:
    """Names times in one zone.

    Example:
        >>> begun = datetime(2026, 11, 28, 22, 33, 30, tzinfo=UTC)
        >>> Clock(UTC).span(begun, begun + timedelta(seconds=57))
        '2026-11-28 22:33:30 \u2013 22:34:27 UTC'
    """

    zone: tzinfo

    @classmethod
    def of(cls, history: History, *, utc: bool) -> Clock:
        """The clock of a history: UTC, or this machine's zone as it was when the history began."""
        if utc:
            return cls(UTC)
        local = history.begun.astimezone()
        return cls(timezone(local.utcoffset() or timedelta(), local.tzname() or "local time"))

    @property
    def name(self) -> str:
        """The zone, such as "CET"."""
        return self.zone.tzname(None) or "UTC"

    def time(self, moment: datetime) -> str:
        """Hours, minutes and seconds."""
        return time_text(moment, zone=self.zone)

    def span(self, begun: datetime, ended: datetime) -> str:
        """From when until when, with the date and the zone."""
        until = time_text(ended, begun, self.zone)
        return f"{begun.astimezone(self.zone):%Y-%m-%d %H:%M:%S} \u2013 {until} {self.name}"


def paint_of(span: AttemptSpan | WaitSpan) -> str:
    """The paint of a bar: "ok", "bad", "try", "cut", "run", "lim", "back" or "key"."""
    if isinstance(span, WaitSpan):
        return _PAINTS[span.kind]
    return "lim" if span.limit_until is not None else _PAINTS[span.outcome]


def named_gaps(history: History) -> tuple[Sequence[Gap], bool]:
    """The gaps that are long enough to be named, and whether they are so long that they should be squeezed."""
    whole = (history.ended - history.begun) or timedelta(seconds=1)
    gaps = [gap for gap in history.gaps if gap.ended - gap.begun > whole * _LEAST_PART]
    return gaps, sum((gap.ended - gap.begun for gap in gaps), timedelta()) > whole * _SQUEEZE_FROM


def gap_text(gap: Gap) -> str:
    """Say why nothing ran, and for how long."""
    reason, length = escape_terminal(gap.reason), seconds_text((gap.ended - gap.begun).total_seconds())
    return f"{reason} for {length}" if gap.is_without_process else f"{reason}, {length}"


def drawing(history: History, clock: Clock, look: Mapping[str, str], *, bars: int) -> str:
    """Draw a history as SVG.

    Args:
        history: Of the workflow.
        clock: Names the times.
        look: CLASSES or INLINE.
        bars: About how many are drawn at most; what is thinner than that allows is merged, failures in front.
    """
    if not any(step.attempts or step.waits for step in history.steps):
        return ""
    x_of, ticks = _scale(history)
    lanes = min(_MOST_LANES, max(1, history.totals.workers))
    step = 22 if lanes <= 24 else 12
    height = _TOP + lanes * step + (16 if lanes < history.totals.workers else 4)
    parts = [
        f'<path {look["tick"]} d="M{x_of(tick):.1f} 18V{height}"/>'
        f'<text {look["text"]} x="{x_of(tick):.1f}" y="12" text-anchor="middle">{clock.time(tick)}</text>'
        for tick in ticks
    ]
    parts += [
        f'<text {look["text"]} x="0" y="{_TOP + (lane + 0.5) * step + 4:.0f}">worker {lane + 1}</text>'
        for lane in range(lanes)
    ]
    if lanes < history.totals.workers:
        more = f"and {history.totals.workers - lanes} more workers"
        parts.append(f'<text {look["text"]} x="0" y="{height - 4}">{more}</text>')
    parts += _bars(history, x_of, look, lanes, step, bars)
    parts += _runs(history, x_of, look, height)
    return (
        f'<svg {look["svg"]} viewBox="0 0 {_WIDTH} {height}" width="100%" role="img" aria-label="Timeline">'
        f"{''.join(parts)}</svg>"
    )


def _scale(history: History) -> tuple[Callable[[datetime], float], list[datetime]]:
    """Where times are drawn, and which of them are named."""
    begun, ended = history.begun, max(history.ended, history.begun + timedelta(milliseconds=1))
    gaps, is_squeezed = named_gaps(history)
    pieces: list[tuple[float, float, float]] = []  # seconds from, to, and how much place a second gets
    whole = (ended - begun).total_seconds()
    at = 0.0
    squeezed = [((gap.begun - begun).total_seconds(), (gap.ended - begun).total_seconds()) for gap in gaps]
    squeezed = squeezed if is_squeezed else []
    rest = whole - sum(end - begin for begin, end in squeezed)
    for begin, end in [*squeezed, (whole, whole)]:
        pieces.append((at, begin, 1.0))
        if end > begin:
            pieces.append((begin, end, rest * _SQUEEZED / (end - begin)))
        at = end
    extent = sum((end - begin) * factor for begin, end, factor in pieces) or 1.0

    def x_of(moment: datetime) -> float:
        seconds = (moment - begun).total_seconds()
        place = sum((min(end, seconds) - begin) * factor for begin, end, factor in pieces if seconds > begin)
        return _LEFT + (_WIDTH - _LEFT - 8) * place / extent

    between = next((tick for tick in _TICKS if rest / tick <= 9), 86400 * math.ceil(rest / 9 / 86400))
    first = math.ceil(begun.timestamp() / between) * between
    ticks = (datetime.fromtimestamp(second, UTC) for second in range(first, math.ceil(ended.timestamp()), between))
    return x_of, list(_apart(ticks, x_of))


def _apart(ticks: Iterator[datetime], x_of: Callable[[datetime], float]) -> Iterator[datetime]:
    """Leave out the ticks whose names would lie upon that of another, as those in a squeezed gap do."""
    last = _LEFT - 20.0
    for tick in ticks:
        if x_of(tick) - last >= 60 and x_of(tick) < _WIDTH - 24:
            last = x_of(tick)
            yield tick


def _bars(
    history: History, x_of: Callable[[datetime], float], look: Mapping[str, str], lanes: int, step: int, bars: int
) -> Iterator[str]:
    thin = max(2.0, 2 * lanes * (_WIDTH - _LEFT) / bars)  # columns and bars together are so many
    columns: dict[tuple[int, int], str] = {}
    paths: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    signs: list[str] = []

    def put(paint: str, lane: int, x0: float, wide: float, depth: int = 0) -> None:
        paths[min(depth, 1), paint].append(f"M{x0:.1f} {_TOP + (lane + 0.5) * step:.0f}h{wide:.1f}")

    for span in _spans(history):
        if span.worker >= lanes or (isinstance(span, WaitSpan) and span.kind is WaitFor.KEY):
            continue
        paint = paint_of(span)
        x0, x1 = x_of(span.begun), x_of(span.ended or history.now)
        if x1 - x0 < thin:
            column = span.worker, int(x0 / thin)
            known = columns.get(column, "ok")
            columns[column] = paint if _FRONT.index(paint) < _FRONT.index(known) else known
            continue
        depth = span.depth if isinstance(span, AttemptSpan) else 0
        put(paint, span.worker, x0, x1 - x0 - 0.6, depth)
        if paint in _SIGNS and x1 - x0 > 13 and step > 20 and not depth:
            y = _TOP + (span.worker + 0.5) * step + 4
            signs.append(f'<text {look["sign"]} x="{x0 + 4:.1f}" y="{y:.0f}">{_SIGNS[paint]}</text>')
    for (lane, place), paint in columns.items():
        put(paint, lane, place * thin, thin - 0.3)
    order = {paint: place for place, paint in enumerate(reversed(_FRONT))}
    for depth, paint in sorted(paths, key=lambda found: (found[0], order[found[1]])):
        wide = (step - 5) // (depth + 1)
        yield f'<path {look[paint]} stroke-width="{wide}" d="{"".join(paths[depth, paint])}"/>'
    yield from signs if len(signs) <= bars // 10 else ()


def _spans(history: History) -> Iterator[AttemptSpan | WaitSpan]:
    for step in history.steps:
        yield from step.attempts
        yield from step.waits


def _runs(history: History, x_of: Callable[[datetime], float], look: Mapping[str, str], height: int) -> Iterator[str]:
    flags = []
    for number, run in enumerate(history.runs):
        if number:
            flags.append((x_of(run.begun), "resumed" if history.runs[number - 1].has_died else "next run", "start"))
        if run.has_died and run.ended is not None:
            yield f'<path {look["death"]} d="M{x_of(run.ended):.1f} 16V{height}"/>'
            flags.append((x_of(run.ended), "† died", "end"))
    for x, text, anchor in flags[:20]:  # more would lie upon each other
        side = 3 if anchor == "start" else -4
        yield f'<text {look["text"]} x="{x + side:.1f}" y="25" text-anchor="{anchor}">{text}</text>'
