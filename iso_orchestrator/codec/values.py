"""Users' values to JSON and back: results of steps by their annotation, states and details by their class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Set
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from iso_orchestrator.codec.json import to_json
from iso_orchestrator.errors import SerializationError, message_of
from iso_orchestrator.record.model import Json
from iso_orchestrator.record.projection import copy_json

if TYPE_CHECKING:
    from cattrs import Converter


def plain_json(value: object, subject: str) -> Json:
    """Copy *value* as JSON; cattrs unstructures objects by their class.

    Args:
        value: The value to record.
        subject: Its name for the error message: ``"the state"``.

    Raises:
        SerializationError: A part of it is not JSON even then.

    Example:
        >>> from datetime import date
        >>> plain_json({"day": date(2026, 5, 14)}, "the state")
        {'day': '2026-05-14'}
    """
    return to_json(value, subject, lambda part: _unstructure_by_class(part, subject))


def updated_state(update: Callable[[Json], Any], state: Json) -> Json:
    """Call *update* with a copy of *state*, and return the new state as JSON.

    Raises:
        TypeError: *update* returned None, and the state was not None.
        SerializationError: *update* returned a value that is not JSON.
    """
    made = update(copy_json(state))
    if made is None and state is not None:
        raise TypeError("the function given to update_state() returned None: it must return the new state")
    return plain_json(made, "the state")


class ResultCodec:
    """Writes the results of a function as JSON, and reads them back as objects of the annotated type.

    Args:
        annotation: The function's return annotation; `inspect.Signature.empty` without one.

    Example:
        >>> codec = ResultCodec(list[int])
        >>> codec.load(codec.dump((1, 2), "the result"), "the result")
        [1, 2]
    """

    def __init__(self, annotation: Any) -> None:
        self._annotation = type(None) if annotation is None else annotation
        self._structure = _structure_hook(self._annotation)
        # Most steps return plain JSON. Without the converter it takes a third of the time.
        self._plain = _PLAIN.get(annotation) if isinstance(annotation, Hashable) else None

    def dump(self, value: object, subject: str) -> Json:
        """Write *value* as JSON.

        Raises:
            SerializationError: It cannot be recorded without loss.
        """
        if self._structure is None or (self._plain is not None and isinstance(value, self._plain)):
            return to_json(value, subject)
        return to_json(_unstructure(value, self._annotation, subject), subject)

    def load(self, data: Json, subject: str) -> Any:
        """Read the value that was recorded as *data*; the two share nothing.

        Raises:
            SerializationError: *data* does not fit the annotation.
        """
        if self._structure is None or (self._plain is not None and type(data) is self._plain):
            return copy_json(data)
        try:
            return self._structure(copy_json(data), self._annotation)
        except Exception as error:
            place, reason = _reason(error)
            raise SerializationError(subject, place, f"it does not fit the annotation ({reason})") from error


_PLAIN: dict[Any, type[Any]] = {dict: dict, dict[str, Any]: dict, list: list, list[Any]: list, str: str, bool: bool}


def _unstructure_by_class(value: object, subject: str) -> object:
    # Without an annotation a list would not become a set again, nor a str bytes: leave them, to be refused.
    if isinstance(value, Set | bytes | bytearray | memoryview):
        return value
    return _unstructure(value, type(value), subject)


def _unstructure(value: object, annotation: Any, subject: str) -> object:
    try:
        return _converter().unstructure(value, unstructure_as=annotation)
    except RecursionError:
        raise SerializationError(subject, "$", "it is nested too deeply, or contains itself") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {message_of(error)}"
        raise SerializationError(subject, "$", f"it does not fit the annotation ({reason})") from error


@lru_cache(maxsize=1024)
def _cached_hook(annotation: Any) -> Callable[[Any, Any], Any]:
    return _converter().get_structure_hook(annotation)


def _structure_hook(annotation: Any) -> Callable[[Any, Any], Any] | None:
    if annotation is inspect.Signature.empty or annotation is Any or annotation is object:
        return None
    try:
        return _cached_hook(annotation)
    except RecursionError:  # of the caller's deep stack: the next call may have room
        raise
    except Exception:  # noqa: BLE001 - a type that cattrs cannot structure, or not yet, is read back as JSON
        return None


@cache
def _converter() -> Converter:
    from iso_orchestrator.codec.converter import converter  # at first use: cattrs is slow to import

    return converter


def _reason(error: Exception) -> tuple[str, str]:
    from iso_orchestrator.codec.converter import first_reason

    return first_reason(error)
