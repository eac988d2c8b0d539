"""Wrong input raises early, with a fitting error that says what to do, and changes no record."""

from __future__ import annotations

import functools
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import pytest
from support import run_python
from support_api import FUNCTIONS, METHODS, call, never, parameters

import iso_orchestrator
from iso_orchestrator import (
    FormatVersionError,
    Lease,
    SerializationError,
    StepStatus,
    StoreError,
    Workflow,
    WorkflowUsageError,
    delete_workflow,
    lease_status,
    list_workflows,
    open_workflow,
    read_workflow_record,
    step,
)

NOBODY = 65534  # the user id that owns nothing, by convention


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one workflow in it."""
    folder = tmp_path / "root"
    with Workflow("kept", dir=folder, initial_state={"count": 1}) as workflow:
        workflow.run_step("before", lambda: "its result")
    return folder


@pytest.fixture
def workflow(root: Path) -> Iterator[Workflow]:
    """The workflow in the root; at the end its content is checked."""
    workflow = Workflow("kept", dir=root)
    workflow.append_event("opened")
    yield workflow
    workflow.close()
    record = read_workflow_record("kept", dir=root)
    assert record.steps["before"].result == "its result"
    assert record.state == {"count": 1}


def record_files(root: Path) -> dict[str, bytes]:
    """The bytes of all records under *root*."""
    return {path.name: path.read_bytes() for path in (root / "workflows").iterdir()}


@contextmanager
def unharmed(root: Path) -> Iterator[None]:
    """Check that no record changes by a byte inside."""
    before = record_files(root)
    yield
    assert record_files(root) == before


TAKERS = METHODS | {"Workflow": Workflow}


def use(workflow: Workflow, taker: str, **given: Any) -> object:
    """Use what *taker* makes of *given*: call a method, decorate with a decorator, enter a context manager."""
    if taker == "Workflow":
        return call(Workflow, **{"dir": workflow.dir, **given})
    made = call(TAKERS[taker], workflow, **given)
    if inspect.isfunction(made):
        return made(never)
    if isinstance(made, AbstractContextManager):
        with made:
            return None
    return made


# Ids and keys


BAD_TEXTS = {
    "empty": ("", ValueError, "empty or blank"),
    "blank": (" \t\n", ValueError, "empty or blank"),
    "a lone surrogate": ("a\ud800b", ValueError, "UTF-8"),
    "None": (None, TypeError, "must be a"),
    "a number": (7, TypeError, "must be a"),
    "bytes": (b"key", TypeError, "must be a"),
}

ID_TAKERS = [name for name, function in FUNCTIONS.items() if "workflow_id" in (p.name for p in parameters(function))]
TEXT_TAKERS = [
    (taker, parameter.name)
    for taker, function in TAKERS.items()
    for parameter in parameters(function)
    if parameter.is_required and parameter.annotation is str
]


@pytest.mark.parametrize("bad", BAD_TEXTS)
@pytest.mark.parametrize("taker", ID_TAKERS)
def test_what_can_be_no_id_is_refused_at_once(root: Path, taker: str, bad: str) -> None:
    """An id that is empty, blank, no str or not UTF-8 raises where it is given."""
    value, kind, says = BAD_TEXTS[bad]
    with unharmed(root), pytest.raises(kind, match=says):
        call(FUNCTIONS[taker], workflow_id=value, dir=root)


@pytest.mark.parametrize("bad", BAD_TEXTS)
@pytest.mark.parametrize(("taker", "name"), TEXT_TAKERS)
def test_what_can_be_no_key_is_refused_at_once(workflow: Workflow, root: Path, taker: str, name: str, bad: str) -> None:
    """A key, name or holder that is empty, blank, no str or not UTF-8 raises where it is given."""
    value, kind, says = BAD_TEXTS[bad]
    with unharmed(root), pytest.raises(kind, match=says):
        use(workflow, taker, **{name: value})


@pytest.mark.parametrize("option", ["name", "idempotency_key"])
@pytest.mark.parametrize("bad", ["empty", "blank", "a lone surrogate", "a number", "bytes"])
def test_a_steps_constant_name_or_key_is_refused_when_decorated(workflow: Workflow, option: str, bad: str) -> None:
    """A constant name or key of a step that is invalid raises at decoration."""
    value, kind, says = BAD_TEXTS[bad]
    with pytest.raises(kind, match=says):
        workflow.step(**{option: value})(never)


@pytest.mark.parametrize("bad", ["empty", "blank", "a lone surrogate", "a number"])
def test_a_key_made_of_an_item_is_refused_before_the_item_runs(workflow: Workflow, bad: str) -> None:
    """A `mutex_key` that makes an invalid key raises, and its item does not run."""
    value, kind, says = BAD_TEXTS[bad]
    with pytest.raises(kind, match=says):
        workflow.run_for_each([1], never, mutex_key=lambda item: value)


LEGAL_TEXTS = [
    "/",
    ".",
    "..",
    "../../../outside",
    "/outside",
    "a\nb",
    "a\0b",
    "\x1b]0;title\x07",
    "C:\\outside",
    "CON",
    "%2e%2e%2f",
    "-rf",
    "{braces}",
    "ключ ⚿ \U0001f511",
    "x" * 10_000,
    "../" * 4_000,
]


@pytest.mark.parametrize("text", LEGAL_TEXTS, ids=lambda text: ascii(text)[:20])
def test_every_other_text_is_legal_and_stays_inside_the_root(tmp_path: Path, text: str) -> None:
    """Slashes, dots, newlines, NUL and 10,000 characters are legal in names, and never become paths."""
    root = tmp_path / "deep" / "root"
    with Workflow(text, dir=root) as workflow:
        workflow.run_step(text, lambda: text)
        workflow.heartbeat(text)
        workflow.touch_lease(text, holder=text, ttl=60)
        with workflow.mutex(text), workflow.mutex(text, scope="store"):
            pass
        workflow.run_for_each([text], lambda item: item, mutex_key=lambda item: item)

    record = read_workflow_record(text, dir=root)
    assert (record.workflow_id, record.steps[text].result) == (text, text)
    assert (record.heartbeats[text].key, record.leases[text].holder) == (text, text)
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    assert list(root.parent.iterdir()) == [root]
    assert {path.name for path in root.iterdir()} == {".gitignore", "workflows", "locks"}
    assert Path(workflow.record_path).parent == root / "workflows"


def test_texts_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    """Ids that differ in one character, in case or in Unicode normal form are different workflows."""
    ids = [
        "a/b",
        "a\\b",
        "a b",
        "A B",
        "a\nb",
        "a\0b",
        "\u00e9",
        "e\u0301",
        "a b ",
        "x" * 10_000,
        "x" * 9_999,
    ]
    for workflow_id in ids:
        with Workflow(workflow_id, dir=tmp_path, initial_state=workflow_id):
            pass
    for workflow_id in ids:
        assert read_workflow_record(workflow_id, dir=tmp_path).state == workflow_id
    assert len(list(list_workflows(dir=tmp_path))) == len(ids)


# The root


@pytest.mark.parametrize("inner", ["", "below", "below/that"])
def test_a_root_that_is_a_file_is_refused(tmp_path: Path, inner: str) -> None:
    """A root that is a file, or is inside one, raises at the first use, and the file is not changed."""
    file = tmp_path / "file"
    file.write_bytes(b"somebody's")
    workflow = Workflow("batch", dir=file / inner)
    with pytest.raises(StoreError, match=str(file)):
        workflow.run_step("first", never)
    assert file.read_bytes() == b"somebody's"


@pytest.mark.parametrize("name", ["workflows", "locks"])
def test_a_file_in_the_place_of_a_folder_of_the_root_is_refused(tmp_path: Path, name: str) -> None:
    """A file in place of one of the root's folders raises at the first use, and is not changed."""
    (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(StoreError, match="folder"):
        open_workflow("batch", dir=tmp_path)
    assert (tmp_path / name).read_bytes() == b"somebody's"


def run_with_mounts(scenario: Callable[[Path], None], folder: Path, *mounts: list[str]) -> None:
    """Call *scenario* with *folder* in a process that has mounts of its own; skips where that is not permitted.

    Args:
        scenario: A function of this module.
        folder: What is mounted on.
        mounts: The options of each mount, one after the other.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    private = ["unshare", "--mount", *user, "sh", "-c"]
    mount = " && ".join(shlex.join(["mount", *options, str(folder)]) for options in mounts)
    try:
        probe = subprocess.run([*private, mount], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if probe.returncode:
        pytest.skip(f"mounting is not permitted here: {probe.stderr.partition(chr(10))[0].rpartition(': ')[2]}")
    code = f"import pathlib, sys, {__name__} as module; module.{scenario.__name__}(pathlib.Path(sys.argv[1]))"
    python = shlex.join([sys.executable, "-W", "error", "-c", code, str(folder)])
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    command = [*private, f"{mount} && exec {python}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Let this process read *folder* but not write there, even if it is root."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    is_root = os.geteuid() == 0
    if is_root:
        try:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
        except PermissionError:
            pytest.skip("root may neither write everywhere nor become somebody else here")
    modes = {path: path.stat().st_mode for path in folders}
    for path in folders:
        path.chmod(0o500)
    if is_root:
        os.seteuid(NOBODY)  # root may write everywhere
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, 0, 0)
        for path, mode in modes.items():
            path.chmod(mode)


def fails_to_write_and_can_read(root: Path) -> None:
    """Check that writing to the root fails and reading works."""
    for workflow_id in ("kept", "a new one"):
        with pytest.raises(StoreError, match="rights"):
            Workflow(workflow_id, dir=root).run_step("next", never)
    workflow = Workflow("kept", dir=root)
    assert (workflow.state, workflow.record.steps["before"].result) == ({"count": 1}, "its result")
    assert read_workflow_record("kept", dir=root).state == {"count": 1}
    assert [summary.workflow_id for summary in list_workflows(dir=root)] == ["kept"]


def test_a_root_without_the_right_to_write_is_refused_and_can_be_read(root: Path) -> None:
    """A root without write permission raises at the first use; reading works, and nothing changes."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to all other users
        Path(folder).chmod(0o755)
        copy = Path(folder) / "root"
        shutil.copytree(root, copy)
        with unharmed(copy), without_rights(copy):
            fails_to_write_and_can_read(copy)
        with Workflow("kept", dir=copy) as workflow:
            assert workflow.run_step("next", lambda: "goes on") == "goes on"


@pytest.mark.slow
def test_a_read_only_disk_is_refused_and_can_be_read(root: Path) -> None:
    """A root on a read-only disk raises at the first use; reading works, and nothing changes."""
    with unharmed(root):
        run_with_mounts(fails_to_write_and_can_read, root, ["--bind", str(root)], ["-o", "remount,bind,ro"])


def fill(folder: Path) -> Path:
    """Write a file that takes all the free space."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            for _ in range(256):  # 1 MiB, twice the disk
                file.write(b"\0" * 4096)
        except OSError:
            return ballast
    raise AssertionError("the disk is not full")


def loses_nothing_when_full(disk: Path) -> None:
    """Check a disk that fills up and then has room again."""
    calls: list[int] = []

    def large() -> str:
        calls.append(1)
        return "x" * 50_000

    root = disk / "root"
    workflow = Workflow("batch", dir=root)
    assert workflow.run_step("before", lambda: "its result") == "its result"
    ballast = fill(disk)
    with unharmed(root), pytest.raises(StoreError, match="space"):
        workflow.update_state("x" * 50_000)
    with pytest.raises(StoreError, match="space"):
        workflow.run_step("large", large, retry=3)
    assert len(calls) <= 1
    with pytest.raises(StoreError, match="space"):
        workflow.close()  # there is no room for the snapshot
    assert read_workflow_record("batch", dir=root).steps["before"].result == "its result"

    ballast.unlink()
    calls.clear()
    with Workflow("batch", dir=root) as workflow:
        assert workflow.run_step("before", never, on_change="ignore") == "its result"
        assert workflow.run_step("large", large) == "x" * 50_000
    assert calls == [1]


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    """A result without room on the disk raises, nothing is lost, and work continues when there is room."""
    run_with_mounts(loses_nothing_when_full, tmp_path, ["-t", "tmpfs", "-o", "size=512k", "tmpfs"])


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_an_error_and_loses_nothing(root: Path) -> None:
    """A process at its limit of file size gets a typed error and loses nothing."""
    code = """
import resource, sys
from iso_orchestrator import StoreError, Workflow
workflow = Workflow("kept", dir=sys.argv[1])
workflow.run_step("opened", lambda: None)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
calls = []
def large():
    calls.append(1)
    return "x" * 50_000
try:
    workflow.run_step("large", large, retry=3)
except StoreError as error:
    print(len(calls), error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(workflow.run_step("small", lambda: "goes on"))
workflow.close()
"""
    with run_python(code, root) as child:
        refused, goes_on = child.end()
    assert refused.startswith("1 ")
    assert "space" in refused
    assert goes_on == "goes on"
    record = read_workflow_record("kept", dir=root)
    assert record.steps["before"].result == "its result"
    assert record.steps["large"].status is not StepStatus.COMPLETED
    assert record.steps["small"].status is StepStatus.COMPLETED


# Values that are not JSON


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    return cycle


def _levels(count: int) -> Any:
    value: Any = "the ground"
    for _ in range(count):
        value = [value]
    return value


NOT_JSON: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: {"mean": [1.0, float("nan")]}, "$.mean[1]"),
    "infinity": (lambda: {"mean": float("-inf")}, "$.mean"),
    "bytes": (lambda: {"page": b"<html>"}, "$.page"),
    "a set": (lambda: [{"seen": {1, 2}}], "$[0].seen"),
    "an open file": (lambda: {"log": sys.stderr}, "$.log"),
    "an object": (lambda: [object()], "$[0]"),
    "a cycle": (_cycle, "$"),
    "200 levels": (lambda: _levels(200), "$"),
    "a key that is a number": (lambda: {"jobs": {1: "one"}}, "$.jobs"),
    "a key that is None": (lambda: {None: "nothing"}, "$"),
}

VALUE_TAKERS = [
    (taker, parameter.name)
    for taker, function in METHODS.items()
    for parameter in parameters(function)
    if parameter.annotation is Any
]


@pytest.mark.parametrize("case", NOT_JSON)
def test_a_result_that_is_not_json_is_refused(workflow: Workflow, case: str) -> None:
    """A result that is not JSON raises with the step and the place, and its body is not run again."""
    make, place = NOT_JSON[case]
    calls: list[int] = []

    def body() -> Any:
        calls.append(1)
        return make()

    with pytest.raises(SerializationError) as refused:
        workflow.run_step("collect", body, retry=3)
    assert "collect" in refused.value.subject
    assert refused.value.place.startswith(place)
    assert calls == [1]
    assert workflow.record.steps["collect"].status is StepStatus.FAILED


@pytest.mark.parametrize("case", NOT_JSON)
@pytest.mark.parametrize(("taker", "name"), [*VALUE_TAKERS, ("update_state", "by a function")])
def test_a_value_that_is_not_json_is_refused(workflow: Workflow, root: Path, taker: str, name: str, case: str) -> None:
    """A state or detail that is not JSON raises with the place, and nothing is recorded."""
    make, place = NOT_JSON[case]
    given = {"update": lambda _: make()} if name == "by a function" else {name: make()}
    with unharmed(root), pytest.raises(SerializationError) as refused:
        use(workflow, taker, **given)
    assert refused.value.place.startswith(place)


@pytest.mark.parametrize("case", NOT_JSON)
def test_an_initial_state_that_is_not_json_is_refused_at_construction(tmp_path: Path, case: str) -> None:
    """An initial state that is not JSON raises before a record exists."""
    make, place = NOT_JSON[case]
    with pytest.raises(SerializationError) as refused:
        Workflow("batch", dir=tmp_path / "root", initial_state=make())
    assert refused.value.place.startswith(place)
    assert list(tmp_path.iterdir()) == []


def test_what_is_nested_less_than_the_limit_is_kept(workflow: Workflow) -> None:
    """A result nested a hundred levels deep is recorded and read back."""
    assert workflow.run_step("deep", lambda: _levels(100)) == _levels(100)


# Numbers, times and options


OBJECT = object()


@pytest.mark.parametrize("taker", TAKERS)
def test_no_parameter_takes_any_object(workflow: Workflow, root: Path, taker: str) -> None:
    """What has a wrong type raises where it is given, and the error of an option names it."""
    for parameter in parameters(TAKERS[taker]):
        if parameter.annotation is not Any:
            what = parameter.name.rpartition("_")[2] if parameter.is_option else None
            with unharmed(root), pytest.raises((TypeError, ValueError, WorkflowUsageError), match=what):
                use(workflow, taker, **{parameter.name: OBJECT})


@pytest.mark.parametrize("taker", TAKERS)
def test_a_number_or_word_out_of_its_range_is_refused_at_once(workflow: Workflow, root: Path, taker: str) -> None:
    """Seconds below 0 and NaN, counts below 1 and unknown words raise where they are given; the error names them."""
    wrong: dict[Any, list[Any]] = {float: [-1, float("nan")], int: [-1, 0], Literal: ["galaxy"]}
    for parameter in parameters(TAKERS[taker]):
        kinds = parameter.kinds()
        for value in [] if str in kinds else [value for kind in kinds for value in wrong.get(kind, [])]:
            with unharmed(root), pytest.raises(ValueError, match=parameter.name.rpartition("_")[2]):
                use(workflow, taker, **{parameter.name: value})


WRONG_OPTIONS: dict[str, tuple[Callable[[Workflow], object], str]] = {
    "touch_lease(ttl=0)": (lambda workflow: workflow.touch_lease("slot", holder="me", ttl=0), "ttl"),
    "touch_lease(timedelta)": (lambda workflow: workflow.touch_lease("slot", holder="me", ttl=timedelta(0)), "ttl"),
    "lease(ttl=0)": (lambda workflow: workflow.lease("slot", ttl=0), "ttl"),
    "lease(holder)": (lambda workflow: workflow.lease("slot", holder="  \n"), "holder"),
    "heartbeating(every=0)": (lambda workflow: workflow.heartbeating("me", every=0), "every"),
    "heartbeating(every=inf)": (lambda workflow: workflow.heartbeating("me", every=float("inf")), "every"),
    "dir": (lambda _: Workflow("kept", dir=""), "dir is empty"),
    "set_status": (lambda workflow: workflow.set_status("on holiday"), "(?i)status"),
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_an_option_out_of_its_own_range_is_refused_at_once(workflow: Workflow, root: Path, option: str) -> None:
    """An option out of the range that it alone has raises where it is given, and the error names it."""
    give, says = WRONG_OPTIONS[option]
    with unharmed(root), pytest.raises(ValueError, match=says):
        give(workflow)


WRONG_TYPES: dict[str, Callable[[Workflow], object]] = {
    "timeout": lambda workflow: workflow.step(timeout="1")(never),
    "max_parallel": lambda workflow: workflow.for_each(max_parallel=2.5)(never),
    "ttl": lambda workflow: workflow.touch_lease("slot", holder="me", ttl="30"),
    "now": lambda workflow: Workflow("kept", dir=workflow.dir, now=datetime(2026, 5, 14, tzinfo=UTC)),
    "executor": lambda workflow: workflow.for_each(executor="threads")(never),
    "stop_on_error": lambda workflow: workflow.for_each(stop_on_error="no")(never),
    "Lease": lambda workflow: lease_status("slot"),
    "now is": lambda _: lease_status(Lease("slot", "me", *[datetime(2026, 5, 14, tzinfo=UTC)] * 3), "2026-05-14"),
    "what a mutex guards": lambda workflow: workflow.mutex("slot")("apply"),
    "retries": lambda workflow: workflow.step(retries=3),
    "'tries'": lambda workflow: workflow.run_step("new", never, tries=3),
    "limit": lambda workflow: workflow.command(limit="api"),
    "parallel": lambda workflow: workflow.for_each(parallel=2),
    "'after'": lambda _: step(after="other"),
}


@pytest.mark.parametrize("option", WRONG_TYPES)
def test_an_option_of_a_wrong_type_is_refused_at_once(workflow: Workflow, root: Path, option: str) -> None:
    """An option of nearly its type, and an unknown option, raise where they are given, and the error names them."""
    with unharmed(root), pytest.raises(TypeError, match=option):
        WRONG_TYPES[option](workflow)


# Clocks


def _naive() -> datetime:
    return datetime(2026, 5, 14)


def test_a_naive_clock_is_refused_at_construction(tmp_path: Path) -> None:
    """A `now` without a time zone raises before a record exists, and the error shows one that has one."""
    with pytest.raises(ValueError, match=r"naive.*datetime\.now\(UTC\)"):
        Workflow("batch", dir=tmp_path / "root", now=_naive)
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_turns_naive_changes_nothing(root: Path) -> None:
    """A `now` that loses its time zone raises, and the record is unchanged."""
    moment = datetime(2026, 5, 14, tzinfo=UTC)
    workflow = Workflow("kept", dir=root, now=lambda: moment)
    workflow.append_event("first")
    moment = _naive()
    with unharmed(root):
        with pytest.raises(ValueError, match="naive"):
            workflow.append_event("second")
        with pytest.raises(ValueError, match="naive"):
            workflow.run_step("next", never)
    moment = datetime(2026, 5, 15, tzinfo=UTC)
    assert workflow.run_step("next", lambda: "goes on") == "goes on"
    workflow.close()


def test_a_lease_is_not_judged_by_a_naive_time() -> None:
    """`lease_status` raises for a time without a zone."""
    moment = datetime(2026, 5, 14, tzinfo=UTC)
    with pytest.raises(ValueError, match="naive"):
        lease_status(Lease("slot", "me", moment, moment, moment), _naive())


# Functions that are no plain functions


async def _coroutine(item: int = 0) -> int:
    return item


def _generator(item: int = 0) -> Iterator[int]:
    yield item


async def _async_generator(item: int = 0) -> AsyncIterator[int]:
    yield item


class _AsyncCallable:
    """An object whose `__call__` is a coroutine function."""

    async def __call__(self) -> int:
        return 1


NOT_PLAIN = [_coroutine, _generator, _async_generator, functools.partial(_coroutine, 1), _AsyncCallable()]
FUNCTION_TAKERS: dict[str, Callable[[Workflow, Any], object]] = {
    "step": lambda workflow, fn: workflow.step(fn),
    "step(...)": lambda workflow, fn: workflow.step(name="one")(fn),
    "run_step": lambda workflow, fn: workflow.run_step("one", fn),
    "for_each": lambda workflow, fn: workflow.for_each()(fn),
    "run_for_each": lambda workflow, fn: workflow.run_for_each([1], fn),
    "free step": lambda workflow, fn: iso_orchestrator.step(fn),
    "free for_each": lambda workflow, fn: iso_orchestrator.for_each()(fn),
    "run": lambda workflow, fn: workflow.run(fn),
    "mutex": lambda workflow, fn: workflow.mutex("slot")(fn),
    "accept": lambda workflow, fn: workflow.step(accept=fn)(never),
}


@pytest.mark.parametrize("fn", NOT_PLAIN, ids=lambda fn: getattr(fn, "__name__", type(fn).__name__))
@pytest.mark.parametrize("taker", FUNCTION_TAKERS)
def test_a_function_that_is_not_plain_is_refused_at_once(
    workflow: Workflow, root: Path, taker: str, fn: Callable[..., Any]
) -> None:
    """Coroutine and generator functions raise, the error says which it is, and nothing is recorded."""
    with unharmed(root), pytest.raises(TypeError, match=r"is async|is a generator"):
        FUNCTION_TAKERS[taker](workflow, fn)


# Records and stores of other kinds


def _newer_record(root: Path) -> None:
    path = next((root / "workflows").glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))


def _newer_part(root: Path) -> None:
    path = next((root / "workflows").glob("*.json"))
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "isoOrchestrator": {**record["isoOrchestrator"], "format": 2}}))


def _line(fields: dict[str, Any], start: int) -> bytes:
    body = json.dumps(fields, separators=(",", ":"))[:-1].encode()
    return body + b',"crc":"%08x"}\n' % crc32(body, start)


def _newer_journal(root: Path) -> None:
    path = next((root / "workflows").glob("*.journal"))
    header = json.loads(path.read_text())
    del header["crc"]
    path.write_bytes(_line({**header, "journal": 2}, 0))


def _newer_fact(root: Path) -> None:
    path = next((root / "workflows").glob("*.journal"))
    header = json.loads(path.read_text())
    fact = {
        "seq": header["base"] + 1,
        "synced": header["base"],
        "fact": "moon.landed",
        "at": "2027-01-01T00:00:00.000Z",
    }
    path.write_bytes(path.read_bytes() + _line(fact, int(header["crc"], 16)))


@pytest.mark.parametrize("change", [_newer_record, _newer_part, _newer_journal, _newer_fact])
def test_a_record_of_a_newer_release_is_refused(root: Path, change: Callable[[Path], None]) -> None:
    """A record of a newer release raises, is not changed by a byte, and the error says to upgrade."""
    change(root)
    workflow = Workflow("kept", dir=root)
    with unharmed(root):
        with pytest.raises(FormatVersionError, match="upgrade"):
            workflow.run_step("next", never)
        with pytest.raises(FormatVersionError, match="upgrade"):
            _ = workflow.record
        with pytest.raises(FormatVersionError, match="upgrade"):
            read_workflow_record("kept", dir=root)


@pytest.mark.parametrize("url", ["carrier-pigeon://loft/7", "no scheme", "", "://"])
def test_a_store_url_that_nothing_serves_is_refused(tmp_path: Path, url: str) -> None:
    """A store URL with an unknown scheme raises at construction."""
    for take in (
        lambda: Workflow("batch", dir=tmp_path / "root", store=url),
        lambda: read_workflow_record("batch", store=url),
        lambda: list(list_workflows(store=url)),
        lambda: delete_workflow("batch", store=url),
    ):
        with pytest.raises(StoreError, match="store"):
            take()
    assert list(tmp_path.iterdir()) == []
