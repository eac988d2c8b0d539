"""What an object consists of: its fields, and what it has besides them."""

from __future__ import annotations

import sys
from collections.abc import Container
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import attrs


class Field(NamedTuple):
    """A field of an attrs class, a dataclass or a pydantic model.

    Attributes:
        name: The attribute's name.
        is_compared: Whether objects that differ in it alone differ.
        is_shown: Whether `repr` shows it.
    """

    name: str
    is_compared: bool = True
    is_shown: bool = True


def fields_of(value: Any) -> tuple[Field, ...] | None:
    """Return the fields of an object, with those that it has beyond its class; None if it has no such class."""
    kind: Any = type(value)
    fields = fields_of_class(kind)
    extra = getattr(value, "__pydantic_extra__", None)
    return (*fields, *map(Field, sorted(extra))) if extra and fields is not None else fields


@lru_cache(maxsize=1024)
def fields_of_class(kind: Any) -> tuple[Field, ...] | None:
    """Return the fields that a class declares; None if it is no class with fields."""
    if attrs.has(kind):
        return tuple(Field(field.name, bool(field.eq), field.repr is True) for field in attrs.fields(kind))
    if hasattr(kind, "__dataclass_fields__"):
        import dataclasses  # loaded by now, where the class was made

        return tuple(Field(field.name, field.compare, field.repr) for field in dataclasses.fields(kind))
    if is_pydantic(kind):
        return tuple(Field(name, True, field.repr) for name, field in kind.model_fields.items())
    return None


def is_pydantic(kind: Any) -> bool:
    """Tell whether *kind* is a class of pydantic models."""
    model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return model is not None and isinstance(kind, type) and issubclass(kind, model)


def attributes_besides(value: Any, fields: Container[str]) -> list[str]:
    """Return the attributes of *value* that are no *fields*, not computed from them, and not the standard library's."""
    kind: Any = type(value)
    more = [name for name in getattr(value, "__dict__", ()) if name not in fields and name != "__orig_class__"]
    more += [slot for slot in _slots(kind) if slot not in fields and hasattr(value, slot)]
    return more and sorted(
        name
        for name in more
        if not isinstance(getattr(kind, name, None), cached_property) and not name.startswith("_attrs_cached")
    )


@lru_cache(maxsize=1024)
def _slots(kind: type[Any]) -> list[str]:
    slots: list[str] = []
    for parent in kind.__mro__:
        own = vars(parent)
        if parent.__module__.partition(".")[0] in sys.stdlib_module_names:
            continue
        if "__attrs_attrs__" in own or is_pydantic(parent):
            continue  # these are for fields and cached properties
        named = own.get("__slots__", ())
        slots += [named] if isinstance(named, str) else named
    return [slot for slot in slots if slot not in ("__dict__", "__weakref__")]


def python_scalar(value: Any) -> Any:
    """Return the Python value of a numpy scalar that is equal to it, and any other value as it is."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.bool_ | numpy.integer | numpy.floating):
        return value
    plain = value.item()
    is_same = type(plain) in (bool, int, float) and not isinstance(value, numpy.timedelta64)
    return plain if is_same else value
