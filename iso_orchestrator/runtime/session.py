"""Decide and append: lock, catch up with other processes, decide, append, unlock, wait for the sync."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import attrs

from iso_orchestrator.errors import LeaseLostError, OrchestratorError, StoreError, WorkflowUsageError
from iso_orchestrator.record.facts import Fact, StepAbandoned
from iso_orchestrator.record.model import Json, StepStatus
from iso_orchestrator.record.projection import Projection, StepState
from iso_orchestrator.runtime.context import Fence, current_scope
from iso_orchestrator.runtime.liveness import dead_runs
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import Clock
from iso_orchestrator.system.interrupts import OneShotEvent

__all__ = ["Decision", "InFlightStep", "Session", "SessionClosed", "attach", "known_session", "settle"]

_log = logging.getLogger("iso_orchestrator")

T = TypeVar("T")

Decision: TypeAlias = Callable[[Projection], tuple[Sequence[Fact], T]]
"""What to append to a fold that has everything, and what to tell the caller."""


class SessionClosed(StoreError):  # noqa: N818 - steps open it again
    """Nobody used the session any more, and it was left."""


@attrs.define(eq=False, repr=False)
class InFlightStep:
    """A step that a thread of this process has in hand.

    Attributes:
        thread: The one that has it.
        result: JSON, where it succeeded.
        error: What its caller got, where it failed.
        waits_for: The flights that its body waits for, in however many threads.
        awaited: What is set at its end, where somebody waits for it.
    """

    name: str
    idempotency_key: str | None
    version: str | None
    thread: int = attrs.field(factory=threading.get_ident)
    succeeded: bool = False
    result: Json = None
    error: BaseException | None = None
    waits_for: list[InFlightStep] = attrs.field(factory=list)
    awaited: OneShotEvent | None = None

    def reaches(self, flights: Sequence[InFlightStep]) -> InFlightStep | None:
        """Which of *flights* it waits for, itself among them and however far around."""
        if self in flights:
            return self
        return next((found for other in list(self.waits_for) if (found := other.reaches(flights))), None)

    def await_end(self) -> OneShotEvent:
        """What is set at its end; made under the session's guard, and only when somebody waits."""
        if self.awaited is None:
            self.awaited = OneShotEvent()
        return self.awaited


class Session:
    """This process's share in one workflow, however many `Workflow` objects stand for it."""

    def __init__(self, store: Store, workflow_id: str, new: Callable[[], Projection], clock: Clock) -> None:
        self.key = (store.identity, workflow_id)
        self.workflow_id = workflow_id
        self.flights: dict[str, InFlightStep] = {}
        self.runs: set[str] = set()
        self.closed = False
        self.users: dict[int, weakref.ref[Any]] = {}  # by id; a WeakSet takes a microsecond to say that it is empty
        self.log, projection = store.open(workflow_id, new)
        self._projection: Projection | None = projection
        self._guard = threading.Lock()
        self._inside: int | None = None
        self._pins = 0
        self._pin_guard = threading.Lock()  # its own: an updater that looks at the workflow is inside the other
        self._orphans: set[str] = set()
        if projection.runs:
            self._record_deaths(clock)

    def append(self, decide: Decision[T], fences: Sequence[Fence] | None = None) -> tuple[T, int]:
        """Append what *decide* says to what everybody has appended; its value, and the sequence to sync.

        The facts survive this process, and not yet the machine.

        Raises:
            LeaseLostError: The caller runs under a lease that has a newer token.
            SessionClosed: It was left before the caller had anything in hand.
            StoreError: Nothing was appended.
        """
        if fences is None:
            fences = current_scope().fences
        me = threading.get_ident()
        if self._inside == me:
            raise self._nested()
        with self._guard:
            self._inside = me
            # Whatever goes wrong from here on, a signal among it, the next one reads from the disk what is true.
            projection, self._projection = self._projection, None
            try:
                if self.closed:
                    raise SessionClosed(f"workflow {self.workflow_id!r} was closed while it was in use; call again")
                self.log.lock()
                projection = self.log.catch_up(projection)
                try:
                    if fences:
                        self._check_fences(projection, fences)
                    facts, value = decide(projection)
                except Exception:
                    self._projection = projection  # it only looked: nothing has to be read again
                    raise
                if facts:
                    self.log.append(projection, facts)
                self._projection = projection
                return value, projection.seq
            finally:
                self._inside = None
                try:
                    self.log.unlock()
                except BaseException:  # a signal as it begins: others would wait until this process does something
                    self.log.unlock()
                    raise

    def record(self, decide: Decision[T]) -> T:
        """As `append`, and return when it would survive a power cut."""
        value, seq = self.append(decide)
        self.log.sync(seq)
        return value

    def read(self, look: Callable[[Projection], T]) -> T:
        """What *look* sees in the record as it is now, for everyone and for ever."""
        return self.record(lambda projection: ((), look(projection)))

    def completed(self, name: str, idempotency_key: str | None, version: str | None) -> StepState | None:
        """The step, if it is known here that it is completed and that nobody has changed that."""
        if self._inside == threading.get_ident():
            raise self._nested()
        with self._guard:
            projection = self._projection
            step = projection.matching(name, idempotency_key, version) if projection is not None else None
            if step is None or step.status is not StepStatus.COMPLETED or not self.log.is_current():
                return None
            self.log.sync(step.seq)
            return step

    def end_flight(self, flight: InFlightStep, *, settled: bool) -> None:
        """Let a step go; one that is not settled has no outcome on record, and nobody shall wait for it."""
        with self._guard:
            if flight.awaited is not None:
                flight.awaited.set()
            if self.flights.get(flight.name) is flight:
                if not settled:
                    self._orphans.add(flight.name)
                del self.flights[flight.name]
        if self._orphans:
            self._abandon()
        if not self.users:
            settle(self)

    def pin(self) -> bool:
        """Keep the session open until `unpin`, whoever closes his `Workflow`; False when it is closed already."""
        if self._inside == threading.get_ident():
            raise self._nested()
        with self._pin_guard:
            if self.closed:
                return False
            self._pins += 1
            return True

    def unpin(self) -> None:
        """Need the session no longer; the last one leaves it, if nobody uses it."""
        with self._pin_guard:
            self._pins -= 1
        if not self.users:
            settle(self)

    def leave(self, *, at_exit: bool = False) -> bool:
        """End this process's share; False while something goes on in it."""
        with self._guard:
            with self._pin_guard:
                if (self._pins or self.flights) and not at_exit:
                    return False
                self.closed = True
            projection, self._projection = self._projection, None
            try:
                self.log.detach(projection)
            except BaseException:
                self.log.close()  # a signal on its way out: nothing must stay locked by whoever is gone
                raise
        return True

    def refuse_inside(self) -> None:
        """Raise inside a function given to update_state()."""
        if self._inside == threading.get_ident():
            raise self._nested()

    def forget(self) -> None:
        """In a forked child: all of this is the parent's."""
        self.closed = True
        # A thread may have had these in the parent that the child does not have.
        self._guard, self._pin_guard, self._inside = threading.Lock(), threading.Lock(), None
        self.log.detach_after_fork()

    def _record_deaths(self, clock: Clock) -> None:
        try:
            self.append(lambda projection: (dead_runs(projection, self.log, self.runs, clock.now()), None), fences=())
        except BaseException:
            self.log.fail("it was not opened")
            self.log.detach(None)
            raise

    def _abandon(self) -> None:
        orphans: set[str] = set()

        def decide(projection: Projection) -> tuple[list[Fact], None]:
            # In here, where no other thread adds to them.
            orphans.update(self._orphans)
            self._orphans.clear()
            mine = [
                name
                for name in sorted(orphans)
                if name not in self.flights and projection.owner(name) == self.log.process_id
            ]
            return [StepAbandoned(projection.updated_at, name) for name in mine], None

        try:
            self.append(decide, fences=())
        except OrchestratorError as error:
            if not self.flights and not self.closed:
                # Others would wait for a thread that is gone: better to be dead to them.
                self.log.fail(f"it could not record that an attempt had ended ({error})")
            self._orphans |= orphans
        except BaseException:
            self._orphans |= orphans
            raise

    def _nested(self) -> WorkflowUsageError:
        return WorkflowUsageError(
            f"workflow {self.workflow_id!r} was used inside a function given to update_state(): "
            "it must only make the new state from the old one"
        )

    def _check_fences(self, projection: Projection, fences: Sequence[Fence]) -> None:
        for fence in fences:
            current = projection.tokens.get(fence.key, 0)
            if fence.workflow == self.key and current > fence.token:
                raise LeaseLostError(fence.key, fence.token, current)


def attach(user: object, store: Store, workflow_id: str, new: Callable[[], Projection], clock: Clock) -> Session:
    """The session of this process, opened when it is not open; *user* keeps it so."""
    with _slot((store.identity, workflow_id)) as slot:
        if slot.session is None or slot.session.closed:
            slot.session = Session(store, workflow_id, new, clock)
        _note_user(slot.session, user)
        return slot.session


def _note_user(session: Session, user: object) -> None:
    users, key = session.users, id(user)
    users[key] = weakref.ref(user, lambda gone: users.pop(key) if users.get(key) is gone else None)


def known_session(store: Store, workflow_id: str) -> Session | None:
    """The session of this process, if it is open."""
    slot = _slots.get((store.identity, workflow_id))
    session = slot.session if slot is not None else None
    return None if session is None or session.closed else session


def settle(session: Session) -> None:
    """Leave a session that nobody uses and in which nothing goes on."""
    with _slot(session.key) as slot:
        if slot.session is session and not session.closed and not session.users and session.leave():
            slot.session = None
        if slot.session is None:
            with _registry_lock:
                _slots.pop(session.key, None)


@attrs.define(eq=False, repr=False)
class _Slot:
    """The place of a workflow's session; a lock each, so that one that is slow to open keeps no other waiting."""

    lock: threading.RLock = attrs.field(factory=threading.RLock)
    session: Session | None = None


_slots: dict[tuple[object, str], _Slot] = {}
_registry_lock = threading.Lock()


@contextmanager
def _slot(key: tuple[object, str]) -> Iterator[_Slot]:
    while True:
        with _registry_lock:
            slot = _slots.setdefault(key, _Slot())
        with slot.lock:
            if _slots.get(key) is slot:  # else its last session was left while this thread waited
                yield slot
                return


def _leave_all() -> None:
    sessions = [slot.session for slot in _slots.values() if slot.session is not None]
    _slots.clear()
    for session in sessions:
        try:
            session.leave(at_exit=True)
        except Exception as error:  # noqa: BLE001 - at exit there is nobody left to raise it to
            _log.warning("workflow %r was not closed: %s", session.workflow_id, error)


def _forget_all_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    for slot in _slots.values():
        if slot.session is not None:
            slot.session.forget()
    _slots.clear()


atexit.register(_leave_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_in_child)
