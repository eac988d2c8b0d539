"""Row 32: threads and asyncio tasks enter mutexes inside of steps and items, in contexts that were copied at random."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from reliability.tiers import Figures, Tier
from support import DEADLINE
from support_processes import in_thread

from iso_orchestrator import MemoryStore, MutexTimeoutError, Workflow

ROW = 32
KEYS = "abc"
ITEM_KEY = "key of an item"


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class _Run:
    """Work that spreads over threads and tasks, and enters mutexes wherever it is.

    Attributes:
        entries: How often each key was entered, as each thread counted for itself.
        counted: The same, counted inside without any other lock: entries that overlap lose some.
        overlaps: Places that were entered while another thread or task was there.
    """

    def __init__(self, seed: str) -> None:
        self.entries: list[str] = []
        self.counted = dict.fromkeys([*KEYS, ITEM_KEY], 0)
        self.overlaps: list[str] = []
        self.inside: dict[str, object] = {}
        self._seed = seed
        self._workflow = Workflow("w", store=MemoryStore())
        self._steps = 0
        self._guard = threading.Lock()

    def work(self) -> None:
        in_thread(self._spread, self._draw(), 3).result(4 * DEADLINE)
        self._workflow.close()

    def _draw(self) -> random.Random:
        with self._guard:
            self._steps += 1
            return random.Random(f"{self._seed} {self._steps}")

    def _spread(self, draw: random.Random, depth: int) -> None:
        """Enter a mutex, and go on in a step, in items, in threads or in tasks, with this context or without."""
        self._enter(draw.choice(KEYS))
        if depth == 0:
            return
        name, timeout = f"step {id(draw)} {depth} {draw.random()}", draw.choice((None, DEADLINE))
        again = [self._draw() for _ in range(3)]
        ways: list[Callable[[], object]] = [
            lambda: self._workflow.run_step(name, self._spread, draw, depth - 1, timeout=timeout),
            lambda: self._workflow.run_for_each(again, self._item, max_parallel=3, mutex_key=ITEM_KEY),
            lambda: self._in_threads(again, depth - 1),
            lambda: asyncio.run(self._in_tasks(again, depth - 1)),
        ]
        draw.choice(ways)()

    def _item(self, draw: random.Random) -> None:
        with self._entered(ITEM_KEY):
            self._again(ITEM_KEY)
            self._workflow.run_step(f"in {id(draw)} {draw.random()}", self._again, ITEM_KEY, timeout=DEADLINE)
            self._enter(draw.choice(KEYS))

    def _again(self, key: str) -> None:
        with self._workflow.mutex(key, timeout=0):
            pass

    def _in_threads(self, draws: list[random.Random], depth: int) -> None:
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(copy_context().run, self._spread, draw, depth) for draw in draws]
        for future in futures:
            future.result()

    async def _in_tasks(self, draws: list[random.Random], depth: int) -> None:
        await asyncio.gather(
            *(self._task(draw) for draw in draws), *(asyncio.to_thread(self._spread, draw, depth) for draw in draws)
        )

    async def _task(self, draw: random.Random) -> None:
        """Hold a mutex over an await, where other tasks of the thread run; none of them may wait for it."""
        key = draw.choice(KEYS)
        while True:
            try:
                with self._workflow.mutex(key, timeout=0), self._entered(key):
                    self._again(key)
                    await asyncio.sleep(0.001)
            except MutexTimeoutError:
                await asyncio.sleep(0.001)
            else:
                return

    def _enter(self, key: str) -> None:
        with self._workflow.mutex(key), self._entered(key):
            self._again(key)

    def _entered(self, key: str) -> _Entry:
        return _Entry(self, key)


class _Entry:
    """A place that one thread or task may be in, which counts without a lock."""

    def __init__(self, run: _Run, key: str) -> None:
        self._run, self._key = run, key

    def __enter__(self) -> None:
        if self._run.inside.setdefault(self._key, self) is not self:
            self._run.overlaps.append(self._key)
        self._count = self._run.counted[self._key]
        self._run.entries.append(self._key)
        threading.Event().wait(0.0002)  # other threads run meanwhile

    def __exit__(self, *_: object) -> None:
        self._run.counted[self._key] = self._count + 1
        self._run.inside.pop(self._key, None)


def test_contexts_that_are_copied_make_no_owner(tier: Tier, figures: Figures) -> None:
    """Wherever a context was copied to, one thread or task is in a mutex, and enters it again."""
    draw = tier.random("owners")
    entries = found = 0
    for number in range(tier.count(quick=12, full=120, soak=20_000)):
        run = _Run(f"{draw.random()} {number}")
        run.work()
        lost = len(run.entries) - sum(run.counted.values())
        entries, found = entries + len(run.entries), found + len(run.overlaps) + lost
    figures.add(ROW, "entries into mutexes in copied contexts", entries, found)
    assert not found
