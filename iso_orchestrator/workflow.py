"""`Workflow`: a durable workflow, as users hold it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from iso_orchestrator.checks import check_choice, check_count, check_key, check_path
from iso_orchestrator.codec import plain_json
from iso_orchestrator.coordination import state as states
from iso_orchestrator.coordination.lease import HeldLease, hold_lease, release_lease, touch_lease
from iso_orchestrator.coordination.mutex import Mutex
from iso_orchestrator.coordination.mutex_queue import MutexScope
from iso_orchestrator.coordination.state import reset_steps
from iso_orchestrator.decorators import Decorators
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.fanout.for_each import ForEachKeywords, ForEachOptions, run_for_each
from iso_orchestrator.fanout.summary import ForEachSummary
from iso_orchestrator.record.model import Heartbeat, Json, Lease, WorkflowEvent, WorkflowStatus, html_of
from iso_orchestrator.record.projection import copy_json
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.runtime.runs import Run, RunResult, begin_run, current_run, end_run
from iso_orchestrator.runtime.runtime import OnBusy, WorkflowRuntime
from iso_orchestrator.steps.options import DEFAULT_OPTIONS, CallKeywords, StepOptions, check_callable, documented
from iso_orchestrator.steps.step import run_step
from iso_orchestrator.store import Store, default_root, find_store
from iso_orchestrator.system.clock import Clock, InjectedClock, SystemClock
from iso_orchestrator.system.interrupts import at_work, masked, masked_with_undo

if TYPE_CHECKING:
    from iso_orchestrator.views.notebook import Timeline

R = TypeVar("R")
Item = TypeVar("Item")


class Workflow(Decorators):
    """A durable workflow: run the script, kill it anywhere, run it again, and it continues.

    Constructing one touches no disk. The first use opens the record, and creates it when it is missing. Any number of
    objects, threads and processes may share an id.

    Args:
        workflow_id: Any text that is not blank and that UTF-8 can hold.
        initial_state: JSON, or anything that cattrs unstructures; written only when the record is new.
        dir: The folder of all workflows, made absolute now. Default: the environment's ``ISO_ORCHESTRATOR_DIR``, else
            `.iso-orchestrator`.
        now: A function that returns an aware datetime and replaces every clock, for tests.
        store: A store, the URL of one (the guide lists them), or None for the files in *dir*. Where neither is given,
            the environment's ``ISO_ORCHESTRATOR_STORE`` may name a URL.
        on_busy: What to do when another run of this id is live: "share" the workflow, "wait" for its end, or "fail".
        max_workers: Threads of `.submit` that work at one time, at most. One that waits for a submitted step is none.
        on_event: Called with each `WorkflowEvent` that this process appends to the record, after that, in the thread
            that did it and under no lock. That thread waits meanwhile: keep it fast. What it raises is logged once, and
            dropped. It is not called for events that it appends itself, nor in other processes.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range.
        SerializationError: *initial_state* is not JSON.
        StoreError: No store serves the URL.

    Example:
        >>> workflow = Workflow("batch", initial_state={"done": 0}, store="memory://doc")
        >>> @workflow.step
        ... def fetch(page: int) -> dict:
        ...     return {"page": page}
        >>> with workflow:
        ...     fetch(1)
        {'page': 1}
        >>> workflow.record.status
        <WorkflowStatus.COMPLETED: 'completed'>
    """

    def __init__(
        self,
        workflow_id: str,
        *,
        initial_state: Any = {},  # noqa: B006 - it is copied, never changed
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the npm package's name for it
        now: Callable[[], datetime] | None = None,
        store: Store | str | None = None,
        on_busy: OnBusy = "share",
        max_workers: int = 32,
        on_event: Callable[[WorkflowEvent], object] | None = None,
    ) -> None:
        self.workflow_id = check_key(workflow_id, "a workflow id")
        if dir == "":
            raise ValueError('dir is empty: the current folder is "."')
        self.dir = check_path(default_root() if dir is None else dir, "dir")
        check_choice(on_busy, "on_busy", "share", "wait", "fail")
        self._runtime = WorkflowRuntime(
            weakref.ref(self),
            self.workflow_id,
            self.dir,
            find_store(store, None if dir is None else self.dir),
            _clock(now),
            plain_json(initial_state, "the initial state"),
            on_busy,
            check_count(max_workers, "max_workers"),
        )
        if on_event is not None:
            check_callable(on_event, "on_event")
            self._runtime.add_listener(on_event)
        self._runtime.arguments = {
            "initial_state": initial_state,
            "dir": self.dir,
            "now": now,
            "on_busy": on_busy,
            "max_workers": max_workers,
        }

    @classmethod
    def _of(cls, runtime: WorkflowRuntime) -> Workflow:
        """The object of *runtime*, or where it was dropped and its steps were not, another one like it."""
        workflow = runtime.workflow()
        if not isinstance(workflow, Workflow):
            workflow = cls.__new__(cls)
            workflow.workflow_id, workflow.dir, workflow._runtime = runtime.workflow_id, runtime.dir, runtime
            runtime.workflow = weakref.ref(workflow)
        return workflow

    def __repr__(self) -> str:
        return f"Workflow({self.workflow_id!r}, dir={self.dir!r})"

    def _repr_html_(self) -> str:
        return self.record._repr_html_()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by id and store: another process uses the same record."""
        return partial(type(self), self.workflow_id, store=self._runtime.store, **self._runtime.arguments), ()

    @property
    def record_path(self) -> str:
        """The path of the snapshot, which need not exist yet."""
        return self._runtime.store.path_of(self.workflow_id)

    @property
    def record(self) -> WorkflowRecord:
        """The record as it is now, with everything that other processes wrote. Looking creates none."""
        return self._runtime.record()

    @property
    def state(self) -> Json:
        """A copy of the state."""
        return self._runtime.look(lambda projection: copy_json(projection.state))

    def __enter__(self) -> Workflow:
        """Begin a run."""
        run: Run | None = None
        work = at_work()
        block = masked_with_undo()
        try:
            work.__enter__()
            with block:
                run = begin_run(self._runtime, work)
        except BaseException as error:
            block.mask_again()
            with ExitStack() as stack:  # the last is called first
                stack.callback(work.__exit__)
                stack.callback(block.end)
                if run is not None:
                    end_run(run, error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run; the error goes on.

        Raises:
            WorkflowUsageError: It was entered in another thread or task, and several runs of this object go on.
        """
        run = None
        try:
            with masked():
                run = current_run(self._runtime)
                end_run(run, error)
        finally:
            if run is not None:
                run.work.__exit__()

    def run(self, fn: Callable[[Workflow], R]) -> RunResult[R]:
        """Call *fn* with the workflow, as a run.

        Returns:
            What *fn* returned, and the record at the end of the run.

        Example:
            >>> Workflow("batch", store="memory://run").run(lambda workflow: workflow.state).value
            {}
        """
        check_callable(fn, "what run() calls")
        with self:
            value = fn(self)
        return RunResult(value, self.record)

    @documented(CallKeywords)
    def run_step(
        self,
        name: str,
        fn: Callable[..., R],
        *args: Any,
        idempotency_key: str | None = None,
        **options: Unpack[CallKeywords],
    ) -> R:
        """Run ``fn(*args)`` as a step, without a decorator.

        Args:
            name: The step's name, as it is: no format string.
            fn: The function.
            *args: Its arguments.
            idempotency_key: The key, as it is; with another key the step runs again.
            **options: See below.

        Example:
            >>> Workflow("batch", store="memory://run_step").run_step("add", lambda a, b: a + b, 1, 2)
            3
        """
        checked = StepOptions(**options) if options else DEFAULT_OPTIONS
        return run_step(self._runtime, name, fn, args, idempotency_key, checked)

    @documented(ForEachKeywords)
    def run_for_each(
        self, items: Iterable[Item], fn: Callable[[Item], R], **options: Unpack[ForEachKeywords]
    ) -> ForEachSummary[R]:
        """Call *fn* for each of *items*, without a decorator.

        Args:
            items: Any iterable, read as its items start.
            fn: A function of one item.
            **options: See below.

        Example:
            >>> Workflow("batch", store="memory://run_for_each").run_for_each([1, 2], lambda n: n * n).values()
            [1, 4]
        """
        return run_for_each(self._runtime, items, fn, ForEachOptions(**options))

    def mutex(self, key: str, *, timeout: float | None = None, scope: MutexScope = "workflow") -> Mutex:
        """Make a mutex over threads and processes, as a context manager and a decorator.

        The operating system frees it when its holder dies. It is never taken away because of its age. Its owner (the
        item, the step's attempt, else the thread) may enter it again, in the same thread and asyncio task.

        Args:
            key: Any text that is not blank.
            timeout: Seconds to wait; None: no limit.
            scope: "workflow", or "store": one key for all workflows of the root.

        Raises:
            MutexTimeoutError: On entry: it was not free in time.
            DeadlockError: On entry: its holder waits for what is held here.
            WorkflowUsageError: On leaving: it is not held here. Leave it in the step, thread and task that entered it.

        Example:
            >>> with Workflow("batch", store="memory://mutex").mutex("account"):
            ...     pass
        """
        return Mutex(self._runtime, key, timeout, scope)

    def update_state(self, update: Any, *, with_step: bool = False) -> Any:
        """Replace the state by a value, or by what a function makes of a copy of it, atomically over all processes.

        Args:
            update: JSON, anything that cattrs unstructures, or a function of the state.
            with_step: Inside a step: call the function once, when the step completes, on the state at that time, and
                record both together. An attempt that fails drops the update.

        Returns:
            The new state; None with *with_step*.

        Raises:
            TypeError: The function returned None where the state was not None: a forgotten ``return``.
            SerializationError: The new state is not JSON.
            WorkflowUsageError: The function used the workflow, or *with_step* was given outside of a step, or after it.

        Example:
            >>> workflow = Workflow("batch", initial_state={"n": 0}, store="memory://state")
            >>> workflow.update_state(lambda state: {**state, "n": state["n"] + 1})
            {'n': 1}
        """
        if with_step:
            states.update_with_step(self._runtime, update)
            return None
        return states.update_state(self._runtime, update)

    def append_event(self, type: str, message: str | None = None, detail: Any = None) -> WorkflowEvent:  # noqa: A002
        """Append an event of your own to the record.

        Args:
            type: Any text that is not blank.
            message: A text for people.
            detail: JSON, or anything that cattrs unstructures.

        Example:
            >>> Workflow("batch", store="memory://event").append_event("mail.sent", detail={"to": 3}).detail
            {'to': 3}
        """
        return states.append_event(self._runtime, type, message, detail)

    def heartbeat(self, key: str, detail: Any = None) -> Heartbeat:
        """Record that the worker, job or service named *key* is alive.

        Example:
            >>> Workflow("batch", store="memory://beat").heartbeat("worker:1", {"phase": "send"}).key
            'worker:1'
        """
        return states.heartbeat(self._runtime, key, detail)

    def heartbeating(self, key: str, *, every: float = 30.0, detail: Any = None) -> AbstractContextManager[None]:
        """Record a heartbeat each *every* seconds in the background; only the first and the last are events.

        Example:
            >>> with Workflow("batch", store="memory://beating").heartbeating("worker:1", every=5):
            ...     pass
        """
        return states.heartbeating(self._runtime, key, every, detail)

    def touch_lease(self, key: str, *, holder: str, ttl: float | timedelta, detail: Any = None) -> Lease:
        """Acquire a free lease, or renew one that *holder* has. It fences nothing by itself.

        Args:
            key: The lease's name.
            holder: The name of the thread, process or machine that is to hold it.
            ttl: Seconds until it expires, or a timedelta.
            detail: JSON to keep with the lease; None keeps the present detail.

        Raises:
            LeaseConflictError: Another holder has it.

        Example:
            >>> workflow = Workflow("batch", store="memory://touch")
            >>> workflow.touch_lease("slot", holder="alpha", ttl=30).token
            1
        """
        return touch_lease(self._runtime, key, holder, ttl, detail)

    def release_lease(self, key: str, holder: str | None = None) -> Lease | None:
        """Release a lease.

        Args:
            key: The lease's name.
            holder: Release it only if it has this holder.

        Returns:
            The lease; None when there is none.

        Raises:
            LeaseConflictError: It has another holder than *holder*.

        Example:
            >>> Workflow("batch", store="memory://release").release_lease("slot") is None
            True
        """
        return release_lease(self._runtime, key, holder)

    def lease(
        self, key: str, *, holder: str | None = None, ttl: float | timedelta = 30.0, detail: Any = None
    ) -> AbstractContextManager[HeldLease]:
        """Hold a lease inside a ``with``: acquire it, renew it in the background, release it.

        Code inside, worker threads included, is fenced: once the lease has a newer token, nothing more is recorded
        from there except the end of a run, and `LeaseLostError` is raised. Threads of your own are fenced when they
        run in a copy of the context (`contextvars.copy_context().run`).

        Args:
            key: The lease's name.
            holder: The holder's name. Default: a unique one.
            ttl: Seconds until it expires unless it is renewed, or a timedelta. It is renewed three times in each.
            detail: JSON to keep with the lease.

        Raises:
            LeaseConflictError: On entry: another holder has it.
            LeaseLostError: Inside, and at the end: it has a newer token.

        Example:
            >>> with Workflow("batch", store="memory://lease").lease("slot", ttl=60) as held:
            ...     held.token, held.lost
            (1, False)
        """
        return hold_lease(self._runtime, key, holder, ttl, detail)

    def set_status(self, status: WorkflowStatus | str, error: BaseException | str | None = None) -> WorkflowRecord:
        """Set the status and the last error by hand. Without *error* the record has no last error any more.

        Example:
            >>> Workflow("batch", store="memory://status").set_status("failed", "stopped by hand").status
            <WorkflowStatus.FAILED: 'failed'>
        """
        return states.set_status(self._runtime, status, error)

    def reset(self, name_or_pattern: str) -> list[str]:
        """Forget steps, so that they run again. Their events stay.

        Args:
            name_or_pattern: The exact name of a step; if no step has it, an `fnmatch` pattern over the names.

        Returns:
            The names of the steps.

        Raises:
            WorkflowBusyError: One of them is running.

        Example:
            >>> workflow = Workflow("batch", store="memory://reset")
            >>> workflow.run_step("fetch:1", lambda: 1)
            1
            >>> workflow.reset("fetch:*")
            ['fetch:1']
        """
        return reset_steps(self._runtime, name_or_pattern)

    def timeline(self) -> Timeline:
        """A picture of all that happened until now, for a notebook or a file.

        Returns:
            An object that a notebook shows, with `.html` and `.write(path)`.

        Raises:
            WorkflowNotFoundError: The workflow is not on record yet.
            StoreError: It cannot be read.
        """
        from iso_orchestrator.views.notebook import Timeline

        return Timeline(self._runtime.store, self.workflow_id, self._runtime.clock.now())

    def close(self) -> None:
        """Detach from the record, and write the snapshot if nothing else uses it. The next use opens it again.

        Raises:
            WorkflowUsageError: Inside a run.
        """
        if self._runtime.runs:
            raise WorkflowUsageError(f"workflow {self.workflow_id!r}: close() inside a run; leave the with block first")
        self._runtime.close()

    def _bound_runtime(self) -> WorkflowRuntime:
        return self._runtime


@html_of.register
def _(record: WorkflowRecord) -> str:
    from iso_orchestrator.views.notebook import record_html

    return record_html(record)


def _clock(now: Callable[[], datetime] | None) -> Clock:
    if now is None:
        return SystemClock()
    if not callable(now):
        raise TypeError(f"now must be a function that returns an aware datetime, not {now!r}")
    clock = InjectedClock(now)
    clock.now()  # a naive clock raises now, not at the first use
    return clock
