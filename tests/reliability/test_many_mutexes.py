"""Row 25: many threads of two processes want more mutexes than a process keeps open, and some time out.

In half of the runs Ctrl-C comes to the main thread while it enters a mutex. None comes while it leaves one: no `with`
in Python is left if a signal comes as `__exit__` begins.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from _signal import pthread_sigmask  # in C: as `signal.pthread_sigmask` begins, Ctrl-C could come before the call
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from reliability.oracle import Link, Nursery, Oracle, Room, held_locks, violations
from reliability.tiers import Figures, Tier
from support import DEADLINE, memory_folder, wait_until
from support_processes import in_thread

from iso_orchestrator import MutexTimeoutError, Workflow
from iso_orchestrator.coordination import mutex_queue
from iso_orchestrator.coordination.mutex import Mutex

ROW = 25
PROCESSES = 2
THREADS = 6
KEYS = 40  # 16 are kept open
SIGINT = (signal.SIGINT,)
NAMES = ("one", "two")  # of workflows


def wander(link: Link, root: str, seed: str, times: int, signals: bool) -> None:
    """Enter mutexes in any order in many threads, the main one among them; report what was seen."""
    crowd = _Crowd(Path(root), seed, signals=signals)
    link.say("open")
    link.hear()
    link.say(crowd.work(times))
    link.hear()  # until the other process has reported too, since the end of a process frees its mutexes


class _Crowd:
    """The threads of one process.

    Attributes:
        entries: How often a thread was in a mutex.
        vain: How often a wait timed out, or Ctrl-C came.
    """

    def __init__(self, root: Path, seed: str, *, signals: bool) -> None:
        self.entries = 0
        self.vain = 0
        self._seed = seed
        self._signals = signals
        random_of_all = random.Random(seed)
        sys.setswitchinterval(random_of_all.choice((1e-5, 1e-4, 5e-3)))
        # Mostly other processes have their turn at once, and mostly more keys are waited for than there are threads.
        mutex_queue._TURN = random_of_all.choice((0.0, 0.0, mutex_queue._TURN))
        mutex_queue._MOST_THREADS = random_of_all.choice((0, 2, mutex_queue._MOST_THREADS))
        self._folder = root
        self._oracle = Oracle(root / "oracle", f"process {seed}")
        self._descriptors = _descriptors()
        self._workflows = {name: Workflow(name, dir=root) for name in NAMES}
        self._rooms: dict[str, Room] = {}
        self._counting = threading.Lock()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pthread_sigmask(signal.SIG_BLOCK, SIGINT)  # except while the main thread enters a mutex

    def work(self, times: int) -> dict[str, Any]:
        """Have all threads enter so many mutexes, and more inside of those."""
        futures = [in_thread(self._wander, number, times) for number in range(1, THREADS)]
        self._wander(0, times)
        late = []
        for number, future in enumerate(futures, 1):
            try:
                future.result(DEADLINE)
            except BaseException as error:
                late.append(f"thread {number}: {error!r}")
        for workflow in self._workflows.values():
            workflow.close()
        return {
            "entries": self.entries,
            "vain": self.vain,
            "overlaps": [overlap for room in self._rooms.values() for overlap in room.overlaps],
            "late": late,
            "leaked": self._leaked(),
        }

    def _leaked(self) -> list[str]:
        """The files that stay open, after the end of threads that wait for mutexes without waiters."""

        def left() -> list[str]:
            return sorted(set(_descriptors().values()) - set(self._descriptors.values()))

        with suppress(AssertionError):
            wait_until(lambda: not left())
        return left()

    def _wander(self, number: int, times: int) -> None:
        draw = random.Random(f"{self._seed} {number}")
        threading.current_thread().name = str(number)
        for _ in range(times):
            self._enter(draw, first=0)

    def _enter(self, draw: random.Random, first: int) -> None:
        """Enter one, and inside of it some that come later in their order, so that no threads wait for each other."""
        key = min(draw.randrange(first, KEYS), draw.randrange(first, KEYS))  # all threads want the first ones
        name = draw.choice(NAMES)
        mutex = self._workflows[name].mutex(
            str(key),
            timeout=draw.choice((None, None, None, 0, 0.001, 0.01)),
            scope="store" if key % 2 else "workflow",
        )
        about = str(key) if key % 2 else f"{name}.{key}"
        if self._signals and draw.random() < 0.1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            self._be_in(mutex, about, lambda: self._do_inside(draw, key, first))
        except (MutexTimeoutError, KeyboardInterrupt):
            with self._counting:
                self.vain += 1

    def _be_in(self, mutex: Mutex, about: str, do_inside: Callable[[], None]) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        try:
            if is_main:
                pthread_sigmask(signal.SIG_UNBLOCK, SIGINT)
            with mutex:
                if is_main:
                    pthread_sigmask(signal.SIG_BLOCK, SIGINT)  # what follows is the test's own
                self._oracle.say("enter", about)
                with self._room(about).entered():
                    do_inside()
                self._oracle.say("leave", about)
        finally:
            if is_main:
                pthread_sigmask(signal.SIG_BLOCK, SIGINT)

    def _do_inside(self, draw: random.Random, key: int, first: int) -> None:
        with self._counting:
            self.entries += 1
        if draw.random() < 0.05:
            self._workflows[draw.choice(NAMES)].close()  # the next use opens it again
        if first == 0:
            for _ in range(draw.choice((0, 0, 2, 8))):
                if key + 1 < KEYS:
                    self._enter(draw, first=key + 1)

    def _room(self, about: str) -> Room:
        with self._counting:
            return self._rooms.setdefault(about, Room(self._folder, about))


def _descriptors() -> dict[str, str]:
    """The files that this process has open, by descriptor; none where the system does not tell."""
    folder = "/proc/self/fd"
    found = {}
    for fd in os.listdir(folder) if os.path.isdir(folder) else ():
        try:
            found[fd] = os.readlink(f"{folder}/{fd}")
        except FileNotFoundError:  # the one by which they are listed
            continue
    return found


@pytest.mark.slow
def test_many_mutexes_exclude_as_one_does(nursery: Nursery, tier: Tier, figures: Figures) -> None:
    """No two threads are in one mutex at once, each thread gets what it waits for, and none stays locked or open."""
    times = tier.pick(quick=25, full=60, soak=60)
    for number in range(tier.count(quick=2, full=4, soak=800)):
        signals = number % 2 == 1
        with memory_folder() as root:
            seeds = [f"{tier.seed} mutexes {number} {process}" for process in range(PROCESSES)]
            children = [nursery.start(wander, str(root), seed, times, signals) for seed in seeds]
            assert [child.hear() for child in children] == ["open"] * PROCESSES
            for child in children:
                child.say()
            told = [child.hear(4 * DEADLINE) for child in children]
            held = held_locks(root)
            for child in children:
                child.say()
                child.end()
            seen = violations(Oracle(root / "oracle", "test").news())
            entries = sum(int(path.read_text()) for path in root.glob("*.number"))
        found = [fault for of_one in told for what in ("overlaps", "late", "leaked") for fault in of_one[what]] + seen
        lost = sum(of_one["entries"] for of_one in told) - entries
        figures.add(ROW, "entries into 60 mutexes, 2 x 6 threads", entries, len(found) + len(held) + (lost != 0))
        figures.add(ROW, "waits for them, timed out or interrupted", sum(of_one["vain"] for of_one in told))
        assert not found
        assert not lost
        assert not held
