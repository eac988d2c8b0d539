"""One sync for all threads that wait for one: a leader syncs for everybody who has written by then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.filesystem import is_refusal
from iso_orchestrator.system.interrupts import OneShotEvent

__all__ = ["GroupCommit"]


class GroupCommit:
    """Up to which sequence a journal is known to be on the disk.

    Args:
        sync_file: Syncs the file.

    Attributes:
        written: The sequence of the last fact in the file.
        synced: Up to which sequence the file is known to be on the disk.
        failure: Why a sync failed, if one did.

    After one failed sync everything is refused for good: the kernel marks the pages that it could not write as
    clean, so that a second sync would succeed without them (Rebello et al. 2020, "Can Applications Recover from
    fsync Failures?").
    """

    def __init__(self, sync_file: Callable[[], None]) -> None:
        self.written = 0
        self.synced = 0
        self.failure: str | None = None
        self._sync_file = sync_file
        self._guard = threading.RLock()
        self._leader: OneShotEvent | None = None  # the latch of who leads, whether he waits on it or not
        self._waiting: list[tuple[int, OneShotEvent]] = []  # up to which sequence, and what wakes who waits

    def wait_for(self, seq: int) -> None:
        """Return when *seq* is on the disk.

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
                except BaseException:  # a signal in the midst of it: others would wait for ever
                    self._hand_over(latch)
                    raise

    def check(self) -> None:
        """Raise when a sync has failed."""
        if self.failure is not None:
            raise StoreError(
                f"the store is dead in this process: {self.failure}; nothing was recorded since. "
                "Free the disk of its trouble and start the process again"
            )

    def fail(self, reason: str) -> None:
        """Refuse everything from now on."""
        with self._guard:
            self.failure = self.failure or reason
            self._wake()

    @contextmanager
    def swapping(self, seq: int) -> Iterator[None]:
        """While the file is swapped for one that has everything up to *seq*, durably, nobody syncs."""
        while True:
            with self._guard:
                if self._leader is None:
                    yield
                    self.synced = seq
                    self._wake()
                    return
                latch = OneShotEvent()
                self._waiting.append((0, latch))  # 0: he is never chosen to lead
            self._follow(latch)

    def raise_to(self, seq: int) -> None:
        """All up to *seq* is on the disk, as this process or another has found."""
        if seq > self.synced:
            self.synced = seq

    def _lead(self) -> None:
        target = self.written  # for all who have written by now
        try:
            self._sync_file()
        except OSError as error:
            if not is_refusal(error):
                raise
            self.failure = f"a sync failed ({error.strerror})"
        else:
            self.raise_to(target)

    def _follow(self, latch: OneShotEvent) -> None:
        latch.wait()

    def _hand_over(self, latch: OneShotEvent) -> None:
        """Be done, as a leader or as one who may have been woken to lead, and have what he wants or be interrupted."""
        with self._guard:
            # After a signal nobody waits on it: it must not be chosen to lead.
            self._waiting = [entry for entry in self._waiting if entry[1] is not latch]
            # Not by what he was when he came: after a signal he hands over twice, and another leads by then.
            if self._leader is latch:
                self._leader = None
            if self._leader is None:
                self._wake()

    def _wake(self) -> None:
        """Wake all who have what they wait for, and one of the others, who leads the next. Under the lock."""
        has_leader = False
        for entry in list(self._waiting):
            seq, latch = entry
            is_done = seq <= self.synced or self.failure is not None
            if is_done or not has_leader:
                has_leader = has_leader or not is_done
                latch.set()
                self._waiting.remove(entry)
