"""Timelines in files: the logs that they quote, and how a file is written, again and again while a workflow runs."""

from __future__ import annotations

import re
import webbrowser
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path

from iso_orchestrator.agents import Agent, Claude, Codex, OpenCode
from iso_orchestrator.agents.turn import AgentStream
from iso_orchestrator.checks import check_path, unique_name
from iso_orchestrator.commands.output import LogReader
from iso_orchestrator.errors import StoreError
from iso_orchestrator.record.history import History, Outcome, StepHistory
from iso_orchestrator.store import Store
from iso_orchestrator.store.log_files import LogFile
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.views.live import read_history
from iso_orchestrator.views.timeline import timeline_page
from iso_orchestrator.views.timeline_data import last_words

_TAILS = 300  # logs of failed steps that are quoted
_TAIL = 1_500  # characters of each
_READ = 1 << 14  # bytes of the end of a log that are read for them
_AGENTS: dict[str, Callable[[], Agent]] = {"claude": Claude, "codex": Codex, "opencode": OpenCode}


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
    is_alive = True
    while is_alive:
        history = read_history(store, workflow_id)
        is_alive = history.is_alive and every is not None
        text = page_of(history, utc=utc, results=results, logs=logs, every=every if is_alive else None)
        write_file(path, text)
        if opens:
            webbrowser.open(Path(path).absolute().as_uri())
            opens = False  # the file says when the browser is to read it again
        if is_alive and every is not None:
            sleep(max(every, 0.1))


def page_of(
    history: History,
    *,
    utc: bool = False,
    results: bool = True,
    logs: bool = True,
    every: float | None = None,
    timeline_first: bool = False,
) -> str:
    """`timeline_page`, with the last words of the logs of steps that failed or run."""
    tails = read_tails(history) if logs else {}
    return timeline_page(
        history, utc=utc, results=results, logs=logs, tails=tails, every=every, timeline_first=timeline_first
    )


def default_file(workflow_id: str) -> str:
    """The file of a workflow's timeline, in the current folder.

    Example:
        >>> default_file("nightly reviews"), default_file("../etc/passwd")
        ('nightly reviews.html', 'etc-passwd.html')
    """
    name = re.sub(r"[^\w .-]+", "-", workflow_id).strip(" .-")[:100]
    return f"{name or 'timeline'}.html"


def write_file(path: str, text: str) -> None:
    """Write a file as a whole: whoever opens it meanwhile sees the old text or the new one.

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


def read_tails(history: History) -> dict[str, str]:
    """The last words in the logs of the steps that failed or run, by their names. Logs that are gone have none."""
    failed = [step for step in history.steps if step.outcome is Outcome.FAILED][:_TAILS]
    running = [step for step in history.steps if step.outcome is Outcome.RUNNING]
    tails = {}
    for step in [*failed, *running]:
        log = step.attempts[-1].log if step.attempts else None
        with suppress(StoreError):
            if tail := _tail(log or step.log, _agent_of(step)):
                tails[step.name] = tail
    return tails


def _tail(path: str | None, agent: Agent | None) -> str:
    """What a command said last, on standard output and then on standard error."""
    if path is None:
        return ""
    output, errors = _end(path), _end(f"{path}.stderr")
    if agent is not None:
        output = "\n".join(_said(output.splitlines(), agent))
    return last_words(f"{output.strip()[-_TAIL:]}\n{errors.strip()[-_TAIL:]}".strip())


def _end(path: str) -> str:
    file = LogFile.find(path)
    if file is None:
        return ""
    with closing(LogReader(file)) as log:
        return log.tail(_READ)


def _said(lines: Iterable[str], agent: Agent) -> Iterable[str]:
    """The events of an agent as words."""
    stream, last = AgentStream(agent), ""
    for line in lines:
        stream.feed(line)
        if stream.last_line != last:
            last = stream.last_line
            yield last


def _agent_of(step: StepHistory) -> Agent | None:
    names = [span.usage.agent for span in step.attempts if span.usage is not None]
    make = _AGENTS.get(names[-1] or "") if names else None
    return None if make is None else make()
