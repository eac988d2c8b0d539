"""The interface of a store: facts in, record out. Each kind of store is a module or a folder that implements it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import attrs

from iso_orchestrator.errors import StoreError, WorkflowNotFoundError
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.projection import Projection

if TYPE_CHECKING:
    from iso_orchestrator.store.maintenance import RepairOptions, RepairReport, WorkflowCheck


class RemovedError(StoreError):
    """The record was removed while this process had it open. What comes next may open a new one."""


class Store(Protocol):
    """A place where workflows are kept. A subclass may leave out `delete_logs`, `size_of`, `verify` and `repair`."""

    @property
    def identity(self) -> Hashable:
        """Equal for two stores of one process that keep the same workflows."""
        ...

    @property
    def display_name(self) -> str:
        """How messages name the store: its folder, or its URL."""
        ...

    def open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        """Open a workflow for appending; made from *new* when there is none. The log is not locked.

        Raises:
            StoreError: The workflow cannot be opened.
        """
        ...

    def read(self, workflow_id: str) -> Projection | None:
        """Read a workflow; None when there is none. Nothing is locked, made or changed."""
        ...

    def list(self) -> Iterator[Projection | StoreError]:
        """Read all workflows; an error in place of each that cannot be read."""
        ...

    def delete(self, workflow_id: str) -> bool:
        """Remove a workflow; False when there is none.

        Raises:
            WorkflowBusyError: A process has it open.
        """
        ...

    def delete_logs(self, workflow_id: str) -> None:
        """Remove the logs of a workflow's commands. By default there are none.

        Raises:
            WorkflowBusyError: A process has it open.
        """
        del workflow_id

    def size_of(self, workflow_id: str) -> Size:
        """How much space a workflow takes. By default that is not known."""
        del workflow_id
        return Size()

    def is_alive(self, workflow_id: str, process_id: str) -> bool:
        """Whether that process still has the workflow open; True where that is not known. Nothing is opened."""
        ...

    def location_id(self) -> str:
        """Identify the place where the records are: a moved store keeps it, a copy of the store has another."""
        ...

    def path_of(self, workflow_id: str) -> str:
        """Where the workflow's snapshot is, or would be; a name for messages in a store without files."""
        ...

    def is_checkpointed(self, workflow_id: str) -> bool:
        """Whether other programs, which know the snapshot alone, find all of the workflow there."""
        ...

    def verify(self, workflow_id: str | None = None) -> Iterable[WorkflowCheck]:
        """Check a workflow, or all of the store. Nothing is locked, made or changed.

        By default all that can be read is sound.

        Raises:
            StoreError: The store cannot be looked at.
            WorkflowNotFoundError: There is no such workflow.
        """
        from iso_orchestrator.store.maintenance import FileCheck, Verdict, WorkflowCheck  # rarely used

        name = self.display_name
        for found in self.list() if workflow_id is None else [_existing(self, workflow_id)]:
            if isinstance(found, StoreError):
                yield WorkflowCheck(name, None, None, (FileCheck(name, Verdict.DAMAGED, str(found)),))
            else:
                yield WorkflowCheck(found.workflow_id, found.workflow_id, found.seq, ())

    def repair(self, workflow_id: str, options: RepairOptions) -> RepairReport:
        """Make a damaged workflow one that opens. A sound one is left as it is.

        By default nothing is ever repaired.

        Raises:
            CorruptRecordError: Nothing sound is left, or *options* do not allow what it takes.
            RecordConflictError: It would take a merge.
            WorkflowBusyError: A process has the workflow open.
            WorkflowNotFoundError: There is no such workflow.
        """
        from iso_orchestrator.store.maintenance import RepairReport  # rarely used

        del options
        return RepairReport("nothing", _existing(self, workflow_id).seq)


def _existing(store: Store, workflow_id: str) -> Projection:
    projection = store.read(workflow_id)
    if projection is None:
        raise WorkflowNotFoundError(workflow_id, store.display_name)
    return projection


class WorkflowLog(Protocol):
    """One process's access to one workflow. Only `sync` and `is_current` may be called by several threads at once."""

    process_id: str
    """This process's name in the workflow, never used again; alive while the process has the workflow open."""

    path: str
    """Where the snapshot is, or would be."""

    logs: str | None
    """The folder for the output of the workflow's commands; None where the store has no folder."""

    def lock(self) -> None:
        """Keep every other process out until `unlock`."""
        ...

    def unlock(self) -> None:
        """Let other processes in. Harmless when it is not locked."""
        ...

    def catch_up(self, projection: Projection | None) -> Projection:
        """Apply to *projection* all that other processes have appended; None: make a new one. Needs the lock."""
        ...

    def append(self, projection: Projection, facts: Sequence[Fact]) -> None:
        """Append *facts* after all others, and apply them to *projection*, which is caught up. Needs the lock.

        They survive this process at once, and the machine when `sync` has returned. When this raises, *projection* is
        invalid: catch up from None.
        """
        ...

    def sync(self, seq: int) -> None:
        """Return when all facts up to *seq* would survive a power cut. Threads that wait at one time share the cost."""
        ...

    def is_current(self) -> bool:
        """Whether no other process has appended since the last `catch_up` or `append`. Needs no lock."""
        ...

    def is_alive(self, process_id: str) -> bool:
        """Whether that process still has the workflow open.

        Raises:
            StoreError: That cannot be found out.
        """
        ...

    def process_info(self, process_id: str) -> ProcessInfo:
        """Which process that is; all None where that is not known."""
        ...

    def mutex(self, key: str, *, whole_store: bool) -> StoreMutex:
        """A mutex of this workflow, or of all workflows in the store."""
        ...

    def detach(self, projection: Projection | None, *, wait: bool = True) -> None:
        """Close the workflow here; the last process to detach writes the snapshot. Takes the lock, and frees it.

        Args:
            projection: The record, as far as it is known here.
            wait: If the lock is not free: wait for it, or else leave all as a killed process would.
        """
        ...

    def fail(self, reason: str) -> None:
        """Refuse to append from now on. Never raises."""
        ...

    def retire(self) -> None:
        """After `fail`: count as dead for all other processes. Call it when no step's body runs. Never raises."""
        ...

    def close(self) -> None:
        """Close everything that `detach` could not close. Harmless when all is closed."""
        ...

    def detach_after_fork(self) -> None:
        """In a forked child: drop what belongs to the parent without touching it."""
        ...


class StoreMutex(Protocol):
    """A mutex between processes. The caller keeps threads apart.

    Attributes:
        is_lost: Whether another process may have the mutex too, although this one has not released it.
    """

    is_lost: bool

    def try_acquire(self) -> bool:
        """Take the mutex if it is free."""
        ...

    def acquire(self) -> None:
        """Take the mutex, however long that takes. Only a signal handler's error ends the wait."""
        ...

    def release(self) -> None:
        """Free the mutex. Harmless when it is not taken: after a signal the caller cannot know."""
        ...

    def check(self) -> None:
        """Raise StoreError if another process may have had the mutex, although this one has it."""
        ...

    def dispose(self) -> None:
        """Give up a free mutex that the caller will not take again."""
        ...

    def holder(self) -> ProcessInfo:
        """The process that has the mutex, as far as that is known."""
        ...


@attrs.frozen
class Size:
    """The bytes on the disk of a workflow's record, and of the logs of its commands."""

    record: int = 0
    logs: int = 0


@attrs.frozen
class ProcessInfo:
    """A process that has something: its pid, its host, and since when. All None where that is not known."""

    pid: int | None = None
    host: str | None = None
    since: datetime | None = None
