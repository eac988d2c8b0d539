"""What the details of events tell. A value that is missing or of another type than it should be reads as None.

Events can be appended by users and by other programs too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

from iso_orchestrator.record.history import Usage
from iso_orchestrator.record.model import ErrorInfo, Json

T = TypeVar("T")
Detail: TypeAlias = Mapping[str, Any]
Item: TypeAlias = tuple[int, int]
"""An item of a `for_each`: the number of the batch, and the index in it."""


def get(detail: Detail, key: str, *kinds: type[T]) -> T | None:
    """The value of *key*, if its type is one of *kinds*; a bool is no int.

    Example:
        >>> get({"attempt": 2}, "attempt", int), get({"attempt": True}, "attempt", int), get({}, "attempt", int)
        (2, None, None)
    """
    value = detail.get(key)
    return value if type(value) in kinds else None


def time_in(detail: Detail, key: str) -> datetime | None:
    """The aware time that *key* has as ISO 8601."""
    text = detail.get(key)
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return None if moment is None or moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def item_in(detail: Detail) -> Item | None:
    """The item of a `for_each`."""
    found = detail.get("item")
    if not isinstance(found, list):
        return None
    match found:
        case [int(batch), int(index)]:
            return batch, index
    return None


def holder_in(detail: Detail) -> str | None:
    """Who has what something waits for, as views say it."""
    match detail.get("holder"):
        case int(pid):
            return f"pid {pid}"
        case str(name):
            return name
    return None


def error_in(detail: Detail) -> ErrorInfo | None:
    """The recorded error."""
    value = detail.get("error")
    if not isinstance(value, dict) or (name := get(value, "name", str)) is None:
        return None
    message, stack, code, cause = (get(value, key, str) for key in ("message", "stack", "code", "cause"))
    return ErrorInfo(name, message or "", stack, code, cause)


def usage_in(detail: Detail) -> Usage | None:
    """What the attempt of an agent used."""
    value = detail.get("usage")
    if not isinstance(value, dict):
        return None
    return Usage(
        get(value, "agent", str),
        get(value, "outcome", str),
        get(value, "costUsd", int, float),
        get(value, "inputTokens", int),
        get(value, "outputTokens", int),
        get(value, "sessionId", str),
    )


def usage_of_result(result: Json) -> Usage | None:
    """What an agent used, from the result of its step: earlier releases recorded it nowhere else."""
    match result:
        case {"exit_code": int(), "parsed": {"agent": str(agent), "outcome": str(outcome)} as parsed}:
            tokens = parsed.get("usage")
            counts = tokens if isinstance(tokens, dict) else {}
            return Usage(
                agent,
                outcome,
                get(parsed, "cost_usd", int, float),
                get(counts, "input_tokens", int),
                get(counts, "output_tokens", int),
                get(parsed, "session_id", str),
            )
    return None
