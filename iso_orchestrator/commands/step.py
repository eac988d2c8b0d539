"""`@workflow.command`: a step that is a command line, ended with all its processes, and found again after a crash."""

from __future__ import annotations

import errno
import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import attrs

from iso_orchestrator.checks import (
    check_choice,
    check_count,
    check_path,
    check_seconds,
    check_wait,
    unique_name,
    validated_by,
)
from iso_orchestrator.codec import ResultCodec, Unresolved
from iso_orchestrator.commands.model import Command, CommandResult, IfLeft, IfRunnerDies, as_command, heartbeat_key
from iso_orchestrator.commands.output import DISK_FULL, OutputFiles, is_output_open
from iso_orchestrator.commands.parse import Ended, Parser, Reader, as_parser
from iso_orchestrator.commands.process import ProcessRunner, await_orphans, end_orphans
from iso_orchestrator.errors import (
    CommandError,
    CommandLogError,
    CommandStartError,
    CommandTimeoutError,
    LeaseLostError,
    StoppedError,
)
from iso_orchestrator.notes import message_of
from iso_orchestrator.record.facts import CommandBegun, CommandsMarked, Fact, HeartbeatRecorded
from iso_orchestrator.record.model import Json
from iso_orchestrator.record.projection import Projection, copy_json
from iso_orchestrator.runtime.context import current_scope, refuse_interrupted
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.options import StepOptions
from iso_orchestrator.steps.step import Step
from iso_orchestrator.store.log_files import log_folder, log_path
from iso_orchestrator.system.clock import monotonic

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("iso_orchestrator")

_LOOK_EVERY = 0.5  # seconds between two looks at the command's progress, or at orphans
_BEAT_EVERY = 20.0  # seconds between two recorded heartbeats

# Why a program may not start now, and start later: the machine is short of something, or the program is being written.
_PASSING = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.EIO}


class Buildable(Protocol):
    """Builds a command when it is to be started, from the environment of then: an agent's command."""

    def build(self) -> Command:
        """The command."""
        ...


CommandLine: TypeAlias = Sequence[str | os.PathLike[str]] | Command | Buildable


def _exit_codes(codes: Collection[int]) -> tuple[int, ...]:
    checked = tuple(codes) if isinstance(codes, Iterable) else ()
    if not checked or not all(type(code) is int for code in checked):
        raise TypeError(f"ok_codes must be a collection of ints, not {codes!r:.80}")
    return checked


def _log_dir(folder: str | os.PathLike[str] | None) -> str | None:
    return None if folder is None else check_path(folder, "log_dir")


def _parser(options: CommandOptions) -> Parser:
    return as_parser(options.parse, options.ok_codes)


def _if_runner_dies(options: CommandOptions) -> IfRunnerDies:
    return "leave" if options.if_left == "wait" else "end"


def _check_if_runner_dies(options: CommandOptions, field: attrs.Attribute[Any], value: IfRunnerDies) -> None:
    check_choice(value, field.name, "end", "leave")
    if value == "end" and options.if_left == "wait":
        raise ValueError(
            'if_runner_dies="end" leaves no process that if_left="wait" could wait for: '
            'leave if_runner_dies out, or give if_left="end"'
        )


@attrs.frozen(kw_only=True)
class CommandOptions(StepOptions):
    """The options of a command, checked; `CommandKeywords` says what each one does."""

    idle_timeout: float | None = attrs.field(default=None, validator=validated_by(check_seconds))
    close_grace: float | None = attrs.field(default=10.0, validator=validated_by(check_wait))
    parse: Any = None
    ok_codes: tuple[int, ...] = attrs.field(default=(0,), converter=_exit_codes)
    log_dir: str | None = attrs.field(default=None, converter=_log_dir)
    max_log_bytes: int = attrs.field(default=1 << 30, validator=validated_by(check_count))
    if_left: IfLeft = attrs.field(default="end", validator=validated_by(check_choice, "end", "wait"))
    if_runner_dies: IfRunnerDies = attrs.field(
        default=attrs.Factory(_if_runner_dies, takes_self=True), validator=_check_if_runner_dies
    )
    parser: Parser = attrs.field(init=False, default=attrs.Factory(_parser, takes_self=True))


class CommandStep(Step[P, CommandResult[T]]):
    """A function whose calls are commands. Made by `workflow.command` and by the free `command`.

    Attributes:
        fn: The plain function, which returns the command line.
    """

    fn: Callable[P, CommandLine]  # type: ignore[assignment]  # a step's own returns the result

    def __init__(
        self, fn: Callable[P, CommandLine], options: CommandOptions, runtime: WorkflowRuntime | None = None
    ) -> None:
        limit_key = options.parser.limit_key if options.limit_key is None else options.limit_key
        # The command ends itself at its time limit; a step's own would leave it running.
        step = attrs.evolve(options, timeout=None, limit_key=limit_key)
        self._command = options
        super().__init__(cast("Any", fn), step, runtime)
        self._timeout = options.timeout
        returned: Any = CommandResult[Any]
        with suppress(Unresolved):
            returned = self._result_type()
        self.__signature__ = inspect.signature(self.fn).replace(return_annotation=returned)

    def _result_type(self) -> Any:
        return CommandResult[self._command.parser.annotation]  # type: ignore[name-defined]  # known at run time

    def _make_codec(self) -> ResultCodec:
        return ResultCodec(self._result_type(), self._subject())

    def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        return lambda: CommandAttempt(self._command).run(self.fn, args, kwargs)


class CommandAttempt:
    """One attempt at a command: ends the orphans of the last one, runs the command, reads its output."""

    def __init__(self, options: CommandOptions) -> None:
        scope = current_scope()
        assert scope.runtime is not None
        assert scope.step is not None
        assert scope.attempt is not None
        self._options = options
        self._runtime = scope.runtime
        self._session = scope.attempt.session
        self._flight = scope.attempt.flight
        self._step = scope.step.name
        self._number = scope.attempt.number
        self._key = heartbeat_key(self._step)
        self._log_folder = (
            options.log_dir or self._session.log.logs or log_folder(self._runtime.dir, self._runtime.workflow_id)
        )
        # Other workflows may have logs in a folder that is given, of steps with the same name.
        owner = None if options.log_dir is None else self._runtime.workflow_id
        self._log = log_path(self._log_folder, self._step, self._number, workflow_id=owner)
        self._runner: ProcessRunner | None = None
        self._beat_at = 0.0
        self._known: dict[str, Json] | None = None  # what the last heartbeat said, except for size and last line

    def run(self, fn: Callable[..., CommandLine], args: tuple[Any, ...], kwargs: dict[str, Any]) -> CommandResult[Any]:
        """Run the command that *fn* returns.

        Raises:
            Limited: What the command needs is limited.
            CommandError: It was no success.
            KeyboardInterrupt: Ctrl-C has come in the thread that waits for this one.
        """
        refuse_interrupted()
        tag = self._process_tag()
        self._end_orphans(tag)
        line = fn(*args, **kwargs)
        try:
            command = as_command(line)
        except (TypeError, ValueError):
            self._flight.is_hopeless = True
            raise
        reader = self._options.parser.begin(line, last_beat(self._key))
        self._record(CommandBegun(self._now(), self._step, tag, self._log))
        self._refuse_stopped()
        if reader.detail():  # a session id that is recorded before the start can be resumed after an immediate kill
            self._beat_again(reader)
        try:
            with closing(OutputFiles(self._log, self._options.max_log_bytes)) as files:

                def run(command: Command) -> CommandResult[Any]:
                    return self._read(self._run(command, tag, files, reader), files, reader)

                done: CommandResult[Any] = self._runtime.around_command(command, run, self._pid)
        except Exception as error:
            self._beat_again(reader)  # says where the output is, however soon the command ended
            self._refuse_stopped(error)
            raise
        if reader.detail():  # a result that is not accepted is tried for again, in the same session
            self._beat_again(reader)
        return done

    def _run(self, command: Command, tag: str, files: OutputFiles, reader: Reader) -> CommandResult[Any]:
        runner = self._runner = ProcessRunner(
            name=self._step,
            command=command,
            tag=tag,
            files=files,
            timeout=self._options.timeout,
            idle_timeout=self._options.idle_timeout,
            if_runner_dies=self._options.if_runner_dies,
            on_line=reader.on_line,
            on_look=refuse_interrupted,
            is_done=reader.is_done,
            close_grace=self._options.close_grace,
            on_beat=partial(self._beat, reader),
            beat_every=_LOOK_EVERY,
        )
        try:
            return runner.run()
        except CommandTimeoutError as error:
            raise reader.on_timeout(error, self._now()) from error.__cause__
        except CommandStartError as error:
            self._flight.is_hopeless = getattr(error.__cause__, "errno", None) not in _PASSING
            raise

    def _read(self, result: CommandResult[Any], files: OutputFiles, reader: Reader) -> CommandResult[Any]:
        try:
            return reader.on_exit(Ended(self._step, result, self._now(), files.stdout.text))
        except CommandError as error:
            if files.is_disk_full:
                raise CommandLogError(self._step, error.result, DISK_FULL) from error
            raise

    def _refuse_stopped(self, cause: Exception | None = None) -> None:
        """Raise if `iso-orchestrator stop` has asked for the end of this attempt, which failed because of *cause*."""
        number = self._number

        def look(projection: Projection) -> tuple[tuple[()], int | None]:
            step = projection.steps.get(self._step)
            return (), None if step is None or step.attempts != number else step.stopped_by

        pid = self._session.transact(look, durable=False)
        if pid is not None:
            self._flight.is_hopeless = True
            raise StoppedError(self._step, pid) from cause

    def _pid(self) -> int | None:
        return None if self._runner is None else self._runner.pid

    def _process_tag(self) -> str:
        """The process tag of all attempts at the step: it cannot be guessed, and is recorded before any attempt."""
        at = self._now()

        def decide(projection: Projection) -> tuple[Sequence[Fact], str]:
            if projection.command_seed is not None:
                return (), projection.command_seed
            seed = unique_name() + unique_name()
            return [CommandsMarked(at, seed)], seed

        seed = self._session.transact(decide, durable=False)
        return _process_tag(seed, self._runtime.store.location_id(), self._step)

    def _end_orphans(self, tag: str) -> None:
        """End what is left of the last command that began, so that no two commands ever work on one step."""
        last = self._session.transact(lambda projection: ((), projection.commands.get(self._step)), durable=False)
        if last is None:
            return  # no command of this step has begun yet
        logs: Sequence[str] = ()  # if this root is a copy, and the command is the original's
        if last.mark == tag:  # where its output was, or in today's folder, if the root has been moved with it
            logs = last.log, os.path.join(self._log_folder, os.path.basename(last.log))
        if self._options.if_left == "end":
            end_orphans(tag, *logs)
            return
        while not await_orphans(tag, *logs, timeout=_LOOK_EVERY):
            refuse_interrupted()

    def _beat(self, reader: Reader, pid: int, size: int, last_line: str) -> None:
        """Record the command's progress from time to time."""
        detail = {"pid": pid, "log": self._log, **reader.detail()}
        now = monotonic()
        if now >= self._beat_at or detail != self._known:
            is_first = self._known is None
            self._record_beat({**detail, "bytes": size, "line": reader.last_line() or last_line}, silent=not is_first)
            # The second follows soon: at the first, as the command begins, it has printed nothing.
            self._beat_at, self._known = now + (0 if is_first else _BEAT_EVERY), detail

    def _beat_again(self, reader: Reader) -> None:
        self._record_beat({"log": self._log, **reader.detail()}, silent=True)

    def _record_beat(self, detail: dict[str, Json], *, silent: bool) -> None:
        try:
            self._record(HeartbeatRecorded(self._now(), self._key, detail, silent))
        except LeaseLostError:
            raise
        except Exception as error:  # noqa: BLE001 - a full disk is no reason to end a command that has cost much
            _log.warning("heartbeat %r was not recorded: %s", self._key, message_of(error))

    def _record(self, fact: Fact) -> None:
        self._session.transact(lambda _: ([fact], None), durable=False)

    def _now(self) -> datetime:
        return self._runtime.clock.now()


def end_workflow_orphans(projection: Projection, place: str, is_alive: Callable[[str], bool]) -> None:
    """End what is left of a workflow's commands, except for steps that live processes run, and commands of an original.

    Args:
        projection: The workflow.
        place: The location id of its record: a copy's commands are those of its original.
        is_alive: Whether the process with that id lives.

    Raises:
        CommandLeftoverError: A process of them is left that cannot be ended.
    """
    for name, command in projection.commands.items():
        owner = projection.owner(name)
        if projection.command_seed is None or command.mark != _process_tag(projection.command_seed, place, name):
            continue
        if is_output_open(command.log) if owner is None else not is_alive(owner):
            end_orphans(command.mark, command.log)


def last_beat(key: str) -> dict[str, Json]:
    """The detail of the last heartbeat with that key in the workflow of the current step; empty where there is none."""
    attempt = current_scope().attempt
    if attempt is None:
        return {}

    def look(projection: Projection) -> tuple[tuple[()], Json]:
        beat = projection.heartbeats.get(key)
        return (), None if beat is None else copy_json(beat.detail)

    detail = attempt.session.transact(look, durable=False)
    return detail if isinstance(detail, dict) else {}


def _process_tag(seed: str, place: str, step: str) -> str:
    # A copy of the root has another place, so that it does not end the commands of the original.
    return sha256(f"{seed}\0{place}\0{step}".encode()).hexdigest()[:32]
