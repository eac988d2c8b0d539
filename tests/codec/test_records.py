from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import T0, new_fold, only
from support_codec import integers, texts, values
from support_facts import FACT_KINDS, fact_of, full, least, line_of, lines, objects_of

import iso_orchestrator
from iso_orchestrator.codec import (
    decode,
    encode,
    fact_from_json,
    fact_to_json,
    projection_from_snapshot,
    snapshot_from_projection,
)
from iso_orchestrator.errors import FormatVersionError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record import model, workflow_record
from iso_orchestrator.record import projection as projection_module
from iso_orchestrator.record.model import Lease, StepRecord, StepStatus, WorkflowStatus
from iso_orchestrator.record.projection import (
    Projection,
    StepState,
)
from iso_orchestrator.record.workflow_record import WorkflowRecord

NPM = Path(__file__).parents[1] / "data/npm-0.2.0"
GOLDEN = Path(__file__).parents[1] / "reliability/golden/format-1/snapshot alone"
STAMP = "2026-05-14T12:00:00.007Z"


@st.composite
def projections(draw: st.DrawFn) -> Projection:
    """Projections of any fields, but for two rules: a lease's token is the key's, and unknown keys are not ours."""
    tokens = draw(st.dictionaries(texts, integers, max_size=3))
    leases = {key: draw(objects_of(Lease, token=st.just(token))) for key, token in list(tokens.items())[:2]}
    unknown = st.dictionaries(st.sampled_from(["x", "y", "élan"]), values, max_size=2)
    return draw(objects_of(Projection, tokens=st.just(tokens), leases=st.just(leases), unknown=unknown))


@pytest.mark.parametrize("kind", FACT_KINDS, ids=lambda kind: kind.__name__)
def test_facts_come_back_as_they_were(kind: type[f.Fact]) -> None:
    """Every fact is read back from its JSON with the same values and types."""

    @given(objects_of(kind))
    def check(fact: f.Fact) -> None:
        tag, fields = fact_to_json(fact)
        assert repr(fact_from_json(tag, decode(encode(fields)))) == repr(fact)

    check()


@pytest.mark.parametrize("line", lines(), ids=lambda line: decode(line)["fact"])
def test_a_fact_that_was_ever_written_is_read(line: str) -> None:
    """Each line of `tests/data/facts.jsonl`, to which lines are only added, is read and written as it is."""
    assert line_of(fact_of(line)) == line


@pytest.mark.parametrize("kind", FACT_KINDS, ids=lambda kind: kind.__name__)
def test_facts_are_written_as_before(kind: type[f.Fact]) -> None:
    """The examples of each fact, with all of its fields and with as few as can be, are in `tests/data/facts.jsonl`."""
    for example in (least(kind), full(kind)):
        assert line_of(example) in lines(), "add the lines of a new fact: PYTHONPATH=. python tests/support_facts.py"
        assert repr(fact_of(line_of(example))) == repr(example)
    assert len(decode(line_of(full(kind)))) == 1 + len(attrs.fields(kind))


STARTED = {"at": STAMP, "step": "a", "attempt": 1, "owner": "o"}
MISFITS: dict[str, tuple[str, dict[str, Any]]] = {
    "text for int": ("step.started", {**STARTED, "attempt": "1"}),
    "float for int": ("step.started", {**STARTED, "attempt": 1.0}),
    "bool for int": ("step.started", {**STARTED, "attempt": True}),
    "None for text": ("step.started", {**STARTED, "step": None}),
    "int for text": ("step.started", {**STARTED, "owner": 1}),
    "int for optional text": ("step.started", {**STARTED, "idempotencyKey": 1}),
    "missing": ("step.started", {"at": STAMP, "step": "a", "owner": "o"}),
    "text for bool": ("heartbeat.recorded", {"at": STAMP, "key": "k", "silent": "false"}),
    "int for bool": ("heartbeat.recorded", {"at": STAMP, "key": "k", "silent": 0}),
    "unknown status": ("status.set", {"at": STAMP, "status": "paused"}),
    "int for status": ("status.set", {"at": STAMP, "status": 1}),
    "naive time": ("state.updated", {"at": "2026-05-14T12:00:00.007", "state": 1}),
    "number for time": ("state.updated", {"at": 1778760000, "state": 1}),
    "no time": ("state.updated", {"at": "soon", "state": 1}),
    "time before all time": ("state.updated", {"at": "0001-01-01T00:00:00+14:00", "state": 1}),
    "text for list": ("steps.reset", {"at": STAMP, "steps": "abc"}),
    "object for list": ("steps.reset", {"at": STAMP, "steps": {"a": 1}}),
    "text for object": ("run.ended", {"at": STAMP, "run": "r", "error": "boom"}),
    "list for object": ("run.ended", {"at": STAMP, "run": "r", "error": ["name", "message"]}),
}


@pytest.mark.parametrize(("tag", "fields"), MISFITS.values(), ids=MISFITS.keys())
def test_facts_are_read_strictly(tag: str, fields: dict[str, Any]) -> None:
    """A field of another type than the fact declares is refused, not converted."""
    with pytest.raises(ValueError, match=r"."):
        fact_from_json(tag, fields)


def test_an_int_is_read_as_a_float() -> None:
    """JSON writers drop `.0`, so that an int is accepted for a float."""
    fields = {
        "at": STAMP,
        "key": "k",
        "holder": "h",
        "ttl": 30,
        "acquiredAt": STAMP,
        "expiresAt": STAMP,
        "token": 1,
        "renewed": False,
    }
    fact = fact_from_json("lease.touched", fields)
    assert isinstance(fact, f.LeaseTouched)
    assert type(fact.ttl) is float
    assert fact.ttl == 30.0


@pytest.mark.parametrize("tag", ["step.paused", "", None, 7, ["step.started"]])
def test_an_unknown_fact_is_refused(tag: Any) -> None:
    """An unknown fact is not skipped."""
    with pytest.raises(ValueError, match="the unknown fact"):
        fact_from_json(tag, {"at": STAMP})


@pytest.mark.parametrize("key", ["more", "idempotency_key"])
def test_an_unknown_field_is_refused(key: str) -> None:
    """A fact with a field that this release does not know is not read in part."""
    with pytest.raises(ValueError, match=f"'step.started' with the unknown {key}"):
        fact_from_json("step.started", {**STARTED, key: "k"})


def test_tags_and_keys_on_disk_are_frozen() -> None:
    """Tags and keys stay as they are, whatever the classes are called."""
    lease = f.LeaseTouched(T0, "k", "h", 1.5, T0, T0, 7, True, {"d": 1}, "boot", 2.5)
    assert fact_to_json(lease) == (
        "lease.touched",
        {
            "at": STAMP,
            "key": "k",
            "holder": "h",
            "ttl": 1.5,
            "acquiredAt": STAMP,
            "expiresAt": STAMP,
            "token": 7,
            "renewed": True,
            "detail": {"d": 1},
            "bootId": "boot",
            "bootExpires": 2.5,
        },
    )
    assert fact_to_json(f.StepStarted(T0, "a", 2, "o", "key", "v")) == (
        "step.started",
        {"at": STAMP, "step": "a", "attempt": 2, "owner": "o", "idempotencyKey": "key", "version": "v"},
    )
    assert fact_to_json(f.StepCompleted(T0, "a", None)) == (
        "step.completed",
        {"at": STAMP, "step": "a", "result": None},
    )
    assert fact_to_json(f.StepCompleted(T0, "a", 1, None))[1]["state"] is None


def test_the_page_of_the_format_is_complete() -> None:
    """It has a row for each key of `isoOrchestrator`."""
    pages = [path for path in Path(iso_orchestrator.__file__).parent.rglob("*.md") if path.stem.lower() == "format"]
    rows = [line for line in only(pages).read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall("`([^`]*)`", row.split("|")[1])}
    fields = {camel(field.name) for field in attrs.fields(Projection)} - NPM_RECORD_KEYS - {"unknown"}
    assert fields <= named


def camel(name: str) -> str:
    return re.sub("_(.)", lambda letter: letter[1].upper(), name)


@given(projections())
def test_records_come_back_as_they_were(projection: Projection) -> None:
    """A snapshot is read back with all fields of the projection, also those that the npm package does not know."""
    found = projection_from_snapshot(snapshot_from_projection(projection), "p")
    assert repr(found) == repr(projection)


@pytest.mark.parametrize("name", ["fresh", "running", "failed", "completed"])
def test_npm_snapshots_are_read_and_written_back_unchanged(name: str) -> None:
    """A record of the npm package keeps all keys and values, and gets one more top-level key."""
    original = json.loads((NPM / f"{name}.json").read_bytes())
    written = json.loads(snapshot_from_projection(projection_from_snapshot((NPM / f"{name}.json").read_bytes(), "p")))
    ours = written.pop("isoOrchestrator")
    assert written == original
    assert set(ours) == {"format", "seq", "runs", "runFailed", "steps", "tokens", "leaseClocks", "crc"}
    assert ours["seq"] == 0


def test_npm_record_is_read_field_by_field() -> None:
    """Each field of a record that Node wrote is found in our field."""
    record = projection_from_snapshot((NPM / "failed.json").read_bytes(), "p").record()
    assert record.workflow_id == "Nightly Batch/№ 7"
    assert record.status is WorkflowStatus.FAILED
    assert record.created_at == datetime(2026, 4, 25, 8, 0, 0, 7000, tzinfo=UTC)
    assert record.state == {"applied": 1, "ünï": ["\0", "😀", "\u2028"]}
    assert list(record.steps) == ["plain", "null result", "keyed", "retried", "rejected", "left running"]
    assert record.steps["retried"].attempts == 2
    assert record.steps["null result"].status is StepStatus.COMPLETED
    assert record.steps["null result"].result is None
    assert record.steps["keyed"].idempotency_key == "k-1"
    assert record.steps["rejected"].error is not None
    assert record.steps["rejected"].error.cause == "root cause"
    assert record.leases["other"].released_at == datetime(2026, 4, 25, 8, 0, 20, 7000, tzinfo=UTC)
    assert record.heartbeats["worker"].detail is None
    assert record.last_error is not None
    assert (record.last_error.name, record.last_error.message) == ("TypeError", "the end")
    assert [event.type for event in record.events][-2:] == ["step.completed", "workflow.failed"]


# The types of the npm package (dist/types.d.ts): its own objects hold these keys and no others.
NPM_RECORD_KEYS = {
    "version",
    "workflowId",
    "status",
    "createdAt",
    "updatedAt",
    "state",
    "steps",
    "events",
    "heartbeats",
    "leases",
    "lastError",
}
NPM_KEYS = {
    "steps": {
        "name",
        "status",
        "attempts",
        "startedAt",
        "updatedAt",
        "completedAt",
        "idempotencyKey",
        "result",
        "error",
    },
    "heartbeats": {"key", "at", "detail"},
    "leases": {"key", "holder", "acquiredAt", "heartbeatAt", "expiresAt", "releasedAt", "detail"},
}


@given(projections())
def test_npm_objects_hold_npm_keys_and_no_others(projection: Projection) -> None:
    """Keys that the npm package does not know stand under `isoOrchestrator`, never inside its own objects."""
    document = json.loads(snapshot_from_projection(projection))
    for part, keys in NPM_KEYS.items():
        for entry in document.get(part, {}).values():
            assert set(entry) <= keys
    for event in document["events"]:
        assert set(event) <= {"at", "type", "message", "detail"}
    for step in document["steps"].values():
        assert set(step.get("error", {})) <= {"name", "message", "stack", "code", "cause"}
        assert step["status"] != "completed" or "result" in step
    assert set(document) == NPM_RECORD_KEYS & set(document) | set(projection.unknown) | {"isoOrchestrator"}


@attrs.define
class GrownStep(StepState):
    reviewers: list[str] = attrs.field(factory=list)


@attrs.define(kw_only=True)
class GrownProjection(Projection):
    steps: dict[str, GrownStep] = attrs.field(factory=dict)
    approvals: dict[str, datetime] = attrs.field(factory=dict)


@attrs.frozen
class GrownRecord(WorkflowRecord):
    approvals: Mapping[str, datetime] = attrs.field(factory=dict)


@attrs.frozen
class GrownStepRecord(StepRecord):
    reviewers: Sequence[str] = ()


@pytest.fixture
def grown_codec(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The codec of a release in which records and steps have a field more."""
    monkeypatch.setattr(workflow_record, "WorkflowRecord", GrownRecord)
    monkeypatch.setattr(model, "StepRecord", GrownStepRecord)
    monkeypatch.setattr(projection_module, "Projection", GrownProjection)
    monkeypatch.setattr(projection_module, "StepState", GrownStep)
    spec = importlib.util.find_spec("iso_orchestrator.codec.records")
    assert spec is not None
    assert spec.loader is not None
    codec = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(codec)
    return codec


def test_a_new_field_goes_into_our_own_part(grown_codec: ModuleType) -> None:
    """A field that records or steps get later is in `isoOrchestrator`, and is read back."""
    step = GrownStep("a", StepStatus.RUNNING, 1, T0, reviewers=["eve"])
    projection = GrownProjection(
        workflow_id="w",
        status=WorkflowStatus.IDLE,
        created_at=T0,
        updated_at=T0,
        state=1,
        steps={"a": step},
        approvals={"release": T0},
    )
    data = grown_codec.snapshot_from_projection(projection)
    document = json.loads(data)
    assert set(document) <= {*NPM_RECORD_KEYS, "isoOrchestrator"}
    assert set(document["steps"]["a"]) <= NPM_KEYS["steps"]
    assert document["isoOrchestrator"]["approvals"] == {"release": STAMP}
    assert document["isoOrchestrator"]["steps"] == {"a": {"reviewers": ["eve"]}}
    assert repr(grown_codec.projection_from_snapshot(data, "p")) == repr(projection)


@pytest.mark.parametrize("path", [NPM / "failed.json", GOLDEN / "golden-1-a-5b666e92.json"], ids=["npm", "ours"])
def test_an_old_record_has_the_default_of_a_new_field(grown_codec: ModuleType, path: Path) -> None:
    """A record that was written before a field existed is read as before, with the field's default."""
    found = grown_codec.projection_from_snapshot(path.read_bytes(), "p")
    assert found.approvals == {}
    assert [step.reviewers for step in found.steps.values()] == [[] for _ in found.steps]
    before = projection_from_snapshot(path.read_bytes(), "p")
    assert before.steps
    assert grown_codec.snapshot_from_projection(found) == snapshot_from_projection(before)


def test_another_programs_key_in_a_step_is_not_taken_for_ours() -> None:
    """A step's owner is read from `isoOrchestrator` alone."""
    step = {"name": "a", "status": "running", "attempts": 1, "updatedAt": STAMP, "owner": "theirs"}
    assert projection_from_snapshot(changed(steps={"a": step}), "p").owner("a") is None


def test_unknown_top_level_keys_are_kept() -> None:
    """Top-level keys of another program stay in the record."""
    document = json.loads((NPM / "completed.json").read_bytes())
    document["dashboard"] = {"colour": [1, None]}
    projection = projection_from_snapshot(json.dumps(document).encode(), "p")
    projection.apply(f.EventAppended(T0, "note"))
    assert json.loads(snapshot_from_projection(projection))["dashboard"] == {"colour": [1, None]}


def test_an_empty_version_is_a_version() -> None:
    """A step of version "" differs from one without a version, after a snapshot too."""
    projection = new_fold()
    projection.apply(f.StepStarted(T0, "a", 1, "o", None, ""))
    projection.apply(f.StepCompleted(T0, "a", 1))
    found = projection_from_snapshot(snapshot_from_projection(projection), "p")
    assert found.matching("a", None, "") is not None
    assert found.matching("a", None, None) is None


def changed(**parts: Any) -> bytes:
    document = json.loads(snapshot_from_projection(new_fold()))
    return json.dumps({**document, **parts}).encode()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (changed(version=2), "record version 2"),
        (changed(isoOrchestrator={"format": 2}), "isoOrchestrator format 2"),
        (changed(isoOrchestrator={"format": "1"}), "isoOrchestrator format 1"),
    ],
)
def test_newer_records_are_refused(data: bytes, found: str) -> None:
    """A record of a newer version raises FormatVersionError, which says what was found and that an upgrade reads it."""
    with pytest.raises(FormatVersionError, match="upgrade iso-orchestrator") as caught:
        projection_from_snapshot(data, "/p/w.json")
    assert (caught.value.path, caught.value.found) == ("/p/w.json", found)


STEP = {"name": "a", "status": "completed", "attempts": 1, "updatedAt": STAMP, "result": None}
LEASE = {"key": "k", "holder": "h", "acquiredAt": STAMP, "heartbeatAt": STAMP, "expiresAt": STAMP}
DAMAGED = {
    "a list": b"[]",
    "no object": b'"text"',
    "no version": b"{}",
    "version alone": b'{"version":1}',
    "version true": changed(version=True),
    "version text": changed(version="1"),
    "version zero": changed(version=0),
    "id missing": json.dumps({"version": 1, "status": "idle", "createdAt": STAMP, "updatedAt": STAMP}).encode(),
    "id no text": changed(workflowId=7),
    "status": changed(status="paused"),
    "time": changed(createdAt="yesterday"),
    "time overflows": changed(createdAt="0001-01-01T00:00:00+14:00"),
    "steps list": changed(steps=[]),
    "steps None": changed(steps=None),
    "step no object": changed(steps={"a": 1}),
    "step attempts": changed(steps={"a": {**STEP, "attempts": "1"}}),
    "step lacks a key": changed(steps={"a": {"name": "a"}}),
    "events object": changed(events={}),
    "events text": changed(events="abc"),
    "event no object": changed(events=[1]),
    "heartbeats list": changed(heartbeats=[1]),
    "leases list": changed(leases=[1]),
    "leases text": changed(leases="abc"),
    "lease no object": changed(leases={"k": 1}),
    "lease key": changed(leases={"k": {**LEASE, "holder": None}}),
    "last error": changed(lastError="boom"),
    "ours no object": changed(isoOrchestrator=7),
    "ours list": changed(isoOrchestrator=[]),
    "seq": changed(isoOrchestrator={"seq": "7"}),
    "tokens": changed(isoOrchestrator={"tokens": {"k": "1"}}),
    "tokens list": changed(isoOrchestrator={"tokens": [1]}),
    "runs": changed(isoOrchestrator={"runs": {"r": {}}}),
    "notes": changed(isoOrchestrator={"steps": {"a": 1}}),
    "not JSON": b"{",
    "not UTF-8": b'{"version":1,"workflowId":"\xff"}',
    "NaN": b'{"version":1,"state":NaN}',
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_records_are_refused(data: bytes) -> None:
    """Any damage raises ValueError and no other error."""
    with pytest.raises(ValueError, match=r"."):
        projection_from_snapshot(data, "p")
