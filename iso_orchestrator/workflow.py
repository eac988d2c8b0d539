"""`Workflow`: what users hold in their hands."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

import attrs

from iso_orchestrator import lease as leases
from iso_orchestrator import state as states
from iso_orchestrator.clock import Clock, InjectedClock, SystemClock
from iso_orchestrator.codec import plain_json
from iso_orchestrator.context import current_scope, entered, restore
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.fold import Fold, copy_json
from iso_orchestrator.for_each import ForEach, ForEachSummary, MutexKey, for_each_options, run_for_each
from iso_orchestrator.handle import Handle
from iso_orchestrator.model import Heartbeat, Json, Lease, WorkflowEvent, WorkflowRecord, WorkflowStatus
from iso_orchestrator.mutex import Mutex
from iso_orchestrator.mutex_queue import MutexScope
from iso_orchestrator.names import check_key
from iso_orchestrator.naming import Template
from iso_orchestrator.reset import reset_steps
from iso_orchestrator.retry import Retry
from iso_orchestrator.runs import OnBusy, RunResult, begin_run, end_run, new_run
from iso_orchestrator.step import Step, StepKeywords, refuse_unfit, run_step, step_options
from iso_orchestrator.step_run import IfInterrupted
from iso_orchestrator.store import Store
from iso_orchestrator.stores import find_store

__all__ = ["Workflow"]

P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")


class Workflow:
    """A durable workflow: run the script, kill it anywhere, run it again, and it goes on where it was.

    Constructing one touches no disk; the first use opens the record, and makes it when it is missing. Any number of
    objects, threads and processes may share an id.

    Args:
        workflow_id: Any text that is not blank and that UTF-8 can hold.
        initial_state: JSON, or anything that cattrs unstructures; written only when the record is new.
        dir: The folder of all workflows; made absolute now.
        now: Replaces every clock, for tests; aware datetimes.
        store: A store, a URL (``file:///folder``, ``memory://name``), or None for the files in *dir*.
        on_busy: Another live run of this id: "share" it, "wait" for it, or "fail".
        max_workers: Threads for `.submit`.

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
        dir: str | os.PathLike[str] = ".iso-orchestrator",  # noqa: A002 - the npm package's name for it
        now: Callable[[], datetime] | None = None,
        store: Store | str | None = None,
        on_busy: OnBusy = "share",
        max_workers: int = 32,
    ) -> None:
        self.workflow_id = check_key(workflow_id, "a workflow id")
        self.dir = os.path.abspath(os.fspath(dir))
        if on_busy not in ("share", "wait", "fail"):
            raise ValueError(f'on_busy is "share", "wait" or "fail", not {on_busy!r}')
        if isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an int, not {max_workers!r}")
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers}")
        self._on_busy: OnBusy = on_busy
        self._handle = Handle(
            self,
            self.workflow_id,
            find_store(store, self.dir),
            _clock(now),
            plain_json(initial_state, "the initial state"),
            max_workers,
        )
        self._entered: dict[int, contextlib.ExitStack] = {}

    def __repr__(self) -> str:
        return f"Workflow({self.workflow_id!r}, dir={self.dir!r})"

    def _repr_html_(self) -> str:
        return self.record._repr_html_()

    @property
    def record_path(self) -> str:
        """Where the snapshot is, or would be."""
        return self._handle.store.path_of(self.workflow_id)

    @property
    def record(self) -> WorkflowRecord:
        """The record as it is now, with all that other processes wrote. Looking makes none."""
        return self._handle.look(Fold.record)

    @property
    def state(self) -> Json:
        """The state, a copy to do with as you like."""
        return self._handle.look(lambda fold: copy_json(fold.state))

    def __enter__(self) -> Workflow:
        """Begin a run."""
        around = current_scope().runs
        if any(run.workflow is self for run in around):
            raise WorkflowUsageError(
                f"workflow {self.workflow_id!r}: a run inside of itself; use the workflow as it is"
            )
        if self._on_busy == "wait" and any(run.workflow._handle.key == self._handle.key for run in around):
            raise WorkflowUsageError(
                f"workflow {self.workflow_id!r}: a run that waits for the one around it never ends"
            )
        thread = threading.get_ident()
        with contextlib.ExitStack() as stack:  # a signal in the midst of this ends the run that it began
            run = new_run(self._handle)
            stack.push(lambda _, error, __: end_run(self._handle, run, error))
            begin_run(self._handle, run, self._on_busy)
            scope = current_scope()
            stack.callback(restore, scope)
            stack.enter_context(entered(attrs.evolve(scope, workflow=self, runs=(*scope.runs, run))))
            self._entered[thread] = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run; the error goes on."""
        stack = None
        try:
            stack = self._entered[threading.get_ident()]
        finally:
            if stack is None:  # a signal came in between, and the run has to be ended all the same
                stack = self._entered[threading.get_ident()]
            try:
                stack.__exit__(kind, error, trace)
            finally:
                self._entered.pop(threading.get_ident(), None)

    def run(self, fn: Callable[[Workflow], R]) -> RunResult[R]:
        """Call *fn* with the workflow, as a run.

        Example:
            >>> Workflow("batch", store="memory://run").run(lambda workflow: workflow.state).value
            {}
        """
        refuse_unfit(fn, "what run() calls")
        with self:
            value = fn(self)
        return RunResult(value, self.record)

    @overload
    def step(self, fn: Callable[P, R], /) -> Step[P, R]: ...
    @overload
    def step(self, /, **options: Unpack[StepKeywords]) -> Callable[[Callable[P, R]], Step[P, R]]: ...
    def step(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        name: Template | None = None,
        idempotency_key: Template | None = None,
        retry: int | Retry = 1,
        timeout: float | None = None,
        accept: Callable[[Any], bool] | None = None,
        if_interrupted: IfInterrupted = "rerun",
        version: str | int | None = None,
    ) -> Any:
        """Make a function a step: a call that completed is not run again, its recorded result is returned.

        A step's body runs at least once: a crash between its end and the record repeats it. At most one result is
        recorded, and while a live thread or process runs a step, others that call it wait for its outcome.
        The body runs in a copy of the caller's context: context variables that it sets are gone behind it.

        Args:
            fn: The function, where the decorator is used without parentheses.
            name: A format string over the arguments, or a function of them. Default: the function's qualified name
                and its arguments.
            idempotency_key: Likewise; with another key the step runs again and replaces the record.
            retry: Attempts of one call in all, or a `Retry`.
            timeout: Seconds for one attempt. Its thread cannot be killed: it is left, and a retry may overlap it.
            accept: False for a result that is to count as a failure.
            if_interrupted: What is to be done where a dead run left it half done: "rerun", or "fail" with
                `StepInterruptedError`.
            version: Part of the identity: another version runs again.

        Raises:
            TypeError: *fn* is a coroutine or generator function, or an option is of the wrong type.
            ValueError: An option is out of its range.
            DuplicateStepError: Another function of this workflow has the name.

        Example:
            >>> workflow = Workflow("batch", store="memory://step")
            >>> @workflow.step(name="fetch:{page}", retry=3)
            ... def fetch(page: int) -> int:
            ...     return page * 2
            >>> fetch(1), fetch.step_name(1)
            (2, 'fetch:1')
        """
        options = step_options(retry, timeout, accept, if_interrupted, version)

        def decorate(plain: Callable[..., Any]) -> Step[..., Any]:
            made = Step(plain, lambda: self._handle, options, name, idempotency_key)
            made.claim(self._handle)
            return made

        return decorate if fn is None else decorate(fn)

    def run_step(
        self,
        name: str,
        fn: Callable[..., R],
        /,
        *args: Any,
        idempotency_key: str | None = None,
        retry: int | Retry = 1,
        timeout: float | None = None,
        accept: Callable[[R], bool] | None = None,
        if_interrupted: IfInterrupted = "rerun",
        version: str | int | None = None,
    ) -> R:
        """Run ``fn(*args)`` as the step *name*, without a decorator; the name is literal. Options as in `step`.

        Example:
            >>> Workflow("batch", store="memory://run_step").run_step("add", lambda a, b: a + b, 1, 2)
            3
        """
        options = step_options(retry, timeout, accept, if_interrupted, version)
        return run_step(self._handle, name, fn, args, idempotency_key, options)

    def for_each(
        self,
        *,
        max_parallel: int = 1,
        mutex_key: MutexKey = None,
        mutex_scope: MutexScope = "workflow",
        mutex_timeout: float | None = None,
        stop_on_error: bool = True,
        executor: Executor | None = None,
        progress: bool | str | None = None,
    ) -> Callable[[Callable[Concatenate[Item, P], R]], ForEach[Item, P, R]]:
        """Make a function of one item one of many.

        Items start in order, but for those that wait for their key, and an item that waits holds no worker.

        Args:
            max_parallel: Items at a time.
            mutex_key: A format string over the function's arguments, or a function of the item. Items of one key
                never overlap, in any process, and run in order among themselves; None: no key.
            mutex_scope: "workflow", or "store" for one key over all workflows of the root.
            mutex_timeout: Seconds to wait for a key that is held elsewhere; None: for ever.
            stop_on_error: After the first error start nothing more, let what runs finish, and raise it with a note
                that names the item's index. Otherwise all run, and none is raised.
            executor: Threads to use; default: a `ThreadPoolExecutor` of its own.
            progress: None: shown on a terminal and in a notebook; a str is its label. Needs the extra ``progress``.

        Example:
            >>> workflow = Workflow("batch", store="memory://for_each")
            >>> @workflow.for_each(max_parallel=2, mutex_key="{job[company]}")
            ... def apply(job: dict, greeting: str) -> str:
            ...     return f"{greeting} {job['company']}"
            >>> apply([{"company": "A"}, {"company": "B"}], "Dear").values()
            ['Dear A', 'Dear B']
        """
        options = for_each_options(
            max_parallel, mutex_key, mutex_scope, mutex_timeout, stop_on_error, executor, progress
        )
        return lambda fn: ForEach(fn, lambda: self._handle, options)

    def run_for_each(
        self,
        items: Iterable[Item],
        fn: Callable[[Item], R],
        *,
        max_parallel: int = 1,
        mutex_key: MutexKey = None,
        mutex_scope: MutexScope = "workflow",
        mutex_timeout: float | None = None,
        stop_on_error: bool = True,
        executor: Executor | None = None,
        progress: bool | str | None = None,
    ) -> ForEachSummary[R]:
        """Call *fn* for each of *items*, without a decorator. Options as in `for_each`; a str as mutex key is literal.

        Example:
            >>> Workflow("batch", store="memory://run_for_each").run_for_each([1, 2], lambda n: n * n).values()
            [1, 4]
        """
        options = for_each_options(
            max_parallel, mutex_key, mutex_scope, mutex_timeout, stop_on_error, executor, progress
        )
        return run_for_each(self._handle, items, fn, options)

    def mutex(self, key: str, *, timeout: float | None = None, scope: MutexScope = "workflow") -> Mutex:
        """A mutex over threads and processes, as a context manager and a decorator.

        The operating system frees it when its holder dies; it is never taken away by age. Its owner (the item, the
        step's attempt, else the thread) may enter it again.

        Args:
            key: Any text that is not blank.
            timeout: Seconds to wait; None: for ever.
            scope: "workflow", or "store" for one key over all workflows of the root.

        Raises:
            MutexTimeoutError: On entry: it was not free in time.

        Example:
            >>> with Workflow("batch", store="memory://mutex").mutex("account"):
            ...     pass
        """
        return Mutex(self._handle, key, timeout, scope)

    def update_state(self, update: Any, *, with_step: bool = False) -> Any:
        """Replace the state, by a value or by what a function makes of a copy of it; atomic over all processes.

        Args:
            update: JSON, what cattrs unstructures, or a function of the state.
            with_step: Inside a step: call the function once, at the step's completion, on the state of then, and
                record both in one piece; returns None. An attempt that fails drops it.

        Returns:
            The new state.

        Raises:
            TypeError: The function returned None where the state was not None: a forgotten ``return``.
            SerializationError: The new state is not JSON.
            WorkflowUsageError: The function used the workflow, or *with_step* outside of a step.

        Example:
            >>> workflow = Workflow("batch", initial_state={"n": 0}, store="memory://state")
            >>> workflow.update_state(lambda state: {**state, "n": state["n"] + 1})
            {'n': 1}
        """
        if with_step:
            states.update_with_step(self._handle, update)
            return None
        return states.update_state(self._handle, update)

    def append_event(self, type: str, message: str | None = None, detail: Any = None) -> WorkflowEvent:  # noqa: A002
        """Append an event of your own to the record.

        Example:
            >>> Workflow("batch", store="memory://event").append_event("mail.sent", detail={"to": 3}).detail
            {'to': 3}
        """
        return states.append_event(self._handle, type, message, detail)

    def heartbeat(self, key: str, detail: Any = None) -> Heartbeat:
        """Record that whoever *key* stands for is alive.

        Example:
            >>> Workflow("batch", store="memory://beat").heartbeat("worker:1", {"phase": "send"}).key
            'worker:1'
        """
        return states.heartbeat(self._handle, key, detail)

    def heartbeating(self, key: str, *, every: float = 30.0, detail: Any = None) -> AbstractContextManager[None]:
        """Beat each *every* seconds in the background; an event at the first and the last beat only.

        Example:
            >>> with Workflow("batch", store="memory://beating").heartbeating("worker:1", every=5):
            ...     pass
        """
        return states.heartbeating(self._handle, key, every, detail)

    def touch_lease(self, key: str, *, holder: str, ttl: float | timedelta, detail: Any = None) -> Lease:
        """Acquire a lease that nobody has, or renew one's own. It fences nothing by itself.

        Args:
            key: The lease's.
            holder: Who asks.
            ttl: Seconds, or a timedelta.
            detail: JSON to keep with it; None keeps what is there.

        Raises:
            LeaseConflictError: Another holder has it.

        Example:
            >>> workflow = Workflow("batch", store="memory://touch")
            >>> workflow.touch_lease("slot", holder="alpha", ttl=30).token
            1
        """
        return leases.touch_lease(self._handle, key, holder, ttl, detail)

    def release_lease(self, key: str, holder: str | None = None) -> Lease | None:
        """Give a lease back; None when there is none.

        Raises:
            LeaseConflictError: Another than *holder* has it.
        """
        return leases.release_lease(self._handle, key, holder)

    def lease(
        self, key: str, *, holder: str | None = None, ttl: float | timedelta = 30.0, detail: Any = None
    ) -> AbstractContextManager[leases.HeldLease]:
        """Hold a lease: acquired, renewed in the background, released.

        What runs inside, worker threads included, is fenced: once the lease has a newer token nothing more is recorded
        from there, and `LeaseLostError` is raised.

        Args:
            key: The lease's.
            holder: Who asks; default: a name that nobody else has.
            ttl: Seconds, or a timedelta; renewed three times in each.
            detail: JSON to keep with it.

        Raises:
            LeaseConflictError: On entry: another holder has it.
            LeaseLostError: Inside, and at the end: it has a newer token.

        Example:
            >>> with Workflow("batch", store="memory://lease").lease("slot", ttl=60) as held:
            ...     held.token, held.lost
            (1, False)
        """
        return leases.hold_lease(self._handle, key, holder, ttl, detail)

    def set_status(self, status: WorkflowStatus | str, error: BaseException | str | None = None) -> WorkflowRecord:
        """Set the status by hand; without an error the last one is forgotten."""
        return states.set_status(self._handle, status, error)

    def reset(self, name_or_pattern: str) -> list[str]:
        """Forget the steps of that exact name, else those that match the `fnmatch` pattern, so that they run again.

        Returns:
            Their names. The events stay.

        Raises:
            WorkflowBusyError: One of them is running.

        Example:
            >>> workflow = Workflow("batch", store="memory://reset")
            >>> workflow.run_step("fetch:1", lambda: 1)
            1
            >>> workflow.reset("fetch:*")
            ['fetch:1']
        """
        return reset_steps(self._handle, name_or_pattern)

    def close(self) -> None:
        """Let go of the record, and write the snapshot if nobody else uses it. It opens again on next use.

        Raises:
            WorkflowUsageError: Inside a run.
        """
        if self._entered:
            raise WorkflowUsageError(f"workflow {self.workflow_id!r}: close() inside a run; leave the with block first")
        self._handle.close()


def _clock(now: Callable[[], datetime] | None) -> Clock:
    if now is None:
        return SystemClock()
    if not callable(now):
        raise TypeError(f"now must be a function that returns an aware datetime, not {now!r}")
    clock = InjectedClock(now)
    clock.now()  # a naive clock is to be told at once
    return clock
