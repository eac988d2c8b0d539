"""Short items of a `for_each` are done by one worker alone; the others are there as soon as one is not short."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, WatchedFS, wait_until
from support_fanout import blocked
from support_processes import child

from iso_orchestrator import FileStore, Workflow
from iso_orchestrator.fanout import pace
from iso_orchestrator.fanout.pace import LONG, Pace
from iso_orchestrator.fanout.scheduler import Scheduler


class Hand:
    """The hand of a clock."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    monkeypatch.setattr(pace, "monotonic", hand)
    return hand


def items(pace: Pace, hand: Hand, count: int, seconds: float) -> None:
    for _ in range(count):
        pace.begin()
        hand.at += seconds
        pace.end()


def begun_elsewhere(pace: Pace) -> None:
    thread = threading.Thread(target=pace.begin)
    thread.start()
    thread.join()


def test_one_is_enough_while_somebody_is_at_a_short_item(hand: Hand) -> None:
    """Nobody at work, or somebody for long: then others are wanted."""
    pace = Pace()
    assert not pace.one_is_enough()
    begun_elsewhere(pace)
    assert pace.one_is_enough()
    hand.at += 2 * LONG
    assert not pace.one_is_enough()
    assert pace.is_anybody_at_work


def test_items_that_are_not_short_want_several(hand: Hand) -> None:
    """Of items of a millisecond, five are enough to tell."""
    pace = Pace()
    items(pace, hand, 5, 0.001)
    begun_elsewhere(pace)
    assert not pace.one_is_enough()


def test_one_slow_item_among_many_short_ones_changes_nothing(hand: Hand) -> None:
    """The machine has its moments."""
    pace = Pace()
    items(pace, hand, 50, 0.00005)
    items(pace, hand, 1, 0.001)
    assert pace.is_short


def test_each_mistake_makes_it_surer(hand: Hand) -> None:
    """Where every so many items one is long, short ones are soon no reason to work alone."""
    pace = Pace()
    mistakes = 0
    for _ in range(1000):
        items(pace, hand, 40, 0.00005)
        if pace.is_short:
            mistakes += 1
            pace.found_long()
    assert mistakes < 50


def test_who_is_sure_changes_his_mind_as_soon(hand: Hand) -> None:
    """However often it was mistaken, a handful of items that are not short are enough."""
    pace = Pace()
    for _ in range(7):
        items(pace, hand, 3000, 0.00005)
        pace.found_long()
    items(pace, hand, 3000, 0.00005)
    assert pace.is_short
    items(pace, hand, 8, 0.003)
    assert not pace.is_short


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    with Workflow("w", dir=tmp_path) as workflow:
        yield workflow


@pytest.mark.parametrize("short", [0, 1, 300])
def test_all_workers_are_there_when_items_are_long(workflow: Workflow, short: int) -> None:
    """As many at a time as there may be, whatever came before: they wait for each other."""
    together = threading.Barrier(8)

    @workflow.step(name="job-{number}")
    def job(number: int) -> None:
        if number >= short:
            together.wait(DEADLINE)

    summary = blocked(workflow.run_for_each, range(short + 16), job, max_parallel=8, progress=False)
    assert summary.result(DEADLINE).fulfilled == short + 16


@pytest.mark.parametrize("behind", [0, 100], ids=["at the end", "in the midst"])
def test_what_was_left_is_settled_while_a_long_item_goes_on(workflow: Workflow, behind: int) -> None:
    """Only the long one is still unknown to the disk, and to whoever waits for one of the others."""
    go_on = threading.Event()

    @workflow.step(name="job-{number}")
    def job(number: int) -> None:
        if number == 40:
            assert go_on.wait(DEADLINE)

    summary = blocked(workflow.run_for_each, range(41 + behind), job, max_parallel=4, progress=False)
    flights = workflow._runtime.session().flights
    try:
        wait_until(lambda: len(workflow.record.steps) == 41 + behind)
        wait_until(lambda: set(flights) == {"job-40"})
    finally:
        go_on.set()
    assert summary.result(DEADLINE).fulfilled == 41 + behind


def test_an_executor_with_one_thread_leaves_nothing_unsettled(workflow: Workflow) -> None:
    """Nobody stands by there, however many at a time were asked for."""
    go_on = threading.Event()

    @workflow.step(name="job-{number}")
    def job(number: int) -> None:
        if number == 40:
            assert go_on.wait(DEADLINE)

    flights = workflow._runtime.session().flights
    with ThreadPoolExecutor(1) as executor:
        summary = blocked(workflow.run_for_each, range(60), job, max_parallel=8, executor=executor, progress=False)
        try:
            wait_until(lambda: "job-40" in flights)
            assert set(flights) == {"job-40"}
        finally:
            go_on.set()
        assert summary.result(DEADLINE).fulfilled == 60


@pytest.mark.slow
def test_others_begin_while_what_was_left_is_settled(tmp_path: Path) -> None:
    """A sync that takes long keeps one worker, and not those who could be hired."""
    slow, go_on = threading.Event(), threading.Event()

    def before(name: str, _: object) -> None:
        if name == "sync" and slow.is_set():
            assert go_on.wait(DEADLINE)

    with Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(before))) as workflow:
        began: list[int] = []

        @workflow.step(name="job-{number}")
        def job(number: int) -> None:
            began.append(number)
            if number >= 40:
                slow.set()
                assert go_on.wait(DEADLINE)

        summary = blocked(workflow.run_for_each, range(48), job, max_parallel=8, progress=False)
        try:
            wait_until(lambda: len(began) >= 47)  # one of the eight may be with the disk
        finally:
            go_on.set()
        assert summary.result(DEADLINE).fulfilled == 48


OUTLIVES_MAIN = """
import threading, time
all_read = threading.Event()
def source():
    yield from range(300)
    all_read.set()
@workflow.step(name="job-{number}")
def job(number):
    time.sleep(0.02 if number % 20 == 10 else 0.0001)
def run():
    say(workflow.run_for_each(source(), job, max_parallel=4, progress=False).fulfilled)
    workflow.close()
threading.Thread(target=run).start()
all_read.wait()
"""


@pytest.mark.slow
def test_a_thread_that_outlives_the_main_one_ends_its_items(tmp_path: Path) -> None:
    """No worker can be hired any more then: those that are there do the rest."""
    with child(OUTLIVES_MAIN, tmp_path) as process:
        assert process.line(DEADLINE) == "300"
        process.end()


def test_a_slow_source_of_items_keeps_none_waiting(workflow: Workflow) -> None:
    """An item behind a long one is begun though the source gives no more for long."""
    go_on = threading.Event()
    ran: list[int] = []

    @workflow.step(name="job-{number}")
    def job(number: int) -> None:
        ran.append(number)
        if number == 40:
            assert go_on.wait(DEADLINE)

    def source() -> Iterator[int]:
        yield from range(42)
        assert go_on.wait(DEADLINE)
        yield 42

    summary = blocked(workflow.run_for_each, source(), job, max_parallel=4, progress=False)
    try:
        wait_until(lambda: 41 in ran)
    finally:
        go_on.set()
    assert summary.result(DEADLINE).fulfilled == 43


@pytest.mark.parametrize("seed", range(40))
def test_whatever_came_before_all_workers_come_to_what_is_long(workflow: Workflow, seed: int) -> None:
    """Short and long items by chance, from a source that is slow by chance; the last ones wait for each other."""
    chance = random.Random(seed)
    count, workers, share = chance.choice([5, 40, 200]), chance.choice([2, 3, 8]), chance.choice([0.0, 0.02, 0.2, 0.7])
    spans = [chance.choice([0.0005, 0.006, 0.02]) if chance.random() < share else 0.0 for _ in range(count)]
    pauses = [0.003 if seed % 3 == 0 and chance.random() < 0.05 else 0.0 for _ in range(count + workers)]
    together = threading.Barrier(workers)

    @workflow.step(name="job-{number}")
    def job(number: int) -> int:
        if number >= count:
            together.wait(DEADLINE)
        else:
            time.sleep(spans[number])
        return number

    def source() -> Iterator[int]:
        for number, pause in enumerate(pauses):
            time.sleep(pause)
            yield number

    summary = blocked(workflow.run_for_each, source(), job, max_parallel=workers, progress=False)
    assert summary.result(2 * DEADLINE).values() == list(range(count + workers))


def test_who_has_taken_an_item_begins_it_before_all_else(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next worker is hired before: else it would take the next item, and begin it, while this one is on its way."""
    did: dict[int, list[str]] = defaultdict(list)
    take_next, hire = Scheduler._take_next, Scheduler._start_worker

    def taking(scheduler: Scheduler) -> Any:
        did[threading.get_ident()].append("takes")
        return take_next(scheduler)

    def hiring(scheduler: Scheduler) -> None:
        did[threading.get_ident()].append("hires")
        hire(scheduler)

    together = threading.Barrier(8)

    @workflow.step(name="job-{number}")
    def job(number: int) -> None:
        did[threading.get_ident()].append("begins")
        together.wait(DEADLINE)

    monkeypatch.setattr(Scheduler, "_take_next", taking)
    monkeypatch.setattr(Scheduler, "_hire", hiring)
    workers: list[list[str]] = []
    for first in range(0, 320, 16):  # who reads the items may have hired all workers of one, by chance
        workflow.run_for_each(range(first, first + 16), job, max_parallel=8, progress=False)
        workers = [deeds for deeds in did.values() if "takes" in deeds]
    assert any("hires" in deeds for deeds in workers)
    assert all(then == "begins" for deeds in workers for now, then in pairwise(deeds) if now == "takes")
