"""Group commit: one thread syncs the journal for all threads that have written to it by then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import is_os_error
from iso_orchestrator.system.interrupts import OneShotEvent


class GroupCommit:
    """Up to which sequence a journal is known to be durable.

    A thread that waits for a sync becomes the leader if there is none, and syncs for all. When it is done it wakes the
    threads that it served, and one of the others, which leads the next sync.

    After a failed sync all waits fail, in this process for good: the kernel marks the pages that it could not write as
    clean, so that a second sync would succeed without them (Rebello et al. 2020, "Can Applications Recover from fsync
    Failures?").

    Args:
        sync_file: Syncs the file.

    Attributes:
        written: The sequence of the last fact in the file.
        synced: The sequence up to which the file is known to be durable.
        failure: Why a sync failed, if one did.
    """

    def __init__(self, sync_file: Callable[[], None]) -> None:
        self.written = 0
        self.synced = 0
        self.failure: str | None = None
        self._sync_file = sync_file
        self._guard = threading.RLock()
        self._leader: OneShotEvent | None = None  # the event of the thread that leads
        self._waiting: list[tuple[int, OneShotEvent]] = []  # up to which sequence a thread waits, and its event

    def wait_for(self, seq: int) -> None:
        """Return when all facts up to *seq* are durable.

        Raises:
            StoreError: A sync has failed.
        """
        while self.synced < seq or self.failure is not None:
            latch = OneShotEvent()
            try:
                with self._guard:
                    if self.failure is not None:
                        self.check()
                    follows = self._leader is not None
                    if follows:
                        self._waiting.append((seq, latch))
                    elif self.synced < seq:
                        self._leader = latch
                if self._leader is latch:
                    self._lead()
                elif follows:
                    self._follow(latch)
            finally:
                try:
                    self._hand_over(latch)
                except BaseException:  # a signal handler raised: other threads would wait for ever
                    self._hand_over(latch)
                    raise

    def check(self) -> None:
        """Raise when a sync has failed."""
        if self.failure is not None:
            raise StoreError(
                f"the store is dead in this process: {self.failure}; nothing was recorded since. "
                "Repair the disk or make space on it, then start the process again"
            )

    def fail(self, reason: str) -> None:
        """Fail all waits from now on."""
        with self._guard:
            self.failure = self.failure or reason
            self._wake()

    @contextmanager
    def swapping(self, seq: int) -> Iterator[None]:
        """Keep syncs out while the file is replaced by one in which all facts up to *seq* are durable."""
        while True:
            with self._guard:
                if self._leader is None:
                    yield
                    self.synced = seq
                    self._wake()
                    return
                latch = OneShotEvent()
                self._waiting.append((0, latch))  # 0: it is never chosen to lead
            self._follow(latch)

    def raise_to(self, seq: int) -> None:
        """Note that all facts up to *seq* are durable, as this process or another has found."""
        if seq > self.synced:
            self.synced = seq

    def _lead(self) -> None:
        target = self.written  # what all threads have written by now
        try:
            self._sync_file()
        except OSError as error:
            if not is_os_error(error):
                raise
            self.failure = f"a sync failed ({error.strerror})"
        else:
            self.raise_to(target)

    def _follow(self, latch: OneShotEvent) -> None:
        latch.wait()

    def _hand_over(self, latch: OneShotEvent) -> None:
        """Stop leading and waiting, after success or an interrupt, and let another thread lead."""
        with self._guard:
            # After a signal no thread waits on this event: it must not be chosen to lead.
            self._waiting = [entry for entry in self._waiting if entry[1] is not latch]
            # Ask who leads now: after a signal this is called twice, and another thread may lead by then.
            if self._leader is latch:
                self._leader = None
            if self._leader is None:
                self._wake()

    def _wake(self) -> None:
        """Wake all threads whose wait is over, and one of the others, to lead the next sync. Needs the guard."""
        has_leader = False
        for entry in list(self._waiting):
            seq, latch = entry
            is_done = seq <= self.synced or self.failure is not None
            if is_done or not has_leader:
                has_leader = has_leader or not is_done
                latch.set()
                self._waiting.remove(entry)
