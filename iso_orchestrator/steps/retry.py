"""Retries: which failures of a step are tried again, how often and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.checks import check_wait


@attrs.frozen
class RetryContext:
    """The attempt that failed, for `should_retry`.

    Attributes:
        step: The step's name.
        attempt: The number of the attempt, from 1 in each call.
        max_attempts: The attempts of one call, at most.
    """

    step: str
    attempt: int
    max_attempts: int


WaitStrategy: TypeAlias = Callable[[Any], float]


def _check_attempts(_: object, __: object, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"retry attempts must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"retry attempts must be at least 1, since it counts the first attempt too; not {value}")


def _check_on(_: object, __: object, value: Any) -> None:
    kinds = value if isinstance(value, tuple) else (value,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise TypeError(f"Retry(on=...) takes an Exception class or a tuple of them, not {value!r}")


def _check_wait(_: object, __: object, value: Any) -> None:
    if not callable(value) and check_wait(value, "Retry(wait=...)") is None:
        raise TypeError("Retry(wait=...) takes seconds or a tenacity wait strategy, not None")


def _check_should_retry(_: object, __: object, value: Any) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"Retry(should_retry=...) takes a function of the error and a RetryContext, not {value!r}")


@attrs.frozen
class Retry:
    """A rule for when a failed step is tried again.

    Args:
        attempts: Attempts of one call in all, including the first.
        on: An exception class or a tuple of them. Other errors are not retried.
        should_retry: A function of the error and a `RetryContext`. Where it returns False, an error that *on* names
            is not retried either.
        wait: Seconds between attempts, or any tenacity wait strategy (needs the extra `retry`).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: *attempts* is less than 1, or *wait* less than 0.

    Example:
        >>> Retry(attempts=3, on=(TimeoutError, ConnectionError), wait=1.5).attempts
        3
    """

    attempts: int = attrs.field(default=3, validator=_check_attempts)
    on: type[Exception] | tuple[type[Exception], ...] = attrs.field(default=Exception, validator=_check_on)
    should_retry: Callable[[Exception, RetryContext], bool] | None = attrs.field(
        default=None, validator=_check_should_retry
    )
    wait: float | WaitStrategy = attrs.field(default=0.0, validator=_check_wait)

    def wants(self, error: BaseException, context: RetryContext) -> bool:
        """Tell whether another attempt follows *error*."""
        if context.attempt >= self.attempts or not isinstance(error, Exception) or not isinstance(error, self.on):
            return False
        return self.should_retry is None or bool(self.should_retry(error, context))

    def pause(self, error: Exception, attempt: int) -> float:
        """Return the seconds between attempt number *attempt*, which failed with *error*, and the next."""
        if not callable(self.wait):
            return self.wait
        return max(0.0, float(self.wait(_tenacity_state(error, attempt))))


def as_retry(retry: int | Retry) -> Retry:
    """Turn the option `retry`, which may be a number of attempts, into a `Retry`."""
    return retry if isinstance(retry, Retry) else Retry(attempts=retry)


def _tenacity_state(error: Exception, attempt: int) -> object:
    from tenacity import Future, RetryCallState, Retrying

    state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    state.outcome = Future.construct(attempt, error, has_exception=True)
    return state
