"""One run of a command line, and the end of its orphans. After either no process of the command is left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.commands.model import Command, CommandResult, IfRunnerDies, printable
from iso_orchestrator.commands.output import OutputFiles, input_file, is_output_open
from iso_orchestrator.errors import (
    CommandError,
    CommandIdleError,
    CommandLeftoverError,
    CommandLogError,
    CommandStartError,
    CommandTimeoutError,
)
from iso_orchestrator.notes import suppressed_as_note
from iso_orchestrator.system import guard, processes
from iso_orchestrator.system.clock import Backoff, monotonic, sleep
from iso_orchestrator.system.interrupts import at_exit, is_interrupted, masked, postponed
from iso_orchestrator.system.processes import GRACE, Process, end_tree, living_tree

_LOOK = 1.0  # seconds between two looks at the files
_LOOK_FOR_LINES = 0.05  # the same where lines are read
_LOOK_FOR_ORPHANS = 0.05
_LOOK_FOR_END = 0.1  # the same for what the caller's `on_look` looks at
_PATH_SHOWN = 1000  # characters in an error

_Limit: TypeAlias = Callable[[CommandResult[Any]], CommandError]
"""Makes the error for a run that was ended at a limit."""


@attrs.define(kw_only=True, eq=False)
class ProcessRunner:
    """One run of a command line.

    Attributes:
        name: The step's name, for errors.
        command: The command line.
        tag: The process tag, by which all that it starts is found, now or after a crash (`system.processes`). No other
            command has it, and it is recorded before `run` is called.
        files: The files that its output is appended to. The caller closes them.
        timeout: Seconds that it may take; None for no limit.
        idle_timeout: Seconds that it may print nothing; None for no limit.
        grace: Seconds from SIGTERM to SIGKILL when it has to end.
        if_runner_dies: Whether the guard is to "end" it if this process is killed, or "leave" it.
        on_line: Called with each line of standard output as it comes, without its end. One longer than a MiB is cut.
            After a time limit it gets only the lines that it can take in a second.
        on_look: Called every tenth of a second: what it raises ends the command.
        is_done: Whether the lines say that the output is complete. From then on no time limit is an error, and the
            command is ended after `close_grace`. Ctrl-C ends it at once, and is raised after the step.
        close_grace: Seconds that it has to end by itself when it is done; None for no limit but `timeout`.
        on_beat: Called every *beat_every* seconds with the process id, the bytes that were written so far, and the last
            line of output, whether or not its end is there yet. An exception of either function ends the command.
    """

    name: str
    command: Command
    tag: str
    files: OutputFiles
    timeout: float | None = None
    idle_timeout: float | None = None
    grace: float = GRACE
    if_runner_dies: IfRunnerDies = "end"
    on_line: Callable[[str], None] | None = None
    on_look: Callable[[], None] | None = None
    is_done: Callable[[], bool] = lambda: False
    close_grace: float | None = None
    on_beat: Callable[[int, int, str], None] = lambda *_: None
    beat_every: float = 30.0

    _process: Process | None = attrs.field(init=False, default=None)
    _size: int = attrs.field(init=False, default=0)
    _are_lines_left: bool = attrs.field(init=False, default=False)
    _close_at: float = attrs.field(init=False, default=float("inf"))
    _is_closed: bool = attrs.field(init=False, default=False)
    _end_at: float = attrs.field(init=False)
    _idle_at: float = attrs.field(init=False)
    _beat_at: float = attrs.field(init=False)

    @property
    def pid(self) -> int | None:
        """The id of its process; None before that."""
        return None if self._process is None else self._process.pid

    def run(self) -> CommandResult[Any]:
        """Start it, and return when it and all that it has started have ended, by themselves or by force.

        The result may have any exit code. What the command leaves running in the background when it ends is ended too,
        also when this raises. A second Ctrl-C meanwhile only takes the grace time away.

        Raises:
            CommandStartError: It cannot be started.
            CommandTimeoutError: It took longer than `timeout`.
            CommandIdleError: It printed nothing for `idle_timeout`.
            CommandLogError: Its output would have filled the disk.
            CommandLeftoverError: A process of it is left that cannot be ended.
            WorkflowUsageError: Other code in this process has taken its exit code.
        """
        began = monotonic()
        self._end_at = _after(began, self.timeout)
        self._idle_at = _after(began, self.idle_timeout)
        self._beat_at = began  # at once, so that a look at the record shows the command
        _running.add(self)
        try:
            process = self._process = self._start()
            try:
                limit = self._watch(process)
                duration = monotonic() - began
                end_tree(self.tag, grace=self.grace, known=[process])
            except KeyboardInterrupt as interrupt:
                if not self._is_done_by_now():
                    raise
                with postponed(interrupt):  # what it has done was paid for
                    limit, self._is_closed = None, True
                    duration = monotonic() - began
                    self.end()
            code = processes.exit_code(process)
            self._pass_on_the_last_lines(limit)
        except BaseException as error:  # Ctrl-C too: what it leaves of the command is ended
            with masked(), suppressed_as_note(error, "not all of the command was ended"):
                self.end()
                self.files.finish(has_failed=True)
            raise
        finally:
            _running.discard(self)
        result = self._result(duration, code)
        self.files.finish(has_failed=code != 0 or limit is not None)
        if limit is None:
            return result
        # With any exit code: a program that was asked to end may well say that it has done its work.
        raise limit(result)

    def _start(self) -> Process:
        command = self.command
        tags = [guard.runner_tag(), self.tag] if self.if_runner_dies == "end" else [self.tag]
        environment = processes.tagged_environment(command.env, *tags)
        try:
            with input_file(command.input, os.path.dirname(self.files.stdout.path)) as stdin:
                return processes.start(
                    command.args,
                    env=environment,
                    cwd=command.cwd,
                    stdin=stdin,
                    stdout=self.files.stdout.fd,
                    stderr=self.files.stderr.fd,
                )
        except OSError as error:
            raise CommandStartError(self.name, command.args[0], _reason(error, command, environment)) from error

    def _watch(self, process: Process) -> _Limit | None:
        """Wait for the end of the command, or a limit."""
        while not processes.has_ended(process, self._pause()):
            if self.on_look is not None:
                self.on_look()
            now = monotonic()
            if (limit := self._look(now)) is not None:
                return limit
            if now >= self._close_at:
                self._is_closed = True
                return None
            if (reason := self.files.look()) is not None:
                self.grace = 0  # it would go on to write
                processes.kill_group(process)
                self.files.make_room()
                return lambda result: CommandLogError(self.name, result, reason)
            if now >= self._beat_at:
                self._beat_at = now + self.beat_every
                self.on_beat(process.pid, self.files.size(), self.files.last_line())
        self.files.look()
        self.files.make_room()  # at once, where it has ended since the disk is full
        return None

    def _pause(self) -> float:
        look_in = 0.0 if self._are_lines_left else self._look_every()
        due = min(self._end_at, self._idle_at, self._close_at, self._beat_at)
        return max(0.0, min(look_in, self.files.look_in, due - monotonic()))

    def _look_every(self) -> float:
        if self.on_line is not None:
            return _LOOK_FOR_LINES
        if self.on_look is not None:
            return _LOOK_FOR_END
        if self.idle_timeout is not None:
            return min(_LOOK, self.idle_timeout / 4)
        return float("inf")

    def _look(self, now: float) -> _Limit | None:
        self._are_lines_left = not self._pass_on_lines(now + _LOOK)
        size, is_done = self.files.size(), self.is_done()
        if size != self._size or is_done:
            self._size = size
            self._idle_at = _after(now, self.idle_timeout)
        if is_done:
            self._close_at = min(self._close_at, _after(now, self.close_grace), self._end_at)
            return None
        self._close_at = float("inf")
        if self.timeout is not None and now >= self._end_at:
            return partial(CommandTimeoutError, self.name, self.timeout)
        if self.idle_timeout is not None and now >= self._idle_at:
            return partial(CommandIdleError, self.name, self.idle_timeout)
        return None

    def _pass_on_lines(self, until: float = float("inf")) -> bool:
        """Pass on the lines that are complete by now, none after *until*; whether that was all."""
        if self.on_line is None:
            return True
        for line in self.files.stdout.lines():
            self.on_line(line)
            if monotonic() >= until:
                return False
        return True

    def _is_done_by_now(self) -> bool:
        with suppress(Exception):  # Ctrl-C is what counts
            self._pass_on_lines(monotonic() + _LOOK)
        return self.is_done()

    def _pass_on_the_last_lines(self, limit: _Limit | None) -> None:
        if self._is_closed:
            return  # a command that is ended after its work may say that it failed
        if limit is not None:
            self._pass_on_lines(monotonic() + _LOOK)  # they may say what the run has cost; but the time is over
        elif self.on_line is not None:
            self._pass_on_lines()
            for line in self.files.stdout.rest():
                self.on_line(line)

    def end(self, *, at_once: bool = False) -> None:
        """End what runs of it, after its time to finish or *at_once*."""
        known = [] if self._process is None else [self._process]
        grace = 0 if at_once else self.grace
        end_tree(self.tag, grace=grace, known=known, is_urgent=is_interrupted)
        for process in known:
            processes.has_ended(process, processes.KILLING)  # takes its exit code, so that no zombie stays

    def _result(self, duration: float, code: int) -> CommandResult[Any]:
        return CommandResult(
            args=[printable(arg) for arg in self.command.args],
            exit_code=code,
            duration=duration,
            stdout=self.files.stdout.tail(),
            stderr=self.files.stderr.tail(),
            log_path=self.files.stdout.path,
        )


_running = set[ProcessRunner]()


def _end_all_at_exit() -> None:
    # One more Ctrl-C has ended the interpreter's wait for the threads that end their commands.
    with masked():
        for run in list(_running):
            run.end(at_once=True)
        if not _running:
            guard.dismiss()


at_exit(_end_all_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # they are the parent's


def end_orphans(tag: str, *log_paths: str, grace: float = GRACE) -> int:
    """End the processes that a dead runner has left of a command, until none has its tag or its output open.

    Call it after the runner's death and before the command is started again under another tag. Then no two runs of it
    work at one time.

    Args:
        tag: The process tag.
        log_paths: Where the file of its standard output may be. If that was removed, the tag alone decides. A process
            that was forked for the command just before the runner's death does not have it yet, and one that has
            cleared its environment does not have it any more.
        grace: Seconds from SIGTERM to SIGKILL.

    Returns:
        How many processes there were.

    Raises:
        CommandLeftoverError: Some are left, or a process that cannot be found has the output open.
        WorkflowUsageError: This process is one of them.
    """
    open_path = _first_open(log_paths)
    count = end_tree(tag, grace=grace)
    give_up_at = monotonic() + processes.KILLING
    pause = Backoff()
    # Once more after the output was closed: before it ended, the process with the output may have started others with
    # another output.
    while open_path is not None:
        if monotonic() >= give_up_at:
            raise CommandLeftoverError((), processes.KILLING, open_path)
        pause.rest()
        open_path = _first_open(log_paths)
        count += end_tree(tag, grace=grace)
    return count


def await_orphans(tag: str, *log_paths: str, timeout: float | None = None) -> bool:
    """Wait until the processes that a dead runner has left of a command have ended by themselves; whether they have.

    Args:
        tag: As in `end_orphans`.
        log_paths: Where the file of its standard output may be.
        timeout: Seconds; None for no limit.

    Raises:
        WorkflowUsageError: This process is one of them.
    """
    give_up_at = _after(monotonic(), timeout)
    # In this order: the process with the output may start others with another output before it ends.
    while _first_open(log_paths) is not None or living_tree(tag):
        if monotonic() >= give_up_at:
            return False
        sleep(_LOOK_FOR_ORPHANS)
    return True


def _first_open(log_paths: Iterable[str]) -> str | None:
    return next(filter(is_output_open, log_paths), None)


def _after(moment: float, seconds: float | None) -> float:
    return float("inf") if seconds is None else moment + seconds


def _reason(error: OSError, command: Command, environment: Mapping[str, str]) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.E2BIG:
        return f"{reason}: give long texts as input= or in a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}: free some space on the disk of its logs"
    if processes.is_out_of_descriptors(error):
        return f"{reason}: raise `ulimit -n`, or run fewer commands at a time"
    if command.cwd is not None and not os.path.isdir(command.cwd):
        return f"its folder {command.cwd!r} does not exist: make it, or give another cwd="
    # PermissionError also where this user may not read a folder of the PATH, and the program is in none of the others.
    if isinstance(error, FileNotFoundError | PermissionError) and not os.path.dirname(command.args[0]):
        path = environment.get("PATH", os.defpath)
        shown = path if len(path) <= _PATH_SHOWN else f"{path[:_PATH_SHOWN]}..."
        return f"no such executable program on the PATH {shown!r}: install it, or give its whole path"
    return f"{reason}; give the path of an executable program"
