"""`@workflow.step`: a function whose calls are recorded."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypedDict, TypeVar, overload

from iso_orchestrator.checks import check_key, check_seconds
from iso_orchestrator.codec import ResultCodec
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.call import IfInterrupted, StepCall, StepOptions
from iso_orchestrator.steps.identity import Arguments, Parameters, Template, base_name, compile_template, is_constant
from iso_orchestrator.steps.retry import Retry, as_retry

__all__ = [
    "UNRESOLVED",
    "BoundStep",
    "Step",
    "StepKeywords",
    "check_callable",
    "return_annotation",
    "run_step",
    "step_options",
]

if TYPE_CHECKING:
    from concurrent.futures import Future

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


class StepKeywords(TypedDict, total=False):
    """The options of `step`, for type checkers."""

    name: Template | None
    idempotency_key: Template | None
    retry: int | Retry
    timeout: float | None
    accept: Callable[[Any], bool] | None
    if_interrupted: IfInterrupted
    version: str | int | None


class Step(Generic[P, R]):
    """A function whose calls are steps. Made by `workflow.step` and by the free `step`.

    Attributes:
        fn: The plain function.
    """

    fn: Callable[P, R]

    def __init__(
        self,
        fn: Callable[P, R],
        resolve: Callable[[], WorkflowRuntime],
        options: StepOptions,
        name: Template | None,
        idempotency_key: Template | None,
    ) -> None:
        check_callable(fn, "a step")
        functools.update_wrapper(self, fn, updated=())  # not its attributes: they could hide a method
        self.fn = fn
        self._resolve = resolve
        self._options = options
        self._base = base_name(fn) if name is None else ""
        self._parameters = _parameters(fn, self._base)
        self._make_name = None if name is None else compile_template(name, "a step's name", self._parameters)
        self._make_key = (
            None
            if idempotency_key is None
            else compile_template(idempotency_key, "an idempotency key", self._parameters)
        )
        self._claimed = self._base or (str(name).format() if is_constant(name) else None)
        self._claimed_by: WorkflowRuntime | None = None
        self._codec: ResultCodec | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The step's recorded result, or a new one."""
        result: R = self._claimed_call(args, kwargs).run()
        return result

    @overload
    def __get__(self, instance: None, owner: type) -> Step[P, R]: ...
    @overload
    def __get__(self: Step[Concatenate[Any, Q], R], instance: object, owner: type) -> BoundStep[Q, R]: ...
    def __get__(self, instance: object, owner: type) -> Any:
        """As a method, whose instance is the first argument."""
        step: Any = self
        return self if instance is None else BoundStep(step, instance)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call the step on the workflow's threads."""
        call = self._claimed_call(args, kwargs)
        return call.runtime.submit(call.run)

    def step_name(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """What that call is called in the record."""
        return self._name(self._parameters.bind(args, kwargs))

    def claim(self, runtime: WorkflowRuntime) -> None:
        """Take the name for this function.

        Raises:
            DuplicateStepError: Another function has it.
        """
        if self._claimed is not None:
            runtime.claim(self._claimed, self.fn)
        self._claimed_by = runtime

    def _claimed_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        runtime = self._resolve()
        if runtime is not self._claimed_by:
            self.claim(runtime)
        arguments = self._parameters.bind(args, kwargs)
        return StepCall(
            runtime=runtime,
            name=self._name(arguments),
            idempotency_key=self._make_key(arguments) if self._make_key is not None else None,
            body=self._body(args, kwargs),
            codec=self._codec or self._result_codec(),
            options=self._options,
        )

    def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        return functools.partial(self.fn, *args, **kwargs)

    def _name(self, arguments: Arguments) -> str:
        if self._make_name is None:
            return self._parameters.render(arguments)
        return check_key(self._make_name(arguments), "a step's name")

    def _result_codec(self) -> ResultCodec:
        annotation = return_annotation(self.fn)
        if annotation is UNRESOLVED:
            return ResultCodec(inspect.Signature.empty)  # it does not resolve: perhaps at the next call
        self._codec = ResultCodec(annotation)
        return self._codec


class BoundStep(Generic[P, R]):
    """A step that is a method, of one instance."""

    def __init__(self, step: Step[Concatenate[Any, P], R], instance: object) -> None:
        functools.update_wrapper(self, step, updated=())
        self.fn = types.MethodType(step.fn, instance)
        self._step = step
        self._instance = instance

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As `Step.__call__`."""
        return self._step(self._instance, *args, **kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """As `Step.submit`."""
        return self._step.submit(self._instance, *args, **kwargs)

    def step_name(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """As `Step.step_name`."""
        return self._step.step_name(self._instance, *args, **kwargs)


def run_step(
    runtime: WorkflowRuntime,
    name: str,
    fn: Callable[..., R],
    args: tuple[Any, ...],
    idempotency_key: str | None,
    options: StepOptions,
) -> R:
    """Run one step without a decorator."""
    check_callable(fn, "a step")
    annotation = return_annotation(fn)
    call = StepCall(
        runtime=runtime,
        name=check_key(name, "a step's name"),
        idempotency_key=None if idempotency_key is None else check_key(idempotency_key, "an idempotency key"),
        body=functools.partial(fn, *args),
        codec=ResultCodec(inspect.Signature.empty if annotation is UNRESOLVED else annotation),
        options=options,
    )
    result: R = call.run()
    return result


def step_options(
    retry: int | Retry,
    timeout: float | None,
    accept: Callable[[Any], bool] | None,
    if_interrupted: IfInterrupted,
    version: str | int | None,
) -> StepOptions:
    """The options of a step, checked."""
    check_seconds(timeout, "timeout")
    if accept is not None:
        check_callable(accept, "accept")
    if if_interrupted not in ("rerun", "fail"):
        raise ValueError(f'if_interrupted is "rerun" or "fail", not {if_interrupted!r}')
    if version is not None and (isinstance(version, bool) or not isinstance(version, str | int)):
        raise TypeError(f"version must be a str or an int, not {version!r}")
    return StepOptions(
        as_retry(retry),
        timeout,
        accept,
        if_interrupted,
        None if version is None else check_key(str(version), "version"),
    )


def check_callable(fn: object, what: str) -> None:
    """Raise where calling *fn* would not run it.

    Raises:
        TypeError: It is no function, or a coroutine or generator function.
    """
    if not callable(fn):
        raise TypeError(f"{what} must be a function, not {fn!r:.80}")
    plain = _plain(fn)
    if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError(f"{what} must be a plain function: {_name_of(fn)} is async; wrap it in asyncio.run()")
    if inspect.isgeneratorfunction(plain):
        raise TypeError(
            f"{what} must be a plain function: {_name_of(fn)} is a generator function, "
            "whose body would run outside of the record; return a list"
        )


def _parameters(fn: Callable[..., object], base: str) -> Parameters:
    try:
        return Parameters(fn, base)
    except ValueError as error:  # some builtins have no signature
        raise TypeError(f"{error}: wrap it in a function of your own, or use run_step()") from error


def _name_of(fn: object) -> str:
    return str(getattr(fn, "__qualname__", fn))


def _plain(fn: Any) -> Any:
    """The function that has the code and the annotations of *fn*."""
    fn = inspect.unwrap(fn)
    while isinstance(fn, functools.partial):
        fn = inspect.unwrap(fn.func)
    if inspect.isroutine(fn) or isinstance(fn, type):
        return fn
    return getattr(fn, "__call__", fn)  # noqa: B004 - the method itself is looked at


def return_annotation(fn: Callable[..., object]) -> Any:
    """The resolved return annotation; `UNRESOLVED` where it does not resolve, or not yet."""
    plain = _plain(fn)
    annotation = getattr(plain, "__annotations__", {}).get("return", inspect.Signature.empty)
    if annotation is inspect.Signature.empty:
        return annotation
    namespace = types.SimpleNamespace(__annotations__={"return": annotation})
    try:
        function = getattr(plain, "__func__", plain)
        closure = inspect.getclosurevars(function).nonlocals if isinstance(function, types.FunctionType) else {}
        names = getattr(function, "__globals__", {})
        return typing.get_type_hints(namespace, names, closure, include_extras=True)["return"]
    except Exception:  # noqa: BLE001 - evaluating an annotation can raise anything
        return UNRESOLVED


UNRESOLVED: Any = object()
