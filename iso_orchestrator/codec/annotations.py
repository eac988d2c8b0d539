"""What a type consists of: the types of its fields, of its items, of its keys and of its values."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NotRequired,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import attrs

from iso_orchestrator.codec.json import SCALAR_HOOKS
from iso_orchestrator.codec.objects import is_named_tuple, is_pydantic


def parts_of(kind: Any) -> Iterable[Any]:
    """Return the types that a type is made of; of a union also the union of what is no scalar."""
    origin, args = get_origin(kind), get_args(kind)
    cls = origin or kind
    if origin is Annotated:
        return (kind.__origin__,)
    if origin is Literal:
        return ()
    if origin in (Union, UnionType):
        others = tuple(arg for arg in args if arg not in SCALAR_HOOKS)  # nothing else has to tell scalars apart
        return (*others, Union[others]) if 1 < len(others) < len(args) else others  # noqa: UP007 - made of a tuple
    if is_record(kind):
        return (*args, *[field.type for field in attrs.fields(_plain_class(cls))])
    if is_named_tuple(kind):
        return get_args(tuple_of(kind))
    if hasattr(cls, "__required_keys__"):
        return (*args, *get_type_hints(resolved_typed_dict(cls)).values())
    return (kind.__supertype__,) if hasattr(kind, "__supertype__") else args


def tuple_of(kind: Any) -> Any:
    """The tuple type of a named tuple's fields. cattrs does not resolve annotations that are strings."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple[tuple(hints.get(name, Any) for name in kind._fields)]  # type: ignore[misc]


def is_record(kind: Any) -> bool:
    """Tell whether *kind* is a class with fields."""
    cls = get_origin(kind) or kind
    return isinstance(cls, type) and (attrs.has(cls) or dataclasses.is_dataclass(cls) or is_pydantic(cls))


def fields_class(kind: Any) -> Any:
    """A class that has the fields of *kind*, and does nothing when it is made."""
    plain = _plain_class(get_origin(kind) or kind)
    return plain[get_args(kind)] if get_args(kind) else plain


@cache
def _plain_class(cls: Any) -> Any:
    if is_pydantic(cls):
        hints = {name: field.annotation for name, field in cls.model_fields.items()}
        defaults = {name: _default(field, undefined()) for name, field in cls.model_fields.items()}
    else:
        hints = get_type_hints(cls, include_extras=True)
        if attrs.has(cls):
            defaults = {field.name: field.default for field in attrs.fields(cls)}
        else:
            defaults = {field.name: _default(field, dataclasses.MISSING) for field in dataclasses.fields(cls)}
    fields = {
        name: attrs.field(default=default, type=hints.get(name, Any), alias=name, kw_only=True)
        for name, default in defaults.items()
    }
    parameters = () if is_pydantic(cls) else getattr(cls, "__parameters__", ())
    generic: Any = Generic
    bases = (generic[parameters],) if parameters else ()
    name = cls.__name__.partition("[")[0]  # that of pydantic's `Box[int]` would be no name of a generated function
    plain: Any = attrs.make_class(name, fields, bases=bases, slots=False, eq=False)
    plain.__qualname__ = cls.__qualname__
    inherited = getattr(cls, "__orig_bases__", None)  # it says what the type variables of inherited fields are
    if inherited is not None and not parameters:
        plain.__orig_bases__ = inherited
    return plain


def _default(field: Any, missing: object) -> Any:
    if field.default_factory not in (None, missing):
        return attrs.Factory(field.default_factory)
    return attrs.NOTHING if field.default is missing else field.default


def undefined() -> Any:
    """Return what stands for no default in pydantic."""
    from pydantic_core import PydanticUndefined

    return PydanticUndefined


def is_keyed_mapping(kind: Any) -> bool:
    """Tell whether *kind* is a mapping whose keys may be no texts."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is defaultdict:
        return True
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping) and not hasattr(origin, "__required_keys__")
    return is_mapping and (len(args) == 2 or origin is Counter) and args[:1] not in ((), (str,), (Any,))


def key_and_value(kind: Any) -> tuple[Any, Any]:
    """Return the types of a mapping's keys and values."""
    args = get_args(kind) or (Any, Any)
    return args[0], args[1] if len(args) == 2 else int  # those of a Counter are numbers


def is_typed_dict(kind: Any) -> bool:
    """Tell whether *kind* is a typed dict without type arguments."""
    return hasattr(kind, "__required_keys__") and not get_args(kind)


@cache
def resolved_typed_dict(cls: Any) -> Any:
    """A typed dict whose annotations are no texts, of which Python does not know which keys may be missing."""
    keys = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        is_required = name in cls.__required_keys__
        # By name: those of typing_extensions are others than those of typing.
        while (said := getattr(get_origin(hint), "_name", None)) in ("Required", "NotRequired", "ReadOnly"):
            is_required = is_required if said == "ReadOnly" else said == "Required"
            hint = get_args(hint)[0]
        keys[name] = hint if is_required else NotRequired[hint]
    return TypedDict(cls.__name__, keys)  # type: ignore[operator]
