"""`iso-orchestrator top`: what runs, what waits, and the limits in force; and how `show` prints commands."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Run, run_python, wait_until
from support_commands import STAND_IN, shell
from support_processes import child, in_thread

from iso_orchestrator import Limited, Retry, Workflow, read_workflow_record
from iso_orchestrator.agents import Claude
from iso_orchestrator.store import find_store
from iso_orchestrator.text import money_text
from iso_orchestrator.views.terminal import Terminal
from iso_orchestrator.views.top import Looked, top_lines

NOTHING = "nothing is running\n"


@contextmanager
def working(workflow: Workflow, folder: Path, says: str) -> Iterator[Future[Any]]:
    """Run the step "work" inside the `with` block: a command that has printed a text and waits."""
    go_on, printed = (folder / f"{workflow.workflow_id} {what}" for what in ("go on", "printed"))

    @workflow.command(name="work", timeout=DEADLINE)
    def work() -> list[str]:
        return shell('printf %s "$1"; touch "$3"; until [ -e "$2" ]; do sleep 0.02; done', says, go_on, printed)

    ended = in_thread(work)
    try:
        wait_until(lambda: printed.exists() and "command:work" in workflow.record.heartbeats, what="a heartbeat")
        yield ended
    finally:
        go_on.touch()
        ended.result(DEADLINE)
        workflow.close()


def rows(out: str) -> list[list[str]]:
    """The rows of the tables of steps, each with its workflow, without its sign."""
    found, workflow_id, columns = [], "", 0
    for line in out.splitlines():
        if re.match(r"\S.*  [●†] ", line):
            workflow_id = line.partition("  ")[0]
        elif line.split()[:1] == ["step"]:
            assert line.split()[1:] in (["try", "for", "what"], ["try", "for"])
            columns = len(line.split())
        elif line.startswith(("●", "◔")):
            cells = re.split(r"  +", line)[1:]
            found.append([workflow_id, *cells, *[""] * (columns - len(cells))])
    return found


def limits(out: str) -> dict[str, str]:
    """For each limit in force, what is said of it."""
    return dict(re.findall(r"^limit of (\S+) (.*)$", out, re.MULTILINE))


def test_where_nothing_runs_it_says_so(workflow: Workflow, run: Run) -> None:
    """`top` says that nothing runs, for a missing root and for a workflow that has ended."""
    assert run("top") == (0, NOTHING, "")
    workflow.command(name="work")(lambda: ["true"])()
    assert run("top") == (0, NOTHING, "")
    assert run("top", "w") == (0, NOTHING, "")


def test_a_running_command_has_its_last_line(workflow: Workflow, tmp_path: Path, run: Run) -> None:
    """`top` shows the workflow, step, attempt, duration and last line of a running command; a long line is cut."""
    with working(workflow, tmp_path, f"one\ntwo {'x' * 100}\n\n"):
        code, out, err = run("top")
        ((workflow_id, step, attempt, since, what),) = rows(out)
    assert (code, err, workflow_id, step, attempt) == (0, "", "w", "work", "1")
    assert re.fullmatch(r"\d+ ms|\d\.\d\d s", since)
    assert re.fullmatch(r"two x+…", what)
    assert max(map(len, out.splitlines())) == 80
    assert run("top") == (0, NOTHING, "")


def test_one_workflow_can_be_asked_for(workflow: Workflow, tmp_path: Path, run: Run) -> None:
    """`top` shows all workflows, or the one that is named; an unknown name is an error."""
    with working(workflow, tmp_path, "one"), working(Workflow("other", dir=tmp_path), tmp_path, "two"):
        assert [row[0] for row in rows(run("top")[1])] == ["other", "w"]
        assert [row[-1] for row in rows(run("top", "other")[1])] == ["two"]
    code, out, err = run("top", "nobody")
    assert (code, out) == (1, "")
    assert "no workflow 'nobody'" in err


def test_a_plain_step_is_shown_too(workflow: Workflow, run: Run) -> None:
    """`top` shows a plain step, without a last line."""
    shown = workflow.run_step("look", lambda: run("top")[1])
    assert [row[:3] for row in rows(shown)] == [["w", "look", "1"]]
    assert shown.startswith("w  ● without a run\n0/1 ─")


@pytest.mark.slow
def test_what_waits_for_a_limit_says_until_when(workflow: Workflow, run: Run) -> None:
    """A step that waits for a limit shows its name and end; limits with the same end are kept apart."""
    until = datetime.now(UTC) + timedelta(seconds=2)
    shown = f"{until:%H:%M:%S}"

    def limited(key: str | None) -> Future[Any]:
        def body() -> None:
            if datetime.now(UTC) < until:
                raise Limited(until, key)

        return in_thread(lambda: workflow.run_step(f"ask {key}", body))

    ended = [limited(key) for key in ("some-api", "other-api", None)]
    wait_until(lambda: len([step for step in workflow.record.steps.values() if step.error]) == len(ended))
    out = run("top")[1]
    assert {row[1]: row[-1] for row in rows(out)} == {
        "ask some-api": f"waits for the limit of some-api until {shown}",
        "ask other-api": f"waits for the limit of other-api until {shown}",
        "ask None": f"waits for its limit until {shown}",
    }
    assert set(limits(out)) == {"some-api", "other-api"}
    assert all(re.fullmatch(rf"until {shown}, in [\d.]+ m?s: 1 step waits", said) for said in limits(out).values())
    for end in ended:
        end.result(DEADLINE)
    assert run("top")[1] == NOTHING


@pytest.mark.slow
def test_many_that_wait_for_one_limit_are_counted(workflow: Workflow, tmp_path: Path, run: Run) -> None:
    """The limit has the number of those that wait for it; in few lines, those that have no row are counted."""
    until = datetime.now(UTC) + timedelta(seconds=3)

    @workflow.for_each(max_parallel=2)
    @workflow.step(name="ask {n}", limit_key="some-api")
    def ask(n: int) -> None:
        if datetime.now(UTC) < until:
            raise Limited(until, "some-api")

    ended = in_thread(lambda: ask(range(12)))
    wait_until(lambda: sum(step.status == "waiting" for step in workflow.record.steps.values()) == 12)
    out = run("top")[1]
    assert len(rows(out)) == 12
    assert limits(out)["some-api"].endswith(": 12 steps wait")
    looked = Looked.of(find_store(None, tmp_path), find_store(None, tmp_path).read("w"))  # type: ignore[arg-type]
    for height in range(7, 20):
        few = top_lines([looked], Terminal(80), rows=height)
        assert len(few) == min(height, len(out.splitlines()))
        count = len(rows("\n".join(few)))
        assert few[-1] == f"+{12 - count} more" or (count == 12 and few[-1].startswith("◔  ask "))
    ended.result(DEADLINE)


WAITING = """
from datetime import UTC, datetime, timedelta

@workflow.command(name="{name}", limit_key="some-api")
def ask(name):
    if name == "first":
        raise Limited(datetime.now(UTC) + timedelta(hours=1))
    return ["true"]

threading.Thread(target=ask, args=["first"]).start()
while not any(event.type == "step.limited" for event in workflow.record.events):
    pass
ask("second")
"""


@pytest.mark.slow
def test_what_waits_before_it_begins_is_shown_too(tmp_path: Path, run: Run) -> None:
    """A step that waits for a limit that another step met is shown once for each wait, while its process lives."""
    with child(WAITING, tmp_path) as runner:
        wait_until(lambda: waiting_in(tmp_path))
        out = run("top")[1]
        assert [row[1] for row in rows(out)] == ["first", "second"]
        assert all(re.fullmatch(r"waits for the limit of some-api until \S+", row[-1]) for row in rows(out))
        assert limits(out)["some-api"].endswith(": 2 steps wait")
        (event,) = waiting_in(tmp_path)
        assert (event.detail["step"], event.detail["limitKey"]) == ("second", "some-api")
        runner.kill()
    out = run("top")[1]
    assert rows(out) == []
    assert re.match(r"w  † interrupted, last seen \d\d:\d\d:\d\d; the next run resumes it\n", out)
    assert limits(out)["some-api"].endswith(": 0 steps wait")


def waiting_in(root: Path) -> list[Any]:
    if not list(root.glob("workflows/*.json")):
        return []
    return [event for event in read_workflow_record("w", dir=root).events if event.type == "step.waiting"]


@pytest.mark.slow
def test_the_next_run_s_wait_is_shown_as_its_own(tmp_path: Path, run: Run) -> None:
    """A step whose process was killed while it waited waits for the rest in the next run."""
    with child(WAITING, tmp_path) as runner:
        wait_until(lambda: waiting_in(tmp_path))
        runner.kill()
    with child(WAITING, tmp_path):
        wait_until(lambda: len(waiting_in(tmp_path)) == 3)
        assert {row[1]: row[-1].partition(" until ")[0] for row in rows(run("top")[1])} == {
            "first": "waits for the limit of some-api",
            "second": "waits for the limit of some-api",
        }


def test_a_wait_that_was_given_up_is_none(workflow: Workflow, run: Run) -> None:
    """A step whose for_each was stopped does not wait any more, though the limit is in force and the process lives."""

    def has(event_type: str) -> bool:
        return any(event.type == event_type for event in workflow.record.events)

    def item(name: str) -> None:
        if name == "bad":
            wait_until(lambda: has("step.waiting"))
            raise ValueError("the batch is over")
        if name == "second":
            wait_until(lambda: has("step.limited"))
        workflow.command(name=name, limit_key="some-api")(lambda: limited(name))()

    def limited(name: str) -> list[str]:
        if name == "first":
            raise Limited(datetime.now(UTC) + timedelta(hours=1))
        return ["true"]

    with pytest.raises(ValueError, match="the batch is over"):
        workflow.run_for_each(["first", "second", "bad"], item, max_parallel=3)
    out = run("top")[1]
    assert out.startswith("w  † interrupted, ")
    assert (rows(out), list(limits(out))) == ([], ["some-api"])


def test_what_waits_for_its_next_attempt_says_why(workflow: Workflow, tmp_path: Path, run: Run) -> None:
    """A step that waits for its next attempt shows the error of the last one."""

    def flaky() -> None:
        if not (tmp_path / "go on").exists():
            (tmp_path / "go on").touch()
            raise OSError("no space")

    ended = in_thread(lambda: workflow.run_step("save", flaky, retry=Retry(2, wait=1.0)))
    wait_until(lambda: "save" in workflow.record.steps and workflow.record.steps["save"].error)
    assert (
        re.sub(r"\d\d:\d\d:\d\d", "HH:MM:SS", rows(run("top")[1])[0][-1])
        == "waits for its next attempt at HH:MM:SS (OSError)"
    )
    ended.result(DEADLINE)


@pytest.mark.slow
def test_what_a_killed_run_left_is_nobody_s(tmp_path: Path, run: Run) -> None:
    """A step whose process was killed is shown as such."""
    code = "workflow.run_step('ask', lambda: (say('go'), hear()))"
    with child(code, tmp_path) as runner:
        assert runner.line() == "go"
        runner.kill()
    assert run("top")[1].startswith("w  † interrupted, last seen ")


def test_a_damaged_record_hides_no_other(workflow: Workflow, tmp_path: Path, run: Run) -> None:
    """`top` shows what runs, names the damaged file, and ends with 1."""
    path = Path(Workflow("broken", dir=tmp_path).record_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    shown = workflow.run_step("look", lambda: list(run("top")))
    assert shown[0] == 1
    assert [row[1] for row in rows(shown[1])] == ["look"]
    assert str(path) in shown[2]


@pytest.mark.slow
def test_it_can_be_watched(workflow: Workflow, tmp_path: Path) -> None:
    """`top --every` repeats until Ctrl-C, and prints no control characters into a pipe."""
    code = "import sys; from iso_orchestrator.views.cli import main; sys.exit(main(sys.argv[1:]))"
    with run_python(code, "top", "--dir", tmp_path, "--every", "0.05") as watching:
        assert [watching.line(), watching.line()] == [NOTHING.strip()] * 2
        with working(workflow, tmp_path, "one"):
            while not (line := watching.line()).startswith("w  "):
                assert line == NOTHING.strip()
        watching.process.send_signal(signal.SIGINT)
        assert watching.process.wait(DEADLINE) == 130


# What `show` says of commands


def test_show_says_what_a_command_came_to(workflow: Workflow, run: Run) -> None:
    """`show` has the exit code and seconds of a command as its result, and the whole path of its log."""
    result = workflow.command(name="work", ok_codes=(0, 3))(lambda: shell("echo one; exit 3"))()
    code, out, _ = run("show", "w", "--steps")
    assert code == 0
    assert re.search(r"^✓  1  work +1 +\d+ ms  exit 3 in \d+ ms$", out, re.MULTILINE)
    assert result.log_path in "".join(map(str.strip, run("show", "w", "work")[1].splitlines()))


def test_show_says_what_an_agent_came_to(workflow: Workflow, run: Run) -> None:
    """`show` has an agent's outcome, and its cost if it is known."""
    agent = Claude(
        program=[*STAND_IN, "claude"],
        env={"STAND_IN_SECONDS": "0"},
    )
    result = workflow.command(name="review", parse=agent, timeout=DEADLINE)(lambda: agent.command("Review."))()
    _, out, _ = run("show", "w", "--steps")
    assert re.search(rf" \{money_text(result.parsed.cost_usd)}  exit 0 in \d+ ms, ok: ", out)


LIKE_A_COMMAND = {"exit_code": 1, "duration": 0.1, "stdout": "", "log_path": "/etc/hostname", "parsed": None}


@pytest.mark.parametrize(
    "result",
    [
        {"exit_code": 1},
        LIKE_A_COMMAND,
        {**LIKE_A_COMMAND, "parsed": {"outcome": "sold", "cost_usd": "0.12"}},
        {**LIKE_A_COMMAND, "duration": 10**400, "log_path": "a\0b"},
    ],
)
def test_what_only_looks_like_a_command_is_shown_as_it_is(workflow: Workflow, run: Run, result: dict[str, Any]) -> None:
    """A plain step's result is shown as it is, and `logs` opens no file that it names."""
    workflow.run_step("plain", lambda: result)
    code, out, _ = run("show", "w", "--steps")
    assert code == 0
    assert json.dumps(result)[:40].rstrip("…") in out
    assert "\nlog " not in run("show", "w", "plain")[1]
    assert run("logs", "w", "plain")[:2] == (1, "")


@pytest.mark.parametrize("parsed", [{"outcome": "sold", "cost_usd": "0.12"}, {"outcome": "sold", "cost_usd": 10**400}])
def test_a_command_s_output_may_look_like_an_agent_s(workflow: Workflow, run: Run, parsed: Any) -> None:
    """Whatever a function made of it."""
    workflow.command(name="work", parse=lambda _: parsed)(lambda: ["true"])()
    code, out, _ = run("show", "w", "--steps")
    assert code == 0
    assert re.search(r" exit 0 in \d+ ms: {.outcome.: .so", out)


def test_a_log_that_cannot_be_read_hides_nothing(workflow: Workflow, tmp_path: Path, run: Run) -> None:
    """Its row of `top` says why; rows of other steps and workflows are as ever."""
    other = Workflow("v", dir=tmp_path)
    with working(workflow, tmp_path, "hello"), working(other, tmp_path, "others"):
        log = Path(find_store(None, tmp_path).read("w").commands["work"].log)  # type: ignore[union-attr]
        log.rename(log.with_suffix(".moved"))
        log.mkdir()
        code, out, _ = run("top")
        assert code == 0
        assert [(row[0], row[4][:27]) for row in rows(out)] == [
            ("v", "others"),
            ("w", "its log cannot be read: " + str(log)[:3]),
        ]
