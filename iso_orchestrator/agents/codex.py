"""codex: `codex exec --json`."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import attrs

from iso_orchestrator.agents.agent import Agent
from iso_orchestrator.agents.turn import Event, Transcript, as_session_id, as_usage, last_error_line

_NOISE = re.compile(r"^Reading (?:additional input|prompt) from stdin\.\.\.$", re.MULTILINE)
# The keys of a turn's `usage`.
_KEYS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_input_tokens", "reasoning_output_tokens")


def _check_provider(_: object, __: object, value: Any) -> None:
    if value is not None and not re.fullmatch(r"[\w-]+", value):
        raise ValueError(f"provider must be the name of a [model_providers] table, not {value!r}")


@attrs.frozen(kw_only=True)
class Codex(Agent):
    """OpenAI's `codex exec`.

    Without permissions in *args* it may only read: ``args=["--sandbox", "workspace-write"]`` lets it work. Its events
    do not say what the sandbox refuses, so no run of codex is `refused` for that.

    Args:
        provider: A `[model_providers]` table of your `config.toml` to use, with its retries capped by *max_retries*:
            codex has no such setting for its built-in provider.

    Example:
        >>> command = Codex(model="gpt-5-codex", args=["--sandbox", "workspace-write"]).command("Review this.")
        >>> command.args[:5], command.input
        (('codex', 'exec', '--sandbox', 'workspace-write', '--json'), 'Review this.')
    """

    name: ClassVar[str] = "codex"
    no_session: ClassVar[str | None] = "no rollout found for thread"

    provider: str | None = attrs.field(default=None, validator=_check_provider)

    def arguments(self, session_id: str | None, *, resume: bool) -> list[str]:
        """The arguments of one run. The user's own come first: one with any number of values takes what follows it."""
        settings = {
            "check_for_update_on_startup": "false",
            "features.unbounded_connection_retries": "false",  # else it waits for a dead server for ever
            **self._provider_settings(),
        }
        return [
            "exec",
            *self.args,
            "--json",
            "--skip-git-repo-check",
            *(["--model", self.model] if self.model else []),
            *(word for key, value in settings.items() for word in ("--config", f"{key}={value}")),
            *(["resume", session_id, "-"] if resume and session_id else []),
        ]

    def read(self, event: Event, transcript: Transcript) -> bool:
        """Take in one event."""
        match event:
            case {"type": "thread.started", "thread_id": thread_id}:
                transcript.session_id = as_session_id(thread_id)
            case {"type": "item.started" | "item.updated" | "item.completed", "item": dict(item)}:
                _read_item(item, transcript)
            case {"type": "turn.completed", **rest}:
                if isinstance(counts := rest.get("usage"), dict):
                    transcript.session_usage = as_usage(counts, _KEYS)
                transcript.close()
            case {"type": "turn.failed", "error": {"message": str(message)}}:
                transcript.fail(message, closes=True)
            case {"type": "error", "message": str(message)}:
                transcript.fail(message)
            case {"type": "turn.started"}:
                pass
            case _:
                return False
        return True

    def error_message(self, transcript: Transcript, stderr: str) -> str:
        """The error of its events; before a session begins, the one on standard error."""
        return transcript.error or last_error_line(_NOISE.sub("", stderr))

    def _provider_settings(self) -> dict[str, str]:
        if self.provider is None:
            return {}
        table = f"model_providers.{self.provider}"
        return {
            "model_provider": f'"{self.provider}"',
            f"{table}.request_max_retries": str(self.max_retries),
            f"{table}.stream_max_retries": str(self.max_retries),
        }


def _read_item(item: Event, transcript: Transcript) -> None:
    match item:
        case {"type": "agent_message", "text": str(text)}:
            transcript.say(text)
        case {"type": "command_execution", "command": str(command), "status": "declined"}:
            transcript.refuse(command, tool="command_execution")
        case {"type": "command_execution", "command": str(command)}:
            transcript.show(f"$ {command}")
