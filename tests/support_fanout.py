"""Helpers of the tests of fan-out, mutexes and leases: gates, a clock, checks for waits and overlaps."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import thread as pool_thread
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from support import DEADLINE, wait_until

import iso_orchestrator
from iso_orchestrator.system.events import OneShotEvent

_PACKAGE = os.path.dirname(iso_orchestrator.__file__) + os.sep

NOON = datetime(2026, 5, 14, 12, 0, 0, tzinfo=UTC)


def blocked(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call *fn* in a daemon thread, and return when that thread waits or has ended."""
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
    """Whether a thread waits for a condition or an event of the package, or is in a function of one of *names*."""
    frames = list(_frames(frame_of(thread)))
    if names:
        return any(frame.f_code.co_name in names for frame in frames)
    return (
        bool(frames)
        and frames[0].f_code in (threading.Condition.wait.__code__, OneShotEvent.wait.__code__)
        and any(frame.f_code.co_filename.startswith(_PACKAGE) for frame in frames)
    )


def is_idle(thread: int) -> bool:
    """Whether a thread of an executor waits for work."""
    frames = list(_frames(frame_of(thread)))
    return bool(frames) and frames[0].f_code.co_filename == pool_thread.__file__


def frame_of(thread: int) -> FrameType | None:
    """The innermost frame of a thread.

    Without garbage collection: `sys._current_frames` holds a lock of the interpreter, and a `threading.local` that is
    collected meanwhile waits for it for ever (python/cpython#106883).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if was_enabled:
            gc.enable()


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def say_when_main_waits(word: str, *names: str) -> None:
    """In a child process: print *word* as soon as the main thread waits, as `is_waiting` finds it."""
    main = threading.main_thread().ident or 0

    def watch() -> None:
        wait_until(lambda: is_waiting(main, *names))
        print(word)

    threading.Thread(target=watch, daemon=True).start()


def mark(path: Path | str, *words: object) -> None:
    """Append a line to a file that several processes write, in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


def marks(path: Path | str) -> list[list[str]]:
    """The words of each line that `mark` wrote."""
    return [line.split() for line in Path(path).read_text().splitlines()]


def assert_apart(lines: Iterable[list[str]]) -> dict[str, list[tuple[str, ...]]]:
    """Check that no two entries of one key overlap in lines of "start key who" and "end key who".

    Returns:
        For each key, who entered, in order.
    """
    inside: dict[str, tuple[str, ...]] = {}
    order: dict[str, list[tuple[str, ...]]] = {}
    for what, key, *who in lines:
        if what == "start":
            assert key not in inside, f"{who} entered {key} while {inside[key]} was inside"
            inside[key] = tuple(who)
            order.setdefault(key, []).append(tuple(who))
        else:
            assert inside.pop(key, None) == tuple(who), f"{who} left {key} without being inside"
    assert not inside
    return order


def new_seed() -> int:
    """The seed of a random test. It is printed, with the command that repeats the test."""
    seed = int(os.environ.get("ISO_TEST_SEED", random.randrange(2**32)))
    print(f"ISO_TEST_SEED={seed} pytest ... repeats this test")
    return seed


class Gate:
    """A place where threads stop until the test opens it for their item.

    Attributes:
        entered: The items that have entered so far, in order.
        left: The items that have left so far, in order.
        most: The largest number of items that were inside at one time.
    """

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.left: list[Any] = []
        self.most = 0
        self._open: set[Any] = set()
        self._all = False
        self._changed = threading.Condition()

    def __call__(self, item: Any) -> Any:
        """Enter, and stay until the gate is open for *item*."""
        with self._changed:
            self.entered.append(item)
            self.most = max(self.most, len(self.entered) - len(self.left))
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._all or item in self._open, DEADLINE), (
                "the test did not open the gate"
            )
            self.left.append(item)
        return item

    def open(self, *items: Any) -> None:
        """Let *items* leave, now and later; without arguments all items."""
        with self._changed:
            self._all = self._all or not items
            self._open.update(items)
            self._changed.notify_all()

    def until_in(self, *items: Any) -> None:
        """Wait until *items* have entered."""
        with self._changed:
            came = self._changed.wait_for(lambda: all(item in self.entered for item in items), DEADLINE)
        assert came, f"{items} did not all enter, only {self.entered}"


def codes_of(events: Iterable[Any], *types: str) -> list[str]:
    """The types of the events that have one of *types*, in order."""
    return [event.type for event in events if event.type in types]
