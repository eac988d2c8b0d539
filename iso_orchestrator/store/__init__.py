"""Stores: where facts are kept. The file store is the one that lasts."""

from iso_orchestrator.store.file import FileStore
from iso_orchestrator.store.memory import MemoryStore
from iso_orchestrator.store.protocol import Log, OwnerInfo, Store, StoreMutex

__all__ = ["FileStore", "Log", "MemoryStore", "OwnerInfo", "Store", "StoreMutex"]
