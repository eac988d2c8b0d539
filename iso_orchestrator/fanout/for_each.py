"""`@workflow.for_each`: call a function for each of many items, several at a time."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Iterable, Sized
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypedDict, TypeVar, overload

import attrs

from iso_orchestrator.checks import check_choice, check_count, check_key, check_wait, validated_by
from iso_orchestrator.coordination.mutex_queue import MutexScope
from iso_orchestrator.errors import StepNameError
from iso_orchestrator.fanout.progress import reporter
from iso_orchestrator.fanout.scheduler import Scheduler
from iso_orchestrator.fanout.summary import ForEachSummary
from iso_orchestrator.runtime.reports import log_finishing
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.blocked import Blocked
from iso_orchestrator.steps.identity import Parameters, compile_template
from iso_orchestrator.steps.options import check_callable
from iso_orchestrator.steps.rendering import Unrenderable, digest, render
from iso_orchestrator.steps.step import BoundStep, Step, current_runtime, leading_arguments, split_method
from iso_orchestrator.system.interrupts import at_work, masked

_SHOWN_OF_ITEM = 100  # characters of an item in an error

Item = TypeVar("Item")
First = TypeVar("First", contravariant=True)
Second = TypeVar("Second", contravariant=True)
P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
R = TypeVar("R")


MutexKey: TypeAlias = str | Callable[[Any], str | None] | None


class ForEachKeywords(TypedDict, total=False):
    """Options of a `for_each`.

    max_parallel: Items at a time, at most. Default: 1, which runs them in the caller's thread if no executor is given.
    mutex_key: A format string over the function's arguments, or a function of the item; in `run_for_each` a str is
        the key itself. Items with one key never overlap, in any process, and run in order among themselves.
        Default, and where the function returns None: no key.
    mutex_scope: "workflow" (the default), or "store": one key for all workflows of the root.
    mutex_timeout: Seconds to wait for a key that another process holds. Default: no limit.
    stop_on_error: True (the default): after the first error start nothing more, let running items finish, and raise
        the error with a note that names the item's index. False: run all items, and raise none of their errors.
    executor: An executor of threads. Default: a `ThreadPoolExecutor` for this call, or the caller's thread.
    progress: None (the default) and a str, which is the label: a line on a terminal, a cell in a notebook, else lines
        of the log at INFO, one a minute and at failures. True: those to standard error. False: nothing.
    """

    max_parallel: int
    mutex_key: MutexKey
    mutex_scope: MutexScope
    mutex_timeout: float | None
    stop_on_error: bool
    executor: Executor | None
    progress: bool | str | None


def _check_mutex_key(_: object, __: object, value: MutexKey) -> None:
    if isinstance(value, str):
        check_key(value, "a mutex key")
    elif value is not None and not callable(value):
        raise TypeError(f"mutex_key must be a str, a function of the item or None, not {value!r}")


def _check_stop_on_error(_: object, __: object, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"stop_on_error must be a bool, not {value!r}")


def _check_executor(_: object, __: object, value: Executor | None) -> None:
    if value is None:
        return
    if not isinstance(value, Executor):
        raise TypeError(f"executor must be a concurrent.futures executor of threads, not {value!r}")
    # By name: to import ProcessPoolExecutor takes 15 ms, and Python 3.11 has no InterpreterPoolExecutor, which is a
    # subclass of ThreadPoolExecutor.
    if any(kind.__name__ in ("ProcessPoolExecutor", "InterpreterPoolExecutor") for kind in type(value).__mro__):
        raise TypeError(
            f"executor must be one of threads, not {type(value).__name__}: what it runs could not use the workflow; "
            "start several scripts on one workflow id to use several processes"
        )


def _check_progress(_: object, __: object, value: bool | str | None) -> None:
    if value is not None and not isinstance(value, bool | str):
        raise TypeError(f"progress must be a bool, a str or None, not {value!r}")


@attrs.frozen(kw_only=True)
class ForEachOptions:
    """The options of a `for_each`, checked; `ForEachKeywords` says what each one does."""

    max_parallel: int = attrs.field(default=1, validator=validated_by(check_count))
    mutex_key: MutexKey = attrs.field(default=None, validator=_check_mutex_key)
    mutex_scope: MutexScope = attrs.field(default="workflow", validator=validated_by(check_choice, "workflow", "store"))
    mutex_timeout: float | None = attrs.field(default=None, validator=validated_by(check_wait))
    stop_on_error: bool = attrs.field(default=True, validator=_check_stop_on_error)
    executor: Executor | None = attrs.field(default=None, validator=_check_executor)
    progress: bool | str | None = attrs.field(default=None, validator=_check_progress)


class _TakesFirst(Protocol[First, Second, Q, R]):
    """What a `for_each` over a method is, for type checkers: the first of its arguments is no item."""

    def __call__(
        self, items: Iterable[First], second: Second, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> ForEachSummary[R]: ...


class ForEach(Generic[Item, P, R]):
    """A function that is called for each of many items. Made by `workflow.for_each` and by the free `for_each`.

    Attributes:
        fn: The function of one item.
    """

    fn: Callable[Concatenate[Item, P], R]

    def __init__(
        self,
        fn: Callable[Concatenate[Item, P], R],
        options: ForEachOptions,
        runtime: WorkflowRuntime | None = None,
    ) -> None:
        fn, method_kind = split_method(fn)
        check_callable(fn, "what for_each calls")
        functools.update_wrapper(self, fn, updated=())  # not its attributes: they could hide a method
        self.fn = fn
        self._method_kind = method_kind or getattr(fn, "method_kind", None)
        self._leading: tuple[object, ...] = ()  # the instance of a method, or the class of a class method
        self._runtime = runtime
        self._options = options
        self._name = getattr(fn, "__name__", "for_each")
        self._key_of = _key_function(fn, self._name, options.mutex_key)
        with suppress(ValueError, TypeError):  # some builtins have none, and an annotation may be anything
            self.__signature__ = _signature(fn, self._leading)

    @overload
    def __get__(
        self: _TakesFirst[type[T], Second, Q, R], instance: T | None, owner: type[T]
    ) -> ForEach[Second, Q, R]: ...
    @overload
    def __get__(self, instance: None, owner: type) -> ForEach[Item, P, R]: ...
    @overload
    def __get__(self: _TakesFirst[T, Second, Q, R], instance: T, owner: type[T]) -> ForEach[Second, Q, R]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> ForEach[Item, P, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind the function as a method, whose items come after the instance, or the class of a class method."""
        leading = leading_arguments(self._method_kind, instance, owner)
        if not leading or isinstance(self.fn, BoundStep):
            return self
        bound = object.__new__(type(self))  # not `copy`, which asks for the name in the module
        vars(bound).update(vars(self))
        bound._leading = leading
        with suppress(ValueError, TypeError):
            bound.__signature__ = _signature(self.fn, leading)
        return bound

    @property
    def __closure__(self) -> Any:
        """As `Step.__closure__`."""
        return getattr(self.fn, "__closure__", None)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle by name, or as a method of its instance: another process finds it in its module."""
        return (getattr, (self._leading[0], self._name)) if self._leading else str(vars(self).get("__qualname__", self))

    def __repr__(self) -> str:
        return f"<for_each {self._name}>"

    def __call__(self, items: Iterable[Item], *shared: P.args, **named: P.kwargs) -> ForEachSummary[R]:
        """Call the function for each of *items*, with the arguments *shared* and *named* after it.

        Raises:
            Exception: As `Workflow.for_each` says.
        """
        runtime, options = self._runtime or current_runtime(), self._options
        total = len(items) if isinstance(items, Sized) else None
        leading = self._leading
        with masked(), at_work(), runtime.acquire() as session, ExitStack() as stack:
            session.ensure_open()
            progress = reporter(options.progress, runtime, self._name, total, options.max_parallel)
            stack.callback(progress.close)
            executor = options.executor
            if executor is None and options.max_parallel > 1:
                executor = ThreadPoolExecutor(options.max_parallel, "iso-orchestrator for_each")
                stack.callback(executor.shutdown, wait=False)
            scheduler = Scheduler(
                runtime,
                self._work(lambda item: (*leading, item, *shared), named),
                on_interrupt=lambda items: log_finishing(
                    "item", items, lambda item: self._name_of(item, (*leading, item, *shared), named)
                ),
                key_of=lambda item: self._key_of(item, (*leading, item, *shared), named),
                options=options,
                executor=executor,
                progress=progress,
                name=self._name,
            )
            return ForEachSummary(scheduler.run(items, total), _name=self._name)

    def _name_of(self, item: Item, args: tuple[Any, ...], named: dict[str, Any]) -> str:
        """What to call an item in a message: as its step, if that is possible."""
        step: Any = self.fn
        try:
            name = step.step_name(*args, **named) if isinstance(step, Step | BoundStep) else ""
        except Exception:  # noqa: BLE001 - the item itself raises it
            name = ""
        return str(name or f"{self._name}({reprlib.repr(item)})")[:_SHOWN_OF_ITEM]

    def _work(
        self, arguments: Callable[[Item], tuple[Any, ...]], named: dict[str, Any]
    ) -> Callable[[Item], R | Blocked]:
        """A function that does the work of one item."""
        step: Any = self.fn
        if not isinstance(step, Step | BoundStep):
            return lambda item: step(*arguments(item), **named)
        names = None if step.is_told_by_name(len(self._leading)) else _StepNames()

        def work(item: Item) -> R | Blocked:
            call = step.prepare(arguments(item), named)
            if names is not None:
                names.check(call.name, item)
            call.gives_way = True
            result: R | Blocked = call.run()
            return result

        return work


class _StepNames:
    """Which item of a batch has which name of a step, so that no item gets the result of another one."""

    def __init__(self) -> None:
        self._items: dict[str, tuple[str, object]] = {}

    def check(self, name: str, item: object) -> None:
        """Raise where a different item has the name already.

        Raises:
            StepNameError: The name is a different item's.
        """
        try:
            text = render(item)
            mine: tuple[str, object] = text[:_SHOWN_OF_ITEM], digest(text)
        except (Unrenderable, RecursionError):
            mine = reprlib.repr(item)[:_SHOWN_OF_ITEM], item
        first = self._items.setdefault(name, mine)
        if first is not mine and not _is_same(first[1], mine[1]):
            raise StepNameError(
                name,
                f"two different items of the for_each have this name: {first[0]} and {mine[0]}; "
                "give a name= that tells them apart",
            )


def _is_same(one: object, other: object) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:  # noqa: BLE001 - arrays have no single answer, and classes of users raise any error
        return False


def _signature(fn: Callable[..., Any], leading: tuple[object, ...]) -> inspect.Signature:
    """The signature of a `for_each` over *fn*: items in place of the item, and a summary of the results."""
    signature = inspect.signature(fn)
    item, *shared = list(signature.parameters.values())[len(leading) :] or [_ITEM]
    items = inspect.Parameter("items", inspect.Parameter.POSITIONAL_ONLY, annotation=_of(Iterable, item.annotation))
    result = _of(ForEachSummary, signature.return_annotation)
    return signature.replace(parameters=[items, *shared], return_annotation=result)


def _of(generic: Any, annotation: Any) -> Any:
    if annotation is inspect.Signature.empty:
        return generic
    return f"{generic.__name__}[{annotation}]" if isinstance(annotation, str) else generic[annotation]


_ITEM = inspect.Parameter("item", inspect.Parameter.POSITIONAL_ONLY)


def run_for_each(
    runtime: WorkflowRuntime, items: Iterable[Item], fn: Callable[[Item], R], options: ForEachOptions
) -> ForEachSummary[R]:
    """Call *fn* for each of *items*. A str as `mutex_key` is the key itself, and no format string."""
    key = options.mutex_key
    if isinstance(key, str):
        options = attrs.evolve(options, mutex_key=lambda _: key)
    return ForEach(fn, options, runtime)(items)


def _key_function(
    fn: Callable[..., Any], name: str, mutex_key: MutexKey
) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], str | None]:
    """A function from an item, and the arguments of the function of one item, to the item's key."""
    if mutex_key is None:
        return lambda *_: None
    if isinstance(mutex_key, str):
        parameters = Parameters(fn, name)
        fill = compile_template(mutex_key, "a mutex key", parameters)
        return lambda _, args, kwargs: fill(parameters.bind(args, kwargs))

    def key_of(item: Any, *_: object) -> str | None:
        key = mutex_key(item)
        return None if key is None else check_key(key, "a mutex key")

    return key_of
