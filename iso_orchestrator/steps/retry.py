"""How often a step is tried, and when again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.checks import check_wait

__all__ = ["Retry", "RetryContext", "as_retry"]


@attrs.frozen
class RetryContext:
    """What `should_retry` knows of the attempt that failed; `attempt` counts from 1 in each call."""

    step: str
    attempt: int
    max_attempts: int


WaitStrategy: TypeAlias = Callable[[Any], float]


def _check_attempts(_: object, __: object, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"retry attempts must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"retry attempts counts all attempts, the first among them: at least 1, not {value}")


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
    """When a step that failed is tried again.

    Args:
        attempts: All attempts of one call, the first among them.
        on: An exception class or a tuple of them; other errors are not retried.
        should_retry: Asked besides *on*, with the error and a `RetryContext`.
        wait: Seconds between attempts, or any tenacity wait strategy (needs the extra `retry`).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: attempts is less than 1, or wait less than 0.

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
        """Whether there is to be another attempt after *error*."""
        if context.attempt >= self.attempts or not isinstance(error, Exception) or not isinstance(error, self.on):
            return False
        return self.should_retry is None or bool(self.should_retry(error, context))

    def pause(self, error: Exception, attempt: int) -> float:
        """Seconds until the attempt after number *attempt*."""
        if not callable(self.wait):
            return self.wait
        return max(0.0, float(self.wait(_tenacity_state(error, attempt))))


def as_retry(retry: int | Retry) -> Retry:
    """A `Retry` of an option that may be a number of attempts."""
    return retry if isinstance(retry, Retry) else Retry(attempts=retry)


def _tenacity_state(error: Exception, attempt: int) -> object:
    from tenacity import Future, RetryCallState, Retrying

    state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    state.outcome = Future.construct(attempt, error, has_exception=True)
    return state
