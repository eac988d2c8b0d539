"""What became of an agent's run, whichever CLI it was."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import attrs

from iso_orchestrator.commands.model import printable

__all__ = ["AgentResult", "Outcome", "Usage"]


def _optional(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _all(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(printable, texts))


class Outcome(StrEnum):
    """How a run ended. An exit code alone says none of these: empty answers and refused tools end with 0 too."""

    OK = "ok"
    EMPTY = "empty"
    REFUSED = "refused"
    LIMITED = "limited"
    FAILED = "failed"


@attrs.frozen
class Usage:
    """Tokens by kind, as the CLI counts them; None where it does not say.

    Attributes:
        input_tokens: Read by the model. codex counts those from its cache in, claude and opencode do not.
        output_tokens: Written by the model.
        cache_read_tokens: Read from the provider's cache.
        cache_write_tokens: Written to it.
        reasoning_tokens: Spent on reasoning that is not shown.

    Example:
        >>> Usage(input_tokens=240) - Usage(input_tokens=120)
        Usage(input_tokens=120, output_tokens=None, cache_read_tokens=None, cache_write_tokens=None, \
reasoning_tokens=None)
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        return self._with(other, 1)

    def __sub__(self, other: Usage) -> Usage:
        return self._with(other, -1)

    def is_possible(self) -> bool:
        """Whether no count is below zero, as a difference of totals that do not belong together may be."""
        return all(count is None or count >= 0 for count in attrs.astuple(self))

    def _with(self, other: Usage, sign: int) -> Usage:
        pairs = zip(attrs.astuple(self), attrs.astuple(other), strict=True)
        return Usage(*(None if one is None and two is None else (one or 0) + sign * (two or 0) for one, two in pairs))


@attrs.frozen
class AgentResult:
    """What an agent's run gave. Can be recorded as the result of a step.

    Attributes:
        agent: The agent's name: ``"codex"``.
        outcome: `ok` only where the CLI closed the turn, there is an answer, it ended with 0, and nobody ended it.
        text: The final answer; ``""`` where there is none.
        session_id: What `resume=` takes. None where there is no session to go on with: none was begun, or the CLI
            says that it has none of that name.
        usage: Tokens of this run alone. None where they are not known.
        session_usage: Tokens of the whole session, where it is only those that the CLI tells (codex): what the next
            run that resumes it needs as `before=`.
        cost_usd: US dollars of this run as the CLI estimates them.
        until: When a limit is lifted: aware, in UTC; the end of the minute where only that is known. It may have
            passed by now. None where nobody said.
        reason: Why it is not `ok`.
        refusals: What the agent was not allowed to do, or the model would not.
        closing: The CLI's closing event, as it came: a line of JSON. None where it is longer than 64 KiB.
        strays: Lines that were not understood, as they came, cut at 500 characters: the last 20.
    """

    agent: str
    outcome: Outcome
    text: str = attrs.field(default="", converter=printable)
    session_id: str | None = None
    usage: Usage | None = None
    session_usage: Usage | None = None
    cost_usd: float | None = None
    until: datetime | None = None
    reason: str | None = attrs.field(default=None, converter=_optional)
    refusals: tuple[str, ...] = attrs.field(default=(), converter=_all)
    closing: str | None = attrs.field(default=None, converter=_optional)
    strays: tuple[str, ...] = attrs.field(default=(), converter=_all)
