"""How the output of a command is read: as text, as JSON, by a function, or by an agent."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

import attrs

from iso_orchestrator.codec import decode
from iso_orchestrator.commands.model import CommandResult
from iso_orchestrator.errors import CommandError, CommandTimeoutError, OrchestratorError
from iso_orchestrator.notes import add_note
from iso_orchestrator.record.model import Json
from iso_orchestrator.steps.options import unwrap_function
from iso_orchestrator.steps.step import return_annotation

Parse: TypeAlias = Literal["text", "json", "jsonl"] | Callable[[str], Any]


@attrs.frozen
class Ended:
    """A command that has ended by itself, with any exit code.

    Attributes:
        step: The step's name.
        result: Its result, not parsed yet.
        at: When it had ended.
        stdout: Reads all of its standard output, from the file that it was written to.
    """

    step: str
    result: CommandResult[Any]
    at: datetime
    stdout: Callable[[], str]


class Reader(ABC):
    """Reads the output of one run."""

    on_line: Callable[[str], None] | None = None
    """Called with each line as it comes; None where lines are not read."""

    def detail(self) -> dict[str, Json]:
        """Facts for the heartbeat, which must be recorded before the end, as the name of an agent's session."""
        return {}

    def last_line(self) -> str:
        """The last line for people to read, where the lines themselves are not for them; else empty."""
        return ""

    def is_done(self) -> bool:
        """Whether the lines so far say that the output is complete: the command has `close_grace` to end by itself."""
        return False

    @abstractmethod
    def on_exit(self, ended: Ended) -> CommandResult[Any]:
        """The parsed result of a run that ended by itself.

        Raises:
            CommandError: It is no success.
        """

    def on_timeout(self, error: CommandTimeoutError, at: datetime) -> OrchestratorError:
        """The error to raise for a run that was ended at a time limit."""
        del at
        return error


class Parser(Protocol):
    """Reads the outputs of a step's commands: what its `parse=` option gives."""

    @property
    def annotation(self) -> Any:
        """The type of `CommandResult.parsed`. Raises `Unresolved` where it does not resolve yet."""
        ...

    @property
    def limit_key(self) -> str | None:
        """The default `limit_key` of the step."""
        ...

    def begin(self, command: Any, before: dict[str, Json]) -> Reader:
        """Begin to read one run.

        Args:
            command: What the step's function returned.
            before: The last heartbeat of the step's command; empty where there is none.
        """
        ...


def as_parser(parse: Any, ok_codes: Collection[int]) -> Parser:
    """The parser of a command's `parse=` option.

    Raises:
        TypeError: It is none of what `parse=` takes.
    """
    if hasattr(parse, "begin"):  # an agent is one itself; agents are imported by their users alone
        parser: Parser = parse
        return parser
    make = _FUNCTIONS.get(parse, parse) if isinstance(parse, str) else parse
    if make is not None and not callable(make):
        known = ", ".join(map(repr, _FUNCTIONS))
        raise TypeError(f"parse takes {known}, a function of the output or an agent, not {parse!r:.80}")
    return _FunctionParser(frozenset(ok_codes), make)


def _json_lines(output: str) -> list[Any]:
    return [decode(line) for line in output.split("\n") if line.strip()]


_FUNCTIONS: dict[str, Callable[[str], Any]] = {"text": str, "json": decode, "jsonl": _json_lines}


@attrs.frozen
class _FunctionParser(Reader):
    """Takes an exit code for success, and then calls a function with the output. It is its own reader."""

    ok_codes: frozenset[int]
    make: Callable[[str], Any] | None
    limit_key: str | None = None

    @property
    def annotation(self) -> Any:
        found = inspect.Signature.empty if self.make is None else return_annotation(unwrap_function(self.make))
        return Any if found is inspect.Signature.empty else found

    def begin(self, command: Any, before: dict[str, Json]) -> Reader:
        del command, before
        return self

    def on_exit(self, ended: Ended) -> CommandResult[Any]:
        result = ended.result
        if result.exit_code not in self.ok_codes:
            raise CommandError(ended.step, result)
        if self.make is None:
            return result
        try:
            parsed = self.make(ended.stdout())
        except Exception as error:
            add_note(error, f"in parse= of step {ended.step!r}; the output: {result.log_path}")
            raise
        return attrs.evolve(result, parsed=parsed)
