"""What a workflow records besides steps: its state, events, heartbeats, status; and the records that show it."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import DEADLINE, WatchedFS, wait_until
from support_fanout import NOON, codes_of
from support_processes import child, in_thread, killed

from iso_orchestrator import (
    ErrorInfo,
    FileStore,
    Heartbeat,
    Lease,
    LeaseStatus,
    SerializationError,
    StepRecord,
    StepStatus,
    Workflow,
    WorkflowEvent,
    WorkflowRecord,
    WorkflowStatus,
    WorkflowUsageError,
    read_workflow_record,
)
from iso_orchestrator.testing import FakeClock


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow("w", dir=tmp_path, initial_state={"count": 0})
    yield workflow
    workflow.close()


def count_up(state: Any) -> Any:
    return {"count": state["count"] + 1}


# update_state


def test_the_state_is_replaced_by_a_value(workflow: Workflow) -> None:
    """What was there before is gone, and the new state is returned."""
    assert workflow.update_state({"new": [1, None, "x"]}) == {"new": [1, None, "x"]}
    assert workflow.state == {"new": [1, None, "x"]}
    assert workflow.update_state(None) is None
    assert workflow.state is None


def test_the_state_is_replaced_by_what_a_function_makes_of_it(workflow: Workflow) -> None:
    """The function gets the state, and its result is the new one."""
    assert workflow.update_state(count_up) == {"count": 1}
    assert workflow.update_state(count_up) == {"count": 2}
    assert workflow.state == workflow.record.state == {"count": 2}


def test_an_update_is_an_event(workflow: Workflow) -> None:
    """Each update is on record, and a refused one is not."""
    workflow.update_state(count_up)
    with pytest.raises(TypeError):
        workflow.update_state(lambda state: None)
    assert codes_of(workflow.record.events, "state.updated") == ["state.updated"]


def test_the_function_gets_a_copy(workflow: Workflow) -> None:
    """What is done to the old state inside of the function is not recorded, nor what is done to the new one later."""
    kept: list[Any] = []

    def keep(state: Any) -> Any:
        state["count"] = 99
        kept.append({"list": [1]})
        return kept[0]

    returned = workflow.update_state(keep)
    returned["list"].append(2)
    kept[0]["list"].append(3)
    workflow.state["list"].append(4)
    assert workflow.state == {"list": [1]}


def test_a_value_is_copied(workflow: Workflow) -> None:
    """The caller's own value stays the caller's."""
    value = {"list": [1]}
    returned = workflow.update_state(value)
    value["list"].append(2)
    returned["list"].append(3)
    assert workflow.state == {"list": [1]}


@attrs.define
class Progress:
    done: int
    at: datetime


def test_a_state_may_be_of_a_class(tmp_path: Path) -> None:
    """What cattrs unstructures is kept as JSON, as a value and as a function's result."""
    workflow = Workflow("w", dir=tmp_path, initial_state=Progress(0, NOON))
    assert workflow.state["done"] == 0
    assert workflow.update_state(Progress(1, NOON))["done"] == 1
    assert workflow.update_state(lambda _: Progress(2, NOON))["done"] == 2
    assert isinstance(workflow.state["at"], str)
    workflow.close()


def test_the_initial_state_is_written_only_when_the_record_is_new(workflow: Workflow, tmp_path: Path) -> None:
    """A later one changes nothing, and is not remembered."""
    workflow.update_state({"count": 7})
    workflow.close()
    again = Workflow("w", dir=tmp_path, initial_state={"count": 1000})
    assert again.state == {"count": 7}
    again.append_event("used")
    assert again.state == {"count": 7}
    again.close()


def test_threads_lose_no_update(workflow: Workflow) -> None:
    """Eight threads that count at the same time count everything."""

    def count() -> None:
        for _ in range(25):
            workflow.update_state(count_up)

    for future in [in_thread(count) for _ in range(8)]:
        future.result(DEADLINE)
    assert workflow.state == {"count": 200}


@pytest.mark.slow
def test_processes_lose_no_update(workflow: Workflow, tmp_path: Path) -> None:
    """Four processes that count at the same time count everything, and each update is on record."""
    code = """
        workflow.append_event("ready")
        say("ready")
        hear()
        for _ in range(50):
            workflow.update_state(lambda state: {"count": state["count"] + 1})
        workflow.close()
    """
    workflow.append_event("made")
    with (
        child(code, tmp_path) as one,
        child(code, tmp_path) as two,
        child(code, tmp_path) as three,
        child(code, tmp_path) as four,
    ):
        children = (one, two, three, four)
        for process in children:
            assert process.line() == "ready"
        for process in children:
            process.say()
        for process in children:
            process.end()
    assert workflow.state == {"count": 200}
    assert len(codes_of(workflow.record.events, "state.updated")) == 200


def _fail(state: Any) -> Any:
    state["count"] = 99
    raise LookupError("the updater's own")


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "raises": (_fail, LookupError, "the updater's own"),
    "returns None": (lambda state: state.update(count=1), TypeError, "return"),
    "returns a set": (lambda state: {"seen": {1}}, SerializationError, r"\$\.seen"),
    "returns NaN": (lambda state: float("nan"), SerializationError, r"\$"),
    "returns bytes": (lambda state: [b"x"], SerializationError, r"\$\[0\]"),
    "is a generator": (lambda state: (n for n in (1, 2)), SerializationError, "generator"),
    "takes nothing": (lambda: {"count": 1}, TypeError, "argument"),
    "a value with a set": ({"seen": {1}}, SerializationError, r"\$\.seen"),
    "a value with a number for a key": ({1: "one"}, SerializationError, r"\$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_update_that_goes_wrong_changes_nothing(workflow: Workflow, case: str) -> None:
    """Whatever is wrong with it, the state stays as it was, nothing is recorded, and the next update works."""
    update, kind, says = REFUSED[case]
    workflow.append_event("opened")
    before = workflow.record
    with pytest.raises(kind, match=says):
        workflow.update_state(update)
    assert workflow.record == before
    assert workflow.update_state(count_up) == {"count": 1}


def test_none_may_follow_none(workflow: Workflow) -> None:
    """A function may return None where the state was None already."""
    workflow.update_state(None)
    assert workflow.update_state(lambda state: state) is None


def test_what_a_function_raises_is_raised_as_it_is(workflow: Workflow) -> None:
    """An error that is no `Exception` goes through, and leaves the workflow usable from other threads."""
    for kind in (KeyboardInterrupt, SystemExit):

        def leave(_: Any, kind: type[BaseException] = kind) -> Any:
            raise kind(7)

        with pytest.raises(kind):
            workflow.update_state(leave)
    assert in_thread(workflow.update_state, count_up).result(DEADLINE) == {"count": 1}


# In a process of its own: who waits for itself there keeps no test run from ending.
INSIDE = """
uses = {
    "record": lambda: workflow.record,
    "state": lambda: workflow.state,
    "update_state": lambda: workflow.update_state({}),
    "append_event": lambda: workflow.append_event("inside"),
    "heartbeat": lambda: workflow.heartbeat("inside"),
    "touch_lease": lambda: workflow.touch_lease("slot", holder="me", ttl=1),
    "set_status": lambda: workflow.set_status("idle"),
    "reset": lambda: workflow.reset("before"),
    "run_step": lambda: workflow.run_step("inside", lambda: 1),
    "a completed step": lambda: workflow.run_step("before", lambda: 1),
    "submit": lambda: workflow.step(len).submit("a").result(),
    "mutex": lambda: workflow.mutex("slot").__enter__(),
    "lease": lambda: workflow.lease("slot").__enter__(),
    "heartbeating": lambda: workflow.heartbeating("beat").__enter__(),
    "run_for_each": lambda: workflow.run_for_each([1], str),
    "run_for_each with keys": lambda: workflow.run_for_each([1], str, mutex_key="slot"),
    "a run": lambda: workflow.__enter__(),
    "close": lambda: workflow.close(),
    "through another object": lambda: Workflow("w", dir=root).record,
}
workflow.run_step("before", lambda: 1)
before = workflow.record
for name, use in uses.items():
    say(name)
    try:
        workflow.update_state(lambda state: (use(), {"inside": name})[1])
    except iso_orchestrator.WorkflowUsageError as error:
        say("update_state" in str(error) and workflow.record == before)
    else:
        say("nothing was raised")
say("end")
say(workflow.update_state(lambda state: {"behind": 1}))
workflow.close()
"""


@pytest.mark.slow
def test_using_the_workflow_inside_raises(tmp_path: Path) -> None:
    """It would wait for itself; it raises instead, nothing is recorded, and everything goes on as before."""
    said: list[str] = []
    with child(INSIDE, tmp_path) as process:
        while (name := process.line()) != "end":
            try:
                said.append(f"{name}: {process.line(DEADLINE / 4)}")
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
        assert process.line() == "{'behind': 1}"
        process.end()
    assert len(said) == 19
    assert [line for line in said if not line.endswith(": True")] == []


def test_another_workflow_may_be_used_inside(workflow: Workflow, tmp_path: Path) -> None:
    """Only the workflow whose state is being made is out of bounds."""
    other = Workflow("other", dir=tmp_path, initial_state={"count": 10})
    assert workflow.update_state(lambda _: other.update_state(count_up)) == {"count": 11}
    other.close()


# update_state(..., with_step=True)


def test_an_update_with_its_step_is_made_at_the_steps_completion(workflow: Workflow) -> None:
    """It is called once, on the state of then, and returns None where it is asked for."""
    seen: list[Any] = []

    def note(state: Any) -> Any:
        seen.append(state)
        return {"count": state["count"] + 1}

    def body() -> str:
        assert workflow.update_state(note, with_step=True) is None
        assert workflow.state == {"count": 0}
        workflow.update_state({"count": 10})
        return "done"

    assert workflow.run_step("step", body) == "done"
    assert (workflow.state, seen) == ({"count": 11}, [{"count": 10}])
    assert workflow.run_step("step", body) == "done"
    assert workflow.state == {"count": 11}


def test_several_updates_of_one_step_are_made_in_order(workflow: Workflow) -> None:
    """Each gets what the one before it made."""

    def body() -> None:
        workflow.update_state(lambda state: {"count": state["count"] + 1}, with_step=True)
        workflow.update_state(lambda state: {"count": state["count"] * 10}, with_step=True)

    workflow.run_step("step", body)
    assert workflow.state == {"count": 10}


def test_an_attempt_that_fails_drops_its_updates(workflow: Workflow) -> None:
    """Only the attempt that succeeds counts, and a step that fails for good counts nothing."""
    attempts: list[int] = []

    def body() -> None:
        attempts.append(1)
        workflow.update_state(count_up, with_step=True)
        if len(attempts) < 3:
            raise OSError("again")

    workflow.run_step("step", body, retry=3)
    assert workflow.state == {"count": 1}

    def fail() -> None:
        workflow.update_state(count_up, with_step=True)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        workflow.run_step("fails", fail)
    assert workflow.state == {"count": 1}


def test_an_update_that_comes_after_its_step_is_refused(workflow: Workflow) -> None:
    """A thread that the body did not wait for would otherwise have its update dropped without a word."""
    contexts: list[Context] = []
    workflow.run_step("step", lambda: contexts.append(copy_context()))
    with pytest.raises(WorkflowUsageError, match="step 'step' has ended"):
        contexts[0].run(workflow.update_state, count_up, with_step=True)
    assert workflow.state == {"count": 0}


@pytest.mark.slow
def test_a_step_that_a_crash_repeats_counts_once(tmp_path: Path) -> None:
    """A step killed behind its update, and run again, has counted once."""
    code = """
        def body():
            workflow.update_state(lambda state: {"count": state.get("count", 0) + 1}, with_step=True)
            say("counted")
            hear()
        workflow.run_step("step", body)
    """
    killed(code, tmp_path, "counted")
    workflow = Workflow("w", dir=tmp_path)
    assert workflow.state == {}

    def body() -> None:
        workflow.update_state(lambda state: {"count": state.get("count", 0) + 1}, with_step=True)

    workflow.run_step("step", body)
    assert workflow.state == {"count": 1}
    workflow.close()


def test_nobody_sees_the_update_without_the_step(workflow: Workflow, tmp_path: Path) -> None:
    """Both are one line on disk: a journal cut anywhere has both or neither."""
    workflow.run_step("step", lambda: workflow.update_state(count_up, with_step=True))
    journal = Path(workflow.record_path).with_suffix(".journal")
    (line,) = [line for line in journal.read_bytes().splitlines() if b"step" in line and b'"count":1' in line]
    assert line.count(b'"count":1') == 1


def test_items_inside_a_step_update_with_the_step(workflow: Workflow) -> None:
    """What worker threads of the step ask for is made with the step, too."""

    def body() -> None:
        workflow.run_for_each(
            range(5), lambda _: workflow.update_state(count_up, with_step=True), max_parallel=2
        ).values()

    workflow.run_step("step", body)
    assert workflow.state == {"count": 5}


def test_a_step_inside_a_step_has_updates_of_its_own(workflow: Workflow) -> None:
    """The inner step's update is made with the inner one, though the outer one fails."""

    def inner() -> None:
        workflow.update_state(count_up, with_step=True)

    def outer() -> None:
        workflow.run_step("inner", inner)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        workflow.run_step("outer", outer)
    assert workflow.state == {"count": 1}


@pytest.mark.parametrize("case", ["raises", "returns None", "returns a set"])
def test_an_update_that_goes_wrong_at_the_completion_fails_the_step(workflow: Workflow, case: str) -> None:
    """The step is not completed, the error is the caller's, and the state stays."""
    update, kind, says = REFUSED[case]
    calls: list[int] = []

    def body() -> None:
        calls.append(1)
        workflow.update_state(update, with_step=True)

    with pytest.raises(kind, match=says):
        workflow.run_step("step", body)
    assert workflow.record.steps["step"].status is StepStatus.FAILED
    assert workflow.state == {"count": 0}


def test_an_update_with_its_step_needs_a_step(workflow: Workflow, tmp_path: Path) -> None:
    """Outside of one, and inside one of another workflow, it raises; so does a value in place of a function."""
    other = Workflow("other", dir=tmp_path)
    with pytest.raises(WorkflowUsageError, match="step"):
        workflow.update_state(count_up, with_step=True)
    with pytest.raises(WorkflowUsageError, match="step"):
        other.run_step("step", lambda: workflow.update_state(count_up, with_step=True))
    with pytest.raises(TypeError, match="function"):
        workflow.run_step("step", lambda: workflow.update_state({"count": 1}, with_step=True))
    assert workflow.state == {"count": 0}
    other.close()


# Events


def test_an_event_is_appended(workflow: Workflow) -> None:
    """It is returned as it is on record, behind all others."""
    first = workflow.append_event("mail.sent", "to Ada", {"to": ["ada"]})
    second = workflow.append_event("mail.sent")
    assert (first.type, first.message, first.detail) == ("mail.sent", "to Ada", {"to": ["ada"]})
    assert (second.message, second.detail) == (None, None)
    assert workflow.record.events == (first, second)
    assert read_workflow_record("w", dir=workflow.dir).events == (first, second)


def test_an_events_detail_is_ones_own(workflow: Workflow) -> None:
    """Neither what went in nor what came out changes the record."""
    detail = {"to": [1]}
    event = workflow.append_event("mail.sent", detail=detail)
    detail["to"].append(2)
    event.detail["to"].append(3)
    workflow.record.events[0].detail["to"].append(4)
    assert workflow.record.events[0].detail == {"to": [1]}


def test_events_are_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """A clock that runs back changes nothing about it."""
    clock = FakeClock(NOON)
    workflow = Workflow("w", dir=tmp_path, now=clock)
    for number in range(5):
        workflow.append_event(f"n{number}")
        clock.advance(-3600)
    assert [event.type for event in workflow.record.events] == [f"n{number}" for number in range(5)]
    workflow.close()


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("",), ValueError),
        ((" ",), ValueError),
        ((7,), TypeError),
        (("\ud800",), ValueError),
        (("ok", 7), TypeError),
        (("ok", b"x"), TypeError),
        (("ok", None, {1, 2}), SerializationError),
    ],
)
def test_what_is_no_event_is_refused(workflow: Workflow, arguments: tuple[Any, ...], kind: type[Exception]) -> None:
    """Wrong arguments raise, and nothing is recorded."""
    workflow.append_event("before")
    with pytest.raises(kind):
        workflow.append_event(*arguments)
    workflow.append_event("behind")
    assert [event.type for event in workflow.record.events] == ["before", "behind"]


@pytest.mark.parametrize("text", ["", " ", "a\0b\n", "\x1b[31m", "\u2028", "x" * 10_000, "\U0001f511"])
def test_any_text_can_be_a_message(workflow: Workflow, text: str) -> None:
    """It comes back from disk as it was."""
    workflow.append_event("ok", text, {"text": text})
    workflow.close()
    (event,) = read_workflow_record("w", dir=workflow.dir).events
    assert (event.message, event.detail) == (text, {"text": text})


# Heartbeats


def test_a_heartbeat_is_the_last_under_its_key(tmp_path: Path) -> None:
    """A later beat takes the place of the one before, and each is an event."""
    clock = FakeClock(NOON)
    workflow = Workflow("w", dir=tmp_path, now=clock)
    first = workflow.heartbeat("worker:1", {"phase": "send"})
    clock.advance(5)
    second = workflow.heartbeat("worker:1")
    other = workflow.heartbeat("worker:2")
    assert first == Heartbeat("worker:1", NOON, {"phase": "send"})
    assert workflow.record.heartbeats == {"worker:1": second, "worker:2": other}
    assert (second.at, second.detail) == (NOON + timedelta(seconds=5), None)
    assert [(event.type, event.detail) for event in workflow.record.events] == [
        ("heartbeat.recorded", {"key": "worker:1", "hasDetail": True}),
        ("heartbeat.recorded", {"key": "worker:1", "hasDetail": False}),
        ("heartbeat.recorded", {"key": "worker:2", "hasDetail": False}),
    ]
    workflow.close()


def test_beating_in_the_background_is_an_event_at_the_first_and_last_beat_only(tmp_path: Path) -> None:
    """In between only the heartbeat itself moves on."""
    clock = FakeClock(NOON)
    workflow = Workflow("w", dir=tmp_path, now=clock)
    with workflow.heartbeating("worker:1", every=0.005, detail={"pid": 1}):
        assert workflow.record.heartbeats["worker:1"] == Heartbeat("worker:1", NOON, {"pid": 1})
        for seconds in range(3):
            clock.advance(seconds + 1)
            wait_until(lambda: workflow.record.heartbeats["worker:1"].at == clock())
        assert codes_of(workflow.record.events, "heartbeat.recorded") == ["heartbeat.recorded"]
        clock.advance(1)
    assert workflow.record.heartbeats["worker:1"] == Heartbeat("worker:1", clock(), {"pid": 1})
    events = workflow.record.events
    assert codes_of(events, "heartbeat.recorded") == ["heartbeat.recorded"] * 2
    assert (events[0].at, events[-1].at) == (NOON, clock())
    workflow.close()


def test_beating_ends_with_what_it_is_around(workflow: Workflow) -> None:
    """No thread is left behind."""
    threads = set(threading.enumerate())
    with workflow.heartbeating("worker:1", every=0.001):
        (beater,) = set(threading.enumerate()) - threads
    assert not beater.is_alive()


def test_beating_waits_for_nothing_at_its_end(workflow: Workflow) -> None:
    """A long time between beats does not delay the end."""

    def beat_rarely() -> None:
        with workflow.heartbeating("worker:1", every=3600):
            pass

    in_thread(beat_rarely).result(DEADLINE)


def test_an_error_inside_of_beating_goes_on(workflow: Workflow) -> None:
    """It is the caller's, and the last beat is on record as ever."""
    with pytest.raises(ValueError, match="mine"), workflow.heartbeating("worker:1"):
        raise ValueError("mine")
    assert codes_of(workflow.record.events, "heartbeat.recorded") == ["heartbeat.recorded"] * 2


def test_beating_survives_a_workflow_that_is_closed_inside(workflow: Workflow) -> None:
    """A run that ends inside does not end the beats."""
    with workflow.heartbeating("worker:1", every=0.005):
        with workflow:
            pass
        first = workflow.record.heartbeats["worker:1"].at
        wait_until(lambda: workflow.record.heartbeats["worker:1"].at > first)


@pytest.mark.parametrize(
    ("every", "kind"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError)],
)
def test_a_time_that_is_none_is_refused(workflow: Workflow, every: Any, kind: type[Exception]) -> None:
    """`every` is seconds from more than 0 on, and that is told before anything is recorded."""
    with pytest.raises(kind, match="every"):
        workflow.heartbeating("worker:1", every=every)
    assert not Path(workflow.record_path).exists()


def test_a_beat_that_cannot_be_recorded_does_not_end_the_beats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong with one is logged, and the next is tried."""
    is_full = False

    def before(name: str, _: tuple[Any, ...]) -> None:
        if is_full and name == "write_at":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workflow = Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(before)))
    with caplog.at_level(logging.WARNING, "iso_orchestrator"), workflow.heartbeating("worker:1", every=0.005):
        is_full = True
        wait_until(lambda: "heartbeat" in caplog.text)
        is_full = False
        last = read_workflow_record("w", dir=tmp_path).heartbeats["worker:1"].at
        wait_until(lambda: read_workflow_record("w", dir=tmp_path).heartbeats["worker:1"].at > last)
    workflow.close()


# Status


@pytest.mark.parametrize("status", list(WorkflowStatus))
def test_the_status_can_be_set(workflow: Workflow, status: WorkflowStatus) -> None:
    """By the enum or its text; the record is returned, and there is an event of that name."""
    for value in (status, str(status.value)):
        record = workflow.set_status(value)
        assert record == workflow.record
        assert record.status is status
    assert [event.type for event in workflow.record.events] == [f"workflow.{status.value}"] * 2


def test_a_status_may_have_an_error(workflow: Workflow) -> None:
    """An exception or a text is the last error; setting a status without one forgets it."""
    try:
        raise ValueError("no") from LookupError("because")
    except ValueError as error:
        record = workflow.set_status("failed", error)
    assert record.last_error is not None
    assert (record.last_error.name, record.last_error.message, record.last_error.cause) == (
        "ValueError",
        "no",
        "because",
    )
    assert "test_state" in (record.last_error.stack or "")
    text = workflow.set_status("failed", "by hand").last_error
    assert text is not None
    assert text.message == "by hand"
    assert workflow.set_status("completed").last_error is None


@pytest.mark.parametrize("status", ["on holiday", "", "RUNNING", None, 3])
def test_a_status_that_is_none_is_refused(workflow: Workflow, status: Any) -> None:
    """Wrong texts and types raise, and nothing is recorded."""
    workflow.append_event("before")
    before = workflow.record
    with pytest.raises((ValueError, TypeError)):
        workflow.set_status(status)
    assert workflow.record == before


@pytest.mark.parametrize("error", [7, b"no", ["no"], ValueError])
def test_an_error_that_is_none_is_refused(workflow: Workflow, error: Any) -> None:
    """What is neither an exception nor a text raises, and nothing is recorded."""
    workflow.append_event("before")
    before = workflow.record
    with pytest.raises(TypeError):
        workflow.set_status("failed", error)
    assert workflow.record == before


# Records


RECORDS = [WorkflowRecord, StepRecord, WorkflowEvent, Heartbeat, Lease, ErrorInfo]


@pytest.mark.parametrize("kind", RECORDS)
def test_records_are_frozen_attrs_classes(kind: type) -> None:
    """No field of a record can be set."""
    assert attrs.has(kind)
    field = attrs.fields(kind)[0].name
    record = kind(**{a.name: None for a in attrs.fields(kind) if a.default is attrs.NOTHING})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(record, field, "changed")


@pytest.mark.parametrize("kind", [WorkflowStatus, StepStatus, LeaseStatus])
def test_statuses_are_texts(kind: type[StrEnum]) -> None:
    """They equal their values, and format as them."""
    for status in kind:
        assert status == status.value == f"{status}"


def test_a_record_stays_as_it_was(workflow: Workflow) -> None:
    """What happens later does not change it, and what is done to it changes nothing."""
    workflow.run_step("step", lambda: {"list": [1]})
    workflow.append_event("one")
    record = workflow.record
    workflow.append_event("two")
    workflow.update_state({"count": 5})
    assert record.events[-1].type == "one"
    assert record.state == {"count": 0}
    record.state["count"] = 99
    record.steps["step"].result["list"].append(2)
    assert workflow.state == {"count": 5}
    assert workflow.record.steps["step"].result == {"list": [1]}


def test_a_record_has_what_other_processes_wrote(workflow: Workflow, tmp_path: Path) -> None:
    """A look sees everything that was recorded before it."""
    workflow.append_event("here")
    code = "workflow.append_event('there')\nsay('done')\nhear()"
    with child(code, tmp_path) as process:
        assert process.line() == "done"
        assert [event.type for event in workflow.record.events] == ["here", "there"]


def test_a_look_makes_nothing(tmp_path: Path) -> None:
    """Of a workflow that is not there it gives what would be written first."""
    workflow = Workflow("w", dir=tmp_path / "root", initial_state={"count": 3})
    assert (workflow.state, workflow.record.state) == ({"count": 3}, {"count": 3})
    assert workflow.record.status is WorkflowStatus.IDLE
    assert (workflow.record.steps, workflow.record.events) == ({}, ())
    assert list(tmp_path.iterdir()) == []


def test_times_are_utc_and_cut_to_milliseconds(tmp_path: Path) -> None:
    """Whatever zone and fraction a clock has, records have aware UTC without microseconds."""
    odd = datetime(2026, 5, 14, 14, 0, 0, 123987, tzinfo=timezone(timedelta(hours=2)))
    workflow = Workflow("w", dir=tmp_path, now=lambda: odd)
    workflow.run_step("step", lambda: 1)
    workflow.heartbeat("beat")
    workflow.touch_lease("lease", holder="me", ttl=1)
    record = workflow.record
    step, lease = record.steps["step"], record.leases["lease"]
    moment = datetime(2026, 5, 14, 12, 0, 0, 123000, tzinfo=UTC)
    times = [
        record.created_at,
        record.updated_at,
        step.started_at,
        step.updated_at,
        step.completed_at,
        record.events[0].at,
        record.heartbeats["beat"].at,
        lease.acquired_at,
        lease.heartbeat_at,
    ]
    assert times == [moment] * len(times)
    assert all(time is not None and time.tzinfo is UTC for time in times)
    workflow.close()
    assert read_workflow_record("w", dir=tmp_path).created_at == moment


def test_real_times_are_cut_to_milliseconds(workflow: Workflow) -> None:
    """The machine's clock is cut likewise."""
    before = datetime.now(UTC)
    times = [workflow.append_event("now").at for _ in range(5)]
    assert {time.microsecond % 1000 for time in times} == {0}
    assert before - timedelta(milliseconds=1) < times[0] <= times[-1] <= datetime.now(UTC)


def test_updated_at_is_the_time_of_the_last_thing(tmp_path: Path) -> None:
    """Whatever is recorded moves it, and a look does not."""
    clock = FakeClock(NOON)
    workflow = Workflow("w", dir=tmp_path, now=clock)
    workflow.append_event("made")
    for record in (
        lambda: workflow.append_event("x"),
        lambda: workflow.heartbeat("x"),
        lambda: workflow.update_state({}),
        lambda: workflow.touch_lease("x", holder="me", ttl=1),
        lambda: workflow.set_status("idle"),
    ):
        clock.advance(1)
        record()
        assert workflow.record.updated_at == clock()
    assert workflow.record.created_at == NOON
    now = clock()
    clock.advance(1)
    assert workflow.record.updated_at == now
    workflow.close()
