"""Examples of all facts, made from the fields of their classes: a new fact needs no edit here.

`tests/data/facts.jsonl` has the JSON of each example. This appends the lines that it lacks, and changes none:

    PYTHONPATH=. python tests/support_facts.py
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import attrs
from hypothesis import strategies as st
from support import at
from support_codec import floats, integers, texts, values

from iso_orchestrator.codec import decode, encode, fact_from_json, fact_to_json
from iso_orchestrator.record import facts as f

FACT_KINDS = list(f.FACTS.values())

FILE = Path(__file__).parent / "data/facts.jsonl"

times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, fold=0)
)

# For each type an example that is no field's default, and all values.
_TYPES: dict[Any, tuple[Any, st.SearchStrategy[Any]]] = {
    int: (7, integers),
    float: (1.5, floats),
    bool: (True, st.booleans()),
    datetime: (at(9), times),
    Any: ({"n": [1, -2.5, 10**20, None, True], "text": "ünï \0 \ud800 😀"}, values),  # `Json`
}


def least(kind: type[f.Fact]) -> f.Fact:
    """An example with the fields alone that have no default."""
    return _example(kind, [field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING])


def full(kind: type[f.Fact]) -> f.Fact:
    """An example in which no field has its default. All examples are of one step, one run and one key."""
    return _example(kind, [field.name for field in attrs.fields(kind)])


def saying(kind: type[f.Fact], said: Callable[[str], str]) -> f.Fact:
    """An example in which no field has its default, and each text is what *said* makes of its field's name."""
    return _example(kind, [field.name for field in attrs.fields(kind)], said)


def objects_of(kind: type[Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """All objects of an attrs class, but for the fields in *given*."""
    types = get_type_hints(kind)
    fields = {}
    for field in attrs.fields(kind):
        if field.init:
            drawn = _made(field.name, types[field.name])[1]
            no_default = field.default is attrs.NOTHING or isinstance(field.default, attrs.Factory)
            fields[field.name] = drawn if no_default else st.just(field.default) | drawn
    return st.builds(kind, **{**fields, **given})


def line_of(fact: f.Fact) -> str:
    """A fact as it stands in the file."""
    tag, fields = fact_to_json(fact)
    return encode({"fact": tag, **fields})


def fact_of(line: str) -> f.Fact:
    """The fact in a line of the file."""
    fields = decode(line)
    return fact_from_json(fields.pop("fact"), fields)


def lines() -> list[str]:
    """The lines of the file."""
    return FILE.read_text().splitlines() if FILE.exists() else []


def _example(kind: type[f.Fact], names: list[str], said: Callable[[str], str] | None = None) -> f.Fact:
    types = get_type_hints(kind)
    return kind(**{"at": at(1), **{name: _made(name, types[name], said)[0] for name in names if name != "at"}})


def _made(name: str, kind: Any, said: Callable[[str], str] | None = None) -> tuple[Any, st.SearchStrategy[Any]]:
    """An example of a type, for the field *name*, and all values. Its texts are made by *said*, if that is given."""
    origin, inner = get_origin(kind), [one for one in get_args(kind) if one is not NoneType]
    if kind is str:
        return name if said is None else said(name), texts
    if kind is Any and said is not None:
        return {said(name): [said(name)]}, values
    if kind in _TYPES:
        return _TYPES[kind]
    if origin in (tuple, list):  # `steps` has the step that `step` names
        example, drawn = _made(name.removesuffix("s"), inner[0], said)
        return origin([example]), st.lists(drawn, max_size=3).map(origin)
    if origin is dict:
        (key, keys), (example, drawn) = _made("key", inner[0], said), _made(name, inner[1], said)
        return {key: example}, st.dictionaries(keys, drawn, max_size=2)
    if len(inner) == 1:
        example, drawn = _made(name, inner[0], said)
        return example, st.none() | drawn
    if issubclass(kind, enum.Enum):
        return next(iter(kind)), st.sampled_from(kind)
    types = get_type_hints(kind)
    made = {field.name: _made(field.name, types[field.name], said)[0] for field in attrs.fields(kind) if field.init}
    return kind(**made), objects_of(kind)


if __name__ == "__main__":
    examples = dict.fromkeys(line_of(example(kind)) for kind in FACT_KINDS for example in (least, full))
    missing = [line + "\n" for line in examples if line not in lines()]
    with FILE.open("a") as file:
        file.writelines(missing)
