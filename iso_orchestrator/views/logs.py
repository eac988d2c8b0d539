"""The log of a step's command: print what is in it, and follow it while the command runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from iso_orchestrator.commands.output import LogReader, log_path
from iso_orchestrator.errors import WorkflowNotFoundError, WorkflowUsageError
from iso_orchestrator.record.model import escape_terminal
from iso_orchestrator.store import Store
from iso_orchestrator.store.log_files import LogFile
from iso_orchestrator.system.clock import sleep

_PAUSE = 0.2  # seconds between two looks at a log that is followed


def output(store: Store, workflow_id: str, step: str, *, follow: bool) -> Iterator[str]:
    """Yield the lines of a step's log, escaped for a terminal.

    Args:
        store: The store.
        workflow_id: The workflow.
        step: The step's name.
        follow: Wait for more lines until the step or its process has ended. If the step is tried again, continue with
            the log of the next attempt.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        WorkflowUsageError: There is no such step, or it has no log.
    """
    log: LogReader | None = None
    while True:
        projection = store.read(workflow_id)
        if projection is None:
            raise WorkflowNotFoundError(workflow_id, store.display_name)
        state = projection.steps.get(step)
        if state is None:
            raise WorkflowUsageError(
                f"workflow {projection.workflow_id!r} has no step {step!r}; `show` lists its steps"
            )
        owner, path = projection.owner(step), log_path(state, projection.heartbeats)
        # Before the last lines are read: a process that ends afterwards has written all of them.
        is_last = not follow or owner is None or not store.is_alive(workflow_id, owner)
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


def _open(path: str) -> LogReader:
    file = LogFile.find(path)
    if file is None:
        raise WorkflowUsageError(f"the log {path!r} does not exist any more: it was removed, or the folder was moved")
    return LogReader(file, longest_line=sys.maxsize)


def _last_lines(log: LogReader) -> Iterator[str]:
    """The lines that are left, also the last one without an end."""
    yield from map(escape_terminal, log.lines())
    yield from map(escape_terminal, log.rest())
    log.close()
