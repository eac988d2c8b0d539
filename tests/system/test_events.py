"""Latches and monitors: what they wait for, and what an interrupt leaves of them."""

from __future__ import annotations

import time

import pytest
from support import DEADLINE, run_python
from support_processes import PAUSE, in_thread

from iso_orchestrator.system.events import Condition, OneShotEvent


def test_a_latch_lets_all_pass_once_it_is_set() -> None:
    """Those who wait and those who come later pass, however often it is set."""
    latch = OneShotEvent()
    waiters = [in_thread(latch.wait) for _ in range(8)]
    time.sleep(PAUSE)
    assert not any(waiter.done() for waiter in waiters)
    latch.set()
    latch.set()
    assert all(waiter.result(DEADLINE) for waiter in waiters)
    assert latch.wait()
    assert latch.wait(0)
    assert latch.is_set()


@pytest.mark.parametrize("again", [None, 0.0, 1e12])
def test_a_wait_with_a_timeout_says_whether_it_came(again: float | None) -> None:
    """It ends by the timeout, and by the event; whoever asks again is told so too."""
    latch = OneShotEvent()
    assert not latch.wait(0.001)
    waiter = in_thread(latch.wait, 1e12)
    latch.set()
    assert waiter.result(DEADLINE)
    assert latch.wait(again)


def test_a_monitor_wakes_those_for_whom_it_holds() -> None:
    """Each who is told to look again goes on when what he waits for is so, and else waits on."""
    monitor, reached = Condition(), [0]
    waiters = [in_thread(monitor.wait_until, lambda number=number: reached[0] >= number) for number in (1, 2, 3)]
    for number in (1, 2, 3):
        time.sleep(PAUSE)
        assert [waiter.done() for waiter in waiters] == [n < number for n in (1, 2, 3)]
        with monitor.guard:
            reached[0] = number
            monitor.notify()
        waiters[number - 1].result(DEADLINE)


# Interrupts at every call and return inside of `wait_until` and `notify`, and random ones while it waits.
INTERRUPTED = """
import random, signal, sys, threading, time
from iso_orchestrator.system import events as waiting

def interrupted(work, chosen):
    count = 0
    def look(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename == waiting.__file__ and event in ("call", "return", "c_return"):
            count += 1
            if count == chosen:
                sys.setprofile(None)
                raise KeyboardInterrupt
    try:
        sys.setprofile(look)
        try:
            work()
        finally:
            sys.setprofile(None)
    except KeyboardInterrupt:
        pass
    return count

def notify(monitor):
    with monitor.guard:
        monitor.notify()

def usable(monitor):
    # Another thread can take the guard, and wakes who waits.
    done = []
    threading.Thread(target=lambda: (time.sleep(0.001), done.append(1), notify(monitor)), daemon=True).start()
    monitor.wait_until(lambda: done)

monitor, place = waiting.Condition(), 0
while True:
    place += 1
    answers = iter([False, True])
    timer = threading.Timer(0.002, notify, [monitor])
    timer.start()
    if interrupted(lambda: monitor.wait_until(lambda: next(answers)), place) < place:
        break
    timer.join()
    usable(monitor)
timer.join()
place = 0
while True:
    place += 1
    if interrupted(lambda: notify(monitor), place) < place:
        break
    usable(monitor)
print("every place")

def on_alarm(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, on_alarm)
for number in range(int(sys.argv[1])):
    stop, value = [], [0]
    def work():
        while not stop:
            with monitor.guard:
                value[0] += 1
                monitor.notify()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, random.random() / 2000 + 1e-6)
        while True:
            with monitor.guard:
                seen = value[0]
            monitor.wait_until(lambda: value[0] > seen)
    except KeyboardInterrupt:
        pass
    stop.append(1)
    thread.join(5)
    assert not thread.is_alive(), number
print("every moment")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="this platform has no timer's signals")
def test_an_interrupt_leaves_no_lock_taken() -> None:
    """Wherever in a wait an interrupt comes, at every place and at random moments, others go on with the monitor."""
    with run_python(INTERRUPTED, 300) as process:
        assert process.line() == "every place"
        assert process.line() == "every moment"
        assert process.end() == []
