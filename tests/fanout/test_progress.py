"""The display of how far a batch is."""

from __future__ import annotations

import os
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
    """A pseudo-terminal that stands for standard error while it is entered."""

    def __init__(self, columns: int = 120) -> None:
        import termios

        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        self.file = os.fdopen(slave, "w", encoding="utf-8")

    def __enter__(self) -> Terminal:
        self._redirection = redirect_stderr(self.file)
        self._redirection.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._redirection.__exit__(None, None, None)
        self.file.close()

    def text(self) -> str:
        """All that was written, once nothing more will be."""
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
def test_a_terminal_shows_how_far_it_is():
    """On a terminal the display has the label, the count and the failures."""
    with Terminal() as terminal:
        run_three(None)
    text = terminal.text()
    assert "apply" in text
    assert "3/3" in text
    assert "1 failed" in text


@posix_only
def test_a_terminal_without_a_size_shows_it_too():
    """A terminal that does not know its width is taken for one of 80 columns."""
    with Terminal(columns=0) as terminal:
        run_three(None)
    assert "3/3" in terminal.text()


@posix_only
def test_false_shows_nothing():
    """False shows nothing, on a terminal either."""
    with Terminal() as terminal:
        run_three(False)
    assert terminal.text() == ""


@pytest.mark.parametrize("progress", [None, "a label"])
def test_a_pipe_shows_nothing(progress, capfd):
    """Where nobody watches, nothing is written."""
    run_three(progress)
    assert capfd.readouterr() == ("", "")


def test_true_shows_in_a_pipe_too(capfd):
    """True shows wherever standard error goes."""
    run_three(True)
    assert "3/3" in capfd.readouterr().err


def test_a_notebook_shows_it(monkeypatch, capfd):
    """A notebook's kernel is as good as a terminal."""
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
    """What is shown of a label has no escape sequence, no line of its own, and is not a format."""
    with Terminal() as terminal:
        run_three("\x1b]0;title\x07 {0} {desc}\nnext")
    text = terminal.text()
    assert "\\x1b]0;title\\x07 {0} {desc}\\nnext" in text
    assert "\x1b]0" not in text
    assert "\x07" not in text


@posix_only
def test_the_total_need_not_be_known():
    """Without a total the display counts."""
    with Terminal() as terminal:
        run_three(None, total=None)
    assert "3it" in terminal.text()


@posix_only
def test_without_tqdm_nothing_is_shown(monkeypatch):
    """None does without a display where tqdm is missing."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Terminal() as terminal:
        run_three(None)
    assert terminal.text() == ""


def test_true_without_tqdm_says_what_to_install(monkeypatch):
    """True names the extra that is missing."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(WorkflowUsageError, match=r'pip install "iso-orchestrator\[progress\]"'):
        reporter(True, 3, "apply")


@pytest.mark.parametrize("progress", [1, 0, b"label", object()])
def test_anything_else_is_refused(progress):
    """Only None, a bool or a str says what to show."""
    with pytest.raises(TypeError, match="progress must be"):
        reporter(progress, 3, "apply")


class ProneBar:
    """A bar that loses count as soon as two threads use it at once."""

    def __init__(self, **options: object) -> None:
        self.count = 0
        bars.append(self)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfix = text

    def update(self) -> None:
        before = self.count
        time.sleep(0.0001)  # other threads get their turn here
        self.count = before + 1

    def close(self) -> None:
        pass


bars: list[ProneBar] = []


def test_threads_may_advance_it_at_once(monkeypatch):
    """No step forward is lost between threads."""
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=ProneBar))
    display = reporter(True, 80, "apply")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(80):
            pool.submit(display.advance, ok=False)
    assert (bars[-1].count, bars[-1].postfix) == (80, "80 failed")


def test_no_thread_is_started():
    """A display has no thread of its own, which a fork would lose."""
    before = threading.active_count()
    display = reporter(True, 3, "apply")
    assert threading.active_count() == before
    display.close()


@pytest.mark.parametrize("is_closed_first", [True, False])
def test_a_reader_that_is_gone_harms_nothing(is_closed_first, monkeypatch):
    """Items go on when nobody reads standard error any more."""
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
    with pytest.raises(BrokenPipeError):
        file.close()


@pytest.mark.slow
def test_tqdm_is_loaded_only_to_be_shown():
    """A display that shows nothing does not import tqdm."""
    code = (
        "import sys; from iso_orchestrator.fanout.progress import reporter; reporter(None, 1, 'a').advance(True);"
        "print('tqdm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
