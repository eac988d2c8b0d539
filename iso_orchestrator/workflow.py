"""`Workflow`: what users hold in their hands."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

import attrs

from iso_orchestrator.checks import check_key
from iso_orchestrator.codec import plain_json
from iso_orchestrator.coordination.mutex import (
    Mutex,  # at once: a look for it at each call would be a thirtieth of a mutex
)
from iso_orchestrator.coordination.reset import reset_steps
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.record_keeper import RecordKeeper
from iso_orchestrator.runtime.context import current_scope, entered, restore
from iso_orchestrator.runtime.runs import OnBusy, RunResult, begin_run, end_run, new_run
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.call import IfInterrupted
from iso_orchestrator.steps.identity import Template
from iso_orchestrator.steps.retry import Retry
from iso_orchestrator.steps.step import Step, StepKeywords, check_callable, run_step, step_options
from iso_orchestrator.store import Store
from iso_orchestrator.store.urls import find_store
from iso_orchestrator.system.clock import Clock, InjectedClock, SystemClock

__all__ = ["Workflow"]

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from iso_orchestrator.agents import Agent, AgentResult
    from iso_orchestrator.commands.call import CommandLine
    from iso_orchestrator.commands.step import CommandKeywords, CommandStep
    from iso_orchestrator.coordination.mutex_queue import MutexScope
    from iso_orchestrator.fanout.for_each import ForEach, ForEachSummary, MutexKey

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Item = TypeVar("Item")


class Workflow(RecordKeeper):
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
        if not os.fspath(dir):
            raise ValueError('dir is empty: the current folder is "."')
        self.dir = os.path.abspath(os.fspath(dir))
        if on_busy not in ("share", "wait", "fail"):
            raise ValueError(f'on_busy is "share", "wait" or "fail", not {on_busy!r}')
        if isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an int, not {max_workers!r}")
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers}")
        self._on_busy: OnBusy = on_busy
        self._runtime = WorkflowRuntime(
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
        return self._runtime.store.path_of(self.workflow_id)

    def __enter__(self) -> Workflow:
        """Begin a run."""
        around = current_scope().runs
        if any(run.workflow is self for run in around):
            raise WorkflowUsageError(
                f"workflow {self.workflow_id!r}: a run inside of itself; use the workflow as it is"
            )
        if self._on_busy == "wait" and any(run.workflow._runtime.key == self._runtime.key for run in around):
            raise WorkflowUsageError(
                f"workflow {self.workflow_id!r}: a run that waits for the one around it never ends"
            )
        thread = threading.get_ident()
        with contextlib.ExitStack() as stack:  # a signal in the midst of this ends the run that it began
            run = new_run(self._runtime)
            stack.push(lambda _, error, __: end_run(self._runtime, run, error))
            begin_run(self._runtime, run, self._on_busy)
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
        check_callable(fn, "what run() calls")
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
            made = Step(plain, lambda: self._runtime, options, name, idempotency_key)
            made.claim(self._runtime)
            return made

        return decorate if fn is None else decorate(fn)

    def run_step(
        self,
        name: str,
        fn: Callable[..., R],
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
        return run_step(self._runtime, name, fn, args, idempotency_key, options)

    @overload
    def command(self, fn: Callable[P, CommandLine], /) -> CommandStep[P, Any]: ...
    @overload
    def command(
        self, /, *, parse: Callable[[str], T], **options: Unpack[CommandKeywords]
    ) -> Callable[[Callable[P, CommandLine]], CommandStep[P, T]]: ...
    @overload
    def command(
        self, /, *, parse: Agent, **options: Unpack[CommandKeywords]
    ) -> Callable[[Callable[P, CommandLine]], CommandStep[P, AgentResult]]: ...
    @overload
    def command(
        self,
        /,
        *,
        parse: Literal["text", "json", "jsonl"] | None = None,
        **options: Unpack[CommandKeywords],
    ) -> Callable[[Callable[P, CommandLine]], CommandStep[P, Any]]: ...
    def command(self, fn: Callable[..., CommandLine] | None = None, /, **options: Any) -> Any:
        """Make a function that returns a command line a step that runs it.

        The command has an empty standard input unless it is given one, a session of its own and its signals at their
        defaults. What it writes goes to a log as it comes. When it has ended, or is given up (a limit, Ctrl-C, an
        error), all that it has started is ended too: SIGTERM, time to finish, SIGKILL; and what a run that was killed
        has left of it is ended before it is started again.

        Args:
            fn: The function, where the decorator is used without parentheses. It returns a list of a program and its
                arguments, a `Command`, or what an agent of `iso_orchestrator.agents` makes.
            parse: What the result's `parsed` is made of its standard output by: "text", "json", "jsonl", a function,
                or an agent, which judges the run as well.
            options: As in `step`, and:
                idle_timeout: seconds without output;
                ok_codes: the exit codes that are a success, where no agent judges;
                log_dir: the folder of its logs, by default ``logs/`` in the workflow's; several workflows may share it;
                limit_key: what is limited when it says so, for all steps that name it, by default the agent's name;
                if_left: what is done about what a killed run has left of it, "end" it or "wait" until it has ended.

        Raises:
            TypeError: An option is of the wrong type.
            ValueError: An option is out of its range.

        Example:
            >>> import sys, tempfile
            >>> workflow = Workflow("batch", dir=tempfile.mkdtemp())
            >>> @workflow.command(timeout=60, parse="json")
            ... def add(one: int, other: int) -> list[str]:
            ...     return [sys.executable, "-c", f"print({one} + {other})"]
            >>> add(1, 2).parsed
            3
        """
        from iso_orchestrator.commands.step import CommandStep, command_options  # what runs none, loads none

        name, key = options.pop("name", None), options.pop("idempotency_key", None)
        checked = command_options(**options)

        def decorate(plain: Callable[..., CommandLine]) -> CommandStep[..., Any]:
            made: CommandStep[..., Any] = CommandStep(plain, lambda: self._runtime, checked, name, key)
            made.claim(self._runtime)
            return made

        return decorate if fn is None else decorate(fn)

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
            max_parallel: How many items may run at a time.
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
        from iso_orchestrator.fanout.for_each import ForEach, for_each_options

        options = for_each_options(
            max_parallel, mutex_key, mutex_scope, mutex_timeout, stop_on_error, executor, progress
        )
        return lambda fn: ForEach(fn, lambda: self._runtime, options)

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
        from iso_orchestrator.fanout.for_each import for_each_options, run_for_each

        options = for_each_options(
            max_parallel, mutex_key, mutex_scope, mutex_timeout, stop_on_error, executor, progress
        )
        return run_for_each(self._runtime, items, fn, options)

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
        return Mutex(self._runtime, key, timeout, scope)

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
        return reset_steps(self._runtime, name_or_pattern)

    def close(self) -> None:
        """Let go of the record, and write the snapshot if nobody else uses it. It opens again on next use.

        Raises:
            WorkflowUsageError: Inside a run.
        """
        if self._entered:
            raise WorkflowUsageError(f"workflow {self.workflow_id!r}: close() inside a run; leave the with block first")
        self._runtime.close()


def _clock(now: Callable[[], datetime] | None) -> Clock:
    if now is None:
        return SystemClock()
    if not callable(now):
        raise TypeError(f"now must be a function that returns an aware datetime, not {now!r}")
    clock = InjectedClock(now)
    clock.now()  # a naive clock is to be told at once
    return clock
