"""The stand-in for agents, which tests and examples run without an account: it prints what the real ones do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from select import select

import pytest
from support import DEADLINE, lines_of
from support_commands import STAND_IN

from iso_orchestrator.agents import Agent, AgentCommand, AgentResult, AgentStream, Claude, Codex, OpenCode, Outcome
from iso_orchestrator.agents.stand_in import BEHAVIOURS

AGENTS: list[Agent] = [kind(program=[*STAND_IN, kind.name]) for kind in (Codex, Claude, OpenCode)]
each_agent = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)

OUTCOMES = {
    "ok": Outcome.OK,
    "tool": Outcome.OK,
    "empty": Outcome.EMPTY,
    "refused": Outcome.REFUSED,
    "plans": Outcome.REFUSED,
    "limited": Outcome.LIMITED,
    "fails": Outcome.FAILED,
    "dies": Outcome.FAILED,
    "answers_and_fails": Outcome.OK,
}


@contextmanager
def started(command: AgentCommand, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """The stand-in, running; killed at the end."""
    variables = {f"STAND_IN_{name}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        command.args,
        env={**os.environ, "STAND_IN_SECONDS": "0", **command.env, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(command.input)
    process.stdin.close()
    process.stdin = None
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        process.wait(DEADLINE)


def performed(agent: Agent, command: AgentCommand, **settings: object) -> tuple[AgentStream, AgentResult]:
    """One run to its end."""
    with started(command, **settings) as process:
        out, err = process.communicate(timeout=DEADLINE)
    stream = agent.stream()
    for line in out.splitlines():
        stream.feed(line)
    return stream, stream.result(process.returncode, err, now=datetime.now(UTC))


@pytest.mark.slow
@each_agent
@pytest.mark.parametrize("behaviour", OUTCOMES)
def test_each_behaviour_has_its_outcome(agent: Agent, behaviour: str) -> None:
    """It has the outcome for each CLI, and all its lines are understood."""
    _, result = performed(agent, agent.command("Review this."), AGENT=behaviour)
    assert (result.outcome, result.strays) == (OUTCOMES[behaviour], ())
    if result.outcome is Outcome.OK:
        assert result.text == "Done: Review this."
        assert result.usage is not None


@pytest.mark.slow
def test_it_runs_as_a_module_too() -> None:
    """It runs with `-m`."""
    agent = Claude(program=[sys.executable, "-m", "iso_orchestrator.agents.stand_in", "claude"])
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    _, result = performed(agent, agent.command("Review this.", env=path))
    assert result.outcome is Outcome.OK


def test_every_behaviour_is_tried() -> None:
    """The behaviours are those that end, four that have to be killed, and one whose output is not understood."""
    killed = {"stalls", "answers_and_hangs", "ignores_sigterm", "leaves_child"}
    assert set(BEHAVIOURS) - set(OUTCOMES) == {*killed, "no_events"}


@each_agent
def test_a_limit_lasts_as_long_as_it_says(agent: Agent) -> None:
    """A limit of an hour is one of an hour, to the minute."""
    _, result = performed(agent, agent.command("Go."), AGENT="limited", SECONDS=3600)
    assert result.until is not None
    assert abs(result.until - datetime.now(UTC) - timedelta(hours=1)) < timedelta(seconds=90)


@pytest.mark.slow
@each_agent
def test_one_run_after_another(agent: Agent, tmp_path: Path) -> None:
    """Behaviours follow each other over runs, the log has each run, and a session is resumed by its name."""
    settings = {"AGENT": "fails,ok", "LOG": tmp_path / "log"}
    _, first = performed(agent, agent.command("Begin."), **settings)
    _, second = performed(agent, agent.command("Go on.", resume=first.session_id), **settings)
    _, third = performed(agent, agent.command("And again."), **settings)
    assert [first.outcome, second.outcome, third.outcome] == [Outcome.FAILED, Outcome.OK, Outcome.OK]
    runs = [json.loads(line) for line in lines_of(tmp_path / "log")]
    assert [run["prompt"] for run in runs] == ["Begin.", "Go on.", "And again."]
    assert runs[0]["session"] == runs[1]["session"] == second.session_id
    assert runs[2]["session"] != runs[0]["session"]


@each_agent
def test_it_can_ignore_sigterm(agent: Agent) -> None:
    """Once it has printed its command, SIGTERM does not end it, and SIGKILL does."""
    with started(agent.command("Go."), AGENT="ignores_sigterm") as process:
        assert process.stdout is not None
        while "echo hi" not in process.stdout.readline():
            pass
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL


@each_agent
def test_it_can_leave_a_child(agent: Agent) -> None:
    """It ends well, with a child left in a session of its own that keeps standard output open."""
    with started(agent.command("Go."), AGENT="leaves_child") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        child = int(process.stderr.readline().split()[-1])
        try:
            assert process.wait(DEADLINE) == 0
            assert os.getsid(child) == child
            assert select([process.stdout], [], [], 0)[0]  # the answer is there, the end of the file is not
        finally:
            os.kill(child, signal.SIGKILL)
        assert "Go." in process.stdout.read()


@pytest.mark.parametrize(
    ("words", "planned", "error"),
    [
        (["gemini"], "ok", "agent is one of codex, claude, opencode, not 'gemini'"),
        ([], "ok", "agent is one of codex, claude, opencode, not ''"),
        (["codex"], "ok,sleeps", f"STAND_IN_AGENT is one of {', '.join(BEHAVIOURS)}, not 'sleeps'"),
    ],
)
def test_an_unknown_name_is_a_usage_error(words: list[str], planned: str, error: str) -> None:
    """It lists the names, and needs no prompt."""
    done = subprocess.run(
        [*STAND_IN, *words], env={**os.environ, "STAND_IN_AGENT": planned}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"stand_in.py: {error}\n")
