"""What a process shares in one workflow: syncs, catching up, interrupts inside, attempts without an outcome."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import DEADLINE, WatchedFS, failing, lines_of, wait_until
from support_processes import assert_waits, child, in_thread, killed

from iso_orchestrator import (
    LeaseLostError,
    Limited,
    OrchestratorError,
    StepStatus,
    StoreError,
    Workflow,
    read_workflow_record,
)
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.system.filesystem import FileSystem


@pytest.fixture
def fs() -> WatchedFS:
    return WatchedFS()


@pytest.fixture
def workflow(tmp_path: Path, fs: WatchedFS) -> Iterator[Workflow]:
    """A workflow that is open, on files that are watched."""
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    workflow.append_event("opened")
    yield workflow
    fs.before = None
    workflow.close()


@contextmanager
def syncs(fs: WatchedFS, expected: int) -> Iterator[None]:
    """Inside, files are synced so many times."""
    before = fs.count("sync")
    yield
    assert fs.count("sync") - before == expected


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def flaky(*outcomes: Any) -> Callable[[], Any]:
    """A body that raises or returns one after the other."""
    left = iter(outcomes)

    def body() -> Any:
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return body


# One sync a step


def test_a_step_costs_one_sync(workflow: Workflow, fs: WatchedFS) -> None:
    """The start of a step is written and not waited for, its completion is synced."""
    with syncs(fs, 1):
        workflow.run_step("step", lambda: 1)
    with syncs(fs, 5):
        for number in range(5):
            workflow.run_step(f"step {number}", lambda: 1)


def test_a_thousand_steps_cost_a_thousand_syncs(workflow: Workflow, fs: WatchedFS) -> None:
    """What the record tells of items, parents, functions and attempts rides with the syncs of the steps."""

    def item(number: int) -> int:
        return workflow.run_step(f"item {number}", lambda: number, retry=2)

    with syncs(fs, 500):
        for number in range(500):
            workflow.run_step(f"step {number}", lambda: 1)
    with workflow, syncs(fs, 500):
        workflow.run_for_each(range(500), item, max_parallel=1, progress=False)


def test_a_recorded_result_costs_no_sync(workflow: Workflow, fs: WatchedFS) -> None:
    """What is known to be on the disk is returned without another sync."""
    workflow.run_step("step", lambda: 1)
    with syncs(fs, 0):
        workflow.run_step("step", pytest.fail)


def test_a_retried_step_costs_one_sync(workflow: Workflow, fs: WatchedFS) -> None:
    """Failures that are retried are not waited for."""
    with syncs(fs, 1):
        workflow.run_step("step", flaky(ConnectionError(), ConnectionError(), 1), retry=3)


def test_a_failure_costs_one_sync(workflow: Workflow, fs: WatchedFS) -> None:
    """The failure that the caller gets is on the disk before he has it."""
    with syncs(fs, 1), pytest.raises(ConnectionError):
        workflow.run_step("step", flaky(ConnectionError()))


def test_a_step_that_must_not_happen_twice_is_on_the_disk_before_it_begins(workflow: Workflow, fs: WatchedFS) -> None:
    """With `if_interrupted="fail"` the start is synced, and then the completion."""
    before = fs.count("sync")
    with syncs(fs, 2):
        assert workflow.run_step("step", lambda: fs.count("sync") - before, if_interrupted="fail") == 1


@pytest.mark.parametrize(
    ("error", "syncs_before"),
    [(ConnectionError, [1, 2]), (lambda: Limited(datetime.now(UTC) + timedelta(seconds=0.1)), [1, 3])],
    ids=["a retry", "a limit"],
)
def test_each_start_of_what_must_not_happen_twice_is_on_the_disk(
    workflow: Workflow, fs: WatchedFS, error: Callable[[], Exception], syncs_before: list[int]
) -> None:
    """An attempt behind a failure, or behind a limit, is synced before it begins, as the first one is."""
    before = fs.count("sync")
    seen: list[int] = []

    def pay() -> None:
        seen.append(fs.count("sync") - before)
        if len(seen) == 1:
            raise error()

    workflow.run_step("step", pay, retry=2, if_interrupted="fail")
    assert seen == syncs_before


def test_a_state_update_with_a_step_costs_nothing_more(workflow: Workflow, fs: WatchedFS) -> None:
    """The new state is in the same line as the completion, under the same sync."""
    with syncs(fs, 1):
        workflow.run_step("step", lambda: workflow.update_state(lambda _: {"n": 1}, with_step=True))


@pytest.mark.parametrize(
    "use",
    [
        lambda workflow: workflow.update_state(1),
        lambda workflow: workflow.append_event("event"),
        lambda workflow: workflow.heartbeat("beat"),
        lambda workflow: workflow.touch_lease("lease", holder="me", ttl=1),
        lambda workflow: workflow.set_status("idle"),
    ],
    ids=["update_state", "append_event", "heartbeat", "touch_lease", "set_status"],
)
def test_what_a_call_has_recorded_is_on_the_disk(
    workflow: Workflow, fs: WatchedFS, use: Callable[[Workflow], object]
) -> None:
    """Each call that records something returns after one sync of it."""
    with syncs(fs, 1):
        use(workflow)


def test_looking_costs_no_sync_where_nothing_is_new(workflow: Workflow, fs: WatchedFS) -> None:
    """A look at what is on the disk already waits for nothing."""
    workflow.run_step("step", lambda: 1)
    with syncs(fs, 0):
        assert workflow.record.steps["step"].result == 1
        assert workflow.state == {}


def test_threads_that_wait_at_one_time_share_a_sync(workflow: Workflow, fs: WatchedFS) -> None:
    """While one sync is under way all completions that come meanwhile wait for the next, which serves them all."""
    first_sync, gate = threading.Event(), threading.Event()

    def before(name: str, _: object) -> None:
        if name == "sync" and not first_sync.is_set():
            first_sync.set()
            assert gate.wait(DEADLINE)

    fs.before = before
    with syncs(fs, 2):
        first = in_thread(workflow.run_step, "first", lambda: 1)
        assert first_sync.wait(DEADLINE)
        others = [in_thread(workflow.run_step, f"other {number}", lambda: 1) for number in range(8)]
        journal = Path(workflow.record_path).with_suffix(".journal")
        wait_until(lambda: sum(b"step.completed" in line for line in lines_of(journal)) == 9)
        assert not any(future.done() for future in (first, *others))
        gate.set()
        for future in (first, *others):
            assert future.result(DEADLINE) == 1


# Nobody acts on what is not synced


def test_a_thread_does_not_get_what_another_has_not_synced(workflow: Workflow, fs: WatchedFS) -> None:
    """A result that is written and not synced yet is returned to nobody, by whatever way."""
    syncing, gate = threading.Event(), threading.Event()

    def before(name: str, _: object) -> None:
        if name == "sync":
            syncing.set()
            assert gate.wait(DEADLINE)

    fs.before = before
    runner = in_thread(workflow.run_step, "step", lambda: "result")
    assert syncing.wait(DEADLINE)
    others = [
        in_thread(workflow.run_step, "step", pytest.fail),
        in_thread(lambda: workflow.record.steps["step"].result),
        in_thread(workflow.update_state, 1),
    ]
    for future in (runner, *others):
        assert_waits(future)
    gate.set()
    assert [future.result(DEADLINE) for future in (runner, *others)] == ["result", "result", "result", 1]


# A process that writes its completion, and is held up in the sync.
UNSYNCED = """
def before(name, args):
    if name == "sync" and armed:
        say("syncing")
        hear()
armed = False
workflow = Workflow("w", store=FileStore(root, fs=WatchedFS(before)))
workflow.append_event("opened")
armed = True
workflow.run_step("step", lambda: "result")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [False, True], ids=["it lives", "it was killed"])
@pytest.mark.parametrize(
    "look",
    [
        lambda workflow: workflow.run_step("step", pytest.fail),
        lambda workflow: workflow.record.steps["step"].result,
    ],
    ids=["run_step", "record"],
)
def test_what_another_process_has_not_synced_is_synced_before_it_is_returned(
    workflow: Workflow, fs: WatchedFS, tmp_path: Path, kills: bool, look: Callable[[Workflow], object]
) -> None:
    """A process that reads a result which its writer has not synced syncs it itself, and then returns it."""
    with child(UNSYNCED, tmp_path) as process:
        assert process.line() == "syncing"
        if kills:
            process.kill()
        before = fs.count("sync")
        assert in_thread(look, workflow).result(DEADLINE) == "result"
        assert fs.count("sync") > before


@pytest.mark.slow
def test_who_opens_after_a_kill_makes_the_record_durable_first(tmp_path: Path, fs: WatchedFS) -> None:
    """What a killed process left behind is written anew and synced before anything of it is returned."""
    killed(UNSYNCED, tmp_path, "syncing")
    workflow = Workflow("w", store=FileStore(tmp_path, fs=fs))
    assert workflow.run_step("step", pytest.fail) == "result"
    renamed = [args for name, args in fs.calls if name == "replace"]
    assert len(renamed) == 2
    assert fs.count("sync", "sync_folder") >= 4
    workflow.close()


@pytest.mark.slow
def test_the_start_that_a_killed_process_wrote_is_there(workflow: Workflow, tmp_path: Path) -> None:
    """The start of a step, though not synced, survives its process: the next one knows that it was begun."""
    code = """
        def body():
            crash_here()
        workflow.run_step("step", body)
    """
    with child(code, tmp_path) as process:
        process.process.wait(DEADLINE)
    step = workflow.record.steps["step"]
    assert (step.status, step.attempts) == (StepStatus.RUNNING, 1)


# Dead stores


def test_after_a_failed_sync_nothing_is_acknowledged(workflow: Workflow, fs: WatchedFS, tmp_path: Path) -> None:
    """When a sync has failed the caller is told, and the store refuses all that follows, whatever the disk does."""
    fs.before = failing(OSError(errno.EIO, "Input/output error"), "sync")
    with pytest.raises(StoreError, match=r"(?s)'step'.*succeeded"):
        workflow.run_step("step", lambda: 1, retry=3)
    fs.before = None
    for use in (
        lambda: workflow.run_step("other", pytest.fail),
        lambda: workflow.append_event("event"),
        lambda: workflow.update_state(1),
    ):
        with pytest.raises(StoreError, match="dead"):
            use()


@pytest.mark.slow
def test_after_a_failed_sync_others_take_over(workflow: Workflow, fs: WatchedFS, tmp_path: Path) -> None:
    """A process whose store is dead cannot complete its step, which others begin when the body has ended."""
    in_body, go_on = threading.Event(), threading.Event()

    def body() -> str:
        in_body.set()
        assert go_on.wait(DEADLINE)
        return "mine"

    runner = in_thread(workflow.run_step, "step", body)
    assert in_body.wait(DEADLINE)
    code = """
        say("calling")
        say(workflow.run_step("step", lambda: "theirs"))
        workflow.close()
    """
    with child(code, tmp_path) as process:
        assert process.line() == "calling"
        assert_waits(process)
        fs.before = failing(OSError(errno.EIO, "Input/output error"), "sync")
        with pytest.raises(StoreError):
            workflow.append_event("event")
        assert_waits(process)
        go_on.set()
        assert process.line() == "theirs"
        assert isinstance(runner.exception(DEADLINE), StoreError)
    assert read_workflow_record("w", dir=tmp_path).steps["step"].result == "theirs"


# Attempts without an outcome


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_an_outcome_that_could_not_be_written_keeps_no_other_process_waiting(
    workflow: Workflow, fs: WatchedFS, tmp_path: Path, for_good: bool
) -> None:
    """When a process could not write how its step ended, others do not wait for it, though it lives on."""

    def body() -> str:
        fs.before = failing(no_space(), "write_at") if for_good else once(no_space(), "write_at")
        return "lost"

    with pytest.raises(StoreError, match="succeeded"):
        workflow.run_step("step", body)
    with child('say(workflow.run_step("step", lambda: "theirs")); workflow.close()', tmp_path) as process:
        assert process.line() == "theirs"
        process.end()


def once(error: BaseException, name: str) -> Callable[..., None]:
    """A hook for `WatchedFS`: one call of that name raises."""
    errors = [error]

    def before(called: str, _: object) -> None:
        if called == name and errors:
            raise errors.pop()

    return before


@pytest.mark.slow
def test_a_failure_that_could_not_be_written_keeps_nobody_waiting(
    workflow: Workflow, fs: WatchedFS, tmp_path: Path
) -> None:
    """Nor when it failed, and the failure could not be written."""

    def body() -> None:
        fs.before = once(no_space(), "write_at")
        raise LookupError("the user's own")

    with pytest.raises(LookupError, match="the user's own"):
        workflow.run_step("step", body)
    with child('say(workflow.run_step("step", lambda: "theirs")); workflow.close()', tmp_path) as process:
        assert process.line() == "theirs"
        process.end()
    assert workflow.run_step("step", pytest.fail) == "theirs"


@pytest.mark.slow
def test_an_attempt_that_was_fenced_out_keeps_nobody_waiting(workflow: Workflow, tmp_path: Path) -> None:
    """A step whose lease was lost has no outcome, and another process runs it while this one lives on."""

    def body() -> None:
        workflow.release_lease("slot")
        workflow.touch_lease("slot", holder="another", ttl=60)

    with pytest.raises(LeaseLostError), workflow.lease("slot", holder="one", ttl=60):
        workflow.run_step("step", body, retry=3)
    with child('say(workflow.run_step("step", lambda: "theirs")); workflow.close()', tmp_path) as process:
        assert process.line() == "theirs"
        process.end()


def test_an_attempt_without_an_outcome_runs_again_here(workflow: Workflow, fs: WatchedFS) -> None:
    """In the process itself the next call runs the step, and threads that waited do so at once."""
    in_body, go_on = threading.Event(), threading.Event()

    def body() -> str:
        in_body.set()
        assert go_on.wait(DEADLINE)
        fs.before = once(no_space(), "write_at")
        return "lost"

    runner = in_thread(workflow.run_step, "step", body)
    assert in_body.wait(DEADLINE)
    waiter = in_thread(workflow.run_step, "step", lambda: "again")
    assert_waits(waiter)
    go_on.set()
    assert isinstance(runner.exception(DEADLINE), StoreError)
    assert waiter.exception(DEADLINE) is None or isinstance(waiter.exception(), StoreError)
    assert workflow.run_step("step", lambda: "again") == "again"


# Interrupts inside


class InterruptedFS(FileSystem):
    """The real file system, in whose Nth call from the arming on an interrupt arrives, before its work or after."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.after = False

    def arm(self, nth: int, *, after: bool) -> None:
        self.left, self.after = nth, after

    def disarm(self) -> bool:
        """Whether it has struck."""
        struck, self.left = self.left is None, None
        return struck

    def strike(self, *, after: bool) -> None:
        if self.left is None or self.after != after:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise KeyboardInterrupt


def _interrupted(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def call(self: InterruptedFS, *args: Any) -> Any:
        self.strike(after=False)
        result = real(self, *args)
        if name not in ("open_read", "open_write", "open_existing", "open_new"):  # Python cannot lose a descriptor so
            self.strike(after=True)
        return result

    return call


for _name in [name for name in vars(FileSystem) if not name.startswith("_")]:
    setattr(InterruptedFS, _name, _interrupted(_name))

USES: dict[str, Callable[[Workflow], object]] = {
    "run_step": lambda workflow: workflow.run_step("step", lambda: "result", idempotency_key="other"),
    "a failing step": lambda workflow: workflow.run_step("fails", flaky(ConnectionError(), "result"), retry=2),
    "update_state": lambda workflow: workflow.update_state(lambda state: [*state, 1]),
    "record": lambda workflow: workflow.record,
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("use", USES)
def test_an_interrupt_inside_leaves_a_true_cache(tmp_path: Path, use: str, after: bool) -> None:
    """Ctrl-C in any call of the file system leaves what the disk says, in this process and for all others."""
    interrupted = 0
    for nth in range(100):
        root = tmp_path / str(nth)
        fs = InterruptedFS()
        workflow = Workflow("w", store=FileStore(root, fs=fs), initial_state=[])
        workflow.run_step("step", lambda: "first")
        fs.arm(nth, after=after)
        try:
            USES[use](workflow)
        except KeyboardInterrupt:
            interrupted += 1
        if not fs.disarm():
            break
        assert_nobody_waits(root)
        assert workflow.record == read_workflow_record("w", dir=root)
        assert workflow.run_step("next", lambda: "next") == "next"
        assert workflow.run_step("fails", lambda: "result") == "result"
        state = workflow.state
        assert state in ([], [1])
        assert workflow.update_state(lambda state: [*state, 2]) == [*state, 2]
        assert workflow.record == read_workflow_record("w", dir=root)
        workflow.close()
    assert interrupted >= 2, "the file system was hardly used"


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_an_interrupt_while_facts_are_taken_in_leaves_a_true_cache(
    workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Facts that were on the way into the record when Ctrl-C came, one's own or another's, are not lost or doubled."""
    with child('[workflow.append_event(f"theirs {n}") for n in range(3)]; say("written"); hear()', tmp_path) as process:
        assert process.line() == "written"
        process.kill()
    left = [None] * nth
    real = Projection.apply

    def interrupted(projection: Projection, fact: Any) -> None:
        left.pop()
        if not left:
            raise KeyboardInterrupt
        real(projection, fact)

    with monkeypatch.context() as patch:
        patch.setattr(Projection, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workflow.append_event("mine")
    workflow.append_event("next")
    types = [event.type for event in workflow.record.events]
    assert [kind for kind in types if kind != "mine"] == ["opened", "theirs 0", "theirs 1", "theirs 2", "next"]
    assert types.count("mine") <= (nth == 4)
    assert workflow.record == read_workflow_record("w", dir=tmp_path)


def assert_nobody_waits(root: Path) -> None:
    """No step is in the hands of a thread that is gone, and the record is not locked."""
    projection = FileStore(root).read("w")
    assert projection is not None
    assert [name for name in projection.steps if projection.owner(name)] == []
    for path in root.glob("locks/w-*/record.flock"):
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_interrupt_in_an_updater_changes_nothing(workflow: Workflow) -> None:
    """Ctrl-C in a function that is given to `update_state` leaves the state, and the workflow usable."""

    def interrupted(state: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workflow.update_state(interrupted)
    assert workflow.state == {}
    assert in_thread(workflow.update_state, 1).result(DEADLINE) == 1


def test_an_interrupt_between_write_and_return_does_not_write_twice(tmp_path: Path) -> None:
    """A fact that was written when the interrupt came is in the record once, and behind it the next one."""
    for name in ("write_at", "sync"):
        fs = InterruptedFS()
        root = tmp_path / name
        workflow = Workflow("w", store=FileStore(root, fs=fs))
        workflow.append_event("first")
        real = getattr(FileSystem, name)
        struck = []

        def strike(*args: Any, real: Any = real, fs: Any = fs, struck: list[int] = struck) -> Any:
            result = real(fs, *args)
            if not struck:
                struck.append(1)
                raise KeyboardInterrupt
            return result

        setattr(fs, name, strike)
        with pytest.raises(KeyboardInterrupt):
            workflow.append_event("second")
        workflow.append_event("third")
        types = [event.type for event in workflow.record.events]
        assert types == ["first", "second", "third"]
        assert [event.type for event in read_workflow_record("w", dir=root).events] == types
        workflow.close()


# Sharing


def test_two_objects_of_one_workflow_share_what_they_know(workflow: Workflow, fs: WatchedFS, tmp_path: Path) -> None:
    """A second object of the same id and root in one process opens nothing anew."""
    opened = fs.count("open_existing", "open_write", "open_new")
    other = Workflow("w", store=FileStore(tmp_path / "." / ".." / tmp_path.name, fs=fs))
    other.run_step("step", lambda: 1)
    assert workflow.run_step("step", pytest.fail) == 1
    assert fs.count("open_existing", "open_write", "open_new") == opened
    other.close()


@pytest.mark.slow
def test_a_session_catches_up_with_a_fold_of_another(workflow: Workflow, tmp_path: Path) -> None:
    """What another process wrote before and after it folded the journal is all seen, and nothing is run again."""
    code = """
        for number in range(5):
            workflow.run_step(f"theirs {number}", lambda: number)
        say("half")
        hear()
        for number in range(5, 10):
            workflow.run_step(f"theirs {number}", lambda: number)
        workflow.close()
        say("closed")
    """
    workflow.run_step("mine", lambda: "mine")
    with child(code, tmp_path) as process:
        assert process.line() == "half"
        assert workflow.run_step("theirs 4", pytest.fail) == 4
        workflow.close()
        process.say()
        assert process.line() == "closed"
    assert [workflow.run_step(f"theirs {number}", pytest.fail) for number in range(10)] == list(range(10))
    assert workflow.run_step("mine", pytest.fail) == "mine"


def test_threads_use_a_workflow_while_others_end_their_runs(tmp_path: Path) -> None:
    """Through one object some threads run, some only use, some look: nobody's end is another's trouble."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    workflow = Workflow("w", dir=tmp_path, initial_state=0)

    def update() -> None:
        for _ in range(40):
            workflow.update_state(lambda state: state + 1)

    def run() -> None:
        for _ in range(25):
            with workflow:
                pass

    def work() -> None:
        for number in range(25):
            assert workflow.run_step(f"step {number}", lambda number=number: number) == number
            assert f"step {number}" in workflow.record.steps

    def beat() -> None:
        for number in range(25):
            workflow.heartbeat("beat", number)
            with workflow.mutex("key"):
                workflow.append_event("beaten")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        futures = [in_thread(fn) for fn in (update, run, work, beat, run)]
        errors = [future.exception(DEADLINE) for future in futures]
    finally:
        sys.setswitchinterval(interval)
    assert errors == [None] * 5
    assert workflow.state == 40
    assert len(workflow.record.steps) == 25
    workflow.close()


def test_an_updater_may_use_another_workflow_while_its_own_is_closed(tmp_path: Path) -> None:
    """Closing a workflow while an updater of it is at work waits for that, and keeps no other workflow from opening."""
    workflow, other = Workflow("w", dir=tmp_path), Workflow("other", dir=tmp_path)
    in_updater, go_on = threading.Event(), threading.Event()

    def update(_: Any) -> Any:
        in_updater.set()
        assert go_on.wait(DEADLINE)
        return other.run_step("step", lambda: 1)

    updating = in_thread(workflow.update_state, update)
    assert in_updater.wait(DEADLINE)
    closing = in_thread(workflow.close)
    assert_waits(updating)
    go_on.set()
    assert updating.result(DEADLINE / 4) == 1
    closing.result(DEADLINE / 4)
    other.close()


@pytest.mark.slow
def test_a_workflow_that_cannot_be_opened_now_keeps_no_other_waiting(tmp_path: Path) -> None:
    """While one workflow waits for a process that is stopped in its lock, another opens and closes in this process."""
    code = """
        def before(name, args):
            if name == "write_at" and armed:
                say("inside")
                hear()
        armed = False
        workflow = Workflow("w", store=FileStore(root, fs=WatchedFS(before)))
        workflow.append_event("opened")
        armed = True
        workflow.append_event("stopped")
        armed = False
        workflow.close()
    """
    workflow, other = Workflow("w", dir=tmp_path), Workflow("other", dir=tmp_path)
    with child(code, tmp_path) as process:
        assert process.line() == "inside"
        opening = in_thread(workflow.append_event, "mine")
        assert_waits(opening)
        assert in_thread(other.run_step, "step", lambda: 1).result(DEADLINE / 4) == 1
        in_thread(other.close).result(DEADLINE / 4)
        process.say()
        assert opening.result(DEADLINE).type == "mine"
        process.end()
    assert [event.type for event in workflow.record.events] == ["opened", "stopped", "mine"]
    workflow.close()


@pytest.mark.slow
def test_a_workflow_that_could_not_be_opened_is_not_held(tmp_path: Path) -> None:
    """Whatever call of the file system fails when a workflow is opened, nobody seems to use it afterwards."""
    killed('with workflow: workflow.run_step("step", lambda: 1); say("in"); hear()', tmp_path / "killed", "in")
    for nth in range(100):
        root = tmp_path / str(nth)
        shutil.copytree(tmp_path / "killed", root)
        calls = iter(range(nth))

        def before(name: str, _: object, calls: Iterator[int] = calls) -> None:
            if name != "close" and next(calls, None) is None:
                raise OSError(errno.EIO, f"{name} fails")

        fs = WatchedFS(before)
        workflow = Workflow("w", store=FileStore(root, fs=fs))
        try:
            workflow.append_event("opened")
        except StoreError:
            fs.before = None
            workflow.close()
        else:
            break
        assert_nobody_waits(root)
        for path in root.glob("locks/*/runs/*.flock"):
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert nth > 20
    fs.before = None
    workflow.close()


def test_using_the_workflow_in_an_updater_raises_in_this_thread_alone(workflow: Workflow) -> None:
    """While an updater runs other threads wait for it, and only its own use of the workflow is refused."""
    in_updater, go_on = threading.Event(), threading.Event()

    def update(state: Any) -> Any:
        in_updater.set()
        assert go_on.wait(DEADLINE)
        with pytest.raises(OrchestratorError, match="update_state"):
            workflow.append_event("inside")
        return 1

    updating = in_thread(workflow.update_state, update)
    assert in_updater.wait(DEADLINE)
    other = in_thread(workflow.append_event, "outside")
    assert_waits(other)
    go_on.set()
    assert updating.result(DEADLINE) == 1
    assert other.result(DEADLINE).type == "outside"


def test_a_call_near_the_end_of_the_stack_leaves_nothing_taken(workflow: Workflow) -> None:
    """However few frames are left, it raises RecursionError or does its work, and another thread can do it then."""

    def work(name: str, timeout: float | None = None) -> None:
        with workflow.mutex("slot", timeout=timeout):
            workflow.run_step(name, str)
            workflow.update_state(lambda _: name)

    def descend(frames: int, name: str) -> None:
        if frames:
            descend(frames - 1, name)
        else:
            work(name)

    def near_the_end(name: str, left: int) -> bool:
        deep = 0
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            deep, frame = deep + 1, frame.f_back
        try:
            descend(sys.getrecursionlimit() - deep - left, name)
        except RecursionError:
            return True
        return False

    work("warm")
    failed = []
    for left in range(60):
        failed.append(in_thread(near_the_end, f"step {left}", left).result(DEADLINE))
        in_thread(work, f"step {left}", timeout=0).result(DEADLINE)
    assert failed[0]
    assert not failed[-1]
