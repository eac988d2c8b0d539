"""One run of a command line, in real processes."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import time
from ast import literal_eval
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, Child, run_python, wait_until
from support_commands import FOREVER, command_run, find, kill_all, python, shell, wait_for_file

from iso_orchestrator import (
    Command,
    CommandError,
    CommandIdleError,
    CommandStartError,
    CommandTimeoutError,
    StepTimeoutError,
    StoreError,
)
from iso_orchestrator.checks import unique_name
from iso_orchestrator.commands.model import as_command
from iso_orchestrator.commands.output import LONGEST_LINE, TAIL, LogReader, OutputFiles
from iso_orchestrator.store.log_files import LogFile
from iso_orchestrator.system.processes import TAG_VARIABLE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the programs of these tests are for a POSIX system")

on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc")
BUSY = "while :; do sleep 0.01; done"


# The command line


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"args": "codex exec"}, TypeError, "use a list, or shlex.split"),
        ({"args": b"codex"}, TypeError, "use a list"),
        ({"args": {"codex"}}, TypeError, "must be a list of str, not set"),
        ({"args": None}, TypeError, "must be a list of str, not NoneType"),
        ({"args": []}, ValueError, "must have a program"),
        ({"args": [""]}, ValueError, "program must not be empty"),
        ({"args": ["codex", 3]}, TypeError, r"args\[1\] of a command line must be a str or a path, not int"),
        ({"args": ["codex", None]}, TypeError, r"args\[1\]"),
        ({"args": ["codex", "a\0b"]}, ValueError, r"args\[1\] of a command line has a NUL"),
        ({"args": ["codex", "\ud800"]}, ValueError, r"args\[1\] of a command line has lone surrogates"),
        ({"args": ["a"], "input": 3}, TypeError, "input must be a str or bytes"),
        ({"args": ["a"], "cwd": 3}, TypeError, "cwd must be a str or a path"),
        ({"args": ["a"], "cwd": "a\0"}, ValueError, "cwd has a NUL"),
        ({"args": ["a"], "env": ["A=1"]}, TypeError, "env must be a mapping"),
        ({"args": ["a"], "env": {"A": 1}}, TypeError, "env must be a mapping of str to str"),
        ({"args": ["a"], "env": {"A=B": "1"}}, ValueError, "'=' in it"),
        ({"args": ["a"], "env": {"A": "1\0"}}, ValueError, "has a NUL"),
    ],
)
def test_what_no_program_can_be_given_raises_at_once(
    options: Mapping[str, Any], error: type[Exception], words: str
) -> None:
    """The error names the place, and the next step."""
    with pytest.raises(error, match=words):
        Command(**options)


def test_a_list_becomes_a_command() -> None:
    """Its paths become str; a `Command` stays what it is."""
    assert as_command(["cat", Path("/a")]) == Command(("cat", "/a"))
    command = Command(["cat"], input="text", cwd=Path("/"), env={"A": "1"})
    assert as_command(command) is command
    assert (command.input, command.cwd) == (b"text", "/")
    with pytest.raises(TypeError, match="use a list"):
        as_command("cat /a")


def test_a_command_is_shown_without_its_input_and_environment() -> None:
    """Neither a long prompt nor a secret gets into messages."""
    assert "secret" not in repr(Command(["cat"], input="secret", env={"KEY": "secret"}))


# Results


def test_a_result_has_all_of_a_run(tmp_path: Path) -> None:
    """It has arguments, exit code, seconds, the end of the output, and where all of the output is."""
    run = command_run(tmp_path, shell("echo out; echo err >&2; sleep 0.05", "x"))
    result = run.run()
    assert result.args == list(run.command.args)
    assert (result.exit_code, result.stdout, result.stderr, result.parsed) == (0, "out\n", "err\n", None)
    assert 0.05 <= result.duration < DEADLINE
    assert result.log_path == run.log_path
    assert Path(result.log_path).read_text() == "out\n"
    assert Path(f"{result.log_path}.stderr").read_text() == "err\n"
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [("echo no rights >&2; exit 3", 3, "exit code 3.*'no rights'"), ("kill -KILL $$", -9, "signal 9.*printed nothing")],
)
def test_another_exit_code_is_in_the_result(tmp_path: Path, code: str, exit_code: int, words: str) -> None:
    """The error that is made of it has its last line, and the path of its output."""
    result = command_run(tmp_path, shell(code)).run()
    assert result.exit_code == exit_code
    with pytest.raises(CommandError, match=rf"{words}.*{tmp_path / 'out.log'}"):
        raise CommandError("step", result)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (Command(["no-such-program"]), "no such executable program on the PATH"),
        (Command(["no-such-program"], env={"PATH": "/nowhere"}), "on the PATH '/nowhere'"),
        (Command(["/no/such/program"]), "No such file"),
        (Command([__file__]), "Permission denied"),
        (Command(["true"], cwd="/no/such/folder"), "its folder '/no/such/folder' does not exist"),
        (Command(["/bin/sh", "-c", "x" * 3_000_000]), "give long texts as input="),
    ],
)
def test_what_cannot_be_started_raises(tmp_path: Path, command: Command, words: str) -> None:
    """The error is an OSError, and names the next step."""
    with pytest.raises(CommandStartError, match=words) as caught:
        command_run(tmp_path, command).run()
    assert isinstance(caught.value, OSError)
    assert caught.value.program == command.args[0]


# Input, folder, environment, signals


def test_standard_input_is_closed_unless_given(tmp_path: Path) -> None:
    """A program that reads all of it does not wait."""
    assert command_run(tmp_path, ["cat"]).run().stdout == ""


@pytest.mark.parametrize(
    "text", ["Grüße\n", b"\xff\x00", "", "line\n" * 500_000], ids=["text", "bytes", "empty", "long"]
)
def test_input_is_read_to_its_end(tmp_path: Path, text: str | bytes) -> None:
    """It may be long, and the program may write much before it reads."""
    code = "import sys; sys.stdout.write('x' * 1_000_000); sys.stdout.flush(); data = sys.stdin.buffer.read(); "
    code += "open(sys.argv[1], 'wb').write(data)"
    command_run(tmp_path, Command(python(code, tmp_path / "read"), input=text)).run()
    assert (tmp_path / "read").read_bytes() == (text.encode() if isinstance(text, str) else text)
    assert {path.name for path in tmp_path.iterdir()} == {"out.log", "out.log.stderr", "read"}


def test_folder_and_environment_are_its_own(tmp_path: Path) -> None:
    """The environment that is given is all of it, except for the process tag."""
    command = Command(shell("pwd; env"), cwd=tmp_path, env={"A": "1", "PATH": os.environ["PATH"]})
    run = command_run(tmp_path, command, if_runner_dies="leave")
    folder, *variables = run.run().stdout.splitlines()
    assert folder == str(tmp_path)
    assert {f"{TAG_VARIABLE}={run.tag}", "A=1"} <= set(variables)
    assert {variable.partition("=")[0] for variable in variables} - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "A",
        "PATH",
        TAG_VARIABLE,
    }


def test_it_leads_a_session_of_its_own(tmp_path: Path) -> None:
    """A Ctrl-C in the terminal does not reach it directly."""
    result = command_run(tmp_path, python("import os; print(os.getsid(0) == os.getpid())")).run()
    assert result.stdout == "True\n"


@on_linux
def test_it_has_no_descriptors_but_the_standard_ones(tmp_path: Path) -> None:
    """It has not even one that this process lets its children inherit."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        os.set_inheritable(fd, True)
        shown = command_run(tmp_path, shell("ls /proc/$$/fd")).run().stdout.split()
    finally:
        os.close(fd)
    assert {name for name in shown if int(name) < 10} == {"0", "1", "2"}  # shells keep higher ones for themselves


@on_linux
@pytest.mark.parametrize("program", ["grep", "/bin/grep", "./grep"])
def test_all_signals_are_at_their_defaults(tmp_path: Path, program: str) -> None:
    """Signals that the parent ignores or blocks, as a shell's background job does, are at their defaults too."""
    code = """
import os, signal, sys
from support_commands import *
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
env = {"PATH": os.environ["PATH"], "odd.name": "1"}
grep = [sys.argv[2], "-E", "SigBlk|SigIgn", "/proc/self/status"]
print(command_run(Path(sys.argv[1]), Command(grep, cwd="/bin", env=env)).run().stdout.split())
print(sorted(command_run(Path(sys.argv[1]), Command(["env"], env=env)).run().stdout.splitlines()[-3:]))
try:
    command_run(Path(sys.argv[1]), ["no-such-program"]).run()
except Exception as error:
    print(type(error).__name__)
"""
    with run_python(code, tmp_path, program, env={"LC_ALL": "C"}) as child:
        blocked, ignored = (int(digits, 16) for digits in literal_eval(child.line())[1::2])
        assert [number for number in signal.valid_signals() if (blocked | ignored) >> (number - 1) & 1] == []
        line = child.line()
        assert "odd.name=1" in line
        assert "LC_CTYPE" not in line
        assert child.line() == "CommandStartError"
        child.end()


# Output


def test_output_is_appended(tmp_path: Path) -> None:
    """A result has the output of its run alone; only the owner may read the files."""
    run = command_run(tmp_path, ["echo", "first"])
    run.run()
    assert command_run(tmp_path, ["echo", "second"]).run().stdout == "second\n"
    assert Path(run.log_path).read_text() == "first\nsecond\n"
    for path in (run.log_path, f"{run.log_path}.stderr"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize("name", ["out.log", "out.log.stderr"])
def test_a_planted_file_is_not_written_to(tmp_path: Path, name: str) -> None:
    """A symbolic link, a hard link or a pipe in the place of a log is refused, and nothing is started."""
    target = tmp_path / "target"
    target.write_text("untouched")
    for plant in (lambda path: path.symlink_to(target), lambda path: path.hardlink_to(target), os.mkfifo):
        plant(tmp_path / name)
        with pytest.raises(StoreError):
            command_run(tmp_path, shell(f"touch {tmp_path}/started")).run()
        (tmp_path / name).unlink()
    assert target.read_text() == "untouched"
    assert not (tmp_path / "started").exists()


def test_a_result_has_the_end_of_long_output(tmp_path: Path) -> None:
    """It has the last 64 KiB from a whole character on, and the file has all."""
    result = command_run(
        tmp_path, python("import sys; sys.stdout.buffer.write('ä€😀'.encode() * 20_000 + b'end')")
    ).run()
    assert TAIL - 4 <= len(result.stdout.encode()) <= TAIL
    assert result.stdout.endswith("ä€😀end")
    assert "\\" not in result.stdout
    assert Path(result.log_path).stat().st_size == 180_003


@on_linux
@pytest.mark.parametrize("lines", [None, []])
def test_the_middle_of_a_long_log_takes_no_space_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str] | None
) -> None:
    """Neither with nor without a reader of lines, who is told what it has missed, and misses no end."""
    monkeypatch.setattr("iso_orchestrator.commands.output._SLACK", 1 << 20)
    monkeypatch.setattr("iso_orchestrator.commands.output._LONGEST_LOOK", 0.01)
    go, log = tmp_path / "go", tmp_path / "out.log"

    def beat(_: int, size: int, __: str) -> None:
        if size > 40_000_000 and log.stat().st_blocks * 512 < 8_000_000:
            go.touch()

    run = command_run(
        tmp_path,
        shell('seq 6000000; while ! [ -e "$1" ]; do sleep 0.01; done; echo over', go),
        max_log_bytes=1 << 20,
        beat_every=0.02,
        on_beat=beat,
        on_line=None if lines is None else lines.append,
        timeout=DEADLINE,
    )
    assert run.run().stdout.endswith("6000000\nover\n")
    assert 1 << 20 < log.stat().st_size < (1 << 20) + 100
    if lines is not None:
        assert lines[-2:] == ["6000000", "over"]
        read = sum(len(line) + 1 for line in lines if not line.startswith("["))
        missed = sum(int(line.split()[1]) for line in lines if line.startswith("["))
        assert abs(read + missed - 46_888_901) < 100  # a line that is cut has one end more
        assert not any("\0" in line for line in lines)


@on_linux
def test_a_log_that_a_killed_runner_left_is_read_without_its_middle(tmp_path: Path) -> None:
    """A line says how much is missing."""
    with closing(OutputFiles(str(tmp_path / "log"), 1 << 18)) as files:
        os.write(files.stdout.fd, b"".join(b"%015d\n" % number for number in range(2 << 17)))
        files.stdout.free_middle(slack=1)
        with closing(LogReader(LogFile.append(files.stdout.path))) as log:
            lines = [*log.lines()]
            assert log.text() == "\n".join(lines).replace("\n[", "\n\n[") + "\n"
    assert (lines[0], lines[-1]) == (f"{0:015d}", f"{(2 << 17) - 1:015d}")
    assert [line for line in lines if not line.isdigit()] == [
        f"[iso-orchestrator: {(4 << 20) - (1 << 17) - (1 << 20)} bytes of the output were left out here]"
    ]


def test_bytes_that_are_no_utf_8_are_spelled_out(tmp_path: Path) -> None:
    """They can be shown and recorded."""
    lines: list[str] = []
    args = python(r"import sys; sys.stdout.buffer.write(b'caf\xe9 \xc3\xa9\n\x80')")
    result = command_run(tmp_path, args, on_line=lines.append).run()
    assert result.stdout == "caf\\xe9 é\n\\x80"
    assert lines == ["caf\\xe9 é", "\\x80"]
    result = command_run(tmp_path, [*python("import sys; print(len(sys.argv[1]))"), os.fsdecode(b"\xe9")]).run()
    result.args[-1].encode()
    assert result.args[-1] == "\\udce9"


def test_lines_come_as_they_are_written(tmp_path: Path) -> None:
    """They come while the program runs, also the last one without an end, and none is lost between two looks."""
    lines: list[str] = []
    code = f"echo first; while ! [ -e {tmp_path}/go ]; do sleep 0.01; done; echo; printf 'a\\r\\nlast'"

    def consume(line: str) -> None:
        lines.append(line)
        (tmp_path / "go").touch()

    command_run(tmp_path, shell(code), on_line=consume).run()
    assert lines == ["first", "", "a", "last"]


def test_a_very_long_line_is_cut(tmp_path: Path) -> None:
    """The next line is whole."""
    lines: list[str] = []
    code = f"import sys; sys.stdout.write('x' * {3 * LONGEST_LINE} + '\\nnext\\n')"
    command_run(tmp_path, python(code), on_line=lines.append).run()
    assert [len(line) for line in lines] == [LONGEST_LINE, 4]


def test_a_program_that_writes_faster_than_it_is_read_is_ended_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that never cease do not delay its time limit."""
    monkeypatch.setattr("iso_orchestrator.commands.process._LOOK", 0.1)
    began = time.monotonic()
    code = "while :; do echo; echo; echo; echo; echo; echo; echo; echo; sleep 0.001; done"
    run = command_run(tmp_path, shell(code), on_line=lambda _: time.sleep(0.01), timeout=0.2)
    with pytest.raises(CommandTimeoutError):
        run.run()
    assert time.monotonic() - began < DEADLINE / 2


def test_beats_show_the_progress(tmp_path: Path) -> None:
    """A beat has the bytes so far, the last line, and the process id."""
    beats: list[tuple[int, int, str]] = []
    code = f"echo one; printf 'two ' ; echo err >&2; while ! [ -e {tmp_path}/go ]; do sleep 0.01; done; echo $$"

    def beat(*what: Any) -> None:
        beats.append(what)
        if what[1] == 12:
            (tmp_path / "go").touch()

    result = command_run(tmp_path, shell(code), on_beat=beat, beat_every=0.02).run()
    assert {line for _, size, line in beats if size == 12} == {"two"}
    assert str(beats[0][0]) == result.stdout.split()[-1]


# The end


def test_what_it_leaves_in_the_background_is_ended(tmp_path: Path) -> None:
    """A background process with the output open is not waited for, in any session, and is ended."""
    run = command_run(
        tmp_path, shell(f"sleep {FOREVER} & setsid sleep {FOREVER} & (setsid sleep {FOREVER} &) ; echo over")
    )
    began = time.monotonic()
    assert run.run().stdout == "over\n"
    assert time.monotonic() - began < DEADLINE
    assert find(run.tag) == []


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """All that it has started is ended too, whether or not it obeys; the error has the output."""
    run = command_run(
        tmp_path, shell(f"trap '' TERM; echo begun; setsid sleep {FOREVER} & sleep {FOREVER}"), timeout=0.2
    )
    with pytest.raises(CommandTimeoutError, match=r"longer than its timeout of 0\.2 s") as caught:
        run.run()
    assert isinstance(caught.value, StepTimeoutError)
    assert isinstance(caught.value, CommandError)
    assert not isinstance(caught.value, CommandIdleError)
    assert caught.value.result.stdout == "begun\n"
    assert find(run.tag) == []


def test_a_command_that_prints_nothing_is_ended(tmp_path: Path) -> None:
    """Output on standard error counts too; an exit code of 0 after the limit is no success."""
    code = f"trap 'exit 0' TERM; for n in 1 2 3 4 5; do echo $n >&2; sleep 0.1; done; {BUSY}"
    run = command_run(tmp_path, shell(code), idle_timeout=0.4, timeout=DEADLINE)
    with pytest.raises(CommandIdleError, match=r"printed nothing for 0\.4 s") as caught:
        run.run()
    assert caught.value.result.exit_code == 0
    assert caught.value.result.stderr.startswith("1\n2\n3\n4\n5\n")
    assert caught.value.result.duration > 0.8
    assert find(run.tag) == []


def test_lines_after_a_time_limit_are_read(tmp_path: Path) -> None:
    """Lines that it prints on SIGTERM are passed on: they may say what the run has cost."""
    lines: list[str] = []
    code = "trap 'echo last; exit' TERM; echo first; while true; do sleep 0.01; done"
    with pytest.raises(CommandTimeoutError):
        command_run(tmp_path, shell(code), on_line=lines.append, timeout=0.5, grace=DEADLINE).run()
    assert lines == ["first", "last"]


def test_a_command_that_is_done_is_ended_without_an_error(tmp_path: Path) -> None:
    """With its tree, after its time to end by itself. What it prints when it is ended is not passed on."""
    lines: list[str] = []
    code = f"trap 'echo I failed; exit 3' TERM; echo done; setsid sleep {FOREVER} & {BUSY}"
    run = command_run(
        tmp_path,
        shell(code),
        on_line=lines.append,
        is_done=lambda: "done" in lines,
        close_grace=0.5,
        idle_timeout=0.4,
        grace=DEADLINE,
    )
    result = run.run()
    assert (lines, result.exit_code, result.stdout) == (["done"], 3, "done\nI failed\n")
    assert result.duration >= 0.5
    assert find(run.tag) == []


def test_a_command_that_is_not_done_after_all_goes_on(tmp_path: Path) -> None:
    """Output that is not complete any more ends the count; one that ends by itself is not ended."""
    lines: list[str] = []
    code = "echo done; sleep 0.2; echo more; sleep 0.6; echo done; exit 4"
    run = command_run(
        tmp_path,
        shell(code),
        on_line=lines.append,
        is_done=lambda: lines[-1:] == ["done"],
        close_grace=0.5,
        timeout=DEADLINE,
    )
    assert (run.run().exit_code, lines) == (4, ["done", "more", "done"])


def test_an_error_of_the_line_reader_ends_it(tmp_path: Path) -> None:
    """The error is raised, and no process is left."""

    def refuse(line: str) -> None:
        raise LookupError(line)

    run = command_run(tmp_path, shell(f"setsid sleep {FOREVER} & echo word; sleep {FOREVER}"), on_line=refuse)
    with pytest.raises(LookupError, match="word"):
        run.run()
    assert find(run.tag) == []


def test_a_lost_exit_code_is_no_success(tmp_path: Path) -> None:
    """In a program that ignores SIGCHLD an error says so; `subprocess` would say 0."""
    code = """
import signal, sys
from iso_orchestrator import WorkflowUsageError
from support_commands import *
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    command_run(Path(sys.argv[1]), shell("exit 3")).run()
except WorkflowUsageError as error:
    print(error)
"""
    with run_python(code, tmp_path) as child:
        assert "ignores SIGCHLD" in child.line()
        child.end()


WITHOUT_DESCRIPTORS = """
import os, resource, sys
from iso_orchestrator.system import processes
from support_commands import *
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
taken = []

def take(*_):
    if sys.argv[3] == "thief":
        processes.KILLING = 0.5
        while processes._spare_descriptors:
            os.close(processes._spare_descriptors.pop())
    try:
        while len(taken) < 1000:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass

run = command_run(Path(sys.argv[1]), shell(sys.argv[2]), on_beat=take, timeout=0.2)
try:
    run.run()
except Exception as error:
    print(type(error).__name__)
for fd in taken:
    os.close(fd)
print(len(find(run.tag)))
kill_all(run.tag)
"""


@on_linux
@pytest.mark.parametrize(("thief", "name"), [("", "CommandTimeoutError"), ("thief", "CommandLeftoverError")])
def test_a_command_is_ended_without_descriptors(tmp_path: Path, thief: str, name: str) -> None:
    """Spare ones find what has left its session; if another thread takes those too, its session is ended."""
    code = f"sleep {FOREVER} & {'setsid' if not thief else ''} sleep {FOREVER} & sleep {FOREVER}"
    with run_python(WITHOUT_DESCRIPTORS, tmp_path, code, thief) as child:
        assert [child.line(), child.line()] == [name, "0"]
        child.end()


# Ctrl-C


INTERRUPTED = """
import os, signal, sys, threading
from support_commands import *

signal.signal(signal.SIGINT, signal.default_int_handler)
arrived, arrives = os.pipe()
os.set_blocking(arrives, False)
signal.set_wakeup_fd(arrives)
has_told = threading.Event()

def tell_of_signals():
    while os.read(arrived, 1):
        os.write(1, b"signal\\n")
        has_told.set()

threading.Thread(target=tell_of_signals, daemon=True).start()
run = command_run(Path(sys.argv[1]), shell(sys.argv[2]), tag=sys.argv[3], grace=float(sys.argv[4]))
try:
    run.run()
except KeyboardInterrupt:
    has_told.wait()
    os.write(1, b"interrupted %d\\n" % len(find(run.tag)))
"""


def interrupted(folder: Path, code: str, tag: str, grace: float) -> Child:
    return run_python(INTERRUPTED, folder, code, tag, grace)


def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    """The interrupt is raised when no process is left."""
    tag = unique_name()
    code = f"setsid sleep {FOREVER} & (setsid sleep {FOREVER} &) ; echo > {tmp_path}/ready; sleep {FOREVER}"
    with interrupted(tmp_path, code, tag, DEADLINE) as child:
        wait_for_file(tmp_path / "ready")
        child.process.send_signal(signal.SIGINT)
        assert child.line() == "signal"
        assert child.line() == "interrupted 0"
        child.end()


def test_a_second_ctrl_c_takes_the_time_to_finish_away(tmp_path: Path) -> None:
    """Processes that do not obey are killed then, and none is left."""
    tag = unique_name()
    code = f"trap 'echo asked > {tmp_path}/asked' TERM; setsid sleep {FOREVER} & echo > {tmp_path}/ready; {BUSY}"
    with interrupted(tmp_path, code, tag, 1000) as child:
        wait_for_file(tmp_path / "ready")
        child.process.send_signal(signal.SIGINT)
        assert child.line() == "signal"
        wait_for_file(tmp_path / "asked")
        assert find(tag)
        child.process.send_signal(signal.SIGINT)
        assert child.line() == "signal"
        assert child.line() == "interrupted 0"
        child.end()


EVERYWHERE = """
import faulthandler, os, psutil, signal, sys
import iso_orchestrator
from support_commands import *
package = os.path.dirname(iso_orchestrator.__file__)
folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)

# With the profiler a search of all processes takes long, and those that run already are none of the command's.
all_pids, earlier = psutil.pids, {*psutil.pids()}
psutil.pids = lambda: [pid for pid in all_pids() if pid not in earlier]

def places(tag, chosen=0):
    # How many places a run has, and whether it was interrupted at number *chosen*.
    count = 0
    def look(frame, event, arg):
        nonlocal count
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(package):
            return
        if event == "call" and frame.f_code.co_name == "__exit__":
            return  # before its first line no code can react
        count += 1
        if count == chosen:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)
    args = shell("setsid sleep 1000 & echo")
    run = command_run(folder, args, tag=tag, on_line=lambda _: None)
    try:
        sys.setprofile(look)
        try:
            run.run()
        finally:
            sys.setprofile(None)
    except KeyboardInterrupt:
        return count
    return count

count = min(places(unique_name()) for _ in range(3))
# A search does the same for each process: some of these places are enough.
step = max(1, count // 150)
for place in range(1, count, step):
    faulthandler.dump_traceback_later(60, exit=True)
    tag = unique_name()
    places(tag, place)
    if find(tag):
        print("left at", place)
faulthandler.cancel_dump_traceback_later()
print("everywhere", count // step)
"""


@pytest.mark.slow
def test_an_interrupt_at_any_place_leaves_no_process(memory_path: Path) -> None:
    """It may come at any call in the package: all that was started has ended when it is raised."""
    with run_python(EVERYWHERE, memory_path) as child:
        line = child.line(60)
        assert line.startswith("everywhere"), line
        assert int(line.split()[1]) > 50
        child.end()


def test_what_a_killed_runner_leaves_is_found(tmp_path: Path) -> None:
    """Its tag finds it, and its output is complete."""
    tag = unique_name()
    code = f"setsid sleep {FOREVER} & echo before; echo > {tmp_path}/ready; read line < {tmp_path}/fifo; echo behind"
    os.mkfifo(tmp_path / "fifo")
    try:
        with interrupted(tmp_path, code, tag, 1) as child:
            wait_for_file(tmp_path / "ready")
            child.kill()
            assert len(find(tag)) == 2
            (tmp_path / "fifo").write_text("go\n")
            wait_until(lambda: (tmp_path / "out.log").read_text() == "before\nbehind\n")
    finally:
        kill_all(tag)
