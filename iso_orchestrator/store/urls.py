"""From what a user says of a store to the store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store import FileStore, Store

if TYPE_CHECKING:
    from iso_orchestrator.store.memory import MemoryStore

__all__ = ["find_store"]

_memory: dict[str, MemoryStore] = {}


def find_store(store: Store | str | None, root: str | os.PathLike[str]) -> Store:
    """The store that *store* means: one already, a URL, or None for the file store in *root*.

    ``file:///folder`` is the file store there, ``memory://name`` one store in this process for each name.

    Raises:
        StoreError: No store serves the URL.
        TypeError: It is no store.
    """
    if store is None:
        return FileStore(root)
    if isinstance(store, str):
        return _by_url(store)
    if not callable(getattr(store, "open", None)) or not callable(getattr(store, "read", None)):
        raise TypeError(f"store must be a Store, a URL or None, not {store!r:.80}")
    return store


def _by_url(url: str) -> Store:
    from urllib.parse import unquote, urlsplit  # some 5 ms, and few stores are said by URL

    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return FileStore(unquote(parts.path))
    if parts.scheme == "memory":
        from iso_orchestrator.store.memory import MemoryStore  # what keeps its work, loads none

        return _memory.setdefault(parts.netloc + parts.path, MemoryStore())
    raise StoreError(f"no store serves {url!r}: use file:///folder or memory://name, or pass dir= alone")
