"""One call of a step: begin an attempt, run the body, commit its outcome; or wait for another runner of the step.

The methods of `StepCall` stand in the order in which a call goes through them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import takewhile
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.codec import ResultCodec
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
from iso_orchestrator.notes import add_note, message_of
from iso_orchestrator.record.facts import EventAppended, Fact, StepStarted, StepWaiting
from iso_orchestrator.record.model import Json, StepStatus
from iso_orchestrator.record.projection import Limit, Projection, StepState
from iso_orchestrator.runtime.context import (
    Attempt,
    InFlightStep,
    LockOwner,
    Scope,
    StepContext,
    attempts_around,
    current_owner,
    current_scope,
    innermost_attempt,
    note_step,
    pause,
    refuse_interrupted,
    run_attempt,
)
from iso_orchestrator.runtime.reports import log_death, log_limit, log_retry, report, settle
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.runtime.session import Session
from iso_orchestrator.runtime.threads import run_attempt_with_timeout
from iso_orchestrator.runtime.waits import Patience, Wait, current_node, wait_until
from iso_orchestrator.steps.blocked import LONGEST_NAP, Blocked, end_waits
from iso_orchestrator.steps.options import RetryContext, StepOptions
from iso_orchestrator.steps.origin import Origin, warn_of_changes
from iso_orchestrator.steps.outcome import record_completion, record_failure, record_limit
from iso_orchestrator.store import ProcessInfo
from iso_orchestrator.system.clock import Backoff, sleep
from iso_orchestrator.system.events import OneShotEvent
from iso_orchestrator.system.interrupts import at_work, masked, unmasked

_log = logging.getLogger("iso_orchestrator")


@attrs.frozen
class _Started:
    """An attempt was recorded as started: the first one, or after that of the process *dead*, which has died."""

    attempt: int
    is_first: bool
    dead: str | None = None


@attrs.frozen
class _Completed:
    """The step has been completed, by the fact *seq*."""

    result: Json
    seq: int
    changes: list[str]  # since it was made


@attrs.frozen
class _RunsElsewhere:
    """Another process runs the step: its attempt of that number."""

    attempt: int


@attrs.frozen
class _Refused:
    """The step must not run, because of the fact *seq*."""

    error: OrchestratorError
    seq: int


_Decided: TypeAlias = _Started | _Completed | _RunsElsewhere | _Refused | Limit


@attrs.define(eq=False)
class StepCall:
    """One call of a step, whose body takes no arguments any more.

    Attributes:
        timeout: Seconds for an attempt, for the record. Those of a command are not in *options*, since it ends itself.
        gives_way: Whether `run` returns `Blocked` instead of waiting for a limit or another process.
        is_first: Whether no attempt at the step was on record before it; None before the first attempt.
        number: Of the next attempt, which counts from 1 in each call.
        awaited: The last attempt of another process that the call has found running; 0: none.
        patience: Warns of a long wait for another process.
    """

    runtime: WorkflowRuntime
    name: str
    idempotency_key: str | None
    body: Callable[[], Any]
    codec: ResultCodec
    origin: Origin
    options: StepOptions
    timeout: float | None
    session: Session = attrs.field(init=False)
    scope: Scope = attrs.field(init=False)
    gives_way: bool = attrs.field(init=False, default=False)
    is_first: bool | None = attrs.field(init=False, default=None)
    owner: LockOwner | None = attrs.field(init=False, default=None)  # inside the body of the last attempt
    way: str | None = attrs.field(init=False, default=None)  # to the error of the last attempt, for the log
    number: int = attrs.field(init=False, default=1)
    awaited: int = attrs.field(init=False, default=0)
    patience: Patience | None = attrs.field(init=False, default=None)

    def run(self) -> Any:
        """The step's result, recorded or new; or `Blocked`, if the call gives way. Then this can be called again.

        Raises:
            Exception: What the body raised in its last attempt, or what `StepOptions` say.
        """
        step = self.runtime.session().completed(self.name, self.idempotency_key, self.options.version)
        if step is not None and self._counts(step):
            if _log.isEnabledFor(logging.DEBUG):
                self._debug("is on record")
            return self._load_recorded(step.result, self.origin.changes_since(step))
        self.scope = current_scope()
        with masked(), at_work(), self.runtime.acquire() as self.session:
            return self._run_in_turn()

    def _run_in_turn(self) -> Any:
        """Run the step once no other thread of this process runs it."""
        self._refuse_recursion()
        flight = InFlightStep(self.name, self.awaited)
        while (in_flight := self.session.begin_flight(flight)) is not None:
            other, ended = in_flight
            self._wait_for_thread(other, ended)
            flight.attempt = max(flight.attempt, other.attempt)
            flight.error = flight.error if other.error is None else other.error
        of_other_thread = flight.error
        try:
            return self._run_attempts(flight)
        except BaseException as error:
            batch = self.scope.batch
            is_dropped = isinstance(error, Limited) and batch is not None and batch.is_stopped
            if error is not of_other_thread and not is_dropped:
                report(self.runtime, self.way or self._title(), error, current_owner())
            raise
        finally:
            del of_other_thread  # with its traceback it would form a cycle
            self.session.end_flight(flight)

    def _wait_for_thread(self, other: InFlightStep, ended: OneShotEvent) -> None:
        """Wait until another thread's run of the step has ended."""
        node = current_node()
        waiting = takewhile(lambda attempt: not attempt.has_timeout, attempts_around())
        around = [attempt.flight for attempt in waiting if attempt.flight.thread is not node]
        for flight in around:
            flight.helpers.append(node)
        try:
            wait = Wait(current_owner(), f"step {self.name!r}", lambda: (other,))
            wait_until(ended.wait, wait, refuse_interrupted)
            refuse_interrupted()  # else this thread would begin what the other one has left at Ctrl-C
        finally:
            for flight in around:
                flight.helpers.remove(node)

    def _run_attempts(self, flight: InFlightStep) -> Any:
        number, clock = self.number, self.runtime.clock
        while True:
            begun = self._begin(flight)
            if isinstance(begun, _RunsElsewhere | Limit):
                self.number = number
                return self._give_way(begun)
            if isinstance(begun, _Completed):
                self._debug("is on record")
                return self._load_recorded(begun.result, begun.changes)
            if _log.isEnabledFor(logging.DEBUG):
                self._debug(f"begins, attempt {begun.attempt}")
            if begun.dead is not None:
                log_death(self.runtime, self.name, self.session.log.process_info(begun.dead))
            flight.attempt = begun.attempt
            self.is_first = begun.is_first if self.is_first is None else self.is_first
            has_timeout = self.options.timeout is not None
            attempt = Attempt(self.session, flight, innermost_attempt(), begun.attempt, self.is_first, has_timeout)
            context = StepContext(self.name, number, self.options.retry.attempts, self.idempotency_key)
            try:
                executed = self._execute(attempt, context)
            except BaseException as error:  # it is recorded, then raised or retried
                self.way = settle(self.runtime, self._title(number), self.owner, error)
                if not isinstance(error, CommandLeftoverError):  # which came before the command began
                    self.is_first = False
                if isinstance(error, Limited) and record_limit(clock, attempt, error, self.options):
                    continue  # with the same number: a limit is no failure
                seconds = None if flight.is_hopeless else self._pause_before_retry(error, context)
                if not record_failure(clock, attempt, error, seconds) or seconds is None:
                    raise
                log_retry(self.runtime, context, error, seconds)
                pause(seconds)
                number += 1
                continue
            if isinstance(executed, SerializationError):  # no retry would change that
                record_failure(clock, attempt, executed)
                try:
                    raise executed
                finally:
                    del executed  # its traceback has this frame: without this the two would form a cycle
            data, result = executed
            if record_completion(clock, attempt, data):
                self._debug("completed")
                return result

    def _give_way(self, by: _RunsElsewhere | Limit) -> Blocked:
        if isinstance(by, Limit):
            log_limit(self.runtime, self.name, by)
        else:
            self.awaited = by.attempt
            self.patience = self.patience or self._be_patient()
        return Blocked(self, by if isinstance(by, Limit) else None)

    def is_run_elsewhere(self) -> bool:
        """Whether another process runs the step, for a call that has given way."""
        if not self.session.retain():
            return False  # the `for_each` has ended meanwhile, and what it used must not be opened again
        with self.session:
            is_run, seq = self.session.transact(
                lambda projection: ((), (self._other_runner(projection) is not None, projection.seq)),
                durable=False,
                fences=(),
            )
            if not is_run:
                self.session.sync(seq)  # here, so that no worker waits until the other's result is durable
            elif self.patience is not None:
                self.patience.look()
        return is_run

    def _begin(self, flight: InFlightStep) -> _Started | _Completed | _RunsElsewhere | Limit:
        """Record that an attempt starts, as soon as no other process and no limit is in the way."""
        backoff, was_settled = Backoff(), flight.is_settled
        while True:
            at = self.runtime.clock.now()
            flight.is_settled = False
            try:
                decided: _Decided = self.session.transact(
                    lambda projection: self._decide(projection, at, flight.attempt),  # noqa: B023 - called at once
                    durable=self.options.if_interrupted == "fail",
                )
            except (StoreError, DeadlockError):
                flight.is_settled = was_settled  # nothing was appended, or the store is dead in this process
                raise
            if isinstance(decided, _Started):
                return decided
            flight.is_settled = was_settled
            match decided:
                case _Completed(_, seq, _):
                    self.session.sync(seq)
                    return decided
                case _Refused(error, seq):
                    self.session.sync(seq)
                    if isinstance(error, StepFailedError) and isinstance(flight.error, Exception):
                        raise flight.error  # another thread of this process had it
                    raise error
                case _RunsElsewhere() | Limit() if self.gives_way:
                    return decided
                case _RunsElsewhere(attempt):
                    flight.attempt = attempt
                    backoff.rest()
                    refuse_interrupted()
                    self.patience = self.patience or self._be_patient()
                    self.patience.look()
                case Limit():
                    self._wait_until(decided)

    def _decide(self, projection: Projection, at: datetime, awaited: int) -> tuple[Sequence[Fact], _Decided]:
        """Decide whether the next attempt starts at the time *at*, after the caller waited for attempt *awaited*."""
        log = self.session.log
        same = projection.matching(self.name, self.idempotency_key, self.options.version)
        if same is not None and same.status is StepStatus.COMPLETED:
            if self._counts(same, at):
                return (), _Completed(same.result, same.seq, self.origin.changes_since(same))
            same = None
        if (other := self._other_runner(projection)) is not None:
            self._refuse_recursion(other.owner)
            return (), _RunsElsewhere(other.attempts)
        if same is not None:
            if same.error is not None and same.owner is None and 0 < awaited <= same.attempts:
                return (), _Refused(StepFailedError(self.name, same.error), same.seq)
            if same.status is StepStatus.RUNNING and self.options.if_interrupted == "fail":
                return (), _Refused(StepInterruptedError(self.name, same.attempts), same.seq)
        limit = projection.limit(self.name, self.options.limit_key)
        if limit is not None and limit.until > at:
            wait = projection.waits.get(self.name)
            if wait is not None and (wait.owner, wait.until, wait.key) == (log.process_id, limit.until, limit.key):
                return (), limit  # which is on record
            return [StepWaiting(at, self.name, log.process_id, limit.until, limit.key, self._item())], limit
        attempt = 1 if same is None else same.attempts + 1
        fact = self._start(at, attempt)
        dead = None if same is None or same.owner == log.process_id else same.owner
        return [fact], _Started(attempt, is_first=same is None, dead=dead)

    def _start(self, at: datetime, attempt: int) -> StepStarted:
        origin, options, scope = self.origin, self.options, self.scope
        around = innermost_attempt()
        while around is not None and around.has_ended:
            around = around.parent
        batch = None if scope.owner is None else scope.owner.batch
        is_of_batch = batch is not None and batch.function == origin.function.rpartition(".")[2]
        return StepStarted(
            at,
            self.name,
            attempt,
            self.session.log.process_id,
            self.idempotency_key,
            options.version,
            origin.code,
            origin.arguments or None,
            self._item(),
            options.retry.attempts,
            None if around is None else around.flight.name,
            None if is_of_batch else origin.function_beside(self.name),
            options.if_interrupted,
            self.timeout,
        )

    def _item(self) -> tuple[int, ...]:
        scope = self.scope
        return () if scope.item is None or scope.owner is None else scope.owner.item

    def _other_runner(self, projection: Projection) -> StepState | None:
        """The step as another process runs it; None if none does."""
        log, step = self.session.log, projection.steps.get(self.name)
        if step is None or step.owner is None or step.owner == log.process_id or not log.is_alive(step.owner):
            return None
        return step

    def _wait_until(self, limit: Limit) -> None:
        """Wait for the end of a limit.

        Raises:
            Limited: The `for_each` around it was stopped.
        """
        log_limit(self.runtime, self.name, limit)
        is_over = False
        try:
            while (seconds := (limit.until - self.runtime.clock.now()).total_seconds()) > 0:
                if self.scope.batch is not None and self.scope.batch.is_stopped:
                    raise Limited(limit.until, limit.key)
                sleep(min(seconds, LONGEST_NAP))
            is_over = True
        finally:
            if not is_over:
                end_waits([Blocked(self, limit)])

    def _execute(self, attempt: Attempt, context: StepContext) -> tuple[Json, Any] | SerializationError:
        """Run the body: its result as it is recorded and as it is read back, or why it cannot be recorded."""
        scope = self.scope
        self.owner = owner = LockOwner(current_owner(), context)
        inside = Scope(self.runtime, scope.runs, owner, context, scope.item, attempt, scope.fences, scope.batch)
        context_of_body = inside.context()
        note_step(scope.owner, is_replayed=False)
        if self.options.timeout is None:
            value = context_of_body.run(run_attempt, attempt, self.body)
        else:
            value = context_of_body.run(run_attempt_with_timeout, attempt, self.body, self.options.timeout)
        if owner.failures:
            settle(self.runtime, self._title(), owner)
        try:
            data, result = self.codec.round_trip(value, self._subject())
        except SerializationError as error:
            error.value = value
            return error
        if self.options.accept is not None:
            with unmasked():
                if not context_of_body.run(self.options.accept, self._load(data)):
                    raise StepRejectedError(self.name, result)
        return data, result

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
        except Exception as trouble:  # noqa: BLE001 - the step's own error is what counts
            add_note(error, f"the retry policy raised {type(trouble).__name__}: {message_of(trouble)}")
            return None

    def _refuse_recursion(self, owner: str | None = None) -> None:
        """Raise inside of the step's own body; with *owner*: if that is this process, by another path of the root."""
        for around in attempts_around():
            is_same = around.session.key == self.session.key if owner is None else around.session.is_process(owner)
            if is_same and around.flight.name == self.name:
                step = f"step {self.name!r}"
                raise DeadlockError((step, f"{step} called itself"), "call the plain function (.fn)")

    def _be_patient(self) -> Patience:
        who = f"workflow {self.runtime.workflow_id!r}: {current_owner()}"
        return Patience(who, f"step {self.name!r}", self._runner, self._record_wait)

    def _record_wait(self) -> None:
        """Put on record that the call waits for another process: that only informs, so that it may fail."""
        with suppress(Exception):
            detail: dict[str, Json] = {"step": self.name, "for": "process", "holder": self._runner().pid}
            if item := self._item():
                detail["item"] = list(item)
            event = EventAppended(self.runtime.clock.now(), "step.waiting", detail=detail)
            self.session.transact(lambda _: ([event], None), durable=False, fences=self.scope.fences)

    def _runner(self) -> ProcessInfo:
        owner = self.session.transact(lambda projection: ((), projection.owner(self.name)), durable=False, fences=())
        return ProcessInfo() if owner is None else self.session.log.process_info(owner)

    def _counts(self, step: StepState, at: datetime | None = None) -> bool:
        """Whether the recorded result of a completed step is the result of this call too, at a time, or now."""
        max_age = self.options.max_age
        if max_age is not None and (at or self.runtime.clock.now()) - step.updated_at > max_age:
            return False
        return self.options.on_change != "rerun" or not self.origin.changes_since(step)

    def _load_recorded(self, data: Json, changes: list[str]) -> Any:
        note_step(current_scope().owner, is_replayed=True)
        if changes and self.options.on_change == "warn":
            warn_of_changes(self.runtime, self.origin, self.name, changes)
        return self._load(data)

    def _load(self, data: Json) -> Any:
        return self.codec.load(data, self._subject())

    def _title(self, attempt: int = 1) -> str:
        return f"step {self.name!r}" if attempt == 1 else f"step {self.name!r} ({attempt} attempts)"

    def _debug(self, what: str) -> None:
        _log.debug("workflow %r: step %r %s", self.runtime.workflow_id, self.name, what)

    def _subject(self) -> str:
        return f"the result of step {self.name!r}"
