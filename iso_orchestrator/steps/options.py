"""The options of a step: their types and documentation for callers, and their checked values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import attrs

from iso_orchestrator.checks import check_key, check_seconds
from iso_orchestrator.steps.identity import Template
from iso_orchestrator.steps.retry import Retry, as_retry

F = TypeVar("F", bound=Callable[..., Any])

IfInterrupted: TypeAlias = Literal["rerun", "fail"]


class CallKeywords(TypedDict, total=False):
    """Options of every step.

    retry: Attempts of one call in all, or a `Retry`. Default: 1.
    timeout: Seconds for one attempt. Its thread cannot be killed: it is left running, and a retry may overlap it.
        Default: no limit.
    accept: A function of the result; where it returns False, the attempt counts as failed with `StepRejectedError`.
    if_interrupted: What to do where a dead run left the step half done: "rerun" it (the default), or "fail" with
        `StepInterruptedError`.
    version: A str or an int, part of the step's identity: a new version runs again.
    """

    retry: int | Retry
    timeout: float | None
    accept: Callable[[Any], bool] | None
    if_interrupted: IfInterrupted
    version: str | int | None


class StepKeywords(CallKeywords, total=False):
    """Options of a decorated step.

    name: A format string over the arguments, or a function of them. Default: the function's qualified name and its
        arguments.
    idempotency_key: Likewise. With another key the step runs again, and its new result replaces the record.
    """

    name: Template | None
    idempotency_key: Template | None


def documented(*keywords: type) -> Callable[[F], F]:
    """Append the documentation of *keywords* to a function's, so that `help()` shows each option."""
    options = "\n".join(inspect.cleandoc(each.__doc__ or "").partition("\n\n")[2] for each in keywords)
    section = "Options:\n" + "\n".join(f"    {line}" for line in options.splitlines())

    def decorate(function: F) -> F:
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{section}\n"
        return function

    return decorate


def validate_seconds(_: object, field: attrs.Attribute[Any], value: float | None) -> None:
    """Check an option in seconds, as an attrs validator."""
    check_seconds(value, field.name)


def _check_accept(_: object, __: object, value: Any) -> None:
    if value is not None:
        check_callable(value, "accept")


def _check_if_interrupted(_: object, __: object, value: IfInterrupted) -> None:
    if value not in ("rerun", "fail"):
        raise ValueError(f'if_interrupted is "rerun" or "fail", not {value!r}')


def _version(value: str | int | None) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"version must be a str or an int, not {value!r}")
    return check_key(str(value), "version")


@attrs.frozen(kw_only=True)
class StepOptions:
    """The options of a step, checked; `StepKeywords` says what each one does."""

    name: Template | None = None
    idempotency_key: Template | None = None
    retry: Retry = attrs.field(default=Retry(attempts=1), converter=as_retry)
    timeout: float | None = attrs.field(default=None, validator=validate_seconds)
    accept: Callable[[Any], bool] | None = attrs.field(default=None, validator=_check_accept)
    if_interrupted: IfInterrupted = attrs.field(default="rerun", validator=_check_if_interrupted)
    version: str | None = attrs.field(default=None, converter=_version)
    limit_key: str | None = attrs.field(default=None, init=False)  # an option of commands alone


def check_callable(fn: object, what: str) -> None:
    """Raise where a call of *fn* would not run its body.

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


def unwrap_function(fn: Any) -> Any:
    """Find the function that has the code and the annotations of *fn*."""
    fn = inspect.unwrap(fn)
    while isinstance(fn, functools.partial):
        fn = inspect.unwrap(fn.func)
    if inspect.isroutine(fn) or isinstance(fn, type):
        return fn
    return getattr(fn, "__call__", fn)  # noqa: B004 - the method itself is looked at
