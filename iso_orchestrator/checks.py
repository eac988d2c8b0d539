"""Checks of ids, keys and seconds, and the file names that ids and keys become."""

from __future__ import annotations

import math
import os
import re
from functools import cache
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
    """The two names that a workflow's files can have, without a suffix."""

    short: str  # what the npm package makes of the id
    full: str  # for an id whose short name another id has taken


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


def record_names(workflow_id: str) -> RecordNames:
    """The file names of a workflow's record, the short one exactly as the npm package makes it."""
    stem, digest = _stem(workflow_id), _sha1(workflow_id)
    return RecordNames(short=f"{stem}-{digest[:8]}", full=f"{stem}-{digest}")


def mutex_file_name(key: str) -> str:
    """The file name of a mutex; the whole hash, since two keys must never share a lock."""
    return f"{_stem(key)}-{_sha1(key)}.lock"


def is_mutex_file_name(name: str) -> bool:
    """Whether a file can be one of ours: the npm package's are folders, of a shorter hash."""
    return _MUTEX.search(name) is not None


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


def _stem(text: str) -> str:
    return _UNSAFE.sub("-", text.strip().lower()).strip("-")[:48] or "workflow"


def _sha1(text: str) -> str:
    import hashlib  # 4 ms for the system's library, and importing the package needs no digest

    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
