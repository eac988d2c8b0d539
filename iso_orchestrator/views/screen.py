"""`top` on a terminal: drawn again each second, with keys. The terminal is put back at every way out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

import attrs

from iso_orchestrator.errors import OrchestratorError
from iso_orchestrator.record.history import Outcome
from iso_orchestrator.store import Store
from iso_orchestrator.system.interrupts import at_work, masked
from iso_orchestrator.views.logs import last_words
from iso_orchestrator.views.overview import failed_lines
from iso_orchestrator.views.terminal import Style, Terminal
from iso_orchestrator.views.top import Looked, top_lines

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_UP, _DOWN = "\x1b[A", "\x1b[B"
_READ = 1024  # bytes
_KEYS = re.compile("\x1b\\[[0-9;]*[A-Za-z~]|.", re.DOTALL)  # those that were pressed since the last look

Action = Callable[[Store, str, str, Terminal], Sequence[str]]
"""What a key does with the chosen step: store, workflow, step and terminal; it returns lines to show."""


@attrs.frozen
class KeyAction:
    """What a key does: its word at the foot, the function, and whether the user is asked before."""

    word: str
    do: Action
    is_asked: bool = False


def can_watch() -> bool:
    """Whether there is a terminal with keys; not on Windows."""
    try:
        import select
        import termios  # noqa: F401
        import tty  # noqa: F401
    except ImportError:
        return False
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and hasattr(select, "select")


def watch(look: Callable[[], Sequence[Looked]], store: Store, every: float, actions: Mapping[str, KeyAction]) -> None:
    """Show what runs until `q` is pressed.

    Args:
        look: Reads the workflows.
        store: Where they are.
        every: Seconds between two looks.
        actions: More keys, for the chosen step.
    """
    with at_work(), _keys_of_terminal():
        screen = _Screen(store, {"l": KeyAction("log", _log), **actions})
        while screen.is_on:
            screen.draw(look())
            screen.hear(every)


@contextmanager
def _keys_of_terminal() -> Iterator[None]:
    """Get each key at once, unseen, and draw on the alternate screen, inside the block."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        keys = termios.tcgetattr(terminal)
        keys[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the shell without its screen
        termios.tcsetattr(terminal, termios.TCSANOW, keys)
        _write(sys.stdout, _ENTER)
        yield
    finally:
        with masked():  # a second Ctrl-C must not leave a terminal without echo
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
            _write(sys.stdout, _LEAVE)


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


@attrs.define
class _Screen:
    """What is shown, and which step is chosen.

    Attributes:
        page: What is shown in place of the steps: the function that makes its lines; any key but those for it ends it.
        question: The key of the action that the user is asked about.
    """

    store: Store
    actions: Mapping[str, KeyAction]
    is_on: bool = True
    chosen: tuple[str, str] | None = None
    page: Callable[[Terminal], Sequence[str]] | None = None
    question: str | None = None
    _found: Sequence[Looked] = ()

    def draw(self, found: Sequence[Looked]) -> None:
        self._found = found
        steps = self._steps()
        if self.chosen not in steps:
            self.chosen = steps[0] if steps else None
        terminal = Terminal.of()
        room = max(1, terminal.height - 1)  # over the foot
        if self.page is not None:
            lines = list(self.page(terminal))[-room:]
        else:
            lines = top_lines(found, terminal, rows=max(1, room - 1), chosen=self.chosen)
        lines = [*lines[:room], *[""] * (room - len(lines)), terminal.line((self._foot(terminal), Style.DIM))]
        # Each line is cleared before: cells are placed by escape sequences, and what was between them would stay.
        _write(sys.stdout, _HOME + "\r\n".join(f"{_END_OF_LINE}{line}" for line in lines) + _BELOW)

    def _foot(self, terminal: Terminal) -> str:
        if self.question is not None and self.chosen is not None:
            return f"{self.actions[self.question].word} {terminal.name(self.chosen[1], 40)}? y yes, any other key no"
        if self.page is not None:
            return "any key: back"
        words = [f"{key} {action.word}" for key, action in self.actions.items()]
        return "  ".join(["q quit", "↑↓ choose", *words, "f failures"])

    def hear(self, seconds: float) -> None:
        """Wait for a key, and do what it says."""
        import select

        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        if not ready:
            return
        pressed = os.read(sys.stdin.fileno(), _READ)
        if not pressed:  # the terminal is gone
            self.is_on = False
        for key in _KEYS.findall(pressed.decode("utf-8", "replace").replace("\x1bO", "\x1b[")):
            self.press(key)

    def press(self, key: str) -> None:
        if self.question is not None:
            asked, self.question = self.question, None
            if key == "y":
                self._act(self.actions[asked])
        elif self.page is not None:
            self.page = None
        elif key == "q":
            self.is_on = False
        elif key in {_UP, "k", _DOWN, "j"}:
            self._choose(-1 if key in {_UP, "k"} else 1)
        elif key == "f":
            self.page = self._failures
        elif key in self.actions and self.chosen is not None:
            if self.actions[key].is_asked:
                self.question = key
            else:
                self._act(self.actions[key])

    def _steps(self) -> list[tuple[str, str]]:
        return [(looked.history.workflow_id, step.name) for looked in self._found for step in looked.active()]

    def _choose(self, by: int) -> None:
        steps = self._steps()
        if self.chosen in steps:
            self.chosen = steps[max(0, min(len(steps) - 1, steps.index(self.chosen) + by))]

    def _act(self, action: KeyAction) -> None:
        if self.chosen is None:
            return
        workflow_id, step = self.chosen
        if action.is_asked:  # it is done once, and its words are shown
            said = self._said(action, workflow_id, step, Terminal.of())
            self.page = lambda _: said
        else:
            self.page = lambda terminal: self._said(action, workflow_id, step, terminal)

    def _said(self, action: KeyAction, workflow_id: str, step: str, terminal: Terminal) -> Sequence[str]:
        try:
            return action.do(self.store, workflow_id, step, terminal)
        except OrchestratorError as error:
            return terminal.lines(str(error))

    def _failures(self, terminal: Terminal) -> Sequence[str]:
        lines = [line for looked in self._found for line in failed_lines(looked.history, terminal)]
        return lines or ["no step has failed"]


def _log(store: Store, workflow_id: str, step: str, terminal: Terminal) -> Sequence[str]:
    projection = store.read(workflow_id)
    words = [] if projection is None else last_words(projection, step, count=terminal.height)
    head = [terminal.line(terminal.sign(Outcome.RUNNING), " ", (step, Style.HEAD)), ""]
    lines = [line for text in words for line in terminal.lines(text)]
    return [*head, *(lines or ["it has no log"])[-max(1, terminal.height - 4) :]]
