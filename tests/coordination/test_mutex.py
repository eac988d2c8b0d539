"""`workflow.mutex`: one holder at a time, over threads and processes, until it leaves or its process dies."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import DEADLINE, STORES, Child, WatchedFS, wait_until
from support_fanout import assert_apart, blocked, codes_of, is_waiting, mark, marks, new_seed
from support_processes import PAUSE, assert_waits, child, in_thread

from iso_orchestrator import FileStore, MemoryStore, MutexTimeoutError, Rejected, StepTimeoutError, StoreError, Workflow
from iso_orchestrator.coordination import mutex_queue
from iso_orchestrator.coordination.mutex_queue import Held, MutexState, Waiter, request, state_key_of
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.runtime.context import LockOwner, current_owner
from iso_orchestrator.store import WorkflowLog

posix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX only")


@pytest.fixture(params=STORES)
def workflow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow("w", store=STORES[request.param](tmp_path / "store"))
    yield workflow
    workflow.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow("w", dir=tmp_path)
    yield workflow
    workflow.close()


# What a child runs: it says when it holds the mutex, holds it until it gets a line, and says when it is free.
HOLD = """
with workflow.mutex("slot"):
    say("held")
    hear()
say("free")
hear()
"""


@contextmanager
def held_elsewhere(root: Path) -> Iterator[Child]:
    """Another process that holds the mutex "slot" until it gets a line."""
    with child(HOLD, root) as process:
        assert process.line() == "held"
        yield process


def is_free(workflow: Workflow, key: str = "slot", **options: Any) -> bool:
    """Whether another thread gets the mutex at once."""

    def take() -> bool:
        try:
            with workflow.mutex(key, timeout=0, **options):
                return True
        except MutexTimeoutError:
            return False

    got: bool = in_thread(take).result(DEADLINE)
    return got


def take(workflow: Workflow, key: str = "slot", **options: Any) -> str:
    with workflow.mutex(key, **options):
        return "had it"


@contextmanager
def held_in_another_thread(workflow: Workflow, key: str) -> Iterator[None]:
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with workflow.mutex(key):
            held.set()
            assert may_end.wait(DEADLINE)

    holder = in_thread(hold)
    assert held.wait(DEADLINE)
    yield
    may_end.set()
    holder.result(DEADLINE)


# One holder


def ask(workflow: Workflow, key: str, waiter: Waiter, timeout: float | None = None) -> MutexState:
    """Request the mutex without waiting for it."""
    with workflow._runtime.acquire() as session:
        return request(session, state_key_of(workflow._runtime, key, "workflow"), waiter, timeout)


def test_one_thread_at_a_time(workflow: Workflow) -> None:
    """Threads that increment a number under the mutex lose no increment."""
    number = 0

    def add() -> None:
        nonlocal number
        for _ in range(50):
            with workflow.mutex("slot"):
                before = number
                time.sleep(0)  # lets the other threads run here
                number = before + 1

    for future in [in_thread(add) for _ in range(4)]:
        future.result(DEADLINE)
    assert number == 200


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Two processes with two threads each increment a number in a file: no increment is lost, and no two overlap."""
    code = """
        from pathlib import Path
        from support_fanout import mark
        number = Path(root, "number")
        def add(who):
            for _ in range(30):
                with workflow.mutex("slot"):
                    mark(f"{root}/trace", "start", "slot", os.getpid(), who)
                    number.write_text(str(int(number.read_text()) + 1))
                    mark(f"{root}/trace", "end", "slot", os.getpid(), who)
        workflow.append_event("ready")
        say("ready")
        hear()
        threads = [threading.Thread(target=add, args=(who,)) for who in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        workflow.close()
    """
    (tmp_path / "number").write_text("0")
    with child(code, tmp_path) as one, child(code, tmp_path) as two:
        for process in (one, two):
            assert process.line() == "ready"
        for process in (one, two):
            process.say()
        for process in (one, two):
            process.end()
    assert (tmp_path / "number").read_text() == "120"
    assert len(assert_apart(marks(tmp_path / "trace"))["slot"]) == 120


def test_keys_exclude_only_themselves(workflow: Workflow) -> None:
    """A held mutex keeps no thread out of a mutex with another key."""
    with workflow.mutex("slot"):
        assert not is_free(workflow, "slot")
        assert is_free(workflow, "slots")
        assert is_free(workflow, "Slot")
        assert is_free(workflow, " slot")


def test_a_mutex_is_the_same_through_every_object(tmp_path: Path) -> None:
    """Two `Workflow` objects of one id exclude each other, and the holder can enter again through both."""
    one, two = Workflow("w", dir=tmp_path), Workflow("w", dir=str(tmp_path) + "/.")
    with one.mutex("slot"):
        assert not is_free(two)
        with two.mutex("slot", timeout=0):
            pass
        assert not is_free(two)
    assert is_free(two)
    one.close()
    two.close()


def test_workflows_have_mutexes_of_their_own(tmp_path: Path) -> None:
    """A key belongs to one workflow, or with scope="store" to one root, never to two roots."""
    one, two = Workflow("one", dir=tmp_path / "a"), Workflow("two", dir=tmp_path / "a")
    elsewhere = Workflow("one", dir=tmp_path / "b")
    with one.mutex("slot"), one.mutex("store", scope="store"):
        assert is_free(two, "slot")
        assert is_free(two, "slot", scope="store")
        assert is_free(one, "store")
        assert not is_free(two, "store", scope="store")
        assert is_free(elsewhere, "store", scope="store")
    assert is_free(two, "store", scope="store")
    for workflow in (one, two, elsewhere):
        workflow.close()


def test_a_mutex_of_the_whole_store_excludes_other_processes_workflows(tmp_path: Path) -> None:
    """`scope="store"` excludes processes that use different workflows."""
    code = """
        other = Workflow("other", dir=root)
        with other.mutex("slot", scope="store"):
            say("held")
            hear()
        say("free")
        hear()
    """
    workflow = Workflow("w", dir=tmp_path)
    with child(code, tmp_path) as process:
        assert process.line() == "held"
        assert not is_free(workflow, scope="store")
        assert is_free(workflow)
        process.say()
        assert process.line() == "free"
        assert take(workflow, scope="store", timeout=DEADLINE) == "had it"
    workflow.close()


def test_an_error_inside_frees_it(workflow: Workflow) -> None:
    """An error inside is raised as it is, and the mutex is free."""
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as raised, workflow.mutex("slot"):
        raise error
    assert raised.value is error
    assert is_free(workflow)


def test_it_is_on_record_once(workflow: Workflow) -> None:
    """Acquiring and releasing are one event each, with the key. Entering again is no event."""
    with workflow.mutex("slot"), workflow.mutex("slot"):
        pass
    events = [event for event in workflow.record.events if event.type.startswith("mutex.")]
    assert [(event.type, event.detail) for event in events] == [
        ("mutex.acquired", {"key": "slot"}),
        ("mutex.released", {"key": "slot"}),
    ]


def test_a_wait_that_timed_out_is_not_on_record(workflow: Workflow) -> None:
    """A wait that timed out records neither an acquisition nor a release."""
    with workflow.mutex("slot"):
        assert not is_free(workflow)
        assert codes_of(workflow.record.events, "mutex.acquired", "mutex.released") == ["mutex.acquired"]


def test_a_closed_workflow_still_holds_it(on_disk: Workflow, tmp_path: Path) -> None:
    """Closing the workflow inside frees no mutex. Leaving the mutex frees it."""
    with on_disk.mutex("slot"):
        on_disk.close()
        with child(
            "say(take := None)\ntry:\n    workflow.mutex('slot', timeout=0).__enter__()\n"
            "except MutexTimeoutError:\n    say('refused')\nhear()",
            tmp_path,
        ) as process:
            assert [process.line(), process.line()] == ["None", "refused"]
    assert is_free(on_disk)


def test_what_cannot_be_recorded_is_not_held(tmp_path: Path) -> None:
    """If the acquisition cannot be recorded, the mutex is free at once."""
    is_full = False

    def before(name: str, _: tuple[Any, ...]) -> None:
        if is_full and name == "write_at":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workflow = Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(before)))
    workflow.append_event("opened")
    is_full = True
    with pytest.raises(StoreError), workflow.mutex("slot"):
        pytest.fail("it was entered")
    is_full = False
    with child("with workflow.mutex('slot', timeout=0):\n    say('had it')\nhear()", tmp_path) as process:
        assert process.line() == "had it"
    workflow.close()


# Owners


def test_its_owner_may_enter_it_again(workflow: Workflow) -> None:
    """The holding thread can enter many times. The mutex is free when it has left as many times."""
    with workflow.mutex("slot"):
        with workflow.mutex("slot", timeout=0), workflow.mutex("slot", timeout=0):
            assert not is_free(workflow)
        assert not is_free(workflow)
    assert is_free(workflow)
    assert current_owner().holds == []


def test_an_error_from_an_inner_entry_leaves_the_outer_one(workflow: Workflow) -> None:
    """An error of an inner `with` does not free what the outer one holds."""
    with workflow.mutex("slot"):
        with pytest.raises(ValueError, match="no"), workflow.mutex("slot"):
            raise ValueError("no")
        assert not is_free(workflow)


@pytest.mark.parametrize("timeout", [None, DEADLINE], ids=["in its thread", "in a thread of its own"])
def test_a_step_inside_of_it_may_enter_it(workflow: Workflow, timeout: float | None) -> None:
    """A step called inside can enter its caller's mutex, and so can a step that this step calls."""

    def outer() -> str:
        with workflow.mutex("slot", timeout=0):
            return workflow.run_step("inner", inner, timeout=timeout)

    def inner() -> str:
        with workflow.mutex("slot", timeout=0):
            return "in"

    with workflow.mutex("slot"):
        assert workflow.run_step("outer", outer, timeout=timeout) == "in"
        assert not is_free(workflow)
    assert is_free(workflow)


@pytest.mark.parametrize("timeout", [None, DEADLINE], ids=["in its thread", "in a thread of its own"])
def test_a_step_owns_what_it_takes(workflow: Workflow, timeout: float | None) -> None:
    """A mutex that a step's body holds is not shared with its thread's other calls, and is free after the body."""

    def body() -> str:
        with workflow.mutex("slot"), workflow.mutex("slot", timeout=0):
            assert not is_free(workflow)
        return "out"

    assert workflow.run_step("step", body, timeout=timeout) == "out"
    assert is_free(workflow)


def test_a_submitted_step_does_not_own_it(workflow: Workflow) -> None:
    """A submitted step cannot enter its caller's mutex."""

    @workflow.step
    def beside() -> str:
        return take(workflow, timeout=0)

    with workflow.mutex("slot"), pytest.raises(MutexTimeoutError):
        beside.submit().result(DEADLINE)
    assert beside.submit().result(DEADLINE) == "had it"


def test_an_attempt_does_not_own_what_the_one_before_it_has(workflow: Workflow) -> None:
    """A retry waits for the mutex that a body that outlived its timeout still holds."""
    may_end = threading.Event()
    lines: list[list[str]] = []
    attempts: list[int] = []

    def body() -> str:
        with workflow.mutex("slot"):
            attempts.append(len(attempts) + 1)
            number = str(attempts[-1])
            lines.append(["start", "slot", number])
            if number == "1":
                assert may_end.wait(DEADLINE)
            lines.append(["end", "slot", number])
        return number

    step = in_thread(workflow.run_step, "step", body, timeout=0.5, retry=2)
    wait_until(lambda: workflow.record.steps["step"].attempts == 2 if attempts else False)
    may_end.set()
    assert step.result(DEADLINE) == "2"
    assert_apart(lines)


def test_it_is_held_while_a_body_that_outlived_its_timeout_runs(workflow: Workflow) -> None:
    """A step that timed out inside keeps the mutex held until its thread ends."""
    may_end = threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            workflow.run_step("slow", may_end.wait, DEADLINE, timeout=0.02)

    with pytest.raises(StepTimeoutError):
        in_thread(hold).result(DEADLINE)
    assert not is_free(workflow)
    waiter = blocked(take, workflow)
    may_end.set()
    assert waiter.result(DEADLINE) == "had it"


def test_a_body_that_outlived_its_timeout_keeps_it_from_its_own_thread(workflow: Workflow) -> None:
    """The thread that waited for the body cannot enter again either, after it has left the mutex."""
    may_end = threading.Event()
    try:
        with pytest.raises(StepTimeoutError), workflow.mutex("slot"):
            workflow.run_step("slow", may_end.wait, DEADLINE, timeout=0.02)
        with pytest.raises(MutexTimeoutError):
            take(workflow, timeout=0)
    finally:
        may_end.set()
    assert take(workflow, timeout=DEADLINE) == "had it"


# Waiting


def test_waiters_of_one_process_are_served_in_order(workflow: Workflow) -> None:
    """Threads get the mutex in the order of their requests."""
    order: list[int] = []

    def enter(number: int) -> None:
        with workflow.mutex("slot"):
            order.append(number)

    with workflow.mutex("slot"):
        waiters = [blocked(enter, number) for number in range(6)]
    for waiter in waiters:
        waiter.result(DEADLINE)
    assert order == list(range(6))


class _SlowToOpen(MemoryStore):
    """A store whose workflows are opened when `may_open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_opening, self.may_open = threading.Event(), threading.Event()

    def open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        self.is_opening.set()
        assert self.may_open.wait(DEADLINE)
        return super().open(workflow_id, new)


def test_a_workflow_that_is_slow_to_open_delays_no_mutex_of_another(workflow: Workflow) -> None:
    """To open a workflow may take long, where another process writes its snapshot."""
    store = _SlowToOpen()
    slow = in_thread(take, Workflow("slow", store=store))
    assert store.is_opening.wait(DEADLINE)
    assert in_thread(take, workflow).result(DEADLINE) == "had it"
    store.may_open.set()
    assert slow.result(DEADLINE) == "had it"


@pytest.mark.parametrize("most_threads", [32, 0])
def test_waiters_are_served_in_order_after_another_process(
    on_disk: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_threads: int
) -> None:
    """They keep this order if another process holds the mutex first, with a thread for the key and without."""
    monkeypatch.setattr(mutex_queue, "_MOST_THREADS", most_threads)
    order: list[int] = []

    def enter(number: int) -> None:
        with on_disk.mutex("slot"):
            order.append(number)

    with held_elsewhere(tmp_path) as other:
        waiters = [blocked(enter, number) for number in range(5)]
        assert order == []
        other.say()
        for waiter in waiters:
            waiter.result(DEADLINE)
    assert order == list(range(5))


def test_processes_take_turns(tmp_path: Path) -> None:
    """Two processes with several threads each always want the mutex: it goes back and forth between the processes."""
    code = """
        from support_fanout import mark
        is_over = threading.Event()
        def want():
            while not is_over.is_set():
                with workflow.mutex("slot"):
                    mark(f"{root}/trace", "start", "slot", os.getpid())
                    mark(f"{root}/trace", "end", "slot", os.getpid())
        workflow.append_event("ready")
        say("ready")
        hear()
        threads = [threading.Thread(target=want) for _ in range(3)]
        for thread in threads:
            thread.start()
        hear()
        is_over.set()
        for thread in threads:
            thread.join()
        workflow.close()
    """
    trace = tmp_path / "trace"
    with child(code, tmp_path) as one, child(code, tmp_path) as two:
        for process in (one, two):
            assert process.line() == "ready"
        for process in (one, two):
            process.say()
        wait_until(lambda: trace.exists() and _changes(trace) >= 6, what="taking turns")
        for process in (one, two):
            process.say()
        for process in (one, two):
            process.end()
    assert_apart(marks(trace))


def _changes(trace: Path) -> int:
    """How often the mutex went from one process to the other."""
    came = [line.split()[2] for line in trace.read_text().splitlines() if line.startswith("start")]
    return sum(before != after for before, after in pairwise(came))


def test_a_free_mutex_is_had_at_once(workflow: Workflow) -> None:
    """A timeout of 0 does not wait, and gets a free mutex."""
    assert take(workflow, timeout=0) == "had it"
    assert take(workflow, timeout=0) == "had it"


def test_a_wait_ends_whatever_the_users_clock_says(tmp_path: Path) -> None:
    """No time is before the first one, from which the begin of the wait cannot be counted back."""
    workflow = Workflow("w", dir=tmp_path, now=lambda: datetime.min.replace(tzinfo=UTC))
    with workflow:
        with workflow.mutex("slot"):
            waiting = in_thread(take, workflow, timeout=None)
            assert_waits(waiting)
        assert waiting.result(DEADLINE) == "had it"


def test_a_wait_that_takes_too_long_says_who_has_it(workflow: Workflow) -> None:
    """The error names key, timeout, process, host and since when, also if the holder is a thread of this process."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with workflow.mutex("slot"):
        after = datetime.now(UTC)
        with pytest.raises(MutexTimeoutError) as raised:
            in_thread(take, workflow, timeout=0.02).result(DEADLINE)
    error = raised.value
    assert (error.key, error.timeout, error.pid, error.host) == ("slot", 0.02, os.getpid(), os.uname().nodename)
    assert error.since is not None
    assert before <= error.since <= after
    assert isinstance(error, TimeoutError)
    assert all(part in str(error) for part in ("'slot'", "0.02 s", str(os.getpid()), os.uname().nodename))


def test_a_wait_that_takes_too_long_says_which_process_has_it(on_disk: Workflow, tmp_path: Path) -> None:
    """The error names the other process, and since when."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with held_elsewhere(tmp_path) as other:
        after = datetime.now(UTC)
        with pytest.raises(MutexTimeoutError) as raised:
            take(on_disk, timeout=0.02)
        assert (raised.value.pid, raised.value.host) == (other.pid, os.uname().nodename)
        assert raised.value.since is not None
        assert before <= raised.value.since <= after


def test_a_waiter_that_timed_out_does_not_get_it_later(on_disk: Workflow, tmp_path: Path) -> None:
    """A wait that timed out is in no queue: another process gets the mutex, and then this one."""
    with held_elsewhere(tmp_path) as other:
        with pytest.raises(MutexTimeoutError):
            take(on_disk, timeout=0.02)
        other.say()
        assert other.line() == "free"
        with child(HOLD, tmp_path) as third:
            assert third.line() == "held"
            third.say()
            assert third.line() == "free"
    assert take(on_disk, timeout=DEADLINE) == "had it"


def test_a_waiter_that_times_out_leaves_the_others_in_the_queue(workflow: Workflow) -> None:
    """A wait that times out in the middle of the queue changes nothing for the others."""
    order: list[str] = []

    def enter(name: str, timeout: float | None = None) -> None:
        with workflow.mutex("slot", timeout=timeout):
            order.append(name)

    with workflow.mutex("slot"):
        first = blocked(enter, "first")
        hasty = blocked(enter, "hasty", 0.02)
        last = blocked(enter, "last")
        with pytest.raises(MutexTimeoutError):
            hasty.result(DEADLINE)
    first.result(DEADLINE)
    last.result(DEADLINE)
    assert order == ["first", "last"]


def test_waits_that_time_out_at_random_leave_it_free(workflow: Workflow) -> None:
    """With many waits that time out, no two threads are in at once, and in the end the mutex is free."""
    seed = new_seed()
    lines: list[list[str]] = []

    def come_and_go(name: str) -> None:
        rng = random.Random(f"{seed} {name}")
        for _ in range(60):
            try:
                with workflow.mutex("slot", timeout=rng.choice([0, 0.0002, 0.002, None])):
                    lines.append(["start", "slot", name])
                    time.sleep(rng.choice([0, 0.0005]))
                    lines.append(["end", "slot", name])
            except MutexTimeoutError:
                pass

    for future in [in_thread(come_and_go, name) for name in "abcd"]:
        future.result(DEADLINE)
    assert assert_apart(lines)["slot"]
    assert is_free(workflow)


# Threads that wait for other processes

# What a child runs: it holds as many keys as it is told, and frees each one that it is told.
HOLD_MANY = """
from contextlib import ExitStack
holds = {key: ExitStack() for key in map(str, range(int(hear())))}
for key, hold in holds.items():
    hold.enter_context(workflow.mutex(key))
say("held")
while key := hear():
    holds[key].close()
"""


@contextmanager
def many_held_elsewhere(root: Path, number: int) -> Iterator[Child]:
    """Another process that holds the mutexes "0", "1", ..., and frees each one when it gets its key."""
    with child(HOLD_MANY, root) as process:
        process.say(str(number))
        assert process.line() == "held"
        yield process


class Requests:
    """Requests for mutexes that no thread of the test waits for.

    Attributes:
        holds: What was granted, by key.
        errors: Why a request failed, and when, by key.
        most_threads: The largest number of threads that was seen.
    """

    def __init__(self, workflow: Workflow) -> None:
        self.holds: dict[str, Held] = {}
        self.errors: dict[str, tuple[BaseException, float]] = {}
        self.most_threads = 0
        self._workflow = workflow

    def add(self, key: str, timeout: float | None = None) -> None:
        waiter = Waiter(
            LockOwner(),
            granted=lambda hold: self.holds.update({key: hold}),
            failed=lambda error: self.errors.update({key: (error, time.monotonic())}),
        )
        ask(self._workflow, key, waiter, timeout)

    def wait(self, condition: Callable[[], object]) -> None:
        def is_met() -> object:
            self.most_threads = max(self.most_threads, threading.active_count())
            return condition()

        wait_until(is_met)

    def release(self) -> None:
        for hold in self.holds.values():
            hold.leave(hold.waiter.owner)


@pytest.mark.slow
def test_many_waits_for_another_process_share_few_threads(on_disk: Workflow, tmp_path: Path) -> None:
    """400 keys take 34 threads at most. All waits time out in time, and later ones get the keys of a killed process."""
    keys = [str(number) for number in range(400)]
    on_disk.append_event("opened")
    before = threading.active_count()
    with many_held_elsewhere(tmp_path, len(keys)) as other:
        before_request = threading.active_count()
        first = Requests(on_disk)
        begun: dict[str, float] = {}
        for key in keys:
            begun[key] = time.monotonic()
            first.add(key, timeout=0.3)
        first.wait(lambda: len(first.errors) == len(keys))
        for key, (error, at) in first.errors.items():
            assert isinstance(error, MutexTimeoutError)
            assert (error.key, error.timeout, error.pid, error.host) == (key, 0.3, other.pid, os.uname().nodename)
            assert 0.3 <= at - begun[key] < 1.3
        second = Requests(on_disk)  # while all threads still wait for keys of the first
        for key in keys:
            second.add(key)
        other.kill()
        second.wait(lambda: len(second.holds) == len(keys))
        assert (
            max(first.most_threads, second.most_threads) <= before_request + 34
        )  # one for each of 32 keys, a clock, and one that looks at the files
    assert not first.holds
    assert not second.errors
    second.release()
    wait_until(lambda: threading.active_count() <= before, what="the end of the threads")
    assert all(is_free(on_disk, key) for key in keys[::40])


def test_items_that_wait_for_another_process_share_few_threads(on_disk: Workflow, tmp_path: Path) -> None:
    """200 items of a `for_each` with a `mutex_timeout` take as many threads as other waits do."""
    most_threads = 0

    def key_of(item: int) -> str:
        nonlocal most_threads
        most_threads = max(most_threads, threading.active_count())
        return str(item)

    with many_held_elsewhere(tmp_path, 200):
        before = threading.active_count()
        summary = on_disk.run_for_each(
            range(200), str, mutex_key=key_of, mutex_timeout=0.2, stop_on_error=False, max_parallel=2, progress=False
        )
    assert {type(result.reason) for result in summary.results if isinstance(result, Rejected)} == {MutexTimeoutError}
    assert summary.rejected == 200
    assert most_threads <= before + 34 + 2


@pytest.mark.slow
def test_keys_that_are_freed_in_any_order_are_had_at_once(on_disk: Workflow, tmp_path: Path) -> None:
    """No key waits for another key, though there are more keys than threads."""
    keys = [str(number) for number in range(100)]
    random.Random(new_seed()).shuffle(keys)
    requests = Requests(on_disk)
    with many_held_elsewhere(tmp_path, len(keys)) as other:
        for key in map(str, range(len(keys))):
            requests.add(key)
        for key in keys:
            assert key not in requests.holds
            other.say(key)
            requests.wait(lambda key=key: key in requests.holds)
    requests.release()
    assert not requests.errors


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread only waits for other processes."""
    monkeypatch.setattr(mutex_queue, "_MOST_THREADS", 1)


def test_a_thread_that_waits_for_an_unwanted_key_keeps_no_key_waiting(
    on_disk: Workflow, tmp_path: Path, one_thread: None
) -> None:
    """The only thread waits for a key whose waiter has withdrawn; another key is had as soon as it is freed."""
    with many_held_elsewhere(tmp_path, 2) as other:
        with pytest.raises(MutexTimeoutError):
            take(on_disk, "0", timeout=0.02)
        waiter = blocked(take, on_disk, "1")
        assert_waits(waiter)
        other.say("1")
        assert waiter.result(DEADLINE) == "had it"
        assert not is_free(on_disk, "0")
        other.say("0")
        assert take(on_disk, "0", timeout=DEADLINE) == "had it"


def test_a_key_gets_the_thread_that_another_key_gives_back(
    on_disk: Workflow, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that came when all threads waited gets the next one that is free."""
    monkeypatch.setattr(mutex_queue, "_PAUSE", 2 * DEADLINE)  # no key is tried meanwhile
    with many_held_elsewhere(tmp_path, 2) as other:
        waiters = [blocked(take, on_disk, key) for key in "01"]
        for key in "10":  # "1" has no thread before "0" has given it back
            other.say(key)
        for waiter in waiters:
            assert waiter.result(DEADLINE) == "had it"


def test_a_timeout_of_0_takes_no_thread(on_disk: Workflow, tmp_path: Path) -> None:
    """Requests for held keys start no thread if they do not wait."""
    with many_held_elsewhere(tmp_path, 10):
        before = threading.active_count()
        for key in map(str, range(10)):
            with pytest.raises(MutexTimeoutError):
                take(on_disk, key, timeout=0)
        assert threading.active_count() == before


def test_a_timeout_of_0_gets_a_free_mutex_that_has_no_thread(
    on_disk: Workflow, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key without a thread whose waiters have withdrawn is tried at once by the next request."""
    monkeypatch.setattr(mutex_queue, "_PAUSE", 2 * DEADLINE)
    with many_held_elsewhere(tmp_path, 2) as other:
        for key in "01":
            with pytest.raises(MutexTimeoutError):
                take(on_disk, key, timeout=0.02)
        other.say("1")
        wait_until(lambda: is_unlocked(tmp_path, "1"))
        assert take(on_disk, "1", timeout=0) == "had it"
        other.say("0")
        assert take(on_disk, "0", timeout=DEADLINE) == "had it"


def is_unlocked(root: Path, key: str) -> bool:
    """Whether the lock file of a mutex is free, by the kernel."""
    (path,) = root.glob(f"locks/*/mutex/{key}-*.lock")
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_waiter_that_raises_keeps_no_other_from_its_timeout(
    workflow: Workflow, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of a callback is logged, and the clock thread goes on."""

    def fail(_: BaseException) -> None:
        raise ValueError("no")

    with workflow.mutex("slot"):
        waiter = Waiter(LockOwner(), granted=lambda _: None, failed=fail)
        ask(workflow, "slot", waiter, 0.01)
        with pytest.raises(MutexTimeoutError):
            in_thread(take, workflow, timeout=0.05).result(DEADLINE)
    assert "the waiter of a mutex raised an error" in caplog.text


# Signals


@pytest.fixture
def default_handler() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, though a shell may have this process ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class CtrlCAt:
    """Presses Ctrl-C when the package's function of that number is called.

    Attributes:
        is_pressed: Whether there were so many calls.
    """

    def __init__(self, number: int) -> None:
        self.is_pressed = False
        self.count_from_here(number)

    def count_from_here(self, number: int) -> None:
        """Press it at the call of that number from now; at none for 0."""
        self._left = number

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._on_call)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        sys.settrace(self._before)
        return kind is KeyboardInterrupt

    def _on_call(self, frame: FrameType, _: str, __: object) -> None:
        if f"{os.sep}iso_orchestrator{os.sep}" not in frame.f_code.co_filename or _has_not_begun_to_leave(frame):
            return
        self._left -= 1
        if self._left == 0:
            self.is_pressed = True
            signal.raise_signal(signal.SIGINT)


def _has_not_begun_to_leave(frame: FrameType) -> bool:
    """Whether `__exit__` was called and has masked nothing yet. No `with` in Python is left then."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    names = [frame.f_code.co_qualname]
    while frame.f_back is not None:
        frame = frame.f_back
        names.append(frame.f_code.co_qualname)
    return names[0] == "Mutex.__exit__" or ("Mutex.__exit__" in names and "masked.__enter__" in names)


def enter_once(workflow: Workflow) -> None:
    with workflow.mutex("slot"):
        pass


def enter_twice(workflow: Workflow) -> None:
    with workflow.mutex("slot"), workflow.mutex("slot"):
        pass


def try_in_vain(workflow: Workflow) -> None:
    with pytest.raises(MutexTimeoutError):
        take(workflow, "other", timeout=0)


@posix_only
@pytest.mark.parametrize("work", [enter_once, enter_twice, try_in_vain])
def test_ctrl_c_at_any_call_leaves_the_mutex_free(workflow: Workflow, default_handler: None, work: Any) -> None:
    """However far the main thread has come in entering or leaving, other threads get the mutex, and so does it."""
    workflow.append_event("opened")
    with held_in_another_thread(workflow, "other"):
        for number in count(1):
            ctrl_c = CtrlCAt(number)
            with ctrl_c:
                work(workflow)
            assert is_free(workflow), number
            assert take(workflow, timeout=0) == "had it"
            if not ctrl_c.is_pressed:
                break
        assert number > 20
        assert not is_free(workflow, "other")
    events = codes_of(workflow.record.events, "mutex.acquired", "mutex.released")
    assert events.count("mutex.acquired") == events.count("mutex.released")


@posix_only
def test_ctrl_c_again_while_a_wait_is_given_up_leaves_the_mutex_free(workflow: Workflow, default_handler: None) -> None:
    """Ctrl-C ends the wait for a mutex. A second one, however soon it comes, keeps nothing from being cleaned up."""
    workflow.append_event("opened")
    main = threading.get_ident()
    for number in count(1):
        again = CtrlCAt(0)

        def press(again: CtrlCAt = again, number: int = number) -> None:
            wait_until(lambda: is_waiting(main))
            again.count_from_here(number)
            os.kill(os.getpid(), signal.SIGINT)

        with held_in_another_thread(workflow, "slot"):
            pressed = in_thread(press)
            with again:
                take(workflow)
            pressed.result(DEADLINE)
        assert is_free(workflow), number
        if not again.is_pressed:
            break
    assert number > 10


@posix_only
def test_what_a_users_signal_handler_raises_inside_frees_it(workflow: Workflow) -> None:
    """An alarm that ends the body of the `with` frees the mutex."""

    def ring(*_: object) -> None:
        raise TimeoutError("my deadline")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(TimeoutError, match="my deadline"), workflow.mutex("slot"):
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert is_free(workflow)


@posix_only
def test_a_users_signal_handler_that_ends_a_wait_leaves_the_queue(workflow: Workflow) -> None:
    """A thread whose wait an alarm has ended does not get the mutex later, and the next waiter does."""

    def ring(*_: object) -> None:
        raise TimeoutError("my deadline")

    main = threading.main_thread().ident
    assert main is not None
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            held.set()
            wait_until(lambda: is_waiting(main))
            signal.pthread_kill(main, signal.SIGALRM)
            assert may_end.wait(DEADLINE)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        holder = in_thread(hold)
        assert held.wait(DEADLINE)
        with pytest.raises(TimeoutError, match="my deadline"):
            take(workflow)
    finally:
        signal.signal(signal.SIGALRM, before)
    waiter = blocked(take, workflow)
    may_end.set()
    holder.result(DEADLINE)
    assert waiter.result(DEADLINE) == "had it"


# Handed over


TRY = """
try:
    with workflow.mutex("slot", timeout=0, scope={scope!r}):
        say("had it")
except MutexTimeoutError:
    say("refused")
hear()
"""


def tried_elsewhere(root: Path, scope: str = "workflow") -> str:
    """Whether another process gets the mutex "slot" at once, as it says."""
    with child(TRY.format(scope=scope), root) as process:
        return process.line()


@contextmanager
def handed_over(first: Workflow, second: Workflow, **options: Any) -> Iterator[None]:
    """A thread that uses *second* holds the mutex "slot", handed over by a thread that used *first*."""
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with second.mutex("slot", **options):
            held.set()
            assert may_end.wait(DEADLINE)

    with first.mutex("slot", **options):
        holder = blocked(hold)
    assert held.wait(DEADLINE)
    yield
    may_end.set()
    holder.result(DEADLINE)


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes get their turn between any two threads of this one."""
    monkeypatch.setattr(mutex_queue, "_TURN", 0.0)


def test_a_mutex_that_was_handed_over_outlasts_the_use_of_many_others(
    on_disk: Workflow, tmp_path: Path, no_turns: None
) -> None:
    """A store keeps a few files of free mutexes open and closes others. A mutex that was handed over is not free."""
    with handed_over(on_disk, on_disk):
        for number in range(40):
            with on_disk.mutex(f"other {number}"):
                pass
        assert tried_elsewhere(tmp_path) == "refused"
    assert tried_elsewhere(tmp_path) == "had it"


def test_a_mutex_that_was_handed_over_outlasts_the_workflow_of_its_first_user(tmp_path: Path, no_turns: None) -> None:
    """Closing the workflow that used a shared mutex first does not free it."""
    first, second = Workflow("one", dir=tmp_path), Workflow("two", dir=tmp_path)
    with handed_over(first, second, scope="store"):
        first.close()
        assert tried_elsewhere(tmp_path, "store") == "refused"
    assert tried_elsewhere(tmp_path, "store") == "had it"
    second.close()


@pytest.mark.slow
def test_processes_share_one_hot_mutex_among_many_others(tmp_path: Path) -> None:
    """While many other mutex files are opened and closed, no two are in one mutex, and no error is raised."""
    code = """
        from iso_orchestrator.coordination import mutex_queue
        from support_fanout import mark
        mutex_queue._TURN = 0.0
        errors = []
        def want(who):
            try:
                for _ in range(15):
                    with workflow.mutex("hot"):
                        mark(f"{root}/trace", "start", "hot", os.getpid(), who)
                        for number in range(25):
                            with workflow.mutex(f"{who} {number}"):
                                pass
                        mark(f"{root}/trace", "end", "hot", os.getpid(), who)
            except BaseException as error:
                errors.append(repr(error))
        workflow.append_event("ready")
        say("ready")
        hear()
        threads = [threading.Thread(target=want, args=(who,)) for who in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        workflow.close()
        say(errors)
    """
    with child(code, tmp_path) as one, child(code, tmp_path) as two:
        for process in (one, two):
            assert process.line() == "ready"
        for process in (one, two):
            process.say()
        for process in (one, two):
            assert process.end() == ["[]"]
    assert len(assert_apart(marks(tmp_path / "trace"))["hot"]) == 60


def test_the_release_of_a_mutex_that_is_not_taken_is_harmless(workflow: Workflow) -> None:
    """The release after a user's signal handler may find the lock taken or not, and the mutex can be had then."""
    workflow.append_event("open")
    mutex = workflow._runtime.session().log.mutex("slot", whole_store=False)
    mutex.release()
    assert mutex.try_acquire()
    mutex.release()
    mutex.release()
    mutex.dispose()
    assert is_free(workflow)


def test_a_release_that_is_late_lets_nobody_in(workflow: Workflow) -> None:
    """A thread that is late to look for the next waiter takes nothing from the present holder."""
    holds: list[Held] = []

    def ask_again() -> MutexState:
        waiter = Waiter(LockOwner(), granted=holds.append, failed=lambda error: pytest.fail(repr(error)))
        return ask(workflow, "slot", waiter)

    first = ask_again()
    holds[0].entries.clear()  # as `leave` begins; then its thread is suspended
    ask_again()
    holds[1].leave(holds[1].waiter.owner)
    ask_again()
    first.advance()
    ask_again()
    assert len(holds) == 3
    holds[2].leave(holds[2].waiter.owner)
    assert len(holds) == 4
    holds[3].leave(holds[3].waiter.owner)


# Holders that die


@pytest.mark.slow
def test_a_killed_holder_frees_its_mutex(on_disk: Workflow, tmp_path: Path) -> None:
    """A waiter has the mutex within a second of the kill, each time."""
    for _ in range(3):
        with held_elsewhere(tmp_path) as other:
            waiter = blocked(take, on_disk)
            assert_waits(waiter)
            killed_at = time.monotonic()
            other.kill()
            assert waiter.result(DEADLINE) == "had it"
            assert time.monotonic() - killed_at < 1


def test_a_stopped_holder_keeps_its_mutex(on_disk: Workflow, tmp_path: Path) -> None:
    """A stopped process is not dead."""
    with held_elsewhere(tmp_path) as other:
        other.stop()
        with pytest.raises(MutexTimeoutError):
            take(on_disk, timeout=0.05)
        other.go_on()
        other.say()
        assert take(on_disk, timeout=DEADLINE) == "had it"


def test_a_killed_waiter_keeps_no_other_process_waiting(on_disk: Workflow, tmp_path: Path) -> None:
    """The mutex goes to a live process."""
    code = """
        from support_fanout import say_when_main_waits
        workflow.append_event("open")
        say_when_main_waits("waiting")
        with workflow.mutex("slot"):
            say("held")
    """
    with on_disk.mutex("slot"), child(code, tmp_path) as waiter:
        assert waiter.line() == "waiting"
        waiter.kill()
    assert take(on_disk, timeout=DEADLINE) == "had it"


# Forks


def in_fork(fn: Any) -> str:
    """What *fn* returns in a forked child, or the error that it raises there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            try:
                said = str(fn())
            except BaseException as error:
                said = type(error).__name__
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


@posix_only
def test_a_forked_child_does_not_have_the_mutex_of_its_parent(on_disk: Workflow) -> None:
    """The thread that forks owns the mutex in the parent only."""
    with on_disk.mutex("slot"):
        assert in_fork(lambda: take(on_disk, timeout=0)) == "MutexTimeoutError"
        assert not is_free(on_disk)


@posix_only
def test_a_forked_child_that_ends_frees_nothing(on_disk: Workflow, tmp_path: Path) -> None:
    """A child that leaves the `with`, closes the workflow and exits does not free the mutex of its parent."""
    mutex = on_disk.mutex("slot")
    mutex.__enter__()

    def leave() -> str:
        mutex.__exit__(None, None, None)
        on_disk.close()
        return "left"

    assert in_fork(leave) == "left"
    code = """
        try:
            with workflow.mutex("slot", timeout=0):
                say("had it")
        except MutexTimeoutError as error:
            say(error.pid)
        hear()
    """
    with child(code, tmp_path) as process:
        assert process.line() == str(os.getpid())
    assert codes_of(on_disk.record.events, "mutex.acquired", "mutex.released") == ["mutex.acquired"]
    mutex.__exit__(None, None, None)
    assert is_free(on_disk)


@posix_only
def test_a_forked_child_gets_the_mutex_in_its_turn(on_disk: Workflow) -> None:
    """A child forked inside waits like any process, and what it then holds is its own."""
    reading, writing = os.pipe()
    with on_disk.mutex("slot"):
        pid = os.fork()
        if pid == 0:
            try:
                with on_disk.mutex("slot"):
                    os.write(writing, b"child")
            finally:
                os._exit(0)
        assert select.select([reading], [], [], PAUSE)[0] == []
    assert os.read(reading, 10) == b"child"
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    assert take(on_disk, timeout=DEADLINE) == "had it"


@posix_only
def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_mutex(on_disk: Workflow, tmp_path: Path) -> None:
    """The mutex of a killed process is free, though a child of the process lives on."""
    code = """
        workflow.mutex("slot").__enter__()
        pid = os.fork()
        if pid == 0:
            hear()
            os._exit(0)
        say("forked")
        threading.Event().wait()
    """
    with child(code, tmp_path) as parent:
        assert parent.line() == "forked"
        assert not is_free(on_disk)
        parent.kill()
        assert take(on_disk, timeout=DEADLINE) == "had it"
        parent.say()  # ends the child, which has the pipes open


# As a decorator


def test_it_decorates_functions(workflow: Workflow) -> None:
    """A decorated function holds the mutex while it runs, and may call itself."""

    @workflow.mutex("slot")
    def countdown(number: int) -> list[bool]:
        """Count."""
        return [is_free(workflow), *(countdown(number - 1) if number else [])]

    assert countdown(2) == [False] * 3
    assert is_free(workflow)
    assert (countdown.__name__, countdown.__doc__) == ("countdown", "Count.")


def test_a_decorated_function_takes_it_anew_each_time(workflow: Workflow) -> None:
    """A decorated function runs in one thread at a time, and has the timeout of its decorator."""

    @workflow.mutex("slot", timeout=0.02)
    def enter() -> str:
        return "in"

    with workflow.mutex("slot"), pytest.raises(MutexTimeoutError):
        in_thread(enter).result(DEADLINE)
    assert in_thread(enter).result(DEADLINE) == "in"
    assert enter() == "in"


def test_one_mutex_object_can_be_entered_by_many(workflow: Workflow) -> None:
    """Several threads can use one mutex object, and one thread can enter it twice."""
    mutex = workflow.mutex("slot")

    def enter() -> str:
        with mutex:
            return "in"

    with mutex:
        waiter = blocked(enter)
        with mutex:
            assert_waits(waiter)
    assert waiter.result(DEADLINE) == "in"


def test_making_one_touches_no_disk(tmp_path: Path) -> None:
    """Entering creates the record; creating the object does not."""
    workflow = Workflow("w", dir=tmp_path / "root")
    mutex = workflow.mutex("slot", timeout=1, scope="store")
    assert not (tmp_path / "root").exists()
    with mutex:
        assert (tmp_path / "root").exists()
    workflow.close()


def test_the_trace_of_processes_is_whole(tmp_path: Path) -> None:
    """Lines that several processes write are read back as they were written."""
    mark(tmp_path / "trace", "start", "slot", 1)
    mark(tmp_path / "trace", "end", "slot", 1)
    assert marks(tmp_path / "trace") == [["start", "slot", "1"], ["end", "slot", "1"]]


def test_a_step_whose_thread_cannot_be_started_leaves_no_mutex_held(workflow: Workflow) -> None:
    """A mutex stays held for a body that outlives its timeout, and not for one that never began."""
    usual = threading.stack_size(1 << 46)  # more than there is: as where the number of threads is limited
    try:
        with pytest.raises(RuntimeError, match="start new thread"), workflow.mutex("key"):
            workflow.run_step("step", lambda: 1, timeout=DEADLINE)
    finally:
        threading.stack_size(usual)
    assert in_thread(workflow.mutex("key", timeout=DEADLINE)(lambda: "free")).result(DEADLINE) == "free"
