"""One call of a step: begin, run the body, record the outcome; or wait for the thread or process that runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.codec import ResultCodec, updated_state
from iso_orchestrator.errors import (
    CommandLeftoverError,
    DeadlockError,
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
from iso_orchestrator.record.facts import (
    ABSENT,
    Fact,
    StepCompleted,
    StepFailed,
    StepLimited,
    StepStarted,
    StepWaiting,
)
from iso_orchestrator.record.model import ErrorInfo, Json, StepStatus, truncate_to_ms
from iso_orchestrator.record.projection import Limit, Projection, StepState
from iso_orchestrator.runtime.context import (
    Attempt,
    InFlightStep,
    LockOwner,
    Scope,
    StepContext,
    current_owner,
    current_scope,
    innermost_attempt,
    run_attempt,
)
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.runtime.threads import call_with_timeout
from iso_orchestrator.runtime.waits import Patience, Wait, current_node, wait_until
from iso_orchestrator.steps.options import RetryContext, StepOptions
from iso_orchestrator.store import ProcessInfo
from iso_orchestrator.system.clock import Backoff, sleep
from iso_orchestrator.system.interrupts import OneShotEvent, masked, unmasked

_log = logging.getLogger("iso_orchestrator")

_LONGEST_NAP = 0.5  # seconds between two looks whether the for_each around a wait for a limit was stopped


@attrs.frozen
class _Started:
    """The attempt of that number is on record, and this call's; whether it is the first at this step."""

    attempt: int
    is_first: bool


@attrs.frozen
class _Completed:
    """The step has been completed, by the fact with that sequence."""

    result: Json
    seq: int


@attrs.frozen
class _RunsElsewhere:
    """Another process runs the step, in its attempt of that number."""

    attempt: int


@attrs.frozen
class _Waits:
    """The step is limited."""

    limit: Limit


@attrs.frozen
class _Refused:
    """The step does not run, for that reason, given by the fact with that sequence."""

    error: OrchestratorError
    seq: int


_Beginning: TypeAlias = _Started | _Completed | _RunsElsewhere | _Waits | _Refused


class _NotRecorded(Exception):  # noqa: N818 - never leaves this module
    """The attempt is over, and its outcome is not on record.

    Either it could not be recorded (*error*), or another attempt has taken over the step (None).
    """

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@attrs.define(eq=False)
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

    def run(self) -> Any:
        """The step's result, recorded or new.

        Raises:
            Exception: What the body raised in its last attempt, or what `StepOptions` say.
        """
        step = self.runtime.session().completed(self.name, self.idempotency_key, self.options.version)
        if step is not None:
            return self._load(step.result)
        self.scope = current_scope()
        with masked():
            self.session = self.runtime.acquire()
            try:
                return self._run()
            finally:
                self.session.release()

    def _run(self) -> Any:
        self._refuse_recursion()
        awaited, error = 0, None
        while True:
            flight = InFlightStep(self.name, attempt=awaited, error=error)
            in_flight = self.session.begin_flight(flight)
            if in_flight is not None:
                other, ended = in_flight
                self._wait_for(other, ended)
                awaited, error = max(awaited, other.attempt), other.error or error
                continue
            try:
                return self._fly(flight)
            except _NotRecorded as given_up:
                if given_up.error is not None:
                    raise given_up.error from given_up.error.__cause__
            finally:
                self.session.end_flight(flight)

    def _wait_for(self, other: InFlightStep, ended: OneShotEvent) -> None:
        """Wait until another thread's run of the step has ended."""
        node = current_node()
        inner = innermost_attempt()
        around = [link.flight for link in inner.chain() if link.flight.thread is not node] if inner else []
        for flight in around:
            flight.helpers.append(node)
        try:
            wait_until(ended.wait, Wait(current_owner(), f"step {self.name!r}", lambda: (other,)))
        finally:
            for flight in around:
                flight.helpers.remove(node)

    def _fly(self, flight: InFlightStep) -> Any:
        beginning = self._begin(flight)
        if isinstance(beginning, _Completed):
            return self._load(beginning.result)
        self.is_first = beginning.is_first
        return self._attempts(flight, beginning.attempt)

    def _begin(self, flight: InFlightStep) -> _Started | _Completed:
        pause = Backoff()
        patience: Patience | None = None
        while True:
            at = self.runtime.clock.now()
            flight.is_settled = False
            try:
                beginning: _Beginning = self.session.transact(
                    lambda projection: self._decide(projection, at, flight.attempt),  # noqa: B023 - called at once
                    durable=self.options.if_interrupted == "fail",
                    fences=self.scope.fences,
                )
            except (StoreError, DeadlockError):
                flight.is_settled = True  # nothing was appended, or the store is dead in this process
                raise
            flight.is_settled = not isinstance(beginning, _Started)
            match beginning:
                case _Started():
                    return beginning
                case _Completed(_, seq):
                    self.session.sync(seq)
                    return beginning
                case _Refused(error, seq):
                    self.session.sync(seq)
                    if isinstance(error, StepFailedError) and isinstance(flight.error, Exception):
                        raise flight.error  # another thread of this process had it
                    raise error
                case _RunsElsewhere(attempt):
                    flight.attempt = attempt
                    pause.rest()
                    patience = patience or Patience(current_owner(), f"step {self.name!r}", self._runner)
                    patience.look()
                case _Waits(limit):
                    self._wait_until(limit)

    def _decide(self, projection: Projection, at: datetime, awaited: int) -> tuple[Sequence[Fact], _Beginning]:
        log, step = self.session.log, projection.steps.get(self.name)
        same = projection.matching(self.name, self.idempotency_key, self.options.version)
        if same is not None and same.status is StepStatus.COMPLETED:
            return (), _Completed(same.result, same.seq)
        if step is not None and step.owner not in (None, log.process_id) and log.is_alive(step.owner):
            return (), _RunsElsewhere(step.attempts)
        if same is not None and (error := self._refusal(same, awaited)) is not None:
            return (), _Refused(error, same.seq)
        limit = self._limit(projection, at)
        if limit is not None:
            return self._waiting(projection, limit, at), _Waits(limit)
        attempt = 1 if same is None else same.attempts + 1
        return [self._started(attempt, at)], _Started(attempt, is_first=same is None)

    def _refusal(self, step: StepState, awaited: int) -> OrchestratorError | None:
        if step.error is not None and step.owner is None and 0 < awaited <= step.attempts:
            return StepFailedError(self.name, step.error)
        if step.status is StepStatus.RUNNING and self.options.if_interrupted == "fail":
            return StepInterruptedError(self.name, step.attempts)
        return None

    def _started(self, attempt: int, at: datetime) -> StepStarted:
        return StepStarted(
            at, self.name, attempt, self.session.log.process_id, self.idempotency_key, self.options.version
        )

    def _attempts(self, flight: InFlightStep, attempt: int) -> Any:
        budget, number = self.options.retry.attempts, 1
        while True:
            context = StepContext(self.name, number, budget, self.idempotency_key)
            try:
                return self._attempt(flight, attempt, context)
            except _NotRecorded:
                raise
            except BaseException as error:  # it is recorded, then raised or retried
                if not isinstance(error, CommandLeftoverError):  # which came before the command began
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
                facts = [self._started(attempt, at)] if limit is None else self._waiting(projection, limit, at)
                return facts, limit

            limit = self.session.transact(
                decide, durable=self.options.if_interrupted == "fail", fences=self.scope.fences
            )
            if limit is None:
                return
            self._wait_until(limit)

    def _attempt(self, flight: InFlightStep, attempt: int, context: StepContext) -> Any:
        scope, flight.attempt = self.scope, attempt
        work = Attempt(self.session, flight, innermost_attempt(), attempt, self.is_first)
        owner = LockOwner(current_owner(), context)
        inside = Scope(self.runtime, scope.runs, owner, context, scope.item, work, scope.fences, scope.batch)
        context_of_body = inside.context()
        with unmasked():
            if self.options.timeout is None:
                value = context_of_body.run(run_attempt, work, self.body)
            else:
                body = partial(run_attempt, work, self.body)
                value = context_of_body.run(call_with_timeout, self.name, body, self.options.timeout)
        try:
            data = self.codec.dump(value, self._subject())
            result = self._load(data)
        except SerializationError as error:
            self._record_failure(flight, attempt, error, retrying=False)
            raise _NotRecorded(error) from error
        if self.options.accept is not None:
            with unmasked():
                if not context_of_body.run(self.options.accept, self._load(data)):
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
                with unmasked():
                    state = updated_state(update, state)
            return [StepCompleted(at, self.name, data, state if work.updates else ABSENT)], True

        try:
            is_recorded = self.session.transact(decide, fences=self.scope.fences)
        except LeaseLostError as error:
            raise _NotRecorded(error) from error
        except StoreError as error:
            lost = StoreError(f"step {self.name!r} succeeded, and its result could not be recorded: {error}")
            lost.__cause__ = error
            raise _NotRecorded(lost) from error
        except Exception as error:  # an update of the state, or what it returned
            self._record_failure(flight, attempt, error, retrying=False)
            raise _NotRecorded(error) from error
        if not is_recorded:
            raise _NotRecorded(None)
        flight.is_settled = True

    def _record_failure(self, flight: InFlightStep, attempt: int, error: BaseException, *, retrying: bool) -> bool:
        """Record that an attempt failed; whether that could be done. Never hides *error*."""
        try:
            fact = StepFailed(self.runtime.clock.now(), self.name, ErrorInfo.of(error), retrying)
            self.session.transact(
                lambda projection: ([fact] if self._is_mine(projection, attempt) else [], None),
                durable=not retrying,
                fences=self.scope.fences,
            )
        except Exception as trouble:  # noqa: BLE001 - the step's own error is what counts
            if not isinstance(error, LeaseLostError):
                error.add_note(f"iso-orchestrator: the failure of step {self.name!r} was not recorded: {trouble}")
            return False
        if not retrying:
            flight.is_settled, flight.error = True, error
        return True

    def _is_limited(self, attempt: int, limit: Limited) -> bool:
        """Record that an attempt met a limit; False if that is over already, which is a failure like any other."""
        # Rounded up to a whole millisecond, as records have them: rounded down, the limit would end too early.
        at, until = self.runtime.clock.now(), truncate_to_ms(limit.until + timedelta(microseconds=999))
        if until <= at:
            return False
        fact = StepLimited(at, self.name, until, limit.key or self.options.limit_key)

        def decide(projection: Projection) -> tuple[Sequence[Fact], bool]:
            is_mine = self._is_mine(projection, attempt)
            return [fact] if is_mine else [], is_mine

        if not self.session.transact(decide, fences=self.scope.fences):
            raise _NotRecorded(None)
        return True

    def _limit(self, projection: Projection, at: datetime) -> Limit | None:
        """The limit that holds the step back; None when none does."""
        limit = projection.limit(self.name, self.options.limit_key)
        return limit if limit is not None and limit.until > at else None

    def _waiting(self, projection: Projection, limit: Limit, at: datetime) -> Sequence[Fact]:
        """The fact that it waits for *limit*, unless that is on record."""
        owner, wait = self.session.log.process_id, projection.waits.get(self.name)
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
        is_over = False
        try:
            while (seconds := (limit.until - self.runtime.clock.now()).total_seconds()) > 0:
                if self.scope.batch is not None and self.scope.batch.is_stopped:
                    raise limited
                sleep(min(seconds, _LONGEST_NAP))
            is_over = True
        finally:
            if not is_over:
                ended = StepWaiting(self.runtime.clock.now(), self.name, self.session.log.process_id)
                with suppress(OrchestratorError):  # it only informs those who look
                    self.session.transact(lambda _: ([ended], None), durable=False, fences=())

    def _pause_before_retry(self, error: BaseException, context: StepContext) -> float | None:
        """Seconds until the next attempt; None when there is to be none."""
        if not isinstance(error, Exception) or isinstance(error, LeaseLostError | WorkflowUsageError):
            return None
        retry_context = RetryContext(self.name, context.attempt, context.max_attempts)
        try:
            with unmasked():
                if not self.runtime.scope().context().run(self.options.retry.wants, error, retry_context):
                    return None
                return self.options.retry.pause(error, context.attempt)
        except Exception as trouble:  # noqa: BLE001 - as above
            error.add_note(f"iso-orchestrator: the retry policy raised {type(trouble).__name__}: {trouble}")
            return None

    def _is_mine(self, projection: Projection, attempt: int) -> bool:
        step = projection.steps.get(self.name)
        return step is not None and step.attempts == attempt and step.owner == self.session.log.process_id

    def _runner(self) -> ProcessInfo:
        owner = self.session.transact(lambda projection: ((), projection.owner(self.name)), durable=False, fences=())
        return ProcessInfo() if owner is None else self.session.log.process_info(owner)

    def _refuse_recursion(self) -> None:
        for link in self.scope.attempt.chain() if self.scope.attempt is not None else ():
            if link.session.key == self.session.key and link.flight.name == self.name:
                step = f"step {self.name!r}"
                raise DeadlockError((step, f"{step} called itself"), "call the plain function (.fn)")

    def _load(self, data: Json) -> Any:
        return self.codec.load(data, self._subject())

    def _subject(self) -> str:
        return f"the result of step {self.name!r}"
