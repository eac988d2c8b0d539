"""Users' values: what a step returns, by its annotation; states and details, by their classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Set
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from iso_orchestrator.codec.json import to_json
from iso_orchestrator.errors import SerializationError
from iso_orchestrator.record.model import Json
from iso_orchestrator.record.projection import copy_json

__all__ = ["ResultCodec", "plain_json"]

if TYPE_CHECKING:
    from cattrs import Converter


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
            place, reason = _reason(error)
            raise SerializationError(subject, place, f"{reason}, as the annotation asks") from error


_PLAIN: dict[Any, type[Any]] = {dict: dict, dict[str, Any]: dict, list: list, list[Any]: list, str: str, bool: bool}


def _unstructure_by_class(value: object, subject: str) -> object:
    # Without an annotation nothing would make a set of a list again, nor bytes of a text.
    if isinstance(value, Set | bytes | bytearray | memoryview):
        return value
    return _unstructure(value, type(value), subject)


def _unstructure(value: object, annotation: Any, subject: str) -> object:
    try:
        return _converter().unstructure(value, unstructure_as=annotation)
    except RecursionError:
        raise SerializationError(subject, "$", "it is nested too deeply, or contains itself") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SerializationError(subject, "$", f"it is not what the annotation says ({reason})") from error


@lru_cache(maxsize=1024)
def _cached_hook(annotation: Any) -> Callable[[Any, Any], Any]:
    return _converter().get_structure_hook(annotation)


def _structure_hook(annotation: Any) -> Callable[[Any, Any], Any] | None:
    if annotation is inspect.Signature.empty or annotation is Any or annotation is object:
        return None
    try:
        return _cached_hook(annotation)
    except Exception:  # noqa: BLE001 - what cattrs cannot structure, or not yet, is read back as JSON
        return None


@cache
def _converter() -> Converter:
    from iso_orchestrator.codec.converter import converter  # half of what importing the package would take

    return converter


def _reason(error: Exception) -> tuple[str, str]:
    from iso_orchestrator.codec.converter import first_reason

    return first_reason(error)


def updated_state(update: Callable[[Json], Any], state: Json) -> Json:
    """What *update* makes of a copy of *state*.

    Raises:
        TypeError: It returned None where the state was not None.
        SerializationError: It returned what is not JSON.
    """
    made = update(copy_json(state))
    if made is None and state is not None:
        raise TypeError("the function given to update_state() returned None: it must return the new state")
    return plain_json(made, "the state")
