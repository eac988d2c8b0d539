"""How the package's own classes stand in JSON: keys in camelCase, times as text, nothing coerced."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args, get_origin

import attrs

from iso_orchestrator.codec.strict import register_strict_scalars
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.model import Json, Lease, truncate_to_ms
from iso_orchestrator.record.projection import StepState

__all__ = ["format_time", "read", "writer", "writers"]

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

Writer: TypeAlias = Callable[[Any], dict[str, Json]]

_JSON_FIELDS = {"result", "state", "detail"}  # kept as they are: they are JSON already
# The npm package's own objects hold its own keys and no others.
_KEPT_BESIDE = {(Lease, "token"), (StepState, "owner"), (StepState, "version"), (StepState, "seq")}


def writer(kind: type[Any]) -> Writer:
    """What makes JSON of objects of *kind*."""
    return writers[kind]


def read(kind: type[T], value: Json) -> T:
    """The object of *kind* that *value* stands for.

    Raises:
        ValueError: It stands for none.
    """
    try:
        return _converter().structure(value, kind)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def format_time(moment: datetime) -> str:
    """A time of a record, which is in UTC."""
    global _second
    of_second = (moment.second, moment.minute, moment.hour, moment.day, moment.month, moment.year)
    known = _second
    if known[0] != of_second:
        known = _second = (of_second, moment.isoformat()[:19])
    return f"{known[1]}.{moment.microsecond // 1000:03d}Z"


# The last second and its text: times come one after the other, and `isoformat` takes as long as all of the rest.
_second: tuple[tuple[int, ...], str] = ((), "")


def _parse_time(text: Json, _: type[datetime]) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no zone")
    if moment.tzinfo is UTC and moment.microsecond % 1000 == 0:
        return moment  # as this package writes them
    return truncate_to_ms(moment.astimezone(UTC))


def _reader(kind: type[Any]) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn

    return make_dict_structure_fn(
        kind,
        _converter(),
        _cattrs_forbid_extra_keys=issubclass(kind, Fact),
        _cattrs_detailed_validation=False,
        **_overrides(kind),
    )


def _overrides(kind: type[Any]) -> dict[str, Any]:
    attrs.resolve_types(kind)
    return {field.name: _override(kind, field.name) for field in attrs.fields(kind)}


def _override(kind: type[Any], name: str) -> Any:
    from cattrs.gen import override

    if (kind, name) in _KEPT_BESIDE:
        return override(omit=True)
    if name in _JSON_FIELDS:
        return override(unstruct_hook=lambda value: value, struct_hook=lambda value, _: value)
    return override(rename=_camel(name))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _read_list(kind: Any) -> Callable[[Any, Any], Any]:
    """Of a list, and of nothing else: cattrs would make three steps of the text "abc"."""
    collection, item = get_origin(kind), get_args(kind)[0]
    read = _converter().get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise TypeError(f"a list expected, not {type(value).__name__}: {value!r:.80}")
        return collection([read(element, item) for element in value])

    return structure


class _Writers(dict[type[Any], Writer]):
    """Made at their first use: compiling all of them takes 30 ms."""

    def __missing__(self, kind: type[Any]) -> Writer:
        from cattrs.gen import make_dict_unstructure_fn

        self[kind] = make_dict_unstructure_fn(kind, _converter(), _cattrs_omit_if_default=True, **_overrides(kind))
        return self[kind]


writers = _Writers()


@cache
def _converter() -> Converter:
    from cattrs import Converter  # half of what importing the package would take: with the first fact

    made = Converter(detailed_validation=False)
    register_strict_scalars(made)
    made.register_unstructure_hook(datetime, format_time)
    made.register_structure_hook(datetime, _parse_time)
    made.register_structure_hook_factory(_is_list, _read_list)
    made.register_unstructure_hook_factory(attrs.has, writer)
    made.register_structure_hook_factory(attrs.has, _reader)
    return made
