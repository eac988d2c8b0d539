"""The schedules themselves: what can go wrong between two threads goes wrong in one of them, and again by its seed."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from reliability.schedules import Interrupt, Schedule

pytestmark = pytest.mark.slow

SCHEDULES = 600


class _Pair:
    """Two threads that do something wrong."""

    def __init__(self, schedule: Schedule) -> None:
        self.one, self.two = threading.Lock(), threading.Lock()
        self.number = 0
        self.schedule = schedule

    def add(self) -> None:
        before = self.number
        self.number = before + 1

    def add_locked(self) -> None:
        with self.one:
            self.add()

    def cross(self) -> None:
        first, second = self.schedule.random.sample((self.one, self.two), 2)
        with first, second:
            self.add()

    def add_in_vain(self) -> None:
        try:
            with self.one:
                self.add()
        except Interrupt:
            self.schedule.blame("interrupted")


def _played(what: Callable[[_Pair], None], seed: int, *, interrupt: bool = False) -> tuple[int, list[str]]:
    schedule = Schedule(seed, [sys.modules[__name__]])
    with schedule.locks():
        pair = _Pair(schedule)
        schedule.start(what, pair)
        schedule.start(what, pair)
        if interrupt:
            schedule.interrupt_one(within=25)
        schedule.run()
    return pair.number, schedule.violations


def test_an_update_is_lost_without_a_lock_and_not_with_one() -> None:
    """Threads are switched between from line to line, and locks are minded."""
    assert {_played(_Pair.add, seed)[0] for seed in range(SCHEDULES)} == {1, 2}
    assert {_played(_Pair.add_locked, seed)[0] for seed in range(SCHEDULES)} == {2}


def test_who_waits_for_ever_is_found_out() -> None:
    """Two who take two locks in different order block each other in some schedules."""
    found = Counter(violation for seed in range(SCHEDULES) for violation in _played(_Pair.cross, seed)[1])
    assert any("2 threads wait for ever" in violation for violation in found)


def test_a_signal_comes_before_or_behind_what_is_done_or_not_at_all() -> None:
    """One of two is interrupted, inside of its `try` or in front of it, and the lock is free for the other."""
    found = [_played(_Pair.add_in_vain, seed, interrupt=True) for seed in range(SCHEDULES)]
    assert {(number, len(violations)) for number, violations in found} == {(1, 0), (1, 1), (2, 1), (2, 0)}


def test_a_seed_plays_its_schedule_again() -> None:
    """All of it, to the step."""
    first, again = ([_played(_Pair.cross, seed) for seed in range(SCHEDULES)] for _ in range(2))
    assert first == again
