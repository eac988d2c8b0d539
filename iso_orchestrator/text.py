"""Texts on a terminal: their width in columns, cut to fit, and time spans in few characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

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


def seconds_text(seconds: float) -> str:
    """A time span in three digits, or its two largest units.

    Example:
        >>> seconds_text(0.25), seconds_text(19.84), seconds_text(125), seconds_text(11520)
        ('0.25 s', '19.8 s', '2 min 5 s', '3 h 12 min')
    """
    if seconds < 59.95:
        return f"{seconds:.3g} s" if seconds >= 0.001 else "0 s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


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
