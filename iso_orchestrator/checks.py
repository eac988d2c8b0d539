"""Checks of ids, keys, counts and seconds, texts that drive no terminal, and names of machines and processes."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Callable
from threading import TIMEOUT_MAX
from typing import Any

import attrs

# C0 and C1 controls, DEL, line and paragraph separators, characters that change the text's direction, surrogates.
_CONTROL = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def check_key(value: object, what: str) -> str:
    """Return *value* if it can be an id or a key: a str that is not blank and that UTF-8 can encode.

    Args:
        value: The id or key.
        what: Its name in the error message.

    Raises:
        TypeError: It is no str.
        ValueError: It is empty, blank, or has lone surrogates.

    Example:
        >>> check_key("nightly batch", "workflow_id")
        'nightly batch'
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}: {value!r:.80}")
    if not value or value.isspace():
        raise ValueError(f"{what} must not be empty or blank: {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has lone surrogates, which UTF-8 cannot encode: {value!r:.80}") from None
    return value


def check_path(value: object, what: str) -> str:
    """Return *value*, a str or a path, as an absolute path.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{what} must be a str or a path, not {value!r:.80}")
    return os.path.abspath(os.fsdecode(value))


def check_seconds(value: float | None, what: str) -> float | None:
    """Return *value* if it is None or a number of seconds above 0.

    Raises:
        TypeError: It is no number.
        ValueError: It is 0, negative, infinite, NaN, or longer than a thread can wait.
    """
    if check_wait(value, what) == 0:
        raise ValueError(f"{what} must be more than 0 seconds")
    return value


def check_wait(value: float | None, what: str) -> float | None:
    """Return *value* if it is None (wait for ever) or a number of seconds from 0 on.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, infinite, NaN, or longer than a thread can wait.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {value!r}")
    if not math.isfinite(value) or not 0 <= value <= TIMEOUT_MAX:
        raise ValueError(f"{what} must be from 0 to {TIMEOUT_MAX:.0f} seconds, not {value!r}")
    return value


def check_count(value: object, what: str, least: int = 1) -> int:
    """Return *value* if it is an int, and *least* or more.

    Raises:
        TypeError: It is no int.
        ValueError: It is less than *least*.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    return value


def check_choice(value: str, what: str, *choices: str) -> None:
    """Raise ValueError if *value* is none of *choices*."""
    if value not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{what} is {words}, not {value!r}")


def validated_by(check: Callable[..., object], *args: Any) -> Callable[[object, attrs.Attribute[Any], Any], Any]:
    """Make a check an attrs validator, which calls it with the value, the field's name and *args*."""
    return lambda _, field, value: check(value, field.name, *args)


def escape_terminal(text: str) -> str:
    """Escape all characters of *text* that could control a terminal.

    Example:
        >>> escape_terminal("red: " + chr(27) + "[31m").replace(chr(92), "/")
        'red: /x1b[31m'
    """
    return re.sub(_CONTROL, lambda match: ascii(match[0])[1:-1], text)


def unique_name() -> str:
    """16 random hex digits."""
    return os.urandom(8).hex()


def host_name() -> str:
    """The network name of this machine."""
    return platform.node()
