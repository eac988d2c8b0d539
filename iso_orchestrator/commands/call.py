"""One attempt at a step that is a command: what is left of the last one ended, the command run, its output read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import sha256
from typing import Any, Literal, Protocol, TypeAlias

import attrs

from iso_orchestrator.checks import unique_name
from iso_orchestrator.commands.leftovers import await_leftovers, end_leftovers
from iso_orchestrator.commands.log import is_output_open
from iso_orchestrator.commands.model import Command, CommandResult, as_command
from iso_orchestrator.commands.output import Output, Reader, Reading
from iso_orchestrator.commands.process import CommandBeat, ProcessRunner
from iso_orchestrator.errors import (
    CommandTimeoutError,
    LeaseLostError,
    OrchestratorError,
    StoreError,
    WorkflowUsageError,
)
from iso_orchestrator.record.facts import CommandBegun, CommandsMarked, Fact, HeartbeatRecorded
from iso_orchestrator.record.model import Json
from iso_orchestrator.record.projection import Projection, copy_json
from iso_orchestrator.runtime.context import Attempt, Scope, current_scope
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.steps.call import StepOptions
from iso_orchestrator.store.log_files import LogFile, log_folder, log_path
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["CommandAttempt", "CommandLine", "CommandOptions", "IfLeft", "last_beat"]

_log = logging.getLogger("iso_orchestrator")

_LOOK_EVERY = 0.5  # seconds between two looks whether the caller has given the command up
_BEAT_EVERY = 20.0  # seconds between two heartbeats on record
_ANY_CODE = range(-64, 256)

IfLeft: TypeAlias = Literal["end", "wait"]


class Buildable(Protocol):
    """What makes a command when it is known what environment it is added to, as an agent's."""

    def build(self) -> Command:
        """The command."""
        ...


CommandLine: TypeAlias = Sequence[str | os.PathLike[str]] | Command | Buildable


@attrs.frozen(eq=False, repr=False)
class CommandOptions:
    """The options of a command, checked."""

    step: StepOptions
    timeout: float | None
    idle_timeout: float | None
    reading: Reading
    log_dir: str | None
    if_left: IfLeft


@attrs.define(eq=False, repr=False)
class CommandAttempt:
    """One attempt at a command."""

    options: CommandOptions
    scope: Scope = attrs.field(factory=current_scope)
    fs: FileSystem = attrs.field(factory=FileSystem)
    beat_at: float = 0.0
    known: dict[str, Json] | None = None  # what the last heartbeat said, but for what changes all the time

    def run(self, make: Callable[[], CommandLine]) -> CommandResult[Any]:
        """Run what *make* says.

        Raises:
            Limited: What the command needs is limited.
            CommandError: It was no success.
        """
        name, key = self._name(), f"command:{self._name()}"
        mark = self._mark(name)
        self._end_leftovers(name, mark)
        line = make()
        command = as_command(line)
        reader = self.options.reading.begin(line, last_beat(key))
        path = self._log_path(name, _attempt(self.scope).number)
        start = _size(self.fs, path)
        run = ProcessRunner(
            name=name,
            command=command,
            mark=mark,
            log_path=path,
            timeout=self.options.timeout,
            idle_timeout=self.options.idle_timeout,
            ok_codes=_ANY_CODE,
            on_line=reader.on_line,
            on_beat=lambda beat: self._beat(key, path, beat, reader),
            beat_every=_LOOK_EVERY,
            fs=self.fs,
        )
        self._begin(name, mark, path)
        if reader.detail():  # a session that is known before it begins can be gone on with however soon it is killed
            self._beat_again(key, path, reader)
        try:
            result = self._run(run, reader)
            done = reader.finish(
                Output(name, result, self._runtime().clock.now(), lambda: _whole(self.fs, path, start))
            )
        except Exception:
            self._beat_again(key, path, reader)  # where its output is, however soon it ended
            raise
        if reader.detail():  # a result too can be tried for again: where it is not accepted
            self._beat_again(key, path, reader)
        return done

    def _run(self, run: ProcessRunner, reader: Reader) -> CommandResult[Any]:
        try:
            return run.run()
        except CommandTimeoutError as error:
            raise reader.given_up(error, self._runtime().clock.now()) from error.__cause__

    def _beat_again(self, key: str, path: str, reader: Reader) -> None:
        self._record_beat(key, {"log": path, **reader.detail()}, silent=True)

    def _name(self) -> str:
        if self.scope.step is None:
            raise WorkflowUsageError("a command runs inside of its step alone")
        return self.scope.step.name

    def _mark(self, name: str) -> str:
        """A word that nobody can guess, the same for every attempt at the step, and on record before any begins."""
        at = self._runtime().clock.now()

        def decide(projection: Projection) -> tuple[Sequence[Fact], str]:
            if projection.command_seed is not None:
                return (), projection.command_seed
            seed = unique_name() + unique_name()
            return [CommandsMarked(at, seed)], seed

        seed = self._session().append(decide)[0]
        return _mark(seed, self._runtime().store.location_id(), name)

    def _end_leftovers(self, name: str, mark: str) -> None:
        """Have nobody left of the last command that began, however it ended: no two ever work on one step."""
        logs = self._logs_of_the_last(name, mark)
        if self.options.if_left == "end":
            end_leftovers(mark, *logs)
            return
        while not await_leftovers(mark, *logs, timeout=_LOOK_EVERY):
            self._refuse_abandoned()

    def _logs_of_the_last(self, name: str, mark: str) -> Sequence[str]:
        """Where its output may be: where it was, or in the folder of today, if the root has been moved with it."""
        last = self._session().append(lambda projection: ((), projection.commands.get(name)))[0]
        if last is None or last.mark != mark:  # the original's, of which this root is a copy
            return ()
        return last.log, os.path.join(self._log_folder(), os.path.basename(last.log))

    def _begin(self, name: str, mark: str, path: str) -> None:
        fact = CommandBegun(self._runtime().clock.now(), name, mark, path)
        self._session().append(lambda _: ([fact], None))

    def _beat(self, key: str, path: str, beat: CommandBeat, reader: Reader) -> None:
        """Look whether anybody still waits for the command, and say every now and then how it goes."""
        self._refuse_abandoned()
        detail = {"pid": beat.pid, "log": path, **reader.detail()}
        now = monotonic()
        if now >= self.beat_at or detail != self.known:
            is_first = self.known is None
            self._record_beat(key, {**detail, "bytes": beat.size, "line": beat.last_line}, silent=not is_first)
            # The first comes as the command begins, which has printed nothing by then.
            self.beat_at, self.known = now + (0 if is_first else _BEAT_EVERY), detail

    def _refuse_abandoned(self) -> None:
        batch = self.scope.batch
        if batch is not None and batch.is_abandoned:
            raise KeyboardInterrupt("nobody waits for the command any more")

    def _record_beat(self, key: str, detail: dict[str, Json], *, silent: bool) -> None:
        fact = HeartbeatRecorded(self._runtime().clock.now(), key, detail, silent)
        try:
            self._session().append(lambda _: ([fact], None))
        except LeaseLostError:
            raise
        except OrchestratorError as error:  # a full disk, perhaps: no reason to end what has cost much already
            _log.warning("heartbeat %r was not recorded: %s", key, error)

    def _log_path(self, name: str, number: int) -> str:
        shared = self.options.log_dir is not None  # other workflows may have steps of the same name there
        return log_path(self._log_folder(), name, number, workflow_id=self._runtime().workflow_id if shared else None)

    def _log_folder(self) -> str:
        folder = self.options.log_dir or self._session().log.logs
        if folder is None:
            runtime = self._runtime()
            folder = log_folder(runtime.workflow.dir, runtime.workflow_id)
        return folder

    def _runtime(self) -> WorkflowRuntime:
        runtime: WorkflowRuntime = self.scope.workflow._runtime
        return runtime

    def _session(self) -> Session:
        session: Session = _attempt(self.scope).session
        return session


def end_orphans(projection: Projection, place: str, is_alive: Callable[[str], bool]) -> None:
    """End what is left of a workflow's commands; nothing of what others have in hand, nor of a copy's original.

    Raises:
        CommandLeftoverError: Something is left that cannot be ended.
    """
    for name, command in projection.commands.items():
        owner = projection.owner(name)
        if projection.command_seed is None or command.mark != _mark(projection.command_seed, place, name):
            continue
        is_left = is_output_open(FileSystem(), command.log) if owner is None else not is_alive(owner)
        if is_left:
            end_leftovers(command.mark, command.log)


def last_beat(key: str) -> dict[str, Json]:
    """The detail of the last heartbeat of a command in the workflow of the current step; empty where there is none."""
    session = _attempt(current_scope()).session

    def look(projection: Projection) -> tuple[tuple[()], Json]:
        beat = projection.heartbeats.get(key)
        return (), None if beat is None else copy_json(beat.detail)

    detail = session.append(look)[0]
    return detail if isinstance(detail, dict) else {}


def _mark(seed: str, place: str, step: str) -> str:
    # The place is what a copy of the whole folder does not share: it must not end the commands of the original.
    return sha256(f"{seed}\0{place}\0{step}".encode()).hexdigest()[:32]


def _attempt(scope: Scope) -> Attempt:
    if scope.attempt is None:
        raise WorkflowUsageError("a command runs inside of its step alone")
    return scope.attempt


def _size(fs: FileSystem, path: str) -> int:
    info = fs.identify_path(path)
    return 0 if info is None else info.st_size


def _whole(fs: FileSystem, path: str, start: int) -> str:
    file = LogFile.find(fs, path)
    if file is None:
        raise StoreError(f"{path} was removed while its command ran: call the step again")
    with closing(file):
        return file.read_all(start).decode("utf-8", "backslashreplace")
