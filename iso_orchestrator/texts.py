"""Texts as a terminal shows them: how wide they are, where they are cut; and durations, times, sums and counts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache

from iso_orchestrator.checks import escape_terminal

SHORTEST_NAME = 16
"""Columns that a name keeps, however narrow the terminal is."""

_ZWJ = "\u200d"
_EMOJI_FORM = "\ufe0f"  # the variation selector that makes a narrow sign a wide picture
_UNITS = (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1))
_SPACE = re.compile(r"\s+")


@cache
def _width(char: str) -> int:
    if unicodedata.east_asian_width(char) in "WF":
        return 2
    # A soft hyphen is a format character, and most terminals show it.
    return 0 if unicodedata.category(char) in {"Mn", "Me", "Mc", "Cf"} and char != "\xad" else 1


@cache
def _joins(char: str) -> bool:
    """Whether it belongs to the character before it: a mark, a joiner, a skin tone, the end of a Hangul syllable."""
    return _width(char) == 0 or "\U0001f3fb" <= char <= "\U0001f3ff" or "\u1160" <= char <= "\u11ff"


def _is_flag_half(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def clusters(text: str) -> Iterator[str]:
    """The parts of *text* that must not be split: a character with its marks, an emoji of several, a flag.

    Example:
        >>> len(list(clusters("e" + chr(0x301) + "x")))
        2
    """
    if text.isascii():
        yield from text
        return
    cluster = ""
    for char in text:
        goes_on = cluster and (
            _joins(char)
            or cluster.endswith(_ZWJ)
            or (_is_flag_half(char) and len(cluster) == 1 and _is_flag_half(cluster))
        )
        if cluster and not goes_on:
            yield cluster
            cluster = ""
        cluster += char
    if cluster:
        yield cluster


def cell_width(text: str) -> int:
    """How many columns of a terminal *text* takes at most. Terminals differ only in that some join emoji.

    Example:
        >>> cell_width("日本"), cell_width("e" + chr(0x301))
        (4, 1)
    """
    if text.isascii():
        return len(text)
    width = sum(map(_width, text))
    if _EMOJI_FORM in text:
        width += sum(_EMOJI_FORM in part and _width(part[0]) == 1 for part in clusters(text))
    return width


def head_of(text: str, width: int) -> str:
    """As many whole clusters from the beginning of *text* as fit into *width* columns."""
    if text.isascii():
        return text[: max(0, width)]
    taken, left = "", width
    for cluster in clusters(text):
        left -= cell_width(cluster)
        if left < 0:
            break
        taken += cluster
    return taken


def tail_of(text: str, width: int) -> str:
    """As many whole clusters from the end of *text* as fit into *width* columns."""
    if text.isascii():
        return text[max(0, len(text) - max(0, width)) :]
    taken, left = "", width
    for cluster in reversed(list(clusters(text))):
        left -= cell_width(cluster)
        if left < 0:
            break
        taken = cluster + taken
    return taken


def cut(text: str, width: int, mark: str = "…") -> str:
    """Cut *text* at its end to *width* columns.

    Example:
        >>> cut("Prompt is too long", 9)
        'Prompt i…'
    """
    if cell_width(text) <= width:
        return text
    room = width - len(mark)
    return head_of(text, room) + mark if room >= 0 else head_of(text, width)


def cut_middle(text: str, width: int, mark: str = "…") -> str:
    """Cut *text* in its middle to *width* columns: names often differ at their ends.

    Example:
        >>> cut_middle("review:mobile:time zones at midnight", 27)
        'review:mobile…s at midnight'
    """
    if cell_width(text) <= width:
        return text
    room = max(0, width - len(mark))
    end = tail_of(text, room // 2)
    return head_of(text, room - cell_width(end)) + mark + end


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Fill *text* with spaces to *width* columns; before it with *right*."""
    fill = " " * (width - cell_width(text))
    return fill + text if right else text + fill


def wrapped(text: str, width: int) -> list[str]:
    """Break *text* into lines of at most *width* columns, between words where that is possible."""
    lines, line = list[str](), ""
    for word in re.findall(r"\s*\S+", text):
        if cell_width(line + word) > width and line:
            lines.append(line)
            line, word = "", word.lstrip()
        line += word
        while cell_width(line) > width:
            first = head_of(line, width) or next(clusters(line))
            lines.append(first)
            line = line[len(first) :]
    return [*lines, line] if line or not lines else lines


def one_line(text: str) -> str:
    """Put *text* on one line: all white space, line ends too, is one space; controls are escaped."""
    return escape_terminal(_SPACE.sub(" ", text).strip())


# Numbers


def duration_text(seconds: float) -> str:
    """Show a time span with three digits, or two units.

    Example:
        >>> [duration_text(seconds) for seconds in (0, 0.1499, 1.309, 57.21, 65, 33_120, 100_000)]
        ['0 ms', '150 ms', '1.31 s', '57.2 s', '1 m 05 s', '9 h 12 m', '1 d 3 h']
    """
    seconds = max(0.0, seconds)
    if round(seconds, 3) < 1:
        return f"{round(seconds * 1000)} ms"
    if round(seconds, 2) < 10:
        return f"{seconds:.2f} s"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    unit, size, small_unit, small = next(one for one in _UNITS if whole >= one[1])
    first, rest = divmod(whole, size)
    second = rest // small
    return f"{first} {unit} {second:02d} {small_unit}" if small < 3_600 else f"{first} {unit} {second} {small_unit}"


def money_text(dollars: float) -> str:
    """Show a sum of US dollars.

    Example:
        >>> [money_text(dollars) for dollars in (0, 0.04982, 0.25, 2.5, 12_345.6)]
        ['$0.00', '$0.0498', '$0.25', '$2.50', '$12,345.60']
    """
    return f"${dollars:.4f}" if 0 < dollars < 0.0995 else f"${dollars:,.2f}"


def count_text(count: int) -> str:
    """Show a large count, of tokens for example.

    Example:
        >>> [count_text(count) for count in (0, 999, 45_020, 2_500_000)]
        ['0', '999', '45.0 k', '2.5 M']
    """
    if count < 1_000:
        return str(count)
    return f"{count / 1e3:.1f} k" if count < 999_950 else f"{count / 1e6:.1f} M"


def clock_text(moment: datetime, today: datetime | None = None) -> str:
    """Show a time in UTC; with its date if that is not the one of *today*.

    Example:
        >>> moment = datetime(2026, 11, 28, 22, 33, 30, tzinfo=UTC)
        >>> clock_text(moment), clock_text(moment, moment.replace(day=29))
        ('22:33:30', '2026-11-28 22:33:30')
    """
    moment = moment.astimezone(UTC)
    is_other_day = today is not None and moment.date() != today.astimezone(UTC).date()
    return f"{moment:%Y-%m-%d %H:%M:%S}" if is_other_day else f"{moment:%H:%M:%S}"
