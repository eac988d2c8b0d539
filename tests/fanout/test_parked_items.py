"""Items that cannot go on now, since their step is limited or runs in another process, hold no worker."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, run_python, wait_until
from support_processes import child, in_thread

from iso_orchestrator import Limited, StepStatus, Workflow, current_step
from iso_orchestrator.runtime.session import find_session
from iso_orchestrator.steps.call import StepCall

T0 = datetime(2026, 5, 14, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Site:
    """A workflow with a clock that stands still, and a step that meets a limit of an hour in some of its items."""

    def __init__(self, root: Path, *limited: int, **options: Any) -> None:
        self.now = T0
        self.workflow = Workflow("site", dir=root, now=lambda: self.now)
        self.done: list[int] = []
        self.begun: list[int] = []

        @self.workflow.step(name="fetch {number}", **options)
        def fetch(number: int) -> int:
            self.begun.append(number)
            if number in limited and self.now < T0 + HOUR:
                raise Limited(T0 + HOUR)
            self.done.append(number)
            return number

        self.fetch = fetch

    def run(self, count: int, **options: Any) -> Future[list[int]]:
        return in_thread(lambda: self.workflow.run_for_each(range(count), self.fetch, **options).values())

    def waiting(self) -> list[str]:
        steps = self.workflow.record.steps.values()
        return sorted(step.name for step in steps if step.status is StepStatus.WAITING)


def test_a_limit_delays_no_other_item(tmp_path: Path) -> None:
    """Four items of four workers wait for their limits while all others run; then they begin again."""
    site = Site(tmp_path, 0, 1, 2, 3)
    ended = site.run(12, max_parallel=4)
    wait_until(lambda: len(site.done) == 8)
    wait_until(lambda: site.waiting() == ["fetch 0", "fetch 1", "fetch 2", "fetch 3"])
    assert not ended.done()
    site.now = T0 + HOUR
    assert ended.result(DEADLINE) == list(range(12))
    assert sorted(site.done[8:]) == [0, 1, 2, 3]
    assert [step.attempts for step in site.workflow.record.steps.values()] == [1] * 12
    site.workflow.close()
    wait_until(lambda: not any("parked" in thread.name for thread in threading.enumerate()))


def test_items_of_a_limit_key_are_not_tried_before_its_end(tmp_path: Path) -> None:
    """One item meets the limit of a key; the others are waiting, by one event each, and none of them begins."""
    site = Site(tmp_path, 0, limit_key="site")
    ended = site.run(5)
    wait_until(lambda: len(site.waiting()) == 5)
    assert site.begun == [0]
    events = [event.type for event in site.workflow.record.events]
    assert (events.count("step.limited"), events.count("step.waiting")) == (1, 4)
    site.now = T0 + HOUR
    assert ended.result(DEADLINE) == list(range(5))
    assert site.waiting() == []
    site.workflow.close()


@pytest.mark.slow
def test_the_source_is_not_read_to_its_end_for_parked_items(tmp_path: Path) -> None:
    """Parked items count as read ahead, so that an endless source of limited items takes bounded memory."""
    site, read = Site(tmp_path, 0, limit_key="site"), []

    def source() -> Any:
        for number in range(100_000):
            if site.now > T0:
                return
            read.append(number)
            yield number

    ended = in_thread(lambda: site.workflow.run_for_each(source(), site.fetch, max_parallel=2).values())
    wait_until(lambda: len(site.waiting()) >= 1000, every=0.1)
    assert len(read) < 1100
    site.now = T0 + HOUR
    assert ended.result(DEADLINE) == read
    site.workflow.close()


def test_a_parked_item_keeps_its_attempts(workflow: Workflow) -> None:
    """A limit between two attempts takes none of them, and gives none."""
    attempts: list[int] = []

    @workflow.step(retry=2)
    def ask(number: int) -> None:
        attempts.append(current_step().attempt)
        if len(attempts) % 2:
            raise Limited(datetime.now(UTC) + timedelta(seconds=0.05))
        raise LookupError

    with pytest.raises(LookupError):
        workflow.run_for_each([0], ask)
    assert attempts == [1, 1, 2, 2]
    assert workflow.record.steps["ask(number=0)"].attempts == 2


def test_a_parked_item_holds_no_mutex(tmp_path: Path) -> None:
    """Items of one key stay in order, and others can have its mutex while the first one is limited."""
    site = Site(tmp_path, 0)
    ended = site.run(3, max_parallel=3, mutex_key="repository")
    wait_until(lambda: site.waiting() == ["fetch 0"])
    with site.workflow.mutex("repository", timeout=DEADLINE):
        assert site.begun == [0]
    site.now = T0 + HOUR
    assert ended.result(DEADLINE) == [0, 1, 2]
    assert site.done == [0, 1, 2]
    site.workflow.close()


def test_a_batch_that_stops_drops_its_parked_items(tmp_path: Path) -> None:
    """Their waits end on record too, and nothing keeps the next batch from them."""
    site = Site(tmp_path, 0)

    @site.workflow.step
    def fail() -> None:
        wait_until(lambda: site.waiting() == ["fetch 0"])
        raise LookupError("stop")

    def item(number: int) -> Any:
        return fail() if number else site.workflow.run_for_each([0], site.fetch).values()

    with pytest.raises(LookupError, match="stop"):
        site.workflow.run_for_each([0, 1], item, max_parallel=2)
    projection = site.workflow._runtime.store.read("site")
    assert projection is not None
    assert (projection.waits, projection.owner("fetch 0")) == ({}, None)
    site.now = T0 + HOUR
    assert site.fetch(0) == 0
    site.workflow.close()


OTHER = """
import sys
from iso_orchestrator import Workflow
workflow = Workflow("w", dir=sys.argv[1])

@workflow.step(name="{number}")
def work(number):
    print("in hand")
    input()
    return 10 * number

workflow.run_for_each([0], work)
print("done")
input()
"""


def test_an_item_of_another_process_is_left_for_later(workflow: Workflow, tmp_path: Path) -> None:
    """The only worker does all others first. Then it gets the other process's result, or takes over when that dies."""
    done: list[int] = []

    @workflow.step(name="{number}")
    def work(number: int) -> int:
        done.append(number)
        return number

    for is_killed in (False, True):
        done.clear()
        workflow.reset("*")
        with run_python(OTHER, tmp_path) as other:
            assert other.line() == "in hand"
            ended = in_thread(lambda: workflow.run_for_each(range(5), work).values())
            wait_until(lambda: done == [1, 2, 3, 4])
            assert not ended.done()
            if is_killed:
                other.kill()
            else:
                other.say()
            assert ended.result(DEADLINE) == [0, 1, 2, 3, 4]
    assert done == [1, 2, 3, 4, 0]


def test_looking_at_a_parked_item_opens_nothing_again(workflow: Workflow, tmp_path: Path) -> None:
    """The thread that looks may be in the middle of many items when the batch and its run have ended."""
    looks, is_over, is_run_elsewhere = threading.Event(), threading.Event(), StepCall.is_run_elsewhere

    @workflow.step(name="{number}")
    def work(number: int) -> int:
        return number

    def items() -> Any:
        yield 0
        looks.wait(DEADLINE)
        raise LookupError("stop")

    def look_late(call: StepCall) -> bool:
        looks.set()
        return is_over.wait(DEADLINE) and is_run_elsewhere(call)

    with run_python(OTHER, tmp_path) as other, pytest.MonkeyPatch.context() as patch:
        assert other.line() == "in hand"
        patch.setattr(StepCall, "is_run_elsewhere", look_late)
        with pytest.raises(LookupError), workflow:
            workflow.run_for_each(items(), work)
        is_over.set()
        wait_until(lambda: not any("parked" in thread.name for thread in threading.enumerate()))
        assert find_session(workflow._runtime.store, "w") is None


FAILING = """
workflow = Workflow("w", dir=root)

@workflow.step(name="{number}")
def work(number):
    say("in hand")
    input()
    raise LookupError("theirs")

try:
    workflow.run_for_each([0], work)
except LookupError:
    say("failed")
input()
"""


def test_a_parked_item_gets_the_failure_of_the_other_process(workflow: Workflow, tmp_path: Path) -> None:
    """As each call that waits for another process does: the step is not run a second time."""
    with child(FAILING, tmp_path) as other:
        assert other.line() == "in hand"
        body = in_thread(
            lambda: workflow.run_for_each([0], workflow.step(name="{number}")(_never), stop_on_error=False)
        )
        wait_until(lambda: any("parked" in thread.name for thread in threading.enumerate()))
        other.say()
        assert other.line() == "failed"
        (result,) = body.result(DEADLINE).results
    assert "theirs" in str(result.reason)


def _never(number: int) -> None:
    raise AssertionError(f"it ran for {number}")
