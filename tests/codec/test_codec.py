from __future__ import annotations

import enum
import io
import json
import math
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FACT_KINDS, T0, new_fold, only

import iso_orchestrator
from iso_orchestrator.codec import (
    ResultCodec,
    decode,
    encode,
    fact_from_json,
    fact_to_json,
    plain_json,
    projection_from_snapshot,
    snapshot_from_projection,
    to_json,
)
from iso_orchestrator.errors import FormatVersionError, SerializationError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import (
    ErrorInfo,
    Heartbeat,
    Lease,
    StepStatus,
    WorkflowEvent,
    WorkflowRecord,
    WorkflowStatus,
)
from iso_orchestrator.record.projection import (
    LastCommand,
    LeaseClock,
    LiveRun,
    Projection,
    StepState,
    Wait,
)

NPM = Path(__file__).parents[1] / "data/npm-0.2.0"
STAMP = "2026-05-14T12:00:00.007Z"

texts = st.text(st.one_of(st.characters(), st.sampled_from('\x00\x1b\u2028\ud800\udfff\U0001f600"\\')), max_size=8)
integers = st.one_of(st.integers(-100, 100), st.integers(-(10**60), 10**60))
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), integers, floats, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, fold=0)
)
optional_texts = st.none() | texts
error_infos = st.builds(ErrorInfo, texts, texts, optional_texts, optional_texts, optional_texts)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "until": times,
    "seed": texts,
    "mark": texts,
    "log": texts,
    "acquired_at": times,
    "at": times,
    "attempt": integers,
    "boot_expires": st.none() | floats,
    "boot_id": optional_texts,
    "detail": values,
    "error": st.none() | error_infos,
    "expires_at": times,
    "holder": texts,
    "host": texts,
    "idempotency_key": optional_texts,
    "key": texts,
    "message": optional_texts,
    "owner": texts,
    "pid": integers,
    "renewed": st.booleans(),
    "result": values,
    "retrying": st.booleans(),
    "run": texts,
    "silent": st.booleans(),
    "state": values,
    "status": st.sampled_from(WorkflowStatus),
    "step": texts,
    "steps": st.lists(texts, max_size=3).map(tuple),
    "token": integers,
    "ttl": floats,
    "type": texts,
    "version": optional_texts,
}


def facts_of(kind: type[f.Fact]) -> st.SearchStrategy[f.Fact]:
    fields = {field.name: FIELDS[field.name] for field in attrs.fields(kind)}
    if kind is f.StepFailed:
        fields["error"] = error_infos
    if kind is f.StepCompleted:
        fields["state"] = st.just(f.ABSENT) | values
    return st.builds(kind, **fields)


@st.composite
def projections(draw: st.DrawFn) -> Projection:
    tokens = draw(st.dictionaries(texts, integers, max_size=3))
    steps = {}
    for name in draw(st.lists(texts, unique=True, max_size=3)):
        status = draw(st.sampled_from(StepStatus))
        steps[name] = StepState(
            name=name,
            status=status,
            attempts=draw(integers),
            updated_at=draw(times),
            started_at=draw(st.none() | times),
            completed_at=draw(st.none() | times),
            idempotency_key=draw(optional_texts),
            result=draw(values) if status is StepStatus.COMPLETED else None,
            error=draw(st.none() | error_infos),
            owner="owner",
            version=draw(optional_texts),
        )
    fields = {
        "workflow_id": draw(texts),
        "created_at": draw(times),
        "updated_at": draw(times),
        "state": draw(values),
        "status": draw(st.sampled_from(WorkflowStatus)),
        "last_error": draw(st.none() | error_infos),
        "steps": steps,
        "events": draw(st.lists(st.builds(WorkflowEvent, times, texts, optional_texts, values), max_size=3)),
        "heartbeats": {key: Heartbeat(key, draw(times), draw(values)) for key in draw(st.lists(texts, max_size=2))},
        "leases": {
            key: Lease(
                key=key,
                holder=draw(texts),
                acquired_at=draw(times),
                heartbeat_at=draw(times),
                expires_at=draw(times),
                released_at=draw(st.none() | times),
                detail=draw(values),
                token=token,
            )
            for key, token in list(tokens.items())[:2]
        },
        "seq": draw(st.integers(0, 10**12)),
        "runs": draw(st.dictionaries(texts, st.builds(LiveRun, texts, integers, texts, times), max_size=2)),
        "run_failed": draw(st.booleans()),
        "tokens": tokens,
        "lease_clocks": {key: LeaseClock(draw(texts), draw(floats)) for key in tokens},
        "limits": draw(st.dictionaries(texts, times, max_size=2)),
        "step_limits": draw(st.dictionaries(texts, times, max_size=2)),
        "step_limit_keys": draw(st.dictionaries(texts, texts, max_size=2)),
        "command_seed": draw(optional_texts),
        "commands": draw(st.dictionaries(texts, st.builds(LastCommand, texts, texts), max_size=2)),
        "waits": draw(st.dictionaries(texts, st.builds(Wait, texts, times, times, optional_texts), max_size=2)),
        "unknown": draw(st.dictionaries(st.sampled_from(["x", "y", "élan"]), values, max_size=2)),
    }
    assert fields.keys() == {field.name for field in attrs.fields(Projection)}
    return Projection(**fields)


@given(values)
def test_json_comes_back_as_it_was(value: Any) -> None:
    """Every JSON value is read back equal and of the same types, lone surrogates and long ints among them."""
    text = encode(to_json(value, "it"))
    assert repr(decode(text)) == repr(value)
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", '{"a":[NaN]}', "", "{", "'a'", "[1,]", "\ufeff1"])
def test_what_is_not_json_is_not_read(text: str) -> None:
    """The standard library's extensions of JSON are refused."""
    with pytest.raises(ValueError, match=r"."):
        decode(text)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2, [3])), [1, [2, [3]]]),
        (Text("abc"), "abc"),
        (Colour.RED, "red"),
        (Level.LOW, 1),
        (OrderedDict(a=(1,)), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        ({Colour.RED: 1}, {"red": 1}),
        (2**64 + 1, 2**64 + 1),
        (-(10**4199), -(10**4199)),
        ("\ud800", "\ud800"),
        (5e-324, 5e-324),
        (-0.0, -0.0),
    ],
)
def test_what_is_nearly_json_becomes_it(value: object, expected: object) -> None:
    """Tuples become lists, subclasses of builtins the builtins, without asking their own methods."""
    found = to_json(value, "it")
    assert repr(found) == repr(expected)
    assert type(found) is type(expected)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


REFUSED = {
    "nan": ({"a": [0, math.nan]}, "$.a[1]", "nan is not JSON"),
    "inf": ([math.inf], "$[0]", "inf is not JSON"),
    "-inf": (-math.inf, "$", "-inf is not JSON"),
    "bytes": ({"body": b"x"}, "$.body", "bytes is not JSON"),
    "set": ({"a": {"b": {1}}}, "$.a.b", "set is not JSON"),
    "file": ([[io.StringIO()]], "$[0][0]", "StringIO is not JSON"),
    "date": ([date(2026, 5, 14)], "$[0]", "date is not JSON"),
    "decimal": ([Decimal(1)], "$[0]", "Decimal is not JSON"),
    "exception": ((ValueError("x"),), "$[0]", "ValueError is not JSON"),
    "generator": ({"a": (n for n in [])}, "$.a", "generator is not JSON"),
    "deque": ([deque([1])], "$[0]", "deque is not JSON"),
    "int key": ({"a": {1: 2}}, "$.a", "the key 1 is not a str but int"),
    "None key": ({None: 2}, "$", "the key None is not a str but NoneType"),
    "tuple key": ({(1, 2): 2}, "$", "is not a str but tuple"),
    "long int": ({"n": 10**4300}, "$.n", "too long to be read back"),
    "long negative int": ([-(10**4300)], "$[0]", "too long to be read back"),
    "200 levels": (nested(200), "[0][0]", "nested deeper than 128 levels"),
}


@pytest.mark.parametrize(("value", "place", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_changed_is_refused_with_its_place(value: object, place: str, reason: str) -> None:
    """A value that JSON cannot hold raises SerializationError, which names the subject, the place and the reason."""
    with pytest.raises(SerializationError) as caught:
        to_json(value, "the result of step 'a'")
    error = caught.value
    assert error.subject == "the result of step 'a'"
    assert error.place == place if place.startswith("$") else place in error.place
    assert reason in error.reason
    assert str(error).startswith("the result of step 'a' ")


def test_cycle_is_refused_in_few_words() -> None:
    """A value that contains itself is refused, with a message that one can read."""
    with pytest.raises(SerializationError, match="contains itself") as caught:
        to_json(cycle(), "the state")
    assert len(str(caught.value)) < 1000


def depth_of(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(depth_of, parts), default=0)


bracketed = st.recursive(
    st.text('[]{}"\\,: ', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=4), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_depth_is_counted_whatever_stands_in_texts(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A text is refused if it is nested deeper than the limit, and only then: brackets in its texts do not count."""
    monkeypatch.setattr("iso_orchestrator.codec.json._MAX_DEPTH_READ", limit)

    @given(bracketed, st.sampled_from([json.dumps, partial(json.dumps, indent=1)]))
    def check(value: object, write: Callable[[object], str]) -> None:
        many = [value] * (limit + 1)  # fewer brackets than that are not looked at
        text = write(many)
        for written in (text, text.encode()):
            if depth_of(many) > limit:
                with pytest.raises(ValueError, match="nested deeper"):
                    decode(written)
            else:
                assert decode(written) == many

    check()


def test_deep_but_legal_values_come_back() -> None:
    """Every depth that is accepted can be read back."""
    deep = nested(127)
    assert decode(encode(to_json(deep, "it"))) == deep


@pytest.mark.parametrize("power", [4198, 4214])
def test_every_int_that_is_accepted_can_be_read_back(power: int) -> None:
    """The limit on ints lies below the interpreter's own."""
    value = 10**power
    assert decode(encode(to_json(value, "it"))) == value


@pytest.mark.parametrize("kind", FACT_KINDS, ids=[kind.__name__ for kind in FACT_KINDS])
def test_facts_come_back_as_they_were(kind: type[f.Fact]) -> None:
    """Every fact is read back from its JSON equal and of the same types."""

    @given(facts_of(kind))
    def check(fact: f.Fact) -> None:
        tag, fields = fact_to_json(fact)
        assert repr(fact_from_json(tag, decode(encode(fields)), "p")) == repr(fact)

    check()


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
    """Nothing is bent into shape: what is not of the type that a fact asks is no fact."""
    with pytest.raises(ValueError, match=r"."):
        fact_from_json(tag, fields, "p")


def test_an_int_does_for_a_float() -> None:
    """JSON writers drop the `.0`: an int is fine where a float is asked."""
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
    fact = fact_from_json("lease.touched", fields, "p")
    assert isinstance(fact, f.LeaseTouched)
    assert type(fact.ttl) is float
    assert fact.ttl == 30.0


@pytest.mark.parametrize("tag", ["step.paused", "", None, 7, ["step.started"]])
def test_unknown_facts_are_of_a_newer_release(tag: Any) -> None:
    """An unknown fact is not skipped: it says that the file needs a newer release, and which file."""
    with pytest.raises(FormatVersionError, match=r"/p/w\.journal") as caught:
        fact_from_json(tag, {"at": STAMP}, "/p/w.journal")
    assert caught.value.path == "/p/w.journal"


@pytest.mark.parametrize("key", ["more", "idempotency_key"])
def test_unknown_fields_are_of_a_newer_release(key: str) -> None:
    """A fact that says more than this release knows is not read by halves."""
    with pytest.raises(FormatVersionError, match=f"'step.started' with the unknown {key}"):
        fact_from_json("step.started", {**STARTED, key: "k"}, "/p/w.journal")


def test_tags_and_keys_on_disk_are_frozen() -> None:
    """The words of the format are these, whatever the classes are called."""
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
    assert [fact_to_json(fact)[0] for fact in SIMPLE_FACTS] == [
        "run.started",
        "run.ended",
        "run.died",
        "step.failed",
        "step.limited",
        "step.waiting",
        "step.abandoned",
        "steps.reset",
        "state.updated",
        "status.set",
        "commands.marked",
        "command.begun",
        "event.appended",
        "heartbeat.recorded",
        "lease.released",
    ]


def test_every_fact_and_every_key_of_ours_is_in_the_page_of_the_format() -> None:
    """The page of the format has a row for each fact, and for each key of `isoOrchestrator`."""
    pages = [path for path in Path(iso_orchestrator.__file__).parent.rglob("*.md") if path.stem.lower() == "format"]
    rows = [line for line in only(pages).read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall("`([^`]*)`", row.split("|")[1])}
    assert set(f.FACTS) <= named
    record = {field.name for field in attrs.fields(WorkflowRecord)}
    fields = [field.name for field in attrs.fields(Projection) if field.name not in (*record, "unknown")]
    assert set(map(camel, fields)) <= named


def camel(name: str) -> str:
    return re.sub("_(.)", lambda letter: letter[1].upper(), name)


SIMPLE_FACTS = [
    f.RunStarted(T0, "r", "o", 1, "h"),
    f.RunEnded(T0, "r"),
    f.RunDied(T0, "r"),
    f.StepFailed(T0, "a", ErrorInfo("E", "m")),
    f.StepLimited(T0, "a", T0),
    f.StepWaiting(T0, "a", "o"),
    f.StepAbandoned(T0, "a"),
    f.StepsReset(T0, ("a",)),
    f.StateUpdated(T0, 1),
    f.StatusSet(T0, WorkflowStatus.IDLE),
    f.CommandsMarked(T0, "s"),
    f.CommandBegun(T0, "a", "m", "/l"),
    f.EventAppended(T0, "t"),
    f.HeartbeatRecorded(T0, "k"),
    f.LeaseReleased(T0, "k"),
]


@given(projections())
def test_records_come_back_as_they_were(projection: Projection) -> None:
    """A snapshot is read back with everything that the record had, what the npm package does not know included."""
    found = projection_from_snapshot(snapshot_from_projection(projection), "p")
    assert repr(found) == repr(projection)


@pytest.mark.parametrize("name", ["fresh", "running", "failed", "completed"])
def test_npm_snapshots_are_read_and_written_back_unchanged(name: str) -> None:
    """A record of the npm package keeps its every key and value, and gets one top-level key beside them."""
    original = json.loads((NPM / f"{name}.json").read_bytes())
    written = json.loads(snapshot_from_projection(projection_from_snapshot((NPM / f"{name}.json").read_bytes(), "p")))
    ours = written.pop("isoOrchestrator")
    assert written == original
    assert set(ours) == {"format", "seq", "runs", "runFailed", "steps", "tokens", "leaseClocks", "crc"}
    assert ours["seq"] == 0


def test_npm_record_is_read_field_by_field() -> None:
    """What Node wrote is found in our fields."""
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
    """What the npm package does not know stands under `isoOrchestrator`, never inside of its own objects."""
    document = json.loads(snapshot_from_projection(projection))
    for part, keys in NPM_KEYS.items():
        for entry in document.get(part, {}).values():
            assert set(entry) <= keys
    for event in document["events"]:
        assert set(event) <= {"at", "type", "message", "detail"}
    for step in document["steps"].values():
        assert set(step.get("error", {})) <= {"name", "message", "stack", "code", "cause"}
        assert step["status"] != "completed" or "result" in step
    known = {
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
    assert set(document) == known & set(document) | set(projection.unknown) | {"isoOrchestrator"}


def test_unknown_top_level_keys_are_kept() -> None:
    """What another program put at the top of a record stays there."""
    document = json.loads((NPM / "completed.json").read_bytes())
    document["dashboard"] = {"colour": [1, None]}
    projection = projection_from_snapshot(json.dumps(document).encode(), "p")
    projection.apply(f.EventAppended(T0, "note"))
    assert json.loads(snapshot_from_projection(projection))["dashboard"] == {"colour": [1, None]}


def test_an_empty_version_is_one() -> None:
    """A step of version "" is not one without a version, after a fold either."""
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
def test_newer_records_are_not_guessed_at(data: bytes, found: str) -> None:
    """A record of a newer version raises FormatVersionError, which says what it has and that an upgrade reads it."""
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
def test_what_is_no_record_is_refused(data: bytes) -> None:
    """Damaged records raise ValueError and nothing else, whatever is wrong with them."""
    with pytest.raises(ValueError, match=r"."):
        projection_from_snapshot(data, "p")


@attrs.define
class Quote:
    amount: Decimal
    at: datetime
    tags: frozenset[str] = frozenset()


@dataclass
class Point:
    x: int
    label: str | None = None


class Title(TypedDict):
    title: str


class Movie(Title, total=False):
    year: int


class Point3(Point):
    z: int = 0


class Derived(Quote):
    pass


class SnapshotAndJournal(NamedTuple):
    left: int
    right: str


class Size(enum.Enum):
    SMALL = "s"
    BIG = 2


QUOTE = Quote(Decimal("1.10"), datetime(2026, 5, 14, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2))), frozenset({"a"}))

RESULTS: list[tuple[Any, Any]] = [
    (int, 2**70),
    (float, 1.5),
    (str, "\ud800"),
    (bool, False),
    (None, None),
    (bytes, b"\x00\xff"),
    (Quote, QUOTE),
    (Point, Point(1)),
    (Point, Point(1, "a")),
    (Movie, {"title": "Alien", "year": 1979}),
    (Movie, {"title": "Alien"}),
    (SnapshotAndJournal, SnapshotAndJournal(1, "b")),
    (Size, Size.BIG),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (datetime, datetime(2026, 5, 14, 1, 2, 3, 456789, tzinfo=UTC)),
    (datetime, datetime(2026, 5, 14)),
    (date, date(2026, 5, 14)),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta.max),
    (Path, Path("a/../b")),
    (PurePosixPath, PurePosixPath("/a/b")),
    (Decimal, Decimal("NaN")),
    (Decimal, Decimal("1E+400")),
    (UUID, UUID(int=7)),
    (list[int], [1, 2]),
    (list[Quote], [QUOTE, QUOTE]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[int], {1, 2, 3}),
    (frozenset[str], frozenset({"a"})),
    (set[SnapshotAndJournal], {SnapshotAndJournal(1, "a")}),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {-1: "a", 2: "b"}),
    (dict[UUID, int], {UUID(int=7): 1}),
    (dict[date, list[Point]], {date(2026, 5, 14): [Point(1)]}),
    (dict[Size, int], {Size.SMALL: 1, Size.BIG: 2}),
    (dict[str, Any], {"a": [1, None, {"b": 2.5}]}),
    (Mapping[str, Point], {"a": Point(1)}),
    (list[Any], [1, "a", None]),
    (Optional[Point], None),  # noqa: UP045 - both spellings are users'
    (Point | None, Point(1)),
    (int | str, "1"),
    (int | str, 1),
    (int | None, 0),
    (Quote | Point | None, QUOTE),
    (Quote | Point | None, Point(2)),
    (list[int] | None, [1]),
    (Literal["a", 1], "a"),
    (Annotated[int, "metres"], 3),
    (Any, {"a": [1]}),
    (object, [1]),
]


@pytest.mark.parametrize(
    ("annotation", "value"), RESULTS, ids=[f"{number} {kind}"[:60] for number, (kind, _) in enumerate(RESULTS)]
)
def test_results_come_back_as_their_annotation_says(annotation: Any, value: Any) -> None:
    """A result survives its way through JSON, and is of the annotated type."""
    codec = ResultCodec(annotation)
    recorded = decode(encode(codec.dump(value, "the result")))
    found = codec.load(recorded, "the result")
    assert repr(found) == repr(value)
    assert type(found) is type(value)


def test_without_annotation_json_comes_back() -> None:
    """Where nothing is annotated a tuple comes back as a list, and what is not JSON is refused."""
    codec = ResultCodec(__import__("inspect").Signature.empty)
    assert codec.load(codec.dump({"a": (1, 2)}, "it"), "it") == {"a": [1, 2]}
    with pytest.raises(SerializationError, match=r"annotate the .*function"):
        codec.dump({1, 2}, "it")


def test_loaded_results_share_nothing_with_the_record() -> None:
    """What a caller does to a result does not change the record."""
    for annotation in (Any, list[Any], dict[str, list[int]]):
        recorded: Any = {"a": [1]} if annotation != list[Any] else [[1]]
        found = ResultCodec(annotation).load(recorded, "it")
        inner = found[0] if isinstance(found, list) else found["a"]
        inner.append(2)
        assert recorded in ({"a": [1]}, [[1]])


LOSSY: dict[str, tuple[Any, Any]] = {
    "text for int": (int, "1"),
    "float for int": (int, 1.0),
    "bool for int": (int, True),
    "int for bool": (bool, 1),
    "int for text": (str, 1),
    "None for int": (int, None),
    "None for class": (Point, None),
    "value for None": (None, 1),
    "text for list": (list[str], "abc"),
    "dict for list": (list[str], {"a": 1}),
    "text in list of int": (list[int], [1, "2"]),
    "nan in class": (list[float], [math.nan]),
    "text for set": (set[str], "abc"),
    "text for tuple": (tuple[str, ...], "abc"),
    "text for fixed tuple": (tuple[str, str], "ab"),
    "bytes for list": (list[int], b"ab"),
    "other class": (Point, QUOTE),
    "subclass": (Point, Point3(1)),
    "subclass of attrs": (Quote, Derived(QUOTE.amount, QUOTE.at)),
    "subclass within": (list[Point], [Point(1), Point3(1)]),
    "long int for float": (float, 2**53 + 1),
    "huge int for float": (float, 10**400),
    "date for datetime": (datetime, date(2026, 5, 14)),
    "datetime for date": (date, datetime(2026, 5, 14, tzinfo=UTC)),
    "field of another type": (Point, Point("1")),  # type: ignore[arg-type]
    "dict for class": (Point, {"x": 1}),
    "not in the literal": (Literal["a"], "b"),
    "not in the enum": (Size, "huge"),
    "text for datetime": (datetime, "2026-05-14"),
    "int for path": (Path, 7),
    "text for path": (Path, "a"),
    "text for pure path": (PurePosixPath, "a"),
    "text for decimal": (Decimal, "1.5"),
    "float for decimal": (Decimal, 1.5),
    "text for uuid": (UUID, str(UUID(int=7))),
    "missing key": (Movie, {"year": 1}),
    "key of another type": (dict[int, str], {"1": "a"}),
    "key between types": (dict[int | str, int], {1: 1}),
    "short tuple": (tuple[int, str], (1,)),
    "long tuple": (tuple[int, str], (1, "a", 2)),
    "named tuple of another type": (SnapshotAndJournal, SnapshotAndJournal("1", "a")),  # type: ignore[arg-type]
    "none of a union": (int | None, "1"),
    "datetime in a union with text": (datetime | str, datetime(2026, 5, 14, tzinfo=UTC)),
    "path in a union with text": (dict[str, Path | str], {"a": Path("a")}),
    "bytes in a union with text": (list[bytes | str | None], [None, b"abc"]),
    "open file": (Any, io.StringIO()),
    "set": (Any, {1}),
}


@pytest.mark.parametrize(("annotation", "value"), LOSSY.values(), ids=LOSSY.keys())
def test_results_that_do_not_fit_their_annotation_are_refused(annotation: Any, value: Any) -> None:
    """A result that would not come back as it is raises SerializationError, which names the subject and the place."""
    codec = ResultCodec(annotation)
    with pytest.raises(SerializationError, match=r"the result of step 'a' .*at \$"):
        codec.load(decode(encode(codec.dump(value, "the result of step 'a'"))), "the result of step 'a'")


def test_misfit_names_its_place() -> None:
    """The place of what does not fit is said as in `$[1]`."""
    codec = ResultCodec(list[int])
    with pytest.raises(SerializationError) as caught:
        codec.load([1, "2"], "the result")
    assert caught.value.place == "$[1]"
    assert "int expected, not str" in caught.value.reason


def test_annotation_that_does_not_resolve_yet_is_tried_again() -> None:
    """A class whose fields speak of one that is defined later is structured as soon as that is there."""
    namespace: dict[str, Any] = {"__name__": "later", "dataclass": dataclass}
    module = type(io)("later")
    exec("@dataclass\nclass Outer:\n    inner: 'list[Inner]'", module.__dict__ | namespace, vars(module))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "later", module)
        outer = vars(module)["Outer"]
        with pytest.raises(SerializationError):
            ResultCodec(outer).dump(outer([]), "it")
        exec("@dataclass\nclass Inner:\n    n: int", namespace, vars(module))
        value = outer([vars(module)["Inner"](1)])
        codec = ResultCodec(outer)
        assert codec.load(codec.dump(value, "it"), "it") == value


def test_annotations_that_cannot_be_structured_read_as_json() -> None:
    """A class that says nothing of its make-up counts as no annotation."""

    class Opaque:
        pass

    codec = ResultCodec(Sequence["NotThere"])  # type: ignore[name-defined]  # noqa: F821
    assert codec.dump([1], "it") == [1]
    with pytest.raises(SerializationError, match="Opaque is not JSON"):
        ResultCodec(Opaque).dump(Opaque(), "it")


def test_states_are_written_by_their_class() -> None:
    """A state or a detail may be JSON, or anything whose class says how it is written."""
    assert plain_json({"at": Point(1, "a"), "when": date(2026, 5, 14)}, "the state") == {
        "at": {"x": 1, "label": "a"},
        "when": "2026-05-14",
    }
    assert plain_json(QUOTE, "the state") == {
        "amount": "1.10",
        "at": "2026-05-14T01:02:03.000004+02:00",
        "tags": ["a"],
    }


@pytest.mark.parametrize("value", [math.nan, {"a": io.StringIO()}, cycle(), nested(200), object(), {1: "a"}])
def test_states_that_cannot_be_written_are_refused(value: object) -> None:
    """What no class explains is refused, with the subject."""
    with pytest.raises(SerializationError, match=r"the state .*at \$"):
        plain_json(value, "the state")
