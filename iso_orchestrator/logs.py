"""The output of a step's command: what there is of it, and what comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from iso_orchestrator.clock import sleep
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.fold import Fold
from iso_orchestrator.markup import escape_terminal
from iso_orchestrator.model import StepStatus
from iso_orchestrator.store.file.fs import FileSystem

__all__ = ["log_path", "output"]

_PAUSE = 0.2  # seconds between two looks at a log that is followed
_CHUNK = 1 << 16


def log_path(fold: Fold, step: str) -> str | None:
    """Where the last attempt at a step writes, or wrote; None where it is not known, as before its first heartbeat."""
    state = fold.steps.get(step)
    if state is None:
        raise WorkflowUsageError(f"workflow {fold.workflow_id!r} has no step {step!r}; `show` lists its steps")
    result = state.result
    if state.status is StepStatus.COMPLETED:
        path = result.get("log_path") if isinstance(result, dict) else None
    else:
        beat = fold.heartbeats.get(f"command:{step}")
        path = beat.detail.get("log") if beat is not None and isinstance(beat.detail, dict) else None
    return path if isinstance(path, str) else None


def output(look: Callable[[], Fold], step: str, *, follow: bool) -> Iterator[str]:
    """The lines of a step's log, made harmless for a terminal; with *follow* until the step has ended.

    Args:
        look: Reads the workflow.
        step: The step's name.
        follow: Wait for more.

    Raises:
        WorkflowUsageError: There is no such step, or it has no log.
    """
    fs, fold = FileSystem(), look()
    path = log_path(fold, step)
    while path is None and follow and _is_running(fold, step):
        sleep(_PAUSE)
        fold = look()
        path = log_path(fold, step)
    if path is None:
        raise WorkflowUsageError(f"step {step!r} has no log: it is no command, or none of its heartbeats has come yet")
    tail = _Tail(fs, path)
    while True:
        is_running = _is_running(fold, step)  # before the last of it is read
        yield from tail.lines(whole=not (follow and is_running))
        if not follow or not is_running:
            return
        sleep(_PAUSE)
        fold = look()


def _is_running(fold: Fold, step: str) -> bool:
    return fold.owner(step) is not None


class _Tail:
    """What is appended to a file, line by line."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self._fs = fs
        self._fd = fs.open_read(path)
        self._offset = 0
        self._begun = b""

    def lines(self, *, whole: bool) -> Iterator[str]:
        """Those that are complete by now; with *whole* the last one too, which is not."""
        while data := self._fs.read_at(self._fd, _CHUNK, self._offset):
            self._offset += len(data)
            *lines, self._begun = (self._begun + data).split(b"\n")
            yield from map(_text, lines)
        if whole and self._begun:
            yield _text(self._begun)
            self._begun = b""
        if whole:
            self._fs.close(self._fd)


def _text(line: bytes) -> str:
    return escape_terminal(line.removesuffix(b"\r").decode("utf-8", "backslashreplace"))
