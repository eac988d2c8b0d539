"""What has been heard of a run so far: an agent's class fills it in, event by event."""

from __future__ import annotations

import re
from collections import deque
from datetime import datetime

import attrs

from iso_orchestrator.agents.result import Usage
from iso_orchestrator.commands.model import printable

__all__ = ["Turn", "as_cost", "as_count", "as_session_id"]

_LONGEST_CLOSING = 65_536  # characters; what is longer is in the command's log
_LONGEST_STRAY = 500
_LONGEST_SHOWN = 200
_STRAYS = 20

# Handed back to the CLI as an argument: nothing that could be taken for an option.
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")

_MOST = 2**53  # of tokens, or dollars; what is more is neither


def as_session_id(value: object) -> str | None:
    """*value* where it can be the name of a session, else None."""
    return value if isinstance(value, str) and _SESSION_ID.fullmatch(value) else None


def as_count(value: object) -> int | None:
    """*value* where it can be a number of tokens, else None."""
    return value if type(value) is int and 0 <= value <= _MOST else None


def as_cost(value: object) -> float | None:
    """*value* where it can be a sum of US dollars, else None."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= _MOST else None


@attrs.define
class Turn:
    """One run, as its events tell it. The last word counts: a good end forgets the errors that were got over.

    Attributes:
        line: The line that is being read.
        session_id: As soon as it is known.
        text: The answer so far.
        closing: The line that ended the turn well.
        error: What the CLI complained of, unless it got over it.
        limited: Whether that is a limit, as its status says.
        until: When the limit is lifted.
        refusals: What was refused.
        usage: Tokens of this run.
        session_usage: Tokens of the session, where only those are told.
        cost_usd: US dollars of this run.
        heard_at: When its last event was, by the CLI's own clock.
        last_line: The last thing that is for people to read.
        strays: Lines that were not understood.
    """

    line: str = ""
    session_id: str | None = None
    text: str = ""
    closing: str | None = None
    error: str | None = None
    limited: bool = False
    until: datetime | None = None
    refusals: list[str] = attrs.field(factory=list)
    usage: Usage | None = None
    session_usage: Usage | None = None
    cost_usd: float | None = None
    heard_at: datetime | None = None
    last_line: str = ""
    strays: deque[str] = attrs.field(factory=lambda: deque(maxlen=_STRAYS))

    def show(self, text: object) -> None:
        """Have the last line of *text* be the last line."""
        lines = str(text).strip().splitlines()
        if lines:
            self.last_line = printable(lines[-1].strip()[:_LONGEST_SHOWN])

    def say(self, text: str) -> None:
        """*text* is the answer, until another is."""
        self.text = text
        self.show(text)

    def complain(self, message: str, *, limited: bool = False, until: datetime | None = None) -> None:
        """Something went wrong; unless it closes after all, this is why."""
        self.closing = None
        self.error, self.limited = message, limited
        self.until = until or self.until
        self.show(message)

    def refuse(self, what: str) -> None:
        """Something was not allowed."""
        self.refusals.append(what)
        self.show(what)

    def close(self) -> None:
        """The event being read is the one that ends a turn well."""
        self.closing = self.line
        self.error, self.limited = None, False

    def stray(self) -> None:
        """The line being read was not understood."""
        self.strays.append(self.line[:_LONGEST_STRAY])
        self.show(self.line[:_LONGEST_STRAY])

    def raw_closing(self) -> str | None:
        """The closing event, unless it is too long to be recorded twice."""
        return self.closing if self.closing is not None and len(self.closing) <= _LONGEST_CLOSING else None
