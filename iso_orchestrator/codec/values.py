"""Users' values: what a step returns, by its annotation; states and details, by their classes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
from collections.abc import Callable, Hashable, Mapping, MutableSequence, Sequence, Set
from decimal import Decimal
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

import attrs
from cattrs import transform_error
from cattrs.cols import is_namedtuple, iterable_unstructure_factory, list_structure_factory
from cattrs.gen import make_dict_unstructure_fn, make_hetero_tuple_unstructure_fn
from cattrs.preconf.json import make_converter

from iso_orchestrator.codec.json import decode, to_json
from iso_orchestrator.codec.strict import register_strict_scalars
from iso_orchestrator.errors import SerializationError
from iso_orchestrator.fold import copy_json
from iso_orchestrator.model import Json

__all__ = ["ResultCodec", "plain_json"]

T = TypeVar("T")


def plain_json(value: object, subject: str) -> Json:
    """*value* as JSON: JSON already, or anything that cattrs unstructures by its class.

    Raises:
        SerializationError: Some of it is not JSON even so.
    """
    return to_json(value, subject, lambda part: _unstructure_by_class(part, subject))


class ResultCodec:
    """How the results of a function are recorded, and read back as its annotation says.

    Args:
        annotation: What the function is annotated to return; `inspect.Signature.empty` without one.

    Example:
        >>> codec = ResultCodec(list[int])
        >>> codec.load(codec.dump((1, 2), "the result"), "the result")
        [1, 2]
    """

    def __init__(self, annotation: Any) -> None:
        self._annotation = type(None) if annotation is None else annotation
        self._structure = _structure_hook(self._annotation)
        # What is JSON as it is needs no converter: what most steps return, in a third of the time.
        self._plain = _PLAIN.get(annotation) if isinstance(annotation, Hashable) else None

    def dump(self, value: object, subject: str) -> Json:
        """*value* as JSON.

        Raises:
            SerializationError: It cannot be recorded without loss.
        """
        if self._structure is None or (self._plain is not None and isinstance(value, self._plain)):
            return to_json(value, subject)
        return to_json(_unstructure(value, self._annotation, subject), subject)

    def load(self, data: Json, subject: str) -> Any:
        """The value that was recorded as *data*; shares nothing with it.

        Raises:
            SerializationError: *data* does not fit the annotation.
        """
        if self._structure is None or (self._plain is not None and type(data) is self._plain):
            return copy_json(data)
        try:
            return self._structure(copy_json(data), self._annotation)
        except Exception as error:
            place, reason = _first_reason(error)
            raise SerializationError(subject, place, f"{reason}, as the annotation asks") from error


_PLAIN: dict[Any, type[Any]] = {dict: dict, dict[str, Any]: dict, list: list, list[Any]: list, str: str, bool: bool}


def _unstructure_by_class(value: object, subject: str) -> object:
    # Without an annotation nothing would make a set of a list again, nor bytes of a text.
    if isinstance(value, Set | bytes | bytearray | memoryview):
        return value
    return _unstructure(value, type(value), subject)


def _unstructure(value: object, annotation: Any, subject: str) -> object:
    try:
        return _converter.unstructure(value, unstructure_as=annotation)
    except RecursionError:
        raise SerializationError(subject, "$", "it is nested too deeply, or contains itself") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SerializationError(subject, "$", f"it is not what the annotation says ({reason})") from error


@lru_cache(maxsize=1024)
def _cached_hook(annotation: Any) -> Callable[[Any, Any], Any]:
    return _converter.get_structure_hook(annotation)


def _structure_hook(annotation: Any) -> Callable[[Any, Any], Any] | None:
    if annotation is inspect.Signature.empty or annotation is Any or annotation is object:
        return None
    try:
        return _cached_hook(annotation)
    except Exception:  # noqa: BLE001 - what cattrs cannot structure, or not yet, is read back as JSON
        return None


def _first_reason(error: Exception) -> tuple[str, str]:
    place = transform_error(error)[0].rpartition(" @ ")[2]
    innermost: BaseException = error
    while isinstance(innermost, BaseExceptionGroup):
        innermost = innermost.exceptions[0]
    reason = f"{type(innermost).__name__}: {innermost}"
    return (place if place.startswith("$") else "$"), reason


# cattrs' own hooks take whatever looks right: a text for a list of texts, a subclass for its base with what it adds
# left out, a tuple with its end cut off. What follows takes a value for what it is.


def _refuse_unless(fits: bool, kind: Any, value: object) -> None:
    if not fits:
        raise TypeError(f"{getattr(kind, '__name__', kind)} expected, not {type(value).__name__}: {value!r:.80}")


def _is_items(kind: Any) -> bool:
    """Whether *kind* is a collection of any length and of one type."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is tuple:
        return not args or (len(args) == 2 and args[1] is ...)
    return origin in _MADE_OF_ITEMS


def _write_items(kind: Any) -> Callable[[Any], Any]:
    write = iterable_unstructure_factory(kind, _converter, unstructure_to=list)

    def checked(items: Any) -> Any:
        _refuse_unless(not isinstance(items, str | bytes | bytearray | Mapping), kind, items)
        return write(items)

    return checked


def _read_items(kind: Any) -> Callable[[Any, Any], Any]:
    args = get_args(kind)
    item = args[0] if args and not isinstance(args[0], TypeVar) else Any
    made, read = _MADE_OF_ITEMS[get_origin(kind) or kind], list_structure_factory(list[item], _converter)  # type: ignore[valid-type]

    def checked(data: Any, _: Any) -> Any:
        _refuse_unless(type(data) is list, kind, data)
        items = read(data, kind)
        return items if made is list else made(items)

    return checked


def _is_fixed_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and not _is_items(kind)


def _write_fixed_tuple(kind: Any) -> Callable[[Any], Any]:
    size, write = len(get_args(kind)), make_hetero_tuple_unstructure_fn(kind, _converter, unstructure_to=list)

    def checked(items: Any) -> Any:
        _refuse_unless(isinstance(items, tuple | list) and len(items) == size, kind, items)
        return write(items)

    return checked


def _tuple_of(kind: Any) -> Any:
    """A named tuple's fields; cattrs does not resolve those that are annotated by texts."""
    return tuple[tuple(get_type_hints(kind, include_extras=True).values())]  # type: ignore[misc]


def _write_named_tuple(kind: Any) -> Callable[[Any], Any]:
    return _write_fixed_tuple(_tuple_of(kind))


def _read_named_tuple(kind: Any) -> Callable[[Any, Any], Any]:
    plain = _tuple_of(kind)
    read = _converter.get_structure_hook(plain)
    return lambda data, _: kind(*read(data, plain))


def _is_record(kind: Any) -> bool:
    cls = get_origin(kind) or kind
    return isinstance(cls, type) and (attrs.has(cls) or dataclasses.is_dataclass(cls))


def _write_record(kind: Any) -> Callable[[Any], Any]:
    cls, write = get_origin(kind) or kind, make_dict_unstructure_fn(kind, _converter)

    def checked(record: Any) -> Any:
        _refuse_unless(type(record) is cls, kind, record)
        return write(record)

    return checked


def _is_keyed_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return (
        isinstance(origin, type)
        and issubclass(origin, Mapping)
        and len(get_args(kind)) == 2
        and get_args(kind)[0] not in (str, Any)
    )


def _write_keyed_mapping(kind: Any) -> Callable[[Any], Any]:
    key_type, value_type = get_args(kind)

    def write(mapping: Any) -> Any:
        return {_write_key(key, key_type): _converter.unstructure(value, value_type) for key, value in mapping.items()}

    return write


def _write_key(key: object, kind: Any) -> Any:
    written = _converter.unstructure(key, kind)
    text = str(written) if type(written) is int else written
    if type(text) is not str:
        return text  # refused where all keys are looked at
    if (found := _read_key(text, kind)) != key:
        raise TypeError(f"the key {key!r:.80} would come back as {found!r:.80}")
    return text


def _read_keyed_mapping(kind: Any) -> Callable[[Any, Any], Any]:
    key_type, value_type = get_args(kind)

    def read(data: Any, _: Any) -> Any:
        return {_read_key(key, key_type): _converter.structure(value, value_type) for key, value in data.items()}

    return read


def _read_key(key: str, kind: Any) -> Any:
    try:
        return _converter.structure(key, kind)
    except Exception:  # noqa: BLE001 - cattrs and users' hooks raise what they like: then it was an int
        return _converter.structure(decode(key), kind)


def _write_as(kind: type[T], write: Callable[[T], Json]) -> Callable[[T], Json]:
    def checked(value: T) -> Json:
        _refuse_unless(isinstance(value, kind), kind, value)
        return write(value)

    return checked


def _write_date(value: Any) -> Json:
    _refuse_unless(isinstance(value, dt.date) and not isinstance(value, dt.datetime), dt.date, value)
    return value.isoformat()


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PurePath)


_MADE_OF_ITEMS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    Sequence: list,
    MutableSequence: list,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
}

_converter = make_converter(unstruct_collection_overrides={Set: list, frozenset: list})
register_strict_scalars(_converter)
_converter.register_unstructure_hook_factory(_is_record, _write_record)
_converter.register_unstructure_hook_factory(_is_items, _write_items)
_converter.register_structure_hook_factory(_is_items, _read_items)
_converter.register_unstructure_hook_factory(_is_fixed_tuple, _write_fixed_tuple)
_converter.register_unstructure_hook_factory(is_namedtuple, _write_named_tuple)
_converter.register_structure_hook_factory(is_namedtuple, _read_named_tuple)
_converter.register_unstructure_hook_factory(_is_keyed_mapping, _write_keyed_mapping)
_converter.register_structure_hook_factory(_is_keyed_mapping, _read_keyed_mapping)
_converter.register_unstructure_hook(Decimal, _write_as(Decimal, str))
_converter.register_structure_hook(Decimal, lambda text, _: Decimal(text))
_converter.register_unstructure_hook(UUID, _write_as(UUID, str))
_converter.register_structure_hook(UUID, lambda text, _: UUID(text))
_converter.register_unstructure_hook(dt.datetime, _write_as(dt.datetime, dt.datetime.isoformat))
_converter.register_unstructure_hook(dt.date, _write_date)
_converter.register_unstructure_hook(dt.time, _write_as(dt.time, dt.time.isoformat))
_converter.register_structure_hook(dt.time, lambda text, _: dt.time.fromisoformat(text))
_converter.register_unstructure_hook(
    dt.timedelta, _write_as(dt.timedelta, lambda span: [span.days, span.seconds, span.microseconds])
)
_converter.register_structure_hook(dt.timedelta, lambda parts, _: dt.timedelta(*parts))
_converter.register_unstructure_hook(Path, _write_as(Path, str))
_converter.register_unstructure_hook_factory(_is_path, lambda kind: _write_as(kind, str))
_converter.register_structure_hook_func(_is_path, lambda text, kind: kind(text))
