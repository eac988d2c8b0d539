"""Runs a command as a command step would: bounded in time, and with nobody left behind."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import attrs

__all__ = ["Ended", "run"]

_GRACE = 6.0  # seconds until SIGKILL
_IN_TOOL = 2.0  # seconds
_MARK = "ISO_TEST_MARK"  # in the environment: finds whoever descends from the command, whatever became of its parents


@attrs.frozen
class Ended:
    """How a command ended: as `subprocess` has it, and why it was stopped if it was.

    Attributes:
        left_behind: How many of its descendants were alive when it was over; they are dead now.
    """

    exit_code: int
    stderr: bytes
    stopped: str | None
    seconds: float
    left_behind: int


@attrs.frozen
class Watch:
    """What is done about a command while it runs.

    Attributes:
        line: Called with each line of its standard output.
        signal: Sent to it two seconds after `is_in_tool` is true.
        is_in_tool: Asked with its descendants' commands.
        idle: Seconds without a line until it is stopped.
    """

    line: Callable[[bytes], None]
    signal: signal.Signals | None
    is_in_tool: Callable[[list[str]], bool]
    idle: float


def run(args: tuple[str, ...], text: str, cwd: Path, env: dict[str, str], watch: Watch) -> Ended:
    """Run a command to its end, or make one."""
    mark = uuid4().hex
    start = time.monotonic()
    process = subprocess.Popen(
        args,
        cwd=cwd,
        env={**env, _MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_signals_as_they_should_be,
    )
    readers = _Readers(process)
    _give_input(process, text)
    stopped = _follow(process, readers, watch, mark)
    seconds = time.monotonic() - start
    left_behind = _kill_all(mark)
    return Ended(process.wait(), readers.stderr(watch.line), stopped, seconds, left_behind)


def _signals_as_they_should_be() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in a shell's background


def _give_input(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(text.encode())


def _follow(process: subprocess.Popen[bytes], readers: _Readers, watch: Watch, mark: str) -> str | None:
    """Until it has ended; why it was made to, if it was."""
    last_line = time.monotonic()
    tool_since: float | None = None
    while process.poll() is None:
        now = time.monotonic()
        if readers.pass_on(watch.line):
            last_line = now
        if watch.signal is not None and tool_since is None and watch.is_in_tool(_commands(mark)):
            tool_since = now
        if watch.signal is not None and tool_since is not None and now - tool_since > _IN_TOOL:
            _end(process, watch.signal)
            return watch.signal.name
        if now - last_line > watch.idle:
            _end(process, signal.SIGTERM)
            return f"no output for {watch.idle:g} s"
    return None


def _end(process: subprocess.Popen[bytes], politely: signal.Signals) -> None:
    process.send_signal(politely)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    process.kill()
    process.wait()


class _Readers:
    """Threads that read both outputs: a child that is left behind may hold them open for ever."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._stderr: list[bytes] = []
        self._threads = [
            threading.Thread(target=_read, args=(process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=_read, args=(process.stderr, self._stderr.append), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def pass_on(self, take: Callable[[bytes], None]) -> bool:
        """Hand on the lines that are there; wait a moment for the first. Whether there was one."""
        any_line = False
        with suppress(queue.Empty):
            while True:
                take(self._lines.get(timeout=0 if any_line else 0.05))
                any_line = True
        return any_line

    def stderr(self, take: Callable[[bytes], None]) -> bytes:
        """What is left: the last lines, and the end of standard error."""
        for thread in self._threads:
            thread.join(5)
        while self.pass_on(take):
            pass
        return b"".join(self._stderr)


def _read(file: object, take: Callable[[bytes], None]) -> None:
    with file as lines:  # type: ignore[attr-defined]
        for line in lines:
            take(line)


def _kill_all(mark: str) -> int:
    """Kill whoever has the mark until nobody has; how many there were."""
    killed: set[int] = set()
    while pids := _marked(mark):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= pids
        time.sleep(0.02)
    return len(killed)


def _commands(mark: str) -> list[str]:
    return [_read_proc(pid, "cmdline").replace(b"\0", b" ").decode("utf-8", "replace") for pid in _marked(mark)]


def _marked(mark: str) -> set[int]:
    wanted = f"{_MARK}={mark}".encode()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if wanted in _read_proc(pid, "environ").split(b"\0")}


def _read_proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # it has gone, or is a zombie
