"""`@workflow.step`: a function whose calls are recorded."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from iso_orchestrator.checks import check_key
from iso_orchestrator.codec import ResultCodec, Unresolved
from iso_orchestrator.errors import NoActiveWorkflowError, SerializationError
from iso_orchestrator.runtime.context import current_scope
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.call import StepCall
from iso_orchestrator.steps.identity import Arguments, Parameters, Template, base_name, compile_template, is_constant
from iso_orchestrator.steps.options import StepOptions, check_callable
from iso_orchestrator.steps.origin import Origin, Texts, argument_text, code_of
from iso_orchestrator.steps.rendering import Unrenderable, render

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
First = TypeVar("First", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class _Takes(Protocol[First, Q, R_co]):
    """A function with a first argument: for type checkers, which tell methods by its type from static methods."""

    def __call__(self, first: First, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...


class Step(Generic[P, R]):
    """A function whose calls are steps. `workflow.step` and the free `step` make it.

    Args:
        fn: The plain function; or a class or static method, as `classmethod` and `staticmethod` make it.
        options: What holds for all its calls.
        runtime: That of the workflow whose `step` made it; None for the free `step`, whose calls belong to the
            workflow that is current then.

    Attributes:
        fn: The plain function.
        method_kind: `classmethod`, `staticmethod` or None.

    Raises:
        TypeError: *fn* is no plain function.
        StepNameError: *fn* has no name of its own, or a template names what is no parameter.
        DuplicateStepError: Another function of the workflow has the name.
    """

    fn: Callable[P, R]

    def __init__(self, fn: Callable[P, R], options: StepOptions, runtime: WorkflowRuntime | None = None) -> None:
        fn, self.method_kind = split_method(fn)
        self._plain = check_callable(fn, "a step")
        functools.update_wrapper(self, fn, updated=())  # not its attributes: they could hide a method
        self.fn = fn
        self._options = options
        self._timeout = options.timeout
        self._base = base_name(fn) if options.name is None else ""
        try:
            self._parameters = Parameters(fn, self._base, options.exclude)
        except ValueError as error:  # some builtins have no signature
            raise TypeError(f"{error}: wrap it in a function of your own, or use run_step()") from error
        self._make_name = self._compile(options.name, "a step's name")
        self._make_key = self._compile(options.idempotency_key, "an idempotency key")
        self._constant_name = self._base or (str(options.name).format() if is_constant(options.name) else None)
        self._function = str(getattr(fn, "__qualname__", fn))
        self._code = code_of(self._plain)
        self._runtime = runtime
        self._claimed_by: WorkflowRuntime | None = None
        self._codec: ResultCodec | None = None
        with suppress(Unresolved):  # the first call tries again
            self._codec = self._make_codec()
        if runtime is not None:
            self._claim(runtime)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the step, or return its recorded result."""
        result: R = self.prepare(args, kwargs).run()
        return result

    @property
    def __closure__(self) -> Any:
        """That of the function. `attrs` puts a class with slots in the place of the first one, for `super()` too."""
        return getattr(self.fn, "__closure__", None)

    def __reduce__(self) -> str:
        """Pickle by name: another process finds the step in its module."""
        return str(vars(self).get("__qualname__", self))  # a partial has no name: nothing is found

    def __repr__(self) -> str:
        return f"<step {self._constant_name or self._options.name or self.fn!r}>"

    @overload
    def __get__(self: _Takes[type[T], Q, R], instance: T | None, owner: type[T]) -> BoundStep[Q, R]: ...
    @overload
    def __get__(self, instance: None, owner: type) -> Step[P, R]: ...
    @overload
    def __get__(self: _Takes[T, Q, R], instance: T, owner: type[T]) -> BoundStep[Q, R]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Step[P, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind the step as a method, whose first argument is the instance, or the class of a class method."""
        step: Any = self
        leading = leading_arguments(self.method_kind, instance, owner)
        return BoundStep(step, *leading) if leading else self

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call the step on the workflow's threads.

        Returns:
            A future of its result.
        """
        call = self.prepare(args, kwargs)
        return call.runtime.submit(call.name, call.run)

    def step_name(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Compute the name that the record has for a call with these arguments."""
        return self._name(self._parameters.bind(args, kwargs))[0]

    def is_told_by_name(self, place: int) -> bool:
        """Whether the name tells all values of the positional argument at *place* apart, or is not to do so."""
        return self._make_name is None or self._parameters.excludes(place)

    def _claim(self, runtime: WorkflowRuntime) -> None:
        if self._constant_name is not None:
            runtime.claim(self._constant_name, self.fn)
        self._claimed_by = runtime

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        """Make a call with these arguments, to be run."""
        runtime = self._runtime or current_runtime()
        if runtime is not self._claimed_by:
            self._claim(runtime)
        arguments = self._parameters.bind(args, kwargs)
        name, unshown = self._name(arguments)
        return StepCall(
            runtime=runtime,
            name=name,
            idempotency_key=self._make_key(arguments) if self._make_key is not None else None,
            body=self._body(args, kwargs),
            codec=self._codec or self._result_codec(),
            origin=Origin(self._function, self._code, unshown),
            options=self._options,
            timeout=self._timeout,
        )

    def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        return functools.partial(self.fn, *args, **kwargs)

    def _compile(self, template: Template | None, what: str) -> Callable[[Arguments], str | None] | None:
        return None if template is None else compile_template(template, what, self._parameters)

    def _name(self, arguments: Arguments) -> tuple[str, Texts]:
        """Return the name of a call, and the arguments that it does not show, or may not show."""
        if self._make_name is None:
            return self._parameters.render(arguments)
        return check_key(self._make_name(arguments), "a step's name"), self._parameters.texts(arguments)

    def _make_codec(self) -> ResultCodec:
        return ResultCodec(return_annotation(self._plain), self._subject())

    def _result_codec(self) -> ResultCodec:
        try:
            self._codec = self._make_codec()
        except Unresolved as missing:
            raise _unresolved(self._subject(), missing) from missing
        return self._codec

    def _subject(self) -> str:
        return f"the result of {self._function}()"


class BoundStep(Generic[P, R]):
    """A step that is a method, bound to an instance."""

    def __init__(self, step: Step[Concatenate[Any, P], R], instance: object) -> None:
        self.fn = types.MethodType(step.fn, instance)
        functools.update_wrapper(self, self.fn, updated=())
        self._step = step
        self._instance = instance

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As `Step.__call__`."""
        return self._step(self._instance, *args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._step)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the instance, and by name the step."""
        return getattr, (self._instance, self.fn.__name__)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """As `Step.submit`."""
        return self._step.submit(self._instance, *args, **kwargs)

    def step_name(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """As `Step.step_name`."""
        return self._step.step_name(self._instance, *args, **kwargs)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        """As `Step.prepare`."""
        return self._step.prepare((self._instance, *args), kwargs)

    def is_told_by_name(self, place: int) -> bool:
        """As `Step.is_told_by_name`."""
        return self._step.is_told_by_name(place + 1)


def split_method(fn: Any) -> tuple[Any, type | None]:
    """Split a class or static method into its function and its kind; the kind of anything else is None."""
    return (fn.__func__, type(fn)) if isinstance(fn, classmethod | staticmethod) else (fn, None)


def leading_arguments(method_kind: type | None, instance: object, owner: type | None) -> tuple[object, ...]:
    """Return what a call through an instance or a class has before its own arguments."""
    if method_kind is classmethod:
        return (owner,)
    return () if instance is None or method_kind is staticmethod else (instance,)


def current_runtime() -> WorkflowRuntime:
    """Return the runtime of the current workflow.

    Raises:
        NoActiveWorkflowError: There is none.
    """
    runtime = current_scope().runtime
    if runtime is None:
        raise NoActiveWorkflowError("a free decorator's function")
    return runtime


def run_step(
    runtime: WorkflowRuntime,
    name: str,
    fn: Callable[..., R],
    args: tuple[Any, ...],
    idempotency_key: str | None,
    options: StepOptions,
) -> R:
    """Run ``fn(*args)`` as the step *name*, without a decorator."""
    plain = check_callable(fn, "a step")
    subject = f"the result of step {name!r:.80}"
    try:
        codec = ResultCodec(return_annotation(plain), subject)
    except Unresolved as missing:
        raise _unresolved(subject, missing) from missing
    call = StepCall(
        runtime=runtime,
        name=check_key(name, "a step's name"),
        idempotency_key=None if idempotency_key is None else check_key(idempotency_key, "an idempotency key"),
        body=functools.partial(fn, *args),
        codec=codec,
        origin=Origin(str(getattr(fn, "__qualname__", fn)), code_of(plain), _texts(args)),
        options=options,
        timeout=options.timeout,
    )
    result: R = call.run()
    return result


def _texts(args: tuple[Any, ...]) -> Texts:
    texts = {}
    for place, value in enumerate(args):
        with suppress(Unrenderable, RecursionError):
            texts[f"argument {place + 1}"] = argument_text(render(value), is_default=False)
    return texts


def _unresolved(subject: str, missing: Unresolved) -> SerializationError:
    return SerializationError(
        subject, "$", f"its annotation cannot be resolved ({missing}): define or import what it names, or leave it out"
    )


def return_annotation(plain: Any) -> Any:
    """Resolve the return annotation of an unwrapped function; `inspect.Signature.empty` where it has none.

    Raises:
        Unresolved: That fails, which the next call may change.
    """
    annotation = getattr(plain, "__annotations__", {}).get("return", inspect.Signature.empty)
    if annotation is inspect.Signature.empty:
        return annotation
    namespace = types.SimpleNamespace(__annotations__={"return": annotation})
    try:
        function = getattr(plain, "__func__", plain)
        closure = inspect.getclosurevars(function).nonlocals if isinstance(function, types.FunctionType) else {}
        names = getattr(function, "__globals__", {})
        return typing.get_type_hints(namespace, names, closure, include_extras=True)["return"]
    except Exception as error:
        raise Unresolved(str(error)) from error  # evaluating an annotation can raise anything
