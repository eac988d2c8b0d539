"""The progress bar of a batch."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.fanout.progress import reporter

posix_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")


class Terminal:
    """A pseudo-terminal that is standard error inside a `with`."""

    def __init__(self, columns: int = 120, rows: int = 24) -> None:
        import termios

        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        self.file = os.fdopen(slave, "w", encoding="utf-8")

    def __enter__(self) -> Terminal:
        self._redirection = redirect_stderr(self.file)
        self._redirection.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._redirection.__exit__(None, None, None)
        self.file.close()

    def text(self) -> str:
        """All that was written. Nothing can be written after this call."""
        self.file.close()
        parts = []
        try:
            while part := os.read(self._master, 4096):
                parts.append(part)
        except OSError:  # Linux says EIO where others say end of file
            pass
        os.close(self._master)
        return b"".join(parts).decode()


def run_three(progress, total=3, name="apply"):
    display = reporter(progress, total, name)
    for ok in (True, False, True):
        display.advance(ok)
    display.close()


@posix_only
def test_a_terminal_shows_the_bar():
    """The bar has the label, the count and the failures."""
    with Terminal() as terminal:
        run_three(None)
    text = terminal.text()
    assert "apply" in text
    assert "3/3" in text
    assert "1 failed" in text


@posix_only
@pytest.mark.parametrize(("columns", "rows"), [(0, 24), (120, 0), (0, 0)])
def test_a_terminal_without_a_size_shows_the_bar(columns, rows):
    """A terminal that does not know its width or height, as under `script`, counts as one of 80 columns, 24 rows."""
    with Terminal(columns, rows) as terminal:
        run_three(None)
    assert "3/3" in terminal.text()


@posix_only
def test_false_shows_nothing():
    """False shows nothing, even on a terminal."""
    with Terminal() as terminal:
        run_three(False)
    assert terminal.text() == ""


@pytest.mark.parametrize("progress", [None, "a label"])
def test_a_pipe_shows_nothing(progress, capfd):
    """Nothing is written to a pipe, with a label or without."""
    run_three(progress)
    assert capfd.readouterr() == ("", "")


def test_true_shows_the_bar_in_a_pipe(capfd):
    """True shows the bar wherever standard error goes."""
    run_three(True)
    assert "3/3" in capfd.readouterr().err


def test_a_notebook_shows_the_bar(monkeypatch, capfd):
    """The kernel of a notebook counts as a terminal."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    run_three(None)
    assert "3/3" in capfd.readouterr().err


def test_a_plain_ipython_in_a_pipe_shows_nothing(monkeypatch, capfd):
    """IPython without a kernel is no notebook."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    run_three(None)
    assert capfd.readouterr().err == ""


@posix_only
def test_a_label_cannot_drive_the_terminal():
    """A label is shown without escape sequences and line breaks, and is no format string."""
    with Terminal() as terminal:
        run_three("\x1b]0;title\x07 {0} {desc}\nnext")
    text = terminal.text()
    assert "\\x1b]0;title\\x07 {0} {desc}\\nnext" in text
    assert "\x1b]0" not in text
    assert "\x07" not in text


@posix_only
def test_an_unknown_total_shows_a_count():
    """Without a total the bar shows the number of items."""
    with Terminal() as terminal:
        run_three(None, total=None)
    assert "3it" in terminal.text()


@posix_only
def test_without_tqdm_nothing_is_shown(monkeypatch):
    """None shows no bar where tqdm is missing."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Terminal() as terminal:
        run_three(None)
    assert terminal.text() == ""


def test_true_without_tqdm_says_what_to_install(monkeypatch):
    """True names the extra that is missing."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(WorkflowUsageError, match=r'pip install "iso-orchestrator\[progress\]"'):
        reporter(True, 3, "apply")


class ProneBar:
    """A bar that loses count when two threads use it at once."""

    def __init__(self, **options: object) -> None:
        self.count = 0
        bars.append(self)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfix = text

    def update(self) -> None:
        before = self.count
        time.sleep(0.0001)  # other threads run here
        self.count = before + 1

    def close(self) -> None:
        pass


bars: list[ProneBar] = []


def test_several_threads_may_advance_the_bar(monkeypatch):
    """No item is lost between threads."""
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=ProneBar))
    display = reporter(True, 80, "apply")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(80):
            pool.submit(display.advance, ok=False)
    assert (bars[-1].count, bars[-1].postfix) == (80, "80 failed")


def test_the_bar_starts_no_thread():
    """The bar has no thread of its own, which a fork would lose."""
    before = threading.active_count()
    display = reporter(True, 3, "apply")
    assert threading.active_count() == before
    display.close()


@pytest.mark.parametrize("is_closed_first", [True, False])
def test_a_closed_standard_error_harms_nothing(is_closed_first, monkeypatch):
    """The bar can be advanced when the reader of standard error is gone."""
    reading, writing = os.pipe()
    file = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", file)
    if is_closed_first:
        os.close(reading)
    display = reporter(True, 3, "apply")
    if not is_closed_first:
        os.close(reading)
    for ok in (True, False, True):
        display.advance(ok)
    display.close()
    monkeypatch.undo()
    another = threading.Thread(target=run_three, args=(True,), daemon=True)  # tqdm's lock must be free for it
    another.start()
    another.join(5)
    assert not another.is_alive()
    with pytest.raises(BrokenPipeError):
        file.close()


LOGGING = """
import logging, sys, threading
from datetime import UTC, datetime, timedelta
from iso_orchestrator import Limited, Workflow
from iso_orchestrator.runtime.context import count_cost
{setup}
workflow = Workflow("batch", store="memory://bar")
met = threading.Event()
def fetch(n):
    count_cost(0.25)
    if n in (3, 4):
        raise ValueError(f"page {{n}}")
    if n == 5 and not met.is_set():
        met.set()
        raise Limited(datetime.now(UTC) + timedelta(seconds=1.5), key="site")
with workflow:
    workflow.run_for_each(
        range(8), lambda n: workflow.run_step(f"fetch {{n}}", fetch, n), max_parallel=2, stop_on_error=False
    )
"""


def on_a_terminal(code: str) -> str:
    """All that a program of its own writes to standard error, which is a terminal."""
    import termios

    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 160))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave)
    os.close(slave)
    parts = []
    try:
        while part := os.read(master, 4096):
            parts.append(part)
    except OSError:  # Linux says EIO where others say end of file
        pass
    os.close(master)
    assert process.wait() == 0
    return b"".join(parts).decode()


def rows_of(text: str) -> list[str]:
    """What a terminal shows after *text*."""
    rows, column = [""], 0
    for character in text:
        match character:
            case "\n":
                rows.append("")
            case "\r":
                column = 0
            case _:
                rows[-1] = rows[-1][:column].ljust(column) + character + rows[-1][column + 1 :]
                column += 1
    return [row.rstrip() for row in rows]


@posix_only
@pytest.mark.parametrize("setup", ["", "logging.basicConfig(format='%(message)s')"])
def test_lines_of_the_log_appear_above_the_bar(setup):
    """A line is on a row of its own, without rests of the bar, by the last resort and by a handler of the program."""
    text = on_a_terminal(LOGGING.format(setup=setup))
    rows = rows_of(text)
    for n in (3, 4):
        assert (
            f"workflow 'batch': item {n} of for_each '<lambda>': step 'fetch {n}' failed: ValueError: page {n}" in rows
        )
    bars = [row for row in rows if "|" in row]
    assert len(bars) == 1, rows
    assert "8/8" in bars[0]


@posix_only
def test_the_bar_tells_what_runs_and_waits_and_costs():
    """While a step waits, the bar says how many run and failed, for which limit until when, and what agents cost."""
    text = on_a_terminal(LOGGING.format(setup=""))
    assert re.search(r"7/8 .*, 1 running, 2 failed, waiting for site until \d\d:\d\d:\d\d, \$2\.00\]", text)


HELD_BACK = """
import time
from datetime import UTC, datetime, timedelta
from iso_orchestrator import Limited, Workflow
workflow = Workflow("batch", store="memory://bar")
limits = [Limited(datetime.now(UTC) + timedelta(seconds=2.5), key="site")]
@workflow.for_each(max_parallel=1)
@workflow.step(limit_key="site")
def fetch(n):
    if limits:
        raise limits.pop()
    time.sleep(0.2)  # so that tqdm draws each item
fetch(range(4))
"""


@posix_only
@pytest.mark.slow
def test_the_bar_waits_for_no_limit_that_has_ended():
    """Items that the limit held back wait for their turn then, and no more for the limit."""
    draws = on_a_terminal(HELD_BACK).split("\r")
    assert any("0/4" in draw and "waiting for site until" in draw for draw in draws)
    later = [draw for draw in draws if re.search("[123]/4", draw)]
    assert later
    assert not [draw for draw in later if "waiting" in draw]


def test_the_handlers_of_a_program_are_left_alone(capfd):
    """The bar replaces no handler, and a handler that draws on a bar itself does not hang."""
    from tqdm import tqdm

    class OnTqdm(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(record.getMessage(), file=sys.stderr)

    logger, handler = logging.getLogger("iso_orchestrator"), OnTqdm()
    logger.addHandler(handler)
    try:
        before = (list(logger.handlers), list(logging.root.handlers))
        display = reporter(True, 80, "apply")
        with ThreadPoolExecutor(8) as pool:
            for n in range(80):
                pool.submit(logger.warning, "line %d", n)
                pool.submit(display.advance, ok=True)
        assert (logger.handlers, logging.root.handlers) == before
        display.close()
    finally:
        logger.removeHandler(handler)
    shown = capfd.readouterr().err
    assert "80/80" in shown
    assert all(f"line {n}" in shown for n in range(80))


def test_tqdm_is_imported_only_for_a_bar():
    """Without a bar tqdm is not imported."""
    code = (
        "import sys; from iso_orchestrator.fanout.progress import reporter; reporter(None, 1, 'a').advance(True);"
        "print('tqdm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
