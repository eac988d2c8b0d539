from __future__ import annotations

import pytest

from iso_orchestrator.checks import check_choice, check_count, check_key


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


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (True, TypeError), (1.0, TypeError), ("2", TypeError)])
def test_a_count_is_an_int_of_the_least_or_more(value: int, error: type[Exception]) -> None:
    """What is no int raises TypeError, also a bool, and a smaller one ValueError; both name the option."""
    assert check_count(1, "max_parallel") == 1
    assert check_count(0, "max_retries", 0) == 0
    with pytest.raises(error, match="max_parallel must be"):
        check_count(value, "max_parallel")


def test_a_choice_is_one_of_the_words() -> None:
    """Another value raises ValueError, which names the option and all words."""
    check_choice("wait", "on_busy", "share", "wait", "fail")
    with pytest.raises(ValueError, match='on_busy is "share" or "wait" or "fail", not None'):
        check_choice(None, "on_busy", "share", "wait", "fail")  # type: ignore[arg-type]  # as untyped code may
