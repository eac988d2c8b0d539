"""One run of a command line, after whose end nobody of it is left."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from typing import Any

import attrs

from iso_orchestrator.commands.log import Lines, OutputFiles
from iso_orchestrator.commands.model import Command, CommandResult, printable
from iso_orchestrator.commands.start import start
from iso_orchestrator.errors import CommandError, CommandIdleError, CommandTimeoutError, suppressed_as_note
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.system.processes.ending import GRACE, end_tree
from iso_orchestrator.system.processes.exit import ChildProcess, exit_code, exit_of
from iso_orchestrator.system.processes.table import Process
from iso_orchestrator.system.processes.tree import process_table
from iso_orchestrator.system.shielded import run_uninterrupted

__all__ = ["CommandBeat", "ProcessRunner"]

_LOOK = 1.0  # seconds between two looks at the files
_LOOK_FOR_LINES = 0.05  # the same where somebody waits for their lines


@attrs.frozen
class CommandBeat:
    """What is known of a command that is running.

    Attributes:
        pid: Its process id.
        size: Bytes that it has written so far to standard output and standard error.
        last_line: The last line of that, as far as it is there yet.
    """

    pid: int
    size: int
    last_line: str


def _ignore(_: object) -> None:
    pass


@attrs.frozen(kw_only=True)
class ProcessRunner:
    """A command line, and how it is to be run.

    Attributes:
        name: The step's, for errors.
        command: What is run.
        mark: By which all that it starts is found, now or after a crash: `processes.tree` says how. A word that
            nobody else has, and that is on record before `run` is called.
        log_path: The file that its standard output goes to, behind what is there already; standard error's is beside
            it, with ``.stderr`` behind. Its folder is there.
        timeout: Seconds that it may take; None for as long as it takes.
        idle_timeout: Seconds that it may print nothing; None for ever.
        grace: Seconds from SIGTERM to SIGKILL when it has to end.
        ok_codes: The exit codes that are a success.
        on_line: Is given each line of standard output as it comes, without its end. One longer than a MiB is cut. Of
            those that are there when it was ended at a limit only as many come as do in a second.
        on_beat: Is told every *beat_every* seconds how it goes. What either of the two raises ends the command.
    """

    name: str
    command: Command
    mark: str
    log_path: str
    timeout: float | None = None
    idle_timeout: float | None = None
    grace: float = GRACE
    ok_codes: Collection[int] = (0,)
    on_line: Callable[[str], None] | None = None
    on_beat: Callable[[CommandBeat], None] = _ignore
    beat_every: float = 30.0
    fs: FileSystem = attrs.field(factory=FileSystem)

    def run(self) -> CommandResult[Any]:
        """Start it, and return when it and all that it has started have ended, by themselves or by force.

        What it leaves running in the background when it ends is ended too. So it is when this raises, whatever that
        is; a second Ctrl-C meanwhile only takes the grace time away.

        Raises:
            CommandStartError: It cannot be started.
            CommandError: Its exit code is none of `ok_codes`.
            CommandTimeoutError: It took longer than `timeout`.
            CommandIdleError: It printed nothing for `idle_timeout`.
            CommandLeftoverError: Something of it is left that cannot be ended.
            StoreError: Its output has no file.
            WorkflowUsageError: There is no way here to find what it starts; or others in this process take its exit
                code away.
        """
        process_table()  # where there is none, nothing is started
        with closing(OutputFiles(self.fs, self.log_path)) as files:
            return _Run(self, files).run()


class _Run:
    def __init__(self, plan: ProcessRunner, files: OutputFiles) -> None:
        self._plan = plan
        self._files = files
        self._lines = Lines(files.stdout, plan.on_line) if plan.on_line is not None else None
        self._process: ChildProcess | None = None
        self._known: set[Process] = set()

    def run(self) -> CommandResult[Any]:
        plan = self._plan
        began = monotonic()
        try:
            process = self._process = start(plan.name, plan.command, plan.mark, self._files)
            self._know(process)
            limit = _Watch(plan, self._files, self._lines, began).until_end(process)
            duration = monotonic() - began
            end_tree(plan.mark, grace=plan.grace, known=self._known)
            code = exit_code(process)
            self._hand_on_the_rest(limit)
        except BaseException as error:
            with suppressed_as_note(error, "not all of the command was ended"):
                run_uninterrupted(self._give_up)
            raise
        return self._outcome(limit, duration, code)

    def _hand_on_the_rest(self, limit: _Limit | None) -> None:
        if self._lines is None:
            return
        if limit is None:
            self._lines.finish()
        else:  # its last words, what it has cost perhaps; but no hour of them behind a limit of time
            self._lines.feed(monotonic() + _LOOK)

    def _know(self, process: ChildProcess) -> None:
        # By its number too: it may become another user's, as sudo does, whose mark cannot be read.
        entry = process_table().entry(process.pid)
        if entry is not None:
            self._known.add(entry.process)

    def _give_up(self, is_urgent: Callable[[], bool]) -> None:
        end_tree(self._plan.mark, grace=self._plan.grace, known=self._known, is_urgent=is_urgent)
        if self._process is not None:
            self._process.wait()

    def _outcome(self, limit: _Limit | None, duration: float, code: int) -> CommandResult[Any]:
        plan = self._plan
        result: CommandResult[Any] = CommandResult(
            args=[printable(arg) for arg in plan.command.args],
            exit_code=code,
            duration=duration,
            stdout=self._files.stdout.tail(),
            stderr=self._files.stderr.tail(),
            log_path=self._files.stdout.path,
        )
        if limit is not None:
            # Whatever its exit code: a program that was asked to end may well say that it has done its work.
            raise limit.error(plan.name, limit.seconds, result)
        if code not in plan.ok_codes:
            raise CommandError(plan.name, result)
        return result


@attrs.frozen
class _Limit:
    """A limit that was reached, and its seconds."""

    error: type[CommandTimeoutError]
    seconds: float


class _Watch:
    """Looks after a command while it runs."""

    def __init__(self, plan: ProcessRunner, files: OutputFiles, lines: Lines | None, began: float) -> None:
        self._plan = plan
        self._files = files
        self._lines = lines
        self._size = 0
        self._is_behind = False  # with the lines
        self._end_at = _after(began, plan.timeout)
        self._idle_at = _after(began, plan.idle_timeout)
        self._beat_at = began  # one at once: whoever looks sees that it has begun
        self._look_every = self._pace()

    def until_end(self, process: ChildProcess) -> _Limit | None:
        """Wait for its end, or a limit."""
        with closing(exit_of(process)) as exit_:
            while not exit_.wait(self._pause()):
                now = monotonic()
                if (limit := self._look(now)) is not None:
                    return limit
                if now >= self._beat_at:
                    self._beat_at = now + self._plan.beat_every
                    self._plan.on_beat(CommandBeat(process.pid, self._files.size(), self._files.last_line()))
        return None

    def _pace(self) -> float:
        if self._lines is not None:
            return _LOOK_FOR_LINES
        if self._plan.idle_timeout is not None:
            return min(_LOOK, self._plan.idle_timeout / 4)
        return float("inf")

    def _pause(self) -> float:
        next_at = min(self._end_at, self._idle_at, self._beat_at)
        return max(0.0, min(0.0 if self._is_behind else self._look_every, next_at - monotonic()))

    def _look(self, now: float) -> _Limit | None:
        if self._lines is not None:
            self._is_behind = not self._lines.feed(now + _LOOK)
        size = self._files.size()
        if size != self._size:
            self._size = size
            self._idle_at = _after(now, self._plan.idle_timeout)
        if self._plan.timeout is not None and now >= self._end_at:
            return _Limit(CommandTimeoutError, self._plan.timeout)
        if self._plan.idle_timeout is not None and now >= self._idle_at:
            return _Limit(CommandIdleError, self._plan.idle_timeout)
        return None


def _after(moment: float, seconds: float | None) -> float:
    return float("inf") if seconds is None else moment + seconds
