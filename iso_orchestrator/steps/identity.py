"""The identity of a step's call: one name for equal arguments, in every process, on every day."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from string import Formatter
from typing import Any, TypeAlias

from iso_orchestrator.checks import check_key
from iso_orchestrator.errors import StepNameError
from iso_orchestrator.steps.origin import argument_text, default_text
from iso_orchestrator.steps.rendering import EXACT_SCALARS, Unrenderable, digest, render

_LONGEST = 120  # characters of rendered arguments; longer ones are cut, and end with a hash

Arguments: TypeAlias = Mapping[str, Any]
"""A call's arguments by parameter, with defaults filled in."""

Template: TypeAlias = str | Callable[..., str | None]
"""A format string over a call's arguments, or a function of them."""


def base_name(fn: Callable[..., object]) -> str:
    """Return the name of a function's steps where no name is given: its qualified name, after `<locals>`.

    Raises:
        StepNameError: The function has no name of its own, as a lambda.
    """
    qualified = getattr(fn, "__qualname__", None)
    if not isinstance(qualified, str) or "<lambda>" in qualified:
        raise StepNameError(repr(fn), "it has no name of its own: give name=")
    return qualified.rpartition("<locals>.")[2]


class Parameters:
    """A function's parameters. They bind the arguments of a call and render them as a name, which begins with *base*.

    Args:
        fn: The function.
        base: The name of a call without arguments.
        exclude: The parameters that are no part of the identity.

    Raises:
        ValueError: The function has no signature, as some builtins.
        StepNameError: *exclude* names what is no parameter.
    """

    def __init__(self, fn: Callable[..., object], base: str, exclude: Collection[str] = ()) -> None:
        self._base = base
        self._signature = inspect.signature(fn)
        self._names = tuple(self._signature.parameters)
        self._defaults = {
            name: parameter.default
            for name, parameter in self._signature.parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        self._rendered_defaults = {
            name: _render_default(parameter) for name, parameter in self._signature.parameters.items()
        }
        self._is_plain = all(
            parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            for parameter in self._signature.parameters.values()
        )
        for name in exclude:
            self._check_known(name, base or str(getattr(fn, "__qualname__", fn)), "exclude")
        self._excluded = frozenset(exclude)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Bind the arguments of a call to the parameters.

        Raises:
            TypeError: The function does not take them.
        """
        required, given, most = len(self._names) - len(self._defaults), len(args), len(self._names)
        if self._is_plain and not kwargs and required <= given <= most:  # as most calls, in a fifth of the time
            return dict(zip(self._names, (*args, *[self._defaults[name] for name in self._names[given:]]), strict=True))
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def check_fields(self, template: str, what: str) -> None:
        """Check that a format string names only parameters.

        Raises:
            StepNameError: It names something else, or is no format string.
        """
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise StepNameError(template, f"{what} is no format string: {error}") from error
        for field in fields:
            first = re.split(r"[.\[]", field, maxsplit=1)[0]
            if not (first.isdigit() and int(first) < len(self._names)):
                self._check_known(first, template, what)

    def _check_known(self, name: str, step: str, what: str) -> None:
        if name not in self._names:
            known = ", ".join(self._names)
            raise StepNameError(step, f"{what} names {name!r}, which is none of the parameters ({known})")

    def call(self, fn: Callable[..., Any], arguments: Arguments) -> Any:
        """Call another function with these arguments."""
        bound = inspect.BoundArguments(self._signature, dict(arguments))
        return fn(*bound.args, **bound.kwargs)

    def excludes(self, place: int) -> bool:
        """Whether the positional argument at *place* is no part of the identity."""
        names = self._names[place : place + 1] or self._names[-1:]  # the last one may be ``*args``
        return not self._excluded.isdisjoint(names)

    def render(self, arguments: Arguments) -> tuple[str, dict[str, str]]:
        """Render a call as a name: the base, and the arguments that differ from their defaults.

        Returns:
            The name, and the texts of the arguments that it does not show.

        Raises:
            StepNameError: An argument has no rendering that no other value has.

        Example:
            >>> def fetch(url, *, page=1, size=10): ...
            >>> parameters = Parameters(fetch, "fetch")
            >>> parameters.render(parameters.bind(("a",), {"page": 2}))
            ('fetch(url="a", page=2)', {'size': '10'})
        """
        parts, defaults = [], {}
        for name, value in arguments.items():
            if name in self._excluded:
                continue
            default = self._rendered_defaults[name]
            if default is None and name in self._defaults and value is self._defaults[name]:
                continue  # one that cannot be rendered, as a client; a list may have changed since
            exact = EXACT_SCALARS.get(type(value))
            text = exact(value) if exact is not None else _render_argument(self._base, name, value)
            if text != default:
                parts.append(f"{name}={text}")
            elif text is not None and name in self._defaults:
                defaults[name] = default_text(name, text)
        if not parts:
            return self._base, defaults
        rendered = ", ".join(parts)
        if len(rendered) > _LONGEST:
            rendered = f"{rendered[:_LONGEST]}…#{digest(rendered)}"
        return f"{self._base}({rendered})", defaults

    def texts(self, arguments: Arguments) -> dict[str, str]:
        """Return what is recorded of the arguments where the name does not say which ones it shows."""
        texts = {}
        for name, value in arguments.items():
            if name in self._excluded:
                continue
            try:
                text = render(value)
            except (Unrenderable, RecursionError):  # it has no text, so that no change of it is noticed
                continue
            is_default = text == self._rendered_defaults[name]
            texts[name] = default_text(name, text) if is_default else argument_text(text, is_default=False)
        return texts


def is_constant(template: Template | None) -> bool:
    """Tell whether a template is the same for every call."""
    return isinstance(template, str) and "{" not in template.replace("{{", "")


def compile_template(template: Template, what: str, parameters: Parameters) -> Callable[[Arguments], str | None]:
    """Make a function that makes a name or a key, called *what* in error messages, from a call's arguments.

    Raises:
        TypeError: The template is neither.
        ValueError: The template is a constant that cannot be a name.
        StepNameError: The template names what is no parameter.
    """
    if not isinstance(template, str):
        if not callable(template):
            raise TypeError(f"{what} must be a format string or a function, not {type(template).__name__}")
        return lambda arguments: _check_optional(parameters.call(template, arguments), what)
    if is_constant(template):
        literal = check_key(template.format(), what)
        return lambda _: literal
    parameters.check_fields(template, what)

    def fill(arguments: Arguments) -> str:
        try:
            text = template.format(*arguments.values(), **arguments)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            known = ", ".join(arguments)
            reason = f"{type(error).__name__}: {error}"
            raise StepNameError(template, f"{what} cannot be filled in from ({known}): {reason}") from error
        return check_key(text, what)

    return fill


def _check_optional(value: object, what: str) -> str | None:
    return None if value is None else check_key(value, what)


def _render_default(parameter: inspect.Parameter) -> str | None:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return "()"
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return "{}"
    if parameter.default is inspect.Parameter.empty:
        return None
    try:
        return render(parameter.default)
    except Unrenderable:
        return None


def _render_argument(base: str, name: str, value: object) -> str:
    try:
        return render(value)
    except Unrenderable as refused:
        raise StepNameError(
            base,
            f"the argument {name!r} is {refused}, and has no faithful short form: give name=, "
            f'or leave it out of the identity: exclude=("{name}",)',
        ) from None
    except RecursionError:
        raise StepNameError(base, f"the argument {name!r} is nested too deeply: give name=") from None
