"""The screens of the command line on real records: how wide they are, in a pipe and in a terminal, and their keys."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import DEADLINE, run_python, wait_until
from support_processes import child

from iso_orchestrator.store import find_store, store_in_use
from iso_orchestrator.text import width
from iso_orchestrator.views.cli import main
from iso_orchestrator.views.screen import _Screen

REPOSITORY = Path(__file__).parents[2]
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
LONG = "the cart forgets its coupon when two tabs are open at once, and nobody notices"

# A run that is killed with steps in hand, and the one that resumes it: retries, a limit, failures, a command.
BATCH = f"""
import os, sys, threading, time
from datetime import UTC, datetime, timedelta
from iso_orchestrator import CommandError, Limited, Retry, Workflow

is_first = sys.argv[2] == "first"
workflow = Workflow("nightly reviews", dir=sys.argv[1])
names = [f"{{part}}:{{text}}" for part in ("shop", "日本語サイト", "docs") for text in (
    {LONG!r}, "絵文字 {FAMILY} で幅がずれる", "\\u202etxt.exe <b>\\x1b[31m", "e\\u0301te\\u0301")]
began = threading.Barrier(3)
met = []

@workflow.for_each(max_parallel=3, stop_on_error=False, progress=False)
@workflow.step(name="review:{{name}}", retry=Retry(2, wait=0.05), limit_key="claude")
def review(name):
    if is_first and "docs" in name:
        began.wait(10)
        os.kill(os.getpid(), 9)
    if name.startswith("docs:the") and not met:
        met.append(name)
        raise Limited(datetime.now(UTC) + timedelta(seconds=1), "claude")
    if "the cart" in name:
        raise ValueError(f"no such thing: {{name}}")
    time.sleep(0.01)
    return name

with workflow:
    review(names)
    try:
        workflow.command(name="build")(lambda: ["sh", "-c", "echo out; echo 'no rule to make {LONG}' >&2; exit 2"])()
    except CommandError:
        pass
"""

COMMANDS = [
    "list",
    "show",
    "show --steps",
    "show --failed",
    "show --events 30",
    "show #1",
    "show build",
    "show #2 --attempt 1",
    "top --once",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workflow with every outcome there is."""
    root = tmp_path_factory.mktemp("screens")
    with run_python(BATCH, root, "first") as first:
        assert first.process.wait(DEADLINE) == -9
    with run_python(BATCH, root, "second") as second:
        second.end()
    return root


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_asked_for(
    root: Path, command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe each line fits into `COLUMNS`, and has no escape byte and no control character."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["--dir", str(root), *command.split()]) == 0
    out = capsys.readouterr().out
    assert out
    for line in out.splitlines():
        assert width(line) <= columns, line
        assert line.isprintable() or FAMILY[:2] in line, ascii(line)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)


@pytest.mark.slow
def test_the_overview_has_all_that_happened(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` tells of runs, deaths, attempts, waits, what was kept, the workers' lanes, failures and groups."""
    assert main(["--dir", str(root), "show"]) == 0
    out = capsys.readouterr().out
    head, *parts = out.split("\n\n")
    assert head.splitlines()[0] == "nightly reviews  ✕ completed, 4 failed"
    assert re.search(r" UTC, .*, 2 runs, 1 died", " ".join(head.splitlines()))
    assert re.search(r"^9 of 13 steps done, \d+ attempts: 6 failed and tried again, 3 interrupted$", head, re.M)
    assert re.search(r"^waited .*: .*limits .* s", head, re.MULTILINE)
    assert re.search(r"^resumed: 6 steps, .* of work were kept, .* was lost$", head, re.MULTILINE)
    lanes = parts[0].splitlines()
    assert [line[:8] for line in lanes] == ["        ", "worker 1", "worker 2", "worker 3"]
    assert all(sign in parts[0] for sign in "━✕†░")
    assert parts[1].startswith("failed (4)\n✕ #1 ")
    assert parts[2].splitlines()[1].split()[:5] == ["review", "12", "9", "3", "22"]


@pytest.mark.slow
def test_an_ascii_terminal_has_signs_too(root: Path) -> None:
    """Where the encoding is not UTF-8, signs and lines are ASCII, and no line is wider."""
    for command in ("show --steps", "show #1", "top --once"):
        found = _start(root, *command.split(), env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"})
        assert found.stdout.isascii()
        assert max(map(len, found.stdout.splitlines())) <= 80
    assert "worker 1 " in (out := _start(root, "show", env={"PYTHONIOENCODING": "ascii"}).stdout)
    assert "x completed, 4 failed" in out
    assert "\nx #1 " in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "is_painted"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_a_pipe_has_no_escape_byte(root: Path, env: dict[str, str], is_painted: bool) -> None:
    """Unless the environment forces colours, and even then if it also forbids them."""
    for command in ("show", "list", "show #1"):
        assert ("\x1b[" in _start(root, *command.split(), env=env).stdout) is is_painted


def _start(root: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iso_orchestrator", "--dir", str(root), *words],
        env={**_environment(), **env},
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        check=True,
    )


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR", "TERM"}}
    return {**kept, "PYTHONPATH": path, "LC_ALL": "C.UTF-8"}


# In a real terminal


class Tmux:
    """A terminal of a given size, in which a shell command runs."""

    def __init__(self, folder: Path, columns: int, rows: int) -> None:
        self._socket = str(folder / f"tmux-{columns}x{rows}")
        self._size = [str(columns), str(rows)]

    def start(self, command: str) -> None:
        """Run *command*; the terminal stays when it has ended."""
        columns, rows = self._size
        words = ["-u", "-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", rows, f"{command}; exec sleep 600"]
        self._call(*words)

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *words],
            env=_environment(),
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE,
            check=True,
        )
        return done.stdout

    def keys(self, *names: str) -> None:
        self._call("send-keys", *names)

    def text(self, *options: str) -> str:
        """What is shown, and with `-S -` what went before."""
        return self._call("capture-pane", "-p", *options)

    def wait_for(self, pattern: str) -> str:
        wait_until(lambda: re.search(pattern, self.text(), re.MULTILINE), what=f"{pattern!r} in:\n{self.text()}")
        return self.text()

    def is_on_alternate_screen(self) -> bool:
        return self._call("display-message", "-p", "#{alternate_on}").strip() == "1"

    def close(self) -> None:
        self._call("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[int, int], Tmux]]:
    """Make a terminal with so many columns and rows."""
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    made = list[Tmux]()

    def make(columns: int, rows: int) -> Tmux:
        made.append(Tmux(tmp_path, columns, rows))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _shell(root: Path, command: str) -> str:
    return shlex.join([sys.executable, "-m", "iso_orchestrator", "--dir", str(root), *command.split()])


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal(root: Path, columns: int, terminal: Callable[[int, int], Tmux]) -> None:
    """The terminal breaks no line of any command, with wide characters and joined emoji too."""
    screen = terminal(columns, 400)
    commands = [_shell(root, command) for command in COMMANDS]
    screen.start("; ".join([*commands, "echo all shown"]))
    screen.wait_for("^all shown$")
    lines = screen.text().rstrip().splitlines()
    joined = screen.text("-J").rstrip().splitlines()  # with lines that were broken in one
    assert lines == [line.rstrip() for line in joined]
    shown = screen.text("-e")
    assert "\x1b[36m" in shown
    assert "日本語" in shown
    # The cells of a table begin at one column each, however wide the terminal finds an emoji.
    steps = screen.text().partition("result or error\n")[2].partition("\n\n")[0].splitlines()
    ends = {_column_of(line, match.end()) for line in steps if (match := re.search(r"  [\d.]+ m?s(?=  |$)", line))}
    assert len(ends) == 1


def _column_of(line: str, index: int) -> int:
    return width(line[:index].replace(FAMILY, "日"))  # this terminal shows the three as one


RUNNING = """
from iso_orchestrator import Retry

def item(number):
    return workflow.run_step(f"ask:{number} 日本語", lambda: (say("go"), hear()))

workflow.command(name="build", timeout=60)
with workflow:
    threading.Thread(target=lambda: workflow.command(name="build")(
        lambda: ["sh", "-c", "echo compiling the last file; exec sleep 60"])(), daemon=True).start()
    workflow.run_for_each(range(40), item, max_parallel=30, progress=False)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A folder with a workflow that runs 30 steps and a command."""
    with child(RUNNING, tmp_path) as process:
        for _ in range(30):
            assert process.line() == "go"
        yield tmp_path
        process.kill()


@pytest.mark.slow
def test_top_fits_and_has_keys(running: Path, terminal: Callable[[int, int], Tmux]) -> None:
    """`top` shows as many rows as fit; a step is chosen, its log looked at; `q` leaves the terminal as it was."""
    screen = terminal(160, 20)
    screen.start(f"stty -g; {_shell(running, 'top --every 0.1')}; echo ended with $?; stty -g")
    shown = screen.wait_for(r"^q quit  ↑↓ choose  l log  w why  s stop  f failures$")
    assert screen.is_on_alternate_screen()
    lines = shown.rstrip().splitlines()
    assert len(lines) == 20
    assert re.match(r"w  ● pid \d+, ", lines[0])
    assert re.match(r"0/\d+ ─+", lines[1])
    assert re.fullmatch(r"\+\d+ more", lines[17].strip())
    assert lines[18] == ""
    first = re.search(r"^> ?● +(\S+)", shown, re.MULTILINE)
    assert first
    screen.keys("Down")
    screen.wait_for(r"^ ●  +" + re.escape(first[1]))
    for _ in range(30):
        marked = re.findall(r"^>●  (\S+) ", screen.wait_for(r"^>●  \S+ "), re.MULTILINE)
        if marked == ["build"]:
            break
        screen.keys("Down")
        screen.wait_for(rf"^>●  (?!{marked[0]} )\S+ ")
    screen.wait_for(r"^>●  build .* compiling the last file$")
    screen.keys("l")
    assert "● build\n" in screen.wait_for(r"^compiling the last file$")
    screen.keys("x")
    screen.wait_for(r"^q quit")
    screen.keys("w")
    assert "● running, attempt 1 " in screen.wait_for("held back +by nothing: it runs$")
    screen.keys("x")
    screen.wait_for(r"^q quit")
    screen.keys("f")
    screen.wait_for("^no step has failed$")
    screen.keys("x")
    screen.wait_for(r"^q quit")
    screen.keys(*["Down"] * 30)
    screen.wait_for(r"^>●  (?:ask:\d+ 日本語|build) .*\n\+\d+ more$")  # the last one is in view
    screen.keys("q")
    _check_restored(screen, 0)


def test_lines_are_cleared_before_they_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells are placed by escape sequences, so that what was between them at the last look would stay."""
    screen = _Screen(store_in_use(find_store(None, str(tmp_path))), {})
    screen.draw([])
    first, *lines = capsys.readouterr().out.split("\r\n")
    assert first == "\x1b[H\x1b[Knothing is running"
    assert lines and all(line.startswith("\x1b[K") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_of_top_is_wider_than_the_terminal(
    running: Path, columns: int, terminal: Callable[[int, int], Tmux]
) -> None:
    """Its terminal breaks no line, with wide characters in names, and shows the keys at the foot."""
    screen = terminal(columns, 24)
    screen.start(_shell(running, "top --every 0.1"))
    screen.wait_for(r"^q quit  ↑↓ choose  l log  w why  s stop  f failures$")
    lines = screen.text().rstrip().splitlines()
    assert len(lines) == len(screen.text("-J").rstrip().splitlines())  # -J joins the lines that the terminal broke
    assert any("日本語" in line for line in lines)
    assert max(map(width, lines)) <= columns


@pytest.mark.slow
@pytest.mark.parametrize("way", ["C-c", "SIGTERM"])
def test_the_terminal_is_put_back(running: Path, terminal: Callable[[int, int], Tmux], way: str) -> None:
    """After Ctrl-C and after SIGTERM the terminal is as it was: echo, cursor, and what was on it."""
    screen = terminal(160, 20)
    pid = running / "pid"
    top = f"sh -c 'echo $$ > {pid}; exec {_shell(running, 'top')}'"
    screen.start(f"stty -g; {top}; echo ended with $?; stty -g")
    screen.wait_for("^q quit")
    if way == "SIGTERM":
        os.kill(int(pid.read_text()), 15)
    else:
        screen.keys("C-c")
    _check_restored(screen, 143 if way == "SIGTERM" else 130)


def _check_restored(screen: Tmux, code: int) -> None:
    shown = screen.wait_for(rf"^ended with {code}$[^$]*^\S*:\S*$").split()
    assert not screen.is_on_alternate_screen()
    modes = [word for word in shown if re.fullmatch(r"[0-9a-f]+(:[0-9a-f]+){10,}", word)]
    assert len(modes) == 2
    assert modes[0] == modes[1]
