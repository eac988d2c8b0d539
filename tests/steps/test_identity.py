"""What makes two calls one step: name, arguments, idempotency key, version."""

from __future__ import annotations

import datetime as dt
import enum
import inspect
import subprocess
import sys
import textwrap
import threading
import types
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import numpy
import pydantic
import pytest
from support import DEADLINE, only, run_python

import iso_orchestrator
from iso_orchestrator import CommandResult, DuplicateStepError, OrchestratorError, StepNameError, Workflow


def takes(x: Any, y: Any = 2, *rest: Any, key: Any = None, **more: Any) -> str:
    """A function with every kind of parameter."""
    return "taken"


@pytest.fixture
def step(workflow: Workflow) -> iso_orchestrator.Step[..., str]:
    return workflow.step(takes)


# By arguments


def test_a_step_without_arguments_is_called_like_its_function(workflow: Workflow) -> None:
    """The name is what follows the last `<locals>.` of the qualified name, alone where there are no arguments."""

    class Shop:
        @staticmethod
        def cleanup() -> None: ...

    assert workflow.step(Shop.cleanup).step_name() == "Shop.cleanup"
    assert workflow.step(takes).step_name("a") == 'takes(x="a")'


@pytest.mark.parametrize(
    ("args", "named", "name"),
    [
        ((1,), {}, "takes(x=1)"),
        ((), {"x": 1}, "takes(x=1)"),
        ((1, 2), {}, "takes(x=1)"),
        ((1,), {"y": 2, "key": None}, "takes(x=1)"),
        ((1, 3), {}, "takes(x=1, y=3)"),
        ((), {"y": 3, "x": 1}, "takes(x=1, y=3)"),
        ((1, 2, 4, 5), {}, "takes(x=1, rest=(4, 5))"),
        ((1,), {"b": 2, "a": 1}, 'takes(x=1, more={"a": 1, "b": 2})'),
        ((1,), {"key": "k"}, 'takes(x=1, key="k")'),
        ((None,), {}, "takes(x=None)"),
    ],
)
def test_the_bound_arguments_are_the_identity(
    step: iso_orchestrator.Step[..., str], args: tuple[Any, ...], named: dict[str, Any], name: str
) -> None:
    """The arguments that differ from their defaults, in the signature's order, name a call, however it is written."""
    assert step.step_name(*args, **named) == name


def test_one_call_written_two_ways_runs_once(workflow: Workflow) -> None:
    """`f(1)`, `f(x=1)` and `f(1, y=2)`, where 2 is the default, are one step."""
    calls = []

    @workflow.step
    def f(x: int, y: int = 2) -> int:
        calls.append((x, y))
        return x + y

    assert [f(1), f(x=1), f(1, y=2), f(y=2, x=1)] == [3, 3, 3, 3]
    assert calls == [(1, 2)]


class Color(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


@dataclass
class Job:
    company: str
    tags: list[str] = field(default_factory=list)
    cache: object = field(default=None, compare=False)


@attrs.frozen
class Place:
    city: str
    seen: object = attrs.field(default=None, eq=False)


@dataclass
class Secret:
    user: str
    api_key: str = field(repr=False)


class Celsius(float):
    """A number with a meaning."""


class Fahrenheit(float):
    """A number with another one."""


@dataclass
class Config:
    model: str


class Tuned(Config):
    """A plain subclass of a dataclass: what it adds is in none of the fields."""


class Words(list[str]):
    """A list that can have attributes."""


class Options(dict[str, int]):
    """A dict that can have attributes."""


class Text(str):
    """A str with a slot of its own."""

    __slots__ = ("origin",)


class Permission(enum.IntFlag):
    READ = 1


class Open(pydantic.BaseModel):
    """A model with any fields."""

    model_config = pydantic.ConfigDict(extra="allow")


class Zone(dt.tzinfo):
    """A zone that has no name."""

    def utcoffset(self, _: object) -> dt.timedelta:
        return dt.timedelta(hours=1)


@dataclass
class Hiding:
    """A dataclass with a slot that is no field."""

    __slots__ = ("hidden", "value")
    value: int


class Slotted:
    """A plain class with a slot."""

    __slots__ = ("hidden",)


@dataclass
class SlottedPart(Slotted):
    value: int


NEW_YORK = ZoneInfo("America/New_York")

Pair = namedtuple("Pair", ["left", "right"])

RENDERED: list[tuple[Any, str]] = [
    ("a", '"a"'),
    ('a"b\\', '"a\\"b\\\\"'),
    ("Łódź 日本", '"Łódź 日本"'),
    ("two\nlines", '"two\\nlines"'),
    ("\x1b[31mred", '"\\u001b[31mred"'),
    ("right\u202eleft", '"right\\u202eleft"'),
    ("a\ud800b", '"a\\ud800b"'),
    (True, "True"),
    (1, "1"),
    (1.0, "1.0"),
    (-0.5, "-0.5"),
    (b"raw\x00", "b'raw\\x00'"),
    ([1, [2]], "[1, [2]]"),
    ((1,), "(1,)"),
    ({"b": 1, "a": {}}, '{"a": {}, "b": 1}'),
    (OrderedDict(b=1, a=2), 'OrderedDict({"b": 1, "a": 2})'),
    (defaultdict(int, b=1, a=2), '{"a": 2, "b": 1}'),
    ({1: "one"}, '{1: "one"}'),
    ({3, 1, 2}, "{1, 2, 3}"),
    (frozenset(), "set()"),
    (Color.RED, "test_identity.Color.RED"),
    (Size.SMALL, "test_identity.Size.SMALL"),
    (Job("Acme", ["a"], object()), 'test_identity.Job(company="Acme", tags=["a"])'),
    (Place("Bonn", object()), 'test_identity.Place(city="Bonn")'),
    (Pair(1, "b"), 'test_identity.Pair(left=1, right="b")'),
    (dt.date(2026, 5, 14), "date(2026-05-14)"),
    (dt.datetime(2026, 5, 14, 12, tzinfo=dt.UTC), "datetime(2026-05-14T12:00:00+00:00)"),
    (dt.time(12, 30), "time(12:30:00)"),
    (dt.timedelta(days=1, milliseconds=1), "timedelta(1d 0s 1000us)"),
    (Decimal("1.50"), 'Decimal("1.50")'),
    (UUID(int=1), 'UUID("00000000-0000-0000-0000-000000000001")'),
    (Path("a/b"), 'Path("a/b")'),
    (PureWindowsPath("a"), 'PureWindowsPath("a")'),
    (dt.datetime(2024, 3, 9, 9, tzinfo=NEW_YORK), "datetime(2024-03-09T09:00:00-05:00[America/New_York])"),
    (dt.time(9, tzinfo=NEW_YORK), "time(09:00:00[America/New_York])"),
    (Celsius(20), "test_identity.Celsius(20.0)"),
    (Words(["a"]), 'test_identity.Words(["a"])'),
    (Job, "test_identity.Job"),
    (takes, "test_identity.takes"),
    (len, "len"),
    (Secret("u", "s3cr3t"), 'test_identity.Secret(user="u", api_key=#5b9929d2f7ee9f74)'),
    (numpy.int64(7), "7"),
    (numpy.bool_(True), "True"),
    (numpy.float32(0.5), "0.5"),
    (numpy.float64(0.1), "0.1"),
    (numpy.str_("a"), '"a"'),
]


@pytest.mark.parametrize(("value", "text"), RENDERED, ids=[text[:40] for _, text in RENDERED])
def test_arguments_are_rendered_readably(step: iso_orchestrator.Step[..., str], value: object, text: str) -> None:
    """Each kind of argument has a faithful, printable form."""
    name = step.step_name(value)
    assert name == f"takes(x={text})"
    assert name.isprintable()


LOOK_ALIKES: list[Any] = [
    *[1, 1.0, True, "1", b"1", "True", None, "None", Decimal(1), Size.SMALL, [1], (1,), {1}, {1: 1}],
    *["a, y=3", "a", "a\\", 'a", y="3', {"a": 1}, ["a"], "['a']", ('a", "b',), ("a", "b")],
    *["\n", "\\n", "\u202e", "\\u202e", "é", "e\u0301", "…#0123456789abcdef"],
    *[Path("a"), dt.date(2026, 5, 14), dt.datetime(2026, 5, 14), "2026-05-14", dt.timedelta(1), dt.time()],
    *[
        dt.datetime(2024, 3, 9, 9, tzinfo=NEW_YORK),
        dt.datetime(2024, 3, 9, 9, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
    ],
    *[
        dt.time(9),
        dt.time(9, tzinfo=NEW_YORK),
        Celsius(20),
        Fahrenheit(20),
        20.0,
        PureWindowsPath("a"),
        Job,
        Place,
        Pair,
    ],
    *[Secret("u", "one"), Secret("u", "other"), Secret("u", ""), Color, Color.RED, "Color.RED", takes],
    *[Permission(8), Permission(16), Open(**{"a=1, b": 2}), Open(a=1, b=2), "\udb40\udc01", "\U000e0001"],
    *[OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), dt.datetime(2026, 5, 14, fold=1), dt.time(9, fold=1)],
    *[Job("a"), Place("a"), Pair("a", None), {"company": "a"}, 0.1, 0.1 + 2**-56, -0.0, 0, 10**5000, 10**5000 + 1],
]


def test_different_arguments_are_different_steps(step: iso_orchestrator.Step[..., str]) -> None:
    """No two arguments that differ are rendered alike, whatever their types."""
    names = [step.step_name(value) for value in LOOK_ALIKES]
    assert len(set(names)) == len(names)
    assert step.step_name("a", 3) != step.step_name('a", y="3')


def test_a_default_that_has_changed_is_another_argument(workflow: Workflow) -> None:
    """A default list that was changed is named as it is now; a default without a faithful form is not named."""

    @workflow.step
    def collect(x: int, found: list[int] = [], client: object = Opaque()) -> None: ...  # noqa: B006 - as users do

    assert collect.step_name(1) == "collect(x=1)"
    inspect.signature(collect).parameters["found"].default.append(7)
    assert collect.step_name(1) == "collect(x=1, found=[7])"
    assert collect.step_name(1, []) == "collect(x=1)"


@pytest.mark.parametrize(("length", "is_cut"), [(116, False), (117, True), (10_000, True)])
def test_long_arguments_are_cut_with_a_hash(step: iso_orchestrator.Step[..., str], length: int, is_cut: bool) -> None:
    """Rendered arguments of more than 120 characters are cut there, and a hash after the cut tells them apart."""
    name = step.step_name("a" * length)
    whole = f'x="{"a" * length}"'
    if not is_cut:
        assert name == f"takes({whole})"
        return
    assert name.startswith(f"takes({whole[:120]}")
    assert len(name) < 160
    assert name != step.step_name("a" * (length + 1))
    assert name != step.step_name("a" * (length - 1) + "b")


@pytest.mark.slow
def test_long_arguments_are_one_step_in_every_process(workflow: Workflow) -> None:
    """Neither the hash nor the order of a set or a dict depends on the process."""
    words = [f"word {number}" for number in range(30)]
    code = """
        import sys
        from iso_orchestrator import Workflow
        workflow = Workflow("w", store="memory://names")
        @workflow.step
        def takes(x): ...
        words = [f"word {number}" for number in range(30)]
        print(takes.step_name(set(words)))
        print(takes.step_name(dict.fromkeys(reversed(words))))
    """
    names = []
    for seed in ("1", "2"):
        with run_python("\n".join(line.strip() for line in code.splitlines()), env={"PYTHONHASHSEED": seed}) as child:
            names.append(child.end(DEADLINE))
    here = workflow.step(takes)
    assert names == [[here.step_name(set(words)), here.step_name(dict.fromkeys(words))]] * 2


def with_attribute(value: Any, name: str, attribute: object) -> Any:
    setattr(value, name, attribute)
    return value


def local_function() -> Callable[[], int]:
    def made_anew_by_each_call() -> int:
        return 1

    return made_anew_by_each_call


class Opaque:
    """A class whose instances have no faithful short form."""


@pytest.mark.parametrize(
    "value",
    [
        Opaque(),
        [Opaque()],
        {"a": {Opaque(): 1}},
        sys.stdout,
        lambda: 1,
        "a".upper,
        threading.Lock(),
        iter([]),
        types.SimpleNamespace(a=1),
        numpy.timedelta64(5, "D"),
        numpy.longdouble(1),
        local_function(),
        with_attribute(Tuned("m"), "temperature", 0.1),
        with_attribute(Words(["a"]), "origin", "x"),
        with_attribute(Options(a=1), "origin", "x"),
        with_attribute(Text("a"), "origin", "x"),
        with_attribute(SlottedPart(1), "hidden", 2),
        with_attribute(Hiding(1), "hidden", 2),
        dt.datetime(2026, 5, 14, tzinfo=Zone()),
    ],
)
def test_an_argument_without_a_faithful_form_needs_a_name(workflow: Workflow, value: object) -> None:
    """An argument without a faithful form raises before the body; the error names it and says to give `name=`."""
    step = workflow.step(takes)
    with pytest.raises(StepNameError, match=r"(?s)takes.*'y'.*name="):
        step(1, value)
    with pytest.raises(TypeError):
        step.submit(1, value)
    assert workflow.record.steps == {}
    assert workflow.step(name="named:{x}")(takes)(1, value) == "taken"


class Square(Config):
    """A subclass without attributes of its own, that computes one."""

    @cached_property
    def length(self) -> int:
        return len(self.model)


@attrs.define
class Slim:
    """A class with slots, that computes an attribute."""

    model: str

    @cached_property
    def length(self) -> int:
        return len(self.model)


@pytest.mark.parametrize("kind", [Square, Slim])
def test_what_is_computed_from_the_fields_does_not_count(step: iso_orchestrator.Step[..., str], kind: Any) -> None:
    """A cached property that was read changes no name."""
    value = kind("m")
    before = step.step_name(value)
    assert value.length == 1
    assert step.step_name(value) == before == f'takes(x=test_identity.{kind.__name__}(model="m"))'


def test_classes_of_one_name_in_two_modules_are_told_apart(step: iso_orchestrator.Step[..., str]) -> None:
    """An object is named with the module of its class."""
    source = "from dataclasses import dataclass\n@dataclass\nclass Job:\n    company: str"
    for module in ("shop", "mail"):
        sys.modules[module] = types.ModuleType(module)
    try:
        first, second = (in_module(source, module)["Job"]("a") for module in ("shop", "mail"))
    finally:
        for module in ("shop", "mail"):
            del sys.modules[module]
    assert step.step_name(first) == 'takes(x=shop.Job(company="a"))'
    assert step.step_name(second) == 'takes(x=mail.Job(company="a"))'


@pytest.mark.slow
def test_a_script_that_is_run_and_imported_means_the_same(tmp_path: Path) -> None:
    """Classes of a script are known by its real name, also where it runs as `__main__`, by its path or by `-m`."""
    (tmp_path / "batch.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from iso_orchestrator import Workflow
        workflow = Workflow("w", store="memory://names")
        @dataclass
        class Job:
            company: str
        @workflow.step
        def takes(x, cls): ...
        print(takes.step_name(Job("a"), Job))
        """)
    )
    commands = [["batch.py"], ["-m", "batch"], ["-c", "import batch"]]
    printed = {
        subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for args in commands
    }
    assert printed == {'takes(x=batch.Job(company="a"), cls=batch.Job)\n'}


def test_excluded_parameters_are_no_part_of_the_name(workflow: Workflow) -> None:
    """With `exclude=` calls that differ in these arguments alone are one step, and need no faithful form of them."""
    calls = []

    @workflow.step(exclude=["client", "api_key"])
    def fetch(client: object, page: int, api_key: str = "none") -> int:
        calls.append(page)
        return page

    assert [fetch(Opaque(), 1, "a"), fetch(Opaque(), 1, "b"), fetch(Opaque(), 2)] == [1, 1, 2]
    assert calls == [1, 2]
    assert list(workflow.record.steps) == ["fetch(page=1)", "fetch(page=2)"]


@pytest.mark.parametrize("exclude", ["page", [1], ["nope"]])
def test_exclude_takes_names_of_parameters(workflow: Workflow, exclude: Any) -> None:
    """Anything else is refused at decoration: one str as well, whose letters would be taken for names."""
    with pytest.raises(TypeError, match="exclude"):
        workflow.step(exclude=exclude)(takes_one)


def test_a_cycle_needs_a_name(step: iso_orchestrator.Step[..., str]) -> None:
    """Arguments that contain themselves cannot be rendered, and need `name=`."""
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(StepNameError, match="name="):
        step(cycle)


MISSING = object()


def test_a_default_that_cannot_be_rendered_is_left_out(workflow: Workflow) -> None:
    """A default that was not replaced is not rendered, and no part of the name."""

    @workflow.step
    def fetch(page: int, missing: object = MISSING) -> bool:
        return missing is MISSING

    assert fetch(1)
    assert list(workflow.record.steps) == ["fetch(page=1)"]
    with pytest.raises(StepNameError, match="missing"):
        fetch(1, object())


def test_an_argument_that_changes_in_the_body_does_not_change_the_name(workflow: Workflow) -> None:
    """A step is known by its arguments as they were at the call."""

    @workflow.step
    def consume(items: list[int]) -> int:
        return sum(items.pop() for _ in range(len(items)))

    assert consume([1, 2]) == 3
    assert list(workflow.record.steps) == ["consume(items=[1, 2])"]


# Methods


@dataclass
class Shop:
    """A class whose methods are steps."""

    city: str

    @iso_orchestrator.step
    def stock(self, item: str = "tea") -> str:
        return f"{item} in {self.city}"

    @iso_orchestrator.step(name="price:{self.city}:{item}")
    def price(self, item: str) -> str:
        return f"{item} in {self.city}"

    @staticmethod
    @iso_orchestrator.step
    def towns(country: str) -> list[str]:
        return [country]

    @classmethod
    @iso_orchestrator.step(name="open:{city}")
    def open(cls, city: str) -> str:
        return cls(city).city


def test_methods_are_steps_of_their_instance(workflow: Workflow) -> None:
    """The instance of a method is its first argument: different instances are different steps, equal ones are one."""
    with workflow:
        assert [Shop("Bonn").stock(), Shop("Kiel").stock(), Shop("Bonn").stock(item="tea")] == [
            "tea in Bonn",
            "tea in Kiel",
            "tea in Bonn",
        ]
        assert Shop("Bonn").price("rum") == "rum in Bonn"
        assert [Shop.towns("de"), Shop("Bonn").towns("de")] == [["de"], ["de"]]
        assert Shop.open("Ulm") == "Ulm"
    assert list(workflow.record.steps) == [
        'Shop.stock(self=test_identity.Shop(city="Bonn"))',
        'Shop.stock(self=test_identity.Shop(city="Kiel"))',
        "price:Bonn:rum",
        'Shop.towns(country="de")',
        "open:Ulm",
    ]


def test_a_bound_method_has_all_that_a_step_has(workflow: Workflow) -> None:
    """`.submit`, `.step_name` and `.fn` of a method know its instance."""
    shop = Shop("Bonn")
    with workflow:
        assert shop.price.submit("rum").result(DEADLINE) == "rum in Bonn"
        assert shop.stock.submit("rum").result(DEADLINE) == "rum in Bonn"
    assert shop.price.step_name("rum") == "price:Bonn:rum"
    assert shop.stock.step_name("rum") == 'Shop.stock(self=test_identity.Shop(city="Bonn"), item="rum")'
    assert shop.price.fn("rum") == "rum in Bonn"
    assert (shop.price.__name__, shop.stock.__doc__) == ("price", None)


class Plain:
    """A class whose instances have no faithful short form."""

    def __init__(self, client: object) -> None:
        self.client = client

    @iso_orchestrator.step
    def refused(self) -> None: ...

    @iso_orchestrator.step(exclude=["self"])
    def shared(self, page: int) -> int:
        return page

    @iso_orchestrator.step
    @classmethod
    def outer_class(cls, page: int) -> str:
        return f"{cls.__name__} {page}"

    @iso_orchestrator.step
    @staticmethod
    def outer_static(page: int) -> int:
        return page

    @classmethod
    @iso_orchestrator.step
    def inner_class(cls, page: int) -> str:
        return f"{cls.__name__} {page}"

    @iso_orchestrator.for_each(mutex_key="{self.client}")
    @iso_orchestrator.step(exclude=["self"])
    def each(self, page: int) -> str:
        return f"{self.client} {page}"

    @iso_orchestrator.for_each()
    @classmethod
    def each_of_class(cls, page: int) -> str:
        return f"{cls.__name__} {page}"


def test_methods_of_every_kind_are_steps(workflow: Workflow) -> None:
    """Class and static methods are steps in both orders of the decorators, called on the class or on an instance."""
    plain = Plain("c")
    with workflow:
        assert [Plain.outer_class(1), plain.outer_class(2), Plain.inner_class(3)] == ["Plain 1", "Plain 2", "Plain 3"]
        assert [Plain.outer_static(1), plain.outer_static(2), plain.shared(3)] == [1, 2, 3]
        assert plain.each([1, 2]).values() == ["c 1", "c 2"]
        assert [Plain.each_of_class([1]).values(), plain.each_of_class([2]).values()] == [["Plain 1"], ["Plain 2"]]
        with pytest.raises(StepNameError, match=r"(?s)'self'.*Plain.*exclude=\(\"self\",\)"):
            plain.refused()
    assert list(workflow.record.steps) == [
        *[f"Plain.outer_class(cls=test_identity.Plain, page={page})" for page in (1, 2)],
        "Plain.inner_class(cls=test_identity.Plain, page=3)",
        *["Plain.outer_static(page=1)", "Plain.outer_static(page=2)", "Plain.shared(page=3)"],
        *["Plain.each(page=1)", "Plain.each(page=2)"],
    ]


def test_signatures_say_what_is_taken_and_returned(workflow: Workflow) -> None:
    """`inspect.signature` of what a decorator made is that of its calls; `repr` of a step says its name."""

    @workflow.for_each()
    @workflow.step
    def each(page: int, *, language: str = "en") -> str: ...

    @workflow.command(parse="json")
    def count(text: str) -> list[str]: ...

    items = inspect.signature(each)
    assert list(items.parameters) == ["items", "language"]
    assert items.parameters["items"].annotation == "Iterable[int]"
    assert items.return_annotation == "ForEachSummary[str]"
    assert inspect.signature(count).return_annotation == CommandResult[Any]
    assert list(inspect.signature(Plain("c").shared).parameters) == ["page"]
    assert list(inspect.signature(Plain("c").each).parameters) == ["items"]
    assert repr(workflow.step(takes)) == "<step 'takes'>"
    assert repr(Plain("c").shared) == "<step 'Plain.shared'>"
    assert repr(workflow.step(name="page:{x}")(takes_one)) == "<step 'page:{x}'>"
    assert repr(each) == "<for_each each>"


def test_what_a_function_has_noted_on_itself_hides_no_method(workflow: Workflow) -> None:
    """Attributes of the function do not hide the step's methods of the same names."""

    def fetch(page: int) -> int:
        return page

    fetch._name = fetch.submit = "mine"  # type: ignore[attr-defined]  # as users mark their functions
    step = workflow.step(fetch)
    assert (step(1), step.submit(2).result(DEADLINE)) == (1, 2)
    assert workflow.for_each()(fetch)([3]).values() == [3]
    assert fetch.submit == step.fn.submit == "mine"  # type: ignore[attr-defined]  # as above


# By name


def test_a_name_is_a_format_string_over_the_arguments(workflow: Workflow) -> None:
    """A name template can use items, attributes and formats of all arguments, also of defaults; braces are doubled."""

    @workflow.step(name="{job.company}:{options[limit]:03d}:{tail!r} {{x}}")
    def apply(job: Job, options: dict[str, int], tail: str = "end") -> None: ...

    assert apply.step_name(Job("Acme"), {"limit": 7}) == "Acme:007:'end' {x}"
    apply(job=Job("Acme"), options={"limit": 7})
    assert list(workflow.record.steps) == ["Acme:007:'end' {x}"]


def test_a_name_is_a_function_of_the_arguments(workflow: Workflow) -> None:
    """A function that makes the name is called like the step, with defaults filled in."""

    def name(x: int, y: int, *rest: int, key: int, **more: int) -> str:
        return f"{x} {y} {rest} {key} {more}"

    @workflow.step(name=name)
    def f(x: int, y: int = 2, *rest: int, key: int = 3, **more: int) -> None: ...

    assert f.step_name(1) == "1 2 () 3 {}"
    assert f.step_name(1, 5, 6, key=7, other=8) == "1 5 (6,) 7 {'other': 8}"


@pytest.mark.parametrize("name", ["{nope}", "{x", "x}", "f:{x} {nope[a]}"])
def test_a_name_that_can_never_be_filled_in_is_refused_when_decorated(workflow: Workflow, name: str) -> None:
    """A template that is no format string, or names a missing parameter, raises at decoration."""

    def f(x: int) -> None: ...

    with pytest.raises((TypeError, ValueError)):
        workflow.step(name=name)(f)
    with pytest.raises((TypeError, ValueError)):
        workflow.step(name="f:{x}", idempotency_key=name)(f)


def test_a_name_that_cannot_be_filled_in_says_why(workflow: Workflow) -> None:
    """A call whose arguments do not fit the name template raises StepNameError and records no step."""
    step = workflow.step(name="apply:{x[company]}")(takes)
    with pytest.raises(StepNameError, match=r"company"):
        step({})
    assert workflow.record.steps == {}


@pytest.mark.parametrize("made", ["", "  ", None, 7, "a\ud800"])
def test_a_name_that_is_none_is_refused(workflow: Workflow, made: Any) -> None:
    """A function that makes no valid name raises, and no step is recorded."""
    with pytest.raises((TypeError, ValueError)):
        workflow.step(name=lambda x: made)(takes_one)(1)
    assert workflow.record.steps == {}


def takes_one(x: Any) -> str:
    return "taken"


@pytest.mark.parametrize("bad", [7, b"name", ["name"]])
@pytest.mark.parametrize("option", ["name", "idempotency_key"])
def test_a_name_of_a_wrong_type_is_refused_when_decorated(workflow: Workflow, option: str, bad: Any) -> None:
    """A name or key that is neither a str nor a function raises TypeError at decoration."""
    with pytest.raises(TypeError):
        workflow.step(**{option: bad})(takes_one)


def test_a_lambda_needs_a_name(workflow: Workflow) -> None:
    """A function without a name of its own cannot be decorated without `name=`, and can be with it."""
    with pytest.raises(StepNameError, match="name="):
        workflow.step(lambda: 1)
    assert workflow.step(name="one")(lambda: 1)() == 1
    assert workflow.run_step("two", lambda: 2) == 2


def in_module(source: str, module: str, **names: Any) -> dict[str, Any]:
    """Run *source* as if it stood in *module*."""
    namespace = {"__name__": module, **names}
    exec(compile(source, module, "exec", dont_inherit=True), namespace)
    return namespace


def test_two_functions_cannot_claim_one_name(workflow: Workflow) -> None:
    """Two functions with one constant name raise at decoration, and the error names both."""
    workflow.step(name="send")(takes)
    with pytest.raises(DuplicateStepError, match=r"(?s)send.*takes.*takes_one") as refused:
        workflow.step(name="send")(takes_one)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, OrchestratorError)


def test_two_functions_of_one_name_in_two_modules_cannot_claim_it(workflow: Workflow) -> None:
    """Two functions with one qualified name in two modules raise at decoration, and the error names both."""
    source = "@workflow.step\ndef send(to='all'): return 1"
    in_module(source, "mail", workflow=workflow)
    with pytest.raises(DuplicateStepError, match=r"(?s)mail.*post"):
        in_module(source, "post", workflow=workflow)


def test_a_name_made_of_arguments_can_be_shared(workflow: Workflow) -> None:
    """Names that depend on the arguments are not constant, and several functions may use them."""
    workflow.step(name="job:{x}")(takes)
    assert workflow.step(name="job:{x}")(takes_one)(1) == "taken"


def test_a_name_is_claimed_in_one_workflow(tmp_path: Path) -> None:
    """A constant name may belong to different functions in different workflows."""
    for number, fn in enumerate((takes, takes_one)):
        workflow = Workflow(f"w{number}", dir=tmp_path)
        assert workflow.step(name="send")(fn)(1) == "taken"
        workflow.close()


def test_run_step_takes_any_function_for_a_name(workflow: Workflow) -> None:
    """`run_step` claims no name."""
    assert workflow.run_step("send", takes, 1) == "taken"
    assert workflow.run_step("send", lambda: pytest.fail("it ran")) == "taken"
    assert workflow.step(name="send")(takes_one)(1) == "taken"


def test_a_cell_that_is_run_again_replaces_its_step(workflow: Workflow) -> None:
    """A function that is defined again in its module, as in a notebook, keeps its name and runs the new code."""
    source = "@workflow.step\ndef fetch(page): return f'{page} by {version}'"
    first = in_module(source, "__main__", workflow=workflow, version=1)["fetch"]
    assert first(1) == "1 by 1"
    second = in_module(source, "__main__", workflow=workflow, version=2)["fetch"]
    assert [second(1), second(2)] == ["1 by 1", "2 by 2"]


def test_a_free_name_is_claimed_where_it_is_used(workflow: Workflow, tmp_path: Path) -> None:
    """Two free steps may have one constant name, but not in one workflow."""
    one = iso_orchestrator.step(name="send")(takes)
    two = iso_orchestrator.step(name="send")(takes_one)
    with workflow:
        assert one(1) == "taken"
        with pytest.raises(DuplicateStepError, match="send"):
            two(1)
    with Workflow("other", dir=tmp_path):
        assert two(1) == "taken"


# By idempotency key


def test_the_same_key_is_the_same_step(workflow: Workflow) -> None:
    """A completed step with the same name and key returns its result, even for other arguments."""
    pay = workflow.step(name="pay:{x}", idempotency_key="{y}")(lambda x, y, note: f"{y} {note}")
    assert [pay(1, "k", "first"), pay(1, "k", "second")] == ["k first", "k first"]


def test_another_key_replaces_the_record(workflow: Workflow) -> None:
    """With another key the step runs again: attempts count from 1, and the old result is gone."""
    results = []

    @workflow.step(name="pay", idempotency_key="{order}", retry=3)
    def pay(order: str) -> str:
        results.append(order)
        if len(results) < 3:
            raise ConnectionError
        return order

    assert pay("A") == "A"
    assert (workflow.record.steps["pay"].attempts, workflow.record.steps["pay"].idempotency_key) == (3, "A")
    assert pay("B") == "B"
    step = only(workflow.record.steps.values())
    assert (step.attempts, step.idempotency_key, step.result) == (1, "B", "B")
    assert pay("A") == "A"
    assert results == ["A", "A", "A", "B", "A"]


def test_a_key_and_none_are_two(workflow: Workflow) -> None:
    """A step with a key is another one than without."""
    calls: list[object] = []
    for key in (None, "k", "k", None):
        workflow.run_step("pay", lambda key=key: calls.append(key), idempotency_key=key)
    assert calls == [None, "k", None]


def test_a_key_may_be_a_function_that_gives_none(workflow: Workflow) -> None:
    """A key may be a function of the arguments that returns None for no key."""
    pay = workflow.step(name="pay:{x}", idempotency_key=lambda x: x or None)(takes_one)
    pay("A")
    pay("")
    assert {step.name: step.idempotency_key for step in workflow.record.steps.values()} == {"pay:A": "A", "pay:": None}


@pytest.mark.parametrize("made", ["", " ", 7, "a\ud800"])
def test_a_key_that_is_none_is_refused(workflow: Workflow, made: Any) -> None:
    """A function that makes no valid key raises, and the body does not run."""
    with pytest.raises((TypeError, ValueError)):
        workflow.step(name="pay", idempotency_key=lambda x: made)(takes_one)(1)
    with pytest.raises((TypeError, ValueError)):
        workflow.run_step("pay", takes_one, 1, idempotency_key=made)
    assert workflow.record.steps == {}


# By version


def test_a_new_version_runs_again(tmp_path: Path) -> None:
    """A step with a new version runs again, after a restart too, with attempts from 1."""
    calls: list[object] = []

    def run(version: str | int | None) -> None:
        workflow = Workflow("w", dir=tmp_path)
        workflow.run_step("parse", lambda: calls.append(version), version=version)
        assert workflow.record.steps["parse"].attempts == 1
        workflow.close()

    for version in (None, 1, 1, 2, 2, "2b", None):
        run(version)
    assert calls == [None, 1, 2, "2b", None]


@pytest.mark.parametrize(
    ("version", "kind"), [("", ValueError), (" ", ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_version_that_is_none_is_refused_when_decorated(
    workflow: Workflow, version: Any, kind: type[Exception]
) -> None:
    """A version that is neither an int nor a str that is not blank raises at decoration."""
    with pytest.raises(kind):
        workflow.step(version=version)(takes)


# Functions that are called in other ways


def test_callables_that_are_no_functions_are_steps_by_name(workflow: Workflow) -> None:
    """Builtins, classes and callable objects can be steps if they have a name."""

    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    cases: list[tuple[Callable[..., Any], Any, Any]] = [(len, "abc", 3), (str, 7, "7"), (Adder(), 1, 2)]
    for number, (fn, argument, result) in enumerate(cases):
        assert workflow.run_step(f"step {number}", fn, argument) == result


class Model(pydantic.BaseModel):
    """A model with a field that it does not show."""

    model_config = pydantic.ConfigDict(extra="allow")
    name: str
    key: str = pydantic.Field(default="k", repr=False)


class Stateful(pydantic.BaseModel):
    """A model with state that is in no field."""

    name: str
    _client: object = pydantic.PrivateAttr(default_factory=object)


def test_pydantic_models_are_named_by_their_fields(step: iso_orchestrator.Step[..., str]) -> None:
    """Extra fields count too, hidden ones are hashed, and private attributes need `name=`."""
    key = sha256(b'"k"').hexdigest()[:16]
    assert step.step_name(Model(name="a")) == f'takes(x=test_identity.Model(name="a", key=#{key}))'
    assert step.step_name(Model(name="a", more=1)) == f'takes(x=test_identity.Model(name="a", key=#{key}, more=1))'
    with pytest.raises(StepNameError, match=r"(?s)Stateful.*private.*name="):
        step.step_name(Stateful(name="a"))
