"""`Workflow(on_event=...)`: a function is called with each event of this process."""

from __future__ import annotations

import gc
import logging
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from iso_orchestrator import MemoryStore, Workflow


def test_each_event_of_this_process_is_told_after_it_is_recorded(tmp_path: Path) -> None:
    """The function sees what the record has, and the record has it already."""
    told = []

    def on_event(event) -> None:
        told.append(event)
        assert event in workflow.record.events

    workflow = Workflow("batch", dir=tmp_path, on_event=on_event)
    with workflow:
        workflow.run_step("one", lambda: 1)
        workflow.append_event("mine", detail={"n": [1]})
        workflow.run_for_each(range(20), lambda n: workflow.run_step(f"step {n}", lambda: n), max_parallel=4)
    assert len(told) == len(workflow.record.events)
    assert {event.type for event in told} >= {"workflow.running", "step.started", "step.completed", "mine"}
    assert next(event for event in told if event.type == "mine").detail == {"n": [1]}


def test_events_of_other_processes_are_not_told(tmp_path: Path) -> None:
    """What another process appends is in the record, and is not told here."""
    told = []
    with Workflow("batch", dir=tmp_path, on_event=told.append) as workflow:
        code = f"import iso_orchestrator as i; i.Workflow('batch', dir={str(tmp_path)!r}).append_event('theirs')"
        subprocess.run([sys.executable, "-c", code], check=True)
        workflow.append_event("ours")
    types = [event.type for event in told]
    assert "theirs" in {event.type for event in workflow.record.events}
    assert "ours" in types
    assert "theirs" not in types


def test_what_it_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """No step fails because the function does, whatever it raises."""

    def on_event(event) -> None:
        raise (KeyboardInterrupt if event.type == "step.started" else ValueError)(event.type)

    with Workflow("batch", store=MemoryStore(), on_event=on_event) as workflow:
        assert [workflow.run_step(f"step {n}", abs, n) for n in range(3)] == [0, 1, 2]
    logged = [record.getMessage() for record in caplog.records if "on_event" in record.getMessage()]
    assert len(logged) == 1
    assert "ValueError: workflow.running" in logged[0]
    assert caplog.records[0].levelno == logging.WARNING


def test_it_may_use_the_workflow() -> None:
    """It holds no lock. Events that it appends are not told."""
    told = []

    def on_event(event) -> None:
        told.append(event.type)
        if event.type == "step.completed":
            thread = threading.Thread(target=lambda: workflow.run_step("in a thread", lambda: 1), daemon=True)
            workflow.append_event("own")
            if "asked" not in told:
                told.append("asked")
                thread.start()
                thread.join(20)
                assert not thread.is_alive()

    workflow = Workflow("batch", store=MemoryStore(), on_event=on_event)
    workflow.run_step("one", lambda: 1)
    assert workflow.record.steps["in a thread"].result == 1
    assert "own" not in told
    assert sum(event.type == "own" for event in workflow.record.events) == 2


def test_two_objects_of_one_workflow_are_both_told() -> None:
    """Each object's function is called with what the process appends through any of them."""
    store, first, second = MemoryStore(), [], []
    one, two = Workflow("batch", store=store, on_event=first.append), Workflow("batch", store=store)
    two._runtime.add_listener(second.append)
    one.run_step("one", lambda: 1)
    two.run_step("two", lambda: 2)
    one.append_event("last")
    assert [event.type for event in first][-1] == "last"
    assert [event.type for event in second] == [event.type for event in first][2:]


def test_a_function_that_refers_to_the_workflow_keeps_it_not_alive() -> None:
    """An object whose function refers to it is dropped like any other."""

    def make() -> weakref.ref[Workflow]:
        workflow = Workflow("batch", store=MemoryStore(), on_event=lambda event: workflow.workflow_id)
        workflow.run_step("one", lambda: 1)
        return weakref.ref(workflow)

    ref = make()
    gc.collect()
    assert ref() is None


def test_a_pickled_workflow_leaves_it_behind(tmp_path: Path) -> None:
    """The function stays in its process, so that it need not be picklable."""
    copy = pickle.loads(pickle.dumps(Workflow("batch", dir=tmp_path, on_event=lambda event: None)))
    assert copy._runtime.listeners == ()


@pytest.mark.parametrize("wrong", [3, "print"])
def test_it_must_be_a_function(wrong) -> None:
    """Anything else is refused at once."""
    with pytest.raises(TypeError, match="on_event must be a function"):
        Workflow("batch", on_event=wrong)
