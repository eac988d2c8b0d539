from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import (
    DEADLINE,
    STORES,
    T0,
    StoreKind,
    at,
    caught_up,
    looked_at,
    new_fold,
    note,
    notes_of,
    put,
    run_python,
    wait_until,
)

from iso_orchestrator import Workflow
from iso_orchestrator.errors import MutexTimeoutError, StoreError, WorkflowBusyError, WorkflowNotFoundError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import STORE_URLS, FileStore, Store, WorkflowLog, find_store
from iso_orchestrator.store.maintenance import RepairOptions, Verdict
from iso_orchestrator.store.memory import MemoryStore


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path / "root")


class Holds:
    """Opens workflows of a store, and closes at the end of a test those that are still open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._logs: list[WorkflowLog] = []

    def open(self, workflow_id: str = "w", state: Any = None) -> tuple[WorkflowLog, Projection]:
        log, projection = self._store.open(workflow_id, lambda: new_fold(workflow_id, state))
        self._logs.append(log)
        return log, projection

    def leave(self, log: WorkflowLog, projection: Projection | None) -> None:
        self._logs.remove(log)
        log.detach(projection)

    def end(self) -> None:
        while self._logs:
            self.leave(self._logs[-1], None)


@pytest.fixture
def holds(store: Store) -> Iterator[Holds]:
    holds = Holds(store)
    yield holds
    holds.end()


def test_first_to_open_makes_the_record(store: Store, holds: Holds) -> None:
    """The first process to open writes its initial record, and the second finds that, not its own."""
    _, first = holds.open(state={"by": "first"})
    _, second = holds.open(state={"by": "second"})
    assert first.state == second.state == {"by": "first"}
    assert looked_at(store).state == {"by": "first"}


def test_record_outlives_its_holds(holds: Holds) -> None:
    """Facts are in the record when a workflow is opened again, in their order, once."""
    log, projection = holds.open()
    projection = put(log, projection, note("one"), note("two"))
    projection = put(log, projection, note("three"))
    holds.leave(log, projection)
    _, found = holds.open()
    assert notes_of(found) == ["one", "two", "three"]
    assert found.seq == 3


def test_nothing_is_appended_by_opening_and_leaving(holds: Holds) -> None:
    """A process that appends nothing leaves the record as it was."""
    log, projection = holds.open()
    holds.leave(log, put(log, projection, note("one")))
    for _ in range(2):
        log, projection = holds.open()
        assert (projection.seq, projection.updated_at) == (1, T0)
        holds.leave(log, projection)


def test_append_changes_the_checkpoint_that_it_is_given(holds: Holds) -> None:
    """After an append the projection has the new facts, counted."""
    log, projection = holds.open()
    log.lock()
    assert log.catch_up(projection) is projection
    log.append(projection, [note("one"), note("two")])
    log.unlock()
    assert (notes_of(projection), projection.seq) == (["one", "two"], 2)


def test_two_holds_see_each_other_in_order(holds: Holds) -> None:
    """After catching up a process has the facts of another between its own, in the order of appending."""
    log_a, a = holds.open()
    log_b, b = holds.open()
    a = put(log_a, a, note("a1"))
    b = put(log_b, b, note("b1"), note("b2"))
    a = put(log_a, a, note("a2"))
    b = caught_up(log_b, b)
    assert notes_of(a) == notes_of(b) == ["a1", "b1", "b2", "a2"]
    assert a.seq == b.seq == 4


def test_catching_up_from_nothing_gives_the_whole_record(holds: Holds) -> None:
    """Catching up from None makes a new projection with all facts."""
    log_a, a = holds.open()
    log_b, _ = holds.open()
    put(log_a, a, note("one"), note("two"))
    fresh = caught_up(log_b, None)
    assert notes_of(fresh) == ["one", "two"]
    put(log_b, fresh, note("three"))
    assert notes_of(caught_up(log_a, a)) == ["one", "two", "three"]


def test_hold_is_current_until_another_appends(holds: Holds) -> None:
    """A process knows without the lock whether others have appended since it caught up."""
    log_a, a = holds.open()
    log_b, b = holds.open()
    assert log_a.is_current()
    a = put(log_a, a, note("a"))
    assert log_a.is_current()
    assert not log_b.is_current()
    caught_up(log_b, b)
    assert log_b.is_current()


def test_lock_keeps_others_out(holds: Holds) -> None:
    """While one process has the lock another waits for it, and gets it when it is free."""
    log_a, _ = holds.open()
    log_b, _ = holds.open()
    log_a.lock()
    inside = threading.Event()

    def enter() -> None:
        log_b.lock()
        inside.set()
        log_b.unlock()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not inside.wait(0.05)
    log_a.unlock()
    assert inside.wait(DEADLINE)
    thread.join()


def test_unlocking_what_is_not_locked_is_harmless(holds: Holds) -> None:
    """A log that is not locked can be unlocked, and locked after that."""
    log, projection = holds.open()
    log.unlock()
    log.unlock()
    assert notes_of(put(log, projection, note("one"))) == ["one"]


def test_hold_lives_until_it_leaves(holds: Holds) -> None:
    """A process is alive for all, itself included, until it detaches; an unknown one is not."""
    log_a, a = holds.open()
    log_b, _ = holds.open()
    assert log_a.process_id != log_b.process_id
    assert log_a.is_alive(log_a.process_id)
    assert log_b.is_alive(log_a.process_id)
    holds.leave(log_a, a)
    assert not log_b.is_alive(log_a.process_id)
    assert not log_b.is_alive("0" * 16)


def test_dead_hold_appends_nothing_and_is_dead_to_others(store: Store, holds: Holds) -> None:
    """A failed log refuses to lock, append and sync, and other processes continue without it."""
    log_a, a = holds.open()
    log_b, b = holds.open()
    log_a.lock()
    a = log_a.catch_up(a)
    log_a.fail("the disk is broken")
    with pytest.raises(StoreError, match="the disk is broken"):
        log_a.append(a, [note("lost")])
    log_a.unlock()
    with pytest.raises(StoreError, match="the disk is broken"):
        log_a.lock()
    with pytest.raises(StoreError, match="the disk is broken"):
        log_a.sync(0)
    assert not log_a.is_current()
    assert log_b.is_alive(log_a.process_id)
    log_a.retire()
    assert not log_b.is_alive(log_a.process_id)
    assert notes_of(put(log_b, b, note("b"))) == ["b"]
    holds.leave(log_a, None)
    assert notes_of(looked_at(store)) == ["b"]


def test_sync_returns_for_everything_that_was_appended(holds: Holds) -> None:
    """The process that appended a fact can wait until it is durable, and so can one that read it."""
    log_a, a = holds.open()
    log_b, b = holds.open()
    a = put(log_a, a, note("one"), note("two"))
    log_a.sync(a.seq)
    b = caught_up(log_b, b)
    log_b.sync(b.seq)
    log_b.sync(0)


def test_delete_removes_an_unused_workflow(store: Store, holds: Holds) -> None:
    """A deleted workflow is gone, and a new one of its id begins empty."""
    log, projection = holds.open(state={"old": True})
    holds.leave(log, put(log, projection, note("one")))
    assert store.delete("w") is True
    assert store.read("w") is None
    assert list(store.list()) == []
    assert store.delete("w") is False
    _, fresh = holds.open(state={"old": False})
    assert (fresh.state, fresh.seq) == ({"old": False}, 0)


def test_delete_is_refused_while_a_process_uses_the_workflow(store: Store, holds: Holds) -> None:
    """A workflow that a process has open is not deleted, and not changed."""
    log, projection = holds.open()
    with pytest.raises(WorkflowBusyError) as caught:
        store.delete("w")
    assert caught.value.workflow_id == "w"
    assert notes_of(put(log, projection, note("one"))) == ["one"]
    holds.leave(log, projection)
    assert store.delete("w") is True


def test_list_gives_every_workflow_once(store: Store, holds: Holds) -> None:
    """All workflows of a store are listed, those in use and those that are not."""
    assert list(store.list()) == []
    log, projection = holds.open("idle")
    holds.leave(log, put(log, projection, note("one")))
    log, projection = holds.open("in use")
    put(log, projection, note("two"))
    found = {
        projection.workflow_id: notes_of(projection)
        for projection in store.list()
        if isinstance(projection, Projection)
    }
    assert found == {"idle": ["one"], "in use": ["two"]}


def test_reading_what_is_not_there_gives_nothing(store: Store, holds: Holds) -> None:
    """An unknown workflow reads as None, and is not there for having been read."""
    assert store.read("unknown") is None
    holds.open("w")
    assert store.read("unknown") is None
    assert [projection.workflow_id for projection in store.list() if isinstance(projection, Projection)] == ["w"]


def test_reader_sees_what_a_hold_has_appended(store: Store, holds: Holds) -> None:
    """A reader sees appended facts without the lock, while another process has it."""
    log, projection = holds.open()
    log.lock()
    projection = log.catch_up(projection)
    log.append(projection, [note("one")])
    assert notes_of(looked_at(store)) == ["one"]
    log.unlock()


def test_reader_gets_a_checkpoint_of_its_own(store: Store, holds: Holds) -> None:
    """Changes to a projection that was read change no other."""
    log, projection = holds.open(state={"n": 1})
    put(log, projection, f.EventAppended(T0, "note", "one", {"deep": [1]}))
    mine = looked_at(store)
    mine.apply(note("mine"))
    mine.state["n"] = 2
    assert notes_of(looked_at(store)) == ["one"]
    assert looked_at(store).state == {"n": 1}


def test_workflows_are_kept_apart(store: Store, holds: Holds) -> None:
    """Facts, locks and mutexes of one workflow do not touch another."""
    log_a, a = holds.open("a")
    log_b, b = holds.open("b")
    log_a.lock()
    put(log_b, b, note("b"))
    log_a.unlock()
    assert notes_of(caught_up(log_a, a)) == []
    one, other = log_a.mutex("k", whole_store=False), log_b.mutex("k", whole_store=False)
    assert one.try_acquire()
    assert other.try_acquire()
    one.release()
    other.release()


@pytest.mark.parametrize("whole_store", [False, True])
def test_mutex_has_one_holder(holds: Holds, whole_store: bool) -> None:
    """A mutex has one holder: another process gets it after the release."""
    log_a, _ = holds.open("a")
    log_b, _ = holds.open("b" if whole_store else "a")
    one, other = (log.mutex("k", whole_store=whole_store) for log in (log_a, log_b))
    assert one.try_acquire()
    assert not other.try_acquire()
    one.release()
    assert other.try_acquire()
    assert not one.try_acquire()
    other.release()


@pytest.mark.parametrize("whole_store", [False, True])
def test_mutex_is_handed_to_who_waits(holds: Holds, whole_store: bool) -> None:
    """A waiter gets the mutex when its holder releases it."""
    log_a, _ = holds.open()
    log_b, _ = holds.open()
    one, other = (log.mutex("k", whole_store=whole_store) for log in (log_a, log_b))
    one.acquire()
    got = threading.Event()

    def wait() -> None:
        other.acquire()
        got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.05)
    one.release()
    assert got.wait(DEADLINE)
    thread.join()
    other.release()


def test_mutexes_of_different_keys_are_different(holds: Holds) -> None:
    """Mutexes of different keys or scopes do not exclude each other."""
    log, _ = holds.open()
    mutexes = [
        log.mutex("k", whole_store=False),
        log.mutex("K", whole_store=False),
        log.mutex("k ", whole_store=False),
        log.mutex("k", whole_store=True),
        log.mutex("../k", whole_store=True),
    ]
    assert all(mutex.try_acquire() for mutex in mutexes)
    for mutex in mutexes:
        mutex.release()


def test_many_threads_lose_nothing(store: Store, holds: Holds) -> None:
    """Four threads that append at one time lose no fact, and each one's facts stay in order."""
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            log, projection = store.open("w", new_fold)
            for number in range(20):
                projection = put(log, projection, note(f"{name}{number}"))
            log.sync(projection.seq)
            log.detach(projection)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = [str(message) for message in notes_of(looked_at(store))]
    assert len(found) == 80
    for name in "abcd":
        assert [text for text in found if text[0] == name] == [f"{name}{number}" for number in range(20)]


def test_every_fact_goes_through_the_store(store: Store, holds: Holds) -> None:
    """A record that is read again is the projection of the appended facts, of every kind."""
    log, projection = holds.open()
    projection = put(
        log,
        projection,
        f.RunStarted(T0, "r", log.process_id, 7, "host"),
        f.StepStarted(at(1), "a", 1, log.process_id, "key", "v"),
        f.StepCompleted(at(2), "a", {"é": [1.5, None, "\ud800"]}, {"n": 1}),
        f.HeartbeatRecorded(at(3), "k", [1]),
        f.LeaseTouched(at(4), "l", "h", 30.0, at(4), at(34), 3, False, None, "boot", 12.5),
        f.RunEnded(at(5), "r"),
    )
    expected = projection.record()
    for found in (looked_at(store), holds.open()[1]):
        assert found.record() == expected
        assert (found.tokens, found.lease_clocks) == (projection.tokens, projection.lease_clocks)
        assert found.matching("a", "key", "v") is not None
    holds.leave(log, projection)
    assert looked_at(store).record() == expected


def test_path_speaks_of_the_workflow(store: Store, holds: Holds) -> None:
    """A store has a path for a workflow, the same before it exists and after."""
    before = store.path_of("w")
    log, _ = holds.open("w")
    assert log.path == store.path_of("w") == before
    assert wait_until(lambda: store.read("w"), what="the record")


def test_a_store_knows_who_is_alive_without_opening(store: Store, holds: Holds) -> None:
    """Whether a process has a workflow open can be asked without opening it; it has none that does not exist."""
    log, projection = holds.open("w")
    assert store.is_alive("w", log.process_id)
    assert not store.is_alive("other", log.process_id)
    assert not store.is_alive("w", "0" * 16)
    holds.leave(log, projection)
    assert not store.is_alive("w", log.process_id)


def test_stores_in_different_places_have_different_location_ids(store: Store, holds: Holds, tmp_path: Path) -> None:
    """The id of a place stays, and no other store has it."""
    holds.open("w")
    others = [make(tmp_path / f"other {kind}") for kind, make in STORES.items()]
    for other in others:
        log, projection = other.open("w", new_fold)
        log.detach(projection)
    ids = {found.location_id() for found in (store, store, *others)}
    assert len(ids) == 1 + len(STORES)


def test_a_moved_root_keeps_its_location_id_and_a_copy_has_another(tmp_path: Path) -> None:
    """Commands of a moved root are found again, and those of a copied root's original are left alone."""
    log, projection = FileStore(tmp_path / "root").open("w", new_fold)
    log.detach(projection)
    before = FileStore(tmp_path / "root").location_id()
    shutil.copytree(tmp_path / "root", tmp_path / "copy")
    (tmp_path / "root").rename(tmp_path / "moved")
    assert FileStore(tmp_path / "moved").location_id() == before
    assert FileStore(tmp_path / "copy").location_id() != before


def test_a_workflow_is_checkpointed_when_its_last_process_has_left(store: Store, holds: Holds) -> None:
    """What other programs read is complete then."""
    log, projection = holds.open("w")
    projection = put(log, projection, note("one"))
    holds.leave(log, projection)
    assert store.is_checkpointed("w")


def test_a_sound_store_is_verified_and_needs_no_repair(store: Store, holds: Holds) -> None:
    """Each workflow is reported as sound, with its facts; repair leaves it as it is; an unknown one raises."""
    for workflow_id in ("one", "two"):
        log, projection = holds.open(workflow_id)
        holds.leave(log, put(log, projection, note(workflow_id)))
    found = {check.workflow_id: (check.verdict, check.facts) for check in store.verify()}
    assert found == {"one": (Verdict.SOUND, 1), "two": (Verdict.SOUND, 1)}
    assert [check.workflow_id for check in store.verify("two")] == ["two"]
    report = store.repair("one", RepairOptions())
    assert (report.action, report.facts) == ("nothing", 1)
    for look in (lambda: list(store.verify("unknown")), lambda: store.repair("unknown", RepairOptions())):
        with pytest.raises(WorkflowNotFoundError, match="unknown") as caught:
            look()
        assert store.display_name in str(caught.value)


WORKER = """
import itertools, sys
from iso_orchestrator import Workflow
workflow = Workflow("w", store=sys.argv[1])
with workflow.mutex("key"):
    for number in itertools.count():
        print(workflow.run_step(f"step {number}", lambda: number))
"""


@pytest.mark.parametrize("kind", [kind for kind in STORES.values() if kind.is_on_disk], ids=lambda kind: kind.scheme)
def test_processes_share_a_store_and_a_killed_one_loses_nothing(kind: StoreKind, tmp_path: Path) -> None:
    """What a process was told is on record when it is killed; nobody waits for it, for its mutex or for its steps."""
    url = kind.url(tmp_path / "root")
    workflow = Workflow("w", store=url)
    with run_python(WORKER, url) as child:
        for number in range(20):
            assert child.line() == str(number)
        with pytest.raises(MutexTimeoutError), workflow.mutex("key", timeout=0):
            pass
        assert workflow.record.steps["step 0"].result == 0
        child.kill()
    with workflow.mutex("key", timeout=DEADLINE):
        assert [workflow.run_step(f"step {number}", lambda: "again") for number in range(20)] == list(range(20))
        last = len(workflow.record.steps) - 1
        assert workflow.run_step(f"step {last}", lambda: "again") in (last, "again")
    workflow.close()


def test_stores_are_found_by_url(tmp_path: Path) -> None:
    """A URL means a store of its kind, the same one each time; a store means itself, and None the folder."""
    file = find_store(f"file://{tmp_path}/a%20b", "elsewhere")
    assert isinstance(file, FileStore)
    assert file.display_name == str(tmp_path / "a b")
    assert file.identity == find_store(f"file://localhost{tmp_path}/a%20b", "elsewhere").identity
    memory = find_store("memory://name/deep", "elsewhere")
    assert isinstance(memory, MemoryStore)
    assert memory.display_name == "memory://name/deep"
    assert find_store("memory://name/deep", ".") is memory
    assert find_store("memory://other", ".") is not memory
    assert find_store(memory, "elsewhere") is memory
    assert find_store(None, tmp_path).identity == FileStore(tmp_path).identity


@pytest.mark.parametrize("url", ["file://host/folder", "file://", "unknown:///x", "folder", ""])
def test_a_url_without_a_store_is_refused(url: str) -> None:
    """The error says which there are: those that the contract's tests try."""
    with pytest.raises(StoreError, match=re.escape(f"use {' or '.join(STORE_URLS)}")):
        find_store(url, ".")
