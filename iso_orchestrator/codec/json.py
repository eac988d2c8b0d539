"""Strict JSON: values that JSON cannot hold are refused, where the standard library would change them."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeAlias

from iso_orchestrator.codec.objects import attributes_besides, python_scalar, shown
from iso_orchestrator.errors import SerializationError
from iso_orchestrator.record.model import Json

Convert: TypeAlias = Callable[[object], object]

MAX_DEPTH = 128
_MAX_DEPTH_READ = MAX_DEPTH + 16  # a record has a few levels around a value
_ATOMS = frozenset({bool, type(None)})  # need no check; nor does an ASCII str
SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_ARRAYS = (list, tuple)  # not `list | tuple`, which is made anew by each check, and takes as long as that
# CPython neither reads nor writes a decimal int of more digits than its limit, which is 4,300 by default.
_INT_BITS = int(min(sys.get_int_max_str_digits() or 4300, 4300) * 3.3)

_encoder = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"))
# `JSONEncoder.encode` makes such a C encoder for each call, which takes as long as the rest of a fact's text.
_make: Any = getattr(json.encoder, "c_make_encoder", None)  # PyPy has none
_parts: Callable[[Json, int], Iterable[str]] | None = _make and _make(
    None, _encoder.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False
)


def encode(value: Json) -> str:
    """Write *value*, which must be JSON already, as compact ASCII text."""
    return _encoder.encode(value) if _parts is None else "".join(_parts(value, 0))


def decode(text: str | bytes) -> Json:
    """Read a JSON text.

    Raises:
        ValueError: It is not JSON, has NaN or infinities, is nested too deeply, or has an int that is longer than this
            process reads (`sys.set_int_max_str_digits`).
        RecursionError: Too little of this thread's stack is left.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        _refuse_depth(data)  # then it can be read nowhere; otherwise this thread has too little of its stack left
        raise
    if data.count(b"[") + data.count(b"{") > _MAX_DEPTH_READ:
        _refuse_depth(data)
    return value


def to_json(value: object, subject: str, convert: Convert | None = None) -> Json:
    """Copy *value* as plain JSON: tuples become lists, subclasses of builtins the builtins.

    Args:
        value: The value to record.
        subject: Its name for the error message: ``"the result of step 'a'"``.
        convert: Makes JSON of an object of another type, or returns the object unchanged.

    Raises:
        SerializationError: A part would be lost or changed: NaN, bytes, a set, an object, a key that is not a str,
            an int of more than 4,200 digits or near the interpreter's limit, more than 128 levels, a cycle.

    Example:
        >>> to_json({"at": (1, 2.5)}, "the state")
        {'at': [1, 2.5]}
    """
    try:
        return _copy(value, 0, convert)
    except _Refused as refused:
        place = "$" + "".join(reversed(refused.path))
        raise SerializationError(subject, place, refused.reason) from None


class _Refused(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []


def _copy(value: Any, depth: int, convert: Convert | None) -> Json:
    kind = type(value)
    if kind is str:
        return _str(value)
    if kind in _ATOMS:
        return value
    if kind is int:
        return _int(value)
    if kind is float:
        return _float(value)
    if depth >= MAX_DEPTH:
        raise _Refused(f"it is nested deeper than {MAX_DEPTH} levels, or contains itself")
    if kind is not dict and kind not in _ARRAYS:
        _refuse_attributes(value)
    if isinstance(value, dict):
        items = {
            key if type(key) is str and key.isascii() else _key(key): (
                item
                if type(item) in _ATOMS or (type(item) is str and item.isascii())
                else _item(item, depth, key, convert)
            )
            for key, item in value.items()
        }
        if len(items) < len(value):
            raise _Refused("two of its keys are equal as str")
        return items
    if isinstance(value, _ARRAYS):
        return [
            item
            if type(item) in _ATOMS or (type(item) is str and item.isascii())
            else _item(item, depth, index, convert)
            for index, item in enumerate(value)
        ]
    if convert is not None and not isinstance(value, str | int | float):
        converted = convert(value)
        if converted is not value:
            return _copy(converted, depth, None)
    return _scalar_subclass(value)


def _item(value: Any, depth: int, place: object, convert: Convert | None) -> Json:
    try:
        return _copy(value, depth + 1, convert)
    except _Refused as refused:
        # The whole path of a cycle would have 128 parts; the outermost 8 are enough.
        refused.path.append(f"[{place}]" if isinstance(place, int) else f".{place}"[:80])
        del refused.path[:-8]
        raise


def _refuse_attributes(value: object) -> None:
    if isinstance(value, dict | list | tuple | str | int | float) and not isinstance(value, Enum):
        more = attributes_besides(value)
        if more:
            raise _Refused(f"the attribute {more[0]!r} of its {_kind(value)} would be lost")


def _key(key: Any) -> str:
    if isinstance(key, str):
        _refuse_attributes(key)
        return _str(str.__str__(key))
    raise _Refused(f"the key {shown(key)} is not a str but {_kind(key)}")


def _str(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            if SPLIT_PAIR.search(value):
                raise _Refused("it has a surrogate pair as two characters, which JSON makes one of") from None
    return value


def _int(value: int) -> int:
    if value.bit_length() > _INT_BITS:
        raise _Refused(f"an int of {value.bit_length()} bits is too long to be read back")
    return value


def _float(value: float) -> float:
    if not math.isfinite(value):
        raise _Refused(f"{value} is not JSON")
    return value


def _scalar_subclass(value: Any) -> Json:
    if isinstance(value, str):
        return _str(str.__str__(value))
    if isinstance(value, int):
        return _int(int(value))
    if isinstance(value, float):
        return _float(float(value))
    if (plain := python_scalar(value)) is not value:
        return _copy(plain, MAX_DEPTH, None)
    raise _Refused(
        f"{_kind(value)} is not JSON; use JSON types, annotate the step's function with the type that it returns, "
        "or save the value to a file and return its path"
    )


def _kind(value: object) -> str:
    return type(value).__name__


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.80} is too large for a float")
    return value


def _refuse_depth(text: bytes) -> None:
    """Raise if a JSON text is nested too deeply. Each pass removes the innermost brackets, in C."""
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = text.translate(_TO_BRACKETS, _NO_BRACKETS).replace(b'""', b"")  # empty strings
    brackets = re.sub(b'"[^"]*"', b"", brackets)
    for _ in range(_MAX_DEPTH_READ):
        if not brackets:
            return
        brackets = brackets.replace(b"()", b"")
    if brackets:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH_READ} levels")


_TO_BRACKETS = bytes.maketrans(b"{[]}", b"(())")
_NO_BRACKETS = bytes(set(range(256)) - set(b'{[]}"'))


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _strict(kind: type[Any], accepted: tuple[type[Any], ...]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, asked: Any) -> Any:
        if type(value) not in accepted:
            raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}: {shown(value)}")
        # cattrs uses the hook of a class for its subclasses too, enums among them.
        if type(value) is asked or asked is None:
            return value
        if (made := asked(value)) != value:
            raise ValueError(f"{shown(value)} is not a valid {asked.__name__}")
        return made

    return structure


# By exact type, since bool is a subclass of int.
_ACCEPTED: dict[type[Any], tuple[type[Any], ...]] = {
    int: (int,),
    float: (float, int),
    str: (str,),
    bool: (bool,),
    type(None): (type(None),),
}

SCALAR_HOOKS = {kind: _strict(kind, accepted) for kind, accepted in _ACCEPTED.items()}
"""Structure hooks for cattrs, which itself makes True of "false", 3 of 3.9 and 'None' of None."""
