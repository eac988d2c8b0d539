"""A process's share in one workflow, and the one transaction on it.

Lock, catch up with other processes, decide, append, unlock, wait until it is durable.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import starmap
from typing import TypeAlias, TypeVar

from iso_orchestrator.errors import DeadlockError, LeaseLostError, OrchestratorError, StoreError, WorkflowUsageError
from iso_orchestrator.record.facts import Fact, RunDied, StepAbandoned
from iso_orchestrator.record.model import StepStatus
from iso_orchestrator.record.projection import LiveRun, Projection, StepState
from iso_orchestrator.record.projection import Wait as StepWait
from iso_orchestrator.runtime.context import Fence, InFlightStep, current_scope
from iso_orchestrator.runtime.listeners import Listening
from iso_orchestrator.runtime.waits import Node, ThreadNode, Wait, current_node, find_deadlock, noted
from iso_orchestrator.store import RemovedError, Store, WorkflowLog
from iso_orchestrator.system.clock import Clock
from iso_orchestrator.system.events import OneShotEvent, refuse_green_threads, wait_until_free
from iso_orchestrator.system.interrupts import at_exit, masked, undo_on_error

_log = logging.getLogger("iso_orchestrator")

_LONGEST_EXIT = 1.0  # seconds; a transaction takes milliseconds, a function of the user's any time

T = TypeVar("T")

Decision: TypeAlias = Callable[[Projection], tuple[Sequence[Fact], T]]
"""From the projection, which has every fact of every process, to the facts to append and the caller's value.

It changes nothing by itself, and may be called again.
"""


class Session:
    """This process's share in one workflow, however many `Workflow` objects stand for it.

    The first transaction opens the log. The session counts its references: each `Workflow` object that is in use has
    one, and so has each call, run, batch and lease that is under way. The release of the last one closes the log.

    Attributes:
        key: Equal for all sessions of one workflow in one store.
        listening: What is called with the events that this process appends.
        live_runs: Ids of the runs that this process has begun and not ended.
    """

    def __init__(self, store: Store, workflow_id: str, new: Callable[[], Projection], clock: Clock) -> None:
        refuse_green_threads()
        self.key = (store.identity, workflow_id)
        self.workflow_id = workflow_id
        self.live_runs: set[str] = set()
        self.listening = Listening()
        self.references = 0
        self.is_closed = False
        self._store = store
        self._new = new
        self._clock = clock
        self._log: WorkflowLog | None = None
        self._projection: Projection | None = None
        self._guard = threading.Lock()
        self._inside: ThreadNode | None = None
        self._in_flight: dict[str, InFlightStep] = {}
        self._in_flight_guard = threading.Lock()
        self._orphans: set[str] = set()  # steps whose attempts ended without an outcome, and without a fact of that
        self._not_abandoned: OrchestratorError | None = None  # why the last try to record them failed
        self._removal: str | None = None

    @property
    def log(self) -> WorkflowLog:
        """The workflow's log, opened if it is not."""
        return self._log or self.ensure_open()

    def ensure_open(self) -> WorkflowLog:
        """Open the log, which creates the record where there is none."""
        if self._log is None:
            self.transact(lambda _: ((), None), durable=False, fences=())
        assert self._log is not None
        return self._log

    def transact(
        self,
        decide: Decision[T],
        *,
        durable: bool = True,
        fences: Sequence[Fence] | None = None,
        may_create: bool = True,
    ) -> T:
        """Append the facts that *decide* returns after those of all processes; its value.

        Args:
            decide: Called under the workflow's lock.
            durable: Return when all that *decide* saw and appended would survive a power cut. Otherwise it survives the
                death of this process only.
            fences: Leases that must not have a newer token; default: those around the caller.
            may_create: Begin a new record if the present one was removed while this process was idle.

        Raises:
            LeaseLostError: A lease has a newer token.
            RemovedError: The record was removed while a run, a step or a lease of this process went on.
            StoreError: Nothing was appended, or it could not be made durable.
        """
        if fences is None:
            fences = current_scope().fences
        self.refuse_inside()
        node = current_node()
        with masked():
            self._wait_until_free()
            try:
                with self._guard:
                    self._inside = node
                    try:
                        value, log, seq = self._append_to_open(decide, fences, may_create)
                    finally:
                        self._inside = None
                if durable:
                    log.sync(seq)
            except StoreError:
                self._retire()
                raise
            self.listening.tell()
        return value

    def sync(self, seq: int) -> None:
        """Return when all facts up to *seq* would survive a power cut."""
        self._sync(self.log, seq)

    def completed(self, name: str, idempotency_key: str | None, version: str | None) -> StepState | None:
        """The step, if this process knows without a look at the disk that it is completed, durably."""
        self.refuse_inside()
        node = current_node()
        self._wait_until_free()
        with self._guard:
            self._inside = node
            try:
                log, projection = self._log, self._projection
                step = projection.matching(name, idempotency_key, version) if projection is not None else None
                if log is None or step is None or step.status is not StepStatus.COMPLETED or not log.is_current():
                    return None
                self._sync(log, step.seq)
                return step
            finally:
                self._inside = None

    def begin_flight(self, step: InFlightStep) -> tuple[InFlightStep, OneShotEvent] | None:
        """Note that this thread runs *step*, or return the step of that name in flight, and the event of its end."""
        with self._in_flight_guard:
            other = self._in_flight.setdefault(step.name, step)
            if other is step:
                return None
            other.ended = other.ended or OneShotEvent()
            return other, other.ended

    def end_flight(self, step: InFlightStep) -> None:
        """Note that this thread no longer runs the step.

        If its outcome is not on record, also record that no process has to wait for it.
        """
        try:
            if not step.is_settled:
                self._orphans.add(step.name)
            if self._orphans:
                self._abandon(ending=step.name)
        finally:
            with self._in_flight_guard:
                del self._in_flight[step.name]
            if step.ended is not None:
                step.ended.set()
            else:
                step.error = None  # its traceback has frames with *step*: without this the two would form a cycle
            self._retire()

    def is_in_flight(self, name: str) -> bool:
        """Whether a thread of this process runs the step."""
        return name in self._in_flight

    def deaths(self, projection: Projection, at: datetime) -> list[Fact]:
        """The facts that runs have died."""
        return [
            RunDied(at, run, projection.last_seen(live))
            for run, live in projection.runs.items()
            if not self.is_live(run, live)
        ]

    def is_live(self, run: str, live: LiveRun) -> bool:
        """Whether the process of a run, as it is recorded, goes on with it, as far as that can be found out."""
        if live.owner == self.log.process_id:
            return run in self.live_runs
        try:
            return self.log.is_alive(live.owner)
        except StoreError:
            return True

    def limit_waits(self) -> list[StepWait] | None:
        """This process's waits for limits, without a look at the disk; None while a transaction changes them."""
        log, projection = self._log, self._projection
        if log is None or projection is None:
            return None
        return [wait for wait in list(projection.waits.values()) if wait.owner == log.process_id]

    def is_process(self, process_id: str) -> bool:
        """Whether that is this process's id in the workflow."""
        return self._log is not None and self._log.process_id == process_id

    def refuse_inside(self) -> None:
        """Raise in a function given to update_state(), and in a signal handler that came inside of a transaction.

        Raises:
            WorkflowUsageError: This thread is in one.
        """
        if self._inside is not None and self._inside is current_node():
            raise WorkflowUsageError(
                f"workflow {self.workflow_id!r} was used inside a function given to update_state(), which must only "
                "make the new state from the old one, or in a signal handler that came while the workflow was at work: "
                "set a flag there, and look at it in the program"
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def retain(self) -> bool:
        """Add a reference; False if the session is closed."""
        with _registry_guard:
            self.references += 1  # first: a finalizer may close the session in between
            if self.is_closed:
                self.references -= 1
            return not self.is_closed

    def release(self, *, wait: bool = True) -> None:
        """Release a reference; the last one closes the log, see `WorkflowLog.detach`."""
        with _registry_guard:
            self.references -= 1
            if self.references > 0 or self.is_closed:
                return
        with masked():
            wait_until_free(self._guard)
            self._close(wait)

    def drop(self) -> None:
        """Release a reference from a finalizer. It may run in the middle of anything, so it waits for no process."""
        try:
            self.release(wait=False)
        except Exception as error:  # noqa: BLE001 - there is no caller to raise it to
            _log.warning("workflow %r was not closed: %s", self.workflow_id, error)

    def detach_at_exit(self) -> None:
        """Close the log at the interpreter's exit; where a daemon thread runs a step, the kernel does that later.

        If one of them is in a function given to update_state(), all is left as by a killed process.
        """
        if self._guard.acquire(timeout=_LONGEST_EXIT):
            try:
                self.is_closed = True
                if not self._in_flight:
                    self._detach(wait=True)
            finally:
                self._guard.release()

    def detach_after_fork(self) -> None:
        """In a forked child: all of this is the parent's."""
        self.is_closed = True
        # A thread of the parent, which the child does not have, may have held these locks.
        self._guard, self._in_flight_guard, self._inside = threading.Lock(), threading.Lock(), None
        log, self._log, self._projection = self._log, None, None
        if log is not None:
            log.detach_after_fork()

    def _wait_until_free(self) -> None:
        """Let Ctrl-C end the wait for a transaction of another thread.

        Raises:
            DeadlockError: That thread is in a function given to update_state() which waits for this one.
        """
        if not self._guard.locked():
            return
        with noted(Wait(current_node(), f"workflow {self.workflow_id!r}", self._blockers)) as node:
            inside = self._inside
            error = None if inside is None or inside.wait is None else find_deadlock(node)
            if error is not None:
                raise error
            wait_until_free(self._guard)

    def _blockers(self) -> Sequence[Node]:
        inside = self._inside
        return () if inside is None else (inside,)

    def _open(self) -> WorkflowLog:
        if self.is_closed:
            if self._removal is not None:
                raise RemovedError(self._removal)
            raise StoreError(f"workflow {self.workflow_id!r} was closed while it was in use; call again")
        log, projection = self._store.open(self.workflow_id, self._new)
        self._log, self._projection = log, projection
        if projection.runs:
            with undo_on_error(self._give_up_opening):
                self._record_deaths(log)
        return log

    def _all_live(self, projection: Projection) -> bool:
        return all(starmap(self.is_live, projection.runs.items()))

    def _record_deaths(self, log: WorkflowLog) -> None:
        at = self._clock.now()
        self._append(log, lambda projection: (self.deaths(projection, at), None), ())

    def _give_up_opening(self) -> None:
        log, self._log, self._projection = self._log, None, None
        if log is not None:  # to other processes this one must not count as a user of the workflow
            log.fail("it was not opened")
            log.detach(None)

    def _leave_removed(self, log: WorkflowLog, message: str, fences: Sequence[Fence]) -> None:
        """Close the log of a record that was removed; the session too, if something goes on that is recorded there."""
        self._log, self._projection = None, None
        self._orphans.clear()
        with self._in_flight_guard:
            is_busy = self.live_runs or any(step.attempt for step in self._in_flight.values())
        if is_busy or any(fence.workflow == self.key for fence in fences):
            self._removal = message
            self._leave_registry()
        log.fail(message)
        log.close()

    def _leave_registry(self) -> None:
        with _registry_guard:
            self.is_closed = True
            if _sessions.get(self.key) is self:
                del _sessions[self.key]

    def _append_to_open(
        self, decide: Decision[T], fences: Sequence[Fence], may_create: bool
    ) -> tuple[T, WorkflowLog, int]:
        log = self._log or self._open()
        try:
            value, seq = self._append(log, decide, fences)
        except RemovedError as error:
            self._leave_removed(log, str(error), fences)
            if self.is_closed or not may_create:
                raise
            log = self._open()
            value, seq = self._append(log, decide, fences)
        return value, log, seq

    def _append(self, log: WorkflowLog, decide: Decision[T], fences: Sequence[Fence]) -> tuple[T, int]:
        # Whatever is raised from here on, the next transaction reads from the disk what is true.
        projection, self._projection = self._projection, None
        try:
            log.lock()
            projection = log.catch_up(projection)
            try:
                for fence in fences:
                    self._check_fence(projection, fence)
                facts, value = decide(projection)
            except Exception:
                self._projection = projection  # nothing was changed: nothing has to be read again
                raise
            if facts:
                known = len(projection.events)
                log.append(projection, facts)
                self.listening.note(projection.events[known:])
            self._projection = projection
            return value, projection.seq
        finally:
            log.unlock()

    def _check_fence(self, projection: Projection, fence: Fence) -> None:
        current = projection.tokens.get(fence.key, 0)
        if fence.workflow == self.key and current != fence.token:  # a smaller one: the record was removed meanwhile
            raise LeaseLostError(fence.key, fence.token, current)

    def _abandon(self, ending: str) -> None:
        """Record that attempts ended without an outcome, so that other processes do not wait for them."""
        log = self._log
        if log is None:
            return
        at: datetime | None = None
        with suppress(Exception):  # a clock of the user's may raise, and what has ended must be recorded
            at = self._clock.now()

        def decide(projection: Projection) -> tuple[list[Fact], set[str]]:
            ended = {name for name in self._orphans if name == ending or name not in self._in_flight}
            mine = [name for name in sorted(ended) if projection.owner(name) == log.process_id]
            return [StepAbandoned(at or projection.updated_at, name) for name in mine], ended

        try:
            self._orphans -= self.transact(decide, durable=False, fences=())
            self._not_abandoned = None
        except DeadlockError:
            return  # the next step that ends records it
        except OrchestratorError as error:
            self._not_abandoned = error

    def _retire(self) -> None:
        """If nothing can be recorded any more and no step's body runs, be dead to other processes.

        They would wait for the steps that this process has on record. While a body runs they have to.
        """
        with self._in_flight_guard:  # a body that begins after the failure is refused by the log
            log = self._log
            if log is None or self._in_flight:
                return
            if self._not_abandoned is not None:
                log.fail(f"it could not record that an attempt had ended ({self._not_abandoned})")
            log.retire()

    def _sync(self, log: WorkflowLog, seq: int) -> None:
        try:
            log.sync(seq)
        except StoreError:
            self._retire()
            raise

    def _close(self, wait: bool) -> None:
        node = current_node()
        with self._guard:
            self._inside = node
            try:
                with _registry_guard:
                    if self.references > 0 or self.is_closed:  # another thread acquired it meanwhile, or closed it
                        return
                    self.is_closed = True
                self._detach(wait)
            finally:
                self._inside = None
                if self.is_closed:  # not before: a signal handler would open the workflow anew, and wait for this one
                    self._leave_registry()
        self.listening.tell()

    def _detach(self, wait: bool) -> None:
        log, projection = self._log, self._projection
        if log is None:
            return
        with undo_on_error(log.close):  # whatever is raised, nothing stays locked
            try:
                if wait and projection is not None and not (log.is_current() and self._all_live(projection)):
                    with suppress(StoreError):  # the next process records them
                        self._record_deaths(log)
            finally:
                projection, self._log, self._projection = self._projection, None, None
            log.detach(projection, wait=wait)


def acquire_session(store: Store, workflow_id: str, new: Callable[[], Projection], clock: Clock) -> Session:
    """The session of this process with one more reference, which the caller releases."""
    key = (store.identity, workflow_id)
    with _registry_guard:
        session = _sessions.get(key)
        if session is not None:
            session.refuse_inside()
        if session is None or not session.retain():
            session = Session(store, workflow_id, new, clock)
            session.references = 1
            _sessions[key] = session
        return session


def find_session(store: Store, workflow_id: str) -> Session | None:
    """The session of this process with one more reference, if its log is open."""
    with _registry_guard:
        session = _sessions.get((store.identity, workflow_id))
        return session if session is not None and session._log is not None and session.retain() else None


_sessions: dict[tuple[object, str], Session] = {}
_registry_guard = threading.RLock()  # a finalizer may release a reference in the middle of this module's own code


def _detach_all_at_exit() -> None:
    sessions = list(_sessions.values())
    _sessions.clear()
    for session in sessions:
        try:
            session.detach_at_exit()
        except Exception as error:  # noqa: BLE001 - at exit there is no caller left to raise it to
            _log.warning("workflow %r was not closed: %s", session.workflow_id, error)


def _detach_all_after_fork() -> None:
    global _registry_guard
    _registry_guard = threading.RLock()
    for session in _sessions.values():
        session.detach_after_fork()
    _sessions.clear()


at_exit(_detach_all_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_detach_all_after_fork)
