"""What the tests of the codec share: strategies for JSON, and values that are nearly JSON."""

from __future__ import annotations

import enum
from typing import Any

from hypothesis import strategies as st

texts = st.text(st.one_of(st.characters(), st.sampled_from('\x00\x1b\u2028\ud800\udfff\U0001f600"\\')), max_size=8)
integers = st.one_of(st.integers(-100, 100), st.integers(-(10**60), 10**60))
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), integers, floats, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value
