"""One sync for all threads that wait for one: a leader syncs for everybody who has written by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from iso_orchestrator.errors import StoreError
from iso_orchestrator.waiting import Monitor

__all__ = ["GroupSync"]


class GroupSync:
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
        self._monitor = Monitor()
        self._leader_at_work = False

    def wait_for(self, seq: int) -> None:
        """Return when *seq* is on the disk.

        Raises:
            StoreError: A sync has failed.
        """
        while self.synced < seq or self.failure is not None:
            leads = False
            try:
                with self._monitor.guard:
                    if self.failure is not None:
                        self.check()
                    if not self._leader_at_work:
                        # In one statement: a signal between two would leave a leader at work who is nobody.
                        self._leader_at_work = leads = True
                if not leads:
                    self._monitor.wait_until(lambda: not self._leader_at_work)
                    continue
                target = self.written  # for all who have written by now
                try:
                    self._sync_file()
                except OSError as error:
                    self.failure = f"a sync failed ({error.strerror})"
                else:
                    self.raise_to(target)
            finally:
                if leads:
                    with self._monitor.guard:
                        self._leader_at_work = False
                        self._monitor.notify()

    def check(self) -> None:
        """Raise when a sync has failed."""
        if self.failure is not None:
            raise StoreError(
                f"the store is dead in this process: {self.failure}; nothing was recorded since. "
                "Free the disk of its trouble and start the process again"
            )

    def fail(self, reason: str) -> None:
        """Refuse everything from now on."""
        with self._monitor.guard:
            self.failure = self.failure or reason
            self._monitor.notify()

    @contextmanager
    def swapping(self, seq: int) -> Iterator[None]:
        """While the file is swapped for one that has everything up to *seq*, durably, nobody syncs."""
        while True:
            self._monitor.wait_until(lambda: not self._leader_at_work)
            with self._monitor.guard:
                if not self._leader_at_work:
                    yield
                    self.synced = seq
                    self._monitor.notify()
                    return

    def raise_to(self, seq: int) -> None:
        """All up to *seq* is on the disk, as this process or another has found."""
        if seq > self.synced:
            self.synced = seq
