"""What is logged of steps that fail. Each failure is logged once, by the outermost step or item that it leaves.

A failure of a step is a warning, unless it is inside the body of another step or of an item. That body may handle it:
then it is logged as that, at INFO. Otherwise it fails the step or item, whose own line names the way to it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from iso_orchestrator.errors import DeadlockError, Limited
from iso_orchestrator.notes import describe_error, describe_process
from iso_orchestrator.record.projection import Limit
from iso_orchestrator.runtime.context import LockOwner, StepContext
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.store import ProcessInfo
from iso_orchestrator.system.interrupts import is_terminated
from iso_orchestrator.text import seconds_text

_log = logging.getLogger("iso_orchestrator")

T = TypeVar("T")

_NAMED = 5  # running items or steps in a message
_SHOWN = 100  # characters of the name of each
_MARK = "_iso_orchestrator_failed"  # of an error that was logged: what failed with it
_STEP = re.compile(r"""(the result )?(?:of )?(step (['"]).*?\3):? """)  # what messages of this package begin with


def settle(runtime: WorkflowRuntime, what: str, inside: LockOwner | None, error: BaseException | None = None) -> str:
    """Log the failures inside the body of *what* that it has handled.

    Args:
        runtime: The workflow's.
        what: The step or item.
        inside: What its body owned mutexes as; None: it has not begun.
        error: What the body raised.

    Returns:
        The way to *error*: *what*, and the steps inside that it came from.
    """
    failures, way = None, what
    if inside is not None:
        failures, inside.failures = inside.failures, None  # their tracebacks have frames with *inside*
    for other, handled in failures or ():
        if handled is error:
            way = f"{what}: {other}"
        elif reported(handled) != other:
            _log.info(
                "workflow %r: %s failed, which %s handled: %s",
                runtime.workflow_id,
                other,
                what,
                _describe(handled, other),
            )
    return way


def report(
    runtime: WorkflowRuntime, way: str, error: BaseException, around: LockOwner, level: int = logging.WARNING
) -> None:
    """Log a failure for good, or leave that to the step or item *around* it.

    What raises the error of an item that was logged, as `ForEachSummary.values` does, is told at DEBUG only.
    """
    if around.work is not None:
        around.failures = [*(around.failures or ()), (way, error)]
        return
    if not isinstance(error, Exception):
        return  # Ctrl-C and the like: the end of the run tells of it
    runtime.failures += 1
    if way.endswith(f": {reported(error)}"):
        level = logging.DEBUG
    with suppress(Exception):  # an error's class may have any methods
        vars(error)[_MARK] = way
    _log.log(level, "workflow %r: %s failed: %s", runtime.workflow_id, way, _describe(error, way))


def _describe(error: BaseException, way: str) -> str:
    """As `describe_error`, without the step's name where *way*, which stands before it, has that."""

    def show(error: BaseException) -> str:
        text = str(error)
        begin = None if isinstance(error, DeadlockError) else _STEP.match(text)
        return text if begin is None or begin[2] not in way else f"{begin[1] or ''}{text[begin.end() :]}"

    return describe_error(error, show)


def reported(error: BaseException) -> str | None:
    """What failed with *error*, if that was logged."""
    with suppress(Exception):
        return str(vars(error)[_MARK])
    return None


def log_retry(runtime: WorkflowRuntime, step: StepContext, error: BaseException, pause: float) -> None:
    """Log that an attempt failed and that another one follows, in *pause* seconds."""
    _log.info(
        "workflow %r: step %r failed in attempt %d of %d, the next begins %s: %s",
        runtime.workflow_id,
        step.name,
        step.attempt,
        step.max_attempts,
        f"in {seconds_text(pause)}" if pause else "at once",
        _describe(error, f"step {step.name!r}"),
    )


def log_limit(runtime: WorkflowRuntime, name: str, limit: Limit) -> None:
    """Log that a step waits for a limit: at INFO once for each limit."""
    level = logging.INFO if runtime.is_news(limit, name) else logging.DEBUG
    _log.log(level, "workflow %r: step %r waits: %s", runtime.workflow_id, name, Limited(limit.until, limit.key))


def log_finishing(what: str, running: Sequence[T], name_of: Callable[[T], str]) -> None:
    """Warn that Ctrl-C or SIGTERM lets the *running* items or steps finish, of which the first few are named."""
    if not running:
        return
    names = ", ".join(name_of(each)[:_SHOWN] for each in running[:_NAMED])
    with suppress(RuntimeError):  # a signal handler must not write to a stream in the middle of another write
        _log.warning(
            "finishing %d running %s (%s%s); %s again to stop waiting",
            len(running),
            what if len(running) == 1 else f"{what}s",
            names,
            f" and {len(running) - _NAMED} more" if len(running) > _NAMED else "",
            "SIGTERM" if is_terminated() else "Ctrl-C",
        )


def log_death(runtime: WorkflowRuntime, step: str, process: ProcessInfo) -> None:
    """Warn that a step runs again, since the process that ran it has died."""
    _log.warning(
        "workflow %r: step %r runs again: it was not done when %s died",
        runtime.workflow_id,
        step,
        "its process" if process.pid is None else describe_process(process.pid, process.host, process.since),
    )
