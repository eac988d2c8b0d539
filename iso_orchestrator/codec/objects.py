"""What an object consists of: its fields, and what it has besides them."""

from __future__ import annotations

import sys
from collections.abc import Set
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import attrs


class Field(NamedTuple):
    """A field of an attrs class, a dataclass or a pydantic model.

    Attributes:
        is_compared: Whether objects that differ in it alone differ.
        is_shown: Whether `repr` shows it.
    """

    is_compared: bool = True
    is_shown: bool = True


def fields_of(value: Any) -> dict[str, Field] | None:
    """Return the fields of an object, with those that it has beyond its class; None if it has no such class."""
    kind: Any = type(value)
    fields = fields_of_class(kind)
    extra = getattr(value, "__pydantic_extra__", None)
    return fields | dict.fromkeys(sorted(extra), Field()) if extra and fields is not None else fields


@lru_cache(maxsize=1024)
def fields_of_class(kind: Any) -> dict[str, Field] | None:
    """Return the fields that a class declares, by name; None if it is no class with fields."""
    if attrs.has(kind):
        return {field.name: Field(bool(field.eq), field.repr is True) for field in attrs.fields(kind)}
    if hasattr(kind, "__dataclass_fields__"):
        import dataclasses  # loaded by now, where the class was made

        return {field.name: Field(field.compare, field.repr) for field in dataclasses.fields(kind)}
    if is_pydantic(kind):
        return {name: Field(True, field.repr) for name, field in kind.model_fields.items()}
    return None


def shown(value: object) -> str:
    """Return the beginning of the `repr` of *value*, whatever its class makes of that."""
    try:
        return f"{value!r:.80}"
    except Exception as broken:  # noqa: BLE001 - a __repr__ that raises must not hide the error
        return f"<a {type(value).__name__} whose __repr__ raises {type(broken).__name__}>"


def is_pydantic(kind: Any) -> bool:
    """Tell whether *kind* is a class of pydantic models."""
    model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return model is not None and isinstance(kind, type) and issubclass(kind, model)


def is_named_tuple(kind: Any) -> bool:
    """Tell whether *kind* is a class of named tuples."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def attributes_besides(value: Any, fields: Set[str] = frozenset()) -> list[str]:
    """Return the attributes of *value* that are no *fields*, not computed from them, and not the standard library's."""
    kind: Any = type(value)
    own, slots = getattr(value, "__dict__", {}).keys(), _slots(kind)
    if own <= fields and slots <= fields:
        return []  # as most objects
    more = {*own, *[slot for slot in slots if hasattr(value, slot)]} - fields - {"__orig_class__"}
    return sorted(
        name
        for name in more
        if not isinstance(getattr(kind, name, None), cached_property) and not name.startswith("_attrs_cached")
    )


@lru_cache(maxsize=1024)
def _slots(kind: type[Any]) -> frozenset[str]:
    slots: list[str] = []
    for parent in kind.__mro__:
        own = vars(parent)
        if parent.__module__.partition(".")[0] in sys.stdlib_module_names:
            continue
        if "__attrs_attrs__" in own or is_pydantic(parent):
            continue  # these are for fields and cached properties
        named = own.get("__slots__", ())
        slots += [named] if isinstance(named, str) else named
    return frozenset(slots) - {"__dict__", "__weakref__"}


def python_scalar(value: Any) -> Any:
    """Return the Python value of a numpy scalar that is equal to it, and any other value as it is."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.bool_ | numpy.integer | numpy.floating):
        return value
    plain = value.item()
    is_same = type(plain) in (bool, int, float) and not isinstance(value, numpy.timedelta64)
    return plain if is_same else value
