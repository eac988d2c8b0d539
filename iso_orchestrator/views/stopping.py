"""`stop`: ask the processes of a workflow to stop, or end the command of one step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.record.events import pid_of
from iso_orchestrator.record.facts import Fact, StepStopped
from iso_orchestrator.record.model import StepStatus
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.store import Store
from iso_orchestrator.store.liveness import is_on_this_machine
from iso_orchestrator.system.clock import SystemClock, monotonic, sleep
from iso_orchestrator.system.processes import command_line, end_tree, send_signal

_GIVE_UP = 30.0  # seconds until a step whose command was ended must have an outcome
_LOOK_EVERY = 0.1  # seconds
_SHOWN = 100  # characters of a command line


def stop_workflow(store: Store, projection: Projection, *, now: bool) -> Iterator[str]:
    """Send Ctrl-C's signal to each process here that runs the workflow, or *now* SIGTERM; say to which.

    Raises:
        WorkflowUsageError: No process runs it here, or one is another user's.
    """
    number = signal.SIGTERM if now else signal.SIGINT
    living = [owner for owner in projection.owners() if store.is_alive(projection.workflow_id, owner)]
    pids = [pid_of(owner) for owner in living if is_on_this_machine(owner)]
    here = [pid for pid in pids if pid is not None and pid != os.getpid()]
    if not here:
        where = " on this machine: stop it where it runs" if living else ": nothing is to be stopped"
        raise WorkflowUsageError(f"no process runs workflow {projection.workflow_id!r}{where}")
    for pid in here:
        what = command_line(pid)
        try:
            send_signal(pid, number)
        except ProcessLookupError:
            continue  # it has ended meanwhile
        except PermissionError:
            raise WorkflowUsageError(f"process {pid} is another user's: stop it as that user") from None
        yield f"sent {number.name} to pid {pid}" + (f": {what[:_SHOWN]}" if what else "")
    if not now:
        yield "running steps are let finish; `stop --now` sends SIGTERM, also to a process that ignores Ctrl-C"


def stop_step(runtime: WorkflowRuntime, name: str) -> str:
    """End the command of a step, and let its process try it no more in this run; say what came of it.

    Raises:
        WorkflowUsageError: The step does not run, is no command, or runs on another machine.
        CommandLeftoverError: A process of the command is left and cannot be ended.
    """
    tag, attempt = runtime.transact(_asker(runtime.store, runtime.workflow_id, name))
    until = monotonic() + _GIVE_UP
    # Again and again: the command may have been about to begin.
    while (outcome := runtime.look(_outcome_of(name, attempt))) is None:
        if monotonic() >= until:
            raise WorkflowUsageError(
                f"the command of step {name!r} was ended, and its process has recorded no outcome for "
                f"{_GIVE_UP:g} s: `stop {runtime.workflow_id} --now` ends the process"
            )
        end_tree(tag)
        sleep(_LOOK_EVERY)
    return outcome


_Asked = tuple[str, int]


def _asker(store: Store, workflow_id: str, name: str) -> Callable[[Projection], tuple[Sequence[Fact], _Asked]]:
    at = SystemClock().now()

    def decide(projection: Projection) -> tuple[Sequence[Fact], _Asked]:
        step, command = projection.steps.get(name), projection.commands.get(name)
        if step is None or step.owner is None or not store.is_alive(workflow_id, step.owner):
            raise WorkflowUsageError(f"step {name!r} does not run: there is nothing to stop")
        if step.status is not StepStatus.RUNNING:
            raise WorkflowUsageError(f"step {name!r} waits, and no command of it runs: `stop {workflow_id}` stops it")
        if command is None:
            raise WorkflowUsageError(f"step {name!r} is no command, and a thread cannot be ended: stop {workflow_id}")
        if not is_on_this_machine(step.owner):
            raise WorkflowUsageError(f"step {name!r} runs on another machine: stop it there")
        return [StepStopped(at, name, step.attempts, os.getpid())], (command.mark, step.attempts)

    return decide


def _outcome_of(name: str, attempt: int) -> Callable[[Projection], str | None]:
    def look(projection: Projection) -> str | None:
        step = projection.steps.get(name)
        if step is None or step.attempts != attempt:
            return f"step {name!r} was stopped"
        if step.status is StepStatus.RUNNING:
            return None
        if step.status is StepStatus.COMPLETED:
            return f"step {name!r} completed before it was stopped"
        return f"step {name!r} was stopped; the next run runs it again"

    return look
