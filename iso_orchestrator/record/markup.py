"""Recorded text, made harmless for the place where it is shown: terminals and HTML."""

import html
import re
from collections.abc import Iterable, Sequence

__all__ = ["escape_terminal", "html_table"]

# C0 and C1 controls, DEL, line and paragraph separators, characters that change the text's direction, surrogates.
_CONTROL = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_CELL = "text-align:left;vertical-align:top;white-space:pre-wrap"


def escape_terminal(text: str) -> str:
    """Escape all characters of *text* that could control a terminal.

    Example:
        >>> escape_terminal("red: " + chr(27) + "[31m").replace(chr(92), "/")
        'red: /x1b[31m'
    """
    return re.sub(_CONTROL, lambda match: ascii(match[0])[1:-1], text)


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Make an HTML table in which all texts are escaped.

    Example:
        >>> html_table("<b>", ["n"], [[1]]).startswith("<table><caption>&lt;b&gt;</caption>")
        True
    """
    header = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table><caption>{_text(caption)}</caption><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(escape_terminal(str(value)))
