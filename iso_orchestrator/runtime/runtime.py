"""What the features of one `Workflow` object work on: its store, clock and threads, and its process's session."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import attrs

from iso_orchestrator.errors import DuplicateStepError, WorkflowUsageError
from iso_orchestrator.record.model import Json, WorkflowEvent
from iso_orchestrator.record.projection import Limit, Projection, Wait
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.runtime.context import Fence, Scope, current_scope
from iso_orchestrator.runtime.listeners import Listener
from iso_orchestrator.runtime.session import Decision, Session, acquire_session, find_session
from iso_orchestrator.runtime.threads import Pool
from iso_orchestrator.store import RemovedError, Store, store_in_use
from iso_orchestrator.system.clock import Clock

if TYPE_CHECKING:
    from iso_orchestrator.runtime.runs import Run

T = TypeVar("T")

_SAME_LIMIT = timedelta(seconds=1)  # between the times that two answers of one service name for one limit

AroundCommand: TypeAlias = Callable[[Any, Callable[[Any], Any], Callable[[], int | None]], Any]
"""Calls a function with a `Command`, and returns the `CommandResult` that it returns. After that the third argument
knows the id of the process."""

OnBusy: TypeAlias = Literal["share", "wait", "fail"]


class WorkflowRuntime:
    """What the features of a `Workflow` work on.

    Nothing that it refers to refers to it: it goes, and its resources with it, as soon as its `Workflow` and its steps
    are dropped.

    Args:
        workflow: Finds the object that is current where its functions run; None once that was dropped.
        workflow_id: Its id.
        dir: The folder of files that the store does not keep.
        store: Where its record is.
        clock: What its facts are dated by.
        initial_state: The state of a new record.
        on_busy: What a run does when another one is live.
        max_workers: Threads for `submit`.
    """

    def __init__(
        self,
        workflow: Callable[[], object],
        workflow_id: str,
        dir: str,  # noqa: A002 - as `Workflow` calls it
        store: Store,
        clock: Clock,
        initial_state: Json,
        on_busy: OnBusy,
        max_workers: int,
    ) -> None:
        self.workflow = workflow
        self.workflow_id = workflow_id
        self.dir = dir
        self.clock = clock
        self.on_busy: OnBusy = on_busy
        self.pool = Pool(max_workers)
        self.runs: list[Run] = []
        self._new_projection = partial(_new_projection, workflow_id, clock, initial_state)
        self.arguments: dict[str, Any] = {}  # of the `Workflow`, for a copy of it in another process
        self.changed_functions: set[object] = set()  # those that a warning has told of
        # What lines of the log need: failures that were logged, US dollars of each run of an agent, limits by key.
        self.failures = 0
        self.costs: list[float] = []
        self.limits_logged: dict[str, datetime] = {}
        self.listeners: tuple[Listener, ...] = ()
        self.around_command: AroundCommand = lambda command, run, _: run(command)
        self._claims: dict[str, tuple[str, str]] = {}
        self._guard = threading.Lock()
        self._opening: int | None = None  # the thread that opens the session
        self._store = store
        self._session_store = store
        self._session: Session | None = None
        self._finalizer: weakref.finalize[..., WorkflowRuntime] | None = None

    @property
    def store(self) -> Store:
        """Where the record is now: tests replace it, see `stores_replaced`."""
        return store_in_use(self._store)

    @property
    def key(self) -> tuple[object, str]:
        """Equal for all workflows of one id in one store."""
        return self.store.identity, self.workflow_id

    def session(self) -> Session:
        """The session. This object has a reference to it until `close`."""
        session, store = self._session, self.store
        if session is not None and not session.is_closed and self._session_store is store:
            return session
        if self._session_store is not store:
            self._release_session()
        thread = get_ident()
        if self._opening == thread:
            raise WorkflowUsageError(
                f"workflow {self.workflow_id!r} was used in a signal handler that came while it was opened: "
                "set a flag there, and look at it in the program"
            )
        with self._guard:
            self._opening = thread
            try:
                if self._session is None or self._session.is_closed:
                    self._session = acquire_session(store, self.workflow_id, self._new_projection, self.clock)
                    self._session_store = store
                    if self.listeners:
                        self._session.listening.add(self)
                    self._finalizer = weakref.finalize(self, self._session.drop)
                    self._finalizer.atexit = False  # `session` closes all that is open then
                return self._session
            finally:
                self._opening = None

    def acquire(self) -> Session:
        """The session with one more reference, which `Session.release` or the end of a `with` releases.

        Until then it stays open, or can be opened, whatever is closed meanwhile.

        Raises:
            WorkflowUsageError: Inside a function given to update_state().
        """
        session = self.session()
        session.refuse_inside()
        return session if session.retain() else self.acquire()

    def add_listener(self, function: Callable[[WorkflowEvent], object]) -> None:
        """Call *function* with each event that this process appends from now on."""
        self.listeners = (*self.listeners, Listener(function))
        with self._guard:
            if self._session is not None:
                self._session.listening.add(self)

    def transact(self, decide: Decision[T], *, durable: bool = True, fences: Sequence[Fence] | None = None) -> T:
        """`Session.transact`."""
        with self.acquire() as session:
            return session.transact(decide, durable=durable, fences=fences)

    def look(self, view: Callable[[Projection], T]) -> T:
        """What *view* returns for the record, which looking does not create."""
        session = find_session(self.store, self.workflow_id)
        if session is not None:
            try:
                with session:
                    return session.transact(lambda projection: ((), view(projection)), may_create=False)
            except RemovedError:
                if session.is_closed:  # while a run went on
                    raise
        projection = self.store.read(self.workflow_id)
        return view(self._new_projection() if projection is None else projection)

    def record(self) -> WorkflowRecord:
        """The record as it is now."""
        return self.look(lambda projection: projection.record(partial(self.store.is_alive, self.workflow_id)))

    def scope(self) -> Scope:
        """What is current where a function of the workflow runs."""
        scope = current_scope()
        return scope if scope.runtime is self else attrs.evolve(scope, runtime=self)

    def submit(self, name: str, work: Callable[[], T]) -> Future[T]:
        """Run *work*, the step *name*, in the pool and in a copy of this context, as no part of the step around here.

        Raises:
            WorkflowUsageError: Inside a function given to update_state(), which might wait for it.
        """
        if self._session is not None:
            self._session.refuse_inside()
        scope = self.scope()
        run = next((run for run in reversed(scope.runs) if run in self.runs), None)
        context = attrs.evolve(scope, owner=None, attempt=None, batch=run or scope.batch).context()
        return self.pool.submit(name, context, work, run)

    def limit_waits(self) -> list[Wait] | None:
        """`Session.limit_waits`; None also where no session is open."""
        return None if self._session is None else self._session.limit_waits()

    def is_news(self, limit: Limit, step: str) -> bool:
        """Whether *limit*, which a step waits for, ends at another time than the last one with its key."""
        of = limit.key or step
        before = self.limits_logged.get(of)
        if before is not None and abs(limit.until - before) < _SAME_LIMIT:
            return False
        self.limits_logged[of] = limit.until
        return True

    def claim(self, name: str, fn: Callable[..., object]) -> None:
        """Note that *name* is the name of *fn*'s steps.

        Raises:
            DuplicateStepError: It is the name of a function of another module or qualified name.
        """
        owner = (str(getattr(fn, "__module__", "")), str(getattr(fn, "__qualname__", repr(fn))))
        if self._claims.setdefault(name, owner) != owner:
            first = ".".join(self._claims[name])
            raise DuplicateStepError(
                name,
                f"it is the name of {first} already, and {'.'.join(owner)} would get its results: give name=",
            )

    def close(self) -> None:
        """Wait for the pool and release the session. The last process to close a workflow writes its snapshot."""
        if self._session is not None:
            self._session.refuse_inside()
        self.pool.close()
        self._release_session()

    def _release_session(self) -> None:
        with self._guard:
            session, self._session = self._session, None
            finalizer, self._finalizer = self._finalizer, None
        if session is not None and finalizer is not None:
            finalizer.detach()
            session.release()


def _new_projection(workflow_id: str, clock: Clock, initial_state: Json) -> Projection:
    return Projection.new(workflow_id, clock.now(), initial_state)
