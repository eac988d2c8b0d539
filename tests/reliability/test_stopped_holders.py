"""Holders that stand still: of a lease, past its time; of the record's lock; of a lease, in a mutex's queue."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reliability.oracle import Link, Nursery, Process, held_locks
from reliability.tiers import Figures, Tier
from support import DEADLINE, WatchedFS, memory_folder, wait_until, waits_for_a_lock
from support_processes import PAUSE

from iso_orchestrator import (
    LeaseConflictError,
    LeaseLostError,
    LeaseStatus,
    Workflow,
    WorkflowRecord,
    lease_status,
    read_workflow_record,
)
from iso_orchestrator.store import FileStore
from iso_orchestrator.system.clock import SystemClock

TTL = 0.15  # seconds of a lease that is to run out
WALL_IS_OFF = [3600.0, -3600.0, 0.0]  # seconds, on the machine of the peer
PARTS = 4


class StoppingFS(WatchedFS):
    """A file system in which this process comes to stand still, once, before a call of that name."""

    def __init__(self) -> None:
        super().__init__(self._stop)
        self.place = ""
        self.calls_left = 0

    def _stop(self, name: str, _: object) -> None:
        if name != self.place:
            return
        self.calls_left -= 1
        if self.calls_left == 0:
            self.place = ""
            os.kill(os.getpid(), signal.SIGSTOP)


# A lease holder that stands still past its time


def hold(link: Link, root: str, place: str, calls: int) -> None:
    """Work under the lease "slot" in every way, until it is lost; stand still on the way, where that is wanted."""
    fs = StoppingFS()
    workflow = Workflow("w", store=FileStore(root, fs=fs))
    worker = None
    try:
        with workflow.lease("slot", ttl=TTL, holder="holder") as held:
            worker = _Worker(workflow, held.token)
            link.say("held")
            fs.place, fs.calls_left = place, calls
            while True:
                worker.work()
    except LeaseLostError as error:
        link.say([error.token, error.current_token, worker and worker.acknowledged, held.lost])
    link.hear()
    with suppress(LeaseConflictError):
        workflow.release_lease("slot", "holder")
    workflow.append_event("behind")
    workflow.close()


class _Worker:
    """Who records in every way, all that he records being marked with his token."""

    def __init__(self, workflow: Workflow, token: int) -> None:
        self.acknowledged = 0
        self._workflow = workflow
        self._token = token
        self._rounds = 0

    def work(self) -> None:
        self._rounds += 1
        mark = f"token {self._token}"
        name = f"{mark}, {self._rounds}"
        workflow = self._workflow
        workflow.append_event("under", mark)
        self.acknowledged += 1
        workflow.update_state(lambda state: {**state, "last": self._token})
        workflow.run_step(name, self._count)
        workflow.run_for_each(range(2), lambda n: workflow.run_step(f"{name}, {n}", int), max_parallel=2)
        workflow.heartbeat(mark)
        with workflow.mutex(mark):
            workflow.append_event("in mutex", mark)

    def _count(self) -> None:
        self._workflow.update_state(lambda state: {**state, "steps": state.get("steps", 0) + 1}, with_step=True)


def take_over(link: Link, root: str, wall_is_off: float) -> None:
    """Try for the lease "slot" when told to, on a machine whose wall clock was set; having it, work, and keep it."""
    now = SystemClock.now
    SystemClock.now = lambda self: now(self) + timedelta(seconds=wall_is_off)  # type: ignore[method-assign]
    workflow = Workflow("w", dir=root)
    workflow.append_event("open")
    link.say("open")
    token = None
    while token is None:
        link.hear()
        with suppress(LeaseConflictError):
            token = workflow.touch_lease("slot", holder="peer", ttl=DEADLINE).token
        link.say([token, time.time()])
    _Worker(workflow, token).work()
    link.say("worked")
    link.hear()
    workflow.release_lease("slot", "peer")
    workflow.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_lease_holder_that_slept_past_its_time_records_nothing(
    nursery: Nursery, tier: Tier, figures: Figures, part: int
) -> None:
    """Stopped anywhere, followed by a peer and woken, it is told that the lease is lost, and nothing of it is kept."""
    chance = tier.random(f"stopped holders {part}")
    found: list[str] = []
    stops: Counter[bool] = Counter()
    for number in range(-(-tier.count(quick=3, full=100, soak=2_000) // PARTS)):
        with memory_folder() as root:
            case = _Case(nursery, root, chance, WALL_IS_OFF[(part + number) % len(WALL_IS_OFF)])
            found += case.run()
            stops += case.stops
    figures.add(10, "lease holders stopped outside of the record's lock", stops[False], len(found))
    figures.add(10, "lease holders stopped inside of the record's lock", stops[True])
    assert not found, f"seed {tier.seed}, part {part}: {found}"


class _Case:
    """One holder, and one who takes over from it.

    Attributes:
        stops: How often it was stopped, and whether that was inside of the record's lock.
    """

    def __init__(self, nursery: Nursery, root: Path, chance: random.Random, wall_is_off: float) -> None:
        self.stops: Counter[bool] = Counter()
        self._root = root
        self._random = chance
        self._place = chance.choice(["", "", "write_at", "identify_path", "sync"])
        self._wall_is_off = wall_is_off
        self._peer = nursery.start(take_over, str(root), self._wall_is_off)
        assert self._peer.hear() == "open"
        self._holder = nursery.start(hold, str(root), self._place, chance.randint(1, 20))
        assert self._holder.hear() == "held"

    def run(self) -> list[str]:
        """Let it happen; what broke a promise."""
        token, taken_at = self._stop_until_taken()
        assert self._peer.hear() == "worked"
        self._holder.go_on()
        lost, current, acknowledged, knew = self._holder.hear()
        self._holder.say()
        self._holder.end()
        record = read_workflow_record("w", dir=self._root)
        lease = record.leases["slot"]
        self._peer.say()
        self._peer.end()
        found = [*_behind_a_newer_token(record), *(f"{lock} stays locked" for lock in held_locks(self._root))]
        if (lost, current, token, knew) != (1, 2, 2, True):
            found.append(f"the holder of token {lost} was told of {current}, the peer has {token}, lost was {knew}")
        if (lease.holder, lease.token, lease.released_at) != ("peer", 2, None):
            found.append(f"the peer's lease was touched: {lease}")
        if taken_at < (end := _end_of_the_first(record).timestamp()):
            found.append(f"the lease was taken {end - taken_at:.3f} s before its end, {self._wall_is_off} s off")
        recorded = sum(event.type == "under" and event.message == "token 1" for event in record.events)
        if not acknowledged <= recorded <= acknowledged + 1:
            found.append(f"{acknowledged} events were acknowledged, {recorded} are on record")
        if record.state["last"] != 2:
            found.append(f"the state is the old holder's: {record.state}")
        return found

    def _stop_until_taken(self) -> tuple[int, float]:
        """Stop the holder until the peer has the lease; its token, and when it had it."""
        if self._place:
            self._holder.until_stopped()
        else:
            self._stop()
        while self._stands_in_the_lock():
            token, taken_at = self._wait_for_the_lock()
            if token is not None:
                return token, taken_at
            self._stop()  # it woke in time to renew
        return wait_until(self._try, what="taking over")  # type: ignore[no-any-return]

    def _stop(self) -> None:
        time.sleep(self._random.uniform(0, 0.02))
        self._holder.stop()

    def _stands_in_the_lock(self) -> bool:
        # The peer is not at it now.
        inside = any(lock.endswith("record.flock") for lock in held_locks(self._root))
        self.stops[inside] += 1
        return inside

    def _wait_for_the_lock(self) -> tuple[int | None, float]:
        """Have the peer wait for it until the lease has run out, while whoever looks need not wait; then wake."""
        self._peer.say()
        wait_until(lambda: waits_for_a_lock(self._peer.pid))
        wait_until(self._has_run_out)
        assert not select.select([self._peer.link], [], [], 0)[0]
        self._holder.go_on()
        token, taken_at = self._peer.hear()
        return token, taken_at

    def _try(self) -> tuple[int, float] | None:
        self._peer.say()
        token, taken_at = self._peer.hear()
        return None if token is None else (token, taken_at)

    def _has_run_out(self) -> bool:
        return lease_status(read_workflow_record("w", dir=self._root).leases["slot"]) is LeaseStatus.EXPIRED


def _behind_a_newer_token(record: WorkflowRecord) -> list[str]:
    """The events that are marked with another token than the lease had then."""
    found, current = [], 0
    for event in record.events:
        text = f"{event.message} {event.detail}"
        if event.type == "lease.acquired":
            current += 1
        if event.type in {"workflow.running", "step.abandoned"}:
            continue  # a command line may have any text; and who lost a lease may free its step
        if any(int(token) != current for token in re.findall(r"token (\d+)", text)):
            found.append(f"under token {current}: {event.type} {text}")
        if event.type == "lease.renewed" and current == 2:
            found.append(f"a lease that was lost was renewed: {text}")
    return found


def _end_of_the_first(record: WorkflowRecord) -> datetime:
    """When the first holder's lease ran out."""
    touches = [event for event in record.events if event.type in ("lease.acquired", "lease.renewed")]
    last = [event for event in touches if event.detail["holder"] == "holder"][-1]
    return last.at + timedelta(milliseconds=last.detail["ttlMs"])


# One that stands still inside of the record's lock


def stand_still(link: Link, root: str, place: str, calls: int, in_leaving: bool) -> None:
    """Change the state, and stand still at a place where one has the record's lock."""
    fs = StoppingFS()
    workflow = Workflow("w", store=FileStore(root, fs=fs), initial_state=0)
    workflow.update_state(lambda state: state + 1)
    link.say("open")
    link.hear()
    if in_leaving:
        workflow.update_state(lambda state: state + 1)
    fs.place, fs.calls_left = place, calls
    if not in_leaving:
        workflow.update_state(lambda state: state + 1)
    workflow.close()
    link.say("done")


def come_and_go(link: Link, root: str) -> None:
    """Open, change the state, run a step that others run too, and leave."""
    workflow = Workflow("w", dir=root)
    workflow.update_state(lambda state: state + 1)
    workflow.run_step("shared", os.getpid)
    workflow.close()
    link.say("done")


PLACES = {
    "before the write": ("write_at", 1, False),
    "before the bytes of others are read": ("size", 1, False),
    "leaving, before a new file": ("open_new", 1, True),
    "leaving, before the snapshot's name": ("replace", 1, True),
    "leaving, before the folder's sync": ("sync_folder", 1, True),
    "leaving, before the journal's name": ("replace", 2, True),
    "leaving, after both": ("sync_folder", 2, True),
}


@pytest.mark.parametrize("where", PLACES)
def test_peers_wait_for_one_that_stands_still_in_the_records_lock(
    nursery: Nursery, root: Path, figures: Figures, where: str
) -> None:
    """However long, they open, change and close nothing; when it goes on, they do, and all is there."""
    place, calls, in_leaving = PLACES[where]
    sleeper = nursery.start(stand_still, str(root), place, calls, in_leaving)
    assert sleeper.hear() == "open"
    sleeper.say()
    sleeper.until_stopped()
    peers = [nursery.start(come_and_go, str(root)) for _ in range(3)]
    for peer in peers:
        wait_until(lambda pid=peer.pid: waits_for_a_lock(pid))
    assert read_workflow_record("w", dir=root).state == (2 if in_leaving else 1)
    assert not select.select([peer.link for peer in peers], [], [], PAUSE)[0]
    sleeper.go_on()
    for process in (sleeper, *peers):
        assert process.hear() == "done"
        process.end()
    record = read_workflow_record("w", dir=root)
    figures.add(10, "peers of one that stands still in the record's lock", len(peers), int(record.state != 5))
    assert record.state == 5
    assert record.steps["shared"].attempts == 1
    assert held_locks(root) == []


# A lease that runs out while its holder waits for a mutex


def wait_in_lease(link: Link, root: str, way: str) -> None:
    """Under the lease "lease", wait for the mutex "slot" in one of several ways."""
    workflow = Workflow("w", dir=root)
    entered: list[object] = []
    wait = {
        "mutex": lambda: _enter(workflow, entered),
        "mutex of the store": lambda: _enter(workflow, entered, scope="store"),
        "item": lambda: workflow.run_for_each([1], entered.append, mutex_key="slot"),
        "step in an item": lambda: workflow.run_for_each([1], in_step, mutex_key="slot"),
        "mutex in a step": lambda: workflow.run_step("step", lambda: _enter(workflow, entered)),
        "worker": lambda: workflow.step(name="step")(lambda: _enter(workflow, entered)).submit().result(),
        "timeout": lambda: workflow.run_step("step", lambda: _enter(workflow, entered), timeout=DEADLINE),
    }

    def in_step(_: int) -> None:
        workflow.run_step("step", lambda: entered.append("step"))

    try:
        with workflow.lease("lease", ttl=TTL):
            link.say("waits")
            wait[way]()
            link.say("had it")
    except LeaseLostError as error:
        link.say([error.token, error.current_token, entered])
    workflow.close()


def _enter(workflow: Workflow, entered: list[object], **options: Any) -> None:
    with workflow.mutex("slot", **options):
        entered.append("mutex")


WAYS = ["mutex", "mutex of the store", "item", "step in an item", "mutex in a step", "worker", "timeout"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wakes", ["before it is free", "behind"])
def test_a_lease_is_looked_at_again_when_the_wait_for_a_mutex_ends(
    nursery: Nursery, root: Path, figures: Figures, way: str, wakes: str
) -> None:
    """Who slept in the queue, and was followed under his lease, enters nothing, and the next has the mutex."""
    workflow = Workflow("w", dir=root)
    options: dict[str, Any] = {"scope": "store"} if way == "mutex of the store" else {}
    with workflow.mutex("slot", **options):
        sleeper = nursery.start(wait_in_lease, str(root), way)
        assert sleeper.hear() == "waits"
        wait_until(lambda: waits_for_a_lock(sleeper.pid))
        _stop_outside_of_the_records_lock(sleeper, root)
        wait_until(lambda: _is_taken(workflow))
        if wakes == "before it is free":
            sleeper.go_on()
            assert not select.select([sleeper.link], [], [], PAUSE)[0]
    sleeper.go_on()
    assert sleeper.hear() == [1, 2, []]
    sleeper.end()
    with workflow.mutex("slot", timeout=0, **options):
        pass
    acquired = [event.type for event in workflow.record.events if event.type == "mutex.acquired"]
    workflow.close()
    figures.add(11, "leases that ran out in a mutex's queue", 1, int(len(acquired) != 2))
    assert len(acquired) == 2
    assert held_locks(root) == []


def _stop_outside_of_the_records_lock(process: Process, root: Path) -> None:
    process.stop()
    while any(lock.endswith("record.flock") for lock in held_locks(root)):
        process.go_on()
        process.stop()


def _is_taken(workflow: Workflow) -> bool:
    try:
        return workflow.touch_lease("lease", holder="peer", ttl=DEADLINE).token == 2
    except LeaseConflictError:
        return False
