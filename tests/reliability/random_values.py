"""Random types with values of them, the same for one seed in every process, and a text of a value that shows all of it.

Nothing here uses what the package itself compares and renders with.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union, get_origin
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import numpy
import pydantic

__all__ = ["Kind", "Maker", "Misfit", "changed_part", "kinds", "portrait"]

T = TypeVar("T")

ZONES = [ZoneInfo(key) for key in ("America/New_York", "Europe/Berlin", "Asia/Kathmandu", "UTC")]
FIXED = [UTC, timezone(timedelta(hours=-4)), timezone(timedelta(hours=5, minutes=45))]
TEXTS = ["", "a", "1", "True", "None", "1.0", '"', "'", "\\", "a, b", "a=1", "x)", "[", "\n", "\x7f", "é", "\U0001f600"]
MORE_TEXTS = ["\ud800", "\U000e0001", "2024-01-01", "\xa0", "null", "a" * 200]
FLOATS = [0.0, -0.0, 1.0, 0.1, -1.5, 1e300, 5e-324, 2.0**53, 3.0]
MOMENTS = [  # ordinary, in a fold, in a gap
    datetime(2024, 3, 9, 9, 0, 0, 5),
    datetime(2024, 11, 3, 1, 30),
    datetime(2024, 10, 27, 2, 30),
    datetime(2024, 3, 10, 2, 30),
    datetime(1, 1, 2),
]
DECIMALS = ["1.0", "1.00", "0", "-0", "1E+400", "NaN", "sNaN7", "-Infinity", "0.1"]


class Misfit(Exception):  # noqa: N818 - no error, but an answer
    """A value is none of its type's."""


class Maker:
    """Makes values.

    Attributes:
        rng: Its randomness.
        wrong: The probability of a part that is none of its type's.
        is_right: Whether it has made none yet.
    """

    def __init__(self, rng: random.Random, wrong: float = 0.0) -> None:
        self.rng = rng
        self.wrong = wrong
        self.is_right = True

    def make(self, kind: Kind) -> Any:
        value = kind.make(self)
        if self.wrong and self.rng.random() < self.wrong:
            self.is_right = False
            return odd(self.rng, value)
        return value


@attrs.frozen
class Kind:
    """A type.

    Attributes:
        annotation: As users write it.
        make: Makes a value.
        text: A text of a value that no different value has; `Misfit` if it is none of the type's. Without `exact`, the
            text of the value that it may come back as: equal to it, and of the type.
        is_sure: Whether each value has to be accepted.
        is_hashable: Whether the values can be in a set.
        is_key: Whether they can be keys.
        for_models: Whether pydantic takes the type.
    """

    annotation: Any
    make: Callable[[Maker], Any]
    text: Callable[[Any, bool], str]
    is_sure: bool = True
    is_hashable: bool = True
    is_key: bool = False
    for_models: bool = True


def attributes(value: Any) -> dict[str, Any]:
    """What a value has besides what its class shows."""
    slots = [slot for parent in type(value).__mro__ for slot in (vars(parent).get("__slots__") or ())]
    named = [slot for slot in slots if slot not in ("__dict__", "__weakref__") and hasattr(value, slot)]
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in named}}


def plain(value: Any, base: Any) -> Any:
    """The value of the builtin class *base* that is equal to *value*, and all of it; otherwise *value*."""
    if isinstance(value, numpy.generic) and type(value.item()) in (bool, int, float) and value.item() == value:
        value = value.item()
    if base is float and type(value) is int and abs(value) < 10**300 and float(value) == value:
        return float(value)
    if type(value) is base or not isinstance(value, base) or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return base(value.value)
    if type(value).__module__ == __name__ and attributes(value):
        return value
    if base is date:
        return value if isinstance(value, datetime) else date(value.year, value.month, value.day)
    if base is datetime:
        return datetime.combine(value.date(), value.timetz())
    return base.__new__(base, value) if base in (int, float, str, bytes, Decimal, tuple, frozenset) else base(value)


def zone_of(value: Any) -> str:
    zone = value.tzinfo
    kind = type(zone).__name__
    return f"{kind} {getattr(zone, 'key', None)} {zone.utcoffset(None) if isinstance(zone, timezone) else None}"


def atom_text(value: Any) -> str:
    """The text of a value that has no parts."""
    text = f"{type(value).__qualname__} {value!r}"
    if isinstance(value, datetime | time):
        text += f" {zone_of(value)} fold={value.fold}"
    return text


def atom(base: Any, make: Callable[[random.Random], Any], *, is_key: bool = False, annotation: Any = None) -> Kind:
    """A class whose objects have no parts."""

    def text(value: Any, exact: bool) -> str:
        found = value if exact else plain(value, base)
        if type(found) is not (PosixPath if base is Path else base) or (base in OWN and attributes(found)):
            raise Misfit
        return atom_text(found)

    return Kind(annotation or base, lambda maker: make(maker.rng), text, is_key=is_key)


def moment(rng: random.Random) -> datetime:
    found = rng.choice(MOMENTS).replace(microsecond=rng.choice([0, 1, 999_999]))
    zone = rng.choice([None, *ZONES, *FIXED])
    found = found.replace(tzinfo=zone)
    if isinstance(zone, ZoneInfo) and found.utcoffset() != found.replace(fold=1).utcoffset():
        found = found.replace(fold=rng.randrange(2))
    return found


def time_of_day(rng: random.Random) -> time:
    return time(rng.randrange(24), rng.randrange(60), 1, rng.choice([0, 7]), rng.choice([None, *ZONES, *FIXED]))


# Subclasses, whose objects can have attributes


class Word(str):
    """A str with attributes."""


class Count(int):
    """An int with attributes."""


class Ratio(float):
    """A float with attributes."""


class Day(date):
    """A date with attributes."""


class Items(list):
    """A list with attributes."""


class Row(tuple):
    """A tuple with attributes."""


class Table(dict):
    """A dict with attributes."""


class Bag(set):
    """A set with attributes."""


class Money(Decimal):
    """A Decimal with attributes."""


class Moment(datetime):
    """A datetime with attributes."""

    @classmethod
    def of(cls, value: datetime) -> Moment:
        """The same moment. Of two different ones the fold of the time could mean nothing on the date."""
        return cls.combine(value.date(), value.timetz())


class Blob(bytes):
    """Bytes with attributes."""


SCALARS = [
    atom(int, lambda rng: rng.choice([0, 1, -1, 7, 2**53 + 1, -(2**70)]), is_key=True),
    atom(int, lambda rng: rng.randrange(100), is_key=True),
    atom(float, lambda rng: rng.choice([*FLOATS, rng.random()])),
    atom(str, lambda rng: rng.choice(TEXTS + MORE_TEXTS), is_key=True),
    atom(bool, lambda rng: rng.random() < 0.5),
    atom(types.NoneType, lambda _: None, annotation=None),
    atom(bytes, lambda rng: rng.randbytes(rng.randrange(5))),
    atom(datetime, moment),
    atom(date, lambda rng: date(2024, 1, rng.randrange(1, 29)), is_key=True),
    atom(time, time_of_day),
    atom(timedelta, lambda rng: timedelta(rng.randrange(-5, 5), rng.randrange(9), rng.randrange(10**6))),
    atom(Decimal, lambda rng: Decimal(rng.choice(DECIMALS))),
    atom(UUID, lambda rng: UUID(int=rng.randrange(3)), is_key=True),
    atom(Path, lambda rng: Path(rng.choice(["a", "/a/../b", ".", "a b"]))),
    atom(PurePosixPath, lambda rng: PurePosixPath(rng.choice(["a", "/a"]))),
    atom(int, lambda rng: rng.randrange(9), annotation=NewType("Metres", int)),
    atom(datetime, moment, annotation=NewType("Start", datetime)),
    atom(Decimal, lambda rng: Decimal(rng.randrange(9)), annotation=NewType("Euros", Decimal)),
]
OWN = {
    Word: lambda rng: Word(rng.choice(TEXTS)),
    Count: lambda rng: Count(rng.randrange(9)),
    Ratio: lambda rng: Ratio(rng.random()),
    Money: lambda rng: Money(rng.choice(DECIMALS)),
    Moment: lambda rng: Moment.of(moment(rng)),
    Day: lambda rng: Day(2024, 1, rng.randrange(1, 9)),
    Blob: lambda rng: Blob(rng.randbytes(2)),
}


def of_own(rng: random.Random, _: str) -> Kind:
    base, make = rng.choice(list(OWN.items()))
    return attrs.evolve(atom(base, make), for_models=False)


def json_value(rng: random.Random, depth: int = 2) -> Any:
    if depth and rng.random() < 0.4:
        items = [json_value(rng, depth - 1) for _ in range(rng.randrange(3))]
        return items if rng.random() < 0.5 else {rng.choice(TEXTS): item for item in items}
    return rng.choice([None, True, False, rng.randrange(9), rng.choice(FLOATS), rng.choice(TEXTS)])


def json_text(value: Any, exact: bool) -> str:
    """The text of JSON. Without `exact`, of what may come back as it: a tuple as a list, for instance."""
    if not exact:
        for base in (str, int, float, dict, list, tuple):
            value = plain(value, base) if base is not float or not isinstance(value, int) else value
        value = list(value) if type(value) is tuple or hasattr(type(value), "_fields") else value
    if type(value) is dict:
        return f"{{{', '.join(f'{json_key(key, exact)}: {json_text(item, exact)}' for key, item in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(json_text(item, exact) for item in value)}]"
    if type(value) not in (str, int, float, bool, types.NoneType) or (
        type(value) is float and not math.isfinite(value)
    ):
        raise Misfit
    return atom_text(value)


def json_key(key: Any, exact: bool) -> str:
    key = key if exact else plain(key, str)
    if type(key) is not str:
        raise Misfit
    return repr(key)


def untyped(rng: random.Random) -> Kind:
    annotation, shape = rng.choice([(Any, None), (object, None), (dict, dict), (list, list), (dict[str, Any], dict)])

    def make(maker: Maker) -> Any:
        value = json_value(maker.rng)
        return value if shape is None else [value] if shape is list else {"a": value}

    def text(value: Any, exact: bool) -> str:
        found = json_text(value, exact)
        if shape is not None and found[0] != ("[" if shape is list else "{"):
            raise Misfit
        return found

    return Kind(annotation, make, text, is_hashable=False)


# Containers


def items_of(value: Any, base: Any, bases: tuple[Any, ...], exact: bool) -> Any:
    if exact or type(value) in (deque, OrderedDict, defaultdict, Counter):
        fits = type(value) is base or (not exact and isinstance(value, bases))
    else:
        fits = isinstance(value, bases) and (hasattr(type(value), "_fields") or not attributes(value))
    if not fits:
        raise Misfit
    return value


def list_of(rng: random.Random, item: Kind) -> Kind:
    form = rng.choice([list, list, Sequence])

    def text(value: Any, exact: bool) -> str:
        items = items_of(value, list, (list, tuple), exact)
        return f"[{', '.join(item.text(part, exact) for part in items)}]"

    def make(maker: Maker) -> Any:
        return [maker.make(item) for _ in range(maker.rng.randrange(3))]

    return Kind(form[item.annotation], make, text, item.is_sure, is_hashable=False, for_models=item.for_models)


def tuple_of(rng: random.Random, item: Kind) -> Kind:
    more = SCALARS[rng.randrange(5)]
    if is_open := rng.random() < 0.5:
        annotation: Any = tuple[item.annotation, ...]
    else:
        annotation = tuple[item.annotation, more.annotation]

    def text(value: Any, exact: bool) -> str:
        items = items_of(value, tuple, (list, tuple), exact)
        if is_open:
            return f"({', '.join(item.text(part, exact) for part in items)})"
        if len(items) != 2:
            raise Misfit
        return f"({item.text(items[0], exact)}, {more.text(items[1], exact)})"

    def make(maker: Maker) -> Any:
        if is_open:
            return tuple([maker.make(item) for _ in range(maker.rng.randrange(3))])
        return (maker.make(item), maker.make(more))

    return Kind(annotation, make, text, item.is_sure, item.is_hashable, for_models=item.for_models)


def set_of(rng: random.Random, item: Kind) -> Kind:
    form = rng.choice([set, frozenset])

    def text(value: Any, exact: bool) -> str:
        items = items_of(value, form, (set, frozenset), exact)
        return f"{form.__name__}({', '.join(sorted(item.text(part, exact) for part in items))})"

    def make(maker: Maker) -> Any:
        items = [maker.make(item) for _ in range(maker.rng.randrange(3))]
        try:
            return form(items)
        except TypeError:  # an odd one that is not hashable, or a signalling NaN
            return form()

    return Kind(
        form[item.annotation],
        make,
        text,
        item.is_sure and item.is_hashable,
        is_hashable=form is frozenset,
        for_models=item.for_models,
    )


def deque_of(rng: random.Random, item: Kind) -> Kind:
    def text(value: Any, exact: bool) -> str:
        if type(value) is not deque:
            raise Misfit
        return f"deque({', '.join(item.text(part, exact) for part in value)}; {value.maxlen})"

    def make(maker: Maker) -> Any:
        items = [maker.make(item) for _ in range(maker.rng.randrange(3))]
        return deque(items, maker.rng.choice([None, 2, 5]))

    return Kind(deque[item.annotation], make, text, item.is_sure, is_hashable=False, for_models=False)


def dict_of(rng: random.Random, item: Kind) -> Kind:
    if rng.random() < 0.3:  # some of them have no text that is read as they were
        key = rng.choice([*SCALARS, enum_class(rng, f"Key{rng.randrange(10**6)}"), of_own(rng, "")])
    else:
        key = rng.choice([*(kind for kind in SCALARS if kind.is_key), SCALARS[3], SCALARS[3], SCALARS[3]])
    form = rng.choice([dict, dict, Mapping, OrderedDict, defaultdict])
    base: Any = dict if form is Mapping else form
    factory = get_origin(item.annotation) or item.annotation

    def text(value: Any, exact: bool) -> str:
        items = items_of(value, base, (dict,), exact)
        if base is defaultdict and not isinstance(items, base):
            raise Misfit
        parts = [f"{key.text(name, exact)}: {item.text(part, exact)}" for name, part in items.items()]
        found = items.default_factory if base is defaultdict else ""
        return f"{base.__name__}({', '.join(parts)}; {found})"

    def make(maker: Maker) -> Any:
        items = {}
        for _ in range(maker.rng.randrange(3)):
            name, part = maker.make(key), maker.make(item)
            try:
                items[name] = part
            except TypeError:
                continue
        if base is defaultdict:
            return defaultdict(factory if isinstance(factory, type) else None, items)
        return base(items)

    annotation: Any = form[key.annotation, item.annotation]
    is_sure = item.is_sure and key.is_key and (base is not defaultdict or isinstance(factory, type))
    for_models = item.for_models and key.is_key and base is dict
    return Kind(annotation, make, text, is_sure, is_hashable=False, for_models=for_models)


def optional(_: random.Random, item: Kind) -> Kind:
    def text(value: Any, exact: bool) -> str:
        return "None" if value is None else item.text(value, exact)

    def make(maker: Maker) -> Any:
        return None if maker.rng.random() < 0.3 else maker.make(item)

    annotation = Optional[item.annotation]  # noqa: UP045 - it may be a text, which has no `|`
    return Kind(annotation, make, text, item.is_sure, item.is_hashable, for_models=item.for_models)


def union(rng: random.Random, item: Kind) -> Kind:
    other = rng.choice([one for one in SCALARS if one.annotation is not item.annotation])  # or it would be no union

    def text(value: Any, exact: bool) -> str:
        for one in (item, other):
            with suppress(Misfit):
                return one.text(value, True)
        number = value if exact else plain(value, int)
        numbers = [getattr(one.annotation, "__supertype__", one.annotation) in (int, float) for one in (item, other)]
        if type(number) in (bool, int) and any(numbers):
            return atom_text(number)  # an int is a float for type checkers, and a bool an int
        for one in (item, other):
            with suppress(Misfit):
                return one.text(value, exact)
        raise Misfit

    def make(maker: Maker) -> Any:
        return maker.make(maker.rng.choice([item, other]))

    annotation: Any = Union[item.annotation, other.annotation]  # noqa: UP007 - not all of them have `|`
    return Kind(annotation, make, text, False, item.is_hashable, for_models=False)


# Classes


def name_class(cls: Any, name: str) -> Any:
    cls.__name__, cls.__qualname__, cls.__module__ = name, name, __name__
    return cls


ENUM_VALUES: list[tuple[Any, list[Any]]] = [
    (enum.Enum, ["a", 1, 2.5, None]),
    (enum.Enum, ["a", "1", 1, True]),
    (enum.StrEnum, ["a", "b", "1"]),
    (enum.IntEnum, [1, 0, -5]),
    (enum.Flag, [1, 2, 4]),
    (enum.IntFlag, [1, 2, 8]),
]


def enum_class(rng: random.Random, name: str) -> Kind:
    base, values = rng.choice(ENUM_VALUES)
    members = {f"M{number}": value for number, value in enumerate(values)}
    more = {"boundary": enum.KEEP} if issubclass(base, enum.Flag) else {}
    cls: Any = base(name, members, module=__name__, qualname=name, **more)

    def text(value: Any, _: bool) -> str:
        if type(value) is not cls:
            raise Misfit
        return f"{name} {value.name} {value.value!r}"

    def make(maker: Maker) -> Any:
        if not more:
            return maker.rng.choice(list(cls))
        # Up to Python 3.11.3 two flags of one value are not equal if they have bits without names.
        return cls(maker.rng.randrange(20 if cls(17) == cls(17) else 8))

    return Kind(cls, make, text, is_sure=None not in values, for_models=False)


def literal(rng: random.Random, _: str) -> Kind:
    values = rng.sample(["a", "1", 1, 0, None, "b"], 3)

    def text(value: Any, exact: bool) -> str:
        found = value if exact else plain(plain(value, str), int)
        if not any(found is known or (type(found) is type(known) and found == known) for known in values):
            raise Misfit
        return atom_text(found)

    return Kind(Literal[tuple(values)], lambda maker: maker.rng.choice(values), text)


@attrs.frozen
class Part:
    """A field of a random class.

    Attributes:
        is_set_later: Whether it is not in `__init__`.
    """

    name: str
    kind: Kind
    is_set_later: bool = False


def parts_text(cls: Any, parts: list[Part], value: Any, exact: bool, more: Mapping[str, Any]) -> str:
    if type(value) is not cls:
        raise Misfit
    if besides := [name for name in more if name not in {"__orig_class__", *(part.name for part in parts)}]:
        raise Misfit(besides)
    shown = [f"{part.name}={part.kind.text(getattr(value, part.name), exact)}" for part in parts]
    return f"{cls.__qualname__}({', '.join(shown)})"


def of_parts(cls: Any, parts: list[Part], **options: Any) -> Kind:
    """The kind of a class of attrs or dataclasses; `number` is changed by its `__init__`."""
    annotation = options.pop("annotation", cls)

    def make(maker: Maker) -> Any:
        values = {part.name: maker.make(part.kind) for part in parts}
        kept = {part.name: values[part.name] for part in parts if not part.is_set_later}
        made = (annotation if maker.rng.random() < 0.5 else cls)(**kept)
        for part in parts:
            if part.is_set_later or maker.wrong:
                object.__setattr__(made, part.name, values[part.name])
        return made

    def text(value: Any, exact: bool) -> str:
        return parts_text(cls, parts, value, exact, attributes(value) if type(value) is cls else {})

    return Kind(annotation, make, text, all(part.kind.is_sure for part in parts), **options)


NUMBER = SCALARS[1]


def changed(number: Any) -> Any:
    """What `__init__` makes of a number, and would make another of once more."""
    return 2 * number + 1 if type(number) is int else number


def random_parts(rng: random.Random, choose: Callable[[], Kind]) -> list[Part]:
    count = rng.randrange(1, 4)
    return [Part("number", NUMBER), *(Part(f"x{place}", choose(), rng.random() < 0.2) for place in range(count))]


def data_class(rng: random.Random, name: str, choose: Callable[[], Kind]) -> Kind:
    parts = random_parts(rng, choose)
    frozen, slots = rng.random() < 0.4, rng.random() < 0.4
    eq = rng.random() < 0.8

    def change(self: Any) -> None:
        object.__setattr__(self, "number", changed(self.number))

    fields: list[Any] = []
    for part in parts:
        more: dict[str, Any] = {"repr": rng.random() < 0.8, "compare": rng.random() < 0.8}
        if part.is_set_later:
            more["init"] = False
        fields.append((part.name, part.kind.annotation, field(**more)))
    namespace = {"__post_init__": change} if rng.random() < 0.5 else {}
    cls = make_dataclass(
        name,
        fields,
        frozen=frozen,
        slots=slots,
        eq=eq,
        unsafe_hash=False,
        namespace=namespace,
        kw_only=rng.random() < 0.3,
    )
    is_hashable = eq and frozen and all(part.kind.is_hashable for part in parts)
    return of_parts(name_class(cls, name), parts, is_hashable=is_hashable, for_models=False)


def attrs_class(rng: random.Random, name: str, choose: Callable[[], Kind]) -> Kind:
    parts = random_parts(rng, choose)
    frozen = rng.random() < 0.4
    is_changed = rng.random() < 0.5
    fields = {}
    for part in parts:
        more: dict[str, Any] = {"repr": rng.random() < 0.8, "init": not part.is_set_later}
        if part.name == "number" and is_changed:
            more["converter"] = changed
        fields[part.name] = attrs.field(type=part.kind.annotation, **more)
    cls = attrs.make_class(name, fields, frozen=frozen, slots=rng.random() < 0.6, kw_only=rng.random() < 0.3)
    is_hashable = frozen and all(part.kind.is_hashable for part in parts)
    return of_parts(name_class(cls, name), parts, is_hashable=is_hashable, for_models=False)


def generic_class(rng: random.Random, name: str, choose: Callable[[], Kind]) -> Kind:
    kind = choose()
    many = list_of(random.Random(0), kind)
    annotations = {"one": T, "many": list[T], "number": int}
    cls: Any = types.new_class(name, (Generic[T],), {}, lambda body: body.update(__annotations__=annotations))
    cls = (dataclass if rng.random() < 0.5 else attrs.define)(name_class(cls, name))
    parts = [Part("one", kind), Part("many", many), Part("number", NUMBER)]
    return of_parts(cls, parts, is_hashable=False, for_models=False, annotation=cls[kind.annotation])


def derived_class(rng: random.Random, name: str, choose: Callable[[], Kind]) -> Kind:
    one, other = choose(), choose()
    base = name_class(make_dataclass(f"{name}Base", [("x", one.annotation)]), f"{name}Base")
    cls = name_class(make_dataclass(name, [("y", other.annotation)], bases=(base,)), name)
    return of_parts(cls, [Part("x", one), Part("y", other)], is_hashable=False, for_models=False)


def named_tuple(rng: random.Random, name: str, choose: Callable[[], Kind]) -> Kind:
    parts = [Part(f"x{place}", choose()) for place in range(rng.randrange(1, 4))]
    if rng.random() < 0.3:
        parts = [Part(part.name, Kind(Any, lambda maker: json_value(maker.rng), json_text)) for part in parts]
        cls: Any = namedtuple(name, [part.name for part in parts])
    else:
        cls = NamedTuple(name, [(part.name, part.kind.annotation) for part in parts])

    if rng.random() < 0.3:
        cls = type(name, (cls,), {})  # its objects can have attributes

    def make(maker: Maker) -> Any:
        return cls(*[maker.make(part.kind) for part in parts])

    def text(value: Any, exact: bool) -> str:
        return parts_text(cls, parts, value, exact, getattr(value, "__dict__", {}))

    is_hashable = all(part.kind.is_hashable for part in parts) and cls.__annotations__ != {}
    is_sure = all(part.kind.is_sure for part in parts)
    return Kind(name_class(cls, name), make, text, is_sure, is_hashable, for_models=False)


def typed_dict(rng: random.Random, name: str, choose: Callable[[], Kind]) -> Kind:
    parts = [Part(f"x{place}", choose()) for place in range(rng.randrange(1, 4))]
    total = rng.random() < 0.5
    cls: Any = TypedDict(name, {part.name: part.kind.annotation for part in parts}, total=total)
    of_name = {part.name: part.kind for part in parts}

    def make(maker: Maker) -> Any:
        return {part.name: maker.make(part.kind) for part in parts if total or maker.rng.random() < 0.6}

    def text(value: Any, exact: bool) -> str:
        items = items_of(value, dict, (dict,), exact)
        if set(items) - set(of_name) or (total and len(items) < len(parts)):
            raise Misfit
        return f"{{{', '.join(f'{key}={of_name[key].text(item, exact)}' for key, item in items.items())}}}"

    is_sure = all(part.kind.is_sure for part in parts)
    return Kind(name_class(cls, name), make, text, is_sure, is_hashable=False, for_models=False)


def model_class(rng: random.Random, name: str, choose: Callable[[], Kind]) -> Kind:
    found = [choose() for _ in range(rng.randrange(1, 4))]
    parts = [Part(f"x{place}", kind) for place, kind in enumerate(found) if kind.for_models]
    has_more, has_alias, is_checked = rng.random() < 0.4, rng.random() < 0.4, rng.random() < 0.4
    fields: dict[str, Any] = {"number": (int, 3)}
    for part in parts:
        alias = {"alias": f"{part.name}-alias"} if has_alias else {}
        fields[part.name] = (part.kind.annotation, pydantic.Field(repr=rng.random() < 0.8, **alias))
    validators: dict[str, Any] = {}
    if is_checked:
        validators["change"] = pydantic.field_validator("number")(changed)
    cls: Any = pydantic.create_model(
        name,
        __config__=pydantic.ConfigDict(extra="allow" if has_more else "ignore", populate_by_name=True),
        __validators__=validators,
        __module__=__name__,
        **fields,
    )
    parts = [Part("number", NUMBER), *parts]

    def make(maker: Maker) -> Any:
        values = {part.name: maker.make(part.kind) for part in parts}
        extra = {"more": json_value(maker.rng), "a=1, b": 2} if has_more and maker.rng.random() < 0.5 else {}
        if maker.is_right:
            try:
                return cls(**values, **extra)
            except pydantic.ValidationError:  # a NaN for a Decimal, a lone surrogate
                pass
        return cls.model_construct(**values, **extra)

    def text(value: Any, exact: bool) -> str:
        if type(value) is not cls:
            raise Misfit
        shown = parts_text(cls, parts, value, exact, value.__dict__)
        return f"{shown} {json_text(value.__pydantic_extra__, exact)} {value.__pydantic_private__}"

    is_sure = all(part.kind.is_sure for part in parts)
    return Kind(cls, make, text, is_sure, is_hashable=False)


CONTAINERS = [list_of, tuple_of, set_of, deque_of, dict_of, optional, union]
CLASSES = [data_class, data_class, attrs_class, attrs_class, generic_class, derived_class, named_tuple, typed_dict]
SIMPLE_CLASSES = [enum_class, literal, of_own]


def kinds(seed: str, count: int) -> list[Kind]:
    """Random types, the same in each process."""
    rng = random.Random(seed)
    found: list[Kind] = []

    def choose(depth: int, name: str, *, is_hashable: bool = False) -> Kind:
        draw = rng.random()
        if depth == 0 or draw < 0.3:
            return rng.choice(SCALARS)
        if draw < 0.4:
            return rng.choice(SIMPLE_CLASSES)(rng, name)
        if draw < 0.45 and not is_hashable:
            return untyped(rng)
        if draw < 0.75:
            form = rng.choice(CONTAINERS)
            item = choose(depth - 1, f"{name}i", is_hashable=is_hashable or form is set_of)
            return form(rng, item)
        number = iter(range(100))
        form_of_class = rng.choice([*CLASSES, model_class, model_class])
        return form_of_class(rng, name, lambda: choose(depth - 1, f"{name}{'abcdefgh'[next(number)]}"))

    while len(found) < count:
        depth, name = rng.randrange(1, 4), f"C{len(found)}"
        kind = choose(depth, name)
        found.append(kind)
    return found


# Values of another type than they seem


class Colour(enum.StrEnum):
    A = "a"


class Level(enum.IntEnum):
    ONE = 1


SUBCLASSES: dict[Any, Any] = {
    str: Word,
    int: Count,
    float: Ratio,
    list: Items,
    tuple: Row,
    dict: Table,
    set: Bag,
    Decimal: Money,
    bytes: Blob,
}


def subclassed(rng: random.Random, value: Any) -> Any:
    """An object of a subclass, in half of the cases with an attribute."""
    if type(value) is datetime:
        made: Any = Moment.of(value)
    elif type(value) in SUBCLASSES:
        made = SUBCLASSES[type(value)](value)
    elif type(value).__module__ == __name__ and not isinstance(value, enum.Enum):
        made = value
        with_attribute = getattr(made, "__dict__", None)
        if with_attribute is not None:
            with_attribute["besides"] = 1
        return made
    else:
        return value
    if rng.random() < 0.7:
        made.unit = "m"
    return made


def alike(rng: random.Random, value: Any) -> Any:
    """What Python takes for equal, or what looks the same when it is printed."""
    text = str(value).partition(" at 0x")[0]
    found: list[Any] = [text if "{" not in text else "{"]  # the order of a set is not the same in each process
    if isinstance(value, int | float):
        found += [bool(value), numpy.bool_(bool(value))]
        if math.isfinite(value) and abs(value) < 2**62:
            found += [int(value), float(value), numpy.float32(value), numpy.int64(value), Level.ONE, Decimal(value)]
    if isinstance(value, list | tuple | set | frozenset | deque):
        parts = sorted(value, key=repr) if isinstance(value, set | frozenset) else value  # the same in each process
        found += [list(parts), tuple(parts), deque(parts)]
    if isinstance(value, dict):
        found += [OrderedDict(value), defaultdict(int, value), Table(value), Counter(list(value))]
    if isinstance(value, datetime | time):
        found += [value.replace(fold=1), value.replace(tzinfo=None), value.replace(tzinfo=rng.choice(FIXED + ZONES))]
    if isinstance(value, str):
        found += ["\udb40\udc01", Colour.A, value.encode("utf-8", "surrogatepass"), Path(value or "."), numpy.str_("a")]
    return rng.choice(found)


def odd(rng: random.Random, value: Any) -> Any:
    """A value that may be none of the type of *value*."""
    draw = rng.random()
    if draw < 0.4:
        return subclassed(rng, value)
    if draw < 0.8:
        return alike(rng, value)
    scalar = rng.choice(SCALARS)
    more = [None, math.nan, b"", {1}, numpy.zeros(2), object(), {1: 2}, deque([1]), scalar.make(Maker(rng))]
    return rng.choice(more)


# Arguments


def portrait(value: Any) -> str:
    """A text that two arguments have in common only if they are the same argument."""
    kind = type(value)
    if isinstance(value, numpy.bool_ | numpy.integer | numpy.floating) and type(value.item()) in (bool, int, float):
        return portrait(value.item())
    if kind is numpy.str_:
        return portrait(str(value))
    name = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(value, enum.Enum):
        return f"{name} {value.value!r}"
    fields = compared_fields(value)
    if fields is not None:
        more = {field: item for field, item in attributes(value).items() if field not in fields[1]}
        shown = [f"{field}={portrait(getattr(value, field))}" for field in fields[0] if hasattr(value, field)]
        return f"{name}({', '.join(shown)}; {sorted(more)} {getattr(value, '__pydantic_extra__', None)!r})"
    if kind in (dict, defaultdict, Counter, set, frozenset):
        is_dict = isinstance(value, dict)
        parts = [f"{portrait(key)}: {portrait(value[key]) if is_dict else None}" for key in value]
        return f"{'dict' if is_dict else 'set'}({', '.join(sorted(parts))})"
    more = attributes(value) if kind.__module__ == __name__ else {}
    if isinstance(value, dict):
        parts = [f"{portrait(key)}: {portrait(item)}" for key, item in value.items()]
        return f"{name}({', '.join(parts if isinstance(value, OrderedDict) else sorted(parts))}; {more!r})"
    if isinstance(value, list | tuple | set | deque):
        parts = [portrait(item) for item in value]
        return f"{name}({', '.join(sorted(parts) if isinstance(value, set) else parts)}; {more!r})"
    return f"{name} {atom_text(value)} {more!r}"


def compared_fields(value: Any) -> tuple[list[str], list[str]] | None:
    """The fields of an object that tell it from others, and all of them."""
    kind = type(value)
    if attrs.has(kind):
        return [field.name for field in attrs.fields(kind) if field.eq], [field.name for field in attrs.fields(kind)]
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        return [field.name for field in fields if field.compare], [field.name for field in fields]
    if isinstance(value, pydantic.BaseModel):
        names = list(kind.model_fields)
        return names, [*names, *(name for name in dir(value) if name.startswith("__pydantic"))]
    return None


TWINS: dict[type[Any], type[Any]] = {}


def twin(value: Any) -> Any:
    """The same object of a class of the same name in another module."""
    kind = type(value)
    if kind not in TWINS:
        TWINS[kind] = types.new_class(kind.__name__, (kind,), {}, lambda body: body.update(__slots__=()))
        TWINS[kind].__qualname__, TWINS[kind].__module__ = kind.__qualname__, "elsewhere"
    made = copy.copy(value)
    object.__setattr__(made, "__class__", TWINS[kind])
    return made


def changed_part(rng: random.Random, value: Any) -> Any:
    """A value in which one part is another."""
    fields = compared_fields(value)
    if rng.random() < 0.3:
        return odd(rng, copy.deepcopy(value)) if fields is None or rng.random() < 0.5 else twin(value)
    with suppress(TypeError):  # what is not hashable
        if fields is not None and fields[1]:
            made = copy.copy(value)
            name = rng.choice([name for name in fields[1] if not name.startswith("__") and hasattr(value, name)])
            object.__setattr__(made, name, changed_part(rng, getattr(value, name)))
            return made
        if isinstance(value, dict) and value:
            changed_key = rng.choice(list(value))
            items = {key: item for key, item in value.items() if key != changed_key}
            if rng.random() < 0.5:
                items[changed_key] = changed_part(rng, value[changed_key])
            else:
                items[changed_part(rng, changed_key)] = value[changed_key]
            return items
        if type(value) in (list, tuple, set, frozenset) and value:
            parts = sorted(value, key=repr) if isinstance(value, set | frozenset) else list(value)
            place = rng.randrange(len(parts))
            parts[place] = changed_part(rng, parts[place])
            return type(value)(parts)
        if hasattr(type(value), "_fields"):
            return value._replace(**{rng.choice(value._fields): rng.choice(TEXTS)})
    return odd(rng, copy.deepcopy(value))
