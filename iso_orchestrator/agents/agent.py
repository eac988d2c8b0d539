"""What all agents' command lines have in common: how they are started, and that they speak in lines of JSON."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any, ClassVar

import attrs

from iso_orchestrator.agents.reading import AgentReading
from iso_orchestrator.agents.result import Usage
from iso_orchestrator.agents.stream import AgentStream, Event, last_words
from iso_orchestrator.agents.turn import Turn, as_session_id
from iso_orchestrator.commands.model import Command

__all__ = ["Agent", "AgentCommand"]


def _words(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"args takes a list of words, not the text {value!r:.80}")
    return tuple(value)


def _program(value: str | Iterable[str]) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else tuple(value)
    if not words or not words[0]:
        raise ValueError("program is empty")
    return words


def _check_retries(_: object, __: object, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"max_retries must be an int, not {value!r}")
    if value < 0:
        raise ValueError(f"max_retries must be 0 or more, not {value}")


@attrs.frozen
class AgentCommand:
    """How an agent is started.

    Attributes:
        args: Program and arguments.
        input: What goes to its standard input, which is closed after it.
        cwd: The folder to start it in; None is the present one.
        env: What is added to the environment.
        session_id: The session that it will have, where that is known beforehand.
        is_resumed: Whether that is one to go on with.
    """

    args: tuple[str, ...]
    input: str
    cwd: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    session_id: str | None = None
    is_resumed: bool = False

    def build(self) -> Command:
        """The command, with this process's environment around what is added."""
        return Command(self.args, input=self.input, cwd=self.cwd, env={**os.environ, **self.env})


@attrs.frozen(kw_only=True)
class Agent(ABC):
    """A coding agent's command line: how to start it, and how to read what it prints.

    Permissions are the CLI's own defaults, unless *args* say otherwise.

    Args:
        program: The executable, a name or a path; or words, where another starts it: ``["npx", "codex"]``. By default
            the agent's name.
        model: Which model to use; None is the CLI's own choice.
        args: More arguments, as they are: permissions, budgets, folders.
        env: More environment.
        max_retries: How often the CLI itself repeats a request that failed, where it can be told. Few: retries of a
            step come on top of these.

    Example:
        A CLI that is not here is one small class.

        >>> @attrs.frozen(kw_only=True)
        ... class Gemini(Agent):
        ...     name = "gemini"
        ...
        ...     def arguments(self, session_id, *, resume):
        ...         going_on = ["--resume", session_id] if resume else []
        ...         return ["--output-format", "stream-json", *going_on, *self.args]
        ...
        ...     def read(self, event, turn):
        ...         match event:
        ...             case {"type": "init", "session_id": session_id}:
        ...                 turn.session_id = as_session_id(session_id)
        ...             case {"type": "message", "role": "assistant", "content": str(text)}:
        ...                 turn.say(text)
        ...             case {"type": "result", "status": "success"}:
        ...                 turn.close()
        ...             case _:
        ...                 return False
        ...         return True
        >>> Gemini(args=["--approval-mode", "plan"]).command("Review this.").args
        ('gemini', '--output-format', 'stream-json', '--approval-mode', 'plan')
    """

    name: ClassVar[str]
    no_session: ClassVar[str | None] = None
    """What the CLI says when it has no session of the name that it is to go on with."""

    program: tuple[str, ...] = attrs.field(
        converter=_program, default=attrs.Factory(lambda self: self.name, takes_self=True)
    )
    model: str | None = None
    args: tuple[str, ...] = attrs.field(default=(), converter=_words)
    env: Mapping[str, str] = attrs.field(factory=dict)
    max_retries: int = attrs.field(default=1, validator=_check_retries)

    def command(
        self,
        prompt: str,
        *,
        resume: str | None = None,
        cwd: str | PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> AgentCommand:
        """How to have the agent do what *prompt* says.

        The prompt goes in by standard input: as an argument it would be seen by every user of the machine, could be
        no longer than 128 KiB, and opencode would put quotes around it.

        Args:
            prompt: What to do.
            resume: The session to go on with, one at a time; in the folder and the home that it was begun in.
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
        """What reads the output of one run.

        Args:
            before: `session_usage` of the last result of the session that is resumed; ``Usage()`` where nobody knows.
        """
        return AgentStream(self, before)

    def reading(self) -> AgentReading:
        """How its runs are read as steps; `parse=` takes the agent itself."""
        return AgentReading(self.name, lambda before: self.stream(before=before))

    @abstractmethod
    def arguments(self, session_id: str | None, *, resume: bool) -> list[str]:
        """The arguments, to go on with that session or for a new one; it has a name where `new_session_id` gives it."""

    @abstractmethod
    def read(self, event: Event, turn: Turn) -> bool:
        """Take in one event. False: it is not understood."""

    def environment(self) -> dict[str, str]:
        """What the CLI needs in its environment."""
        return {}

    def new_session_id(self) -> str | None:
        """A name that nobody has used, for a CLI that lets one choose it."""
        return None

    def complaint(self, turn: Turn, stderr: str) -> str:
        """Why the run went wrong, in the CLI's words; ``""`` where it does not say."""
        return turn.error or last_words(stderr)
