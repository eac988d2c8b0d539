"""Agents as steps: classified, limited, resumed and recorded. With the stand-in, as each of the three CLIs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import DEADLINE, wait_until
from support_commands import STAND_IN, shell
from support_processes import child

from iso_orchestrator import AgentError, CommandIdleError, Limited, StepStatus, Workflow, read_workflow_record
from iso_orchestrator.agents import Agent, AgentCommand, AgentResult, Claude, Codex, OpenCode, Outcome, last_session
from iso_orchestrator.record.model import Json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the programs of these tests are for Linux")

KINDS: list[type[Agent]] = [Codex, Claude, OpenCode]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def stand_in(kind: type[Agent], log: Path, *behaviours: str, seconds: float = 0) -> Agent:
    """An agent with one of these behaviours in each run, which writes each run to *log*."""
    return kind(
        program=[*STAND_IN, kind.name],
        env={
            "STAND_IN_AGENT": ",".join(behaviours),
            "STAND_IN_LOG": str(log),
            "STAND_IN_SECONDS": str(seconds),
        },
    )


def runs_in(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@each_kind
def test_an_answer_is_recorded_with_its_details(workflow: Workflow, tmp_path: Path, kind: type[Agent]) -> None:
    """The typed result is the same on the first call and from the record, and the agent runs once."""
    agent = stand_in(kind, tmp_path / "log", "ok")

    @workflow.command(parse=agent, timeout=DEADLINE)
    def review(path: str) -> AgentCommand:
        return agent.command(f"Review {path}.")

    first = review("a.py")
    assert isinstance(first.parsed, AgentResult)
    assert (first.parsed.outcome, first.parsed.text) == (Outcome.OK, "Done: Review a.py.")
    assert first.parsed.session_id
    workflow.close()
    assert review("a.py") == first
    assert len(runs_in(tmp_path / "log")) == 1


@each_kind
@pytest.mark.parametrize("behaviour", ["empty", "refused", "fails", "dies"])
def test_a_run_without_an_answer_fails_with_any_exit_code(
    workflow: Workflow, tmp_path: Path, kind: type[Agent], behaviour: str
) -> None:
    """The error has the outcome, and a retry with an answer is a success."""
    agent = stand_in(kind, tmp_path / "log", behaviour, "ok")

    @workflow.command(parse=agent, timeout=DEADLINE)
    def review() -> AgentCommand:
        return agent.command("Review.")

    with pytest.raises(AgentError, match=rf"'review'.*{kind.name}.*\.1\.log") as caught:
        review()
    outcome = caught.value.result.parsed.outcome
    assert outcome == {"fails": "failed", "dies": "failed"}.get(behaviour, behaviour)
    assert workflow.record.steps["review"].status is StepStatus.FAILED
    assert review().parsed.text == "Done: Review."


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Claude, OpenCode])  # codex names no seconds, and a minute is too long for a test
def test_all_steps_of_an_agent_wait_for_its_limit(workflow: Workflow, tmp_path: Path, kind: type[Agent]) -> None:
    """A run that meets a limit does not count as an attempt, and no step of that agent starts before its end."""
    agent = stand_in(kind, tmp_path / "log", "limited", "ok", seconds=1)

    @workflow.command(name="review {number}", parse=agent, timeout=DEADLINE)
    def review(number: int) -> AgentCommand:
        return agent.command(f"Review {number}.")

    began = time.monotonic()
    assert review(1).parsed.text == "Done: Review 1."
    assert time.monotonic() - began >= 0.5
    assert workflow.record.steps["review 1"].attempts == 1
    limits = [event.detail for event in workflow.record.events if event.type == "step.limited"]
    assert [limit["limitKey"] for limit in limits] == [kind.name]


@pytest.mark.slow
def test_a_step_may_name_the_key_of_its_limit(workflow: Workflow, tmp_path: Path) -> None:
    """An agent with two accounts is limited in one of them."""
    agent = stand_in(Claude, tmp_path / "log", "limited", "ok", seconds=1)

    @workflow.command(parse=agent, timeout=DEADLINE, limit_key="account")
    def review() -> AgentCommand:
        return agent.command("Review.")

    review()
    limits = [event.detail for event in workflow.record.events if event.type == "step.limited"]
    assert [limit["limitKey"] for limit in limits] == ["account"]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["Please try again in 148ms.", "Please try again later."])
def test_a_limit_of_no_time_is_not_met_again_at_once(workflow: Workflow, tmp_path: Path, words: str) -> None:
    """A limit of less than a second, or of an unknown time, takes a second, then longer, and is bounded."""
    event = json.dumps({"type": "turn.failed", "error": {"message": f"Rate limit reached. {words}"}})
    codex = Codex(program=shell('date +%s.%N >> "$1"; echo "$2"; exit 1', tmp_path / "log", event))

    @workflow.command(parse=codex, timeout=DEADLINE, retry=1, max_limited=3)
    def review() -> AgentCommand:
        return codex.command("Review.")

    with pytest.raises(Limited) as caught:
        review()
    assert isinstance(caught.value.__cause__, AgentError)
    assert str(caught.value).startswith("codex is limited until ")
    assert words in str(caught.value)
    first, second, third = map(float, (tmp_path / "log").read_text().split())
    assert second - first >= 1
    assert third - second >= 2


def test_the_tokens_of_a_resumed_session_are_kept() -> None:
    """A resumed run that is killed before it has counted any does not begin the count at 0."""
    before: dict[str, Json] = {
        "agent": "codex",
        "session": "s",
        "sessionUsage": {"input_tokens": 100, "output_tokens": 10},
    }
    for session, tokens in (("s", 100), ("another", None)):
        reader = Codex().begin(Codex().command("Go on.", resume=session), before)
        usage = reader.detail()["sessionUsage"]
        assert isinstance(usage, dict)
        assert usage["input_tokens"] == tokens


@pytest.mark.slow
def test_a_stalled_agent_is_ended(workflow: Workflow, tmp_path: Path) -> None:
    """No output for the idle timeout ends it."""
    agent = stand_in(Codex, tmp_path / "log", "stalls")

    @workflow.command(parse=agent, idle_timeout=1)
    def review() -> AgentCommand:
        return agent.command("Review.")

    with pytest.raises(CommandIdleError) as caught:
        review()
    assert caught.value.result.parsed.outcome is Outcome.FAILED
    assert caught.value.result.parsed.reason.startswith("stopped: no output for 1 s")
    (run,) = runs_in(tmp_path / "log")
    assert not Path(f"/proc/{run['pid']}").exists()


@each_kind
@pytest.mark.parametrize("idle_timeout", [None, 0.3])
def test_a_closed_turn_counts_though_the_process_hangs(
    workflow: Workflow, tmp_path: Path, kind: type[Agent], idle_timeout: float | None
) -> None:
    """It is ended `close_grace` after its closing event, not as idle, and its answer counts."""
    agent = stand_in(kind, tmp_path / "log", "answers_and_hangs")

    @workflow.command(parse=agent, idle_timeout=idle_timeout, timeout=DEADLINE, close_grace=0.6, retry=2)
    def review() -> AgentCommand:
        return agent.command("Review.")

    result = review()
    assert (result.parsed.outcome, result.parsed.text) == (Outcome.OK, "Done: Review.")
    assert (result.exit_code, result.duration >= 0.6) == (-signal.SIGTERM, True)
    (run,) = runs_in(tmp_path / "log")
    assert not Path(f"/proc/{run['pid']}").exists()


CLOSED = """
from iso_orchestrator.agents import Claude

agent = Claude(program=PROGRAM, env={"STAND_IN_AGENT": "answers_and_hangs", "STAND_IN_SECONDS": "0"})

@workflow.command(parse=agent, close_grace=DEADLINE, accept=lambda result: result.parsed.text.startswith("Done"))
def review(path):
    return agent.command(f"Review {path}.")

with workflow:
    try:
        CALL
    finally:
        say("left")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "call",
    [
        "review('a.py')",
        "workflow.run_step('outer', lambda: review('a.py'))",
        "workflow.run_for_each(['a.py'], review)",
        "workflow.run_for_each(['a.py'], review, max_parallel=2)",
        "review.submit('a.py').result()",
    ],
    ids=["alone", "inner", "callers_thread", "worker", "submit"],
)
def test_a_closed_turn_counts_at_ctrl_c(tmp_path: Path, call: str, number: int) -> None:
    """The process that hangs after its answer is ended at once, the answer is recorded, and then Ctrl-C goes on."""
    code = CLOSED.replace("PROGRAM", repr([*STAND_IN, "claude"])).replace("CALL", call)
    with child(code, tmp_path) as process:
        wait_until(lambda: any("Done: Review a.py." in path.read_text() for path in tmp_path.rglob("*.1.log")))
        process.process.send_signal(number)
        assert process.line(DEADLINE / 2) == "left"
        assert process.process.wait(DEADLINE) == -number
    record = read_workflow_record("w", dir=tmp_path)
    assert record.steps['review(path="a.py")'].status is StepStatus.COMPLETED
    assert record.last_error is not None
    assert record.last_error.name == "KeyboardInterrupt"


def test_a_closed_turn_counts_at_the_time_limit_too(workflow: Workflow, tmp_path: Path) -> None:
    """A turn that was closed in time is ended at the time limit, however long `close_grace` is, and counts."""
    agent = stand_in(Claude, tmp_path / "log", "answers_and_hangs")

    @workflow.command(parse=agent, timeout=2, close_grace=None)
    def review() -> AgentCommand:
        return agent.command("Review.")

    assert review().parsed.outcome is Outcome.OK
    assert len(runs_in(tmp_path / "log")) == 1


@each_kind
def test_an_answer_counts_with_another_exit_code(workflow: Workflow, tmp_path: Path, kind: type[Agent]) -> None:
    """A turn that was closed with an answer is not paid for again, and the result keeps the exit code."""
    agent = stand_in(kind, tmp_path / "log", "answers_and_fails", "fails")

    @workflow.command(parse=agent, timeout=DEADLINE, retry=2)
    def review() -> AgentCommand:
        return agent.command("Review.")

    result = review()
    assert (result.parsed.outcome, result.exit_code) == (Outcome.OK, 1)
    assert len(runs_in(tmp_path / "log")) == 1


@pytest.mark.parametrize(
    ("kind", "tool"), [(Codex, "command_execution"), (Claude, "ExitPlanMode"), (OpenCode, "bash")], ids=lambda v: str(v)
)
def test_refusals_can_be_allowed(workflow: Workflow, tmp_path: Path, kind: type[Agent], tool: str) -> None:
    """An answer after a refused tool counts if that tool may be refused, and the refusal is in the result."""

    def review(allowed: bool | set[str]) -> AgentResult:
        agent = attrs.evolve(stand_in(kind, tmp_path / "log", "plans"), allow_refusals=allowed)

        @workflow.command(name="{names}", parse=agent, timeout=DEADLINE)
        def run(names: str) -> AgentCommand:
            return agent.command("Review.")

        return run(str(allowed)).parsed

    for allowed in (False, {"another"}):
        with pytest.raises(AgentError, match="was refused: .*" + (tool if kind is Claude else "echo hi")):
            review(allowed)
    for allowed in (True, {tool, "another"}):
        run = review(allowed)
        assert (run.outcome, run.text, len(run.refusals)) == (Outcome.OK, "Done: Review.", 1)


@each_kind
def test_an_agent_whose_output_has_no_events_says_so(workflow: Workflow, tmp_path: Path, kind: type[Agent]) -> None:
    """A changed output format is the reason that the error gives."""
    agent = stand_in(kind, tmp_path / "log", "no_events")

    @workflow.command(parse=agent, timeout=DEADLINE)
    def review() -> AgentCommand:
        return agent.command("Review.")

    with pytest.raises(AgentError, match=r"none of its output is an event \(the last line: 'Done: Review.'\)"):
        review()


@each_kind
def test_a_retry_resumes_the_session(workflow: Workflow, tmp_path: Path, kind: type[Agent]) -> None:
    """The second attempt resumes the session of the first."""
    agent = stand_in(kind, tmp_path / "log", "fails", "ok")
    sessions: list[str | None] = []

    @workflow.command(parse=agent, timeout=DEADLINE, retry=2)
    def review() -> AgentCommand:
        sessions.append(last_session())
        return agent.command("Review.", resume=sessions[-1])

    result = review()
    first, second = runs_in(tmp_path / "log")
    assert sessions == [None, first["session"]]
    assert second["session"] == first["session"] == result.parsed.session_id


def test_a_step_that_is_reset_begins_a_new_session(workflow: Workflow, tmp_path: Path) -> None:
    """A reset or another idempotency key begins a new session."""
    agent = stand_in(Claude, tmp_path / "log", "ok")
    keys = ["a"]

    @workflow.command(parse=agent, timeout=DEADLINE, idempotency_key=lambda: keys[-1])
    def review() -> AgentCommand:
        return agent.command("Review.", resume=last_session())

    sessions = [review().parsed.session_id]
    workflow.reset("review")
    sessions.append(review().parsed.session_id)
    keys.append("b")
    sessions.append(review().parsed.session_id)
    assert len(set(sessions)) == 3


@each_kind
def test_a_retry_after_an_answer_that_was_not_accepted_resumes_too(
    workflow: Workflow, tmp_path: Path, kind: type[Agent]
) -> None:
    """The session of a refused answer is known, also after a short run, and its tokens are not counted twice."""
    agent = stand_in(kind, tmp_path / "log", "ok")

    @workflow.command(parse=agent, timeout=DEADLINE, retry=2, accept=lambda result: "again" in result.parsed.text)
    def review() -> AgentCommand:
        session = last_session()
        return agent.command("Review again." if session else "Review.", resume=session)

    other = stand_in(kind, tmp_path / "other log", "ok")

    @workflow.command(parse=other, timeout=DEADLINE)
    def review_once() -> AgentCommand:
        return other.command("Review.")

    result = review()
    first, second = runs_in(tmp_path / "log")
    assert second["session"] == first["session"] == result.parsed.session_id
    assert result.parsed.usage == review_once().parsed.usage


def test_tokens_in_a_session_of_another_step_are_not_guessed(workflow: Workflow, tmp_path: Path) -> None:
    """An agent that counts whole sessions gives a run's tokens only to the step that had the run before."""
    agent = stand_in(Codex, tmp_path / "log", "ok")

    @workflow.command(name="{prompt}", parse=agent, timeout=DEADLINE)
    def ask(prompt: str, resume: str | None = None) -> AgentCommand:
        return agent.command(prompt, resume=resume)

    first = ask("Review.").parsed
    second = ask("Mend it.", first.session_id).parsed
    assert (first.usage, second.usage) == (first.session_usage, None)
    assert second.session_usage == first.usage + first.usage


KILLED = """
from iso_orchestrator.agents import Claude
from support_commands import STAND_IN, shell
agent = Claude(program=[*STAND_IN, "claude"], env=dict(STAND_IN_AGENT="stalls,ok", STAND_IN_LOG=root + "/log"))

@workflow.command(parse=agent)
def review():
    return agent.command("Review.")

say("go")
review()
"""


@pytest.mark.parametrize("version", [None, "2"])
def test_the_session_of_a_killed_run_is_resumed(tmp_path: Path, version: str | None) -> None:
    """Its agent is ended first. A new version of the step begins a new session."""
    with child(KILLED, tmp_path) as runner:
        assert runner.line() == "go"
        (first,) = wait_until(lambda: runs_in(tmp_path / "log"))
        runner.process.kill()
        runner.process.wait(DEADLINE)
    workflow = Workflow("w", dir=tmp_path)
    agent = stand_in(Claude, tmp_path / "log", "stalls", "ok")

    @workflow.command(parse=agent, timeout=DEADLINE, version=version)
    def review() -> AgentCommand:
        assert not _is_alive(first["pid"])
        return agent.command("Review.", resume=last_session())

    assert (review().parsed.session_id == first["session"]) is (version is None)
    workflow.close()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
