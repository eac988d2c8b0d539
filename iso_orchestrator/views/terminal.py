"""The terminal: how wide it is, which signs and colours it has, and lines and tables that fit into it.

Every text is escaped here, where it becomes a line, so that no recorded text can drive the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import TextIO, TypeAlias

import attrs

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.history import Outcome
from iso_orchestrator.text import cut, cut_end, wrap
from iso_orchestrator.text import width as width_of

_WIDTH, _HEIGHT = 80, 24  # where the terminal does not say
_GAP = "  "
_SHORTEST_NAME = 16  # columns that a name keeps, however narrow the terminal is


class Style(StrEnum):
    """How a text is shown: the code of a terminal's colour."""

    PLAIN = ""
    HEAD = "1"
    DIM = "90"
    COMPLETED = "36"
    FAILED = "1;31"
    RETRIED = "33"
    INTERRUPTED = "37"
    LIMIT = "35"
    BACKOFF = "93"
    RUNNING = "94"
    CHOSEN = "7"


NONE = "\u2013"
"""Stands for what there is none of, and between two times."""

Span: TypeAlias = "str | tuple[str, Style]"
"""A text, or one with its style."""

Cell: TypeAlias = "Span | list[Span]"

_STYLES = {
    Outcome.COMPLETED: Style.COMPLETED,
    Outcome.FAILED: Style.FAILED,
    Outcome.RETRIED: Style.RETRIED,
    Outcome.INTERRUPTED: Style.INTERRUPTED,
    Outcome.WAITING: Style.LIMIT,
    Outcome.RUNNING: Style.RUNNING,
}
SIGNS = {
    Outcome.COMPLETED: "✓",
    Outcome.FAILED: "✕",
    Outcome.RETRIED: "↻",
    Outcome.INTERRUPTED: "†",
    Outcome.WAITING: "◔",
    Outcome.RUNNING: "●",
}
"""The signs of outcomes, the same in all views."""

# For encodings that are not UTF-8: of the signs of this module, and of those that views draw and write with.
_ASCII = str.maketrans("✓✕↻†◔●━─·░\u2013", "vxr!w*=-.#-") | str.maketrans({"…": "...", "↑": "up ", "↓": "down"})


def style_of(outcome: Outcome) -> Style:
    """The colour of an outcome, in which its sign is shown."""
    return _STYLES[outcome]


@attrs.frozen
class Column:
    """A column of a table.

    Attributes:
        head: Its name; "" for none.
        is_right: Whether its cells end at one column, as numbers do.
        is_name: Whether its cells are cut in the middle, and before those of others.
        is_last: Whether its cells are cut at their ends after that.
    """

    head: str = ""
    is_right: bool = False
    is_name: bool = False
    is_last: bool = False


@attrs.frozen
class Terminal:
    """A stream that people read.

    Attributes:
        width: Columns; no line is longer.
        height: Rows.
        encoding: What it can show.
        has_colours: Whether texts are painted.
        can_set_columns: Whether the cells of a table are placed by an escape sequence, so that a terminal that counts
            an emoji otherwise moves one cell alone.
    """

    width: int = _WIDTH
    height: int = _HEIGHT
    encoding: str = "utf-8"
    has_colours: bool = False
    can_set_columns: bool = False

    @classmethod
    def of(cls, stream: TextIO | None = None, env: Mapping[str, str] | None = None) -> Terminal:
        """The terminal behind *stream*, by default standard output; *env* is by default this process's environment."""
        out = sys.stdout if stream is None else stream
        env = os.environ if env is None else env
        is_tty = out.isatty()
        width, height = _size_of(out)
        if (columns := env.get("COLUMNS", "")).isdecimal() and int(columns):
            width = int(columns)
        is_painted = is_tty and env.get("TERM") != "dumb"
        if any(env.get(name, "0") not in {"", "0"} for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
            is_painted = True
        is_painted = is_painted and not env.get("NO_COLOR")
        encoding = (getattr(out, "encoding", None) or "utf-8").lower()
        return cls(width, height, encoding, has_colours=is_painted, can_set_columns=is_painted and is_tty)

    @property
    def is_utf8(self) -> bool:
        """Whether all signs can be shown."""
        return self.encoding.replace("-", "").replace("_", "") in {"utf8", "utf8sig"}

    @property
    def ellipsis(self) -> str:
        """What stands for a part that is cut out."""
        return self.text("…")

    def text(self, text: str) -> str:
        """*text* as it is shown: controls are escaped, and characters that the encoding lacks."""
        text = escape_terminal(text)
        if self.is_utf8:
            return text
        return text.translate(_ASCII).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def sign(self, outcome: Outcome, style: Style | None = None) -> Span:
        """The sign of an outcome, in its colour."""
        return SIGNS[outcome], style or _STYLES[outcome]

    def name(self, text: str, columns: int) -> str:
        """A name, cut in its middle to *columns*, but never below 16."""
        return cut(self.text(text), max(columns, _SHORTEST_NAME), self.ellipsis)

    def paint(self, text: str, style: Style) -> str:
        """*text* in a colour. It is not cut: what it becomes a part of must fit."""
        return self._painted([(self.text(text), style)])

    def line(self, *spans: Span, indent: int = 0) -> str:
        """One line, cut at its end to the width."""
        shown = [(self.text(text), style) for text, style in map(_split, spans)]
        return (" " * indent + self._painted(self._cut(shown, self.width - indent))).rstrip()

    def lines(self, text: str, style: Style = Style.PLAIN, *, indent: int = 0, hanging: int = 0) -> list[str]:
        """As many lines as *text* takes, those after the first one *hanging* columns further to the right."""
        found = wrap(self.text(text), max(1, self.width - indent - hanging))
        indents = [" " * indent, *[" " * (indent + hanging)] * (len(found) - 1)]
        return [before + self._painted([(line, style)]) for before, line in zip(indents, found, strict=True)]

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, indent: int = 0) -> list[str]:
        """Lines of cells under their heads, none longer than the width.

        A column with nothing in any row is left out. Where the width does not suffice, names are cut first, in the
        middle, down to 16 columns, then what is in the last column, and then lines at their ends. But a last column of
        more than half of the width is cut to that before, so that a long result does not take the names' room.
        """
        table = [[self._cell(cell) for cell in row] for row in rows]
        kept = [number for number in range(len(columns)) if any(_width_of(row[number]) for row in table)]
        columns = [columns[number] for number in kept]
        table = [[row[number] for number in kept] for row in table]
        heads = [[(self.text(column.head), Style.DIM)] for column in columns]
        if any(column.head for column in columns):
            table = [heads, *table]
        widths = [max(map(_width_of, cells)) for cells in zip(*table, strict=True)]
        names = [number for number, column in enumerate(columns) if column.is_name]
        last = [number for number, column in enumerate(columns) if column.is_last]
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - (self.width - indent)
        excess = _narrow(widths, last, excess, self.width // 2)
        excess = _narrow(widths, names, excess, _SHORTEST_NAME)
        _narrow(widths, last, excess, _SHORTEST_NAME)
        return [self._row(columns, widths, row, indent) for row in table]

    def _row(self, columns: Sequence[Column], widths: Sequence[int], row: Sequence[list[_Shown]], indent: int) -> str:
        line, at = " " * indent, indent
        for number, (column, wanted, spans) in enumerate(zip(columns, widths, row, strict=True)):
            gap = len(_GAP) if number else 0
            width = min(wanted, self.width - at - gap)
            if width <= 0:
                break
            if number:
                line += _GAP if line.isascii() or not self.can_set_columns else f"\x1b[{at + gap + 1}G"
            shown = self._cut(spans, width, in_middle=column.is_name)
            fill = " " * (width - _width_of(shown))
            line += fill + self._painted(shown) if column.is_right else self._painted(shown) + fill
            at += gap + width
        return line.rstrip()

    def _cell(self, cell: Cell) -> list[_Shown]:
        spans = cell if isinstance(cell, list) else [cell]
        return [(self.text(text), style) for text, style in map(_split, spans)]

    def _cut(self, spans: list[_Shown], width: int, *, in_middle: bool = False) -> list[_Shown]:
        if _width_of(spans) <= width:
            return spans
        if in_middle and len(spans) == 1:
            return [(cut(spans[0][0], width, self.ellipsis), spans[0][1])]
        shown, left = list[_Shown](), width
        for text, style in spans:
            room = left - width_of(text)
            # What follows does not fit: the mark comes behind this text, or, without room for it, into this text.
            if room < width_of(self.ellipsis):
                return [*shown, (cut_end(f"{text}{' ' * left}{self.ellipsis}", left, self.ellipsis), style)]
            shown.append((text, style))
            left = room
        return shown

    def _painted(self, spans: Iterable[_Shown]) -> str:
        if not self.has_colours:
            return "".join(text for text, _ in spans)
        return "".join(f"\x1b[{style}m{text}\x1b[0m" if style and text else text for text, style in spans)


_Shown: TypeAlias = tuple[str, Style]


def _split(span: Span) -> _Shown:
    return (span, Style.PLAIN) if isinstance(span, str) else span


def _width_of(spans: Iterable[_Shown]) -> int:
    return sum(width_of(text) for text, _ in spans)


def _narrow(widths: list[int], numbers: Iterable[int], excess: int, least: int) -> int:
    """Take *excess* from some of *widths*, from the widest one first, down to *least*; what could not be taken."""
    while excess > 0 and (wide := [number for number in numbers if widths[number] > least]):
        widths[max(wide, key=widths.__getitem__)] -= 1
        excess -= 1
    return excess


def _size_of(stream: TextIO) -> tuple[int, int]:
    with suppress(OSError, ValueError, AttributeError):  # no terminal, or closed
        columns, rows = os.get_terminal_size(stream.fileno())
        return columns or _WIDTH, rows or _HEIGHT  # under `script` or in CI a terminal may have the size 0
    return _WIDTH, _HEIGHT
