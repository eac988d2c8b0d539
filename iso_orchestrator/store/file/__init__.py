"""The file store: a snapshot and a journal for each workflow, under the kernel's locks. Format: docs/format.md."""

from __future__ import annotations

from urllib.parse import SplitResult, unquote

from iso_orchestrator.store.file.store import FileStore

__all__ = ["FileStore", "store_at"]


def store_at(url: SplitResult) -> FileStore | None:
    """The store of ``file:///folder``; None for a URL without a folder of this machine."""
    if url.netloc not in ("", "localhost") or not url.path:
        return None
    return FileStore(unquote(url.path))
