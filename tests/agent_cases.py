"""Cases for the agents with their outcomes: for the real programs, and for the recorded runs of them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import attrs

from iso_orchestrator.agents import Agent, Claude, Codex, OpenCode, Outcome

__all__ = ["CASES", "Case", "agent_for"]

OK, EMPTY, REFUSED, LIMITED, FAILED = Outcome


@attrs.frozen
class Case:
    """One run.

    Attributes:
        agent: The agent's name.
        name: The name of the case, and of its recorded run.
        outcome: The outcome that it must have.
        model: How the stand-in model behaves.
        says: Part of the result's reason.
        lifted_after: Seconds from the end of the run until the limit is lifted.
        args: The agent's arguments; None for the permission to use tools.
        env: More environment; None removes a variable.
        resume: The case whose session it resumes.
        session: A session to resume that does not exist.
        signal: Sent to the process two seconds after it is in a tool: a session that is not saved yet is not resumed.
        stopped: Why it was ended at a limit of time, where it was.
        timeout: Seconds until it is.
        idle: Seconds without output until it is.
        tokens: `usage.input_tokens`.
    """

    agent: str
    name: str
    outcome: Outcome
    model: str = "ok"
    says: str = ""
    lifted_after: float | None = None
    args: tuple[str, ...] | None = None
    env: dict[str, str | None] = attrs.field(factory=dict)
    resume: str | None = None
    session: str | None = None
    signal: signal.Signals | None = None
    stopped: str | None = None
    timeout: float = 75.0
    idle: float = 60.0
    tokens: int | None = None

    def __str__(self) -> str:
        return f"{self.agent}-{self.name}"


_TOOLS_ALLOWED: dict[str, tuple[str, ...]] = {
    "codex": ("--dangerously-bypass-approvals-and-sandbox",),
    "claude": ("--permission-mode", "dontAsk", "--allowedTools", "Bash"),
    "opencode": ("--auto",),
}
_NO_SESSION = {
    "codex": "00000000-0000-4000-8000-000000000000",
    "claude": "00000000-0000-4000-8000-000000000000",
    "opencode": "ses_000000000000000000000000aa",
}
_SILENT: dict[str, Any] = {"idle": 12, "stopped": "no output for 12 s"}  # opencode's first word comes after 6
_LONG: dict[str, Any] = {"timeout": 8, "stopped": "not done in 8 s"}  # codex waits 10 s for a tool, then continues
_HOUR = 3600.0
_DEAD = "http://127.0.0.1:9"


def agent_for(case: Case, program: str | None = None) -> Agent:
    """The agent of a case, as a user would make it."""
    args = _TOOLS_ALLOWED[case.agent] if case.args is None else case.args
    options: dict[str, Any] = {"args": args} if program is None else {"args": args, "program": program}
    match case.agent:
        case "codex":
            return Codex(model=f"lab-{case.model}", provider="lab", **options)
        case "claude":
            return Claude(model=f"lab-{case.model}", **options)
    return OpenCode(model=f"lab/lab-{case.model}", **options)


def _each(
    name: str, *outcomes: Outcome, agents: Sequence[str] = ("codex", "claude", "opencode"), **rest: Any
) -> list[Case]:
    """The same for all of them, with an outcome for each or one for all."""
    if len(outcomes) == 1:
        outcomes = outcomes * len(agents)
    return [Case(agent, name, outcome, **rest) for agent, outcome in zip(agents, outcomes, strict=True)]


CASES: list[Case] = [
    *_each("ok", OK),
    *_each("tool", OK, model="tool"),
    *_each("tool_fails", OK, model="badtool"),
    # No event of codex has a command that its sandbox refused.
    Case("codex", "refused", OK, model="writetool", args=()),
    Case("claude", "refused", REFUSED, model="writetool", args=(), says="Bash: echo hi"),
    Case("opencode", "refused", REFUSED, model="writetool", args=(), says="bash: echo hi"),
    *_each("empty", EMPTY, model="empty"),
    *_each("slow", OK, model="slow"),
    *_each("error401", FAILED, agents=("codex", "opencode"), model="error401", says="Incorrect API key"),
    Case("claude", "error401", FAILED, model="error401", says="Invalid API key"),
    *_each("error500", FAILED, agents=("codex",), model="error500", says="high demand"),
    Case("claude", "error500", FAILED, model="error500", says="500 Internal server error"),
    Case("opencode", "error500", FAILED, model="error500", **_SILENT, says="The server had an error"),
    Case("codex", "overload", FAILED, model="overload"),
    Case("claude", "overload", FAILED, model="overload", says="529 Overloaded"),
    Case("opencode", "overload", FAILED, model="overload", **_SILENT, says="currently overloaded"),
    *_each("rate429", LIMITED, agents=("codex", "claude"), model="rate429", says="429"),
    Case("opencode", "rate429", LIMITED, model="rate429", says="try again in 2s", lifted_after=2),
    Case("codex", "limit429", LIMITED, model="limit429", says="hit your usage limit", lifted_after=_HOUR),
    Case("claude", "limit429", LIMITED, model="limit429", says="(429)"),
    Case(
        "claude",
        "limit429_plan",
        LIMITED,
        model="limit429",
        env={"ANTHROPIC_API_KEY": None, "CLAUDE_CODE_OAUTH_TOKEN": "dummy"},
        says="hit your",
        lifted_after=_HOUR,
    ),
    # It obeys the hour and prints nothing: its log is all there is.
    Case("opencode", "limit429", LIMITED, model="limit429", **_SILENT, says="usage limit has been reached"),
    Case("codex", "quota", FAILED, model="quota", says="Quota exceeded"),
    Case("claude", "quota", FAILED, model="quota", says="Credit balance is too low"),
    Case("opencode", "quota", FAILED, model="quota", **_SILENT, says="exceeded your current quota"),
    Case("codex", "failed", FAILED, model="failed", says="failed in the middle"),
    Case("claude", "failed", OK, model="failed"),  # it asks again without a stream
    Case("opencode", "failed", FAILED, model="failed", **_SILENT),
    *_each("drop", FAILED, agents=("codex", "claude"), model="drop"),
    Case("opencode", "drop", FAILED, model="drop", **_SILENT),
    *_each("stall", FAILED, model="stall", **_SILENT, says="no output for 12 s"),
    Case(
        "codex",
        "dead_server",
        FAILED,
        args=("-c", f"model_providers.lab.base_url={_DEAD}/v1"),
        says="Connection failed",
    ),
    Case("claude", "dead_server", FAILED, env={"ANTHROPIC_BASE_URL": _DEAD}, says="Unable to connect"),
    Case(
        "opencode",
        "dead_server",
        FAILED,
        env={"OPENCODE_CONFIG_CONTENT": f'{{"provider":{{"lab":{{"options":{{"baseURL":"{_DEAD}/v1"}}}}}}}}'},
        **_SILENT,
        says="Unable to connect",
    ),
    Case("codex", "no_key", FAILED, env={"LAB_API_KEY": None}, says="LAB_API_KEY"),
    Case("claude", "no_key", FAILED, env={"ANTHROPIC_API_KEY": None}, says="Not logged in"),
    *_each("bad_flag", FAILED, agents=("codex", "claude"), args=("--no-such-flag",), says="--no-such-flag"),
    Case("opencode", "bad_flag", FAILED, args=("--no-such-flag",)),
    Case("codex", "resumed", OK, resume="ok", tokens=120),
    Case("claude", "resumed", OK, resume="ok", tokens=100),
    Case("opencode", "resumed", OK, resume="ok", tokens=100),
    *(Case(agent, "resumed_unknown", FAILED, session=name) for agent, name in _NO_SESSION.items()),
    *_each("tool_interrupted", FAILED, model="longtool", signal=signal.SIGINT),
    *_each("tool_terminated", FAILED, agents=("codex", "claude"), model="longtool", **_LONG),
    Case("opencode", "tool_terminated", FAILED, model="longtool", timeout=15, stopped="not done in 15 s"),
    # It says to the model that the tool failed, and ends with 0 and an answer.
    Case("claude", "tool_terminated_fast", FAILED, model="fasttool", **_LONG),
    *_each("tool_killed", FAILED, model="longtool", signal=signal.SIGKILL, says="SIGKILL"),
    *_each("resumed_after_kill", OK, resume="tool_killed"),
]
