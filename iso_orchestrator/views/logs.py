"""The output of a step's command: what there is of it, and what comes."""

from __future__ import annotations

from collections.abc import Iterator

from iso_orchestrator.errors import WorkflowNotFoundError, WorkflowUsageError
from iso_orchestrator.record.markup import escape_terminal
from iso_orchestrator.record.model import StepStatus
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import sleep

__all__ = ["log_path", "output"]

_PAUSE = 0.2  # seconds between two looks at a log that is followed
_CHUNK = 1 << 16


def log_path(projection: Projection, step: str) -> str | None:
    """Where the last attempt at a step writes, or wrote; None where it is not known, as before its first heartbeat."""
    state = projection.steps.get(step)
    if state is None:
        raise WorkflowUsageError(f"workflow {projection.workflow_id!r} has no step {step!r}; `show` lists its steps")
    result = state.result
    if state.status is StepStatus.COMPLETED:
        path = result.get("log_path") if isinstance(result, dict) else None
    else:
        beat = projection.heartbeats.get(f"command:{step}")
        path = beat.detail.get("log") if beat is not None and isinstance(beat.detail, dict) else None
    return path if isinstance(path, str) else None


def output(store: Store, workflow_id: str, step: str, *, follow: bool) -> Iterator[str]:
    """The lines of a step's log, made harmless for a terminal.

    Args:
        store: The store.
        workflow_id: The workflow.
        step: The step's name.
        follow: Wait for more until the step has ended, or its process has; when it is tried again, go on with that log.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        WorkflowUsageError: There is no such step, or it has no log.
    """
    tail = None
    while True:
        projection = store.read(workflow_id)
        if projection is None:
            raise WorkflowNotFoundError(workflow_id, store.display_name)
        owner, path = projection.owner(step), log_path(projection, step)
        # Asked before the last of it is read.
        is_last = not follow or owner is None or not store.is_alive(workflow_id, owner)
        if path is not None and (tail is None or tail.path != path):
            if tail is not None:
                yield from tail.lines(whole=True)
            tail = _Tail(store, path)
        if tail is not None:
            yield from tail.lines(whole=is_last)
        elif is_last:
            raise WorkflowUsageError(
                f"step {step!r} has no log: it is no command, or none of its heartbeats has come yet"
            )
        if is_last:
            return
        sleep(_PAUSE)


class _Tail:
    """What is appended to a log, line by line."""

    def __init__(self, store: Store, path: str) -> None:
        self.path = path
        file = store.find_log(path)
        if file is None:
            raise WorkflowUsageError(
                f"the log {path!r} does not exist any more: it was removed, or the folder was moved"
            )
        self._file = file
        self._offset = 0
        self._begun = b""

    def lines(self, *, whole: bool) -> Iterator[str]:
        """The lines that are complete by now; with *whole* also the last one, which is not. Then the log is closed."""
        while data := self._file.read(self._offset, _CHUNK):
            self._offset += len(data)
            *lines, self._begun = (self._begun + data).split(b"\n")
            yield from map(_text, lines)
        if whole and self._begun:
            yield _text(self._begun)
            self._begun = b""
        if whole:
            self._file.close()


def _text(line: bytes) -> str:
    return escape_terminal(line.removesuffix(b"\r").decode("utf-8", "backslashreplace"))
