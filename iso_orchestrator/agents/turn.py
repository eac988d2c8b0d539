"""One turn of an agent: what it prints is read line by line into a transcript, and classified when it has ended."""

from __future__ import annotations

import re
import signal
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from iso_orchestrator.agents.limits import is_limit, until_of
from iso_orchestrator.codec.json import decode
from iso_orchestrator.commands.model import printable

if TYPE_CHECKING:
    from iso_orchestrator.agents.agent import Agent

Event: TypeAlias = dict[str, Any]
"""One line of a CLI's output: a JSON object."""

_LONGEST_CLOSING = 65_536  # characters; a longer event is in the command's log
_LONGEST_UNPARSED = 500
_LONGEST_SHOWN = 200
_LONGEST_LIMIT = timedelta(days=8)  # limits of a week are the longest: a later end is misread, or an error of the CLI
_LONGEST_REASON = 2000
_UNPARSED_LINES = 20

# Passed back to the CLI as an argument: nothing that could be taken for an option.
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")

_MOST = 2**53  # tokens, or dollars; a larger number is an error
_SHELL_SIGNALS = range(129, 129 + 64)  # the exit codes by which a shell, and claude itself, say "killed by"

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ERROR = re.compile(r"error\b", re.IGNORECASE)


def as_session_id(value: object) -> str | None:
    """*value* if it can be the name of a session, else None."""
    return value if isinstance(value, str) and _SESSION_ID.fullmatch(value) else None


def as_count(value: object) -> int | None:
    """*value* if it can be a number of tokens, else None."""
    return value if type(value) is int and 0 <= value <= _MOST else None


def as_cost(value: object) -> float | None:
    """*value* if it can be a sum of US dollars, else None."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= _MOST else None


def as_usage(counts: dict[str, Any], keys: Sequence[str]) -> Usage:
    """The counts under *keys*, which stand in the order of the fields of `Usage`."""
    return Usage(*(as_count(counts.get(key)) for key in keys))


def last_error_line(stderr: str) -> str:
    """The last line of a standard error that begins with "error", else the last line; without its colours."""
    lines = [line.strip() for line in _ANSI.sub("", stderr).splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1]


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


def _printable(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(printable, texts))


@attrs.frozen
class AgentResult:
    """The result of an agent's run. Can be recorded as the result of a step.

    Attributes:
        agent: The agent's name: ``"codex"``.
        outcome: `ok` only if the CLI closed the turn, there is an answer, no refusal counts, and the run was not
            stopped. The exit code does not matter.
        text: The final answer; ``""`` if there is none.
        session_id: The argument for `resume=`. None if there is no session to resume: none was begun, or the CLI says
            that it has none of that name.
        usage: Tokens of this run alone. None if they are not known.
        session_usage: Tokens of the whole session, if the CLI counts only those (codex): the argument `before=` of the
            next run that resumes it.
        cost_usd: US dollars of this run, as the CLI estimates them.
        until: When a limit is lifted: aware, in UTC; the end of the minute if only that is known. It may have passed.
            None if that is not known, or more than 8 days away.
            None if the CLI did not say.
        reason: Why it is not `ok`.
        refusals: What the agent was not allowed to do, or the model would not do; also what `allow_refusals` accepts.
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
    reason: str | None = attrs.field(default=None, converter=attrs.converters.optional(printable))
    refusals: tuple[str, ...] = attrs.field(default=(), converter=_printable)
    closing: str | None = attrs.field(default=None, converter=attrs.converters.optional(printable))
    strays: tuple[str, ...] = attrs.field(default=(), converter=_printable)


@attrs.define
class Transcript:
    """What the events of a run have said so far: `Agent.read` fills it in. A good end clears earlier errors.

    Attributes:
        line: The line that is being read.
        session_id: The session, once it is known.
        text: The answer so far.
        closing: The line that ended the turn well.
        error: The last error, unless the CLI recovered from it.
        limited: Whether its status says that this is a usage limit.
        until: When the limit is lifted.
        has_failed: Whether the CLI has ended the turn with that error.
        allow_refusals: `Agent.allow_refusals`.
        refusals: Tools and answers that were refused.
        counted: Those that `allow_refusals` does not accept.
        usage: Tokens of this run.
        session_usage: Tokens of the whole session, where the CLI counts only those.
        cost_usd: US dollars of this run.
        heard_at: The time of the last event, by the CLI's own clock.
        last_line: The last line for people to read.
        shown: The texts for people to read that are in the line being read.
        has_events: Whether any line was understood.
        unparsed_lines: Lines that were not understood.
    """

    line: str = ""
    session_id: str | None = None
    text: str = ""
    closing: str | None = None
    error: str | None = None
    limited: bool = False
    until: datetime | None = None
    has_failed: bool = False
    allow_refusals: bool | frozenset[str] = False
    refusals: list[str] = attrs.field(factory=list)
    counted: list[str] = attrs.field(factory=list)
    usage: Usage | None = None
    session_usage: Usage | None = None
    cost_usd: float | None = None
    heard_at: datetime | None = None
    last_line: str = ""
    shown: list[str] = attrs.field(factory=list)
    has_events: bool = False
    unparsed_lines: deque[str] = attrs.field(factory=lambda: deque(maxlen=_UNPARSED_LINES))

    def show(self, text: object) -> None:
        """Show *text* to people who read the log, and its last line to those who watch the run."""
        self.shown.append(str(text).strip())
        lines = str(text).strip().splitlines()
        if lines:
            self.last_line = printable(lines[-1].strip()[:_LONGEST_SHOWN])

    def say(self, text: str) -> None:
        """Take *text* for the answer, in place of an earlier one."""
        self.text = text
        self.show(text)

    @property
    def is_closed(self) -> bool:
        """Whether the CLI has ended the turn, well or not."""
        return self.closing is not None or self.has_failed

    def fail(self, message: str, *, limited: bool = False, until: datetime | None = None, closes: bool = False) -> None:
        """Note an error, which counts unless the turn is closed after it.

        Args:
            message: The error.
            limited: Whether the CLI says that this is a usage limit.
            until: When that is lifted.
            closes: Whether the CLI ends the turn with it, and does not try again.
        """
        self.closing, self.has_failed = None, closes
        self.error, self.limited = message, limited
        self.until = until or self.until
        self.show(message)

    def refuse(self, what: str, *, tool: str | None = None) -> None:
        """Note that something was refused.

        Args:
            what: What was refused.
            tool: The name of the tool, for `allow_refusals`; None for what counts in any case.
        """
        self.refusals.append(what)
        allowed = self.allow_refusals
        if tool is None or not (allowed if isinstance(allowed, bool) else tool in allowed):
            self.counted.append(what)
        self.show(what)

    def close(self) -> None:
        """Take the line being read for the end of a turn that went well."""
        self.closing = self.line
        self.error, self.limited, self.has_failed = None, False, False


class AgentStream:
    """Reads what one run prints, line by line, and classifies it at the end. No output makes it raise."""

    def __init__(self, agent: Agent, before: Usage | None = None) -> None:
        self._agent = agent
        self._before = before
        self._transcript = Transcript(allow_refusals=agent.allow_refusals)

    @property
    def session_id(self) -> str | None:
        """The session, once it is known. Record it at once, so that a killed run can be resumed."""
        return self._transcript.session_id

    @property
    def is_closed(self) -> bool:
        """Whether the CLI has ended its turn, well or not: it has only to end by itself, which some do not."""
        return self._transcript.is_closed

    @property
    def last_line(self) -> str:
        """The last line for people to read, at most 200 characters. It may drive a terminal."""
        return self._transcript.last_line

    @property
    def words(self) -> list[str]:
        """What the last line that was fed has for people to read. It may drive a terminal."""
        return [text for text in self._transcript.shown if text]

    def feed(self, line: str) -> None:
        """Take in one line of standard output."""
        transcript = self._transcript
        transcript.shown.clear()
        transcript.line = line.strip()
        if not transcript.line:
            return
        event = _event(transcript.line)
        if event is not None and self._agent.read(event, transcript):
            transcript.has_events = True
        else:
            unparsed = transcript.line[:_LONGEST_UNPARSED]
            transcript.unparsed_lines.append(unparsed)
            transcript.show(unparsed)

    def result(
        self,
        exit_code: int | None,
        stderr: str = "",
        *,
        now: datetime,
        stopped: str | None = None,
        zone: tzinfo | None = None,
    ) -> AgentResult:
        """The result of the run.

        Args:
            exit_code: As `subprocess` has it: -15 is killed by SIGTERM. None if it is not known.
            stderr: The end of its standard error.
            now: When it ended; aware.
            stopped: Why the caller ended it, or wanted to, before it was closed: ``"no output for 300 s"``. Such a run
                is never `ok`: claude that has to end in the middle of a tool says that the tool failed, goes on, and
                ends well.
            zone: The time zone of limits that name none; None is this machine's.

        Raises:
            ValueError: *now* is naive.
        """
        if now.tzinfo is None:
            raise ValueError("now is a naive datetime: use datetime.now(UTC)")
        agent, transcript = self._agent, self._transcript
        whole_message = agent.error_message(transcript, stderr)
        is_session_gone = agent.no_session is not None and agent.no_session in whole_message
        message = whole_message[:_LONGEST_REASON]
        end = _End(exit_code, stopped)
        outcome = _outcome(transcript, message, end)
        until = (transcript.until or until_of(message, now, zone)) if outcome is Outcome.LIMITED else None
        if until is not None and until - now > _LONGEST_LIMIT:
            until = None
        return AgentResult(
            agent=agent.name,
            outcome=outcome,
            text=transcript.text,
            session_id=None if is_session_gone else transcript.session_id,
            usage=transcript.usage or _difference(transcript.session_usage, self._before),
            session_usage=transcript.session_usage,
            cost_usd=transcript.cost_usd,
            until=until,
            reason=_reason(outcome, transcript, message, end),
            refusals=transcript.refusals,
            closing=transcript.closing if len(transcript.closing or "") <= _LONGEST_CLOSING else None,
            strays=transcript.unparsed_lines,
        )


def _event(line: str) -> Event | None:
    try:
        event = decode(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


# The classification of a run that has ended


@attrs.frozen
class _End:
    """How a run ended: its exit code, and why it was stopped if it was."""

    exit_code: int | None
    stopped: str | None

    @property
    def is_good(self) -> bool:
        """Whether the process ended by itself, with 0."""
        return self.exit_code == 0 and self.stopped is None

    def __str__(self) -> str:
        if self.stopped is not None:
            return f"stopped: {self.stopped}"
        if self.exit_code is None:
            return "ended with an unknown exit code"
        if self.exit_code < 0:
            return f"killed by {_signal_name(-self.exit_code)}"
        if self.exit_code in _SHELL_SIGNALS:
            return f"ended with {self.exit_code}, killed by {_signal_name(self.exit_code - 128)}"
        return f"ended with {self.exit_code}"


def _outcome(transcript: Transcript, message: str, end: _End) -> Outcome:
    is_closed = transcript.closing is not None and end.stopped is None
    if (end.is_good or is_closed) and transcript.counted and not transcript.error:
        return Outcome.REFUSED
    if is_closed and transcript.text.strip():
        return Outcome.OK
    if not (is_closed and end.is_good) and (transcript.limited or is_limit(message)):
        return Outcome.LIMITED
    return Outcome.EMPTY if is_closed else Outcome.FAILED


def _reason(outcome: Outcome, transcript: Transcript, message: str, end: _End) -> str | None:
    match outcome:
        case Outcome.OK:
            return None
        case Outcome.EMPTY:
            return "the answer has no text"
        case Outcome.REFUSED:
            return "; ".join(transcript.counted)[:_LONGEST_REASON]
        case Outcome.LIMITED:
            return message or str(end)
        case Outcome.FAILED:
            return ": ".join(filter(None, [str(end), message, _missing(transcript, message)]))


def _missing(transcript: Transcript, message: str) -> str:
    """What a run should have printed; ``""`` if its error says enough."""
    if transcript.unparsed_lines and not transcript.has_events:
        last_line = transcript.unparsed_lines[-1][:_LONGEST_SHOWN]
        return (
            f"none of its output is an event (the last line: {last_line!r}); "
            "remove --output-format and the like from args=, or use a version that prints the events"
        )
    if message or transcript.closing:
        return ""
    return "it never closed its turn" if transcript.has_events else "it printed no events"


def _difference(total: Usage | None, before: Usage | None) -> Usage | None:
    if total is None or before is None:
        return total
    if before == Usage():
        return None
    # A total below the last one belongs to another count: then this run's share is not known.
    return since if (since := total - before).is_possible() else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
