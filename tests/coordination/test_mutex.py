"""`workflow.mutex`: one holder at a time, over threads and processes, until it lets go or dies."""

from __future__ import annotations

import errno
import os
import random
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Child, WatchedFS, wait_until
from support_fanout import assert_apart, blocked, codes_of, mark, marks, new_seed
from support_processes import PAUSE, assert_waits, child, in_thread

from iso_orchestrator import FileStore, MemoryStore, MutexTimeoutError, StepTimeoutError, StoreError, Workflow
from iso_orchestrator.coordination import mutex_queue
from iso_orchestrator.coordination.mutex_queue import Held, MutexState, Waiter, request
from iso_orchestrator.runtime.context import LockOwner

posix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX only")


@pytest.fixture(params=["file", "memory"])
def workflow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workflow]:
    store = FileStore(tmp_path) if request.param == "file" else MemoryStore()
    workflow = Workflow("w", store=store)
    yield workflow
    workflow.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow("w", dir=tmp_path)
    yield workflow
    workflow.close()


# What a child runs: it says when it has the mutex, holds it until it hears a line, and says when it is free.
HOLD = """
with workflow.mutex("slot"):
    say("held")
    hear()
say("free")
hear()
"""


@contextmanager
def held_elsewhere(root: Path) -> Iterator[Child]:
    """Another process that holds the mutex "slot", until it is told a line."""
    with child(HOLD, root) as process:
        assert process.line() == "held"
        yield process


def is_free(workflow: Workflow, key: str = "slot", **options: Any) -> bool:
    """Whether a thread of its own gets the mutex at once."""

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


# One holder


def test_one_thread_at_a_time(workflow: Workflow) -> None:
    """Threads that add to a number without any other lock lose no increment."""
    number = 0

    def add() -> None:
        nonlocal number
        for _ in range(50):
            with workflow.mutex("slot"):
                before = number
                time.sleep(0)  # the others get their turn here
                number = before + 1

    for future in [in_thread(add) for _ in range(4)]:
        future.result(DEADLINE)
    assert number == 200


@pytest.mark.slow
def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Two processes of two threads each that add to a number in a file lose no increment and never overlap."""
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
    """Who has one mutex is in nobody's way to another."""
    with workflow.mutex("slot"):
        assert not is_free(workflow, "slot")
        assert is_free(workflow, "slots")
        assert is_free(workflow, "Slot")
        assert is_free(workflow, " slot")


def test_a_mutex_is_the_same_through_every_object(tmp_path: Path) -> None:
    """Two `Workflow` objects of one id exclude each other, and one thread enters again through either."""
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
    """A key is one for the whole root only where that is asked for, and never for another root."""
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


@pytest.mark.slow
def test_a_mutex_of_the_whole_store_excludes_other_processes_workflows(tmp_path: Path) -> None:
    """`scope="store"` holds over processes that use different workflows."""
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
    """What is raised inside goes on as it is, and the mutex is free."""
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as raised, workflow.mutex("slot"):
        raise error
    assert raised.value is error
    assert is_free(workflow)


def test_it_is_on_record_once(workflow: Workflow) -> None:
    """An acquisition and a release are an event each, with the key; entering again is none."""
    with workflow.mutex("slot"), workflow.mutex("slot"):
        pass
    events = [event for event in workflow.record.events if event.type.startswith("mutex.")]
    assert [(event.type, event.detail) for event in events] == [
        ("mutex.acquired", {"key": "slot"}),
        ("mutex.released", {"key": "slot"}),
    ]


def test_a_refused_wait_is_not_on_record(workflow: Workflow) -> None:
    """Who did not get it has neither acquired nor released it."""
    with workflow.mutex("slot"):
        assert not is_free(workflow)
        assert codes_of(workflow.record.events, "mutex.acquired", "mutex.released") == ["mutex.acquired"]


@pytest.mark.slow
def test_a_closed_workflow_still_holds_it(on_disk: Workflow, tmp_path: Path) -> None:
    """Closing the workflow inside frees no mutex, and it is freed as ever."""
    with on_disk.mutex("slot"):
        on_disk.close()
        with child(
            "say(take := None)\ntry:\n    workflow.mutex('slot', timeout=0).__enter__()\n"
            "except MutexTimeoutError:\n    say('refused')\nhear()",
            tmp_path,
        ) as process:
            assert [process.line(), process.line()] == ["None", "refused"]
    assert is_free(on_disk)


@pytest.mark.slow
def test_what_cannot_be_recorded_is_not_held(tmp_path: Path) -> None:
    """A mutex whose acquisition cannot be recorded is free at once."""
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
    """A thread that has it enters as often as it likes, and it is free after the last one has left."""
    with workflow.mutex("slot"):
        with workflow.mutex("slot", timeout=0), workflow.mutex("slot", timeout=0):
            assert not is_free(workflow)
        assert not is_free(workflow)
    assert is_free(workflow)


def test_an_error_from_an_inner_entry_leaves_the_outer_one(workflow: Workflow) -> None:
    """What an inner `with` raises frees nothing that the outer one holds."""
    with workflow.mutex("slot"):
        with pytest.raises(ValueError, match="no"), workflow.mutex("slot"):
            raise ValueError("no")
        assert not is_free(workflow)


@pytest.mark.parametrize("timeout", [None, DEADLINE], ids=["in its thread", "in a thread of its own"])
def test_a_step_inside_of_it_may_enter_it(workflow: Workflow, timeout: float | None) -> None:
    """A step that is called inside enters the mutex of its caller, and so does a step inside of that."""

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
    """What a step's body has taken its thread's other calls do not share, and it is free when the body has left."""

    def body() -> str:
        with workflow.mutex("slot"), workflow.mutex("slot", timeout=0):
            assert not is_free(workflow)
        return "out"

    assert workflow.run_step("step", body, timeout=timeout) == "out"
    assert is_free(workflow)


def test_a_submitted_step_does_not_own_it(workflow: Workflow) -> None:
    """What runs beside its caller is not let into its caller's mutex."""

    @workflow.step
    def beside() -> str:
        return take(workflow, timeout=0)

    with workflow.mutex("slot"), pytest.raises(MutexTimeoutError):
        beside.submit().result(DEADLINE)
    assert beside.submit().result(DEADLINE) == "had it"


def test_an_attempt_does_not_own_what_the_one_before_it_has(workflow: Workflow) -> None:
    """A retry waits for the mutex that a body that outlived its timeout still has."""
    dispose = threading.Event()
    lines: list[list[str]] = []
    attempts: list[int] = []

    def body() -> str:
        with workflow.mutex("slot"):
            attempts.append(len(attempts) + 1)
            number = str(attempts[-1])
            lines.append(["start", "slot", number])
            if number == "1":
                assert dispose.wait(DEADLINE)
            lines.append(["end", "slot", number])
        return number

    step = in_thread(workflow.run_step, "step", body, timeout=0.5, retry=2)
    wait_until(lambda: workflow.record.steps["step"].attempts == 2 if attempts else False)
    dispose.set()
    assert step.result(DEADLINE) == "2"
    assert_apart(lines)


def test_it_is_held_while_a_body_that_outlived_its_timeout_runs(workflow: Workflow) -> None:
    """A step that timed out inside of it keeps it from others until its thread has really ended."""
    dispose = threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            workflow.run_step("slow", dispose.wait, DEADLINE, timeout=0.02)

    with pytest.raises(StepTimeoutError):
        in_thread(hold).result(DEADLINE)
    assert not is_free(workflow)
    waiter = blocked(take, workflow)
    dispose.set()
    assert waiter.result(DEADLINE) == "had it"


def test_a_body_that_outlived_its_timeout_keeps_it_from_its_own_thread(workflow: Workflow) -> None:
    """The thread that gave the body up does not enter on it either, once it has left the mutex."""
    dispose = threading.Event()
    try:
        with pytest.raises(StepTimeoutError), workflow.mutex("slot"):
            workflow.run_step("slow", dispose.wait, DEADLINE, timeout=0.02)
        with pytest.raises(MutexTimeoutError):
            take(workflow, timeout=0)
    finally:
        dispose.set()
    assert take(workflow, timeout=DEADLINE) == "had it"


# Waiting


def test_waiters_of_one_process_are_served_in_order(workflow: Workflow) -> None:
    """Threads get it in the order in which they asked."""
    order: list[int] = []

    def enter(number: int) -> None:
        with workflow.mutex("slot"):
            order.append(number)

    with workflow.mutex("slot"):
        waiters = [blocked(enter, number) for number in range(6)]
    for waiter in waiters:
        waiter.result(DEADLINE)
    assert order == list(range(6))


@pytest.mark.slow
def test_waiters_are_served_in_order_behind_another_process(on_disk: Workflow, tmp_path: Path) -> None:
    """They keep their order where another process had it first."""
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


@pytest.mark.slow
def test_processes_take_turns(tmp_path: Path) -> None:
    """Of two processes with several threads each that all want it all the time, neither waits for the other's end."""
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
    """How often it went from one process to another."""
    came = [line.split()[2] for line in trace.read_text().splitlines() if line.startswith("start")]
    return sum(before != after for before, after in pairwise(came))


def test_it_is_had_at_once_where_it_is_free(workflow: Workflow) -> None:
    """A timeout of 0 does not wait, and gets what is free."""
    assert take(workflow, timeout=0) == "had it"
    assert take(workflow, timeout=0) == "had it"


def test_a_wait_that_takes_too_long_says_who_has_it(workflow: Workflow) -> None:
    """The error names key, time, process, host and since when, also where the holder is a thread of this process."""
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_who_gave_up_does_not_get_it_later(on_disk: Workflow, tmp_path: Path) -> None:
    """A wait that timed out leaves nobody in the queue, neither here nor in another process's way."""
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


def test_who_gives_up_leaves_the_others_in_the_queue(workflow: Workflow) -> None:
    """A wait that times out in the middle of the queue changes nothing for those before and behind it."""
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


def test_threads_that_come_and_give_up_at_random_leave_it_free(workflow: Workflow) -> None:
    """However waits time out, no two are in at once, and in the end it is free."""
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


# Handed on


TRY = """
try:
    with workflow.mutex("slot", timeout=0, scope={scope!r}):
        say("had it")
except MutexTimeoutError:
    say("refused")
hear()
"""


def tried_elsewhere(root: Path, scope: str = "workflow") -> str:
    """What another process says of the mutex "slot"."""
    with child(TRY.format(scope=scope), root) as process:
        return process.line()


@contextmanager
def handed_on(first: Workflow, second: Workflow, **options: Any) -> Iterator[None]:
    """A thread that uses *second* has the mutex "slot", after a thread that used *first*."""
    held, dispose = threading.Event(), threading.Event()

    def hold() -> None:
        with second.mutex("slot", **options):
            held.set()
            assert dispose.wait(DEADLINE)

    with first.mutex("slot", **options):
        holder = blocked(hold)
    assert held.wait(DEADLINE)
    yield
    dispose.set()
    holder.result(DEADLINE)


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes could have it between any two threads of this one."""
    monkeypatch.setattr(mutex_queue, "_TURN", 0.0)


@pytest.mark.slow
def test_a_mutex_that_was_handed_on_outlasts_the_use_of_many_others(
    on_disk: Workflow, tmp_path: Path, no_turns: None
) -> None:
    """Only so many files of free mutexes stay open, and one that a thread has got from another is none of them."""
    with handed_on(on_disk, on_disk):
        for number in range(40):
            with on_disk.mutex(f"other {number}"):
                pass
        assert tried_elsewhere(tmp_path) == "refused"
    assert tried_elsewhere(tmp_path) == "had it"


@pytest.mark.slow
def test_a_mutex_that_was_handed_on_outlasts_the_workflow_of_its_first_user(tmp_path: Path, no_turns: None) -> None:
    """What all workflows share is not freed by the close of the one that was the first to use it."""
    first, second = Workflow("one", dir=tmp_path), Workflow("two", dir=tmp_path)
    with handed_on(first, second, scope="store"):
        first.close()
        assert tried_elsewhere(tmp_path, "store") == "refused"
    assert tried_elsewhere(tmp_path, "store") == "had it"
    second.close()


@pytest.mark.slow
def test_processes_share_one_hot_mutex_among_many_others(tmp_path: Path) -> None:
    """However many files are opened and closed beside it, no two are ever in, and nobody meets an error."""
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
    """After a signal in the midst of taking it nobody knows whether it is: it is released, and can be had."""
    workflow.append_event("open")
    mutex = workflow._runtime.session().log.mutex("slot", whole_store=False)
    mutex.release()
    assert mutex.try_acquire()
    mutex.release()
    mutex.release()
    mutex.dispose()
    assert is_free(workflow)


def test_a_release_that_is_late_lets_nobody_in(workflow: Workflow) -> None:
    """One that looks for who is next when others have come and gone since takes nothing from whoever has it now."""
    holds: list[Held] = []

    def ask() -> MutexState:
        waiter = Waiter(LockOwner(), granted=holds.append, failed=lambda error: pytest.fail(repr(error)))
        return request(workflow._runtime, "slot", "workflow", waiter)

    first = ask()
    holds[0].depth = 0  # as `release` begins, which is held up before it looks for who is next
    ask()
    holds[1].release()
    ask()
    first.advance()
    ask()
    assert len(holds) == 3
    holds[2].release()
    assert len(holds) == 4
    holds[3].release()


# Holders that die


@pytest.mark.slow
def test_a_killed_holder_frees_its_mutex(on_disk: Workflow, tmp_path: Path) -> None:
    """Whoever waits has it within a second of the kill, each time."""
    for _ in range(3):
        with held_elsewhere(tmp_path) as other:
            waiter = blocked(take, on_disk)
            assert_waits(waiter)
            killed_at = time.monotonic()
            other.kill()
            assert waiter.result(DEADLINE) == "had it"
            assert time.monotonic() - killed_at < 1


@pytest.mark.slow
def test_a_stopped_holder_keeps_its_mutex(on_disk: Workflow, tmp_path: Path) -> None:
    """A process that does not move is not dead."""
    with held_elsewhere(tmp_path) as other:
        other.stop()
        with pytest.raises(MutexTimeoutError):
            take(on_disk, timeout=0.05)
        other.go_on()
        other.say()
        assert take(on_disk, timeout=DEADLINE) == "had it"


@pytest.mark.slow
def test_a_killed_waiter_is_in_nobodys_way(on_disk: Workflow, tmp_path: Path) -> None:
    """The mutex goes to who is alive."""
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
    """The thread that forks owns it in the parent alone."""
    with on_disk.mutex("slot"):
        assert in_fork(lambda: take(on_disk, timeout=0)) == "MutexTimeoutError"
        assert not is_free(on_disk)


@posix_only
def test_a_forked_child_that_ends_frees_nothing(on_disk: Workflow, tmp_path: Path) -> None:
    """A child that leaves the `with`, closes the workflow and exits leaves the mutex to its parent."""
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
    """A child forked inside waits like any process, and its own hold is its own."""
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
    """When the holder is killed its mutex is free, though a child of its lives on."""
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
        parent.say()  # ends the child, which has the pipes still


# As a decorator


def test_it_decorates_functions(workflow: Workflow) -> None:
    """A decorated function has the mutex while it runs, and may call itself."""

    @workflow.mutex("slot")
    def countdown(number: int) -> list[bool]:
        """Count."""
        return [is_free(workflow), *(countdown(number - 1) if number else [])]

    assert countdown(2) == [False] * 3
    assert is_free(workflow)
    assert (countdown.__name__, countdown.__doc__) == ("countdown", "Count.")


def test_a_decorated_function_takes_it_anew_each_time(workflow: Workflow) -> None:
    """One decorated function in several threads runs in one at a time, with the timeout that was given."""

    @workflow.mutex("slot", timeout=0.02)
    def enter() -> str:
        return "in"

    with workflow.mutex("slot"), pytest.raises(MutexTimeoutError):
        in_thread(enter).result(DEADLINE)
    assert in_thread(enter).result(DEADLINE) == "in"
    assert enter() == "in"


def test_one_mutex_object_can_be_entered_by_many(workflow: Workflow) -> None:
    """The object is a name; who has entered is kept elsewhere."""
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
    """Only entering creates the record."""
    workflow = Workflow("w", dir=tmp_path / "root")
    mutex = workflow.mutex("slot", timeout=1, scope="store")
    assert not (tmp_path / "root").exists()
    with mutex:
        assert (tmp_path / "root").exists()
    workflow.close()


def test_the_trace_of_processes_is_whole(tmp_path: Path) -> None:
    """What several processes mark comes out as the lines that they wrote."""
    mark(tmp_path / "trace", "start", "slot", 1)
    mark(tmp_path / "trace", "end", "slot", 1)
    assert marks(tmp_path / "trace") == [["start", "slot", "1"], ["end", "slot", "1"]]
