"""Row 26: a sync that threads share, under many of the ways in which they, signals and failures can meet in it."""

from __future__ import annotations

import errno
import os

from reliability.schedules import Interrupt, Schedule
from reliability.tiers import Figures, Tier

from iso_orchestrator import StoreError
from iso_orchestrator.store.file import group_commit as group_sync
from iso_orchestrator.store.file.group_commit import GroupCommit
from iso_orchestrator.system import events as waiting

ROW = 26
SYNCS = 3  # the most that are tried before one fails


class _Journal:
    """A file of which it is known up to which sequence it is on the disk, and all who use it at one time.

    Args:
        schedule: How they go on.
    """

    def __init__(self, schedule: Schedule) -> None:
        draw = schedule.random
        self._schedule = schedule
        self._group = GroupCommit(self._sync)
        self._record_lock = waiting.threading.Lock()
        self._durable = 0
        self._syncs = 0
        self._fails_at = draw.randint(1, SYNCS) if draw.random() < 0.2 else 0
        self._user = ""  # of the file, while it is synced or swapped
        self._has_failed = False
        others = (self._write, self._write, self._read_others, self._swap)
        for use in (self._write, self._write, *draw.choices(others, k=draw.randint(1, 2))):
            schedule.start(self._times, use)
        if draw.random() < 0.7:
            schedule.interrupt_one(within=25)

    def _times(self, use: object) -> None:
        assert callable(use)
        for _ in range(self._schedule.random.choice((1, 1, 1, 2))):
            try:
                use()
            except Interrupt:
                return
            except StoreError:
                if not self._has_failed:
                    self._schedule.blame("one is refused what has not failed")

    def _write(self) -> None:
        """What a thread does that records something."""
        with self._record_lock:
            self._group.check()
            seq = self._group.written = self._group.written + 1
        is_dead = self._group.failure is not None
        self._group.wait_for(seq)
        if is_dead:
            self._schedule.blame("one goes on after a failed sync")
        if self._durable < seq:
            self._schedule.blame(f"one goes on without {seq}, with {self._durable} on the disk")

    def _read_others(self) -> None:
        """Take in a fact of another process, which has synced all that was there."""
        with self._record_lock:
            seq = self._group.written
            self._durable = max(self._durable, seq)
            self._group.written = seq + 1
            self._group.raise_to(seq)

    def _swap(self) -> None:
        """Go over to a new file, with all that is in the old one."""
        with self._record_lock:
            seq = self._group.written
            with self._group.swapping(seq):
                self._use("swap")
                self._durable = max(self._durable, seq)

    def _sync(self) -> None:
        if self._has_failed:
            self._schedule.blame("a sync after one that failed")
        seq = self._group.written
        self._use("sync")
        self._syncs += 1
        if self._syncs == self._fails_at:
            self._has_failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._durable = max(self._durable, seq)

    def _use(self, user: str) -> None:
        if self._user:
            self._schedule.blame(f"a {user} in the midst of a {self._user}")
        self._user = user
        try:
            for _ in range(2):
                self._schedule.let_others_go_on()
                self._schedule.pause(may_interrupt=True)
        finally:
            self._user = ""


def test_nobody_is_forgotten_and_nobody_goes_on_too_early(tier: Tier, figures: Figures) -> None:
    """Whoever waits for a sync has it or an error in the end, and what is told to be on the disk is there."""
    tier.skip_quick("thousands of schedules")
    found = {}
    schedules = tier.count(quick=0, full=4_000, soak=1_000_000)
    for number in range(schedules):
        schedule = Schedule(f"{tier.seed} sync {number}", [group_sync, waiting])
        with schedule.locks():
            _Journal(schedule)
            schedule.run()
        if schedule.violations:
            found[number] = schedule.violations
    figures.add(ROW, "schedules of threads that share a sync", schedules, len(found))
    assert not found, f"--seed {tier.seed}, by the number of the schedule: {found}"
