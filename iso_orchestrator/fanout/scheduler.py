"""Run the items of one `for_each`: a bounded number at a time, and items of one key one after the other.

An item without a key is *ready*, then *running*, then done. An item with a key passes through more states:

- queued: an earlier item of the batch has the same key and is not done;
- ready: the next free worker takes the item, and requests the mutex of the key;
- requested: another batch, thread or process holds the mutex;
- ready once more: the item holds the mutex, and waits for a worker;
- running, then done: the mutex is free, and the next queued item of the key becomes ready.

An item whose step is limited, or runs in another process, is *parked*: it gives its worker and its mutex back, and
becomes ready again when the limit or the other run may be over. A thread looks for that as long as items are parked.

Only running items occupy workers. There is no scheduling thread: the calling thread reads the items, and each worker
takes the next ready item by itself, so that a slow source of items never delays an item that is ready. A worker ends
when no item is ready, and the thread that makes an item ready starts another one.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from contextvars import copy_context
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs

from iso_orchestrator.coordination.mutex import MutexPatience, holders, look_after, record_acquired, release
from iso_orchestrator.coordination.mutex_queue import (
    Held,
    MutexState,
    StateKey,
    Waiter,
    find_hold,
    request,
    state_key_of,
)
from iso_orchestrator.errors import Limited
from iso_orchestrator.fanout.parking import ParkedItems
from iso_orchestrator.fanout.progress import Progress
from iso_orchestrator.fanout.report import BatchReport
from iso_orchestrator.fanout.summary import Fulfilled, Rejected, note_item
from iso_orchestrator.fanout.workers import Workers
from iso_orchestrator.runtime.context import ItemContext, LockOwner, current_owner, make_current, refuse_interrupted
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.waits import Node, Wait, WaitingNode, find_deadlock, noted
from iso_orchestrator.steps.blocked import Blocked
from iso_orchestrator.system.events import LONGEST_WAIT, Condition, OneShotEvent
from iso_orchestrator.system.interrupts import deferred, unmasked

if TYPE_CHECKING:
    from iso_orchestrator.fanout.for_each import ForEachOptions

_READ_AHEAD = 1000  # items, or 16 for each worker if that is more


def _ignore(*_: object) -> None:
    """Take the answer to a request of an item that is done."""


@attrs.define(eq=False)
class _Item:
    index: int
    value: Any
    key: str | None
    owner: LockOwner
    waiter: Waiter | None = None
    requested_by: int | None = None  # the thread that is in `request`
    mutex: MutexState | None = None  # set when `request` has returned without an answer
    node: WaitingNode | None = None  # set with it
    patience: MutexPatience | None = None  # likewise
    hold: Held | None = None
    blocked: Blocked | None = None  # set when it is parked; its call is continued


class Scheduler:
    """Run one `for_each`.

    Args:
        runtime: The workflow's.
        work: The function of one item. It may return `Blocked`.
        on_interrupt: Is told of the running items.
        key_of: Returns the mutex key of an item, or None.
        options: Those of the call.
        executor: Provides the threads of the workers; None: the calling thread is the only one.
        progress: Is told of each item that is done.
        name: The function's, for the log.
    """

    def __init__(
        self,
        runtime: WorkflowRuntime,
        work: Callable[[Any], Any],
        *,
        on_interrupt: Callable[[list[Any]], object],
        key_of: Callable[[Any], str | None],
        options: ForEachOptions,
        executor: Executor | None,
        progress: Progress,
        name: str,
    ) -> None:
        self._runtime = runtime
        self._work = work
        self._on_interrupt = on_interrupt
        self._key_of = key_of
        self._options = options
        self._read_ahead = max(_READ_AHEAD, 16 * options.max_parallel)
        self._progress = progress
        self._scope = runtime.scope()
        self._context = copy_context()
        self._parent = current_owner()
        around = self._scope.batch
        self.report = BatchReport(runtime, name, self._parent, getattr(around, "report", None))
        progress.watch(lambda failed: self.report.describe(len(self._workers.running), failed))
        self._parked = ParkedItems[_Item](self._on_free, lambda: self.is_stopped, self._fail)
        self._changed = Condition()
        self._workers = Workers(
            executor,
            options.max_parallel,
            self._changed,
            work=self._work_on_items,
            has_work=lambda: bool(self._ready) and not self._stopped,
            on_error=self._stop,
            on_broken=self._fail_if_unfinished,  # the calling thread drops what waits
        )
        # What follows changes under the lock `_changed.guard` only.
        self._queued: dict[str, deque[_Item]] = {}  # has the key of each item that is ready, requested or running
        self._ready: list[tuple[bool, int, _Item]] = []  # a heap: first the items that hold a mutex, then by index
        self._requested: set[_Item] = set()
        self._outcomes: dict[int, Fulfilled[Any] | Rejected] = {}
        self._unfinished = 0  # items that were read and are not done
        self._unstarted = 0  # items that were read and have not run
        self._replayed = 0  # items whose steps were all on record
        self._running: dict[int, Any] = {}  # items, by index
        self._stopped = False
        self._interrupted = False
        self._error: BaseException | None = None
        # Runs the items that hold their mutex and have no thread yet.
        self._next_worker = WaitingNode(Wait(self, "", self._workers.blockers_of_next, any_will_do=True))

    @property
    def is_stopped(self) -> bool:
        """Whether no more items start, here or in the `for_each` around this one."""
        around = self._scope.batch
        return self._stopped or (around is not None and around.is_stopped)

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C has come in the calling thread, here or in the `for_each` around this one."""
        around = self._scope.batch
        return self._interrupted or (around is not None and around.is_interrupted)

    def run(self, items: Iterable[Any], total: int | None) -> list[Fulfilled[Any] | Rejected]:
        """Run all items, of which there are *total*, if that is known; their outcomes in the order of the items.

        The caller masks Ctrl-C. What is not a wait or the user's code must not be interrupted: a second Ctrl-C right
        after the first would otherwise leave items starting in other threads.

        Raises:
            BaseException: The first error, as `Workflow.for_each` says.
        """
        try:
            try:
                try:
                    self._read(iter(items), total)
                finally:
                    if isinstance(items, Generator):  # an error's traceback may keep it, and a mutex that it holds
                        with unmasked():
                            items.close()
                self._changed.wait_until(lambda: self._unfinished == 0 or self._stopped, self._wait)
            except Exception as error:  # noqa: BLE001 - it is raised below, after the running items have ended
                self._fail(error)
            self._wait_for_workers()
        except BaseException as error:  # noqa: BLE001 - likewise
            self._interrupt(error)
            self._wait_for_workers()
        # Tracebacks have this frame, and frames with this scheduler: if these kept the errors, they would form a cycle.
        outcomes, self._outcomes = self._outcomes, {}
        self._next_worker.wait = None  # which refers to this scheduler
        self._workers.forget()  # likewise
        del self._parked
        first, self._error = self._error, None
        self.report.end(outcomes.values(), self._replayed, self._unfinished, is_stopped=self._stopped)
        try:
            if first is not None:
                raise first
            return [outcome for _, outcome in sorted(outcomes.items())]
        finally:
            del first, outcomes

    # Items are read in the calling thread.

    def _read(self, items: Iterator[Any], total: int | None) -> None:
        self.report.begin(total, self._options.max_parallel)
        for index in count():
            with unmasked():
                try:
                    value = next(items)
                except StopIteration:
                    return
                key = self._key_of(value)
            owner = LockOwner(self._parent, ItemContext(index), node=self._next_worker, batch=self.report.batch)
            if key is not None:
                find_hold(self._state_key(key), owner)  # raises if the caller holds the mutex
            refuse_interrupted()
            with self._changed.guard:
                if self._stopped:
                    return
                self._add(_Item(index, value, key, owner))
                is_full = self._unstarted >= self._read_ahead
            self._workers.start()
            self._workers.work_here()
            if self._error is not None:
                return  # the next item may take its time
            if is_full:
                self._changed.wait_until(self._has_room, self._wait)

    def _add(self, item: _Item) -> None:
        self._unfinished += 1
        self._unstarted += 1
        if item.key is not None and item.key in self._queued:
            self._queued[item.key].append(item)
            return
        if item.key is not None:
            self._queued[item.key] = deque()
        self._make_ready(item)

    def _has_room(self) -> bool:
        # After half of the read-ahead has started: to wake this thread for each item takes longer than a short item.
        if self._stopped or self._unstarted <= self._read_ahead // 2:
            return True
        return self._unstarted < self._read_ahead and not self._ready  # most items wait for keys, and workers are free

    def _make_ready(self, item: _Item) -> None:
        heapq.heappush(self._ready, (item.hold is None, item.index, item))

    # Workers.

    def _work_on_items(self) -> None:
        while (item := self._take()) is not None:
            if item.key is not None and item.hold is None:
                self._request_key(item)
            else:
                # A name for the outcome would form a cycle with an error, whose traceback leads to this frame.
                self._end_call(item, *self._context.copy().run(self._call, item))

    def _take(self) -> _Item | None:
        """The next ready item; None when the worker, which is no longer counted, has to end."""
        with self._changed.guard:
            if self._stopped or not self._ready or self.is_interrupted:
                self._workers.end()
                return None
            *_, item = heapq.heappop(self._ready)
            if item.key is None or item.hold is not None:
                self._count_started()
            if not self._ready:
                self._changed.notify()  # for `_has_room`
            return item

    def _count_started(self) -> None:
        self._unstarted -= 1
        if self._unstarted == self._read_ahead // 2:
            self._changed.notify()  # for `_has_room`

    def _call(self, item: _Item) -> tuple[bool, Any]:
        item.owner.move_here()
        self._running[item.index] = item.value
        # In a context of its own: nothing is to be restored.
        make_current(attrs.evolve(self._scope, owner=item.owner, item=ItemContext(item.index), batch=self))
        try:
            return True, self._call_body(item) if item.hold is None else self._call_holding(item, item.hold)
        except BaseException as error:  # noqa: BLE001 - it is the item's outcome
            return False, error
        finally:
            del self._running[item.index]

    def _call_holding(self, item: _Item, hold: Held) -> Any:
        key = item.key
        assert key is not None
        with ExitStack() as stack:
            stack.push(lambda _, error, __: release(self._runtime, key, hold, item.owner, error))
            with self._runtime.acquire() as session:
                record_acquired(session, self._runtime.clock, key, hold.waiter)
            return self._call_body(item)

    def _call_body(self, item: _Item) -> Any:
        with deferred(lambda: self._interrupt(KeyboardInterrupt())):  # has an effect in the main thread only
            refuse_interrupted()
            return self._work(item.value) if item.blocked is None else item.blocked.call.run()

    def _end_call(self, item: _Item, ok: bool, value: Any) -> None:
        if isinstance(value, Blocked):
            self._park(item, value)
        else:
            self._finish(item, ok, value)

    def _finish(self, item: _Item, ok: bool, value: Any) -> None:
        with self._changed.guard:
            self._end_request(item)
            self._outcomes[item.index] = Fulfilled(value) if ok else Rejected(value, item.index, item.value)
            self._unfinished -= 1
            self._replayed += bool(ok and item.owner.is_replayed)
            if item.key is not None:
                self._end_key(item.key)
            if self._unfinished == 0:
                self._changed.notify()
        if ok or isinstance(value, Exception):  # else it was interrupted, and goes on in the next run
            self._progress.advance(ok)
        if not ok and (self._options.stop_on_error or not isinstance(value, Exception)):
            note_item(value, item.index)
            self._stop(value)
        if not ok or item.owner.failures:
            is_dropped = isinstance(value, Limited) and self.is_stopped
            self.report.item(item.index, item.owner, None if ok or is_dropped else value, value is self._error)

    def _end_request(self, item: _Item) -> None:
        if item.waiter is not None:  # the hold refers to the waiter, whose answers refer to the item
            item.waiter.granted = item.waiter.failed = _ignore
            item.node = item.patience = None

    def _end_key(self, key: str) -> None:
        if self._queued[key]:
            self._make_ready(self._queued[key].popleft())
        else:
            del self._queued[key]

    # Mutexes are requested in a worker. The answer comes in any thread, perhaps before `request` returns.

    def _request_key(self, item: _Item) -> None:
        assert item.key is not None
        item.requested_by = threading.get_ident()
        item.waiter = Waiter(
            item.owner,
            granted=lambda hold: self._on_granted(item, hold),
            failed=lambda error: self._on_request_failed(item, error),
        )
        with self._changed.guard:
            self._requested.add(item)
        with self._runtime.acquire() as session:
            mutex = request(session, self._state_key(item.key), item.waiter, self._options.mutex_timeout)
        with self._changed.guard:
            item.requested_by = None
            if item not in self._requested:
                return
            item.mutex = mutex
            item.patience = MutexPatience.of(item.waiter, self._runtime)
            item.node = WaitingNode(Wait(item.owner, f"mutex {item.key!r}", lambda: self._blockers_of_request(item)))
            stopped = self._stopped
        if stopped:
            self._withdraw(item)
        else:
            self._refuse_deadlock(item)

    def _state_key(self, key: str) -> StateKey:
        return state_key_of(self._runtime, key, self._options.mutex_scope)

    def _on_granted(self, item: _Item, hold: Held) -> None:
        with self._changed.guard:
            self._requested.discard(item)
            if item.hold is None and not self._stopped:  # after an interrupt the mutex calls this again
                item.hold = hold
                self._make_ready(item)
        if item.hold is None:
            hold.leave(item.owner)
        elif item.requested_by != threading.get_ident():  # else this thread is a worker, and takes the item itself
            self._workers.start()

    def _on_request_failed(self, item: _Item, error: BaseException) -> None:
        with self._changed.guard:
            self._requested.discard(item)
        self._finish_unstarted(item, error)

    def _withdraw(self, item: _Item) -> bool:
        """Cancel a request; False if it has been answered or cancelled already."""
        if item.mutex is None or item.waiter is None or not item.mutex.withdraw(item.waiter):
            return False
        with self._changed.guard:
            self._requested.discard(item)
        return True

    def _finish_unstarted(self, item: _Item, error: BaseException) -> None:
        with self._changed.guard:
            self._count_started()
        self._finish(item, False, error)
        self._workers.start()  # for the next item of the key

    # Parked items.

    def _park(self, item: _Item, blocked: Blocked) -> None:
        with self._changed.guard:
            self._end_request(item)
            item.hold = item.waiter = item.mutex = None
            item.owner.node = self._next_worker
            item.blocked = blocked
            self._unstarted += 1
        self._parked.add(item, blocked)
        if self._stopped:
            self._parked.drop()

    def _on_free(self, items: Sequence[_Item]) -> None:
        with self._changed.guard:
            for item in items:
                self._make_ready(item)
        for _ in range(min(len(items), self._workers.limit)):
            self._workers.start()

    # What waits for what.

    def _wait(self, event: OneShotEvent) -> None:
        """Wait in the calling thread, or work where that is the worker.

        Raises:
            DeadlockError: No worker ever begins. Any other deadlock ends the wait of an item instead.
        """
        if self._workers.executor is None and self._ready:
            if not self._stopped:
                refuse_interrupted()  # that the `for_each` around this one was, which starts no item here either
            self._workers.work_here()
            return
        with noted(Wait(self._parent, "its for_each", self._blockers)) as node:
            while True:
                with self._changed.guard:
                    requested = sorted((item for item in self._requested if item.mutex), key=lambda item: item.index)
                    has_begun = bool(self._workers.running or self._requested)
                error = None if has_begun else find_deadlock(node)
                if error is not None:
                    raise error
                self._progress.refresh()
                if event.wait(LONGEST_WAIT):
                    return
                if not self._stopped:
                    refuse_interrupted()
                for item in requested:
                    self._refuse_deadlock(item)
                look_after([item.patience for item in requested])

    def _refuse_deadlock(self, item: _Item) -> None:
        error = None if item.node is None else find_deadlock(item.node)
        if error is not None and self._withdraw(item):
            self._finish_unstarted(item, error)

    def _blockers(self) -> Sequence[Node]:
        with self._changed.guard:
            nodes = [*self._workers.running, *(item.node for item in self._requested if item.node is not None)]
            return [*nodes, self._next_worker] if self._ready else nodes

    def _blockers_of_request(self, item: _Item) -> Sequence[Node]:
        has_timeout = self._options.mutex_timeout is not None
        return () if item.waiter is None or item not in self._requested or has_timeout else holders(item.waiter)

    # The end of a batch that fails.

    def _stop(self, error: BaseException) -> None:
        """Start no more items, and drop those that wait. The first error of several is kept."""
        self._fail(error)
        self._drop_waiting()

    def _fail(self, error: BaseException) -> None:
        with self._changed.guard:
            if not self._stopped:
                self._error, self._stopped = error, True
            self._changed.notify()

    def _fail_if_unfinished(self, error: BaseException) -> None:
        if self._unfinished:
            self._fail(error)

    def _interrupt(self, error: BaseException) -> None:
        """Start no more items, end the commands and waits of the running ones, and let plain bodies finish."""
        was_interrupted = self.is_interrupted
        with self._changed.guard:
            self._error, self._stopped, self._interrupted = error, True, True
            self._changed.notify()
        if not was_interrupted:
            self._on_interrupt(list(self._running.values()))

    def _drop_waiting(self) -> None:
        with self._changed.guard:
            ready, self._ready = self._ready, []
            requested = list(self._requested)
        self._parked.drop()
        for *_, item in ready:
            if item.hold is not None:
                item.hold.leave(item.owner)
        for item in requested:
            self._withdraw(item)

    def _wait_for_workers(self) -> None:
        self._drop_waiting()
        self._workers.cancel()
        self._changed.wait_until(lambda: not self._workers.running, self._wait)
