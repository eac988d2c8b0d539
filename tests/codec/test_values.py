from __future__ import annotations

import enum
import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict
from uuid import UUID

import attrs
import pytest
from support_codec import Colour, Level, cycle, nested

from iso_orchestrator.codec import ResultCodec, decode, encode, plain_json
from iso_orchestrator.errors import SerializationError


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


class Point3(Point):
    z: int = 0


class Derived(Quote):
    pass


class Pair(NamedTuple):
    left: int
    right: str


class Size(enum.Enum):
    SMALL = "s"
    BIG = 2


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
]


@pytest.mark.parametrize(
    ("annotation", "value"), RESULTS, ids=[f"{number} {kind}"[:60] for number, (kind, _) in enumerate(RESULTS)]
)
def test_results_come_back_as_their_annotation_says(annotation: Any, value: Any) -> None:
    """A result that was written as JSON is read back equal and of the annotated type."""
    codec = ResultCodec(annotation)
    recorded = decode(encode(codec.dump(value, "the result")))
    found = codec.load(recorded, "the result")
    assert repr(found) == repr(value)
    assert type(found) is type(value)


def test_without_annotation_json_comes_back() -> None:
    """Without an annotation a tuple comes back as a list, and values that are not JSON are refused."""
    codec = ResultCodec(__import__("inspect").Signature.empty)
    assert codec.load(codec.dump({"a": (1, 2)}, "it"), "it") == {"a": [1, 2]}
    with pytest.raises(SerializationError, match=r"annotate the .*function"):
        codec.dump({1, 2}, "it")


def test_loaded_results_share_nothing_with_the_record() -> None:
    """A caller that changes a result does not change the record."""
    for annotation in (Any, list[Any], dict[str, list[int]]):
        recorded: Any = {"a": [1]} if annotation != list[Any] else [[1]]
        found = ResultCodec(annotation).load(recorded, "it")
        inner = found[0] if isinstance(found, list) else found["a"]
        inner.append(2)
        assert recorded in ({"a": [1]}, [[1]])


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
    "set": (Any, {1}),
}


@pytest.mark.parametrize(("annotation", "value"), LOSSY.values(), ids=LOSSY.keys())
def test_results_that_do_not_fit_their_annotation_are_refused(annotation: Any, value: Any) -> None:
    """A result that would come back changed raises SerializationError, with its subject and place."""
    codec = ResultCodec(annotation)
    with pytest.raises(SerializationError, match=r"the result of step 'a' .*at \$"):
        codec.load(decode(encode(codec.dump(value, "the result of step 'a'"))), "the result of step 'a'")


def test_the_error_names_the_place() -> None:
    """The place of a value that does not fit is given as in `$[1]`."""
    codec = ResultCodec(list[int])
    with pytest.raises(SerializationError) as caught:
        codec.load([1, "2"], "the result")
    assert caught.value.place == "$[1]"
    assert "int expected, not str" in caught.value.reason


def test_annotation_that_does_not_resolve_yet_is_tried_again() -> None:
    """A class whose fields name a class that is defined later is structured as soon as that exists."""
    namespace: dict[str, Any] = {"__name__": "later", "dataclass": dataclass}
    module = type(io)("later")
    exec("@dataclass\nclass Outer:\n    inner: 'list[Inner]'", module.__dict__ | namespace, vars(module))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "later", module)
        outer = vars(module)["Outer"]
        with pytest.raises(SerializationError):
            ResultCodec(outer).dump(outer([]), "it")
        exec("@dataclass\nclass Inner:\n    n: int", namespace, vars(module))
        value = outer([vars(module)["Inner"](1)])
        codec = ResultCodec(outer)
        assert codec.load(codec.dump(value, "it"), "it") == value


def test_annotations_that_cannot_be_structured_read_as_json() -> None:
    """A class that cattrs cannot structure counts as no annotation."""

    class Opaque:
        pass

    codec = ResultCodec(Sequence["NotThere"])  # type: ignore[name-defined]  # noqa: F821
    assert codec.dump([1], "it") == [1]
    with pytest.raises(SerializationError, match="Opaque is not JSON"):
        ResultCodec(Opaque).dump(Opaque(), "it")


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
        codec.dump(value, "it")

    for _ in with_little_stack(convert):
        while made:
            value, codec = made.pop()
            assert plain_json(value, "it") == {"items": [{"at": "2026-05-14T00:00:00"}]}
            assert codec.load(codec.dump(value, "it"), "it") == value


def test_a_full_stack_spoils_no_codec() -> None:
    """A codec is made with its annotation, or not at all."""
    made: list[ResultCodec] = []

    @attrs.define
    class Late:
        at: datetime

    for _ in with_little_stack(lambda: made.append(ResultCodec(list[Late]))):
        pass
    value = [Late(datetime(2026, 5, 14))]
    assert [codec.load(codec.dump(value, "it"), "it") for codec in made] == [value] * len(made)
    assert made
