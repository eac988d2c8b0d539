"""Both ways with the npm package: what one begins the other finishes, after kills too."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Child, run_python

from iso_orchestrator import (
    LeaseConflictError,
    RecordConflictError,
    StepStatus,
    Workflow,
    WorkflowStatus,
    delete_workflow,
    list_workflows,
    read_workflow_record,
)

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
DEFAULT_PACKAGE = TESTS.parent / ".ci" / "node" / "node_modules" / "@razroo" / "iso-orchestrator"
PACKAGE = Path(os.environ.get("ISO_ORCHESTRATOR_NPM") or DEFAULT_PACKAGE).resolve()
BATCH = "Nightly batch 7/a"
JOBS = [f"job {number}" for number in range(1, 7)]


def _what_is_missing() -> str | None:
    node = shutil.which("node")
    if node is None:
        return "Node 20 or later is not installed"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < 20:
        return f"Node 20 or later is needed, not {version.strip()}"
    if not (PACKAGE / "dist" / "index.js").is_file():
        return "the npm package is not there: install it, and set ISO_ORCHESTRATOR_NPM to its folder"
    return None


@pytest.fixture(scope="module", autouse=True)
def _npm_package() -> None:
    missing = _what_is_missing()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


def start_node(script: str, *arguments: str) -> Child:
    """Start a script of `tests/npm`."""
    command = ["node", str(TESTS / "npm" / script), *arguments]
    environment = {**os.environ, "ISO_ORCHESTRATOR_NPM": str(PACKAGE)}
    pipe = subprocess.PIPE
    return Child(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))


def node_does(root: Path, mode: str, *operations: list[Any], workflow_id: str = BATCH) -> Child:
    """Start Node on a workflow; see `operations.mjs`."""
    return start_node("operations.mjs", str(root), workflow_id, mode, json.dumps(operations))


def node(root: Path, mode: str, *operations: list[Any], workflow_id: str = BATCH) -> list[Any]:
    """What came of each operation under Node."""
    with node_does(root, mode, *operations, workflow_id=workflow_id) as child:
        return [json.loads(line) for line in child.end()]


def node_record(root: Path) -> dict[str, Any]:
    """The record as the npm package gives it."""
    (record,) = node(root, "open", ["record"])
    assert isinstance(record, dict)
    return record


def node_jobs(*names: str) -> list[list[Any]]:
    """Operations: a step for each job, and one more in the count."""
    return [operation for name in names for operation in (["step", name, f"{name} by node"], ["add", "done", 1])]


def python_jobs(workflow: Workflow, *names: str) -> list[str]:
    """The same under Python; which of the steps were run, and not read back."""
    ran: list[str] = []

    def work(name: str) -> str:
        ran.append(name)
        workflow.update_state(lambda state: {**state, "done": state.get("done", 0) + 1}, with_step=True)
        return f"{name} by python"

    for name in names:
        workflow.run_step(name, work, name)
    return ran


def projection(root: Path) -> None:
    """What comes between a killed Python and Node."""
    command = [sys.executable, "-m", "iso_orchestrator", "fold", BATCH, "--dir", str(root)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def files(root: Path) -> dict[str, bytes]:
    """The bytes of snapshot and journal, and of whatever else is beside them."""
    return {path.name: path.read_bytes() for path in sorted((root / "workflows").iterdir())}


def snapshot(root: Path) -> Path:
    """The one snapshot in a root."""
    (path,) = (root / "workflows").glob("*.json")
    return path


# Which record is whose


def test_both_find_the_same_record(tmp_path: Path) -> None:
    """Both libraries give an id the same file name, odd ids included."""
    ids = [
        BATCH,
        "a",
        "..",
        "../../x",
        "  padded  ",
        "UPPER",
        "\u0130\u212a\u00df",
        "x" * 300,
        "--",
        "\U0001f511",
        "a\0b",
    ]
    with start_node("names.mjs", json.dumps(ids)) as child:
        names = json.loads(child.end()[0])
    assert names == [Path(Workflow(workflow_id, dir=tmp_path).record_path).name for workflow_id in ids]


# Begun by one, finished by the other


def test_begun_under_node_and_finished_under_python(tmp_path: Path) -> None:
    """Python runs what a failed Node run has left, and none of what it has done."""
    said = node(tmp_path, "run", *node_jobs(*JOBS[:3]), ["fail", "no more"])
    assert said[-1] == {"failed": "no more"}
    with Workflow(BATCH, dir=tmp_path) as workflow:
        assert python_jobs(workflow, *JOBS) == JOBS[3:]

    record = read_workflow_record(BATCH, dir=tmp_path)
    assert (record.status, record.last_error) == (WorkflowStatus.COMPLETED, None)
    assert record.state == {"begun": "node", "done": 6}
    assert [step.result for step in record.steps.values()] == [
        f"{name} by {who}" for name, who in zip(JOBS, ["node"] * 3 + ["python"] * 3, strict=True)
    ]


def test_begun_under_python_and_finished_under_node(tmp_path: Path) -> None:
    """Node runs what a failed Python run has left, and none of what it has done."""
    with pytest.raises(LookupError), Workflow(BATCH, dir=tmp_path) as workflow:
        python_jobs(workflow, *JOBS[:3])
        raise LookupError("no more")
    said = node(tmp_path, "run", *[["step", name, f"{name} by node"] for name in JOBS])

    assert [step["ran"] for step in said] == [False] * 3 + [True] * 3
    assert [step["value"] for step in said] == [
        f"{name} by {who}" for name, who in zip(JOBS, ["python"] * 3 + ["node"] * 3, strict=True)
    ]
    record = read_workflow_record(BATCH, dir=tmp_path)
    assert (record.status, record.state) == (WorkflowStatus.COMPLETED, {"done": 3})


def test_handed_to_and_fro(tmp_path: Path) -> None:
    """However often a workflow changes hands, every job is done once."""
    for number, name in enumerate(JOBS):
        done = JOBS[: number + 1]
        if number % 2:
            with Workflow(BATCH, dir=tmp_path) as workflow:
                assert python_jobs(workflow, *done) == [name]
        else:
            said = node(tmp_path, "run", *[["step", job, "by node"] for job in done], ["add", "done", 1])
            assert [step["ran"] for step in said[:-1]] == [False] * number + [True]
    record = read_workflow_record(BATCH, dir=tmp_path)
    assert record.state == {"begun": "node", "done": 6}
    assert [(step.name, step.attempts, step.status) for step in record.steps.values()] == [
        (name, 1, StepStatus.COMPLETED) for name in JOBS
    ]


def test_node_starts_over_where_nothing_of_ours_lives(tmp_path: Path) -> None:
    """A record that Node made anew, after ours was removed, is the one that Python goes on with."""
    with Workflow(BATCH, dir=tmp_path) as workflow:
        python_jobs(workflow, *JOBS[:2])
    snapshot(tmp_path).unlink()
    node(tmp_path, "run", *node_jobs(JOBS[0]))

    with Workflow(BATCH, dir=tmp_path) as workflow:
        assert workflow.state == {"begun": "node", "done": 1}
        assert python_jobs(workflow, *JOBS[:2]) == [JOBS[1]]
    assert [step["result"] for step in node_record(tmp_path)["steps"].values()] == [
        "job 1 by node",
        "job 2 by python",
    ]


def test_node_goes_on_with_a_record_that_python_has_closed(tmp_path: Path) -> None:
    """A second Node run over a finished Python run is taken over by Python in turn, with all of both."""
    workflow = Workflow(BATCH, dir=tmp_path)
    workflow.append_event("python was here")
    workflow.close()
    node(tmp_path, "open", ["event", {"type": "node was here", "message": "hello", "detail": [1]}])
    workflow.append_event("python again")
    workflow.close()
    types = [event["type"] for event in node_record(tmp_path)["events"]]
    assert types == ["python was here", "node was here", "python again"]


# After kills


def test_node_killed_in_a_step(tmp_path: Path) -> None:
    """A step that Node was killed in is run again by Python, as its second attempt."""
    with node_does(tmp_path, "run", *node_jobs(*JOBS[:2]), ["holdInStep", JOBS[2]]) as child:
        while child.line() != '"holding"':
            pass
        child.kill()
    assert read_workflow_record(BATCH, dir=tmp_path).steps[JOBS[2]].status is StepStatus.RUNNING
    with Workflow(BATCH, dir=tmp_path) as workflow:
        assert python_jobs(workflow, *JOBS[:3]) == [JOBS[2]]
        step = workflow.record.steps[JOBS[2]]
        assert (step.attempts, step.result) == (2, "job 3 by python")


def test_node_killed_at_any_moment(tmp_path: Path) -> None:
    """What Node had acknowledged when it was killed is there for Python, and is not done again."""
    with node_does(tmp_path, "run", *[["step", name, "by node"] for name in JOBS * 50], ["holdInStep", "end"]) as child:
        for _ in range(3):
            child.line()
        child.kill()  # somewhere in what follows
    with Workflow(BATCH, dir=tmp_path) as workflow:
        ran = python_jobs(workflow, *JOBS)
        assert ran == JOBS[len(JOBS) - len(ran) :]
        assert len(ran) <= 3
        assert all(step.status is StepStatus.COMPLETED for name, step in workflow.record.steps.items() if name in JOBS)


@pytest.mark.parametrize("place", [["holdInMutex", "slot"], ["holdInRecordLock"]], ids=["mutex", "record"])
def test_the_locks_of_a_killed_node_are_in_nobodys_way(tmp_path: Path, place: list[str]) -> None:
    """What a killed Node leaves locked keeps Python from nothing: not from running, closing or deleting."""
    with node_does(tmp_path, "run", *node_jobs(JOBS[0]), place) as child:
        while child.line() != '"holding"':
            pass
        child.kill()
    with Workflow(BATCH, dir=tmp_path) as workflow, workflow.mutex("slot", timeout=DEADLINE):
        assert python_jobs(workflow, *JOBS[:2]) == [JOBS[1]]
    assert [summary.workflow_id for summary in list_workflows(dir=tmp_path)] == [BATCH]
    delete_workflow(BATCH, dir=tmp_path)
    assert list((tmp_path / "workflows").iterdir()) == []


KILLED_PYTHON = """
import sys
from iso_orchestrator import Workflow
with Workflow(sys.argv[2], dir=sys.argv[1]) as workflow:
    for name in sys.argv[3:]:
        print(workflow.run_step(name, lambda: name + " by python"))
    workflow.update_state({"done": 3})
    workflow.heartbeat("me", {"phase": 1})
    print("all recorded")
    workflow.run_step("half done", input)
"""


def test_python_killed_and_folded_and_finished_under_node(tmp_path: Path) -> None:
    """After a fold Node has all that a killed Python run had acknowledged, and runs the rest."""
    with run_python(KILLED_PYTHON, tmp_path, BATCH, *JOBS[:3]) as child:
        assert [child.line() for _ in range(4)] == [f"{name} by python" for name in JOBS[:3]] + ["all recorded"]
        child.kill()
    projection(tmp_path)
    said = node(tmp_path, "run", *[["step", name, f"{name} by node"] for name in [*JOBS, "half done"]], ["record"])
    *steps, record = said
    assert [step["ran"] for step in steps] == [False] * 3 + [True] * 4
    assert [step["value"] for step in steps[:3]] == [f"{name} by python" for name in JOBS[:3]]
    assert record["state"] == {"done": 3}
    assert record["heartbeats"]["me"]["detail"] == {"phase": 1}
    assert read_workflow_record(BATCH, dir=tmp_path).status is WorkflowStatus.COMPLETED


def test_python_killed_and_opened_and_closed_and_finished_under_node(tmp_path: Path) -> None:
    """Any opening and closing does for Node what a fold does."""
    with run_python(KILLED_PYTHON, tmp_path, BATCH, *JOBS[:3]) as child:
        while child.line() != "all recorded":
            pass
        child.kill()
    workflow = Workflow(BATCH, dir=tmp_path)
    workflow.append_event("looked after")
    workflow.close()
    said = node(tmp_path, "open", *[["step", name, "by node"] for name in JOBS[:4]])
    assert [step["ran"] for step in said] == [False, False, False, True]


# What is whose inside of a record


NPM_KEYS = {
    "record": {
        *("version", "workflowId", "status", "createdAt", "updatedAt", "state", "steps", "events"),
        *("heartbeats", "leases", "lastError"),
    },
    "step": {
        *("name", "status", "attempts", "startedAt", "updatedAt", "completedAt"),
        *("idempotencyKey", "result", "error"),
    },
    "event": {"at", "type", "message", "detail"},
    "heartbeat": {"key", "at", "detail"},
    "lease": {"key", "holder", "acquiredAt", "heartbeatAt", "expiresAt", "releasedAt", "detail"},
    "error": {"name", "message", "stack", "code", "cause"},
}


def _use_everything(workflow: Workflow) -> None:
    workflow.run_step("keyed", lambda: None, idempotency_key="k-1", version=3)
    workflow.heartbeat("me", {"phase": 1})
    workflow.touch_lease("slot", holder="me", ttl=60)
    workflow.release_lease("slot", "me")
    workflow.touch_lease("slot", holder="you", ttl=60, detail="mine")
    workflow.append_event("seen", "a message", {"detail": 1})
    with workflow.mutex("slot"), workflow.lease("background", ttl=60):
        workflow.update_state({"count": 1})
    with workflow.heartbeating("background", every=60):
        pass
    workflow.run_step("fails", lambda: {}["missing"])


def test_a_snapshot_holds_the_npm_packages_keys_and_one_of_ours(tmp_path: Path) -> None:
    """In all that the npm package reads there are its own keys alone; ours are under `isoOrchestrator`."""
    with pytest.raises(KeyError), Workflow(BATCH, dir=tmp_path) as workflow:
        _use_everything(workflow)
    record = json.loads(snapshot(tmp_path).read_bytes())

    ours = record.pop("isoOrchestrator")
    assert ours["tokens"]["slot"] == 2
    assert set(record) == NPM_KEYS["record"]
    objects = {
        "step": list(record["steps"].values()),
        "event": record["events"],
        "heartbeat": list(record["heartbeats"].values()),
        "lease": list(record["leases"].values()),
        "error": [record["lastError"], record["steps"]["fails"]["error"]],
    }
    for kind, found in objects.items():
        assert found
        assert set().union(*found) <= NPM_KEYS[kind], kind


def test_what_nobody_knows_is_kept(tmp_path: Path) -> None:
    """Top-level keys of a third program, and ours, live through both libraries."""
    node(tmp_path, "run", *node_jobs(JOBS[0]))
    path = snapshot(tmp_path)
    third = {"tenant": {"id": 7, "tags": ["a", None]}, "x-flag": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **third}))

    workflow = Workflow(BATCH, dir=tmp_path)
    token = workflow.touch_lease("slot", holder="me", ttl=60).token
    workflow.release_lease("slot")
    workflow.close()
    node(tmp_path, "run", ["touchLease", "slot", {"holder": "node", "ttlMs": 1}], ["releaseLease", "slot"])
    workflow = Workflow(BATCH, dir=tmp_path)
    assert workflow.touch_lease("slot", holder="me", ttl=60).token > token
    workflow.close()
    record = json.loads(path.read_text())
    assert {key: record[key] for key in third} == third


def test_node_reads_results_that_are_none(tmp_path: Path) -> None:
    """A step that returned None under Python is completed for Node, with null, and is not run again."""
    workflow = Workflow(BATCH, dir=tmp_path)
    workflow.run_step("nothing", lambda: None)
    workflow.close()
    assert node(tmp_path, "open", ["step", "nothing", "something"]) == [{"ran": False, "value": None}]


def test_node_and_python_agree_on_idempotency_keys(tmp_path: Path) -> None:
    """A step is the same for both as long as its key is, and another where it is not."""
    node(tmp_path, "open", ["step", "send", "by node", {"idempotencyKey": "k-1"}])
    workflow = Workflow(BATCH, dir=tmp_path)
    assert workflow.run_step("send", lambda: "by python", idempotency_key="k-1") == "by node"
    assert workflow.run_step("send", lambda: "by python", idempotency_key="k-2") == "by python"
    workflow.close()
    same = ["step", "send", "by node", {"idempotencyKey": "k-2"}]
    other = ["step", "send", "by node again", {"idempotencyKey": "k-1"}]
    assert node(tmp_path, "open", same, other) == [
        {"ran": False, "value": "by python"},
        {"ran": True, "value": "by node again"},
    ]


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def test_python_reads_all_that_node_wrote(tmp_path: Path) -> None:
    """State, events, heartbeats, leases and the last error are the same values under Python."""
    *_, failed = node(
        tmp_path,
        "run",
        ["add", "done", 2],
        ["event", {"type": "seen", "message": "a message", "detail": {"n": [1.5, None, "\u00fc"]}}],
        ["heartbeat", "worker:1", {"phase": "loading"}],
        ["touchLease", "slot", {"holder": "node", "ttlMs": 600_000, "detail": {"page": 1}}],
        ["touchLease", "other", {"holder": "node", "ttlMs": 600_000}],
        ["releaseLease", "other", "node"],
        ["failingStep", "flaky", "it broke"],
        ["fail", "the end"],
    )
    assert failed == {"failed": "the end"}
    written = json.loads(snapshot(tmp_path).read_text())
    record = read_workflow_record(BATCH, dir=tmp_path)

    assert record.state == {"begun": "node", "done": 2}
    assert (record.created_at, record.updated_at) == (
        _moment(written["createdAt"]),
        _moment(written["updatedAt"]),
    )
    assert [(event.type, event.message, event.detail, event.at) for event in record.events] == [
        (event["type"], event.get("message"), event.get("detail"), _moment(event["at"])) for event in written["events"]
    ]
    beat = record.heartbeats["worker:1"]
    assert (beat.detail, beat.at) == ({"phase": "loading"}, _moment(written["heartbeats"]["worker:1"]["at"]))
    lease, other = record.leases["slot"], record.leases["other"]
    assert (lease.holder, lease.detail, lease.released_at) == ("node", {"page": 1}, None)
    assert lease.expires_at == _moment(written["leases"]["slot"]["expiresAt"])
    assert other.released_at == _moment(written["leases"]["other"]["releasedAt"])
    error, last = record.steps["flaky"].error, record.last_error
    assert error is not None
    assert (error.name, error.message, error.code, error.cause) == ("Error", "it broke", "E_TRIED", "why")
    assert last is not None
    assert (record.status, last.message) == (WorkflowStatus.FAILED, "the end")


def test_node_reads_all_that_python_wrote(tmp_path: Path) -> None:
    """State, events, heartbeats, leases and the last error are the same values under Node."""
    with pytest.raises(KeyError), Workflow(BATCH, dir=tmp_path) as workflow:
        _use_everything(workflow)
    ours, theirs = read_workflow_record(BATCH, dir=tmp_path), node_record(tmp_path)

    assert theirs["state"] == {"count": 1}
    assert [
        (event["type"], event.get("message"), event.get("detail"), _moment(event["at"])) for event in theirs["events"]
    ] == [(event.type, event.message, event.detail, event.at) for event in ours.events]
    assert theirs["heartbeats"]["me"]["detail"] == {"phase": 1}
    lease = theirs["leases"]["slot"]
    assert (lease["holder"], lease["detail"]) == ("you", "mine")
    assert _moment(lease["expiresAt"]) == ours.leases["slot"].expires_at
    assert "releasedAt" in theirs["leases"]["background"]
    assert theirs["status"] == "failed"
    assert (theirs["lastError"]["name"], theirs["lastError"]["message"]) == ("KeyError", "'missing'")
    assert "missing" in theirs["steps"]["fails"]["error"]["stack"]


def test_a_lease_binds_the_other_too(tmp_path: Path) -> None:
    """A lease that one library gave out is refused by the other, but to its holder, who may release it."""
    ttl = 600_000
    node(tmp_path, "open", ["touchLease", "slot", {"holder": "a", "ttlMs": ttl}])
    workflow = Workflow(BATCH, dir=tmp_path)
    with pytest.raises(LeaseConflictError) as refused:
        workflow.touch_lease("slot", holder="b", ttl=1)
    assert refused.value.current_holder == "a"
    acquired_at = workflow.record.leases["slot"].acquired_at
    assert workflow.touch_lease("slot", holder="a", ttl=600).acquired_at == acquired_at
    workflow.close()
    refusal, renewal, _ = node(
        tmp_path,
        "open",
        ["touchLease", "slot", {"holder": "b", "ttlMs": ttl}],
        ["touchLease", "slot", {"holder": "a", "ttlMs": ttl}],
        ["releaseLease", "slot", "a"],
    )
    assert refusal == {"error": "WORKFLOW_LEASE_CONFLICT"}
    assert _moment(renewal["acquiredAt"]) == acquired_at
    workflow = Workflow(BATCH, dir=tmp_path)
    assert workflow.touch_lease("slot", holder="b", ttl=1).holder == "b"
    workflow.close()


# Both at once


def _append(workflow: Workflow) -> object:
    return workflow.append_event("next")


def _run_a_step(workflow: Workflow) -> object:
    return workflow.run_step("next", lambda: pytest.fail("it ran"))


def _run(workflow: Workflow) -> object:
    with workflow:
        return pytest.fail("it ran")


@pytest.mark.parametrize("use", [_append, _run_a_step, _run])
def test_a_write_of_node_under_a_live_journal_is_refused_and_loses_nothing(
    tmp_path: Path, use: Callable[[Workflow], object]
) -> None:
    """When Node wrote while our journal held more, use and opening raise, and both files stay as they are."""
    workflow = Workflow(BATCH, dir=tmp_path)
    workflow.update_state({"count": 1})
    before = files(tmp_path)
    node(tmp_path, "open", ["event", {"type": "node wrote"}])
    after = files(tmp_path)
    assert [name for name in after if after[name] != before[name]] == [snapshot(tmp_path).name]

    with pytest.raises(RecordConflictError) as refused:
        use(workflow)
    assert refused.value.path == str(snapshot(tmp_path))
    with contextlib.suppress(RecordConflictError):  # a run that could not begin has closed it already
        workflow.close()
    with pytest.raises(RecordConflictError):
        use(Workflow(BATCH, dir=tmp_path))
    with pytest.raises(RecordConflictError):
        read_workflow_record(BATCH, dir=tmp_path)
    assert files(tmp_path) == after

    snapshot(tmp_path).write_bytes(before[snapshot(tmp_path).name])  # what the message says to do
    workflow = Workflow(BATCH, dir=tmp_path)
    workflow.append_event("goes on")
    assert workflow.state == {"count": 1}
    workflow.close()


def test_a_write_of_node_after_a_killed_python_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    """When Node went on without a fold, opening raises, and both files stay as they are."""
    with run_python(KILLED_PYTHON, tmp_path, BATCH, *JOBS[:2]) as child:
        while child.line() != "all recorded":
            pass
        child.kill()
    node(tmp_path, "open", ["step", JOBS[0], "by node"])
    after = files(tmp_path)
    with pytest.raises(RecordConflictError):
        Workflow(BATCH, dir=tmp_path).run_step(JOBS[1], lambda: pytest.fail("it ran"))
    assert files(tmp_path) == after
