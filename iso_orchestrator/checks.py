"""Checks of ids, keys and seconds, and the file names that ids and keys become."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
from threading import TIMEOUT_MAX

import attrs

__all__ = [
    "RecordNames",
    "check_key",
    "check_seconds",
    "check_wait",
    "host_name",
    "is_mutex_file_name",
    "mutex_file_name",
    "record_names",
    "unique_name",
]

_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_MUTEX = re.compile(r"-[0-9a-f]{40}\.lock$")


@attrs.frozen
class RecordNames:
    """The two names that the files of a workflow can have, without a suffix.

    Attributes:
        short: The name that the npm package gives them.
        full: The name for an id whose short name belongs to another id already.
    """

    short: str
    full: str


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


def record_names(workflow_id: str) -> RecordNames:
    """The file names of a workflow's record.

    Example:
        >>> record_names("Nightly batch").short
        'nightly-batch-fa887de0'
    """
    stem, digest = _stem(workflow_id), _sha1(workflow_id)
    return RecordNames(short=f"{stem}-{digest[:8]}", full=f"{stem}-{digest}")


def mutex_file_name(key: str) -> str:
    """The file name of a mutex. It has the whole hash, since two keys must never share a lock."""
    return f"{_stem(key)}-{_sha1(key)}.lock"


def is_mutex_file_name(name: str) -> bool:
    """Whether `mutex_file_name` made *name*. The npm package's mutexes are folders with a shorter hash."""
    return _MUTEX.search(name) is not None


def unique_name() -> str:
    """16 random hex digits."""
    return os.urandom(8).hex()


def host_name() -> str:
    """The network name of this machine."""
    return platform.node()


def _stem(text: str) -> str:
    return _UNSAFE.sub("-", text.strip().lower()).strip("-")[:48] or "workflow"


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
