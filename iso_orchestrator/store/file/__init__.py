"""The file store: a journal and a snapshot a workflow, under the kernel's locks. FORMAT.md is its law."""

from iso_orchestrator.store.file.store import FileStore

__all__ = ["FileStore"]
