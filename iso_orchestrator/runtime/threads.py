"""Threads for the user's code: the pool of `.submit`, and a call that its caller leaves after a time-out."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar

import attrs

from iso_orchestrator.errors import StepTimeoutError
from iso_orchestrator.notes import contextmanager
from iso_orchestrator.runtime.context import Attempt, current_owner, refuse_interrupted, run_attempt
from iso_orchestrator.runtime.waits import Node, Wait, WaitingNode, current_node, wait_until
from iso_orchestrator.system.events import OneShotEvent, start
from iso_orchestrator.system.interrupts import interruptible, masked, undo_on_error

T = TypeVar("T")


class Pool:
    """Threads for submitted work, and the futures of each run.

    A thread is started if there is work and fewer than *max_workers* work, and ends when there is none. One that waits
    for a future does not count: what it waits for is the next to begin, in another thread if it must. So pools whose
    threads all wait for what these pools have to run go on. Java's `ForkJoinPool` compensates for blocked threads
    likewise (Lea 2000, "A Java Fork/Join Framework").

    Args:
        max_workers: Threads that work at one time, at most.
    """

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._queue: OrderedDict[_WorkFuture[Any], tuple[Context, Callable[[], Any]]] = OrderedDict()
        self._unfinished: dict[_WorkFuture[Any], object] = {}
        self._workers: list[_Worker] = []  # those that count

    def submit(self, name: str, context: Context, work: Callable[[], T], run: object) -> Future[T]:
        """Call *work*, the step *name*, in *context* and in one of the threads, as a part of *run*."""
        self._leave_parents_threads()
        future: _WorkFuture[T] = _WorkFuture(name)
        with masked(), self._guard:
            future.node = WaitingNode(Wait(future, "", self._blockers, any_will_do=True))
            self._queue[future] = context, work
            with undo_on_error(lambda: self._queue.pop(future)):
                self._grow()
            self._unfinished[future] = run
        future.add_done_callback(self._finished)
        return future

    def running(self, run: object) -> list[str]:
        """The names of the steps of *run* that threads of this pool work on."""
        return [future.name for future in self._unfinished_of(run) if future.running()]

    def drain(self, run: object, *, cancel: bool) -> None:
        """Wait for all futures of *run*; *cancel* those that have not begun."""
        self._leave_parents_threads()
        while mine := self._unfinished_of(run):
            if cancel:
                for future in mine:
                    future.cancel()
            _wait_for(mine)

    def close(self) -> None:
        """Wait for all futures; in a thread of the pool, wait for none.

        Raises:
            DeadlockError: One of them waits for this thread.
        """
        self._leave_parents_threads()
        worker = _worker.get()
        if worker is None or worker.pool is not self or worker.node is not current_node():
            _wait_for(self._unfinished_of(None))

    def begin_wait(self, worker: _Worker, futures: Sequence[_WorkFuture[Any]]) -> None:
        """Note that *worker*, or a thread that works for it, waits for *futures*, which are the next to begin."""
        with masked(), self._guard:
            for future in reversed(futures):
                if future in self._queue:
                    self._queue.move_to_end(future, last=False)
            worker.waits += 1
            if worker in self._workers:
                self._workers.remove(worker)
                with undo_on_error(lambda: self._count_again(worker)):
                    self._grow()

    def end_wait(self, worker: _Worker) -> None:
        """Note that such a wait is over. Where too many threads work now, the first that has done its work ends."""
        with masked(), self._guard:
            self._count_again(worker)

    def _count_again(self, worker: _Worker) -> None:
        worker.waits -= 1
        if not worker.waits and not worker.has_ended:
            self._workers.append(worker)

    def _grow(self) -> None:
        if not self._queue or len(self._workers) >= self._max_workers:
            return
        worker = _Worker(self)
        thread = threading.Thread(target=self._work, args=(worker,), name="iso-orchestrator submit", daemon=False)
        self._workers.append(worker)
        try:
            start(thread.start)
        finally:
            if thread.ident is None:  # it could not be started
                self._workers.remove(worker)

    def _work(self, worker: _Worker) -> None:
        worker.node = current_node()
        while call := self._next(worker):
            _fulfil(call)

    def _next(self, worker: _Worker) -> list[tuple[_WorkFuture[Any], Callable[[], Any]]]:
        with self._guard:
            if not self._queue or len(self._workers) > self._max_workers:
                worker.has_ended = True
                if worker in self._workers:
                    self._workers.remove(worker)
                return []
            future, (context, work) = self._queue.popitem(last=False)
        future.run_by(current_node())
        context.run(_worker.set, worker)
        return [(future, partial(context.run, work))]

    def _blockers(self) -> Sequence[Node]:
        """Those of which one has to end its work before the next future begins; none: there may be more."""
        nodes = [worker.node for worker in list(self._workers) if worker.node is not None]
        return nodes if len(nodes) >= self._max_workers else ()

    def _unfinished_of(self, run: object) -> list[_WorkFuture[Any]]:
        """The futures of *run*; None: all."""
        with self._guard:
            return [
                future for future, of in self._unfinished.items() if (run is None or of is run) and not future.done()
            ]

    def _finished(self, future: Future[Any]) -> None:
        assert isinstance(future, _WorkFuture)
        future.node = None  # it refers to the future
        with self._guard:
            self._unfinished.pop(future, None)

    def _leave_parents_threads(self) -> None:
        """In a forked child: the threads and their futures are the parent's."""
        if self._pid != os.getpid():
            self.__init__(self._max_workers)  # type: ignore[misc]  # a new pool in the place of the old


@attrs.define(eq=False)
class _Worker:
    """A thread of a pool.

    Attributes:
        node: The thread; None before it has begun.
        waits: How many threads that work for it wait for a future: itself, or those of a timeout or a `for_each`.
        has_ended: Whether the thread has, although a copy of its context may still be used.
    """

    pool: Pool
    pid: int = attrs.field(factory=os.getpid)
    node: Node | None = None
    waits: int = 0
    has_ended: bool = False


_worker: ContextVar[_Worker | None] = ContextVar("iso_orchestrator_worker", default=None)


@contextmanager
def _waiting(futures: Sequence[_WorkFuture[Any]]) -> Iterator[None]:
    """Wait for *futures* inside of the `with`."""
    worker = _worker.get()
    if worker is None or worker.pid != os.getpid():
        yield
        return
    worker.pool.begin_wait(worker, futures)
    try:
        yield
    finally:
        worker.pool.end_wait(worker)


@attrs.define(eq=False)
class _WaiterEvent:
    """What `concurrent.futures.wait` or `as_completed` waits for: *event*, and a note of the wait.

    Attributes:
        futures: Those that are waited for, as far as they are of a pool.
    """

    event: Any
    futures: list[weakref.ref[_WorkFuture[Any]]] = attrs.field(factory=list)

    def wait(self, timeout: float | None = None) -> object:
        with _waiting([future for each in self.futures if (future := each()) is not None]):
            return self.event.wait(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.event, name)


class _Waiters(list[Any]):
    """What `concurrent.futures` has to tell of the end of *future*: the only sign that a thread waits for it there."""

    def __init__(self, future: _WorkFuture[Any]) -> None:
        self._future = weakref.ref(future)

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _WaiterEvent):
            waiter.event = _WaiterEvent(waiter.event)
        waiter.event.futures.append(self._future)
        super().append(waiter)


class _WorkFuture(Future[T]):
    """A future that also raises errors whose truth value is False, which the standard library's ignores.

    Attributes:
        name: The step's.
        node: What it waits for; None once it is done.
    """

    node: WaitingNode | None = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._waiters = _Waiters(self)

    def run_by(self, thread: Node) -> None:
        """Note which thread runs it."""
        if self.node is not None:
            self.node.wait = Wait(self, "", lambda: () if self.done() else (thread,))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if timeout is None:
            _wait_for([self], refuse_interrupted)
        try:
            if self.done():
                return super().exception()
            with _waiting([self]):
                return super().exception(timeout)
        except CancelledError:
            refuse_interrupted()  # otherwise a body could take Ctrl-C for a failure, and return as if it were done
            raise

    def result(self, timeout: float | None = None) -> T:
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del self, error  # its traceback has this frame: without this they would form a cycle
        return super().result(timeout)


def _wait_for(futures: Sequence[_WorkFuture[Any]], look: Callable[[], object] = lambda: None) -> None:
    """Wait until all futures are done; *look* is called each second."""

    def is_over(seconds: float) -> bool:
        with interruptible():
            return not wait(futures, seconds).not_done

    def blockers() -> Sequence[Node]:
        return [node for future in futures if (node := future.node) is not None and not future.done()]

    if not all(future.done() for future in futures):
        with _waiting(futures):
            wait_until(is_over, Wait(current_owner(), "a submitted step", blockers), look)


def _fulfil(call: list[tuple[_WorkFuture[T], Callable[[], T]]]) -> None:
    future, work = call.pop()  # an error's traceback has this frame and those around it: if they kept these two,
    if not future.set_running_or_notify_cancel():
        return
    try:
        value = work()
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)
        del future, work  # they and the error would form a cycle
    else:
        future.set_result(value)


def run_attempt_with_timeout(attempt: Attempt, body: Callable[[], T], timeout: float) -> T:
    """`run_attempt` in a thread of its own, which is left to itself after *timeout* seconds.

    The mutexes that are held around it stay held until the thread ends. But it may not enter them again: its caller,
    which no longer waits for it, may be inside.

    Raises:
        StepTimeoutError: The time is over.
    """
    owner, name = current_owner(), attempt.flight.name
    future: _WorkFuture[T] = _WorkFuture(name)
    holds = dict.fromkeys(hold for link in owner.chain() for hold in link.holds)
    at_end: list[Callable[[], None]] = []
    guard = threading.Lock()
    ended = OneShotEvent()

    def work() -> None:
        owner.move_here()
        _fulfil([(future, partial(run_attempt, attempt, body))])
        with guard:
            ended.set()
        for release in at_end:
            release()

    thread = threading.Thread(
        target=copy_context().run, args=(work,), name=f"iso-orchestrator step {name}"[:60], daemon=True
    )
    try:
        start(thread.start)
        ended.wait(timeout)
    finally:
        with masked(), guard:
            is_left = thread.ident is not None and not ended.is_set()  # None: it could not be started
            if is_left:
                at_end.extend(hold.keep_for(owner) for hold in holds)
                owner.parent = attempt.parent = None
    if is_left:
        raise StepTimeoutError(name, timeout)
    owner.move_here()
    return future.result()
