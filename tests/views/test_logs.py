"""`iso-orchestrator logs`: the output of a step's command, whole or followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import DEADLINE, Child, Run, run_python, wait_until
from support_commands import shell
from support_processes import PAUSE, child, in_thread

from iso_orchestrator import (
    AgentError,
    CommandError,
    Workflow,
    WorkflowNotFoundError,
    current_step,
    read_workflow_record,
)
from iso_orchestrator.agents import Claude

# Print the first argument, and wait until the second exists.
WAIT_FOR = 'echo "$1"; until [ -e "$2" ]; do sleep 0.02; done'


def follower(root: Path, step: str) -> Child:
    """Run `logs -f` in a process of its own."""
    code = "import sys; from iso_orchestrator.views.cli import main; sys.exit(main(sys.argv[1:]))"
    return run_python(code, "logs", "--dir", root, "w", step, "-f")


def test_the_log_of_a_step_is_printed(workflow: Workflow, run: Run) -> None:
    """`logs` prints all of the standard output, with or without a newline at the end."""
    workflow.command(name="say")(lambda: shell("seq 20000; printf end"))()
    code, out, err = run("logs", "w", "say")
    assert (code, err) == (0, "")
    assert out.splitlines() == [*map(str, range(1, 20001)), "end"]


@pytest.mark.parametrize("ending", ["exit 3", "exit 0"])
def test_a_failed_step_has_its_log(workflow: Workflow, run: Run, ending: str) -> None:
    """A step that failed at once has its log, and `show` has the path."""
    step = workflow.command(name="say", parse="json")(lambda: shell(f"echo no json; {ending}"))
    with pytest.raises((CommandError, ValueError)):
        step()
    assert run("logs", "w", "say") == (0, "no json\n", "")
    _, out, _ = run("show", "w", "say")
    path = json.loads(run("show", "w", "say", "--json")[1])["log"]
    assert Path(path).read_text() == "no json\n"
    assert path in "".join(map(str.strip, out.splitlines()))


def test_a_step_that_was_tried_again_has_its_last_log(workflow: Workflow, run: Run) -> None:
    """Each attempt has a log of its own, and `logs` prints the last one, or that of `--attempt`."""
    workflow.command(name="say", retry=2)(lambda: shell('echo "$1"; [ "$1" = 2 ]', str(current_step().attempt)))()
    assert run("logs", "w", "say") == (0, "2\n", "")
    assert run("logs", "say", "--attempt", "1") == (0, "1\n", "")
    code, out, err = run("logs", "w", "say", "--attempt", "3")
    assert (code, out) == (1, "")
    assert "does not exist" in err


def test_standard_error_comes_after_standard_output(workflow: Workflow, run: Run) -> None:
    """It has a headline; each of both can be had alone."""
    workflow.command(name="say")(lambda: shell("echo one; echo two >&2; printf three"))()
    assert run("logs", "w", "#1") == (0, "one\nthree\nstandard error:\ntwo\n", "")
    assert run("logs", "w", "--stdout", "say") == (0, "one\nthree\n", "")
    assert run("logs", "--stderr", "w", "s*") == (0, "two\n", "")


def says(**part: object) -> dict[str, object]:
    """An event of claude's."""
    return {"type": "assistant", "message": {"content": [part]}}


EVENTS = [
    {"type": "system", "subtype": "init", "session_id": "s"},
    says(type="text", text="Reading\nthe diff"),
    says(type="tool_use", name="Bash", input={"command": "git log"}),
    says(type="text", text="It is \x1b[31mgood."),
    {"type": "result", "is_error": False, "subtype": "success", "result": "It is \x1b[31mgood.", "total_cost_usd": 0.5},
]


def test_an_agent_s_stream_is_its_words(workflow: Workflow, tmp_path: Path, run: Run) -> None:
    """`logs` prints what an agent said and did, once; `--raw` its lines as they came; `show` has its last words."""
    stream = tmp_path / "stream"
    stream.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    agent = Claude(program=["sh", "-c", 'cat > /dev/null; cat "$0"', str(stream)])
    workflow.command(name="review", parse=agent, timeout=DEADLINE)(lambda: agent.command("Review."))()
    said = ["Reading", "the diff", "Bash: git log", "It is \\x1b[31mgood."]
    assert run("logs", "w", "review") == (0, "\n".join([*said, ""]), "")
    assert run("logs", "w", "review", "--raw")[1] == stream.read_text()
    assert [line.strip() for line in run("show", "w", "review")[1].splitlines() if line.startswith("  ")][-4:] == said
    assert "ok: It is \\x1b[31mgood." in run("show", "w", "--steps")[1]


def test_the_last_words_of_an_agent_that_failed_have_its_standard_error(workflow: Workflow, run: Run) -> None:
    """What an agent said before it died seldom has the reason."""
    events = "".join(json.dumps(event) + "\n" for event in EVENTS[:2])
    program = 'cat > /dev/null; printf %s "$0"; echo "fatal: no such host" >&2; exit 128'
    agent = Claude(program=["sh", "-c", program, events])
    with pytest.raises(AgentError, match="no such host"):
        workflow.command(name="review", parse=agent, timeout=DEADLINE)(lambda: agent.command("Review."))()
    shown = [line.strip() for line in run("show", "w", "review")[1].splitlines() if line.startswith("  ")]
    assert shown[-4:] == ["Reading", "the diff", "standard error:", "fatal: no such host"]


def test_what_drives_a_terminal_is_spelled_out(workflow: Workflow, run: Run) -> None:
    """Control characters and bytes that are no UTF-8 are escaped; lines may end with CR LF."""
    workflow.command(name="say")(lambda: ["printf", r"\033[31mred\r\ncaf\351\n\342\202\254\n"])()
    assert run("logs", "w", "say") == (0, "\\x1b[31mred\ncaf\\xe9\n€\n", "")


@pytest.mark.parametrize(
    ("step", "says"),
    [("nobody", "no step 'nobody'"), ("plain", "no command"), ("gone", "does not exist any more")],
)
def test_what_has_no_log_is_one_helpful_line(workflow: Workflow, run: Run, step: str, says: str) -> None:
    """An unknown step, a step that is no command, and a deleted log end with 1 and one line that says so."""
    workflow.run_step("plain", lambda: {"log_path": None})
    Path(workflow.command(name="gone")(lambda: ["echo", "one"])().log_path).unlink()
    for follow in ([], ["-f"]):
        code, out, err = run("logs", "w", step, *follow)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert says in err


def test_an_unknown_workflow_is_one_helpful_line(run: Run) -> None:
    """An unknown workflow ends with 1 and one line that names it."""
    code, out, err = run("logs", "nobody", "say")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no workflow 'nobody'" in err


# Followed


@pytest.mark.slow
def test_a_running_command_is_followed_to_its_end(workflow: Workflow, tmp_path: Path) -> None:
    """`logs -f` prints each line when it is written, and ends with the step."""
    step = workflow.command(name="say", timeout=DEADLINE)(
        lambda: shell(f"{WAIT_FOR}; printf two", "one", tmp_path / "go on")
    )
    ended = in_thread(step)
    _await_log(tmp_path)
    with follower(tmp_path, "say") as following:
        assert following.line() == "one"
        with pytest.raises(AssertionError, match="printed nothing"):
            following.line(PAUSE)
        (tmp_path / "go on").touch()
        assert following.line() == "two"
        assert following.end() == []
    assert ended.result(DEADLINE).exit_code == 0


@pytest.mark.slow
def test_a_step_that_is_tried_again_is_followed_from_log_to_log(workflow: Workflow, tmp_path: Path) -> None:
    """`logs -f` prints the rest of the first attempt's log before the second one's."""
    step = workflow.command(name="say", retry=2, timeout=DEADLINE)(
        lambda: shell(
            f'{WAIT_FOR}; echo "end of $1"; [ "$1" = 2 ]',
            str(current_step().attempt),
            tmp_path / f"go on {current_step().attempt}",
        )
    )
    ended = in_thread(step)
    _await_log(tmp_path)
    with follower(tmp_path, "say") as following:
        assert following.line() == "1"
        (tmp_path / "go on 1").touch()
        assert [following.line(), following.line()] == ["end of 1", "2"]
        (tmp_path / "go on 2").touch()
        assert following.end() == ["end of 2"]
    assert ended.result(DEADLINE).exit_code == 0


KILLED = """
@workflow.command(name="say")
def work():
    return ["sh", "-c", "echo one; exec sleep 30"]
say("go")
work()
"""


@pytest.mark.slow
def test_following_ends_with_the_runner(tmp_path: Path) -> None:
    """`logs -f` ends when the process that runs the step was killed."""
    with child(KILLED, tmp_path) as runner:
        _await_log(tmp_path)
        with follower(tmp_path, "say") as following:
            assert following.line() == "one"
            runner.kill()
            assert following.end() == []
    workflow = Workflow("w", dir=tmp_path)
    workflow.command(name="say")(lambda: ["true"])()  # ends what is left
    workflow.close()


def _await_log(root: Path) -> None:
    """Wait until the log's path is on record, and the log is not empty."""

    def is_known() -> bool:
        try:
            beat = read_workflow_record("w", dir=root).heartbeats.get("command:say")
        except WorkflowNotFoundError:
            return False
        return beat is not None and isinstance(beat.detail, dict) and Path(str(beat.detail["log"])).stat().st_size > 0

    wait_until(is_known, what="the log")
