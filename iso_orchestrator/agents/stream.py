"""Reads what an agent prints while it runs."""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from typing import Any, ClassVar, Protocol, TypeAlias

import attrs

from iso_orchestrator.agents.result import AgentResult, Usage
from iso_orchestrator.agents.turn import Turn
from iso_orchestrator.agents.verdict import End, judge
from iso_orchestrator.codec.json import decode

__all__ = ["AgentStream", "Event", "Reader", "last_words"]

Event: TypeAlias = dict[str, Any]
"""One line of a CLI's output: a JSON object."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ERROR = re.compile(r"error\b", re.IGNORECASE)


class Reader(Protocol):
    """What a stream needs of an agent."""

    name: ClassVar[str]
    no_session: ClassVar[str | None]

    def read(self, event: Event, turn: Turn) -> bool:
        """Take in one event. False: it is not understood."""
        ...

    def complaint(self, turn: Turn, stderr: str) -> str:
        """Why the run went wrong, in the CLI's words."""
        ...


class AgentStream:
    """Reads what one run prints, line by line, and judges it in the end. Never raises for what a CLI prints."""

    def __init__(self, agent: Reader, before: Usage | None = None) -> None:
        self._agent = agent
        self._before = before
        self._turn = Turn()

    @property
    def session_id(self) -> str | None:
        """The session, as soon as it is known: to be recorded at once, so that a killed run can be gone on with."""
        return self._turn.session_id

    @property
    def last_line(self) -> str:
        """The last thing that it said to people, in at most 200 characters; not made harmless for a terminal."""
        return self._turn.last_line

    def feed(self, line: str) -> None:
        """Take in one line of standard output."""
        turn = self._turn
        turn.line = line.strip()
        if not turn.line:
            return
        event = _event(turn.line)
        if event is None or not self._agent.read(event, turn):
            turn.stray()

    def result(
        self,
        exit_code: int | None,
        stderr: str = "",
        *,
        now: datetime,
        stopped: str | None = None,
        zone: tzinfo | None = None,
    ) -> AgentResult:
        """What became of the run.

        Args:
            exit_code: As `subprocess` has it: -15 is killed by SIGTERM. None where nobody knows.
            stderr: The end of its standard error.
            now: When it ended; aware.
            stopped: Why the caller ended it, or wanted to: ``"no output for 300 s"``. Such a run is never `ok`:
                claude that is told to end in the middle of a tool says that the tool failed, goes on, and ends well.
            zone: Of times that a limit's text names without one; None is this machine's.

        Raises:
            ValueError: *now* is naive.
        """
        if now.tzinfo is None:
            raise ValueError("now is a naive datetime: use datetime.now(UTC)")
        complaint = self._agent.complaint(self._turn, stderr)
        end = End(exit_code, stopped, now, zone)
        result = judge(self._agent.name, self._turn, complaint, end, self._before)
        knows_session = self._agent.no_session is None or self._agent.no_session not in complaint
        return result if knows_session else attrs.evolve(result, session_id=None)


def last_words(stderr: str) -> str:
    """The last line of a standard error that begins with "error", else the last at all; without its colours."""
    lines = [line.strip() for line in _ANSI.sub("", stderr).splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1]


def _event(line: str) -> Event | None:
    try:
        event = decode(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None
