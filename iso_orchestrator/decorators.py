"""The decorators: methods of a `Workflow`, and free functions for the workflow that is current."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

from iso_orchestrator.commands.model import CommandKeywords
from iso_orchestrator.fanout.for_each import ForEach, ForEachKeywords, ForEachOptions
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.options import CallKeywords, StepKeywords, StepOptions, documented
from iso_orchestrator.steps.step import Step

if TYPE_CHECKING:
    from iso_orchestrator.agents import Agent, AgentResult
    from iso_orchestrator.commands.step import CommandLine, CommandStep

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Item = TypeVar("Item")


class Decorators:
    """`step`, `command` and `for_each`, as methods of `Workflow` and as free functions.

    What a free decorator makes belongs to no workflow. Each call acts on the workflow that is current then, so that a
    module of steps can serve many workflows; it raises `NoActiveWorkflowError` where none is current.

    Example:
        >>> from iso_orchestrator import Workflow, step
        >>> @step
        ... def answer() -> int:
        ...     return 42
        >>> with Workflow("batch", store="memory://free"):
        ...     answer()
        42
    """

    def _bound_runtime(self) -> WorkflowRuntime | None:
        """Return the runtime of the workflow that the decorators belong to; None for the free ones."""
        return None

    @overload
    def step(self, fn: Callable[P, R], /) -> Step[P, R]: ...
    @overload
    def step(self, /, **options: Unpack[StepKeywords]) -> Callable[[Callable[P, R]], Step[P, R]]: ...
    @documented(StepKeywords, CallKeywords)
    def step(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a function a step: a call that completed does not run again, its recorded result is returned.

        A step's body runs at least once: a crash between its end and the record repeats it. At most one result is
        recorded. While a live thread or process runs a step, other callers wait for its outcome. The body runs in a
        copy of the caller's context: context variables that it sets are not visible to the caller.

        Args:
            fn: The function, where the decorator is used without parentheses.
            **options: See below.

        Raises:
            TypeError: *fn* is a coroutine or generator function, or an option is unknown or of the wrong type.
            ValueError: An option is out of its range.
            DuplicateStepError: Another function of this workflow has the name.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> workflow = Workflow("batch", store="memory://step")
            >>> @workflow.step(name="fetch:{page}", retry=3)
            ... def fetch(page: int) -> int:
            ...     return page * 2
            >>> fetch(1), fetch.step_name(1)
            (2, 'fetch:1')
        """
        checked = StepOptions(**options)
        return _decorate(lambda plain: Step(plain, checked, self._bound_runtime()), fn)

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
    @documented(CommandKeywords, StepKeywords, CallKeywords)
    def command(self, fn: Callable[..., CommandLine] | None = None, /, **options: Any) -> Any:
        """Make a function that returns a command line a step that runs it.

        The command's standard input is empty, unless the function gives it one. Its output goes to a log as it comes.
        The command runs in a session of its own, with default signal handlers. When it ends, times out, fails or is
        interrupted, all processes that it started are ended too: SIGTERM, some seconds to finish, SIGKILL. Before a
        command starts, processes that a killed run left of it are ended.

        Args:
            fn: The function, where the decorator is used without parentheses. It returns a list of a program and its
                arguments, a `Command`, or what an agent of `iso_orchestrator.agents` makes.
            **options: See below, and:
                parse: How to make the result's `parsed` from standard output: "text", "json", "jsonl", a function,
                or an agent, which also judges the run.

        Raises:
            TypeError: An option is unknown or of the wrong type.
            ValueError: An option is out of its range.

        Example:
            >>> import sys, tempfile
            >>> from iso_orchestrator import Workflow
            >>> workflow = Workflow("batch", dir=tempfile.mkdtemp())
            >>> @workflow.command(timeout=60, parse="json")
            ... def add(one: int, other: int) -> list[str]:
            ...     return [sys.executable, "-c", f"print({one} + {other})"]
            >>> add(1, 2).parsed
            3
        """
        from iso_orchestrator.commands.step import CommandOptions, CommandStep  # programs without commands load none

        checked = CommandOptions(**options)
        return _decorate(lambda plain: CommandStep(plain, checked, self._bound_runtime()), fn)

    @documented(ForEachKeywords)
    def for_each(
        self, **options: Unpack[ForEachKeywords]
    ) -> Callable[[Callable[Concatenate[Item, P], R]], ForEach[Item, P, R]]:
        """Make a function of one item a function of many.

        Items start in order, except those that wait for their mutex key. An item that waits holds no worker.

        Args:
            **options: See below.

        Returns:
            A decorator. The function that it makes takes an iterable of items and the shared arguments, and returns a
            `ForEachSummary`.

        Raises:
            TypeError: An option is unknown or of the wrong type.
            ValueError: An option is out of its range.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> workflow = Workflow("batch", store="memory://for_each")
            >>> @workflow.for_each(max_parallel=2, mutex_key="{job[company]}")
            ... def apply(job: dict, greeting: str) -> str:
            ...     return f"{greeting} {job['company']}"
            >>> apply([{"company": "A"}, {"company": "B"}], "Dear").values()
            ['Dear A', 'Dear B']
        """
        checked = ForEachOptions(**options)
        return lambda fn: ForEach(fn, checked, self._bound_runtime())


def _decorate(make: Callable[[Callable[..., Any]], R], fn: Callable[..., Any] | None) -> Any:
    """Return the decorator *make*, or where it is used without parentheses, what it makes of *fn*."""
    return make if fn is None else make(fn)


_free = Decorators()
step = _free.step
command = _free.command
for_each = _free.for_each
