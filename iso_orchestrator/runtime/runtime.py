"""How one `Workflow` object reaches the session of its process, and its threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from iso_orchestrator.errors import DuplicateStepError
from iso_orchestrator.record.model import Json
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.runtime.context import LockOwner, Scope, current_scope
from iso_orchestrator.runtime.session import Decision, Session, attach, known_session, settle
from iso_orchestrator.runtime.threads import Pool
from iso_orchestrator.store import Store
from iso_orchestrator.system.clock import Clock

__all__ = ["WorkflowRuntime"]

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")


class WorkflowRuntime:
    """What the features of a `Workflow` work on.

    Args:
        workflow: The object, which is current where its functions run.
        max_workers: Threads for `submit`.
    """

    def __init__(
        self,
        workflow: object,
        workflow_id: str,
        store: Store,
        clock: Clock,
        initial_state: Json,
        max_workers: int,
    ) -> None:
        self.workflow: Any = workflow
        self.workflow_id = workflow_id
        self.store = store
        self.key = (store.identity, workflow_id)
        self.clock = clock
        self._initial_state = initial_state
        self.pool = Pool(max_workers)
        self.runs: list[object] = []
        self._session: Session | None = None
        self._claims: dict[str, tuple[str, str]] = {}

    def session(self) -> Session:
        """The session, opened when it is not open."""
        session = self._session
        if session is None or session.closed:
            session = self._session = attach(self, self.store, self.workflow_id, self._new_projection, self.clock)
        return session

    def pin(self) -> Session:
        """The session, kept open until its `unpin`, though others close what they have of it."""
        session = self.session()
        while not session.pin():
            session = self.session()
        return session

    @contextmanager
    def pinned(self) -> Iterator[Session]:
        """The session, kept open inside a `with`."""
        session = self.pin()
        try:
            yield session
        finally:
            session.unpin()

    def append(self, decide: Decision[T]) -> T:
        """`Session.append`, whoever closes the session meanwhile."""
        session = self.pin()
        try:
            return session.append(decide)[0]
        finally:
            session.unpin()

    def record(self, decide: Decision[T]) -> T:
        """`Session.record`, whoever closes the session meanwhile."""
        with self.pinned() as session:
            return session.record(decide)

    def look(self, view: Callable[[Projection], T]) -> T:
        """What *view* sees in the record, which is not made by looking."""
        session = known_session(self.store, self.workflow_id)
        if session is not None and session.pin():
            try:
                return session.read(view)
            finally:
                session.unpin()
        projection = self.store.read(self.workflow_id)
        return view(self._new_projection() if projection is None else projection)

    def scope(self) -> Scope:
        """What is current where a function of the workflow runs."""
        scope = current_scope()
        return scope if scope.workflow is self.workflow else attrs.evolve(scope, workflow=self.workflow)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run *work* in a thread of the pool, in a copy of this context, owning no mutex that is held here.

        Raises:
            WorkflowUsageError: Inside a function given to update_state(), which might wait for it.
        """
        if self._session is not None:
            self._session.refuse_inside()
        scope = self.scope()
        run = next((run for run in reversed(scope.runs) if run in self.runs), None)
        context = attrs.evolve(scope, owner=LockOwner(), batch=run or scope.batch).context()
        return self.pool.submit(lambda: context.run(work), run)

    def claim(self, name: str, fn: Callable[..., object]) -> None:
        """Note that *name* is the name of *fn*'s steps.

        Raises:
            DuplicateStepError: A function of another module or qualified name has it.
        """
        who = (str(getattr(fn, "__module__", "")), str(getattr(fn, "__qualname__", repr(fn))))
        if self._claims.setdefault(name, who) != who:
            first = ".".join(self._claims[name])
            raise DuplicateStepError(
                name,
                f"it is the name of {first} already, and {'.'.join(who)} would get its results: give name=",
            )

    def close(self) -> None:
        """Let the session go; the last one to do so in the last process writes the snapshot."""
        if self._session is not None:
            self._session.refuse_inside()
        self.pool.close()
        session, self._session = self._session, None
        if session is not None:
            session.users.pop(id(self), None)
            settle(session)

    def _new_projection(self) -> Projection:
        return Projection.new(self.workflow_id, self.clock.now(), self._initial_state)
