"""The threads that `.submit` runs steps on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from iso_orchestrator.runtime.pool_future import WorkFuture, fulfil

__all__ = ["Pool"]

T = TypeVar("T")


class Pool:
    """Threads, made when they are needed, and what was given to them by which run.

    Args:
        max_workers: Threads at most.
    """

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._executor: ThreadPoolExecutor | None = None
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._unfinished: dict[Future[Any], object] = {}
        self._thread = threading.local()  # has a mark in those of the pool

    def submit(self, work: Callable[[], T], run: object) -> Future[T]:
        """Do *work* in one of the threads, on behalf of *run*."""
        self._leave_parents_threads()
        with self._guard:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._max_workers, "iso-orchestrator", self._mark)
            future: WorkFuture[T] = WorkFuture()
            self._executor.submit(fulfil, future, work)
            self._unfinished[future] = run
        future.add_done_callback(self._finished)
        return future

    def drain(self, run: object, *, cancel: bool) -> None:
        """Wait for all work of *run*; *cancel* what has not begun."""
        self._leave_parents_threads()
        while mine := self._unfinished_of(run):
            if cancel:
                for future in mine:
                    future.cancel()
            wait(mine)

    def close(self) -> None:
        """Wait for all work, and end the threads; called by one of them, wait for none."""
        self._leave_parents_threads()
        with self._guard:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=not hasattr(self._thread, "is_mine"))

    def _mark(self) -> None:
        self._thread.is_mine = True

    def _unfinished_of(self, run: object) -> list[Future[Any]]:
        with self._guard:
            return [future for future, owner in self._unfinished.items() if owner is run and not future.done()]

    def _finished(self, future: Future[Any]) -> None:
        with self._guard:
            self._unfinished.pop(future, None)

    def _leave_parents_threads(self) -> None:
        """In a forked child: the threads and what they had to do are the parent's."""
        if self._pid != os.getpid():
            self.__init__(self._max_workers)  # type: ignore[misc]  # a new pool in the place of the old
