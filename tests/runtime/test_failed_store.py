"""A process that can no longer write, and still runs steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run_python
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import Workflow

# Another process's step begins; then a sync, or every write, fails there.
FAILS = """
fs = WatchedFS()
workflow = Workflow("w", store=FileStore(root, fs))
gate = threading.Event()
def slow():
    say("running"); gate.wait(); say("ended")
thread = threading.Thread(target=workflow.run_step, args=("slow", slow), daemon=True)
threading.excepthook = lambda _: None
thread.start()
hear()
fs.before = failing(OSError(5, "Input/output error"), {calls})
try:
    {work}
except StoreError:
    say("failed")
hear()
gate.set()
hear()
"""

WAYS = {
    "a sync of another step": ('"sync"', 'workflow.run_step("other", lambda: 1)'),
    "a sync of an event": ('"sync"', 'workflow.update_state(lambda state: {"n": 1})'),
    "a write of another step": ('"write_at"', 'workflow.run_step("other", lambda: 1)'),
}


@pytest.mark.parametrize(("calls", "work"), WAYS.values(), ids=WAYS.keys())
def test_step_runs_once_although_its_process_can_no_longer_write(tmp_path: Path, calls: str, work: str) -> None:
    """A peer waits for a body that still runs, and begins when it has ended, while that process lives on."""
    with child(FAILS.format(calls=calls, work=work), tmp_path) as process:
        assert process.line() == "running"
        process.say()
        assert process.line() == "failed"
        workflow = Workflow("w", dir=tmp_path)
        peer = in_thread(workflow.run_step, "slow", lambda: "mine")
        assert_waits(peer)
        process.say()
        assert process.line() == "ended"
        assert peer.result(20) == "mine"
        process.say()
        workflow.close()


def test_step_in_a_daemon_thread_is_not_begun_again_at_the_exit_of_its_process(tmp_path: Path) -> None:
    """As long as the interpreter has not ended, such a thread may run, and its step is not free."""
    code = """
import atexit, sys, threading
atexit.register(lambda: (print("exiting"), input()))  # comes after all that is registered later
from iso_orchestrator import Workflow
workflow = Workflow("w", dir=sys.argv[1])
running = threading.Event()
threading.Thread(
    target=workflow.run_step, args=("slow", lambda: (running.set(), threading.Event().wait())), daemon=True
).start()
running.wait()
"""
    with run_python(code, tmp_path) as process:
        assert process.line() == "exiting"
        workflow = Workflow("w", dir=tmp_path)
        peer = in_thread(workflow.run_step, "slow", lambda: "mine")
        assert_waits(peer)
        process.say()
        process.end()
        assert peer.result(20) == "mine"
        workflow.close()
