"""Stores: where facts are kept, in order and durably."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from urllib.parse import urlsplit

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.file import FileStore
from iso_orchestrator.store.protocol import ProcessInfo, RemovedError, Size, Store, StoreMutex, WorkflowLog

__all__ = [
    "FileStore",
    "ProcessInfo",
    "RemovedError",
    "Size",
    "Store",
    "StoreMutex",
    "WorkflowLog",
    "default_root",
    "find_store",
    "store_in_use",
    "stores_replaced",
]

# The module for each kind of URL. It has a function `store_at`, which takes the split URL, and returns the store or
# None. A new store is a module or a folder, and a line here; the guide shows the URL.
STORE_URLS = {
    "file:///folder": "iso_orchestrator.store.file",
    "memory://name": "iso_orchestrator.store.memory",
}


_replace: Callable[[Store], Store] | None = None


def store_in_use(store: Store) -> Store:
    """*store*, or the one that stands for it within `stores_replaced`."""
    return store if _replace is None else _replace(store)


@contextmanager
def stores_replaced(replace: Callable[[Store], Store]) -> Iterator[None]:
    """Use ``replace(store)`` in place of each store, in all of this process, also where a workflow has it already.

    Args:
        replace: Returns the same object whenever it is called with equal stores.
    """
    global _replace
    before, _replace = _replace, replace
    try:
        yield
    finally:
        _replace = before


def default_root() -> str:
    """The folder of workflows where none is given: ``ISO_ORCHESTRATOR_DIR``, else `.iso-orchestrator`."""
    return os.environ.get("ISO_ORCHESTRATOR_DIR") or ".iso-orchestrator"


def find_store(store: Store | str | None, root: str | os.PathLike[str] | None) -> Store:
    """The store that *store* means: a store, a URL of `STORE_URLS`, or None for the file store in the folder *root*.

    Where both are None, the environment says it: the URL ``ISO_ORCHESTRATOR_STORE``, else `default_root`.

    Raises:
        StoreError: No store has that kind of URL.
        TypeError: *store* is none of these.

    Example:
        >>> find_store("memory://example", ".").display_name
        'memory://example'
    """
    if store is None and root is None and (url := os.environ.get("ISO_ORCHESTRATOR_STORE")):
        try:
            return _store_at(url)
        except (StoreError, ValueError) as error:
            raise StoreError(f"the environment variable ISO_ORCHESTRATOR_STORE is {url!r:.200}: {error}") from error
    if store is None:
        found = FileStore(default_root() if root is None else root)
        found._is_default = root is None and not os.environ.get("ISO_ORCHESTRATOR_DIR")
        return found
    if isinstance(store, str):
        return _store_at(store)
    if not callable(getattr(store, "open", None)) or not callable(getattr(store, "read", None)):
        raise TypeError(f"store must be a Store, a URL or None, not {store!r:.80}")
    return store


def _store_at(url: str) -> Store:
    parts = urlsplit(url)
    for kind, module in STORE_URLS.items():
        if parts.scheme == urlsplit(kind).scheme:
            found: Store | None = import_module(module).store_at(parts)
            if found is not None:
                return found
    raise StoreError(f"no store serves {url!r}: use {' or '.join(STORE_URLS)}, or pass dir= alone")
