"""Keyed scheduling: items of one key take turns, over threads and processes, and a waiting item occupies no worker."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Child, wait_until
from support_fanout import Gate, assert_apart, blocked, mark, marks, new_seed
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import (
    DeadlockError,
    MutexTimeoutError,
    Rejected,
    StepTimeoutError,
    Workflow,
)

# What a child process runs: it takes the mutexes that it reads, says so, and releases them at the next line.
HOLD = """
from contextlib import ExitStack
with ExitStack() as stack:
    for key in hear().split():
        stack.enter_context(workflow.mutex(key))
    say("held")
    hear()
say("free")
hear()
"""


@contextmanager
def held_elsewhere(root: Path, *keys: str) -> Iterator[Child]:
    """Another process that holds mutexes of the workflow, until it reads a line."""
    with child(HOLD, root) as process:
        process.say(" ".join(keys))
        assert process.line() == "held"
        yield process


def first_letter(item: str) -> str:
    return item[0]


# A waiting item occupies no worker


def test_another_key_does_not_wait_for_a_long_queue(workflow: Workflow, gate: Gate) -> None:
    """Of A A A B over two workers, B runs beside the first A."""
    summary = in_thread(workflow.run_for_each, ["A1", "A2", "A3", "B"], gate, max_parallel=2, mutex_key=first_letter)
    gate.until_in("A1", "B")
    assert_waits(summary)
    assert len(gate.entered) == 2
    gate.open()
    assert summary.result(DEADLINE).values() == ["A1", "A2", "A3", "B"]
    assert gate.entered[2:] == ["A2", "A3"]


def test_all_workers_find_work_after_a_long_queue_for_one_key(workflow: Workflow, gate: Gate) -> None:
    """A hundred items of one key occupy one worker of four."""
    items = [f"A{n}" for n in range(100)] + ["B", "C", "D"]
    summary = in_thread(workflow.run_for_each, items, gate, max_parallel=4, mutex_key=first_letter)
    gate.until_in("A0", "B", "C", "D")
    assert gate.most == 4
    gate.open()
    assert summary.result(DEADLINE).fulfilled == 103


def test_a_key_that_another_process_holds_occupies_no_worker(workflow: Workflow, tmp_path: Path) -> None:
    """The only worker takes the next item, and comes back when the key is free."""
    order: list[str] = []
    with held_elsewhere(tmp_path, "A") as other:
        batch = blocked(workflow.run_for_each, ["A1", "B", "A2", "C"], order.append, mutex_key=first_letter)
        wait_until(lambda: order == ["B", "C"])
        assert_waits(batch)
        assert order == ["B", "C"]
        other.say()
        assert batch.result(DEADLINE).fulfilled == 4
    assert order == ["B", "C", "A1", "A2"]


def test_a_key_that_another_thread_holds_occupies_no_worker(workflow: Workflow) -> None:
    """The same holds inside one process."""
    order: list[str] = []
    with workflow.mutex("A"):
        batch = blocked(workflow.run_for_each, ["A1", "B", "A2", "C"], order.append, mutex_key=first_letter)
        wait_until(lambda: order == ["B", "C"])
        assert_waits(batch)
    assert batch.result(DEADLINE).fulfilled == 4
    assert order == ["B", "C", "A1", "A2"]


def test_many_keys_that_are_held_elsewhere_occupy_no_worker(workflow: Workflow, tmp_path: Path) -> None:
    """Twenty waiting items leave the only worker free."""
    done: list[str] = []
    keys = [f"k{n}" for n in range(20)]
    with held_elsewhere(tmp_path, *keys) as other:
        batch = blocked(workflow.run_for_each, [*keys, "free"], done.append, mutex_key=lambda key: key)
        wait_until(lambda: done == ["free"])
        other.say()
        assert batch.result(DEADLINE).fulfilled == 21
    assert sorted(done) == sorted([*keys, "free"])


def test_items_that_wait_for_a_key_keep_no_others_from_being_read(workflow: Workflow) -> None:
    """Most items that are read ahead wait for a held key: the workers run the items after them."""
    done: list[str] = []
    items = [*(f"A{n}" for n in range(600)), *(f"{n}" for n in range(1000))]
    with workflow.mutex("A"):
        batch = in_thread(
            workflow.run_for_each,
            items,
            done.append,
            max_parallel=2,
            mutex_key=lambda item: "A" if item[0] == "A" else None,
        )
        wait_until(lambda: len(done) == 1000)
    assert batch.result(DEADLINE).fulfilled == 1600


def test_a_key_that_is_freed_is_used_while_others_run(workflow: Workflow, tmp_path: Path, gate: Gate) -> None:
    """An item starts as soon as its key is free, while other items run."""
    with held_elsewhere(tmp_path, "A") as other:
        batch = blocked(workflow.run_for_each, ["A", "B"], gate, mutex_key=first_letter, max_parallel=2)
        gate.until_in("B")
        other.say()
        gate.until_in("A")
        gate.open()
        assert batch.result(DEADLINE).fulfilled == 2


# Turns


def test_items_start_in_order_except_those_that_wait(workflow: Workflow) -> None:
    """With one worker no item waits, and keys do not change the order."""
    order: list[int] = []
    workflow.run_for_each(range(60), order.append, mutex_key=lambda item: str(item % 7))
    assert order == list(range(60))


def test_items_of_one_key_never_overlap_and_keep_their_order(workflow: Workflow) -> None:
    """With random keys and durations, the items of one key run one after the other, in order."""
    seed = new_seed()
    rng = random.Random(seed)
    items = [(f"k{rng.randrange(6)}", number, rng.random() * 0.002) for number in range(200)]
    lines: list[list[str]] = []

    def work(item: tuple[str, int, float]) -> None:
        key, number, seconds = item
        lines.append(["start", key, str(number)])
        time.sleep(seconds)
        lines.append(["end", key, str(number)])

    workflow.run_for_each(items, work, max_parallel=8, mutex_key=lambda item: item[0])
    order = assert_apart(lines)
    assert order == {key: [(str(n),) for k, n, _ in items if k == key] for key in {item[0] for item in items}}


def test_items_of_one_key_never_overlap_over_two_processes(tmp_path: Path) -> None:
    """Two processes with the same keys take turns, and each keeps its order."""
    code = """
        from support_fanout import mark
        workflow.append_event("ready")
        say("ready")
        hear()
        def work(item):
            key, number = item
            mark(f"{root}/trace", "start", key, os.getpid(), number)
            mark(f"{root}/trace", "end", key, os.getpid(), number)
        items = [(f"k{number % 3}", number) for number in range(120)]
        workflow.run_for_each(items, work, max_parallel=4, mutex_key=lambda item: item[0])
        workflow.close()
    """
    with child(code, tmp_path) as one, child(code, tmp_path) as two:
        for process in (one, two):
            assert process.line() == "ready"
        for process in (one, two):
            process.say()
        for process in (one, two):
            process.end()
    order = assert_apart(marks(tmp_path / "trace"))
    for number in range(3):
        for process in (one, two):
            of_process = [int(n) for pid, n in order[f"k{number}"] if int(pid) == process.pid]
            assert of_process == list(range(number, 120, 3))


def test_two_batches_of_one_process_take_turns(workflow: Workflow) -> None:
    """Items of one key in two batches at the same time never overlap, and all run."""
    lines: list[list[str]] = []

    def work(item: str) -> None:
        lines.append(["start", "k", item])
        time.sleep(0)
        lines.append(["end", "k", item])

    batches = [
        in_thread(workflow.run_for_each, [f"{name}{n}" for n in range(40)], work, mutex_key="k", max_parallel=2)
        for name in "ab"
    ]
    assert [batch.result(DEADLINE).fulfilled for batch in batches] == [40, 40]
    order = [who for (who,) in assert_apart(lines)["k"]]
    assert [who for who in order if who[0] == "a"] == [f"a{n}" for n in range(40)]


def test_an_item_that_fails_hands_its_key_on(workflow: Workflow) -> None:
    """The next item of the key runs after one that failed."""
    order: list[int] = []

    def fail(item: int) -> None:
        order.append(item)
        raise ValueError(item)

    summary = workflow.run_for_each(range(4), fail, mutex_key="k", max_parallel=3, stop_on_error=False)
    assert (summary.rejected, order) == (4, [0, 1, 2, 3])


def test_a_killed_process_hands_its_keys_on(workflow: Workflow, tmp_path: Path) -> None:
    """When a process is killed, an item that waits for its key runs at once."""
    with held_elsewhere(tmp_path, "A") as other:
        batch = blocked(workflow.run_for_each, ["A"], str.lower, mutex_key="A")
        assert_waits(batch)
        other.kill()
        assert batch.result(DEADLINE).values() == ["a"]


def test_keys_of_the_whole_store_exclude_other_workflows(tmp_path: Path, gate: Gate) -> None:
    """With `mutex_scope="store"` items of two workflows exclude each other; without it they do not."""
    one, two = Workflow("one", dir=tmp_path), Workflow("two", dir=tmp_path)
    first = in_thread(one.run_for_each, ["first"], gate, mutex_key="k", mutex_scope="store")
    gate.until_in("first")
    second = blocked(two.run_for_each, ["second"], gate, mutex_key="k", mutex_scope="store")
    apart = in_thread(two.run_for_each, ["apart"], gate, mutex_key="k")
    gate.until_in("apart")
    assert_waits(second)
    assert gate.entered == ["first", "apart"]
    gate.open()
    assert [batch.result(DEADLINE).fulfilled for batch in (first, second, apart)] == [1, 1, 1]
    one.close()
    two.close()


# Owners


def test_an_item_may_enter_its_own_key_again(workflow: Workflow) -> None:
    """`workflow.mutex` of the same key does not wait inside an item, even in a step with a timeout."""

    def work(item: int) -> int:
        with workflow.mutex("slot", timeout=0):
            return workflow.run_step(f"in:{item}", inside, item, timeout=DEADLINE)

    def inside(item: int) -> int:
        with workflow.mutex("slot", timeout=0):
            return item

    assert workflow.run_for_each(range(3), work, mutex_key="slot", max_parallel=2).values() == [0, 1, 2]


def test_an_item_keeps_its_key_when_it_leaves_the_mutex_inside(workflow: Workflow, gate: Gate) -> None:
    """A mutex that is entered and left inside the item is still held after it."""

    def work(item: str) -> None:
        with workflow.mutex("slot"):
            pass
        gate(item)

    batch = in_thread(workflow.run_for_each, "ab", work, mutex_key="slot", max_parallel=2)
    gate.until_in("a")
    with pytest.raises(MutexTimeoutError), workflow.mutex("slot", timeout=0):
        pass
    gate.open()
    assert batch.result(DEADLINE).fulfilled == 2


def test_an_item_that_enters_the_mutex_of_its_caller_raises(workflow: Workflow) -> None:
    """The item would wait for ever, and gets an error."""

    def work(item: int) -> None:
        with workflow.mutex("slot"):
            pytest.fail("two items could be in here at once")

    def around() -> Any:
        with workflow.mutex("slot"):
            return workflow.run_for_each(range(3), work, max_parallel=2, stop_on_error=False)

    summary = in_thread(around).result(DEADLINE)
    assert [type(result.reason) for result in summary.results if isinstance(result, Rejected)] == [DeadlockError] * 3


def test_an_item_does_not_own_the_key_of_another(workflow: Workflow, gate: Gate) -> None:
    """Two items of different keys exclude each other in a mutex that both enter."""

    def work(item: str) -> None:
        with workflow.mutex("shared"):
            gate(item)

    batch = in_thread(workflow.run_for_each, "ab", work, max_parallel=2, mutex_key=lambda item: item)
    wait_until(lambda: gate.entered)
    assert_waits(batch)
    assert len(gate.entered) == 1
    gate.open()
    batch.result(DEADLINE)
    assert gate.most == 1


def test_a_key_stays_held_while_a_body_that_outlived_its_timeout_runs(workflow: Workflow) -> None:
    """The next item of the key starts when the abandoned thread has ended."""
    end = threading.Event()
    order: list[str] = []

    def outlive() -> None:
        assert end.wait(DEADLINE)
        order.append("the thread ended")

    def work(item: str) -> None:
        order.append(item)
        if item == "a":
            workflow.run_step("slow", outlive, timeout=0.02)

    batch = in_thread(workflow.run_for_each, "abc", work, max_parallel=2, mutex_key=_key, stop_on_error=False)
    wait_until(lambda: sorted(order) == ["a", "c"])
    assert_waits(batch)
    assert sorted(order) == ["a", "c"]
    end.set()
    summary = batch.result(DEADLINE)
    assert order[2:] == ["the thread ended", "b"]
    assert isinstance(summary.results[0], Rejected)
    assert isinstance(summary.results[0].reason, StepTimeoutError)


def _key(item: str) -> str | None:
    return "slot" if item in "ab" else None


# Timeouts


def test_an_item_that_waits_too_long_for_another_process_fails(workflow: Workflow, tmp_path: Path) -> None:
    """After `mutex_timeout` seconds the reason says which process holds the key, and since when. Other items run."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with held_elsewhere(tmp_path, "A") as other:
        after = datetime.now(UTC)
        done: list[str] = []
        summary = workflow.run_for_each(
            ["A1", "B1", "B2"], done.append, mutex_key=first_letter, mutex_timeout=0.05, stop_on_error=False
        )
        error = summary.results[0].reason if isinstance(summary.results[0], Rejected) else None
        assert isinstance(error, MutexTimeoutError)
        assert (error.key, error.timeout, error.pid, error.host) == ("A", 0.05, other.pid, os.uname().nodename)
        assert error.since is not None
        assert before <= error.since <= after
        assert str(other.pid) in str(error)
        assert done == ["B1", "B2"]


def test_an_item_that_waited_too_long_stops_the_batch(workflow: Workflow) -> None:
    """By default the timeout is raised like any error, with the index, and no more items start."""
    started: list[str] = []
    with workflow.mutex("A"):
        batch = in_thread(
            workflow.run_for_each, ["B", "A1", "A2"], started.append, mutex_key=first_letter, mutex_timeout=0.05
        )
        with pytest.raises(MutexTimeoutError) as raised:
            batch.result(DEADLINE)
    assert raised.value.pid == os.getpid()
    assert any("1" in note for note in raised.value.__notes__)
    assert started == ["B"]


def test_each_item_of_a_key_has_its_own_timeout(workflow: Workflow) -> None:
    """After the first item has timed out, the second waits for its own time, and runs if the key is freed in it."""
    with workflow.mutex("A"):
        batch = in_thread(
            workflow.run_for_each, ["A1", "A2"], str.lower, mutex_key="A", mutex_timeout=0.2, stop_on_error=False
        )
        with pytest.raises(TimeoutError):
            batch.result(0.3)
    summary = batch.result(DEADLINE)
    assert (summary.rejected, summary.results[1].status) == (1, "fulfilled")


def test_the_timeout_does_not_count_items_of_the_same_batch(workflow: Workflow) -> None:
    """Items of one key may take longer than `mutex_timeout`, which is about other holders."""
    summary = workflow.run_for_each(
        range(4), lambda _: time.sleep(0.03), mutex_key="A", mutex_timeout=0.01, max_parallel=3
    )
    assert summary.fulfilled == 4


def test_an_item_that_timed_out_does_not_get_the_key(workflow: Workflow, tmp_path: Path) -> None:
    """When the holder releases the key after the timeout, others get it."""
    with held_elsewhere(tmp_path, "A") as other:
        summary = workflow.run_for_each(["A"], str, mutex_key="A", mutex_timeout=0.02, stop_on_error=False)
        assert summary.rejected == 1
        other.say()
        assert other.line() == "free"
        with workflow.mutex("A", timeout=DEADLINE):
            pass


def test_without_a_timeout_it_waits_for_ever(workflow: Workflow) -> None:
    """An item without a timeout gets its key at last."""
    with workflow.mutex("A"):
        batch = blocked(workflow.run_for_each, ["A"], str.lower, mutex_key="A")
        assert_waits(batch)
    assert batch.result(DEADLINE).values() == ["a"]


# Errors


def test_waiting_items_are_dropped_after_an_error(workflow: Workflow) -> None:
    """An error ends the wait of other items for their key at once, and they never run."""
    ran: list[str] = []

    def fail(item: str) -> None:
        ran.append(item)
        raise ValueError(item)

    with workflow.mutex("A"):
        batch = in_thread(workflow.run_for_each, ["A1", "A2", "B"], fail, mutex_key=first_letter)
        with pytest.raises(ValueError, match="B"):
            batch.result(DEADLINE)
    with workflow.mutex("A", timeout=DEADLINE):
        assert ran == ["B"]


def test_keys_are_free_after_an_error(workflow: Workflow, tmp_path: Path) -> None:
    """After an error another process gets every key at once."""

    def fail(item: int) -> None:
        raise ValueError(item)

    for _ in range(5):
        with pytest.raises(ValueError, match=r"\d"):
            workflow.run_for_each(range(50), fail, mutex_key=lambda item: f"k{item % 5}", max_parallel=4)
    with held_elsewhere(tmp_path, *[f"k{n}" for n in range(5)]) as other:
        other.say()
        assert other.line() == "free"


# Reading ahead


def test_reading_ahead_is_bounded(workflow: Workflow, gate: Gate) -> None:
    """While the first item runs, at most a thousand more are read."""
    assert _read_ahead(workflow, gate, max_parallel=1) <= 1000


def test_reading_ahead_is_bounded_with_many_workers(workflow: Workflow, gate: Gate) -> None:
    """With many workers the bound is 16 items for each."""
    assert _read_ahead(workflow, gate, max_parallel=100) <= 1600


def test_reading_ahead_is_bounded_for_items_of_one_key(workflow: Workflow, gate: Gate) -> None:
    """Items that wait for their key count too."""
    assert _read_ahead(workflow, gate, max_parallel=16, mutex_key="k") <= 1000


def _read_ahead(workflow: Workflow, gate: Gate, **options: Any) -> int:
    """The number of items that were read and have not started, when reading has stopped."""
    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        for number in range(3000):
            read = number + 1
            yield number

    batch = in_thread(workflow.run_for_each, source(), gate, **options)
    gate.until_in(0)
    before = -1
    while before < read:
        before = read
        assert_waits(batch)
    ahead = read - len(gate.entered)
    gate.open()
    assert batch.result(DEADLINE).values() == list(range(3000))
    return ahead


def test_reading_stays_close_to_the_work(workflow: Workflow) -> None:
    """All the time, no more items are read ahead than the bound allows."""
    read, done = 0, 0
    furthest = 0

    def source() -> Iterator[int]:
        nonlocal read
        while read < 4000:
            read += 1
            yield read

    def work(item: int) -> None:
        nonlocal done, furthest
        furthest = max(furthest, read - done)
        done += 1

    workflow.run_for_each(source(), work)
    assert done == 4000
    assert furthest <= 1002  # those read ahead, the running one, and the one that has just ended


def test_a_source_that_takes_long_does_not_delay_a_ready_item(workflow: Workflow) -> None:
    """A short item after a long one runs while the source prepares the next."""
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield from range(42)
        assert go_on.wait(DEADLINE)
        yield 42

    @workflow.step(name="job-{number}")
    def job(number: int) -> None:
        if number == 40:
            assert go_on.wait(DEADLINE), "item 41 waits for the source"
        if number == 41:
            go_on.set()

    assert in_thread(workflow.run_for_each, source(), job, max_parallel=4).result(DEADLINE).fulfilled == 43


def test_a_source_that_takes_long_does_not_delay_a_hand_over(workflow: Workflow) -> None:
    """The second item of a key runs while the source prepares the third."""
    second_ran = threading.Event()

    def source() -> Iterator[str]:
        yield "a"
        yield "b"
        assert second_ran.wait(DEADLINE), "the hand-over waits for the source"
        yield "c"

    summary = workflow.run_for_each(
        source(), lambda item: item == "b" and second_ran.set(), mutex_key="k", max_parallel=2
    )
    assert summary.fulfilled == 3


def test_the_callers_thread_waits_for_no_key_while_another_item_is_ready(workflow: Workflow, tmp_path: Path) -> None:
    """An item whose key another process holds comes later, in the same thread."""
    ran: list[tuple[str, int]] = []
    with held_elsewhere(tmp_path, "A") as other:

        def work(item: str) -> None:
            ran.append((item, threading.get_ident()))
            if item == "C":
                other.say()

        workflow.run_for_each("ABAC", work, mutex_key=lambda item: item)
    here = threading.get_ident()
    assert ran == [("B", here), ("C", here), ("A", here), ("A", here)]


def test_a_source_that_takes_long_does_not_delay_a_key_from_another_process(workflow: Workflow, tmp_path: Path) -> None:
    """When another process frees a key, the item that waits for it runs while the source is busy."""
    ran = threading.Event()
    with held_elsewhere(tmp_path, "A") as other:

        def source() -> Iterator[str]:
            yield "A"
            other.say()
            assert ran.wait(DEADLINE), "the hand-over waits for the source"

        with ThreadPoolExecutor(1) as executor:
            summary = workflow.run_for_each(source(), lambda item: ran.set(), mutex_key=first_letter, executor=executor)
        assert summary.fulfilled == 1


def test_a_full_read_ahead_does_not_delay_a_hand_over(workflow: Workflow, gate: Gate) -> None:
    """Keys are handed over after reading has reached its bound."""
    items = ["A1", "A2", *(f"B{n}" for n in range(1500))]
    batch = blocked(workflow.run_for_each, items, gate, mutex_key=first_letter, max_parallel=2)
    gate.until_in("A1", "B0")
    gate.open("A1")
    gate.until_in("A2")
    gate.open()
    assert batch.result(DEADLINE).fulfilled == len(items)


# Random batches


def test_every_item_of_a_random_batch_ends_once(workflow: Workflow) -> None:
    """With random keys, failures and other holders, each item runs once, and items of one key never overlap."""
    seed = new_seed()
    rng = random.Random(seed)
    lines: list[list[str]] = []
    stop = threading.Event()

    def disturb(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            key = f"k{rng.randrange(3)}"
            with workflow.mutex(key):
                lines.append(["start", key, "thread"])
                lines.append(["end", key, "thread"])

    def work(item: tuple[int, str | None, bool]) -> int:
        number, key, fails = item
        if key is not None:
            lines.append(["start", key, str(number)])
            lines.append(["end", key, str(number)])
        if fails:
            raise ValueError(number)
        return number

    items = [
        (number, rng.choice([None, "k0", "k1", "k2"]), rng.random() < 0.2) for number in range(rng.randrange(50, 150))
    ]
    disturber = in_thread(disturb, seed)
    try:
        summary = workflow.run_for_each(
            iter(items), work, max_parallel=4, mutex_key=lambda item: item[1], stop_on_error=False
        )
    finally:
        stop.set()
    disturber.result(DEADLINE)
    assert_apart(lines)
    assert [result.status == "rejected" for result in summary.results] == [fails for _, _, fails in items]
    ran = [int(who) for what, _, who in lines if what == "start" and who != "thread"]
    assert sorted(ran) == [number for number, key, _ in items if key is not None]


def test_the_checker_finds_overlaps(tmp_path: Path) -> None:
    """`assert_apart`, on which the tests above rely, fails for items that overlap."""
    for what, who in [("start", 1), ("end", 1), ("start", 2)]:
        mark(tmp_path / "trace", what, "k", who)
    with pytest.raises(AssertionError):
        assert_apart(marks(tmp_path / "trace"))
    mark(tmp_path / "trace", "end", "k", 2)
    assert assert_apart(marks(tmp_path / "trace")) == {"k": [("1",), ("2",)]}
    with pytest.raises(AssertionError, match="entered k while"):
        assert_apart([["start", "k", "1"], ["start", "k", "2"]])


def test_the_other_process_holds_all_its_keys(tmp_path: Path) -> None:
    """`held_elsewhere`, on which the tests above rely, holds each key."""
    workflow = Workflow("w", dir=tmp_path)
    with held_elsewhere(tmp_path, "a", "b"), ExitStack() as stack:
        for key in "ab":
            with pytest.raises(MutexTimeoutError):
                stack.enter_context(workflow.mutex(key, timeout=0))
    workflow.close()
