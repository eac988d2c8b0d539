"""Who has which mutex in this process, and who waits for it, in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Literal, TypeAlias

import attrs

from iso_orchestrator.checks import host_name
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.runtime.context import LockOwner
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.store import ProcessInfo, StoreMutex
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.interrupts import start

__all__ = ["Held", "MutexScope", "MutexState", "Waiter", "find_entry", "find_hold", "request"]

MutexScope: TypeAlias = Literal["workflow", "store"]

# How long threads of one process may hand a mutex on among themselves while other processes wait, in seconds.
_TURN = 0.01


@attrs.define(eq=False)
class Waiter:
    """Someone who wants a mutex; one of the two functions is called, in whatever thread, and again after a signal."""

    owner: LockOwner
    granted: Callable[[Held], None]
    failed: Callable[[BaseException], None]


@attrs.define(eq=False)
class Held:
    """A mutex that is held, by its owner and by the threads that outlived their timeout under it."""

    entry: MutexState
    waiter: Waiter
    depth: int = 1
    left_behind: int = 0

    def enter_again(self) -> None:
        """Count one more entry of its owner."""
        with _guard:
            self.depth += 1

    def release(self) -> None:
        """Count one entry less; without any left the mutex goes on to the next."""
        is_left = False
        try:
            with _guard:
                self.depth -= 1
                is_left = True
            self.entry.advance()
        except BaseException:  # a signal in the midst of it: others would wait for ever
            if not is_left:
                with _guard:
                    self.depth -= 1
            self.entry.advance()
            raise

    def leave_behind(self) -> Callable[[], None]:
        """Keep the mutex for a thread that cannot be ended; returns what that thread calls at its end."""
        with _guard:
            self.left_behind += 1

        def end() -> None:
            with _guard:
                self.left_behind -= 1
            self.entry.advance()

        return end


@attrs.define(eq=False)
class MutexState:
    """A mutex as this process sees it. Changed under `_guard` alone; no store is called under it.

    Attributes:
        taker: Who is getting or freeing the lock between processes; nobody else may touch it meanwhile.
        locked: Whether this process has that lock.
    """

    key: EntryKey
    store_mutex: StoreMutex
    now: Callable[[], datetime]
    hold: Held | None = None
    since: datetime | None = None
    waiters: deque[Waiter] = attrs.field(factory=deque)
    taker: object = None
    locked: bool = False
    turn_ends: float = 0.0

    def enqueue(self, waiter: Waiter) -> bool:
        """Wait, behind all who came before; False when the entry was forgotten meanwhile."""
        with _guard:
            if _entries.get(self.key) is not self:
                return False
            self.waiters.append(waiter)
        self.advance()
        return True

    def withdraw(self, waiter: Waiter) -> bool:
        """Wait no more; False when it has been granted already."""
        with _guard:
            if waiter not in self.waiters:
                return False
            self.waiters.remove(waiter)
            return True

    def abandon(self, waiter: Waiter) -> None:
        """Neither wait nor have: for whoever will never enter."""
        with _guard:
            if waiter in self.waiters:
                self.waiters.remove(waiter)
            elif self.hold is not None and self.hold.waiter is waiter:
                self.hold.depth = 0
        self.advance()

    def holder(self) -> ProcessInfo:
        """Who has it, in this process or another."""
        if self.hold is not None:
            return ProcessInfo(os.getpid(), host_name(), self.since)
        return self.store_mutex.holder()

    def advance(self) -> None:
        """Let the next have it, if nobody has it and nobody is at it."""
        me = object()
        try:
            with _guard:
                if not self._is_free():
                    return
                self.taker = me
            self._take()
        except BaseException:
            # A signal in the midst of it: the next call does it all again.
            if self.taker is me:
                self.locked = False
                self.store_mutex.release()
                self.taker = None
            raise

    def _is_free(self) -> bool:
        if self.hold is not None and (self.hold.depth or self.hold.left_behind):
            return False
        if self.hold is not None:
            self.hold.waiter.owner.holds.remove(self.hold)
            self.hold = None
        return self.taker is None

    def _take(self) -> None:
        while not self._forget_if_unwanted():
            if self.locked and (not self.waiters or monotonic() >= self.turn_ends):
                self.locked = False
                self.store_mutex.release()
            if not self.waiters:
                continue
            try:
                taken = self.locked or self.store_mutex.try_acquire()
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                self._fail(error)
                return
            if not taken:
                # In a thread of its own: in the kernel's queue it gets its turn, which polling never does.
                self._wait_in_turn()
                return
            if self._grant():
                return

    def _wait_in_turn(self) -> None:
        turn = self.taker = object()
        take = partial(self._take_in_turn, turn)
        try:
            start(threading.Thread(target=take, name="iso-orchestrator-mutex", daemon=True).start)
        except BaseException as error:
            with _guard:
                is_begun = self.taker is not turn
                if not is_begun:
                    self.taker = None
            if is_begun or not isinstance(error, Exception):
                raise
            self._fail(error)  # there are no threads to be had

    def _take_in_turn(self, turn: object) -> None:
        with _guard:
            if self.taker is not turn:
                return  # an interrupt came in its start, and who was interrupted has given it up
            self.taker = object()
        try:
            self.store_mutex.acquire()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
            return
        if not self._grant():
            self._take()

    def _grant(self) -> bool:
        """Hand the lock that was taken to the first who waits; False when nobody does any more."""
        hold: Held | None = None
        try:
            with _guard:
                if not self.locked:
                    self.locked = True
                    self.turn_ends = monotonic() + _TURN
                if not self.waiters:
                    return False
                hold, since = Held(self, self.waiters[0]), self.now()
                # Without a call, so that a signal comes before all of it or behind.
                self.hold, self.since, self.taker = hold, since, None
                hold.waiter.owner.holds += [hold]
                del self.waiters[0]
        finally:
            if hold is not None and self.hold is hold:
                try:
                    hold.waiter.granted(hold)
                except BaseException:  # a signal in the midst of it: he would wait for ever
                    hold.waiter.granted(hold)
                    raise
        return True

    def _fail(self, error: BaseException) -> None:
        with _guard:
            waiters = list(self.waiters)
            self.waiters.clear()
            self.taker = None
            self._forget()
        for waiter in waiters:
            waiter.failed(error)

    def _forget_if_unwanted(self) -> bool:
        with _guard:
            if self.waiters or self.locked:
                return False
            self.taker = None
            is_known = self._forget()
        if is_known:
            self.store_mutex.dispose()
        return True

    def _forget(self) -> bool:
        """Be no entry any more; False where that has happened. Under the lock."""
        # Whoever has released it may be late to look for the next: another has its place by then, and its store mutex.
        if _entries.get(self.key) is not self:
            return False
        del _entries[self.key]
        return True


EntryKey: TypeAlias = tuple[object, str | None, str]
_entries: dict[EntryKey, MutexState] = {}
_guard = threading.Lock()


def find_entry(runtime: WorkflowRuntime, key: str, scope: MutexScope) -> MutexState:
    """The mutex, made when this process does not know it yet."""
    session = runtime.session()
    entry_key = _entry_key(runtime, key, scope)
    with _guard:
        entry = _entries.get(entry_key)
        if entry is None:
            store_mutex = session.log.mutex(key, whole_store=scope == "store")
            entry = _entries[entry_key] = MutexState(entry_key, store_mutex, runtime.clock.now)
        return entry


def request(runtime: WorkflowRuntime, key: str, scope: MutexScope, waiter: Waiter) -> MutexState:
    """Ask for a mutex; the answer goes to *waiter*."""
    entry = find_entry(runtime, key, scope)
    while not entry.enqueue(waiter):
        entry = find_entry(runtime, key, scope)
    return entry


def find_hold(runtime: WorkflowRuntime, key: str, scope: MutexScope, owner: LockOwner) -> Held | None:
    """The hold under which *owner* may enter the mutex again; None when it must wait for it.

    Raises:
        WorkflowUsageError: Whoever waits for *owner* has it, and shares it with others that run at the same time.
    """
    if owner.parent is None and not owner.holds:
        return None  # what a thread of no item is asked most of the time
    entry_key = _entry_key(runtime, key, scope)
    beyond_item = False
    for link in owner.chain():
        with _guard:
            held = [hold for hold in link.holds if isinstance(hold, Held)]
            hold = next((hold for hold in held if hold.depth and hold.entry.key == entry_key), None)
        if hold is not None and beyond_item:
            raise WorkflowUsageError(
                f"mutex {key!r} is held around the for_each, whose items would wait for it for ever: "
                "take it inside the items, or not at all"
            )
        if hold is not None:
            return hold
        beyond_item = beyond_item or link.is_item
    return None


def _entry_key(runtime: WorkflowRuntime, key: str, scope: MutexScope) -> EntryKey:
    return runtime.store.identity, None if scope == "store" else runtime.workflow_id, key


def _forget_all_in_child() -> None:
    global _guard
    _guard = threading.Lock()
    for entry in _entries.values():
        if entry.hold is not None:
            entry.hold.waiter.owner.holds.clear()  # the parent's, whoever it is in the child
    _entries.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_in_child)
