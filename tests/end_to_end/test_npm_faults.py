"""What the npm package gets wrong, fault by fault, and that this library does not."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Child, WatchedFS, run_python, tree

from iso_orchestrator import (
    MutexTimeoutError,
    StepStatus,
    Workflow,
    WorkflowNotFoundError,
    WorkflowStatus,
    current_step,
    list_workflows,
    read_workflow_record,
)
from iso_orchestrator.store import FileStore

pytestmark = pytest.mark.slow

PAUSE = 0.2  # seconds in which what should not happen would have happened

# What a child begins with.
PROLOGUE = """
import os, sys
from iso_orchestrator import MutexTimeoutError, Workflow
workflow = Workflow("shared", dir=sys.argv[1])
"""


def child(code: str, root: Path, *, first: str = "") -> Child:
    """A process that runs *first*, imports the library, and runs *code* with the workflow "shared"."""
    return run_python(textwrap.dedent(first) + PROLOGUE + textwrap.dedent(code), root)


def assert_silent(process: Child) -> None:
    """A child says nothing for a while."""
    with pytest.raises(AssertionError, match="printed nothing"):
        process.line(PAUSE)


def files_of(workflow: Workflow) -> tuple[Path, Path]:
    """The snapshot and the journal."""
    snapshot = Path(workflow.record_path)
    return snapshot, snapshot.with_suffix(".journal")


def test_a_step_that_returns_nothing_runs_once(tmp_path: Path) -> None:
    """A step that returns None is completed by its first attempt, and stays so on resume."""
    calls: list[int] = []
    for _ in range(2):
        with Workflow("nothing", dir=tmp_path) as workflow:
            assert workflow.run_step("notify", lambda: calls.append(1), retry=3) is None
    assert calls == [1]
    assert workflow.record.steps["notify"].status is StepStatus.COMPLETED


def test_two_threads_that_call_one_step_run_it_once(tmp_path: Path) -> None:
    """Of two threads that call one step at a time one runs it, and both have its result."""
    calls: list[str] = []
    first_is_in, second_called = threading.Event(), threading.Event()

    def pay(who: str) -> str:
        calls.append(who)
        first_is_in.set()
        assert second_called.wait(DEADLINE)
        return who

    workflow = Workflow("twice", dir=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(workflow.run_step, "pay", pay, "first")
        assert first_is_in.wait(DEADLINE)
        second = pool.submit(workflow.run_step, "pay", pay, "second")
        with pytest.raises(TimeoutError):
            second.result(PAUSE)
        second_called.set()
        assert [first.result(DEADLINE), second.result(DEADLINE)] == ["first", "first"]
    workflow.close()
    assert calls == ["first"]


def test_two_processes_that_call_one_step_run_it_once(tmp_path: Path) -> None:
    """Of two processes that call one step at a time one runs it, and both have its result."""
    code = """
        def pay():
            print("paying")
            input()
            return os.getpid()
        print("calling")
        print(workflow.run_step("pay", pay))
        workflow.close()
    """
    with child(code, tmp_path) as runner:
        assert [runner.line(), runner.line()] == ["calling", "paying"]
        with child(code, tmp_path) as waiter:
            assert waiter.line() == "calling"
            assert_silent(waiter)
            runner.say()
            assert [runner.line(), waiter.line()] == [str(runner.pid)] * 2


@pytest.mark.parametrize("fails", [True, False], ids=["failure", "completion"])
def test_a_late_outcome_changes_nothing(tmp_path: Path, fails: bool) -> None:
    """An attempt that was given up undoes nothing that a later one has completed: nothing is paid again."""
    late = threading.Event()
    runners: list[threading.Thread] = []

    def pay() -> str:
        runners.append(threading.current_thread())
        if current_step().attempt == 2:
            return "paid"
        assert late.wait(DEADLINE)
        if fails:
            raise ConnectionError("too late")
        return "paid too late"

    with Workflow("late", dir=tmp_path) as workflow:
        assert workflow.run_step("pay", pay, retry=2, timeout=0.05) == "paid"
        late.set()
        runners[0].join(DEADLINE)
        assert not runners[0].is_alive()
        step = workflow.record.steps["pay"]
        assert (step.status, step.attempts, step.result) == (StepStatus.COMPLETED, 2, "paid")
        assert [event.type for event in workflow.record.events][-1] == "step.completed"
    with Workflow("late", dir=tmp_path) as workflow:
        assert workflow.run_step("pay", lambda: pytest.fail("it was paid again")) == "paid"


@dataclass
class Quote:
    """A result that is no JSON."""

    prices: tuple[float, ...]
    source: Path


def test_the_first_run_returns_what_a_resume_returns(tmp_path: Path) -> None:
    """A result is the same value of the same types on the first run and on every later one."""
    returned = []
    for _ in range(2):
        workflow = Workflow("equal", dir=tmp_path)

        @workflow.step
        def plain() -> Any:
            return {"pair": (1, 2.5)}

        @workflow.step
        def quote() -> Quote:
            return Quote((1.0, 2.5), Path("list.csv"))

        returned.append((plain(), quote()))
        workflow.close()
    assert returned == [({"pair": [1, 2.5]}, Quote((1.0, 2.5), Path("list.csv")))] * 2


def test_a_returned_value_is_not_the_records_own(tmp_path: Path) -> None:
    """What a caller does to a result reaches neither the record nor the next caller."""
    workflow = Workflow("copies", dir=tmp_path)
    kept: dict[str, list[int]] = {"jobs": [1]}
    result = workflow.run_step("load", lambda: kept)
    result["jobs"].append(2)
    kept["jobs"].append(3)
    assert workflow.run_step("load", dict) == {"jobs": [1]}
    assert workflow.record.steps["load"].result == {"jobs": [1]}
    workflow.close()


def test_a_step_called_in_a_loop_is_a_step_for_each_argument(tmp_path: Path) -> None:
    """Arguments are part of a step's identity: no item gets another's result."""
    for _ in range(2):
        workflow = Workflow("loop", dir=tmp_path)

        @workflow.step
        def double(number: int) -> int:
            return 2 * number

        assert [double(number) for number in (1, 2, 3)] == [2, 4, 6]
        workflow.close()


def test_each_run_has_all_the_attempts_of_a_step(tmp_path: Path) -> None:
    """The attempts that an earlier run has used up are not missing in the next."""
    calls = 0

    def flaky() -> str:
        nonlocal calls
        calls += 1
        if calls < 6:
            raise ConnectionError(f"call {calls}")
        return "done"

    with pytest.raises(ConnectionError, match="call 3"), Workflow("budget", dir=tmp_path) as workflow:
        workflow.run_step("flaky", flaky, retry=3)
    with Workflow("budget", dir=tmp_path) as workflow:
        assert workflow.run_step("flaky", flaky, retry=3) == "done"
    assert calls == 6


def test_a_killed_holder_frees_its_mutex(tmp_path: Path) -> None:
    """A mutex whose holder was killed is free at once."""
    code = """
        with workflow.mutex("slot"):
            print("held")
            input()
    """
    with Workflow("shared", dir=tmp_path) as workflow, child(code, tmp_path) as holder:
        assert holder.line() == "held"
        with pytest.raises(MutexTimeoutError), workflow.mutex("slot", timeout=0.05):
            pass
        holder.kill()
        with workflow.mutex("slot", timeout=DEADLINE):
            pass


def test_a_restart_right_after_a_crash_goes_on(tmp_path: Path) -> None:
    """A process that was killed while it changed the record keeps no other from opening and changing it."""
    code = """
        workflow.update_state({"count": 1})
        def update(state):
            print("updating")
            input()
        workflow.update_state(update)
    """
    with child(code, tmp_path) as writer:
        assert writer.line() == "updating"
        writer.kill()
    with Workflow("shared", dir=tmp_path) as workflow:
        assert workflow.update_state(lambda state: {"count": state["count"] + 1}) == {"count": 2}


def test_a_mutex_is_not_taken_from_a_live_holder_by_age(tmp_path: Path) -> None:
    """However old a lock looks, its holder keeps it, and a release frees nobody else's."""
    holds = """
        with workflow.mutex("slot"):
            print("held")
            input()
        print("freed")
        input()
    """
    tries = """
        try:
            with workflow.mutex("slot", timeout=0.05):
                print("taken")
        except MutexTimeoutError:
            print("refused")
    """
    with Workflow("shared", dir=tmp_path) as workflow, child(holds, tmp_path) as holder:
        assert holder.line() == "held"
        for path in (tmp_path / "locks").rglob("*lock"):
            os.utime(path, (0, 0))
        with pytest.raises(MutexTimeoutError) as refused, workflow.mutex("slot", timeout=0.05):
            pass
        assert refused.value.pid == holder.pid
        with ThreadPoolExecutor(1) as pool:
            is_released, is_taken = threading.Event(), threading.Event()

            def take() -> None:
                with workflow.mutex("slot", timeout=DEADLINE):
                    is_taken.set()
                    assert is_released.wait(DEADLINE)

            taking = pool.submit(take)
            holder.say()
            assert holder.line() == "freed"
            assert is_taken.wait(DEADLINE)
            with child(tries, tmp_path) as third:
                assert third.line() == "refused"
            is_released.set()
            taking.result(DEADLINE)


def test_the_records_lock_is_not_taken_from_a_live_holder_by_age(tmp_path: Path) -> None:
    """A writer that takes very long is waited for, however old its lock looks, and no change is lost."""
    code = """
        def update(state):
            print("updating")
            input()
            return {**state, "slow": 1}
        workflow.update_state(update)
        workflow.close()
        print("done")
    """
    with (
        Workflow("shared", dir=tmp_path) as workflow,
        child(code, tmp_path) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        assert writer.line() == "updating"
        for path in (tmp_path / "locks").rglob("*lock"):
            os.utime(path, (0, 0))
        quick = pool.submit(workflow.update_state, lambda state: {**state, "quick": 1})
        with pytest.raises(TimeoutError):
            quick.result(PAUSE)
        writer.say()
        assert quick.result(DEADLINE) == {"slow": 1, "quick": 1}
        assert writer.line() == "done"


def test_a_mutex_inside_itself_does_not_wait(tmp_path: Path) -> None:
    """A mutex is re-entrant, and the inner release does not free it."""
    with Workflow("nested", dir=tmp_path) as workflow, ThreadPoolExecutor(1) as pool:

        def try_it() -> None:
            with workflow.mutex("slot", timeout=0.05):
                pass

        with workflow.mutex("slot"):
            with workflow.mutex("slot", timeout=DEADLINE):
                pass
            with pytest.raises(MutexTimeoutError):
                pool.submit(try_it).result(DEADLINE)
        pool.submit(try_it).result(DEADLINE)


def test_a_look_creates_nothing(tmp_path: Path) -> None:
    """Whoever only looks at a workflow that is not there leaves no file, no folder and no lock."""
    root = tmp_path / "not" / "there"
    workflow = Workflow("looked-at", dir=root, initial_state={"count": 0})
    assert (workflow.state, workflow.record.status) == ({"count": 0}, WorkflowStatus.IDLE)
    assert "looked-at" in workflow._repr_html_()
    with pytest.raises(WorkflowNotFoundError):
        read_workflow_record("looked-at", dir=root)
    assert list(list_workflows(dir=root)) == []
    workflow.close()
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_a_live_record_changes_nothing(tmp_path: Path) -> None:
    """A reader of a workflow that is in use changes no byte and no name in the root."""
    workflow = Workflow("live", dir=tmp_path)
    workflow.update_state({"count": 1})

    before = tree(tmp_path)
    assert read_workflow_record("live", dir=tmp_path).state == {"count": 1}
    assert [summary.workflow_id for summary in list_workflows(dir=tmp_path)] == ["live"]
    assert tree(tmp_path) == before
    workflow.close()


def colliding_ids() -> tuple[str, str]:
    """Two ids for which the npm package has one file name."""
    stem = "the nightly batch number 4 of the whole company "
    seen: dict[str, str] = {}
    for number in range(17_000):
        workflow_id = f"{stem}{number}"
        digits = hashlib.sha1(workflow_id.encode()).hexdigest()[:8]
        if digits in seen:
            return seen[digits], workflow_id
        seen[digits] = workflow_id
    raise AssertionError("no two ids of the stem collide")


def test_ids_that_fall_on_one_name_have_a_record_each(tmp_path: Path) -> None:
    """Two ids of one file name are never mixed, whichever is opened first or again."""
    ids = colliding_ids()
    paths = {Workflow(workflow_id, dir=tmp_path).record_path for workflow_id in ids}
    assert len(paths) == 1  # as long as neither is there
    for _ in range(2):
        for workflow_id in ids:
            with Workflow(workflow_id, dir=tmp_path) as workflow:
                assert workflow.run_step("who", lambda workflow_id=workflow_id: workflow_id) == workflow_id
        assert [read_workflow_record(name, dir=tmp_path).workflow_id for name in ids] == list(ids)
    assert sorted(summary.workflow_id for summary in list_workflows(dir=tmp_path)) == sorted(ids)
    assert len({Workflow(workflow_id, dir=tmp_path).record_path for workflow_id in ids}) == 2


def test_a_step_costs_a_few_bytes_however_large_the_record_is(tmp_path: Path) -> None:
    """A step appends some hundred bytes to the journal, and the snapshot is left alone until the end."""
    workflow = Workflow("growth", dir=tmp_path, initial_state={"ballast": "x" * 100_000})
    with workflow:
        snapshot, journal = files_of(workflow)
        before = (snapshot.stat().st_ino, snapshot.read_bytes())
        sizes = [journal.stat().st_size]
        for number in range(60):
            workflow.run_step(f"step {number:02}", lambda: {"ok": True})
            sizes.append(journal.stat().st_size)
        assert (snapshot.stat().st_ino, snapshot.read_bytes()) == before
    growths = [later - earlier for earlier, later in itertools.pairwise(sizes)]
    assert min(growths) > 0
    assert max(growths) < 1000
    assert max(growths) - min(growths) < 20  # a sequence number takes a digit more now and then
    assert len(json.loads(snapshot.read_bytes())["steps"]) == 60
    assert journal.stat().st_size < 1000


def test_what_is_returned_is_on_the_disk(tmp_path: Path) -> None:
    """A step's completion is synced, by one sync, before the caller has the result."""
    synced: list[bytes] = []  # what the journal held at each sync

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "sync":
            synced.append(os.pread(arguments[0], 1 << 20, 0))

    fs = WatchedFS(before)
    workflow = Workflow("synced", store=FileStore(tmp_path, fs=fs))
    workflow.update_state({})
    for number in range(1, 6):
        synced.clear()
        workflow.run_step(f"step {number}", lambda: "a result")
        assert len(synced) == 1
        assert synced[0].count(b'"fact":"step.completed"') == number
    workflow.close()


def test_an_empty_record_opens_anew(tmp_path: Path) -> None:
    """A record that another program lost in a power cut, no bytes or zeros left of it, opens as a new one."""
    for content in (b"", b"\0" * 512):
        workflow = Workflow("empty", dir=tmp_path, initial_state={"count": 0})
        snapshot, journal = files_of(workflow)
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        journal.unlink(missing_ok=True)
        snapshot.write_bytes(content)
        with workflow:
            assert workflow.state == {"count": 0}


@pytest.mark.parametrize("cut", [1, 40, -1], ids=["a byte is missing", "half a line", "all but one byte"])
def test_a_torn_record_opens_with_all_that_was_whole(tmp_path: Path, cut: int) -> None:
    """A journal whose last line a crash has cut opens, has every line before it, and can be written to."""
    writes = """
        workflow.update_state({"count": 1})
        workflow.append_event("last")
        print("written")
        input()
    """
    with child(writes, tmp_path) as writer:
        assert writer.line() == "written"
        writer.kill()
    workflow = Workflow("shared", dir=tmp_path)
    _, journal = files_of(workflow)
    data = journal.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    journal.write_bytes(data[: last + 1] if cut < 0 else data[:-cut])

    with workflow:
        assert workflow.state == {"count": 1}
        assert "last" not in [event.type for event in workflow.record.events]
        workflow.append_event("next")
    assert "next" in [event.type for event in read_workflow_record("shared", dir=tmp_path).events]


def test_items_that_wait_for_their_key_hold_no_worker(tmp_path: Path) -> None:
    """Of the items A A A B and two workers B runs beside the first A."""
    b_runs = threading.Event()
    order: list[str] = []

    def visit(item: str) -> None:
        order.append(item)
        if item == "B":
            b_runs.set()
        elif item == "A1":
            assert b_runs.wait(DEADLINE), "B waits for the As"

    with Workflow("keys", dir=tmp_path) as workflow:
        workflow.run_for_each(["A1", "A2", "A3", "B"], visit, max_parallel=2, mutex_key=lambda item: item[0])
    assert [item for item in order if item != "B"] == ["A1", "A2", "A3"]


def test_an_item_waits_for_its_key_as_long_as_it_takes(tmp_path: Path) -> None:
    """An item whose key is taken for hours is not failed, it waits."""
    # Every look at a clock that a deadline could go by is an hour after the one before.
    hasty_clocks = """
        import itertools, time
        hours = itertools.count()
        def hasty(clock):
            return lambda: clock() + 3600 * next(hours)
        time.monotonic = hasty(time.monotonic)
        time.time = hasty(time.time)
        time.perf_counter = hasty(time.perf_counter)
    """
    code = """
        def visit(item):
            print(item)
        summary = workflow.run_for_each(["one", "two"], visit, mutex_key="slot", max_parallel=2)
        print(summary.fulfilled)
    """
    with Workflow("shared", dir=tmp_path) as workflow, child(code, tmp_path, first=hasty_clocks) as waiter:
        with workflow.mutex("slot"):
            assert_silent(waiter)
        assert [waiter.line() for _ in range(3)] == ["one", "two", "2"]


class EmptyError(Exception):
    """An error that is false because it has no length."""

    def __len__(self) -> int:
        return 0


class FalseError(Exception):
    """An error that says that it is false."""

    def __bool__(self) -> bool:
        return False


def _in_a_for_each(workflow: Workflow, fail: Callable[[], Any]) -> None:
    started: list[int] = []

    def visit(item: int) -> None:
        started.append(item)
        fail()

    try:
        workflow.run_for_each([1, 2, 3], visit)
    finally:
        assert started == [1]


def _in_a_mutex(workflow: Workflow, fail: Callable[[], Any]) -> None:
    with workflow.mutex("slot"):
        fail()


def _in_a_run(workflow: Workflow, fail: Callable[[], Any]) -> None:
    try:
        with workflow:
            fail()
    finally:
        assert workflow.record.status is WorkflowStatus.FAILED


def _in_a_submitted_step(workflow: Workflow, fail: Callable[[], None]) -> None:
    workflow.step(fail).submit().result(DEADLINE)


def _in_a_step(workflow: Workflow, fail: Callable[[], Any]) -> None:
    attempts: list[int] = []

    def body() -> None:
        attempts.append(current_step().attempt)
        fail()

    try:
        workflow.run_step("quiet", body, retry=2)
    finally:
        assert attempts == [1, 2]
        step = workflow.record.steps["quiet"]
        assert step.status is StepStatus.FAILED
        assert step.error is not None


@pytest.mark.parametrize("kind", [EmptyError, FalseError])
@pytest.mark.parametrize("place", [_in_a_for_each, _in_a_mutex, _in_a_run, _in_a_step, _in_a_submitted_step])
def test_a_falsy_error_is_an_error(
    tmp_path: Path, kind: type[Exception], place: Callable[[Workflow, Callable[[], Any]], None]
) -> None:
    """An error whose truth value is false ends what it was raised in, and reaches the caller."""

    def fail() -> None:
        raise kind("it went wrong")

    workflow = Workflow("falsy", dir=tmp_path)
    with pytest.raises(kind, match="it went wrong"):
        place(workflow, fail)
    workflow.close()


def _fail_in_a_step(workflow: Workflow, fail: Callable[[], None]) -> None:
    workflow.run_step("fails", fail)


def _fail_in_a_mutex(workflow: Workflow, fail: Callable[[], None]) -> None:
    with workflow.mutex("slot"):
        fail()


def _fail_in_a_lease(workflow: Workflow, fail: Callable[[], None]) -> None:
    with workflow.lease("slot", ttl=60):
        fail()


def _fail_in_a_for_each(workflow: Workflow, fail: Callable[[], None]) -> None:
    workflow.run_for_each([1], lambda _: fail(), mutex_key="slot")


def _fail_in_a_run(workflow: Workflow, fail: Callable[[], None]) -> None:
    with workflow:
        fail()


@pytest.mark.parametrize(
    "place", [_fail_in_a_step, _fail_in_a_mutex, _fail_in_a_lease, _fail_in_a_for_each, _fail_in_a_run]
)
def test_a_failure_of_recording_does_not_hide_the_users_error(
    tmp_path: Path, place: Callable[[Workflow, Callable[[], None]], None]
) -> None:
    """When a failure cannot be recorded, the caller still gets the user's error, with a note of the other."""
    is_full = False

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        if is_full and name == "write_at":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail() -> None:
        nonlocal is_full
        is_full = True
        raise LookupError("the user's own error")

    workflow = Workflow("hidden", store=FileStore(tmp_path, fs=WatchedFS(before)))
    with pytest.raises(LookupError, match="the user's own error") as raised:
        place(workflow, fail)
    assert any("was not re" in note for note in raised.value.__notes__)  # recorded, or released
    is_full = False
    workflow.close()
    with Workflow("hidden", dir=tmp_path) as workflow:
        assert workflow.run_step("next", lambda: "goes on") == "goes on"
