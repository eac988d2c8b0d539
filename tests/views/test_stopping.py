"""`stop`: Ctrl-C for the processes of a workflow, and the end of one step's command, from another terminal."""

from __future__ import annotations

import re
import signal
import sys

import psutil
import pytest
from support import DEADLINE, wait_until
from support_commands import FOREVER
from support_processes import child

from iso_orchestrator import read_workflow_record
from iso_orchestrator.system.processes import is_alive
from iso_orchestrator.views.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes"),
]

COMMAND = f"""
@workflow.command(name="review", retry=3)
def review():
    return ["sh", "-c", "echo begun; (setsid sleep {FOREVER} & echo $! > {{}}); wait; sleep {FOREVER}"]
"""


@pytest.fixture
def stop(tmp_path, capsys):
    """Run `stop`; returns its exit code, output and errors."""

    def stop(*args: str):
        code = main(["stop", *args, "--dir", str(tmp_path)])
        out, err = capsys.readouterr()
        return code, out, err

    return stop


def test_a_step_whose_command_is_ended_is_not_tried_again_and_the_run_goes_on(tmp_path, stop):
    pid_file = tmp_path / "pid"
    code = (
        COMMAND.format(pid_file)
        + """
from iso_orchestrator import StoppedError
with workflow:
    try:
        review()
    except StoppedError as error:
        say(f"stopped by {error.pid}")
    workflow.run_step("next", lambda: say("next"))
"""
    )
    with child(code, tmp_path) as process:
        pid = int(wait_until(lambda: pid_file.exists() and pid_file.read_text().strip()))
        assert stop("w", "rev*") == (0, "step 'review' was stopped; the next run runs it again\n", "")
        assert re.fullmatch(r"stopped by \d+", process.line())
        assert process.line() == "next"
        process.end()
    wait_until(lambda: _is_gone(pid))
    record = read_workflow_record("w", dir=tmp_path)
    assert record.steps["review"].attempts == 1
    assert record.steps["review"].error.code == "step.stopped"
    assert [event.detail["attempt"] for event in record.events if event.type == "step.stopped"] == [1]


def test_a_command_that_is_about_to_begin_is_stopped_too(tmp_path, stop):
    code = """
from iso_orchestrator import StoppedError
tries = []
@workflow.command(name="review", retry=3)
def review():
    tries.append(1)
    if len(tries) == 2:
        say("ready")
        hear()
    return ["sh", "-c", "exit 1" if len(tries) == 1 else "echo begun > began"]
try:
    review()
except StoppedError:
    say("stopped")
"""
    with child(code, tmp_path) as process:
        assert process.line() == "ready"
        with child(
            "from iso_orchestrator.views.cli import main\nmain(['stop', 'w', 'review', '--dir', root])", tmp_path
        ) as stopper:
            wait_until(lambda: any(e.type == "step.stopped" for e in read_workflow_record("w", dir=tmp_path).events))
            process.say()
            assert process.line() == "stopped"
            stopper.end()
        process.end()
    assert read_workflow_record("w", dir=tmp_path).steps["review"].attempts == 2


def test_a_plain_step_and_one_that_waits_cannot_be_stopped_alone(tmp_path, stop):
    code = """
from iso_orchestrator import Retry
def fails(): raise OSError("no space")
try:
    in_thread = threading.Thread(
        target=lambda: workflow.run_step("waits", fails, retry=Retry(2, wait=3600)), daemon=True
    )
    in_thread.start()
    workflow.run_step("plain", lambda: (say("ready"), hear()))
finally:
    os._exit(0)
"""
    with child(code, tmp_path) as process:
        assert process.line() == "ready"
        wait_until(lambda: (step := read_workflow_record("w", dir=tmp_path).steps.get("waits")) and step.error)
        code, _, err = stop("w", "plain")
        assert code == 1
        assert "is no command, and a thread cannot be ended: stop w" in err
        code, _, err = stop("w", "waits")
        assert code == 1
        assert "waits, and no command of it runs" in err
        process.say()
        process.end()
    code, _, err = stop("w", "plain")
    assert code == 1
    assert "does not run" in err


def _is_gone(pid: int) -> bool:
    try:
        return not is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(("option", "number"), [((), signal.SIGINT), (("--now",), signal.SIGTERM)])
def test_a_workflow_is_stopped_as_by_its_signal(tmp_path, stop, option, number):
    code = """
@workflow.for_each(max_parallel=2)
def work(n):
    if n < 2:
        say("ready")
    time.sleep(0.05)
with workflow:
    work(range(1000))
"""
    with child(code, tmp_path) as process:
        assert process.line() == process.line() == "ready"
        exit_code, out, _ = stop("w", *option)
        assert exit_code == 0
        assert f"sent {number.name} to pid {process.pid}" in out
        assert process.process.wait(DEADLINE) == -number
    record = read_workflow_record("w", dir=tmp_path)
    assert record.events[-1].detail["error"]["name"] == "KeyboardInterrupt"
    code, _, err = stop("w")
    assert code == 1
    assert "no process runs workflow 'w': nothing is to be stopped" in err
