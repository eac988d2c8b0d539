"""Coding agents' command lines: how to start them, and how to read the result of a run.

Example:
    >>> from datetime import UTC, datetime
    >>> from iso_orchestrator.agents import Codex
    >>> codex = Codex(args=["--sandbox", "workspace-write"])
    >>> command = codex.command("Say hello.")  # args, input, env: for `subprocess`, or for a command step
    >>> stream = codex.stream()
    >>> for line in [
    ...     '{"type":"thread.started","thread_id":"01a2"}',
    ...     '{"type":"item.completed","item":{"type":"agent_message","text":"Hello."}}',
    ...     '{"type":"turn.completed","usage":{"input_tokens":120,"output_tokens":7}}',
    ... ]:
    ...     stream.feed(line)
    >>> result = stream.result(0, now=datetime.now(UTC))
    >>> result.outcome.value, result.text, result.session_id
    ('ok', 'Hello.', '01a2')
"""

from iso_orchestrator.agents.agent import Agent, AgentCommand, last_session
from iso_orchestrator.agents.claude import Claude
from iso_orchestrator.agents.codex import Codex
from iso_orchestrator.agents.opencode import OpenCode
from iso_orchestrator.agents.turn import AgentResult, AgentStream, Event, Outcome, Transcript, Usage, as_session_id

Turn = Transcript  # its earlier name

__all__ = [
    "Agent",
    "AgentCommand",
    "AgentResult",
    "AgentStream",
    "Claude",
    "Codex",
    "Event",
    "OpenCode",
    "Outcome",
    "Transcript",
    "Turn",
    "Usage",
    "as_session_id",
    "last_session",
]
