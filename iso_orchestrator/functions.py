"""The functions of the package: run, open, read, list and delete workflows, and find the current one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from iso_orchestrator.checks import check_key
from iso_orchestrator.errors import NoActiveWorkflowError, StoreError, WorkflowNotFoundError
from iso_orchestrator.record.model import WorkflowSummary
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.runtime.context import current_scope
from iso_orchestrator.runtime.runs import RunResult
from iso_orchestrator.store import Store, find_store, has_live_run, store_in_use
from iso_orchestrator.workflow import Workflow

_log = logging.getLogger("iso_orchestrator")

R = TypeVar("R")


def run_workflow(workflow_id: str, fn: Callable[[Workflow], R], **options: Any) -> RunResult[R]:
    """Make a workflow, and call *fn* with it as a run.

    Args:
        workflow_id: Any text that is not blank and that UTF-8 can hold.
        fn: A function of the workflow.
        **options: As for `Workflow`.

    Returns:
        What *fn* returned, and the record at the end of the run.

    Example:
        >>> run_workflow("batch", lambda workflow: 42, store="memory://run_workflow").value
        42
    """
    return Workflow(workflow_id, **options).run(fn)


def open_workflow(workflow_id: str, **options: Any) -> Workflow:
    """Make a workflow and open its record now, instead of at the first use; a missing record is created.

    Args:
        workflow_id: Any text that is not blank and that UTF-8 can hold.
        **options: As for `Workflow`.

    Example:
        >>> open_workflow("batch", store="memory://open").record.status
        <WorkflowStatus.IDLE: 'idle'>
    """
    workflow = Workflow(workflow_id, **options)
    workflow._runtime.transact(lambda _: ((), None))
    return workflow


def current_workflow() -> Workflow:
    """Return the workflow of the innermost `with workflow:`, or the one that runs the calling function.

    Raises:
        NoActiveWorkflowError: No workflow is current.

    Example:
        >>> with Workflow("batch", store="memory://current") as workflow:
        ...     current_workflow() is workflow
        True
    """
    runtime = current_scope().runtime
    if runtime is None:
        raise NoActiveWorkflowError("current_workflow()")
    return Workflow._of(runtime)


def read_workflow_record(
    workflow_id: str,
    *,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 - as in Workflow
    store: Store | str | None = None,
) -> WorkflowRecord:
    """Read the record of a workflow. Nothing is created, locked or written.

    Args:
        workflow_id: The workflow's id.
        dir: The folder of all workflows; default: as for `Workflow`.
        store: A store or a URL, instead of the files in *dir*.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        CorruptRecordError: The record is damaged.

    Example:
        >>> with Workflow("batch", store="memory://read") as workflow:
        ...     workflow.run_step("add", lambda: 3)
        3
        >>> read_workflow_record("batch", store="memory://read").steps["add"].result
        3
    """
    check_key(workflow_id, "a workflow id")
    found = store_in_use(find_store(store, dir))
    projection = found.read(workflow_id)
    if projection is None:
        raise WorkflowNotFoundError(workflow_id, found.display_name)
    return projection.record(is_alive=has_live_run(found, projection))


def list_workflows(
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 - as in Workflow
    store: Store | str | None = None,
) -> list[WorkflowSummary]:
    """List all workflows of a root, in the order of their file names.

    A workflow that cannot be read is left out, and a warning is logged.

    Args:
        dir: The folder of all workflows; default: as for `Workflow`.
        store: A store or a URL, instead of the files in *dir*.

    Example:
        >>> with Workflow("batch", store="memory://list"):
        ...     pass
        >>> [(found.workflow_id, str(found.status)) for found in list_workflows(store="memory://list")]
        [('batch', 'completed')]
    """
    summaries = []
    for found in store_in_use(find_store(store, dir)).list():
        if isinstance(found, StoreError):
            _log.warning("left out: %s", found)
        else:
            summaries.append(found.summary())
    return summaries


def delete_workflow(
    workflow_id: str,
    *,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 - as in Workflow
    store: Store | str | None = None,
) -> None:
    """Delete a workflow: its record, logs and locks. Processes that a killed run left of its commands are ended.

    Args:
        workflow_id: The workflow's id.
        dir: The folder of all workflows; default: as for `Workflow`.
        store: A store or a URL, instead of the files in *dir*.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        WorkflowBusyError: A process is using it.
        CommandLeftoverError: A process of its commands is left and cannot be ended.

    Example:
        >>> with Workflow("batch", store="memory://delete"):
        ...     pass
        >>> delete_workflow("batch", store="memory://delete")
        >>> list_workflows(store="memory://delete")
        []
    """
    check_key(workflow_id, "a workflow id")
    found = store_in_use(find_store(store, dir))
    _end_orphans(found, workflow_id)
    if not found.delete(workflow_id):
        raise WorkflowNotFoundError(workflow_id, found.display_name)


def _end_orphans(store: Store, workflow_id: str) -> None:
    with suppress(StoreError):  # users most want to delete a damaged record
        projection = store.read(workflow_id)
        if projection is not None and projection.commands:
            from iso_orchestrator.commands.step import end_workflow_orphans

            end_workflow_orphans(projection, store.location_id(), lambda owner: store.is_alive(workflow_id, owner))
