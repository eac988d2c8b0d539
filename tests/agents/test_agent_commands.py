"""The command lines of the agents."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from uuid import UUID

import pytest

from iso_orchestrator import agents
from iso_orchestrator.agents import Agent, Claude, Codex, OpenCode

AGENTS: list[type[Agent]] = [Codex, Claude, OpenCode]
DANGEROUS = ("danger", "bypass", "skip-permissions", "--auto", "--yolo", "allow")


@pytest.mark.parametrize("kind", AGENTS)
def test_nothing_dangerous_by_default(kind: type[Agent]) -> None:
    """No agent may do more than its own defaults let it, unless the user says so."""
    args = kind().command("Go.").args
    assert not [word for word in args for danger in DANGEROUS if danger in word.replace("skip-git-repo-check", "")]


@pytest.mark.parametrize("kind", AGENTS)
def test_the_prompt_goes_in_by_standard_input(kind: type[Agent]) -> None:
    """A prompt is never an argument, in any form and length."""
    for prompt in ("--help", "a" * 1_000_000, 'say "hello"\nand go'):
        command = kind().command(prompt)
        assert command.input == prompt
        assert prompt not in command.args


@pytest.mark.parametrize("kind", AGENTS)
def test_additions_of_the_user_are_passed_on(kind: type[Agent]) -> None:
    """Program, model, arguments and environment are the user's; a run's environment overrides the agent's."""
    agent = kind(program=["npx", "it"], model="m/x", args=["--flag", "value"], env={"A": "agent", "B": "agent"})
    command = agent.command("Go.", cwd=Path("somewhere"), env={"B": "run"})
    assert command.args[:2] == ("npx", "it")
    assert "m/x" in command.args
    assert command.args[command.args.index("--flag") + 1] == "value"
    assert (command.env["A"], command.env["B"], command.cwd) == ("agent", "run", "somewhere")


def test_claude_has_a_new_session_each_time() -> None:
    """Each command chooses a new session before the start: claude refuses to begin one twice."""
    commands = [Claude().command("Go.") for _ in range(3)]
    assert len({command.session_id for command in commands}) == 3
    for command in commands:
        assert command.args[command.args.index("--session-id") + 1] == command.session_id
        assert str(UUID(command.session_id)) == command.session_id


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (Codex(), ("resume", "s-1", "-")),
        (Claude(), ("--resume", "s-1")),
        (OpenCode(), ("--session", "s-1")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_resuming_names_the_session(agent: Agent, words: tuple[str, ...]) -> None:
    """A session is resumed by its name, and no new one is begun."""
    command = agent.command("Go on.", resume="s-1")
    assert " ".join(words) in " ".join(command.args)
    assert "--session-id" not in command.args
    assert command.session_id == "s-1"


@pytest.mark.parametrize("resume", ["", "--last", "-", "a b", "a\n", "ü", "x" * 201])
def test_a_session_cannot_be_an_option(resume: str) -> None:
    """A text that could be taken for anything except a session's name is refused."""
    with pytest.raises(ValueError, match="no session's name"):
        Codex().command("Go.", resume=resume)


def test_codex_caps_the_retries_of_a_provider_of_ones_own() -> None:
    """It has no such settings for its built-in provider."""
    assert not [word for word in Codex().command("Go.").args if "model_providers" in word]
    args = Codex(provider="lab", max_retries=2).command("Go.").args
    assert "model_providers.lab.request_max_retries=2" in args
    assert "model_providers.lab.stream_max_retries=2" in args
    assert 'model_provider="lab"' in args
    assert "features.unbounded_connection_retries=false" in args


def test_claude_caps_the_retries() -> None:
    """An environment variable sets them."""
    assert Claude(max_retries=0).command("Go.").env["CLAUDE_CODE_MAX_RETRIES"] == "0"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"args": "--flag"}, TypeError),
        ({"max_retries": -1}, ValueError),
        ({"max_retries": True}, TypeError),
        ({"program": ""}, ValueError),
        ({"program": []}, ValueError),
        ({"provider": "a.b"}, ValueError),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception]) -> None:
    """The error comes when the agent is made."""
    with pytest.raises(error):
        Codex(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompt", "error"), [("", ValueError), (" \n", ValueError), (None, TypeError)])
def test_wrong_prompts_are_refused(prompt: str, error: type[Exception]) -> None:
    """There is no run without a prompt."""
    with pytest.raises(error):
        Codex().command(prompt)


def test_agents_are_imported_at_first_use() -> None:
    """`import iso_orchestrator` imports none of them."""
    code = "import sys, iso_orchestrator; print([name for name in sys.modules if '.agents' in name])"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_all_is_sorted_and_true() -> None:
    """`__all__` is sorted, and each of its names exists and has a docstring."""
    assert agents.__all__ == sorted(set(agents.__all__))
    assert [name for name in agents.__all__ if name != "Event" and not getattr(agents, name).__doc__] == []
