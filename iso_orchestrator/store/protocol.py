"""What a store is: facts appended in order, durably, under a lock, and a snapshot of their fold."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import datetime
from typing import Protocol

import attrs

from iso_orchestrator.errors import StoreError
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.record.value import Value

__all__ = ["ProcessInfo", "Store", "StoreMutex", "WorkflowLog"]


@attrs.frozen(eq=False, repr=False)
class ProcessInfo(Value):
    """Who has a lock; all None where that is not known."""

    pid: int | None = None
    host: str | None = None
    since: datetime | None = None


class StoreMutex(Protocol):
    """A mutex over processes. Threads are kept apart by who calls it."""

    def try_acquire(self) -> bool:
        """Take it if it is free."""
        ...

    def acquire(self) -> None:
        """Take it, however long that takes. Only a signal handler's error ends the wait."""
        ...

    def release(self) -> None:
        """Give it back. Harmless when it is not taken: after a signal its user does not know."""
        ...

    def dispose(self) -> None:
        """Be done with it, when it is free and its user will not take it again."""
        ...

    def holder(self) -> ProcessInfo:
        """Who has it, as far as that is known."""
        ...


class WorkflowLog(Protocol):
    """One process's hold on one workflow. Not for several threads at once, but for `sync` and `is_current`."""

    process_id: str
    """This process's name in the workflow, never used again; alive while the process has the workflow open."""

    path: str
    """Where the snapshot is, or would be."""

    logs: str | None
    """The folder for what the workflow's commands write; None where the store has none."""

    def lock(self) -> None:
        """Keep every other process out, until `unlock`."""
        ...

    def unlock(self) -> None:
        """Let others in. Harmless when it is not locked."""
        ...

    def catch_up(self, projection: Projection | None) -> Projection:
        """*fold* with all that other processes have appended, or a new one. Needs the lock."""
        ...

    def append(self, projection: Projection, facts: Sequence[Fact]) -> None:
        """Append *facts* behind all others and apply them to *fold*, which is caught up. Needs the lock.

        When it raises, *fold* is of no use any more: catch up anew.

        They survive this process at once, and the machine when `sync` says so.
        """
        ...

    def sync(self, seq: int) -> None:
        """Return when all facts up to *seq* would survive a power cut. Threads that call at one time share the cost."""
        ...

    def is_current(self) -> bool:
        """Whether nobody has appended anything since the last `catch_up` or `append`. Needs no lock."""
        ...

    def is_alive(self, process_id: str) -> bool:
        """Whether that process still has the workflow open."""
        ...

    def process_info(self, process_id: str) -> ProcessInfo:
        """Which process that is; all None where that is not known."""
        ...

    def mutex(self, key: str, *, whole_store: bool) -> StoreMutex:
        """A mutex of this workflow, or of all workflows in the store."""
        ...

    def detach(self, projection: Projection | None) -> None:
        """Close the workflow here; the last process to detach writes the snapshot. Takes the lock, and frees it."""
        ...

    def fail(self, reason: str) -> None:
        """Refuse to append from now on, and count as dead for all other processes. Never raises."""
        ...

    def close(self) -> None:
        """Close everything that `detach` could not close. Harmless when all is closed."""
        ...

    def detach_after_fork(self) -> None:
        """In a forked child: drop what belongs to the parent without touching it."""
        ...


class Store(Protocol):
    """Where workflows are kept."""

    @property
    def identity(self) -> Hashable:
        """Equal for two stores of one process that keep the same workflows."""
        ...

    def open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        """Take hold of a workflow, made from *new* when there is none. Ready to be appended to, and unlocked."""
        ...

    def read(self, workflow_id: str) -> Projection | None:
        """The workflow as it is; nothing is locked, made or changed."""
        ...

    def list(self) -> Iterator[Projection | StoreError]:
        """All workflows; an error in the place of each that cannot be read."""
        ...

    def delete(self, workflow_id: str) -> bool:
        """Remove a workflow that nobody has a hold on; False when there is none."""
        ...

    def location_id(self) -> str:
        """Identify the place where the records are: a moved store keeps it, a copy of the store has another."""
        ...

    def path_of(self, workflow_id: str) -> str:
        """Where the workflow's snapshot is, or would be."""
        ...
