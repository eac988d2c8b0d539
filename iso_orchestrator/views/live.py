"""Reading a workflow, and its history as it is now."""

from __future__ import annotations

from datetime import datetime

from iso_orchestrator.errors import WorkflowNotFoundError
from iso_orchestrator.record.history import History
from iso_orchestrator.record.model import StepStatus
from iso_orchestrator.record.projection import Projection, StepState
from iso_orchestrator.record.reconstruction import history_of
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import SystemClock
from iso_orchestrator.system.collector import collector_paused


def read(store: Store, workflow_id: str) -> Projection:
    """Read a workflow.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        StoreError: It cannot be read.
    """
    projection = store.read(workflow_id)
    if projection is None:
        raise WorkflowNotFoundError(workflow_id, store.display_name)
    return projection


def read_history(store: Store, workflow_id: str, *, now: datetime | None = None) -> History:
    """Read the history of a workflow, as it is at *now* (default: the wall clock).

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        StoreError: It cannot be read.
    """
    return history_as_of(store, read(store, workflow_id), now)


def history_as_of(store: Store, projection: Projection, now: datetime | None = None) -> History:
    """The history of a workflow that was read, as it is at *now*: which of its processes live is found out."""
    gone = {owner for owner in projection.owners() if not store.is_alive(projection.workflow_id, owner)}
    left = {step.name for step in projection.steps.values() if _is_left(step, gone)}
    # A step that a dead process left may wait in another one already.
    waits = {name: wait.owner in gone for name, wait in projection.waits.items()}
    with collector_paused():
        return history_of(
            projection.record(is_alive=any(run.owner not in gone for run in projection.runs.values())),
            now=SystemClock().now() if now is None else now,
            dead={name for name in left | set(waits) if waits.get(name, True)},
            logs={name: command.log for name, command in projection.commands.items()},
        )


def _is_left(step: StepState, gone: set[str]) -> bool:
    """Whether the record has a step as running that no process runs."""
    return step.owner in gone or (step.owner is None and step.status is StepStatus.RUNNING)
