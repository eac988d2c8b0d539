"""What the three protocols have in common, and how a model asks for a command in each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import attrs
from agents_real.model_server.scripts import Refusal, Script

__all__ = ["Json", "Protocol", "Reply", "ToolCall", "openai_error", "openai_headers", "tool_call"]

Json: TypeAlias = dict[str, Any]
Reply: TypeAlias = Iterator[Json | str]
"""The data of server-sent events; a text goes as it is."""


@attrs.frozen
class ToolCall:
    """A tool of the CLI's, with its arguments."""

    name: str
    arguments: Json

    @property
    def json(self) -> str:
        """The arguments as text."""
        return json.dumps(self.arguments)


@attrs.frozen
class Protocol:
    """How a script is told to one vendor's clients.

    Attributes:
        stream: The events of a reply.
        whole: The same in one piece.
        failure: The event that breaks a stream off with an error.
        refuse: Status, body and headers of a refusal.
        has_result: Whether a request brings the result of the tool that was called.
        names_events: Whether each event is named by its type.
    """

    stream: Callable[[Json, Script, ToolCall | None], Reply]
    whole: Callable[[Json, Script, ToolCall | None], Json]
    failure: Callable[[], Json]
    refuse: Callable[[Refusal], tuple[int, Json, dict[str, str]]]
    has_result: Callable[[Json], bool]
    names_events: bool


def tool_call(request: Json, command: str) -> ToolCall | None:
    """A call of the shell among the tools that a request offers; None where it offers none."""
    names = [tool.get("name") or tool.get("function", {}).get("name") for tool in request.get("tools") or []]
    return next((ToolCall(name, _SHELLS[name](command)) for name in names if name in _SHELLS), None)


def openai_error(refusal: Refusal) -> Json:
    """A refusal's body as OpenAI and those who speak like it have it."""
    kind, code, message = refusal.openai
    error: Json = {"message": message, "type": kind, "param": None, "code": code}
    if kind == "usage_limit_reached" and refusal.retry_after:
        error |= {"plan_type": "plus", "resets_at": int(time.time()) + refusal.retry_after}
    return {"error": error}


def openai_headers(refusal: Refusal) -> dict[str, str]:
    """A refusal's headers, likewise."""
    return {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}


def _described(command: str) -> Json:
    return {"command": command, "description": "Run the command"}


_SHELLS: dict[str, Callable[[str], Json]] = {
    "exec_command": lambda command: {"cmd": command},
    "shell_command": lambda command: {"command": command},
    "shell": lambda command: {"command": ["bash", "-lc", command]},
    "Bash": _described,
    "bash": _described,
}
