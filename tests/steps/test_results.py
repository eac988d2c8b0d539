"""What a step returns: the same value of the same type, on the first run as on every later one."""

from __future__ import annotations

import datetime as dt
import enum
import functools
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, NewType, TypedDict
from uuid import UUID

import attrs
import numpy
import pytest
from support import DEADLINE
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import ResultMismatchError, SerializationError, StepStatus, Workflow


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Quote:
    """A dataclass with fields that JSON does not have."""

    price: Decimal
    at: dt.datetime
    colors: tuple[Color, ...] = ()


@attrs.frozen
class Page:
    """An attrs class with other classes inside."""

    number: int
    quotes: list[Quote]
    source: Path | None = None


class Options(TypedDict, total=False):
    """A TypedDict."""

    level: Level
    since: dt.date


class SnapshotAndJournal(NamedTuple):
    """A named tuple."""

    left: int
    right: str


UserId = NewType("UserId", int)

AT = dt.datetime(2026, 5, 14, 12, 0, 0, 123456, tzinfo=dt.UTC)
QUOTE = Quote(Decimal("1.50"), AT, (Color.RED, Color.BLUE))

RESULTS: list[tuple[Any, Any]] = [
    (None, None),
    (int, 3),
    (float, 3),
    (float, 0.1),
    (str, "Łódź\n\x00\u2028"),
    (bool, True),
    (int | None, None),
    (list[int], [1, 2]),
    (tuple[int, ...], (1, 2)),
    (tuple[int, str], (1, "a")),
    (set[int], {3, 1, 2}),
    (frozenset[str], frozenset("ab")),
    (dict[str, list[Color]], {"a": [Color.RED]}),
    (dict[int, str], {1: "one", 2: "two"}),
    (Sequence[int], [1, 2]),
    (Mapping[str, int], {"a": 1}),
    (Color, Color.BLUE),
    (Level, Level.HIGH),
    (Quote, QUOTE),
    (list[Quote], [QUOTE, QUOTE]),
    (Page, Page(1, [QUOTE], Path("a/b.csv"))),
    (Page | None, None),
    (Quote | Page, QUOTE),
    (Quote | Page, Page(2, [])),
    (int | str, "3"),
    (int | str, 3),
    (Options, {"level": Level.LOW, "since": dt.date(2026, 5, 14)}),
    (SnapshotAndJournal, SnapshotAndJournal(1, "a")),
    (UserId, 7),
    (Literal["a", "b"], "b"),
    (dt.datetime, AT),
    (dt.datetime, dt.datetime(2026, 5, 14)),
    (dt.datetime, dt.datetime(2026, 5, 14, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
    (dt.date, dt.date(2026, 5, 14)),
    (dt.time, dt.time(12, 30, 1)),
    (dt.timedelta, dt.timedelta(days=-1, microseconds=1)),
    (Decimal, Decimal("0.10")),
    (UUID, UUID(int=7)),
    (Path, Path("/a/b")),
    (PurePosixPath, PurePosixPath("a")),
    (bytes, b"\x00\xff"),
    (Any, {"a": [1, 2.5, None]}),
    (object, ["a"]),
]


@pytest.mark.parametrize(
    ("annotation", "value"), RESULTS, ids=[f"{number} {kind}"[:50] for number, (kind, _) in enumerate(RESULTS)]
)
def test_an_annotated_result_keeps_its_type(tmp_path: Path, annotation: Any, value: Any) -> None:
    """A result has the annotated type and is equal on the first run, on the next call, and after a restart."""

    def body() -> Any:
        return value

    body.__annotations__ = {"return": annotation}
    results = []
    for _ in range(2):
        workflow = Workflow("w", dir=tmp_path)
        step = workflow.step(body)
        results += [step(), step()]
        workflow.close()
    for result in results:
        assert result == value
        assert type(result) is type(results[0])
        assert repr(result) == repr(results[0])
    if annotation is not float:
        assert type(results[0]) is type(value)


def test_a_result_without_an_annotation_is_json(tmp_path: Path) -> None:
    """Without an annotation a result has JSON types: a tuple is a list, on the first run too."""

    def body():  # type: ignore[no-untyped-def]
        return {"pair": (1, (2.5, None)), "level": Level.HIGH, "text": "a"}

    for _ in range(2):
        workflow = Workflow("w", dir=tmp_path)
        result = workflow.step(body)()
        assert result == {"pair": [1, [2.5, None]], "level": 2, "text": "a"}
        assert type(result["level"]) is int
        assert type(result["pair"]) is list
        workflow.close()


def test_the_order_of_keys_is_kept(tmp_path: Path) -> None:
    """A dict keeps the order of its keys."""
    for _ in range(2):
        workflow = Workflow("w", dir=tmp_path)
        assert list(workflow.run_step("load", lambda: {"b": 1, "a": 2, "c": 3})) == ["b", "a", "c"]
        workflow.close()


@pytest.mark.parametrize("value", [10**400, -(2**64) - 1, 1e308, 5e-324, 0.1 + 0.2, -0.0, "a\ud800b", "\x00"], ids=repr)
def test_numbers_and_texts_come_back_exactly(tmp_path: Path, value: Any) -> None:
    """Large ints, extreme floats and odd texts are read back exactly."""
    for _ in range(2):
        workflow = Workflow("w", dir=tmp_path)
        assert repr(workflow.run_step("exact", lambda: value)) == repr(value)
        workflow.close()


@pytest.mark.slow
def test_a_result_that_another_process_wrote_is_the_same(tmp_path: Path) -> None:
    """A result that another process recorded is read back with its type."""
    code = """
        from dataclasses import dataclass
        @dataclass
        class Quote:
            price: float
            at: int
        def quote() -> list[Quote]:
            return [Quote(1.5, 2)]
        workflow.run_step("quote", quote)
        workflow.close()
    """
    with child(code, tmp_path) as process:
        process.end()

    @dataclass
    class Quote:
        price: float
        at: int

    def quote() -> list[Quote]:
        return [Quote(0, 0)]

    workflow = Workflow("w", dir=tmp_path)
    assert workflow.run_step("quote", quote) == [Quote(1.5, 2)]
    workflow.close()


def test_a_waiting_caller_gets_the_type_too(workflow: Workflow) -> None:
    """A thread that waits for a step in another thread gets the annotated type, and a copy of its own."""
    gate = threading.Event()

    @workflow.step
    def page() -> Page:
        assert gate.wait(DEADLINE)
        return Page(1, [QUOTE])

    first = in_thread(page)
    second = in_thread(page)
    assert_waits(second)
    gate.set()
    assert first.result(DEADLINE) == second.result(DEADLINE) == Page(1, [QUOTE])
    assert first.result().quotes is not second.result().quotes


# Annotations


def test_a_text_annotation_is_resolved(workflow: Workflow) -> None:
    """An annotation that is a str is resolved with the names of the module and of the enclosing function."""

    @dataclass
    class Local:
        number: int

    @workflow.step
    def local() -> list[Local]:
        return [Local(1)]

    assert isinstance(local.fn.__annotations__["return"], str)
    assert local() == [Local(1)]
    assert local() == [Local(1)]


LATER = """
@workflow.step
def later() -> {annotation}:
    return {value}
"""


@pytest.mark.parametrize(
    ("annotation", "value"),
    [('"Later"', "Later(1)"), ('list["Later"]', "[Later(1)]"), ('"list[Later]"', "[Later(1)]")],
)
def test_an_annotation_that_does_not_resolve_yet_is_tried_again(
    workflow: Workflow, annotation: str, value: str
) -> None:
    """A class that is defined after the step is known at the first call."""
    namespace: dict[str, Any] = {"workflow": workflow, "dataclass": dataclass, "__name__": "module"}
    source = LATER.format(annotation=annotation, value=value)
    exec(compile(source, "module", "exec", dont_inherit=True), namespace)
    exec(compile("@dataclass\nclass Later:\n    number: int", "module", "exec", dont_inherit=True), namespace)
    expected = eval(value, namespace)
    assert namespace["later"]() == expected
    assert namespace["later"]() == expected


def test_an_annotation_that_never_resolves_is_refused_before_the_body_runs(workflow: Workflow) -> None:
    """A name that is imported for type checkers alone raises before the first body runs, and says what to do."""
    calls: list[int] = []
    namespace: dict[str, Any] = {"workflow": workflow, "calls": calls}
    source = "@workflow.step\ndef f() -> 'Nowhere': calls.append(1)"
    exec(compile(source, "module", "exec", dont_inherit=True), namespace)
    with pytest.raises(SerializationError, match=r"(?s)f\(\).*Nowhere.*import"):
        namespace["f"]()
    with pytest.raises(SerializationError, match=r"(?s)'g'.*Nowhere"):
        workflow.run_step("g", namespace["f"].fn)
    assert calls == []
    assert workflow.record.steps == {}


def test_an_annotation_that_nothing_fits_is_refused_at_decoration(workflow: Workflow) -> None:
    """A type that cannot be recorded raises where the function is decorated, before anything is paid for."""
    with pytest.raises(SerializationError, match=r"(?s)array.*ndarray.*save the value to a file and return its path"):

        @workflow.step
        def array() -> numpy.ndarray: ...

    with pytest.raises(SerializationError, match="parse"):

        @workflow.command(parse=lambda_with_lock)
        def parse() -> list[str]: ...


def lambda_with_lock(_: str) -> Opaque:
    raise AssertionError


def test_the_error_has_what_the_body_returned(workflow: Workflow) -> None:
    """`SerializationError` names the step, the place and both values, and has the result, which is paid for."""
    value = {"jobs": [{"at": 1}, {"at": AT}]}

    def body() -> dict[str, list[dict]] | None:  # type: ignore[type-arg]
        return value  # type: ignore[return-value]

    with pytest.raises(SerializationError) as caught:
        workflow.run_step("jobs", body)
    assert caught.value.value is value
    assert caught.value.place == "$.jobs[1].at"
    assert "'jobs'" in str(caught.value)
    assert "datetime.datetime(2026" in caught.value.reason
    assert "would come back as '2026-05-14T12:00:00.123456+00:00'" in caught.value.reason
    assert workflow.record.steps["jobs"].status is StepStatus.FAILED


def test_the_annotation_of_a_partial_function_counts(workflow: Workflow) -> None:
    """A partial function has the annotation of its function."""

    def page(number: int) -> Page:
        return Page(number, [])

    for _ in range(2):
        assert workflow.run_step("page", functools.partial(page, 3)) == Page(3, [])


def test_the_annotation_of_a_callable_object_counts(workflow: Workflow) -> None:
    """A callable object has the annotation of its `__call__`."""

    class Loader:
        def __call__(self) -> Page:
            return Page(1, [])

    for _ in range(2):
        assert workflow.run_step("page", Loader()) == Page(1, [])


def test_the_annotation_of_a_method_counts(workflow: Workflow) -> None:
    """A bound method, and a function that wraps another, have an annotation of their own."""

    class Loader:
        def load(self) -> Page:
            return Page(1, [])

    def around(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def wrapper(*args: Any) -> Any:
            return fn(*args)

        return wrapper

    @workflow.step
    @around
    def wrapped() -> Page:
        return Page(2, [])

    for _ in range(2):
        assert workflow.run_step("page", Loader().load) == Page(1, [])
        assert wrapped() == Page(2, [])


def test_run_step_keeps_the_annotation(workflow: Workflow) -> None:
    """`run_step` returns typed results like a decorated function."""

    def page() -> Page:
        return Page(1, [QUOTE])

    assert workflow.run_step("page", page) == Page(1, [QUOTE])
    assert workflow.run_step("page", page) == Page(1, [QUOTE])


def test_the_record_holds_json(workflow: Workflow) -> None:
    """The record has a result as plain JSON, whatever its type."""

    @workflow.step
    def page() -> Page:
        return Page(1, [], Path("a"))

    page()
    assert workflow.record.steps["page"].result == {"number": 1, "quotes": [], "source": "a"}


# What cannot be recorded


class Opaque:
    """An object without fields."""


UNRECORDABLE: list[tuple[str, Any, Any, str]] = [
    ("nan", None, {"a": [float("nan")]}, r"\$\.a\[0\]"),
    ("infinity", None, [1, float("inf")], r"\$\[1\]"),
    ("bytes", None, {"raw": b"a"}, r"\$\.raw"),
    ("a set", None, {"x": {1, 2}}, r"\$\.x"),
    ("an object", None, [[Opaque()]], r"\$\[0\]\[0\]"),
    ("a number as a key", None, {"a": {1: 2}}, r"\$\.a"),
    ("an open lock", None, threading.Lock(), r"\$"),
    ("a datetime", None, {"at": AT}, r"\$\.at"),
    ("nan as a float", float, float("nan"), r"\$"),
    ("a text as an int", int, "3", r"\$"),
    ("a float as an int", int, 3.9, r"\$"),
    ("None as a text", str, None, r"\$"),
    ("a text as a list", list[str], "abc", r"\$"),
    ("a text as a bool", bool, "false", r"\$"),
    ("another class", Page, QUOTE, r"\$"),
    ("a wrong field", Page, Page("one", []), r"\$"),  # type: ignore[arg-type]
    ("a missing value", Literal["a"], "b", r"\$"),
    ("something for None", type(None), 1, r"\$"),
]


@pytest.mark.parametrize(
    ("annotation", "value", "place"), [case[1:] for case in UNRECORDABLE], ids=[case[0] for case in UNRECORDABLE]
)
def test_what_would_be_lost_is_refused(workflow: Workflow, annotation: Any, value: Any, place: str) -> None:
    """A result that cannot be recorded without loss raises, naming step and place, and the step counts as failed."""
    calls = []

    def body() -> Any:
        calls.append(1)
        return value

    body.__annotations__ = {} if annotation is None else {"return": annotation}
    step = workflow.step(name="lossy", retry=3)(body)
    with pytest.raises(SerializationError, match=rf"(?s)'lossy'.*{place}") as raised:
        step()
    assert isinstance(raised.value, TypeError)
    record = workflow.record.steps["lossy"]
    assert (record.status, record.attempts, len(calls)) == (StepStatus.FAILED, 1, 1)
    assert record.error is not None
    assert record.error.name == "SerializationError"


def test_a_cycle_is_refused(workflow: Workflow) -> None:
    """A result that contains itself raises."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(SerializationError, match="cycle"):
        workflow.run_step("cycle", lambda: cycle)


def test_a_record_that_no_longer_fits_its_annotation_says_so(tmp_path: Path) -> None:
    """A recorded result that does not fit a changed class raises, stays recorded, and the step does not run again."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.run_step("page", lambda: {"number": "one", "quotes": []})

    def page() -> Page:
        pytest.fail("it ran again")

    with pytest.raises(ResultMismatchError, match=r"(?s)'page'.*\$\.number.*version=.*reset"):
        workflow.run_step("page", page)
    assert workflow.record.steps["page"].result == {"number": "one", "quotes": []}
    assert workflow.record.steps["page"].status is StepStatus.COMPLETED
    workflow.close()


def test_what_the_body_does_to_its_result_later_changes_nothing(workflow: Workflow) -> None:
    """A change of the result after the body returned does not change the record."""
    kept: list[int] = [1]
    assert workflow.run_step("load", lambda: kept) == [1]
    kept.append(2)
    assert workflow.run_step("load", list) == [1]


def test_the_types_of_a_step_are_its_functions(workflow: Workflow) -> None:
    """A step has the annotations of its function at run time."""

    @workflow.step
    def page(number: int) -> Page:
        return Page(number, [])

    assert typing.get_type_hints(page) == {"number": int, "return": Page}
