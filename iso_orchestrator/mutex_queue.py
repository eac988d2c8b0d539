"""Who has which mutex in this process, and who waits for it, in order."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Literal, TypeAlias

import attrs

from iso_orchestrator.clock import monotonic
from iso_orchestrator.context import Owner
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.handle import Handle
from iso_orchestrator.store import OwnerInfo, StoreMutex

__all__ = ["Hold", "MutexScope", "Waiter", "find_hold", "request"]

MutexScope: TypeAlias = Literal["workflow", "store"]

# How long threads of one process may hand a mutex on among themselves while other processes wait, in seconds.
_TURN = 0.01


@attrs.define(eq=False)
class Waiter:
    """Someone who wants a mutex; one of the two functions is called, in whatever thread that happens."""

    owner: Owner
    granted: Callable[[Hold], None]
    failed: Callable[[BaseException], None]


@attrs.define(eq=False)
class Hold:
    """A mutex that is held, by its owner and by the threads that outlived their timeout under it."""

    entry: _Entry
    owner: Owner
    depth: int = 1
    left_behind: int = 0

    def enter_again(self) -> None:
        """Count one more entry of its owner."""
        with _guard:
            self.depth += 1

    def release(self) -> None:
        """Count one entry less; without any left the mutex goes on to the next."""
        with _guard:
            self.depth -= 1
        self.entry.pass_on(self)

    def leave_behind(self) -> Callable[[], None]:
        """Keep the mutex for a thread that cannot be ended; returns what that thread calls at its end."""
        with _guard:
            self.left_behind += 1

        def end() -> None:
            with _guard:
                self.left_behind -= 1
            self.entry.pass_on(self)

        return end


@attrs.define(eq=False)
class _Entry:
    """A mutex as this process sees it. All changes are made under `_guard`; no store is called under it."""

    key: _EntryKey
    store_mutex: StoreMutex
    now: Callable[[], datetime]
    hold: Hold | None = None
    since: datetime | None = None
    waiters: deque[Waiter] = attrs.field(factory=deque)
    taking: bool = False
    locked: bool = False
    turn_ends: float = 0.0

    def withdraw(self, waiter: Waiter) -> bool:
        """Wait no more; False when it has been granted already."""
        with _guard:
            if waiter not in self.waiters:
                return False
            self.waiters.remove(waiter)
            return True

    def holder(self) -> OwnerInfo:
        """Who has it, in this process or another."""
        if self.hold is not None:
            return OwnerInfo(os.getpid(), socket.gethostname(), self.since)
        return self.store_mutex.holder()

    def pass_on(self, hold: Hold) -> None:
        """Give the mutex to the next, if *hold* has come to its end."""
        with _guard:
            if hold.depth or hold.left_behind or self.hold is not hold:
                return
            self.hold = None
            hold.owner.holds.remove(hold)
            self.taking = True
            keep = bool(self.waiters) and monotonic() < self.turn_ends
        if not keep:
            self.locked = False
            self.store_mutex.release()
        self.take()

    def take(self) -> None:
        """Get the lock between processes, if somebody waits; by whoever has set `taking`."""
        if self._forget_if_unwanted():
            return
        try:
            taken = self.locked or self.store_mutex.try_acquire()
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            self._fail(error)
            return
        if taken:
            self._grant()
            return
        # In a thread of its own: in the kernel's queue it gets its turn, which polling never does.
        threading.Thread(target=self._take_in_turn, name="iso-orchestrator-mutex", daemon=True).start()

    def _take_in_turn(self) -> None:
        try:
            self.store_mutex.acquire()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
            return
        self._grant()

    def _grant(self) -> None:
        with _guard:
            if not self.locked:
                self.locked = True
                self.turn_ends = monotonic() + _TURN
            waiter = self.waiters.popleft() if self.waiters else None
            hold = self._hold_for(waiter.owner) if waiter is not None else None
        if waiter is not None and hold is not None:
            waiter.granted(hold)
            return
        self.locked = False
        self.store_mutex.release()
        self.take()

    def _hold_for(self, owner: Owner) -> Hold:
        self.taking = False
        self.since = self.now()
        self.hold = Hold(self, owner)
        owner.holds.append(self.hold)
        return self.hold

    def _fail(self, error: BaseException) -> None:
        with _guard:
            waiters = list(self.waiters)
            self.waiters.clear()
            self.taking = False
            _entries.pop(self.key, None)
        for waiter in waiters:
            waiter.failed(error)

    def _forget_if_unwanted(self) -> bool:
        with _guard:
            if self.waiters:
                return False
            self.taking = False
            _entries.pop(self.key, None)
            return True


_EntryKey: TypeAlias = tuple[object, str | None, str]
_entries: dict[_EntryKey, _Entry] = {}
_guard = threading.Lock()


def request(handle: Handle, key: str, scope: MutexScope, waiter: Waiter) -> _Entry:
    """Ask for a mutex, behind all who have asked before; the answer goes to *waiter*."""
    session = handle.session()
    entry_key = _entry_key(handle, key, scope)
    with _guard:
        entry = _entries.get(entry_key)
        if entry is None:
            store_mutex = session.log.mutex(key, whole_store=scope == "store")
            entry = _entries[entry_key] = _Entry(entry_key, store_mutex, handle.clock.now)
        entry.waiters.append(waiter)
        is_free = entry.hold is None and not entry.taking
        if is_free:
            entry.taking = True
    if is_free:
        entry.take()
    return entry


def find_hold(handle: Handle, key: str, scope: MutexScope, owner: Owner) -> Hold | None:
    """The hold under which *owner* may enter the mutex again; None when it must wait for it.

    Raises:
        WorkflowUsageError: Whoever waits for *owner* has it, and shares it with others that run at the same time.
    """
    entry_key = _entry_key(handle, key, scope)
    beyond_item = False
    for link in owner.chain():
        with _guard:
            hold: Hold | None = next((hold for hold in link.holds if hold.depth and hold.entry.key == entry_key), None)
        if hold is not None and beyond_item:
            raise WorkflowUsageError(
                f"mutex {key!r} is held around the for_each, whose items would wait for it for ever: "
                "take it inside the items, or not at all"
            )
        if hold is not None:
            return hold
        beyond_item = beyond_item or link.is_item
    return None


def _entry_key(handle: Handle, key: str, scope: MutexScope) -> _EntryKey:
    return handle.store.identity, None if scope == "store" else handle.workflow_id, key


def _forget_all_in_child() -> None:
    global _guard
    _guard = threading.Lock()
    for entry in _entries.values():
        if entry.hold is not None:
            entry.hold.owner.holds.clear()  # the parent's, whoever it is in the child
    _entries.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_in_child)
