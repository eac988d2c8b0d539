"""Bounded fan-out in which whoever waits for a key holds no worker.

There is no thread that schedules: each worker takes the next item itself, so that a slow source of items never delays
a key that is handed on. While items are short, one worker does them alone and another stands by.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Executor, Future
from contextvars import copy_context
from typing import Any, Protocol, TypeAlias

import attrs

from iso_orchestrator.coordination.mutex import record_acquired, release
from iso_orchestrator.coordination.mutex_queue import Held, MutexScope, Waiter, find_hold, request
from iso_orchestrator.fanout.pace import LONG, Pace
from iso_orchestrator.fanout.settling import Settling
from iso_orchestrator.runtime.context import ItemContext, LockOwner, Scope, current_owner, entered
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.system.interrupts import Condition, OneShotEvent, start

__all__ = ["Keyed", "Outcome", "Progress", "Scheduler"]

_READ_AHEAD = 1000  # items, or 16 for each worker


Outcome: TypeAlias = tuple[Any, Callable[[], None] | None]
"""What an item came to, and what has to be called before anybody is told of it; it returns when that is on the disk."""


class Progress(Protocol):
    """What is told of each item that ends."""

    def advance(self, ok: bool) -> None:
        """One more item has ended."""
        ...


@attrs.frozen(eq=False, repr=False)
class Keyed:
    """How items are kept apart.

    Attributes:
        key_of: The key of an item, or None.
        timeout: Seconds to wait for a key that is held elsewhere; None for ever.
    """

    key_of: Callable[[Any], str | None]
    scope: MutexScope
    timeout: float | None


@attrs.define(eq=False, repr=False)
class _Task:
    index: int
    item: Any
    key: str | None
    owner: LockOwner
    hold: Held | None = None
    waiter: Waiter | None = None
    withdraw: Callable[[], bool] | None = None
    asker: int | None = None

    def __lt__(self, other: _Task) -> bool:
        return self.index < other.index


class Scheduler:
    """One `for_each`.

    Args:
        handle: The workflow's.
        work: What is done with an item.
        keyed: How items are kept apart.
        max_parallel: Items at a time.
        stop_on_error: Start nothing more after the first error.
        executor: Whose threads do it.
        progress: Told of each item that ends.
        adapts: Whether one worker alone may do short items: steps, which wait for the disk together, on threads that
            may be hired by others (what a user's executor makes of that, nobody knows).
    """

    def __init__(
        self,
        runtime: WorkflowRuntime,
        work: Callable[[Any], Outcome],
        keyed: Keyed,
        *,
        max_parallel: int,
        stop_on_error: bool,
        executor: Executor,
        progress: Progress,
        adapts: bool,
    ) -> None:
        self.outcomes: dict[int, tuple[bool, Any]] = {}
        self._runtime = runtime
        self._work = work
        self._keyed = keyed
        self._max_parallel = max_parallel
        self._stop_on_error = stop_on_error
        self._executor = executor
        self._progress = progress
        self._scope = runtime.scope()
        self._context = copy_context()
        self._parent = current_owner()
        self._changed = Condition()
        self._ready: list[_Task] = []
        self._behind: dict[str, deque[_Task]] = {}  # a key is here while an item of it is ready, asking or running
        self._granted: deque[_Task] = deque()
        self._asking: set[_Task] = set()
        self._settling: Settling[_Task] = Settling(self._changed.guard, self._finish)
        self._adapts = adapts
        self._pace = Pace()
        self._stands_by: OneShotEvent | None = None  # of the worker that does: to be woken when there is no more to do
        self._workers = 0
        self._coming = 0  # of the workers, those that have not begun
        self._running = 0  # of the workers, those that have begun: what a signal leaves unhired never does
        self._hired: set[Future[None]] = set()
        self._unfinished = 0
        self._unstarted = 0
        self._wake_at = 0  # how many may be unstarted when items are read on
        self._stopped = False
        self._abandoned = False
        self._error: BaseException | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more starts."""
        around = self._scope.batch
        return self._stopped or (around is not None and around.is_stopped)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more for what runs."""
        around = self._scope.batch
        return self._abandoned or (around is not None and around.is_abandoned)

    def run(self, items: Iterable[Any]) -> None:
        """Work on all items; the outcomes are in `outcomes`, by index.

        Raises:
            BaseException: The first error, as `for_each` says.
        """
        try:
            try:
                self._read(items)
                self._wait_until_done()
            except BaseException as error:  # noqa: BLE001 - it is raised below, when what runs has ended
                self._stop(error)
            self._wait_until_idle()
        except BaseException:
            self._abandoned = True  # a second interrupt: nobody waits any more
            raise
        if self._error is not None:
            raise self._error

    def _read(self, items: Iterable[Any]) -> None:
        limit = max(_READ_AHEAD, 16 * self._max_parallel)
        for index, item in enumerate(items):
            key = self._keyed.key_of(item)
            owner = LockOwner(parent=self._parent, is_item=True)
            if key is not None:
                find_hold(self._runtime, key, self._keyed.scope, owner)
            with self._changed.guard:
                if self._stopped:
                    return
                is_ready = self._add(_Task(index, item, key, owner))
                is_wanted = is_ready and (self._is_short_handed(0) or not self._adapts)
                is_full = self._unstarted >= limit
            if is_wanted:
                self._start_worker()
            if is_full:  # until half of them have started: to be woken for each costs more than the item
                self._wake_at = limit // 2
                self._changed.wait_until(lambda: self._has_room(limit))

    def _has_room(self, limit: int) -> bool:
        """Whether to read on: half of them have started, or the others wait for their keys and workers are idle."""
        if self._unstarted <= self._wake_at or self._stopped:
            return True
        return self._unstarted < limit and not self._ready and not self._granted

    def _add(self, task: _Task) -> bool:
        """Note an item; whether it can be worked on. Under the lock."""
        self._unfinished += 1
        self._unstarted += 1
        if task.key is not None and task.key in self._behind:
            self._behind[task.key].append(task)
            return False
        if task.key is not None:
            self._behind[task.key] = deque()
        heapq.heappush(self._ready, task)
        return True

    def _start_worker(self) -> None:
        """Start a worker, if there is one to spare.

        Not under the lock: an executor that is shut down calls `_on_worker_done` under its own, which `submit` needs.
        """
        with self._changed.guard:
            if self._workers >= self._max_parallel:
                return
            self._workers += 1
            self._coming += 1
        try:
            future = start(lambda: self._executor.submit(self._worker))
        except Exception as error:  # noqa: BLE001 - the executor was shut down, or refuses it as it likes
            with self._changed.guard:
                self._workers -= 1
                self._coming -= 1
                if self._workers == 0:
                    self._give_up(error)
                else:
                    self._max_parallel = self._workers  # those that are there go on
            return
        with self._changed.guard:
            self._hired.add(future)
        future.add_done_callback(self._on_worker_done)

    def _on_worker_done(self, future: Future[None]) -> None:
        """A worker has ended, or never began: its executor was shut down or is broken, or it is not needed."""
        error: BaseException | None
        if future.cancelled():
            error = CancelledError("the executor was shut down before all items had run")
        else:
            error = future.exception()
        with self._changed.guard:
            self._hired.discard(future)
            if error is None:
                return
            self._workers -= 1
            self._coming -= 1
            self._changed.notify()
            if self._workers == 0 and self._unfinished and not self._stopped:
                self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Stop, in whatever thread that is. Under the lock."""
        self._error = error if self._error is None else self._error
        self._stopped = True
        self._changed.notify()

    def _worker(self) -> None:
        with self._changed.guard:
            self._running += 1
            self._coming -= 1
        try:
            try:
                while (task := self._next()) is not None:
                    self._work_on(task)
            finally:
                self._settling.rest()
        except BaseException as error:  # noqa: BLE001 - it goes to the caller's thread
            self._stop(error)
            with self._changed.guard:
                self._workers -= 1
        finally:
            with self._changed.guard:
                self._running -= 1
                self._changed.notify()

    def _work_on(self, task: _Task) -> None:
        if task.key is not None and task.hold is None:
            self._request_key(task)
            return
        ok, value, settle = self._context.copy().run(self._do, task)
        with self._changed.guard:
            self._pace.end()
            if self._stands_by is not None and not self._pace.is_short:
                self._stands_by.set()
        if settle is None:
            self._finish(task, ok, value)
        else:
            # When the next item turns out to be long, it is the one who stands by that settles this one.
            self._settling.add(task, value, settle, is_left=lambda: self._stands_by is not None and bool(self._ready))

    def _next(self) -> _Task | None:
        """What this worker does next; None when it is to end."""
        has_hired = False
        while True:
            latch = None
            with self._changed.guard:
                is_over = self._stopped or not (self._granted or self._ready)
                if is_over or (self._one_is_enough() and self._stands_by is not None):
                    self._workers -= 1
                    if is_over and self._stands_by is not None:
                        self._stands_by.set()
                    self._changed.notify()
                    return None
                if self._one_is_enough():
                    latch = self._stands_by = OneShotEvent()
                elif has_hired or not self._is_short_handed(1):
                    return self._take_next()
            has_hired = latch is None
            if latch is not None:
                self._stand_by(latch)
            else:  # before it takes an item, which would begin behind the next one's
                self._start_worker()

    def _one_is_enough(self) -> bool:
        """Whether somebody works alone, and should: what has a key waits for the disk by itself."""
        if not self._adapts or self._granted or not self._ready or self._ready[0].key is not None:
            return False
        return self._pace.one_is_enough()

    def _is_short_handed(self, here: int) -> bool:
        """Whether one more is to be hired, so that nothing is ready that no worker looks at; *here* are about to."""
        is_attended = self._coming > 0 or self._stands_by is not None or not self._adapts
        return len(self._ready) > here and self._workers < self._max_parallel and not is_attended

    def _take_next(self) -> _Task:
        task = self._granted.popleft() if self._granted else heapq.heappop(self._ready)
        if task.key is None or task.hold is not None:
            self._pace.begin()
            self._count_started()
        if not self._ready and not self._granted:
            self._changed.notify()  # who reads items has stopped, perhaps, since others wait for their keys
        return task

    def _stand_by(self, latch: OneShotEvent) -> None:
        """Look every so often whether who works alone still gets on; when not, see to it that others go on."""
        is_alone, is_wanted = True, False
        while is_alone:
            latch.wait(LONG)
            with self._changed.guard:
                is_alone = self._one_is_enough() and not self._stopped
                latch = OneShotEvent()
                self._stands_by = latch if is_alone else None
                if not is_alone and self._ready and self._pace.is_anybody_at_work and not self._settling.is_at_it:
                    self._pace.found_long()
                is_wanted = not is_alone and not self._stopped and self._is_short_handed(0)
        if is_wanted:  # for as long as it takes to settle
            self._start_worker()
        self._settling.rest()

    def _count_started(self) -> None:
        self._unstarted -= 1
        if self._unstarted == self._wake_at:
            self._changed.notify()

    def _request_key(self, task: _Task) -> None:
        """Ask for the item's key; it comes back in `_granted` at once or when others let it go."""
        assert task.key is not None
        task.asker = threading.get_ident()
        task.waiter = Waiter(
            task.owner,
            granted=lambda hold: self._take(task, hold),
            failed=lambda error: self._refuse(task, error),
        )
        with self._changed.guard:
            self._asking.add(task)
        entry = request(self._runtime, task.key, self._keyed.scope, task.waiter, self._keyed.timeout)
        waiter = task.waiter
        with self._changed.guard:
            task.asker = None
            if task not in self._asking:
                return
            task.withdraw = lambda: entry.withdraw(waiter)
            stopped = self._stopped
        if stopped:
            self._withdraw(task)

    def _take(self, task: _Task, hold: Held) -> None:
        with self._changed.guard:
            self._asking.discard(task)
            if task.hold is None and not self._stopped:  # without a call, so that a signal comes before both or behind
                self._granted += [task]
                task.hold = hold
        if task.hold is None:
            hold.release()
        elif task.asker != threading.get_ident():
            self._start_worker()

    def _refuse(self, task: _Task, error: BaseException) -> None:
        with self._changed.guard:
            self._asking.discard(task)
        self._finish_unworked(task, error)

    def _withdraw(self, task: _Task) -> bool:
        if task.withdraw is None or not task.withdraw():
            return False
        with self._changed.guard:
            self._asking.discard(task)
            self._changed.notify()
        return True

    def _do(self, task: _Task) -> tuple[bool, Any, Callable[[], None] | None]:
        around = self._scope
        scope = Scope(
            around.workflow,
            around.runs,
            task.owner,
            around.step,
            ItemContext(task.index),
            around.attempt,
            around.fences,
            self,
        )
        with entered(scope):
            try:
                if task.hold is not None:
                    return True, self._do_held(task, task.hold), None
                return True, *self._work(task.item)
            except BaseException as error:  # noqa: BLE001 - it is the item's outcome, or the caller's error
                return False, error, None

    def _do_held(self, task: _Task, hold: Held) -> Any:
        assert task.key is not None
        try:
            record_acquired(self._runtime, task.key)
            value, settle = self._work(task.item)
            if settle is not None:
                settle()
        except BaseException as error:
            release(self._runtime, task.key, hold, error)
            raise
        release(self._runtime, task.key, hold, None)
        return value

    def _finish(self, task: _Task, ok: bool, value: Any) -> None:
        with self._changed.guard:
            self.outcomes[task.index] = (ok, value)
            self._unfinished -= 1
            if task.key is not None:
                behind = self._behind[task.key]
                if behind:
                    heapq.heappush(self._ready, behind.popleft())
                else:
                    del self._behind[task.key]
            if self._unfinished == 0:
                self._changed.notify()
        self._progress.advance(ok)
        if ok:
            return
        if self._stop_on_error or not isinstance(value, Exception):
            value.add_note(f"iso-orchestrator: raised by item {task.index} of for_each")
            self._stop(value)

    def _finish_unworked(self, task: _Task, error: BaseException) -> None:
        """An item that never got its key: no worker is at hand to go on with the next."""
        with self._changed.guard:
            self._count_started()
        self._finish(task, False, error)
        with self._changed.guard:
            is_ready = bool(self._ready) and not self._stopped
        if is_ready:
            self._start_worker()

    def _stop(self, error: BaseException) -> None:
        """Start nothing more, and let go of what waits."""
        with self._changed.guard:
            self._error = error if self._error is None else self._error  # an error may be falsy
            self._stopped = True
            asking = list(self._asking)
            granted = list(self._granted)
            self._granted.clear()
            self._changed.notify()
        for task in granted:
            if task.hold is not None:
                task.hold.release()
        for task in asking:
            self._withdraw(task)

    def _wait_until_done(self) -> None:
        self._changed.wait_until(lambda: self._unfinished == 0 or self._stopped)

    def _wait_until_idle(self) -> None:
        with self._changed.guard:
            unneeded = list(self._hired)
        for future in unneeded:
            future.cancel()  # those that an executor has not begun yet
        self._changed.wait_until(lambda: self._running == 0)
