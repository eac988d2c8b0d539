"""The options of a step: its retries, the types and documentation for callers, and the checked values."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import attrs

from iso_orchestrator.checks import check_choice, check_count, check_key, check_seconds, check_wait, validated_by
from iso_orchestrator.steps.identity import Template

F = TypeVar("F", bound=Callable[..., Any])

IfInterrupted: TypeAlias = Literal["rerun", "fail"]
OnChange: TypeAlias = Literal["warn", "rerun", "ignore"]


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
    check_count(value, "retry attempts (the first one counts too)")


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
        seconds = float(self.wait(_tenacity_state(error, attempt)))
        if not math.isfinite(seconds):
            raise ValueError(f"wait returned {seconds}, which is no number of seconds")
        return max(0.0, seconds)


def as_retry(retry: int | Retry) -> Retry:
    """Turn the option `retry`, which may be a number of attempts, into a `Retry`."""
    return retry if isinstance(retry, Retry) else Retry(attempts=retry)


class CallKeywords(TypedDict, total=False):
    """Options of every step.

    retry: Attempts of one call in all, or a `Retry`. Default: 1.
    timeout: Seconds for one attempt. Its thread cannot be killed: it is left running, and a retry may overlap it.
        Default: no limit.
    accept: A function of the result; where it returns False, the attempt counts as failed with `StepRejectedError`.
    if_interrupted: What to do where a dead run left the step half done: "rerun" it (the default), or "fail" with
        `StepInterruptedError`.
    version: A str or an int, part of the step's identity: a new version runs again.
    limit_key: The name of what is limited when the step raises `Limited`, or the command meets a limit; the limit holds
        for all steps with that name. Default: the agent's name, else the step alone is limited.
    max_limited: So many limits in a row are a failure, as an error is. Default: 20.
    on_change: What to do where a recorded result was made by other code of the function, or with another value of an
        argument that the step's name does not show, than now: "warn" once a function with `StepChangedWarning` (the
        default), "rerun" the step, or "ignore" it.
    max_age: Seconds, or a `timedelta`: an older result counts as none. Default: results do not age.
    """

    retry: int | Retry
    timeout: float | None
    accept: Callable[[Any], bool] | None
    if_interrupted: IfInterrupted
    version: str | int | None
    limit_key: str | None
    max_limited: int
    on_change: OnChange
    max_age: float | timedelta | None


class StepKeywords(CallKeywords, total=False):
    """Options of a decorated step.

    name: A format string over the arguments, or a function of them. Default: the function's qualified name and its
        arguments.
    idempotency_key: Likewise. With another key the step runs again, and its new result replaces the record.
    exclude: The names of parameters that are no part of the identity: ``("self", "api_key")``. Default: none.
    """

    name: Template | None
    idempotency_key: Template | None
    exclude: Collection[str]


def documented(*keywords: type) -> Callable[[F], F]:
    """Append the documentation of *keywords* to a function's, so that `help()` shows each option."""
    options = "\n".join(inspect.cleandoc(each.__doc__ or "").partition("\n\n")[2] for each in keywords)
    section = "Options:\n" + "\n".join(f"    {line}" for line in options.splitlines())

    def decorate(function: F) -> F:
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{section}\n"
        return function

    return decorate


def check_callable(fn: object, what: str) -> Any:
    """Raise where a call of *fn* would not run its body, else return what `unwrap_function` does.

    Raises:
        TypeError: *fn* is no function, or a coroutine or generator function.
    """
    if not callable(fn):
        raise TypeError(f"{what} must be a function, not {fn!r:.80}")
    plain = unwrap_function(fn)
    name = getattr(fn, "__qualname__", fn)
    if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError(f"{what} must be a plain function: {name} is async; wrap it in asyncio.run()")
    if inspect.isgeneratorfunction(plain):
        raise TypeError(
            f"{what} must be a plain function: {name} is a generator function, "
            "whose body would run outside of the record; return a list"
        )
    return plain


def unwrap_function(fn: Any) -> Any:
    """Find the function that has the code and the annotations of *fn*."""
    fn = inspect.unwrap(fn)
    while isinstance(fn, functools.partial):
        fn = inspect.unwrap(fn.func)
    if inspect.isroutine(fn) or isinstance(fn, type):
        return fn
    return getattr(fn, "__call__", fn)  # noqa: B004 - the method itself is looked at


def _version(value: str | int | None) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"version must be a str or an int, not {value!r}")
    return check_key(str(value), "version")


def _max_age(value: float | timedelta | None) -> timedelta | None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    check_seconds(seconds, "max_age")
    return value if isinstance(value, timedelta) or value is None else timedelta(seconds=value)


def _names(exclude: Collection[str]) -> tuple[str, ...]:
    is_collection = isinstance(exclude, Collection) and not isinstance(exclude, str)
    if not is_collection or not all(isinstance(name, str) for name in exclude):
        raise TypeError(f"exclude must be a collection of parameters' names, not {exclude!r:.80}")
    return tuple(exclude)


@attrs.frozen(kw_only=True)
class StepOptions:
    """The options of a step, checked; `StepKeywords` says what each one does."""

    name: Template | None = None
    idempotency_key: Template | None = None
    exclude: tuple[str, ...] = attrs.field(default=(), converter=_names)
    retry: Retry = attrs.field(default=Retry(attempts=1), converter=as_retry)
    timeout: float | None = attrs.field(default=None, validator=validated_by(check_seconds))
    accept: Callable[[Any], bool] | None = attrs.field(
        default=None, validator=attrs.validators.optional(validated_by(check_callable))
    )
    if_interrupted: IfInterrupted = attrs.field(default="rerun", validator=validated_by(check_choice, "rerun", "fail"))
    version: str | None = attrs.field(default=None, converter=_version)
    on_change: OnChange = attrs.field(default="warn", validator=validated_by(check_choice, "warn", "rerun", "ignore"))
    max_age: timedelta | None = attrs.field(default=None, converter=_max_age)
    limit_key: str | None = attrs.field(default=None, validator=attrs.validators.optional(validated_by(check_key)))
    max_limited: int = attrs.field(default=20, validator=validated_by(check_count))


DEFAULT_OPTIONS = StepOptions()  # checked once: that takes a third of the time of a recorded result


def _tenacity_state(error: Exception, attempt: int) -> object:
    from tenacity import Future, RetryCallState, Retrying

    state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    state.outcome = Future.construct(attempt, error, has_exception=True)
    return state
