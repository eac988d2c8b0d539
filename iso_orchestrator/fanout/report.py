"""What a `for_each` tells: its events on record, and what it logs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from iso_orchestrator.fanout.summary import Fulfilled, Rejected
from iso_orchestrator.record.facts import EventAppended, Fact
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.runtime.context import BatchContext, LockOwner
from iso_orchestrator.runtime.reports import report, reported, settle
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.text import seconds_text

_log = logging.getLogger("iso_orchestrator")

_LOGGED = 10  # failed items of which each has a warning; the others are counted


class BatchReport:
    """What one `for_each` tells.

    Args:
        runtime: The workflow's.
        name: The function's; also an attribute.
        caller: The step or item that called it, or else the thread.
        around: Of the `for_each` around it, whose warnings are counted with these.

    Attributes:
        batch: The `for_each` on record, if it has begun and that could be recorded.
    """

    def __init__(
        self, runtime: WorkflowRuntime, name: str, caller: LockOwner, around: BatchReport | None = None
    ) -> None:
        self._runtime = runtime
        self.name = name
        self._caller = caller
        self._around = around
        self.batch: BatchContext | None = None
        self._total: int | None = None
        self._began = monotonic()
        self._guard = threading.Lock()
        self._failed = 0

    def begin(self, total: int | None, max_parallel: int) -> None:
        """Record that it begins, with *total* items, if that is known. That only informs, so that it may fail.

        Its number is the sequence of that fact, which no other one in the record has.
        """
        self._total = total

        def decide(projection: Projection) -> tuple[Sequence[Fact], int]:
            number, run = projection.seq + 1, projection.run_of(session.log.process_id)
            detail = {"batch": number, "name": self.name, "total": total, "maxParallel": max_parallel}
            detail |= {} if run is None else {"run": run}
            return [EventAppended(at, "batch.started", detail=detail)], number

        with suppress(Exception), self._runtime.acquire() as session:
            at = self._runtime.clock.now()
            self.batch = BatchContext(session.transact(decide, durable=False), self.name)

    def item(self, index: int, owner: LockOwner, error: BaseException | None, is_raised: bool) -> None:
        """Log that an item failed, and which failures inside of it were handled.

        Args:
            index: The item's.
            owner: What it owned mutexes as.
            error: None: it succeeded, or was not begun.
            is_raised: Whether the caller gets the error, and may handle it.
        """
        way = settle(self._runtime, f"item {index} of for_each {self.name!r}", owner, error)
        if not isinstance(error, Exception):  # Ctrl-C and the like: the end of the run tells of it
            return
        if is_raised and self._caller.work is not None:
            report(self._runtime, way, error, self._caller)
            return
        number = self.count_failure()
        is_shown = number <= _LOGGED and not str(reported(error)).startswith("step ")  # of one that was submitted
        report(self._runtime, way, error, LockOwner(), logging.WARNING if is_shown else logging.DEBUG)
        if self._caller.work is not None:  # whose body may raise it, by `ForEachSummary.values`
            with self._guard:
                self._caller.failures = self._caller.failures or []
                self._caller.failures.append((way, error))
        if number > _LOGGED and number % _LOGGED == 0 and (number // _LOGGED).bit_count() == 1:  # 20, 40, 80, ...
            _log.warning(
                "workflow %r: %d items have failed in for_each %r", self._runtime.workflow_id, number, self.name
            )

    def count_failure(self) -> int:
        """Count a failed item, also in the `for_each` around this one; how many the outermost has then."""
        with self._guard:
            self._failed += 1
            number = self._failed
        return number if self._around is None else self._around.count_failure()

    def end(
        self, outcomes: Collection[Fulfilled[Any] | Rejected], replayed: int, unstarted: int, *, is_stopped: bool
    ) -> None:
        """Record and log the counts of items; as a warning where not each failure had one.

        Args:
            outcomes: Of the items that have run.
            replayed: How many of them ran no step, since all were on record.
            unstarted: How many were read and have not run.
            is_stopped: Whether it was stopped.
        """
        reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Rejected)]
        self._record_end(len(outcomes) - len(reasons), len(reasons), replayed, unstarted)
        level = logging.INFO if self._caller.work is None else logging.DEBUG
        if self._failed > _LOGGED and level == logging.INFO:
            level = logging.WARNING
        if not _log.isEnabledFor(level):
            return
        interrupted = sum(not isinstance(reason, Exception) for reason in reasons)
        _log.log(
            level,
            "workflow %r: for_each %r %s after %s: %d items fulfilled, %d failed%s",
            self._runtime.workflow_id,
            self.name,
            "stopped" if is_stopped else "ended",
            seconds_text(monotonic() - self._began),
            len(outcomes) - len(reasons),
            len(reasons) - interrupted,
            f", {interrupted} interrupted" if interrupted else "",
        )

    def _record_end(self, fulfilled: int, rejected: int, replayed: int, unstarted: int) -> None:
        if self.batch is None:
            return
        counts = {
            "fulfilled": fulfilled,
            "rejected": rejected,
            "replayed": replayed,
            "unstarted": max(unstarted, (self._total or 0) - fulfilled - rejected),
        }
        with suppress(Exception), self._runtime.acquire() as session:
            event = EventAppended(
                self._runtime.clock.now(), "batch.ended", detail={"batch": self.batch.number, **counts}
            )
            session.transact(lambda _: ([event], None), durable=False)
