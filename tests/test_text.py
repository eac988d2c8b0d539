"""Texts on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iso_orchestrator.text import cut, cut_end, seconds_text, width, wrap

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", 0), ("abc", 3), ("日本", 4), ("\uff46", 2), ("e\u0301", 1), ("\u2764\ufe0f", 1), (FAMILY, 6), ("a\xadb", 3)],
)
def test_width(text, columns):
    """Wide characters count twice, marks, joiners and variation selectors not at all."""
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("review:mobile:timers that fire at midnight", 28, "review:mobile:tim…t midnight"),
        ("exact", 5, "exact"),
        ("longer", 5, "lon…r"),
        ("日本語", 5, "日本…"),
        ("日本語", 1, "…"),
        ("日本語", 0, ""),
        (f"a{FAMILY}b", 7, "a…b"),
        ("xe\u0301e\u0301e\u0301y", 4, "xe\u0301…y"),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", 3, "\U0001f1e9\U0001f1ea…"),
        ("\U0001f44d\U0001f3fd is good", 6, "… good"),
    ],
)
def test_cut(text, columns, shown):
    """A text is cut in its middle, and no sign loses its marks."""
    assert cut(text, columns) == shown


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))), st.integers(0, 30))
def test_a_cut_text_fits(text, columns):
    """No cut text is wider than it may be, and one that fits is left as it is; nor is a line of a broken one."""
    for shown in (cut(text, columns), cut_end(text, columns)):
        assert width(shown) <= columns
        assert width(text) > columns or shown == text
    lines = wrap(text, columns + 2)
    assert all(width(line) <= columns + 2 or len(line) > 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.0014, "1 ms"),
        (0.9996, "1.00 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 m 0 s"),
        (3599.7, "1 h 0 m"),
        (86_399.8, "1 d 0 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_seconds_text(seconds, shown):
    """A time span has three digits, or two units."""
    assert seconds_text(seconds) == shown
