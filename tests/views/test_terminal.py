"""How wide texts are, where they are cut, and what a terminal is given."""

from __future__ import annotations

import io
import random
import unicodedata

import pytest

from iso_orchestrator.record.history import Outcome
from iso_orchestrator.text import width
from iso_orchestrator.views.terminal import Column, Style, Terminal

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
PIECES = [
    "a",
    "review:",
    " ",
    "日本",
    "絵文字",
    "e\u0301",
    "\U0001f44d\U0001f3fd",
    FAMILY,
    "\U0001f1e9\U0001f1ea",
    "☺\ufe0f",
    "각",
]
HOSTILE = ["\x1b[31m", "\n", "\u202e", "\x9b"]


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(draw: random.Random) -> str:
    return "".join(draw.choice([*PIECES, *HOSTILE]) for _ in range(draw.randrange(1, 30)))


def simple_width(text: str) -> int:
    """East Asian wide characters are 2 columns, marks, joiners and selectors 0, all others 1."""
    return sum(
        2
        if unicodedata.east_asian_width(char) in "WF"
        else 0
        if unicodedata.category(char) in {"Mn", "Me", "Cf"}
        else 1
        for char in text
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_line_is_wider_than_the_terminal(encoding: str) -> None:
    """Lines and tables fit, whatever their texts are, and whatever the encoding lacks."""
    draw = random.Random(2)
    columns = [Column(), Column("name", is_name=True), Column("took", is_right=True), Column("what", is_last=True)]
    for _ in range(200):
        terminal = Terminal(draw.randrange(8, 130), encoding=encoding)
        rows = [
            [terminal.sign(Outcome.FAILED), drawn(draw), "1.31 s", [drawn(draw), (drawn(draw), Style.DIM)]]
            for _ in range(3)
        ]
        shown = terminal.table(columns, rows, indent=2)
        shown += [terminal.line(drawn(draw), (drawn(draw), Style.HEAD)), *terminal.lines(drawn(draw), indent=2)]
        for line in shown:
            assert simple_width(line) <= width(line) <= terminal.width
            assert not set("".join(HOSTILE)) - set("[31m") & set(line)
            line.encode(encoding)


def test_a_cut_line_says_so() -> None:
    """A line that is cut has the mark at its end, also where the cut falls between two spans."""
    for columns in range(1, 9):
        shown = "abcdefgh" if columns == 8 else "abcdefgh"[: columns - 1] + "…"
        assert Terminal(columns).line("abc", ("def", Style.HEAD), "gh") == shown


def test_names_are_cut_before_others_but_keep_16_columns() -> None:
    """In a narrow terminal names are cut in their middles first, then the last column, then the ends of lines."""
    columns = [Column("name", is_name=True), Column("took", is_right=True), Column("what", is_last=True)]
    row = ["review:mobile:time zones at midnight", "1.31 s", "waits for its next attempt at 22:49:32"]
    assert Terminal(80).table(columns, [row])[1] == (
        "review:mobile:time … at midnight  1.31 s  waits for its next attempt at 22:49:32"
    )
    assert Terminal(50).table(columns, [row])[1] == "review:mo…dnight  1.31 s  waits for its next atte…"
    assert Terminal(20).table(columns, [row])[1] == "review:mo…dnight  1…"


@pytest.mark.parametrize(
    ("is_tty", "env", "is_painted"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"CLICOLOR_FORCE": "1"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals(is_tty: bool, env: dict[str, str], is_painted: bool) -> None:
    """Only a terminal gets escape sequences, unless the environment says otherwise; a pipe never gets columns set."""
    terminal = Terminal.of(_Tty() if is_tty else io.StringIO(), {"TERM": "xterm", **env})
    line = terminal.line(terminal.sign(Outcome.FAILED), " failed")
    assert ("\x1b[" in line) is is_painted
    table = terminal.table([Column("a"), Column("b")], [["日", "x"]])
    assert ("\x1b[5G" in table[1]) is (is_tty and is_painted)


def test_the_width_is_the_environment_s() -> None:
    """`COLUMNS` says the width; 80 where neither that nor the terminal does."""
    assert Terminal.of(io.StringIO(), {"COLUMNS": "120"}).width == 120
    assert Terminal.of(io.StringIO(), {"COLUMNS": "0"}).width == 80
    assert Terminal.of(io.StringIO(), {"COLUMNS": "wide"}).width == 80
