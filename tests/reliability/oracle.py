"""What happened, kept outside of the store; its checker; and processes so cheap that hundreds can be killed."""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
from support import DEADLINE

from iso_orchestrator import StepStatus, Workflow, WorkflowRecord
from iso_orchestrator.testing import crash_here

__all__ = [
    "PHASES",
    "Line",
    "Link",
    "Nursery",
    "Oracle",
    "Process",
    "Room",
    "die",
    "held_locks",
    "phases_of_kills",
    "violations",
    "violations_of_leases",
    "violations_of_record",
]

_TESTS = Path(__file__).parent.parent


def held_locks(root: Path) -> list[str]:
    """The lock files under *root* that somebody holds, as the kernel says."""
    return [str(path.relative_to(root)) for path in sorted((root / "locks").rglob("*.*lock")) if _is_held(path)]


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# What happened


@attrs.frozen
class Line:
    """One thing that happened.

    Attributes:
        who: The process, by a name that no other has: process ids come again.
        thread: Which of its threads.
        what: The kind: see `violations`.
        about: The step or key, or "".
        value: What belongs to it.
    """

    who: str
    thread: str
    what: str
    about: str = ""
    value: Any = None


class Oracle:
    """A file to which every process appends what it does, each line in one piece, so that they are in order.

    Args:
        path: The file.
        who: The process that writes.
        last: A kind of line, after the first of which this process kills itself, and how many seconds after it.
    """

    def __init__(self, path: Path | str, who: str, last: tuple[str, float] | None = None) -> None:
        self.who = who
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._read = 0
        self._last = last

    def say(self, what: str, about: str = "", value: Any = None) -> None:
        """Write that something happened."""
        line = [self.who, threading.current_thread().name, what, about, value]
        # A kill may cut a write where it crosses a page: the line ends there, and the next begins on its own.
        os.write(self._fd, b"\n" + json.dumps(line).encode() + b"\n")
        if self._last is not None and self._last[0] == what:
            self._die_in(self._last[1])

    def news(self) -> list[Line]:
        """What was written since the last call."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size - self._read, self._read)
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        return [Line(*json.loads(line)) for line in data.splitlines() if line.endswith(b"]")]

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _die_in(self, seconds: float) -> None:
        self._last = None
        if not seconds:
            die(self)
        timer = threading.Timer(seconds, die, (self,))
        timer.daemon = True
        timer.start()


def die(oracle: Oracle) -> None:
    """Kill this process, and say so first: who takes over may be quicker than who would see that it is gone."""
    oracle.say("kill", oracle.who)
    crash_here()


class Room:
    """Where one at a time may be: a number that is read, changed and written, and a file that is made and removed.

    It has no lock of any kind.

    Args:
        folder: Where it is.
        name: Which one: the same for all who are kept apart.

    Attributes:
        overlaps: Who was found where nobody should have been.
    """

    def __init__(self, folder: Path, name: str = "room") -> None:
        self.overlaps: list[str] = []
        self._name = name
        self._flag = folder / f"{name}.flag"
        self._number = folder / f"{name}.number"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in there."""
        number = self.entries()
        try:
            os.close(os.open(self._flag, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            self.overlaps.append(f"process {os.getpid()}, in {self._name} at {number}")
            yield
            return
        yield
        self._number.write_text(str(number + 1))
        self._flag.unlink(missing_ok=True)

    def entries(self) -> int:
        """How many were in there."""
        return int(self._number.read_text() or "0") if self._number.exists() else 0


PHASES = {
    "opening": "in opening",
    "call": "before the start",
    "begin": "in the body",
    "end": "between body and completion",
    "leaving": "in leaving",
    "told": "after the completion",
    "wants": "waiting for a mutex",
    "enter": "in a mutex",
    "adding": "in changing the state",
    "leasing": "in acquiring a lease",
    "leased": "in a lease",
}
"""Where a thread is that was killed, by the last thing that it had said."""


def phases_of_kills(lines: Iterable[Line]) -> Counter[str]:
    """How many kills found a thread in each phase."""
    last: dict[str, dict[str, str]] = defaultdict(dict)
    found: Counter[str] = Counter()
    for line in lines:
        if line.what != "kill":
            last[line.who][line.thread] = line.what
        else:
            found.update({PHASES[what] for what in last.pop(line.about, {}).values() if what in PHASES})
    return found


# The checker


def violations(lines: Iterable[Line]) -> list[str]:
    """The promises that were broken, as far as that is seen from outside.

    It knows these kinds of lines, and what they are about: ``begin`` and ``end`` (a body, with what it returns),
    ``told`` (a caller got that), ``interrupted`` (a caller got that the outcome is not known), ``enter`` and ``leave``
    (a mutex), ``added`` (the state's counter, with what it was then), ``leasing`` and ``leased`` (a lease: it was asked
    for, and had with a token), ``kill`` (whom, before it happens). A step whose name begins with "once" must not begin
    twice.
    """
    checker = _Checker()
    for line in lines:
        checker.take(line)
    return checker.found


class _Checker:
    def __init__(self) -> None:
        self.found: list[str] = []
        self._killed: set[str] = set()
        self._inside: dict[str, Line] = {}
        self._begun: set[str] = set()
        self._ended: set[tuple[str, Any]] = set()
        self._told: dict[str, Any] = {}
        self._interrupted: set[str] = set()
        self._added: set[int] = set()
        self._tokens: dict[str, set[int]] = defaultdict(set)
        self._highest_before: dict[tuple[str, str, str], int] = {}
        self._checks: dict[str, Callable[[Line], None]] = {
            "kill": self._kill,
            "begin": self._begin,
            "end": self._end,
            "told": self._tell,
            "interrupted": self._interrupt,
            "enter": self._come_in,
            "leave": self._go_out,
            "added": self._add,
            "leasing": self._ask_for_lease,
            "leased": self._lease,
        }

    def take(self, line: Line) -> None:
        check = self._checks.get(line.what)
        if check is not None:
            check(line)

    def _blame(self, line: Line, what: str) -> None:
        self.found.append(f"{line.what} {line.about}: {what} ({line.who}, {line.thread}, {line.value!r})")

    def _kill(self, line: Line) -> None:
        self._killed.add(line.about)

    def _begin(self, line: Line) -> None:
        if line.about in self._told:
            self._blame(line, "it runs again after its acknowledgement")
        if line.about.startswith("once") and line.about in self._begun:
            self._blame(line, "it begins twice, and must not")
        self._begun.add(line.about)
        self._come_in(line)

    def _end(self, line: Line) -> None:
        self._ended.add((line.about, line.value))
        self._go_out(line)

    def _tell(self, line: Line) -> None:
        if (line.about, line.value) not in self._ended:
            self._blame(line, "no body has returned that")
        if self._told.setdefault(line.about, line.value) != line.value:
            self._blame(line, f"others were told {self._told[line.about]!r}")
        if line.about in self._interrupted:
            self._blame(line, "others were told that it was interrupted")

    def _interrupt(self, line: Line) -> None:
        self._interrupted.add(line.about)
        if line.about in self._told:
            self._blame(line, "it was acknowledged before")

    def _come_in(self, line: Line) -> None:
        other = self._inside.get(line.about)
        if other is not None and other.who not in self._killed:
            self._blame(line, f"{other.who}, {other.thread} is in there")
        self._inside[line.about] = line

    def _go_out(self, line: Line) -> None:
        other = self._inside.pop(line.about, None)
        if other is None or (other.who, other.thread) != (line.who, line.thread):
            self._blame(line, f"{f'{other.who}, {other.thread}' if other else 'nobody'} was in there")

    def _add(self, line: Line) -> None:
        if line.value in self._added:
            self._blame(line, "two were told that number: an update is lost")
        self._added.add(line.value)

    def _ask_for_lease(self, line: Line) -> None:
        self._highest_before[line.who, line.thread, line.about] = max(self._tokens[line.about], default=0)

    def _lease(self, line: Line) -> None:
        # Who comes late to say so may have lost it to a higher one by now.
        if line.value <= self._highest_before[line.who, line.thread, line.about]:
            self._blame(line, "a higher token was handed out before it was asked for")
        if line.value in self._tokens[line.about]:
            self._blame(line, "two were handed that token")
        self._tokens[line.about].add(line.value)


def violations_of_record(lines: Iterable[Line], record: WorkflowRecord) -> list[str]:
    """What the record should have of *lines*, and has not.

    A step's body counts itself once in the state's "steps"; who says ``added`` has counted in its "adds".
    """
    lines = list(lines)
    begun = Counter(line.about for line in lines if line.what == "begin")
    last = {line.about: line.value for line in lines if line.what == "begin"}
    told = {line.about: line.value for line in lines if line.what == "told"}
    found = []
    for name, value in told.items():
        step = record.steps.get(name)
        if step is None or step.status is not StepStatus.COMPLETED or step.result != value:
            found.append(f"{name}: {value!r} was acknowledged, and lost: {step}")
    for name, step in record.steps.items():
        completed = step.status is StepStatus.COMPLETED
        if completed and step.result != last.get(name):
            found.append(f"{name}: it has {step.result!r}, and the last to begin, {last.get(name)!r}, ran for nothing")
        if step.attempts < begun[name]:
            found.append(f"{name}: {step.attempts} attempts are on record, and {begun[name]} bodies began")
        if record.state["steps"].get(name, 0) != int(completed):
            found.append(f"{name}: {step.status}, and counted {record.state['steps'].get(name, 0)} times")
    added = [line.value for line in lines if line.what == "added"]
    adding = sum(line.what == "adding" for line in lines)
    if not max(added, default=0) <= record.state["adds"] <= adding:
        found.append(f"adds: {max(added, default=0)} acknowledged, {record.state['adds']} on record, {adding} tried")
    return found + violations_of_leases(record)


def violations_of_leases(record: WorkflowRecord) -> list[str]:
    """The events of type "under" (detail: lease and token) that are on record after a newer token."""
    found = []
    tokens: Counter[str] = Counter()
    for event in record.events:
        if event.type == "lease.acquired":
            tokens[event.detail["key"]] += 1
        elif event.type == "under" and event.detail["token"] != tokens[event.detail["lease"]]:
            found.append(f"{event.detail} is on record under token {tokens[event.detail['lease']]}")
    for key, lease in record.leases.items():
        if lease.token != tokens[key]:
            found.append(f"lease {key}: token {lease.token} after {tokens[key]} acquisitions")
    return found


# Processes


class Link:
    """One end of a line between a test and a process, over which messages go in JSON."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._data = b""

    def fileno(self) -> int:
        """For `select`: it can be read when a message came, or the other end is gone."""
        return self._end.fileno()

    def say(self, message: Any = None) -> None:
        """Send a message."""
        self._end.sendall(json.dumps(message).encode() + b"\n")

    def hear(self, deadline: float = DEADLINE) -> Any:
        """The next message.

        Raises:
            EOFError: The other end is gone.
            TimeoutError: Nothing came for *deadline* seconds.
        """
        self._end.settimeout(deadline)
        while b"\n" not in self._data:
            part = self._receive()
            if not part:
                raise EOFError("the other end is gone")
            self._data += part
        message, _, self._data = self._data.partition(b"\n")
        return json.loads(message)

    def close(self) -> None:
        """Hang up."""
        self._end.close()

    def _receive(self) -> bytes:
        try:
            return self._end.recv(1 << 16)
        except ConnectionResetError:  # it was killed with messages unread
            return b""


class Process:
    """A process that a nursery has forked, and the line to it."""

    def __init__(self, nursery: Nursery, pid: int, link: Link) -> None:
        self.pid = pid
        self.link = link
        self.exit_code: int | None = None
        self._nursery = nursery

    def say(self, message: Any = None) -> None:
        """Tell it something."""
        self.link.say(message)

    def hear(self, deadline: float = DEADLINE) -> Any:
        """What it says."""
        try:
            return self.link.hear(deadline)
        except EOFError:
            raise AssertionError(f"the process ended with {self.collect()} before it said a thing") from None

    def stop(self) -> None:
        """SIGSTOP; return when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        self.until_stopped()

    def until_stopped(self) -> None:
        """Wait until it stands still by itself."""
        status = self._nursery.ask("until stopped", self.pid)
        assert os.WIFSTOPPED(status), f"the process ended with {status}"

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self, *, hang_up: bool = True) -> None:
        """SIGKILL, and wait until it is gone; its own children hear of it when we *hang_up*."""
        os.kill(self.pid, signal.SIGKILL)
        self.collect(hang_up=hang_up)

    def collect(self, *, hang_up: bool = True) -> int:
        """Wait until it is gone; its exit code, which for a signal is minus its number."""
        if self.exit_code is None:
            self.exit_code = self._nursery.ask("collect", self.pid)
        if hang_up:
            self.link.close()
        return self.exit_code

    def end(self) -> None:
        """Wait until it ends by itself, well."""
        code = self.collect()
        assert code == 0, f"the process ended with {code}"


class Nursery:
    """A process that has everything imported and nothing open, and forks others: two milliseconds each.

    Args:
        module: Whose functions they are to do.

    Example:
        with Nursery(__name__) as nursery:
            process = nursery.start(work, "an argument")

    where ``work(link, argument)`` is the whole life of the process.
    """

    def __init__(self, module: str) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(map(str, [_TESTS.parent, _TESTS, _TESTS / "reliability"]))
        code = f"from reliability.oracle import serve; serve({theirs.fileno()}, {module!r})"
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", "-W", "ignore:recorded before a change", "-c", code],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()
        self._end = ours
        self._link = Link(ours)
        self._processes: list[Process] = []

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()
        self._link.close()
        self._server.wait(DEADLINE)

    def start(self, function: Callable[..., None], *args: Any) -> Process:
        """Fork a process for a function of the module, which is given the line to the test, and *args* as JSON."""
        ours, theirs = socket.socketpair()
        with theirs:
            request = json.dumps(["start", function.__name__, args]).encode()
            socket.send_fds(self._end, [request], [theirs.fileno()])
            pid = self._link.hear()
        process = Process(self, pid, Link(ours))
        self._processes.append(process)
        return process

    def ask(self, what: str, pid: int) -> Any:
        """Have the server wait for a change of its child."""
        self._link.say([what, pid])
        return self._link.hear()

    def kill_all(self) -> None:
        """Kill what a test has left behind."""
        for process in self._processes:
            if process.exit_code is None:
                with suppress(TimeoutError, EOFError):
                    process.kill()
        self._processes.clear()


def serve(fd: int, name: str) -> None:
    """What the nursery's process does until the test hangs up."""
    end = socket.socket(fileno=fd)
    module = importlib.import_module(name)
    _warm_up()
    link = Link(end)
    children: set[int] = set()
    ended: dict[int, int] = {}
    while True:
        data, fds, _, _ = socket.recv_fds(end, 1 << 16, 1)
        if not data:
            break
        what, *rest = json.loads(data)
        if what == "start":
            pid = _fork(end, fds[0], getattr(module, rest[0]), rest[1])
            children.add(pid)
            os.close(fds[0])
            link.say(pid)
        else:
            pid = rest[0]
            status = ended.get(pid)
            if status is None:
                _, status = os.waitpid(pid, os.WUNTRACED if what == "until stopped" else 0)
            if not os.WIFSTOPPED(status):
                children.discard(pid)
                ended[pid] = status
            if what == "collect":
                del ended[pid]
            link.say(os.waitstatus_to_exitcode(status) if what == "collect" else status)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    end.close()


def _fork(server_end: socket.socket, fd: int, function: Callable[..., None], args: list[Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        server_end.close()
        with socket.socket(fileno=fd) as end:
            function(Link(end), *args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _warm_up() -> None:
    """Load what is loaded on first use, and leave nothing open: a child owns nothing of its parent's."""
    with tempfile.TemporaryDirectory() as folder:
        workflow = Workflow("warm", dir=folder)
        with workflow, workflow.mutex("key"), workflow.lease("lease"):
            workflow.run_for_each([1], lambda n: workflow.run_step("step", lambda: n), mutex_key="other")
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(DEADLINE)
    gc.collect()
    gc.freeze()
