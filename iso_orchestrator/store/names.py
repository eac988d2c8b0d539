"""The file names that workflow ids, keys and step names become."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_MUTEX = re.compile(r"-[0-9a-f]{40}\.lock$")


class RecordNames(NamedTuple):
    """The two names that a workflow's files can have, without a suffix."""

    short: str  # the npm package's name for the id
    full: str  # for an id whose short name another id has taken


def record_names(workflow_id: str) -> RecordNames:
    """The file names of a workflow's record, the short one exactly as the npm package makes it.

    Example:
        >>> record_names("Batch 7").short
        'batch-7-fd5ca858'
    """
    stem, digest = _stem(workflow_id), _sha1(workflow_id)
    return RecordNames(short=f"{stem}-{digest[:8]}", full=f"{stem}-{digest}")


def mutex_file_name(key: str) -> str:
    """The file name of a mutex. It has the whole hash, since two keys must never share a lock."""
    return f"{safe_name(key)}.lock"


def is_mutex_file_name(name: str) -> bool:
    """Whether a file can be a mutex of ours: those of the npm package are folders with a shorter hash."""
    return _MUTEX.search(name) is not None


def safe_name(text: str) -> str:
    """A file name for any text: a readable part, and a hash that no other text has."""
    return f"{_stem(text)}-{_sha1(text)}"


def _stem(text: str) -> str:
    return _UNSAFE.sub("-", text.strip().lower()).strip("-")[:48] or "workflow"


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
