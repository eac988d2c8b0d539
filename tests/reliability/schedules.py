"""Threads of which one at a time goes on, from line to line: a seed says which, and plays the same schedule again.

After Musuvathi et al. 2008, "Finding and Reproducing Heisenbugs in Concurrent Programs" (OSDI; CHESS): the locks of the
code that is tried are the schedule's own, so that it knows who can go on, and that nobody can; and few switches at
places where nobody would have to wait find most errors, so that many schedules have few of them.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import DEADLINE
from support_fanout import frame_of

__all__ = ["Interrupt", "Schedule"]

RATES = (0.02, 0.1, 0.4)  # how often a thread has to stop for another where it could go on
MOST_STEPS = 20_000


class Interrupt(BaseException):
    """What a signal's handler raises."""


class _Stopped(BaseException):
    """The schedule is over: all that is left of it ends."""


class _Thread:
    """A thread, which goes on when it is told to."""

    def __init__(self, function: Callable[..., None], args: tuple[Any, ...], live: Callable[[_Thread], None]) -> None:
        self.work = lambda: function(*args)
        self.go = threading.Semaphore(0)
        self.can_go_on: Callable[[], bool] | None = None  # what it waits for
        self.is_interrupted = False  # while it waits
        self.is_done = False
        self.thread = threading.Thread(target=live, args=(self,), daemon=True)

    def calls(self) -> Iterator[str]:
        """The functions that it is in; one that is called just now has not begun."""
        frame = frame_of(self.thread.ident or 0)
        while frame is not None:
            if frame.f_lasti > 0 and frame.f_lineno != frame.f_code.co_firstlineno:
                yield frame.f_code.co_qualname
            frame = frame.f_back


class Schedule:
    """One way in which threads may go on.

    Args:
        seed: Which way.
        modules: Whose code is tried: a thread may have to stop before each of its lines.

    Attributes:
        random: For all that is drawn in the threads too.
        violations: What must not be.
        running: The thread that goes on, while there is one.

    Example:
        schedule = Schedule(7, [module])
        with schedule.locks():
            thing = module.Thing()
            schedule.start(thing.use)
            schedule.start(thing.use)
            schedule.run()
        assert not schedule.violations
    """

    def __init__(self, seed: object, modules: Iterable[ModuleType]) -> None:
        self.random = random.Random(str(seed))
        self.violations: list[str] = []
        self._rate = self.random.choice(RATES)
        self._modules = list(modules)
        self._files = {module.__file__ for module in self._modules}
        self._threads: list[_Thread] = []
        self.running: _Thread | None = None
        self._victim: _Thread | None = None
        self._signal_in = 0
        self._inside: tuple[str, ...] = ()
        self._steps = 0
        self._is_over = False

    @contextmanager
    def locks(self) -> Iterator[None]:
        """Within this the modules make locks and threads of the schedule's."""
        ours = SimpleNamespace(
            Lock=lambda: _Lock(self),
            RLock=lambda: _Lock(self, is_reentrant=True),
            Thread=lambda target, **_: SimpleNamespace(start=lambda: self.start(target)),
            TIMEOUT_MAX=threading.TIMEOUT_MAX,
            get_ident=threading.get_ident,
            main_thread=threading.main_thread,
        )
        with pytest.MonkeyPatch.context() as patch:
            for module in self._modules:
                patch.setattr(module, "threading", ours, raising=False)
            yield

    def start(self, function: Callable[..., None], *args: Any) -> None:
        """Have a thread call *function*."""
        thread = _Thread(function, args, self._live)
        self._threads.append(thread)
        if self.running is not None:
            thread.thread.start()

    def interrupt_one(self, within: int, inside: tuple[str, ...] = ()) -> None:
        """Have a signal come to one of the threads, at one of the first places where the interpreter looks for one.

        Args:
            within: How many places.
            inside: Only places in functions with these qualified names, once they have begun, and in what they call.
        """
        self._inside = inside
        self._victim = self.random.choice(self._threads)
        self._signal_in = self.random.randint(1, within)

    def run(self) -> None:
        """Return when all threads have ended, or none of them can go on."""
        for thread in self._threads:
            thread.thread.start()
        self._choose()
        # More may come to them meanwhile.
        for thread in self._threads:
            thread.thread.join(DEADLINE)
            assert not thread.thread.is_alive(), "a thread of a schedule waits for something that is none of its locks"
        self.running = None

    def blame(self, what: str) -> None:
        """Say that something is wrong."""
        self.violations.append(f"{what} (step {self._steps})")

    def pause(self, *, may_interrupt: bool = False) -> None:
        """Maybe let others go on, or be interrupted where the interpreter would look for a signal."""
        if self._is_over:
            raise _Stopped
        if self.running is None:
            return
        self._steps += 1
        if self._steps > MOST_STEPS:
            self._end("the threads go on for ever")
            raise _Stopped
        if may_interrupt and self.running is self._victim and self._is_time():
            self.let_others_go_on()  # while the handler runs
            raise Interrupt
        if self.random.random() < self._rate:
            self.let_others_go_on()

    def let_others_go_on(self) -> None:
        """Do what takes a while: whoever is ready may go on, this thread among them."""
        me = self.running
        assert me is not None
        if self._choose() is not me:
            me.go.acquire()
        if self._is_over:
            raise _Stopped
        if me.is_interrupted:
            me.is_interrupted = False
            raise Interrupt

    def wait_until(self, holds: Callable[[], bool], *, is_patient: bool = True) -> bool:
        """Let others go on until *holds*, or a signal comes, or a time that is drawn is over; whether it holds."""
        me = self.running
        if me is None:  # the test itself, when all threads have ended
            return holds()
        me.can_go_on = holds if is_patient else None
        try:
            while not holds() and (is_patient or self.random.random() < 0.9):
                self.let_others_go_on()
        finally:
            me.can_go_on = None
        return holds()

    def watch(self) -> None:
        """Go on by lines, also after an error that came from where that is seen to: it ends the watching."""
        if self.running is not None:
            sys.settrace(self._trace)

    def _live(self, me: _Thread) -> None:
        try:
            me.go.acquire()
            self.pause()
            self.watch()
            me.work()
        except (Interrupt, _Stopped):
            pass
        except BaseException as error:
            self.blame(f"a thread ended with {error!r}")
        finally:
            sys.settrace(None)
            me.is_done = True
            if not self._is_over:
                self._choose()

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event in ("call", "line"):
            # Signals are looked for where a function begins, and not before each line.
            self.pause(may_interrupt=event == "call")
        return self._trace

    def _is_time(self) -> bool:
        """Whether the victim is interrupted now; it is once."""
        assert self._victim is not None
        if self._inside and not any(name in self._inside for name in self._victim.calls()):
            return False
        self._signal_in -= 1
        if self._signal_in:
            return False
        self._victim = None
        return True

    def _choose(self) -> _Thread | None:
        """Say who goes on."""
        left = [thread for thread in self._threads if not thread.is_done]
        ready = [thread for thread in left if thread.can_go_on is None or thread.can_go_on()]
        victim = self._victim
        if left and not ready:
            self._end(f"{len(left)} threads wait for ever")
        elif victim is not None and victim.can_go_on is not None and self._is_time():
            victim.is_interrupted = True
            ready = [victim]
        if not ready:
            return None
        before, self.running = self.running, self.random.choice(ready)
        if self.running is not before:
            self.running.go.release()
        return self.running

    def _end(self, why: str) -> None:
        self.blame(why)
        self._is_over = True
        for thread in self._threads:
            thread.go.release()


class _Lock:
    """`threading.Lock` or `RLock`, as the schedule's threads have it."""

    def __init__(self, schedule: Schedule, *, is_reentrant: bool = False) -> None:
        self._schedule = schedule
        self._is_reentrant = is_reentrant
        self._owner: object = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As theirs. How long a time-out is, is drawn."""
        schedule = self._schedule
        schedule.watch()
        schedule.pause(may_interrupt=True)
        is_taken = self._take(blocking, timeout)
        schedule.pause(may_interrupt=True)
        return is_taken

    def release(self) -> None:
        """As theirs."""
        assert self._depth > 0, "a lock is freed that nobody has"
        self._depth -= 1
        self._schedule.watch()
        self._schedule.pause(may_interrupt=True)

    def locked(self) -> bool:
        """As theirs."""
        return self._depth > 0

    def __enter__(self) -> None:
        self._schedule.watch()
        self._schedule.pause(may_interrupt=True)
        self._take()  # and no signal is looked for after it

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, blocking: bool = True, timeout: float = -1) -> bool:
        schedule = self._schedule
        is_mine = self._is_reentrant and self._owner is schedule.running
        if self._depth and not is_mine and not blocking:
            return False
        if self._depth and not is_mine and not schedule.wait_until(lambda: not self._depth, is_patient=timeout < 0):
            return False
        self._owner = schedule.running
        self._depth += 1
        return True
