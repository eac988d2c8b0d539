"""The module's functions: what needs no `Workflow` in hand, or finds the current one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

from iso_orchestrator.checks import check_key
from iso_orchestrator.errors import NoActiveWorkflowError, StoreError, WorkflowNotFoundError
from iso_orchestrator.record.model import WorkflowRecord, WorkflowSummary
from iso_orchestrator.runtime.context import current_scope
from iso_orchestrator.runtime.runs import RunResult
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.call import IfInterrupted
from iso_orchestrator.steps.identity import Template
from iso_orchestrator.steps.retry import Retry
from iso_orchestrator.steps.step import Step, StepKeywords, step_options
from iso_orchestrator.store import Store, find_store
from iso_orchestrator.workflow import Workflow

__all__ = [
    "command",
    "current_workflow",
    "delete_workflow",
    "for_each",
    "list_workflows",
    "open_workflow",
    "read_workflow_record",
    "run_workflow",
    "step",
]

_log = logging.getLogger("iso_orchestrator")

_ROOT = ".iso-orchestrator"

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from iso_orchestrator.agents import Agent, AgentResult
    from iso_orchestrator.commands.call import CommandLine
    from iso_orchestrator.commands.step import CommandKeywords, CommandStep
    from iso_orchestrator.coordination.mutex_queue import MutexScope
    from iso_orchestrator.fanout.for_each import ForEach, MutexKey

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Item = TypeVar("Item")


def run_workflow(workflow_id: str, fn: Callable[[Workflow], R], **options: Any) -> RunResult[R]:
    """Call *fn* with a workflow, as a run. Options as for `Workflow`.

    Example:
        >>> run_workflow("batch", lambda workflow: 42, store="memory://run_workflow").value
        42
    """
    return Workflow(workflow_id, **options).run(fn)


def open_workflow(workflow_id: str, **options: Any) -> Workflow:
    """A workflow whose record is opened now, and made when it is missing. Options as for `Workflow`.

    Example:
        >>> open_workflow("batch", store="memory://open").record.status
        <WorkflowStatus.IDLE: 'idle'>
    """
    workflow = Workflow(workflow_id, **options)
    workflow._runtime.session()
    return workflow


def read_workflow_record(
    workflow_id: str,
    *,
    dir: str | os.PathLike[str] = _ROOT,  # noqa: A002 - as in Workflow
    store: Store | str | None = None,
) -> WorkflowRecord:
    """The record of a workflow; nothing is made, locked or written.

    Raises:
        WorkflowNotFoundError: There is none.
    """
    check_key(workflow_id, "a workflow id")
    found = find_store(store, dir)
    projection = found.read(workflow_id)
    if projection is None:
        raise WorkflowNotFoundError(workflow_id, found.display_name)
    return projection.record()


def list_workflows(
    dir: str | os.PathLike[str] = _ROOT,  # noqa: A002 - as in Workflow
    store: Store | str | None = None,
) -> list[WorkflowSummary]:
    """All workflows of a root, by file name; one that cannot be read is left out with a warning."""
    summaries = []
    for found in find_store(store, dir).list():
        if isinstance(found, StoreError):
            _log.warning("left out: %s", found)
        else:
            summaries.append(found.summary())
    return summaries


def delete_workflow(
    workflow_id: str,
    *,
    dir: str | os.PathLike[str] = _ROOT,  # noqa: A002 - as in Workflow
    store: Store | str | None = None,
) -> None:
    """Remove a workflow, record, logs, locks and all; what a killed run has left of its commands is ended.

    Raises:
        CommandLeftoverError: Something is left of them that cannot be ended.
        WorkflowNotFoundError: There is none.
        WorkflowBusyError: Somebody uses it.
    """
    check_key(workflow_id, "a workflow id")
    found = find_store(store, dir)
    _end_orphans(found, workflow_id)
    if not found.delete(workflow_id):
        raise WorkflowNotFoundError(workflow_id, found.display_name)


def _end_orphans(store: Store, workflow_id: str) -> None:
    with suppress(StoreError):  # users most want to delete a damaged record
        projection = store.read(workflow_id)
        if projection is not None and projection.commands:
            from iso_orchestrator.commands.call import end_orphans

            end_orphans(projection, store.location_id(), lambda process_id: store.is_alive(workflow_id, process_id))


def current_workflow() -> Workflow:
    """The workflow of the innermost `with workflow:`, or of the function that a workflow runs.

    Raises:
        NoActiveWorkflowError: There is none.

    Example:
        >>> with Workflow("batch", store="memory://current") as workflow:
        ...     current_workflow() is workflow
        True
    """
    workflow = current_scope().workflow
    if not isinstance(workflow, Workflow):
        raise NoActiveWorkflowError("current_workflow()")
    return workflow


@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(**options: Unpack[StepKeywords]) -> Callable[[Callable[P, R]], Step[P, R]]: ...
def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: Template | None = None,
    idempotency_key: Template | None = None,
    retry: int | Retry = 1,
    timeout: float | None = None,
    accept: Callable[[Any], bool] | None = None,
    if_interrupted: IfInterrupted = "rerun",
    version: str | int | None = None,
) -> Any:
    """A step of whatever workflow is current when it is called. Options as in `Workflow.step`.

    Example:
        >>> @step
        ... def answer() -> int:
        ...     return 42
        >>> with Workflow("batch", store="memory://free"):
        ...     answer()
        42
    """
    options = step_options(retry, timeout, accept, if_interrupted, version)

    def decorate(plain: Callable[..., Any]) -> Step[..., Any]:
        return Step(plain, _current_runtime, options, name, idempotency_key)

    return decorate if fn is None else decorate(fn)


@overload
def command(fn: Callable[P, CommandLine], /) -> CommandStep[P, Any]: ...
@overload
def command(
    *, parse: Callable[[str], T], **options: Unpack[CommandKeywords]
) -> Callable[[Callable[P, CommandLine]], CommandStep[P, T]]: ...
@overload
def command(
    *, parse: Agent, **options: Unpack[CommandKeywords]
) -> Callable[[Callable[P, CommandLine]], CommandStep[P, AgentResult]]: ...
@overload
def command(
    *,
    parse: Literal["text", "json", "jsonl"] | None = None,
    **options: Unpack[CommandKeywords],
) -> Callable[[Callable[P, CommandLine]], CommandStep[P, Any]]: ...
def command(fn: Callable[..., CommandLine] | None = None, /, **options: Any) -> Any:
    """A command step of whatever workflow is current when it is called. Options as in `Workflow.command`."""
    from iso_orchestrator.commands.step import CommandStep, command_options  # what runs none, loads none

    name, key = options.pop("name", None), options.pop("idempotency_key", None)
    checked = command_options(**options)

    def decorate(plain: Callable[..., CommandLine]) -> CommandStep[..., Any]:
        return CommandStep(plain, _current_runtime, checked, name, key)

    return decorate if fn is None else decorate(fn)


def for_each(
    *,
    max_parallel: int = 1,
    mutex_key: MutexKey = None,
    mutex_scope: MutexScope = "workflow",
    mutex_timeout: float | None = None,
    stop_on_error: bool = True,
    executor: Executor | None = None,
    progress: bool | str | None = None,
) -> Callable[[Callable[Concatenate[Item, P], R]], ForEach[Item, P, R]]:
    """A `for_each` of whatever workflow is current when it is called. Options as in `Workflow.for_each`."""
    from iso_orchestrator.fanout.for_each import ForEach, for_each_options  # what runs none, loads none

    options = for_each_options(max_parallel, mutex_key, mutex_scope, mutex_timeout, stop_on_error, executor, progress)
    return lambda fn: ForEach(fn, _current_runtime, options)


def _current_runtime() -> WorkflowRuntime:
    return current_workflow()._runtime
