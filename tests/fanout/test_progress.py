"""The progress of a batch: a line on a terminal, a cell in a notebook, lines of a log."""

from __future__ import annotations

import io
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from iso_orchestrator import Workflow
from iso_orchestrator.fanout.progress import Progress, reporter
from iso_orchestrator.fanout.status import ASCII, BatchStatus, LimitInForce
from iso_orchestrator.text import width

posix_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")


@pytest.fixture(autouse=True)
def no_columns(monkeypatch):
    """Let terminals be as wide as they say. Children need an `env`: readline sets COLUMNS for them alone."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm")


class Terminal:
    """A pseudo-terminal that is standard error inside a `with`."""

    def __init__(self, columns: int = 120, rows: int = 24) -> None:
        import termios

        self.read = b""
        self.master, slave = os.openpty()
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
        try:
            while part := os.read(self.master, 4096):
                self.read += part
        except OSError:  # Linux says EIO where others say end of file
            pass
        os.close(self.master)
        return self.read.decode()


def display_of(progress=None, total=3, name="apply", max_parallel=1) -> Progress:
    return reporter(progress, Workflow("batch", store="memory://progress")._runtime, name, total, max_parallel)


def run_three(progress, total=3, name="apply"):
    display = display_of(progress, total, name)
    for ok in (True, False, True):
        display.advance(ok)
    display.close()


def lines_of(text: str) -> list[str]:
    """All states of the line that was drawn on a terminal."""
    return [line.partition("\x1b[K")[0] for line in text.split("\r") if line.strip("\n")]


@posix_only
def test_a_terminal_shows_the_line():
    """The line has the label, the count, a bar, the failures and at last the time."""
    with Terminal() as terminal:
        run_three(None)
    first, *_, last = lines_of(terminal.text())
    assert first == f"apply 0/3 {'─' * 40}"
    assert re.fullmatch(f"apply 3/3 {'━' * 40}  1 failed  [0-9.]+ m?s", last)


@posix_only
@pytest.mark.parametrize(("columns", "rows"), [(0, 24), (120, 0), (0, 0)])
def test_a_terminal_without_a_size_shows_the_line(columns, rows):
    """A terminal that does not know its width or height, as under `script`, counts as one of 80 columns."""
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


def test_true_shows_lines_in_a_pipe(capfd):
    """True writes lines wherever standard error goes: at failures and at the end."""
    run_three(True)
    shown = capfd.readouterr().err
    assert re.fullmatch(
        r"(\d\d:){2}\d\d batch apply: 2 of 3 done, 1 failed, \S+ m?s gone\n"
        r"(\d\d:){2}\d\d batch apply: 3 of 3 done, 1 failed, \S+ m?s\n",
        shown,
    )


@posix_only
def test_a_dumb_terminal_shows_lines(monkeypatch):
    """A terminal that knows no control sequences, as in editors, gets lines."""
    monkeypatch.setenv("TERM", "dumb")
    with Terminal() as terminal:
        run_three(True)
    assert "\x1b" not in terminal.text()


@posix_only
def test_an_old_encoding_is_drawn_in_ascii():
    """Where standard error is not UTF-8, the line has signs of ASCII alone, and the label is escaped."""
    with Terminal(40) as terminal:
        terminal.file.reconfigure(encoding="latin-1", errors="backslashreplace")
        run_three("日本")
    text = terminal.text()
    assert text.isascii()
    assert "==" in text


@posix_only
@pytest.mark.parametrize("columns", [8, 20, 40, 60, 100])
def test_no_line_is_wider_than_the_terminal(columns):
    """However long and wide the label is, the line stays in its row, with the count as long as there is room for it."""
    with Terminal(columns) as terminal:
        run_three("日本語のとても長いラベル and a long rest of a label")
    lines = lines_of(terminal.text())
    assert max(map(width, lines)) <= columns - 1
    assert columns < 30 or all("/3" in line for line in lines)


class Notebook:
    """The part of IPython that shows cells."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.display = SimpleNamespace(display=self._display)

    def get_ipython(self) -> object:
        return SimpleNamespace(kernel=object())

    def _display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> object:
        assert raw
        assert display_id
        self.shown.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: self.shown.append(bundle))


@pytest.mark.parametrize("progress", [None, True, "<b>"])
def test_a_notebook_shows_a_cell(progress, monkeypatch, capfd):
    """A cell has a bar of HTML and the words, escaped; as plain text the words alone."""
    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    run_three(progress)
    assert capfd.readouterr().err == ""
    first, last = notebook.shown  # those in between came within a quarter of a second
    assert first["text/html"].startswith('<progress max="3" value="0"></progress> ')
    assert last["text/html"].startswith('<progress max="3" value="3"></progress> ')
    assert "<b>" not in last["text/html"]
    assert last["text/plain"].startswith(f"{'<b>' if progress == '<b>' else 'apply'}: 3 of 3 done, 1 failed, ")


def test_a_page_that_is_gone_harms_nothing(monkeypatch):
    """A notebook that cannot show the cell any more does not make the batch fail."""
    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    display = display_of()
    monkeypatch.setattr(notebook, "shown", None)
    display.advance(True)
    display.close()


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
    """Without a total the line shows the number of items."""
    with Terminal() as terminal:
        run_three(None, total=None)
    assert "apply 3 done  1 failed" in terminal.text()


def test_several_threads_may_advance(capfd):
    """No item is lost between threads."""
    display = display_of(True, 800)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(800):
            pool.submit(display.advance, ok=False)
    display.close()
    assert "800 of 800 done, 800 failed" in capfd.readouterr().err


@posix_only
def test_the_line_is_written_ten_times_a_second():
    """Thousands of quick items do not fill a terminal."""
    with Terminal() as terminal:
        display = display_of(None, 5000)
        began = time.monotonic()
        for _ in range(5000):
            display.advance(True)
        seconds = time.monotonic() - began
        display.close()
    lines = lines_of(terminal.text())
    assert len(lines) <= 10 * (int(seconds) + 1) + 1
    assert "5000/5000" in lines[-1]


def test_the_display_starts_no_thread():
    """The display has no thread of its own, which a fork would lose."""
    before = threading.active_count()
    display = display_of(True)
    assert threading.active_count() == before
    display.close()


@pytest.mark.parametrize("is_closed_first", [True, False])
def test_a_closed_standard_error_harms_nothing(is_closed_first, monkeypatch):
    """Items can end when the reader of standard error is gone."""
    reading, writing = os.pipe()
    file = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", file)
    if is_closed_first:
        os.close(reading)
    display = display_of(True)
    if not is_closed_first:
        os.close(reading)
    for ok in (True, False, True):
        display.advance(ok)
    display.close()
    monkeypatch.undo()
    file.close()


@posix_only
def test_a_terminal_that_nobody_reads_holds_up_no_item(monkeypatch):
    """When the terminal takes no more text, as after Ctrl-S, items end as ever; what is drawn later is whole."""
    monkeypatch.setattr("iso_orchestrator.fanout.progress._WRITES", 10**6)
    with Terminal() as terminal:
        display = display_of(None, 5000)

        def advance() -> None:
            for _ in range(5000):
                display.advance(True)

        thread = threading.Thread(target=advance, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        while select.select([terminal.master], [], [], 0.1)[0]:
            terminal.read += os.read(terminal.master, 4096)
        display.close()
    text = terminal.text()
    assert "5000/5000" in lines_of(text)[-1]
    assert all(re.match("apply [0-9]+/5000 ", line) for line in lines_of(text))


def test_a_full_pipe_holds_up_no_item(monkeypatch):
    """A reader that does not read holds up no line, and another writer of the pipe still waits as ever."""
    reading, writing = os.pipe()
    monkeypatch.setattr("iso_orchestrator.fanout.progress._NEWS_EVERY", 0.0)
    with os.fdopen(writing, "w", buffering=1) as file, redirect_stderr(file):
        display = display_of(True, 5000)
        for _ in range(5000):
            display.advance(False)
        display.close()
        assert os.get_blocking(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    assert 100 < len(lines) < 5000
    assert all(re.match(r"[0-9:]{8} batch apply: [0-9]+ of 5000 done, ", line) for line in lines)


@posix_only
def test_of_two_batches_the_first_has_the_line():
    """A second batch shows itself when the first has ended."""
    with Terminal() as terminal:
        first, second = display_of(name="first"), display_of(name="second")
        second.advance(True)
        first.advance(True)
        first.close()
        second.advance(True)
        second.close()
    lines = lines_of(terminal.text())
    names = [line.split()[0] for line in lines]
    assert names == sorted(names)
    assert "second 2/3" in lines[-1]


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
        raise Limited(datetime.now(UTC) + timedelta(seconds=2.5), key="site")
with workflow:
    workflow.run_for_each(
        range(8), lambda n: workflow.run_step(f"fetch {{n}}", fetch, n), max_parallel=2, stop_on_error=False
    )
"""


def on_a_terminal(code: str, *args: str) -> str:
    """All that a program of its own writes to standard error, which is a terminal."""
    import termios

    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 160))
    process = subprocess.Popen([sys.executable, "-c", code, *args], stderr=slave, env={**os.environ})
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
    for character in text.replace("\x1b[K", "\x00"):
        match character:
            case "\x00":
                rows[-1] = rows[-1][:column]
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
def test_messages_appear_above_the_line(setup):
    """A message is on a row of its own, by the last resort and by a handler of the program."""
    rows = rows_of(on_a_terminal(LOGGING.format(setup=setup)))
    for n in (3, 4):
        assert (
            f"workflow 'batch': item {n} of for_each '<lambda>': step 'fetch {n}' failed: ValueError: page {n}" in rows
        )
    bars = [row for row in rows if "━" in row]
    assert len(bars) == 1, rows
    assert "8/8" in bars[0]


OTHER_LOGGERS = """
import logging
from iso_orchestrator import Workflow
logging.basicConfig(format="%(message)s", level=logging.INFO)
logging.getLogger("iso_orchestrator").setLevel(logging.WARNING)
log = logging.getLogger("app.pages")
Workflow("batch", store="memory://bar").run_for_each(range(200), lambda n: log.info("page %d", n), max_parallel=2)
"""


@posix_only
def test_messages_of_other_loggers_appear_above_the_line():
    """The program's own messages are not written through the line either, and all of them are there."""
    rows = rows_of(on_a_terminal(OTHER_LOGGERS))
    assert {f"page {n}" for n in range(200)} <= set(rows)
    assert len([row for row in rows if "━" in row]) == 1


@posix_only
def test_the_line_tells_what_waits_and_costs():
    """While a step waits, the line says how many failed, for which limit until when, and what agents cost."""
    text = on_a_terminal(LOGGING.format(setup=""))
    assert re.search(r"7/8 ━+─+  2 failed  1 waits for site until \d\d:\d\d:\d\d  ~\S+ m?s left  \$2\.00", text)


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
    time.sleep(0.2)
fetch(range(4))
"""


@posix_only
@pytest.mark.slow
def test_the_line_waits_for_no_limit_that_has_ended():
    """Items that the limit held back wait for their turn then, and no more for the limit."""
    draws = on_a_terminal(HELD_BACK).split("\r")
    assert any("0/4" in draw and "wait for site until" in draw for draw in draws)
    later = [draw for draw in draws if re.search("[123]/4", draw)]
    assert later
    assert not [draw for draw in later if "wait" in draw]


RESUMED = """
import sys
from iso_orchestrator import Workflow
workflow = Workflow("batch", dir=sys.argv[1])
@workflow.for_each(max_parallel=2)
@workflow.step
def fetch(n):
    return n
fetch(range(int(sys.argv[2])))
"""


@posix_only
def test_items_from_the_record_are_told(tmp_path):
    """A batch that goes on says how many of its items were done before."""
    on_a_terminal(RESUMED, str(tmp_path), "3")
    *_, last = lines_of(on_a_terminal(RESUMED, str(tmp_path), "5"))
    assert last.startswith("fetch 5/5 (3 from the record) ━")


SIMULATED = """
import logging, sys, threading
from datetime import timedelta
from iso_orchestrator import Limited, Workflow
from iso_orchestrator.testing import FakeClock
clock = FakeClock()
guard, limits = threading.Lock(), [200]
workflow = Workflow("nightly", store="memory://simulated", now=clock)
if sys.argv[1] == "log":
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
@workflow.for_each(max_parallel=4, stop_on_error=False, progress=None if sys.argv[1] == "log" else True)
@workflow.step(name="review {n}")
def review(n):
    with guard:
        clock.advance(10)
        if n == 20 and limits:
            raise Limited(clock() + timedelta(seconds=limits.pop()), key="claude")
    if n in map(int, sys.argv[2:]):
        raise ValueError(n)
with workflow:
    review(range(60))
"""


@pytest.mark.parametrize("failed", [[5, 21, 50], list(range(60))], ids=["few", "all"])
@pytest.mark.parametrize("way", ["log", "stderr"])
def test_a_file_gets_a_line_a_minute(way, failed, tmp_path):
    """Ten minutes of 60 items are told in less than 40 lines without control characters, however many fail."""
    path = Path(tmp_path, "stderr")
    with path.open("wb") as file:
        command = [sys.executable, "-c", SIMULATED, way, *map(str, failed)]
        subprocess.run(command, stderr=file, check=True)
    text = path.read_bytes().decode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    lines = text.splitlines()
    told = [line for line in lines if "nightly review: " in line]
    assert len(told) >= 10
    assert len(lines) < 40
    assert any(", 1 waits for claude until " in line for line in told)
    assert any(re.search(r" of 60 done, .* gone, about .* left", line) for line in told)


def test_the_handlers_of_a_program_are_left_alone():
    """The line replaces no handler, and a handler that takes a lock of its own does not hang."""
    guard, seen = threading.Lock(), []

    class Careful(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with guard:
                seen.append(record.getMessage())

    logger, handler = logging.getLogger("iso_orchestrator"), Careful()
    logger.addHandler(handler)
    try:
        with Terminal() as terminal:
            before = (list(logger.handlers), list(logging.root.handlers))
            display = display_of(None, 80)
            with ThreadPoolExecutor(8) as pool:
                for n in range(80):
                    pool.submit(logger.warning, "line %d", n)
                    pool.submit(display.advance, ok=True)
            assert (logger.handlers, logging.root.handlers) == before
            display.close()
    finally:
        logger.removeHandler(handler)
    assert "80/80" in lines_of(terminal.text())[-1]
    assert {f"line {n}" for n in range(80)} == set(seen)


def test_true_writes_to_any_stream(monkeypatch):
    """A standard error that is no file, as a program may install one, is written to as well."""
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    run_three(True)
    assert "3 of 3 done" in stream.getvalue()


NOW = datetime(2026, 11, 28, 22, 49, 32, tzinfo=UTC)


def status(**changes) -> BatchStatus:
    values = {
        "label": "review",
        "total": 60,
        "done": 37,
        "failed": 1,
        "replayed": 21,
        "limit": LimitInForce(4, "claude", NOW + timedelta(seconds=20), NOW),
        "seconds_gone": 29.1,
        "seconds_left": 19.84,
        "cost": 1.6,
        "is_over": False,
    }
    return BatchStatus(**{**values, **changes})


def test_the_words(monkeypatch):
    """A line and a sentence tell the same, in this order."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert status().line(110) == (
            "review 37/60 (21 from the record) ━━━━━━─────  1 failed  "
            "4 wait for claude until 22:49:52  ~19.8 s left  $1.60"
        )
        assert status().sentence() == (
            "review: 37 of 60 done (21 from the record), 1 failed, 4 wait for claude until 22:49:52, 29.1 s gone, "
            "about 19.8 s left, $1.60"
        )
        days = LimitInForce(1, "claude", NOW + timedelta(days=3), NOW)
        assert "1 waits for claude until 2026-12-01 22:49:32" in status(limit=days).sentence()
        assert status(replayed=0, limit=None, seconds_left=None, cost=0).line(35, ASCII) == (
            "review 37/60 =======.....  1 failed"
        )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_time_left_counts_items_of_this_run():
    """Items from the record say nothing of how long the others take, and two are too few to tell."""
    with Terminal() as terminal:
        display = display_of(None, 10, max_parallel=2)
        for _ in range(3):
            display.advance(True, 0.0, is_replayed=True)
        for _ in range(2):
            display.advance(True, 8.0)
        assert display._status().seconds_left is None
        display.advance(True, 8.0)
        assert display._status().seconds_left == 4 * 8.0 / 2
        display.close()
    assert "(3 from the record)" in terminal.text()
