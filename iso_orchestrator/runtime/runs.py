"""A `with workflow:` on record: its start, its end, and what another run of the same id means for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Generic, Literal, TypeAlias, TypeVar

import attrs

from iso_orchestrator.checks import host_name, unique_name
from iso_orchestrator.errors import WorkflowBusyError, suppressed_as_note
from iso_orchestrator.record.facts import Fact, RunEnded, RunStarted
from iso_orchestrator.record.model import ErrorInfo, WorkflowRecord
from iso_orchestrator.record.projection import LiveRun, Projection
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.system.clock import Backoff
from iso_orchestrator.system.interrupts import undo_on_error, unmasked

R = TypeVar("R")

OnBusy: TypeAlias = Literal["share", "wait", "fail"]


@attrs.frozen
class RunResult(Generic[R]):
    """What a run returned, and the record after it."""

    value: R
    record: WorkflowRecord


@attrs.define(eq=False)
class Run:
    """A run of this process, or of the process that forked it.

    Attributes:
        runtime: Of the workflow.
        session: With a reference to it, from the start of the run to its end.
        is_stopped: Whether it ends with an error, so that nothing more of what was submitted starts.
        is_abandoned: Whether its end no longer waits for what was submitted.
    """

    runtime: WorkflowRuntime
    session: Session
    id: str = attrs.field(factory=unique_name)
    pid: int = attrs.field(factory=os.getpid)
    is_stopped: bool = False
    is_abandoned: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether this process began it: a forked child must not end it."""
        return self.pid == os.getpid()


def begin_run(runtime: WorkflowRuntime, on_busy: OnBusy) -> Run:
    """Record that a run starts, and that others have died.

    Raises:
        WorkflowBusyError: Another run goes on, and *on_busy* is "fail".
    """
    run = Run(runtime, runtime.acquire())
    run.session.live_runs.add(run.id)
    with undo_on_error(lambda: _let_go(run)):
        _record_start(run, on_busy)
    runtime.runs.append(run)
    return run


def end_run(run: Run, error: BaseException | None) -> None:
    """Record that a run ended, and release the workflow; a failure of that is a note on *error*."""
    runtime = run.runtime
    if not run.is_ours or run not in runtime.runs:
        return
    try:
        run.is_stopped = error is not None
        with unmasked():
            runtime.pool.drain(run, cancel=error is not None)
    except BaseException as interrupt:  # Ctrl-C while submitted steps end: it is the run's error
        run.is_stopped = run.is_abandoned = True
        error = interrupt
        raise
    finally:
        runtime.runs.remove(run)
        try:
            with suppressed_as_note(error, "the end of the run was not recorded"):
                _record_end(run, error)
        finally:
            with suppressed_as_note(error, "the workflow was not closed"):
                _let_go(run)
                if not runtime.runs:
                    runtime.close()


def _record_start(run: Run, on_busy: OnBusy) -> None:
    session, clock, pause = run.session, run.runtime.clock, Backoff()

    def decide(projection: Projection) -> tuple[Sequence[Fact], LiveRun | None]:
        at = clock.now()
        facts = session.deaths(projection, at)
        busy = next((live for name, live in projection.runs.items() if session.is_live(name, live)), None)
        if busy is not None and on_busy != "share":
            return facts, busy
        return [*facts, RunStarted(at, run.id, session.log.process_id, run.pid, host_name())], None

    while (busy := session.transact(decide, durable=False)) is not None:
        if on_busy == "fail":
            raise WorkflowBusyError(session.workflow_id, busy.pid, busy.host, busy.since)
        session.log.is_alive(busy.owner)  # raises where that cannot be found out, so that the wait might never end
        pause.rest()


def _record_end(run: Run, error: BaseException | None) -> None:
    fact = RunEnded(run.runtime.clock.now(), run.id, None if error is None else ErrorInfo.of(error))
    run.session.transact(lambda projection: ([fact] if run.id in projection.runs else [], None), fences=())


def _let_go(run: Run) -> None:
    run.session.live_runs.discard(run.id)  # not before its end is on record: others would take it for dead
    run.session.release()
