"""Threads for the user's code: the pool of `.submit`, and a call that its caller leaves after a time-out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from iso_orchestrator.errors import StepTimeoutError
from iso_orchestrator.runtime.context import Attempt, current_owner, run_attempt
from iso_orchestrator.runtime.waits import Node, Wait, WaitingNode, current_node, wait_until
from iso_orchestrator.system.interrupts import OneShotEvent, masked, start, unmasked

T = TypeVar("T")


class Pool:
    """Threads, started when they are needed, and the futures of each run.

    Args:
        max_workers: Threads at most.
    """

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._executor: ThreadPoolExecutor | None = None
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._unfinished: dict[_WorkFuture[Any], object] = {}
        self._here = threading.local()  # has an attribute in threads of the pool
        self._threads = _Threads(max_workers, self._here)

    def submit(self, work: Callable[[], T], run: object) -> Future[T]:
        """Call *work* in one of the threads, as a part of *run*."""
        self._leave_parents_threads()
        future: _WorkFuture[T] = _WorkFuture()
        with masked(), self._guard:
            if self._executor is None:
                self._threads = _Threads(self._max_workers, self._here)
                self._executor = ThreadPoolExecutor(self._max_workers, "iso-orchestrator", self._threads.begin)
            future.node = WaitingNode(Wait(future, "", self._threads.blockers, any_will_do=True))
            self._executor.submit(_run, [(future, work)])
            self._unfinished[future] = run
        future.add_done_callback(self._finished)
        return future

    def drain(self, run: object, *, cancel: bool) -> None:
        """Wait for all futures of *run*; *cancel* those that have not begun."""
        self._leave_parents_threads()
        while mine := self._unfinished_of(run):
            if cancel:
                for future in mine:
                    future.cancel()
            _wait_for(mine)

    def close(self) -> None:
        """Wait for all futures, and end the threads; in a thread of the pool, wait for none.

        Raises:
            DeadlockError: One of them waits for this thread.
        """
        self._leave_parents_threads()
        is_mine = hasattr(self._here, "is_mine")
        if not is_mine:
            _wait_for(self._unfinished_of(None))
        with self._guard:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=not is_mine)

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


class _Threads:
    """The threads of an executor. They refer to this: if they did to the pool, a dropped pool would never end.

    Args:
        limit: Threads at most.
        here: Gets an attribute in each of them.
    """

    def __init__(self, limit: int, here: threading.local) -> None:
        self._limit = limit
        self._here = here
        self._nodes: list[Node] = []

    def begin(self) -> None:
        """Note that this thread is one of them."""
        self._here.is_mine = True
        self._nodes.append(current_node())

    def blockers(self) -> Sequence[Node]:
        """Those of which one has to end its work before the next future begins; none: there may be more."""
        return list(self._nodes) if len(self._nodes) >= self._limit else ()


class _WorkFuture(Future[T]):
    """A future that also raises errors whose truth value is False, which the standard library's ignores.

    Attributes:
        node: What it waits for; None once it is done.
    """

    node: WaitingNode | None = None

    def run_by(self, thread: Node) -> None:
        """Note which thread runs it."""
        if self.node is not None:
            self.node.wait = Wait(self, "", lambda: () if self.done() else (thread,))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if timeout is None:
            _wait_for([self])
        return super().exception(timeout)

    def result(self, timeout: float | None = None) -> T:
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del self, error  # its traceback has this frame: without this they would form a cycle
        return super().result(timeout)


def _wait_for(futures: Sequence[_WorkFuture[Any]]) -> None:
    """Wait until all futures are done."""

    def is_over(seconds: float) -> bool:
        with unmasked():
            return not wait(futures, seconds).not_done

    def blockers() -> Sequence[Node]:
        return [node for future in futures if (node := future.node) is not None and not future.done()]

    if not all(future.done() for future in futures):
        wait_until(is_over, Wait(current_owner(), "a submitted step", blockers))


def _run(call: list[tuple[_WorkFuture[T], Callable[[], T]]]) -> None:
    call[0][0].run_by(current_node())
    _fulfil(call)


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
    future: _WorkFuture[T] = _WorkFuture()
    owner, name = current_owner(), attempt.flight.name
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
