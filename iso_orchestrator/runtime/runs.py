"""A `with workflow:` on record: its start, its end, and what another run of the same id means for it."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Generic, TypeVar

import attrs

from iso_orchestrator.checks import host_name, unique_name
from iso_orchestrator.errors import DeadlockError, WorkflowBusyError, WorkflowUsageError
from iso_orchestrator.notes import add_note, describe_error, describe_process, suppressed_as_note
from iso_orchestrator.record.facts import Fact, RunEnded, RunStarted
from iso_orchestrator.record.model import ErrorInfo, StepStatus
from iso_orchestrator.record.projection import LiveRun, Projection
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.runtime.context import Scope, current_scope, make_current, refuse_interrupted
from iso_orchestrator.runtime.reports import log_finishing, reported
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.system.clock import Backoff, monotonic
from iso_orchestrator.system.interrupts import at_work, interruptible, is_terminated, undo_on_error
from iso_orchestrator.text import money_text, seconds_text

R = TypeVar("R")

_log = logging.getLogger("iso_orchestrator")

_MOST_WORDS, _LONGEST_WORD = 20, 200  # of a command line on record
_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


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
        work: Left after its end, in the thread that began it.
        session: With a reference to it, from the start of the run to its end.
        around: What was current around the run.
        is_stopped: Whether it ends with an error, so that nothing more of what was submitted starts.
        is_interrupted: Whether it ends with Ctrl-C, so that commands and waits of what was submitted end too.
        began: When, by the monotonic clock.
        before: How many failures the runtime had logged then, and how many costs it had.
    """

    runtime: WorkflowRuntime
    session: Session
    work: at_work
    around: Scope = attrs.field(factory=current_scope)
    id: str = attrs.field(factory=unique_name)
    pid: int = attrs.field(factory=os.getpid)
    is_stopped: bool = False
    is_interrupted: bool = False
    began: float = attrs.field(factory=monotonic)
    before: tuple[int, int] = attrs.field(
        init=False, default=attrs.Factory(lambda run: (run.runtime.failures, len(run.runtime.costs)), takes_self=True)
    )

    @property
    def is_ours(self) -> bool:
        """Whether this process began it: a forked child must not end it."""
        return self.pid == os.getpid()


def begin_run(runtime: WorkflowRuntime, work: at_work) -> Run:
    """Record that a run starts, and that others have died; make it current. It has to leave *work* at its end.

    Raises:
        WorkflowBusyError: Another run goes on, and the workflow refuses that.
        WorkflowUsageError: It would be inside of itself.
    """
    _refuse_inside(runtime)
    run = Run(runtime, runtime.acquire(), work)
    with undo_on_error(lambda: _let_go(run)):
        _record_start(run)
        _log_start(run)
    runtime.runs.append(run)
    make_current(attrs.evolve(run.around, runtime=runtime, runs=(*run.around.runs, run)))
    return run


def current_run(runtime: WorkflowRuntime) -> Run:
    """The run that a `with` block is about to leave.

    Raises:
        WorkflowUsageError: It was entered in another thread or task, and that could be one of several.
    """
    own = [run for run in current_scope().runs if run in runtime.runs]
    found = own or list(runtime.runs)
    if not own and len(found) != 1:
        raise WorkflowUsageError(
            f"workflow {runtime.workflow_id!r}: the end of a run in a thread or task that has not begun it, while "
            f"{len(found)} runs go on; leave the with block where it was entered"
        )
    return found[-1]


def end_run(run: Run, error: BaseException | None) -> None:
    """Record that a run ended, and release the workflow; a failure of that is a note on *error*."""
    _leave(run)
    runtime = run.runtime
    if not run.is_ours or run not in runtime.runs:
        return
    try:
        run.is_stopped, run.is_interrupted = error is not None, isinstance(error, KeyboardInterrupt)
        with interruptible():
            if run.is_interrupted:
                log_finishing("step", runtime.pool.running(run), str)
            runtime.pool.drain(run, cancel=error is not None)
    except BaseException as interrupt:  # Ctrl-C while submitted steps end: it is the run's error
        run.is_stopped = run.is_interrupted = True
        if error is None or not isinstance(interrupt, DeadlockError):
            error = interrupt
            raise
        add_note(error, f"submitted steps were not waited for: {interrupt}")
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


def _refuse_inside(runtime: WorkflowRuntime) -> None:
    around = [run.runtime for run in current_scope().runs if run in run.runtime.runs]
    if runtime in around:
        raise WorkflowUsageError(f"workflow {runtime.workflow_id!r}: a run inside of itself; use the workflow as it is")
    if runtime.on_busy == "wait" and any(other.key == runtime.key for other in around):
        raise WorkflowUsageError(f"workflow {runtime.workflow_id!r}: a run that waits for the one around it never ends")


def _leave(run: Run) -> None:
    scope = current_scope()
    if scope.runs and scope.runs[-1] is run:
        around = run.around
        while around.runs and around.runs[-1] not in around.runs[-1].runtime.runs:  # one that has ended already
            around = around.runs[-1].around
        make_current(around)
    elif run in scope.runs:  # its `with` block is left before another one inside of it
        make_current(attrs.evolve(scope, runs=tuple(other for other in scope.runs if other is not run)))


def _record_start(run: Run) -> None:
    session, clock, on_busy, pause = run.session, run.runtime.clock, run.runtime.on_busy, Backoff()
    surroundings = _command_line(), _folder(), _traceparent()

    def decide(projection: Projection) -> tuple[Sequence[Fact], LiveRun | None]:
        at = clock.now()
        facts = session.deaths(projection, at)
        busy = next((live for name, live in projection.runs.items() if session.is_live(name, live)), None)
        if busy is not None and on_busy != "share":
            return facts, busy
        session.live_runs.add(run.id)  # under the lock: another thread would take a run on record for dead
        return [*facts, RunStarted(at, run.id, session.log.process_id, run.pid, host_name(), *surroundings)], None

    is_told = False
    while (busy := session.transact(decide, durable=False)) is not None:
        if on_busy == "fail":
            raise WorkflowBusyError(session.workflow_id, busy.pid, busy.host, busy.since)
        _log.log(
            logging.DEBUG if is_told else logging.INFO,
            "workflow %r waits for %s, which runs it",
            session.workflow_id,
            describe_process(busy.pid, busy.host, busy.since),
        )
        is_told = True
        session.log.is_alive(busy.owner)  # raises where that cannot be found out, so that the wait might never end
        pause.rest()
        refuse_interrupted()


def _command_line() -> tuple[str, ...]:
    return tuple(word[:_LONGEST_WORD] for word in sys.orig_argv[:_MOST_WORDS])


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _traceparent() -> str | None:
    found = os.environ.get("TRACEPARENT", "")
    return found if _TRACEPARENT.fullmatch(found) else None


def _record_end(run: Run, error: BaseException | None) -> None:
    at, session = run.runtime.clock.now(), run.session
    fact = RunEnded(at, run.id, None if error is None else ErrorInfo.of(error))
    has_failures = error is not None or run.runtime.failures > run.before[0]
    level = logging.WARNING if has_failures else logging.INFO

    def decide(projection: Projection) -> tuple[Sequence[Fact], Mapping[StepStatus, int]]:
        steps = projection.summary().steps if _log.isEnabledFor(level) else {}
        # Deaths first: a run that died while this one went on must not be the one that decides the status.
        return [*session.deaths(projection, at), fact] if run.id in projection.runs else [], steps

    steps = session.transact(decide, fences=())
    if _log.isEnabledFor(level):
        _log.log(level, "workflow %r %s", run.runtime.workflow_id, _describe_end(run, error, steps))


def _log_start(run: Run) -> None:
    if not _log.isEnabledFor(logging.INFO):
        return

    def look(projection: Projection) -> tuple[tuple[()], tuple[Counter[str], bool, str]]:
        is_shared = len(projection.runs) > 1
        left = "running" if is_shared else "interrupted"
        steps = projection.steps.values()
        runs = (event.detail for event in reversed(projection.events) if event.type.startswith("workflow."))
        match next(islice(runs, 1, None), None):  # the end of the last run, before the beginning of this one
            case {"error": {"name": "RunDied", "message": str(message)}}:
                death = f"; {message}"
            case _:
                death = ""
        return (), (Counter(step.status.value if step.owner is None else left for step in steps), is_shared, death)

    steps, is_shared, death = run.session.transact(look, durable=False)
    recorded = steps.pop("completed", 0)
    parts = [f"{_count_steps(recorded)} recorded", *(f"{count} {status}" for status, count in sorted(steps.items()))]
    _log.info(
        "%s %r in %s%s%s",
        "sharing" if is_shared else "resuming" if recorded or steps else "beginning",
        run.runtime.workflow_id,
        run.runtime.store.display_name,
        f": {', '.join(parts)}" if recorded or steps else "",
        death,
    )


def _describe_end(run: Run, error: BaseException | None, steps: Mapping[StepStatus, int]) -> str:
    runtime = run.runtime
    if error is None:
        how = "completed, with failures," if runtime.failures > run.before[0] else "completed"
    else:
        how = "failed" if isinstance(error, Exception) else "was interrupted"
    counts = [
        f"{_count_steps(count)} {status}"
        for status, count in sorted(steps.items())  # those that are completed come first
    ]
    if costs := runtime.costs[run.before[1] :]:
        counts.append(f"{money_text(sum(costs))} for agents in this run")
    cause = ""
    if error is not None:
        way = reported(error)
        told = "SIGTERM" if isinstance(error, KeyboardInterrupt) and is_terminated() else describe_error(error)
        cause = f"; the error is that of {way}" if way else f"; {told}"
    after = seconds_text(monotonic() - run.began)
    return f"{how} after {after}: {', '.join(counts) or 'no steps'}{cause}"


def _count_steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _let_go(run: Run) -> None:
    run.session.live_runs.discard(run.id)  # not before its end is on record: others would take it for dead
    run.session.release()
