"""A stand-in for codex, claude or opencode: it needs no account, and does what it is told by its environment.

Example:
    echo "Review this." | STAND_IN_AGENT=limited,ok python -m iso_orchestrator.agents.stand_in codex exec --json

Environment:
    STAND_IN_AGENT: One of `BEHAVIOURS` (default: ok), or several with commas between: one a run, and the last for all
        that follow.
    STAND_IN_LOG: A file to which each run appends a line of JSON: what it was started with. The runs are counted there.
    STAND_IN_SECONDS: How long it works, or is limited (default: 0.2).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import attrs

from iso_orchestrator.agents.dialects import DIALECTS, Dialect

__all__ = ["BEHAVIOURS", "main"]

_COMMAND = "echo hi"
_SESSION_FLAGS = ("resume", "--resume", "--session", "--session-id")
_FOR_EVER = 600  # seconds


@attrs.frozen
class Voice:
    """One run: how it speaks, and what it was asked."""

    dialect: Dialect
    prompt: str
    seconds: float

    def say(self, *events: dict[str, object]) -> None:
        """Print events."""
        for event in events:
            print(json.dumps(event), flush=True)

    def answer(self, text: str) -> int:
        """Answer, and close the turn."""
        self.say(*self.dialect.answer(text))
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Be an agent for one run.

    Returns:
        The exit code that the agent would have.
    """
    name, *args = sys.argv[1:] if argv is None else argv
    session_id = _session(args)
    dialect = DIALECTS[name](session_id=session_id) if session_id else DIALECTS[name]()
    prompt = sys.stdin.read()
    sessions = _note({"pid": os.getpid(), "args": args, "session": dialect.session_id, "prompt": prompt})
    planned = os.environ.get("STAND_IN_AGENT", "ok").split(",")
    behaviour = BEHAVIOURS[planned[min(len(sessions), len(planned) - 1)]]
    dialect = attrs.evolve(dialect, run=1 + sessions.count(dialect.session_id))
    voice = Voice(dialect, prompt, float(os.environ.get("STAND_IN_SECONDS", "0.2")))
    voice.say(*voice.dialect.begin())
    return behaviour(voice)


def _session(args: Sequence[str]) -> str | None:
    return next((value for flag, value in pairwise(args) if flag in _SESSION_FLAGS), None)


def _note(entry: dict[str, object]) -> list[str]:
    """Append to the log; the sessions of the runs that were there before."""
    path = os.environ.get("STAND_IN_LOG")
    if path is None:
        return []
    line = json.dumps(entry).encode() + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line)  # in one piece: others append to the same file
        *before, _ = os.pread(fd, os.lseek(fd, 0, os.SEEK_CUR), 0).splitlines()
        return [json.loads(line)["session"] for line in before]
    finally:
        os.close(fd)


def _ok(voice: Voice) -> int:
    time.sleep(voice.seconds)
    return voice.answer(f"Done: {voice.prompt.strip().splitlines()[0]}")


def _tool(voice: Voice) -> int:
    voice.say(*voice.dialect.tool(_COMMAND))
    return _ok(voice)


def _empty(voice: Voice) -> int:
    return voice.answer("")


def _refused(voice: Voice) -> int:
    voice.say(*voice.dialect.refuse(_COMMAND))
    return 0


def _limited(voice: Voice) -> int:
    voice.say(*voice.dialect.limit(time.time() + voice.seconds))
    return 1


def _fails(voice: Voice) -> int:
    voice.say(*voice.dialect.fail("the model is not there"))
    return 1


def _dies(_: Voice) -> int:
    print("error: out of memory", file=sys.stderr)
    return 1


def _stalls(_: Voice) -> int:
    time.sleep(_FOR_EVER)
    return 0


def _ignores_sigterm(voice: Voice) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    voice.say(*voice.dialect.tool(_COMMAND))  # from here on, as a test can see
    return _stalls(voice)


def _leaves_child(voice: Voice) -> int:
    """A child in a session of its own, which keeps standard output open; its pid is on standard error."""
    code = f"import time; time.sleep({_FOR_EVER})"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, start_new_session=True)
    print(f"left child {child.pid}", file=sys.stderr, flush=True)
    return _ok(voice)


BEHAVIOURS: dict[str, Callable[[Voice], int]] = {
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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    raise SystemExit(main())
