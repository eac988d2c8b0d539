"""The workers of a `for_each`: threads of an executor, or the calling thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future

from iso_orchestrator.runtime.waits import Node, current_node
from iso_orchestrator.system.events import Condition, start
from iso_orchestrator.system.interrupts import interruptible

# The threads that run workers, for executors that several calls may share.
_threads_of: dict[int, list[Node]] = {}  # by the executor's `id`, as long as it has some: it may have no hash
_threads_guard = threading.Lock()


class Workers:
    """The workers of one `for_each`.

    Args:
        executor: Provides their threads; None: the calling thread is the only one.
        limit: Workers at one time, at most.
        changed: Its lock guards the attributes, and its threads are told of changes.
        work: What a worker does. Before it returns it calls `end`.
        has_work: Whether a worker would find something to do. Called under the lock.
        on_error: Is told that there are no workers any more, or that one has failed.
        on_broken: Likewise, in a thread that holds the lock of the executor.

    Attributes:
        running: The threads that work.
    """

    def __init__(
        self,
        executor: Executor | None,
        limit: int,
        changed: Condition,
        *,
        work: Callable[[], object],
        has_work: Callable[[], bool],
        on_error: Callable[[BaseException], object],
        on_broken: Callable[[BaseException], object],
    ) -> None:
        self.executor = executor
        self.limit = limit
        self.running: list[Node] = []
        self._changed = changed
        self._work = work
        self._has_work = has_work
        self._on_error = on_error
        self._on_broken = on_broken
        self._count = 0  # of those that have not decided to end, including those that the executor has not started
        self._futures: set[Future[None]] = set()

    def start(self) -> None:
        """Start a worker if there is work, and may be one more.

        The caller must not hold the lock: an executor that is shut down calls `_on_done` under its own lock, which
        `submit` needs.
        """
        executor = self.executor
        with self._changed.guard:
            if executor is None:
                self._changed.notify()
                return
            if self._count >= self.limit or not self._has_work():
                return
            self._count += 1
        try:
            with interruptible():  # the user's executor may wait in `submit`
                future = start(lambda: executor.submit(self._run))
        except Exception as error:  # noqa: BLE001 - the user's executor may raise anything
            with self._changed.guard:
                self._count -= 1
                self.limit = self._count  # the workers that are there go on
            if self.limit == 0:
                self._on_error(error)
            return
        with self._changed.guard:
            self._futures.add(future)
        future.add_done_callback(self._on_done)

    def work_here(self) -> None:
        """Work as long as there is something to do, where the calling thread is the worker."""
        if self.executor is None:
            self._count += 1  # no other thread changes it
            self._run()

    def end(self) -> None:
        """Note that a worker is about to end. The caller holds the lock."""
        self._count -= 1

    def cancel(self) -> None:
        """Cancel those that the executor has not begun."""
        with self._changed.guard:
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def forget(self) -> None:
        """Forget the functions, which refer to what refers to this, when no worker runs any more."""
        self._work = self._has_work = bool
        self._on_error = self._on_broken = bool

    def blockers_of_next(self) -> Sequence[Node]:
        """The threads of which one has to end its work first; none: there is a free thread, or there may be."""
        with self._changed.guard:
            if self._count < self.limit:
                return ()  # the thread that made an item ready is about to start one
            if self._count <= len(self.running):
                return list(self.running)
            with _threads_guard:
                threads = list(_threads_of.get(id(self.executor), ()))
        return threads if len(threads) >= getattr(self.executor, "_max_workers", math.inf) else ()

    def _on_done(self, future: Future[None]) -> None:
        """Count a worker that never began, since its executor was shut down or is broken."""
        with self._changed.guard:
            self._futures.discard(future)
            if future.cancelled():
                error: BaseException | None = CancelledError("the executor was shut down before all items had run")
            else:
                error = future.exception()
            if error is None:
                return
            self._count -= 1
            if self._count == 0:
                self._on_broken(error)

    def _run(self) -> None:
        node, executor = current_node(), id(self if self.executor is None else self.executor)
        with _threads_guard:
            _threads_of.setdefault(executor, []).append(node)
        with self._changed.guard:
            self.running.append(node)
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it
            self._on_error(error)
        finally:
            with self._changed.guard:
                self.running.remove(node)
                self._changed.notify()
            with _threads_guard:
                _threads_of[executor].remove(node)
                if not _threads_of[executor]:
                    del _threads_of[executor]
