"""The demo: after any interruption, each job is done once in the end."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support import DEADLINE, tree, wait_until, without_log

from iso_orchestrator import WorkflowNotFoundError, open_workflow, read_workflow_record
from iso_orchestrator.examples.demo import AGENT, JOBS, WORKFLOW_ID
from iso_orchestrator.views.cli import main

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PACE = "0.02"
STEPS = [f"apply:{job['company']}:{job['role']}" for job in JOBS]
FAIL_FIRST = 6  # jobs whose first attempt fails, by the rule of its agent
FAIL_TWICE = 2  # those of them whose second attempt fails too


class Place:
    """A root and a ledger for demos, and their contents."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.ledger = folder / "ledger"

    def args(self, *more: str, pace: str = PACE) -> list[str]:
        return ["demo", "--dir", str(self.root), "--ledger", str(self.ledger), "--pace", pace, *more]

    def start(self, *more: str, pace: str = PACE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*self.args(*more, pace=pace)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment(),
        )

    def run(self, *more: str, pace: str = "0") -> tuple[int, str, str]:
        process = self.start(*more, pace=pace)
        out, err = process.communicate(timeout=DEADLINE)
        return process.returncode, out, without_log(err)

    def record(self):
        return read_workflow_record(WORKFLOW_ID, dir=self.root)

    def done(self) -> set[str]:
        """The steps that are recorded as completed."""
        try:
            steps = self.record().steps.values()
        except WorkflowNotFoundError:
            return set()
        return {step.name for step in steps if step.status == "completed"}

    def completions(self) -> Counter[str]:
        """The number of recorded completions of each step."""
        return Counter(event.detail["step"] for event in self.record().events if event.type == "step.completed")

    def worked(self) -> list[str]:
        """The steps whose agent succeeded, once for each success."""
        lines = self.ledger.read_text(encoding="utf-8").splitlines() if self.ledger.exists() else []
        return [f"apply:{entry['company']}:{entry['role']}" for entry in map(json.loads, lines)]


def command(*args: str, start: Sequence[str] = ("-m", "iso_orchestrator")) -> list[str]:
    return [sys.executable, "-W", "error", *start, *args]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": ""}  # the demo itself has to flush


class OnTerminal:
    """A demo with a terminal of its own, in which keys can be pressed."""

    def __init__(self, *args: str, start: Sequence[str] = ("-m", "iso_orchestrator")) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, 100))
        log_in = "import os, sys; os.login_tty(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", log_in, str(slave), *command(*args, start=start)],
            pass_fds=[slave],
            env=environment(),
        )
        os.close(slave)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def text(self) -> str:
        """The text on the terminal so far."""
        return b"".join(self._parts).decode(errors="replace")

    def end(self) -> tuple[int, str]:
        """Wait until it ends; its exit code and all that was on the terminal."""
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        os.close(self._master)
        return code, self.text()

    def _read(self) -> None:
        with suppress(OSError):  # Linux says EIO when the last process that had the terminal has ended
            while part := os.read(self._master, 4096):
                self._parts.append(part)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo that ran once, undisturbed, and its output."""
    place = Place(tmp_path_factory.mktemp("demo"))
    return place, place.run(pace=PACE)


def test_every_job_is_done_once(finished):
    """An undisturbed demo does each of its 20 jobs once, the failing ones in more attempts."""
    place, (code, _, err) = finished
    record = place.record()
    assert (code, err) == (0, "")
    assert len(STEPS) == 20
    assert place.completions() == Counter(STEPS)
    assert Counter(place.worked()) == Counter(STEPS)
    assert record.status == "completed"
    assert record.state["applied"] + record.state["skipped"] == 20
    attempts = Counter(step.attempts for step in record.steps.values())
    assert attempts == {1: 20 - FAIL_FIRST, 2: FAIL_FIRST - FAIL_TWICE, 3: FAIL_TWICE}


def test_two_at_a_time_and_one_at_a_time_per_company(finished):
    """Two jobs run at one time, never three, and never two of one company."""
    place, _ = finished
    running: list[str] = []
    most = 0
    for event in place.record().events:
        if event.type == "step.started" and event.detail["step"] not in running:
            running.append(event.detail["step"])
        elif event.type == "step.completed":
            running.remove(event.detail["step"])
        most = max(most, len(running))
        companies = [step.split(":")[1] for step in running]
        assert len(companies) == len(set(companies))
    assert most == 2


def test_the_record_is_shown_at_the_end(finished):
    """At the end a demo prints a line for each job, the counts, and the path of the record."""
    place, (_, out, _) = finished
    lines = out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.split() == ["job", "status", "attempts", "result"])
    rows = lines[head + 1 : head + 21]
    for row, job in zip(rows, JOBS, strict=True):
        assert row.startswith(f"{job['company']}, {job['role']} ")
        assert re.search(r" completed +[123] +(APPLIED|SKIPPED)$", row)
    state = place.record().state
    assert f"{state['applied']} applied, {state['skipped']} skipped" in out
    assert "20 jobs done in 28 attempts" in out
    path = lines[-1].removeprefix("The record is ")
    assert json.loads(Path(path).read_bytes())["workflowId"] == WORKFLOW_ID


def test_a_finished_demo_does_nothing_more(finished):
    """Run again, a finished demo says so, shows the record, and changes nothing."""
    place, (_, first, _) = finished
    before = tree(place.root), place.worked()
    code, out, err = place.run()
    assert (code, err) == (0, "")
    assert out.startswith("All 20 jobs were done already; ")
    assert "--fresh starts over" in out.splitlines()[0]
    assert out.partition("\n")[2] == first.partition("\n")[2]
    assert (tree(place.root), place.worked()) == before


def test_the_command_to_go_on_is_the_one_that_was_typed(finished, capsys, monkeypatch):
    """The console script is named in the output of the console script."""
    place, _ = finished
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/iso-orchestrator"])
    assert main(["demo", "--dir", str(place.root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"All 20 jobs were done already; iso-orchestrator demo --dir {place.root} --fresh starts over\n"
    )


def test_fresh_starts_over(place):
    """With --fresh no job counts as done."""
    open_workflow(WORKFLOW_ID, dir=place.root, initial_state={"applied": 70, "skipped": 90}).close()
    process = place.start("--fresh")
    wait_until(place.done, what="the first job")
    process.kill()
    out, _ = process.communicate(timeout=DEADLINE)
    assert out.startswith("20 jobs at 7 companies")
    assert place.record().state["applied"] + place.record().state["skipped"] == len(place.done())


def test_fresh_is_refused_while_another_demo_runs(place, capsys):
    """A workflow that another process uses is not deleted."""
    other = open_workflow(WORKFLOW_ID, dir=place.root)
    try:
        code = main(place.args("--fresh"))
    finally:
        other.close()
    assert code == 1
    assert "in use by process" in capsys.readouterr().err
    assert not place.ledger.exists()


def test_a_killed_demo_goes_on_where_it_was(place):
    """Killed at random moments and run again, a demo ends with one recorded completion of each job."""
    seed = int(os.environ.get("ISO_TEST_SEED", random.randrange(2**32)))
    print(f"repeat with ISO_TEST_SEED={seed}")
    dice = random.Random(seed)
    done: set[str] = set()
    for _ in range(6):
        process = place.start()
        jobs = dice.randrange(4)
        _wait_for_work(process, place, jobs)
        _wait_at_most(process, dice.uniform(0, 0.05 if jobs else 0.4))  # it needs some time to start
        process.kill()
        process.communicate(timeout=DEADLINE)
        before, done = done, place.done()
        assert before <= done, "a recorded completion was lost"
    code, out, err = place.run()
    assert (code, err) == (0, "")
    assert out.startswith(_expected_opening(done))
    assert place.completions() == Counter(STEPS)
    assert set(place.worked()) == set(STEPS)
    state = place.record().state
    assert state["applied"] + state["skipped"] == 20


def _wait_for_work(process: subprocess.Popen[str], place: Place, jobs: int) -> None:
    """Wait until the agent has done that many more jobs."""
    before = len(place.worked())
    wait_until(lambda: len(place.worked()) >= before + jobs or process.poll() is not None)


def _wait_at_most(process: subprocess.Popen[str], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _expected_opening(done: set[str]) -> str:
    if len(done) == 20:
        return "All 20 jobs were done already; "
    if done:
        return f"{len(done)} of 20 jobs were done already; going on with the other {20 - len(done)}\n"
    return ""


def agents_of(place: Place) -> list[psutil.Process]:
    """The agents that run: their command line has the ledger."""
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if str(place.ledger) in (process.info["cmdline"] or [])[-1:]]


def test_ctrl_c_says_how_to_go_on(place):
    """Ctrl-C in a terminal ends the demo when its agents have ended; the command that it names continues."""
    demo = OnTerminal(*place.args(pace="0.2"))
    wait_until(lambda: len(place.done()) >= 2, what="the first two jobs")
    # A process has the terminal's process group until it has its own: one that is just being started would be hit.
    wait_until(lambda: len(agents_of(place)) == 2, what="two agents that work")
    demo.press_ctrl_c()
    code, text = demo.end()
    last = text.splitlines()[-1]
    assert code == 130
    assert "Traceback" not in text
    done = len(place.done())
    assert 2 <= done < 20
    assert last.startswith(f"Interrupted: {done} of 20 jobs are done. Go on with: ")
    assert last.endswith(f" demo --dir {place.root}")
    retried = [event.detail["error"]["message"] for event in place.record().events if event.type == "step.retrying"]
    assert all("the site did not answer" in message for message in retried), retried
    assert agents_of(place) == []
    code, out, _ = place.run()
    assert code == 0
    assert out.startswith(f"{done} of 20 jobs were done already; going on with the other {20 - done}\n")
    assert place.completions() == Counter(STEPS)


def test_an_interrupt_of_the_demo_alone_ends_its_agents(place):
    """SIGINT to the demo alone ends it with 130, and what is recorded was done."""
    process = place.start(pace="0.2")
    wait_until(place.done, what="the first job")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert re.fullmatch(r"\nInterrupted: \d+ of 20 jobs are done\. Go on with: .*\n", without_log(err))
    assert not place.completions() - Counter(place.worked())


def test_a_terminal_shows_progress(place):
    """A terminal shows how many jobs are done."""
    demo = OnTerminal(*place.args())
    wait_until(lambda: re.search(r"\b[1-9]\d*/20\b", demo.text()), what="the display")
    demo.process.kill()
    demo.end()


def test_a_pipe_shows_no_progress(finished):
    """A file or a pipe gets the text alone."""
    _, (_, out, err) = finished
    assert "/20" not in out + err
    assert "\r" not in out + err


def test_a_job_that_fails_for_good_ends_the_demo_with_1(place):
    """When the agent fails three times in a row, one line says why and how to try again."""
    place.ledger = place.root / "missing" / "ledger"
    code, _, err = place.run()
    assert code == 1
    assert re.fullmatch(r"\nFailed: [^\n]*No such file or directory[^\n]* Try again with: [^\n]*\n", err)


def performed(job: dict[str, str], attempt: int, *ledger: object) -> subprocess.CompletedProcess[str]:
    """One run of the demo's agent."""
    args = [sys.executable, "-I", "-S", "-c", AGENT, job["company"], job["role"], str(attempt), "0", *map(str, ledger)]
    return subprocess.run(args, capture_output=True, encoding="utf-8", timeout=DEADLINE)


def test_the_agent_says_its_outcome_last(tmp_path):
    """It prints lines of JSON, and writes the job to the ledger."""
    ledger = tmp_path / "ledger"
    agent = performed({"company": "A", "role": "b"}, 3, ledger)
    first, last = map(json.loads, agent.stdout.splitlines())
    assert agent.returncode == 0
    assert "progress" in first
    assert last["outcome"] in ("APPLIED", "SKIPPED")
    assert json.loads(ledger.read_text()) == {"company": "A", "role": "b", "attempt": 3}


def test_an_agent_that_fails_has_done_nothing(tmp_path):
    """It says why on standard error, and the ledger has no line of it."""
    agent = performed(JOBS[0], 1, tmp_path / "ledger")
    assert (agent.returncode, agent.stderr) == (1, "the site did not answer\n")
    assert "outcome" not in agent.stdout
    assert not (tmp_path / "ledger").exists()
