"""Keyed mutexes over threads and processes: in this process in order, between processes by the kernel's lock."""

from __future__ import annotations

import math
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ContextDecorator
from datetime import datetime
from types import TracebackType
from typing import Literal, TypeAlias

import attrs

from iso_orchestrator.clock import monotonic
from iso_orchestrator.context import Owner, current_owner
from iso_orchestrator.errors import MutexTimeoutError, OrchestratorError, WorkflowUsageError
from iso_orchestrator.facts import EventAppended
from iso_orchestrator.handle import Handle
from iso_orchestrator.names import check_key
from iso_orchestrator.store import OwnerInfo, StoreMutex

__all__ = [
    "Hold",
    "Mutex",
    "MutexScope",
    "Waiter",
    "check_scope",
    "check_timeout",
    "find_hold",
    "record_acquired",
    "release",
    "request",
]

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
            if waiter is not None:
                hold = self.hold = Hold(self, waiter.owner)
                self.since = self.now()
                waiter.owner.holds.append(hold)
                self.taking = False
        if waiter is not None:
            waiter.granted(hold)
            return
        self.locked = False
        self.store_mutex.release()
        self.take()

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
            hold = next((hold for hold in link.holds if hold.entry.key == entry_key), None)
        if hold is not None and beyond_item:
            raise WorkflowUsageError(
                f"mutex {key!r} is held around the for_each, whose items would wait for it for ever: "
                "take it inside the items, or not at all"
            )
        if hold is not None:
            return hold
        beyond_item = beyond_item or link.is_item
    return None


def record_acquired(handle: Handle, key: str) -> None:
    """Append the event that a mutex was acquired."""
    _record(handle, "mutex.acquired", key)


def release(handle: Handle, key: str, hold: Hold, error: BaseException | None) -> None:
    """Record that a mutex is released, and release it; a failure to record does not hide *error*."""
    try:
        if hold.depth == 1:
            _record(handle, "mutex.released", key)
    except OrchestratorError as trouble:
        if error is None:
            raise
        error.add_note(f"iso-orchestrator: the release of mutex {key!r} was not recorded: {trouble}")
    finally:
        hold.release()


class Mutex(ContextDecorator):
    """`workflow.mutex(key)`: a context manager and a decorator."""

    def __init__(self, handle: Handle, key: str, timeout: float | None, scope: MutexScope) -> None:
        self._handle = handle
        self._key = check_key(key, "a mutex key")
        self._timeout = check_timeout(timeout, "timeout")
        self._scope = check_scope(scope)

    def __enter__(self) -> None:
        hold = find_hold(self._handle, self._key, self._scope, current_owner())
        if hold is not None:
            hold.enter_again()
            return
        hold = self._wait()
        try:
            record_acquired(self._handle, self._key)
        except BaseException:
            hold.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold = find_hold(self._handle, self._key, self._scope, current_owner())
        if hold is not None:
            release(self._handle, self._key, hold, error)

    def _wait(self) -> Hold:
        answered = threading.Event()
        answers: list[Hold | BaseException] = []

        def answer(outcome: Hold | BaseException) -> None:
            answers.append(outcome)
            answered.set()

        waiter = Waiter(current_owner(), granted=answer, failed=answer)
        entry = request(self._handle, self._key, self._scope, waiter)
        try:
            if not answered.wait(self._timeout) and entry.withdraw(waiter):
                who = entry.holder()
                raise MutexTimeoutError(self._key, self._timeout or 0.0, who.pid, who.host, who.since)
            answered.wait()
            outcome = answers[0]
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        except BaseException:
            # A signal: what was granted meanwhile must not stay with somebody who will never enter.
            if not entry.withdraw(waiter) and answers and isinstance(answers[0], Hold):
                answers[0].release()
            raise


def check_timeout(value: float | None, what: str) -> float | None:
    """Seconds from 0 on, or None for ever."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be seconds or None, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{what} must be seconds from 0 on, or None to wait for ever; not {value!r}")
    return value


def check_scope(value: str) -> MutexScope:
    """ "workflow" or "store"."""
    if value not in ("workflow", "store"):
        raise ValueError(f'a mutex\'s scope is "workflow" or "store", not {value!r}')
    return value  # type: ignore[return-value]  # mypy does not narrow a str by `in`


def _record(handle: Handle, kind: str, key: str) -> None:
    at = handle.clock.now()
    handle.session().append(lambda _: ([EventAppended(at, kind, detail={"key": key})], None))


def _entry_key(handle: Handle, key: str, scope: MutexScope) -> _EntryKey:
    return handle.store.identity, None if scope == "store" else handle.workflow_id, key


def _forget_all_in_child() -> None:
    global _guard
    _guard = threading.Lock()
    _entries.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_in_child)
