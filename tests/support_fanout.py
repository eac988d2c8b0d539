"""What the tests of fan-out, mutexes and leases share: who waits, who overlaps, clocks that a test moves."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import thread as pool_thread
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from support import DEADLINE, wait_until

import iso_orchestrator
from iso_orchestrator.system.interrupts import OneShotEvent

_PACKAGE = os.path.dirname(iso_orchestrator.__file__) + os.sep

NOON = datetime(2026, 5, 14, 12, 0, 0, tzinfo=UTC)


class Clock:
    """A clock that stands still until it is moved. `Workflow(now=clock)` reads it."""

    def __init__(self, start: datetime = NOON) -> None:
        self.time = start
        self.readers: list[str] = []

    def __call__(self) -> datetime:
        self.readers.append(threading.current_thread().name)
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)

    def reads_by(self, part: str) -> int:
        """How often threads with *part* in their name have read it."""
        return sum(part in name for name in self.readers)


def blocked(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call *fn* in a thread of its own, and return when that thread waits for something.

    A thread that hangs keeps no test run from ending.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: future.done() or is_waiting(thread.ident or 0), what="a wait")
    return future


def is_waiting(thread: int, *names: str) -> bool:
    """Whether a thread waits in the package, in a condition or a latch, or in a function of one of *names*."""
    frames = list(_frames(sys._current_frames().get(thread)))
    if names:
        return any(frame.f_code.co_name in names for frame in frames)
    return (
        bool(frames)
        and frames[0].f_code in (threading.Condition.wait.__code__, OneShotEvent.wait.__code__)
        and any(frame.f_code.co_filename.startswith(_PACKAGE) for frame in frames)
    )


def is_idle(thread: int) -> bool:
    """Whether a thread of an executor has nothing to do."""
    frames = list(_frames(sys._current_frames().get(thread)))
    return bool(frames) and frames[0].f_code.co_filename == pool_thread.__file__


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def say_when_main_waits(word: str, *names: str) -> None:
    """In a child: print *word* as soon as the main thread waits, by `is_waiting`."""
    main = threading.main_thread().ident or 0

    def watch() -> None:
        wait_until(lambda: is_waiting(main, *names))
        print(word)

    threading.Thread(target=watch, daemon=True).start()


def mark(path: Path | str, *words: object) -> None:
    """Append a line to a file that several processes write, in one piece."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


def marks(path: Path | str) -> list[list[str]]:
    """The words of each line that `mark` wrote."""
    return [line.split() for line in Path(path).read_text().splitlines()]


def assert_apart(lines: Iterable[list[str]]) -> dict[str, list[tuple[str, ...]]]:
    """No two of one key overlap in lines of "start key who" and "end key who"; who came in which order, by key."""
    inside: dict[str, tuple[str, ...]] = {}
    order: dict[str, list[tuple[str, ...]]] = {}
    for what, key, *who in lines:
        if what == "start":
            assert key not in inside, f"{who} came into {key} while {inside[key]} was in"
            inside[key] = tuple(who)
            order.setdefault(key, []).append(tuple(who))
        else:
            assert inside.pop(key, None) == tuple(who), f"{who} came out of {key} without being in"
    assert not inside
    return order


def new_seed() -> int:
    """What a random test begins with; it is printed with the way to repeat it."""
    seed = int(os.environ.get("ISO_TEST_SEED", random.randrange(2**32)))
    print(f"ISO_TEST_SEED={seed} pytest ... repeats this test")
    return seed


class Gate:
    """What several threads run through, stop in, and are let on from.

    Attributes:
        entered: What has come in so far, in order.
        most: The most that were in at one time.
    """

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.left: list[Any] = []
        self.most = 0
        self._open: set[Any] = set()
        self._all = False
        self._changed = threading.Condition()

    def __call__(self, item: Any) -> Any:
        """Come in, and stay until it is open for *item*."""
        with self._changed:
            self.entered.append(item)
            self.most = max(self.most, len(self.entered) - len(self.left))
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._all or item in self._open, DEADLINE), "nobody opened the gate"
            self.left.append(item)
        return item

    def open(self, *items: Any) -> None:
        """Let *items* on, now and later; all of them when none are named."""
        with self._changed:
            self._all = self._all or not items
            self._open.update(items)
            self._changed.notify_all()

    def until_in(self, *items: Any) -> None:
        """Wait until *items* have come in."""
        with self._changed:
            came = self._changed.wait_for(lambda: all(item in self.entered for item in items), DEADLINE)
        assert came, f"{items} did not come in, only {self.entered}"


def codes_of(events: Iterable[Any], *types: str) -> list[str]:
    """The types of those events that are of *types*, in order."""
    return [event.type for event in events if event.type in types]
