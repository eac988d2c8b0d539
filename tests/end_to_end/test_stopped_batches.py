"""Ctrl-C ends the commands and waits of a batch at once, and the next run continues them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import DEADLINE, Child, wait_until
from support_commands import FOREVER, find
from support_fanout import marks
from support_processes import assert_waits, child

from iso_orchestrator import Workflow, WorkflowStatus, read_workflow_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signals cannot be sent to one process elsewhere"),
]

SOON = 3.0  # seconds

FIRST = """
import logging
from concurrent.futures import ThreadPoolExecutor
from support_fanout import mark, say_when_main_waits

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background has it ignored
os.dup2(os.open(f"{root}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
logging.basicConfig(format="%(message)s")

def go_on():
    while not os.path.exists(f"{root}.go"):
        time.sleep(0.01)

@workflow.command(retry=3)
def sleep(number):
    mark(f"{root}.begun", number)
    return ["sleep", "0" if os.path.exists(f"{root}.go") else "FOREVER"]

@workflow.step
def plain(number):
    mark(f"{root}.begun", number)
    go_on()
    return number

def batch(items, work, **options):
    return workflow.run_for_each(items, work, max_parallel=4, **options)
""".replace("FOREVER", FOREVER)

MAIN = """
try:
    with workflow:
        work()
        say("done")
except KeyboardInterrupt:
    say("interrupted")
"""


@contextmanager
def begun(work: str, root: Path, count: int, main: str = MAIN) -> Iterator[Child]:
    """A child in which *count* bodies have begun."""
    with child(FIRST + work + main, root) as process:
        wait_until(lambda: len(begun_in(root)) >= count)
        yield process


def begun_in(root: Path) -> list[str]:
    path = Path(f"{root}.begun")
    return sorted(number for (number,) in marks(path)) if path.exists() else []


def said(root: Path) -> list[str]:
    """Standard error, without tracebacks and the line on the end of the run."""
    lines = Path(f"{root}.said").read_text().splitlines()
    return [line for line in lines if not line.startswith("workflow 'w' was interrupted after ")]


def finish_at_ctrl_c(process: Child, root: Path) -> None:
    """Press Ctrl-C, and let the running bodies finish once it has been said that they are waited for."""
    process.process.send_signal(signal.SIGINT)
    wait_until(lambda: said(root))
    assert_waits(process)
    Path(f"{root}.go").touch()
    assert process.line() == "interrupted"
    process.end()


def step(root: Path, name: str) -> tuple[str, int, str | None]:
    found = read_workflow_record("w", dir=root).steps[name]
    return str(found.status), found.attempts, None if found.error is None else found.error.name


def are_gone(root: Path) -> bool:
    """Whether no process of the commands is left."""
    workflow = Workflow("w", dir=root)
    projection = workflow._runtime.store.read("w")
    return projection is not None and not any(find(command.mark) for command in projection.commands.values())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


COMMANDS = """
def work():
    batch(range(6), sleep)
"""

EXECUTOR = """
def work():
    batch(range(6), sleep, executor=ThreadPoolExecutor(4))
"""

NESTED = """
def work():
    batch("a", lambda _: batch(range(6), sleep, stop_on_error=False))
"""

SUBMITTED = """
@workflow.step
def outer():
    batch(range(6), sleep)

def work():
    outer.submit().result()
"""


@pytest.mark.parametrize("work", [COMMANDS, EXECUTOR, NESTED, SUBMITTED], ids=["own", "executor", "nested", "submit"])
def test_ctrl_c_ends_the_commands_of_a_batch(root: Path, work: str) -> None:
    """At once; nothing more starts; no attempt follows; and the next run runs them all."""
    with begun(work, root, 4) as process:
        process.process.send_signal(signal.SIGINT)
        assert process.line(SOON) == "interrupted"
        process.end()
    assert are_gone(root)
    assert begun_in(root) == ["0", "1", "2", "3"]
    assert {step(root, f"sleep(number={number})") for number in range(4)} == {("failed", 1, "KeyboardInterrupt")}
    Path(f"{root}.go").touch()
    with begun(work, root, 10) as process:
        assert process.line() == "done"
        process.end()
    assert step(root, "sleep(number=0)") == ("completed", 2, None)
    assert step(root, "sleep(number=5)") == ("completed", 1, None)


def test_ctrl_c_says_what_it_waits_for(root: Path) -> None:
    """One line on standard error names the running items by their steps; plain bodies finish and are on record."""
    with begun("def work():\n    batch(range(6), plain)\n", root, 4) as process:
        finish_at_ctrl_c(process, root)
    names = ", ".join(f"plain(number={number})" for number in range(4))
    assert said(root)[0] == f"finishing 4 running items ({names}); Ctrl-C again to stop waiting"
    assert {step(root, f"plain(number={number})") for number in range(4)} == {("completed", 1, None)}
    assert begun_in(root) == ["0", "1", "2", "3"]


CANCELLED = """
from concurrent.futures import wait

@workflow.step
def parent():
    leaves = [plain.submit(number) for number in range(100)]
    wait(leaves)
    return [type(leaf.exception()).__name__ for leaf in leaves]

def work():
    parent.submit().result()
"""


def test_ctrl_c_says_which_submitted_steps_it_waits_for(root: Path) -> None:
    """One line names some of the running steps. A step that waits for cancelled ones is interrupted, not misled."""
    with begun(CANCELLED, root, 32) as process:
        finish_at_ctrl_c(process, root)
    line, *rest = said(root)
    assert line.startswith("finishing 33 running steps (parent, plain(number=")
    assert line.endswith(" and 28 more); Ctrl-C again to stop waiting")
    assert not [other for other in rest if "failed:" in other]
    assert step(root, "parent") == ("failed", 1, "KeyboardInterrupt")
    assert {step(root, f"plain(number={number})") for number in begun_in(root)} == {("completed", 1, None)}


def test_a_body_that_is_let_finish_starts_no_command(root: Path) -> None:
    """An item goes on with its plain steps after Ctrl-C, and not with commands or further items."""
    work = """
def both(number):
    plain(number)
    plain(number + 10)
    if number:
        batch(range(20, 22), plain)
    sleep(number + 30)

def work():
    batch(range(2), both)
"""
    with begun(work, root, 2) as process:
        process.process.send_signal(signal.SIGINT)
        wait_until(lambda: said(root))
        Path(f"{root}.go").touch()
        assert process.line(SOON) == "interrupted"
        process.end()
    assert said(root)[0] == "finishing 2 running items (both(0), both(1)); Ctrl-C again to stop waiting"
    assert begun_in(root) == ["0", "1", "10", "11"]


MUTEX = """
def wait(_):
    with workflow.mutex("held"):
        pass
"""

RETRY = """
def fail():
    mark(f"{root}.begun", 1)
    raise ValueError

def wait(_):
    workflow.run_step("failing", fail, retry=Retry(attempts=3, wait=1000))
"""

ELSEWHERE = """
def wait(_):
    workflow.run_step("elsewhere", int)
"""

ANOTHER_THREAD = """
threading.Thread(target=workflow.run_step, args=("here", time.sleep, FOREVER), daemon=True).start()

def wait(_):
    workflow.run_step("here", int)
""".replace("FOREVER", FOREVER)


@pytest.mark.parametrize(
    "wait", [MUTEX, RETRY, ELSEWHERE, ANOTHER_THREAD], ids=["mutex", "retry", "elsewhere", "thread"]
)
def test_ctrl_c_ends_the_waits_of_a_batch(root: Path, wait: str) -> None:
    """For a mutex, for a step that another process or thread runs, and before a retry."""
    workflow = Workflow("w", dir=root)
    main = """
try:
    mark(f"{root}.begun", 0)
    batch("a", wait)
except KeyboardInterrupt:
    say("interrupted")
"""

    def other() -> None:
        with workflow.mutex("held"), begun(wait, root, 2 if wait == RETRY else 1, main) as process:
            assert_waits(process)
            process.process.send_signal(signal.SIGINT)
            assert process.line(SOON) == "interrupted"
            process.end()

    workflow.run_step("elsewhere", other)
    workflow.close()
    if wait == RETRY:
        assert read_workflow_record("w", dir=root).steps["failing"].attempts == 1


def test_ctrl_c_after_an_error_ends_the_commands_that_are_let_finish(root: Path) -> None:
    """The batch waits for its commands since an item has failed; the first Ctrl-C ends them."""
    work = """
def either(number):
    if number:
        return sleep(number)
    while not os.path.exists(f"{root}.begun"):
        time.sleep(0.01)
    raise ValueError

def work():
    say_when_main_waits("waiting", "_wait_for_workers")
    batch(range(2), either)
"""
    with begun(work, root, 1) as process:
        assert process.line() == "waiting"
        process.process.send_signal(signal.SIGINT)
        assert process.line(SOON) == "interrupted"
        process.end()
    assert are_gone(root)


STUBBORN = """
import iso_orchestrator.commands.step as commands
from functools import partial
commands.ProcessRunner = partial(commands.ProcessRunner, grace=GRACE)

@workflow.command
def stubborn(number):
    return ["sh", "-c", f"trap '' TERM; echo {number} >>'{root}.begun'; while :; do sleep 0.05; done"]

def work():
    workflow.run_for_each(range(8), stubborn, max_parallel=8)
"""


def test_commands_that_ignore_sigterm_are_gone_after_the_grace(root: Path) -> None:
    """Eight at a time, the whole of their trees."""
    with begun(STUBBORN.replace("GRACE", "0.5"), root, 8) as process:
        process.process.send_signal(signal.SIGINT)
        assert process.line(DEADLINE) == "interrupted"
        process.end()
    assert are_gone(root)


ALONE = """
def unwilling(number):
    try:
        plain.fn(number)
    finally:
        say("left")

def work():
    workflow.run_for_each(range(6), unwilling if "TWICE" else plain)
"""


def test_ctrl_c_lets_the_body_in_the_callers_thread_finish(root: Path) -> None:
    """Ctrl-C would come out in the middle of it; the first one is raised after it, in place of the next item."""
    with begun(ALONE.replace("TWICE", ""), root, 1) as process:
        finish_at_ctrl_c(process, root)
    assert said(root)[0] == "finishing 1 running item (plain(number=0)); Ctrl-C again to stop waiting"
    assert step(root, "plain(number=0)") == ("completed", 1, None)
    assert begun_in(root) == ["0"]


def test_a_second_ctrl_c_ends_the_body_in_the_callers_thread(root: Path) -> None:
    """As Python does, wherever it is."""
    with begun(ALONE, root, 1) as process:
        process.process.send_signal(signal.SIGINT)
        wait_until(lambda: said(root))
        assert_waits(process)
        process.process.send_signal(signal.SIGINT)
        assert [process.line(), process.line()] == ["left", "interrupted"]
        process.end()
    assert begun_in(root) == ["0"]


@pytest.mark.parametrize("work", ["sleep", "lambda n: batch([n], sleep)", "wait"], ids=["command", "nested", "mutex"])
def test_ctrl_c_ends_a_command_or_a_wait_in_the_callers_thread(root: Path, work: str) -> None:
    """The body of the item itself goes on only until there."""
    code = MUTEX.replace("with", 'mark(f"{root}.begun", 0)\n    with', 1)
    code += f"""
def work():
    workflow.run_for_each(range(3), {work})
"""
    workflow = Workflow("w", dir=root)
    with workflow.mutex("held"), begun(code, root, 1) as process:
        assert_waits(process)
        process.process.send_signal(signal.SIGINT)
        assert process.line(SOON) == "interrupted"
        process.end()
    workflow.close()
    assert are_gone(root)
    assert begun_in(root) == ["0"]


# SIGTERM

TERMINATED = """
try:
    with workflow:
        try:
            work()
        finally:
            say("left")
finally:
    say("not reached")
"""
IGNORED = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@pytest.mark.parametrize("handler", ["", IGNORED], ids=["default", "ignored"])
@pytest.mark.parametrize("work", [COMMANDS, NESTED, SUBMITTED], ids=["own", "nested", "submit"])
def test_sigterm_ends_the_commands_of_a_batch_and_then_the_program(root: Path, work: str, handler: str) -> None:
    """As Ctrl-C, also where that is ignored as in the background; the parent sees that it died of SIGTERM."""
    with begun(work, root, 4, handler + TERMINATED) as process:
        process.process.send_signal(signal.SIGTERM)
        assert process.line(SOON) == "left"
        assert process.process.wait(DEADLINE) == -signal.SIGTERM
    assert are_gone(root)
    assert {step(root, f"sleep(number={number})") for number in range(4)} == {("failed", 1, "KeyboardInterrupt")}
    assert read_workflow_record("w", dir=root).status is WorkflowStatus.FAILED


def test_sigterm_lets_plain_bodies_finish(root: Path) -> None:
    """They are on record when the program has died."""
    with begun("def work():\n    batch(range(6), plain)\n", root, 4, TERMINATED) as process:
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: said(root))
        assert_waits(process)
        Path(f"{root}.go").touch()
        assert process.line() == "left"
        assert process.process.wait(DEADLINE) == -signal.SIGTERM
    assert said(root)[0].endswith("; SIGTERM again to stop waiting")
    assert Path(f"{root}.said").read_text().splitlines()[-1].endswith(": 4 steps completed; SIGTERM")
    assert {step(root, f"plain(number={number})") for number in range(4)} == {("completed", 1, None)}


@pytest.mark.parametrize("handler", ["", IGNORED], ids=["default", "ignored"])
def test_a_second_sigterm_stops_waiting(root: Path, handler: str) -> None:
    """As the line on standard error says: the program dies of it while plain bodies still run."""
    with begun("def work():\n    batch(range(6), plain)\n", root, 4, handler + TERMINATED) as process:
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: said(root))
        assert_waits(process)
        process.process.send_signal(signal.SIGTERM)
        assert process.line(SOON) == "left"
        assert process.process.wait(DEADLINE) == -signal.SIGTERM
    assert "; SIGTERM again to stop waiting" in said(root)[0]


LONE = """
def work():
    sleep(0)
"""


def test_sigterm_ends_a_lone_command_without_a_run(root: Path) -> None:
    """The call alone is work too, and the session is closed as at the exit."""
    with begun(LONE, root, 1, "work()") as process:
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(DEADLINE) == -signal.SIGTERM
    assert are_gone(root)
    assert step(root, "sleep(number=0)") == ("failed", 1, "KeyboardInterrupt")


def test_a_second_sigterm_kills_the_commands(root: Path) -> None:
    """The program waits no more for those that ignore the first."""
    with begun(STUBBORN.replace("GRACE", "1000"), root, 8, TERMINATED) as process:
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: said(root))
        process.process.send_signal(signal.SIGTERM)
        assert process.line(SOON) == "left"
        assert process.process.wait(DEADLINE) == -signal.SIGTERM
    assert are_gone(root)


OWN_HANDLER = """
def handle(*_):
    say("mine")

def work():
    assert signal.getsignal(signal.SIGTERM) is handle
    batch(range(4), plain)

signal.signal(signal.SIGTERM, handle)
"""


def test_a_handler_of_the_programs_own_is_left_alone(root: Path) -> None:
    """The batch goes on as the handler wants it."""
    main = MAIN + "\nassert signal.getsignal(signal.SIGTERM) is handle"
    with begun(OWN_HANDLER, root, 4, main) as process:
        process.process.send_signal(signal.SIGTERM)
        assert process.line() == "mine"
        Path(f"{root}.go").touch()
        assert process.line() == "done"
        process.end()


AFTER = """
def work():
    batch(range(1), plain)
    sys.stdout.flush()

def fork():
    pid = os.fork()
    if pid == 0:
        time.sleep(DEADLINE)
        os._exit(1)
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_the_default_action_is_put_back_after_the_work(root: Path) -> None:
    """Also after a run that was left in another thread; and a forked child dies of SIGTERM at once."""
    Path(f"{root}.go").touch()
    main = """
with workflow:
    work()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert fork() == -signal.SIGTERM
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
workflow.__enter__()
other = threading.Thread(target=workflow.__exit__, args=(None, None, None))
other.start()
other.join()
say("idle")
time.sleep(DEADLINE)
"""
    with begun(AFTER, root, 1, main) as process:
        assert process.line() == "idle"
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(DEADLINE) == -signal.SIGTERM
