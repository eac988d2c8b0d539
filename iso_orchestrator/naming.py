"""What a call of a step is called: its identity, in every process, on every day."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import inspect
from collections.abc import Callable, Set
from decimal import Decimal
from enum import Enum
from json.encoder import encode_basestring, encode_basestring_ascii
from pathlib import PurePath
from typing import Any, TypeAlias
from uuid import UUID

import attrs

from iso_orchestrator.errors import StepNameError
from iso_orchestrator.names import check_key

__all__ = ["Bound", "Template", "base_name", "compile_template", "is_constant", "render_call"]

_LONGEST = 120  # characters of rendered arguments that are shown; behind them comes their hash

Bound: TypeAlias = inspect.BoundArguments
"""A call's arguments, defaults filled in."""

Template: TypeAlias = str | Callable[..., str | None]


def base_name(fn: Callable[..., object]) -> str:
    """What a function is called where no name is given.

    Raises:
        StepNameError: It has no name of its own.
    """
    qualified = getattr(fn, "__qualname__", None)
    if not isinstance(qualified, str) or "<lambda>" in qualified:
        raise StepNameError(repr(fn), "it has no name of its own: give name=")
    return qualified.rpartition("<locals>.")[2]


def render_call(base: str, bound: Bound) -> str:
    """*base* with the arguments that differ from their defaults; alone where there are none.

    Raises:
        StepNameError: An argument cannot be rendered so that others never look the same.

    Example:
        >>> def fetch(url, *, page=1): ...
        >>> render_call("fetch", inspect.signature(fetch).bind("a", page=2))
        'fetch(url="a", page=2)'
    """
    parts = []
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        text = _render_argument(base, name, value)
        if not _is_default(parameter, text):
            parts.append(f"{name}={text}")
    if not parts:
        return base
    rendered = ", ".join(parts)
    if len(rendered) > _LONGEST:
        digest = hashlib.sha256(rendered.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        rendered = f"{rendered[:_LONGEST]}…#{digest}"
    return f"{base}({rendered})"


def is_constant(template: Template | None) -> bool:
    """Whether a name is the same for every call."""
    return isinstance(template, str) and "{" not in template.replace("{{", "")


def compile_template(template: Template, what: str) -> Callable[[Bound], str | None]:
    """A function of a call's arguments that makes a name or a key of them.

    Args:
        template: A format string over the arguments, or a function of them.
        what: What it makes, for errors.

    Raises:
        ValueError: A constant that can be no name.
    """
    if not isinstance(template, str):
        if not callable(template):
            raise TypeError(f"{what} must be a format string or a function, not {type(template).__name__}")
        return lambda bound: _check_optional(template(*bound.args, **bound.kwargs), what)
    if is_constant(template):
        literal = check_key(template.format(), what)
        return lambda _: literal

    def fill(bound: Bound) -> str:
        try:
            text = template.format(*bound.args, **bound.arguments)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            known = ", ".join(bound.arguments)
            reason = f"{type(error).__name__}: {error}"
            raise StepNameError(template, f"{what} cannot be filled in from ({known}): {reason}") from error
        return check_key(text, what)

    return fill


def _check_optional(value: object, what: str) -> str | None:
    return None if value is None else check_key(value, what)


def _is_default(parameter: inspect.Parameter, text: str) -> bool:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return text == "()"
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return text == "{}"
    if parameter.default is inspect.Parameter.empty:
        return False
    try:
        return text == _render(parameter.default)
    except _Unrenderable:
        return False


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
    pass


def _render(value: Any) -> str:
    render = _EXACT.get(type(value))
    if render is not None:
        return render(value)
    for kind, render in _BY_BASE:
        if isinstance(value, kind):
            return render(value)
    return _render_fields(value)


def _render_fields(value: Any) -> str:
    kind = type(value)
    if attrs.has(kind):
        return _call(kind, [(field.name, getattr(value, field.name)) for field in attrs.fields(kind) if field.eq])
    if dataclasses.is_dataclass(kind):
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
    # Equal dicts are one argument, in whatever order they were filled.
    return f"{{{', '.join(sorted([f'{_render(key)}: {_render(item)}' for key, item in value.items()]))}}}"


def _moment(value: dt.datetime | dt.date | dt.time) -> str:
    return f"{type(value).__name__}({value.isoformat()})"


def _span(value: dt.timedelta) -> str:
    return f"timedelta({value.days}d {value.seconds}s {value.microseconds}us)"


def _path(value: PurePath) -> str:
    return f"Path({_str(str(value))})"


def _as_text(value: Decimal | UUID) -> str:
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
    (Decimal, _as_text),
    (UUID, _as_text),
    (PurePath, _path),
]
