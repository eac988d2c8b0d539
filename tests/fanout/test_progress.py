"""The progress bar of a batch."""

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
    """A pseudo-terminal that is standard error inside a `with`."""

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
def test_a_terminal_without_a_size_shows_the_bar():
    """A terminal that does not know its width counts as 80 columns wide."""
    with Terminal(columns=0) as terminal:
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
    with pytest.raises(BrokenPipeError):
        file.close()


def test_tqdm_is_imported_only_for_a_bar():
    """Without a bar tqdm is not imported."""
    code = (
        "import sys; from iso_orchestrator.fanout.progress import reporter; reporter(None, 1, 'a').advance(True);"
        "print('tqdm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
