"""The three real programs as steps, against a stand-in model: no account, no internet, nobody left behind.

    python tests/agents_real/install.py
    python -m pytest -m real_agents tests/agents_real

With `--record` what they print becomes the data of the tests that run everywhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import attrs
import psutil
import pytest
from agent_cases import CASES, Case
from agents_real.homes import Home
from agents_real.install import program
from agents_real.model_server import ANSWER, ModelServer
from agents_real.runner import Plan, alive, started
from support import only, wait_until

from iso_orchestrator import CommandError, CommandResult, WorkflowEvent, WorkflowNotFoundError, read_workflow_record
from iso_orchestrator.agents import AgentResult, Outcome

pytestmark = [
    pytest.mark.real_agents,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the programs are installed for Linux"),
]

STARTING = 60.0  # seconds until an agent is in a tool
IN_TOOL = 2.0  # seconds that it is then given
ENDING = 15.0  # seconds, for the ending of whoever is left
LOOK_EVERY = 0.1  # seconds between two looks

ENDS = ("step.completed", "step.failed", "step.limited")

Homes: TypeAlias = dict[str, tuple[Home, AgentResult]]
Tell: TypeAlias = Callable[[Case, object, float, object, int], None]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def homes() -> Homes:
    """The homes of the cases that ran, and what became of them: they are gone on with."""
    return {}


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Put a case into the table."""

    def tell(case: Case, exit_code: object, seconds: float, outcome: object, left: int) -> None:
        cell = f"{exit_code!s:>4} {seconds:5.1f} s  {outcome!s:8} {left}"
        request.node.user_properties.append(("agent", [case.name, case.agent, cell]))

    return tell


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_has_the_outcome_of_its_run(
    case: Case, server: ModelServer, homes: Homes, tmp_path: Path, tell: Tell, request: pytest.FixtureRequest
) -> None:
    """Each agent has the right outcome in each case, in bounded time, and leaves nobody behind."""
    plan = _plan(case, homes, tmp_path, server.url)
    end, seconds, left = _performed(plan)
    transcript = plan.transcript()
    result = transcript.result(case)
    homes[str(case)] = plan.home, result
    waits = "+" if end.type == "step.limited" else ""
    tell(case, transcript.exit_code, seconds, f"{result.outcome}{waits}", left)
    if request.config.getoption("--record", default=False):
        places = {str(plan.home.work): "$WORK", str(plan.home.home): "$HOME", str(plan.home.root): "$ROOT"}
        transcript.scrubbed(places).save(case)
    transcript.check(case, result)
    _check_end(plan, end, result)
    assert left == 0
    if result.outcome is Outcome.OK and case.model != "failed":
        assert result.text in (ANSWER, "one two three")


@pytest.mark.parametrize("agent", ["codex", "claude", "opencode"])
def test_a_killed_runner_s_step_is_gone_on_with(agent: str, server: ModelServer, tmp_path: Path, tell: Tell) -> None:
    """What a runner that is killed in the middle of a tool leaves is ended first, and its session goes on."""
    killed = Case(agent, "runner_killed", Outcome.FAILED, model="longtool")
    resumed = Case(agent, "runner_killed_resumed", Outcome.OK, resume="runner_killed")
    plan = _plan(killed, {}, tmp_path, server.url)
    began = datetime.now(UTC)
    with started(plan) as runner:
        _await_tool(plan)
        runner.kill()
        left = len(alive(plan.home))
        tell(killed, "", (datetime.now(UTC) - began).total_seconds(), "", left)
        assert left > 1  # the agent, and its tool
        again = attrs.evolve(plan, case=resumed)
        end, seconds, left = _performed(again)
    transcript = again.transcript()
    result = transcript.result(resumed)
    tell(resumed, transcript.exit_code, seconds, result.outcome, left)
    transcript.check(resumed, result)
    _check_end(again, end, result)
    assert (result.text, left) == (ANSWER, 0)


def _plan(case: Case, homes: Homes, root: Path, url: str) -> Plan:
    if not program(case.agent).exists():
        pytest.skip("not installed: python tests/agents_real/install.py")
    if case.resume is None:
        return Plan(case, Home.make(root, url), url, case.name, case.session)
    if (earlier := homes.get(f"{case.agent}-{case.resume}")) is None:
        pytest.skip(f"goes on with {case.resume}, which has not run")
    home, result = earlier
    if result.outcome is Outcome.OK:
        return Plan(case, home, url, case.name, result.session_id)
    return Plan(case, home, url, case.resume)


def _performed(plan: Plan) -> tuple[WorkflowEvent, float, int]:
    """Run a case to the end of its step, or to the limit that it waits for: that event, its seconds, who was left."""
    case, began = plan.case, datetime.now(UTC)
    with started(plan) as runner:
        if case.signal is not None:
            _await_tool(plan)
            only(psutil.Process(runner.pid).children()).send_signal(case.signal)
        start, end = wait_until(
            lambda: _run_since(began, plan), case.timeout + ENDING, "the end of the step", every=LOOK_EVERY
        )
        left = len(alive(plan.home))
        if end.type != "step.limited":
            assert runner.line() == "over"
            runner.end()
    return end, (end.at - start.at).total_seconds(), left


def _await_tool(plan: Plan) -> None:
    """Until the agent's tool has run for two seconds."""

    def is_in_tool() -> bool:
        tools = [process for process in alive(plan.home) if process.info["cmdline"] == ["sleep", "300"]]
        return any(time.time() - process.info["create_time"] > IN_TOOL for process in tools)

    wait_until(is_in_tool, what="a tool", every=LOOK_EVERY, deadline=STARTING)


def _run_since(began: datetime, plan: Plan) -> tuple[WorkflowEvent, WorkflowEvent] | None:
    """The start and the end of the first run since then; None where it has not ended yet."""
    try:
        record = read_workflow_record("w", dir=plan.workflows)
    except WorkflowNotFoundError:
        return None
    events = [event for event in record.events if event.at >= began]
    start = next((event for event in events if event.type == "step.started"), None)
    end = next((event for event in events if event.type in ENDS), None)
    return (start, end) if start is not None and end is not None else None


def _check_end(plan: Plan, end: WorkflowEvent, result: AgentResult) -> None:
    """The step ended as the result says, and has it."""
    if end.type == "step.limited":
        assert isinstance(end.detail, dict)
        assert (result.outcome, end.detail["limitKey"]) == (Outcome.LIMITED, plan.case.agent)
        assert result.until is not None
        assert end.detail["until"] == result.until.isoformat(timespec="seconds")
        return
    ended = plan.ended()
    if isinstance(ended, CommandResult):
        assert (end.type, ended.parsed) == ("step.completed", result)
        return
    if not isinstance(ended, CommandError):
        raise ended
    assert (end.type, ended.result.parsed) == ("step.failed", result)
    assert result.outcome is not Outcome.OK
