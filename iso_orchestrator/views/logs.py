"""The log of a step's command: print what is in it, and follow it while the command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.record.markup import escape_terminal
from iso_orchestrator.record.model import StepStatus, WorkflowRecord
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["log_path", "output"]

_PAUSE = 0.2  # seconds between two reads of a log that is followed
_CHUNK = 1 << 16


def log_path(record: WorkflowRecord | Projection, step: str) -> str | None:
    """Find the log of the last attempt at a step; None where it is no command, or its first heartbeat is missing."""
    state = record.steps[step]
    if state.status is StepStatus.COMPLETED:
        match state.result:
            case {"exit_code": int(), "duration": int() | float(), "log_path": str(path), "parsed": _}:
                return path
        return None
    beat = record.heartbeats.get(f"command:{step}")
    match None if beat is None else beat.detail:
        case {"log": str(path)}:
            return path
    return None


def output(
    look: Callable[[], Projection], is_alive: Callable[[str], bool], step: str, *, follow: bool
) -> Iterator[str]:
    """Yield the lines of a step's log, escaped for a terminal.

    Args:
        look: Reads the workflow.
        is_alive: Tells whether the process with that id lives; it runs the step.
        step: The step's name.
        follow: Wait for more lines until the step or its process has ended. If the step is tried again, continue with
            the log of the next attempt.

    Raises:
        WorkflowUsageError: There is no such step, or it has no log.
    """
    tail: _Tail | None = None
    while True:
        projection = look()
        if step not in projection.steps:
            raise WorkflowUsageError(
                f"workflow {projection.workflow_id!r} has no step {step!r}; `show` lists its steps"
            )
        owner, path = projection.owner(step), log_path(projection, step)
        # Before the last lines are read: a process that ends afterwards has written all of them.
        is_last = not follow or owner is None or not is_alive(owner)
        if path is not None and (tail is None or tail.path != path):
            if tail is not None:
                yield from tail.lines(to_end=True)
            tail = _Tail(path)
        if tail is not None:
            yield from tail.lines(to_end=is_last)
        elif is_last:
            raise WorkflowUsageError(
                f"step {step!r} has no log: it is no command, or its first heartbeat is not recorded yet"
            )
        if is_last:
            return
        sleep(_PAUSE)


class _Tail:
    """A log file, read line by line as it grows."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fs = FileSystem()
        try:
            self._fd = self._fs.open_read(path)
        except OSError as error:
            raise WorkflowUsageError(f"the log {path!r} cannot be read: {error.strerror}") from error
        self._offset = 0
        self._unfinished = b""

    def lines(self, *, to_end: bool) -> Iterator[str]:
        """Yield the lines that are complete; with *to_end* also an incomplete last one, and close the file."""
        while data := self._fs.read_at(self._fd, _CHUNK, self._offset):
            self._offset += len(data)
            *lines, self._unfinished = (self._unfinished + data).split(b"\n")
            yield from map(_text, lines)
        if to_end:
            if self._unfinished:
                yield _text(self._unfinished)
            self._fs.close(self._fd)


def _text(line: bytes) -> str:
    return escape_terminal(line.removesuffix(b"\r").decode("utf-8", "backslashreplace"))
