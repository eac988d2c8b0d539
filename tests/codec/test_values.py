from __future__ import annotations

import enum
import io
import math
import sys
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Optional, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import numpy
import pydantic
import pytest
from support import with_stack
from support_codec import Colour, Level, cycle, nested

from iso_orchestrator.codec import ResultCodec, Unresolved, decode, encode, plain_json
from iso_orchestrator.errors import ResultMismatchError, SerializationError


@attrs.define
class Quote:
    amount: Decimal
    at: datetime
    tags: frozenset[str] = frozenset()


@dataclass
class Point:
    x: int
    label: str | None = None


class Title(TypedDict):
    title: str


class Movie(Title, total=False):
    year: int


class Film(TypedDict):
    """A typed dict whose annotations are texts, since this module has them so."""

    title: str
    cover: NotRequired[bytes]


class Point3(Point):
    z: int = 0


class Derived(Quote):
    pass


@dataclass
class Named(Point):
    """A class that no field tells from its base."""


class Pair(NamedTuple):
    left: int
    right: str


class Size(enum.Enum):
    SMALL = "s"
    BIG = 2


@dataclass
class Report:
    """A class with a field that its body sets."""

    url: str
    findings: int = field(default=0, init=False)


def report(url: str, findings: int) -> Report:
    made = Report(url)
    made.findings = findings
    return made


@attrs.frozen
class Frozen:
    """A frozen class with fields that are not in `__init__`, and a converter that is not idempotent."""

    number: int = attrs.field(converter=lambda number: number + 1)
    more: int = 0
    twice: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.number)


@dataclass
class Price:
    """A price that the class puts a tax on."""

    amount: float

    def __post_init__(self) -> None:
        self.amount *= 1.19


@dataclass
class Node:
    number: int
    children: list[Node] = field(default_factory=list)


K = TypeVar("K")
T = TypeVar("T")


@attrs.define
class Box(Generic[T]):
    content: T


@attrs.define
class IntBox(Box[int]):
    pass


@dataclass(slots=True, frozen=True)
class Slim:
    number: int


Spot = namedtuple("Spot", ["x", "label"])


class Model(pydantic.BaseModel):
    at: datetime
    tags: set[str]
    point: Point | None


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str


@dataclass
class WithModel:
    model: Open


class Taxed(pydantic.BaseModel):
    """A model with a validator that is not idempotent, an alias and private attributes."""

    amount: float = pydantic.Field(alias="Amount")
    page: pydantic.HttpUrl | None = None
    node: Taxed | None = None
    _count: int = 0

    @pydantic.field_validator("amount")
    @classmethod
    def add_tax(cls, amount: float) -> float:
        return amount * 1.19


class Shelf(pydantic.BaseModel, Generic[T]):
    content: T


class Client(pydantic.BaseModel):
    _client: object = pydantic.PrivateAttr(default_factory=object)


class Cached(pydantic.BaseModel):
    """A model with private attributes that are as its class makes them."""

    number: int
    _cache: dict[str, int] = pydantic.PrivateAttr(default_factory=dict)
    _unset: int = pydantic.PrivateAttr()


class Rude(UserDict[str, int]):
    """A mapping that does not show itself."""

    def __repr__(self) -> str:
        raise ValueError

    __hash__ = object.__hash__


class Entry(TypedDict, Generic[K, T]):
    """A typed dict that looks like a mapping of two types."""

    key: K
    content: T


class Masked(pydantic.BaseModel):
    key: pydantic.SecretStr


@dataclass
class Noted:
    """A class whose objects have more than their fields."""

    number: int

    def __post_init__(self) -> None:
        self.total = 2 * self.number


@dataclass
class Untyped:
    anything: Any
    items: list  # type: ignore[type-arg]  # what a bare `list` does is tried


@dataclass
class Anything:
    value: object


class Words(list[str]):
    """A list that can have attributes."""


class Money(Decimal):
    """A number that can have attributes."""


class Blob(bytes):
    """Bytes with a meaning."""


class Day(date):
    """A date that can have attributes."""


class Place(NamedTuple("Place", [("x", int)])):
    """A named tuple that can have attributes."""


@dataclass
class Slotted:
    """A dataclass with a slot that is no field."""

    __slots__ = ("hidden", "number")
    number: int


@dataclass
class Failure(Exception):  # noqa: N818 - it is returned, not raised
    """A dataclass with arguments that are no fields."""

    number: int


def with_attribute(value: Any, name: str = "unit") -> Any:
    setattr(value, name, "m")
    return value


NEW_YORK = ZoneInfo("America/New_York")

QUOTE = Quote(Decimal("1.10"), datetime(2026, 5, 14, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2))), frozenset({"a"}))

RESULTS: list[tuple[Any, Any]] = [
    (int, 2**70),
    (float, 1.5),
    (str, "\ud800"),
    (bool, False),
    (None, None),
    (bytes, b"\x00\xff"),
    (Quote, QUOTE),
    (Point, Point(1)),
    (Point, Point(1, "a")),
    (Movie, {"title": "Alien", "year": 1979}),
    (Movie, {"title": "Alien"}),
    (Pair, Pair(1, "b")),
    (Size, Size.BIG),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (datetime, datetime(2026, 5, 14, 1, 2, 3, 456789, tzinfo=UTC)),
    (datetime, datetime(2026, 5, 14)),
    (date, date(2026, 5, 14)),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta.max),
    (Path, Path("a/../b")),
    (PurePosixPath, PurePosixPath("/a/b")),
    (Decimal, Decimal("NaN")),
    (Decimal, Decimal("1E+400")),
    (UUID, UUID(int=7)),
    (list[int], [1, 2]),
    (list[Quote], [QUOTE, QUOTE]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[int], {1, 2, 3}),
    (frozenset[str], frozenset({"a"})),
    (set[Pair], {Pair(1, "a")}),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {-1: "a", 2: "b"}),
    (dict[UUID, int], {UUID(int=7): 1}),
    (dict[date, list[Point]], {date(2026, 5, 14): [Point(1)]}),
    (dict[Size, int], {Size.SMALL: 1, Size.BIG: 2}),
    (dict[Level, int], {Level.LOW: 1}),
    (dict[bool, int], {True: 1, False: 2}),
    (dict[float, int], {1.5: 1, 2.0: 2}),
    (dict[tuple[int, str], int], {(1, "a"): 1}),
    (dict[Slim, int], {Slim(1): 1}),
    (Counter[int], Counter([1, 1, 2])),
    (Film, {"title": "Alien"}),
    (Film | None, {"title": "Alien", "cover": b"x"}),
    (Entry[int, bytes], {"key": 1, "content": b"x"}),
    (Literal["a", b"x"], b"x"),
    (Cached, Cached(number=1)),
    (dict[str, Any], {"a": [1, None, {"b": 2.5}]}),
    (Mapping[str, Point], {"a": Point(1)}),
    (list[Any], [1, "a", None]),
    (Optional[Point], None),  # noqa: UP045 - both spellings are users'
    (Point | None, Point(1)),
    (int | str, "1"),
    (int | str, 1),
    (int | None, 0),
    (Quote | Point | None, QUOTE),
    (Quote | Point | None, Point(2)),
    (list[int] | None, [1]),
    (Literal["a", 1], "a"),
    (Annotated[int, "metres"], 3),
    (Any, {"a": [1]}),
    (object, [1]),
    (Report, report("a", 7)),
    (Frozen, Frozen(1, 2)),
    (Price, Price(100)),
    (Node, Node(1, [Node(2), Node(3, [Node(4)])])),
    (Box[int], Box(1)),
    (Box[Point], Box(Point(1))),
    (IntBox, IntBox(3)),
    (Slim, Slim(1)),
    (datetime, datetime(2024, 3, 9, 9, tzinfo=NEW_YORK)),
    (datetime, datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK)),
    (datetime, datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1)),
    (datetime, datetime(2024, 3, 10, 2, 30, tzinfo=NEW_YORK)),
    (datetime, datetime(2024, 3, 9, tzinfo=ZoneInfo("UTC"))),
    (time, time(9, tzinfo=NEW_YORK)),
    (time, time(9, tzinfo=timezone(timedelta(hours=2)))),
    (deque[int], deque([1, 2])),
    (deque[int], deque([1, 2], maxlen=2)),
    (deque, deque([1, "a"], maxlen=3)),
    (Spot, Spot(1, "a")),
    (Model, Model(at=datetime(2026, 5, 14, tzinfo=UTC), tags={"a"}, point=Point(1))),
    (list[Model], [Model(at=datetime(2026, 5, 14, tzinfo=UTC), tags=set(), point=None)]),
    (Model | None, None),
    (Taxed, Taxed(Amount=1, node=Taxed(Amount=2), page="https://example.com/a")),
    (Model, Model(at=datetime(2026, 5, 14, tzinfo=NEW_YORK), tags=set(), point=None)),
    (WithModel, WithModel(Open(name="a", more=[1]))),
    (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    (defaultdict[str, int], defaultdict(int, a=1)),
    (Counter[str], Counter("aab")),
    (OrderedDict[int, int], OrderedDict({2: 1, 1: 2})),
    (defaultdict[int, int], defaultdict(int, {1: 2})),
    (defaultdict[str, list[int]], defaultdict(list, a=[1])),
    (Money, Money("1.50")),
    (Blob, Blob(b"ab")),
    (Day, Day(2026, 5, 14)),
    (Place, Place(1)),
    (Box[int], Box[int](1)),
    (Anything, Anything({"a": [1]})),
    (Shelf[datetime], Shelf[datetime](content=datetime(2026, 5, 14))),
]


@pytest.mark.parametrize(
    ("annotation", "value"), RESULTS, ids=[f"{number} {kind}"[:60] for number, (kind, _) in enumerate(RESULTS)]
)
def test_results_come_back_as_their_annotation_says(annotation: Any, value: Any) -> None:
    """A result that was written as JSON is read back equal and of the annotated type."""
    codec = ResultCodec(annotation)
    recorded = decode(encode(codec.round_trip(value, "the result")[0]))
    found = codec.load(recorded, "the result")
    assert repr(found) == repr(value)
    assert [getattr(found, name, None) for name in ("tzinfo", "fold")] == [
        getattr(value, name, None) for name in ("tzinfo", "fold")
    ]
    assert type(found) is type(value)


def test_without_annotation_json_comes_back() -> None:
    """Without an annotation a tuple comes back as a list, and values that are not JSON are refused."""
    codec = ResultCodec(__import__("inspect").Signature.empty)
    assert codec.load(codec.round_trip({"a": (1, 2)}, "it")[0], "it") == {"a": [1, 2]}
    with pytest.raises(SerializationError, match=r"annotate the .*function"):
        codec.round_trip({1, 2}, "it")[0]


def test_loaded_results_share_nothing_with_the_record() -> None:
    """A caller that changes a result does not change the record."""
    for annotation in (Any, list[Any], dict[str, list[int]]):
        recorded: Any = {"a": [1]} if annotation != list[Any] else [[1]]
        found = ResultCodec(annotation).load(recorded, "it")
        inner = found[0] if isinstance(found, list) else found["a"]
        inner.append(2)
        assert recorded in ({"a": [1]}, [[1]])


class NoZone(tzinfo):
    """A zone that has no name."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)


def test_numbers_of_numpy_come_back_as_pythons() -> None:
    """Numpy's scalars are equal to Python's, which come back, with an annotation and without one."""
    for annotation, value, expected in [
        (bool, numpy.bool_(True), True),
        (int, numpy.int64(5), 5),
        (float, numpy.float32(0.5), 0.5),
        (list[int], [numpy.int8(1)], [1]),
        (Any, {"a": numpy.int64(5), "b": (numpy.bool_(False),)}, {"a": 5, "b": [False]}),
        (Point, Point(numpy.int64(1)), Point(1)),  # type: ignore[arg-type]  # numpy has no place in the types
    ]:
        back = ResultCodec(annotation).round_trip(value, "it")[1]
        assert repr(back) == repr(expected)


def test_a_moment_whose_zone_has_new_rules_is_kept() -> None:
    """If the offset that was recorded is none that the zone has then, the moment counts."""
    codec = ResultCodec(datetime)
    read = codec.load("2024-03-09T09:00:00-04:00[America/New_York]", "it")
    assert read == datetime(2024, 3, 9, 8, tzinfo=NEW_YORK)
    assert read.tzinfo is NEW_YORK
    with pytest.raises(ResultMismatchError, match="Atlantis"):
        codec.load("2024-03-09T09:00:00-04:00[Sea/Atlantis]", "it")


def test_a_field_that_was_added_with_a_default_fits() -> None:
    """A recorded result reads as the class of today, if it has defaults for what is new."""
    codec = ResultCodec(Frozen)
    assert codec.load({"number": 5, "twice": 9}, "it").more == 0
    with pytest.raises(ResultMismatchError, match=r"at \$\.twice"):
        codec.load({"number": 5}, "it")


LOSSY: dict[str, tuple[Any, Any]] = {
    "text for int": (int, "1"),
    "float for int": (int, 1.0),
    "bool for int": (int, True),
    "int for bool": (bool, 1),
    "int for text": (str, 1),
    "None for int": (int, None),
    "None for class": (Point, None),
    "value for None": (None, 1),
    "text for list": (list[str], "abc"),
    "dict for list": (list[str], {"a": 1}),
    "text in list of int": (list[int], [1, "2"]),
    "nan in class": (list[float], [math.nan]),
    "text for set": (set[str], "abc"),
    "text for tuple": (tuple[str, ...], "abc"),
    "text for fixed tuple": (tuple[str, str], "ab"),
    "bytes for list": (list[int], b"ab"),
    "other class": (Point, QUOTE),
    "subclass": (Point, Point3(1)),
    "subclass of attrs": (Quote, Derived(QUOTE.amount, QUOTE.at)),
    "subclass within": (list[Point], [Point(1), Point3(1)]),
    "long int for float": (float, 2**53 + 1),
    "huge int for float": (float, 10**400),
    "date for datetime": (datetime, date(2026, 5, 14)),
    "datetime for date": (date, datetime(2026, 5, 14, tzinfo=UTC)),
    "field of another type": (Point, Point("1")),  # type: ignore[arg-type]
    "dict for class": (Point, {"x": 1}),
    "not in the literal": (Literal["a"], "b"),
    "not in the enum": (Size, "huge"),
    "text for datetime": (datetime, "2026-05-14"),
    "int for path": (Path, 7),
    "text for path": (Path, "a"),
    "text for pure path": (PurePosixPath, "a"),
    "text for decimal": (Decimal, "1.5"),
    "float for decimal": (Decimal, 1.5),
    "text for uuid": (UUID, str(UUID(int=7))),
    "missing key": (Movie, {"year": 1}),
    "key of another type": (dict[int, str], {"1": "a"}),
    "key between types": (dict[int | str, int], {1: 1}),
    "short tuple": (tuple[int, str], (1,)),
    "long tuple": (tuple[int, str], (1, "a", 2)),
    "named tuple of another type": (Pair, Pair("1", "a")),  # type: ignore[arg-type]
    "none of a union": (int | None, "1"),
    "datetime in a union with text": (datetime | str, datetime(2026, 5, 14, tzinfo=UTC)),
    "path in a union with text": (dict[str, Path | str], {"a": Path("a")}),
    "bytes in a union with text": (list[bytes | str | None], [None, b"abc"]),
    "open file": (Any, io.StringIO()),
    "bytes in a dict": (dict | None, {"png": b"abc"}),
    "datetime in a dict": (list[dict], [{"at": datetime(2024, 1, 1)}]),
    "path in a list": (dict[str, list], {"a": [Path("a")]}),
    "decimal in a tuple": (tuple[str, Any], ("a", Decimal(1))),
    "enum in a mapping": (Mapping[str, Any], {"a": Size.BIG}),
    "set in a union": (dict | str, {"a": {1}}),
    "uuid in a union": (dict | str, {"a": UUID(int=7)}),
    "class in a field": (Untyped, Untyped(Point(1), [])),
    "set in a field": (Untyped, Untyped(1, [{1}])),
    "tuple in a set": (set[Any], {(1, 2)}),
    "attribute besides the fields": (Noted, Noted(1)),
    "zone without a name": (datetime, datetime(2024, 1, 1, tzinfo=NoZone())),
    "fold without a zone": (datetime, datetime(2024, 1, 1, fold=1)),
    "list for deque": (deque[int], [1]),
    "deque for list": (list[int], deque([1])),
    "generator for list": (list[int], (number for number in [1])),
    "set for list": (list[int], {1}),
    "list for set": (set[int], [1]),
    "other default factory": (defaultdict[str, int], defaultdict(str)),
    "private attribute": (Client, Client()),
    "secret": (Masked, Masked(key=pydantic.SecretStr("a"))),
    "other model": (Open, Taxed(Amount=1)),
    "array": (Any, numpy.zeros(2)),
    "list that holds an array": (list[float], numpy.zeros(2)),
    "long double": (float, numpy.longdouble(1)),
    "set": (Any, {1}),
    "list with an attribute": (list[str], with_attribute(Words("ab"))),
    "list with an attribute in a dict": (Any, {"a": with_attribute(Words("ab"))}),
    "decimal with an attribute": (Decimal, with_attribute(Money(1))),
    "date with an attribute": (Day, with_attribute(Day(2026, 5, 14))),
    "named tuple with an attribute": (Place, with_attribute(Place(1))),
    "slot that is no field": (Slotted, with_attribute(Slotted(1), "hidden")),
    "fold of a time": (time, time(1, 30, tzinfo=NEW_YORK, fold=1)),
    "fold that means nothing": (datetime, datetime(2024, 1, 1, tzinfo=NEW_YORK, fold=1)),
    "bool for a literal int": (Literal[1], True),
    "enum in a union with text": (Colour | str, Colour.RED),
    "surrogate pair as two characters": (str, "\udb40\udc01"),
    "surrogate pair in a dict": (dict, {"a": ["\udb40\udc01"]}),
    "surrogate pair in a key": (dict, {"\udb40\udc01": 1}),
    "None for a key": (dict[str | None, int], {None: 1}),
    "NaN for a key": (dict[float, int], {math.nan: 1}),
    "mapping that does not show itself": (Mapping[str, int], Rude(a=1)),
    "key that does not show itself": (dict, {Rude(): 1}),
    "other class that does not show itself": (int, Rude()),
    "subclass of a model": (pydantic.BaseModel, Open(name="a")),
}


@pytest.mark.parametrize(("annotation", "value"), LOSSY.values(), ids=LOSSY.keys())
def test_results_that_do_not_fit_their_annotation_are_refused(annotation: Any, value: Any) -> None:
    """A result that would come back changed raises SerializationError, with its subject and place."""
    codec = ResultCodec(annotation)
    with pytest.raises(SerializationError, match=r"the result of step 'a' .*at \$"):
        codec.load(decode(encode(codec.round_trip(value, "the result of step 'a'")[0])), "the result of step 'a'")


def test_the_error_names_the_place() -> None:
    """The place of a value that does not fit is given as in `$[1]`."""
    codec = ResultCodec(list[int])
    with pytest.raises(SerializationError) as caught:
        codec.load([1, "2"], "the result")
    assert caught.value.place == "$[1]"
    assert "int expected, not str" in caught.value.reason


def test_annotation_that_does_not_resolve_yet_is_told_apart() -> None:
    """A class whose fields name a class that is defined later is structured as soon as that exists."""
    namespace: dict[str, Any] = {"__name__": "later", "dataclass": dataclass}
    module = type(io)("later")
    exec("@dataclass\nclass Outer:\n    inner: 'list[Inner]'", module.__dict__ | namespace, vars(module))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "later", module)
        outer = vars(module)["Outer"]
        with pytest.raises(Unresolved, match="Inner"):
            ResultCodec(outer)
        exec("@dataclass\nclass Inner:\n    n: int", namespace, vars(module))
        value = outer([vars(module)["Inner"](1)])
        assert ResultCodec(outer).round_trip(value, "it")[1] == value
    with pytest.raises(Unresolved, match="NotThere"):
        ResultCodec(Sequence["NotThere"])  # type: ignore[name-defined]  # noqa: F821 - on purpose


def test_recursion_limit_says_nothing_of_an_annotation() -> None:
    """Near the recursion limit a value comes back in its type, or RecursionError is raised."""
    found = []
    for left in range(1, 60):
        kind = attrs.make_class("Kind", {"day": attrs.field(type=date)}, frozen=True)
        with suppress(RecursionError):
            found.append(
                with_stack(left, partial(ResultCodec, kind)).load({"day": "2026-05-14"}, "it")
                == kind(date(2026, 5, 14))
            )
    assert all(found)
    assert found


class Opaque:
    """A class that cattrs does not know."""


@dataclass
class WithLock:
    lock: Opaque


@dataclass
class WithMaybeLock:
    locks: dict[int, list[Opaque | None]]


class Shape(enum.Enum):
    SQUARE = (1, 1)


@pytest.mark.parametrize(
    ("annotation", "part"),
    [
        (Opaque, "Opaque"),
        (list[Opaque], "Opaque"),
        (WithLock, "Opaque"),
        (complex, "complex"),
        (date | datetime, "date"),
        (Point | Named, "Named"),
        (Shape, "SQUARE"),
        (Failure, "Exception"),
        (numpy.ndarray, "ndarray"),
        (numpy.ndarray | None, "ndarray"),
        (Opaque | None, "Opaque"),
        (list[dict[int, Opaque | None]], "Opaque"),
        (WithLock | int | None, "Opaque"),
        (WithMaybeLock, "Opaque"),
        (Point | Named | None, "Named"),
        (NewType("Lock", Opaque), "Opaque"),  # type: ignore[valid-newtype]
        (defaultdict, "defaultdict"),
        (defaultdict[str, Any], "defaultdict"),
        (Iterator[int], "Iterator"),
        (Callable[[], int], "Callable"),
    ],
)
def test_annotations_that_no_value_fits_are_refused_at_once(annotation: Any, part: str) -> None:
    """What cannot be structured, or written, is refused before there is a value; the error names the part."""
    with pytest.raises(SerializationError, match=rf"(?s)the result of f\(\).*{part}.*path"):
        ResultCodec(annotation, "the result of f()")


def test_states_are_written_by_their_class() -> None:
    """A state or a detail may be JSON, or an object that cattrs unstructures by its class."""
    assert plain_json({"at": Point(1, "a"), "when": date(2026, 5, 14)}, "the state") == {
        "at": {"x": 1, "label": "a"},
        "when": "2026-05-14",
    }
    assert plain_json(QUOTE, "the state") == {
        "amount": "1.10",
        "at": "2026-05-14T01:02:03.000004+02:00",
        "tags": ["a"],
    }


@pytest.mark.parametrize("value", [math.nan, {"a": io.StringIO()}, cycle(), nested(200), object(), {1: "a"}])
def test_states_that_cannot_be_written_are_refused(value: object) -> None:
    """An object that cattrs does not know is refused, with the subject."""
    with pytest.raises(SerializationError, match=r"the state .*at \$"):
        plain_json(value, "the state")


def with_little_stack(work: Callable[[], object]) -> Iterator[int]:
    """Call *work* with ever more room on the stack, from none to enough; after each try, how many frames it had."""

    def call_at(levels: int) -> object:
        return work() if levels == 0 else call_at(levels - 1)

    def try_at(levels: int) -> bool:
        try:
            call_at(levels)
        except (RecursionError, SerializationError):  # which one depends on the place
            return False
        return True

    deepest = next(levels for levels in reversed(range(sys.getrecursionlimit())) if call_fits(levels))
    for room in range(300):
        is_enough = try_at(deepest - room)
        yield room
        if is_enough:
            return


def call_fits(levels: int) -> bool:
    try:
        return levels == 0 or call_fits(levels - 1)
    except RecursionError:
        return False


def test_a_full_stack_spoils_no_later_conversion() -> None:
    """A call that runs out of stack leaves the types that it met as they are for all later calls."""
    made: list[tuple[Any, ResultCodec]] = []

    def convert() -> None:
        inner = attrs.make_class("Inner", {"at": attrs.field(type=datetime)})  # whose hooks are still to be made
        outer = attrs.make_class("Outer", {"items": attrs.field(type=list[inner])})
        made.append((outer([inner(datetime(2026, 5, 14))]), ResultCodec(outer)))
        value, codec = made[-1]
        plain_json(value, "it")
        codec.round_trip(value, "it")[0]

    for _ in with_little_stack(convert):
        while made:
            value, codec = made.pop()
            assert plain_json(value, "it") == {"items": [{"at": "2026-05-14T00:00:00"}]}
            assert codec.load(codec.round_trip(value, "it")[0], "it") == value


def test_a_full_stack_spoils_no_codec() -> None:
    """A codec is made with its annotation, or not at all."""
    made: list[ResultCodec] = []

    @attrs.define
    class Late:
        at: datetime

    for _ in with_little_stack(lambda: made.append(ResultCodec(list[Late]))):
        pass
    value = [Late(datetime(2026, 5, 14))]
    assert [codec.load(codec.round_trip(value, "it")[0], "it") for codec in made] == [value] * len(made)
    assert made
