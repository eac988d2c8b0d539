from __future__ import annotations

import pytest

from iso_orchestrator.checks import check_key


@pytest.mark.parametrize("key", ["a", " a ", "\x00", "..", "/", "line\nbreak", "😀", "x" * 10_000])
def test_any_text_that_is_not_blank_is_a_key(key: str) -> None:
    """A key is kept as it is, however odd."""
    assert check_key(key, "the key") == key


@pytest.mark.parametrize("key", ["", " ", "\t\n", "\u00a0\u2003", "a\ud800", "\udfff"])
def test_blank_and_unencodable_keys_are_refused(key: str) -> None:
    """A key that is blank, or that UTF-8 cannot hold, raises ValueError, which says what it is for."""
    with pytest.raises(ValueError, match="the mutex key"):
        check_key(key, "the mutex key")


@pytest.mark.parametrize("key", [None, 7, b"bytes", ["list"]])
def test_keys_that_are_no_texts_are_refused(key: object) -> None:
    """A key of another type raises TypeError, which names the type."""
    with pytest.raises(TypeError, match=f"workflow_id must be a str, not {type(key).__name__}"):
        check_key(key, "workflow_id")
