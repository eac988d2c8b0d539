"""`timeline`: the file, what it says without a browser, and what a notebook shows."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from datetime import UTC
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import pytest
from made_histories import made_history, renamed
from support import Run, wait_until

import iso_orchestrator
from iso_orchestrator import Workflow, WorkflowNotFoundError
from iso_orchestrator.record.history import Batch, Outcome, StepHistory, WaitFor, WaitSpan
from iso_orchestrator.record.model import ErrorInfo, WorkflowStatus, html_of
from iso_orchestrator.views import notebook
from iso_orchestrator.views.causes import advice, folded
from iso_orchestrator.views.drawing import CLASSES, INLINE, Clock, drawing
from iso_orchestrator.views.notebook import glance
from iso_orchestrator.views.timeline import timeline_page
from iso_orchestrator.views.timeline_file import default_file
from iso_orchestrator.views.timeline_words import causes, lede
from iso_orchestrator.views.words import failed_steps, status_words, unstarted, what_next

HISTORY = made_history(200)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/(json|gzip)" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[2] if found[1] == "json" else gzip.decompress(base64.b64decode(found[2])))


def finished(folder: Path) -> Workflow:
    workflow = Workflow("a/b <i>", dir=folder)

    @workflow.step
    def secret(number: int) -> str:
        if number == 2:
            raise ValueError("no\x1b[31m <b>")
        return "a result to hide"

    with workflow:
        secret(1)
        with pytest.raises(ValueError, match="no"):
            secret(2)
    return workflow


def test_a_file_is_written(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeline W` writes a file named after the workflow, in place of an earlier one, and prints its name."""
    finished(tmp_path).close()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("timeline", "a/b <i>") == (0, "a-b -i.html\n", "")
    page = (tmp_path / "a-b -i.html").read_text()
    assert "<h1>a/b &lt;i&gt;</h1>" in page
    assert "no\\x1b[31m &lt;b&gt;" in page
    assert list(tmp_path.glob("*.new")) == []
    code, text, _ = run("timeline", "a/b <i>", "-o", "-")
    assert (code, text[:15]) == (0, "<!DOCTYPE html>")


def test_the_command_that_the_details_show_resets_the_step(tmp_path: Path, run: Run) -> None:
    """`reset` takes the number of a step, since a name with controls cannot be copied."""
    finished(tmp_path).close()
    assert run("reset", "a/b <i>", "#2") == (0, "reset secret(number=2)\n", "")
    assert run("reset", "a/b <i>", "#9")[0] == 1


def test_what_others_should_not_see_is_left_out(tmp_path: Path, run: Run) -> None:
    """Without results no result is in the file, which says so; without logs no path is."""
    workflow = finished(tmp_path)
    command = workflow.command(name="say")(lambda: [sys.executable, "-c", "print('hidden words'); raise SystemExit(3)"])
    with pytest.raises(Exception, match="exit code 3"):
        command()
    workflow.close()
    whole, trimmed = tmp_path / "whole.html", tmp_path / "trimmed.html"
    run("timeline", "a/b <i>", "-o", str(whole))
    run("timeline", "a/b <i>", "-o", str(trimmed), "--no-results", "--no-logs")
    assert "a result to hide" in whole.read_text()
    assert "Last words in its log</summary><pre>hidden words" in whole.read_text()
    assert "a result to hide" not in trimmed.read_text()
    assert "Last words in its log" not in trimmed.read_text().partition("<script")[0]
    assert '"log"' not in trimmed.read_text()
    assert "No results are in it." in trimmed.read_text()


def test_a_missing_workflow_and_a_missing_folder_are_errors(tmp_path: Path, run: Run) -> None:
    """Both say what is wrong, with exit code 1, and leave no file."""
    code, _, error = run("timeline", "none")
    assert (code, "none" in error) == (1, True)
    finished(tmp_path).close()
    code, _, error = run("timeline", "a/b <i>", "-o", str(tmp_path / "no" / "x.html"))
    assert code == 1
    assert "x.html: No such file or directory" in error


def test_a_file_is_written_again_until_the_workflow_ends(tmp_path: Path) -> None:
    """With --every the file of a live run is replaced again and again, and the last one is final."""
    workflow, target = Workflow("live", dir=tmp_path), tmp_path / "live.html"
    with workflow:
        workflow.run_step("first", lambda: 1)
        command = [sys.executable, "-m", "iso_orchestrator", "timeline", "live", "--dir", str(tmp_path)]
        writer = subprocess.Popen([*command, "--every", "0.1", "-o", str(target)], stdout=subprocess.DEVNULL)
        wait_until(target.exists)
        assert '<meta http-equiv="refresh" content="1">' in target.read_text()
        workflow.run_step("second", lambda: 2)
        wait_until(lambda: "second" in target.read_text())
    assert writer.wait(30) == 0
    assert 'http-equiv="refresh"' not in target.read_text()
    assert "✓ completed" in target.read_text()
    workflow.close()


def test_a_browser_is_asked_to_open_the_file(tmp_path: Path) -> None:
    """--open hands the address of the file to the browser of the machine, once it is written."""
    finished(tmp_path).close()
    note = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {note}\n')
    browser.chmod(0o700)
    command = [sys.executable, "-m", "iso_orchestrator", "timeline", "a/b <i>", "--dir", str(tmp_path)]
    env = os.environ | {"BROWSER": str(browser)}
    subprocess.run([*command, "-o", str(tmp_path / "t.html"), "--open"], env=env, check=True, stdout=subprocess.DEVNULL)
    wait_until(note.exists)
    wait_until(lambda: note.read_text() == (tmp_path / "t.html").as_uri())


def test_the_policy_allows_the_page_s_own_script_and_style_alone() -> None:
    """The hashes of the policy are those of the one style sheet and the one script that runs."""
    page = timeline_page(HISTORY)
    policy = html.unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[0])
    for name, pattern in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        (text,) = re.findall(pattern, page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")


def test_the_package_has_the_script_and_the_style_sheet() -> None:
    """Both are files beside the modules, so that they are in the wheel, and no line in them is a wall."""
    for name in ("timeline.css", "timeline.js"):
        text = files("iso_orchestrator.views").joinpath(name).read_text()
        assert "</script" not in text
        assert max(map(len, text.splitlines())) <= 140


def test_data_cannot_end_its_element() -> None:
    """No name, however it looks, changes the elements of the page."""
    plain = [tag for tag, _ in _tags(timeline_page(renamed(HISTORY, "plain")))]
    for name in ("</script><script>alert(1)</script>", "<!--", "]]>", "&lt;/script&gt;", "\u202e\x00\x9b31m\ud800"):
        page = timeline_page(renamed(HISTORY, name))
        assert [tag for tag, _ in _tags(page)] == plain
        assert not re.search("[\x00\x1b\x9b\u202e]", page)


def _tags(page: str) -> list[tuple[str, Any]]:
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            found.append((tag, attrs))

    Parser().feed(page)
    return found


def test_large_files_leave_out_what_is_missed_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go first, then errors, then names, and the foot says so."""
    history = made_history(400)
    notes = []
    for budget in (10_000_000, 190_000, 150_000, 1):
        monkeypatch.setattr("iso_orchestrator.views.timeline.BUDGET", budget)
        page = timeline_page(history)
        notes.append(re.findall(r"Left out for its size: [^.]*", page))
    assert notes[0] == []
    assert len(notes[-1][0]) > len(notes[1][0]) >= len("Left out for its size: the results")
    assert "the names of the steps" in notes[-1][0]
    assert "name" not in data_of(page)["steps"]


def test_causes_make_numbers_equal() -> None:
    """Steps that failed for one reason are one cause, whatever numbers and names the messages have."""
    steps = list(HISTORY.steps)
    for number, size in enumerate((214_331, 300_002)):
        error = ErrorInfo("AgentError", f"step {steps[number].name!r}: {size} tokens > 200000 maximum")
        steps[number] = attrs.evolve(steps[number], outcome=Outcome.FAILED, error=error)
    found = causes(attrs.evolve(HISTORY, steps=tuple(steps)))
    assert [step.number for error, steps in found for step in steps if error.name == "AgentError"] == [1, 2]
    assert [error.name for error, _ in found].count("AgentError") == 1


def test_the_headline_never_hides_failures() -> None:
    """A completed workflow with failed steps says so; one whose process died is interrupted."""
    assert re.fullmatch(r"completed, \d+ failed", status_words(HISTORY)[1])
    assert status_words(HISTORY)[0] is Outcome.FAILED
    assert status_words(made_history(200, is_alive=True))[0] is Outcome.RUNNING
    died = attrs.evolve(HISTORY, status=WorkflowStatus.RUNNING)
    assert status_words(died)[0] is Outcome.INTERRUPTED
    assert "did not run again" in lede(HISTORY)


def test_what_to_do_next_is_said() -> None:
    """After failures and deaths the page and `show` say what another run keeps and repeats; else nothing."""
    failed, kept = len(failed_steps(HISTORY)), HISTORY.totals.steps[Outcome.COMPLETED]
    end = f"{kept} completed steps are kept, {failed} failed ones run again"
    assert what_next(HISTORY) == f"Remove the causes, then run the script again: {end}."
    runs = (*HISTORY.runs[:-1], attrs.evolve(HISTORY.runs[-1], argv=("python", "a <b>.py")))
    page = timeline_page(attrs.evolve(HISTORY, runs=runs))
    assert f"then run <code>python &#x27;a &lt;b&gt;.py&#x27;</code> again: {end}.</p></section>" in page
    assert what_next(made_history(200, is_alive=True)) == ""
    done = tuple(step for step in HISTORY.steps if step.outcome is Outcome.COMPLETED)
    assert what_next(attrs.evolve(HISTORY, steps=done)) == ""
    assert "What next" not in timeline_page(attrs.evolve(HISTORY, steps=done))
    cut = tuple(
        attrs.evolve(done[at], outcome=Outcome.INTERRUPTED, if_interrupted=how)
        for at, how in enumerate(["rerun", "fail"])
    )
    died = attrs.evolve(HISTORY, steps=(*cut, *done[2:]), status=WorkflowStatus.RUNNING)
    end = "1 interrupted one runs again, 1 interrupted one runs only after `reset`."
    assert what_next(died) == f"Run the script again: {len(done) - 2} completed steps are kept, {end}"


def test_items_of_earlier_runs_are_no_items_that_have_not_begun() -> None:
    """A resumed `for_each` of 30 items, of which 12 are on record and 8 began now, has 10 left; a second one has 30."""
    alive = made_history(20, is_alive=True)
    steps = tuple(attrs.evolve(alive.steps[at], item=at, batch=1 if at < 12 else 3) for at in range(20))
    cut = Batch(1, "review", alive.begun, alive.begun, 30, 8, run=1)
    resumed = Batch(3, "review", alive.begun, None, 30, 8, run=2)
    history = attrs.evolve(alive, steps=steps, batches=(cut, resumed))
    assert unstarted(history) == 10
    second = attrs.evolve(resumed, number=4)
    assert unstarted(attrs.evolve(history, batches=(cut, resumed, second))) == 40
    assert unstarted(attrs.evolve(history, is_alive=False)) == 0


def test_errors_of_attempts_that_differ_in_their_log_are_one() -> None:
    """The details of a step show such an error once, since the path of the last log stands beside it."""
    step = next(step for step in HISTORY.steps if len(step.attempts) > 1)
    spans = [attrs.evolve(span, error=_failure(step.name, span.number)) for span in step.attempts]
    steps = (attrs.evolve(step, attempts=tuple(spans), waits=()),)
    data = data_of(timeline_page(attrs.evolve(HISTORY, steps=steps)))
    stack = "Traceback:\nAgentError: claude failed: no key"
    assert data["errors"] == [{"name": "AgentError", "message": "claude failed: no key", "stack": stack}]


def _failure(step: str, attempt: int) -> ErrorInfo:
    message = f"step {step!r}: claude failed: no key. Its output is in /logs/a.{attempt}.log. Ask again"
    return ErrorInfo("AgentError", message, f"Traceback:\nAgentError: {message}")


def test_limits_hold_no_more_workers_than_there_are() -> None:
    """Items that wait for a limit have no worker: however many they are, the rest of the time is what it was."""
    doubled = tuple(attrs.evolve(step, waits=(*step.waits, *_limits(step))) for step in HISTORY.steps)
    assert any(map(_limits, HISTORY.steps))
    pages = [timeline_page(attrs.evolve(HISTORY, steps=steps)) for steps in (HISTORY.steps, doubled)]
    shares = [re.findall(r"[^>]*<b>[^<]*%</b>", page) for page in pages]
    assert shares[0] == shares[1] != []


def _limits(step: StepHistory) -> list[WaitSpan]:
    return [wait for wait in step.waits if wait.kind is WaitFor.LIMIT]


def test_advice_of_an_error_is_shown_without_its_log() -> None:
    """A refusal says how to permit it; that causes are to be removed stands below all of them."""
    steps = [step for step in HISTORY.steps if step.outcome is Outcome.FAILED]
    message = "step 'a': claude was refused: make. Its output is in /b.log/c.3.log. Permit <it>"
    error = ErrorInfo("AgentError", message)
    page = timeline_page(attrs.evolve(HISTORY, steps=(attrs.evolve(steps[0], error=error),)))
    assert "claude was refused: make <span" in page
    assert "</ul><p>Permit &lt;it&gt;.</p>" in page
    assert advice(message.replace("Permit <it>", "Remove the cause, and call the step again")) == ""


def test_frames_of_the_library_are_counted() -> None:
    """A traceback shows the user's frames, and how many of the library's are left out."""
    path = iso_orchestrator.__file__
    ours = f'  File "{path}", line 1, in call\n    return body()\n           ^^^^\n'
    user = '  File "/x/job.py", line 3, in review\n    ask()\n'
    stack = f"Traceback (most recent call last):\n{ours}{ours}{user}ValueError: no\n"
    head, tail = "Traceback (most recent call last):\n", f"{user}ValueError: no\n"
    assert folded(stack) == f"{head}  … 2 frames of libraries\n{tail}".rstrip("\n")


def test_a_night_without_a_process_is_squeezed() -> None:
    """A gap of most of the time gets a small part of the picture."""
    history = made_history(200, has_night=True)
    assert data_of(timeline_page(history, utc=True))["isSqueezed"] is True
    assert data_of(timeline_page(made_history(1_200), utc=True))["isSqueezed"] is False
    picture = drawing(history, Clock(UTC), CLASSES, bars=5_000)
    resumed = re.search(r'x="([\d.]+)" y="25" text-anchor="start">resumed', picture)
    assert resumed is not None
    assert float(resumed[1]) < 700


@pytest.mark.parametrize("steps", [1, 200, 5_000])
def test_a_notebook_shows_a_workflow_in_60_kb(steps: int) -> None:
    """Headline, numbers, picture and ten failures, whatever the size, with neither script nor style sheet."""
    history = made_history(max(steps, 3))
    shown = glance(history)
    assert len(shown.encode()) < 60_000
    assert {tag for tag, _ in _tags(shown)} <= {
        *("div", "b", "svg", "path", "text", "table", "thead", "tbody", "tr", "th", "td")
    }
    assert shown.count("✕ #") == min(10, history.totals.steps.get(Outcome.FAILED, 0))


def test_pictures_merge_bars_and_never_failures() -> None:
    """With 5,000 steps few paths are drawn, and the failures are among them."""
    history = made_history(5_000)
    picture = drawing(history, Clock(UTC), INLINE, bars=1_500)
    assert len(picture) < 50_000
    (failures,) = re.findall(r'fill="none" stroke="#c9372c" stroke-width="\d+" d="([^"]*)"', picture)
    failed = [span for step in history.steps for span in step.attempts if span.outcome is Outcome.FAILED]
    assert 0 < failures.count("M") <= len(failed)


def test_workflows_and_records_are_shown(tmp_path: Path) -> None:
    """A notebook shows a workflow and its record at a glance, and its timeline in a frame without an origin."""
    workflow = finished(tmp_path)
    for shown in (workflow._repr_html_(), workflow.record._repr_html_()):
        assert "✕ completed, 1 failed" in shown
        assert "<svg" in shown
        assert "a/b &lt;i&gt;" in shown
    timeline = workflow.timeline()
    assert timeline._repr_html_().startswith('<iframe sandbox="allow-scripts" srcdoc="&lt;!DOCTYPE html&gt;')
    timeline.write(tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text() == timeline.html
    assert "ErrorInfo" in html_of(ErrorInfo("E", "m"))
    workflow.close()


def test_a_workflow_that_never_ran_has_no_timeline(tmp_path: Path) -> None:
    """Looking creates no record."""
    with pytest.raises(WorkflowNotFoundError):
        Workflow("none", dir=tmp_path).timeline()
    assert Workflow("none", dir=tmp_path)._repr_html_()


def test_a_timeline_that_is_too_large_is_shown_as_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook is not filled with megabytes: `.html` has them."""
    workflow = finished(tmp_path)
    timeline = workflow.timeline()
    assert "<iframe" in timeline._repr_html_()
    monkeypatch.setattr(notebook, "BUDGET", 1_000)
    assert "<iframe" not in timeline._repr_html_()
    assert "✕ completed, 1 failed" in timeline._repr_html_()
    workflow.close()


def test_the_name_of_the_file_stays_in_the_folder() -> None:
    """No id makes a path."""
    assert default_file("../../etc/passwd") == "etc-passwd.html"
    assert default_file("..") == "timeline.html"
    assert default_file("日本語 batch") == "日本語 batch.html"
