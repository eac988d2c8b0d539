"""Spans of time that users give, in seconds, checked."""

from __future__ import annotations

import math
from threading import TIMEOUT_MAX

__all__ = ["check_seconds", "check_wait"]


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
