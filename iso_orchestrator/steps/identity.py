"""The identity of a step's call: one name for equal arguments, in every process, on every day."""

from __future__ import annotations

import datetime as dt
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Set
from enum import Enum
from json.encoder import encode_basestring, encode_basestring_ascii
from string import Formatter
from typing import Any, TypeAlias

import attrs

from iso_orchestrator.checks import check_key
from iso_orchestrator.errors import StepNameError

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

    Raises:
        ValueError: The function has no signature, as some builtins.
    """

    def __init__(self, fn: Callable[..., object], base: str) -> None:
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

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Bind the arguments of a call to the parameters.

        Raises:
            TypeError: The function does not take them.
        """
        if self._is_plain and not kwargs and len(args) == len(self._names):
            return dict(zip(self._names, args, strict=True))  # most calls, in a third of the time
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
            if first not in self._names and not (first.isdigit() and int(first) < len(self._names)):
                known = ", ".join(self._names)
                raise StepNameError(template, f"{what} names {first!r}, which is none of the parameters ({known})")

    def call(self, fn: Callable[..., Any], arguments: Arguments) -> Any:
        """Call another function with these arguments."""
        bound = inspect.BoundArguments(self._signature, dict(arguments))
        return fn(*bound.args, **bound.kwargs)

    def render(self, arguments: Arguments) -> str:
        """Render a call as a name: the base, and the arguments that differ from their defaults.

        Objects are shown with the qualified names of their classes, but without the module: its name changes when a
        script is imported. Give `name=` where arguments can be of two classes with the same name.

        Raises:
            StepNameError: An argument has no rendering that no other value has.

        Example:
            >>> def fetch(url, *, page=1): ...
            >>> parameters = Parameters(fetch, "fetch")
            >>> parameters.render(parameters.bind(("a",), {"page": 2}))
            'fetch(url="a", page=2)'
        """
        parts = []
        for name, value in arguments.items():
            if name in self._defaults and value is self._defaults[name]:
                continue
            exact = _EXACT_SCALARS.get(type(value))
            text = exact(value) if exact is not None else _render_argument(self._base, name, value)
            if text != self._rendered_defaults[name]:
                parts.append(f"{name}={text}")
        if not parts:
            return self._base
        rendered = ", ".join(parts)
        if len(rendered) > _LONGEST:
            import hashlib  # takes 4 ms, and few names are that long

            digest = hashlib.sha256(rendered.encode()).hexdigest()[:16]
            rendered = f"{rendered[:_LONGEST]}…#{digest}"
        return f"{self._base}({rendered})"


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
        return _render(parameter.default)
    except _Unrenderable:
        return None


def _render_argument(base: str, name: str, value: object) -> str:
    try:
        return _render(value)
    except _Unrenderable as refused:
        raise StepNameError(
            base, f"the argument {name!r} has {refused}, which has no faithful short form: give name="
        ) from None
    except RecursionError:
        raise StepNameError(base, f"the argument {name!r} is nested too deeply: give name=") from None


class _Unrenderable(Exception):  # noqa: N818 - never leaves this module
    """A value has no rendering; the message says which kind of value."""


def _render(value: Any) -> str:
    render = _EXACT.get(type(value))
    if render is not None:
        return render(value)
    for kind, render in _BY_BASE:
        if isinstance(value, kind):
            return render(value)
    for module, name, render in _BY_NAME:
        late = getattr(sys.modules.get(module), name, None)
        if late is not None and isinstance(value, late):
            return render(value)
    return _render_fields(value)


def _render_fields(value: Any) -> str:
    kind = type(value)
    if attrs.has(kind):
        return _call(kind, [(field.name, getattr(value, field.name)) for field in attrs.fields(kind) if field.eq])
    if hasattr(kind, "__dataclass_fields__"):
        import dataclasses  # imported by now, where the value's class was made

        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(kind) if field.compare]
        return _call(kind, fields)
    raise _Unrenderable(f"a value of type {kind.__qualname__}")


def _call(kind: type[Any], fields: list[tuple[str, Any]]) -> str:
    return f"{kind.__qualname__}({', '.join(f'{name}={_render(value)}' for name, value in fields)})"


def _enum(value: Enum) -> str:
    return f"{type(value).__qualname__}.{value.name}"


def _int(value: int) -> str:
    if value.bit_length() > 4096:
        return f"int:{value:#x}"  # the decimal form has a limit of length
    return int.__repr__(value)


def _str(value: str) -> str:
    text = encode_basestring(value)
    return text if text.isprintable() else encode_basestring_ascii(value)


def _tuple(value: tuple[Any, ...]) -> str:
    names = getattr(type(value), "_fields", None)
    if names is not None:
        return _call(type(value), list(zip(names, value, strict=True)))
    return f"({', '.join(map(_render, value))}{',' if len(value) == 1 else ''})"


def _list(value: list[Any]) -> str:
    return f"[{', '.join(map(_render, value))}]"


def _set(value: Set[Any]) -> str:
    return f"{{{', '.join(sorted(map(_render, value)))}}}" if value else "set()"


def _dict(value: dict[Any, Any]) -> str:
    # Equal dicts are one argument, whatever the order of their keys.
    return f"{{{', '.join(sorted([f'{_render(key)}: {_render(item)}' for key, item in value.items()]))}}}"


def _moment(value: dt.datetime | dt.date | dt.time) -> str:
    return f"{type(value).__name__}({value.isoformat()})"


def _span(value: dt.timedelta) -> str:
    return f"timedelta({value.days}d {value.seconds}s {value.microseconds}us)"


def _path(value: object) -> str:
    return f"Path({_str(str(value))})"


def _as_text(value: object) -> str:
    return f"{type(value).__name__}({_str(str(value))})"


_EXACT: dict[type[Any], Callable[[Any], str]] = {
    type(None): repr,
    bool: repr,
    int: _int,
    float: repr,
    str: _str,
    bytes: repr,
    list: _list,
    tuple: _tuple,
    dict: _dict,
}

# The kinds of most arguments; rendering them cannot fail.
_EXACT_SCALARS = {kind: _EXACT[kind] for kind in (type(None), bool, int, float, str)}

# In this order: an enum may be an int or a str too, and a datetime is a date.
_BY_BASE: list[tuple[type[Any], Callable[[Any], str]]] = [
    (Enum, _enum),
    (int, _int),
    (float, float.__repr__),
    (str, _str),
    (bytearray, repr),
    (tuple, _tuple),
    (list, _list),
    (Set, _set),
    (dict, _dict),
    (dt.datetime, _moment),
    (dt.date, _moment),
    (dt.time, _moment),
    (dt.timedelta, _span),
]

# Classes of modules that take milliseconds to import. Where such a value exists, its module is loaded.
_BY_NAME: list[tuple[str, str, Callable[[Any], str]]] = [
    ("decimal", "Decimal", _as_text),
    ("uuid", "UUID", _as_text),
    ("pathlib", "PurePath", _path),
]
