"""Row 21: recorded texts that try to become markup, script or terminal control, wherever the project shows them."""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import test_errors
from reliability.tiers import Figures, Tier
from support import T0, new_fold, put
from support_facts import FACT_KINDS, saying

from iso_orchestrator import (
    ErrorInfo,
    ForEachSummary,
    Fulfilled,
    Rejected,
    Workflow,
    WorkflowStatus,
    list_workflows,
    read_workflow_record,
)
from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.fanout.progress import reporter
from iso_orchestrator.notes import suppressed_as_note
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import snapshot
from iso_orchestrator.store.memory import MemoryStore
from iso_orchestrator.views import live
from iso_orchestrator.views.cli import _parser, main
from iso_orchestrator.views.logs import LogOptions, log_lines
from iso_orchestrator.views.terminal import Terminal
from iso_orchestrator.views.top import Looked, top_lines

ROW = 21
PLAIN = "plain"
BATCH = 10  # texts in one record

MARKUP = [
    "<script>alert(1)</script>",
    "</td></tr></table><h1>out",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'\"`=",
    "<!-- ",
    " -->",
    "]]>",
    "<![CDATA[",
    "<?php",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "<b",
    "</caption></table>",
    "<style>*{display:none}</style>",
    "<a href=javascript:alert(1)>",
    "<plaintext>",
    "<textarea>",
    "</pre></td>",
    "<title>",
    "%s %(x)s {0} {desc} {{}}",
]
TERMINAL = [
    "\x1b]0;title\x07",
    "\x1b[31m",
    "\x1b[2J\x1b[H",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;AAAA\x07",
    "\x1bP1$r\x1b\\",
    "\x1b_G\x1b\\",
    "\x1b[6n",
    "\x1bc",
    "\x9b31m",
    "\x9d0;title\x9c",
    "\x90q\x9c",
    "\rover",
    "line\nline\r\nline",
    "\x08\x08\x08",
    "\x0e\x0f",
    "\x7f",
    "\x00",
    "\x0b\x0c",
    "\x85",
    "\u2028\u2029",
]
BIDI = [chr(code) for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
PIECES = [*MARKUP, *TERMINAL, *BIDI]

# By what the terminal makes of them, not by what the library escapes.
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def drawn(draw: random.Random, count: int) -> list[str]:
    """The pieces one by one, as far as *count* goes, then some of them one after the other."""
    texts = [*MARKUP, *TERMINAL][:count]
    while len(texts) < count:
        parts = [draw.choice([*PIECES, chr(draw.randrange(0x3000)), "word "]) for _ in range(draw.randrange(1, 8))]
        texts.append("".join(parts))
    return texts


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest between two looks: nobody is at work."""
    monkeypatch.setattr(snapshot, "_READ_PAUSE", 0)


# A record with a text in every place that can hold one


def _facts(text: str, number: int) -> list[f.Fact]:
    """Every kind of fact, each about a step of its own, and those that views read in a way of their own."""
    key, facts = f"{text} {number}", list[f.Fact]()
    for kind in FACT_KINDS:
        names = {"step": f"{kind.tag} {key}", "key": key, "run": key}
        fact = saying(kind, lambda name, names=names: names.get(name, text))
        step = getattr(fact, "step", None)
        facts += [fact] if step is None else [f.StepStarted(T0, step, 1, "o"), fact]
    return [
        *facts,
        f.StepCompleted(T0, f"step.started {key}", _command_result(text)),
        f.StepStarted(T0, f"text {key}", 1, "o"),
        f.StepCompleted(T0, f"text {key}", text),
        f.HeartbeatRecorded(T0, f"command:command.begun {key}", {"log": text, "line": text}),
        f.StatusSet(T0, WorkflowStatus.FAILED, ErrorInfo(text, text, stack=text, code=text, cause=text)),
    ]


def _command_result(text: str) -> dict[str, Any]:
    parsed = {"outcome": text, "cost_usd": 0.5, "text": text}
    return {"exit_code": 0, "duration": 1.0, "stdout": text, "log_path": text, "parsed": parsed}


def build(root: Path, texts: Sequence[str]) -> str:
    """A workflow whose record has each of *texts* everywhere; its id, which has the first."""
    workflow_id = f"w{texts[0]}"
    log, projection = FileStore(root).open(workflow_id, lambda: new_fold(workflow_id, {texts[0]: texts[-1]}))
    projection = put(log, projection, *[fact for number, text in enumerate(texts) for fact in _facts(text, number)])
    log.detach(projection)
    return workflow_id


# As markup


class Structure(HTMLParser):
    """The tags, attributes, comments and declarations of a document, and its texts apart from them.

    A drawing depends on the times of steps: of what is in it, only kinds of tags are kept, and names of attributes.
    """

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[object] = []
        self.drawn: set[tuple[str, ...]] = set()
        self._is_drawing = False
        self.texts: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_drawing |= tag == "svg"
        if self._is_drawing:
            self.drawn.add((tag, *(name for name, _ in attrs)))
        else:
            self.tags.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        if not self._is_drawing:
            self.tags.append(f"/{tag}")
        self._is_drawing &= tag != "svg"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.tags.append(("declaration", decl))

    def handle_pi(self, data: str) -> None:
        self.tags.append(("instruction", data))

    def unknown_decl(self, data: str) -> None:
        self.tags.append(("declaration", data))


# Tags of drawings, with the names of their attributes.
DRAWN = {
    ("svg", "font-family", "font-size", "viewbox", "width", "role", "aria-label"),
    ("path", "stroke", "stroke-opacity", "d"),
    ("path", "stroke", "stroke-width", "d"),
    ("path", "fill", "stroke", "stroke-width", "d"),
    ("text", "fill", "fill-opacity", "x", "y"),
    ("text", "fill", "fill-opacity", "x", "y", "text-anchor"),
    ("text", "fill", "font-weight", "x", "y"),
}


def documents(root: Path, workflow_id: str, texts: Sequence[str]) -> list[str]:
    """Everything that a notebook shows of a workflow."""
    record = read_workflow_record(workflow_id, dir=root)
    workflow = Workflow(workflow_id, dir=root)
    shown: list[Any] = [record, workflow, *list_workflows(dir=root), record.last_error]
    shown += [*record.steps.values(), *record.events, *record.heartbeats.values(), *record.leases.values()]
    shown += [step.error for step in record.steps.values() if step.error]
    outcomes = [
        outcome for text in texts for outcome in (Fulfilled(text), Rejected(ValueError(text)), Fulfilled([text]))
    ]
    shown.append(ForEachSummary(outcomes))
    return [one._repr_html_() for one in shown]


@pytest.mark.parametrize("part", range(2))
def test_texts_in_a_notebook_are_texts(part: int, folder: Path, tier: Tier, figures: Figures) -> None:
    """The HTML of records, summaries and workflows is built as for plain texts, and shows the text."""
    texts = drawn(tier.random(f"notebook {part}"), tier.count(quick=42, full=250, soak=20_000))
    plain: dict[int, list[list[object]]] = {}
    for number in range(0, len(texts), BATCH):
        batch = texts[number : number + BATCH]
        if len(batch) not in plain:
            root, words = folder / f"plain {number}", [PLAIN] * len(batch)
            plain[len(batch)] = [Structure(document).tags for document in documents(root, build(root, words), words)]
        root = folder / f"hostile {number}"
        shown, expected = documents(root, build(root, batch), batch), plain[len(batch)]
        assert len(shown) == len(expected) > 5 * len(batch)
        seen = ""
        for document, tags in zip(shown, expected, strict=True):
            structure = Structure(document)
            assert structure.tags == tags, (batch, document)
            assert structure.drawn <= DRAWN
            assert not CONTROLS.search(document), (batch, document)
            seen += "".join(structure.texts)
        for text in batch:
            assert escape_terminal(text) in seen
    figures.add(ROW, "texts in notebooks", len(texts))


# On a terminal


def lines_without_controls(said: str) -> int:
    """How many lines a terminal shows, which nothing in them drives."""
    found = CONTROLS.search(said)
    assert not found, (hex(ord(found[0])) if found else "", ascii(said))
    return said.count("\n")


def _commands() -> Iterator[tuple[str, ...]]:
    """Each command that takes a store, about everything, about no workflow that there is, and about one."""
    parsers = next(action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    for name in sorted(parsers, key="delete".__eq__):  # last
        actions = parsers[name]._actions
        flags = {flag for action in actions for flag in action.option_strings}
        first, *rest = [action for action in actions if not action.option_strings] or [None]
        others = [action.choices[0] if action.choices else "no such TEXT" for action in rest]
        abouts = [[]] if first is None or first.nargs == "?" else []
        abouts += [] if first is None else [["no such TEXT", *others], ["ID", *others]]
        abouts += [["ID"]] if rest and rest[0].nargs == "?" else []
        needed = [word for action in actions if action.required and action.option_strings for word in _given(action)]
        for about in abouts if "--store" in flags else []:
            yield name, *needed, *about
            if "--json" in flags:
                yield name, "--json", *about


def _given(action: argparse.Action) -> tuple[str, str]:
    assert action.choices is not None
    return action.option_strings[0], next(iter(action.choices))


# What shows an error or a log as it came has a line for each of its lines, or breaks a long one.
WHOLE = [
    ("show", "ID", "step.failed *"),
    ("show", "ID", "#3", "--json"),
    ("show", "ID", "text *", "--result"),
    ("show", "ID", "--failed"),
    ("logs", "ID", "command.begun *", "--raw"),
]
COMMANDS = [
    ("reset", "ID", "step.completed *"),
    ("show", "ID", "--steps"),
    ("show", "ID", "--events", "1000"),
    ("list", "--failed"),
    *WHOLE,
    *_commands(),
]
MENDING = ("repair", "fold", "reset", "delete")


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in a terminal that has room for all texts; its exit code, output and errors."""
    monkeypatch.chdir(folder)  # where timelines are written
    monkeypatch.setenv("COLUMNS", "5000")

    def run(root: Path, command: Sequence[str], workflow_id: str, text: str) -> tuple[int, str, str]:
        words = [workflow_id if word == "ID" else word.replace("TEXT", text) for word in command]
        words += ["--timeout", "0"] if command[0] == "watch" else []
        code = main([words[0], "--dir", str(root), *words[1:]])
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_texts_on_a_terminal_are_texts(part: int, folder: Path, tier: Tier, figures: Figures, run: Any) -> None:
    """Each command prints as many lines as for plain texts, and no control character, to either stream."""
    texts = drawn(tier.random(f"terminal {part}"), tier.count(quick=42, full=250, soak=20_000))
    plain: dict[int, list[object]] = {}

    def said(root: Path, batch: Sequence[str]) -> list[object]:
        """What there is to say of each command's code, lines and JSON."""
        workflow_id, found = build(root, batch), list[object]()
        for command in COMMANDS:
            code, out, err = run(root, command, workflow_id, batch[-1])
            shape = _shape(json.loads(out)) if out and "--json" in command else None
            assert out.isascii() or "--json" not in command
            lines = lines_without_controls(out)
            found.append((command, code, command in WHOLE or lines, lines_without_controls(err), shape))
        return found

    for number in range(0, len(texts), BATCH):
        batch = texts[number : number + BATCH]
        if len(batch) not in plain:
            plain[len(batch)] = said(folder / f"plain {number}", [PLAIN] * len(batch))
        name = re.sub("[/\0]", "", "".join(batch))[:60]
        assert said(folder / f"hostile {number} {name}", batch) == plain[len(batch)], batch
    figures.add(ROW, "texts on terminals", len(texts))


def _shape(value: Any) -> Any:
    """A JSON value without its texts."""
    if isinstance(value, dict):
        return sorted(json.dumps(_shape(item)) for item in value.values())
    return [_shape(item) for item in value] if isinstance(value, list) else type(value).__name__


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a snapshot": lambda folder: _only(folder, "json").write_bytes(b"{"),
    "a journal": lambda folder: _only(folder, "journal").write_bytes(b"\x1b]0;title\x07\n"),
    "a conflict": lambda folder: _change_state(_only(folder, "json")),
    "a link": lambda folder: (_only(folder, "json").unlink(), _only(folder, "json", 0).symlink_to("/dev/null")),
    "a stranger": lambda folder: (folder / "\x1b[31m\n\u202e.txt").write_text("x"),
    "a stranger's record": lambda folder: (folder / "\x1b[31m\n\u202e.json").write_text("\x1b[31m"),
}


def _only(folder: Path, suffix: str, count: int = 1) -> Path:
    found = list(folder.glob(f"*.{suffix}"))
    return found[0] if count and found else Path(str(next(folder.glob("*.journal")))).with_suffix(f".{suffix}")


def _change_state(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "state": "\x1b[31m"}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_said_of_damage_is_text(damage: str, folder: Path, tier: Tier, figures: Figures, run: Any) -> None:
    """Reports and errors about files that somebody made drive no terminal either, whatever they hold and are called."""
    texts, groups, tried = [*TERMINAL, *BIDI], tier.count(quick=2, full=11, soak=22), 0
    for number, text in enumerate("".join(texts[start::groups]) for start in range(groups)):
        root = folder / f"{number} {text[:60]}".replace("\0", "").replace("/", "")
        workflow_id = f"w{text}"
        log, projection = FileStore(root).open(workflow_id, lambda text=text: new_fold(f"w{text}"))
        put(log, projection, *_facts(text, 0))
        log.close()
        DAMAGES[damage](root / "workflows")
        for command in (
            *[command for command in COMMANDS if command[0] not in MENDING],
            ("repair", "ID", "--merge-snapshot"),
            ("repair", "ID", "--without-snapshot"),
        ):
            _, out, err = run(root, command, workflow_id, text)
            lines_without_controls(out)
            assert lines_without_controls(err) <= 2  # `list` has a line for each file that it cannot read
            tried += 1
    figures.add(ROW, "reports of damage", tried)


class _StoreOf(MemoryStore):
    """A store with one workflow, which a process has open."""

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self._projection = projection

    def read(self, workflow_id: str) -> Projection:
        return self._projection

    def is_alive(self, workflow_id: str, process_id: str) -> bool:
        return True


def test_what_a_command_prints_is_text(folder: Path, tier: Tier, figures: Figures) -> None:
    """Each line of its log is one line of `logs`, and its last one is a cell of one row of `top`."""
    texts = drawn(tier.random("logs"), tier.count(quick=42, full=250, soak=20_000))
    path = folder / "log"
    for text in texts:
        projection = new_fold(text)
        projection.apply(f.StepStarted(T0, f"runs {text}", 1, "o"))
        projection.apply(f.CommandBegun(T0, f"runs {text}", "mark", str(path)))
        path.write_bytes(f"{text}\n{text}.".encode())
        store = _StoreOf(projection)
        lines = list(log_lines(store, text, f"runs {text}", LogOptions()))
        assert lines_without_controls("\n".join(lines)) == 2 * text.count("\n") + 1
        assert lines[-1] == escape_terminal(text.split("\n")[-1] + ".")
        shown = top_lines([Looked(projection, live.history_as_of(store, projection, T0))], Terminal(1000))
        assert lines_without_controls("\n".join(shown)) == 4
    figures.add(ROW, "texts in logs", len(texts))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("way", ["label", "name"])
def test_progress_lines_are_one_line(way: str, tier: Tier, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label that is a text of the user's moves no cursor: the bar is redrawn as often as for a plain label."""
    texts = drawn(tier.random(f"progress {way}"), tier.count(quick=42, full=200, soak=5000))
    runtime = Workflow("batch", store="memory://progress")._runtime

    def drawn_bar(text: str) -> str:
        monkeypatch.setattr(sys, "stderr", screen := _Terminal())
        display = reporter(text, runtime, "apply", 2) if way == "label" else reporter(True, runtime, text, 2)
        display.advance(ok=True)
        display.advance(ok=False)
        display.close()
        return screen.getvalue()

    plain = drawn_bar(PLAIN)
    assert plain.count("\r") >= 2
    for text in texts:
        said = drawn_bar(text)
        assert not CONTROLS.search(said.replace("\r", "").replace("\x1b[K", "")), ascii(said)
        assert (said.count("\r"), said.count("\n")) == (plain.count("\r"), plain.count("\n")), ascii(said)
    figures.add(ROW, "progress labels", len(texts))


def test_progress_cells_are_text(tier: Tier, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label in a notebook's cell adds no element to it, and no control character."""
    texts = drawn(tier.random("progress cells"), tier.count(quick=42, full=200, soak=5000))
    runtime = Workflow("batch", store="memory://progress")._runtime
    shown: list[dict[str, str]] = []

    def display(bundle: dict[str, str], **_: bool) -> Any:
        shown.append(bundle)
        return SimpleNamespace(update=lambda bundle, **_: shown.append(bundle))

    shell = SimpleNamespace(kernel=object())
    notebook = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    for text in texts:
        reporter(text, runtime, "apply", 2).close()
    assert len(shown) == 2 * len(texts)
    for cell in shown:
        assert re.findall("<[^>]*>?", cell["text/html"]) == ['<progress max="2" value="0">', "</progress>"]
        assert not CONTROLS.search(cell["text/html"] + cell["text/plain"]), ascii(cell)
    figures.add(ROW, "progress cells", len(texts))


# Errors and logs


def _filled(value: Any, text: str) -> Any:
    """A copy of an error, or of what it holds, with *text* in the place of each of its texts."""
    if isinstance(value, str):
        return text
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, text) for item in value)
    if isinstance(value, BaseException):
        return type(value)(*(_filled(item, text) for item in value.args))
    if attrs.has(type(value)):
        fields = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
        return attrs.evolve(
            value, **{name: _filled(item, text) for name, item in fields.items() if not isinstance(item, Enum)}
        )
    return value


@pytest.mark.parametrize(("error", "_", "__"), test_errors.SAMPLES, ids=test_errors.NAMES)
def test_errors_and_their_log_records_are_texts(
    error: Any, _: object, __: object, tier: Tier, figures: Figures
) -> None:
    """The text of an error, its notes and what is logged of it are one line; its attributes are as they came."""
    shown, log = io.StringIO(), logging.getLogger("iso_orchestrator")
    handler = logging.StreamHandler(shown)
    log.addHandler(handler)
    texts = [
        text
        for text in drawn(tier.random(f"errors {error}"), tier.count(quick=60, full=200, soak=2000))
        if text.strip()
    ]
    try:
        for text in texts:
            hostile, other = _filled(error, text), ValueError()
            assert all(item == text for item in vars(hostile).values() if type(item) is str)
            with suppressed_as_note(other, text):
                raise hostile
            for said in (str(hostile), *other.__notes__):
                assert lines_without_controls(said) == 0
            log.warning("%s: %s", text, hostile)
            try:
                raise ValueError(text)
            except ValueError:
                log.exception(text)
    finally:
        log.removeHandler(handler)
    assert lines_without_controls(shown.getvalue()) > 3 * len(texts)
    figures.add(ROW, "texts in errors and logs", len(texts))
