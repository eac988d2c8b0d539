"""What is done to a store while every operation is recorded: short sequences of all kinds, and longer scripts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any

from reliability.replay import (
    WORKFLOW,
    Killed,
    LockFiles,
    Machine,
    Operation,
    Oracle,
    ProcessFS,
    RecordedStore,
    Synced,
    Told,
    Wrote,
)
from support import at, note

from iso_orchestrator import StepInterruptedError, StoreError, Workflow
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file import log as file_log

__all__ = [
    "OPERATIONS",
    "SCRIPTS",
    "Play",
    "World",
    "early_folds",
    "first_failure",
    "killed",
    "played",
    "recorded",
    "short_sequences",
    "with_failed_sync",
]

_LARGE = "0123456789abcdef" * 300  # 4,800 bytes: ten sectors


@contextmanager
def early_folds() -> Iterator[None]:
    """Journals are folded at 16 kB: at no sum of three operations, but at once by `fold_early`."""
    before = file_log._CHECKPOINT_AT_BYTES, file_log._CHECKPOINT_AT_RATIO
    file_log._CHECKPOINT_AT_BYTES, file_log._CHECKPOINT_AT_RATIO = 16_000, 0.0
    try:
        yield
    finally:
        file_log._CHECKPOINT_AT_BYTES, file_log._CHECKPOINT_AT_RATIO = before


class Held:
    """A process's hold on the workflow, used as a session uses it; over when the process has begun to leave."""

    def __init__(self, world: World) -> None:
        self.fs = world.machine.process()
        self.store = RecordedStore(self.fs, world.oracle)
        self.is_over = False
        self._world = world
        self._projection: Projection | None = None
        self._log, self._projection = self.store.open(WORKFLOW, world.new)

    @property
    def projection(self) -> Projection:
        """What this process knows."""
        assert self._projection is not None
        return self._projection

    def put(self, *facts: f.Fact, wait: bool = True) -> None:
        """Append *facts* to what all have written, and tell somebody when they are synced."""
        projection, self._projection = self._projection, None
        try:
            self._log.lock()
            projection = self._log.catch_up(projection)
            if facts:
                self._log.append(projection, facts)
        finally:
            self._log.unlock()
        self._projection = projection
        if wait:
            self._log.sync(projection.seq)
            self._world.oracle.told(projection)

    def look(self) -> None:
        """Tell somebody what all have written."""
        self.put()

    def leave(self) -> None:
        """End it well."""
        self.is_over = True
        self._log.detach(self._projection)


class World:
    """A machine, the process that works on it, and a second one where an operation has begun it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.oracle = Oracle(self.machine)
        self.holds: list[Held] = []
        self._lives = 0
        self._notes = 0

    @property
    def first(self) -> Held:
        """The process that works."""
        return self.holds[0]

    @property
    def second(self) -> Held:
        """The other process."""
        if len(self.holds) == 1:
            self.holds.append(Held(self))
        return self.holds[1]

    def new(self) -> Projection:
        """A record that was never there before."""
        self._lives += 1
        return Projection.new(WORKFLOW, at(1000 * self._lives), {"life": self._lives})

    def note(self, more: str = "") -> f.Fact:
        """A fact that no other is like."""
        self._notes += 1
        return note(f"{self._notes}{more}", self._notes)

    def store(self) -> RecordedStore:
        """A process's store."""
        return RecordedStore(self.machine.process(), self.oracle)

    def begin(self) -> None:
        """A process comes, in the place of the first if that has gone."""
        self.holds[:1] = [Held(self)]

    def go_on(self, *, others_first: bool) -> None:
        """What comes after a mishap: the next process, and those that knew nothing of it, in either order."""
        others = [hold for hold in self.holds if not hold.is_over and not hold.fs.is_killed]
        self.holds.clear()
        turns = [self._next_begins, *(partial(self._other_goes_on, hold) for hold in others)]
        for turn in reversed(turns) if others_first else turns:
            turn()
        self.first.put(self.note())

    def _next_begins(self) -> None:
        self.begin()
        self.first.look()

    def _other_goes_on(self, hold: Held) -> None:
        with suppress(StoreError):  # the kernel tells it too, if that was a failed sync
            hold.put(self.note())

    def end_second(self) -> None:
        """The other process leaves, if there is one."""
        for hold in self.holds[1:]:
            self.holds.remove(hold)
            hold.leave()


def small(world: World) -> None:
    world.first.put(world.note())


def large(world: World) -> None:
    world.first.put(world.note(_LARGE))


def batch(world: World) -> None:
    world.first.put(*(world.note() for _ in range(3)))


def unsynced(world: World) -> None:
    world.first.put(world.note(), wait=False)


def state(world: World) -> None:
    world.first.put(f.StateUpdated(at(1), {"notes": len(world.oracle.facts)}))


def step(world: World) -> None:
    name = f"step {len(world.oracle.facts)}"
    world.first.put(f.StepStarted(at(1), name, 1, "owner"), wait=False)
    world.first.put(f.StepCompleted(at(2), name, {"done": name}))


def lease(world: World) -> None:
    token = world.first.projection.tokens.get("slot", 0) + 1
    touched = f.LeaseTouched(at(1), "slot", "alpha", 30.0, at(1), at(31), token, renewed=False)
    world.first.put(touched)
    world.first.put(f.LeaseReleased(at(2), "slot"))


def fold_early(world: World) -> None:
    world.first.put(world.note("." * 16_000))


def reopen(world: World) -> None:
    world.first.leave()
    world.begin()


def restart(world: World) -> None:
    """The process is killed; what it has written is there, synced or not."""
    world.first.fs.kill()
    world.begin()
    assert world.first.projection.seq == len(world.oracle.facts), "a killed process took with it what it had written"


def torn(world: World) -> None:
    """The process is killed in the midst of a write."""
    before = len(world.oracle.facts)
    world.first.fs.tears = True
    with suppress(Killed, StoreError):  # the latter for what a process that is gone could not unlock
        world.first.put(*(world.note() for _ in range(3)))
    world.begin()
    assert before < world.first.projection.seq < before + 3, "whole lines before a torn one are kept"
    del world.oracle.facts[world.first.projection.seq :]


def delete(world: World) -> None:
    world.end_second()
    world.first.leave()
    world.first.store.delete(WORKFLOW)
    world.begin()


def delete_of_dead(world: World) -> None:
    """The process is killed, and another deletes what it has left."""
    world.end_second()
    world.first.fs.kill()
    world.store().delete(WORKFLOW)
    world.begin()


def other_looks(world: World) -> None:
    world.second.look()


def other_appends(world: World) -> None:
    world.second.put(world.note())


def other_does_not_wait(world: World) -> None:
    world.second.put(world.note(), wait=False)


def other_leaves(world: World) -> None:
    world.end_second()


OPERATIONS: dict[str, Callable[[World], None]] = {
    operation.__name__: operation
    for operation in (
        small,
        large,
        batch,
        unsynced,
        state,
        step,
        lease,
        fold_early,
        reopen,
        restart,
        torn,
        delete,
        delete_of_dead,
        other_looks,
        other_appends,
        other_does_not_wait,
        other_leaves,
    )
}


def short_sequences(longest: int) -> list[tuple[str, ...]]:
    """All of no to *longest* operations, the shortest first."""
    return [names for length in range(longest + 1) for names in itertools.product(OPERATIONS, repeat=length)]


def recorded(locks: LockFiles, names: Sequence[str]) -> tuple[list[Operation], int]:
    """What a sequence of operations makes of an empty disk, and where in it the last of them begins."""
    machine = Machine(locks)
    try:
        world = World(machine)
        world.begin()
        since = 0
        for name in names:
            since = len(machine.log)
            OPERATIONS[name](world)
        return machine.log, since
    finally:
        machine.power_off()


def killed(locks: LockFiles, names: Sequence[str], fatal: int) -> tuple[list[Operation], int]:
    """As `recorded`, by a process that is killed after operation *fatal* on the disk, counted from 1.

    Returns:
        The log, of what others do then too; and where in it the kill is.
    """
    machine = Machine(locks)
    machine.fatal = fatal
    world = World(machine)
    try:
        with suppress(Killed, OSError, StoreError):  # the latter for what a process that is gone could not close
            world.begin()
            for name in names:
                OPERATIONS[name](world)
        since = len(machine.log)
        world.go_on(others_first=fatal % 2 == 0)
        return machine.log, since
    finally:
        machine.power_off()


def with_failed_sync(
    locks: LockFiles, names: Sequence[str], number: int, *, others_first: bool
) -> tuple[list[Operation], int]:
    """As `recorded`, where sync *number*, counted from 0, fails, and others go on in either order.

    Returns:
        The log, of what others do then too; and where in it the failure is.
    """
    machine = Machine(locks)
    machine.failing = frozenset({number})
    world = World(machine)
    try:
        with suppress(StoreError):
            world.begin()
            for name in names:
                OPERATIONS[name](world)
        for hold in world.holds:
            if hold.fs in machine.failed and not hold.is_over:
                _assert_refuses(hold, world)
                hold.leave()
        world.go_on(others_first=others_first)
        return machine.log, first_failure(machine.log)
    finally:
        machine.power_off()


def first_failure(log: Sequence[Operation]) -> int:
    """Where in the log a sync failed."""
    return next(index for index, operation in enumerate(log) if isinstance(operation, Synced) and not operation.well)


def _assert_refuses(hold: Held, world: World) -> None:
    """A store of which a sync has failed writes nothing more, and says nothing of what is there."""
    before = len(world.machine.log)
    for attempt in (lambda: hold.put(world.note()), hold.look):
        try:
            attempt()
        except StoreError:
            continue
        raise AssertionError("a store went on after a sync that failed")
    assert not any(isinstance(operation, Wrote | Told) for operation in world.machine.log[before:])


class _Gone:
    """What a session of a killed process has of its log: nothing can be done with it, and nothing is left to do."""

    process_id = ""

    def detach(self, projection: Projection | None, *, wait: bool = True) -> None: ...

    def close(self) -> None: ...

    def fail(self, reason: str) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise StoreError("the process is gone")


class Play:
    """What a script works with: workflows, each of which is a process."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.oracle = Oracle(machine)
        self._seconds = 0
        self._workflows: list[tuple[Workflow, RecordedStore, ProcessFS]] = []

    def workflow(self) -> Workflow:
        """The workflow in a new process."""
        process = self.machine.process()
        store = RecordedStore(process, self.oracle)
        workflow = Workflow(WORKFLOW, store=store, now=self._now)  # type: ignore[arg-type]
        self._workflows.append((workflow, store, process))
        return workflow

    def told(self) -> None:
        """Somebody got on who waited for all that was appended."""
        self.oracle.told_up_to(len(self.oracle.facts))

    def told_of_step(self, name: str) -> None:
        """Somebody got a step's result."""
        facts = self.oracle.facts
        seq = max(seq for seq, fact in enumerate(facts, 1) if isinstance(fact, f.StepCompleted) and fact.step == name)
        self.oracle.told_up_to(seq)

    def kill(self, workflow: Workflow) -> None:
        """Kill the workflow's process, which has begun."""
        workflow._runtime.session()._log = _Gone()  # type: ignore[assignment]
        next(process for its, _, process in self._workflows if its is workflow).kill()

    def close(self) -> None:
        """Let go of all that is left."""
        for workflow, _, _ in self._workflows:
            workflow.close()

    def _now(self) -> datetime:
        self._seconds += 1
        return at(self._seconds)


def a_run(play: Play) -> None:
    workflow = play.workflow()
    with workflow:
        assert workflow.run_step("fetch", lambda: {"rows": 3}) == {"rows": 3}
        play.told_of_step("fetch")
        workflow.update_state({"rows": 3})
        play.told()
        workflow.append_event("mail.sent", detail={"to": 3})
        play.told()
        workflow.heartbeat("worker", {"phase": "send"})
        play.told()
    play.told()
    workflow.close()
    again = play.workflow()
    again.run_step("fetch", _unreachable)
    play.told_of_step("fetch")


def steps_that_fail(play: Play) -> None:
    workflow = play.workflow()
    tries = iter((ValueError("first"), None))

    def second_time_lucky() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "done"

    assert workflow.run_step("lucky", second_time_lucky, retry=2) == "done"
    play.told_of_step("lucky")
    try:
        workflow.run_step("divide", lambda: 1 // 0)
    except ZeroDivisionError as error:
        if not hasattr(error, "__notes__"):  # which would say that it is not recorded
            play.told()
    assert sorted(workflow.reset("*")) == ["divide", "lucky"]
    play.told()
    workflow.run_step("lucky", lambda: "again")
    play.told_of_step("lucky")


def state_with_a_step(play: Play) -> None:
    workflow = play.workflow()

    def count() -> int:
        workflow.update_state(lambda state: {"count": state.get("count", 0) + 1}, with_step=True)
        return 1

    workflow.run_step("count", count)
    play.told_of_step("count")
    assert workflow.state == {"count": 1}
    play.told()


def leases(play: Play) -> None:
    workflow = play.workflow()
    assert workflow.touch_lease("slot", holder="alpha", ttl=30).token == 1
    play.told()
    workflow.release_lease("slot", holder="alpha")
    play.told()
    with workflow.lease("slot", holder="beta") as held:
        assert held.token == 2
        play.told()
        workflow.run_step("fenced", lambda: "yes")
        play.told_of_step("fenced")
    # Nobody is told that it was given back: where that is lost, it runs out.


def result_of_another_process(play: Play) -> None:
    """Another process has written a result and waits for its sync; this one is asked for it."""
    writer, reader = play.workflow(), play.workflow()
    writer.heartbeat("writer")
    play.told()
    assert reader.run_step("own", lambda: 1) == 1
    play.told_of_step("own")
    for name in ("theirs", "theirs too"):
        _append_unsynced(play, writer, name)
        assert reader.run_step(name, _unreachable) == name
        play.told_of_step(name)
    _append_unsynced(play, writer, "seen")
    assert "seen" in reader.record.steps
    play.told()


def result_of_another_thread(play: Play) -> None:
    """Another thread of this process has written a result and waits for its sync."""
    workflow = play.workflow()
    workflow.heartbeat("worker")
    play.told()
    for name in ("theirs", "theirs too"):
        _append_unsynced(play, workflow, name)
        assert workflow.run_step(name, _unreachable) == name
        play.told_of_step(name)


def late_for_a_sync(play: Play) -> None:
    """A thread that appends while another's sync goes on has to wait for the next one."""
    workflow = play.workflow()
    seqs: list[int] = []

    def meanwhile() -> None:
        play.machine.synced = None
        seqs.append(_append_unsynced(play, workflow, "late"))

    workflow.update_state({"n": 1})
    play.told()
    play.machine.synced = meanwhile
    try:
        workflow.update_state({"n": 2})
    finally:
        play.machine.synced = None
    workflow._runtime.session().log.sync(seqs[0])
    play.oracle.told_up_to(seqs[0])


def killed_in_a_step(play: Play) -> None:
    first = play.workflow()
    with suppress(StoreError), first:
        first.run_step("before", lambda: 1)
        play.told_of_step("before")
        first.run_step("killed", lambda: play.kill(first))
    second = play.workflow()
    with second:
        second.run_step("before", lambda: 1)
        assert second.run_step("killed", lambda: "again") == "again"
        play.told_of_step("killed")
    play.told()


def must_not_run_twice(play: Play) -> None:
    first = play.workflow()
    with suppress(StoreError):
        first.run_step("pay", lambda: (play.told(), play.kill(first)), if_interrupted="fail")
    second = play.workflow()
    with suppress(StepInterruptedError):
        second.run_step("pay", lambda: None, if_interrupted="fail")
    play.told()


def two_take_turns(play: Play) -> None:
    first, second = play.workflow(), play.workflow()
    for turn in range(2):
        first.run_step(f"first {turn}", lambda: "." * 600)
        play.told_of_step(f"first {turn}")
        second.update_state({"turn": turn})
        play.told()
    first.close()
    second.run_step("last", lambda: 1)
    play.told_of_step("last")
    second.close()


def _append_unsynced(play: Play, workflow: Workflow, name: str) -> int:
    """A step's start and end, as its thread has them on record before its sync."""
    session = workflow._runtime.session()
    moment = at(0)

    def decide(projection: Projection) -> tuple[Sequence[f.Fact], int]:
        facts = [f.StepStarted(moment, name, 1, session.log.process_id), f.StepCompleted(moment, name, name)]
        return facts, projection.seq + len(facts)

    return session.transact(decide, durable=False)


def _unreachable() -> Any:
    raise AssertionError("a recorded step never runs again")


SCRIPTS: dict[str, Callable[[Play], None]] = {
    script.__name__: script
    for script in (
        a_run,
        steps_that_fail,
        state_with_a_step,
        leases,
        result_of_another_process,
        result_of_another_thread,
        late_for_a_sync,
        killed_in_a_step,
        must_not_run_twice,
        two_take_turns,
    )
}


def played(locks: LockFiles, name: str) -> list[Operation]:
    """What a script makes of an empty disk."""
    machine = Machine(locks)
    play = Play(machine)
    try:
        SCRIPTS[name](play)
        return machine.log[:]
    finally:
        play.close()
        machine.power_off()
