"""Users' values to JSON and back: results of steps by their annotation, states and details by their class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Set
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Never, NoReturn, TypeVar, Union, get_args, get_origin

from iso_orchestrator.codec.fidelity import Difference, check_same
from iso_orchestrator.codec.json import to_json
from iso_orchestrator.codec.objects import shown
from iso_orchestrator.errors import ResultMismatchError, SerializationError
from iso_orchestrator.notes import message_of
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


class Unresolved(Exception):  # noqa: N818 - `step` makes an error of it
    """An annotation names what does not exist, or not yet; the message says what."""


class ResultCodec:
    """Writes the results of a function as JSON, and reads them back as objects of the annotated type.

    Args:
        annotation: The function's return annotation; `inspect.Signature.empty` without one.
        subject: What it is the type of, for the error message: ``"the result of fetch()"``.

    Raises:
        SerializationError: No value of that type can be recorded.
        Unresolved: A part of the annotation names what does not exist, or not yet.

    Example:
        >>> codec = ResultCodec(tuple[int, ...])
        >>> codec.round_trip((1, 2), "the result of step 'a'")
        ([1, 2], (1, 2))
    """

    def __init__(self, annotation: Any, subject: str = "the result") -> None:
        self._annotation = type(None) if annotation is None else annotation
        self._is_untyped = annotation in _UNTYPED or isinstance(annotation, TypeVar)
        # Most steps return plain JSON. Without the converter it takes a third of the time.
        self._plain = _PLAIN.get(annotation) if isinstance(annotation, Hashable) else None
        self._structure: Callable[[Any, Any], Any] | None = None
        if not self._is_untyped and self._plain is None:
            self._structure = _structure_hook(self._annotation, subject)

    def round_trip(self, value: object, subject: str) -> tuple[Json, Any]:
        """Write *value* as JSON, and read it back as every later call will.

        Raises:
            SerializationError: It would not be the same.
        """
        if self._is_untyped or type(value) is self._plain:
            data = to_json(value, subject)  # which refuses what it would change
            return data, copy_json(data)
        try:
            data = to_json(_unstructure(value, self._annotation, subject), subject)
            back = self._read(data, subject, SerializationError)
            check_same(value, back)
        except Difference as found:
            place = "$" + "".join(reversed(found.path[-8:]))
            reason = f"{shown(found.part)} would come back as {shown(found.back)}"
            raise SerializationError(subject, place, found.reason or reason) from None
        except RecursionError:
            raise SerializationError(subject, "$", "it is nested too deeply, or contains itself") from None
        return data, back

    def load(self, data: Json, subject: str) -> Any:
        """Read the value that was recorded as *data*; the two share nothing.

        Raises:
            ResultMismatchError: *data* does not fit the annotation any more.
        """
        return self._read(data, subject, ResultMismatchError)

    def _read(self, data: Json, subject: str, error: type[SerializationError]) -> Any:
        if self._is_untyped or type(data) is self._plain:
            return copy_json(data)
        try:
            structure = self._structure or _structure_hook(self._annotation, subject)
            return structure(copy_json(data), self._annotation)
        except (RecursionError, MemoryError, SerializationError):
            raise
        except Exception as found:
            place, reason = _reason(found)
            raise error(subject, place, f"it does not fit {_shown(self._annotation)} ({reason})") from found


def _structure_hook(annotation: Any, subject: str) -> Callable[[Any, Any], Any]:
    from iso_orchestrator.codec.converter import check_parts

    try:
        _converter().get_unstructure_hook(annotation)
        hook = _converter().get_structure_hook(annotation)
        check_parts(annotation, set())
        return hook
    except (RecursionError, MemoryError):  # of the caller's deep stack: the next call may have room
        raise
    except Exception as error:
        missing = _missing_name(error)
        if missing is not None:
            raise Unresolved(missing) from error
        part = getattr(error, "type_", annotation)
        reason = f"its annotation {_shown(annotation)} cannot be recorded"
        if get_origin(part) in (Union, UnionType):
            reason += f": nothing in a record would tell the types of {_shown(part)} apart"
        elif part is not annotation or not hasattr(error, "type_"):
            reason += f": {_shown(part) if hasattr(error, 'type_') else message_of(error)}"
        raise SerializationError(
            subject, "$", f"{reason}; return what can, or save the value to a file and return its path"
        ) from error


def _missing_name(error: Exception) -> str | None:
    if isinstance(error, NameError):
        return str(error)
    part = getattr(error, "type_", None)
    name = part if isinstance(part, str) else getattr(part, "__forward_arg__", None)
    return None if name is None else f"name {name!r} is not defined"


def _shown(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) and not get_args(kind) else str(kind)


_UNTYPED = (inspect.Signature.empty, Any, object, NoReturn, Never)

_PLAIN: dict[Any, type[Any]] = {
    dict: dict,
    dict[str, Any]: dict,
    list: list,
    list[Any]: list,
    str: str,
    bool: bool,
    int: int,
    type(None): type(None),
}


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


@cache
def _converter() -> Converter:
    from iso_orchestrator.codec.converter import converter  # at first use: cattrs is slow to import

    return converter


def _reason(error: Exception) -> tuple[str, str]:
    from iso_orchestrator.codec.converter import first_reason

    return first_reason(error)
