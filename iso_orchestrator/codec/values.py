"""Users' values: what a step returns, by its annotation; states and details, by their classes."""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Mapping, Set
from decimal import Decimal
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, get_args, get_origin
from uuid import UUID

from cattrs import transform_error
from cattrs.preconf.json import make_converter

from iso_orchestrator.codec.json import decode, to_json
from iso_orchestrator.codec.strict import register_strict_scalars
from iso_orchestrator.errors import SerializationError
from iso_orchestrator.fold import copy_json
from iso_orchestrator.model import Json

__all__ = ["ResultCodec", "plain_json"]


def plain_json(value: object, subject: str) -> Json:
    """*value* as JSON: JSON already, or anything that cattrs unstructures by its class.

    Raises:
        SerializationError: Some of it is not JSON even so.
    """
    return to_json(_unstructure(value, type(value), subject), subject)


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

    def dump(self, value: object, subject: str) -> Json:
        """*value* as JSON.

        Raises:
            SerializationError: It cannot be recorded without loss.
        """
        if self._structure is None:
            return to_json(value, subject)
        return to_json(_unstructure(value, self._annotation, subject), subject)

    def load(self, data: Json, subject: str) -> Any:
        """The value that was recorded as *data*; shares nothing with it.

        Raises:
            SerializationError: *data* does not fit the annotation.
        """
        if self._structure is None:
            return copy_json(data)
        try:
            return self._structure(copy_json(data), self._annotation)
        except Exception as error:
            place, reason = _first_reason(error)
            raise SerializationError(subject, place, f"{reason}, as the annotation asks") from error


def _unstructure(value: object, annotation: Any, subject: str) -> object:
    try:
        return _converter.unstructure(value, unstructure_as=annotation)
    except RecursionError:
        raise SerializationError(subject, "$", "it is nested too deeply, or contains itself") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SerializationError(subject, "$", f"it is not what the annotation says ({reason})") from error


@lru_cache(maxsize=1024)
def _cached_hook(annotation: Any) -> Callable[[Any, Any], Any] | None:
    try:
        return _converter.get_structure_hook(annotation)
    except Exception:  # noqa: BLE001 - what cattrs cannot structure is read back as JSON
        return None


def _structure_hook(annotation: Any) -> Callable[[Any, Any], Any] | None:
    if annotation is inspect.Signature.empty or annotation is Any or annotation is object:
        return None
    try:
        return _cached_hook(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return None


def _first_reason(error: Exception) -> tuple[str, str]:
    place = transform_error(error)[0].rpartition(" @ ")[2]
    innermost: BaseException = error
    while isinstance(innermost, BaseExceptionGroup):
        innermost = innermost.exceptions[0]
    reason = f"{type(innermost).__name__}: {innermost}"
    return (place if place.startswith("$") else "$"), reason


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
        return {
            _key_text(_converter.unstructure(key, key_type)): _converter.unstructure(value, value_type)
            for key, value in mapping.items()
        }

    return write


def _key_text(key: object) -> object:
    return str(key) if type(key) is int else key


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


_converter = make_converter(unstruct_collection_overrides={Set: list, frozenset: list})
register_strict_scalars(_converter)
_converter.register_unstructure_hook_factory(_is_keyed_mapping, _write_keyed_mapping)
_converter.register_structure_hook_factory(_is_keyed_mapping, _read_keyed_mapping)
_converter.register_unstructure_hook(Decimal, str)
_converter.register_structure_hook(Decimal, lambda text, _: Decimal(text))
_converter.register_unstructure_hook(UUID, str)
_converter.register_structure_hook(UUID, lambda text, _: UUID(text))
_converter.register_unstructure_hook(dt.time, dt.time.isoformat)
_converter.register_structure_hook(dt.time, lambda text, _: dt.time.fromisoformat(text))
_converter.register_unstructure_hook(dt.timedelta, lambda span: [span.days, span.seconds, span.microseconds])
_converter.register_structure_hook(dt.timedelta, lambda parts, _: dt.timedelta(*parts))
_converter.register_unstructure_hook_func(lambda kind: isinstance(kind, type) and issubclass(kind, PurePath), str)
_converter.register_structure_hook(Path, lambda text, _: Path(text))
