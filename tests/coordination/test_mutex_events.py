"""A mutex on record: whose it is, since when it was wanted, and a wait for it that goes on."""

from __future__ import annotations

import os
import threading
from datetime import datetime
from typing import Any

import pytest
from support import DEADLINE, wait_until
from support_processes import in_thread

from iso_orchestrator import MutexTimeoutError, Workflow


def details(workflow: Workflow, type_: str) -> list[Any]:
    return [event.detail for event in workflow.record.events if event.type == type_]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are on record after a fraction of a second."""
    monkeypatch.setattr("iso_orchestrator.runtime.waits._SHORT", 0.02)
    monkeypatch.setattr("iso_orchestrator.runtime.waits.LONGEST_WAIT", 0.02)


def test_a_mutex_tells_who_has_it(workflow: Workflow) -> None:
    """A step is named; a thread outside of steps is not."""

    def body() -> None:
        with workflow.mutex("slot"):
            pass

    with workflow:
        workflow.run_step("a", body)
        body()
    body()
    assert details(workflow, "mutex.acquired") == [
        {"key": "slot", "step": "a", "run": 1},
        {"key": "slot", "run": 1},
        {"key": "slot"},
    ]
    assert details(workflow, "mutex.released") == [{"key": "slot"}] * 3


@pytest.mark.usefixtures("impatient")
def test_a_wait_tells_who_waits_for_whom_and_how_long(workflow: Workflow) -> None:
    """It is recorded once while it lasts, and in the end with its two times."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with workflow.mutex("slot"):
            held.set()
            go_on.wait(DEADLINE)

    def wait() -> None:
        with workflow.mutex("slot"):
            pass

    with workflow:
        holder = in_thread(workflow.run_step, "holder", hold)
        held.wait(DEADLINE)
        waiter = in_thread(workflow.run_step, "waiter", wait)
        wait_until(lambda: details(workflow, "mutex.waiting"))
        go_on.set()
        holder.result(DEADLINE)
        waiter.result(DEADLINE)
    assert details(workflow, "mutex.waiting") == [{"key": "slot", "step": "waiter", "holder": os.getpid(), "run": 1}]
    free, waited = details(workflow, "mutex.acquired")
    assert free == {"key": "slot", "step": "holder", "run": 1}
    since, granted = (datetime.fromisoformat(waited[key]) for key in ("since", "granted"))
    assert (granted - since).total_seconds() >= 0.02
    assert waited["step"] == "waiter"


@pytest.mark.usefixtures("impatient")
def test_a_record_that_cannot_be_written_does_not_end_the_wait(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only informs may fail."""
    tried: list[str] = []

    def fail(*args: Any) -> None:
        tried.append(args[2])
        raise OSError("no")

    with workflow, workflow.mutex("slot"):
        monkeypatch.setattr("iso_orchestrator.coordination.mutex._record", fail)
        waiter = in_thread(workflow.mutex("slot", timeout=0.3).__enter__)
        assert isinstance(waiter.exception(DEADLINE), MutexTimeoutError)
    assert tried == ["mutex.waiting"]
