"""What is current where code runs: the workflow, the run, the step's attempt, the item, the leases around it.

All of it is one immutable `Scope` in one context variable, so that worker threads get it with a copied context.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol

import attrs

from iso_orchestrator.errors import NoActiveWorkflowError
from iso_orchestrator.record.model import Json

__all__ = [
    "Attempt",
    "Batch",
    "Fence",
    "ItemContext",
    "LockOwner",
    "Scope",
    "StepContext",
    "current_item",
    "current_owner",
    "current_scope",
    "current_step",
    "entered",
    "restore",
]


@attrs.frozen
class StepContext:
    """The step whose body is running.

    Attributes:
        name: The step's name in the record.
        attempt: Counts from 1 in each call.
        max_attempts: The budget of the call.
        idempotency_key: The step's, or None.
    """

    name: str
    attempt: int
    max_attempts: int
    idempotency_key: str | None


@attrs.frozen
class ItemContext:
    """The item of a `for_each` that is being worked on; `index` counts from 0."""

    index: int


@attrs.frozen
class Fence:
    """A lease that code runs under: nothing is recorded in its workflow from there once it has a newer token."""

    workflow: Hashable
    key: str
    token: int


@attrs.define(eq=False)
class LockOwner:
    """Who owns a mutex: an item, a step's attempt, else the thread.

    Attributes:
        parent: Who waits for it, and whose mutexes it may therefore enter again.
        is_item: Others like it run at the same time, so that it must not enter what its parent holds.
        holds: The mutexes that it has.
    """

    parent: LockOwner | None = None
    is_item: bool = False
    holds: list[Any] = attrs.field(factory=list)

    def chain(self) -> Iterator[LockOwner]:
        """This owner, and those that wait for it."""
        owner: LockOwner | None = self
        while owner is not None:
            yield owner
            owner = owner.parent


@attrs.define(eq=False)
class Attempt:
    """An attempt at a step.

    Attributes:
        session: Of the workflow that it is recorded in.
        flight: The step in flight that it belongs to.
        number: In the record: it counts over crashes too.
        is_first: Whether none at the same step, in key and version too, is on record before it.
        updates: What `update_state(..., with_step=True)` was given.
        parent: The attempt whose body called this step.
    """

    session: Any
    flight: Any
    parent: Attempt | None = None
    number: int = 1
    is_first: bool = False
    updates: list[Callable[[Json], Json]] = attrs.field(factory=list)

    def chain(self) -> Iterator[Attempt]:
        """This attempt, and those that it runs in."""
        attempt: Attempt | None = self
        while attempt is not None:
            yield attempt
            attempt = attempt.parent


class Batch(Protocol):
    """The `for_each` around something, or the run that it was submitted in."""

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more starts in it."""
        ...

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more for what runs in it: a second Ctrl-C has come."""
        ...


@attrs.define
class Scope:
    """What is current. Never changed; a frozen class would cost three times as much to make."""

    workflow: Any = None
    runs: tuple[Any, ...] = ()
    owner: LockOwner | None = None
    step: StepContext | None = None
    item: ItemContext | None = None
    attempt: Attempt | None = None
    fences: tuple[Fence, ...] = ()
    batch: Batch | None = None

    def context(self) -> Context:
        """A copy of the current context in which this is current.

        What runs in it leaves the caller's as it was, wherever a signal ends it.
        """
        context = copy_context()
        context.run(_scope.set, self)
        return context


_scope: ContextVar[Scope] = ContextVar("iso_orchestrator_scope", default=Scope())  # noqa: B039 - it is immutable
_thread = threading.local()


def current_scope() -> Scope:
    """What is current here."""
    return _scope.get()


class entered:  # noqa: N801 - it is used as a function, and is a class because a generator costs three times as much
    """Make *scope* current inside a `with`."""

    __slots__ = ("_before", "_scope")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._before = _scope.get()

    def __enter__(self) -> None:
        try:
            _scope.set(self._scope)
        except BaseException:  # a signal, when it was set already
            _scope.set(self._before)
            raise

    def __exit__(self, *_: object) -> None:
        _scope.set(self._before)


def restore(scope: Scope) -> None:
    """Make *scope* current again, where a signal may have kept `entered` from doing so."""
    _scope.set(scope)


def current_owner() -> LockOwner:
    """Who would own a mutex that is taken here."""
    owner = _scope.get().owner
    if owner is not None:
        return owner
    if not hasattr(_thread, "owner"):
        _thread.owner = LockOwner()
    root: LockOwner = _thread.owner
    return root


def current_step() -> StepContext:
    """The step whose body is running.

    Raises:
        NoActiveWorkflowError: None is.

    Example:
        >>> from iso_orchestrator import MemoryStore, Workflow
        >>> Workflow("batch", store=MemoryStore()).run_step("fetch", lambda: current_step().name)
        'fetch'
    """
    step = _scope.get().step
    if step is None:
        raise NoActiveWorkflowError("current_step()")
    return step


def current_item() -> ItemContext:
    """The item of the innermost `for_each`.

    Raises:
        NoActiveWorkflowError: There is none.

    Example:
        >>> from iso_orchestrator import MemoryStore, Workflow
        >>> workflow = Workflow("batch", store=MemoryStore())
        >>> workflow.run_for_each("ab", lambda letter: f"{current_item().index}{letter}").values()
        ['0a', '1b']
    """
    item = _scope.get().item
    if item is None:
        raise NoActiveWorkflowError("current_item()")
    return item
