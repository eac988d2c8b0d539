"""What made a result: the function's code and the arguments that the step's name does not show."""

from __future__ import annotations

import dis
import re
import sys
import warnings
from functools import lru_cache
from types import CodeType
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.errors import StepChangedWarning
from iso_orchestrator.record.projection import Projection, StepState
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.rendering import digest

Texts: TypeAlias = dict[str, str]
"""Arguments by parameter: the text of one that is its default, and for others a ``#`` and a digest of their text."""

_LONGEST = 80  # characters of the text of an argument
_SECRET = re.compile("key|token|secret|passw|credential|auth", re.IGNORECASE)  # in the names of parameters


@attrs.define
class Origin:
    """What makes the result of a call, besides what is in the step's name.

    Attributes:
        function: The function's name, for messages.
        code: The version of Python and a digest of the function's code; None for a function that is not Python.
        arguments: The arguments that the name does not show.
    """

    function: str
    code: str | None = None
    arguments: Texts = attrs.field(factory=dict)

    def function_beside(self, step_name: str) -> str | None:
        """The function's name, where the step's does not begin with it; None for what has no name, as a lambda."""
        function = _plain_name(self.function)
        if function is None or (step_name.startswith(function) and step_name[len(function) :][:1] in ("", "(", ":")):
            return None
        return function

    def changes_since(self, step: StepState) -> list[str]:
        """Say what is other now than when the result of *step* was made; what is not known counts as the same."""
        if self.code == step.code and self.arguments == (step.arguments or {}):
            return []
        recorded = step.arguments if isinstance(step.arguments, dict) else {}
        changes = [
            _change(name, str(recorded[name]), text)
            for name, text in self.arguments.items()
            if name in recorded and _hashed(recorded[name]) != _hashed(text)
        ]
        if self.code != step.code and _python(self.code) == _python(step.code) is not None:
            changes.append("the code of its function")
        return changes


def warn_of_changes(runtime: WorkflowRuntime, origin: Origin, step_name: str, changes: list[str]) -> None:
    """Warn of recorded results that are older than a change, once for each function and code."""
    function = (origin.function, origin.code)
    if function in runtime.changed_functions:
        return

    def count(projection: Projection) -> int:
        mine = projection.steps.get(step_name)  # none, where another process has reset it by now
        steps = [step for step in projection.steps.values() if mine is not None and step.code == mine.code]
        return sum(origin.changes_since(step) == changes for step in steps)

    number = runtime.look(count)
    results = f"the result of step {step_name!r}"
    if number > 1:
        results = f"the results of {number} steps of {origin.function}(), {step_name!r} among them"
    runtime.changed_functions.add(function)
    try:
        warnings.warn(
            f"recorded before a change: {results}: {'; '.join(changes)}. To run again: another version=, "
            'on_change="rerun" or reset(). on_change="ignore" ends this warning',
            StepChangedWarning,
            stacklevel=_levels_to_the_caller(),
        )
    except StepChangedWarning:  # where warnings are errors, the next call must not return the old result in silence
        runtime.changed_functions.discard(function)
        raise


def _levels_to_the_caller() -> int:
    """The `stacklevel` of a warning for the code outside of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("iso_orchestrator."):
        level, frame = level + 1, frame.f_back
    return level


@lru_cache(maxsize=1024)
def _plain_name(function: str) -> str | None:
    """The qualified name of a function after `<locals>`, if it is one."""
    plain = function.rpartition("<locals>.")[2]
    return plain if plain.replace(".", "").isidentifier() else None


def _python(code: str | None) -> str | None:
    return None if code is None else code.partition(":")[0]


def argument_text(text: str, *, is_default: bool) -> str:
    """Return what is recorded of an argument: a default stands in the code, another value may be long, or a secret."""
    return text if is_default and len(text) <= _LONGEST else f"#{digest(text)}"


def default_text(name: str, text: str) -> str:
    """As `argument_text` of a default. One of the environment may be a secret, which its parameter's name tells."""
    return argument_text(text, is_default=_SECRET.search(name) is None)


def _hashed(text: object) -> str:
    known = str(text)
    return known if known.startswith("#") else f"#{digest(known)}"


def _change(name: str, before: str, now: str) -> str:
    if before.startswith("#") or now.startswith("#"):
        return f"{name} has another value"
    return f"{name} was {before}, is {now}"


def code_of(function: Any) -> str | None:
    """Return the version of Python and a digest of a function's code; None for what is not written in Python.

    Constants and nested functions count. Line numbers and the function's own docstring do not.
    """
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return _digest_of(code) if isinstance(code, CodeType) else None


@lru_cache(maxsize=1024)
def _digest_of(code: CodeType) -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}:{digest(_instructions(code))}"


def _instructions(code: CodeType) -> str:
    return repr([(each.opname, _argument(each.argval)) for each in dis.get_instructions(code)])


def _argument(value: Any) -> str:
    if isinstance(value, CodeType):
        return _instructions(value)
    if isinstance(value, frozenset):  # its order depends on the process
        return f"frozenset({sorted(map(_argument, value))})"
    return f"{type(value).__name__} {value!r}"
