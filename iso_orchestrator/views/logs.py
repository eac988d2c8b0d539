"""The log of a step's command: print what is in it, and follow it while the command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from iso_orchestrator.commands.output import LogFile, log_path
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.record.markup import escape_terminal
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.system.clock import sleep

__all__ = ["output"]

_PAUSE = 0.2  # seconds between two looks at a log that is followed


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
    log: LogFile | None = None
    while True:
        projection = look()
        state = projection.steps.get(step)
        if state is None:
            raise WorkflowUsageError(
                f"workflow {projection.workflow_id!r} has no step {step!r}; `show` lists its steps"
            )
        owner, path = projection.owner(step), log_path(state, projection.heartbeats)
        is_last = not follow or owner is None or not is_alive(owner)  # asked before the last of it is read
        if path is not None and (log is None or log.path != path):
            if log is not None:
                yield from _last_lines(log)
            log = _open(path)
        if log is None and is_last:
            raise WorkflowUsageError(
                f"step {step!r} has no log: it is no command, or its first heartbeat is not recorded yet"
            )
        if log is not None:
            yield from _last_lines(log) if is_last else map(escape_terminal, log.lines())
        if is_last:
            return
        sleep(_PAUSE)


def _open(path: str) -> LogFile:
    try:
        return LogFile.open(path, longest_line=sys.maxsize)
    except OSError as error:
        raise WorkflowUsageError(f"the log {path!r} cannot be read: {error.strerror}") from error


def _last_lines(log: LogFile) -> Iterator[str]:
    """The lines that are left, also the last one without an end."""
    yield from map(escape_terminal, log.lines())
    yield from map(escape_terminal, log.rest())
    log.close()
