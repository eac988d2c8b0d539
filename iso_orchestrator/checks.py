"""Checks of ids, keys and seconds."""

from __future__ import annotations

import math
import os
from functools import cache
from threading import TIMEOUT_MAX

__all__ = [
    "check_key",
    "check_seconds",
    "check_wait",
    "host_name",
    "unique_name",
]


def check_key(value: object, what: str) -> str:
    """*value*, if it can be an id or a key: a text that is not blank and that UTF-8 can hold.

    Raises:
        TypeError: It is no str.
        ValueError: It is empty, blank, or has lone surrogates.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}: {value!r:.80}")
    if not value or value.isspace():
        raise ValueError(f"{what} must not be empty or blank: {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has lone surrogates, which UTF-8 cannot hold: {value!r:.80}") from None
    return value


def check_seconds(value: float | None, what: str) -> float | None:
    """Seconds, more than 0; or None.

    Raises:
        TypeError: It is no number.
        ValueError: It is 0, negative, infinite, NaN, or more than a thread can wait.
    """
    if check_wait(value, what) == 0:
        raise ValueError(f"{what} must be more than 0 seconds")
    return value


def check_wait(value: float | None, what: str) -> float | None:
    """Seconds from 0 on; or None, for ever.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, infinite, NaN, or more than a thread can wait.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be seconds, not {value!r}")
    if not math.isfinite(value) or not 0 <= value <= TIMEOUT_MAX:
        raise ValueError(f"{what} must be from 0 to {TIMEOUT_MAX:.0f} seconds, not {value!r}")
    return value


def unique_name() -> str:
    """16 hex digits that nobody else has. `secrets` would take longer to import than most of this package."""
    return os.urandom(8).hex()


@cache
def host_name() -> str:
    """This machine, as its network knows it."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket  # Windows: some milliseconds, and nothing else here needs it

    return socket.gethostname()
