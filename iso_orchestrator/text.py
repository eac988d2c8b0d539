"""Texts on a terminal: their width in columns, cut to fit, and time spans, times, sums and counts in few characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo

_ELLIPSIS = "…"
_JOINER = "\u200d"
_IN_FRONT = 0.6  # of a cut text's columns


def width(text: str) -> int:
    """The columns that *text* takes on a terminal.

    Wide characters of East Asia and emoji take two, marks and joiners none. A terminal that draws joined emoji as one
    sign takes fewer columns, never more.

    Example:
        >>> width("日本"), width("e" + chr(0x301)), width("done")
        (4, 1, 4)
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


def cut(text: str, columns: int, ellipsis: str = _ELLIPSIS) -> str:
    """Cut *text* in its middle so that it takes at most *columns*, without splitting a sign and its marks.

    Args:
        text: Without control characters.
        columns: The columns it may take.
        ellipsis: What stands for the part that is left out.

    Example:
        >>> cut("review:mobile:timers at midnight", 20)
        'review:mobil…idnight'
        >>> cut("日本語の名前", 7), cut("short", 7)
        ('日本…前', 'short')
    """
    if width(text) <= columns:
        return text
    room = columns - width(ellipsis)
    if room < 0:
        return ""
    clusters = list(_clusters(text))
    back = _fitting(clusters[::-1], int(room * (1 - _IN_FRONT)))
    front = _fitting(clusters, room - width("".join(back)))
    back = _fitting(clusters[::-1], room - width("".join(front)))  # a wide sign may have left columns in front
    return "".join((*front, ellipsis, *reversed(back)))


def cut_end(text: str, columns: int, ellipsis: str = _ELLIPSIS) -> str:
    """Cut *text* at its end so that it takes at most *columns*, without splitting a sign and its marks.

    Example:
        >>> cut_end("Prompt is too long", 9)
        'Prompt i…'
    """
    if width(text) <= columns:
        return text
    room = columns - width(ellipsis)
    return "".join((*_fitting(list(_clusters(text)), room), ellipsis)) if room >= 0 else ""


def wrap(text: str, columns: int) -> list[str]:
    """Break *text* into lines of at most *columns*: between words, or else between signs.

    Example:
        >>> wrap("Prompt is too long", 10)
        ['Prompt is', 'too long']
    """
    lines, line = list[str](), ""
    for word in re.findall(r"\s*\S+", text):
        if line and width(line + word) > columns >= width(word.lstrip()):
            lines.append(line)
            line = ""
        line = line + word if line else word.lstrip()
        while width(line) > columns:  # a word that no line has room for
            signs = list(_clusters(line))
            first = "".join(_fitting(signs, columns)) or signs[0]
            lines.append(first.rstrip())
            line = line[len(first) :].lstrip()
    return [*lines, line] if line or not lines else lines


def seconds_text(seconds: float) -> str:
    """A time span in three digits, or in its two largest units.

    Example:
        >>> [seconds_text(seconds) for seconds in (0, 0.1499, 1.309, 57.21, 65, 33_120, 100_000)]
        ['0 ms', '150 ms', '1.31 s', '57.2 s', '1 m 5 s', '9 h 12 m', '1 d 3 h']
    """
    seconds = max(0.0, seconds)
    for size, unit, digits in ((0.001, "ms", 0), (1, "s", 2), (1, "s", 1)):
        # Rounded first: what is nearly the next unit is never 1000 ms or 60.0 s.
        if round(seconds / size, digits) < (10 if digits == 2 else 60 if digits else 1000):
            return f"{seconds / size:.{digits}f} {unit}"
    whole = round(seconds)
    units = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s"))
    size, unit, small_size, small_unit = next(found for found in units if whole >= found[0])
    return f"{whole // size} {unit} {whole % size // small_size} {small_unit}"


def money_text(dollars: float) -> str:
    """Show a sum of US dollars.

    Example:
        >>> [money_text(dollars) for dollars in (0, 0.04982, 0.25, 2.5, 12_345.6)]
        ['$0.00', '$0.0498', '$0.25', '$2.50', '$12,345.60']
    """
    return f"${dollars:.4f}" if 0 < dollars < 0.0995 else f"${dollars:,.2f}"


def counted(count: int, what: str) -> str:
    """Show a number and its noun.

    Example:
        >>> counted(1, "step"), counted(3, "step")
        ('1 step', '3 steps')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def count_text(count: int) -> str:
    """Show a large count, of tokens for example.

    Example:
        >>> [count_text(count) for count in (0, 999, 45_020, 2_500_000)]
        ['0', '999', '45.0 k', '2.5 M']
    """
    if count < 1_000:
        return str(count)
    return f"{count / 1e3:.1f} k" if count < 999_950 else f"{count / 1e6:.1f} M"


def time_text(moment: datetime, today: datetime | None = None, zone: tzinfo | None = UTC) -> str:
    """Show a time in *zone* (None: this machine's); with its date if that is not the one of *today*.

    Example:
        >>> moment = datetime(2026, 11, 28, 22, 33, 30, tzinfo=UTC)
        >>> time_text(moment), time_text(moment, moment.replace(day=29))
        ('22:33:30', '2026-11-28 22:33:30')
    """
    moment = moment.astimezone(zone)
    is_other_day = today is not None and moment.date() != today.astimezone(zone).date()
    return f"{moment:%Y-%m-%d %H:%M:%S}" if is_other_day else f"{moment:%H:%M:%S}"


def _columns(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.east_asian_width(character) in "WF":
        return 2
    # Vowels and finals of Hangul join the letter before them; a soft hyphen is a hyphen on terminals.
    if unicodedata.category(character) in ("Mn", "Me", "Cf") or "\u1160" <= character <= "\u11ff":
        return character == "\xad"
    return 1


def _clusters(text: str) -> Iterator[str]:
    """The signs of *text*: each with its marks, joined emoji with all their parts, flags with both letters."""
    cluster = ""
    for character in text:
        if cluster and not _joins(cluster, character):
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def _joins(cluster: str, character: str) -> bool:
    if _columns(character) == 0 or cluster[-1] == _JOINER or "\U0001f3fb" <= character <= "\U0001f3ff":
        return True
    return len(cluster) == 1 and _is_flag_letter(cluster) and _is_flag_letter(character)


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _fitting(clusters: list[str], columns: int) -> list[str]:
    found: list[str] = []
    for cluster in clusters:
        columns -= width(cluster)
        if columns < 0:
            break
        found.append(cluster)
    return found
