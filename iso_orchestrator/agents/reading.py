"""An agent's run as a step: judged by what it printed, gone on with by its session."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from iso_orchestrator.agents.result import AgentResult, Outcome, Usage
from iso_orchestrator.agents.stream import AgentStream
from iso_orchestrator.commands.call import last_beat
from iso_orchestrator.commands.model import CommandResult
from iso_orchestrator.commands.output import Output, Reader
from iso_orchestrator.errors import AgentError, CommandIdleError, CommandTimeoutError, Limited, OrchestratorError
from iso_orchestrator.record.model import Json
from iso_orchestrator.runtime.context import current_scope, current_step

__all__ = ["AgentReading", "last_session"]


def last_session() -> str | None:
    """The session of the last attempt at the current step, killed or failed, to go on with; None where there is none.

    A step that was reset, or that has a new idempotency key or version, begins anew.

    Raises:
        NoActiveWorkflowError: No step is running.

    Example:
        >>> from iso_orchestrator import Workflow
        >>> from iso_orchestrator.agents import Codex, last_session
        >>> codex, workflow = Codex(), Workflow("reviews", store="memory://last_session")
        >>> @workflow.command(parse=codex, timeout=1800, retry=3)
        ... def review(pull_request: str):
        ...     return codex.command(f"Review {pull_request}.", resume=last_session())
    """
    step, attempt = current_step(), current_scope().attempt
    if attempt is None or attempt.is_first:
        return None
    session = last_beat(f"command:{step.name}").get("session")
    return session if isinstance(session, str) else None


@attrs.frozen
class AgentReading:
    """How an agent's runs are read: `parse=` of a command.

    Attributes:
        limit_key: The agent's name: one account has one limit, whatever is asked for.
        stream: Begins to read a run, behind what the session had used before.
    """

    limit_key: str
    stream: Callable[[Usage | None], AgentStream]
    annotation: Any = AgentResult

    def begin(self, command: Any, before: dict[str, Json]) -> Reader:
        """Read one run."""
        session_id: str | None = getattr(command, "session_id", None)
        used = _used(session_id, before) if getattr(command, "is_resumed", False) else None
        return _AgentReader(self.limit_key, session_id, self.stream(used), used)


class _AgentReader:
    def __init__(self, agent: str, session_id: str | None, stream: AgentStream, before: Usage | None) -> None:
        self._agent = agent
        self._session_id = session_id
        self._stream = stream
        self._before = before
        self._result: AgentResult | None = None

    @property
    def on_line(self) -> Callable[[str], None]:
        return self._stream.feed

    def detail(self) -> dict[str, Json]:
        """The session, to go on with; and its tokens so far, where it is only those that the agent tells."""
        result = self._result
        session = result.session_id if result is not None else self._stream.session_id or self._session_id
        usage = (result.session_usage if result is not None else None) or self._before
        known = {} if usage is None else {"sessionUsage": attrs.asdict(usage)}
        return {"agent": self._agent, "session": session, **known}

    def finish(self, output: Output) -> CommandResult[AgentResult]:
        """The result, if the run was a success.

        Raises:
            Limited: A usage limit was met, and it is known until when.
            AgentError: It was anything else.
        """
        parsed = self._judged(output.result, output.at)
        if parsed.parsed.outcome is Outcome.OK:
            return parsed
        raise _limit(parsed.parsed, output.at) or AgentError(output.step, parsed)

    def given_up(self, error: CommandTimeoutError, at: datetime) -> OrchestratorError:
        """The error, with what the agent had said; a limit that it was silent about may be in its log."""
        kind = "no output for" if isinstance(error, CommandIdleError) else "not done in"
        parsed = self._judged(error.result, at, f"{kind} {error.timeout:g} s")
        return _limit(parsed.parsed, at) or type(error)(error.step_name, error.timeout, parsed)

    def _judged(
        self, result: CommandResult[Any], at: datetime, stopped: str | None = None
    ) -> CommandResult[AgentResult]:
        self._result = self._stream.result(result.exit_code, result.stderr, now=at, stopped=stopped)
        judged: CommandResult[AgentResult] = attrs.evolve(result, parsed=self._result)
        return judged


def _limit(result: AgentResult, at: datetime) -> Limited | None:
    is_known = result.outcome is Outcome.LIMITED and result.until is not None and result.until > at
    # Of the key that the step names, the agent's name by default.
    return Limited(result.until) if is_known and result.until is not None else None


def _used(session_id: str | None, before: dict[str, Json]) -> Usage:
    """What a session has used before it is resumed; all None where the step does not know."""
    counts = before.get("sessionUsage")
    if session_id != before.get("session") or not isinstance(counts, dict):
        return Usage()
    return Usage(**{field.name: counts.get(field.name) for field in attrs.fields(Usage)})
