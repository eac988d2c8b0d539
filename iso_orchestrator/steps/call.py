"""One call of a step: begin, run the body, record the outcome; or wait for whoever has it in hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.codec import ResultCodec, updated_state
from iso_orchestrator.errors import (
    CommandLeftoverError,
    LeaseLostError,
    Limited,
    OrchestratorError,
    SerializationError,
    StepFailedError,
    StepInterruptedError,
    StepRejectedError,
    StoreError,
    WorkflowUsageError,
)
from iso_orchestrator.record.facts import ABSENT, Fact, StepCompleted, StepFailed, StepLimited, StepStarted, StepWaiting
from iso_orchestrator.record.model import ErrorInfo, Json, StepStatus, truncate_to_ms
from iso_orchestrator.record.projection import Limit, Projection, StepState
from iso_orchestrator.runtime.context import Attempt, LockOwner, Scope, StepContext, current_owner, current_scope
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import InFlightStep, Session, SessionClosed
from iso_orchestrator.runtime.timeout import call_with_timeout
from iso_orchestrator.steps.options import StepOptions
from iso_orchestrator.steps.retry import RetryContext
from iso_orchestrator.system.clock import Backoff, sleep
from iso_orchestrator.system.interrupts import OneShotEvent

__all__ = ["StepCall"]

_log = logging.getLogger("iso_orchestrator")

_LONGEST_NAP = 0.5  # seconds; the wait for a limit can end with Ctrl-C


@attrs.frozen(eq=False, repr=False)
class _Completed:
    """The step has been completed."""

    result: Json


@attrs.frozen(eq=False, repr=False)
class _RunsHere:
    """Another thread has it in hand, until *end* is set."""

    flight: InFlightStep
    end: OneShotEvent


@attrs.frozen(eq=False, repr=False)
class _RunsElsewhere:
    """Another process has it in hand."""

    attempts: int


@attrs.frozen(eq=False, repr=False)
class _WaitUntil:
    """What it needs is limited."""

    limit: Limit


@attrs.frozen(eq=False, repr=False)
class _Refused:
    """It cannot be had, and why."""

    error: OrchestratorError


@attrs.frozen(eq=False, repr=False)
class Recorded:
    """A result that this call has put into the journal, and that may not be on the disk yet."""

    flight: InFlightStep
    seq: int
    data: Json


_Attempt: TypeAlias = int
"""The number of the attempt at a step that the caller has in hand now."""

_Beginning: TypeAlias = _Attempt | _Completed | _RunsHere | _RunsElsewhere | _WaitUntil | _Refused


class _NotRecorded(Exception):  # noqa: N818 - never leaves this module
    """The body succeeded, and its outcome was given up or cannot be recorded: no retry would help."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@attrs.define(eq=False, repr=False)
class StepCall:
    """One call of a step, whose body takes no arguments any more."""

    runtime: WorkflowRuntime
    name: str
    idempotency_key: str | None
    body: Callable[[], Any]
    codec: ResultCodec
    options: StepOptions
    session: Session = attrs.field(init=False)
    scope: Scope = attrs.field(init=False)
    is_first: bool = attrs.field(init=False, default=True)
    recorded: Recorded | None = attrs.field(init=False, default=None)

    def run(self) -> Any:
        """The step's result, recorded or new.

        Raises:
            Exception: What the body raised in its last attempt, or what `StepOptions` say.
        """
        try:
            try:
                return self.perform()
            finally:
                self.settle()
        except BaseException:
            self.settle()  # all of it, or what an interrupt has left: a step that is not let go keeps the workflow open
            raise

    def perform(self) -> Any:
        """As `run`, but the result survives only this process until `settle`, which has to follow, returns."""
        self.session = self.runtime.session()
        step = self.session.completed(self.name, self.idempotency_key, self.options.version)
        if step is not None:
            return self._load(step.result)
        self.scope = current_scope()
        if self.scope.attempt is not None:
            self._refuse_recursion(self.scope.attempt)
        flight = InFlightStep(self.name, self.idempotency_key, self.options.version)
        try:
            return self._wait_or_fly(flight)
        except _NotRecorded as given_up:
            if given_up.error is not None:
                raise given_up.error from given_up.error.__cause__
        finally:
            if self.recorded is None:
                # An error that could not be recorded is the caller's alone: others may try for themselves.
                try:
                    self.session.end_flight(flight, settled=flight.error is not None)
                except BaseException:  # a signal: others would wait for ever
                    self.session.end_flight(flight, settled=flight.error is not None)
                    raise
        return self.perform()  # somebody else has taken the step over: theirs is the outcome

    def settle(self) -> None:
        """Wait until the result would survive a power cut, and let the step go. In any thread.

        Raises:
            StoreError: It would not.
        """
        if self.recorded is None:
            return
        flight, seq, data = self.recorded.flight, self.recorded.seq, self.recorded.data
        try:
            self.session.log.sync(seq)
            flight.succeeded, flight.result = True, data
        except StoreError as error:
            raise self._lost(error) from error
        finally:
            self.session.end_flight(flight, settled=flight.succeeded)
            self.recorded = None  # not before: an interrupt may keep `end_flight` from beginning

    def _wait_or_fly(self, own: InFlightStep) -> Any:
        pause, awaited, fences = None, 0, self.scope.fences
        while True:
            at = self.runtime.clock.now()
            try:
                beginning, seq = self.session.append(
                    lambda projection: self._decide(projection, own, at, awaited),
                    fences,  # noqa: B023
                )
            except SessionClosed:
                self.session = self.runtime.session()
                continue
            match beginning:
                case int(attempt):
                    if self.options.if_interrupted == "fail":
                        self.session.log.sync(seq)
                    return self._attempts(own, attempt)
                case _Completed(result):
                    return self._load(result)
                case _Refused(error):
                    raise error
                case _RunsElsewhere(attempts):
                    awaited = attempts
                    pause = pause or Backoff()
                    pause.rest()
                case _WaitUntil(limit):
                    self._wait_until(limit)
                case _RunsHere(flight, end):
                    self._wait_for(flight, end)
                    if flight.succeeded and self._is_same(flight):
                        return self._load(flight.result)
                    if flight.error is not None and self._is_same(flight):
                        raise _for_another_caller(self.name, flight.error)

    def _decide(
        self, projection: Projection, flight: InFlightStep, at: Any, awaited: int
    ) -> tuple[Sequence[Fact], _Beginning]:
        flights, log, step = self.session.flights, self.session.log, projection.steps.get(self.name)
        attempt = 1
        if step is not None:
            same = projection.matching(self.name, self.idempotency_key, self.options.version)
            if same is not None and same.status is StepStatus.COMPLETED:
                log.sync(same.seq)  # in here, where nobody can leave the session
                return (), _Completed(same.result)
            if step.owner == log.owner:
                other = flights.get(self.name)
                if other is not None and other.thread != flight.thread:
                    return (), _RunsHere(other, other.await_end())
            elif step.owner is not None and log.is_alive(step.owner):
                return (), _RunsElsewhere(step.attempts)
            self.is_first = same is None
            if same is not None:
                if (refused := self._refusal(same, awaited)) is not None:
                    log.sync(same.seq)
                    return (), _Refused(refused)
                attempt += same.attempts
        if (limit := self._limit(projection, at)) is not None:
            return self._waiting(projection, limit, at), _WaitUntil(limit)
        flights[self.name] = flight
        return [self._started(attempt, at)], attempt

    def _refusal(self, step: StepState, awaited: int) -> OrchestratorError | None:
        if step.error is not None and step.owner is None and 0 < awaited <= step.attempts:
            return StepFailedError(self.name, step.error)
        if step.status is StepStatus.RUNNING and self.options.if_interrupted == "fail":
            return StepInterruptedError(self.name, step.attempts)
        return None

    def _started(self, attempt: int, at: Any) -> StepStarted:
        return StepStarted(at, self.name, attempt, self.session.log.owner, self.idempotency_key, self.options.version)

    def _attempts(self, flight: InFlightStep, attempt: int) -> Any:
        budget, number = self.options.retry.attempts, 1
        while True:
            context = StepContext(self.name, number, budget, self.idempotency_key)
            try:
                return self._attempt(flight, attempt, context)
            except _NotRecorded:
                raise
            except BaseException as error:
                if not isinstance(error, CommandLeftoverError):  # it has not begun what it is for
                    self.is_first = False
                if isinstance(error, Limited) and self._is_limited(attempt, error):
                    self._begin_again(attempt)  # the same one: a limit is no failure
                    continue
                pause = self._pause_before_retry(error, context)
                if not self._record_failure(flight, attempt, error, retrying=pause is not None) or pause is None:
                    raise
                sleep(pause)
            number, attempt = number + 1, attempt + 1
            self._begin_again(attempt)

    def _begin_again(self, attempt: int) -> None:
        while True:
            at = self.runtime.clock.now()

            def decide(projection: Projection, at: datetime = at) -> tuple[Sequence[Fact], Limit | None]:
                limit = self._limit(projection, at)
                return [self._started(attempt, at)] if limit is None else self._waiting(projection, limit, at), limit

            limit, seq = self.session.append(decide, self.scope.fences)
            if limit is None:
                if self.options.if_interrupted == "fail":
                    self.session.log.sync(seq)
                return
            self._wait_until(limit)

    def _attempt(self, flight: InFlightStep, attempt: int, context: StepContext) -> Any:
        scope = self.scope
        work = Attempt(self.session, flight, scope.attempt, attempt, self.is_first)
        owner = LockOwner(scope.owner or current_owner())
        inside = Scope(self.runtime.workflow, scope.runs, owner, context, scope.item, work, scope.fences, scope.batch)
        context_of_body = inside.context()
        if self.options.timeout is None:
            value = context_of_body.run(self.body)
        else:
            value = context_of_body.run(call_with_timeout, self.name, self.body, self.options.timeout)
        try:
            subject = self._subject()
            data = self.codec.dump(value, subject)
            result = self.codec.load(data, subject)
        except SerializationError as error:
            self._record_failure(flight, attempt, error, retrying=False)
            raise _NotRecorded(error) from error
        if self.options.accept is not None and not context_of_body.run(self.options.accept, self._load(data)):
            raise StepRejectedError(self.name, result)
        self._complete(flight, attempt, data, work)
        return result

    def _complete(self, flight: InFlightStep, attempt: int, data: Json, work: Attempt) -> None:
        at = self.runtime.clock.now()

        def decide(projection: Projection) -> tuple[Sequence[Fact], bool]:
            if not self._is_mine(projection, attempt):
                return (), False
            state = projection.state
            for update in work.updates:
                state = updated_state(update, state)
            return [StepCompleted(at, self.name, data, state if work.updates else ABSENT)], True

        try:
            recorded, seq = self.session.append(decide, self.scope.fences)
        except LeaseLostError as error:
            raise _NotRecorded(error) from error
        except StoreError as error:
            lost = self._lost(error)
            lost.__cause__ = error
            raise _NotRecorded(lost) from error
        except Exception as error:
            self._record_failure(flight, attempt, error, retrying=False)
            raise _NotRecorded(error) from error
        if not recorded:
            raise _NotRecorded(None)
        self.recorded = Recorded(flight, seq, data)

    def _lost(self, error: StoreError) -> StoreError:
        return StoreError(f"step {self.name!r} succeeded, and its result could not be recorded: {error}")

    def _record_failure(self, flight: InFlightStep, attempt: int, error: BaseException, *, retrying: bool) -> bool:
        """Record that an attempt failed; whether that could be done. Never hides *error*."""
        try:
            fact = StepFailed(self.runtime.clock.now(), self.name, ErrorInfo.of(error), retrying)
            _, seq = self.session.append(
                lambda projection: ([fact] if self._is_mine(projection, attempt) else [], None), self.scope.fences
            )
            if not retrying:
                self.session.log.sync(seq)
                flight.error = error
        except Exception as trouble:  # noqa: BLE001 - the step's own error is what counts
            if not isinstance(error, LeaseLostError):
                error.add_note(f"iso-orchestrator: the failure of step {self.name!r} was not recorded: {trouble}")
            return False
        return True

    def _is_limited(self, attempt: int, limit: Limited) -> bool:
        """Record that an attempt met a limit; False where that is over already, which is a failure like any other."""
        # Up to the next millisecond, as records have them: a moment before its end the limit still stands.
        at, until = self.runtime.clock.now(), truncate_to_ms(limit.until + timedelta(microseconds=999))
        if until <= at:
            return False
        fact = StepLimited(at, self.name, until, limit.key or self.options.limit_key)

        def decide(projection: Projection) -> tuple[Sequence[Fact], bool]:
            is_mine = self._is_mine(projection, attempt)
            return [fact] if is_mine else [], is_mine

        recorded, seq = self.session.append(decide, self.scope.fences)
        if not recorded:
            raise _NotRecorded(None)
        self.session.log.sync(seq)
        return True

    def _limit(self, projection: Projection, at: datetime) -> Limit | None:
        """What limits the step; None when nothing does."""
        limit = projection.limit(self.name, self.options.limit_key)
        return limit if limit is not None and limit.until > at else None

    def _waiting(self, projection: Projection, limit: Limit, at: datetime) -> Sequence[Fact]:
        """That it waits for *limit*, unless that is on record."""
        owner, wait = self.session.log.owner, projection.waits.get(self.name)
        if wait is not None and (wait.owner, wait.until, wait.key) == (owner, limit.until, limit.key):
            return ()
        return [StepWaiting(at, self.name, owner, limit.until, limit.key)]

    def _wait_until(self, limit: Limit) -> None:
        """Wait for the end of a limit.

        Raises:
            Limited: The `for_each` around it was stopped.
        """
        limited = Limited(limit.until, limit.key)
        _log.warning("step %r waits: %s", self.name, limited)
        try:
            while (seconds := (limit.until - self.runtime.clock.now()).total_seconds()) > 0:
                if self.scope.batch is not None and self.scope.batch.is_stopped:
                    raise limited
                sleep(min(seconds, _LONGEST_NAP))
        except BaseException:
            ended = StepWaiting(self.runtime.clock.now(), self.name, self.session.log.owner)
            with suppress(OrchestratorError, SessionClosed):  # it is for those who look alone
                self.session.append(lambda _: ([ended], None), fences=())
            raise

    def _pause_before_retry(self, error: BaseException, context: StepContext) -> float | None:
        """Seconds until the next attempt; None when there is to be none."""
        if not isinstance(error, Exception) or isinstance(error, LeaseLostError | WorkflowUsageError):
            return None
        retry_context = RetryContext(self.name, context.attempt, context.max_attempts)
        try:
            if not self.runtime.scope().context().run(self.options.retry.wants, error, retry_context):
                return None
            return self.options.retry.pause(error, context.attempt)
        except Exception as trouble:  # noqa: BLE001 - as above
            error.add_note(f"iso-orchestrator: the retry policy raised {type(trouble).__name__}: {trouble}")
            return None

    def _is_mine(self, projection: Projection, attempt: int) -> bool:
        step = projection.steps.get(self.name)
        return step is not None and step.attempts == attempt and step.owner == self.session.log.owner

    def _is_same(self, flight: InFlightStep) -> bool:
        return (flight.idempotency_key, flight.version) == (self.idempotency_key, self.options.version)

    def _wait_for(self, flight: InFlightStep, end: OneShotEvent) -> None:
        attempt = current_scope().attempt
        mine: list[InFlightStep] = [link.flight for link in attempt.chain()] if attempt is not None else []
        for own in mine:
            own.waits_for.append(flight)
        try:
            if (link := flight.reaches(mine)) is not None:
                raise WorkflowUsageError(
                    f"step {self.name!r} and step {link.name!r} wait for each other: neither would ever end"
                )
            end.wait()
        finally:
            for own in mine:
                own.waits_for.remove(flight)

    def _refuse_recursion(self, attempt: Attempt) -> None:
        for link in attempt.chain():
            if link.session.key == self.session.key and link.flight.name == self.name:
                raise WorkflowUsageError(
                    f"step {self.name!r} called itself: it would wait for its own end; call the plain function (.fn)"
                )

    def _load(self, data: Json) -> Any:
        return self.codec.load(data, self._subject())

    def _subject(self) -> str:
        return f"the result of step {self.name!r}"


def _for_another_caller(name: str, error: BaseException) -> BaseException:
    """An interrupt was meant for the thread that got it; others are told of the failure."""
    return error if isinstance(error, Exception) else StepFailedError(name, ErrorInfo.of(error))
