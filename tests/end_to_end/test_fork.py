"""What a forked child has of its parent's workflow: nothing but the name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, wait_until
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import (
    LeaseStatus,
    MutexTimeoutError,
    OrchestratorError,
    StepStatus,
    StoreError,
    Workflow,
    WorkflowStatus,
    delete_workflow,
    lease_status,
    read_workflow_record,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork"),
    # Python 3.12 and later warn of what is tested here.
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    """A workflow that its process has used."""
    workflow = Workflow("w", dir=tmp_path)
    workflow.run_step("before", lambda: os.getpid())
    yield workflow
    workflow.close()


def fork(work: Callable[[], object]) -> int:
    """Do *work* in a forked child, which ends behind it; the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def collect(pid: int) -> None:
    """Wait until a child has ended, and see that its work went well."""
    end = time.monotonic() + DEADLINE / 2
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.002)


def in_child(work: Callable[[], object]) -> None:
    """Do *work* in a forked child, and wait for its end."""
    collect(fork(work))


# Steps and records


def test_a_forked_child_uses_the_workflow_as_a_process_of_its_own(workflow: Workflow) -> None:
    """What the child records the parent sees, what the parent recorded the child does not run again."""

    def work() -> None:
        assert workflow.run_step("before", pytest.fail) == os.getppid()
        assert workflow.run_step("child", os.getpid) == os.getpid()
        workflow.update_state({"by": "child"})
        workflow.close()

    in_child(work)
    assert workflow.run_step("child", pytest.fail) != os.getpid()
    assert workflow.state == {"by": "child"}
    assert workflow.run_step("after", lambda: 1) == 1


def test_a_forked_child_that_does_nothing_changes_nothing(workflow: Workflow, tmp_path: Path) -> None:
    """A child that only ends takes nothing from its parent: neither the record nor the knowledge that it lives."""
    in_child(lambda: None)
    code = """
        try:
            delete_workflow("w", dir=root)
        except WorkflowBusyError as error:
            say(error.pid)
    """
    with child(code, tmp_path) as process:
        assert process.line() == str(os.getpid())
    assert workflow.run_step("after", lambda: 1) == 1


def test_a_forked_child_that_exits_as_python_does_changes_nothing(tmp_path: Path) -> None:
    """What the interpreter does at exit in the child folds and closes nothing of the parent's."""
    code = """
        with workflow:
            workflow.run_step("before", lambda: 1)
            workflow.step(name="submitted")(lambda: 2).submit().result()
            pid = os.fork()
            if not pid:
                sys.exit()
            os.waitpid(pid, 0)
            say(workflow.record.status)
            hear()
    """
    with child(code, tmp_path) as process:
        assert process.line() == "running"
        snapshot = Path(Workflow("w", dir=tmp_path).record_path)
        assert '"before"' not in snapshot.read_text()
        process.say()
        process.end()
    record = read_workflow_record("w", dir=tmp_path)
    assert (record.status, record.last_error) == (WorkflowStatus.COMPLETED, None)


def test_a_forked_child_does_not_end_its_parents_run(workflow: Workflow) -> None:
    """A child that leaves the `with` of its parent, well or by an error, leaves the run alone."""
    with workflow:
        for error in (None, ConnectionError("the child's")):
            in_child(lambda error=error: workflow.__exit__(type(error) if error else None, error, None))
            assert (workflow.record.status, workflow.record.last_error) == (WorkflowStatus.RUNNING, None)
    assert workflow.record.status is WorkflowStatus.COMPLETED
    ends = [event.type for event in workflow.record.events if event.type.startswith("workflow.")]
    assert ends == ["workflow.running", "workflow.completed"]


def test_a_forked_child_waits_for_its_parents_step(workflow: Workflow) -> None:
    """A step that the parent runs at the fork is the parent's: the child gets its result."""
    in_body, go_on = threading.Event(), threading.Event()

    def body() -> str:
        in_body.set()
        assert go_on.wait(DEADLINE)
        return "the parent's"

    def work() -> None:
        assert workflow.run_step("step", pytest.fail) == "the parent's"

    runner = in_thread(workflow.run_step, "step", body)
    assert in_body.wait(DEADLINE)
    pid = fork(work)
    assert_waits(runner)
    go_on.set()
    assert runner.result(DEADLINE) == "the parent's"
    collect(pid)
    assert workflow.record.steps["step"].attempts == 1


def test_a_step_that_calls_itself_in_a_forked_child_raises(workflow: Workflow) -> None:
    """A child forked in a step's body that calls this step would wait for a parent that waits for it."""

    def again() -> None:
        with pytest.raises(OrchestratorError, match="called itself"):
            workflow.run_step("step", pytest.fail)

    workflow.run_step("step", lambda: in_child(again))
    assert workflow.record.steps["step"].status is StepStatus.COMPLETED


def test_steps_inside_of_a_step_can_be_a_forked_childs(workflow: Workflow) -> None:
    """A child forked in a step's body runs other steps, and the parent completes its own."""

    def body() -> str:
        in_child(lambda: workflow.run_step("inner", lambda: "inner"))
        return workflow.run_step("inner", pytest.fail)

    assert workflow.run_step("outer", body) == "inner"


def test_the_threads_of_a_forked_child_are_its_own(workflow: Workflow) -> None:
    """`.submit` works in the child though the parent's worker threads are not there."""
    double = workflow.step(name="double:{n}")(lambda n: 2 * n)
    assert double.submit(1).result(DEADLINE) == 2
    in_child(lambda: double.submit(2).result(DEADLINE / 4))
    assert double.submit(2).result(DEADLINE) == 4
    assert len(workflow.record.steps) == 3


def double(number: int) -> int:
    """What a worker of a pool does: a step of the workflow that was there at the fork."""
    assert inherited is not None
    return inherited.run_step(f"double:{number}", lambda: 2 * number)


inherited: Workflow | None = None


def test_a_pool_of_forked_processes_shares_the_steps(workflow: Workflow) -> None:
    """Workers of `multiprocessing` that were forked run each step once between them."""
    global inherited
    inherited = workflow
    try:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(double, [1, 2, 3, 1, 2, 3], chunksize=1) == [2, 4, 6, 2, 4, 6]
            pool.close()
            pool.join()
    finally:
        inherited = None
    assert [workflow.run_step(f"double:{number}", pytest.fail) for number in (1, 2, 3)] == [2, 4, 6]
    assert {step.attempts for step in workflow.record.steps.values()} == {1}


def test_a_fork_in_the_midst_of_a_change_hangs_nobody(workflow: Workflow) -> None:
    """A child that was forked while a thread of its parent changed the record waits for that, and then goes on."""
    in_updater, go_on = threading.Event(), threading.Event()

    def update(_: Any) -> Any:
        in_updater.set()
        assert go_on.wait(DEADLINE)
        return 1

    updating = in_thread(workflow.update_state, update)
    assert in_updater.wait(DEADLINE)
    pid = fork(lambda: workflow.update_state(lambda state: state + 1))
    assert_waits(updating)
    go_on.set()
    assert updating.result(DEADLINE) == 1
    collect(pid)
    assert workflow.state == 2


# Locks


def test_a_step_that_forks_in_the_midst_of_a_change_ends_in_the_child_too(workflow: Workflow) -> None:
    """Where its body returns in the child as well, the child is refused at once, whatever another thread was at."""
    inside, go_on = threading.Event(), threading.Event()

    def update(state: Any) -> Any:
        inside.set()
        assert go_on.wait(DEADLINE)
        return state

    def body() -> int:
        changing = in_thread(workflow.update_state, update)
        assert inside.wait(DEADLINE)
        pid = os.fork()
        if pid:
            collect(pid)
            go_on.set()
            changing.result(DEADLINE)
        return pid

    parent = os.getpid()
    try:
        assert workflow.run_step("forks", body) > 0
    except StoreError:
        os._exit(0 if os.getpid() != parent else 1)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert workflow.record.steps["forks"].status is StepStatus.COMPLETED


def test_a_forked_child_does_not_have_its_parents_mutex(workflow: Workflow) -> None:
    """A mutex that the parent holds is another process's to the child, however it was forked inside of it."""

    def work() -> None:
        with pytest.raises(MutexTimeoutError) as raised, workflow.mutex("key", timeout=0.05):
            pytest.fail("it was entered")
        assert raised.value.pid == os.getppid()

    with workflow.mutex("key"):
        in_child(work)
    workflow.run_step("step", lambda: with_mutex(workflow, lambda: in_child(work)))


def with_mutex(workflow: Workflow, work: Callable[[], None]) -> None:
    with workflow.mutex("key"):
        work()


def test_a_forked_child_cannot_free_its_parents_mutex(workflow: Workflow, tmp_path: Path) -> None:
    """Neither when it leaves the `with` of its parent nor when it ends is the mutex free, or said to be."""

    def work() -> None:
        held.__exit__(None, None, None)

    held = workflow.mutex("key")
    held.__enter__()
    in_child(work)
    assert not any(event.type == "mutex.released" for event in workflow.record.events)
    code = """
        try:
            with workflow.mutex("key", timeout=0.05):
                say("entered")
        except MutexTimeoutError as error:
            say(error.pid)
        with workflow.mutex("key"):
            say("entered")
    """
    with child(code, tmp_path) as process:
        assert process.line() == str(os.getpid())
        held.__exit__(None, None, None)
        assert process.line() == "entered"
        process.end()


def test_a_forked_child_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    """When the parent is killed its step, its mutex and its run are free, though a child of it lives on."""
    code = """
        def body():
            with workflow.mutex("key"):
                pid = os.fork()
                if not pid:
                    say(os.getpid())  # it has let go of its parent's files by now
                    while True:
                        signal.pause()
                hear()
        with workflow:
            workflow.run_step("step", body)
    """
    with child(code, tmp_path) as process:
        orphan = int(process.line())
        try:
            process.kill()
            with Workflow("w", dir=tmp_path, on_busy="fail") as workflow:
                assert workflow.run_step("step", lambda: "taken over") == "taken over"
                with workflow.mutex("key", timeout=DEADLINE):
                    os.kill(orphan, 0)
        finally:
            os.kill(orphan, signal.SIGKILL)
    delete_workflow("w", dir=tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the open files are read from /proc")
def test_a_forked_child_has_none_of_its_parents_files_open(workflow: Workflow, tmp_path: Path) -> None:
    """No descriptor of a file of the root is left in the child, where it would keep a lock beyond its parent's life."""

    def work() -> None:
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        assert not [link for link in links if link.startswith(str(tmp_path))]

    with workflow, workflow.mutex("key"), workflow.lease("slot"):
        in_child(work)


def test_a_forked_child_leaves_its_parents_lease_and_heartbeat(workflow: Workflow) -> None:
    """A lease that the parent holds and the heart that beats in it go on when a child ends."""
    with workflow.lease("slot", ttl=0.6) as held, workflow.heartbeating("beat", every=0.01):
        in_child(lambda: None)
        beaten = workflow.record.heartbeats["beat"].at
        renewed = workflow.record.leases["slot"].heartbeat_at
        wait_until(lambda: workflow.record.heartbeats["beat"].at > beaten)
        wait_until(lambda: workflow.record.leases["slot"].heartbeat_at > renewed)
        assert lease_status(workflow.record.leases["slot"]) is LeaseStatus.ACTIVE
        assert not held.lost


def test_a_fork_in_a_thread_is_like_any_other(workflow: Workflow) -> None:
    """A child forked by a worker thread uses the workflow, and the parent's thread completes its step."""

    def body() -> int:
        in_child(lambda: workflow.run_step("inner", lambda: 1))
        return workflow.run_step("inner", pytest.fail)

    fork_in_step = workflow.step(name="outer")(body)
    assert fork_in_step.submit().result(DEADLINE) == 1
