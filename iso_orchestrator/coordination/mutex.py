"""`workflow.mutex`: a context manager and a decorator, and what goes on record of a mutex."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ContextDecorator, suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar

import attrs

from iso_orchestrator.checks import check_key, check_wait
from iso_orchestrator.coordination.mutex_queue import (
    Held,
    MutexScope,
    MutexState,
    Waiter,
    find_entry,
    find_hold,
    request,
    state_key_of,
)
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.notes import suppressed_as_note
from iso_orchestrator.record.facts import EventAppended, Fact
from iso_orchestrator.record.model import Json, format_time
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.runtime.context import LockOwner, StepContext, current_owner, refuse_interrupted
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.runtime.waits import Node, Patience, Wait, wait_until
from iso_orchestrator.steps.options import check_callable
from iso_orchestrator.system.clock import Clock, monotonic
from iso_orchestrator.system.events import OneShotEvent
from iso_orchestrator.system.interrupts import masked, masked_with_undo

F = TypeVar("F", bound=Callable[..., Any])

_SOON = 0.002  # seconds; a wait that is over before costs no look for a deadlock
_LONG_WAIT = 0.01  # seconds; a shorter one is not recorded


class Mutex(ContextDecorator):
    """`workflow.mutex(key)`: a context manager and a decorator."""

    def __init__(self, runtime: WorkflowRuntime, key: str, timeout: float | None, scope: MutexScope) -> None:
        self._runtime = runtime
        self._key = check_key(key, "a mutex key")
        self._timeout = check_wait(timeout, "timeout")
        self._state_key = state_key_of(runtime, key, check_scope(scope))

    def __call__(self, fn: F) -> F:
        """Hold the mutex during each call of *fn*.

        Raises:
            TypeError: *fn* is no plain function. The body of another kind would run when the mutex is free again.
        """
        check_callable(fn, "what a mutex guards")
        return super().__call__(fn)

    def __enter__(self) -> None:
        is_entered = False
        answered = OneShotEvent()
        errors: list[BaseException] = []

        def fail(error: BaseException) -> None:
            errors.append(error)
            answered.set()

        waiter = Waiter(current_owner(), granted=lambda _: answered.set(), failed=fail)
        block = masked_with_undo()
        try:
            with block:
                hold = find_hold(self._state_key, waiter.owner)
                if hold is not None:
                    hold.enter_again(waiter.owner)
                else:
                    with self._runtime.acquire() as session:
                        request(session, self._state_key, waiter, self._timeout)
                        if not answered.wait(_SOON):
                            self._wait(waiter, answered)
                        if errors:
                            raise errors[0]
                        record_acquired(session, self._runtime.clock, self._key, waiter)
                is_entered = True
        except BaseException as error:
            block.mask_again()
            try:
                if is_entered:
                    self.__exit__(type(error), error, error.__traceback__)
                else:
                    waiter.cancel()
            finally:
                block.end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with masked():
            owner = current_owner()
            hold, entered, is_inherited = find_entry(self._state_key, owner)
            if hold is not None and entered is not None:
                release(self._runtime, self._key, hold, entered, error)
            if entered is not owner and not is_inherited:  # in a forked child the parent holds it
                with suppressed_as_note(error, f"mutex {self._key!r} was not left"):
                    self._refuse_to_leave(hold, entered)

    def _wait(self, waiter: Waiter, answered: OneShotEvent) -> None:
        def blockers() -> Sequence[Node]:
            return () if answered.is_set() or self._timeout is not None else holders(waiter)

        patience = MutexPatience.of(waiter, self._runtime)

        def look() -> None:
            refuse_interrupted()
            patience.look()

        wait_until(answered.wait, Wait(waiter.owner, f"mutex {self._key!r}", blockers), look)

    def _refuse_to_leave(self, hold: Held | None, entered: LockOwner | None) -> None:
        if hold is None:
            raise WorkflowUsageError(
                f"mutex {self._key!r} was left and is not held: leave it as often as it was entered, best by `with`"
            )
        if entered is None:
            raise WorkflowUsageError(
                f"mutex {self._key!r} was left in another thread or asyncio task than that of {hold.waiter.owner}, "
                "which still holds it: leave it where it was entered"
            )
        raise WorkflowUsageError(
            f"mutex {self._key!r} was entered in {entered} and left outside of it: leave it where it was entered, best "
            "by `with`, since a step that is completed does not enter it again"
        )


def check_scope(value: str) -> MutexScope:
    """Return *value* if it is a scope, else raise ValueError."""
    if value not in ("workflow", "store"):
        raise ValueError(f'a mutex\'s scope is "workflow" or "store", not {value!r}')
    return value  # type: ignore[return-value]  # mypy does not narrow a str by `in`


def holders(waiter: Waiter) -> Sequence[Node]:
    """The threads of this process that have to leave the mutex which *waiter* waits for."""
    hold = None if waiter.state is None else waiter.state.hold
    if hold is None or hold.waiter is waiter:
        return ()
    return [owner.node for owner in (*hold.entries, *hold.kept_for)]


@attrs.define
class MutexPatience(Patience):
    """Puts a long wait for a mutex on record, and warns of one for another process, when it is called at times."""

    state: MutexState

    @classmethod
    def of(cls, waiter: Waiter, runtime: WorkflowRuntime) -> MutexPatience:
        """The patience of *waiter*, whose mutex is requested."""
        state = waiter.state
        assert state is not None
        key, holder = state.key[2], state.store_mutex.holder

        def record() -> None:
            with suppress(Exception), runtime.acquire() as session:
                pid = holder().pid if state.hold is None else os.getpid()
                _record(session, runtime.clock.now(), "mutex.waiting", {"key": key, **_who(waiter), "holder": pid})

        return cls(f"workflow {runtime.workflow_id!r}: {waiter.owner}", f"mutex {key!r}", holder, record, state)

    def look(self) -> None:
        """Put the wait on record; warn if another process has the mutex."""
        if self.state.hold is None:
            super().look()
        else:
            self.note()


def look_after(waits: Sequence[MutexPatience | None]) -> None:
    """Put long ones of several waits on record, and warn of the first."""
    known = [patience for patience in waits if patience is not None]
    for patience in known:
        patience.note()
    if known:
        known[0].look()


def record_acquired(session: Session, clock: Clock, key: str, waiter: Waiter) -> None:
    """Append the event that *waiter* has the mutex, and since when it waited, if that is worth telling."""
    at, now = clock.now(), monotonic()
    detail = {"key": key, **_who(waiter)}
    granted = now if waiter.state is None or waiter.state.hold is None else waiter.state.hold.since
    if granted - waiter.since > _LONG_WAIT:
        with suppress(OverflowError):  # the user's clock stands where time begins
            detail["since"], detail["granted"] = (
                format_time(at - timedelta(seconds=now - moment)) for moment in (waiter.since, granted)
            )
    _record(session, at, "mutex.acquired", detail)


def _who(waiter: Waiter) -> dict[str, Json]:
    """The step or item that has or wants a mutex; a plain thread is none."""
    owner = waiter.owner
    if owner.work is None:
        return {}
    if isinstance(owner.work, StepContext):
        return {"step": owner.work.name}
    return {"item": list(owner.item)} if owner.item else {}


def _record(session: Session, at: datetime, kind: str, detail: dict[str, Json]) -> None:
    """Append an event of a mutex, with the number of this process's run."""

    def decide(projection: Projection) -> tuple[Sequence[Fact], None]:
        run = projection.run_of(session.log.process_id)
        return [EventAppended(at, kind, detail=detail if run is None else {**detail, "run": run})], None

    session.transact(decide, durable=False)


def release(runtime: WorkflowRuntime, key: str, hold: Held, owner: LockOwner, error: BaseException | None) -> None:
    """End an entry of *owner*. After the last one, record that and release the mutex.

    If *error* leaves the `with`, a failure to record becomes a note on it, and so does that the mutex was lost.
    """
    try:
        with suppressed_as_note(error, f"the release of mutex {key!r} was not recorded"):
            if len(hold.entries) == 1:
                with runtime.acquire() as session:
                    event = EventAppended(runtime.clock.now(), "mutex.released", detail={"key": key})
                    session.transact(lambda _: ([event], None), durable=False)
        with suppressed_as_note(error, f"mutex {key!r} excluded no other process"):
            hold.state.store_mutex.check()
    finally:
        hold.leave(owner)
