"""What a workflow keeps besides its steps: its state, events, heartbeats, leases and status."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from iso_orchestrator.coordination import state as states
from iso_orchestrator.record.model import Heartbeat, Json, Lease, WorkflowEvent, WorkflowRecord, WorkflowStatus
from iso_orchestrator.record.projection import Projection, copy_json
from iso_orchestrator.runtime.runtime import WorkflowRuntime

if TYPE_CHECKING:
    from iso_orchestrator.coordination.lease import HeldLease

__all__ = ["RecordKeeper"]


class RecordKeeper:
    """The part of `Workflow` that reads and changes its record."""

    _runtime: WorkflowRuntime

    @property
    def record(self) -> WorkflowRecord:
        """The record as it is now, with all that other processes wrote. Looking makes none."""
        return self._runtime.look(Projection.record)

    @property
    def state(self) -> Json:
        """The state, a copy to do with as you like."""
        return self._runtime.look(lambda projection: copy_json(projection.state))

    def update_state(self, update: Any, *, with_step: bool = False) -> Any:
        """Replace the state, by a value or by what a function makes of a copy of it; atomic over all processes.

        Args:
            update: JSON, what cattrs unstructures, or a function of the state.
            with_step: Inside a step: call the function once, at the step's completion, on the state of then, and
                record both in one piece; returns None. An attempt that fails drops it.

        Returns:
            The new state.

        Raises:
            TypeError: The function returned None where the state was not None: a forgotten ``return``.
            SerializationError: The new state is not JSON.
            WorkflowUsageError: The function used the workflow, or *with_step* outside of a step.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> workflow = Workflow("batch", initial_state={"n": 0}, store="memory://state")
            >>> workflow.update_state(lambda state: {**state, "n": state["n"] + 1})
            {'n': 1}
        """
        if with_step:
            states.update_with_step(self._runtime, update)
            return None
        return states.update_state(self._runtime, update)

    def append_event(self, type: str, message: str | None = None, detail: Any = None) -> WorkflowEvent:  # noqa: A002
        """Append an event of your own to the record.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> Workflow("batch", store="memory://event").append_event("mail.sent", detail={"to": 3}).detail
            {'to': 3}
        """
        return states.append_event(self._runtime, type, message, detail)

    def heartbeat(self, key: str, detail: Any = None) -> Heartbeat:
        """Record that whoever *key* stands for is alive.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> Workflow("batch", store="memory://beat").heartbeat("worker:1", {"phase": "send"}).key
            'worker:1'
        """
        return states.heartbeat(self._runtime, key, detail)

    def heartbeating(self, key: str, *, every: float = 30.0, detail: Any = None) -> AbstractContextManager[None]:
        """Beat each *every* seconds in the background; an event at the first and the last beat only.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> with Workflow("batch", store="memory://beating").heartbeating("worker:1", every=5):
            ...     pass
        """
        return states.heartbeating(self._runtime, key, every, detail)

    def touch_lease(self, key: str, *, holder: str, ttl: float | timedelta, detail: Any = None) -> Lease:
        """Acquire a lease that nobody has, or renew one's own. It fences nothing by itself.

        Args:
            key: The lease's.
            holder: Who asks.
            ttl: Seconds, or a timedelta.
            detail: JSON to keep with it; None keeps what is there.

        Raises:
            LeaseConflictError: Another holder has it.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> workflow = Workflow("batch", store="memory://touch")
            >>> workflow.touch_lease("slot", holder="alpha", ttl=30).token
            1
        """
        from iso_orchestrator.coordination.lease import touch_lease  # what has no lease, loads none

        return touch_lease(self._runtime, key, holder, ttl, detail)

    def release_lease(self, key: str, holder: str | None = None) -> Lease | None:
        """Give a lease back; None when there is none.

        Raises:
            LeaseConflictError: Another than *holder* has it.
        """
        from iso_orchestrator.coordination.lease import release_lease

        return release_lease(self._runtime, key, holder)

    def lease(
        self, key: str, *, holder: str | None = None, ttl: float | timedelta = 30.0, detail: Any = None
    ) -> AbstractContextManager[HeldLease]:
        """Hold a lease: acquired, renewed in the background, released.

        What runs inside, worker threads included, is fenced: once the lease has a newer token nothing more is recorded
        from there, but that a run has ended, and `LeaseLostError` is raised. Threads of your own are inside when they
        run in a copy of the context (`contextvars.copy_context().run`).

        Args:
            key: The lease's.
            holder: Who asks; default: a name that nobody else has.
            ttl: Seconds, or a timedelta; renewed three times in each.
            detail: JSON to keep with it.

        Raises:
            LeaseConflictError: On entry: another holder has it.
            LeaseLostError: Inside, and at the end: it has a newer token.

        Example:
            >>> from iso_orchestrator import Workflow
            >>> with Workflow("batch", store="memory://lease").lease("slot", ttl=60) as held:
            ...     held.token, held.lost
            (1, False)
        """
        from iso_orchestrator.coordination.lease import hold_lease

        return hold_lease(self._runtime, key, holder, ttl, detail)

    def set_status(self, status: WorkflowStatus | str, error: BaseException | str | None = None) -> WorkflowRecord:
        """Set the status by hand; without an error the last one is forgotten."""
        return states.set_status(self._runtime, status, error)
