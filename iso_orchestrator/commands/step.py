"""`@workflow.command`: a step that is a command line, ended for real when it is given up, and found after a crash."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar, cast

from iso_orchestrator.checks import check_key, check_seconds
from iso_orchestrator.codec import ResultCodec
from iso_orchestrator.commands.call import CommandAttempt, CommandLine, CommandOptions, IfLeft
from iso_orchestrator.commands.model import CommandResult
from iso_orchestrator.commands.output import as_reading
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.options import StepKeywords, StepOptions
from iso_orchestrator.steps.step import UNRESOLVED, Step

__all__ = ["CommandKeywords", "CommandStep", "command_options"]

P = ParamSpec("P")
T = TypeVar("T")


class CommandKeywords(StepKeywords, total=False):
    """The options of `command` besides `parse`, for type checkers."""

    idle_timeout: float | None
    ok_codes: Collection[int]
    log_dir: str | os.PathLike[str] | None
    limit_key: str | None
    if_left: IfLeft


def command_options(
    *,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    parse: Any = None,
    ok_codes: Collection[int] = (0,),
    log_dir: str | os.PathLike[str] | None = None,
    limit_key: str | None = None,
    if_left: IfLeft = "end",
    **step: Any,
) -> CommandOptions:
    """The options of a command, checked."""
    check_seconds(timeout, "timeout")
    check_seconds(idle_timeout, "idle_timeout")
    codes = () if isinstance(ok_codes, int | str) else tuple(ok_codes)
    if not codes or not all(type(code) is int for code in codes):
        raise TypeError(f"ok_codes must be a collection of ints, not {ok_codes!r:.80}")
    if if_left not in ("end", "wait"):
        raise ValueError(f'if_left is "end" or "wait", not {if_left!r}')
    reading = as_reading(parse, codes)
    key = reading.limit_key if limit_key is None else check_key(limit_key, "limit_key")
    folder = None if log_dir is None else os.path.abspath(os.fspath(log_dir))
    return CommandOptions(StepOptions(**step, limit_key=key), timeout, idle_timeout, reading, folder, if_left)


class CommandStep(Step[P, CommandResult[T]]):
    """A function whose calls are commands. Made by `workflow.command` and by the free `command`.

    Attributes:
        fn: The plain function, which returns the command line.
    """

    fn: Callable[P, CommandLine]  # type: ignore[assignment]  # a step's own returns the result

    def __init__(
        self,
        fn: Callable[P, CommandLine],
        options: CommandOptions,
        runtime: WorkflowRuntime | None = None,
    ) -> None:
        super().__init__(cast("Any", fn), options.step, runtime)
        self._command = options

    def _result_codec(self) -> ResultCodec:
        annotation = self._command.reading.annotation
        if annotation is UNRESOLVED:
            return ResultCodec(CommandResult[Any])  # perhaps it resolves at the next call
        self._codec = ResultCodec(CommandResult[annotation])  # type: ignore[valid-type]  # it is known at run time
        return self._codec

    def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        return lambda: CommandAttempt(self._command).run(lambda: self.fn(*args, **kwargs))
