"""The record of a workflow as users see it: whole, in rows, and in a line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

from iso_orchestrator.record.model import (
    ErrorInfo,
    Heartbeat,
    Json,
    Lease,
    Shown,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowStatus,
)


@attrs.frozen(repr=False)
class WorkflowRecord(Shown):
    """The record of a workflow at one moment; later facts do not change it.

    Attributes:
        is_alive: Whether a process had a run of it at that moment. The status of a run that was killed is `running`
            until the next process that uses the workflow has recorded its death.
    """

    workflow_id: str
    status: WorkflowStatus
    created_at: datetime
    updated_at: datetime
    state: Json
    steps: Mapping[str, StepRecord] = attrs.field(factory=dict)
    events: tuple[WorkflowEvent, ...] = ()
    heartbeats: Mapping[str, Heartbeat] = attrs.field(factory=dict)
    leases: Mapping[str, Lease] = attrs.field(factory=dict)
    last_error: ErrorInfo | None = None
    version: int = 1
    is_alive: bool = False

    def __repr__(self) -> str:
        done = sum(step.status is StepStatus.COMPLETED for step in self.steps.values())
        failed = sum(step.status is StepStatus.FAILED for step in self.steps.values())
        counts = f"{done}/{len(self.steps)} steps" + (f", {failed} failed" if failed else "")
        return f"<WorkflowRecord {self.workflow_id!r} {self.status}: {counts}>"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a row for each step, for a table or a DataFrame: its fields, and the seconds of its last attempt.

        Example:
            >>> from datetime import UTC
            >>> moment = datetime(2026, 5, 14, tzinfo=UTC)
            >>> step = StepRecord("fetch", StepStatus.COMPLETED, 1, moment, started_at=moment, completed_at=moment)
            >>> record = WorkflowRecord("w", WorkflowStatus.IDLE, moment, moment, None, {"fetch": step})
            >>> [(row["name"], row["status"], row["seconds"]) for row in record.to_dicts()]
            [('fetch', 'completed', 0.0)]
        """
        return [_row(step) for step in self.steps.values()]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat row for each step, with what its attempts did, for a DataFrame or a CSV file.

        `work_s` are the seconds of all its attempts, `waited_s` those of its waits; times are in UTC. The state is
        "completed", "failed", "failed, tried again", "interrupted", "waiting" or "running". Costs are US dollars.

        Example:
            >>> from datetime import UTC
            >>> moment = datetime(2026, 5, 14, tzinfo=UTC)
            >>> step = StepRecord("fetch:1", StepStatus.COMPLETED, 1, moment, started_at=moment, completed_at=moment)
            >>> record = WorkflowRecord("w", WorkflowStatus.IDLE, moment, moment, None, {"fetch:1": step})
            >>> [(row["number"], row["group"], row["state"], row["work_s"]) for row in record.to_rows()]
            [(1, 'fetch', 'completed', 0.0)]
        """
        from iso_orchestrator.record.reconstruction import history_of  # rarely used

        return history_of(self, now=self.updated_at).to_rows()


def _row(step: StepRecord) -> dict[str, Any]:
    begun, ended = step.started_at, step.completed_at
    return {
        "name": step.name,
        "status": step.status.value,
        "attempts": step.attempts,
        "started_at": begun,
        "completed_at": ended,
        "updated_at": step.updated_at,
        "seconds": None if begun is None or ended is None else (ended - begun).total_seconds(),
        "result": step.result,
        "error": None if step.error is None else f"{step.error.name}: {step.error.message}",
    }
