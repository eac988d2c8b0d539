"""What a runner that was killed has left of a command, ended or waited for before the command is started again."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from iso_orchestrator.commands.log import is_output_open
from iso_orchestrator.errors import CommandLeftoverError
from iso_orchestrator.system.clock import Backoff, monotonic, sleep
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.system.processes.ending import GRACE, KILLING, end_tree
from iso_orchestrator.system.processes.table import Process
from iso_orchestrator.system.processes.tree import living_tree

__all__ = ["await_leftovers", "end_leftovers"]

_LOOK = 0.05  # seconds

_fs = FileSystem()


def end_leftovers(
    mark: str, *log_paths: str, grace: float = GRACE, known: Collection[Process] = (), fs: FileSystem = _fs
) -> int:
    """End what is left of a command, until nobody has its mark, nor its output open.

    It is to be called when its runner is known to be dead, and before the command is started again under another mark:
    then no two of it work at one time.

    Args:
        mark: The command's.
        log_paths: Where the file of its standard output may be. Where that was removed, the mark alone decides, which a
            process that was forked for the command just before the runner's death does not have yet, and which one
            that has cleared its environment has no more.
        grace: Seconds from SIGTERM to SIGKILL.
        known: Processes that are ended with their descendants whether or not they have the mark.
        fs: Where the files are.

    Returns:
        How many processes there were.

    Raises:
        CommandLeftoverError: Some are left; or somebody has the output open who cannot be found.
        WorkflowUsageError: This process is one of them; or there is neither ``/proc`` nor psutil.
    """
    count = end_tree(mark, grace=grace, known=known)
    give_up_at = monotonic() + KILLING
    pause = Backoff()
    while (path := _first_open(fs, log_paths)) is not None:
        if monotonic() >= give_up_at:
            raise CommandLeftoverError((), KILLING, path)
        pause.rest()
        count += end_tree(mark, grace=grace, known=known)
    # Who had it open may have started others, and given them another output, before it ended.
    return count + end_tree(mark, grace=grace, known=known)


def await_leftovers(
    mark: str,
    *log_paths: str,
    timeout: float | None = None,
    known: Collection[Process] = (),
    fs: FileSystem = _fs,
) -> bool:
    """Wait until what is left of a command has ended by itself; whether it has.

    Args:
        mark: As in `end_leftovers`, as are the others.
        log_paths: Likewise.
        timeout: Seconds; None for ever.
        known: Likewise.
        fs: Likewise.

    Raises:
        WorkflowUsageError: As in `end_leftovers`.
    """
    give_up_at = float("inf") if timeout is None else monotonic() + timeout
    # In this order: who has the output open may have started others with another one before it ends.
    while _first_open(fs, log_paths) is not None or living_tree(mark, known):
        if monotonic() >= give_up_at:
            return False
        sleep(_LOOK)
    return True


def _first_open(fs: FileSystem, log_paths: Iterable[str]) -> str | None:
    return next((path for path in log_paths if is_output_open(fs, path)), None)
