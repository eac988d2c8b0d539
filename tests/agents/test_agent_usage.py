"""What the record tells of each attempt of an agent: what it used, why it failed, and its last words while it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, wait_until
from support_commands import STAND_IN, shell
from support_processes import in_thread

from iso_orchestrator import Retry, Workflow
from iso_orchestrator.agents import Agent, AgentCommand, Claude, Codex

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the programs of these tests are for Linux")


def details(workflow: Workflow, type_: str) -> list[Any]:
    return [event.detail for event in workflow.record.events if event.type == type_]


def stand_in(kind: type[Agent], log: Path, behaviours: str, seconds: float = 0) -> Agent:
    env = {"STAND_IN_AGENT": behaviours, "STAND_IN_LOG": str(log), "STAND_IN_SECONDS": str(seconds)}
    return kind(program=[*STAND_IN, kind.name], env=env)


def test_each_attempt_has_its_usage(workflow: Workflow, tmp_path: Path) -> None:
    """Also one that failed, or met a limit: it was paid for too. A plain step has none."""
    agent = stand_in(Claude, tmp_path / "log", "refused,limited,ok", seconds=1)

    @workflow.command(parse=agent, timeout=DEADLINE, retry=Retry(2))
    def review() -> AgentCommand:
        return agent.command("Review.")

    with workflow:
        result = review().parsed
        workflow.run_step("plain", int)
    (refused,) = details(workflow, "step.retrying")
    (limited,) = details(workflow, "step.limited")
    ok, plain = details(workflow, "step.completed")
    assert [detail["usage"]["outcome"] for detail in (refused, limited, ok)] == ["refused", "limited", "ok"]
    assert refused["error"]["code"] == "agent.refused"
    assert ok["usage"] == {
        "agent": "claude",
        "outcome": "ok",
        "costUsd": result.cost_usd,
        "inputTokens": result.usage.input_tokens,
        "outputTokens": result.usage.output_tokens,
        "sessionId": result.session_id,
    }
    assert "usage" not in plain


def test_a_running_agent_s_heartbeat_has_its_last_words(workflow: Workflow, tmp_path: Path) -> None:
    """Not the JSON that says them."""
    events = [
        {"type": "thread.started", "thread_id": "t"},
        {
            "type": "item.completed",
            "item": {"id": "0", "type": "agent_message", "text": "Looking.\nRunning the tests."},
        },
    ]
    said = "\n".join(map(json.dumps, events))
    codex = Codex(program=shell('printf "%s\\n" "$1"; while [ ! -e "$2" ]; do sleep 0.1; done', said, tmp_path / "end"))

    @workflow.command(parse=codex, timeout=DEADLINE)
    def review() -> AgentCommand:
        return codex.command("Review.")

    call = in_thread(review)
    try:
        wait_until(lambda: line_of(workflow) == "Running the tests.")
    finally:
        (tmp_path / "end").touch()
        call.exception(DEADLINE)


def line_of(workflow: Workflow) -> object:
    beat = workflow.record.heartbeats.get("command:review")
    return None if beat is None else beat.detail.get("line")
