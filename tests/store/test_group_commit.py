"""One sync for all threads that wait: whichever leaves the queue, and why, another leads the next sync."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from support import DEADLINE, wait_until
from support_processes import in_thread

from iso_orchestrator.store.file.group_commit import GroupCommit
from iso_orchestrator.system.interrupts import OneShotEvent


class Disk:
    """A file of whose syncs one, the first as a rule, takes until it is let on."""

    def __init__(self, slow: int = 1) -> None:
        self.syncs = 0
        self.slow = slow
        self.goes_on = threading.Event()

    def sync(self) -> None:
        self.syncs += 1
        if self.syncs == self.slow:
            assert self.goes_on.wait(DEADLINE)


def led(group: GroupCommit, disk: Disk) -> Future[Any]:
    """A thread that leads the first sync, which is running."""
    group.written = 1
    leader = in_thread(group.wait_for, 1)
    wait_until(lambda: disk.syncs)
    return leader


def until_queued(group: GroupCommit, count: int) -> None:
    wait_until(lambda: len(group._waiting) == count, what=f"a queue of {count}")


def test_one_who_was_interrupted_is_not_chosen_to_lead() -> None:
    """Ctrl-C ends the wait of one thread; the leader chooses another that waited after it."""
    disk = Disk()
    group = GroupCommit(disk.sync)
    leader = led(group, disk)
    group.written = 3
    other: list[Future[Any]] = []
    main, left = threading.get_ident(), threading.Event()

    def leaves() -> bool:
        signal.pthread_kill(main, signal.SIGINT)  # one that comes just as he begins to wait does not wake him
        return left.wait(5)

    def interrupt() -> None:
        until_queued(group, 1)
        other.append(in_thread(group.wait_for, 3))
        until_queued(group, 2)
        wait_until(leaves, what="the end of his wait")

    interrupting = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        group.wait_for(2)
    left.set()
    interrupting.result(DEADLINE)
    disk.goes_on.set()
    leader.result(DEADLINE)
    other[0].result(DEADLINE)
    assert disk.syncs == 2


class Hasty(GroupCommit):
    """A sync in which Ctrl-C comes when one is in the queue, and does not wait yet."""

    def _follow(self, latch: OneShotEvent) -> None:
        if len(self._waiting) == 1:
            raise KeyboardInterrupt
        super()._follow(latch)


def test_one_who_was_interrupted_before_he_waited_is_not_chosen_to_lead() -> None:
    """An interrupted thread is out of the queue, however early the interrupt came."""
    disk = Disk()
    group = Hasty(disk.sync)
    leader = led(group, disk)
    group.written = 3
    with pytest.raises(KeyboardInterrupt):
        group.wait_for(2)
    assert group._waiting == []
    disk.goes_on.set()
    leader.result(DEADLINE)
    group.wait_for(3)


class Slow(GroupCommit):
    """A sync after which a woken thread continues only when the test lets it."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.sync)
        self.woken, self.goes_on = threading.Event(), threading.Event()

    def _follow(self, latch: OneShotEvent) -> None:
        super()._follow(latch)
        if not self.woken.is_set():
            self.woken.set()
            assert self.goes_on.wait(DEADLINE)


def test_one_who_is_chosen_to_lead_and_has_what_he_wants_leaves_it_to_the_next() -> None:
    """Another process tells meanwhile what is durable: a thread that waits for more is woken nevertheless."""
    disk = Disk()
    group = Slow(disk)
    leader = led(group, disk)
    group.written = 3
    chosen = in_thread(group.wait_for, 2)
    until_queued(group, 1)
    other = in_thread(group.wait_for, 3)
    until_queued(group, 2)
    disk.goes_on.set()
    leader.result(DEADLINE)
    assert group.woken.wait(DEADLINE)
    group.raise_to(2)
    group.goes_on.set()
    chosen.result(DEADLINE)
    other.result(DEADLINE)
    assert disk.syncs == 2


class Late(GroupCommit):
    """A sync in which Ctrl-C comes when one has handed over, and another leads already."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.sync)
        self.next: Future[Any] | None = None
        self._disk = disk

    def _hand_over(self, *args: Any) -> None:
        super()._hand_over(*args)
        if self.next is None:
            self.written = 2
            self.next = in_thread(self.wait_for, 2)
            wait_until(lambda: self._disk.syncs == 2)
            raise KeyboardInterrupt


def test_thread_interrupted_as_it_hands_over_does_not_end_anothers_lead() -> None:
    """A thread that comes then waits for the running sync: there are never two at once."""
    disk = Disk(slow=2)
    group = Late(disk)
    group.written = 1
    with pytest.raises(KeyboardInterrupt):
        group.wait_for(1)
    group.written = 3
    last = in_thread(group.wait_for, 3)
    wait_until(lambda: group._waiting or disk.syncs > 2)
    assert disk.syncs == 2
    disk.goes_on.set()
    for waiter in (group.next, last):
        assert waiter is not None
        waiter.result(DEADLINE)
    assert disk.syncs == 3
