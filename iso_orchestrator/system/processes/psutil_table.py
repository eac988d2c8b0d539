"""The processes of systems without /proc, by psutil."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.system.processes.table import MARK, Entry, Process, is_among

__all__ = ["PsutilProcessTable"]


class PsutilProcessTable:
    """The processes of this machine.

    Raises:
        WorkflowUsageError: psutil is not installed.
    """

    def __init__(self) -> None:
        try:
            import psutil  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise WorkflowUsageError(
                'commands need psutil here, to find all that they start: pip install "iso-orchestrator[command]"'
            ) from error
        self._psutil: Any = psutil

    def pids(self) -> set[int]:
        """The numbers of all."""
        return set(self._psutil.pids())

    def has(self, pid: int, mark: str) -> bool:
        """Whether one is alive and has *mark* among its marks."""
        try:
            return is_among(mark, self._psutil.Process(pid).environ().get(MARK, ""))
        except (self._psutil.Error, OSError):
            return False

    def entry(self, pid: int) -> Entry | None:
        """What is known of one."""
        try:
            process = self._psutil.Process(pid)
            is_alive = process.status() not in (self._psutil.STATUS_ZOMBIE, self._psutil.STATUS_DEAD)
            return Entry(Process(pid, process.create_time()), process.ppid(), is_alive)
        except self._psutil.Error:
            return None

    def terminate(self, process: Process) -> None:
        """Ask one to end, and wake it for that if it is stopped."""
        self._do(process, "terminate", "resume")

    def kill(self, process: Process) -> None:
        """Have the system end one."""
        self._do(process, "kill")

    def _do(self, process: Process, *methods: str) -> None:
        with suppress(self._psutil.Error):
            found = self._psutil.Process(process.pid)
            if found.create_time() == process.started:
                for method in methods:
                    getattr(found, method)()  # which looks at the time of its start again
