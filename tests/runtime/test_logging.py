"""What a program prints to standard error, and logs: runs, retries, waits and failures, each one once."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import DEADLINE, only, wait_until
from support_processes import child, in_thread, killed

from iso_orchestrator import Limited, Retry, StepFailedError, Workflow
from iso_orchestrator.record.model import ErrorInfo

PROLOGUE = """
import logging, sys
from iso_orchestrator import *
workflow = Workflow("batch", dir=sys.argv[1])
def fail(text="no"):
    raise ValueError(text)
"""
DEBUG = "logging.basicConfig(level='DEBUG', format='%(levelname)s %(message)s')\n"


def printed(code: str, root: Path, exit_code: int = 0) -> list[str]:
    """The lines that a program of its own prints to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code), str(root)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    return done.stderr.splitlines()


def without_times(line: str) -> str:
    return re.sub(r"after [\d.]+ m?s", "after N s", line)


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    return Workflow("batch", dir=tmp_path)


def test_a_program_that_sets_nothing_up_sees_failures(tmp_path: Path) -> None:
    """Each of the first ten failed items has a line on standard error, the others are counted."""
    lines = printed(
        """
        @workflow.for_each(stop_on_error=False)
        @workflow.step
        def fetch(page):
            fail(f"page {page}")
        with workflow:
            fetch(range(300))
        """,
        tmp_path,
    )
    items = [
        f"workflow 'batch': item {n} of for_each 'fetch': step 'fetch(page={n})' failed: ValueError: page {n}"
        for n in range(10)
    ]
    counts = [f"workflow 'batch': {n} items have failed in for_each 'fetch'" for n in (20, 40, 80, 160)]
    assert [without_times(line) for line in lines] == [
        *items,
        *counts,
        "workflow 'batch': for_each 'fetch' ended after N s: 0 items fulfilled, 300 failed",
        "workflow 'batch' completed, with failures, after N s: 300 steps failed",
    ]


def test_a_program_without_trouble_prints_nothing(tmp_path: Path) -> None:
    """What goes well is no warning."""
    assert printed("with workflow: workflow.run_for_each([1, 2], str)", tmp_path) == []


def test_debug_tells_of_all_steps(tmp_path: Path) -> None:
    """A step's begin and end are logged, that it is on record, and how its run began and ended."""
    code = DEBUG + "with workflow: workflow.run_step('a', str)\n"
    first, second = printed(code, tmp_path), printed(code, tmp_path)
    assert [without_times(line) for line in first] == [
        f"INFO beginning 'batch' in {tmp_path}",
        "DEBUG workflow 'batch': step 'a' begins, attempt 1",
        "DEBUG workflow 'batch': step 'a' completed",
        "INFO workflow 'batch' completed after N s: 1 step completed",
    ]
    assert second[:2] == [
        f"INFO resuming 'batch' in {tmp_path}: 1 step recorded",
        "DEBUG workflow 'batch': step 'a' is on record",
    ]


def test_a_retry_is_told_with_its_pause(workflow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """A retry is INFO, its last failure a warning."""
    caplog.set_level(logging.INFO, "iso_orchestrator")
    with pytest.raises(KeyError):
        workflow.run_step("a", lambda: {}["x"], retry=Retry(2, wait=0.01))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "workflow 'batch': step 'a' failed in attempt 1 of 2, the next begins in 10 ms: KeyError: 'x'"),
        ("WARNING", "workflow 'batch': step 'a' (2 attempts) failed: KeyError: 'x'"),
    ]


def test_a_failure_is_told_once_on_its_way(tmp_path: Path) -> None:
    """A failure that passes through steps, items, nested for_eaches and the run has one line, which names the way."""
    lines = printed(
        """
        def middle(n):
            workflow.run_for_each([n], lambda n: workflow.run_step(f"inner {n}", fail))
        with workflow:
            workflow.run_for_each([7], lambda n: workflow.run_step("outer", middle, n))
        """,
        tmp_path,
        1,
    )
    told = [without_times(line) for line in lines if line.startswith("workflow")]
    way = "item 0 of for_each '<lambda>': step 'outer': item 0 of for_each '<lambda>': step 'inner 7'"
    assert told == [
        f"workflow 'batch': {way} failed: ValueError: no",
        f"workflow 'batch' failed after N s: 2 steps failed; the error is that of {way}",
    ]


def test_a_step_is_named_once_in_a_line(tmp_path: Path) -> None:
    """A message that begins with the step's name loses it after the same name; one that names another step does not."""
    code = """
        from contextlib import suppress
        def run(name, body, *args, **options):
            with suppress(Exception):
                workflow.run_step(name, body, *args, **options)
        run("rejected", str, accept=bool)
        run("number", lambda: float("nan"))
        run("itself", lambda: workflow.run_step("itself", str))
        run("it's", lambda: workflow.run_step("nothing", fail, "step 'other': no"))
        run("slow", lambda: hear.wait(), timeout=0.01, retry=2)
        false = workflow.command(name="false")(lambda _: ["false"])
        workflow.run_for_each([3], false, stop_on_error=False)
        run("outer", false, 4)
        """
    lines = printed(DEBUG + "import threading\nhear = threading.Event()\n" + textwrap.dedent(code), tmp_path)
    shown = [line.partition("workflow 'batch': ")[2] for line in lines if re.search(r"failed\b.*: \w+Error: ", line)]
    expected = [
        "step 'rejected' failed: StepRejectedError: accept() refused the result",
        "step 'number' failed: SerializationError: the result cannot be recorded",
        "step 'itself' failed: DeadlockError: step 'itself' -> step 'itself' called itself",
        "step \"it's\": step 'nothing' failed: ValueError: step 'other': no",
        "step 'slow' failed in attempt 1 of 2, the next begins at once: StepTimeoutError: took longer",
        "step 'slow' (2 attempts) failed: StepTimeoutError: took longer",
        "item 0 of for_each '<lambda>': step 'false' failed: CommandError: 'false' ended with exit code 1",
        "step 'outer': step 'false' failed: CommandError: 'false' ended with exit code 1",
    ]
    assert [line[: len(begin)] for line, begin in zip(shown, expected, strict=True)] == expected


def test_a_failure_that_values_raises_again_is_told_once(tmp_path: Path) -> None:
    """`values()` in an item or a step raises the error of an item that was logged, however deep; at DEBUG all tell."""
    code = """
        pages = workflow.for_each(stop_on_error=False)(workflow.step(name="page {n}")(lambda n: fail()))
        def site(n):
            return pages([n]).values()
        def sites(n):
            return workflow.run_for_each([n], site, stop_on_error=False).values()
        with workflow:
            workflow.run_for_each([1], site, stop_on_error=False)
            workflow.run_for_each([2], sites, stop_on_error=False)
            try:
                workflow.run_step("outer", sites, 3)
            except ValueError:
                pass
        """
    pages = [f"item 0 of for_each '<lambda>': step 'page {n}' failed: ValueError: no" for n in (1, 2, 3)]
    assert [line for line in printed(code, tmp_path / "root") if "ValueError" in line] == [
        f"workflow 'batch': {page}" for page in pages
    ]
    told = printed(DEBUG + textwrap.dedent(code), tmp_path / "told")
    site = "item 0 of for_each 'site': "
    assert [
        line.removeprefix("DEBUG workflow 'batch': ") for line in told if "ValueError" in line and "DEBUG" in line
    ] == [
        site + pages[0],
        site + pages[1],
        f"item 0 of for_each 'sites': {site}{pages[1]}",
        site + pages[2],
        f"step 'outer': {site}{pages[2]}",
    ]


def test_an_item_that_is_interrupted_is_no_failure(workflow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on in the next run, and is counted apart."""
    caplog.set_level(logging.INFO, "iso_orchestrator")

    def work(n: int) -> None:
        raise KeyboardInterrupt if n else ValueError("no")

    with pytest.raises(KeyboardInterrupt):
        workflow.run_for_each([0, 1, 2], work, stop_on_error=False)
    told = [without_times(line) for line in caplog.messages if not line.startswith("batch work: ")]  # how far it is
    assert told == [
        "workflow 'batch': item 0 of for_each 'work' failed: ValueError: no",
        "workflow 'batch': for_each 'work' stopped after N s: 0 items fulfilled, 1 failed, 1 interrupted",
    ]


def test_one_error_object_of_several_items_is_told_for_each(tmp_path: Path) -> None:
    """An error that a program keeps and raises again is another failure each time."""
    lines = printed(
        "error = KeyError(1)\ndef no(n): raise error\nworkflow.run_for_each('ab', no, stop_on_error=False)", tmp_path
    )
    assert lines[:2] == [f"workflow 'batch': item {n} of for_each 'no' failed: KeyError: 1" for n in (0, 1)]


def test_a_failure_that_a_body_handles_is_no_warning(tmp_path: Path) -> None:
    """A body that catches the failure of a step inside of it is told of at INFO, and prints nothing by default."""
    code = """
        def mirrored(n):
            try:
                workflow.run_step(f"first {n}", fail)
            except ValueError:
                return workflow.run_step(f"second {n}", str)
        with workflow:
            workflow.run_step("outer", mirrored, 1)
            workflow.run_for_each([2], mirrored)
        """
    assert printed(code, tmp_path / "silent") == []
    told = [line for line in printed(DEBUG + textwrap.dedent(code), tmp_path / "told") if "handled" in line]
    assert told == [
        "INFO workflow 'batch': step 'first 1' failed, which step 'outer' handled: ValueError: no",
        "INFO workflow 'batch': step 'first 2' failed, which item 0 of for_each 'mirrored' handled: ValueError: no",
    ]


def test_a_submitted_step_that_fails_is_told_once(tmp_path: Path) -> None:
    """A failure that nobody asks the future for is a warning; an item that asks for it does not tell it again."""
    lines = printed(
        """
        step = workflow.step(name="sent {n}")(lambda n: fail())
        with workflow:
            step.submit(1)
            workflow.run_for_each([2], lambda n: step.submit(n).result(), stop_on_error=False)
        """,
        tmp_path,
    )
    assert sorted(line for line in lines if "ValueError" in line) == [
        f"workflow 'batch': step 'sent {n}' failed: ValueError: no" for n in (1, 2)
    ]


def test_a_run_that_its_own_code_ends_names_the_error(tmp_path: Path) -> None:
    """The end of a run tells an error that no step has told."""
    lines = printed("with workflow: fail('of the script')", tmp_path, 1)
    assert without_times(lines[0]) == "workflow 'batch' failed after N s: no steps; ValueError: of the script"


def test_a_limit_has_one_line(workflow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """Steps that wait for one limit are told of once, with its end; at DEBUG all of them."""
    caplog.set_level(logging.DEBUG, "iso_orchestrator")
    until = datetime.now(UTC) + timedelta(seconds=0.3)
    met: list[int] = []

    def ask(n: int) -> int:
        if not met:
            met.append(n)
            raise Limited(until, key="site")
        return n

    workflow.run_for_each(range(3), lambda n: workflow.run_step(f"ask {n}", ask, n, limit_key="site"))
    waits = [record for record in caplog.records if " waits: site is limited until 20" in record.getMessage()]
    assert only([record for record in waits if record.levelno == logging.INFO]) is waits[0]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_step_whose_process_died_is_a_warning(tmp_path: Path) -> None:
    """The next run says how much is recorded, and which step was interrupted."""
    killed(
        'with workflow: workflow.run_step("a", str); workflow.run_step("b", lambda: (say("in"), hear()))',
        tmp_path,
        "in",
    )
    lines = printed(
        "logging.basicConfig(level='INFO', format='%(levelname)s %(message)s')\n"
        "with Workflow('w', dir=sys.argv[1]) as w: w.run_step('b', str)",
        tmp_path,
    )
    began = f"INFO resuming 'w' in {tmp_path}: 1 step recorded, 1 interrupted; "
    assert re.fullmatch(rf"{re.escape(began)}process \d+ on .* is gone without having ended its run", lines[0])
    assert lines[1].startswith("WARNING workflow 'w': step 'b' runs again: it was not done when process ")
    assert len(lines) == 3


def test_a_wait_for_another_process_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a second a wait for a step that another process runs is INFO, and names that process."""
    caplog.set_level(logging.INFO, "iso_orchestrator")
    with child('workflow.run_step("a", lambda: (say("in"), hear())[1])', tmp_path) as other:
        assert other.line() == "in"
        mine = in_thread(lambda: Workflow("w", dir=tmp_path).run_step("a", str))
        wait_until(lambda: caplog.records)
        other.say("done")
        assert mine.result(DEADLINE) == "done"
    record = caplog.records[0]
    assert record.levelname == "INFO"
    assert re.search(rf"^workflow 'w': .* for step 'a', which is held by process {other.pid} ", record.getMessage())


def test_a_run_that_waits_for_another_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `on_busy="wait"` the log names the process whose run has to end first."""
    caplog.set_level(logging.INFO, "iso_orchestrator")

    def run() -> None:
        with Workflow("w", dir=tmp_path, on_busy="wait"):
            pass

    with child('with workflow: say("in"), hear()', tmp_path) as other:
        assert other.line() == "in"
        mine = in_thread(run)
        wait_until(lambda: caplog.records)
        other.say()
        mine.result(DEADLINE)
    first, *rest = caplog.messages
    assert re.fullmatch(rf"workflow 'w' waits for process {other.pid} on .*, which runs it", first)
    assert [without_times(line) for line in rest] == [
        f"beginning 'w' in {tmp_path}",
        "workflow 'w' completed after N s: no steps",
    ]


def test_texts_of_errors_are_escaped_and_cut(tmp_path: Path) -> None:
    """An error's message drives no terminal, stays on its line, and is no wall of text."""
    line = printed("try: workflow.run_step('a', fail, '\\x1b[2J\\n' + 5000 * 'x')\nexcept ValueError: pass", tmp_path)
    assert only(line).startswith("workflow 'batch': step 'a' failed: ValueError: \\x1b[2J\\nxxx")
    assert len(only(line)) < 400


def test_the_repr_of_a_failure_elsewhere_is_short() -> None:
    """`StepFailedError` shows no traceback, and little of a long message."""
    error = StepFailedError("a", ErrorInfo("HTTPError", "x" * 5000, stack="Traceback\n" * 500))
    assert repr(error).startswith("StepFailedError(step_name='a', error=ErrorInfo(name='HTTPError', message='xxx")
    assert len(repr(error)) < 400
