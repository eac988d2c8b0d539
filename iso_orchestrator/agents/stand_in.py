"""A stand-in for codex, claude or opencode: it needs no account, and behaves as its environment says.

Run it by its path: with ``-m`` it would import this package first, which takes ten times as long.

Example:
    echo "Review this." | STAND_IN_AGENT=limited,ok python iso_orchestrator/agents/stand_in.py codex exec --json

Environment:
    STAND_IN_AGENT: One of `BEHAVIOURS` (default: ok), or several with commas between them: one for each run, the last
        for all that follow.
    STAND_IN_LOG: A file to which each run appends a line of JSON: its arguments, its session, its prompt. It counts the
        runs.
    STAND_IN_SECONDS: How long it works, or is limited (default: 1).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, TypeAlias
from uuid import uuid4

__all__ = ["BEHAVIOURS", "main"]

Events: TypeAlias = list[dict[str, Any]]

_COMMAND = "echo hi"
_SESSION_FLAGS = ("resume", "--resume", "--session", "--session-id")
_FOR_EVER = 600  # seconds
_READ, _WRITTEN = 120, 7  # tokens


class Turn:
    """One run: the events that it prints, and what it was asked."""

    def __init__(self, events: FakeEvents, prompt: str, seconds: float) -> None:
        self.events = events
        self.prompt = prompt
        self.seconds = seconds

    def say(self, events: Events) -> None:
        """Print events."""
        for event in events:
            print(json.dumps(event), flush=True)

    def answer(self, text: str) -> int:
        """Answer, and close the turn."""
        self.say(self.events.answer(text))
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Be an agent for one run.

    Args:
        argv: The agent's name and its arguments; default: those of the program.

    Returns:
        The exit code that the agent would have.
    """
    name, *args = sys.argv[1:] if argv is None else argv
    events = _EVENTS[name](_session(args))
    prompt = sys.stdin.read()
    sessions = _note({"pid": os.getpid(), "args": args, "session": events.session_id, "prompt": prompt})
    events.run = 1 + sessions.count(events.session_id)
    planned = os.environ.get("STAND_IN_AGENT", "ok").split(",")
    behaviour = BEHAVIOURS[planned[min(len(sessions), len(planned) - 1)]]
    turn = Turn(events, prompt, float(os.environ.get("STAND_IN_SECONDS", "1")))
    turn.say(events.begin())
    return behaviour(turn)


def _session(args: Sequence[str]) -> str | None:
    return next((value for flag, value in pairwise(args) if flag in _SESSION_FLAGS), None)


def _note(entry: dict[str, object]) -> list[str]:
    """Append to the log; return the sessions of the earlier runs."""
    path = os.environ.get("STAND_IN_LOG")
    if path is None:
        return []
    line = json.dumps(entry).encode() + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line)  # in one piece: other runs append to the same file
        *before, _ = os.pread(fd, os.lseek(fd, 0, os.SEEK_CUR), 0).splitlines()
        return [json.loads(line)["session"] for line in before]
    finally:
        os.close(fd)


def _ok(turn: Turn) -> int:
    time.sleep(turn.seconds)
    return turn.answer(f"Done: {turn.prompt.strip().splitlines()[0]}")


def _tool(turn: Turn) -> int:
    turn.say(turn.events.tool(_COMMAND))
    return _ok(turn)


def _empty(turn: Turn) -> int:
    return turn.answer("")


def _refused(turn: Turn) -> int:
    turn.say(turn.events.refuse(_COMMAND))
    return 0


def _limited(turn: Turn) -> int:
    turn.say(turn.events.limit(time.time() + turn.seconds))
    return 1


def _fails(turn: Turn) -> int:
    turn.say(turn.events.fail("the model is not there"))
    return 1


def _dies(_: Turn) -> int:
    print("error: out of memory", file=sys.stderr)
    return 1


def _stalls(_: Turn) -> int:
    time.sleep(_FOR_EVER)
    return 0


def _ignores_sigterm(turn: Turn) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    turn.say(turn.events.tool(_COMMAND))  # says that SIGTERM is ignored from now on
    return _stalls(turn)


def _leaves_child(turn: Turn) -> int:
    """Leave a child in a session of its own that keeps standard output open; print its pid to standard error."""
    code = f"import time; time.sleep({_FOR_EVER})"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, start_new_session=True)
    print(f"left child {child.pid}", file=sys.stderr, flush=True)
    return _ok(turn)


BEHAVIOURS: dict[str, Callable[[Turn], int]] = {
    "ok": _ok,
    "tool": _tool,
    "empty": _empty,
    "refused": _refused,
    "limited": _limited,
    "fails": _fails,
    "dies": _dies,
    "stalls": _stalls,
    "ignores_sigterm": _ignores_sigterm,
    "leaves_child": _leaves_child,
}


# The events


class FakeEvents(ABC):
    """The events of one CLI, in one run of a session.

    Args:
        session_id: The session; None for a new one.
    """

    run = 1
    """Which run of the session this is, counted from 1."""

    def __init__(self, session_id: str | None) -> None:
        self.session_id = session_id or self.new_session()

    def new_session(self) -> str:
        """A new name for a session."""
        return str(uuid4())

    @abstractmethod
    def begin(self) -> Events:
        """The run begins."""

    @abstractmethod
    def tool(self, command: str) -> Events:
        """The agent ran a command."""

    @abstractmethod
    def answer(self, text: str) -> Events:
        """The answer, which may be empty, and a good end."""

    @abstractmethod
    def refuse(self, command: str) -> Events:
        """A command was refused, and the run ends."""

    @abstractmethod
    def limit(self, until: float) -> Events:
        """A usage limit was hit; *until* is in seconds since 1970."""

    @abstractmethod
    def fail(self, message: str) -> Events:
        """The run failed."""


class _Codex(FakeEvents):
    def begin(self) -> Events:
        return [{"type": "thread.started", "thread_id": self.session_id}, {"type": "turn.started"}]

    def tool(self, command: str) -> Events:
        return [self._command(command, "completed")]

    def answer(self, text: str) -> Events:
        # Tokens of the whole session.
        usage = {"input_tokens": self.run * _READ, "cached_input_tokens": 0, "output_tokens": self.run * _WRITTEN}
        message = {"type": "item.completed", "item": {"id": "item_1", "type": "agent_message", "text": text}}
        return [*([message] if text else []), {"type": "turn.completed", "usage": usage}]

    def refuse(self, command: str) -> Events:
        return [self._command(command, "declined"), *self.answer("")]

    def limit(self, until: float) -> Events:
        # As codex writes it: to the minute, without a time zone.
        moment = datetime.fromtimestamp(until, UTC).astimezone()
        return self.fail(f"You've hit your usage limit. Try again at {moment:%b %d, %Y %I:%M %p}.")

    def fail(self, message: str) -> Events:
        return [{"type": "error", "message": message}, {"type": "turn.failed", "error": {"message": message}}]

    def _command(self, command: str, status: str) -> dict[str, Any]:
        item = {"id": "item_0", "type": "command_execution", "command": command, "status": status}
        return {"type": "item.completed", "item": item}


class _Claude(FakeEvents):
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


class _OpenCode(FakeEvents):
    def new_session(self) -> str:
        return f"ses_{uuid4().hex}"

    def begin(self) -> Events:
        return []  # the first event comes with the first answer

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


_EVENTS: dict[str, type[FakeEvents]] = {"codex": _Codex, "claude": _Claude, "opencode": _OpenCode}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    raise SystemExit(main())
