"""The result of an agent's run, the same for each CLI."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import attrs

from iso_orchestrator.commands.model import printable


def _optional(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _all(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(printable, texts))


class Outcome(StrEnum):
    """How a run ended. The exit code does not say it: empty answers and refused tools end with 0 too."""

    OK = "ok"
    EMPTY = "empty"
    REFUSED = "refused"
    LIMITED = "limited"
    FAILED = "failed"


@attrs.frozen
class Usage:
    """Tokens by kind, as the CLI counts them; None where it does not say.

    Attributes:
        input_tokens: Read by the model. codex includes tokens from its cache, claude and opencode do not.
        output_tokens: Written by the model.
        cache_read_tokens: Read from the provider's cache.
        cache_write_tokens: Written to the provider's cache.
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
        """Whether no count is below zero: the difference of totals of two sessions may be."""
        return all(count is None or count >= 0 for count in attrs.astuple(self))

    def _with(self, other: Usage, sign: int) -> Usage:
        pairs = zip(attrs.astuple(self), attrs.astuple(other), strict=True)
        return Usage(*(None if one is None and two is None else (one or 0) + sign * (two or 0) for one, two in pairs))


@attrs.frozen
class AgentResult:
    """The result of an agent's run. Can be recorded as the result of a step.

    Attributes:
        agent: The agent's name: ``"codex"``.
        outcome: `ok` only if the CLI closed the turn, there is an answer, it ended with 0, and it was not stopped.
        text: The final answer; ``""`` if there is none.
        session_id: The argument for `resume=`. None if there is no session to resume: none was begun, or the CLI says
            that it has none of that name.
        usage: Tokens of this run alone. None if they are not known.
        session_usage: Tokens of the whole session, if the CLI counts only those (codex): the argument `before=` of the
            next run that resumes it.
        cost_usd: US dollars of this run, as the CLI estimates them.
        until: When a limit is lifted: aware, in UTC; the end of the minute if only that is known. It may have passed.
            None if the CLI did not say.
        reason: Why it is not `ok`.
        refusals: What the agent was not allowed to do, or the model would not do.
        closing: The CLI's closing event, as it came: a line of JSON. None if it is longer than 64 KiB.
        strays: The last 20 lines that were not understood, cut at 500 characters.
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
