"""A notebook that nbconvert executes and writes as a page: the timeline's script runs in its frame, and sees all bars.

Without nbconvert, playwright and Chromium this test is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("nbconvert", reason="nbconvert is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

REPOSITORY = Path(__file__).parents[2]
CELLS = [
    """
from iso_orchestrator import Retry, Workflow, current_step
workflow = Workflow("nightly", dir="records")

def review(number):
    if number == 5 or current_step().attempt == 1 and number % 4 == 0:
        raise ValueError(f"no {number} <img src=x onerror=alert(1)>")
    return number

with workflow:
    summary = workflow.run_for_each(
        range(20),
        lambda number: workflow.run_step(f"review:{number}", review, number, retry=Retry(2, wait=0.01)),
        max_parallel=4,
        stop_on_error=False,
    )
summary
""",
    "workflow",
    "workflow.timeline()",
]
ATTEMPTS = 20 + 5 + 1  # each fourth one and the fifth are tried again


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The notebook as a page, after nbconvert has executed it."""
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    cells = [{**code, "id": f"cell{number}", "source": source} for number, source in enumerate(CELLS)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", "--execute", notebook.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return notebook.with_suffix(".html")


def test_the_frame_of_an_executed_notebook_has_all_bars(page: Path) -> None:
    """The frame's script runs from the written page; the batch's cell ends with all items, and has no escape."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.route("http*://**", lambda route: route.abort())  # nbconvert's own page asks for scripts elsewhere
        dialogs: list[Any] = []
        tab.on("dialog", lambda dialog: (dialogs.append(dialog), dialog.dismiss()))
        tab.goto(page.as_uri())
        frame = next(frame for frame in tab.frames if frame.parent_frame is not None)
        frame.wait_for_function("performance.getEntriesByName('timeline-ready').length")
        assert frame.evaluate("attemptCount") == ATTEMPTS
        assert frame.evaluate("barCount") >= ATTEMPTS
        shown = tab.inner_text("body")
        assert "19 of 20 steps" in shown
        assert "20 of 20 done, 1 failed" in shown
        assert "\x1b" not in shown
        assert frame.evaluate("document.querySelector('#gantt').width") > 0
        assert dialogs == []
        browser.close()
