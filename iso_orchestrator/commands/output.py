"""What is made of a command's output: nothing, text, JSON, or what a function or an agent's dialect makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

import attrs

from iso_orchestrator.codec import decode
from iso_orchestrator.commands.model import CommandResult
from iso_orchestrator.errors import CommandError, CommandTimeoutError, OrchestratorError
from iso_orchestrator.record.model import Json
from iso_orchestrator.steps.step import return_annotation

__all__ = ["Output", "Parse", "Reader", "Reading", "as_reading"]

Parse: TypeAlias = Literal["text", "json", "jsonl"] | Callable[[str], Any]


@attrs.frozen
class Output:
    """A command that has ended, whatever its exit code.

    Attributes:
        step: The step's name.
        result: What came of it, not parsed yet.
        at: When it had ended.
        whole: Reads all of its standard output.
    """

    step: str
    result: CommandResult[Any]
    at: datetime
    whole: Callable[[], str]


class Reader(Protocol):
    """Reads the output of one run."""

    @property
    def on_line(self) -> Callable[[str], None] | None:
        """Is given each line as it comes; None where nobody waits for lines."""
        ...

    def detail(self) -> dict[str, Json]:
        """What is known by now and has to be on record before the end, as the name of an agent's session."""
        ...

    def finish(self, output: Output) -> CommandResult[Any]:
        """The result, parsed.

        Raises:
            CommandError: It is no success.
        """
        ...

    def given_up(self, error: CommandTimeoutError, at: datetime) -> OrchestratorError:
        """What to raise where it was ended at a limit of time."""
        ...


class Reading(Protocol):
    """How the outputs of a command are read."""

    @property
    def annotation(self) -> Any:
        """The type of what is made of them; `step.UNRESOLVED` where it does not resolve yet."""
        ...

    @property
    def limit_key(self) -> str | None:
        """What is limited when one of them says so; None where none does."""
        ...

    def begin(self, command: Any, before: dict[str, Json]) -> Reader:
        """Read one run of *command*; *before* is the last `Reader.detail` of the step, where there is one."""
        ...


def as_reading(parse: Any, ok_codes: Collection[int]) -> Reading:
    """How a command's `parse` option reads.

    Raises:
        TypeError: It is none of what `parse` takes.
    """
    if hasattr(parse, "reading"):  # an agent; its dialects are imported by whoever uses one
        reading: Reading = parse.reading()
        return reading
    make = _PARSERS.get(parse) if parse is None or isinstance(parse, str) else parse
    if not callable(make):
        known = ", ".join(repr(name) for name in _PARSERS if name)
        raise TypeError(f"parse takes {known}, a function of the output or an agent, not {parse!r:.80}")
    return _Plain(frozenset(ok_codes), make)


@attrs.frozen
class _Plain:
    """Success is an exit code, and the output is parsed when there is one."""

    ok_codes: frozenset[int]
    make: Callable[[str], Any]
    limit_key: str | None = None
    on_line: None = None

    @property
    def annotation(self) -> Any:
        found = return_annotation(self.make)
        return Any if found is inspect.Signature.empty else found

    def begin(self, command: Any, before: dict[str, Json]) -> Reader:
        del command, before
        return self

    def detail(self) -> dict[str, Json]:
        return {}

    def given_up(self, error: CommandTimeoutError, at: datetime) -> OrchestratorError:
        del at
        return error

    def finish(self, output: Output) -> CommandResult[Any]:
        if output.result.exit_code not in self.ok_codes:
            raise CommandError(output.step, output.result)
        if self.make is _nothing:
            return output.result
        try:
            parsed = self.make(output.whole())
        except Exception as error:
            error.add_note(f"iso-orchestrator: in parse= of step {output.step!r}; the output: {output.result.log_path}")
            raise
        return attrs.evolve(output.result, parsed=parsed)


def _nothing(_: str) -> None:
    return None


def _text(output: str) -> str:
    return output


def _json(output: str) -> Any:
    return decode(output)


def _json_lines(output: str) -> list[Any]:
    return [decode(line) for line in output.split("\n") if line.strip()]


_PARSERS: dict[str | None, Callable[[str], Any]] = {
    None: _nothing,
    "text": _text,
    "json": _json,
    "jsonl": _json_lines,
}
