"""Forks in threads, with mutexes held and a heart beating: whatever a child does, its parent's locks are untouched."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import pytest
from reliability.oracle import Link, Nursery, Process, held_locks
from reliability.tiers import Figures, Tier
from support import DEADLINE, memory_folder, wait_until
from support_processes import in_thread

from iso_orchestrator import (
    LeaseLostError,
    MutexTimeoutError,
    Workflow,
    WorkflowStatus,
    delete_workflow,
    read_workflow_record,
)
from iso_orchestrator.coordination.mutex import Mutex
from iso_orchestrator.store import FileStore
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.testing import crash_here

# The parent


def be_parent(link: Link, root: str, where: str, deed: str, in_record: bool) -> None:
    """Hold two mutexes and a lease with a heart beating, fork in there, and say when the child has done its deed."""
    warnings.filterwarnings(
        "ignore", "This process", DeprecationWarning
    )  # Python 3.12 and later, of what is tried here
    workflow = Workflow("w", dir=root, initial_state=0)
    me = os.getpid()
    try:
        with workflow, workflow.heartbeating("alive", every=0.002), workflow.lease("lease", ttl=0.15):
            FORKERS[where](workflow, lambda: _hold_and_fork(workflow, link, DEEDS[deed], in_record=in_record))
            assert workflow.run_step("behind", lambda: "done") == "done"
    finally:
        if os.getpid() != me:
            os._exit(0)
    link.say("ended")


FORKERS: dict[str, Callable[[Workflow, Callable[[], Any]], Any]] = {
    "the main thread": lambda _, work: work(),
    "a thread": lambda _, work: in_thread(work).result(),
    "a step": lambda workflow, work: workflow.run_step("forks", work),
    "a step with a thread of its own": lambda workflow, work: workflow.run_step("forks", work, timeout=60),
    "a submitted step": lambda workflow, work: workflow.step(name="forks")(work).submit().result(),
    "an item": lambda workflow, work: workflow.run_for_each([1], lambda _: work(), mutex_key="key").values(),
}


def _hold_and_fork(workflow: Workflow, link: Link, deed: Deed, *, in_record: bool) -> None:
    slot, everywhere = workflow.mutex("slot"), workflow.mutex("slot", scope="store")
    with slot, everywhere, _Updating(workflow, link, wanted=in_record):
        pid = os.fork()
        if not pid:
            if deed is _unwind:
                return
            _end_after(lambda: deed(workflow, link, (slot, everywhere)))
        if deed is not _outlive:
            os.waitpid(pid, 0)
            link.say(["did", pid])
        link.hear()


class _Updating:
    """While a thread of this process is inside of the record's lock, where that is wanted."""

    def __init__(self, workflow: Workflow, link: Link, *, wanted: bool) -> None:
        self._workflow = workflow
        self._wanted = wanted
        self._is_in, self._is_over = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        if self._wanted:
            self._future = in_thread(self._workflow.update_state, self._update)
            assert self._is_in.wait(DEADLINE)

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._wanted:
            assert self._future.result(DEADLINE) == 1

    def _update(self, state: int) -> int:
        self._is_in.set()
        assert self._is_over.wait(DEADLINE)
        return state + 1


# The child


def _end_after(work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


Deed: TypeAlias = Callable[[Workflow, Link, Sequence[Mutex]], Any]


def _release(_: Workflow, __: Link, mutexes: Sequence[Mutex]) -> None:
    for mutex in mutexes:
        mutex.__exit__(None, None, None)


def _exit(*_: object) -> None:
    atexit._run_exitfuncs()


def _collect(workflow: Workflow, *_: object) -> None:
    vars(workflow).clear()
    gc.unfreeze()
    gc.collect()


def _use(workflow: Workflow, *_: object) -> None:
    try:
        workflow.mutex("slot", timeout=0).__enter__()
    except MutexTimeoutError as error:
        assert error.pid == os.getppid()
    else:
        raise AssertionError("it has its parent's mutex")
    with workflow.mutex("another"):
        assert workflow.run_step("child's", os.getpid) == os.getpid()
    workflow.close()


def _fork_again(workflow: Workflow, link: Link, mutexes: Sequence[Mutex]) -> None:
    pid = os.fork()
    if not pid:
        _end_after(lambda: _release(workflow, link, mutexes))
    os.waitpid(pid, 0)
    _exit()


def _outlive(_: Workflow, link: Link, __: Sequence[Mutex]) -> None:
    link.say(["did", os.getpid()])
    _live_on(link)  # which nobody listens to


def _live_on(link: Link) -> None:
    """Say that one has let go of the parent's files, and live until the test hangs up."""
    link.say("lives")
    with suppress(EOFError):
        link.hear(3 * DEADLINE)


def _unwind(*_: object) -> None:
    """Leave all that the parent is in, in the child: see where it is asked for."""


DEEDS: dict[str, Deed] = {
    "releases": _release,
    "exits": _exit,
    "is collected": _collect,
    "closes": lambda workflow, *_: workflow.close(),
    "dies": lambda *_: crash_here(),
    "uses the workflow": _use,
    "forks again": _fork_again,
    "unwinds": _unwind,
    "outlives": _outlive,
}


def _is_possible(deed: str, where: str, in_record: bool) -> bool:
    if deed == "unwinds":  # a pool's thread would look for its next work, and not end
        return where in ("the main thread", "a step") and not in_record
    # Whoever uses the record waits for the one who is in it, who waits here for the child.
    return not (deed == "uses the workflow" and in_record)


@pytest.mark.parametrize("deed", DEEDS)
def test_a_forked_child_touches_none_of_its_parents_locks(
    nursery: Nursery, tier: Tier, figures: Figures, deed: str
) -> None:
    """Whatever it does, mutexes, the record's lock, the lease, the heart and the run stay the parent's."""
    cases = [case for case in product(FORKERS, (False, True)) if _is_possible(deed, *case)]
    chance = tier.random(f"fork storm {deed}")
    chosen = chance.sample(cases, 1) if tier.name == "quick" else cases * tier.count(quick=1, full=1, soak=50)
    look = _look_at_orphan if deed == "outlives" else _look_at_parent
    for where, in_record in chosen:
        with memory_folder() as root:
            parent = nursery.start(be_parent, str(root), where, deed, in_record)
            word, child = parent.hear()
            assert word == "did"
            look(parent, child, root, in_record)
    figures.add(12, f"forks, the child {deed}", len(chosen))


def _look_at_parent(parent: Process, _: int, root: Path, in_record: bool) -> None:
    held = [Path(lock).parent.name for lock in held_locks(root)]
    assert held.count("mutex") >= 2
    assert held.count("runs") == 1
    if in_record:
        assert any(lock.endswith("record.flock") for lock in held_locks(root))
    else:
        _look_from_beside(parent, root)
    parent.say()
    assert parent.hear() == "ended"
    parent.end()
    assert held_locks(root) == []
    record = read_workflow_record("w", dir=root)
    assert (record.status, record.last_error) == (WorkflowStatus.COMPLETED, None)
    assert record.state == int(in_record)
    assert record.steps["behind"].result == "done"
    assert record.leases["lease"].released_at is not None
    slots = [event.type for event in record.events if (event.detail or {}).get("key") == "slot"]
    assert slots == ["mutex.acquired", "mutex.acquired", "mutex.released", "mutex.released"]


def _look_from_beside(parent: Process, root: Path) -> None:
    beside = Workflow("w", dir=root)
    for scope in ("workflow", "store"):
        with pytest.raises(MutexTimeoutError) as raised, beside.mutex("slot", timeout=0, scope=scope):  # type: ignore[arg-type]
            pytest.fail("it was entered")
        assert raised.value.pid == parent.pid
    before = beside.record
    assert before.status is WorkflowStatus.RUNNING
    assert before.leases["lease"].released_at is None
    wait_until(lambda: beside.record.heartbeats["alive"].at > before.heartbeats["alive"].at)
    wait_until(lambda: beside.record.leases["lease"].heartbeat_at > before.leases["lease"].heartbeat_at)
    assert beside.record.leases["lease"].token == 1
    beside.close()


def _look_at_orphan(parent: Process, child: int, root: Path, in_record: bool) -> None:
    parent.kill(hang_up=False)
    try:
        assert held_locks(root) == []
        with Workflow("w", dir=root, on_busy="fail", initial_state=0) as workflow:
            for scope in ("workflow", "store"):
                with workflow.mutex("slot", timeout=0, scope=scope):  # type: ignore[arg-type]
                    assert workflow.update_state(lambda state: state + 1)
            assert workflow.run_step("forks", lambda: "taken over") == "taken over"
        os.kill(child, 0)
        delete_workflow("w", dir=root)
    finally:
        parent.link.close()


# Forks at any moment

FORKS = 20


def churn(link: Link, root: str) -> None:
    """Take and free locks in several threads, fork in the midst of it, and wait to be killed."""
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    sys.setswitchinterval(1e-6)
    workflow = Workflow("w", dir=root)

    def take() -> None:
        while True:
            with workflow.mutex(f"key {threading.get_ident()}"):
                pass

    def come_and_go(number: int) -> None:
        other = Workflow(f"other {number}", dir=root)
        while True:
            other.append_event("opened")
            other.close()

    for number in range(3):
        threading.Thread(target=take, daemon=True).start()
        threading.Thread(target=come_and_go, args=(number,), daemon=True).start()
    for _ in range(FORKS):
        if not os.fork():
            _end_after(lambda: _live_on(link))
        time.sleep(0.001)
    link.hear()


def test_a_child_that_was_forked_at_any_moment_holds_nothing(nursery: Nursery, tier: Tier, figures: Figures) -> None:
    """Children forked while other threads take and free locks keep none of them when their parent is killed."""
    found: list[str] = []
    rounds = tier.count(quick=1, full=20, soak=500)
    for _ in range(rounds):
        with memory_folder() as root:
            parent = nursery.start(churn, str(root))
            assert [parent.hear() for _ in range(FORKS)] == ["lives"] * FORKS
            parent.kill(hang_up=False)
            found += held_locks(root)
            parent.link.close()
    figures.add(12, "forks while locks are taken and freed", FORKS * rounds, len(found))
    assert not found


class _ForkedWhileOpening(FileSystem):
    """A file system that lets another thread fork when it has opened a mutex, and before anybody else knows of that.

    Attributes:
        opened: The file is open.
        forked: The other thread has forked, or was kept from it for long enough.
    """

    def __init__(self) -> None:
        self.opened, self.forked = threading.Event(), threading.Event()

    def open_write(self, path: str) -> int:
        fd = super().open_write(path)
        if path.endswith(".lock"):
            self.opened.set()
            self.forked.wait(0.1)  # whoever forks may be made to wait for the end of this
        return fd


def fork_while_opening(link: Link, root: str) -> None:
    """Fork while another thread opens the file of a mutex, hold the mutex, and wait to be killed."""
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    fs = _ForkedWhileOpening()
    workflow = Workflow("w", store=FileStore(root, fs=fs))
    holder = in_thread(_hold, workflow, link)
    assert fs.opened.wait(DEADLINE)
    if not os.fork():
        _end_after(lambda: _live_on(link))
    fs.forked.set()
    holder.result()


def _hold(workflow: Workflow, link: Link) -> None:
    with workflow.mutex("slot"):
        link.say("held")
        link.hear()


def test_a_child_that_was_forked_while_a_lock_was_opened_holds_nothing(
    nursery: Nursery, root: Path, figures: Figures
) -> None:
    """A lock file that was open at the fork, and locked after it, is not the child's when the parent is killed."""
    parent = nursery.start(fork_while_opening, str(root))
    assert {parent.hear(), parent.hear()} == {"held", "lives"}
    assert len(held_locks(root)) == 2  # the mutex, and the run file
    parent.kill(hang_up=False)
    held = held_locks(root)
    parent.link.close()
    figures.add(12, "forks while a lock is opened", 1, len(held))
    assert not held


def fork_in_lease(link: Link, root: str) -> None:
    """Fork inside of a lease, and wait for the child there."""
    workflow = Workflow("w", dir=root)
    with suppress(LeaseLostError), workflow.lease("lease", ttl=DEADLINE):
        pid = os.fork()
        if not pid:
            _end_after(lambda: _record_late(workflow, link))
        os.waitpid(pid, 0)
    workflow.close()


def _record_late(workflow: Workflow, link: Link) -> None:
    link.say("forked")
    link.hear()
    try:
        workflow.append_event("late")
    except LeaseLostError as error:
        link.say([error.token, error.current_token])
    else:
        link.say("recorded")


def test_a_child_that_was_forked_inside_of_a_lease_is_fenced(nursery: Nursery, root: Path, figures: Figures) -> None:
    """When the lease has a newer token the child, too, records nothing from inside of it."""
    parent = nursery.start(fork_in_lease, str(root))
    assert parent.hear() == "forked"
    workflow = Workflow("w", dir=root)
    workflow.release_lease("lease")
    assert workflow.touch_lease("lease", holder="peer", ttl=DEADLINE).token == 2
    parent.say()
    answer = parent.hear()
    parent.end()
    late = [event for event in workflow.record.events if event.type == "late"]
    workflow.close()
    figures.add(12, "children forked inside of a lease that was lost", 1, len(late))
    assert answer == [1, 2]
    assert not late
