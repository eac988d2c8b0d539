"""What has to be known of the machine's processes to find and end some of them."""

from __future__ import annotations

from typing import Protocol

import attrs

__all__ = ["MARK", "SEPARATOR", "Entry", "Process", "ProcessTable", "is_among"]

MARK = "ISO_ORCHESTRATOR_MARK"
"""The environment variable that has the marks of the commands around a process, the innermost last."""

SEPARATOR = ":"


@attrs.frozen
class Process:
    """One process, which no later one of the same number is taken for.

    Attributes:
        pid: Its number.
        started: When it began, by a clock of its table.
    """

    pid: int
    started: float


@attrs.frozen
class Entry:
    """What a table says of a process.

    Attributes:
        parent: The number of its parent, which is another one once that has died.
        is_alive: False for one that has ended and whose parent has not taken note of it (a zombie).
    """

    process: Process
    parent: int
    is_alive: bool


class ProcessTable(Protocol):
    """The machine's processes."""

    def pids(self) -> set[int]:
        """The numbers of all."""
        ...

    def has(self, pid: int, mark: str) -> bool:
        """Whether one is alive and has *mark* among its marks; False where it may not be looked at."""
        ...

    def entry(self, pid: int) -> Entry | None:
        """What is known of one; None where there is none."""
        ...

    def terminate(self, process: Process) -> None:
        """Ask one to end, and wake it for that if it is stopped; nothing where it is gone or another user's."""
        ...

    def kill(self, process: Process) -> None:
        """Have the system end one; nothing likewise."""
        ...


def is_among(mark: str, marks: str) -> bool:
    """Whether *mark* is one of a variable's marks."""
    return mark in marks.split(SEPARATOR)
