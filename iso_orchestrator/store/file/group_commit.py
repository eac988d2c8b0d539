"""Group commit: one thread syncs the journal for all threads that have written to it by then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

from iso_orchestrator.errors import StoreError
from iso_orchestrator.system.events import wait_until_free


class GroupCommit:
    """Up to which sequence a journal is known to be durable.

    One thread syncs, for all facts that are written by then. The threads whose facts came too late for a sync wait for
    the next one, each sync with a lock of its own. With one lock for all syncs, a thread whose facts are durable could
    get it only after the next sync, and there would be fewer facts in each sync.

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
        self._lock = threading.Lock()  # held during a sync
        self._turn = threading.Lock()  # for the next sync: held by the thread that will do it, until its end
        self._leaders: set[int] = set()  # the threads that have a turn
        self._syncing: int | None = None  # the one that has the lock

    def wait_for(self, seq: int) -> None:
        """Return when all facts up to *seq* are durable.

        Raises:
            StoreError: A sync has failed.
        """
        thread = get_ident()  # not after a lock is taken: a signal handler may come in each call
        while self.failure is None and self.synced < seq:
            if thread in self._leaders:  # this is a handler, or called by one
                self._lead(seq, thread)
                continue
            turn = self._turn
            wait_until_free(turn)  # Ctrl-C ends the waits, and never a sync
            if self.failure is None and self.synced < seq:
                with turn:
                    self._leaders.add(thread)
                    try:
                        self._lead(seq, thread)
                    finally:
                        self._leaders.discard(thread)
        self.check()

    def _lead(self, seq: int, thread: int) -> None:
        if thread == self._syncing:
            self._sync_up_to(seq)
            return
        wait_until_free(self._lock)
        with self._lock:
            self._syncing = thread
            try:
                self._sync_up_to(seq)
            finally:
                self._syncing = None

    def check(self) -> None:
        """Raise when a sync has failed."""
        if self.failure is not None:
            raise StoreError(
                f"the store is dead in this process: {self.failure}; nothing was recorded since. "
                "Remove the cause (repair the disk, make space on it), then start the process again"
            )

    def fail(self, reason: str) -> None:
        """Fail all waits from now on."""
        self.failure = self.failure or reason

    @contextmanager
    def swapping(self, seq: int) -> Iterator[None]:
        """Keep syncs out while the file is replaced by one in which all facts up to *seq* are durable."""
        with self._lock:
            yield
            self.synced = seq

    def raise_to(self, seq: int) -> None:
        """Note that all facts up to *seq* are durable, as this process or another has found."""
        if seq > self.synced:
            self.synced = seq

    def _sync_up_to(self, seq: int) -> None:
        if self.failure is not None or self.synced >= seq:
            return  # another thread's sync, while this one waited
        self._turn = threading.Lock()  # first, so that this sync is enough for all threads that wait for the old one
        target = self.written  # what all threads have written by now
        try:
            self._sync_file()
        except OSError as error:
            # Without a call: a signal handler that raised in it would hide the failure from the next thread.
            if error.errno is None:
                raise  # a signal handler's error
            self.failure = f"a sync failed ({error.strerror})"
        else:
            self.raise_to(target)
