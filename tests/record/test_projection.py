from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import T0, at, new_fold, note
from support_facts import FACT_KINDS, full

from iso_orchestrator.codec import snapshot_from_projection
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import ErrorInfo, StepStatus, WorkflowStatus
from iso_orchestrator.record.projection import LeaseClock, Projection, Wait
from iso_orchestrator.record.workflow_record import WorkflowRecord

NPM = Path(__file__).parents[1] / "data/npm-0.2.0"
NPM_START = datetime(2026, 4, 25, 8, 0, 0, 7000, tzinfo=UTC)

BOOM = ErrorInfo("ValueError", "boom")
CTRL_C = ErrorInfo("KeyboardInterrupt", "")
OTHER = ErrorInfo("OSError", "other")


def projected(*facts: f.Fact) -> Projection:
    projection = new_fold()
    for fact in facts:
        projection.apply(fact)
    return projection


def run(name: str, seconds: float = 0) -> f.RunStarted:
    return f.RunStarted(at(seconds), name, f"owner-{name}", 7, "host")


def started(step: str = "a", attempt: int = 1, key: str | None = None, version: str | None = None) -> f.StepStarted:
    return f.StepStarted(T0, step, attempt, "owner", key, version)


def types(projection: Projection) -> list[str]:
    return [event.type for event in projection.events]


def npm(second: int) -> datetime:
    return NPM_START + timedelta(seconds=second)


def npm_error(message: str, **more: str) -> ErrorInfo:
    return ErrorInfo("TypeError", message, f"TypeError: {message}\n    at apply (batch.mjs:7:9)", **more)


def npm_lease(second: int, key: str, holder: str, acquired: int, ttl: float, detail: Any = None) -> f.LeaseTouched:
    return f.LeaseTouched(
        npm(second),
        key,
        holder,
        ttl,
        acquired_at=npm(acquired),
        expires_at=npm(second) + timedelta(milliseconds=int(ttl * 1000)),
        token=1,
        renewed=acquired != second,
        detail=detail,
    )


# What was done under Node to make tests/data/npm-0.2.0/failed.json, one fact for each thing that happened.
NPM_FACTS = [
    f.RunStarted(npm(0), "r", "o", 1, "h"),
    f.StepStarted(npm(1), "plain", 1, "o"),
    f.StepCompleted(npm(2), "plain", {"ok": True, "nested": [1, 2.5, None, 0, 1e21, "text"]}),
    f.StepStarted(npm(3), "null result", 1, "o"),
    f.StepCompleted(npm(4), "null result", None),
    f.StepStarted(npm(5), "keyed", 1, "o", "k-1"),
    f.StepCompleted(npm(6), "keyed", "v1"),
    f.StepStarted(npm(7), "retried", 1, "o"),
    f.StepFailed(npm(8), "retried", npm_error("first try", code="EAGAIN"), retrying=True),
    f.StepStarted(npm(8), "retried", 2, "o"),
    f.StepCompleted(npm(9), "retried", 2),
    f.StepStarted(npm(10), "rejected", 1, "o"),
    f.StepFailed(npm(11), "rejected", npm_error("no", cause="root cause")),
    f.StateUpdated(npm(12), {"applied": 1, "ünï": ["\0", "😀", "\u2028"]}),
    f.EventAppended(npm(13), "note", "hello", {"a": [1]}),
    f.EventAppended(npm(14), "bare"),
    f.HeartbeatRecorded(npm(15), "worker", {"pid": 1}),
    f.HeartbeatRecorded(npm(16), "worker"),
    npm_lease(17, "slot", "alpha", 17, 60.0, {"n": 1}),
    npm_lease(18, "slot", "alpha", 17, 60.0, {"n": 1}),
    npm_lease(19, "other", "beta", 19, 1.5005),
    f.LeaseReleased(npm(20), "other"),
    f.EventAppended(npm(21), "mutex.acquired", None, {"key": "m"}),
    f.EventAppended(npm(22), "mutex.released", None, {"key": "m"}),
    f.StepStarted(npm(23), "left running", 1, "o"),
    f.StepCompleted(npm(24), "left running", 1),
    f.RunEnded(npm(25), "r", npm_error("the end")),
]


@pytest.mark.parametrize(("name", "count"), [("running", -2), ("failed", None)])
def test_facts_make_the_npm_packages_record(name: str, count: int | None) -> None:
    """The same facts make the same record in both languages: every key, value, event and status."""
    projection = Projection.new("Nightly Batch/№ 7", npm(0), {"applied": 0, "ünï": ["\0", "😀", "\u2028"]})
    for fact in NPM_FACTS[:count]:
        projection.apply(fact)
    ours = json.loads(snapshot_from_projection(projection))
    theirs = json.loads((NPM / f"{name}.json").read_bytes())
    del ours["isoOrchestrator"]
    for one, other in zip(ours["events"], theirs["events"], strict=True):
        if "detail" in one:  # ours tell more
            one["detail"] = {key: value for key, value in one["detail"].items() if key in other.get("detail", {})}
            one["detail"] or one.pop("detail")
    assert ours == theirs


def test_a_new_record_is_idle() -> None:
    """It is empty, and has a copy of the initial state."""
    state = {"jobs": [1]}
    record = Projection.new("w", T0, state).record()
    state["jobs"].append(2)
    assert record == WorkflowRecord("w", WorkflowStatus.IDLE, T0, T0, {"jobs": [1]})


def test_run_ends_completed_or_failed() -> None:
    """A single run makes its workflow running, then completed, or failed with its error."""
    assert projected(run("a")).status is WorkflowStatus.RUNNING
    well = projected(run("a"), f.RunEnded(at(1), "a"))
    assert (well.status, well.last_error, types(well)) == (
        "completed",
        None,
        ["workflow.running", "workflow.completed"],
    )
    badly = projected(run("a"), f.RunEnded(at(1), "a", BOOM))
    assert (badly.status, badly.last_error, types(badly)) == ("failed", BOOM, ["workflow.running", "workflow.failed"])
    assert badly.events[-1].detail == {"error": {"name": "ValueError", "message": "boom"}, "run": 1}


def test_later_run_clears_the_failure_of_an_earlier_one() -> None:
    """A run that starts while no other runs begins a new group; the earlier failure no longer counts."""
    projection = projected(run("a"), f.RunEnded(T0, "a", BOOM), run("b"))
    assert (projection.status, projection.last_error) == ("running", None)
    projection.apply(f.RunEnded(T0, "b"))
    assert (projection.status, projection.last_error) == ("completed", None)


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ([("a", None), ("b", None)], "completed"),
        ([("a", BOOM), ("b", None)], "failed"),
        ([("a", None), ("b", BOOM)], "failed"),
        ([("b", BOOM), ("a", OTHER)], "failed"),
    ],
)
def test_overlapping_runs_fail_together(ends: list[tuple[str, ErrorInfo | None]], status: str) -> None:
    """Overlapping runs are running until the last one ends, then failed if any of them failed."""
    projection = projected(run("a"), run("b", 1))
    assert projection.status == "running"
    (first, error), (last, last_error) = ends
    projection.apply(f.RunEnded(at(2), first, error))
    assert projection.status == "running"
    projection.apply(f.RunEnded(at(3), last, last_error))
    assert projection.status == status
    assert projection.last_error == (last_error or error)


def test_failure_of_a_group_keeps_its_error() -> None:
    """A run that joins after another one failed does not remove the error."""
    projection = projected(run("a"), run("b"), f.RunEnded(at(1), "a", BOOM), run("c"), f.RunEnded(at(2), "b"))
    assert projection.status == "running"
    projection.apply(f.RunEnded(at(3), "c"))
    assert (projection.status, projection.last_error) == ("failed", BOOM)


@pytest.mark.parametrize("cut", [f.RunDied(at(1), "a"), f.RunEnded(at(1), "a", CTRL_C)], ids=lambda fact: fact.tag)
def test_what_remains_of_a_group_decides(cut: f.Fact) -> None:
    """A run that died, or that Ctrl-C ended, fails its workflow only if no other one goes on and ends well."""
    for ends, status in (
        ([cut, f.RunEnded(at(2), "b")], "completed"),
        ([cut, f.RunEnded(at(2), "b", BOOM)], "failed"),
        ([f.RunEnded(at(0), "b", BOOM), cut], "failed"),
        ([f.RunEnded(at(0), "b"), cut], "failed"),
        ([cut, f.RunEnded(at(2), "b", CTRL_C)], "failed"),
        ([cut, run("c"), f.RunEnded(at(2), "b", BOOM), f.RunEnded(at(3), "c")], "failed"),
    ):
        projection = projected(run("a"), run("b"), *ends[:-1])
        assert projection.status == "running"
        projection.apply(ends[-1])
        assert projection.status == status
        assert (projection.last_error is None) == (status == "completed")


def test_dead_run_counts_as_failed() -> None:
    """A run that died alone has failed; the error names the process and since when it ran."""
    died = projected(run("a"), f.RunDied(at(1), "a"))
    assert died.status == "failed"
    assert died.last_error is not None
    assert "process 7 on host" in died.last_error.message
    assert T0.isoformat() in died.last_error.message
    assert types(died) == ["workflow.running", "workflow.failed"]


def test_a_status_set_by_the_user_is_recorded() -> None:
    """It has its event, and its error or none."""
    projection = projected(f.StatusSet(T0, WorkflowStatus.FAILED, BOOM))
    assert (projection.status, projection.last_error, types(projection)) == ("failed", BOOM, ["workflow.failed"])
    projection.apply(f.StatusSet(T0, WorkflowStatus.IDLE))
    assert (projection.status, projection.last_error, types(projection)[-1]) == ("idle", None, "workflow.idle")
    assert projection.events[-1].detail is None


def test_step_goes_from_running_to_completed() -> None:
    """A step has its start and owner while it runs, and its result and end after that."""
    projection = projected(started(key="k"))
    assert projection.owner("a") == "owner"
    assert projection.steps["a"].status is StepStatus.RUNNING
    projection.apply(f.StepCompleted(at(1), "a", 0))
    step = projection.steps["a"]
    assert projection.owner("a") is None
    assert (step.status, step.attempts, step.result, step.error) == ("completed", 1, 0, None)
    assert (step.started_at, step.completed_at, step.updated_at) == (T0, at(1), at(1))
    assert step.idempotency_key == "k"
    assert projection.events[0].detail == {"step": "a", "attempt": 1, "idempotencyKey": "k"}


def test_a_retried_step_keeps_its_owner() -> None:
    """Between two attempts a step is failed and has its owner; after the last attempt it has none."""
    projection = projected(started(), f.StepFailed(at(1), "a", BOOM, retrying=True))
    assert (projection.steps["a"].status, projection.owner("a"), types(projection)[-1]) == (
        "failed",
        "owner",
        "step.retrying",
    )
    projection.apply(f.StepStarted(at(2), "a", 2, "owner"))
    projection.apply(f.StepFailed(at(3), "a", OTHER))
    step = projection.steps["a"]
    assert (step.status, step.attempts, step.error, projection.owner("a")) == ("failed", 2, OTHER, None)
    assert types(projection)[-1] == "step.failed"
    assert projection.last_error == OTHER


def test_completion_clears_the_last_error() -> None:
    """A step that succeeds in the end leaves no error at itself or at the workflow."""
    projection = projected(
        started(), f.StepFailed(T0, "a", BOOM, True), started(attempt=2), f.StepCompleted(T0, "a", 1)
    )
    assert projection.steps["a"].error is None
    assert projection.last_error is None


def test_a_completion_sets_the_state_too() -> None:
    """One fact records a step's result and the new state; None is a state, and ABSENT is none."""
    projection = projected(started(), f.StepCompleted(T0, "a", 1, {"n": 1}))
    assert projection.state == {"n": 1}
    assert types(projection) == ["step.started", "step.completed", "state.updated"]
    assert projected(started(), f.StepCompleted(T0, "a", 1, None)).state is None
    assert projected(started(), f.StepCompleted(T0, "a", 1)).state == {}


def test_an_abandoned_step_has_no_owner() -> None:
    """An attempt without an outcome keeps its status."""
    projection = projected(started(), f.StepAbandoned(T0, "a"))
    assert (projection.steps["a"].status, projection.owner("a"), types(projection)) == (
        "running",
        None,
        ["step.started", "step.abandoned"],
    )
    assert projection.events[-1].detail == {"step": "a", "attempt": 1}


def test_reset_removes_steps_and_keeps_events() -> None:
    """Names of unknown steps are ignored."""
    projection = projected(started("a"), f.StepCompleted(T0, "a", 1), started("b"), f.StepsReset(T0, ("a", "never")))
    assert list(projection.steps) == ["b"]
    assert projection.matching("a", None, None) is None
    assert types(projection) == ["step.started", "step.completed", "step.started", "steps.reset"]
    assert projection.events[-1].detail == {"steps": ["a", "never"]}
    assert projected(f.StepsReset(T0, ("a",), 7)).events[-1].detail == {"steps": ["a"], "pid": 7}


def test_runs_are_numbered() -> None:
    """They count from 1, over those of earlier releases too, and events name them."""
    projection = projected(run("a"), f.RunEnded(at(1), "a"), run("b", 2))
    assert projection.events[-1].detail == {"run": 2, "pid": 7, "host": "host"}
    assert [event.detail["run"] for event in projection.events] == [1, 1, 2]
    projection.run_count = 0  # as in a snapshot of an earlier release
    projection.apply(run("c", 3))
    assert projection.events[-1].detail["run"] == 3


def test_a_start_names_its_run_or_its_process() -> None:
    """It is the last run of its owner; where that has none, its id has the process, if a new release made it."""
    new = "5b1c0e8e2f4a9d37-4711-99-00000000-00000000-00000000"
    projection = projected(f.RunStarted(T0, "a", new, 4711, "host"), run("b"), f.RunStarted(T0, "c", new, 4711, "host"))
    projection.apply(f.StepStarted(T0, "a", 1, new, version="v"))
    assert projection.events[-1].detail == {"step": "a", "attempt": 1, "idempotencyKey": None, "run": 3, "version": "v"}
    named = [projected(f.StepStarted(T0, "a", 1, owner)).events[-1].detail.get("pid") for owner in (new, new[:16], "-")]
    assert named == [4711, None, None]


def test_a_death_interrupts_what_its_process_had_in_hand() -> None:
    """Each running step of it has an event, with the time of the last fact before; one that was to be retried none."""
    facts = [run("a"), *(f.StepStarted(at(1), step, 1, "owner-a") for step in ("runs", "failed", "done"))]
    facts += [f.StepFailed(at(2), "failed", BOOM, retrying=True), f.StepCompleted(at(3), "done", 1)]
    projection = projected(*facts, f.StepStarted(at(4), "other", 1, "owner-b"))
    seen = projection.last_seen(projection.runs["a"])
    assert seen == at(4)
    projection.apply(f.RunDied(at(9), "a", seen))
    interrupted, failed = projection.events[-2:]
    last_seen = "2026-05-14T12:00:04.007Z"
    assert (interrupted.type, interrupted.detail) == (
        "step.interrupted",
        {"step": "runs", "attempt": 1, "lastSeen": last_seen},
    )
    assert (failed.type, failed.detail["died"], failed.detail["lastSeen"]) == ("workflow.failed", True, last_seen)
    assert failed.detail["run"] == 1


def test_of_several_processes_each_is_last_seen_by_its_own_facts() -> None:
    """What others have recorded since does not count."""
    facts = [run("a"), run("b"), f.StepStarted(at(1), "x", 1, "owner-a"), f.StepStarted(at(2), "y", 1, "owner-b")]
    projection = projected(*facts, f.StepCompleted(at(3), "x", 1), f.StepCompleted(at(4), "y", 1))
    assert [projection.last_seen(projection.runs[name]) for name in "ab"] == [at(3), at(4)]


def test_the_begin_of_a_command_is_an_event() -> None:
    """It names the attempt, and the log, of which later attempts have others."""
    projection = projected(started(attempt=2), f.CommandBegun(at(1), "a", "tag", "/a.2.log"))
    assert (projection.events[-1].type, projection.events[-1].detail) == (
        "command.begun",
        {"step": "a", "attempt": 2, "log": "/a.2.log"},
    )


def test_reset_lifts_the_limit_that_the_step_met_and_no_other() -> None:
    """Another limit with the same end stays, and so does a later one of the same key that another step met."""
    met = [started("a"), f.StepLimited(T0, "a", at(9), "api"), started("b"), f.StepLimited(T0, "b", at(9), "other")]
    projection = projected(*met, f.StepsReset(at(1), ("a",)))
    assert (projection.limits, list(projection.step_limits)) == ({"other": at(9)}, ["b"])
    longer = [started("c"), f.StepLimited(T0, "c", at(10), "api")]
    assert projected(*met, *longer, f.StepsReset(at(1), ("a",))).limits == {"api": at(10), "other": at(9)}


def test_a_wait_ends_when_the_step_begins_or_its_process_says_so() -> None:
    """Another process does not end it; waits that are over go with the next fact about a limit."""
    limited = [started("a"), f.StepLimited(T0, "a", at(9), "api")]
    waiting = [*limited, f.StepWaiting(at(1), "b", "one", at(9), "api")]
    projection = projected(*waiting)
    assert projection.waits == {"a": Wait("owner", T0, at(9), "api"), "b": Wait("one", at(1), at(9), "api")}
    assert list(projection.steps) == ["a"]
    assert list(projected(*waiting, started("b")).waits) == ["a"]
    assert list(projected(*waiting, f.StepWaiting(at(2), "b", "one")).waits) == ["a"]
    assert list(projected(*waiting, f.StepWaiting(at(2), "b", "two")).waits) == ["a", "b"]
    assert list(projected(*waiting, f.StepWaiting(at(9), "c", "one", at(10))).waits) == ["c"]


@pytest.mark.parametrize(
    ("key", "version", "same"),
    [("k", "1", True), (None, "1", False), ("j", "1", False), ("k", None, False), ("k", "2", False)],
)
def test_step_is_known_by_key_and_version_too(key: str | None, version: str | None, same: bool) -> None:
    """A recorded step matches a call only if name, idempotency key and version are equal."""
    projection = projected(started(key="k", version="1"), f.StepCompleted(T0, "a", 1))
    assert (projection.matching("a", key, version) is not None) is same
    assert projection.matching("b", key, version) is None


def test_silent_heartbeat_makes_no_event() -> None:
    """A heartbeat within a background series is recorded without an event."""
    projection = projected(f.HeartbeatRecorded(T0, "k"), f.HeartbeatRecorded(at(1), "k", {"n": 1}, silent=True))
    assert (projection.heartbeats["k"].at, projection.heartbeats["k"].detail) == (at(1), {"n": 1})
    assert types(projection) == ["heartbeat.recorded"]


def lease(token: int, renewed: bool = False, boot: tuple[str, float] | None = ("boot", 9.0)) -> f.LeaseTouched:
    boot_id, boot_expires = boot or (None, None)
    return f.LeaseTouched(T0, "k", "h", 30, T0, at(30), token, renewed, None, boot_id, boot_expires)


def test_lease_keeps_its_token_and_its_clock() -> None:
    """A lease has its token and the boot clock of its last touch; a released one has no clock."""
    projection = projected(lease(1), lease(1, renewed=True, boot=("boot", 12.0)))
    assert (projection.leases["k"].token, projection.tokens["k"]) == (1, 1)
    assert projection.lease_clocks == {"k": LeaseClock("boot", 12.0)}
    assert types(projection) == ["lease.acquired", "lease.renewed"]
    projection.apply(f.LeaseReleased(at(1), "k"))
    assert projection.leases["k"].released_at == at(1)
    assert projection.lease_clocks == {}
    assert projection.tokens["k"] == 1
    projection.apply(lease(2, boot=None))
    assert (projection.leases["k"].token, projection.leases["k"].released_at, projection.lease_clocks) == (2, None, {})


@pytest.mark.parametrize(("ttl", "shown"), [(30.0, 30000), (0.0015, 1.5), (1, 1000)])
def test_lease_event_gives_milliseconds(ttl: float, shown: float) -> None:
    """The event of a lease has its ttl in milliseconds, as an int if it is whole, as in the npm package."""
    projection = projected(f.LeaseTouched(T0, "k", "h", ttl, T0, at(ttl), 1, False))
    assert repr(projection.events[0].detail["ttlMs"]) == repr(shown)


def test_order_is_by_sequence_whatever_clocks_say() -> None:
    """Facts whose times run backwards keep their order, and each one increases the sequence by one."""
    projection = projected(note("first", 10), note("second", 5))
    assert [event.message for event in projection.events] == ["first", "second"]
    assert (projection.seq, projection.updated_at) == (2, at(5))


@pytest.mark.parametrize("kind", FACT_KINDS, ids=lambda kind: kind.__name__)
def test_every_fact_changes_the_projection_and_no_record_made_before(kind: type[f.Fact]) -> None:
    """It changes more than time and sequence.

    Before it come the facts that are declared above it, then the start of an attempt.
    """
    above = FACT_KINDS[: FACT_KINDS.index(kind)]
    projection = projected(*map(full, above))
    if f.StepStarted in above:
        projection.apply(full(f.StepStarted))
    before, unchanged, fact = projection.record(), copy.deepcopy(projection), full(kind)
    expected = copy.deepcopy(before)
    projection.apply(fact)
    after = projection.record()
    assert before == expected
    assert after.updated_at == fact.at
    unchanged.updated_at, unchanged.seq = fact.at, projection.seq
    assert projection != unchanged
    spoil(after)
    assert before == expected


def spoil(record: Any) -> None:
    """Change everything in a record that can be changed."""
    if isinstance(record, list):
        for item in record:
            spoil(item)
        record.append("spoilt")
    elif isinstance(record, tuple):
        for item in record:
            spoil(item)
    elif isinstance(record, dict):
        for item in record.values():
            spoil(item)
        record["spoilt"] = True
    elif attrs.has(type(record)):
        for field in attrs.fields(type(record)):
            spoil(getattr(record, field.name))


def test_records_share_nothing_with_the_projection() -> None:
    """A user who changes a record changes neither the next record nor the snapshot."""
    projection = projected(
        started(),
        f.StepCompleted(T0, "a", {"deep": [1]}),
        f.HeartbeatRecorded(T0, "k", [[1]]),
        f.StateUpdated(T0, {"deep": {"deeper": []}}),
        f.EventAppended(T0, "note", None, {"deep": [1]}),
        lease(1),
    )
    record, written = projection.record(), snapshot_from_projection(projection)
    expected = copy.deepcopy(record)
    spoil(record)
    assert record != expected
    assert projection.record() == expected
    assert snapshot_from_projection(projection) == written


def test_summary_counts_steps_by_status() -> None:
    """A summary has the status, and the number of steps in each status."""
    projection = projected(run("r"), started("a"), f.StepCompleted(T0, "a", 1), started("b"), started("c"))
    summary = projection.summary()
    assert (summary.workflow_id, summary.status) == ("w", "running")
    assert summary.steps == {StepStatus.COMPLETED: 1, StepStatus.RUNNING: 2}
