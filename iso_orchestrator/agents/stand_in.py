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
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

Event: TypeAlias = dict[str, Any]

BEHAVIOURS: dict[str, tuple[list[str], int]] = {
    "ok": (["answer"], 0),
    "tool": (["tool", "answer"], 0),
    "empty": (["empty"], 0),
    "refused": (["refused"], 0),
    "plans": (["planned"], 0),  # an answer, and a tool that is refused: claude's plan mode
    "limited": (["limited"], 1),
    "fails": (["failed"], 1),
    "dies": ([], 1),  # prints an error to standard error
    "answers_and_fails": (["answer"], 1),
    "answers_and_hangs": (["answer"], 0),
    "no_events": ([], 0),  # prints its answer as plain text
    "stalls": ([], 0),
    "ignores_sigterm": (["tool"], 0),  # ignores SIGTERM from the tool on, and stalls
    "leaves_child": (["answer"], 0),
}
"""What each behaviour prints after the beginning of the run, and its exit code."""

_COMMAND = "echo hi"
_FAILURE = "the model is not there"
_SESSION_FLAGS = ("resume", "--resume", "--session", "--session-id")
_FOR_EVER = 600  # seconds
_READ, _WRITTEN = 120, 7  # tokens


def main(argv: Sequence[str] | None = None) -> int:
    """Be an agent for one run.

    Args:
        argv: The agent's name and its arguments; default: those of the program.

    Returns:
        The exit code that the agent would have; 2 if there is no such agent or behaviour.
    """
    name, *args = (sys.argv[1:] if argv is None else argv) or [""]
    planned = os.environ.get("STAND_IN_AGENT", "ok").split(",")
    agent: tuple[str, str, Collection[str]] = "agent", name, _EVENTS
    for what, value, known in (agent, *(("STAND_IN_AGENT", each, BEHAVIOURS) for each in planned)):
        if value not in known:
            print(f"stand_in.py: {what} is one of {', '.join(known)}, not {value!r}", file=sys.stderr)
            return 2
    prompt = sys.stdin.read()
    named = (value for flag, value in pairwise(args) if flag in _SESSION_FLAGS)
    session = next(named, f"ses_{uuid4().hex}" if name == "opencode" else str(uuid4()))
    sessions = _note({"pid": os.getpid(), "args": args, "session": session, "prompt": prompt})
    behaviour = planned[min(len(sessions), len(planned) - 1)]
    seconds = float(os.environ.get("STAND_IN_SECONDS", "1"))
    first_line, *_ = prompt.strip().split("\n")
    run = Run(session, 1 + sessions.count(session), f"Done: {first_line}", seconds)
    kinds, code = BEHAVIOURS[behaviour]

    if behaviour == "no_events":
        print(run.answer)
        return code
    _say(name, run, "begin")
    _prepare(behaviour)
    for kind in kinds:
        if kind == "answer":
            time.sleep(seconds)
        _say(name, run, kind)
    if behaviour in ("answers_and_hangs", "stalls", "ignores_sigterm"):
        time.sleep(_FOR_EVER)
    return code


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


def _prepare(behaviour: str) -> None:
    match behaviour:
        case "dies":
            print("error: out of memory", file=sys.stderr)
        case "ignores_sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "leaves_child":  # in a session of its own, with standard output open
            code = f"import time; time.sleep({_FOR_EVER})"
            child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, start_new_session=True)
            print(f"left child {child.pid}", file=sys.stderr, flush=True)


class Run(NamedTuple):
    """One run: its session, its number in that, counted from 1, its answer, and how long a limit lasts."""

    session: str
    number: int
    answer: str
    seconds: float


def _say(name: str, run: Run, kind: str) -> None:
    for event in _EVENTS[name](run)[kind]:
        print(json.dumps(event), flush=True)


def _codex(run: Run) -> dict[str, list[Event]]:
    def command(status: str) -> Event:
        item = {"id": "item_0", "type": "command_execution", "command": _COMMAND, "status": status}
        return {"type": "item.completed", "item": item}

    def failure(message: str) -> list[Event]:
        return [{"type": "error", "message": message}, {"type": "turn.failed", "error": {"message": message}}]

    # Tokens of the whole session.
    usage = {"input_tokens": run.number * _READ, "cached_input_tokens": 0, "output_tokens": run.number * _WRITTEN}
    end = {"type": "turn.completed", "usage": usage}
    answer = {"type": "item.completed", "item": {"id": "item_1", "type": "agent_message", "text": run.answer}}
    # As codex writes it: to the minute, without a time zone.
    until = datetime.fromtimestamp(time.time() + run.seconds, UTC).astimezone()
    return {
        "begin": [{"type": "thread.started", "thread_id": run.session}, {"type": "turn.started"}],
        "tool": [command("completed")],
        "answer": [answer, end],
        "empty": [end],
        "refused": [command("declined"), end],
        "planned": [command("declined"), answer, end],
        "limited": failure(f"You've hit your usage limit. Try again at {until:%b %d, %Y %I:%M %p}."),
        "failed": failure(_FAILURE),
    }


def _claude(run: Run) -> dict[str, list[Event]]:
    def event(kind: str, **rest: Any) -> Event:
        return {"type": kind, "session_id": run.session, **rest}

    def result(text: str, *, is_error: bool = False, **rest: Any) -> Event:
        usage = {"input_tokens": _READ, "output_tokens": _WRITTEN}
        more = {"total_cost_usd": 0.001, "usage": usage, **rest}
        return event("result", subtype="success", is_error=is_error, result=text, **more)

    tool = {"type": "tool_use", "name": "Bash", "input": {"command": _COMMAND}}
    denial = {"tool_name": "Bash", "tool_input": {"command": _COMMAND}}
    limit = {"status": "rejected", "resetsAt": time.time() + run.seconds, "rateLimitType": "five_hour"}
    return {
        "begin": [event("system", subtype="init")],
        "tool": [event("assistant", message={"content": [tool]})],
        "answer": [result(run.answer)],
        "empty": [result("")],
        "refused": [result("", permission_denials=[denial])],
        "planned": [
            result(run.answer, permission_denials=[{"tool_name": "ExitPlanMode", "tool_input": {"plan": "..."}}])
        ],
        "limited": [
            event("rate_limit_event", rate_limit_info=limit),
            result("You've hit your limit", is_error=True, api_error_status=429),
        ],
        "failed": [result(_FAILURE, is_error=True)],
    }


def _opencode(run: Run) -> dict[str, list[Event]]:
    def event(kind: str, **rest: Any) -> Event:
        return {"type": kind, "timestamp": time.time_ns() // 1_000_000, "sessionID": run.session, **rest}

    def tool(**state: str) -> Event:
        part = {"type": "tool", "tool": "bash", "state": {"input": {"command": _COMMAND}, **state}}
        return event("tool_use", part=part)

    def finish(reason: str) -> Event:
        tokens = {"input": _READ, "output": _WRITTEN, "reasoning": 0, "cache": {"read": 0, "write": 0}}
        return event("step_finish", part={"type": "step-finish", "reason": reason, "tokens": tokens, "cost": 0.001})

    def failure(message: str, **data: Any) -> list[Event]:
        return [event("error", error={"name": "APIError", "data": {"message": message, **data}})]

    step = event("step_start", part={"type": "step-start"})
    refusal = "The user rejected permission to use this specific tool call."
    headers = {"retry-after-ms": str(round(1000 * run.seconds))}
    answer = [step, event("text", part={"type": "text", "text": run.answer}), finish("stop")]
    refused = [step, tool(status="error", error=refusal), finish("tool-calls")]
    return {
        "begin": [],  # the first event comes with the first answer
        "tool": [step, tool(status="completed")],
        "answer": answer,
        "empty": [step, finish("stop")],
        "refused": refused,
        "planned": [*refused, *answer],
        "limited": failure("Rate limit reached.", statusCode=429, responseHeaders=headers),
        "failed": failure(_FAILURE),
    }


_EVENTS = {"codex": _codex, "claude": _claude, "opencode": _opencode}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    raise SystemExit(main())
