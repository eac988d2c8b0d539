"""The three real programs against a stand-in model: no account, no internet, nobody left behind.

    python tests/agents_real/install.py
    python -m pytest -m real_agents tests/agents_real

With `--record` what they print becomes the data of the tests that run everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agent_cases import CASES, Case, agent_for
from agent_transcripts import Transcript
from agents_real.homes import Home
from agents_real.install import program
from agents_real.model_server import ANSWER, ModelServer
from agents_real.processes import Ended, Watch, run

from iso_orchestrator.agents import AgentResult, Outcome

pytestmark = [
    pytest.mark.real_agents,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes by /proc"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Home, AgentResult]]:
    """The homes of the cases that ran, and what became of them: what others resume."""
    return {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_real_program(
    case: Case,
    server: ModelServer,
    homes: dict[str, tuple[Home, AgentResult]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Each agent has the right outcome in each case, in bounded time, and leaves nobody behind."""
    if not program(case.agent).exists():
        pytest.skip("not installed: python tests/agents_real/install.py")
    home, earlier = homes.get(f"{case.agent}-{case.resume}", (None, None))
    home = home or Home.make(tmp_path, server.url)
    transcript, ended = perform(case, home, server.url, earlier)
    if request.config.getoption("--record", default=False):
        transcript.scrubbed({str(home.work): "$WORK", str(home.home): "$HOME", str(home.root): "$ROOT"}).save(case)
    result = transcript.result(case)
    homes[str(case)] = home, result
    line = f"{case!s:32} exit={ended.exit_code!s:4} {ended.seconds:5.1f} s  left={ended.left_behind}  {result.outcome}"
    request.node.user_properties.append(("agent", f"{line:72} {result.until or ''!s:26} {result.reason or ''!s:.90}"))
    transcript.check(case, result)
    assert ended.seconds < case.within
    if result.outcome is Outcome.OK and case.model != "failed":
        assert result.text in (ANSWER, "one two three")


def perform(case: Case, home: Home, url: str, earlier: AgentResult | None) -> tuple[Transcript, Ended]:
    """Run a case; all that it printed, and how it ended."""
    agent = agent_for(case, str(program(case.agent)))
    resume = earlier.session_id if earlier is not None else case.resume
    changes = {name: value for name, value in case.env.items() if value is not None}
    command = agent.command("Say hello.", resume=resume, cwd=home.work)
    env = {**home.environment(url), **command.env, **changes}
    for name in case.env.keys() - changes.keys():
        del env[name]
    lines: list[bytes] = []
    watch = Watch(lines.append, case.signal, lambda commands: any("sleep 300" in each for each in commands), case.idle)
    ended = run(command.args, command.input, home.work, env, watch)
    transcript = Transcript(
        stdout=b"".join(lines),
        stderr=ended.stderr,
        exit_code=ended.exit_code,
        stopped=ended.stopped,
        ended_at=datetime.now(UTC),
        before=earlier.session_usage if earlier is not None else None,
    )
    return transcript, ended
