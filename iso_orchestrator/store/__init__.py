"""Stores: where facts are kept. The file store is the one that lasts."""

from iso_orchestrator.store.file import FileStore
from iso_orchestrator.store.protocol import ProcessInfo, Store, StoreMutex, WorkflowLog

__all__ = ["FileStore", "ProcessInfo", "Store", "StoreMutex", "WorkflowLog"]
