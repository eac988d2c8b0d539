"""Commands as steps: recorded, parsed, ended at a time limit, and found again after a crash."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import DEADLINE, Child, WatchedFS, wait_until
from support_commands import FOREVER, hidden, shell
from support_processes import assert_waits, child, in_thread

from iso_orchestrator import (
    Command,
    CommandError,
    CommandIdleError,
    CommandLeftoverError,
    CommandResult,
    CommandStartError,
    CommandTimeoutError,
    FileStore,
    LeaseLostError,
    Limited,
    StepStatus,
    StepTimeoutError,
    Workflow,
    command,
    current_step,
    delete_workflow,
    list_workflows,
    read_workflow_record,
)
from iso_orchestrator.commands.output import TAIL
from iso_orchestrator.commands.process import end_orphans
from iso_orchestrator.commands.step import CommandAttempt
from iso_orchestrator.system import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the programs of these tests are for Linux")


@attrs.frozen
class Verdict:
    """The outcome of a review."""

    ok: bool
    notes: list[str]


def verdict(output: str) -> Verdict:
    found = json.loads(output)
    return Verdict(found["ok"], found["notes"])


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


# Results


def test_a_command_that_succeeded_is_not_run_again(workflow: Workflow, tmp_path: Path) -> None:
    """The result of the first call and of every later one is the recorded one."""
    ledger = tmp_path / "ledger"

    @workflow.command
    def note(word: str) -> list[str]:
        return shell('echo "$1" | tee -a "$2"; echo aside >&2', word, str(ledger))

    first = note("one")
    assert (first.exit_code, first.stdout, first.stderr, first.parsed) == (0, "one\n", "aside\n", None)
    workflow.close()
    assert note("one") == first
    assert note("two").stdout == "two\n"
    assert ledger.read_text() == "one\ntwo\n"
    assert workflow.record.steps['note(word="one")'].attempts == 1


@pytest.mark.parametrize(
    ("parse", "output", "parsed"),
    [
        (None, "x", None),
        ("text", "caf\\351 x", "caf\\xe9 x"),
        ("json", '{"n": [1, 2.5]}', {"n": [1, 2.5]}),
        ("jsonl", '{"n": 1}\\n\\n2\\n', [{"n": 1}, 2]),
        (len, "12345", 5),
        (verdict, '{"ok": true, "notes": ["a"]}', Verdict(True, ["a"])),
    ],
)
def test_output_is_parsed_as_asked(workflow: Workflow, parse: Any, output: str, parsed: Any) -> None:
    """The parsed value is the same on the first run and from the record, and has the type that the function returns."""

    @workflow.command(parse=parse)
    def say() -> list[str]:
        return ["printf", output]

    assert say().parsed == parsed
    workflow.close()
    assert say().parsed == parsed


def test_a_parser_may_return_a_type_that_is_defined_later(workflow: Workflow) -> None:
    """Its annotation may name a local class, also one that does not exist at decoration."""

    def read(output: str) -> Note:
        return Note(output)

    @workflow.command(parse=read)
    def say() -> list[str]:
        return ["printf", "x"]

    @attrs.frozen
    class Note:
        text: str

    assert say().parsed == Note("x")
    workflow.close()
    assert say().parsed == Note("x")


def test_output_that_cannot_be_parsed_fails_the_step(workflow: Workflow) -> None:
    """The caller gets the parser's own error, with a note that names the log."""

    @workflow.command(parse="json")
    def say() -> list[str]:
        return ["echo", "no json"]

    with pytest.raises(ValueError, match="Expecting value") as caught:
        say()
    (note,) = caught.value.__notes__
    log = Path(note.rpartition(" ")[2])
    assert log.read_text() == "no json\n"
    assert workflow.record.steps["say"].status is StepStatus.FAILED


def test_each_attempt_has_its_log(workflow: Workflow, tmp_path: Path) -> None:
    """The output of failed attempts can be read later, by the owner alone."""

    @workflow.command(retry=3)
    def flaky() -> list[str]:
        return shell('echo "attempt $1"; [ "$1" = 3 ]', str(current_step().attempt))

    result = flaky()
    folder = Path(result.log_path).parent
    assert folder == tmp_path / "logs" / Path(workflow.record_path).stem
    logs = sorted(path for path in folder.iterdir() if path.suffix == ".log")
    assert [path.read_text() for path in logs] == ["attempt 1\n", "attempt 2\n", "attempt 3\n"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    workflow.close()
    delete_workflow("w", dir=tmp_path)
    assert not folder.exists()


def test_foreign_files_among_the_logs_do_not_prevent_a_deletion(workflow: Workflow, tmp_path: Path) -> None:
    """The workflow is deleted, and files that are not its own are left."""
    log = Path(workflow.command(name="say")(lambda: ["echo", "x"])().log_path)
    (log.parent / "mine").mkdir()
    workflow.close()
    delete_workflow("w", dir=tmp_path)
    assert list_workflows(dir=tmp_path) == []
    assert [path.name for path in log.parent.iterdir()] == ["mine"]


def test_log_dir_is_where_logs_go(workflow: Workflow, tmp_path: Path) -> None:
    """The folder is made when it is missing."""
    folder = tmp_path / "a" / "b"

    @workflow.command(log_dir=folder)
    def say() -> list[str]:
        return ["echo", "x"]

    assert Path(say().log_path).parent == folder


def test_workflows_that_share_a_log_dir_do_not_wait_for_each_other(workflow: Workflow, tmp_path: Path) -> None:
    """Steps of one name have logs of their own: another workflow's command is no orphan of this one's."""
    failing = workflow.command(name="work", log_dir=tmp_path / "logs")(lambda: shell("exit 1"))
    with pytest.raises(CommandError):
        failing()
    with Workflow("other", dir=tmp_path) as other:
        begun, go_on = tmp_path / "begun", tmp_path / "go on"
        wait = 'touch "$1"; until [ -e "$2" ]; do sleep 0.01; done'
        slow = in_thread(
            other.command(name="work", log_dir=tmp_path / "logs")(lambda: shell(wait, str(begun), str(go_on)))
        )
        wait_until(begun.exists)
        again = in_thread(failing)
        wait_until(again.done)
        assert not slow.done()
        assert isinstance(again.exception(), CommandError)
        go_on.touch()
        assert slow.result(DEADLINE).exit_code == 0


def test_a_log_that_another_command_has_just_left_is_not_read(tmp_path: Path) -> None:
    """Workflows of one id in two roots share a log: what one wrote while the other waited for it is not its result."""
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    first, second = (Workflow("w", dir=tmp_path / root) for root in ("a", "b"))
    wait = 'touch "$1"; until [ -e "$2" ]; do sleep 0.01; done; echo "of the first"'
    with first, second:
        slow = in_thread(
            first.command(name="work", log_dir=tmp_path / "logs")(lambda: shell(wait, str(begun), str(go_on)))
        )
        wait_until(begun.exists)
        log = next((tmp_path / "logs").glob("*.1.log"))
        soon = in_thread(second.command(name="work", log_dir=log.parent)(lambda: ["echo", "of the second"]))
        wait_until(lambda: open_files().count(str(log)) >= 2)
        go_on.touch()
        assert slow.result(DEADLINE).stdout == "of the first\n"
        assert soon.result(DEADLINE).stdout == "of the second\n"


def open_files() -> list[str]:
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return paths


def test_a_store_in_memory_has_logs_too(tmp_path: Path) -> None:
    """Logs are files in the workflow's folder, wherever the record is."""
    workflow = Workflow("w", dir=tmp_path, store=f"memory://{tmp_path}")
    result = workflow.command(lambda_named("say", lambda: ["echo", "x"]))()
    assert Path(result.log_path).is_relative_to(tmp_path / "logs")


def lambda_named(name: str, fn: Callable[[], Any]) -> Callable[[], Any]:
    fn.__name__ = fn.__qualname__ = name
    return fn


# Failing


def test_another_exit_code_is_an_error_with_the_result(workflow: Workflow) -> None:
    """It is retried as any failure; the error has the code, the last line and the paths of the output."""

    @workflow.command(retry=2)
    def fail() -> list[str]:
        return ["sh", "-c", "echo out; echo no such branch >&2; exit 3"]

    with pytest.raises(CommandError, match=r"exit code 3.*no such branch.*\.2\.log, .*\.2\.log\.stderr") as caught:
        fail()
    assert isinstance(caught.value.result, CommandResult)
    assert (caught.value.result.exit_code, caught.value.result.stdout) == (3, "out\n")
    assert workflow.record.steps["fail"].attempts == 2


def test_ok_codes_are_successes(workflow: Workflow) -> None:
    """A program with one of these codes has not failed. They may come from a generator."""

    @workflow.command(ok_codes=(code for code in (0, 1)))
    def differ() -> list[str]:
        return ["sh", "-c", "exit 1"]

    assert differ().exit_code == 1


def test_a_missing_program_is_named(workflow: Workflow) -> None:
    """The error has the step's name and the program's."""

    @workflow.command
    def missing() -> list[str]:
        return ["no-such-program-anywhere"]

    with pytest.raises(CommandStartError, match=r"'missing'.*'no-such-program-anywhere'"):
        missing()


@pytest.mark.parametrize(
    ("options", "error"), [({"timeout": 0.3}, CommandTimeoutError), ({"idle_timeout": 0.3}, CommandIdleError)]
)
def test_a_time_limit_ends_the_whole_tree(
    workflow: Workflow, tmp_path: Path, options: dict[str, float], error: type[Exception]
) -> None:
    """Children in sessions of their own are ended with the command, and the error is a `StepTimeoutError`."""

    @workflow.command(**options)
    def stall() -> list[str]:
        return shell('setsid sleep 3600 & echo $! > "$1"; wait', str(tmp_path / "pid"))

    with pytest.raises(error) as caught:
        stall()
    assert isinstance(caught.value, StepTimeoutError)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_accept_sees_the_result(workflow: Workflow) -> None:
    """An empty answer that ends with 0 can be refused."""

    @workflow.command(accept=lambda result: bool(result.stdout.strip()), retry=2)
    def ask() -> list[str]:
        return shell('[ "$1" = 1 ] || echo answer', str(current_step().attempt))

    assert ask().stdout == "answer\n"


# Input, folder and environment


def test_standard_input_is_empty_unless_given(workflow: Workflow) -> None:
    """A program that reads it does not wait; text and bytes arrive whole."""

    @workflow.command(name="echo {given}", parse="text")
    def echo(given: str | None) -> Command:
        return Command(["cat"], input=given)

    assert echo(None).parsed == ""
    long = "ü" * 100_000
    assert workflow.command(name="long", parse="text")(lambda: Command(["cat"], input=long))().parsed == long


def test_folder_and_environment_are_the_commands(workflow: Workflow, tmp_path: Path) -> None:
    """It has its own, if they are given."""

    @workflow.command
    def where() -> Command:
        return Command(["sh", "-c", "pwd; echo $WORD"], cwd=tmp_path, env={**os.environ, "WORD": "x"})

    assert where().stdout == f"{tmp_path.resolve()}\nx\n"


def test_a_free_command_serves_the_current_workflow(workflow: Workflow) -> None:
    """Its calls run in the workflow of then, as those of the free `step` do."""

    @command(parse="text")
    def say() -> list[str]:
        return ["echo", "x"]

    with workflow:
        assert say().parsed == "x\n"
    assert list(workflow.record.steps) == ["say"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"parse": "xml"}, TypeError),
        ({"parse": 3}, TypeError),
        ({"ok_codes": 0}, TypeError),
        ({"ok_codes": ["0"]}, TypeError),
        ({"if_left": "keep"}, ValueError),
        ({"if_runner_dies": "wait"}, ValueError),
        ({"if_runner_dies": "end", "if_left": "wait"}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"idle_timeout": -1}, ValueError),
        ({"close_grace": -1}, ValueError),
        ({"limit_key": " "}, ValueError),
        ({"max_log_bytes": 0}, ValueError),
        ({"max_log_bytes": None}, TypeError),
        ({"retries": 3}, TypeError),
    ],
)
def test_bad_options_are_refused_at_decoration(
    workflow: Workflow, options: dict[str, Any], error: type[Exception]
) -> None:
    """Nothing is run before the error."""
    with pytest.raises(error):
        workflow.command(**options)


def test_of_a_long_log_the_first_and_the_last_half_are_kept(workflow: Workflow) -> None:
    """A line in it says how much was left out; `parse` gets the same, and the result has the real end."""
    count = workflow.command(name="count", parse="text", max_log_bytes=1000)(lambda: ["seq", "100000"])
    result = count()
    whole = "".join(f"{number}\n" for number in range(1, 100_001))
    mark = f"\n[iso-orchestrator: {len(whole) - 1000} bytes of the output were left out here]\n"
    assert Path(result.log_path).read_text() == result.parsed == whole[:500] + mark + whole[-500:]
    assert result.stdout == whole[-TAIL:]


@pytest.mark.parametrize("ending", ["exit 3", f"sleep {FOREVER}"])
def test_the_log_of_a_failure_is_cut_too(workflow: Workflow, ending: str) -> None:
    """At an exit code, and at a time limit."""
    count = workflow.command(name="count", max_log_bytes=1000, timeout=0.5)(lambda: shell(f"seq 100000; {ending}"))
    with pytest.raises(CommandError) as caught:
        count()
    assert Path(caught.value.result.log_path).stat().st_size < 1100


@pytest.mark.parametrize("line", ["echo hello", [], None, [3]])
def test_a_bad_command_line_is_refused(workflow: Workflow, line: Any) -> None:
    """Above all a single text, which no shell would split."""
    with pytest.raises((TypeError, ValueError), match="command line"):
        workflow.command(name="x")(lambda: line)()


# While it runs


def test_a_running_command_beats(workflow: Workflow) -> None:
    """Its heartbeat has its process id, its last line and the path of its output."""

    @workflow.command
    def work() -> list[str]:
        return ["sh", "-c", "echo begun; read line < /dev/null; sleep 3600"]

    with_deadline = in_thread(work)
    assert wait_until(lambda: workflow.record.heartbeats.get("command:work")).detail["pid"] > 0
    wait_until(lambda: workflow.record.heartbeats["command:work"].detail["line"] == "begun")
    beat = workflow.record.heartbeats["command:work"]
    assert Path(beat.detail["log"]).read_text() == "begun\n"
    os.kill(beat.detail["pid"], signal.SIGTERM)
    with pytest.raises(CommandError, match="signal 15"):
        with_deadline.result(DEADLINE)


def test_a_heartbeat_that_cannot_be_recorded_ends_no_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that is full for a while loses a beat, and not the work."""
    refused: list[str] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "write_at" and b'"command:work"' in bytes(args[1]):
            refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workflow = Workflow("w", store=FileStore(tmp_path, fs=WatchedFS(before)))

    @workflow.command(parse="text")
    def work() -> list[str]:
        return shell('while ! [ -e "$1/go" ]; do sleep 0.01; done; echo done', str(tmp_path))

    running = in_thread(work)
    wait_until(lambda: refused or running.done())
    (tmp_path / "go").touch()
    assert running.result(DEADLINE).parsed == "done\n"
    assert "heartbeat 'command:work' was not recorded" in caplog.text
    workflow.close()


# After a crash

LOOK = 'grep -q "^State:.[^ZX]" "/proc/$1/status" 2>/dev/null && echo alive || echo gone'

RUNNER = """
@workflow.command(if_runner_dies="leave")
def work():
    return ["sh", "-c", 'echo $$ >> "$1/pids"; exec sleep "$2"', "sh", root, "3600"]
say("go")
work()
"""


def pids_in(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def left_behind(folder: Path, code: str = RUNNER) -> int:
    """The process id of a command whose runner is killed when it has begun."""
    with child(code, folder) as runner:
        assert runner.line() == "go"
        (pid,) = wait_until(lambda: pids_in(folder))
        runner.process.kill()
        runner.process.wait(DEADLINE)
    assert is_alive(pid)
    return pid


@pytest.fixture(autouse=True)
def no_orphan_stays(tmp_path: Path) -> Iterator[None]:
    """A test that fails leaves no command."""
    yield
    for pid in pids_in(tmp_path):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("is_reset", [False, True])
def test_orphans_of_a_killed_run_are_ended_before_the_command_starts_again(tmp_path: Path, is_reset: bool) -> None:
    """Two commands never work on one step, also if it was reset in between."""
    first = left_behind(tmp_path)
    workflow = Workflow("w", dir=tmp_path)
    if is_reset:
        assert workflow.reset("work") == ["work"]

    @workflow.command(parse="text")
    def work() -> list[str]:
        return shell(LOOK, str(first))

    assert work().parsed == "gone\n"
    assert not is_alive(first)
    workflow.close()


def test_orphans_of_a_killed_run_can_be_waited_for(tmp_path: Path) -> None:
    """`if_left="wait"` lets them end by themselves."""
    first = left_behind(tmp_path, RUNNER.replace('exec sleep "$2"', 'until [ -e "$1/go" ]; do sleep 0.01; done'))
    workflow = Workflow("w", dir=tmp_path)

    @workflow.command(if_left="wait", parse="text")
    def work() -> list[str]:
        return shell(LOOK, str(first))

    running = in_thread(work)
    assert_waits(running)
    assert is_alive(first)
    (tmp_path / "go").touch()
    assert running.result(DEADLINE).parsed == "gone\n"
    workflow.close()


def test_a_copy_of_the_root_ends_nothing_of_the_original(tmp_path: Path) -> None:
    """Not even if both have the same steps; a root that was moved finds its own orphans."""
    original, copy, moved = tmp_path / "original", tmp_path / "copy", tmp_path / "moved"
    first = Workflow("w", dir=original)
    first.command(name="earlier")(lambda: ["true"])()
    first.close()
    shutil.copytree(original, copy)
    pid = left_behind(original)
    assert said_of(pid, copy) == "alive\n"
    shutil.rmtree(copy)
    shutil.copytree(original, copy)  # its record has the running command, and whose that is
    assert said_of(pid, copy) == "alive\n"
    delete_workflow("w", dir=copy)
    assert is_alive(pid)
    original.rename(moved)
    assert said_of(pid, moved) == "gone\n"


def test_a_root_that_was_moved_finds_its_logs_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs were moved with it."""
    monkeypatch.setattr(processes, "KILLING", 0.1)
    (tmp_path / "original").mkdir()
    first = left_behind(tmp_path / "original", HIDDEN + "work()")
    (tmp_path / "original").rename(tmp_path / "moved")
    try:
        with pytest.raises(CommandLeftoverError):
            said_of(first, tmp_path / "moved")
    finally:
        os.kill(first, signal.SIGKILL)
    assert said_of(first, tmp_path / "moved") == "gone\n"


def said_of(pid: int, root: Path) -> Any:
    """Whether that process is alive when the step "work" runs in *root*."""
    workflow = Workflow("w", dir=root)
    result = workflow.command(name="work", parse="text")(lambda: shell(LOOK, str(pid)))()
    workflow.close()
    return result.parsed


def test_deleting_a_workflow_ends_its_orphans(tmp_path: Path) -> None:
    """A new workflow of that name would not know of them."""
    first = left_behind(tmp_path)
    delete_workflow("w", dir=tmp_path)
    assert not is_alive(first)


# It ignores SIGTERM until there is a file "go".
STUBBORN = """
from support_commands import python

signal.signal(signal.SIGINT, signal.default_int_handler)
PROGRAM = '''
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os.path.exists(sys.argv[1] + "/go") and os._exit(0))
with open(sys.argv[1] + "/pids", "a") as file:
    print(os.getpid(), file=file)
while True:
    signal.pause()
'''

@workflow.command(if_left=IF_LEFT, if_runner_dies="leave")
def work():
    return python(PROGRAM, root)

say("go")
"""

INTERRUPTED = """
from support_fanout import say_when_main_waits
say_when_main_waits("waiting", "await_orphans", "end_tree")
try:
    work()
except KeyboardInterrupt:
    say("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("if_left", ["wait", "end"])
def test_ctrl_c_while_orphans_are_ended_leaves_them_to_the_next_call(
    workflow: Workflow, tmp_path: Path, if_left: str
) -> None:
    """The call after an interrupted wait for them, or an interrupted end, begins when they are gone."""
    code = STUBBORN.replace("IF_LEFT", repr(if_left))
    first = left_behind(tmp_path, code + "work()")
    with child(code + INTERRUPTED, tmp_path) as between:
        assert [between.line(), between.line()] == ["go", "waiting"]
        between.process.send_signal(signal.SIGINT)
        assert between.line() == "interrupted"
        between.end()
    assert is_alive(first)
    assert len(pids_in(tmp_path)) == 1
    (tmp_path / "go").touch()

    @workflow.command(parse="text")
    def work() -> list[str]:
        return shell(LOOK, str(first))

    assert work().parsed == "gone\n"


def test_a_retry_does_not_begin_beside_an_orphan_that_cannot_be_ended(
    workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt raises an error while a process is left that no signal reaches."""
    first = left_behind(tmp_path)
    monkeypatch.setattr(processes, "_signal", lambda *_: None)
    monkeypatch.setattr(processes, "KILLING", 0.1)
    for end in (end_orphans, processes.end_tree):
        monkeypatch.setitem(end.__kwdefaults__, "grace", 0.1)

    @workflow.command(retry=2)
    def work() -> list[str]:
        return shell('echo $$ >> "$1/pids"', str(tmp_path))

    with pytest.raises(CommandLeftoverError, match=str(first)):
        work()
    assert workflow.record.steps["work"].attempts == 3  # with the one that was killed
    assert pids_in(tmp_path) == [first]


HIDDEN = """
from support_commands import hidden
from iso_orchestrator.system import processes

@workflow.command(if_runner_dies="leave")
def work():
    return hidden(root, "exec sleep 3600")
say("go")
"""


def test_a_retry_does_not_begin_beside_an_orphan_that_cannot_be_found(
    workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without the command's tag that has its output open is enough."""
    first = left_behind(tmp_path, HIDDEN + "work()")
    monkeypatch.setattr(processes, "KILLING", 0.1)

    @workflow.command(retry=2)
    def work() -> list[str]:
        return shell(LOOK, str(first))

    with pytest.raises(CommandLeftoverError, match=r"\.1\.log"):
        work()
    assert is_alive(first)


GAVE_UP = """
processes.KILLING = 0.1
try:
    work()
except CommandLeftoverError:
    say("gave up")
"""

HIDDEN_INTERRUPTED = """
from support_fanout import say_when_main_waits
signal.signal(signal.SIGINT, signal.default_int_handler)
say_when_main_waits("waiting", "_first_open", "end_orphans")
try:
    work()
except KeyboardInterrupt:
    say("interrupted")
"""


def gave_up(folder: Path) -> None:
    """A run that found an orphan and could not end it."""
    with child(HIDDEN + GAVE_UP, folder) as between:
        assert [between.line(), between.line()] == ["go", "gave up"]
        between.end()


def was_interrupted(folder: Path) -> None:
    """A run that was interrupted while it tried to end it."""
    with child(HIDDEN + HIDDEN_INTERRUPTED, folder) as between:
        assert [between.line(), between.line()] == ["go", "waiting"]
        wait_until(lambda: not is_alive(int((folder / "leader").read_text())))
        between.process.send_signal(signal.SIGINT)
        assert between.line() == "interrupted"
        between.end()


def was_killed(folder: Path) -> None:
    """A run that was killed while it tried to end it."""
    with child(HIDDEN + "work()", folder) as between:
        assert between.line() == "go"
        wait_until(lambda: not is_alive(int((folder / "leader").read_text())))
        wait_until(lambda: read_workflow_record("w", dir=folder).steps["work"].attempts == 2)
        between.kill()


@pytest.mark.slow
@pytest.mark.parametrize("between", [gave_up, was_interrupted, was_killed])
@pytest.mark.parametrize("log_dir", [None, "other"])
def test_a_later_call_does_not_begin_beside_an_orphan_that_cannot_be_found(
    workflow: Workflow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    between: Callable[[Path], None],
    log_dir: str | None,
) -> None:
    """It begins when the old log is closed, after any end of the calls in between, and with any log of its own."""
    monkeypatch.chdir(tmp_path)
    first = left_behind(tmp_path, HIDDEN + "work()")
    between(tmp_path)
    monkeypatch.setattr(processes, "KILLING", 0.1)

    def line() -> list[str]:
        return shell(LOOK, str(first))

    work = workflow.command(name="work", log_dir=log_dir)(line)
    for _ in range(2):
        with pytest.raises(CommandLeftoverError, match=r"work-\w+\.1\.log"):
            work()
    assert workflow.reset("work") == ["work"]
    with pytest.raises(CommandLeftoverError):
        work()
    patient = in_thread(workflow.command(name="work", log_dir=log_dir, if_left="wait", parse="text")(line))
    assert_waits(patient)
    assert is_alive(first)
    assert len(pids_in(tmp_path)) == 1
    os.kill(first, signal.SIGKILL)
    assert patient.result(DEADLINE).parsed == "gone\n"


def test_a_call_does_not_begin_beside_a_process_that_an_ended_command_left(
    workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that ended by itself is at work as long as its output is open."""
    monkeypatch.setattr(processes, "KILLING", 0.1)
    workflow.command(name="work")(lambda: hidden(tmp_path, "until [ -s $1/pids ]; do sleep 0.01; done"))()
    (first,) = pids_in(tmp_path)
    workflow.reset("work")
    work = workflow.command(name="work", log_dir=tmp_path / "other")(lambda: shell(LOOK, str(first)))
    with pytest.raises(CommandLeftoverError):
        work()
    os.kill(first, signal.SIGKILL)
    assert work().stdout == "gone\n"


@pytest.mark.parametrize(
    "deed", ["rm -r $1", "rm $1/*.log", "echo other > $1/new; for log in $1/*.log; do mv $1/new $log; done"]
)
def test_a_result_has_what_the_command_printed_whatever_became_of_its_log(
    workflow: Workflow, tmp_path: Path, deed: str
) -> None:
    """The log is removed or replaced while the command runs: the output is that of the file that it had open."""
    folder = tmp_path / "logs"
    work = workflow.command(name="work", log_dir=folder, parse="text")(lambda: shell(f"echo paid; {deed}", str(folder)))
    assert work().parsed == work().stdout == "paid\n"


def test_a_log_that_was_removed_does_not_keep_a_step_from_running(workflow: Workflow, tmp_path: Path) -> None:
    """Its folder may even have become a file."""
    work = workflow.command(name="work", log_dir=tmp_path / "logs")
    work(lambda: ["true"])()
    shutil.rmtree(tmp_path / "logs")
    (tmp_path / "logs").touch()
    workflow.reset("work")
    assert workflow.command(name="work", log_dir=tmp_path / "other")(lambda: ["true"])().exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_workflow_with_an_orphan_that_cannot_be_found_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_interrupted: bool
) -> None:
    """A new workflow of that name would begin beside it."""
    monkeypatch.setattr(processes, "KILLING", 0.1)
    first = left_behind(tmp_path, HIDDEN + "work()")
    if is_interrupted:
        gave_up(tmp_path)
    with pytest.raises(CommandLeftoverError):
        delete_workflow("w", dir=tmp_path)
    os.kill(first, signal.SIGKILL)
    delete_workflow("w", dir=tmp_path)
    assert list(list_workflows(tmp_path)) == []


def test_an_attempt_that_was_fenced_out_leaves_orphans_to_the_next(
    workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that lost its lease before it ended them does not end them."""
    first = left_behind(tmp_path)
    process_tag = CommandAttempt._process_tag

    def lose_the_lease(call: CommandAttempt) -> str:
        workflow.release_lease("slot")
        workflow.touch_lease("slot", holder="another", ttl=60)
        return process_tag(call)

    @workflow.command(parse="text")
    def work() -> list[str]:
        return shell(LOOK, str(first))

    with monkeypatch.context() as patched, pytest.raises(LeaseLostError), workflow.lease("slot", holder="one", ttl=60):
        patched.setattr(CommandAttempt, "_process_tag", lose_the_lease)
        work()
    assert is_alive(first)
    assert work().parsed == "gone\n"


# Limits


def test_a_usage_limit_keeps_all_steps_of_its_key_from_starting(workflow: Workflow) -> None:
    """After one command met a limit, another of the same key starts after its end, and one without a key at once."""
    until = datetime.now(UTC) + timedelta(seconds=0.5)
    met: list[float] = []

    @workflow.command(limit_key="api")
    def first() -> list[str]:
        if not met:
            met.append(time.time())
            raise Limited(until)
        return ["true"]

    started: dict[str, float] = {}

    def run(name: str, key: str | None) -> None:
        def line() -> list[str]:
            started[name] = time.time()
            return ["true"]

        workflow.command(name=name, limit_key=key)(line)()

    waiting = in_thread(first)
    wait_until(lambda: any(event.type == "step.limited" for event in workflow.record.events))
    others = [in_thread(run, "same", "api"), in_thread(run, "none", None)]
    for future in (*others, waiting):
        future.result(DEADLINE)
    assert started["none"] < until.timestamp() <= started["same"] + 0.001
    assert workflow.record.steps["first"].attempts == 1


# Interrupted


def press_ctrl_c(runner: Child) -> None:
    """Press Ctrl-C until it arrives: just as the main thread begins to wait, it does not wake that."""

    def arrives() -> bool:
        runner.process.send_signal(signal.SIGINT)
        with suppress(AssertionError):
            return runner.line(5) == "signal"
        return False

    wait_until(arrives, what="Ctrl-C")


def interrupts(runner: Child) -> bool:
    """Press Ctrl-C once more; whether it had its effect, which it has not inside of the handler of the last one."""
    runner.process.send_signal(signal.SIGINT)
    with suppress(AssertionError):
        while runner.line(5) != "interrupted":
            pass
        return True
    return False


# The program while Ctrl-C is pressed: `work` is the step, with the argument 1 or 2.
BUSY = """
def interrupt(*_):
    say("signal")
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
say("go")

def nested(_):
    workflow.run_for_each([1], lambda _: workflow.run_for_each([1, 2], work, max_parallel=2))

def submitted():
    for future in [work.submit(1), work.submit(2)]:
        future.result()

try:
    with workflow:
        USE
except BaseException as error:
    say("interrupted")
"""

USES = {
    "for_each": "workflow.run_for_each([1, 2], work, max_parallel=2)",
    "a for_each inside": "nested(1)",
    "submit": "submitted()",
}

each_use = pytest.mark.parametrize("use", USES.values(), ids=USES)

WORK = """
@workflow.command(name="work {item}")
def work(item):
    return ["sh", "-c", 'echo $$ >> "$1/pids"; exec sleep 3600', "sh", root]
"""


@pytest.mark.slow
@each_use
def test_a_second_ctrl_c_ends_the_commands_that_run(tmp_path: Path, use: str) -> None:
    """The first lets them finish, the second does not wait for them: they are ended, and so is the process."""
    with child(WORK + BUSY.replace("USE", use), tmp_path) as runner:
        assert runner.line() == "go"
        pids = wait_until(lambda: len(found := pids_in(tmp_path)) == 2 and found)
        press_ctrl_c(runner)
        assert all(map(is_alive, pids))
        wait_until(lambda: interrupts(runner), what="the end of the wait")
        runner.process.wait(DEADLINE)
    assert not any(map(is_alive, pids))


@pytest.mark.slow
def test_ctrl_c_at_the_exit_ends_the_commands_at_once(tmp_path: Path) -> None:
    """A third one, while the process waits for commands that take their time to end, leaves none of them."""
    code = WORK.replace("exec", 'trap "" TERM; exec')
    code += """
from functools import partial
from iso_orchestrator.commands import step
from support_fanout import say_when_main_waits
step.ProcessRunner = partial(step.ProcessRunner, grace=3600)
say_when_main_waits("exiting", "_shutdown")
sys.stderr = open(os.devnull, "w")
"""
    with child(code + BUSY.replace("USE", USES["for_each"]), tmp_path) as runner:
        assert runner.line() == "go"
        pids = wait_until(lambda: len(found := pids_in(tmp_path)) == 2 and found)
        press_ctrl_c(runner)
        wait_until(lambda: interrupts(runner), what="the end of the wait")
        assert runner.line() == "exiting"
        assert all(map(is_alive, pids))

        def ends() -> bool:
            runner.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                runner.process.wait(5)
            return runner.process.poll() is not None

        wait_until(ends)
    assert not any(map(is_alive, pids))


LIMITED = """
from datetime import UTC, datetime, timedelta

@workflow.step(name="work {item}")
def work(item):
    raise Limited(datetime.now(UTC) + timedelta(hours=1))
"""


@each_use
def test_ctrl_c_ends_the_waits_for_a_limit(tmp_path: Path, use: str) -> None:
    """No step is running that would be let finish: the process ends."""
    with child(LIMITED + BUSY.replace("USE", use), tmp_path) as runner:
        assert runner.line() == "go"
        wait_until(lambda: limits_in(tmp_path) == 2)
        press_ctrl_c(runner)
        assert runner.line() == "interrupted"
        runner.end()


def limits_in(root: Path) -> int:
    if not list(root.glob("workflows/*.json")):
        return 0
    events = read_workflow_record("w", dir=root).events
    return sum(event.type == "step.limited" for event in events)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_wait_for_orphans(tmp_path: Path) -> None:
    """They are left as they are, and no command begins beside them."""
    code = STUBBORN.replace("IF_LEFT", "'wait'")
    first = left_behind(tmp_path, code + "work()")
    with child(code + BUSY.replace("USE", "workflow.run_for_each([1], lambda _: work())"), tmp_path) as runner:
        assert [runner.line(), runner.line()] == ["go", "go"]
        wait_until(lambda: starts_in(tmp_path) == 2)
        press_ctrl_c(runner)
        wait_until(lambda: interrupts(runner), what="the end of the wait")
        runner.process.wait(DEADLINE)
    assert is_alive(first)
    assert pids_in(tmp_path) == [first]


def starts_in(root: Path) -> int:
    return sum(event.type == "step.started" for event in read_workflow_record("w", dir=root).events)


@pytest.mark.parametrize(
    "line",
    [
        "echo hello",
        [],
        ["echo", 7],
        ["no-such-program"],
        ["/no/such/program"],
        Command(["true"], cwd="/no/such/folder"),
    ],
    ids=str,
)
def test_a_command_line_that_can_never_work_is_not_retried(workflow: Workflow, line: Any) -> None:
    """It fails in its first attempt, with the error that says what is wrong with it."""
    calls = []

    @workflow.command(name="bad", retry=3)
    def bad() -> Any:
        calls.append(1)
        return line

    with pytest.raises((TypeError, ValueError, CommandStartError), match=r"command line|program|folder"):
        bad()
    assert calls == [1]
    assert (workflow.record.steps["bad"].status, workflow.record.steps["bad"].attempts) == (StepStatus.FAILED, 1)


def test_a_program_that_cannot_be_started_for_now_is_retried(workflow: Workflow, tmp_path: Path) -> None:
    """A program that is open for writing, as while it is installed, is started by a later attempt."""
    program = tmp_path / "program"
    installing = program.open("w")
    installing.write("#!/bin/sh\necho works\n")
    installing.flush()
    program.chmod(0o755)
    calls = []

    @workflow.command(name="new", retry=2, parse="text")
    def new() -> list[str]:
        calls.append(1)
        if len(calls) == 2:
            installing.close()
        return [str(program)]

    assert new().parsed.strip() == "works"
    assert len(calls) == 2
