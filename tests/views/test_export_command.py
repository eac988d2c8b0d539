"""`export`: traces, tables and lines for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict

import pytest
from support import wait_until
from support_processes import killed

from iso_orchestrator import Retry, Workflow, current_step
from iso_orchestrator.views.cli import main

HOSTILE = 'a,"b"\n=1+1\x1b[31m</script>'


@pytest.fixture
def export(tmp_path, capsys):
    """What `export` prints in a format."""
    _fill(tmp_path)

    def export(kind: str) -> str:
        assert main(["export", "w", "--dir", str(tmp_path), "--format", kind]) == 0
        return capsys.readouterr().out

    return export


def _fill(root) -> None:
    """A workflow with nested steps, retries, a killed process, and items at a time."""
    killed('with workflow: workflow.run_step("slow", lambda: (say("ready"), wait_for_ctrl_c()))', root, "ready")
    workflow = Workflow("w", dir=root)

    @workflow.for_each(max_parallel=3, mutex_key=lambda n: str(n % 2), stop_on_error=False)
    @workflow.step(name="item:{n}", retry=Retry(2, wait=0.01))
    def item(n: int) -> int:
        if n == 3 or (n == 4 and current_step().attempt == 1):
            raise OSError("no space")
        return workflow.run_step(f"inner:{n}", lambda: n)

    with workflow:
        workflow.run_step("slow", lambda: 1)
        workflow.run_step(HOSTILE, lambda: {"text": HOSTILE})
        item(range(6))


def test_a_trace_nests_its_bars_and_its_counter_ends_at_none(export):
    trace = json.loads(export("chrome-trace"))
    events = trace["traceEvents"]
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    for bars in tracks.values():
        ends: list[int] = []
        for bar in bars:
            while ends and ends[-1] <= bar["ts"]:
                ends.pop()
            end = bar["ts"] + bar["dur"]
            assert not ends or end <= ends[-1], f"{bar} is not within the bar around it"
            ends.append(end)
    assert sum(map(len, tracks.values())) == 1 + 1 + 1 + (1 + 1 + 1 + 2 + 2 + 1) + 5
    assert [event["args"]["steps"] for event in events if event["ph"] == "C"][-1] == 0
    waits = defaultdict(list)
    for event in events:
        if event["ph"] in "be":
            waits[event["id"]].append(event["ph"])
    assert waits
    assert all(phases == ["b", "e"] for phases in waits.values())


def test_a_table_has_a_row_for_each_step_with_texts_as_they_are(export):
    rows = list(csv.DictReader(io.StringIO(export("csv"))))
    assert len(rows) == 2 + 6 + 5
    hostile = next(row for row in rows if row["name"] == HOSTILE)
    assert json.loads(hostile["result"]) == {"text": HOSTILE}
    assert {row["state"] for row in rows} == {"completed", "failed"}
    failed = next(row for row in rows if row["state"] == "failed")
    assert (failed["name"], failed["error_type"], failed["attempts"]) == ("item:3", "OSError", "2")


def test_lines_are_attempts_and_waits_in_the_order_in_which_they_began(export):
    lines = [json.loads(line) for line in export("jsonl").splitlines()]
    assert [line["begun"] for line in lines] == sorted(line["begun"] for line in lines)
    attempts = [line for line in lines if line["type"] == "attempt"]
    assert [line["outcome"] for line in attempts if line["step"] == "slow"] == ["interrupted", "completed"]
    assert {line["kind"] for line in lines if line["type"] == "wait"} >= {"back-off"}


def test_it_writes_into_a_file(tmp_path, capsys):
    with Workflow("w", dir=tmp_path) as workflow:
        workflow.run_step("save", lambda: 1)
    target = tmp_path / "out.csv"
    assert main(["export", "w", "--dir", str(tmp_path), "--format", "csv", "-o", str(target)]) == 0
    assert capsys.readouterr().out == ""
    assert wait_until(target.read_text).splitlines()[1].startswith("1,save,")


def test_a_file_that_cannot_be_written_is_an_error_in_one_line(tmp_path, capsys):
    with Workflow("w", dir=tmp_path) as workflow:
        workflow.run_step("save", lambda: 1)
    assert main(["export", "w", "--dir", str(tmp_path), "--format", "csv", "-o", str(tmp_path / "no" / "out")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_of_a_workflow_without_steps_has_its_heads(tmp_path, capsys):
    with Workflow("w", dir=tmp_path):
        pass
    assert main(["export", "w", "--dir", str(tmp_path), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("number,name,group,state,")
