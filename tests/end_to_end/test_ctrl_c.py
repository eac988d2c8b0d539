"""Ctrl-C in real processes: what runs is let finish, what waits is dropped, and the record stays true."""

from __future__ import annotations

import os
import random
import signal
import textwrap
import time
from pathlib import Path

import pytest
from support import DEADLINE, Child, wait_until
from support_fanout import codes_of, marks, new_seed
from support_processes import assert_waits, child

from iso_orchestrator import StepStatus, Workflow, WorkflowStatus, read_workflow_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="SIGINT cannot be sent to one process elsewhere"),
]

# A child says what it does in lines that no other thread's can break, and listens in a thread of its own.
FIRST = """
from support_fanout import mark, say_when_main_waits

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background has it ignored
arrived, arrives = os.pipe()
os.set_blocking(arrives, False)
signal.set_wakeup_fd(arrives)

has_told = threading.Event()

def tell(*words):
    if words == ("interrupted",):
        assert has_told.wait(DEADLINE)
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def tell_of_signals():
    while os.read(arrived, 1):
        tell("signal")
        has_told.set()

threading.Thread(target=tell_of_signals, daemon=True).start()

told = threading.Event()

def listen():
    os.read(0, 1)  # a thread that is left in input() would keep the interpreter from ending
    told.set()
"""


def run(code: str, root: Path) -> Child:
    return child(FIRST + code, root)


def interrupt(process: Child) -> None:
    """Press Ctrl-C once, and wait until it has arrived."""
    process.process.send_signal(signal.SIGINT)
    assert process.line() == "signal"


def next_lines(process: Child, count: int) -> list[str]:
    return [process.line() for _ in range(count)]


def steps_of(root: Path) -> dict[str, str]:
    return {name: str(step.status) for name, step in read_workflow_record("w", dir=root).steps.items()}


# for_each


BATCH = """
def apply(item):
    tell("start", item)
    assert told.wait(DEADLINE)
    tell("end", item)
    return item

def batch(keys="012345"):
    return workflow.run_for_each(
        range(6),
        lambda item: workflow.run_step(f"apply:{item}", apply, item),
        max_parallel=2,
        mutex_key=lambda item: keys[item],
    )

threading.Thread(target=listen, daemon=True).start()
try:
    with workflow:
        tell("done", batch().fulfilled)
except KeyboardInterrupt:
    tell("interrupted")
"""


def finish(root: Path) -> list[str]:
    """Run the batch to its end; what it started."""
    with run(BATCH, root) as process:
        process.say()
        lines = []
        while (line := process.line()) != "done 6":
            lines.append(line)
        process.end()
    assert set(steps_of(root).values()) == {"completed"}
    assert read_workflow_record("w", dir=root).status is WorkflowStatus.COMPLETED
    return sorted(line for line in lines if line.startswith("start"))


def test_the_first_ctrl_c_lets_running_items_finish(tmp_path: Path) -> None:
    """Nothing more starts, the interrupt goes on when they have ended, and they are on record."""
    with run(BATCH, tmp_path) as process:
        assert sorted(next_lines(process, 2)) == ["start 0", "start 1"]
        interrupt(process)
        assert_waits(process)
        process.say()
        assert sorted(next_lines(process, 2)) == ["end 0", "end 1"]
        assert process.line() == "interrupted"
        assert process.end() == []
    record = read_workflow_record("w", dir=tmp_path)
    assert steps_of(tmp_path) == {"apply:0": "completed", "apply:1": "completed"}
    assert record.status is WorkflowStatus.FAILED
    assert record.last_error is not None
    assert record.last_error.name == "KeyboardInterrupt"
    assert finish(tmp_path) == [f"start {item}" for item in (2, 3, 4, 5)]


def test_the_second_ctrl_c_stops_waiting_for_them(tmp_path: Path) -> None:
    """The interrupt goes on at once; their threads are joined at the exit, and what they do is on record still."""
    with run(BATCH, tmp_path) as process:
        assert sorted(next_lines(process, 2)) == ["start 0", "start 1"]
        interrupt(process)
        assert_waits(process)
        interrupt(process)
        assert process.line() == "interrupted"
        assert read_workflow_record("w", dir=tmp_path).status is WorkflowStatus.FAILED
        assert_waits(process)
        assert process.process.poll() is None
        process.say()
        assert sorted(next_lines(process, 2)) == ["end 0", "end 1"]
        assert process.end() == []
    assert steps_of(tmp_path) == {"apply:0": "completed", "apply:1": "completed"}
    assert read_workflow_record("w", dir=tmp_path).status is WorkflowStatus.FAILED
    assert finish(tmp_path) == [f"start {item}" for item in (2, 3, 4, 5)]


def test_ctrl_c_drops_items_that_wait_for_one_another(tmp_path: Path) -> None:
    """Items behind the running one of their key never start."""
    with run(BATCH.replace("012345", "AAAAAA"), tmp_path) as process:
        assert process.line() == "start 0"
        interrupt(process)
        assert_waits(process)
        process.say()
        assert next_lines(process, 2) == ["end 0", "interrupted"]
        assert process.end() == []
    assert steps_of(tmp_path) == {"apply:0": "completed"}
    assert finish(tmp_path) == [f"start {item}" for item in (1, 2, 3, 4, 5)]


def test_ctrl_c_drops_items_that_wait_for_another_process(tmp_path: Path) -> None:
    """Where all items wait nothing is waited for, and the keys go to others at once."""
    workflow = Workflow("w", dir=tmp_path)
    waiting = BATCH.replace("012345", "AAAAAA").replace("try:", 'say_when_main_waits("waiting")\ntry:')
    with workflow.mutex("A"), run(waiting, tmp_path) as process:
        assert process.line() == "waiting"
        assert_waits(process)
        interrupt(process)
        assert process.line() == "interrupted"
        process.say()
        assert process.end() == []
    with workflow.mutex("A", timeout=DEADLINE):
        pass
    workflow.close()
    assert steps_of(tmp_path) == {}
    assert finish(tmp_path) == [f"start {item}" for item in range(6)]


def test_ctrl_c_ends_reading_the_items(tmp_path: Path) -> None:
    """A source of items that blocks is left, and what runs is let finish."""
    code = """
        def source():
            yield 0
            wait_for_ctrl_c()
        def work(item):
            tell("start", item)
            assert told.wait(DEADLINE)
            tell("end", item)
        threading.Thread(target=listen, daemon=True).start()
        try:
            workflow.run_for_each(source(), work, max_parallel=2)
        except KeyboardInterrupt:
            tell("interrupted")
        workflow.close()
    """
    with run(textwrap.dedent(code), tmp_path) as process:
        assert process.line() == "start 0"
        interrupt(process)
        assert_waits(process)
        process.say()
        assert next_lines(process, 2) == ["end 0", "interrupted"]
        process.end()


# Elsewhere


def test_ctrl_c_ends_a_wait_for_a_mutex(tmp_path: Path) -> None:
    """Who was interrupted does not get it later, and can ask again."""
    code = """
workflow.append_event("opened")
say_when_main_waits("waiting")
try:
    with workflow.mutex("slot"):
        tell("had it")
except KeyboardInterrupt:
    tell("interrupted")
hear()
with workflow.mutex("slot"):
    tell("had it")
workflow.close()
"""
    workflow = Workflow("w", dir=tmp_path)
    with run(code, tmp_path) as process:
        with workflow.mutex("slot"):
            assert process.line() == "waiting"
            assert_waits(process)
            interrupt(process)
            assert process.line() == "interrupted"
        with workflow.mutex("slot", timeout=DEADLINE):
            pass
        process.say()
        assert process.line() == "had it"
        process.end()
    acquired = codes_of(workflow.record.events, "mutex.acquired", "mutex.released")
    assert acquired == ["mutex.acquired", "mutex.released"] * 3
    workflow.close()


def test_ctrl_c_inside_of_a_mutex_frees_it(tmp_path: Path) -> None:
    """Whoever waits has it when the interrupt has left the `with`."""
    code = """
try:
    with workflow.mutex("slot"):
        tell("in")
        wait_for_ctrl_c()
except KeyboardInterrupt:
    tell("interrupted")
hear()
workflow.close()
"""
    workflow = Workflow("w", dir=tmp_path)
    with run(code, tmp_path) as process:
        assert process.line() == "in"
        interrupt(process)
        assert process.line() == "interrupted"
        with workflow.mutex("slot", timeout=DEADLINE):
            pass
        process.say()
        process.end()
    workflow.close()


STEP = """
def body():
    tell("in")
    wait_for_ctrl_c()

try:
    with workflow:
        workflow.run_step("step", body, retry=3, timeout=TIMEOUT)
except KeyboardInterrupt:
    tell("interrupted")
hear()
"""


@pytest.mark.parametrize("timeout", ["None", "DEADLINE"], ids=["in its thread", "in a thread of its own"])
def test_ctrl_c_in_a_step_fails_it(tmp_path: Path, timeout: str) -> None:
    """It is recorded, not retried, and goes on; the step runs again in the next run."""
    with run(STEP.replace("TIMEOUT", timeout), tmp_path) as process:
        assert process.line() == "in"
        interrupt(process)
        assert process.line() == "interrupted"
        record = read_workflow_record("w", dir=tmp_path)
        process.say()
        process.end()
    step = record.steps["step"]
    assert (step.status, step.attempts) == (StepStatus.FAILED, 1)
    assert step.error is not None
    assert step.error.name == "KeyboardInterrupt"
    assert record.status is WorkflowStatus.FAILED
    with Workflow("w", dir=tmp_path) as workflow:
        assert workflow.run_step("step", lambda: "again") == "again"
    workflow.close()


def test_ctrl_c_between_attempts_ends_the_step(tmp_path: Path) -> None:
    """A pause before a retry is ended at once, and nobody waits for the step."""
    code = """
def fail():
    say_when_main_waits("waiting", "sleep")
    raise OSError("no route")

try:
    workflow.run_step("step", fail, retry=iso_orchestrator.Retry(attempts=3, wait=3600))
except KeyboardInterrupt:
    tell("interrupted")
hear()
"""
    with run(code, tmp_path) as process:
        assert process.line() == "waiting"
        wait_until(lambda: "step.retrying" in [e.type for e in read_workflow_record("w", dir=tmp_path).events])
        interrupt(process)
        assert process.line() == "interrupted"
        workflow = Workflow("w", dir=tmp_path)
        assert workflow.run_step("step", lambda: "here") == "here"
        workflow.close()
        process.say()
        process.end()


RUNNER = """
def body():
    tell("in")
    hear()
    return "theirs"

tell(workflow.run_step("step", body))
workflow.close()
"""

WAITER = """
workflow.append_event("opened")
say_when_main_waits("waiting", "rest")
try:
    workflow.run_step("step", lambda: "mine")
except KeyboardInterrupt:
    tell("interrupted")
hear()
tell(workflow.run_step("step", lambda: "mine"))
workflow.close()
"""


def test_ctrl_c_ends_a_wait_for_another_processs_step(tmp_path: Path) -> None:
    """The one who runs it hears nothing of it, and his is the result."""
    with run(RUNNER, tmp_path) as runner:
        assert runner.line() == "in"
        with run(WAITER, tmp_path) as waiter:
            assert waiter.line() == "waiting"
            interrupt(waiter)
            assert waiter.line() == "interrupted"
            runner.say()
            assert runner.line() == "theirs"
            waiter.say()
            assert waiter.line() == "theirs"
            waiter.end()
        runner.end()
    assert steps_of(tmp_path) == {"step": "completed"}
    assert read_workflow_record("w", dir=tmp_path).steps["step"].attempts == 1


def test_ctrl_c_ends_a_wait_for_another_threads_step(tmp_path: Path) -> None:
    """The thread that runs it goes on, and its result is recorded."""
    code = """
def body():
    tell("in")
    assert told.wait(DEADLINE)
    return "theirs"

runner = threading.Thread(target=workflow.run_step, args=("step", body))
runner.start()
threading.Thread(target=listen, daemon=True).start()
while not workflow.record.steps:
    pass
say_when_main_waits("waiting")
try:
    workflow.run_step("step", lambda: "mine")
except KeyboardInterrupt:
    tell("interrupted")
told.wait(DEADLINE)
tell(workflow.run_step("step", lambda: "mine"))
runner.join()
workflow.close()
"""
    with run(code, tmp_path) as process:
        assert sorted(next_lines(process, 2)) == ["in", "waiting"]
        interrupt(process)
        assert process.line() == "interrupted"
        process.say()
        assert process.line() == "theirs"
        process.end()


def test_ctrl_c_in_a_wait_for_a_sync_leaves_no_other_in_it(tmp_path: Path) -> None:
    """The run ends, with the submitted step that waited for the next sync behind the one who was interrupted."""
    code = """
from contextlib import suppress
from support import wait_until
from support_fanout import is_waiting

main = threading.main_thread().ident
syncing, synced, ends = threading.Event(), threading.Event(), threading.Event()
threads = []

def before(name, args):
    if name == "sync" and not syncing.is_set() and threads:
        syncing.set()
        assert synced.wait(DEADLINE)

def slow():
    threads.append(threading.get_ident())
    assert ends.wait(DEADLINE)

def leaves():
    signal.pthread_kill(main, signal.SIGINT)  # one that comes just as it begins to wait does not wake it
    with suppress(AssertionError):
        return wait_until(lambda: is_waiting(main, "drain"), 5)

def interrupt():
    wait_until(lambda: is_waiting(main, "wait_until_free"))
    ends.set()
    wait_until(lambda: is_waiting(threads[0], "wait_until_free"))
    wait_until(leaves)
    synced.set()

workflow = Workflow("w", store=FileStore(root, fs=WatchedFS(before)))
threading.Thread(target=interrupt, daemon=True).start()
try:
    with workflow:
        workflow.step(name="slow")(slow).submit()
        wait_until(lambda: threads)
        threading.Thread(target=workflow.append_event, args=("leads",)).start()
        assert syncing.wait(DEADLINE)
        workflow.update_state({"n": 1})
except KeyboardInterrupt:
    tell("interrupted")
"""
    with run(code, tmp_path) as process:
        assert next_lines(process, 2) == ["signal", "interrupted"]
        process.end()
    assert steps_of(tmp_path) == {"slow": "completed"}


def test_ctrl_c_ends_a_wait_for_another_run(tmp_path: Path) -> None:
    """With `on_busy="wait"` the wait is ended, and is no run on record."""
    code = """
mine = Workflow("w", dir=root, on_busy="wait")
say_when_main_waits("waiting", "rest")
try:
    with mine:
        tell("in")
except KeyboardInterrupt:
    tell("interrupted")
hear()
with mine:
    tell("in")
mine.close()
"""
    workflow = Workflow("w", dir=tmp_path)
    with run(code, tmp_path) as process:
        with workflow:
            workflow.append_event("mine")
            assert process.line() == "waiting"
            interrupt(process)
            assert process.line() == "interrupted"
            assert workflow.record.status is WorkflowStatus.RUNNING
        process.say()
        assert process.line() == "in"
        process.end()
    events = workflow.record.events
    assert codes_of(events, "workflow.running") == ["workflow.running"] * 2
    assert codes_of(events, "workflow.failed") == []
    workflow.close()


def test_ctrl_c_gives_a_lease_back(tmp_path: Path) -> None:
    """Others have it at once, and the last beat of what was beating is on record."""
    code = """
try:
    with workflow.lease("slot", ttl=3600), workflow.heartbeating("alive", every=3600):
        tell("in")
        wait_for_ctrl_c()
except KeyboardInterrupt:
    tell("interrupted")
hear()
workflow.close()
"""
    with run(code, tmp_path) as process:
        assert process.line() == "in"
        interrupt(process)
        assert process.line() == "interrupted"
        workflow = Workflow("w", dir=tmp_path)
        with workflow.lease("slot") as held:
            assert held.token == 2
        assert codes_of(workflow.record.events, "heartbeat.recorded") == ["heartbeat.recorded"] * 2
        workflow.close()
        process.say()
        process.end()


def test_ctrl_c_that_nobody_catches_ends_the_process_as_ever(tmp_path: Path) -> None:
    """It dies of SIGINT, as a Python script does, and the run is on record as failed."""
    code = """
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.stderr = open(os.devnull, "w")
with workflow:
    tell("in")
    wait_for_ctrl_c()
"""
    with run(code, tmp_path) as process:
        assert process.line() == "in"
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(DEADLINE) == -signal.SIGINT
    record = read_workflow_record("w", dir=tmp_path)
    assert record.status is WorkflowStatus.FAILED
    assert record.last_error is not None
    assert record.last_error.name == "KeyboardInterrupt"


# At any moment


MANY = """
def work(item):
    mark(f"{root}/trace", "start", item)
    time.sleep(0.002)
    mark(f"{root}/trace", "end", item)
    return item

def everything():
    with workflow:
        tell("begun")
        for item in range(4):
            workflow.run_step(f"first:{item}", work, f"first:{item}")
        with workflow.mutex("slot"):
            workflow.run_for_each(
                [f"many:{item}" for item in range(30)],
                lambda item: workflow.run_step(item, work, item),
                max_parallel=2,
                mutex_key=lambda item: item[-1],
            )

try:
    try:
        everything()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
except KeyboardInterrupt:
    tell("interrupted")
else:
    tell("done")
"""


def test_a_batch_that_is_interrupted_again_and_again_gets_done(tmp_path: Path) -> None:
    """Whenever Ctrl-C is pressed, what was completed is not run again, and in the end everything is."""
    seed = new_seed()
    rng = random.Random(seed)
    trace = tmp_path / "trace"
    trace.touch()
    for number in range(6):
        before = len(marks(trace))
        done = {name for name, status in steps_of(tmp_path).items() if status == "completed"} if before else set()
        with run(MANY, tmp_path) as process:
            assert process.line() == "begun"
            if number < 5:
                time.sleep(rng.random() * 0.03)  # what is random is the moment: nothing is waited for
                process.process.send_signal(signal.SIGINT)
            lines = [line for line in process.end() if line != "signal"]
        assert lines[-1] in ("interrupted", "done")
        started = {item for what, item in marks(trace)[before:] if what == "start"}
        assert not started & done
    assert lines[-1] == "done"
    assert len(steps_of(tmp_path)) == 34
    assert set(steps_of(tmp_path).values()) == {"completed"}
    assert read_workflow_record("w", dir=tmp_path).status is WorkflowStatus.COMPLETED


# An interrupt comes where a function begins or has returned. This one comes at each such place of the package in turn,
# and the same thing is done again behind it, with a watch over it.
EVERYWHERE = """
import faulthandler
signal.set_wakeup_fd(-1)
from concurrent.futures import ThreadPoolExecutor
package = os.path.dirname(iso_orchestrator.__file__)

class TooLong(BaseException):
    pass

def on_alarm(*_):
    raise TooLong

signal.signal(signal.SIGALRM, on_alarm)

def step(n):
    return workflow.run_step(f"step:{n}", lambda: n)

def mutex(n):
    with workflow.mutex("slot"):
        return n

def event(n):
    workflow.append_event("event")
    return n

runs = {}

def run(n):
    if n not in runs:  # a new one each time, else there is more and more to fold
        runs[n] = Workflow(f"run {n}", dir=root)
    with runs[n]:
        return n

def lease(n):
    with workflow.lease("slot", holder="me", ttl=3600):
        return n

def for_each(n):
    workflow.run_for_each("ab", str, max_parallel=2, mutex_key=lambda item: item)
    return n

def alone(n):
    done = []
    workflow.run_for_each("ab", done.append, mutex_key=lambda item: item)
    return n

pool = ThreadPoolExecutor(1)

def queued(n):
    pool.submit(threading.Event().wait, 0.003)  # so that the workers have not begun yet
    workflow.run_for_each("ab", str, max_parallel=2, executor=pool)
    return n

def beating(n):
    with workflow.heartbeating("beat", every=3600):
        return n

def is_too_early(frame, event):
    # Before __exit__ has masked the signal, nothing can be done about it.
    if event == "call" and frame.f_code.co_name == "__exit__":
        return True
    while frame.f_code.co_filename.endswith("interrupts.py"):
        if frame.f_code.co_qualname == "masked.__enter__":
            return frame.f_back.f_code.co_name == "__exit__"
        frame = frame.f_back
    return False

def places(work, n, chosen=0):
    # How many places *work* has, and where number *chosen* is, at which it was interrupted.
    count, where = 0, None
    def look(frame, event, arg):
        nonlocal count, where
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(package):
            return
        if is_too_early(frame, event):
            return
        count += 1
        if count == chosen:
            sys.setprofile(None)
            where = f"{frame.f_code.co_name}, {os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}, {event}"
            signal.raise_signal(signal.SIGINT)
    try:
        sys.setprofile(look)
        try:
            work(n)
        finally:
            sys.setprofile(None)
    except KeyboardInterrupt:
        return count, where
    return count, None if where is None else where + " (nobody heard of it)"

work = globals()[hear()]
workflow.append_event("opened")
work("first")  # what is made only once is made
count, _ = places(work, "second")
for place in range(1, count + 1):
    faulthandler.dump_traceback_later(60, exit=True)
    _, where = places(work, place, place)
    tell("interrupted in", where)
    signal.setitimer(signal.ITIMER_REAL, 40)
    try:
        assert work(place) == place
    except BaseException as error:
        tell(f"{type(error).__name__}: {error}"[:300])
        os._exit(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
faulthandler.cancel_dump_traceback_later()
tell("everywhere", count)
"""


@pytest.mark.parametrize("what", ["event", "step", "mutex", "lease", "beating", "for_each", "alone", "queued", "run"])
def test_an_interrupt_at_any_place_leaves_nothing_that_one_would_wait_for(memory_path: Path, what: str) -> None:
    """The same call in the same process, as in a notebook, works after it was interrupted anywhere in the package."""
    with run(EVERYWHERE, memory_path) as process:
        process.say(what)
        lines = [process.line()]
        while lines[-1].startswith("interrupted in"):
            assert not lines[-1].endswith("(nobody heard of it)"), lines[-1]
            lines.append(process.line())
        assert lines[-1].startswith("everywhere"), lines[-2:]
        assert len(lines) > 10
        process.end()


# The first Ctrl-C comes while the items are read, the second at one of the places that follow. Workers are in the
# middle of an item all the time.
AGAIN = """
import faulthandler
signal.set_wakeup_fd(-1)
from concurrent.futures import ThreadPoolExecutor
package = os.path.dirname(iso_orchestrator.__file__)

def places(chosen):
    # How many places there are, where number *chosen* is, and how many items began and ended.
    count, where, begun, gate, executor = 0, None, [], threading.Event(), ThreadPoolExecutor(2)

    def look(frame, event, arg):
        nonlocal count, where
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(package):
            return
        count += 1
        if count == chosen:
            sys.setprofile(None)
            where = f"{frame.f_code.co_qualname}:{frame.f_lineno}, {event}"
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            signal.raise_signal(signal.SIGINT)

    def items():
        yield from range(10)
        sys.setprofile(look)
        signal.raise_signal(signal.SIGINT)

    def work(item):
        begun.append(item)
        gate.wait()

    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.2)  # the last one, in the wait for the workers
    try:
        workflow.run_for_each(items(), work, max_parallel=2, executor=executor)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.setprofile(None)
    gate.set()
    executor.shutdown()
    return where, len(begun)

faulthandler.dump_traceback_later(60, exit=True)
workflow.run_for_each(range(2), str, max_parallel=2)  # what a process loads at its first batch may take 0.2 s
place, where = 0, "before"
while where is not None:
    place += 1
    where, begun = places(place)
    tell(where, begun)
"""


def test_a_second_ctrl_c_right_after_the_first_starts_no_item(memory_path: Path) -> None:
    """Programs that start others often send SIGINT too when the terminal has sent it to all of them."""
    with run(AGAIN, memory_path) as process:
        lines = process.end()
    assert len(lines) > 20
    assert [line for line in lines if int(line.split()[-1]) > 2] == []
