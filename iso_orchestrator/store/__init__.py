"""Stores: where facts are kept. The file store is the one that lasts."""

from iso_orchestrator.store.file import FileStore
from iso_orchestrator.store.protocol import Log, OwnerInfo, Store, StoreMutex

__all__ = ["FileStore", "Log", "OwnerInfo", "Store", "StoreMutex"]
