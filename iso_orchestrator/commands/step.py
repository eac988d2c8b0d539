"""`@workflow.command`: a step that is a command line, ended for real when it is given up, and found after a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import attrs

from iso_orchestrator.codec import ResultCodec
from iso_orchestrator.commands.call import CommandAttempt, CommandLine, CommandOptions
from iso_orchestrator.commands.model import CommandResult
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.step import UNRESOLVED, Step

__all__ = ["CommandOptions", "CommandStep"]

P = ParamSpec("P")
T = TypeVar("T")


class CommandStep(Step[P, CommandResult[T]]):
    """A function whose calls are commands. Made by `workflow.command` and by the free `command`.

    Attributes:
        fn: The plain function, which returns the command line.
    """

    fn: Callable[P, CommandLine]  # type: ignore[assignment]  # a step's own returns the result

    def __init__(
        self, fn: Callable[P, CommandLine], options: CommandOptions, runtime: WorkflowRuntime | None = None
    ) -> None:
        limit_key = options.reading.limit_key if options.limit_key is None else options.limit_key
        # The command ends itself at its time limit; a step's own would leave it running.
        step = attrs.evolve(options, timeout=None, limit_key=limit_key)
        super().__init__(cast("Any", fn), step, runtime)
        self._command = options

    def _result_codec(self) -> ResultCodec:
        annotation = self._command.reading.annotation
        if annotation is UNRESOLVED:
            return ResultCodec(CommandResult[Any])  # perhaps it resolves at the next call
        self._codec = ResultCodec(CommandResult[annotation])  # type: ignore[valid-type]  # it is known at run time
        return self._codec

    def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        return lambda: CommandAttempt(self._command).run(lambda: self.fn(*args, **kwargs))
