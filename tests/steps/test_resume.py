"""Run it, kill it anywhere, run it again: what completed is not run twice."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, lines_of, run_python, tree
from support_processes import assert_waits, child, in_thread, killed

from iso_orchestrator import (
    StepInterruptedError,
    StepStatus,
    Workflow,
    WorkflowStatus,
    current_step,
    read_workflow_record,
)

pytestmark = pytest.mark.slow

# A process that completes a step and is in the midst of the next one, for good.
TWO_STEPS = """
def first():
    say("first")
    return {"pair": (1, 2)}
def second():
    workflow.update_state({"from": "second"}, with_step=False)
    workflow.update_state(lambda state: {**state, "completed": True}, with_step=True)
    say("second")
    hear()
with workflow:
    workflow.run_step("first", first)
    workflow.run_step("second", second)
"""

# A process that dies in a step that must not happen twice.
PAY = """
def pay():
    say("paying")
    hear()
workflow.run_step("pay", pay, if_interrupted="fail", {options})
"""


def test_what_a_killed_process_completed_is_not_run_again(tmp_path: Path) -> None:
    """After a kill the completed step returns its result, the half done one runs again, the rest follows."""
    killed(TWO_STEPS, tmp_path, "second")
    calls = []
    with Workflow("w", dir=tmp_path) as workflow:
        assert workflow.run_step("first", pytest.fail) == {"pair": [1, 2]}
        workflow.run_step("second", lambda: calls.append(current_step().attempt))
        workflow.run_step("third", lambda: calls.append(current_step().attempt))
    record = workflow.record
    assert calls == [1, 1]
    assert record.status is WorkflowStatus.COMPLETED
    assert {name: (step.status, step.attempts) for name, step in record.steps.items()} == {
        "first": (StepStatus.COMPLETED, 1),
        "second": (StepStatus.COMPLETED, 2),
        "third": (StepStatus.COMPLETED, 1),
    }


def test_a_killed_process_leaves_its_start_and_no_outcome(tmp_path: Path) -> None:
    """What was begun is on record as running, what it had recorded on the way is there, what comes with it is not."""
    killed(TWO_STEPS, tmp_path, "second")
    record = read_workflow_record("w", dir=tmp_path)
    step = record.steps["second"]
    assert (step.status, step.attempts, step.result) == (StepStatus.RUNNING, 1, None)
    assert record.state == {"from": "second"}
    assert record.events[-2].type == "step.started"


def test_a_script_can_be_killed_at_any_moment(tmp_path: Path) -> None:
    """Killed at random moments and run again, a script repeats nothing that was completed, and counts a step once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    script = """
        begun = os.open(os.path.join(root, "begun"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        @workflow.step(name="{number}")
        def work(number: int) -> int:
            os.write(begun, f"{number}\\n".encode())
            say("began")
            workflow.update_state(lambda state: {**state, str(number): state.get(str(number), 0) + 1}, with_step=True)
            return number * number
        with workflow:
            workflow.run_for_each(range(30), work, max_parallel=2)
        say("all")
    """
    begun = tmp_path / "begun"
    completed: set[str] = set()
    known, kills, is_done = 0, 0, False
    while not is_done:
        with child(script, tmp_path) as process:
            for _ in range(chance.randrange(1, 6)):
                if process.line() == "all":
                    is_done = True
                    break
            process.kill()
        lines = begun.read_text().split()
        assert not completed.intersection(lines[known:])
        known, kills = len(lines), kills + 1
        steps = read_workflow_record("w", dir=tmp_path).steps.values()
        completed = {step.name for step in steps if step.status is StepStatus.COMPLETED}
    expected = {str(number) for number in range(30)}
    assert completed == expected
    assert kills > 2
    assert read_workflow_record("w", dir=tmp_path).state == dict.fromkeys(expected, 1)
    # A kill repeats at most what was in hand.
    assert len(lines) <= 30 + 2 * kills


def test_the_items_of_a_for_each_are_resumed(tmp_path: Path) -> None:
    """Keyed items whose steps completed cost no second run; the others run."""
    script = """
        jobs = [{{"company": company, "role": role}} for company in "ABC" for role in ("one", "two")]
        @workflow.for_each(max_parallel=2, mutex_key="{{job[company]}}:{{job[role]}}")
        @workflow.step(name="apply:{{job[company]}}:{{job[role]}}", retry=3)
        def apply(job: dict) -> dict:
            say(f"{{job['company']}} {{job['role']}}")
            if job["company"] == "{stuck}":
                threading.Event().wait()
            return {{"outcome": "APPLIED", **job}}
        with workflow:
            summary = apply(jobs)
            workflow.update_state({{"applied": summary.fulfilled}})
        say("end")
    """
    with child(script.format(stuck="B"), tmp_path) as process:
        assert {process.line() for _ in range(4)} == {"A one", "A two", "B one", "B two"}
        process.kill()
    with child(script.format(stuck="nobody"), tmp_path) as process:
        assert sorted(process.end()) == ["B one", "B two", "C one", "C two", "end"]
    record = read_workflow_record("w", dir=tmp_path)
    assert (record.status, record.state) == (WorkflowStatus.COMPLETED, {"applied": 6})


def test_a_reader_between_two_runs_changes_nothing(tmp_path: Path) -> None:
    """Looking at what a killed process left behind neither repairs nor resumes anything."""
    killed(TWO_STEPS, tmp_path, "second")
    before = tree(tmp_path)
    workflow = Workflow("w", dir=tmp_path)
    assert workflow.record.steps["second"].status is StepStatus.RUNNING
    assert workflow.state == {"from": "second"}
    assert tree(tmp_path) == before


def test_a_crash_in_the_midst_of_a_line_loses_only_that(tmp_path: Path) -> None:
    """A half written last fact is put aside, and the work goes on from the one before it."""
    killed(TWO_STEPS, tmp_path, "second")
    journal = Path(Workflow("w", dir=tmp_path).record_path).with_suffix(".journal")
    whole = journal.read_bytes()
    last = lines_of(journal)[-1]
    journal.write_bytes(whole[: -len(last) // 2])
    with Workflow("w", dir=tmp_path) as workflow:
        assert workflow.run_step("first", pytest.fail) == {"pair": [1, 2]}
        assert workflow.run_step("second", lambda: "again") == "again"
    assert any("torn" in path.name for path in journal.parent.iterdir())


def test_a_script_resumes_under_another_name(tmp_path: Path) -> None:
    """A module's steps are the same whether it is run or imported."""
    (tmp_path / "jobs.py").write_text(
        "import sys\n"
        "from iso_orchestrator import Workflow\n"
        "workflow = Workflow('w', dir=sys.argv[1])\n"
        "@workflow.step\n"
        "def fetch(page):\n"
        "    print(f'{__name__} fetches {page}')\n"
        "    return page\n"
        "fetch(1)\n"
        "workflow.close()\n"
    )
    path = {"PYTHONPATH": str(tmp_path)}
    said = []
    for code in ("import runpy; runpy.run_module('jobs', run_name='__main__')", "import jobs; jobs.fetch(2)"):
        source = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"
        with run_python(source, tmp_path / "root", env=path) as process:
            said += process.end()
    assert said == ["__main__ fetches 1", "jobs fetches 2"]


# if_interrupted


def test_a_step_that_must_not_happen_twice_says_that_it_was_interrupted(workflow: Workflow, tmp_path: Path) -> None:
    """After a kill in its body such a step raises, each time, and its body is not run."""
    killed(PAY.format(options=""), tmp_path, "paying")
    for _ in range(2):
        with pytest.raises(StepInterruptedError, match=r"reset\('pay'\)") as raised:
            workflow.run_step("pay", pytest.fail, if_interrupted="fail", retry=5)
    assert (raised.value.step_name, raised.value.attempt) == ("pay", 1)
    step = workflow.record.steps["pay"]
    assert (step.status, step.attempts) == (StepStatus.RUNNING, 1)


def test_a_reset_lets_an_interrupted_step_run_again(workflow: Workflow, tmp_path: Path) -> None:
    """When it has been found out that nothing happened, `reset` lets the step run."""
    killed(PAY.format(options=""), tmp_path, "paying")
    assert workflow.reset("pay") == ["pay"]
    assert workflow.run_step("pay", lambda: "paid", if_interrupted="fail") == "paid"
    assert workflow.record.steps["pay"].attempts == 1


def test_the_caller_decides_what_an_interruption_means(workflow: Workflow, tmp_path: Path) -> None:
    """What the call says counts, and by default an interrupted step runs again."""
    killed(PAY.format(options=""), tmp_path, "paying")
    assert workflow.run_step("pay", lambda: "paid") == "paid"
    killed(TWO_STEPS, tmp_path, "second")
    with pytest.raises(StepInterruptedError):
        workflow.run_step("second", pytest.fail, if_interrupted="fail")


def test_a_failed_attempt_was_not_interrupted(workflow: Workflow, tmp_path: Path) -> None:
    """A step whose outcome is known to be a failure may run again, in this process and in the next."""

    def fail() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        workflow.run_step("pay", fail, if_interrupted="fail")
    workflow.close()
    assert workflow.run_step("pay", lambda: "paid", if_interrupted="fail") == "paid"


def test_a_kill_between_two_attempts_is_no_interruption(workflow: Workflow, tmp_path: Path) -> None:
    """A process that dies while it waits for its retry has left a known failure."""
    code = """
        import iso_orchestrator.steps.call as step_run
        def sleep(seconds):
            say("waiting")
            hear()
        step_run.pause = sleep
        def fail():
            raise ConnectionError
        workflow.run_step("pay", fail, if_interrupted="fail", retry=Retry(attempts=2, wait=60))
    """
    killed(code, tmp_path, "waiting")
    assert workflow.run_step("pay", lambda: "paid", if_interrupted="fail") == "paid"
    assert workflow.record.steps["pay"].attempts == 2


@pytest.mark.parametrize(
    "options", [{"idempotency_key": "b"}, {"version": 2}, {"idempotency_key": "a", "version": 2}], ids=str
)
def test_another_identity_was_not_interrupted(workflow: Workflow, tmp_path: Path, options: dict[str, Any]) -> None:
    """A new key or version is asked for on purpose, and runs."""
    killed(PAY.format(options='idempotency_key="a", version=1'), tmp_path, "paying")
    with pytest.raises(StepInterruptedError):
        workflow.run_step("pay", pytest.fail, if_interrupted="fail", idempotency_key="a", version=1)
    assert workflow.run_step("pay", lambda: "paid", if_interrupted="fail", **options) == "paid"


def test_a_step_that_completed_was_not_interrupted(workflow: Workflow, tmp_path: Path) -> None:
    """A kill after the completion leaves the result."""
    code = """
        workflow.run_step("pay", lambda: "paid", if_interrupted="fail")
        say("done")
        hear()
    """
    killed(code, tmp_path, "done")
    assert workflow.run_step("pay", pytest.fail, if_interrupted="fail") == "paid"


def test_a_live_runner_has_not_been_interrupted(workflow: Workflow, tmp_path: Path) -> None:
    """While the runner lives others wait for it; when it is killed then, they are told."""
    with child(PAY.format(options=""), tmp_path) as process:
        assert process.line() == "paying"
        waiter = in_thread(workflow.run_step, "pay", pytest.fail, if_interrupted="fail")
        assert_waits(waiter)
        process.kill()
        assert isinstance(waiter.exception(DEADLINE), StepInterruptedError)


def test_wrong_words_for_an_interruption_raise_at_decoration(workflow: Workflow) -> None:
    """`if_interrupted` is "rerun" or "fail"."""
    with pytest.raises(ValueError, match="rerun"):
        workflow.step(if_interrupted="ignore")  # type: ignore[call-overload]


# Interrupted for real


def test_ctrl_c_leaves_a_record_that_goes_on(tmp_path: Path) -> None:
    """SIGINT in the midst of a step fails the step and the run, folds the record, and the next run goes on."""
    code = """
        def second():
            say("second")
            wait_for_ctrl_c()
        sys.stderr = open(os.devnull, "w")
        with workflow:
            workflow.run_step("first", lambda: 1)
            workflow.run_step("second", second, retry=3)
    """
    with child(code, tmp_path) as process:
        assert process.line() == "second"
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(DEADLINE) != 0
    record = read_workflow_record("w", dir=tmp_path)
    assert (record.status, record.last_error.name) == (WorkflowStatus.FAILED, "KeyboardInterrupt")
    assert (record.steps["second"].status, record.steps["second"].attempts) == (StepStatus.FAILED, 1)
    with Workflow("w", dir=tmp_path) as workflow:
        assert workflow.run_step("first", pytest.fail) == 1
        assert workflow.run_step("second", lambda: 2) == 2


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_kill_while_folding_loses_nothing(tmp_path: Path, nth: int) -> None:
    """A process that is killed when it closes, before its first rename or its second or after both, loses nothing."""
    code = f"""
        def before(name, args):
            renames.extend([name] * (name == "replace"))
            if len(renames) == {nth}:
                crash_here()
        renames = []
        fs = WatchedFS()
        workflow = Workflow("w", store=FileStore(root, fs=fs))
        workflow.run_step("step", lambda: "result")
        fs.before = before
        workflow.close()
        say("closed")
    """
    with child(code, tmp_path) as process:
        assert process.process.wait(DEADLINE) == (0 if nth == 3 else -signal.SIGKILL)
    workflow = Workflow("w", dir=tmp_path)
    assert workflow.record.steps["step"].result == "result"
    assert workflow.run_step("step", pytest.fail) == "result"
    assert workflow.run_step("next", lambda: 1) == 1
    workflow.close()
