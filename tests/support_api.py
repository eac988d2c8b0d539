"""The public API as its signatures declare it. Tests go through it: a new method or option needs no edit there."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, get_args, get_origin

import attrs
import pytest

import iso_orchestrator
from iso_orchestrator import Workflow, WorkflowStatus, agents
from iso_orchestrator.commands import step as commands
from iso_orchestrator.views import notebook

METHODS: dict[str, Callable[..., Any]] = {
    name: value for name, value in inspect.getmembers(Workflow, inspect.isfunction) if not name.startswith("_")
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(iso_orchestrator, name) for name in iso_orchestrator.__all__ if name.islower()
}


def never(*_: object) -> Any:
    """A body that must not run."""
    pytest.fail("it ran")


# A valid argument for each type that an API's required parameter has.
_EXAMPLES: dict[Any, Any] = {
    str: "some",
    int: 1,
    float: 1.0,
    timedelta: timedelta(seconds=1),
    bool: True,
    Any: None,
    WorkflowStatus: WorkflowStatus.IDLE,
    Callable: never,
    Iterable: (),
}


_UNIONS = (typing.Union, types.UnionType)


@attrs.frozen
class Parameter:
    """A parameter of a function, or an option that its keywords declare."""

    name: str
    annotation: Any
    is_required: bool
    is_option: bool

    def kinds(self) -> list[Any]:
        """The types that it takes, one by one, generic ones without what is in brackets."""
        parts = get_args(self.annotation) if get_origin(self.annotation) in _UNIONS else [self.annotation]
        return [get_origin(part) or part for part in parts]


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """What a function takes, by name; of a decorator with overloads, what any of them takes."""
    found = {}
    for one in typing.get_overloads(function) or [function]:
        signature = inspect.signature(one, eval_str=True, locals={**vars(agents), **vars(commands), **vars(notebook)})
        for parameter in _taken(signature):
            found.setdefault(parameter.name, parameter)
    return list(found.values())


def _taken(signature: inspect.Signature) -> Iterator[Parameter]:
    for name, given in signature.parameters.items():
        if given.kind is given.VAR_KEYWORD and get_origin(given.annotation) is typing.Unpack:
            for option, annotation in typing.get_type_hints(get_args(given.annotation)[0]).items():
                yield Parameter(option, annotation, False, True)
        elif given.kind in (given.POSITIONAL_OR_KEYWORD, given.KEYWORD_ONLY) and name != "self":
            yield Parameter(name, given.annotation, given.default is given.empty, given.kind is given.KEYWORD_ONLY)


def options(function: Callable[..., Any]) -> set[str]:
    """The names of a function's keyword options."""
    return {parameter.name for parameter in parameters(function) if parameter.is_option}


def call(function: Callable[..., Any], *first: Any, **given: Any) -> Any:
    """Call a function with *given*, and with a valid argument for each other parameter that has no default."""
    for parameter in parameters(function):
        if parameter.is_required and parameter.name not in given:
            kind = parameter.kinds()[0]
            assert kind in _EXAMPLES, f"add an example of {kind} to _EXAMPLES in tests/support_api.py"
            given[parameter.name] = _EXAMPLES[kind]
    return function(*first, **given)
