"""What a `for_each` logs of its items."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from typing import Any

from iso_orchestrator.fanout.summary import Fulfilled, Rejected
from iso_orchestrator.notes import describe_seconds
from iso_orchestrator.runtime.context import LockOwner
from iso_orchestrator.runtime.reports import report, reported, settle
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.system.clock import monotonic

_log = logging.getLogger("iso_orchestrator")

_LOGGED = 10  # failed items of which each has a warning; the others are counted


class BatchReport:
    """What one `for_each` tells.

    Args:
        runtime: The workflow's.
        name: The function's.
        caller: The step or item that called it, or else the thread.
        around: Of the `for_each` around it, whose warnings are counted with these.
    """

    def __init__(
        self, runtime: WorkflowRuntime, name: str, caller: LockOwner, around: BatchReport | None = None
    ) -> None:
        self._runtime = runtime
        self._name = name
        self._caller = caller
        self._around = around
        self._began = monotonic()
        self._guard = threading.Lock()
        self._failed = 0

    def item(self, index: int, owner: LockOwner, error: BaseException | None, is_raised: bool) -> None:
        """Log that an item failed, and which failures inside of it were handled.

        Args:
            index: The item's.
            owner: What it owned mutexes as.
            error: None: it succeeded, or was not begun.
            is_raised: Whether the caller gets the error, and may handle it.
        """
        way = settle(self._runtime, f"item {index} of for_each {self._name!r}", owner, error)
        if not isinstance(error, Exception):  # Ctrl-C and the like: the end of the run tells of it
            return
        if is_raised and self._caller.work is not None:
            report(self._runtime, way, error, self._caller)
            return
        number = self.count_failure()
        is_shown = number <= _LOGGED and not str(reported(error)).startswith("step ")  # of one that was submitted
        report(self._runtime, way, error, LockOwner(), logging.WARNING if is_shown else logging.DEBUG)
        if number > _LOGGED and number % _LOGGED == 0 and (number // _LOGGED).bit_count() == 1:  # 20, 40, 80, ...
            _log.warning(
                "workflow %r: %d items have failed in for_each %r", self._runtime.workflow_id, number, self._name
            )

    def count_failure(self) -> int:
        """Count a failed item, also in the `for_each` around this one; how many the outermost has then."""
        with self._guard:
            self._failed += 1
            number = self._failed
        return number if self._around is None else self._around.count_failure()

    def end(self, outcomes: Collection[Fulfilled[Any] | Rejected], *, is_stopped: bool) -> None:
        """Log the counts of items; as a warning where not each failure had one."""
        level = logging.INFO if self._caller.work is None else logging.DEBUG
        if self._failed > _LOGGED and level == logging.INFO:
            level = logging.WARNING
        if not _log.isEnabledFor(level):
            return
        failed = sum(isinstance(outcome, Rejected) for outcome in outcomes)
        _log.log(
            level,
            "workflow %r: for_each %r %s after %s: %d items fulfilled, %d failed",
            self._runtime.workflow_id,
            self._name,
            "stopped" if is_stopped else "ended",
            describe_seconds(monotonic() - self._began),
            len(outcomes) - failed,
            failed,
        )
