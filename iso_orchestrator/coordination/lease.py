"""Renewable leases with fencing tokens: one holder at a time may act under a key, until its time is over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timedelta
from typing import Any

import attrs

from iso_orchestrator.checks import check_key, check_seconds, host_name, unique_name
from iso_orchestrator.codec import plain_json
from iso_orchestrator.coordination.state import repeat
from iso_orchestrator.errors import LeaseConflictError, LeaseLostError
from iso_orchestrator.notes import contextmanager, suppressed_as_note
from iso_orchestrator.record.facts import Fact, LeaseReleased, LeaseTouched
from iso_orchestrator.record.model import Json, Lease, LeaseStatus, lease_status, truncate_to_ms
from iso_orchestrator.record.projection import Projection, copy_json
from iso_orchestrator.runtime.context import Fence, current_scope, entered
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.system.clock import Clock
from iso_orchestrator.system.interrupts import masked

_RENEWALS = 3  # in each ttl, so that two may fail before the lease expires


@attrs.define(eq=False)
class HeldLease:
    """A lease that `workflow.lease()` holds.

    Attributes:
        key: The lease's.
        holder: The holder's name.
        token: Its fencing token: grows with every acquisition.
        lost: Whether a newer token, or a release by another caller, was seen.
    """

    key: str
    holder: str
    token: int
    lost: bool = False


def touch_lease(runtime: WorkflowRuntime, key: str, holder: str, ttl: float | timedelta, detail: Any) -> Lease:
    """Acquire or renew a lease."""
    touch = _Touch.of(runtime.clock, key, holder, ttl, detail)
    return _lease_of(runtime.transact(touch.decide))


def release_lease(runtime: WorkflowRuntime, key: str, holder: str | None) -> Lease | None:
    """Release a lease; None if there is none."""
    check_key(key, "a lease key")
    if holder is not None:
        check_key(holder, "a lease holder")
    at = runtime.clock.now()

    def decide(projection: Projection) -> tuple[Sequence[Fact], Lease | LeaseConflictError | None]:
        lease = projection.leases.get(key)
        if lease is None:
            return (), None
        if holder is not None and lease.holder != holder:
            return (), LeaseConflictError(key, holder, lease.holder, lease.expires_at)
        if lease.released_at is not None:
            return (), _copy(lease)
        return [LeaseReleased(at, key)], attrs.evolve(_copy(lease), released_at=at)

    outcome = runtime.transact(decide)
    return None if outcome is None else _lease_of(outcome)


def hold_lease(
    runtime: WorkflowRuntime, key: str, holder: str | None, ttl: float | timedelta, detail: Any
) -> AbstractContextManager[HeldLease]:
    """Hold a lease and renew it in the background; it fences what runs inside."""
    name = f"{host_name()}:{os.getpid()}:{unique_name()}" if holder is None else holder
    return _hold(runtime, _Touch.of(runtime.clock, key, name, ttl, detail))


@contextmanager
def _hold(runtime: WorkflowRuntime, touch: _Touch) -> Iterator[HeldLease]:
    key, current = touch.key, 0
    with runtime.acquire() as session, ExitStack() as stack:
        held = HeldLease(key, touch.holder, token=0)

        def give_back(_: object, error: BaseException | None, __: object) -> None:
            nonlocal current
            with suppressed_as_note(error, f"lease {key!r} was not released"):
                current = _give_back(session, touch, held)

        stack.push(give_back)
        with masked():  # until the token is known: without it the lease could not be released
            held.token = _lease_of(session.transact(touch.decide)).token
        scope = current_scope()
        stack.enter_context(entered(attrs.evolve(scope, fences=(*scope.fences, Fence(session.key, key, held.token)))))
        stack.enter_context(repeat(lambda: _renew(session, touch, held), touch.ttl / _RENEWALS, f"lease {key}"))
        yield held
    if current != held.token:
        raise LeaseLostError(key, held.token, current)


@attrs.define
class _Touch:
    """The arguments of one holder, checked."""

    clock: Clock
    key: str
    holder: str
    ttl: float
    detail: Json

    @classmethod
    def of(cls, clock: Clock, key: str, holder: str, ttl: float | timedelta, detail: Any) -> _Touch:
        check_key(key, "a lease key")
        check_key(holder, "a lease holder")
        value = None if detail is None else plain_json(detail, f"the detail of lease {key!r}")
        return cls(clock, key, holder, _seconds(ttl), value)

    def decide(self, projection: Projection) -> tuple[Sequence[Fact], Lease | LeaseConflictError]:
        """Renew the holder's own active lease, acquire one without an active holder, or refuse."""
        now = self.clock.now()
        current = projection.leases.get(self.key)
        if current is None or not self._is_active(projection, current, now):
            return self._touched(projection, now, now, projection.tokens.get(self.key, 0) + 1, renewed=False)
        if current.holder != self.holder:
            return (), LeaseConflictError(self.key, self.holder, current.holder, current.expires_at)
        return self._touched(projection, now, current.acquired_at, current.token, renewed=True)

    def decide_renewal(self, projection: Projection, token: int) -> tuple[Sequence[Fact], bool]:
        """Renew the lease if it is still held with that token, run out or not; whether it is."""
        current = projection.leases.get(self.key)
        if current is None or projection.tokens.get(self.key) != token or current.released_at is not None:
            return (), False
        facts, _ = self._touched(projection, self.clock.now(), current.acquired_at, token, renewed=True)
        return facts, True

    def _touched(
        self, projection: Projection, now: datetime, acquired_at: datetime, token: int, *, renewed: bool
    ) -> tuple[Sequence[Fact], Lease]:
        current = projection.leases.get(self.key)
        detail = self.detail if self.detail is not None or current is None else current.detail
        boot = self.clock.boot()
        fact = LeaseTouched(
            at=now,
            key=self.key,
            holder=self.holder,
            ttl=self.ttl,
            acquired_at=acquired_at,
            expires_at=truncate_to_ms(now + timedelta(seconds=self.ttl, microseconds=999)),
            token=token,
            renewed=renewed,
            detail=detail,
            boot_id=boot[0] if boot else None,
            boot_expires=boot[1] + self.ttl if boot else None,
        )
        lease = Lease(
            key=self.key,
            holder=self.holder,
            acquired_at=acquired_at,
            heartbeat_at=now,
            expires_at=fact.expires_at,
            detail=copy_json(detail),
            token=token,
        )
        return [fact], lease

    def _is_active(self, projection: Projection, lease: Lease, now: datetime) -> bool:
        if lease.released_at is not None:
            return False
        boot, by_boot = self.clock.boot(), projection.lease_clocks.get(self.key)
        if boot is not None and by_boot is not None and boot[0] == by_boot.boot_id:
            return boot[1] < by_boot.expires  # the wall clock may have been set meanwhile
        return lease_status(lease, now) is LeaseStatus.ACTIVE


def _renew(session: Session, touch: _Touch, held: HeldLease) -> bool:
    """Renew the lease; False if it is lost."""
    held.lost = not session.transact(
        lambda projection: touch.decide_renewal(projection, held.token), durable=False, fences=()
    )
    return not held.lost


def _give_back(session: Session, touch: _Touch, held: HeldLease) -> int:
    """Release the lease if it has still this token; its latest token."""

    def decide(projection: Projection) -> tuple[Sequence[Fact], int]:
        lease = projection.leases.get(held.key)
        latest = projection.tokens.get(held.key, 0)
        if lease is None or latest != held.token or lease.released_at is not None:
            return (), latest
        return [LeaseReleased(touch.clock.now(), held.key)], latest

    current = session.transact(decide, durable=False, fences=())
    held.lost = held.lost or current != held.token
    return current


def _lease_of(outcome: Lease | LeaseConflictError) -> Lease:
    if isinstance(outcome, LeaseConflictError):
        raise outcome
    return outcome


def _copy(lease: Lease) -> Lease:
    return attrs.evolve(lease, detail=copy_json(lease.detail))


def _seconds(ttl: float | timedelta) -> float:
    seconds = check_seconds(ttl.total_seconds() if isinstance(ttl, timedelta) else ttl, "ttl")
    if seconds is None:
        raise TypeError("ttl must be seconds or a timedelta, not None")
    return float(seconds)
