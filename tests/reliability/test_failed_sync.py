"""A sync that fails once: what was written since the last one may be gone for ever, however well later ones go."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from reliability.replay import Checker, LockFiles, Machine, Operation, Synced
from reliability.tiers import Figures, Tier
from reliability.workloads import (
    SCRIPTS,
    Play,
    early_folds,
    first_failure,
    recorded,
    short_sequences,
    with_failed_sync,
)

from iso_orchestrator.errors import StoreError

PARTS = 8  # of the short sequences, so that workers share them


@pytest.fixture(autouse=True)
def _early_folds() -> Iterator[None]:
    with early_folds():
        yield


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "iso_orchestrator")  # of what is torn and dead it warns thousands of times


@pytest.mark.parametrize("part", range(PARTS))
def test_a_failed_sync_acknowledges_nothing(part: int, locks: LockFiles, tier: Tier, figures: Figures) -> None:
    """Whichever sync fails, its process writes no more, and the next one has a legal prefix, through crashes too."""
    draw = tier.random(f"failed syncs {part}")
    checker = Checker(locks, draw)
    own = short_sequences(2)[part::PARTS]
    count = 0
    for names in own if tier.name != "quick" else [own[0], *draw.sample(own, 1)]:
        clean, since = recorded(locks, names)
        first, end = (sum(isinstance(operation, Synced) for operation in log) for log in (clean[:since], clean))
        for number in range(first, end) if tier.name != "quick" else draw.sample(range(end), min(end, 2)):
            count += 1
            log, since = with_failed_sync(locks, names, number, others_first=draw.random() < 0.5)
            what = f"{', '.join(names) or 'opening'}, of which sync {number} fails"
            rare = tier.share(quick=0.01, full=0.01, soak=0.2)
            share = tier.share(quick=0.15, full=0.06, soak=1.0)
            checker.replay(log, what, since=since, share=share, torn=rare, inside=rare)
    figures.add(6, "failed syncs in short sequences", count)
    figures.add(6, "crash states after failed syncs", checker.count)


FOUND = ("unsynced, other_appends", "other_does_not_wait, reopen")  # they lost something once


@pytest.mark.parametrize("names", FOUND)
def test_no_failed_sync_that_once_did_loses_anything(names: str, locks: LockFiles, tier: Tier) -> None:
    """Sequences that broke a promise once are tried in every run, whichever of their syncs fails."""
    checker = Checker(locks, tier.random(names))
    clean, _ = recorded(locks, names.split(", "))
    syncs = range(sum(isinstance(operation, Synced) for operation in clean))
    share = tier.share(quick=0.15, full=1.0, soak=1.0)
    for number, others_first in itertools.product(syncs, (False, True)):
        log, since = with_failed_sync(locks, names.split(", "), number, others_first=others_first)
        checker.replay(log, f"{names}, of which sync {number} fails", since=since, share=share, torn=0.01, inside=0.01)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_user_is_told_of_what_a_failed_sync_lost(name: str, locks: LockFiles, tier: Tier, figures: Figures) -> None:
    """Whichever sync fails, a user's call raises, and what was told before and is told by the next process is kept."""
    draw = tier.random(f"failed syncs of {name}")
    checker = Checker(locks, draw)
    count = 0
    for number in itertools.count() if tier.name != "quick" else draw.sample(range(10), 2):
        since, log = script_with_failed_sync(locks, name, number)
        if since is None:
            break
        count += 1
        rare = tier.share(quick=0.01, full=0.02, soak=0.5)
        share = tier.share(quick=0.15, full=0.12, soak=1.0)
        checker.replay(log, f"{name}, of which sync {number} fails", since=since, share=share, torn=rare, inside=rare)
    figures.add(6, "failed syncs in scripts", count)
    figures.add(6, "crash states after failed syncs", checker.count)


def script_with_failed_sync(locks: LockFiles, name: str, number: int) -> tuple[int | None, list[Operation]]:
    """As `with_failed_sync`."""
    machine = Machine(locks)
    machine.failing = frozenset({number})
    play = Play(machine)
    try:
        with suppress(StoreError):
            SCRIPTS[name](play)
        if not machine.failed:
            return None, []
        play.workflow().append_event("after")
        play.told()
        return first_failure(machine.log), machine.log[:]
    finally:
        machine.failing = frozenset()
        play.close()
        machine.power_off()
