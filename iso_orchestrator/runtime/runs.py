"""A `with workflow:` on record: its start, its end, and what another run of the same id means for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import attrs

from iso_orchestrator.checks import host_name, unique_name
from iso_orchestrator.errors import WorkflowBusyError, suppressed_as_note
from iso_orchestrator.record.facts import Fact, RunEnded, RunStarted
from iso_orchestrator.record.model import ErrorInfo, WorkflowRecord
from iso_orchestrator.record.projection import LiveRun, Projection
from iso_orchestrator.record.value import Value
from iso_orchestrator.runtime.liveness import dead_runs, live_runs
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.system.clock import Backoff

__all__ = ["OnBusy", "Run", "RunResult", "begin_run", "end_run"]

R = TypeVar("R")

OnBusy: TypeAlias = Literal["share", "wait", "fail"]


@attrs.frozen(eq=False, repr=False)
class RunResult(Value, Generic[R]):
    """What a run returned, and the record after it."""

    value: R
    record: WorkflowRecord


@attrs.define(eq=False, repr=False)
class Run:
    """A run of this process, or of the parent of this process.

    Attributes:
        session: What it is recorded in; None before it has begun and after its end.
        is_stopped: Whether it ends with an error, so that nothing more of what was submitted starts.
        is_abandoned: Whether nobody waits any more for what was submitted.
    """

    run: str
    workflow: Any
    pid: int
    session: Session | None = None
    is_stopped: bool = False
    is_abandoned: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether this process began it: a forked child must not end it."""
        return self.pid == os.getpid()


def new_run(runtime: WorkflowRuntime) -> Run:
    """A run that has not begun; `end_run` ends it, begun or not."""
    return Run(unique_name(), runtime.workflow, os.getpid())


def begin_run(runtime: WorkflowRuntime, run: Run, on_busy: OnBusy) -> None:
    """Record that a run starts, and that others have died.

    Raises:
        WorkflowBusyError: Another run goes on, and *on_busy* is "fail".
    """
    runtime.runs.append(run)
    run.session = runtime.pin()
    _start(runtime, run, run.session, on_busy)


def end_run(runtime: WorkflowRuntime, run: Run, error: BaseException | None) -> None:
    """Record that a run ended, and let the workflow go; a failure of that does not hide *error*."""
    if not run.is_ours or run not in runtime.runs:
        return
    try:
        run.is_stopped = error is not None
        runtime.pool.drain(run, cancel=error is not None)
    except BaseException as interrupt:
        run.is_stopped = run.is_abandoned = True
        error = interrupt
        raise
    finally:
        runtime.runs.remove(run)
        session, run.session = run.session, None
        if session is not None:
            _let_go(runtime, run, session, error)
        if not runtime.runs:
            with suppressed_as_note(error, "the workflow was not closed"):
                runtime.close()


def _let_go(runtime: WorkflowRuntime, run: Run, session: Session, error: BaseException | None) -> None:
    try:
        with suppressed_as_note(error, "the end of the run was not recorded"):
            _record_end(runtime, run, session, error)
    finally:
        with suppressed_as_note(error, "the workflow was not closed"):
            session.unpin()


def _start(runtime: WorkflowRuntime, run: Run, session: Session, on_busy: OnBusy) -> None:
    pause = Backoff()

    def decide(projection: Projection) -> tuple[Sequence[Fact], LiveRun | None]:
        at = runtime.clock.now()
        facts = dead_runs(projection, session.log, session.runs, at)
        busy = next(iter(live_runs(projection, session.log, session.runs).values()), None)
        if busy is not None and on_busy != "share":
            return facts, busy
        session.runs.add(run.run)
        return [*facts, RunStarted(at, run.run, session.log.process_id, run.pid, host_name())], None

    while (busy := session.append(decide)[0]) is not None:
        if on_busy == "fail":
            raise WorkflowBusyError(runtime.workflow_id, busy.pid, busy.host, busy.since)
        pause.rest()


def _record_end(runtime: WorkflowRuntime, run: Run, session: Session, error: BaseException | None) -> None:
    fact = RunEnded(runtime.clock.now(), run.run, None if error is None else ErrorInfo.of(error))
    try:
        _, seq = session.append(lambda projection: ([fact] if run.run in projection.runs else [], None), fences=())
        session.log.sync(seq)
    finally:
        session.runs.discard(run.run)  # not before: others would take the run for dead
