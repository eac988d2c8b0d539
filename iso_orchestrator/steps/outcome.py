"""The outcome of an attempt on record: it completed, failed, or met a usage limit.

Nothing is recorded where another attempt has taken over the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from iso_orchestrator.codec import updated_state
from iso_orchestrator.errors import LeaseLostError, Limited, StoreError
from iso_orchestrator.notes import add_note, message_of
from iso_orchestrator.record.facts import Fact, StepCompleted, StepFailed, StepLimited
from iso_orchestrator.record.model import ABSENT, ErrorInfo, Json, truncate_to_ms
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.runtime.context import Attempt
from iso_orchestrator.steps.blocked import end_of_limit, give_up
from iso_orchestrator.steps.options import StepOptions
from iso_orchestrator.system.clock import Clock
from iso_orchestrator.system.interrupts import unmasked

_LONGEST_PAUSE = 1e9  # seconds; a retry policy may say more, and a time on record has an end


def record_completion(clock: Clock, attempt: Attempt, data: Json) -> bool:
    """Record that a step completed, with *data* as its result; False where another attempt has taken it over."""
    at, name = clock.now(), attempt.flight.name
    attempt.is_recorded = True

    def decide(projection: Projection) -> tuple[Sequence[Fact], bool]:
        if not _is_current(attempt, projection):
            return (), False
        state = projection.state
        for update in attempt.updates:
            with unmasked(is_last=True):
                state = updated_state(update, state)
        return [StepCompleted(at, name, data, state if attempt.updates else ABSENT, attempt.usage)], True

    try:
        is_recorded = attempt.session.transact(decide)
    except LeaseLostError:
        raise
    except StoreError as error:
        raise StoreError(f"step {name!r} succeeded, and its result could not be recorded: {error}") from error
    except BaseException as error:  # an update of the state raised, or Ctrl-C came
        record_failure(clock, attempt, error)
        raise
    attempt.flight.is_settled = is_recorded
    return is_recorded


def record_failure(clock: Clock, attempt: Attempt, error: BaseException, pause: float | None = None) -> bool:
    """Record that an attempt failed; whether that could be done. Never hides *error*.

    Args:
        clock: The workflow's.
        attempt: The attempt.
        error: Why it failed.
        pause: Seconds until the next attempt; None: no attempt follows.
    """
    retrying = pause is not None
    try:
        at = clock.now()
        retry_at = at + timedelta(seconds=min(pause, _LONGEST_PAUSE)) if pause else None
        fact = StepFailed(at, attempt.flight.name, ErrorInfo.of(error), retrying, retry_at, attempt.usage)
        attempt.session.transact(
            lambda projection: ([fact] if _is_current(attempt, projection) else [], None), durable=not retrying
        )
    except Exception as trouble:  # noqa: BLE001 - the step's own error is what counts
        if not isinstance(error, LeaseLostError):
            add_note(error, f"the failure of step {attempt.flight.name!r} was not recorded: {message_of(trouble)}")
        return False
    if not retrying:
        attempt.flight.is_settled, attempt.flight.error = True, error
    return True


def record_limit(clock: Clock, attempt: Attempt, limit: Limited, options: StepOptions) -> bool:
    """Record that an attempt met a limit; False if that is a failure: it is over already, or one too many."""
    # Rounded up to a whole millisecond, as records have them: rounded down, the limit would end too early.
    at, named = clock.now(), truncate_to_ms(limit.until + timedelta(microseconds=999))
    if named <= at:
        return False
    name, most = attempt.flight.name, options.max_limited

    def decide(projection: Projection) -> tuple[Sequence[Fact], bool]:
        if not _is_current(attempt, projection):
            return (), True
        before = projection.steps[name].limited
        if before + 1 >= most:
            return (), False
        until = end_of_limit(at, named, before)
        return [StepLimited(at, name, until, limit.key or options.limit_key, attempt.usage)], True

    is_recorded = attempt.session.transact(decide)
    if not is_recorded:
        give_up(limit, most, options.limit_key)
    return is_recorded


def _is_current(attempt: Attempt, projection: Projection) -> bool:
    step = projection.steps.get(attempt.flight.name)
    return step is not None and step.attempts == attempt.number and step.owner == attempt.session.log.process_id
