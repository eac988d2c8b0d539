from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_codec import Colour, Level, cycle, nested, values

from iso_orchestrator.codec import decode, encode, to_json
from iso_orchestrator.errors import SerializationError


@given(values)
def test_json_comes_back_as_it_was(value: Any) -> None:
    """Every JSON value is read back with the same values and types, lone surrogates and long ints included."""
    text = encode(to_json(value, "it"))
    assert repr(decode(text)) == repr(value)
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", '{"a":[NaN]}', "", "{", "'a'", "[1,]", "\ufeff1"])
def test_extensions_of_json_are_not_read(text: str) -> None:
    """The standard library's extensions of JSON are refused."""
    with pytest.raises(ValueError, match=r"."):
        decode(text)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2, [3])), [1, [2, [3]]]),
        (Text("abc"), "abc"),
        (Colour.RED, "red"),
        (Level.LOW, 1),
        (OrderedDict(a=(1,)), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        ({Colour.RED: 1}, {"red": 1}),
        (2**64 + 1, 2**64 + 1),
        (-(10**4199), -(10**4199)),
        ("\ud800", "\ud800"),
        (5e-324, 5e-324),
        (-0.0, -0.0),
    ],
)
def test_values_close_to_json_become_json(value: object, expected: object) -> None:
    """Tuples become lists, and subclasses of builtins the builtins, without a call of their own methods."""
    found = to_json(value, "it")
    assert repr(found) == repr(expected)
    assert type(found) is type(expected)


REFUSED = {
    "nan": ({"a": [0, math.nan]}, "$.a[1]", "nan is not JSON"),
    "inf": ([math.inf], "$[0]", "inf is not JSON"),
    "-inf": (-math.inf, "$", "-inf is not JSON"),
    "bytes": ({"body": b"x"}, "$.body", "bytes is not JSON"),
    "set": ({"a": {"b": {1}}}, "$.a.b", "set is not JSON"),
    "file": ([[io.StringIO()]], "$[0][0]", "StringIO is not JSON"),
    "date": ([date(2026, 5, 14)], "$[0]", "date is not JSON"),
    "decimal": ([Decimal(1)], "$[0]", "Decimal is not JSON"),
    "exception": ((ValueError("x"),), "$[0]", "ValueError is not JSON"),
    "generator": ({"a": (n for n in [])}, "$.a", "generator is not JSON"),
    "deque": ([deque([1])], "$[0]", "deque is not JSON"),
    "int key": ({"a": {1: 2}}, "$.a", "the key 1 is not a str but int"),
    "None key": ({None: 2}, "$", "the key None is not a str but NoneType"),
    "tuple key": ({(1, 2): 2}, "$", "is not a str but tuple"),
    "long int": ({"n": 10**4300}, "$.n", "too long to be read back"),
    "long negative int": ([-(10**4300)], "$[0]", "too long to be read back"),
    "200 levels": (nested(200), "[0][0]", "nested deeper than 128 levels"),
}


@pytest.mark.parametrize(("value", "place", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_json_cannot_hold_are_refused(value: object, place: str, reason: str) -> None:
    """The error names the subject, the place in the value and the reason."""
    with pytest.raises(SerializationError) as caught:
        to_json(value, "the result of step 'a'")
    error = caught.value
    assert error.subject == "the result of step 'a'"
    assert error.place == place if place.startswith("$") else place in error.place
    assert reason in error.reason
    assert str(error).startswith("the result of step 'a' ")


@pytest.mark.slow
def test_an_int_that_this_process_cannot_write_is_refused() -> None:
    """Where the interpreter's own limit is lower, what it could not write is refused before anything is written."""
    code = (
        "import json, sys\n"
        "from iso_orchestrator.codec import to_json\n"
        "from iso_orchestrator.errors import SerializationError\n"
        "for bits in range(1500, 3000):\n"
        "    try: value = to_json(1 << bits, 'it')\n"
        "    except SerializationError: continue\n"
        "    assert json.loads(json.dumps(value)) == value\n"
        "print(bits)\n"
    )
    limited = {**os.environ, "PYTHONINTMAXSTRDIGITS": "640"}
    assert subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, check=True).stdout


def test_a_cycle_is_refused_with_a_short_message() -> None:
    """A value that contains itself is refused, with a message of less than 1,000 characters."""
    with pytest.raises(SerializationError, match="contains itself") as caught:
        to_json(cycle(), "the state")
    assert len(str(caught.value)) < 1000


def depth_of(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(depth_of, parts), default=0)


bracketed = st.recursive(
    st.text('[]{}"\\,: ', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=4), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_brackets_in_strings_do_not_count_as_depth(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A text is refused if and only if it is nested deeper than the limit."""
    monkeypatch.setattr("iso_orchestrator.codec.json._MAX_DEPTH_READ", limit)

    @given(bracketed, st.sampled_from([json.dumps, partial(json.dumps, indent=1)]))
    def check(value: object, write: Callable[[object], str]) -> None:
        many = [value] * (limit + 1)  # fewer brackets than that are not looked at
        text = write(many)
        for written in (text, text.encode()):
            if depth_of(many) > limit:
                with pytest.raises(ValueError, match="nested deeper"):
                    decode(written)
            else:
                assert decode(written) == many

    check()


def test_every_accepted_depth_can_be_read_back() -> None:
    """A value of 127 levels is written and read back."""
    deep = nested(127)
    assert decode(encode(to_json(deep, "it"))) == deep


@pytest.mark.parametrize("power", [4198, 4214])
def test_every_accepted_int_can_be_read_back(power: int) -> None:
    """The limit on ints is below the interpreter's own."""
    value = 10**power
    assert decode(encode(to_json(value, "it"))) == value
