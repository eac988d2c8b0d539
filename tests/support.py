"""What several test modules share: real child processes, waiting with a deadline, watched files, a few facts."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs

from iso_orchestrator.errors import StoreError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import STORE_URLS, Store, WorkflowLog, find_store
from iso_orchestrator.store.memory import MemoryStore
from iso_orchestrator.system.filesystem import FileSystem

T0 = datetime(2026, 5, 14, 12, 0, 0, 7000, tzinfo=UTC)
DEADLINE = float(os.environ.get("ISO_TESTS_DEADLINE", "60"))
"""Seconds, reached only by what hangs: the tests that run with a planted fault have less, for then something may."""


@attrs.frozen
class StoreKind:
    """A kind of store. All tests of what every store promises use it.

    Attributes:
        scheme: The scheme of its URL.
    """

    scheme: str

    def url(self, path: Path) -> str:
        """The URL of a store at a path where nothing is."""
        return f"{self.scheme}://{quote(str(path))}"

    def __call__(self, path: Path) -> Store:
        """An empty store, at that path if it is on the disk."""
        return find_store(self.url(path), path) if self.is_on_disk else MemoryStore()

    @property
    def is_on_disk(self) -> bool:
        """Whether several processes can share it."""
        return self.scheme != "memory"

    @property
    def takes_fs(self) -> bool:
        """Whether its class takes a path and a `FileSystem`, by which it does all that it does on the disk."""
        return "fs" in signature(type(self(Path("/nowhere")))).parameters

    def with_fs(self, path: Path, fs: FileSystem) -> Any:
        """A store that uses *fs*."""
        return type(self(path))(path, fs)  # type: ignore[call-arg]  # it takes them


STORES = {scheme: StoreKind(scheme) for scheme in (url.partition("://")[0] for url in STORE_URLS)}

Run = Callable[..., tuple[int, str, str]]
"""Runs a command of the package on a root: exit code, output and errors."""

_TESTS = Path(__file__).parent


def at(seconds: float) -> datetime:
    """A moment *seconds* after the first."""
    return T0 + timedelta(seconds=seconds)


def new_fold(workflow_id: str = "w", state: Any = None) -> Projection:
    """The record of a workflow in which nothing has happened."""
    return Projection.new(workflow_id, T0, {} if state is None else state)


def note(text: Any, seconds: float = 0) -> f.EventAppended:
    """The plainest of facts, told apart by its message."""
    return f.EventAppended(at(seconds), "note", str(text))


def notes_of(projection: Projection) -> list[str | None]:
    """The messages of all notes, in order."""
    return [event.message for event in projection.events if event.type == "note"]


def put(log: WorkflowLog, projection: Projection, *facts: f.Fact) -> Projection:
    """What a session does to record *facts*: lock, catch up, append, unlock."""
    log.lock()
    try:
        projection = log.catch_up(projection)
        log.append(projection, facts)
        return projection
    finally:
        log.unlock()


def caught_up(log: WorkflowLog, projection: Projection) -> Projection:
    """*projection* with all that others have written."""
    log.lock()
    try:
        return log.catch_up(projection)
    finally:
        log.unlock()


def looked_at(store: Store, workflow_id: str = "w") -> Projection:
    """The workflow as a reader sees it; it has to be there."""
    projection = store.read(workflow_id)
    assert projection is not None
    return projection


def tree(root: Path | str) -> dict[str, tuple[int, bytes]]:
    """All that is under *root*: mode and bytes by relative path."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        info = path.lstat()
        found[str(path.relative_to(root))] = (info.st_mode, path.read_bytes() if path.is_file() else b"")
    return found


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: for what is tried so often that a disk's syncs would take minutes."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(
        prefix="iso-",
        dir=memory if os.access(memory, os.W_OK) else None,
        ignore_cleanup_errors=True,  # a thread that waited for a lock there may get it, and make the folder again
    ) as folder:
        yield Path(folder)


def without_log(text: str) -> str:
    """What a program has printed on standard error besides the lines of the library's log."""
    return "".join(line for line in text.splitlines(keepends=True) if not re.match(r"workflow '|finishing \d+ ", line))


def wait_until(
    condition: Callable[[], Any], deadline: float = DEADLINE, what: str = "the condition", every: float = 0.002
) -> Any:
    """What *condition* gives as soon as that is true, which is looked at *every* so many seconds, later less often.

    Fails after *deadline* seconds.
    """
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        if waited > deadline:
            raise AssertionError(f"{what} did not come about within {deadline:g} s")
        time.sleep(max(every, min(waited / 20, 0.02)))  # some looks read all of /proc, while others need the processor
    return value


def with_stack(left: int, call: Callable[[], Any]) -> Any:
    """Call *call* where so many calls are left before the recursion limit."""
    frame, depth = sys._getframe(), 0
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1

    def deeper(count: int) -> Any:
        return deeper(count - 1) if count > 0 else call()

    return deeper(sys.getrecursionlimit() - depth - left)


def refusal(log: WorkflowLog, projection: Projection) -> StoreError:
    """The error of a log whose files another program has changed: it looks at them every now and then."""

    def refused() -> StoreError | None:
        try:
            caught_up(log, projection)
        except StoreError as error:
            return error
        return None

    found: StoreError = wait_until(refused, what="a refusal")
    return found


class Child:
    """A Python process that a test talks to by lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, deadline: float = DEADLINE) -> str:
        """The next line that it printed."""
        try:
            line = self._lines.get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"the child printed nothing for {deadline:g} s") from None
        if line is None:
            raise AssertionError(f"the child ended with {self.process.wait()} before it printed a line")
        return line

    def say(self, line: str = "") -> None:
        """Hand it a line, which it reads by `input()`."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self, deadline: float = DEADLINE) -> list[str]:
        """Wait until it ends by itself, well; the lines that nobody has read yet."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(deadline)
        self._reader.join(DEADLINE)
        rest = list(iter(self._lines.get, None))
        assert code == 0, f"the child ended with {code}, its last lines: {rest[-5:]}"
        return rest

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # the end of input for a child of the child too, which has the output open
        self._reader.join(DEADLINE)
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


def run_python(code: str, *args: object, cwd: Path | str | None = None, env: dict[str, str] | None = None) -> Child:
    """Start *code* in a Python process of its own; `sys.argv[1:]` are *args*.

    It can import this module, and prints and reads without buffers. Its standard error is the test's.

    Example:
        with run_python("print(input())") as child:
            child.say("hello")
            assert child.line() == "hello"
    """
    path = os.pathsep.join(filter(None, [str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "error", "-W", "ignore:recorded before a change", "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
    )
    return Child(process)


def waits_for_a_lock(pid: int) -> bool:
    """Whether that process waits in the kernel for a file's lock, as Linux says; True where nobody says."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return True
    return any(" -> " in line and str(pid) in line.split() for line in lines)


class WatchedFS(FileSystem):
    """The real file system, with a list of its calls, and a hook that comes before each.

    Attributes:
        calls: Name and arguments of each call so far.
        before: Called with the same; what it raises is the call's.
    """

    def __init__(self, before: Callable[[str, tuple[Any, ...]], None] | None = None) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.before = before

    def count(self, *names: str) -> int:
        """How many calls of these names there were."""
        return sum(name in names for name, _ in self.calls)


def _watched(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def call(self: WatchedFS, *args: Any) -> Any:
        self.calls.append((name, args))
        if self.before is not None:
            self.before(name, args)
        return real(self, *args)

    return call


for _name in [name for name in vars(FileSystem) if not name.startswith("_")]:
    setattr(WatchedFS, _name, _watched(_name))


def failing(error: BaseException, *names: str, ending: str = "", after: int = 0) -> Callable[..., None]:
    """A hook for `WatchedFS`: the calls of these names raise *error*.

    Args:
        error: What they raise.
        names: Of the methods.
        ending: Only calls whose first argument is a path that ends so.
        after: How many calls go well first.
    """
    left = after

    def before(name: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if name in names and (not ending or str(args[0]).endswith(ending)):
            if left == 0:
                raise error
            left -= 1

    return before


def lines_of(path: Path | str) -> list[bytes]:
    """The lines of a file, with their ends."""
    return Path(path).read_bytes().splitlines(keepends=True)


def only(found: Iterable[Any]) -> Any:
    """The one thing in *found*."""
    (one,) = found
    return one
