"""claude: `claude -p --output-format stream-json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar
from uuid import uuid4

import attrs

from iso_orchestrator.agents.agent import Agent
from iso_orchestrator.agents.limits import from_epoch, is_limit
from iso_orchestrator.agents.turn import Event, Transcript, Usage, as_cost, as_session_id, as_usage

# The keys of an event's `usage`, and of one model's part of its `modelUsage`.
_KEYS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_MODEL_KEYS = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")


@attrs.frozen(kw_only=True)
class Claude(Agent):
    """Anthropic's `claude -p`.

    Without permissions in *args* it may do only what its settings allow without asking:
    ``args=["--allowedTools", "Bash(git *),Edit"]`` lets it do more. Each command chooses a new session id, so that the
    session is known before the run begins; claude refuses a second run under one id. A run in which a tool was refused
    is `refused`, with any answer; the answer is in `text`. In plan mode each run that leaves it is refused
    ``ExitPlanMode``, since no user is there to agree: allow that with ``allow_refusals={"ExitPlanMode"}``.

    Example:
        >>> claude = Claude(model="opus", args=["--allowedTools", "Bash(git *)"])
        >>> command = claude.command("Review this.")
        >>> command.args[-2:], command.env["CLAUDE_CODE_MAX_RETRIES"], len(command.session_id)
        (('--allowedTools', 'Bash(git *)'), '1', 36)
    """

    name: ClassVar[str] = "claude"
    no_session: ClassVar[str | None] = "No conversation found with session ID"

    def arguments(self, session_id: str | None, *, resume: bool) -> list[str]:
        """The arguments of one run. The user's own come last: `--allowedTools` would take those that follow it."""
        return [
            *("--print", "--output-format", "stream-json", "--verbose"),
            *(["--model", self.model] if self.model else []),
            *(["--resume" if resume else "--session-id", session_id] if session_id else []),
            *self.args,
        ]

    def environment(self) -> dict[str, str]:
        """Its retries and updates, which no argument sets."""
        return {"CLAUDE_CODE_MAX_RETRIES": str(self.max_retries), "DISABLE_AUTOUPDATER": "1"}

    def new_session_id(self) -> str:
        """A new UUID."""
        return str(uuid4())

    def read(self, event: Event, transcript: Transcript) -> bool:
        """Take in one event."""
        transcript.session_id = as_session_id(event.get("session_id")) or transcript.session_id
        match event:
            case {"type": "assistant", "message": {"content": [*parts]}}:
                _show_parts(parts, transcript)
            case {"type": "rate_limit_event", "rate_limit_info": dict(info)}:
                _read_limit(info, transcript)
            case {"type": "system", "subtype": "api_retry", "error": error, **rest}:
                transcript.show(f"trying again after {rest.get('error_status') or error}")
            case {"type": "result"}:
                _read_result(event, transcript)
            case {"type": "system" | "user" | "assistant" | "stream_event"}:
                pass
            case _:
                return False
        return True


def _show_parts(parts: Iterable[object], transcript: Transcript) -> None:
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                transcript.show(text)
            case {"type": "tool_use", "name": str(tool), "input": {"command": str(command)}}:
                transcript.show(f"{tool}: {command}")
            case {"type": "tool_use", "name": str(tool)}:
                transcript.show(tool)


def _read_limit(info: Event, transcript: Transcript) -> None:
    if info.get("status") == "rejected":  # the others warn that a limit comes near
        message = f"limit reached: {info.get('rateLimitType')}"
        transcript.fail(message, limited=True, until=from_epoch(info.get("resetsAt")))


def _read_result(event: Event, transcript: Transcript) -> None:
    transcript.usage = _usage(event)
    transcript.cost_usd = as_cost(event.get("total_cost_usd"))
    _read_refusals(event, transcript)
    match event:
        # `subtype` is "success" on errors of the API too.
        case {"is_error": False, "subtype": "success", **rest}:
            answer = rest.get("result")
            transcript.say(answer if isinstance(answer, str) else "")
            transcript.close()
        case _:
            message = _message(event)
            transcript.fail(message, limited=is_limit(message, event.get("api_error_status")), closes=True)


def _read_refusals(event: Event, transcript: Transcript) -> None:
    match event:
        case {"permission_denials": [*denials]}:
            for denial in denials:
                transcript.refuse(_denied(denial), tool=_tool(denial))
    if event.get("stop_reason") == "refusal":
        transcript.refuse("the model refused to answer")


def _tool(denial: object) -> str | None:
    match denial:
        case {"tool_name": str(tool)}:
            return tool
    return None


def _denied(denial: object) -> str:
    match denial:
        case {"tool_name": str(tool), "tool_input": {"command": str(command)}}:
            return f"{tool}: {command}"
        case {"tool_name": str(tool)}:
            return tool
    return str(denial)


def _message(event: Event) -> str:
    match event:
        case {"result": str(message)} if message:
            return message
        case {"errors": [*errors]} if errors:
            return f"{event.get('subtype')}: {'; '.join(map(str, errors))}"
    return str(event.get("subtype"))


def _usage(event: Event) -> Usage | None:
    """The sum over all models; right also where `usage` has only zeros, after a request repeated without a stream."""
    match event:
        case {"modelUsage": dict(shares)} if shares:
            return sum((as_usage(share, _MODEL_KEYS) for share in shares.values() if isinstance(share, dict)), Usage())
        case {"usage": dict(counts)}:
            return as_usage(counts, _KEYS)
    return None
