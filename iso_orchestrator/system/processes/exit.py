"""Learning at once that a process of ours has ended."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from typing import Protocol, TypeAlias

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.system.interrupts import OneShotEvent, start

__all__ = ["ChildProcess", "Exit", "ExitByDescriptor", "ExitByThread", "exit_code", "exit_of"]

ChildProcess: TypeAlias = "subprocess.Popen[bytes]"

_LONGEST_POLL = 86_400  # seconds; poll() takes milliseconds of 31 bits


class Exit(Protocol):
    """The end of a process."""

    def wait(self, timeout: float) -> bool:
        """Wait for it, at most so many seconds; whether it has come."""
        ...

    def close(self) -> None:
        """Wait no more."""
        ...


class ExitByDescriptor:
    """By a descriptor that can be read when the process has ended. It leaves the exit code where it is.

    Raises:
        OSError: There are no such descriptors here, or no more.
    """

    def __init__(self, process: ChildProcess) -> None:
        if not hasattr(os, "pidfd_open"):
            raise OSError("this system or interpreter has no pidfd_open")
        self._fd = os.pidfd_open(process.pid)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def wait(self, timeout: float) -> bool:
        """As `Exit.wait`."""
        return bool(self._poll.poll(min(timeout, _LONGEST_POLL) * 1000))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class ExitByThread:
    """By a thread that waits for the process, wherever there is no such descriptor."""

    def __init__(self, process: ChildProcess) -> None:
        self._process = process
        self._ended = OneShotEvent()
        start(threading.Thread(target=self._await, name="iso-orchestrator command", daemon=True).start)

    def wait(self, timeout: float) -> bool:
        """As `Exit.wait`. For one thread."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """Nothing to do: the thread ends with the process."""

    def _await(self) -> None:
        try:
            if hasattr(os, "waitid"):
                _has_code(self._process.pid)  # it leaves the code where it is, for `exit_code`
            else:
                self._process.wait()
        finally:
            self._ended.set()


def exit_of(process: ChildProcess) -> Exit:
    """The end of *process*, by what there is."""
    try:
        return ExitByDescriptor(process)
    except OSError:
        return ExitByThread(process)


def exit_code(process: ChildProcess) -> int:
    """The exit code of *process*, which has ended.

    Raises:
        WorkflowUsageError: It is lost. `Popen` would say 0, and a failure would be a success.
    """
    is_lost = process.returncode is None and hasattr(os, "waitid") and not _has_code(process.pid)
    code = process.wait()
    if is_lost:
        raise WorkflowUsageError(
            f"the exit code of process {process.pid} is lost: this program ignores SIGCHLD, or waits for children that "
            "are not its own; it must do neither while commands run"
        )
    return code


def _has_code(pid: int) -> bool:
    """Wait for the end of a process; whether it has left its exit code, which stays there."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
