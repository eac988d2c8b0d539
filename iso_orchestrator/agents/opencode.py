"""opencode: `opencode run --format json`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import ClassVar

import attrs

from iso_orchestrator.agents.agent import Agent
from iso_orchestrator.agents.limits import from_epoch, is_limit, retry_after
from iso_orchestrator.agents.turn import Event, Transcript, Usage, as_cost, as_session_id, as_usage, last_error_line

_KEYS = ("input", "output", "read", "write", "reasoning")  # of a step's `tokens`, and of the `cache` among them
_MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
_LOG = re.compile(r"^timestamp=.*\n?", re.MULTILINE)
# Without the errors of the small model, which makes a title for the session. A key begins only where no other does, and
# a text may lack its end: else a hostile line takes the square of its length.
_LOGGED = re.compile(
    rf'^timestamp=({_MOMENT}) level=ERROR (?!.* small=true ).*?(?<![.\w])error[.\w]*="((?:[^"\\\n]|\\.)*+)', re.M
)
_REFUSED = re.compile(r"rejected permission|rule which prevents", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class OpenCode(Agent):
    """`opencode run`.

    Without permissions in *args* it may do what its settings allow; anything that it would have to ask for is refused,
    and the run ends there. It waits as long as a provider's `retry-after` says, also an hour, and prints nothing: give
    the command an `idle_timeout`. It has no setting for its retries, so *max_retries* does nothing. The first run in a
    home installs something from npm, and ignores SIGINT and SIGTERM.

    Args:
        model: As ``"provider/model"``.

    Example:
        >>> OpenCode(model="anthropic/claude-opus").command("Review this.").args[:4]
        ('opencode', 'run', '--format', 'json')
    """

    name: ClassVar[str] = "opencode"
    no_session: ClassVar[str | None] = "Session not found"

    def arguments(self, session_id: str | None, *, resume: bool) -> list[str]:
        """The arguments of one run, with its log of errors: while it repeats a request, only the log says why."""
        return [
            *("run", "--format", "json", "--print-logs", "--log-level", "ERROR"),
            *(["--model", self.model] if self.model else []),
            *(["--session", session_id] if resume and session_id else []),
            *self.args,
        ]

    def environment(self) -> dict[str, str]:
        """No updates, which no argument refuses."""
        return {"OPENCODE_DISABLE_AUTOUPDATE": "1"}

    def read(self, event: Event, transcript: Transcript) -> bool:
        """Take in one event."""
        transcript.session_id = as_session_id(event.get("sessionID")) or transcript.session_id
        transcript.heard_at = from_epoch(event.get("timestamp"), per_second=1000) or transcript.heard_at
        match event:
            case {"type": "step_start"}:
                transcript.text, transcript.closing = "", None
            case {"type": "text", "part": {"text": str(text)}}:
                transcript.say("\n".join(filter(None, [transcript.text, text])))
            case {"type": "tool_use", "part": dict(part)}:
                _read_tool(part, transcript)
            case {"type": "step_finish", "part": dict(part)}:
                _read_finish(part, transcript)
            case {"type": "error", "error": dict(error)}:
                _read_error(error, transcript)
            case {"type": "reasoning"}:
                pass
            case _:
                return False
        return True

    def error_message(self, transcript: Transcript, stderr: str) -> str:
        """The last error in its log since the last event: nothing else says why it repeats a request."""
        logged = [message for at, message in _LOGGED.findall(stderr) if _is_newer(at, transcript)]
        return logged[-1] if logged else transcript.error or last_error_line(_LOG.sub("", stderr))


def _is_newer(logged_at: str, transcript: Transcript) -> bool:
    # Both are UTC, to the millisecond. Compared as texts: what looks like a time in a log may be none.
    return transcript.heard_at is None or logged_at[:23] >= transcript.heard_at.isoformat(timespec="milliseconds")[:23]


def _read_tool(part: Event, transcript: Transcript) -> None:
    match part:
        case {"tool": tool, "state": dict(state)}:
            what = f"{tool}: {_what(state)}"
            if _REFUSED.search(str(state.get("error"))):
                transcript.refuse(what, tool=str(tool))
            else:
                transcript.show(what)


def _what(state: Event) -> object:
    match state:
        case {"input": {"command": str(command)}}:
            return command
    return state.get("title") or state.get("error") or state.get("status")


def _read_finish(part: Event, transcript: Transcript) -> None:
    if isinstance(tokens := part.get("tokens"), dict):
        cache = tokens.get("cache")
        usage = as_usage({**cache, **tokens} if isinstance(cache, dict) else tokens, _KEYS)
        transcript.usage = usage + (transcript.usage or Usage())
    if (cost := as_cost(part.get("cost"))) is not None:
        transcript.cost_usd = (transcript.cost_usd or 0.0) + cost
    match part.get("reason"):
        case "stop":
            transcript.close()
        case "content-filter":
            transcript.refuse("the provider's filter stopped the answer")
        case "tool-calls":
            pass
        case reason:
            transcript.fail(f"the answer ended early: {reason}")


def _read_error(error: Event, transcript: Transcript) -> None:
    match error:
        case {"data": {"message": str(message), **data}}:
            limited = is_limit(message, data.get("statusCode"))
            transcript.fail(message, limited=limited, until=_until(data.get("responseHeaders"), transcript.heard_at))
        case _:
            transcript.fail(str(error.get("name")))


def _until(headers: object, at: datetime | None) -> datetime | None:
    return retry_after(headers, at) if isinstance(headers, dict) and at is not None else None
