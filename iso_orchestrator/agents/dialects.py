"""The events of codex, claude and opencode, for the stand-in that prints them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import uuid4

import attrs

__all__ = ["DIALECTS", "Dialect"]

Events: TypeAlias = list[dict[str, Any]]

_READ, _WRITTEN = 120, 7  # tokens


@attrs.frozen
class Dialect(ABC):
    """How one CLI tells what happens in a session, in the run of it that *run* counts from 1."""

    session_id: str = attrs.field(factory=lambda: str(uuid4()))
    run: int = 1

    @abstractmethod
    def begin(self) -> Events:
        """A run begins."""

    @abstractmethod
    def tool(self, command: str) -> Events:
        """A command was run."""

    @abstractmethod
    def answer(self, text: str) -> Events:
        """The answer, empty or not, and a good end."""

    @abstractmethod
    def refuse(self, command: str) -> Events:
        """A command was not allowed, and the run ends."""

    @abstractmethod
    def limit(self, until: float) -> Events:
        """A limit was hit, until so many seconds after 1970."""

    @abstractmethod
    def fail(self, message: str) -> Events:
        """The run failed."""


@attrs.frozen
class _Codex(Dialect):
    def begin(self) -> Events:
        return [{"type": "thread.started", "thread_id": self.session_id}, {"type": "turn.started"}]

    def tool(self, command: str) -> Events:
        return [self._command(command, "completed")]

    def answer(self, text: str) -> Events:
        # Of the whole session.
        usage = {"input_tokens": self.run * _READ, "cached_input_tokens": 0, "output_tokens": self.run * _WRITTEN}
        message = {"type": "item.completed", "item": {"id": "item_1", "type": "agent_message", "text": text}}
        return [*([message] if text else []), {"type": "turn.completed", "usage": usage}]

    def refuse(self, command: str) -> Events:
        return [self._command(command, "declined"), *self.answer("")]

    def limit(self, until: float) -> Events:
        # As codex does it: to the minute, and without a time zone.
        moment = datetime.fromtimestamp(until, UTC).astimezone()
        return self.fail(f"You've hit your usage limit. Try again at {moment:%b %d, %Y %I:%M %p}.")

    def fail(self, message: str) -> Events:
        return [{"type": "error", "message": message}, {"type": "turn.failed", "error": {"message": message}}]

    def _command(self, command: str, status: str) -> dict[str, Any]:
        item = {"id": "item_0", "type": "command_execution", "command": command, "status": status}
        return {"type": "item.completed", "item": item}


@attrs.frozen
class _Claude(Dialect):
    def begin(self) -> Events:
        return [{"type": "system", "subtype": "init", "session_id": self.session_id}]

    def tool(self, command: str) -> Events:
        part = {"type": "tool_use", "name": "Bash", "input": {"command": command}}
        return [{"type": "assistant", "message": {"content": [part]}, "session_id": self.session_id}]

    def answer(self, text: str) -> Events:
        return [self._result(text, is_error=False)]

    def refuse(self, command: str) -> Events:
        denial = {"tool_name": "Bash", "tool_input": {"command": command}}
        return [{**self._result("", is_error=False), "permission_denials": [denial]}]

    def limit(self, until: float) -> Events:
        info = {"status": "rejected", "resetsAt": until, "rateLimitType": "five_hour"}
        event = {"type": "rate_limit_event", "rate_limit_info": info, "session_id": self.session_id}
        return [event, {**self._result("You've hit your limit", is_error=True), "api_error_status": 429}]

    def fail(self, message: str) -> Events:
        return [self._result(message, is_error=True)]

    def _result(self, text: str, *, is_error: bool) -> dict[str, Any]:
        return {
            "type": "result",
            "subtype": "success",
            "is_error": is_error,
            "result": text,
            "session_id": self.session_id,
            "total_cost_usd": 0.001,
            "usage": {"input_tokens": _READ, "output_tokens": _WRITTEN},
        }


@attrs.frozen
class _OpenCode(Dialect):
    session_id: str = attrs.field(factory=lambda: f"ses_{uuid4().hex}")

    def begin(self) -> Events:
        return []  # its first event comes with the first answer

    def tool(self, command: str) -> Events:
        return [*self._step(), self._tool(command, {"status": "completed"})]

    def answer(self, text: str) -> Events:
        said = [self._event("text", part={"type": "text", "text": text})] if text else []
        return [*self._step(), *said, self._finish("stop")]

    def refuse(self, command: str) -> Events:
        error = "The user rejected permission to use this specific tool call."
        refused = self._tool(command, {"status": "error", "error": error})
        return [*self._step(), refused, self._finish("tool-calls")]

    def limit(self, until: float) -> Events:
        headers = {"retry-after-ms": str(round(1000 * (until - time.time())))}
        data = {"message": "Rate limit reached.", "statusCode": 429, "responseHeaders": headers}
        return [self._event("error", error={"name": "APIError", "data": data})]

    def fail(self, message: str) -> Events:
        return [self._event("error", error={"name": "APIError", "data": {"message": message}})]

    def _step(self) -> Events:
        return [self._event("step_start", part={"type": "step-start"})]

    def _tool(self, command: str, state: dict[str, Any]) -> dict[str, Any]:
        part = {"type": "tool", "tool": "bash", "state": {"input": {"command": command}, **state}}
        return self._event("tool_use", part=part)

    def _finish(self, reason: str) -> dict[str, Any]:
        tokens = {"input": _READ, "output": _WRITTEN, "reasoning": 0, "cache": {"read": 0, "write": 0}}
        part = {"type": "step-finish", "reason": reason, "tokens": tokens, "cost": 0.001}
        return self._event("step_finish", part=part)

    def _event(self, kind: str, **rest: Any) -> dict[str, Any]:
        return {"type": kind, "timestamp": time.time_ns() // 1_000_000, "sessionID": self.session_id, **rest}


DIALECTS: Mapping[str, type[Dialect]] = {"codex": _Codex, "claude": _Claude, "opencode": _OpenCode}
