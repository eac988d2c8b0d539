"""Finding all that a command has started, whatever sessions and parents that is in by then.

A command is started with a *mark*, a word that nobody can guess, in its environment. Whatever it starts inherits that,
and is found by it: children in sessions of their own, and those whose parents have died. On Linux the environments are
read from ``/proc``, elsewhere by psutil. Children of what was found belong to it with or without the mark.

Not found, once its parents have ended too, is a process that has cleared its environment or written a title over it
(PostgreSQL and nginx do), or that may not be looked at: another user's, as under ``sudo``, or one that has made itself
undumpable. As long as it has the command's standard output open it is noticed all the same, by the lock on that file
(`command_log`), unless the file was removed. Nor is found what somebody else was asked to start: cron, systemd, a
container's daemon. A server that a command
leaves behind for later ones, as those of tmux and of build tools, is found, and ended with the rest.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.system.processes.linux_table import LinuxProcessTable
from iso_orchestrator.system.processes.psutil_table import PsutilProcessTable
from iso_orchestrator.system.processes.table import MARK, SEPARATOR, Entry, Process, ProcessTable

__all__ = ["check_mark", "find", "is_alive", "living_tree", "marked", "marked_environment", "process_table"]

_PASSES = 50
_MARK = re.compile(r"[A-Za-z0-9._-]+")


def check_mark(mark: str) -> str:
    """*mark*, if it can be one.

    Raises:
        ValueError: It has other characters than letters, digits, ``.``, ``_`` and ``-``; or none.
    """
    if not _MARK.fullmatch(mark):
        raise ValueError(f"a mark must be of letters, digits, '.', '_' and '-': {mark!r:.80}")
    return mark


def marked_environment(env: Mapping[str, str] | None, mark: str) -> dict[str, str]:
    """The environment *env*, or this process's, with *mark* behind the marks that this process has itself.

    So a command inside of a command is found by the marks of both.
    """
    outer = os.environ.get(MARK)
    marks = f"{outer}{SEPARATOR}{check_mark(mark)}" if outer else check_mark(mark)
    return {**(os.environ if env is None else env), MARK: marks}


def find(mark: str) -> list[int]:
    """The process ids of all who have *mark*, in order; their children without it are not among them.

    Raises:
        WorkflowUsageError: There is neither ``/proc`` nor psutil.
    """
    return sorted(process.pid for process in marked(mark))


def marked(mark: str) -> Iterator[Process]:
    """All who have *mark*, each as soon as it is seen."""
    table, mark = process_table(), check_mark(mark)
    seen: set[int] = set()
    # One that is born after the list was made, and whose parent has died before its turn, is on the next list. A list
    # without new ones proves that nobody was missed.
    for _ in range(_PASSES):
        new = table.pids() - seen
        if not new:
            break
        seen |= new
        for pid in new:
            # Looked at twice: in between, the number may have gone to another process.
            if table.has(pid, mark) and (entry := table.entry(pid)) is not None and table.has(pid, mark):
                yield entry.process


def living_tree(mark: str, known: Collection[Process] = ()) -> set[Process]:
    """All who are alive of those who have *mark*, of the *known* ones, and of the descendants of both.

    When there is none, nobody is left.

    Raises:
        WorkflowUsageError: This process is one of them; or there is neither ``/proc`` nor psutil.
    """
    table = process_table()
    roots = {*marked(mark), *(process for process in known if is_alive(process))}
    if not roots:
        return set()
    entries = {pid: entry for pid in table.pids() if (entry := table.entry(pid)) is not None}
    members = _descendants(roots, entries)
    if members & _own_line(entries):
        raise WorkflowUsageError(
            "this process runs inside of the command that it is to end or wait for: do that from outside of it"
        )
    # The roots too that have ended meanwhile: they may have handed over to children that were not seen.
    return roots | {entries[pid].process for pid in members if entries[pid].is_alive}


def is_alive(process: Process) -> bool:
    """Whether a process has not ended."""
    entry = process_table().entry(process.pid)
    return entry is not None and entry.process == process and entry.is_alive


@lru_cache(maxsize=1)
def process_table() -> ProcessTable:
    """The machine's processes.

    Raises:
        WorkflowUsageError: There is neither ``/proc`` nor psutil.
    """
    return LinuxProcessTable() if os.path.exists("/proc/self/environ") else PsutilProcessTable()


def _descendants(roots: Collection[Process], entries: Mapping[int, Entry]) -> set[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for pid, entry in entries.items():
        children[entry.parent].append(pid)
    members: set[int] = set()
    waiting = [process.pid for process in roots if process.pid in entries and entries[process.pid].process == process]
    while waiting:
        pid = waiting.pop()
        if pid not in members:
            members.add(pid)
            waiting += children[pid]
    return members


def _own_line(entries: Mapping[int, Entry]) -> set[int]:
    """This process, its parent, and so on."""
    line: set[int] = set()
    pid = os.getpid()
    while pid in entries and pid not in line:
        line.add(pid)
        pid = entries[pid].parent
    return line
