"""A coding agent's command line as a step: how it is started, and how its output is read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from os import PathLike, fspath
from typing import Any, ClassVar

import attrs

from iso_orchestrator.agents.turn import (
    AgentResult,
    AgentStream,
    Event,
    Outcome,
    Transcript,
    Usage,
    as_session_id,
    last_error_line,
)
from iso_orchestrator.checks import check_count, validated_by
from iso_orchestrator.commands.model import Command, CommandResult, heartbeat_key
from iso_orchestrator.commands.parse import Ended, Reader
from iso_orchestrator.commands.step import last_beat
from iso_orchestrator.errors import AgentError, CommandIdleError, CommandTimeoutError, Limited, OrchestratorError
from iso_orchestrator.record.model import Json
from iso_orchestrator.runtime.context import count_cost, current_scope, current_step, note_usage

_SHORTEST_LIMIT = timedelta(seconds=1)  # also of one that does not say when it ends


def last_session() -> str | None:
    """The session of the last attempt at the current step, to resume it after a kill or a failure.

    Returns:
        The session; None for a first attempt, also after a reset, or with a new idempotency key or version.

    Raises:
        NoActiveWorkflowError: No step is running.

    Example:
        >>> from iso_orchestrator import Workflow
        >>> from iso_orchestrator.agents import Codex, last_session
        >>> codex, workflow = Codex(), Workflow("reviews", store="memory://last_session")
        >>> @workflow.command(parse=codex, timeout=1800, retry=3)
        ... def review(pull_request: str):
        ...     return codex.command(f"Review {pull_request}.", resume=last_session())
    """
    step, attempt = current_step(), current_scope().attempt
    if attempt is None or attempt.is_first:
        return None
    session = last_beat(heartbeat_key(step.name)).get("session")
    return session if isinstance(session, str) else None


def _words(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"args takes a list of words, not the text {value!r:.80}")
    return tuple(value)


def _program(value: str | Iterable[str]) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else tuple(value)
    if not words or not words[0]:
        raise ValueError("program is empty")
    return words


def _tools(value: bool | Iterable[str]) -> bool | frozenset[str]:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"allow_refusals takes True, or a set of the names of tools, not {value!r:.80}")
    names = frozenset(value)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"allow_refusals takes the names of tools, not {value!r:.80}")
    return names


@attrs.frozen
class AgentCommand:
    """How to start an agent.

    Attributes:
        args: The program and its arguments.
        input: Its whole standard input.
        cwd: The folder to start it in; None for this process's.
        env: Additions to the environment.
        session_id: The session that it will have, if that is known before the start.
        is_resumed: Whether that session exists already.
    """

    args: tuple[str, ...]
    input: str = attrs.field(repr=False)
    cwd: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    session_id: str | None = None
    is_resumed: bool = False

    def build(self) -> Command:
        """The command, with the environment of this process and the additions."""
        return Command(self.args, input=self.input, cwd=self.cwd, env={**os.environ, **self.env})


@attrs.frozen(kw_only=True)
class Agent(ABC):
    """A coding agent's command line: how to start it, and how to read what it prints. A command's `parse=` takes it.

    Permissions are the CLI's own defaults, unless *args* say otherwise.

    Args:
        program: The executable, a name or a path; or words, if another program starts it: ``["npx", "codex"]``. The
            default is the agent's name.
        model: The model; None for the CLI's own choice.
        args: More arguments, passed on as they are: permissions, budgets, folders.
        env: More environment.
        allow_refusals: The tools whose refusals do not make the run `refused`, by the names that the CLI gives them:
            ``{"ExitPlanMode"}``. True for all. An answer that the model itself refused counts in any case.
        max_retries: How often the CLI itself repeats a failed request, if it lets one choose. Keep it small: the
            retries of a step are added to these.

    Example:
        Another CLI is one small class.

        >>> @attrs.frozen(kw_only=True)
        ... class Gemini(Agent):
        ...     name = "gemini"
        ...
        ...     def arguments(self, session_id, *, resume):
        ...         resuming = ["--resume", session_id] if resume else []
        ...         return ["--output-format", "stream-json", *resuming, *self.args]
        ...
        ...     def read(self, event, transcript):
        ...         match event:
        ...             case {"type": "init", "session_id": session_id}:
        ...                 transcript.session_id = as_session_id(session_id)
        ...             case {"type": "message", "role": "assistant", "content": str(text)}:
        ...                 transcript.say(text)
        ...             case {"type": "result", "status": "success"}:
        ...                 transcript.close()
        ...             case _:
        ...                 return False
        ...         return True
        >>> Gemini(args=["--approval-mode", "plan"]).command("Review this.").args
        ('gemini', '--output-format', 'stream-json', '--approval-mode', 'plan')
    """

    name: ClassVar[str]
    no_session: ClassVar[str | None] = None
    """The CLI's error message for a session that it cannot resume."""
    annotation: ClassVar[Any] = AgentResult
    """The type of `CommandResult.parsed`."""

    program: tuple[str, ...] = attrs.field(
        converter=_program, default=attrs.Factory(lambda self: self.name, takes_self=True)
    )
    model: str | None = None
    args: tuple[str, ...] = attrs.field(default=(), converter=_words)
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    allow_refusals: bool | frozenset[str] = attrs.field(default=False, converter=_tools)
    max_retries: int = attrs.field(default=1, validator=validated_by(check_count, 0))

    @property
    def limit_key(self) -> str:
        """The default `limit_key` of its steps: one account has one limit, for all questions."""
        return self.name

    def command(
        self,
        prompt: str,
        *,
        resume: str | None = None,
        cwd: str | PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> AgentCommand:
        """How to start the agent with *prompt*.

        The prompt goes to its standard input: as an argument it would be visible to every user of the machine, could be
        no longer than 128 KiB, and opencode would put quotes around it.

        Args:
            prompt: What to do.
            resume: A session to continue, by one run at a time, in the folder and the home that it was begun in.
            cwd: The folder to work in.
            env: More environment, for this run alone.

        Raises:
            TypeError: The prompt is no text.
            ValueError: The prompt is blank, or *resume* can be no session's name.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"the prompt must be a str, not {type(prompt).__name__}")
        if not prompt.strip():
            raise ValueError("the prompt is blank")
        if resume is not None and as_session_id(resume) is None:
            raise ValueError(f"resume={resume!r:.80} is no session's name")
        session_id = resume or self.new_session_id()
        return AgentCommand(
            args=(*self.program, *self.arguments(session_id, resume=resume is not None)),
            input=prompt,
            cwd=None if cwd is None else fspath(cwd),
            env={**self.environment(), **self.env, **(env or {})},
            session_id=session_id,
            is_resumed=resume is not None,
        )

    def stream(self, *, before: Usage | None = None) -> AgentStream:
        """A reader for the output of one run, fed line by line.

        Args:
            before: `session_usage` of the last result of the session that is resumed; ``Usage()`` if that is not known.
        """
        return AgentStream(self, before)

    def begin(self, command: Any, before: dict[str, Json]) -> Reader:
        """Begin to read one run of a step's command: `commands.parse.Parser` says more."""
        session_id: str | None = getattr(command, "session_id", None)
        used = _used(session_id, before) if getattr(command, "is_resumed", False) else None
        return _AgentReader(self.name, session_id, self.stream(before=used), used)

    @abstractmethod
    def arguments(self, session_id: str | None, *, resume: bool) -> list[str]:
        """The arguments of one run.

        Args:
            session_id: The session to resume, or the name of a new one if `new_session_id` gives names.
            resume: Which of both.
        """

    @abstractmethod
    def read(self, event: Event, transcript: Transcript) -> bool:
        """Take in one event; False if it is not understood."""

    def environment(self) -> dict[str, str]:
        """What the CLI needs in its environment."""
        return {}

    def new_session_id(self) -> str | None:
        """A new name for a session, for a CLI that lets one choose it; None for others."""
        return None

    def error_message(self, transcript: Transcript, stderr: str) -> str:
        """Why the run went wrong, in the CLI's words; ``""`` if it does not say."""
        return transcript.error or last_error_line(stderr)


class _AgentReader(Reader):
    """Reads one run of an agent for its step."""

    def __init__(self, agent: str, session_id: str | None, stream: AgentStream, before: Usage | None) -> None:
        self._agent = agent
        self._session_id = session_id
        self._stream = stream
        self.on_line = stream.feed
        self._before = before
        self._result: AgentResult | None = None

    def detail(self) -> dict[str, Json]:
        """The session, to resume it; and its tokens so far, if the agent counts only those."""
        result = self._result
        session = result.session_id if result is not None else self._stream.session_id or self._session_id
        usage = (result.session_usage if result is not None else None) or self._before
        known = {} if usage is None else {"sessionUsage": attrs.asdict(usage)}
        return {"agent": self._agent, "session": session, **known}

    def last_line(self) -> str:
        """The agent's last words."""
        return self._stream.last_line

    def is_done(self) -> bool:
        """Whether the turn is closed."""
        return self._stream.is_closed

    def on_exit(self, ended: Ended) -> CommandResult[AgentResult]:
        """The result, if the run was a success.

        Raises:
            Limited: The agent met a usage limit: until the time that it names, and for a second at least.
            AgentError: It was anything else.
        """
        parsed = self._parsed(ended.result, ended.at)
        if parsed.parsed.outcome is Outcome.OK:
            return parsed
        error = AgentError(ended.step, parsed)
        if parsed.parsed.outcome is not Outcome.LIMITED:
            raise error
        # Without a key: the step has one, the agent's name by default.
        raise Limited(max(parsed.parsed.until or ended.at, ended.at + _SHORTEST_LIMIT)) from error

    def on_timeout(self, error: CommandTimeoutError, at: datetime) -> OrchestratorError:
        """The error with the agent's result; or the limit, if its log says that it was waiting for one."""
        kind = "no output for" if isinstance(error, CommandIdleError) else "not done in"
        parsed = self._parsed(error.result, at, f"{kind} {error.timeout:g} s")
        until = parsed.parsed.until
        if until is not None and until > at:
            return Limited(until)
        return type(error)(error.step_name, error.timeout, parsed)

    def _parsed(
        self, result: CommandResult[Any], at: datetime, stopped: str | None = None
    ) -> CommandResult[AgentResult]:
        self._result = self._stream.result(result.exit_code, result.stderr, now=at, stopped=stopped)
        count_cost(self._result.cost_usd)
        note_usage(_usage_on_record(self._result))
        parsed: CommandResult[AgentResult] = attrs.evolve(result, parsed=self._result)
        return parsed


def _usage_on_record(result: AgentResult) -> dict[str, Json]:
    usage = result.usage or Usage()
    return {
        "agent": result.agent,
        "outcome": result.outcome.value,
        "costUsd": result.cost_usd,
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "sessionId": result.session_id,
    }


def _used(session_id: str | None, before: dict[str, Json]) -> Usage:
    """The tokens of a session before it is resumed; all None if the step does not know them."""
    counts = before.get("sessionUsage")
    if session_id != before.get("session") or not isinstance(counts, dict):
        return Usage()
    return Usage(**{field.name: counts.get(field.name) for field in attrs.fields(Usage)})
