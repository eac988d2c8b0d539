"""The processes of Linux, by /proc."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import attrs

from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.processes.table import MARK, Entry, Process, is_among

__all__ = ["LinuxProcessTable"]

_VARIABLE = f"{MARK}=".encode()
_CHUNK = 1 << 15  # bytes; nearly all environments are shorter
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD
_EXEC_LOOKS = 200
_EXEC_PAUSE = 0.0005  # seconds

# It is gone, or has ended; or it is another user's.
_CLOSED = (FileNotFoundError, ProcessLookupError, PermissionError)


class LinuxProcessTable:
    """The processes of this machine, or of this container."""

    def pids(self) -> set[int]:
        """The numbers of all."""
        return {int(name) for name in os.listdir("/proc") if name.isdecimal()}

    def has(self, pid: int, mark: str) -> bool:
        """Whether one is alive and has *mark* among its marks."""
        for _ in range(_EXEC_LOOKS):
            try:
                environment = _read(f"/proc/{pid}/environ")
            except _CLOSED:
                return False
            if environment:
                return mark.encode() in environment and is_among(mark, _marks(environment))
            stat = _Stat.of(pid)
            if stat is None or not stat.may_change_its_program:
                return False
            sleep(_EXEC_PAUSE)
        return False

    def entry(self, pid: int) -> Entry | None:
        """What is known of one."""
        stat = _Stat.of(pid)
        return None if stat is None else Entry(Process(pid, stat.started), stat.parent, stat.is_alive)

    def terminate(self, process: Process) -> None:
        """Ask one to end, and wake it for that if it is stopped."""
        _send(process, signal.SIGTERM, signal.SIGCONT)

    def kill(self, process: Process) -> None:
        """Have the system end one."""
        _send(process, signal.SIGKILL)


@attrs.frozen
class _Stat:
    state: str
    parent: int
    flags: int
    started: int  # ticks since the boot
    environment_start: int  # addresses; 0 as long as there is none
    environment_end: int

    @classmethod
    def of(cls, pid: int) -> _Stat | None:
        try:
            data = _read(f"/proc/{pid}/stat")
        except _CLOSED:
            return None
        # The name stands in parentheses, and can have any of them in it.
        fields = data[data.rfind(b")") + 2 :].split()
        parent, flags, started, start, end = (int(fields[place]) for place in (1, 6, 19, 47, 48))
        return cls(fields[0].decode(), parent, flags, started, start, end)

    @property
    def is_alive(self) -> bool:
        return self.state not in ("Z", "X")

    @property
    def may_change_its_program(self) -> bool:
        """Whether a process without an environment may be between two programs, and about to get one."""
        # First it has no place for one, then an empty one, which it has in its own time, running or waiting for memory.
        is_placed = self.environment_start == self.environment_end != 0
        return self.is_alive and not self.flags & _KERNEL_THREAD and not (is_placed and self.state not in ("R", "D"))


def _marks(environment: bytes) -> str:
    for variable in environment.split(b"\0"):
        if variable.startswith(_VARIABLE):
            return variable.removeprefix(_VARIABLE).decode("ascii", "replace")
    return ""


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = part = os.read(fd, _CHUNK)
        while len(part) == _CHUNK:
            part = os.read(fd, _CHUNK)
            data += part
        return data
    finally:
        os.close(fd)


def _send(process: Process, *signals: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        fd = _open(process.pid)
        try:
            # What is open stays what it is, whatever has the number by then; so it is looked at when it is open.
            stat = _Stat.of(process.pid)
            if stat is None or stat.started != process.started:
                return
            for number in signals:
                if fd is None:
                    os.kill(process.pid, number)
                else:
                    signal.pidfd_send_signal(fd, number)
        finally:
            if fd is not None:
                os.close(fd)


def _open(pid: int) -> int | None:
    """A process as a descriptor; None where kernel or interpreter are too old for that."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, PermissionError):
        raise
    except OSError:
        return None
