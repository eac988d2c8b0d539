"""A store in this process's memory, for tests and for work that need not last."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from urllib.parse import SplitResult

import attrs

from iso_orchestrator.checks import host_name, unique_name
from iso_orchestrator.codec import projection_from_snapshot, snapshot_from_projection
from iso_orchestrator.errors import StoreError, WorkflowBusyError
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.log_files import log_folder
from iso_orchestrator.store.protocol import ProcessInfo, Store, StoreMutex, WorkflowLog
from iso_orchestrator.system.clock import SystemClock
from iso_orchestrator.system.interrupts import undo_on_error

_stores: dict[str, MemoryStore] = {}


def store_at(url: SplitResult) -> MemoryStore:
    """The store of ``memory://name``, the same in all of this process."""
    name = url.netloc + url.path
    return _stores.setdefault(name, MemoryStore(f"memory://{name}"))


class MemoryStore(Store):
    """Workflows that end with the process.

    Args:
        display_name: How messages name it.
        root: The folder for the output of commands. Default: that of the workflow.

    Example:
        >>> from iso_orchestrator import Workflow
        >>> workflow = Workflow("batch", store=MemoryStore())
        >>> workflow.run_step("answer", lambda: 42)
        42
    """

    def __init__(self, display_name: str = "memory", root: str | None = None) -> None:
        self._root = root
        self._id = unique_name()
        self._display_name = display_name
        self._workflows: dict[str, _Workflow] = {}
        self._mutexes: dict[str, _Mutex] = {}
        self._guard = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse to be pickled."""
        raise TypeError("a store in memory cannot be pickled: it belongs to its process; use files")

    @property
    def identity(self) -> tuple[str, str]:
        """Equal to no other store's."""
        return "memory", self._id

    @property
    def display_name(self) -> str:
        """How messages name it."""
        return self._display_name

    def open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        """Open a workflow for appending."""
        with self._guard:
            if workflow_id not in self._workflows:
                self._workflows[workflow_id] = _Workflow(snapshot_from_projection(new()))
            workflow = self._workflows[workflow_id]
            logs = None if self._root is None else log_folder(self._root, workflow_id)
            log = _MemoryWorkflowLog(workflow, self.path_of(workflow_id), self._mutexes, logs)
            workflow.process_ids.add(log.process_id)
        log.lock()
        try:
            return log, log.catch_up(None)
        finally:
            log.unlock()

    def read(self, workflow_id: str) -> Projection | None:
        """Read a workflow."""
        workflow = self._find(workflow_id)
        return None if workflow is None else workflow.projection()

    def list(self) -> Iterator[Projection | StoreError]:
        """Read all workflows."""
        with self._guard:
            workflows = tuple(self._workflows.values())
        for workflow in workflows:
            yield workflow.projection()

    def delete(self, workflow_id: str) -> bool:
        """Remove a workflow."""
        with self._guard:
            workflow = self._workflows.get(workflow_id)
            if workflow is None:
                return False
            if workflow.process_ids:
                raise WorkflowBusyError(workflow_id, None, None, None)
            del self._workflows[workflow_id]
            return True

    def is_alive(self, workflow_id: str, process_id: str) -> bool:
        """Whether the workflow is still open under that process id."""
        workflow = self._find(workflow_id)
        return workflow is not None and process_id in workflow.process_ids

    def location_id(self) -> str:
        """A name that no other store has."""
        return self._id

    def path_of(self, workflow_id: str) -> str:
        """A name for messages: there is no file."""
        return f"memory:{workflow_id}"

    def is_checkpointed(self, workflow_id: str) -> bool:
        """True: no other program reads the store."""
        del workflow_id
        return True

    def _find(self, workflow_id: str) -> _Workflow | None:
        with self._guard:
            return self._workflows.get(workflow_id)


@attrs.define(eq=False)
class _Mutex:
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    since: datetime | None = None
    is_lost: bool = False

    def try_acquire(self) -> bool:
        if not self.lock.acquire(blocking=False):
            return False
        self.since = SystemClock().now()
        return True

    def acquire(self) -> None:
        self.lock.acquire()
        self.since = SystemClock().now()

    def release(self) -> None:
        if self.lock.locked():
            self.lock.release()

    def check(self) -> None:
        pass

    def dispose(self) -> None:
        pass

    def holder(self) -> ProcessInfo:
        return ProcessInfo(os.getpid(), host_name(), self.since)


@attrs.define(eq=False)
class _Workflow:
    snapshot: bytes
    facts: list[Fact] = attrs.field(factory=list)
    process_ids: set[str] = attrs.field(factory=set)
    mutexes: dict[str, _Mutex] = attrs.field(factory=dict)
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def projection(self) -> Projection:
        projection = projection_from_snapshot(self.snapshot, "memory")
        for fact in tuple(self.facts):
            projection.apply(fact)
        return projection


class _MemoryWorkflowLog:
    """Access to one workflow; several of them in one process stand for several processes."""

    def __init__(self, workflow: _Workflow, path: str, store_mutexes: dict[str, _Mutex], logs: str | None) -> None:
        self.process_id = unique_name()
        self.path = path
        self.logs = logs
        self._workflow = workflow
        self._store_mutexes = store_mutexes
        self._read = 0
        self._locked = False
        self._failure: str | None = None

    def lock(self) -> None:
        self._refuse_after_failure()
        self._workflow.lock.acquire()
        self._locked = True

    def unlock(self) -> None:
        if self._locked:
            self._locked = False
            self._workflow.lock.release()

    def catch_up(self, projection: Projection | None) -> Projection:
        facts = self._workflow.facts
        if projection is None:
            projection = self._workflow.projection()
        else:
            for fact in facts[self._read :]:
                projection.apply(fact)
        self._read = len(facts)
        return projection

    def append(self, projection: Projection, facts: Sequence[Fact]) -> None:
        self._refuse_after_failure()
        before = len(self._workflow.facts)
        self._workflow.facts.extend(facts)
        with undo_on_error(lambda: self._workflow.facts.__delitem__(slice(before, None))):
            self.catch_up(projection)  # a fact that cannot be applied must not stay

    def sync(self, seq: int) -> None:
        del seq  # nothing outlives the process
        self._refuse_after_failure()

    def is_current(self) -> bool:
        return self._failure is None and self._read == len(self._workflow.facts)

    def is_alive(self, process_id: str) -> bool:
        return process_id in self._workflow.process_ids

    def process_info(self, process_id: str) -> ProcessInfo:
        del process_id  # all are this process
        return ProcessInfo()

    def mutex(self, key: str, *, whole_store: bool) -> StoreMutex:
        mutexes = self._store_mutexes if whole_store else self._workflow.mutexes
        return mutexes.setdefault(key, _Mutex())

    def detach(self, projection: Projection | None, *, wait: bool = True) -> None:
        del projection, wait
        self._workflow.process_ids.discard(self.process_id)

    def fail(self, reason: str) -> None:
        self._failure = self._failure or reason

    def retire(self) -> None:
        if self._failure is not None:
            self._workflow.process_ids.discard(self.process_id)

    def close(self) -> None:
        self._workflow.process_ids.discard(self.process_id)
        self.unlock()

    def detach_after_fork(self) -> None:
        self._failure = "it belongs to the parent process"

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            raise StoreError(f"the store is dead: {self._failure}")
