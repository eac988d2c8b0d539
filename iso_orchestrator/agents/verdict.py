"""The judgement over a run that has ended."""

from __future__ import annotations

import signal
from datetime import datetime, tzinfo

import attrs

from iso_orchestrator.agents.limits import is_limit, until_of
from iso_orchestrator.agents.result import AgentResult, Outcome, Usage
from iso_orchestrator.agents.turn import Turn

__all__ = ["End", "judge"]

_LONGEST_REASON = 2000  # characters
_SHELL_SIGNALS = range(129, 129 + 64)  # how a shell, and claude itself, say "killed by"


@attrs.frozen
class End:
    """How a run ended: its exit code, why it was stopped if it was, when, and in which time zone."""

    exit_code: int | None
    stopped: str | None
    now: datetime
    zone: tzinfo | None

    @property
    def is_good(self) -> bool:
        """Whether the process ended by itself, and well."""
        return self.exit_code == 0 and self.stopped is None

    def __str__(self) -> str:
        if self.stopped is not None:
            return f"stopped: {self.stopped}"
        if self.exit_code is None:
            return "nobody knows how it ended"
        if self.exit_code < 0:
            return f"killed by {_signal_name(-self.exit_code)}"
        if self.exit_code in _SHELL_SIGNALS:
            return f"ended with {self.exit_code}, killed by {_signal_name(self.exit_code - 128)}"
        return f"ended with {self.exit_code}"


def judge(agent: str, turn: Turn, complaint: str, end: End, before: Usage | None) -> AgentResult:
    """What became of a run.

    Args:
        agent: The agent's name.
        turn: All that it printed.
        complaint: What the CLI says went wrong; looked at only where something did.
        end: How its process ended.
        before: Tokens of the session before this run, where the CLI tells only the session's; all None where they are
            not known.
    """
    complaint = complaint[:_LONGEST_REASON]
    outcome = _outcome(turn, complaint, end)
    return AgentResult(
        agent=agent,
        outcome=outcome,
        text=turn.text,
        session_id=turn.session_id,
        usage=turn.usage or _difference(turn.session_usage, before),
        session_usage=turn.session_usage,
        cost_usd=turn.cost_usd,
        until=_until(turn, complaint, end) if outcome is Outcome.LIMITED else None,
        reason=_reason(outcome, turn, complaint, end),
        refusals=turn.refusals,
        closing=turn.raw_closing(),
        strays=turn.strays,
    )


def _outcome(turn: Turn, complaint: str, end: End) -> Outcome:
    if end.is_good and turn.refusals and not turn.error:
        return Outcome.REFUSED
    if end.is_good and turn.closing is not None:
        return Outcome.OK if turn.text.strip() else Outcome.EMPTY
    if turn.limited or is_limit(complaint):
        return Outcome.LIMITED
    return Outcome.FAILED


def _until(turn: Turn, complaint: str, end: End) -> datetime | None:
    return turn.until or until_of(complaint, end.now, end.zone)


def _reason(outcome: Outcome, turn: Turn, complaint: str, end: End) -> str | None:
    match outcome:
        case Outcome.OK:
            return None
        case Outcome.EMPTY:
            return "the answer has no text"
        case Outcome.REFUSED:
            return "; ".join(turn.refusals)[:_LONGEST_REASON]
        case Outcome.LIMITED:
            return complaint or str(end)
        case Outcome.FAILED:
            unclosed = "" if complaint or turn.closing else "it never closed its turn"
            return ": ".join(filter(None, [str(end), complaint or unclosed]))


def _difference(total: Usage | None, before: Usage | None) -> Usage | None:
    if total is None or before is None:
        return total
    if before == Usage():
        return None
    # A total below the last one is another count's: then nobody knows what this run took.
    return since if (since := total - before).is_possible() else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
