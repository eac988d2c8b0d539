"""Whether a value that was written and read back is the value that it was."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict, deque
from collections.abc import Callable, Set
from enum import Enum
from functools import lru_cache
from typing import Any

from iso_orchestrator.codec.objects import (
    attributes_besides,
    fields_of_class,
    is_named_tuple,
    is_pydantic,
    python_scalar,
)


class Difference(Exception):  # noqa: N818 - it never leaves the room
    """A part of a value that would come back changed.

    Attributes:
        part: The part.
        back: What it would come back as.
        path: Its place in the value, the outermost part last.
        reason: What is lost, if the part itself does not show that.
    """

    def __init__(self, part: object, back: object, reason: str | None = None) -> None:
        self.part = part
        self.back = back
        self.reason = reason
        self.path: list[str] = []


def check_same(value: Any, back: Any) -> None:
    """Raise where *back* is not equal to *value*, or more of it than its types changed to those of its annotation.

    Those changes are: a list for a tuple, an int for a number of numpy, and the like; from a float's int to a float.

    Raises:
        Difference: They are not the same.
    """
    if value is back:  # only what cannot change goes through JSON as the same object: atoms, members of enums
        return
    kind: Any = type(back)
    check = _check_of(kind)
    check(value, back)
    if check is not _check_fields and type(value) not in _WITHOUT_ATTRIBUTES:
        _check_attributes(value, back)


@lru_cache(maxsize=1024)
def _check_of(kind: Any) -> Callable[[Any, Any], None]:
    from decimal import Decimal  # takes a millisecond to import, and few processes need it

    if kind in _ATOMS:
        return _check_atom
    if is_named_tuple(kind):
        return _check_named_tuple
    if issubclass(kind, Decimal):
        return _check_decimal
    for bases, check in _CHECKS:
        if issubclass(kind, bases):
            return check
    return _check_other if fields_of_class(kind) is None else _check_fields


_ATOMS = frozenset({str, int, bool, type(None), float})
_WITHOUT_ATTRIBUTES = frozenset({*_ATOMS, list, tuple, dict, set, dt.datetime})  # no object of exactly these has any


def _check_atom(value: Any, back: Any) -> None:
    kind = type(back)
    if type(value) is not kind:
        value = python_scalar(value)
        if not isinstance(value, kind) and not (kind is float and type(value) is int):
            raise Difference(value, back)
        if isinstance(value, bool) is not (kind is bool):
            raise Difference(value, back)
    if value != back or (kind is float and str(float(value)) != str(back)):  # minus zero
        raise Difference(value, back)


def _check_dict(value: Any, back: dict[Any, Any]) -> None:
    if not isinstance(value, dict) or len(value) != len(back):
        raise Difference(value, back)
    if isinstance(back, defaultdict) and getattr(value, "default_factory", None) is not back.default_factory:
        raise Difference(value, back, "its default_factory would be lost")
    for (key, item), (key_back, item_back) in zip(value.items(), back.items(), strict=True):
        if key is not key_back:
            _check_part(key, key_back, key)
        if item is not item_back:
            _check_part(item, item_back, key)


def _check_items(value: Any, back: Any) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != len(back):
        raise Difference(value, back)
    for place, item in enumerate(value):
        if item is not back[place]:
            _check_part(item, back[place], place)


def _check_deque(value: Any, back: deque[Any]) -> None:
    if type(value) is not type(back) or value.maxlen != back.maxlen:
        raise Difference(value, back)
    _check_items([*value], [*back])


def _check_named_tuple(value: Any, back: Any) -> None:
    if type(value) is not type(back):
        raise Difference(value, back)
    for name, item, item_back in zip(back._fields, value, back, strict=True):
        _check_part(item, item_back, name)


def _check_set(value: Any, back: Set[Any]) -> None:
    if not isinstance(value, Set) or value != back:
        raise Difference(value, back)
    same = {item: item for item in back}
    for item in value:
        check_same(item, same[item])


def _check_moment(value: Any, back: Any) -> None:
    if not isinstance(value, type(back)) or value != back:
        raise Difference(value, back)
    if type(value.tzinfo) is not type(back.tzinfo) or value.tzinfo != back.tzinfo:
        raise Difference(value, back, "its zone would change: use a zone of zoneinfo or datetime.timezone")
    if value.fold != back.fold:
        raise Difference(value, back, "its fold would be lost: give it a zone in which it means something, or fold=0")


def _check_decimal(value: Any, back: Any) -> None:
    # By their text: Decimal("1.0") is not Decimal("1.00"), and NaN is NaN.
    if not isinstance(value, type(back)) or str(value) != str(back):
        raise Difference(value, back)


def _check_other(value: Any, back: Any) -> None:
    if not isinstance(value, type(back)) or value != back:
        raise Difference(value, back)


_CHECKS: list[tuple[Any, Callable[[Any, Any], None]]] = [
    (dict, _check_dict),
    (deque, _check_deque),
    ((list, tuple), _check_items),
    (Set, _check_set),
    ((dt.datetime, dt.time), _check_moment),
]


def _check_fields(value: Any, back: Any) -> None:
    if type(value) is not type(back):
        raise Difference(value, back)
    kind: Any = type(back)
    names = _names_of(kind)
    _check_attributes(value, back, names)
    for name in names:
        part, part_back = getattr(value, name, _UNSET), getattr(back, name, _UNSET)
        if part is not part_back:
            _check_part(part, part_back, name)


@lru_cache(maxsize=1024)
def _names_of(kind: Any) -> Set[str]:
    of_pydantic = ("__pydantic_extra__", "__pydantic_private__") if is_pydantic(kind) else ()
    return dict.fromkeys((*(fields_of_class(kind) or ()), *of_pydantic)).keys()


def _check_attributes(value: Any, back: Any, fields: Set[str] = frozenset()) -> None:
    for name in attributes_besides(value, fields):
        if isinstance(value, Enum):
            return
        try:
            check_same(getattr(value, name), getattr(back, name, _UNSET))
        except Difference:
            reason = f"its attribute {name!r} would be lost: put it into a field"
            raise Difference(value, back, reason) from None


class _Unset:
    """What stands for an attribute that an object does not have."""


_UNSET = _Unset()


def _check_part(part: Any, back: Any, place: object) -> None:
    try:
        check_same(part, back)
    except Difference as difference:
        difference.path.append(f"[{place}]" if isinstance(place, int) else f".{place}"[:80])
        raise
