"""A batch of jobs over an agent's command line: kill it, run it again, and it continues."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from zlib import crc32

from iso_orchestrator import (
    CommandError,
    StepStatus,
    Workflow,
    WorkflowNotFoundError,
    WorkflowRecord,
    WorkflowStatus,
    current_step,
    delete_workflow,
)
from iso_orchestrator.checks import escape_terminal

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

AGENT = """
import json, sys, time, zlib

company, role, attempt, seconds, *ledger = sys.argv[1:]
job = f"{company}:{role}"
print(json.dumps({"progress": "reading the posting"}), flush=True)
time.sleep(float(seconds))
# By the job and the attempt alone, and never in the third: each demo needs the same attempts.
if int(attempt) < 3 and zlib.crc32(f"{attempt}:{job}".encode()) % 3 == 0:
    sys.exit("the site did not answer")
for path in ledger:
    with open(path, "a") as file:
        file.write(json.dumps({"company": company, "role": role, "attempt": int(attempt)}) + "\\n")
print(json.dumps({"outcome": "SKIPPED" if zlib.crc32(job.encode()) % 5 == 0 else "APPLIED"}))
"""
"""A Python program in the place of an agent: it takes its time, prints lines of JSON, and sometimes fails."""

_STEP_NAME = "apply:{job[company]}:{job[role]}"

Job = dict[str, str]


def run(root: str, *, pace: float, ledger: str | None, command: str) -> int:
    """Do the jobs that are left, each in some *pace* seconds, and print the record.

    The file *ledger* gets a line for each job that the agent has done. Messages say how to continue with *command*.

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
    except CommandError as error:
        print(f"\nFailed: {escape_terminal(str(error))}. Try again with: {command}", file=sys.stderr)
        return 1
    print(_closing(workflow.record, str(workflow.record_path)))
    return 0


def start_over(root: str) -> None:
    """Delete what an earlier demo did.

    Raises:
        WorkflowBusyError: Another process runs it.
    """
    with suppress(WorkflowNotFoundError):
        delete_workflow(WORKFLOW_ID, dir=root)


def _work(workflow: Workflow, pace: float, ledger: str | None) -> None:
    def outcome(output: str) -> str:
        """What the agent says in its last line."""
        found: str = json.loads(output.splitlines()[-1])["outcome"]
        counter = found.lower()
        # Recorded together with the step's completion: a job that runs again after a kill is not counted twice.
        workflow.update_state(lambda state: {**state, counter: state[counter] + 1}, with_step=True)
        return found

    @workflow.for_each(max_parallel=2, mutex_key="{job[company]}")
    @workflow.command(name=_STEP_NAME, parse=outcome, retry=3)
    def apply(job: Job) -> list[str]:
        seconds = pace * (0.5 + crc32(_label(job).encode()) % 101 / 100)  # by the job, from half to one and a half
        words = [job["company"], job["role"], str(current_step().attempt), f"{seconds:.3f}"]
        return [sys.executable, "-I", "-S", "-c", AGENT, *words, *([ledger] if ledger else [])]

    with workflow:
        apply(JOBS)


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
        (_label(job), step.status, str(step.attempts), step.result["parsed"])
        for job, step in zip(JOBS, steps, strict=True)
    ]
    attempts = sum(step.attempts for step in steps)
    return (
        f"\n{_table([('job', 'status', 'attempts', 'result'), *rows])}\n\n"
        f"{len(rows)} jobs done in {attempts} attempts: {record.state['applied']} applied, "
        f"{record.state['skipped']} skipped\n"
        f"The record is {escape_terminal(path)}"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _is_complete(record: WorkflowRecord) -> bool:
    return record.status is WorkflowStatus.COMPLETED and _done(record) == len(JOBS)


def _done(record: WorkflowRecord) -> int:
    steps = [record.steps.get(name) for name in _step_names()]
    return sum(step is not None and step.status is StepStatus.COMPLETED for step in steps)


def _step_names() -> Iterable[str]:
    return (_STEP_NAME.format(job=job) for job in JOBS)


def _label(job: Job) -> str:
    return f"{job['company']}, {job['role']}"
