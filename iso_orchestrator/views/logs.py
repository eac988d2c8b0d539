"""The logs of steps' commands: whole, followed, or their last words; an agent's stream of JSON as its words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from enum import StrEnum

import attrs

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.commands.model import heartbeat_key
from iso_orchestrator.commands.output import TAIL, LogReader
from iso_orchestrator.errors import StoreError, WorkflowUsageError
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import Store
from iso_orchestrator.store.log_files import LogFile
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.views.live import read

STANDARD_ERROR = "standard error:"
"""The headline between both streams."""

_PAUSE = 0.2  # seconds between two looks at a log that is followed
_LAST_WORDS = 8  # lines
_ERROR_LINES = 4  # of an agent's standard error, which can be long and say little


class Stream(StrEnum):
    """What a command writes to."""

    STDOUT = ""
    STDERR = ".stderr"


@attrs.frozen
class LogOptions:
    """Which part of a log is printed, and how.

    Attributes:
        attempt: The number of the attempt; None for the last one.
        streams: In this order.
        is_raw: Whether an agent's stream is printed as it came, and not as its words.
        is_followed: Whether to wait for more, until the step or its process has ended.
    """

    attempt: int | None = None
    streams: tuple[Stream, ...] = (Stream.STDOUT, Stream.STDERR)
    is_raw: bool = False
    is_followed: bool = False


def log_lines(store: Store, workflow_id: str, step: str, options: LogOptions) -> Iterator[str]:
    """Yield the lines of a step's log, escaped for a terminal. Standard error comes after standard output.

    A log that is followed goes on with that of the next attempt, if the step is tried again.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        WorkflowUsageError: There is no such step, or it has no log.
    """
    first = options.streams[0]
    log: _Log | None = None
    while True:
        projection = read(store, workflow_id)
        if step not in projection.steps:
            raise WorkflowUsageError(
                f"workflow {projection.workflow_id!r} has no step {step!r}; `show` lists its steps"
            )
        owner, path = projection.owner(step), log_path_of(projection, step, options.attempt)
        is_followed = options.is_followed and options.attempt in {None, projection.steps[step].attempts}
        # Before the last lines are read: a process that ends afterwards has written all of them.
        is_last = not is_followed or owner is None or not store.is_alive(workflow_id, owner)
        if path is not None and (log is None or log.path != path):
            if log is not None:
                yield from log.last_lines(options.streams[1:])
            log = _Log.open(path, first, _words_of(projection, step, options), must_exist=is_last)
        if path is None and is_last:
            raise WorkflowUsageError(f"step {step!r} has no log: it is no command, or has not begun")
        if log is not None:
            yield from log.last_lines(options.streams[1:]) if is_last else log.lines()
        if is_last:
            return
        sleep(_PAUSE)


def log_path_of(projection: Projection, step: str, attempt: int | None = None) -> str | None:
    """Where the log of the step's last command is, or of the one of *attempt*; None if it has none.

    As the fact of its begin has it: a result, or an event, is what a user's function wrote, and could name any file.
    """
    command = projection.commands.get(step)
    if command is None or attempt is None:
        return None if command is None else command.log
    stem, dot, _ = command.log.removesuffix(".log").rpartition(".")
    return f"{stem}{dot}{attempt}.log"


def last_words(projection: Projection, step: str, attempt: int | None = None, count: int = _LAST_WORDS) -> list[str]:
    """The last lines of a step's log: of standard error if it has any, after those of an agent's words.

    What cannot be read is said instead.
    """
    path = log_path_of(projection, step, attempt)
    if path is None:
        return []
    words = _words_of(projection, step, LogOptions())
    try:
        said = [] if words is None else list(words(_tail_of(path)))[-count:]
        errors = _tail_of(f"{path}{Stream.STDERR}")
        if said and errors:
            return [*said, STANDARD_ERROR, *errors[-_ERROR_LINES:]]
        return (said or errors or _tail_of(path))[-count:]
    except StoreError as error:
        return [f"its log cannot be read: {error}"]


def last_line(projection: Projection, step: str) -> str:
    """The last line of a step's log, for people who watch it; "" if there is none."""
    path = log_path_of(projection, step)
    if path is None:
        return ""
    words = _words_of(projection, step, LogOptions())
    try:
        lines = _tail_of(path) or _tail_of(f"{path}{Stream.STDERR}")
        return next(reversed(lines if words is None else list(words(lines))), "").strip()
    except StoreError as error:
        return f"its log cannot be read: {error}"


def _tail_of(path: str) -> list[str]:
    """The last lines that are not blank."""
    file = LogFile.find(path)
    if file is None:
        return []
    with closing(LogReader(file)) as log:
        lines = log.tail().split("\n")
        whole = lines[1:] if log.size() > TAIL and len(lines) > 1 else lines
        return [line.rstrip("\r") for line in whole if line.strip()]


_Words = Callable[[Iterable[str]], Iterator[str]]


def _words_of(projection: Projection, step: str, options: LogOptions) -> _Words | None:
    """What makes an agent's words of the lines of its log; None where the lines are for people already."""
    beat = projection.heartbeats.get(heartbeat_key(step))
    match beat and beat.detail:
        case {"agent": str(name)} if not options.is_raw:
            pass
        case _:
            return None
    from iso_orchestrator.agents import Claude, Codex, OpenCode  # some milliseconds, which most commands do not need

    found = next((agent for agent in (Claude, Codex, OpenCode) if agent.name == name), None)
    if found is None:
        return None
    stream, before = found().stream(), ""

    def words(lines: Iterable[str]) -> Iterator[str]:
        nonlocal before
        for line in lines:
            stream.feed(line)
            for text in stream.words:
                if text != before:  # the closing event has the answer once more
                    yield from text.splitlines()
                before = text

    return words


class _Log:
    """The log of one attempt, while it is printed."""

    def __init__(self, path: str, stream: Stream, reader: LogReader, words: _Words | None) -> None:
        self.path = path
        self._reader = reader
        self._words = words if stream is Stream.STDOUT else None

    @classmethod
    def open(cls, path: str, stream: Stream, words: _Words | None, *, must_exist: bool) -> _Log | None:
        """Open it; None where it is missing and need not exist yet.

        Raises:
            WorkflowUsageError: It is missing.
        """
        file = LogFile.find(f"{path}{stream}")
        if file is None:
            if not must_exist:
                return None  # the command is about to begin
            raise WorkflowUsageError(
                f"the log {path!r} does not exist any more: it was removed, or the folder was moved"
            )
        return cls(path, stream, LogReader(file, longest_line=sys.maxsize), words)

    def lines(self) -> Iterator[str]:
        """The lines that were completed since the last call."""
        return self._shown(self._reader.lines())

    def last_lines(self, others: Iterable[Stream]) -> Iterator[str]:
        """The lines that are left, also the last one without an end; then those of other streams. It is closed."""
        yield from self._shown(self._reader.lines())
        yield from self._shown(self._reader.rest())
        self._reader.close()
        for stream in others:
            file = LogFile.find(f"{self.path}{stream}")
            if file is None:
                continue
            with closing(LogReader(file, longest_line=sys.maxsize)) as reader:
                if reader.size():
                    yield STANDARD_ERROR
                yield from map(escape_terminal, reader.lines())
                yield from map(escape_terminal, reader.rest())

    def _shown(self, lines: Iterator[str]) -> Iterator[str]:
        return map(escape_terminal, lines if self._words is None else self._words(lines))
