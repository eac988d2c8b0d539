"""Row 27: mutexes that threads of one process hand over, under many of the ways in which they can meet.

In a third of the schedules Ctrl-C ends the wait of a thread. It comes nowhere else, since everything else is masked. In
another third a user's own signal handler raises anywhere in entering and leaving. That may leave waiters behind, but
never lets two threads in, and no thread meets another error. No signal comes as `__enter__` returns or as `__exit__`
begins: then Python's `with` itself loses what it has entered, or does not leave it.
"""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from reliability.schedules import Schedule
from reliability.tiers import Figures, Tier
from support_fanout import NOON

from iso_orchestrator import MutexTimeoutError
from iso_orchestrator.coordination import mutex, mutex_queue
from iso_orchestrator.coordination.mutex import Mutex
from iso_orchestrator.runtime import waits
from iso_orchestrator.store import ProcessInfo, memory
from iso_orchestrator.system import events, interrupts

ROW = 27
KEYS = ("a", "b")

# Where the exception of a signal comes out, by what raises it.
PLACES = {
    "nothing": (),
    "Ctrl-C": ("OneShotEvent.wait",),
    "a handler": ("Held._end", "request", "OneShotEvent.wait", "Waiter.cancel"),
}


class _StoreMutex:
    """What a process has of a mutex between processes: as the kernel's lock on a file, it frees none but its own."""

    def __init__(self, schedule: Schedule, holders: list[_StoreMutex], parked: list[_StoreMutex]) -> None:
        self._schedule = schedule
        self._holders = holders  # of all processes: one or none
        self._parked = parked  # those of this process that are not in use

    is_lost = False

    def check(self) -> None:
        """Its file is never removed."""

    def try_acquire(self) -> bool:
        self._schedule.pause(may_interrupt=True)
        if self._holders and self not in self._holders:
            return False
        self._holders[:] = [self]
        return True

    def acquire(self) -> None:
        while not self.try_acquire():
            self._schedule.wait_until(lambda: not self._holders)

    def release(self) -> None:
        if self in self._holders:
            self._holders.clear()
        self._schedule.pause(may_interrupt=True)

    def dispose(self) -> None:
        self._schedule.pause(may_interrupt=True)
        self._parked.append(self)

    def holder(self) -> ProcessInfo:
        return ProcessInfo()


class _Threads:
    """The threads that want mutexes, one of which may be another process's.

    Args:
        schedule: How they go on.

    Attributes:
        overlaps: Two threads that were in one mutex.
    """

    def __init__(self, schedule: Schedule) -> None:
        draw = schedule.random
        self.overlaps: list[str] = []
        self._schedule = schedule
        self._holders: dict[str, list[_StoreMutex]] = {key: [] for key in KEYS}
        self._parked: dict[str, list[_StoreMutex]] = {key: [] for key in KEYS}
        self._inside: dict[str, str] = {}
        is_in_memory = draw.random() < 0.3
        in_memory = {key: memory._Mutex(memory.threading.Lock()) for key in KEYS}
        log = SimpleNamespace(mutex=lambda key, *, whole_store: in_memory[key] if is_in_memory else self._mutex(key))
        session = SimpleNamespace(log=log, transact=lambda _, durable: schedule.pause(may_interrupt=True))
        # All of a runtime that mutexes use.
        self._runtime: Any = SimpleNamespace(
            store=SimpleNamespace(identity="store"),
            workflow_id="w",
            clock=SimpleNamespace(now=lambda: NOON),
            acquire=lambda: nullcontext(session),
        )
        for number in range(draw.randint(2, 3)):
            schedule.start(self._enter_some, f"thread {number}")
        if draw.random() < 0.5 and not is_in_memory:
            schedule.start(self._take_as_another_process)

    def _mutex(self, key: str) -> _StoreMutex:
        parked = self._parked[key]
        return parked.pop() if parked else _StoreMutex(self._schedule, self._holders[key], parked)

    def _enter_some(self, name: str) -> None:
        draw = self._schedule.random
        for _ in range(draw.choice((1, 2, 3))):
            key = draw.choice(("a", "a", "a", "b"))
            try:
                with Mutex(self._runtime, key, draw.choice((None, None, 0.0, 1.0)), "workflow"):
                    self._be_in(key, name)
            except MutexTimeoutError:
                pass

    def _take_as_another_process(self) -> None:
        for key in KEYS:
            store_mutex = _StoreMutex(self._schedule, self._holders[key], [])
            store_mutex.acquire()
            self._be_in(key, "another process")
            store_mutex.release()

    def _be_in(self, key: str, name: str) -> None:
        other = self._inside.get(key)
        if other is not None:
            self.overlaps.append(f"{name} in {key}, where {other} is")
        self._inside[key] = name
        self._schedule.let_others_go_on()
        self._inside.pop(key, None)

    def check_free(self) -> None:
        """All mutexes are free when all threads have ended, and can be had."""
        held = [key for key, holders in self._holders.items() if holders]
        if held:
            self._schedule.blame(f"{held} are held in the end")
        for key in KEYS:
            try:
                with Mutex(self._runtime, key, 0.0, "workflow"):
                    pass
            except MutexTimeoutError:
                self._schedule.blame(f"{key} cannot be had in the end")
        registry = mutex_queue._registry
        if registry.states or registry.unserved or registry.threads:
            self._schedule.blame(f"{registry.states}, {registry.unserved}, {registry.threads} threads in the end")


def test_a_mutex_is_handed_on_to_one_at_a_time_and_to_all(tier: Tier, figures: Figures) -> None:
    """Each thread that wants a mutex has it, alone, or gives up in time or by Ctrl-C; in the end it is free."""
    tier.skip_quick("thousands of schedules")
    found = {}
    schedules = tier.count(quick=0, full=2_000, soak=600_000)
    for number in range(schedules):
        schedule = Schedule(f"{tier.seed} mutex {number}", [mutex_queue, mutex, events, interrupts, memory])
        raises = schedule.random.choice(tuple(PLACES))
        with schedule.locks(), pytest.MonkeyPatch.context() as patch:
            reads = itertools.count()
            step = schedule.random.choice((0.001, 0.1))
            patch.setattr(mutex_queue, "monotonic", lambda reads=reads, step=step: next(reads) * step)
            patch.setattr(mutex_queue, "_registry", mutex_queue._Registry())
            patch.setattr(waits, "_finding", nullcontext())  # one thread runs at a time, and may stop inside
            patch.setattr(mutex_queue, "_TURN", schedule.random.choice((0.0, math.inf)))
            patch.setattr(mutex_queue, "_MOST_THREADS", schedule.random.choice((0, 1, 32)))
            threads = _Threads(schedule)
            if PLACES[raises]:
                schedule.interrupt_one(60, inside=PLACES[raises])
            schedule.run()
            if not schedule.violations:
                threads.check_free()
        if raises == "a handler":
            schedule.violations = [violation for violation in schedule.violations if "ended with" in violation]
        if threads.overlaps or schedule.violations:
            found[number] = threads.overlaps + schedule.violations
    figures.add(ROW, "schedules of threads that hand mutexes over", schedules, len(found))
    assert not found, f"--seed {tier.seed}, by the number of the schedule: {found}"
