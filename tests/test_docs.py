"""The README and the pages: each example runs as it stands, and prints what the page shows.

The rules for a page:

- The ``python`` blocks under one heading run in order, in one namespace and one fresh folder. A block whose first line
  is ``# NAME.py`` is written to that file instead, for the commands below it.
- A ``text`` block right after a ``python`` block is what that prints.
- A ``console`` block has commands after ``$``, each with its output. The line ``Killed`` says that the process is
  killed as soon as it has printed the lines above.
- ``...`` in an output stands for any text. Times need not be the same, and paths are shown from the folder.
- ``claude``, ``codex`` and ``opencode`` are the package's stand-in agent.
"""

from __future__ import annotations

import doctest
import logging
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import test_architecture
from support_api import FUNCTIONS, METHODS, options

import iso_orchestrator
from iso_orchestrator import Retry, Workflow
from iso_orchestrator.agents import Agent
from iso_orchestrator.store import STORE_URLS
from iso_orchestrator.views.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "iso_orchestrator/docs"
PAGES = {page.name: page for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
LINKED = [*PAGES.values(), ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", ROOT / "tests/BUGS.md"]


@attrs.frozen
class Block:
    """A fenced block: its language, its text, the line of its fence, and whether only blank lines are before it."""

    language: str
    text: str
    line: int
    is_next: bool


@attrs.frozen
class Section:
    """What is under one heading."""

    page: str
    heading: str
    blocks: list[Block]


def sections() -> Iterator[Section]:
    """All sections of all pages that have something to run."""
    for page, path in PAGES.items():
        section = Section(page, "", [])
        for section in parse(page, path.read_text("utf-8")):
            if any(block.language in ("python", "console") for block in section.blocks):
                yield section


def parse(page: str, text: str) -> list[Section]:
    """The sections of a page."""
    found = [Section(page, "", [])]
    language, lines, start, is_next = None, [], 0, False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```") and language is None:
            language, lines, start = line.removeprefix("```"), [], number
        elif line.startswith("```"):
            found[-1].blocks.append(Block(language or "", "".join(lines), start, is_next))
            language, is_next = None, True
        elif language is not None:
            lines.append(f"{line}\n")
        elif line.startswith("#"):
            found.append(Section(page, line.lstrip("# "), []))
            is_next = False
        elif line.strip():
            is_next = False
    assert language is None, f"{page}: the block of line {start} does not end"
    return found


@pytest.fixture
def own_logging() -> Iterator[None]:
    """An example may set logging up: the handlers of other tests come back after it."""
    handlers, level = logging.root.handlers, logging.root.level
    logging.root.handlers = []
    yield
    logging.root.handlers = handlers
    logging.root.setLevel(level)


@pytest.mark.slow
@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("section", list(sections()), ids=lambda section: f"{section.page}: {section.heading}")
def test_examples_run(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each example runs as it stands, and prints what the page shows."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{programs(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STAND_IN_SECONDS", "0.05")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    printed = ""
    for before, block in zip([None, *section.blocks], section.blocks, strict=False):
        where = f"{section.page}:{block.line}"
        if block.language == "console":
            run_console(block.text, where)
        elif block.language == "text" and block.is_next and before is not None and before.language == "python":
            same(block.text, printed, where)
        elif block.language == "python" and (name := re.match(r"# ([\w.]+\.py)\n", block.text)):
            Path(name[1]).write_text(block.text)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, PAGES[section.page], "exec"), vars(module))
            printed = capsys.readouterr().out


def programs(folder: Path) -> Path:
    """A folder of the programs that the pages name."""
    folder.mkdir()
    lines = {"python": sys.executable, "iso-orchestrator": f"{sys.executable} -m iso_orchestrator"} | {
        agent: f"{sys.executable} -m iso_orchestrator.agents.stand_in {agent}"
        for agent in ("claude", "codex", "opencode")
    }
    for name, line in lines.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        program.chmod(0o755)
    return folder


def run_console(text: str, where: str) -> None:
    """Run the commands of a block one after the other, and compare what they print."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        if wanted.rstrip("\n").endswith("Killed"):
            wanted = wanted.rstrip("\n").removesuffix("Killed")
            same(wanted, output_until_killed(command, wanted.count("\n")), where)
        else:
            done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            same(wanted, done.stdout, where)


def output_until_killed(command: str, lines: int) -> str:
    """What a program has printed after so many lines, when it is killed."""
    process = subprocess.Popen(f"exec {command}", shell=True, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = "".join(process.stdout.readline() for _ in range(lines))
    process.kill()
    printed += process.communicate()[0]
    assert process.returncode == -signal.SIGKILL
    return printed


def same(wanted: str, got: str, where: str) -> None:
    wanted, got = comparable(wanted), comparable(got.replace(f"{Path.cwd()}/", ""))
    assert doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS), f"{where} shows\n{wanted}\nbut\n{got}"


def comparable(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "<a time>", "\n".join(lines)) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_named_commands_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each `iso-orchestrator COMMAND` that a page names is one."""
    for name in set(re.findall(r"(?<![\w/-])iso-orchestrator ([a-z]+)", code(PAGES[page].read_text("utf-8")))):
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0, name


def code(text: str) -> str:
    """What a page shows as code, inline and in blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each link to a file of this repository finds it, and the heading in it."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found.read_text("utf-8")), target


def anchors(text: str) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short() -> None:
    """The README has at most 135 lines, and one command for the tests."""
    lines = PAGES["README.md"].read_text("utf-8").splitlines()
    assert len(lines) <= 135
    assert sum(line.startswith("python3 -m venv") and "pytest" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("what", "names"),
    list(
        {
            **{f"the options of {name}": options(method) for name, method in METHODS.items()},
            **{kind.__name__: {field.name for field in attrs.fields(kind)} for kind in (Retry, Agent)},
            "the options of Workflow": options(Workflow),
            "methods": {name for name in dir(Workflow) if not name.startswith("_")},
            "functions": set(FUNCTIONS),
            "errors": {name for name in iso_orchestrator.__all__ if name.endswith("Error")},
        }.items()
    ),
)
def test_guide_names_everything(what: str, names: set[str]) -> None:
    """The guide explains each option, method, function and error."""
    words = set(re.findall(r"\w+", code(PAGES["guide.md"].read_text("utf-8"))))
    assert names - words == set()


def test_guide_shows_the_url_of_each_store() -> None:
    """The guide has each kind of URL that a store is found by."""
    assert [url for url in STORE_URLS if url not in code(PAGES["guide.md"].read_text("utf-8"))] == []


def test_architecture_lists_the_rooms() -> None:
    """The table of the architecture page has each folder of the package, in the order of imports."""
    rows = re.findall(r"^\| ((?:`[\w./]+`(?:, )?)+) \|", PAGES["architecture.md"].read_text("utf-8"), re.MULTILINE)
    named = [name.rstrip("/").removesuffix(".py") for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    rooms = [name for name in named if name in test_architecture.ROOMS]
    assert rooms == [room for room in test_architecture.ROOMS if room in rooms]
    folders = {path.parent.name for path in DOCS.parent.glob("*/__init__.py")}
    assert folders <= set(rooms)


def test_architecture_names_files_that_exist() -> None:
    """Each file that the architecture page names exists, unless it says that the file is new."""
    text = PAGES["architecture.md"].read_text("utf-8")
    for path, new in re.findall(r"`([\w./]+/[\w.]+\.(?:py|md))`( \(new\))?", text):
        assert new or (DOCS.parent / path).exists() or (ROOT / path).exists(), path


def test_bugs_name_tests_that_exist() -> None:
    """Each test file that the list of bugs names exists."""
    text = (ROOT / "tests/BUGS.md").read_text("utf-8").replace("`R/", "`tests/reliability/")
    paths = set(re.findall(r"tests/[\w/]+\.py", text))
    assert paths
    assert {path for path in paths if not (ROOT / path).exists()} == set()
