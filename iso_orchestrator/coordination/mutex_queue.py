"""The waiters of this process for mutexes, and how they get them.

**Between processes** a mutex is a lock of the store (`StoreMutex`). In the file store it is a lock of the kernel, which
frees it when its process dies. **In this process** a `MutexState` hands that lock to its waiters in the order of their
requests. It keeps the lock for at most `_TURN` seconds while waiters follow each other, then it releases the lock once,
for other processes.

**Threads.** There is no scheduler. The thread that requests or releases a mutex does what follows from that
(`MutexState.advance`). Only a lock that another process holds needs a thread that waits for it. This thread blocks in
the kernel's queue, since a thread that polls never gets a contended lock. There are at most `_MOST_THREADS` of them,
one for each key. Further keys get a thread as soon as one is free, about in the order in which they came. Until then
the *clock thread* tries them all at intervals. So a key that is free does not wait for other keys, and processes that
wait for each other's keys do not deadlock for want of threads. The clock thread also fails waiters in time.

A thread in the kernel's queue cannot be cancelled. When all waiters of its key have withdrawn, it stays there until the
lock comes, releases it and goes on to the next key. If all threads do that, the clock thread serves the other keys.

**Ctrl-C** is deferred in everything here (`masked`). A user's own signal handler may raise in the middle of it. After
that a waiter may be left that is never answered, and its mutex may stay locked until this process ends. But no two
owners ever hold one mutex.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias, TypeVar

import attrs

from iso_orchestrator.errors import DeadlockError, MutexTimeoutError, StoreError
from iso_orchestrator.runtime.context import ItemContext, LockOwner
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.store import StoreMutex
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.events import OneShotEvent
from iso_orchestrator.system.interrupts import masked

_log = logging.getLogger("iso_orchestrator")

T = TypeVar("T")
MutexScope: TypeAlias = Literal["workflow", "store"]
StateKey: TypeAlias = tuple[object, str | None, str]  # the store, the workflow (None: all of them), the mutex key

_TURN = 0.01  # seconds
_MOST_THREADS = 32
_PAUSE = 0.02  # seconds between two tries of a key
_PAUSE_A_KEY = 0.001  # seconds for each key, if that makes more than `_PAUSE`. A try takes 10 microseconds.


def state_key_of(runtime: WorkflowRuntime, key: str, scope: MutexScope) -> StateKey:
    """What makes a mutex equal to another one."""
    return runtime.store.identity, None if scope == "store" else runtime.workflow_id, key


def find_hold(state_key: StateKey, owner: LockOwner) -> Held | None:
    """The hold under which *owner* may enter the mutex again; None if it has to request it.

    Raises:
        DeadlockError: The mutex is held around the `for_each` of which *owner* is an item, or is kept until *owner*,
            which has outlived a timeout, ends.
    """
    if owner.parent is None and not owner.holds:
        return None  # the usual case, at no cost
    with _registry.guard:
        state = _registry.states.get(state_key)
        hold = None if state is None else state.hold
        entries, kept_for = ([], []) if hold is None else (list(hold.entries), list(hold.kept_for))
    wait = f"{owner} waits for mutex {state_key[2]!r}"
    beyond_item = False
    for link in owner.chain():
        if link in entries and not beyond_item:
            return hold
        if link in entries:
            circle = wait, f"{link} waits for the for_each"
            raise DeadlockError((*circle, str(owner)), "enter it inside the items, or not at all")
        if link in kept_for:
            circle = wait, f"it is kept until {link}, which has outlived its timeout, ends"
            raise DeadlockError(circle, "raise timeout=, or make the body end by itself")
        beyond_item = beyond_item or isinstance(link.work, ItemContext)
    return None


def find_entry(state_key: StateKey, owner: LockOwner) -> tuple[Held | None, LockOwner | None, bool]:
    """What is known of a mutex that is left.

    Returns:
        The hold on it, if it was entered; which entry to leave: that of *owner*, else one that was made in this thread
        and asyncio task; whether the process that forked this one had entered it, which is noted as left.
    """
    with _registry.guard:
        if _registry.inherited[state_key] > 0:
            _registry.inherited[state_key] -= 1
            return None, None, True
        state = _registry.states.get(state_key)
        hold = None if state is None else state.hold
        if hold is None or not hold.entries:
            return None, None, False
        here = (other for other in hold.entries if other.is_here)
        return hold, owner if owner in hold.entries else next(here, None), False


def request(session: Session, state_key: StateKey, waiter: Waiter, timeout: float | None = None) -> MutexState:
    """Request a mutex. *waiter* is answered before this returns or later, in this thread or another.

    Args:
        session: The workflow's, which the caller keeps open meanwhile.
        state_key: The mutex's.
        waiter: Is granted the mutex, or fails: with MutexTimeoutError, or with the store's error.
        timeout: Seconds until *waiter* fails; None waits for ever.
    """
    with masked():
        log = session.log  # may open it, which takes long where another process checkpoints
        with _registry.guard:
            state = _registry.states.get(state_key)
            if state is None:
                _, workflow_id, key = state_key
                store_mutex = log.mutex(key, whole_store=workflow_id is None)
                state = _registry.states[state_key] = MutexState(state_key, store_mutex)
            waiter.state = state
            if timeout is not None:
                waiter.timeout, waiter.deadline = timeout, monotonic() + timeout
            state.waiters.append(waiter)
        state.advance()
        if timeout == 0 and state.withdraw(waiter):
            state.tell_late(waiter)
        elif timeout is not None:
            _registry.watch(waiter)
    return state


@attrs.define(eq=False)
class Waiter:
    """A request for a mutex.

    Attributes:
        owner: Will own the mutex.
        granted: Called once the mutex is held. It must not raise and not block.
        failed: Called once instead, with the reason. Likewise.
        state: The requested mutex; None before the request.
        timeout: Seconds, as they were given; for the message.
        deadline: When the waiter fails, by `monotonic`.
        since: When it was made, by `monotonic`.
    """

    owner: LockOwner
    granted: Callable[[Held], None]
    failed: Callable[[BaseException], None]
    state: MutexState | None = None
    timeout: float = math.inf
    deadline: float = math.inf
    since: float = attrs.field(factory=monotonic)

    def cancel(self) -> None:
        """Cancel the wait, or release the mutex if it was already granted."""
        with masked():
            if self.state is None or self.state.withdraw(self):
                return
            hold = self.state.hold
            if hold is not None and hold.waiter is self:
                hold.leave(self.owner)


@attrs.define(eq=False)
class Held:
    """A mutex that is held.

    Attributes:
        state: The mutex.
        waiter: Was granted it.
        entries: The owner of each entry that was not left yet: the waiter's, and owners that this one waits for.
        kept_for: Bodies that outlived the timeout of their step while one of these held the mutex, and still run.
        since: When it was granted, by `monotonic`.
    """

    state: MutexState
    waiter: Waiter
    entries: list[LockOwner] = attrs.field(factory=list)
    kept_for: list[LockOwner] = attrs.field(factory=list)
    since: float = attrs.field(factory=monotonic)

    def enter(self, owner: LockOwner) -> None:
        """Note an entry of *owner*. Under the guard."""
        self.entries.append(owner)
        owner.holds.append(self)

    def enter_again(self, owner: LockOwner) -> None:
        """Note one more entry, of *owner*."""
        with _registry.guard:
            self.enter(owner)

    def leave(self, owner: LockOwner) -> None:
        """End an entry of *owner*. After the last one the mutex goes to the next waiter."""
        self._end(self.entries, owner)

    def keep_for(self, owner: LockOwner) -> Callable[[], None]:
        """Keep the mutex for a body that cannot be ended; returns what its thread calls at its end."""
        with _registry.guard:
            self.kept_for.append(owner)
            owner.holds.append(self)
        return lambda: self._end(self.kept_for, owner)

    def _end(self, owners: list[LockOwner], owner: LockOwner) -> None:
        with masked():
            with _registry.guard:
                if _registry.states.get(self.state.key) is not self.state:
                    return  # in a forked child: the parent holds it
                if owner in owners:  # else an error of a signal handler has ended the first try below
                    owners.remove(owner)
                    owner.holds.remove(self)
            self.state.advance()


@attrs.define(eq=False)
class MutexState:
    """A mutex as this process sees it, while it is held or waited for here.

    Attributes:
        key: The store, the workflow (None: the whole store) and the mutex key.
        store_mutex: The lock between processes. Only the changer calls it, except for `holder`.
        waiters: In the order of their requests.
        hold: What its owner has now.
        is_locked: Whether this process has the lock.
        turn_ends: When other processes get their turn, by `monotonic`.
        changer: Who may lock and unlock *store_mutex* now, one at a time: an `advance` call, by a token of its own, or
            the registry, which waits there for another process. None while no change is in progress.
    """

    key: StateKey
    store_mutex: StoreMutex
    waiters: deque[Waiter] = attrs.field(factory=deque)
    hold: Held | None = None
    is_locked: bool = False
    turn_ends: float = 0.0
    changer: object = None

    def withdraw(self, waiter: Waiter) -> bool:
        """Cancel a wait; False if the waiter has been answered already."""
        with masked(), _registry.guard:
            if waiter not in self.waiters:
                return False
            self.waiters.remove(waiter)
            return True

    def expire(self, *, is_tried: bool = False) -> float:
        """Fail the waiters whose time is over; returns the next deadline.

        Args:
            is_tried: The lock was just tried and is not free. Only then a waiter with a timeout of 0 fails: otherwise
                its own thread may be trying the lock.
        """
        with _registry.guard:
            now = monotonic()
            late = [waiter for waiter in self.waiters if waiter.deadline <= now and (is_tried or waiter.timeout)]
            if late:
                self.waiters = deque(waiter for waiter in self.waiters if waiter not in late)
            next_deadline = min((waiter.deadline for waiter in self.waiters if waiter.timeout), default=math.inf)
        for waiter in late:
            self.tell_late(waiter)
        return next_deadline

    def tell_late(self, waiter: Waiter) -> None:
        """Fail a waiter that has been withdrawn, since its time is over."""
        who = self.store_mutex.holder()
        _tell(waiter.failed, MutexTimeoutError(self.key[2], waiter.timeout, who.pid, who.host, who.since))

    def advance(self) -> None:
        """Grant the mutex to the next waiter, if it is free and no other thread is the changer."""
        me, hold = object(), None
        try:
            with _registry.guard:
                if not self._is_free():
                    return
                self.changer = me
            if self.is_locked and (monotonic() >= self.turn_ends or self.store_mutex.is_lost):
                self._unlock()
            hold = self._hand_over()
        except BaseException as error:
            if self.changer is not me:
                raise  # the change has not begun, or has ended
            if isinstance(error, (StoreError, RuntimeError)):  # RuntimeError: no more threads can be started
                self._fail(error)
                return
            # A user's own signal handler has raised. A thread of the registry continues the change: Python runs signal
            # handlers in the main thread only.
            self._unlock()
            try:
                _registry.wait_for(self)
            finally:
                if self.changer is me:
                    self.changer = None
            raise
        if hold is not None:
            hold.waiter.granted(hold)

    def take_turn(self, *, block: bool) -> None:
        """Continue a change that waited for the lock, in a thread of the registry.

        Args:
            block: Whether to wait for the lock in the kernel's queue; else it is only tried.
        """
        try:
            if block and self.waiters:
                self.store_mutex.acquire()
                self._note_lock()
            hold = self._hand_over()
        except Exception as error:  # noqa: BLE001 - it belongs to the waiters
            self._fail(error)
            return
        if hold is not None:
            _tell(hold.waiter.granted, hold)

    def _is_free(self) -> bool:
        """Whether a change may begin. Under the guard."""
        hold = self.hold
        if hold is not None:
            if hold.entries or hold.kept_for:
                return False
            self.hold = None
        elif not self.waiters:
            return False  # another thread was faster; the registry may have a new state for the key
        return self.changer is None or _registry.gives_back(self)

    def _hand_over(self) -> Held | None:
        """Take or release the lock, until a waiter can be granted the mutex or none is left. For the changer."""
        while True:
            with _registry.guard:
                if self.is_locked and self.waiters:
                    hold = self.hold = Held(self, self.waiters.popleft())
                    self.changer = None
                    hold.enter(hold.waiter.owner)
                    return hold
                is_over = not self.is_locked and not self.waiters
                if is_over:
                    self.changer = None
                    del _registry.states[self.key]
            if is_over:
                self.store_mutex.dispose()
                return None
            if self.is_locked:
                self._unlock()
            elif self.store_mutex.try_acquire():
                self._note_lock()
            else:
                self.expire(is_tried=True)  # first, so that a timeout of 0 costs no thread
                if self.waiters:
                    _registry.wait_for(self)
                    return None

    def _note_lock(self) -> None:
        self.is_locked = True
        self.turn_ends = monotonic() + _TURN

    def _unlock(self) -> None:
        self.is_locked = False
        self.store_mutex.release()

    def _fail(self, error: BaseException) -> None:
        """Fail all waiters, since the lock can be neither taken nor waited for."""
        try:
            with suppress(StoreError):
                self._unlock()
        except BaseException:  # at the end of the stack: the next request releases the lock first
            self.is_locked, self.turn_ends, self.changer = True, 0.0, None
            raise
        with _registry.guard:
            waiters, self.waiters = self.waiters, deque()
            self.changer = None
            if _registry.states.get(self.key) is self:
                del _registry.states[self.key]
        if not waiters:
            _log.warning("the lock of mutex %r was not released properly: %s", self.key[2], error)
        for waiter in waiters:
            _tell(waiter.failed, error)


class _Registry:
    """The mutexes that are held or waited for in this process, and the threads that wait for other processes.

    Attributes:
        guard: Held while any state, waiter or hold changes. No store and no waiter is called under it.
        states: The mutexes, by key.
        unserved: Mutexes that another process holds, and that have no thread to wait for them.
        threads: How many threads wait for other processes.
        inherited: How often the process that forked this one had entered mutexes, and this one has not left them.
        looks_at: When the clock thread looks next, by `monotonic`; it ends when there is nothing to look for.
    """

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.states: dict[StateKey, MutexState] = {}
        self.unserved: deque[MutexState] = deque()
        self.threads = 0
        self.inherited = Counter[StateKey]()
        self.looks_at = math.inf
        self._has_clock = False
        self._wake = OneShotEvent()

    def wait_for(self, state: MutexState) -> None:
        """Wait for a lock that another process holds. The changer calls this, and changes nothing more."""
        with self.guard:
            if self.threads < _MOST_THREADS:
                threading.Thread(target=self._serve, name="iso-orchestrator-mutex", daemon=True).start()
                self.threads += 1
            else:
                self._look_at(monotonic() + _PAUSE)
            state.changer = self
            self.unserved.append(state)

    def gives_back(self, state: MutexState) -> bool:
        """Take *state* back to try its lock; False if a thread serves it or it had a waiter before. Under the guard."""
        if state.changer is not self or len(state.waiters) > 1 or state not in self.unserved:
            return False
        self.unserved.remove(state)
        return True

    def watch(self, waiter: Waiter) -> None:
        """Fail a waiter at its deadline."""
        with self.guard:
            if waiter.state is not None and waiter in waiter.state.waiters:
                self._look_at(waiter.deadline)

    def _serve(self) -> None:
        """Wait for one lock after another, as long as there are any."""
        while True:
            with self.guard:
                if not self.unserved:
                    self.threads -= 1
                    return
                state = self.unserved.popleft()
            state.take_turn(block=True)

    def _look_at(self, when: float) -> None:
        """Make the clock thread look then, or before. Under the guard."""
        if not self._has_clock:
            threading.Thread(target=self._run_clock, name="iso-orchestrator-mutex-clock", daemon=True).start()
            self._has_clock = True
        if when < self.looks_at:
            self.looks_at = when
            self._wake.set()

    def _run_clock(self) -> None:
        """Fail waiters whose time is over, and try locks that have no thread, as long as there are any."""
        tries_at = 0.0
        while True:
            if self.unserved and monotonic() >= tries_at:
                tries_at = monotonic() + max(_PAUSE, _PAUSE_A_KEY * len(self.unserved))
                self._try_unserved()
            with self.guard:
                self.looks_at, self._wake = math.inf, OneShotEvent()
                states = list(self.states.values())
            deadline = min((state.expire() for state in states), default=math.inf)
            with self.guard:
                self.looks_at = min(self.looks_at, deadline, tries_at if self.unserved else math.inf)
                if self.looks_at == math.inf:
                    self._has_clock = False
                    return
                wake, seconds = self._wake, self.looks_at - monotonic()
            wake.wait(max(0.0, seconds))

    def _try_unserved(self) -> None:
        """Try all locks that have no thread, each once."""
        for _ in range(len(self.unserved)):
            with self.guard:
                if not self.unserved:
                    return
                state = self.unserved.popleft()
            state.take_turn(block=False)  # it comes back to the end of the queue if the lock is not free


def _tell(answer: Callable[[T], None], outcome: T) -> None:
    """Call a waiter. What it raises must not end a thread on which all mutexes depend."""
    try:
        answer(outcome)
    except Exception:  # noqa: BLE001 - it is logged
        _log.exception("the waiter of a mutex raised an error")


_registry = _Registry()


def _reset_in_child() -> None:
    global _registry
    parents, _registry = _registry, _Registry()
    _registry.inherited += parents.inherited
    for key, state in parents.states.items():
        if state.hold is not None:
            _registry.inherited[key] += len(state.hold.entries)
            for owner in (*state.hold.entries, *state.hold.kept_for):
                owner.holds.clear()  # the parent holds them


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
