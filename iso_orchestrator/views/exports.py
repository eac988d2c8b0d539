"""Records and histories for other programs: the JSON of commands, and what `export` writes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import count
from operator import itemgetter

from iso_orchestrator.codec.records import write
from iso_orchestrator.record.history import AttemptSpan, History, Outcome, RunSpan, StepHistory, WaitFor, WaitSpan
from iso_orchestrator.record.model import Json, StepStatus, WorkflowSummary

_MICROSECOND = timedelta(microseconds=1)


def summary_json(summary: WorkflowSummary) -> dict[str, Json]:
    """Turn a summary into JSON, with keys in camelCase as in a record, and a count for every step status."""
    return {**write(summary), "steps": {status.value: summary.steps.get(status, 0) for status in StepStatus}}


def step_json(step: StepHistory) -> dict[str, Json]:
    """Turn a step's history into JSON, with keys in camelCase; what is not known is left out."""
    return write(step)


def indented_json(value: Json) -> str:
    """Write JSON for people and programs: indented, and in ASCII, so that no recorded text can drive a terminal."""
    return json.dumps(value, indent=2, allow_nan=False)


def chrome_trace(history: History) -> Iterator[str]:
    """A trace in the format of Chrome, for Perfetto: a track for each worker, and one for each wait.

    Times are microseconds from the begin of the history. What has not ended ends when it was looked at. Source: "Trace
    Event Format", Chromium 2016.
    """
    head = {"displayTimeUnit": "ms", "otherData": {"workflow": history.workflow_id, "begun": str(history.begun)}}
    yield json.dumps(head)[:-1] + ', "traceEvents": [\n'
    yield ",\n".join(json.dumps(event) for event in _trace_events(history))
    yield "\n]}\n"


def csv_table(history: History) -> Iterator[str]:
    """A row for each step, with the columns of `WorkflowRecord.to_rows`; results are JSON, times ISO 8601."""
    heads = list(StepHistory("", 0, "", Outcome.RUNNING).to_row(history.now))
    rows = [[_csv_cell(head, row[head]) for head in heads] for row in history.to_rows()]
    for row in [heads, *rows]:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(row)
        yield line.getvalue()


def json_lines(history: History) -> Iterator[str]:
    """A line of JSON for each attempt and wait, in the order in which they began."""
    spans = list[AttemptSpan | WaitSpan]()
    for step in history.steps:
        spans += [*step.attempts, *step.waits]
    for span in sorted(spans, key=lambda span: span.begun):
        yield json.dumps({"type": "attempt" if isinstance(span, AttemptSpan) else "wait", **write(span)}) + "\n"


FORMATS: dict[str, Callable[[History], Iterator[str]]] = {
    "chrome-trace": chrome_trace,
    "csv": csv_table,
    "jsonl": json_lines,
}
"""What `export --format` takes; each function yields the parts of a text."""


def _csv_cell(head: str, value: Json) -> Json:
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value) if head == "result" and value is not None else value


def _trace_events(history: History) -> Iterator[Json]:
    yield {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": history.workflow_id}}
    attempts = [span for step in history.steps for span in step.attempts]
    for worker in sorted({span.worker for span in attempts}):
        name = {"name": f"worker {worker + 1}"}
        yield {"ph": "M", "pid": 1, "tid": worker + 1, "name": "thread_name", "args": name}
    runs = {run.number: run for run in history.runs}
    events = [(0, _bar(history, span, runs), span.depth) for span in attempts]
    numbers = count(1)
    for wait in (wait for step in history.steps for wait in step.waits):
        events += [(1, event, 0) for event in _wait(history, wait, next(numbers))]
    events += [(2, event, 0) for event in _running(history, attempts)]
    # What begins at one time: parents before what is nested in them. The sort keeps the order of what is equal.
    for _, event, _ in sorted(events, key=lambda found: (found[1]["ts"], found[0], found[2])):
        yield event


def _bar(history: History, span: AttemptSpan, runs: dict[int, RunSpan]) -> Json:
    run = None if span.run is None else runs.get(span.run)
    args = {
        "attempt": span.number,
        "outcome": span.outcome.value,
        "error": None if span.error is None else f"{span.error.name}: {span.error.message}",
        "process": None if run is None else run.pid,
        "costUsd": None if span.usage is None else span.usage.cost_usd,
        "log": span.log,
    }
    begun, ended = _micros(history, span.begun), _micros(history, span.ended)
    return {
        "ph": "X",
        "pid": 1,
        "tid": span.worker + 1,
        "cat": "attempt",
        "name": span.step,
        "ts": begun,
        "dur": max(0, ended - begun),
        "args": {key: value for key, value in args.items() if value is not None},
    }


def _wait(history: History, wait: WaitSpan, number: int) -> Iterator[Json]:
    name = f"limit of {wait.key}" if wait.kind is WaitFor.LIMIT and wait.key else wait.kind.value
    begun, ended = _micros(history, wait.begun), _micros(history, wait.ended)
    for phase, moment in (("b", begun), ("e", max(begun, ended))):
        event = {"ph": phase, "pid": 1, "cat": "wait", "id": number, "name": name, "ts": moment}
        yield {**event, "args": {"step": wait.step}} if phase == "b" else event


def _running(history: History, attempts: list[AttemptSpan]) -> Iterator[Json]:
    """How many attempts run at a time, whenever that changes."""
    changes = [(_micros(history, span.begun), 1) for span in attempts]
    changes += [(_micros(history, span.ended), -1) for span in attempts]
    running = 0
    for moment, by in sorted(changes, key=itemgetter(0)):
        running += by
        yield {"ph": "C", "pid": 1, "name": "running", "ts": moment, "args": {"steps": running}}


def _micros(history: History, moment: datetime | None) -> int:
    return ((history.now if moment is None else moment) - history.begun) // _MICROSECOND
