"""One sync for all threads that wait: an interrupt or an error of one thread leaves no other waiting."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from support import DEADLINE, wait_until
from support_fanout import is_waiting
from support_processes import in_thread

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.file.group_commit import GroupCommit


class Disk:
    """A file whose first sync takes until the test lets it continue; then it raises *error*, if there is one."""

    def __init__(self, error: OSError | None = None) -> None:
        self.syncs = 0
        self.error = error
        self.goes_on = threading.Event()

    def sync(self) -> None:
        self.syncs += 1
        if self.syncs == 1:
            assert self.goes_on.wait(DEADLINE)
            if self.error is not None:
                raise self.error


def syncing(group: GroupCommit, disk: Disk) -> Future[Any]:
    """A thread whose sync is running."""
    group.written = 1
    thread = in_thread(group.wait_for, 1)
    wait_until(lambda: disk.syncs)
    return thread


def waiting(call: Any, *args: Any) -> Future[Any]:
    """A thread that waits for the running sync."""
    threads: list[int] = []

    def work() -> None:
        threads.append(threading.get_ident())
        call(*args)

    thread = in_thread(work)
    wait_until(lambda: threads and is_waiting(threads[0], "wait_until_free"))
    return thread


def test_a_thread_that_is_interrupted_while_it_waits_keeps_no_other_waiting() -> None:
    """Ctrl-C ends the wait of one thread; one that waited after it gets its sync."""
    disk = Disk()
    group = GroupCommit(disk.sync)
    first = syncing(group, disk)
    group.written = 3
    others: list[Future[Any]] = []
    main, left = threading.get_ident(), threading.Event()

    def leaves() -> bool:
        signal.pthread_kill(main, signal.SIGINT)  # one that comes just as the wait begins does not end it
        return left.wait(5)

    def interrupt() -> None:
        wait_until(lambda: is_waiting(main, "wait_until_free"))
        others.append(waiting(group.wait_for, 3))
        wait_until(leaves, what="the end of the wait")

    interrupting = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        group.wait_for(2)
    left.set()
    interrupting.result(DEADLINE)
    assert disk.syncs == 1, "the interrupt ended the sync of another thread"
    disk.goes_on.set()
    for thread in (first, *others):
        thread.result(DEADLINE)
    assert disk.syncs == 2


def test_a_thread_whose_facts_became_durable_while_it_waited_leaves_the_sync_to_another() -> None:
    """Another process says meanwhile what is durable: a thread that waits for more syncs nevertheless."""
    disk = Disk()
    group = GroupCommit(disk.sync)
    first = syncing(group, disk)
    group.written = 3
    done, more = waiting(group.wait_for, 2), waiting(group.wait_for, 3)
    group.raise_to(2)
    disk.goes_on.set()
    for thread in (first, done, more):
        thread.result(DEADLINE)
    assert (disk.syncs, group.synced) == (2, 3)


def test_a_file_is_replaced_after_the_running_sync() -> None:
    """No file is replaced while it is synced, and a thread that waits needs no sync of the new one."""
    disk = Disk()
    group = GroupCommit(disk.sync)
    first = syncing(group, disk)
    durable_at_swap: list[int] = []
    group.written = 2

    def swap() -> None:
        with group.swapping(2):
            durable_at_swap.append(group.synced)

    swapped = in_thread(swap)
    disk.goes_on.set()
    for thread in (first, swapped):
        thread.result(DEADLINE)
    group.wait_for(2)
    assert (durable_at_swap, disk.syncs, group.synced) == ([1], 1, 2)


def test_a_signal_handlers_error_in_a_sync_is_no_failure_of_the_disk() -> None:
    """It goes on to the thread that it came to, and another thread syncs."""
    disk = Disk(TimeoutError("a handler's"))
    group = GroupCommit(disk.sync)
    first = syncing(group, disk)
    other = waiting(group.wait_for, 1)
    disk.goes_on.set()
    with pytest.raises(TimeoutError, match="a handler's"):
        first.result(DEADLINE)
    other.result(DEADLINE)
    assert (disk.syncs, group.failure) == (2, None)


def test_a_signal_handler_that_raises_hides_no_failed_sync() -> None:
    """However soon after the failed sync it raises, no thread syncs again."""
    calls: list[int] = []

    def handler(_: Any, event: str, __: Any) -> None:
        if event == "call":  # where the interpreter runs the handlers of signals
            raise KeyboardInterrupt

    def sync() -> None:
        calls.append(1)
        sys.setprofile(handler)
        raise OSError(errno.EIO, "Input/output error")

    group = GroupCommit(sync)
    group.written = 1
    try:
        with pytest.raises(KeyboardInterrupt):
            group.wait_for(1)
    finally:
        sys.setprofile(None)
    with pytest.raises(StoreError, match="Input/output error"):
        group.wait_for(1)
    assert len(calls) == 1
