"""Leases: who may act under a key and until when, and that nothing is recorded from inside of one that was lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import DEADLINE, WatchedFS, wait_until
from support_fanout import NOON, blocked, codes_of
from support_processes import child, in_thread

from iso_orchestrator import (
    FileStore,
    LeaseConflictError,
    LeaseLostError,
    LeaseStatus,
    MutexTimeoutError,
    Rejected,
    StepStatus,
    Workflow,
    WorkflowStatus,
    lease_status,
    read_workflow_record,
)
from iso_orchestrator.system.clock import SystemClock
from iso_orchestrator.testing import FakeClock

TTL = 30.0


class WatchedClock(FakeClock):
    """Knows which threads have read it."""

    def __init__(self) -> None:
        super().__init__(NOON)
        self.readers: list[str] = []

    def __call__(self) -> datetime:
        self.readers.append(threading.current_thread().name)
        return super().__call__()

    def reads_by(self, part: str) -> int:
        """How often threads with *part* in their name have read the clock."""
        return sum(part in name for name in self.readers)


@pytest.fixture
def clock() -> WatchedClock:
    return WatchedClock()


@pytest.fixture
def workflow(tmp_path: Path, clock: FakeClock) -> Iterator[Workflow]:
    workflow = Workflow("w", dir=tmp_path, now=clock)
    yield workflow
    workflow.close()


def never(*_: object) -> None:
    pytest.fail("it ran")


def lease_events(workflow: Workflow) -> list[tuple[str, Any]]:
    return [(event.type, event.detail) for event in workflow.record.events if event.type.startswith("lease.")]


def take_over(workflow: Workflow, clock: FakeClock, key: str = "slot") -> int:
    """Let the lease run out, and have somebody else acquire it; the new token."""
    clock.advance(2 * TTL)
    # In a thread without the caller's context: somebody else is not fenced by what the caller has lost.
    token: int = in_thread(lambda: workflow.touch_lease(key, holder="thief", ttl=TTL).token).result(DEADLINE)
    return token


# touch_lease and release_lease


def test_a_lease_that_nobody_has_is_acquired(workflow: Workflow) -> None:
    """A first touch acquires: times, holder and token say so, and there is an event."""
    lease = workflow.touch_lease("slot", holder="alpha", ttl=TTL, detail={"phase": 1})
    assert (lease.key, lease.holder, lease.detail, lease.token) == ("slot", "alpha", {"phase": 1}, 1)
    assert (lease.acquired_at, lease.heartbeat_at, lease.expires_at) == (NOON, NOON, NOON + timedelta(seconds=TTL))
    assert lease.released_at is None
    assert workflow.record.leases == {"slot": lease}
    assert lease_events(workflow) == [("lease.acquired", {"key": "slot", "holder": "alpha", "ttlMs": 30_000})]


def test_its_holder_renews_it(workflow: Workflow, clock: FakeClock) -> None:
    """A later touch of the holder keeps token and start, and moves the end; the event is another."""
    first = workflow.touch_lease("slot", holder="alpha", ttl=TTL, detail="first")
    clock.advance(20)
    renewed = workflow.touch_lease("slot", holder="alpha", ttl=60)
    assert (renewed.token, renewed.acquired_at) == (first.token, NOON)
    assert (renewed.heartbeat_at, renewed.expires_at) == (clock(), clock() + timedelta(seconds=60))
    assert renewed.detail == "first"
    assert workflow.touch_lease("slot", holder="alpha", ttl=TTL, detail="second").detail == "second"
    assert [kind for kind, _ in lease_events(workflow)] == ["lease.acquired", "lease.renewed", "lease.renewed"]


def test_another_holder_is_refused(workflow: Workflow, clock: FakeClock) -> None:
    """Until it has run out or been released nobody else gets it; the error says who has it, and nothing is recorded."""
    lease = workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    clock.advance(TTL - 0.001)
    before = workflow.record
    with pytest.raises(LeaseConflictError) as raised:
        workflow.touch_lease("slot", holder="beta", ttl=TTL)
    error = raised.value
    assert (error.lease_key, error.holder, error.current_holder, error.expires_at) == (
        "slot",
        "beta",
        "alpha",
        lease.expires_at,
    )
    assert all(part in str(error) for part in ("slot", "beta", "alpha"))
    assert workflow.record == before


def test_a_lease_that_has_run_out_can_be_taken(workflow: Workflow, clock: FakeClock) -> None:
    """At the very moment of its end it is anybody's, and the token grows."""
    first = workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    clock.advance(TTL)
    second = workflow.touch_lease("slot", holder="beta", ttl=TTL)
    assert (second.holder, second.acquired_at, second.token) == ("beta", clock(), first.token + 1)
    with pytest.raises(LeaseConflictError):
        workflow.touch_lease("slot", holder="alpha", ttl=TTL)


def test_the_token_grows_with_every_acquisition(workflow: Workflow, clock: FakeClock) -> None:
    """Renewals keep it; acquiring anew, by the same holder or another, after an end or a release, does not."""

    def touch(holder: str) -> int:
        return workflow.touch_lease("slot", holder=holder, ttl=TTL).token

    tokens = [touch("alpha"), touch("alpha")]
    clock.advance(TTL)
    tokens += [touch("alpha"), touch("alpha")]
    workflow.release_lease("slot", "alpha")
    tokens += [touch("alpha"), touch("alpha")]
    clock.advance(TTL)
    tokens += [touch("beta"), touch("beta")]
    assert tokens == [1, 1, 2, 2, 3, 3, 4, 4]
    acquired = [kind for kind, _ in lease_events(workflow) if kind == "lease.acquired"]
    assert len(acquired) == 4
    assert workflow.touch_lease("other", holder="alpha", ttl=TTL).token == 1


@pytest.mark.slow
def test_the_token_grows_over_closing_and_processes(tmp_path: Path) -> None:
    """What comes after a snapshot, and from another process, goes on from the highest token."""
    tokens = []
    for number in range(3):
        workflow = Workflow("w", dir=tmp_path)
        tokens.append(workflow.touch_lease("slot", holder=f"h{number}", ttl=TTL).token)
        workflow.release_lease("slot")
        workflow.close()
    code = "say(workflow.touch_lease('slot', holder='child', ttl=30).token)\nworkflow.close()"
    with child(code, tmp_path) as process:
        tokens.append(int(process.line()))
        process.end()
    assert tokens == [1, 2, 3, 4]


def test_a_token_is_synced_before_it_is_handed_out(tmp_path: Path) -> None:
    """Behind the last write of an acquisition comes a sync, before the caller has the token."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    workflow.append_event("opened")
    fs.calls.clear()
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    names = [name for name, _ in fs.calls if name in ("write_at", "sync")]
    assert names[-2:] == ["write_at", "sync"]
    with workflow.lease("other"):
        names = [name for name, _ in fs.calls if name in ("write_at", "sync")]
        assert names[-2:] == ["write_at", "sync"]
    workflow.close()


def test_its_holder_gives_it_back(workflow: Workflow, clock: FakeClock) -> None:
    """A released lease is anybody's at once."""
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    clock.advance(1)
    released = workflow.release_lease("slot", "alpha")
    assert released is not None
    assert (released.holder, released.released_at, released.token) == ("alpha", clock(), 1)
    assert workflow.record.leases["slot"] == released
    assert workflow.touch_lease("slot", holder="beta", ttl=TTL).token == 2
    assert [kind for kind, _ in lease_events(workflow)] == ["lease.acquired", "lease.released", "lease.acquired"]
    assert lease_events(workflow)[1][1] == {"key": "slot", "holder": "alpha"}


def test_only_its_holder_gives_it_back_where_one_is_named(workflow: Workflow) -> None:
    """Naming a wrong holder is refused; naming none releases whoever has it."""
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    with pytest.raises(LeaseConflictError) as raised:
        workflow.release_lease("slot", "beta")
    assert (raised.value.holder, raised.value.current_holder) == ("beta", "alpha")
    assert workflow.record.leases["slot"].released_at is None
    released = workflow.release_lease("slot")
    assert released is not None
    assert released.released_at is not None


def test_there_may_be_nothing_to_give_back(workflow: Workflow) -> None:
    """An unknown lease is None; one that was released already stays as it is, without another event."""
    assert workflow.release_lease("slot") is None
    assert workflow.release_lease("slot", "alpha") is None
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    first = workflow.release_lease("slot")
    assert workflow.release_lease("slot") == first
    assert [kind for kind, _ in lease_events(workflow)] == ["lease.acquired", "lease.released"]


def test_a_time_to_live_is_seconds_or_a_timedelta(workflow: Workflow) -> None:
    """Both say the same, fractions included."""
    seconds = workflow.touch_lease("a", holder="alpha", ttl=1.5)
    delta = workflow.touch_lease("b", holder="alpha", ttl=timedelta(seconds=1, milliseconds=500))
    assert seconds.expires_at == delta.expires_at == NOON + timedelta(milliseconds=1500)
    with workflow.lease("c", ttl=timedelta(minutes=1)):
        assert workflow.record.leases["c"].expires_at == NOON + timedelta(minutes=1)


def test_what_a_lease_says_is_ones_own(workflow: Workflow) -> None:
    """Changing the detail of a lease that one got changes nothing on record."""
    detail = {"jobs": [1]}
    lease = workflow.touch_lease("slot", holder="alpha", ttl=TTL, detail=detail)
    lease.detail["jobs"].append(2)
    detail["jobs"].append(3)
    assert workflow.record.leases["slot"].detail == {"jobs": [1]}


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(0, LeaseStatus.ACTIVE), (29.999, LeaseStatus.ACTIVE), (30, LeaseStatus.EXPIRED), (-100, LeaseStatus.ACTIVE)],
)
def test_a_lease_is_active_until_it_expires(workflow: Workflow, seconds: float, status: LeaseStatus) -> None:
    """`lease_status` judges by the time that it is given."""
    lease = workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    assert lease_status(lease, NOON + timedelta(seconds=seconds)) is status


def test_a_released_lease_is_released_for_ever(workflow: Workflow) -> None:
    """Whatever the time, and the statuses are texts."""
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    lease = workflow.release_lease("slot")
    assert lease is not None
    assert lease_status(lease, NOON) is LeaseStatus.RELEASED
    assert lease_status(lease, NOON + timedelta(days=1)) == "released"


def test_a_lease_is_judged_by_the_present_unless_told_otherwise(tmp_path: Path) -> None:
    """Without a time `lease_status` asks the wall clock."""
    workflow = Workflow("w", dir=tmp_path)
    lease = workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    assert lease_status(lease) == "active"
    just_now = datetime.now(UTC) - timedelta(milliseconds=1)
    assert lease_status(attrs.evolve(lease, expires_at=just_now)) == "expired"
    workflow.close()


def test_touching_fences_nothing(workflow: Workflow, clock: FakeClock) -> None:
    """Who only touched a lease can record whatever becomes of it."""
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    take_over(workflow, clock)
    workflow.append_event("after")
    assert workflow.record.events[-1].type == "after"


# Holding one


def test_a_lease_is_held_inside_and_given_back(workflow: Workflow) -> None:
    """It is active inside and released behind; what is yielded has its token and is not lost."""
    with workflow.lease("slot", holder="alpha", detail={"phase": 1}) as held:
        lease = workflow.record.leases["slot"]
        assert (lease.holder, lease.detail, lease.token) == ("alpha", {"phase": 1}, held.token)
        assert (held.token, held.lost) == (1, False)
        assert lease.expires_at == NOON + timedelta(seconds=30)
    assert lease_status(workflow.record.leases["slot"]) is LeaseStatus.RELEASED
    assert not held.lost
    with workflow.lease("slot", holder="beta") as held:
        assert held.token == 2


def test_the_default_holder_is_nobody_else(workflow: Workflow) -> None:
    """Two holders that were not named are two, in one thread either."""
    with workflow.lease("slot"):
        with pytest.raises(LeaseConflictError), workflow.lease("slot"):
            never()
        assert str(os.getpid()) in workflow.record.leases["slot"].holder
    with workflow.lease("a"), workflow.lease("b"):
        leases = workflow.record.leases
        assert leases["a"].holder != leases["b"].holder


def test_who_does_not_get_it_does_not_enter(workflow: Workflow) -> None:
    """A conflict is raised on entry, and nothing is released on the way out."""
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    before = workflow.record
    with pytest.raises(LeaseConflictError), workflow.lease("slot", holder="beta"):
        never()
    assert workflow.record == before


def test_an_error_inside_gives_it_back_and_goes_on(workflow: Workflow) -> None:
    """The error is the caller's, and the lease is released."""
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as raised, workflow.lease("slot"):
        raise error
    assert raised.value is error
    assert workflow.record.leases["slot"].released_at is not None


def test_it_is_renewed_in_the_background(tmp_path: Path) -> None:
    """Held for longer than its time it is still the holder's, under the same token."""
    workflow = Workflow("w", dir=tmp_path)
    with workflow.lease("slot", ttl=0.15, holder="alpha") as held:
        start = workflow.record.leases["slot"].expires_at
        wait_until(lambda: workflow.record.leases["slot"].heartbeat_at > start)
        with pytest.raises(LeaseConflictError):
            workflow.touch_lease("slot", holder="beta", ttl=1)
        assert workflow.record.leases["slot"].token == held.token == 1
        assert not held.lost
    events = workflow.record.events
    assert codes_of(events, "lease.acquired") == ["lease.acquired"]
    assert len(codes_of(events, "lease.renewed")) >= 2
    workflow.close()


def test_renewing_ends_with_the_lease(tmp_path: Path) -> None:
    """No thread of it is left, and nothing more is recorded."""
    workflow = Workflow("w", dir=tmp_path)
    threads = set(threading.enumerate())
    with workflow.lease("slot", ttl=0.03):
        (renewer,) = set(threading.enumerate()) - threads
        wait_until(lambda: "lease.renewed" in codes_of(workflow.record.events, "lease.renewed"))
    assert not renewer.is_alive()
    assert workflow.record.events[-1].type == "lease.released"
    workflow.close()


def test_renewing_keeps_what_the_lease_says(tmp_path: Path) -> None:
    """The detail stays, and so does the moment of acquisition."""
    workflow = Workflow("w", dir=tmp_path)
    with workflow.lease("slot", ttl=0.03, detail=["keep"]):
        first = workflow.record.leases["slot"]
        wait_until(lambda: workflow.record.leases["slot"].heartbeat_at > first.heartbeat_at)
        later = workflow.record.leases["slot"]
        assert (later.detail, later.acquired_at) == (["keep"], first.acquired_at)
    workflow.close()


def test_it_holds_around_a_whole_run(workflow: Workflow) -> None:
    """A run inside, which closes the workflow when it ends, leaves the lease alone."""
    with workflow.lease("slot") as held:
        with workflow:
            workflow.run_step("inside", lambda: 1)
        assert workflow.record.leases["slot"].token == held.token
        assert workflow.record.leases["slot"].released_at is None
    assert workflow.record.leases["slot"].released_at is not None
    assert workflow.record.status is WorkflowStatus.COMPLETED


# Fencing


RECORDING: dict[str, Callable[[Workflow], Any]] = {
    "append_event": lambda workflow: workflow.append_event("inside"),
    "update_state": lambda workflow: workflow.update_state({"inside": True}),
    "heartbeat": lambda workflow: workflow.heartbeat("inside"),
    "set_status": lambda workflow: workflow.set_status("failed"),
    "run_step": lambda workflow: workflow.run_step("inside", never),
    "a run": lambda workflow: workflow.run(never),
    "mutex": lambda workflow: workflow.mutex("inside").__enter__(),
    "for_each": lambda workflow: workflow.run_for_each([1], never, mutex_key="inside"),
    "touch_lease": lambda workflow: workflow.touch_lease("inside", holder="me", ttl=1),
    "release_lease": lambda workflow: workflow.release_lease("slot"),
    "lease": lambda workflow: workflow.lease("inside").__enter__(),
    "reset": lambda workflow: workflow.reset("before"),
    "heartbeating": lambda workflow: workflow.heartbeating("inside").__enter__(),
}


@pytest.mark.parametrize("what", RECORDING)
def test_nothing_is_recorded_under_a_lease_that_was_lost(workflow: Workflow, clock: FakeClock, what: str) -> None:
    """Once the lease has a newer token, whatever would record from inside raises, and the record stays as it is."""
    workflow.run_step("before", lambda: 1)
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        take_over(workflow, clock)
        before = read_workflow_record("w", dir=workflow.dir)
        with pytest.raises(LeaseLostError) as raised:
            RECORDING[what](workflow)
        assert (raised.value.lease_key, raised.value.token, raised.value.current_token) == ("slot", 1, 2)
        assert read_workflow_record("w", dir=workflow.dir) == before
        raise raised.value


def test_what_is_refused_under_a_lost_lease_reads_nothing_anew(tmp_path: Path, clock: FakeClock) -> None:
    """The refusal costs a look at the record in memory, however long it is."""
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs), now=clock)
    with workflow, pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        take_over(workflow, clock)
        fs.calls.clear()
        for _ in range(3):
            with pytest.raises(LeaseLostError):
                workflow.run_step("refused", never)
        assert fs.count("read_at", "open_read") == 0


def test_a_lease_that_was_lost_says_so_at_its_end(workflow: Workflow, clock: FakeClock) -> None:
    """Who has recorded nothing since learns of it when leaving; the new holder keeps the lease."""
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL) as held:
        take_over(workflow, clock)
    assert held.lost
    lease = workflow.record.leases["slot"]
    assert (lease.holder, lease.token, lease.released_at) == ("thief", 2, None)


def test_an_error_inside_of_a_lease_that_was_lost_goes_on(workflow: Workflow, clock: FakeClock) -> None:
    """The user's error is not replaced by the loss."""
    with pytest.raises(ValueError, match="mine"), workflow.lease("slot", ttl=TTL):
        take_over(workflow, clock)
        raise ValueError("mine")
    assert workflow.record.leases["slot"].released_at is None


def test_a_step_that_ran_while_the_lease_was_lost_is_not_completed(workflow: Workflow, clock: FakeClock) -> None:
    """Its result is dropped, it is not retried, and the new holder can run it at once."""
    calls: list[str] = []

    def body() -> str:
        calls.append("late")
        workflow.update_state(lambda state: {"late": True}, with_step=True)
        take_over(workflow, clock)
        return "late"

    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        workflow.run_step("step", body, retry=3)
    assert calls == ["late"]
    assert workflow.record.steps["step"].status is not StepStatus.COMPLETED
    assert workflow.state == {}
    assert in_thread(workflow.run_step, "step", lambda: "new").result(DEADLINE) == "new"


def test_a_step_that_failed_while_the_lease_was_lost_raises_its_own_error(workflow: Workflow, clock: FakeClock) -> None:
    """The failure is the caller's, it is not recorded, and nobody waits for the attempt."""

    def body() -> None:
        take_over(workflow, clock)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), workflow.lease("slot", ttl=TTL):
        workflow.run_step("step", body)
    assert workflow.record.steps["step"].error is None
    assert "step.failed" not in [event.type for event in workflow.record.events]
    assert in_thread(workflow.run_step, "step", lambda: "new").result(DEADLINE) == "new"


def test_items_are_fenced(workflow: Workflow, clock: FakeClock) -> None:
    """The workers of a `for_each` inside are inside, too."""

    def work(item: int) -> None:
        if item == 0:
            take_over(workflow, clock)
        workflow.append_event("inside")

    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        summary = workflow.run_for_each(range(3), work, max_parallel=1, stop_on_error=False)
        assert [type(result.reason) for result in summary.results if isinstance(result, Rejected)] == [
            LeaseLostError
        ] * 3
        workflow.append_event("inside")
    assert codes_of(workflow.record.events, "inside") == []


def test_submitted_steps_are_fenced(workflow: Workflow, clock: FakeClock) -> None:
    """What was submitted inside is inside, in its thread."""
    entered, lost = threading.Event(), threading.Event()

    @workflow.step
    def slow() -> str:
        entered.set()
        assert lost.wait(DEADLINE)
        return "late"

    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        future = slow.submit()
        assert entered.wait(DEADLINE)
        take_over(workflow, clock)
        lost.set()
        future.result(DEADLINE)
    assert workflow.record.steps[slow.step_name()].status is not StepStatus.COMPLETED


def test_a_body_in_a_thread_of_its_own_is_fenced(workflow: Workflow, clock: FakeClock) -> None:
    """A step's timeout takes nothing out of the lease."""

    def body() -> None:
        take_over(workflow, clock)
        workflow.append_event("inside")

    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        workflow.run_step("step", body, timeout=DEADLINE)
    assert codes_of(workflow.record.events, "inside") == []


def test_background_heartbeats_are_fenced(workflow: Workflow, clock: WatchedClock) -> None:
    """Beats of a `heartbeating` inside stop with the loss."""
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL), workflow.heartbeating("alive", every=0.005):
        beats = clock.reads_by("heartbeat")
        wait_until(lambda: clock.reads_by("heartbeat") > beats, what="a first beat")
        take_over(workflow, clock)
        lost_at = clock()
        clock.advance(1)
        _wait_for_beats_or_their_end(clock, clock.reads_by("heartbeat") + 3)
    assert workflow.record.heartbeats["alive"].at <= lost_at


def _wait_for_beats_or_their_end(clock: WatchedClock, beats: int) -> None:
    """Until so many beats were tried, or nobody is left to try."""

    def is_over() -> bool:
        return clock.reads_by("heartbeat") >= beats or not any(
            "heartbeat" in thread.name for thread in threading.enumerate()
        )

    wait_until(is_over)


def test_a_lost_lease_hinders_nobody_else(workflow: Workflow, clock: FakeClock) -> None:
    """Threads outside of it record as ever, and so does its thread behind it."""
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        take_over(workflow, clock)
        in_thread(workflow.append_event, "outside").result(DEADLINE)
    workflow.append_event("behind")
    assert codes_of(workflow.record.events, "outside", "behind") == ["outside", "behind"]


def test_looking_is_no_recording(workflow: Workflow, clock: FakeClock) -> None:
    """Inside of a lease that was lost one can still see why."""
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        take_over(workflow, clock)
        assert workflow.record.leases["slot"].holder == "thief"
        assert workflow.state == {}


def test_a_lease_around_another_is_not_lost_with_it(workflow: Workflow, clock: FakeClock) -> None:
    """When the inner one is lost, the outer one goes on behind it; when the outer one is lost, both are."""
    with workflow.lease("outer", ttl=10 * TTL):
        with pytest.raises(LeaseLostError) as raised, workflow.lease("inner", ttl=TTL):
            take_over(workflow, clock, "inner")
            workflow.append_event("inside")
        assert raised.value.lease_key == "inner"
        workflow.append_event("between")
    assert codes_of(workflow.record.events, "inside", "between") == ["between"]
    with pytest.raises(LeaseLostError) as raised, workflow.lease("outer", ttl=TTL), workflow.lease("third", ttl=1000):
        take_over(workflow, clock, "outer")
        workflow.append_event("inside")
    assert raised.value.lease_key == "outer"


def test_a_lease_that_ran_out_and_that_nobody_took_is_not_lost(workflow: Workflow, clock: FakeClock) -> None:
    """Without a newer token there is nobody to be protected from."""
    with workflow.lease("slot", ttl=TTL) as held:
        clock.advance(100 * TTL)
        workflow.append_event("inside")
        assert not held.lost
    assert codes_of(workflow.record.events, "inside") == ["inside"]


def test_the_same_holder_name_elsewhere_is_fenced_off(workflow: Workflow, clock: FakeClock) -> None:
    """It is the token that counts: an acquisition under the same name is a newer one."""
    with pytest.raises(LeaseLostError), workflow.lease("slot", holder="alpha", ttl=TTL):
        clock.advance(2 * TTL)
        in_thread(workflow.touch_lease, "slot", holder="alpha", ttl=TTL).result(DEADLINE)
        workflow.append_event("inside")
    assert codes_of(workflow.record.events, "inside") == []


def test_a_run_inside_takes_nothing_out_of_the_lease(workflow: Workflow, clock: FakeClock) -> None:
    """Behind a run, which closed the workflow at its end, the lease fences as before it."""
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        with workflow:
            pass
        take_over(workflow, clock)
        workflow.append_event("inside")
    assert codes_of(workflow.record.events, "inside") == []


def test_closing_inside_takes_nothing_out_of_the_lease(workflow: Workflow, clock: FakeClock) -> None:
    """A workflow that was closed opens again on next use, and is fenced still."""
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=TTL):
        workflow.close()
        take_over(workflow, clock)
        workflow.append_event("inside")
    assert codes_of(workflow.record.events, "inside") == []


def test_the_holder_sees_in_the_background_that_it_was_lost(tmp_path: Path, clock: FakeClock) -> None:
    """`lost` turns true without anything being recorded."""
    workflow = Workflow("w", dir=tmp_path, now=clock)
    with pytest.raises(LeaseLostError), workflow.lease("slot", ttl=0.03) as held:
        clock.advance(1)
        while not held.lost and workflow.record.leases["slot"].holder != "thief":
            try:
                in_thread(workflow.touch_lease, "slot", holder="thief", ttl=TTL).result(DEADLINE)
            except LeaseConflictError:  # it was renewed just before
                clock.advance(1)
        wait_until(lambda: held.lost)
    workflow.close()


def test_a_lease_that_somebody_else_released_is_lost(tmp_path: Path) -> None:
    """Its holder does not go on as if it had it."""
    workflow = Workflow("w", dir=tmp_path)
    try:
        with workflow.lease("slot", ttl=0.03) as held:
            in_thread(workflow.release_lease, "slot").result(DEADLINE)
            wait_until(lambda: held.lost, DEADLINE / 4)
    except LeaseLostError:
        pass
    workflow.close()


def test_a_lease_that_is_lost_while_its_holder_waits_for_a_mutex(workflow: Workflow, clock: FakeClock) -> None:
    """It is looked at again after the wait: the mutex is not entered, and is free."""
    dispose = threading.Event()
    entered = threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            entered.set()
            assert dispose.wait(DEADLINE)

    def wait_inside() -> None:
        with workflow.lease("lease", ttl=TTL), workflow.mutex("slot"):
            never()

    holder = in_thread(hold)
    assert entered.wait(DEADLINE)
    waiter = blocked(wait_inside)
    take_over(workflow, clock, "lease")
    dispose.set()
    holder.result(DEADLINE)
    with pytest.raises(LeaseLostError):
        waiter.result(DEADLINE)
    with workflow.mutex("slot", timeout=0):
        pass


def test_a_lease_that_is_lost_while_an_item_waits_for_its_key(workflow: Workflow, clock: FakeClock) -> None:
    """The item does not run, and its key is free."""
    dispose = threading.Event()
    entered = threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            entered.set()
            assert dispose.wait(DEADLINE)

    def wait_inside() -> None:
        with workflow.lease("lease", ttl=TTL):
            workflow.run_for_each([1, 2], never, mutex_key="slot")

    holder = in_thread(hold)
    assert entered.wait(DEADLINE)
    waiter = blocked(wait_inside)
    take_over(workflow, clock, "lease")
    dispose.set()
    holder.result(DEADLINE)
    with pytest.raises(LeaseLostError):
        waiter.result(DEADLINE)
    with workflow.mutex("slot", timeout=0):
        pass


# Other processes


HOLDER = """
try:
    with workflow.lease("slot", ttl=0.3, holder="child") as held:
        say("held")
        hear()
        workflow.append_event("late")
        say("recorded")
except iso_orchestrator.LeaseLostError as error:
    say(f"lost {error.token} {error.current_token}")
workflow.append_event("behind")
workflow.close()
"""


@pytest.mark.slow
def test_a_stopped_holder_that_wakes_up_records_nothing(tmp_path: Path) -> None:
    """A process that slept past its time, and was followed by another, learns of it before it records."""
    workflow = Workflow("w", dir=tmp_path)
    with child(HOLDER, tmp_path) as holder:
        assert holder.line() == "held"
        holder.stop()

        def taken() -> bool:
            try:
                return workflow.touch_lease("slot", holder="peer", ttl=TTL).token == 2
            except LeaseConflictError:
                return False

        wait_until(taken)
        holder.go_on()
        holder.say()
        assert holder.line() == "lost 1 2"
        holder.end()
    assert codes_of(workflow.record.events, "late", "behind") == ["behind"]
    assert workflow.record.leases["slot"].holder == "peer"
    workflow.close()


@pytest.mark.slow
def test_a_killed_holder_keeps_its_lease_until_it_runs_out(tmp_path: Path) -> None:
    """Death frees no lease at once, and time does."""
    workflow = Workflow("w", dir=tmp_path)
    with child(HOLDER.replace("0.3", "0.8"), tmp_path) as holder:
        assert holder.line() == "held"
        holder.kill()
    with pytest.raises(LeaseConflictError):
        workflow.touch_lease("slot", holder="peer", ttl=TTL)

    def taken() -> bool:
        try:
            return workflow.touch_lease("slot", holder="peer", ttl=TTL).token == 2
        except LeaseConflictError:
            return False

    wait_until(taken)
    workflow.close()


@pytest.mark.slow
def test_a_conflict_is_seen_over_processes(tmp_path: Path) -> None:
    """Whoever has it in whatever process, others are told who."""
    workflow = Workflow("w", dir=tmp_path)
    with child(HOLDER.replace("0.3", "30"), tmp_path) as holder:
        assert holder.line() == "held"
        with pytest.raises(LeaseConflictError, match="child"), workflow.lease("slot"):
            never()
        holder.say()
        assert holder.line() == "recorded"
        holder.end()
    with workflow.lease("slot") as held:
        assert held.token == 2
    workflow.close()


# Clocks


class Machine:
    """The clocks of a machine, moved by hand: the wall clock alone, or both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = NOON
        self.boot: tuple[str, float] | None = ("boot-1", 1000.0)
        monkeypatch.setattr(SystemClock, "now", lambda _: self.wall)
        monkeypatch.setattr(SystemClock, "boot", lambda _: self.boot)

    def set_wall(self, seconds: float) -> None:
        """What an administrator or a time server does."""
        self.wall += timedelta(seconds=seconds)

    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.wall += timedelta(seconds=seconds)
        if self.boot is not None:
            self.boot = (self.boot[0], self.boot[1] + seconds)

    def reboot(self, off: float) -> None:
        """It is off for a while."""
        self.wall += timedelta(seconds=off)
        self.boot = ("boot-2", 1.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def on_machine(tmp_path: Path, machine: Machine) -> Iterator[Workflow]:
    workflow = Workflow("w", dir=tmp_path)
    yield workflow
    workflow.close()


def is_anybodys(workflow: Workflow) -> bool:
    try:
        workflow.touch_lease("slot", holder="beta", ttl=TTL)
    except LeaseConflictError:
        return False
    return True


def test_a_wall_clock_that_jumps_ahead_ends_no_lease(on_machine: Workflow, machine: Machine) -> None:
    """On one boot the seconds since the boot decide."""
    on_machine.touch_lease("slot", holder="alpha", ttl=TTL)
    machine.set_wall(3600)
    assert not is_anybodys(on_machine)
    machine.wait(TTL - 1)
    assert not is_anybodys(on_machine)
    machine.wait(1)
    assert is_anybodys(on_machine)


def test_a_wall_clock_that_jumps_back_keeps_no_lease(on_machine: Workflow, machine: Machine) -> None:
    """A lease does not live on because it is earlier than it was."""
    on_machine.touch_lease("slot", holder="alpha", ttl=TTL)
    machine.set_wall(-3600)
    assert not is_anybodys(on_machine)
    machine.wait(TTL)
    assert is_anybodys(on_machine)


def test_a_renewal_moves_the_end_by_the_boot_clock_too(on_machine: Workflow, machine: Machine) -> None:
    """A lease that was renewed lives as long again, whatever the wall clock does."""
    on_machine.touch_lease("slot", holder="alpha", ttl=TTL)
    machine.wait(20)
    on_machine.touch_lease("slot", holder="alpha", ttl=TTL)
    machine.set_wall(1000)
    machine.wait(TTL - 1)
    assert not is_anybodys(on_machine)
    machine.wait(1)
    assert is_anybodys(on_machine)


@pytest.mark.parametrize("off", [1, 3600])
def test_after_a_reboot_the_wall_clock_decides(on_machine: Workflow, machine: Machine, off: float) -> None:
    """Seconds since another boot say nothing."""
    on_machine.touch_lease("slot", holder="alpha", ttl=TTL)
    machine.reboot(off)
    assert is_anybodys(on_machine) is (off >= TTL)


def test_without_a_boot_clock_the_wall_clock_decides(on_machine: Workflow, machine: Machine) -> None:
    """Where a machine has no such clock, or the lease was written where there was none, it is wall time."""
    machine.boot = None
    on_machine.touch_lease("slot", holder="alpha", ttl=TTL)
    machine.boot = ("boot-1", 5.0)
    assert not is_anybodys(on_machine)
    machine.set_wall(TTL)
    assert is_anybodys(on_machine)


def test_what_the_boot_clock_says_outlives_closing(tmp_path: Path, machine: Machine) -> None:
    """A lease read from a snapshot is judged as before."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    workflow.close()
    machine.set_wall(3600)
    workflow = Workflow("w", dir=tmp_path)
    assert not is_anybodys(workflow)
    machine.wait(TTL)
    assert is_anybodys(workflow)
    workflow.close()


def test_an_injected_clock_replaces_the_boot_clock(tmp_path: Path, machine: Machine) -> None:
    """With `now=` the injected time alone decides."""
    clock = FakeClock(NOON)
    workflow = Workflow("w", dir=tmp_path, now=clock)
    workflow.touch_lease("slot", holder="alpha", ttl=TTL)
    machine.wait(3600)
    assert not is_anybodys(workflow)
    clock.advance(TTL)
    assert is_anybodys(workflow)
    workflow.close()


def test_the_machines_boot_clock_does_not_go_back() -> None:
    """The real clocks are what leases need: one boot, growing seconds, aware UTC."""
    clock = SystemClock()
    one, two = clock.boot(), clock.boot()
    if one is None or two is None:
        pytest.skip("this platform has no boot clock")
    assert one[0] == two[0]
    assert one[1] <= two[1]
    assert clock.now().utcoffset() == timedelta(0)


def test_waiting_for_a_mutex_does_not_keep_a_lease_from_being_renewed(tmp_path: Path) -> None:
    """A holder that waits, for however long, still has its lease."""
    workflow = Workflow("w", dir=tmp_path)
    with workflow.mutex("slot"):

        def wait_inside() -> bool:
            with workflow.lease("lease", ttl=0.06) as held:
                with pytest.raises(MutexTimeoutError), workflow.mutex("slot", timeout=0.2):
                    never()
                workflow.append_event("inside")
                return held.lost

        assert in_thread(wait_inside).result(DEADLINE) is False
    workflow.close()


def test_time_namespaces_of_one_boot_have_clocks_of_their_own(tmp_path: Path) -> None:
    """A container may shift its boot clock: its leases are compared with ours by the wall clock."""
    inside = ["unshare", "--time", "--boottime", "1000000", "--"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("`unshare --time` makes no time namespace here: the program, the kernel or the rights are missing")
    code = """if True:
        import os, sys
        from iso_orchestrator import Workflow
        from iso_orchestrator.system.clock import SystemClock
        Workflow("w", dir=sys.argv[1]).touch_lease("slot", holder="inside", ttl=1000)
        print(SystemClock().boot()[0], flush=True)
        if os.fork() == 0:
            print(SystemClock().boot()[0], flush=True)
            os._exit(0)
        os.wait()
    """
    made = subprocess.run(
        [*inside, sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    ours = SystemClock().boot()
    assert ours is not None
    theirs = set(made.stdout.split())
    assert len(theirs) == 1
    assert ours[0] not in theirs
    workflow = Workflow("w", dir=tmp_path)
    with pytest.raises(LeaseConflictError):
        workflow.touch_lease("slot", holder="outside", ttl=1)
    workflow.close()
    late = Workflow("w", dir=tmp_path, now=lambda: datetime.now(UTC) + timedelta(seconds=1001))
    assert late.touch_lease("slot", holder="outside", ttl=1).token == 2
    late.close()
