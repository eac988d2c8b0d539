"""A batch of jobs over an agent's command line: kill it, run it again, and it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from zlib import crc32

from iso_orchestrator import (
    StepStatus,
    Workflow,
    WorkflowNotFoundError,
    WorkflowRecord,
    WorkflowStatus,
    current_step,
    delete_workflow,
)
from iso_orchestrator.examples import stand_in_agent
from iso_orchestrator.record.markup import escape_terminal
from iso_orchestrator.views.report import text_table

__all__ = ["JOBS", "WORKFLOW_ID", "run", "start_over"]

WORKFLOW_ID = "iso-orchestrator-demo"

_ROLES = {
    "Acme": ["data engineer", "platform engineer", "technical writer"],
    "Borealis": ["backend developer", "site reliability engineer"],
    "Cobalt": ["data analyst", "data scientist", "product manager"],
    "Dunlin": ["frontend developer", "designer", "test engineer"],
    "Ember": ["security engineer", "support engineer", "database administrator"],
    "Fathom": ["compiler engineer", "research engineer"],
    "Gannet": ["mobile developer", "release manager", "accountant", "recruiter"],
}
JOBS = [{"company": company, "role": role} for company, roles in _ROLES.items() for role in roles]

_STEP_NAME = "apply:{job[company]}:{job[role]}"
_INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)  # how a program ends that Ctrl-C has reached

Job = dict[str, str]


class AgentError(RuntimeError):
    """The agent failed; the message says how."""


def run(root: str, *, pace: float, ledger: str | None, command: str) -> int:
    """Do what is left of the jobs, and print the record.

    Args:
        root: The folder of workflows.
        pace: Seconds that the agent takes for a job, on average.
        ledger: A file that gets a line for each job that the agent has done; None for none.
        command: What to type to go on.

    Returns:
        The exit code: 0, 1 when a job failed for good, 130 after Ctrl-C.
    """
    workflow = Workflow(WORKFLOW_ID, dir=root, initial_state={"applied": 0, "skipped": 0})
    record = workflow.record
    print(_opening(record, command), flush=True)
    try:
        if not _is_complete(record):
            _work(workflow, pace, ledger)
    except KeyboardInterrupt:
        done = _done(workflow.record)
        print(f"\nInterrupted: {done} of {len(JOBS)} jobs are done. Go on with: {command}", file=sys.stderr)
        return 130
    except AgentError as error:
        print(f"\nFailed: {escape_terminal(str(error))}. Try again with: {command}", file=sys.stderr)
        return 1
    print(_closing(workflow.record, str(workflow.record_path)))
    return 0


def start_over(root: str) -> None:
    """Forget what was done.

    Raises:
        WorkflowBusyError: It is being done right now.
    """
    with suppress(WorkflowNotFoundError):
        delete_workflow(WORKFLOW_ID, dir=root)


def _work(workflow: Workflow, pace: float, ledger: str | None) -> None:
    shows_lines = find_spec("tqdm") is None and sys.stderr.isatty()  # tqdm shows a bar there

    @workflow.for_each(max_parallel=2, mutex_key="{job[company]}")
    @workflow.step(name=_STEP_NAME, retry=3)
    def apply(job: Job) -> Job:
        result = _ask_agent(job, current_step().attempt, pace, ledger)
        # In one piece with the result: a job that a kill makes run again is not counted twice.
        workflow.update_state(lambda state: _counted(state, result["outcome"]), with_step=True)
        if shows_lines:
            print(f"{_label(job)}: {result['outcome']}", file=sys.stderr)
        return result

    with workflow:
        apply(JOBS)


def _ask_agent(job: Job, attempt: int, pace: float, ledger: str | None) -> Job:
    """What the agent says of a job."""
    # It stays in this process's group, so that Ctrl-C in a terminal reaches it too.
    finished = subprocess.run(
        _agent_command(job, attempt, pace, ledger),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if finished.returncode in _INTERRUPTED:
        raise KeyboardInterrupt("the agent was interrupted")  # no failure of the job, and no retry
    last = _last_message(finished.stdout)
    if finished.returncode != 0 or last.get("type") != "result":
        complaint = finished.stderr.strip().rpartition("\n")[2]
        reason = last["message"] if last.get("type") == "error" else complaint or "it gave no result"
        raise AgentError(f"{_label(job)}: the agent ended with exit code {finished.returncode}: {reason}")
    return {"outcome": last["outcome"], "session": last["session"]}


def _agent_command(job: Job, attempt: int, pace: float, ledger: str | None) -> list[str]:
    seconds = pace * (0.5 + crc32(_label(job).encode()) % 101 / 100)  # by the job, from half to one and a half
    # By its path and not by `-m`, which would import this package for each job.
    command = [sys.executable, "-I", stand_in_agent.__file__]
    command += ["--company", job["company"], "--role", job["role"]]
    command += ["--attempt", str(attempt), "--seconds", f"{seconds:.3f}"]
    return [*command, "--ledger", ledger] if ledger else command


def _last_message(output: str) -> dict[str, str]:
    lines = output.splitlines()
    try:
        message = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _counted(state: dict[str, int], outcome: str) -> dict[str, int]:
    counter = outcome.lower()
    return {**state, counter: state[counter] + 1}


def _opening(record: WorkflowRecord, command: str) -> str:
    total, done = len(JOBS), _done(record)
    if done == total:
        return f"All {total} jobs were done already; {command} --fresh starts over"
    if done or record.steps:
        return f"{done} of {total} jobs were done already; going on with the other {total - done}"
    return (
        f"{total} jobs at {len(_ROLES)} companies, two at a time, one at a time per company. "
        "Stop it or kill it, and run it again: it goes on where it was"
    )


def _closing(record: WorkflowRecord, path: str) -> str:
    steps = [record.steps[name] for name in _step_names()]
    rows = [
        (_label(job), step.status, str(step.attempts), step.result["outcome"])
        for job, step in zip(JOBS, steps, strict=True)
    ]
    attempts = sum(step.attempts for step in steps)
    return (
        f"\n{text_table(['job', 'status', 'attempts', 'result'], rows)}\n\n"
        f"{len(rows)} jobs done in {attempts} attempts: {record.state['applied']} applied, "
        f"{record.state['skipped']} skipped\n"
        f"The record is {escape_terminal(path)}"
    )


def _is_complete(record: WorkflowRecord) -> bool:
    return record.status is WorkflowStatus.COMPLETED and _done(record) == len(JOBS)


def _done(record: WorkflowRecord) -> int:
    steps = [record.steps.get(name) for name in _step_names()]
    return sum(step is not None and step.status is StepStatus.COMPLETED for step in steps)


def _step_names() -> Iterable[str]:
    return (_STEP_NAME.format(job=job) for job in JOBS)


def _label(job: Job) -> str:
    return f"{job['company']}, {job['role']}"
