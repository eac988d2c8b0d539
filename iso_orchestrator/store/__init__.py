"""Stores: where facts are kept, in order and durably. The file store is the one that outlives the process."""

from __future__ import annotations

import os
from importlib import import_module
from urllib.parse import urlsplit

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.file import FileStore
from iso_orchestrator.store.protocol import ProcessInfo, RemovedError, Store, StoreMutex, WorkflowLog

__all__ = ["FileStore", "ProcessInfo", "RemovedError", "Store", "StoreMutex", "WorkflowLog", "find_store"]

# The module for each kind of URL. It has a function `store_at`, which takes the split URL, and returns the store or
# None. A new store is a module or a folder, and a line here.
_STORES = {
    "file:///folder": "iso_orchestrator.store.file",
    "memory://name": "iso_orchestrator.store.memory",
}


def find_store(store: Store | str | None, root: str | os.PathLike[str]) -> Store:
    """The store that *store* means: a store, a URL, or None for the file store in the folder *root*.

    ``file:///folder`` is the file store in that folder, ``memory://name`` a store in this process for each name.

    Raises:
        StoreError: No store has that kind of URL.
        TypeError: *store* is none of these.

    Example:
        >>> find_store("memory://example", ".").display_name
        'memory://example'
    """
    if store is None:
        return FileStore(root)
    if isinstance(store, str):
        return _store_at(store)
    if not callable(getattr(store, "open", None)) or not callable(getattr(store, "read", None)):
        raise TypeError(f"store must be a Store, a URL or None, not {store!r:.80}")
    return store


def _store_at(url: str) -> Store:
    parts = urlsplit(url)
    for kind, module in _STORES.items():
        if parts.scheme == urlsplit(kind).scheme:
            found: Store | None = import_module(module).store_at(parts)
            if found is not None:
                return found
    raise StoreError(f"no store serves {url!r}: use {' or '.join(_STORES)}, or pass dir= alone")
