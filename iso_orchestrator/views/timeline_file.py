"""Timelines in files: the logs that they quote, and how a file is written, again and again while a workflow runs."""

from __future__ import annotations

import re
import webbrowser
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from iso_orchestrator.checks import check_path, unique_name
from iso_orchestrator.errors import StoreError
from iso_orchestrator.record.history import History, Outcome
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.views.live import history_as_of, read
from iso_orchestrator.views.logs import last_line, last_words
from iso_orchestrator.views.timeline import timeline_page
from iso_orchestrator.views.timeline_data import safe_lines
from iso_orchestrator.views.words import failed_steps

_TAILS = 300  # logs of failed steps that are quoted
_LINES, _TAIL = 20, 1_500  # lines and characters of each


def write_timeline(
    store: Store,
    workflow_id: str,
    path: str,
    *,
    utc: bool = False,
    results: bool = True,
    logs: bool = True,
    every: float | None = None,
    opens: bool = False,
) -> None:
    """Write the timeline of a workflow into a file, in place of what is there.

    Args:
        store: That has the workflow.
        workflow_id: Its id.
        path: Of the file.
        utc: Whether times are UTC instead of this machine's.
        results: Whether results are in it.
        logs: Whether the last words of logs, and the paths of logs, are in it.
        every: Seconds after which it is written again, until the workflow has ended; None: once.
        opens: Whether a browser opens it.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        StoreError: The workflow cannot be read, or the file not written.
    """
    while True:
        page, history = read_page(store, workflow_id, utc=utc, results=results, logs=logs, every=every)
        write_file(path, page)
        if opens:
            webbrowser.open(Path(path).absolute().as_uri())
            opens = False  # the page says when the browser is to read it again
        if every is None or not history.is_alive:
            return
        sleep(max(every, 0.1))


def read_page(
    store: Store,
    workflow_id: str,
    *,
    now: datetime | None = None,
    utc: bool = False,
    results: bool = True,
    logs: bool = True,
    every: float | None = None,
    timeline_first: bool = False,
) -> tuple[str, History]:
    """Read a workflow: its `timeline_page`, with the last words of logs, and its history.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        StoreError: It cannot be read.
    """
    projection = read(store, workflow_id)
    history = history_as_of(store, projection, now)
    page = timeline_page(
        history,
        utc=utc,
        results=results,
        logs=logs,
        tails=_tails(projection, history) if logs else {},
        every=every if history.is_alive else None,
        timeline_first=timeline_first,
    )
    return page, history


def default_file(workflow_id: str) -> str:
    """The file of a workflow's timeline, in the current folder.

    Example:
        >>> default_file("nightly reviews"), default_file("../etc/passwd")
        ('nightly reviews.html', 'etc-passwd.html')
    """
    name = re.sub(r"[^\w .-]+", "-", workflow_id).strip(" .-")[:100]
    return f"{name or 'timeline'}.html"


def write_file(path: str, text: str) -> None:
    """Write a file as a whole: a reader at the same time gets the old text or the new one.

    Raises:
        StoreError: It cannot be written.
    """
    fs, data, path = FileSystem(), memoryview(text.encode()), check_path(path, "path")
    aside = f"{path}.{unique_name()}.new"
    try:
        fd = fs.open_new(aside)
        try:
            written = 0
            while written < len(data):
                written += fs.write_at(fd, data[written:], written)
        finally:
            fs.close(fd)
        fs.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            fs.unlink(aside)
        raise StoreError(f"{path}: {error.strerror}; name another file with -o") from error


def _tails(projection: Projection, history: History) -> dict[str, str]:
    """The last words in the logs of the steps that failed, and the last line of those that run, by their names."""
    failed = [step.name for step in failed_steps(history)[:_TAILS]]
    tails = {name: "\n".join(last_words(projection, name, count=_LINES))[-_TAIL:] for name in failed}
    running = (step.name for step in history.steps if step.outcome is Outcome.RUNNING)
    return {
        name: safe_lines(text)
        for name, text in {**tails, **{name: last_line(projection, name) for name in running}}.items()
        if text
    }
