"""Clocks that jump, stand still, run back, and are in 1970 or past 2038: random walks against a model."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextvars import Context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from reliability.tiers import Figures, Tier
from support import STORES, memory_folder, new_fold
from support_fanout import NOON

from iso_orchestrator import (
    FileStore,
    LeaseConflictError,
    LeaseLostError,
    LeaseStatus,
    MutexTimeoutError,
    Retry,
    StepTimeoutError,
    Workflow,
    WorkflowRecord,
    lease_status,
)
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import SystemClock
from iso_orchestrator.testing import FakeClock

PARTS = 4  # of the walks, for as many workers
STEPS = 40  # of a walk
KEYS = ("a", "b")
HOLDERS = ("alpha", "beta")
TTLS = (0.25, 1.0, 30.0, 3600.0)
MOMENTS = (
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 8, 1000, tzinfo=UTC),
    datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC),
    datetime(9000, 1, 1, tzinfo=UTC),
    datetime(900, 1, 1, tzinfo=UTC),
)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


class Injected:
    """The clock that `now=` is given. It alone decides when a lease ends."""

    def __init__(self, randomness: random.Random) -> None:
        self._randomness = randomness
        self.clock = FakeClock(NOON)

    @property
    def now(self) -> Callable[[], datetime] | None:
        return self.clock

    @property
    def wall(self) -> datetime:
        return self.clock()

    def move(self) -> None:
        """Time goes by, stands still, or is set."""
        moves: list[Callable[[], object]] = [
            lambda: None,
            lambda: self.clock.advance(self._randomness.choice([0.001, 0.25, 1.0, 30.0, 3600.0])),
            lambda: self.clock.advance(-self._randomness.choice([0.001, 0.25, 1.0, 30.0, 3600.0])),
            self._jump,
        ]
        self._randomness.choices(moves, [2, 4, 2, 1])[0]()

    def end_of(self, ttl: float) -> object:
        """When a lease that is touched now ends."""
        return cut(self.wall + timedelta(seconds=ttl))

    def is_over(self, end: Any) -> bool:
        """Whether a lease with that end has run out."""
        return bool(end <= cut(self.wall))

    def _jump(self) -> None:
        self.clock.set(self._randomness.choice([*MOMENTS, NOON]))


class Machine:
    """The clocks of a machine, which `SystemClock` reads: on one boot the boot clock decides, else the wall clock."""

    now = None

    def __init__(self, randomness: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self._randomness = randomness
        self.wall = NOON
        self._boot = 1
        self._seconds = 1000.0
        monkeypatch.setattr(SystemClock, "now", lambda _: self.wall)
        monkeypatch.setattr(SystemClock, "boot", lambda _: (f"boot-{self._boot}", self._seconds))

    def move(self) -> None:
        """Time goes by, or stands still; the wall clock is set; the machine is started anew."""
        moves: list[Callable[[], object]] = [
            lambda: None,
            lambda: self._wait(self._randomness.choice([0.25, 1.0, 30.0, 3600.0])),
            lambda: self._set(
                self.wall + timedelta(seconds=self._randomness.choice([-3600, -1, -0.25, 0.25, 1, 3600]))
            ),
            lambda: self._set(self._randomness.choice([*MOMENTS, NOON])),
            self._start_anew,
        ]
        self._randomness.choices(moves, [2, 6, 3, 3, 1])[0]()

    def end_of(self, ttl: float) -> object:
        return self._boot, self._seconds + ttl, cut(self.wall + timedelta(seconds=ttl))

    def is_over(self, end: Any) -> bool:
        boot, seconds, wall = end
        return bool(seconds <= self._seconds if boot == self._boot else wall <= cut(self.wall))

    def _wait(self, seconds: float) -> None:
        self._seconds += seconds
        self.wall += timedelta(seconds=seconds)

    def _set(self, wall: datetime) -> None:
        self.wall = wall

    def _start_anew(self) -> None:
        self._boot += 1
        self._seconds = self._randomness.choice([0.25, 5.0, 100_000.0])


def cut(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


@attrs.define
class Held:
    """What the model knows of a lease."""

    holder: str
    token: int
    end: object
    released: bool = False


class Walk:
    """A workflow and a model of it, which have to say the same whatever the clock does."""

    def __init__(self, store: Store, clock: Injected | Machine, randomness: random.Random) -> None:
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._words: list[str] = []
        self._notes: list[tuple[str, datetime]] = []
        self._steps: dict[str, str] = {}
        self._leases: dict[str, Held] = {}
        self._tokens: dict[str, int] = {}
        self._workflow = self._opened()

    def step(self) -> None:
        """One thing happens, and the clock moves."""
        deeds = [self._note, self._add, self._run, self._touch, self._release, self._hold, self._begin, self._reopen]
        self._randomness.choices(deeds, [4, 2, 3, 8, 1, 2, 1, 1])[0]()
        self._clock.move()

    def check(self) -> None:
        """The record says what the model does, here and for whoever opens it."""
        self._compare(self._workflow.record)
        self._reopen()
        self._compare(self._workflow.record)

    def close(self) -> None:
        self._workflow.close()

    def _opened(self) -> Workflow:
        return Workflow("w", store=self._store, now=self._clock.now, initial_state=[])

    def _compare(self, record: WorkflowRecord) -> None:
        assert record.state == self._words
        assert [(event.message, event.at) for event in record.events if event.type == "note"] == self._notes
        assert {name: step.result for name, step in record.steps.items()} == self._steps
        for key, held in self._leases.items():
            lease = record.leases[key]
            assert (lease.holder, lease.token, lease.released_at is not None) == (
                held.holder,
                held.token,
                held.released,
            )

    def _note(self) -> None:
        text = str(len(self._notes))
        self._workflow.append_event("note", text)
        self._notes.append((text, cut(self._clock.wall)))

    def _add(self) -> None:
        word = str(len(self._words))
        assert self._workflow.update_state(lambda state: [*state, word]) == [*self._words, word]
        self._words.append(word)

    def _run(self) -> None:
        name = f"step {self._randomness.randrange(6)}"
        expected = self._steps.setdefault(name, f"at {self._clock.wall}")
        assert self._workflow.run_step(name, lambda: f"at {self._clock.wall}") == expected, "it ran again"

    def _begin(self) -> None:
        with self._workflow:
            self._clock.move()
            self._note()
            assert self._workflow.record.status == "running"
        assert self._workflow.record.status == "completed"

    def _reopen(self) -> None:
        self._workflow.close()
        self._workflow = self._opened()

    def _is_free(self, key: str) -> bool:
        held = self._leases.get(key)
        return held is None or held.released or self._clock.is_over(held.end)

    def _touch(self) -> None:
        key, holder = self._randomness.choice(KEYS), self._randomness.choice(HOLDERS)
        ttl = self._randomness.choice(TTLS)
        is_free = self._is_free(key)
        if not is_free and self._leases[key].holder != holder:
            with pytest.raises(LeaseConflictError) as caught:
                self._workflow.touch_lease(key, holder=holder, ttl=ttl)
            assert caught.value.current_holder == self._leases[key].holder
            return
        if is_free:
            self._tokens[key] = self._tokens.get(key, 0) + 1
        lease = self._workflow.touch_lease(key, holder=holder, ttl=ttl)
        assert (lease.holder, lease.token) == (holder, self._tokens[key]), "it died early, or lived on"
        assert lease.heartbeat_at == cut(self._clock.wall)
        assert lease_status(lease, self._clock.wall) is LeaseStatus.ACTIVE
        assert lease_status(lease, self._clock.wall + timedelta(seconds=ttl)) is LeaseStatus.EXPIRED
        self._leases[key] = Held(holder, lease.token, self._clock.end_of(ttl))

    def _release(self) -> None:
        key = self._randomness.choice(KEYS)
        released = self._workflow.release_lease(key)
        assert (released is None) is (key not in self._leases)
        if released is not None:
            self._leases[key].released = True

    def _hold(self) -> None:
        """Hold a lease while the clock moves: it is lost where somebody else could take it, and nowhere else."""
        if not self._is_free("held"):
            return
        token = self._tokens["held"] = self._tokens.get("held", 0) + 1
        end = self._clock.end_of(3600.0)
        other = self._opened()
        try:
            with self._workflow.lease("held", holder="alpha", ttl=3600.0) as held:
                assert held.token == token
                self._leases["held"] = Held("alpha", token, end)
                for _ in range(3):
                    self._clock.move()
                self._take_over(other)
                self._note()
        except LeaseLostError:
            assert self._tokens["held"] > token
        else:
            assert self._tokens["held"] == token
            self._leases["held"].released = True
        finally:
            other.close()

    def _take_over(self, other: Workflow) -> None:
        """Somebody who is not inside asks for the lease."""
        is_free = self._is_free("held")
        try:
            lease = Context().run(other.touch_lease, "held", holder="beta", ttl=30.0)
        except LeaseConflictError:
            assert not is_free, "it lived on"
            return
        assert is_free, "it died early"
        self._tokens["held"] += 1
        assert lease.token == self._tokens["held"]
        self._leases["held"] = Held("beta", lease.token, self._clock.end_of(30.0))


def walk(store: Store, clock: Injected | Machine, randomness: random.Random) -> None:
    """One walk, from beginning to end."""
    walk = Walk(store, clock, randomness)
    try:
        for _ in range(STEPS):
            walk.step()
        walk.check()
    finally:
        walk.close()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", ["injected", "machine"])
def test_whatever_the_clock_does_order_is_by_sequence_and_no_lease_ends_early_or_late(
    memory: Path, tier: Tier, figures: Figures, monkeypatch: pytest.MonkeyPatch, kind: str, part: int
) -> None:
    """Words, events and steps stay as they were recorded; a lease ends when its time has gone by, and not before."""
    count = tier.count(quick=8, full=125, soak=250)
    randomness = tier.random(f"clocks {kind} {part}")
    for number in range(count):
        seed = randomness.getrandbits(32)
        drawn = random.Random(seed)
        clock = Injected(drawn) if kind == "injected" else Machine(drawn, monkeypatch)
        new_store = list(STORES.values())[number % len(STORES)]
        store = new_store(memory / f"{kind}{part}-{number}")
        try:
            walk(store, clock, drawn)
        except BaseException as error:
            error.add_note(f"{kind}, seed {seed}, store {store.display_name}")
            raise
    figures.add(8, f"runs under a clock that jumps, {kind}", count)


@pytest.mark.parametrize("ttl", [0.0005, 1.0005, 29.9999])
def test_the_end_of_a_lease_is_the_same_for_all(memory: Path, ttl: float) -> None:
    """Who has just touched it, whoever looks and whoever opens it later say one moment, in milliseconds."""
    with_clock = {"dir": memory / f"ends {ttl}", "now": FakeClock(NOON)}
    workflow = Workflow("w", **with_clock)  # type: ignore[arg-type]
    here = workflow.touch_lease("slot", holder="alpha", ttl=ttl).expires_at
    on_record = workflow.record.leases["slot"].expires_at
    workflow.close()
    later = Workflow("w", **with_clock).record.leases["slot"].expires_at  # type: ignore[arg-type]
    assert here == on_record == later == cut(here)


def test_the_times_of_others_do_not_order_what_happened(memory: Path, tier: Tier, figures: Figures) -> None:
    """Processes whose clocks are decades apart take turns: what was said last is last, for all of them."""
    randomness = tier.random("clocks apart")
    root = memory / "apart"
    clocks = [FakeClock(moment) for moment in (NOON, *MOMENTS[:5])]
    workflows = [Workflow("w", dir=root, now=clock, initial_state=[]) for clock in clocks]
    expected = []
    for number in range(60):
        workflow = randomness.choice(workflows)
        workflow.append_event("note", str(number))
        assert workflow.update_state(lambda state, number=number: [*state, number])[-1] == number
        expected.append(str(number))
        if randomness.random() < 0.2:
            workflow.close()
    for workflow in workflows:
        assert [event.message for event in workflow.record.events if event.type == "note"] == expected
    assert workflows[0].state == list(range(60))
    for workflow in workflows:
        workflow.close()
    figures.add(8, "writes by clocks that are decades apart", 60)


@pytest.mark.parametrize("backwards", [False, True], ids=["stands still", "runs back"])
def test_waits_end_whatever_the_wall_clock_does(memory: Path, figures: Figures, backwards: bool) -> None:
    """Timeouts and pauses are of real time, though the clock stands still or runs back."""
    clock = FakeClock(NOON)

    def now() -> datetime:
        if backwards:
            clock.advance(-60)
        return clock()

    workflow = Workflow("w", dir=memory / f"waits {backwards}", now=now)
    reader, writer = os.pipe()
    attempts: list[int] = []

    def flaky() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError
        return len(attempts)

    assert workflow.run_step("retried", flaky, retry=Retry(attempts=3, wait=0.01)) == 3
    with pytest.raises(StepTimeoutError):
        workflow.run_step("hangs", lambda: os.read(reader, 1).decode(), timeout=0.02)
    os.write(writer, b"x")
    log, _ = FileStore(workflow.dir).open("w", new_fold)  # as another process has it
    mutex = log.mutex("m", whole_store=False)
    assert mutex.try_acquire()
    with pytest.raises(MutexTimeoutError), workflow.mutex("m", timeout=0.02):
        pass
    mutex.release()
    mutex.dispose()
    log.detach(None)
    workflow.close()
    os.close(reader)
    os.close(writer)
    figures.add(8, "waits under a clock that stands still", 3)
