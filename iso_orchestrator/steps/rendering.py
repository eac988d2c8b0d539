"""An argument as text: readable, the same in every process, and never the text of a different argument.

What has no such text raises `Unrenderable`. So does an object that carries more than its class shows, since two objects
that differ there alone would get one text.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Set
from enum import Enum
from json.encoder import encode_basestring, encode_basestring_ascii
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

from iso_orchestrator.codec.json import SPLIT_PAIR
from iso_orchestrator.codec.objects import attributes_besides, fields_of, is_named_tuple, is_pydantic, python_scalar

if TYPE_CHECKING:
    from pathlib import PurePath


class Unrenderable(Exception):  # noqa: N818 - it never leaves the room
    """A value has no text of its own; the message says which kind of value."""


def render(value: Any) -> str:
    """Return the text of *value*.

    Raises:
        Unrenderable: It has none.

    Example:
        >>> render({"b": [1, 2.0], "a": None})
        '{"a": None, "b": [1, 2.0]}'
    """
    kind = type(value)
    form = _EXACT.get(kind)
    if form is not None:
        return form(value)
    for base, form in _BY_BASE:
        if isinstance(value, base):
            return _render_subclass(value, base, form)
    for module, name, form in _BY_NAME:
        late = getattr(sys.modules.get(module), name, None)
        if late is not None and isinstance(value, late):
            return _render_subclass(value, late, form)
    return _render_fields(value)


def digest(text: str) -> str:
    """Return 16 hex digits that stand for *text*."""
    import hashlib  # takes 4 ms, and few calls need it

    return hashlib.sha256(text.encode()).hexdigest()[:16]


def qualified_name(value: Any) -> str:
    """Return the name by which any process can find a class or function: that of its module, and its own in there.

    `__main__` goes by the name that the module has where it is imported, so that a script run and imported means
    the same.
    """
    module = value.__module__
    if module in ("__main__", "__mp_main__"):
        module = _main_name()
    return value.__qualname__ if module == "builtins" else f"{module}.{value.__qualname__}"


def _main_name() -> str:
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return "__main__" if file is None else os.path.splitext(os.path.basename(file))[0]


def _render_subclass(value: Any, base: type[Any], form: Callable[[Any], str]) -> str:
    """Render an object of a class derived from *base*: the class says what the value means (Celsius, Fahrenheit)."""
    kind = type(value)
    if kind is base or base is Enum:
        return form(value)
    _refuse_unless_shown(value)
    # Those of the standard library and numpy mean the same as what they derive from, and are equal to it.
    is_plain = kind.__module__.partition(".")[0] in _PLAIN_ROOTS or is_named_tuple(kind)
    return form(value) if is_plain else f"{qualified_name(kind)}({form(value)})"


def _render_fields(value: Any) -> str:
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _render_definition(value)
    fields, kind = fields_of(value), type(value)
    if fields is None:
        plain = python_scalar(value)
        if plain is value:
            raise Unrenderable(f"a value of type {kind.__qualname__}")
        return render(plain)
    if is_pydantic(kind) and value.__pydantic_private__:
        raise Unrenderable(f"a value of type {kind.__qualname__} with private attributes")
    _refuse_unless_shown(value, fields.keys())
    compared = [name for name, field in fields.items() if field.is_compared and hasattr(value, name)]
    return _call(kind, [(name, getattr(value, name), fields[name].is_shown) for name in compared])


def _render_definition(value: Any) -> str:
    """Render a class or a function: by its name, if its module has it under that name."""
    name = value.__qualname__
    found: Any = sys.modules.get(value.__module__ or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not value:
        raise Unrenderable(f"a class or function, {name}, that cannot be found by its name")
    return qualified_name(value)


def _refuse_unless_shown(value: Any, shown: Set[str] = frozenset()) -> None:
    more = attributes_besides(value, shown)
    if more:
        kind = type(value).__qualname__
        raise Unrenderable(f"a value of type {kind} that has more than its fields ({', '.join(more)})")


def _call(kind: type[Any], fields: Iterable[tuple[str, Any, bool]]) -> str:
    """Render an object by its fields. One that its class hides (``repr=False``) may be a secret: it is hashed."""
    parts = [
        f"{_name(name)}={render(value)}" if shown else f"{_name(name)}=#{digest(render(value))}"
        for name, value, shown in fields
    ]
    return f"{qualified_name(kind)}({', '.join(parts)})"


def _name(name: str) -> str:
    return name if name.isidentifier() else _str(name)  # those of a model's extra fields are any texts


def _enum(value: Enum) -> str:
    # A combination of flags may have no name.
    name: str | None = value._name_
    shown = name if name is not None and name.isidentifier() else render(value._value_)
    return f"{qualified_name(type(value))}.{shown}"


def _int(value: int) -> str:
    if value.bit_length() > 4096:
        return f"int:{value:#x}"  # the decimal form has a limit of length
    return int.__repr__(value)


def _str(value: str) -> str:
    text = encode_basestring(value)
    if text.isprintable():
        return text
    # JSON writes a surrogate pair and the character that it stands for alike.
    return f"str:{value!a}" if SPLIT_PAIR.search(value) else encode_basestring_ascii(value)


def _tuple(value: tuple[Any, ...]) -> str:
    if is_named_tuple(type(value)):
        names = type(value)._fields  # type: ignore[attr-defined]
        return _call(type(value), [(name, item, True) for name, item in zip(names, value, strict=True)])
    return f"({', '.join(map(render, value))}{',' if len(value) == 1 else ''})"


def _list(value: list[Any]) -> str:
    return f"[{', '.join(map(render, value))}]"


def _set(value: Set[Any]) -> str:
    return f"{{{', '.join(sorted(map(render, value)))}}}" if value else "set()"


def _dict(value: dict[Any, Any]) -> str:
    # Equal dicts are one argument, whatever the order of their keys.
    return f"{{{', '.join(sorted([f'{render(key)}: {render(item)}' for key, item in value.items()]))}}}"


def _ordered_dict(value: OrderedDict[Any, Any]) -> str:
    # Two of them that differ in the order of their keys are not equal.
    return f"OrderedDict({{{', '.join([f'{render(key)}: {render(item)}' for key, item in value.items()])}}})"


def _moment(value: dt.datetime | dt.time) -> str:
    # The offset does not tell two zones apart that have the same one on this day.
    zone = getattr(value.tzinfo, "key", None)
    if zone is None and type(value.tzinfo) not in (dt.timezone, type(None)):
        raise Unrenderable(f"a time with a {type(value.tzinfo).__qualname__} as its zone (one of zoneinfo has a name)")
    base = "datetime" if isinstance(value, dt.datetime) else "time"
    fold = " fold=1" if value.fold else ""
    return f"{base}({value.isoformat()}{f'[{zone}]' if zone else ''}{fold})"


def _date(value: dt.date) -> str:
    return f"date({value.isoformat()})"


def _span(value: dt.timedelta) -> str:
    return f"timedelta({value.days}d {value.seconds}s {value.microseconds}us)"


def _path(value: PurePath) -> str:
    kind = type(value).__name__
    return f"{'Path' if kind in ('PosixPath', 'WindowsPath') else kind}({_str(str(value))})"


def _as_text(kind: str) -> Callable[[object], str]:
    return lambda value: f"{kind}({_str(str(value))})"


_EXACT: dict[type[Any], Callable[[Any], str]] = {
    type(None): repr,
    bool: repr,
    int: _int,
    float: repr,
    str: _str,
    bytes: repr,
    list: _list,
    tuple: _tuple,
    dict: _dict,
}

EXACT_SCALARS = {kind: _EXACT[kind] for kind in (type(None), bool, int, float, str)}
"""How to render the kinds of most arguments; it cannot fail."""

# In this order: an enum may be an int or a str too, and a datetime is a date.
_BY_BASE: list[tuple[type[Any], Callable[[Any], str]]] = [
    (Enum, _enum),
    (int, _int),
    (float, float.__repr__),
    (str, _str),
    (bytes, bytes.__repr__),
    (bytearray, bytearray.__repr__),
    (tuple, _tuple),
    (list, _list),
    (Set, _set),
    (OrderedDict, _ordered_dict),
    (dict, _dict),
    (dt.datetime, _moment),
    (dt.date, _date),
    (dt.time, _moment),
    (dt.timedelta, _span),
]

# Classes of modules that take milliseconds to import. Where such a value exists, its module is loaded.
_BY_NAME: list[tuple[str, str, Callable[[Any], str]]] = [
    ("decimal", "Decimal", _as_text("Decimal")),
    ("uuid", "UUID", _as_text("UUID")),
    ("pathlib", "PurePath", _path),
]

_PLAIN_ROOTS = ("builtins", "collections", "numpy", "pathlib")
