from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import T0, at, new_fold
from support_processes import child, killed

from iso_orchestrator import StoreError, Workflow
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.history import AttemptSpan, Gap, History, Outcome, StepHistory, Usage, WaitFor
from iso_orchestrator.record.model import (
    ErrorInfo,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowStatus,
)
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.record.reconstruction import _HANDLERS, history_of
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.store import FileStore
from iso_orchestrator.views.live import read_history

BATCH = """
from datetime import UTC, datetime, timedelta

met = set()

@workflow.step
def part(page):
    return page

@workflow.for_each(max_parallel=2, stop_on_error=False, mutex_key=lambda page: page[:4])
@workflow.step(name="review:{page}", retry=Retry(attempts=2, wait=0.01), limit_key="api")
def review(page):
    part(page)
    if page == "shop bad":
        raise ValueError("no")
    if page == "shop limited" and page not in met:
        met.add(page)
        raise Limited(until=datetime.now(UTC) + timedelta(seconds=0.1), key="api")
    if page == "desk hangs" and hangs:
        time.sleep(0.02)  # the work that is lost
        workflow.append_event("worked")
        say("hangs")
        wait_for_ctrl_c()
    return page

with workflow:
    review(["shop bad", "shop limited", "desk good", "desk hangs"])
"""


COLUMNS = [
    "number",
    "name",
    "group",
    "state",
    "attempts",
    "began",
    "ended",
    "work_s",
    "waited_s",
    "key",
    "batch",
    "item",
    "error_type",
    "error",
    "agent",
    "session_id",
    "cost_usd",
    "input_tokens",
    "output_tokens",
    "log_path",
    "result",
]


def spans_of(history: History) -> list[AttemptSpan]:
    return [span for step in history.steps for span in step.attempts]


def end_of(span: Any, history: History) -> datetime:
    return span.ended or max(span.begun, history.now)


def check(history: History) -> None:
    """What is true of each history, whatever has happened."""
    lanes = defaultdict(list)
    died = {run.number: run.ended for run in history.runs if run.has_died and run.ended is not None}
    for span in spans_of(history):
        lanes[span.worker, span.depth].append((span.begun, end_of(span, history)))
        assert span.begun <= end_of(span, history)
        assert span.run not in died or end_of(span, history) <= died[span.run]
        assert (span.ended is None) == (span.outcome is Outcome.RUNNING)
    for (worker, depth), lane in lanes.items():
        lane.sort()
        assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(lane))
        for begun, ended in lane if depth else ():
            around = lanes[worker, depth - 1]
            assert any(first <= begun and ended <= last for first, last in around)
    totals = history.totals
    bars = sum(
        ((end_of(span, history) - span.begun) for span in spans_of(history) if span.depth == 0), timedelta()
    ).total_seconds()
    running = sum(
        (end_of(span, history) - span.begun).total_seconds()
        for span in spans_of(history)
        if span.depth == 0 and span.outcome is Outcome.RUNNING
    )
    assert totals.work == pytest.approx(bars)
    assert totals.counted + totals.failed + totals.lost + running == pytest.approx(bars)
    assert sum(totals.attempts.values()) == len(spans_of(history))
    assert sum(totals.steps.values()) == sum(not step.is_reset for step in history.steps)
    waits = [wait for step in history.steps for wait in step.waits]
    assert sum(totals.waited.values()) == pytest.approx(
        sum((end_of(wait, history) - wait.begun).total_seconds() for wait in waits)
    )
    assert all(wait.begun <= end_of(wait, history) for wait in waits)
    assert 0 <= totals.away <= totals.took
    assert all(gap.ended - gap.begun > timedelta(seconds=2) for gap in history.gaps)
    assert [step.number for step in history.steps] == list(range(1, len(history.steps) + 1))


def outcomes(step: StepHistory) -> list[Outcome]:
    return [span.outcome for span in step.attempts]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> History:
    """The history of a batch that was killed and run again."""
    root = tmp_path_factory.mktemp("resumed")
    killed("hangs = True\n" + BATCH, root, "hangs")
    with child("hangs = False\n" + BATCH, root) as process:
        process.end()
    return read_history(FileStore(root), "w")


def step(history: History, name: str) -> StepHistory:
    return next(step for step in history.steps if step.name == name)


def test_a_real_batch_is_sound(resumed: History) -> None:
    """A batch with retries, a limit, keys, a death and a resume holds all that is true of histories."""
    check(resumed)
    assert resumed.status is WorkflowStatus.COMPLETED
    assert resumed.totals.steps[Outcome.FAILED] == 1


def test_a_death_ends_the_run_and_its_attempts(resumed: History) -> None:
    """The first run ended when its process was last seen, and so did the attempt that it was at."""
    first, second = resumed.runs
    assert (first.outcome, first.has_died, second.outcome, second.has_died) == (
        Outcome.INTERRUPTED,
        True,
        Outcome.COMPLETED,
        False,
    )
    assert first.ended is not None
    assert first.found_dead is not None
    assert first.ended <= first.found_dead
    assert first.pid is not None
    assert first.pid != second.pid
    hung = step(resumed, "review:desk hangs")
    assert outcomes(hung) == [Outcome.INTERRUPTED, Outcome.COMPLETED]
    assert [span.run for span in hung.attempts] == [1, 2]
    assert hung.attempt_count == 2
    assert resumed.totals.deaths == 1
    assert resumed.totals.lost > 0


def test_what_was_kept_did_not_run_again(resumed: History) -> None:
    """Steps that had completed before the last run began are counted with their work."""
    kept = [step for step in resumed.steps if step.ended and step.ended <= resumed.runs[1].begun]
    kept = [step for step in kept if step.outcome is Outcome.COMPLETED]
    assert resumed.totals.kept_steps == len(kept) >= 3
    assert 0 < resumed.totals.kept_work < resumed.totals.work


def test_a_retry_and_a_limit_are_bars_and_waits(resumed: History) -> None:
    """Each attempt is a bar, and what lies between two of them is a wait with its reason."""
    bad, limited = step(resumed, "review:shop bad"), step(resumed, "review:shop limited")
    assert outcomes(bad)[-2:] == [Outcome.RETRIED, Outcome.FAILED]
    assert bad.outcome is Outcome.FAILED
    assert bad.error is not None
    assert bad.error.message == "no"
    pause = bad.waits[-1]
    assert (pause.kind, pause.begun, pause.ended) == (
        WaitFor.BACKOFF,
        bad.attempts[-2].ended,
        bad.attempts[-1].begun,
    )
    assert bad.attempts[-1].worker == bad.attempts[-2].worker == pause.worker
    assert outcomes(limited)[-1] is Outcome.COMPLETED
    wait = next(wait for wait in limited.waits if wait.kind is WaitFor.LIMIT)
    assert (wait.key, wait.met_by) == ("api", "review:shop limited")
    assert [(limit.key, limit.met_by) for limit in resumed.limits][:1] == [("api", "review:shop limited")]


def test_keys_batches_and_parents_are_known(resumed: History) -> None:
    """A step knows its key, its item, its parent and what it stands for."""
    good, part = step(resumed, "review:desk good"), step(resumed, 'part(page="desk good")')
    first, second = resumed.batches
    assert (first.name, first.total, first.max_parallel, first.run, second.run) == ("review", 4, 2, 1, 2)
    assert (second.fulfilled, second.rejected, second.unstarted) == (3, 1, 0)
    assert first.ended == resumed.runs[0].ended
    assert (good.key, good.batch, good.item, good.group) == ("desk", first.number, 2, "review")
    assert (part.parent, part.attempts[0].depth, part.attempts[0].worker) == (
        good.name,
        1,
        good.attempts[0].worker,
    )
    assert resumed.totals.workers == 2


def test_rows_have_all_columns(resumed: History) -> None:
    """A row is flat, and a table of them has the columns of the page."""
    rows = resumed.to_rows()
    assert len(rows) == len(resumed.steps)
    assert list(rows[0]) == COLUMNS
    bad = next(row for row in rows if row["name"] == "review:shop bad")
    assert (bad["state"], bad["error_type"], bad["error"], bad["key"]) == ("failed", "ValueError", "no", "shop")
    assert bad["work_s"] >= 0 < bad["waited_s"]


def test_a_killed_process_that_nobody_found_runs_no_more(tmp_path: Path) -> None:
    """While it lives its step runs; when it is killed the step was interrupted when it was last seen."""
    store = FileStore(tmp_path)
    with child("hangs = True\n" + BATCH, tmp_path) as process:
        while process.line() != "hangs":
            pass
        running = read_history(store, "w")
        process.kill()
    check(running)
    assert running.is_alive
    assert step(running, "review:desk hangs").outcome is Outcome.RUNNING
    assert running.runs[0].outcome is Outcome.RUNNING
    found = read_history(store, "w")
    check(found)
    hung = step(found, "review:desk hangs")
    assert (hung.outcome, hung.ended) == (Outcome.INTERRUPTED, found.runs[0].ended)
    assert (found.runs[0].has_died, found.runs[0].found_dead) == (True, None)
    assert found.ended == found.updated_at


def test_a_folded_record_has_the_same_history(tmp_path: Path) -> None:
    """A snapshot keeps all that a history is made of."""
    workflow = Workflow("w", dir=tmp_path)

    def fail() -> None:
        raise ValueError("no")

    with workflow:
        with pytest.raises(ValueError, match="no"):
            workflow.run_step("fail", fail, retry=2)
        workflow.run_for_each(["a", "b"], lambda item: workflow.run_step(item, lambda: item), mutex_key="k")
        workflow.reset("a")
    now = workflow.record.updated_at
    before = history_of(workflow.record, now=now)
    workflow.close()
    after = read_history(FileStore(tmp_path), "w", now=now)
    assert before == after
    assert step(after, "a").is_reset
    assert [row["name"] for row in after.to_rows()] == ["fail", "b"]


def test_ctrl_c_interrupts(workflow: Workflow) -> None:
    """A step and a run that Ctrl-C or an exit ended did not fail."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), workflow:
        workflow.run_step("a", interrupt)
    history = history_of(workflow.record, now=workflow.record.updated_at)
    check(history)
    assert history.runs[0].outcome is Outcome.INTERRUPTED
    assert not history.runs[0].has_died
    assert step(history, "a").outcome is Outcome.INTERRUPTED


GOLDEN = Path(__file__).parents[1] / "reliability/golden"


@pytest.mark.parametrize("release", ["format-1", "npm-0.2.0"])
def test_records_of_earlier_releases_have_sound_histories(release: str, tmp_path: Path) -> None:
    """What any release, and the npm package, has written is drawn as it is on record."""
    count = 0
    for case in sorted((GOLDEN / release).iterdir()):
        root = tmp_path / case.name
        shutil.copytree(case, root / "workflows")
        store = FileStore(root)
        for projection in store.list():
            if isinstance(projection, StoreError):
                continue
            history = read_history(store, projection.workflow_id)
            check(history)
            assert {step.name for step in history.steps if not step.is_reset} >= projection.steps.keys()
            completed = {step.name for step in history.steps if step.outcome is Outcome.COMPLETED}
            steps = projection.steps.values()
            assert completed >= {step.name for step in steps if step.status is StepStatus.COMPLETED}
            count += 1
    assert count >= 6


def record_of(*events: WorkflowEvent, steps: dict[str, StepRecord] | None = None, **more: Any) -> WorkflowRecord:
    last = max((event.at for event in events), default=T0)
    return WorkflowRecord("w", WorkflowStatus.RUNNING, T0, last, None, steps or {}, events, **more)


def event(seconds: float, kind: str, **detail: Any) -> WorkflowEvent:
    return WorkflowEvent(at(seconds), kind, None, detail or None)


def known(name: str, status: StepStatus = StepStatus.COMPLETED, attempts: int = 1) -> StepRecord:
    return StepRecord(name, status, attempts, T0)


DIED = {"name": "RunDied", "message": f"process 7 on host, running since {T0.isoformat()} is gone without having"}


def test_an_earlier_release_is_read_by_what_it_tells() -> None:
    """Runs without numbers are counted, and a death ends what ran at the last event before it was found."""
    record = record_of(
        event(0, "workflow.running"),
        event(1, "step.started", step="a", attempt=1),
        event(2, "step.started", step="b", attempt=1),
        event(3, "step.retrying", step="b", attempt=1, error={"name": "ValueError", "message": "no"}),
        event(100, "workflow.failed", error=DIED),
        event(100, "workflow.running"),
        event(101, "step.started", step="b", attempt=2),
        event(102, "step.completed", step="b", attempt=2),
        event(103, "step.started", step="a", attempt=2),
        event(104, "step.completed", step="a", attempt=2),
        event(105, "workflow.completed"),
        steps={"a": known("a", attempts=2), "b": known("b", attempts=2)},
    )
    history = history_of(record, now=at(105))
    check(history)
    a, b = history.steps
    assert [(span.begun, span.ended, span.run) for span in a.attempts] == [(at(1), at(3), 1), (at(103), at(104), 2)]
    assert outcomes(a) == [Outcome.INTERRUPTED, Outcome.COMPLETED]
    assert outcomes(b) == [Outcome.RETRIED, Outcome.COMPLETED]
    assert (b.waits[0].begun, b.waits[0].ended) == (at(3), at(3))
    assert [(run.begun, run.ended, run.found_dead) for run in history.runs] == [
        (at(0), at(3), at(100)),
        (at(100), at(105), None),
    ]
    assert history.gaps == (Gap(at(3), at(100), "no process", True),)
    assert (history.totals.away, history.totals.took) == (97, 105)


def test_an_attempt_without_an_end_ends_before_the_next_one() -> None:
    """Without a run and an end, an attempt goes on until the next one begins."""
    record = record_of(
        event(1, "step.started", step="a", attempt=1),
        event(5, "step.started", step="a", attempt=2),
        event(6, "step.completed", step="a", attempt=2),
        steps={"a": known("a", attempts=2)},
    )
    history = history_of(record, now=at(9))
    check(history)
    assert [(span.ended, span.run) for span in history.steps[0].attempts] == [(at(5), None), (at(6), None)]


def test_a_key_is_told_only_where_it_is_certain() -> None:
    """In records of earlier releases, a key that was acquired just before a step began is the step's."""
    record = record_of(
        event(0, "mutex.acquired", key="1"),
        event(1, "step.started", step="a", attempt=1),
        event(1, "mutex.acquired", key="2"),
        event(1, "mutex.acquired", key="3"),
        event(2, "step.started", step="b", attempt=1),
        event(3, "step.started", step="c", attempt=1),
        *(event(4, "step.completed", step=name, attempt=1) for name in "abc"),
        *(event(5, "mutex.released", key=key) for key in "123"),
        steps={name: known(name) for name in "abc"},
    )
    history = history_of(record, now=at(9))
    assert [step.key for step in history.steps] == ["1", None, None]


def test_waits_for_keys_and_processes_are_told() -> None:
    """A wait for a key begins when it was wanted, also before the item's step is known; one for a process, too."""
    record = record_of(
        event(0, "workflow.running", run=1, pid=7, host="host"),
        event(0, "batch.started", batch=2, name="review", total=2, maxParallel=2, run=1),
        event(2, "mutex.waiting", key="shop", item=[2, 0], holder=9, run=1),
        event(3, "mutex.acquired", key="shop", item=[2, 0], run=1, since=at(1).isoformat(), granted=at(3).isoformat()),
        event(4, "step.started", step="a", attempt=1, run=1, item=[2, 0]),
        event(5, "mutex.waiting", key="inner", step="a", holder=9, run=1),
        event(5, "mutex.waiting", key="other", item=[2, 1], holder=9, run=1),
        event(6, "step.started", step="b", attempt=1, pid=9),
        event(7, "step.waiting", step="b", **{"for": "process"}, holder=9),
        steps={name: known(name, StepStatus.RUNNING) for name in "ab"},
        is_alive=True,
    )
    history = history_of(record, now=at(9))
    check(history)
    a, b = history.steps
    assert [(wait.kind, wait.begun, wait.ended, wait.key, wait.holder) for wait in a.waits] == [
        (WaitFor.KEY, at(1), at(3), "shop", "pid 9"),
        (WaitFor.KEY, at(5), None, "inner", "pid 9"),
    ]
    assert [(wait.kind, wait.begun, wait.ended, wait.holder) for wait in b.waits] == [
        (WaitFor.PROCESS, at(7), None, "pid 9")
    ]
    assert (a.key, a.item, b.attempts[0].run) == ("shop", 0, None)
    assert [(wait.step, wait.key, wait.begun) for wait in history.item_waits] == [("review[1]", "other", at(5))]
    assert (history.batches[0].total, history.batches[0].ended) == (2, None)


def test_a_nested_step_lies_in_its_parent_if_it_is_alone_there() -> None:
    """One that runs beside another, or longer than its parent, gets a place of its own; a retry keeps its place."""
    times = {"p": (0, 10), "beside": (1, 4), "apart": (3, 6), "next": (5, 7), "longer": (8, 12), "later": (13, 14)}
    events = [event(ended, "step.completed", step=name, attempt=1) for name, (_, ended) in times.items() if name != "p"]
    events += [event(begun, "step.started", step=name, attempt=1, parent="p") for name, (begun, _) in times.items()]
    events += [
        event(10, "step.retrying", step="p", attempt=1, error={"name": "ValueError", "message": "no"}),
        event(12.5, "step.started", step="p", attempt=2),
        event(15, "step.completed", step="p", attempt=2),
    ]
    steps = {name: known(name) for name in times}
    history = history_of(record_of(*sorted(events, key=lambda event: event.at), steps=steps), now=at(15))
    check(history)
    places = {span.step: (span.worker, span.depth) for span in spans_of(history)}
    assert places == {
        "p": (0, 0),
        "beside": (0, 1),
        "apart": (1, 0),
        "next": (0, 1),
        "longer": (1, 0),
        "later": (0, 1),
    }
    assert history.totals.work == (10 + 2.5) + 3 + 4


def test_a_reset_ends_the_limit_that_its_step_met() -> None:
    """As in the record: that of its key if no other step has met a later one, and never another step's own."""
    error = {"name": "Limited", "message": "no"}

    def met(after: int, name: str, key: str | None, until: int) -> list[WorkflowEvent]:
        detail = {"step": name, "attempt": 1}
        key_of = {} if key is None else {"limitKey": key}
        return [
            event(after, "step.started", **detail),
            event(after, "step.limited", **detail, error=error, until=at(until).isoformat(), **key_of),
        ]

    events = [*met(1, "a", "api", 60), *met(1, "b", None, 60), *met(2, "c", "web", 60), *met(3, "d", "web", 90)]
    record = record_of(*events, event(5, "steps.reset", steps=["a", "b", "c"]))
    assert {limit.met_by: limit.until for limit in history_of(record, now=at(9)).limits} == {
        "a": at(5),
        "b": at(5),
        "c": at(90),
    }


def test_what_agents_used_is_added_up() -> None:
    """Attempts that failed count too; earlier releases have it in results alone."""
    usage = {"agent": "claude", "costUsd": 0.5, "inputTokens": 10, "outputTokens": 2, "sessionId": "s"}
    parsed = {"agent": "codex", "outcome": "ok", "cost_usd": 1.0, "usage": {"input_tokens": 5}}
    record = record_of(
        event(1, "step.started", step="a", attempt=1, of=2),
        event(2, "step.failed", step="a", attempt=1, usage=usage, error={"name": "AgentError", "message": "no"}),
        event(3, "step.started", step="b", attempt=1),
        event(4, "step.completed", step="b", attempt=1),
        steps={
            "a": known("a", StepStatus.FAILED),
            "b": StepRecord("b", StepStatus.COMPLETED, 1, T0, result={"exit_code": 0, "parsed": parsed}),
        },
    )
    history = history_of(record, now=at(9), logs={"b": "/b.log"})
    assert history.steps[0].attempts[0].usage == Usage("claude", None, 0.5, 10, 2, "s")
    assert history.steps[0].attempts_allowed == 2
    totals = history.totals
    assert (totals.cost, totals.cost_failed, totals.input_tokens, totals.output_tokens) == (1.5, 0.5, 15, 2)
    rows = history.to_rows()
    assert [(row["agent"], row["cost_usd"], row["output_tokens"]) for row in rows] == [
        ("claude", 0.5, 2),
        ("codex", 1.0, None),
    ]
    assert [row["log_path"] for row in rows] == [None, "/b.log"]


def test_time_in_which_all_waited_is_a_gap() -> None:
    """A gap of a living process says what all waited for."""
    record = record_of(
        event(0, "workflow.running", run=1),
        event(0, "step.started", step="a", attempt=1, run=1),
        event(1, "step.limited", step="a", attempt=1, until=at(60).isoformat(), limitKey="claude"),
        event(60, "step.started", step="a", attempt=1, run=1),
        event(61, "step.completed", step="a", attempt=1),
        event(62, "workflow.completed", run=1),
        steps={"a": known("a")},
    )
    history = history_of(record, now=at(99))
    check(history)
    assert history.gaps == (Gap(at(1), at(60), "all waited for claude", False),)
    assert history.totals.busy == pytest.approx(2 / 62)


def test_details_of_a_wrong_type_count_as_missing() -> None:
    """Users and other programs can append any event, and a history is made all the same."""
    odd: list[Any] = [None, 7, "x", [], {}, [1, "2"], True, {"name": 1}]
    kinds = list(_HANDLERS)
    keys = [
        "step",
        "attempt",
        "run",
        "pid",
        "item",
        "until",
        "error",
        "usage",
        "lastSeen",
        "retryAt",
        "limitKey",
        "key",
        "holder",
        "since",
        "granted",
        "batch",
        "total",
        "steps",
        "log",
        "parent",
        "argv",
        "of",
        "timeout",
    ]
    events = [WorkflowEvent(T0, kind, None, value) for kind in kinds for value in odd]
    events += [WorkflowEvent(T0, kind, None, {"step": "a", key: v}) for kind in kinds for key in keys for v in odd]
    check(history_of(record_of(*events), now=at(1)))


def test_steps_without_events_are_there() -> None:
    """A record of another program may have steps and no events."""
    done = StepRecord("a", StepStatus.COMPLETED, 1, at(2), started_at=at(1), completed_at=at(2), result=1)
    history = history_of(record_of(steps={"a": done}), now=at(3))
    check(history)
    assert (history.steps[0].outcome, history.steps[0].begun, history.totals.work) == (Outcome.COMPLETED, at(1), 1)


def test_a_record_of_many_steps_prints_a_line() -> None:
    """The repr counts, and lists nothing."""
    steps = {str(number): known(str(number)) for number in range(100_000)}
    steps["0"] = known("0", StepStatus.FAILED)
    record = WorkflowRecord("nightly", WorkflowStatus.COMPLETED, T0, T0, None, steps)
    assert repr(record) == "<WorkflowRecord 'nightly' completed: 99999/100000 steps, 1 failed>"


ACTIONS = ["run", "die", "end", "start", "complete", "fail", "retry", "limit", "wait", "abandon", "reset"]
NAMES = "abcd"


def facts_of(actions: list[tuple[str, int, int]]) -> Iterator[tuple[Projection, set[str]]]:
    """Let the actions that are possible happen; after each the projection, and the processes that are gone."""
    projection, seconds, count, gone = new_fold(), 0.0, 0, set[str]()
    for kind, number, moved in actions:
        seconds += moved
        now, name = at(seconds), NAMES[number]
        state = projection.steps.get(name)
        runs = list(projection.runs)
        live = [run for run in runs if run not in gone]
        busy = state is not None and state.owner is not None and state.owner not in gone
        running = busy and state is not None and state.status is StepStatus.RUNNING
        fact: f.Fact | None = None
        match kind:
            case "run":
                count += 1
                fact = f.RunStarted(now, f"run {count}", f"run {count}", count, "host")
            case "die" if runs:
                gone.add(runs[number % len(runs)])
                fact = f.RunDied(now, runs[number % len(runs)], at(seconds - 1) if number % 2 else None)
            case "end" if live:
                owner = live[number % len(live)]
                if all(step.owner != owner for step in projection.steps.values()):
                    fact = f.RunEnded(now, owner)
            case "start" if live and not running:
                owner = state.owner if busy and state is not None and state.owner else live[number % len(live)]
                inside = [step.name for step in projection.steps.values() if step.owner == owner and step.name != name]
                parent = inside[0] if inside and number % 2 else None
                fact = f.StepStarted(now, name, 1 if state is None else state.attempts + 1, owner, parent=parent)
            case "complete" if running:
                fact = f.StepCompleted(now, name, 1)
            case "fail" | "retry" if running:
                fact = f.StepFailed(now, name, ErrorInfo("ValueError", "no"), retrying=kind == "retry")
            case "limit" if running:
                fact = f.StepLimited(now, name, at(seconds + 3), "key")
            case "wait" if live and not busy:
                fact = f.StepWaiting(now, name, live[0], at(seconds + 3), "key")
            case "abandon" if busy:
                fact = f.StepAbandoned(now, name)
            case "reset" if not busy:
                fact = f.StepsReset(now, (name,))
        if fact is not None:
            projection.apply(fact)
        yield projection, gone


@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3), st.integers(-1, 4)), max_size=40),
    st.booleans(),
)
def test_whatever_happens_bars_are_sound(actions: list[tuple[str, int, int]], of_earlier_release: bool) -> None:
    """Bars of a place never overlap, none crosses the death of its run, and tiles are the sums of bars.

    Clocks may be set back, processes die, and events of earlier releases lack what this release tells.
    """
    projection, gone = new_fold(), set[str]()
    for projection, gone in facts_of([("run", 0, 0), *actions]):  # noqa: B007 - the last ones count
        pass
    record = projection.record(lambda owner: owner not in gone)
    if of_earlier_release:
        told = {"step", "attempt", "error", "until", "limitKey"}
        events = [
            WorkflowEvent(e.at, e.type, None, {key: value for key, value in (e.detail or {}).items() if key in told})
            for e in record.events
            if e.type not in ("step.interrupted", "step.abandoned", "steps.reset")
        ]
        record = WorkflowRecord(
            "w", record.status, T0, record.updated_at, None, record.steps, tuple(events), is_alive=record.is_alive
        )
    dead = {step.name for step in projection.steps.values() if step.owner is None or step.owner in gone}
    history = history_of(record, now=max(event.at for event in record.events), dead=dead)
    check(history)
    for found in history.steps:
        status = record.steps[found.name].status if found.name in record.steps else None
        assert (status is StepStatus.COMPLETED) <= (found.outcome is Outcome.COMPLETED)
        assert (status is None) <= (found.is_reset or not found.attempts)
