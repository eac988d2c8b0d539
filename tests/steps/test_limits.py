"""Usage limits: waited for, not counted, and known to whoever comes later."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Run, run_python, wait_until
from support_processes import child, in_thread

from iso_orchestrator import Limited, StepStatus, Workflow, current_step, open_workflow, read_workflow_record
from iso_orchestrator.codec import decode, projection_from_snapshot, snapshot_from_projection

SHORT = 0.2  # seconds


class Spent:
    """A body that meets limits of some seconds, one after the other, and then returns how often it was called."""

    def __init__(self, *seconds: float) -> None:
        self.began: list[float] = []
        self.attempts: list[int] = []
        self._seconds = list(seconds)

    def __call__(self) -> int:
        self.began.append(time.monotonic())
        self.attempts.append(current_step().attempt)
        if self._seconds:
            raise Limited(datetime.now(UTC) + timedelta(seconds=self._seconds.pop(0)))
        return len(self.began)


def test_a_limit_is_waited_for_and_does_not_count(workflow: Workflow) -> None:
    """A step with one attempt in all meets two limits, and succeeds in its first attempt after both."""
    spent = Spent(SHORT, SHORT)
    assert workflow.run_step("ask", spent) == 3
    assert spent.attempts == [1, 1, 1]
    waits = [later - earlier for earlier, later in zip(spent.began, spent.began[1:], strict=False)]
    assert all(SHORT - 0.002 <= wait < DEADLINE for wait in waits)  # times are cut to milliseconds
    step = workflow.record.steps["ask"]
    assert (step.status, step.attempts, step.error) == (StepStatus.COMPLETED, 1, None)
    assert [limit["attempt"] for limit in _limits(workflow)] == [1, 1]


def test_what_is_limited_never_begins_too_early(workflow: Workflow) -> None:
    """Times on record are cut to milliseconds; the end of a limit is not: it would be met again, as a failure."""
    until = datetime.now(UTC) + timedelta(seconds=SHORT)
    until = until.replace(microsecond=until.microsecond // 1000 * 1000 + 999)

    def ask() -> datetime:
        if datetime.now(UTC) < until:
            raise Limited(until)
        return datetime.now(UTC)

    assert workflow.run_step("ask", ask) >= until


RESET = """
from datetime import UTC, datetime, timedelta
met = []

@workflow.step(name="ask {number}", limit_key="site")
def ask(number):
    if not met:
        met.append(number)
        say("limited")
        raise Limited(datetime.now(UTC) + timedelta(hours=1), "site")
    return number

say(CALL)
"""


@pytest.mark.parametrize(
    "call",
    [
        "ask(0)",
        "workflow.for_each()(ask)(range(3)).fulfilled",
        "workflow.for_each(max_parallel=2)(ask)(range(3)).fulfilled",
    ],
    ids=["alone", "callers_thread", "workers"],
)
def test_a_reset_in_another_process_lifts_a_limit(tmp_path: Path, run: Run, call: str) -> None:
    """A step that waits for it goes on at its next look, and so do those that wait for the limit of its key."""
    with child(RESET.replace("CALL", call), tmp_path) as process:
        assert process.line() == "limited"
        wait_until(lambda: read_workflow_record("w", dir=tmp_path).steps["ask 0"].status is StepStatus.WAITING)
        assert run("reset", "w", "ask 0")[0] == 0
        assert process.line(5) == ("0" if call == "ask(0)" else "3")
        process.end()
    assert read_workflow_record("w", dir=tmp_path).steps["ask 0"].attempts == 1


def test_a_limit_that_is_over_is_a_failure(workflow: Workflow) -> None:
    """What is limited until a time in the past would be tried for ever: it counts as any other failure."""
    spent = Spent(-1, -1, -1)
    with pytest.raises(Limited):
        workflow.run_step("ask", spent, retry=2)
    assert spent.attempts == [1, 2]


def test_a_limit_shows_while_it_is_waited_for(workflow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """The record says until when, and so does the log."""
    caplog.set_level("INFO", "iso_orchestrator")
    ended = in_thread(lambda: workflow.run_step("ask", Spent(5 * SHORT)))
    wait_until(lambda: "ask" in workflow.record.steps and workflow.record.steps["ask"].error)
    step = workflow.record.steps["ask"]
    assert step.status is StepStatus.WAITING
    assert step.error is not None
    assert step.error.message.startswith("the step is limited until 20")
    wait_until(lambda: "step 'ask' waits: the step is limited until 20" in caplog.text)
    assert ended.result(DEADLINE) == 2


KILLED = """
import os, signal, sys
from datetime import datetime, timedelta, UTC
from iso_orchestrator import Limited, Workflow

def ask():
    raise Limited(datetime.now(UTC) + timedelta(seconds=float(sys.argv[2])))

print("go")
Workflow("w", dir=sys.argv[1]).run_step("ask", ask)
"""


@pytest.mark.slow
def test_who_starts_again_waits_for_the_rest(tmp_path: Path) -> None:
    """Killed in the wait and started again, a step begins when its limit ends, and not before."""
    with run_python(KILLED, tmp_path, 2.0) as child:
        assert child.line() == "go"
        wait_until(lambda: _error_of(tmp_path) is not None)
        child.process.kill()
        child.process.wait(DEADLINE)
    until = datetime.fromisoformat(str(_error_of(tmp_path)).rpartition(" ")[2])
    workflow = open_workflow("w", dir=tmp_path)
    assert workflow.run_step("ask", lambda: datetime.now(UTC) >= until) is True
    assert workflow.record.steps["ask"].attempts == 1
    workflow.close()


def _error_of(root: Path) -> str | None:
    if not list(root.glob("workflows/*.json")):
        return None
    step = read_workflow_record("w", dir=root).steps.get("ask")
    return step.error.message if step is not None and step.error is not None else None


def test_a_limit_survives_the_snapshot(workflow: Workflow, tmp_path: Path) -> None:
    """A workflow that was closed and folded while a step was limited knows it when it is opened again."""
    at = [datetime(2026, 5, 14, tzinfo=UTC)]
    first = Workflow("folded", dir=tmp_path, now=lambda: at[0])
    until = at[0] + timedelta(hours=1)

    def ask() -> datetime:
        if at[0] < until:
            at[0] += timedelta(minutes=59)
            raise Limited(until)
        return at[0]

    ended = in_thread(lambda: first.run_step("ask", ask))
    wait_until(lambda: "ask" in first.record.steps and first.record.steps["ask"].error)
    at[0] = until
    assert ended.result(DEADLINE) == until
    first.close()
    projection = Workflow("folded", dir=tmp_path)._runtime.store.read("folded")
    assert projection is not None
    assert (projection.step_limits, projection.step_limit_keys) == ({"ask": until}, {})


def test_a_reset_lifts_the_limit(workflow: Workflow) -> None:
    """That of the step, and that of the key that it met: nothing else could lift one that was told wrongly."""
    hour = Spent(3600)

    @workflow.command(name="{name}", limit_key="api")
    def ask(name: str) -> list[str]:
        hour()
        return [sys.executable, "-c", ""]

    def item(number: int) -> Any:
        if number == 0:
            return ask("first")
        wait_until(lambda: _limits(workflow))
        raise ValueError("the batch is over")

    with pytest.raises(ValueError, match="the batch is over"):
        workflow.run_for_each([0, 1], item, max_parallel=2)
    assert workflow.reset("first") == ["first"]
    assert in_thread(ask, "second").result(DEADLINE).exit_code == 0
    assert in_thread(ask, "first").result(DEADLINE).exit_code == 0


def _limits(workflow: Workflow) -> list[Any]:
    return [event.detail for event in workflow.record.events if event.type == "step.limited"]


def test_ctrl_c_in_a_for_each_ends_the_wait(workflow: Workflow) -> None:
    """A fan-out that is stopped does not wait for its items' limits; they are tried again in the next run."""
    hour = Spent(3600)

    def item(number: int) -> Any:
        if number == 0:
            return workflow.run_step("ask", hour)
        wait_until(lambda: hour.began)
        raise ValueError("the batch is over")

    with pytest.raises(ValueError, match="the batch is over"):
        workflow.run_for_each([0, 1], item, max_parallel=2)
    assert workflow.record.steps["ask"].attempts == 0


@pytest.mark.parametrize("until", ["soon", None, 3600])
def test_a_limit_needs_a_time(until: Any) -> None:
    """Anything else is refused where it is raised."""
    with pytest.raises(TypeError, match="takes a datetime"):
        Limited(until)


def test_a_limit_needs_a_zone() -> None:
    """A naive time means another moment on every machine."""
    with pytest.raises(ValueError, match="aware"):
        Limited(datetime(2026, 5, 14))


@pytest.mark.parametrize(("last", "hours"), [(datetime.max, -5), (datetime.min, 5)])
def test_a_limit_is_within_all_time(last: datetime, hours: int) -> None:
    """A time that has no place in UTC is refused where it is raised too; one at its end is none of them."""
    with pytest.raises(ValueError, match="out of range in UTC"):
        Limited(last.replace(tzinfo=timezone(timedelta(hours=hours))))
    assert Limited(last.replace(tzinfo=timezone(timedelta(hours=-hours)))).until.tzinfo is UTC


def test_a_limit_key_of_a_plain_step_holds_back_all_steps_with_it(workflow: Workflow) -> None:
    """`limit_key=` says what is limited when a step raises `Limited`: other steps with that key wait, others do not."""
    begun: list[str] = []

    @workflow.step(limit_key="site")
    def first() -> None:
        begun.append("first")
        if begun.count("first") == 1:
            raise Limited(datetime.now(UTC) + timedelta(seconds=2 * SHORT))

    @workflow.step(limit_key="site")
    def second() -> float:
        begun.append("second")
        return time.monotonic()

    @workflow.step
    def free() -> float:
        return time.monotonic()

    running = in_thread(first)
    wait_until(lambda: _limits(workflow) != [], what="the limit")
    met = time.monotonic()
    assert free() - met < SHORT
    assert second() - met > SHORT
    running.result(DEADLINE)
    with pytest.raises(TypeError, match="limit_key"):
        workflow.step(limit_key=7)(free.fn)  # type: ignore[arg-type]


def test_a_limit_wait_is_waiting_everywhere_but_in_the_file(workflow: Workflow, run: Run) -> None:
    """`show`, `list` and the record say "waiting", also for a step that has not begun; the snapshot has npm's words."""
    met = workflow.step(name="met", limit_key="site")(Spent(3600))
    held_back = workflow.step(name="held back", limit_key="site")(lambda: None)

    def item(number: int) -> None:
        if number == 0:
            met()
        wait_until(lambda: _limits(workflow))
        if number == 1:
            held_back()
        wait_until(lambda: "held back" in workflow.record.steps)
        _look(workflow, run)
        raise LookupError("looked")

    with pytest.raises(LookupError):
        workflow.run_for_each(range(3), item, max_parallel=3)


def _look(workflow: Workflow, run: Run) -> None:
    shown = {name: (step.status, step.attempts) for name, step in workflow.record.steps.items()}
    assert shown == {"met": (StepStatus.WAITING, 0), "held back": (StepStatus.WAITING, 0)}
    out = run("show", "w", "--steps")[1]
    for name in ("met", "held back"):
        assert re.search(rf"◔ .*{name} .* waits for the limit of site until ", out)
    assert "● running" in run("list")[1]
    projection = workflow._runtime.store.read("w")
    assert projection is not None
    snapshot = snapshot_from_projection(projection)
    assert {name: step["status"] for name, step in decode(snapshot)["steps"].items()} == {"met": "failed"}
    assert projection_from_snapshot(snapshot, "w").record() == projection.record()
    shown = json.loads(run("show", "w", "--json")[1])["steps"]
    assert {name: step["status"] for name, step in shown.items()} == {"met": "failed"}


def test_limits_in_a_row_are_bounded(tmp_path: Path) -> None:
    """Each short limit of a row is waited for longer; one too many is a failure, and `retry` begins a new row."""
    began = time.monotonic()

    def clock() -> datetime:  # a hundred times as fast
        return datetime(2026, 5, 14, tzinfo=UTC) + timedelta(seconds=100 * (time.monotonic() - began))

    workflow = Workflow("fast", dir=tmp_path, now=clock)
    calls: list[tuple[int, datetime]] = []

    def ask() -> None:
        calls.append((current_step().attempt, clock()))
        raise Limited(clock() + timedelta(seconds=0.5))

    with pytest.raises(Limited) as caught:
        workflow.run_step("ask", ask, max_limited=3, retry=2)
    assert "has met 3 limits in a row, as many as max_limited allows" in str(caught.value)
    assert [attempt for attempt, _ in calls] == [1, 1, 1, 2, 2, 2]
    waits = [(later - earlier).total_seconds() for (_, earlier), (_, later) in itertools.pairwise(calls)]
    assert waits[1] >= 2
    assert waits[4] >= 2
    step = workflow.record.steps["ask"]
    assert (step.status, step.attempts) == (StepStatus.FAILED, 2)
    workflow.close()


@pytest.mark.slow
def test_a_row_of_limits_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The row is on record: a step that meets a limit in each of many runs fails too."""
    with run_python(KILLED, tmp_path, 0.1) as child:
        assert child.line() == "go"
        wait_until(lambda: _error_of(tmp_path) is not None)
        child.kill()
    workflow = Workflow("w", dir=tmp_path)
    spent = Spent(0.1, 0.1)
    with pytest.raises(Limited):
        workflow.run_step("ask", spent, max_limited=2)
    assert len(spent.began) == 1
    workflow.close()


SCRAPER = """
import sys, urllib.error, urllib.request
from datetime import datetime, timedelta, UTC
from iso_orchestrator import Limited, Workflow

workflow = Workflow("scraper", dir=sys.argv[1])

@workflow.for_each(max_parallel=4, progress=False)
@workflow.step(limit_key="site")
def fetch(page):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[2]}/{page}").status
    except urllib.error.HTTPError as error:
        assert error.code == 429
        raise Limited(datetime.now(UTC) + timedelta(seconds=float(error.headers["Retry-After"])), "site")

assert fetch(range(40)).values() == [200] * 40
print("done")
"""


@pytest.mark.slow
def test_after_a_429_no_new_request_comes(tmp_path: Path) -> None:
    """Two processes of four workers: only requests that were on their way meet a limit that another one met."""
    with RationedServer() as server, ExitStack() as stack:
        children = [stack.enter_context(run_python(SCRAPER, tmp_path, server.server_port)) for _ in range(2)]
        assert [child.line() for child in children] == ["done", "done"]
    assert server.refused
    assert max(server.refused) <= 8
    assert server.served == 40


class RationedServer(ThreadingHTTPServer):
    """A site that refuses all requests for a second and a half after each 15 that it has served."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Rationed)
        self.guard = threading.Lock()
        self.served = 0
        self.closed_until = 0.0
        self.refused: list[int] = []  # requests in each time in which it refuses them

    def __enter__(self) -> RationedServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Rationed(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, RationedServer)
        with server.guard:
            seconds = server.closed_until - time.monotonic()
            if seconds > 0:
                server.refused[-1] += 1
            else:
                server.served += 1
                if server.served % 15 == 0:
                    server.closed_until = time.monotonic() + 1.5
                    server.refused.append(0)
        if seconds > 0:
            self.send_response(429)
            self.send_header("Retry-After", str(seconds))
        else:
            time.sleep(0.02)
            self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
