"""What is current where code runs: the workflow, the run, the step's attempt, the item, the leases around it.

All of it is one immutable `Scope` in one context variable, so that worker threads get it with a copied context.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import attrs

from iso_orchestrator.errors import NoActiveWorkflowError
from iso_orchestrator.notes import contextmanager
from iso_orchestrator.record.model import Json
from iso_orchestrator.runtime.waits import Node, Wait, current_node
from iso_orchestrator.system.clock import sleep
from iso_orchestrator.system.events import OneShotEvent
from iso_orchestrator.system.interrupts import masked, unmasked

if TYPE_CHECKING:
    from iso_orchestrator.runtime.runs import Run
    from iso_orchestrator.runtime.runtime import WorkflowRuntime
    from iso_orchestrator.runtime.session import Session

T = TypeVar("T")

_LOOK_EVERY = 0.1  # seconds


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
class BatchContext:
    """A `for_each` on record: its number, and the name of its function."""

    number: int
    function: str


@attrs.frozen
class Fence:
    """A lease around code: nothing is recorded in its workflow from there once the lease has a newer token."""

    workflow: Hashable
    key: str
    token: int


class HeldMutex(Protocol):
    """What code outside of `coordination` knows of a held mutex."""

    def keep_for(self, owner: LockOwner) -> Callable[[], None]:
        """Keep the mutex for a body that cannot be ended; returns what its thread calls at its end."""
        ...


def _current_task() -> Any:
    """The asyncio task that runs here, or None. A program that does not use asyncio does not import it."""
    asyncio = sys.modules.get("asyncio")
    running_loop = getattr(asyncio, "_get_running_loop", None)  # None also while another thread imports it
    loop = None if running_loop is None else running_loop()
    return None if asyncio is None or loop is None else asyncio.current_task(loop)


@attrs.define(eq=False)
class LockOwner:
    """What owns a mutex: an item, a step's attempt, else the thread or the asyncio task.

    A context that was copied to another thread or task has the owner too, but is not inside of it: those run at the
    same time, and must exclude each other.

    Attributes:
        parent: The owner that waits for this one, whose mutexes this one may therefore enter again. A body that
            outlived its timeout has none.
        work: The step or item. Items run at the same time, so that they must not enter what their parent holds.
        holds: The mutexes that it has entered and not left, once for each entry, and those that are kept for it.
        node: The thread that runs its body.
        task: The asyncio task that runs its body; None: none does.
        batch: Of an item: its `for_each`, if that is on record.
        is_replayed: Of an item of *batch*: whether all its steps so far were on record; None: it has called none.
        failures: What failed inside its body, and was not logged: the body may handle it. None: nothing.
    """

    parent: LockOwner | None = None
    work: StepContext | ItemContext | None = None
    holds: list[HeldMutex] = attrs.field(factory=list)
    node: Node = attrs.field(factory=current_node)
    task: Any = attrs.field(factory=_current_task)
    failures: list[tuple[str, BaseException]] | None = None
    batch: BatchContext | None = None
    is_replayed: bool | None = None

    @property
    def item(self) -> tuple[int, ...]:
        """The number of the innermost `for_each` around, and the index of the item; empty where none is known."""
        owner: LockOwner | None = self
        while owner is not None:
            if isinstance(owner.work, ItemContext):
                return () if owner.batch is None else (owner.batch.number, owner.work.index)
            owner = owner.parent
        return ()

    @property
    def is_here(self) -> bool:
        """Whether this thread and asyncio task run its body."""
        return self.node is current_node() and self.task is _current_task()

    def move_here(self) -> None:
        """Note that this thread runs its body from now on."""
        self.node, self.task = current_node(), _current_task()

    def __str__(self) -> str:
        match self.work:
            case StepContext(name):
                return f"step {name!r}"
            case ItemContext(index):
                return f"item {index} of for_each"
        return str(self.node)

    def chain(self) -> Iterator[LockOwner]:
        """This owner, and those that wait for it."""
        owner: LockOwner | None = self
        while owner is not None:
            yield owner
            owner = owner.parent


@attrs.define(eq=False)
class InFlightStep:
    """A step that a thread of this process runs, and that its other threads can wait for.

    Attributes:
        name: The step's.
        attempt: The number of the attempt that the thread runs, or of the one elsewhere that it waited for; 0 before.
        error: What its caller gets, if it failed.
        is_hopeless: Whether each further attempt would fail likewise, so that none is made.
        thread: The thread that runs it.
        is_settled: False while the record may say that this step runs, so that other processes wait for it.
        helpers: Threads in copies of its context that wait for other steps: its body is taken to wait for them, as
            `await asyncio.to_thread` does.
        ended: Set at its end; None while no thread waits for it.
    """

    name: str
    attempt: int = 0
    error: BaseException | None = None
    is_hopeless: bool = False
    thread: Node = attrs.field(factory=current_node)
    is_settled: bool = True
    helpers: list[Node] = attrs.field(factory=list)
    ended: OneShotEvent | None = None
    _wait: Wait | None = None

    @property
    def wait(self) -> Wait:
        """What it waits for, as a node of the wait-for graph: the threads that work for it."""
        self._wait = self._wait or Wait(self, "", self._blockers)
        return self._wait

    def _blockers(self) -> Sequence[Node]:
        return () if self.ended is None or self.ended.is_set() else (self.thread, *self.helpers)


@attrs.define(eq=False)
class Attempt:
    """An attempt at a step.

    Attributes:
        session: Of the workflow that it is recorded in.
        flight: The step in flight that it belongs to.
        parent: The attempt whose body called this step. A body that outlived its timeout has none.
        number: In the record: it counts over crashes too.
        is_first: Whether no attempt at the same step, in key and version too, is on record before it.
        has_timeout: Whether its caller waits for its body no longer than until a timeout.
        has_ended: Whether its body has ended.
        is_recorded: Whether its completion is being recorded, or was: no update of the state can come with it any more.
        updates: The functions given to `update_state(..., with_step=True)`.
        usage: What its agent used, as `StepCompleted` has it; None: it has none.
    """

    session: Session
    flight: InFlightStep
    parent: Attempt | None = None
    number: int = 1
    is_first: bool = False
    has_timeout: bool = False
    has_ended: bool = False
    is_recorded: bool = False
    updates: list[Callable[[Json], Json]] = attrs.field(factory=list)
    usage: Json = None


class Batch(Protocol):
    """The `for_each` around something, or the run that it was submitted in."""

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more starts in it."""
        ...

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C has come in its calling thread, so that commands and waits in it end."""
        ...


@attrs.define(eq=False)
class Scope:
    """What is current. Never changed; a frozen class would cost three times as much to make."""

    runtime: WorkflowRuntime | None = None
    runs: tuple[Run, ...] = ()
    owner: LockOwner | None = None
    step: StepContext | None = None
    item: ItemContext | None = None
    attempt: Attempt | None = None
    fences: tuple[Fence, ...] = ()
    batch: Batch | None = None

    def context(self) -> Context:
        """A copy of the current context in which this is current."""
        context = copy_context()
        context.run(_scope.set, self)
        return context


_scope: ContextVar[Scope] = ContextVar("iso_orchestrator_scope", default=Scope())  # noqa: B039 - it is immutable


class _Here(threading.local):
    """What this thread has, whatever is current in it: its owners outside of items and steps, its running attempts."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.of_thread = LockOwner(task=None)
        self.of_tasks: WeakKeyDictionary[Any, LockOwner] = WeakKeyDictionary()


_here = _Here()


def current_scope() -> Scope:
    """What is current here."""
    return _scope.get()


def make_current(scope: Scope) -> None:
    """Make *scope* current here."""
    _scope.set(scope)


def refuse_interrupted() -> None:
    """Raise where the `for_each` or the run around was interrupted: Python itself raises in the main thread only.

    Waits and commands call this again and again. Plain bodies of items and steps are let finish.

    Raises:
        KeyboardInterrupt: Ctrl-C has come.
    """
    batch = _scope.get().batch
    if batch is not None and batch.is_interrupted:
        raise KeyboardInterrupt("interrupted by Ctrl-C or SIGTERM")


def pause(seconds: float) -> None:
    """Sleep, until the `for_each` or the run around is interrupted.

    Raises:
        KeyboardInterrupt: It was.
    """
    refuse_interrupted()
    while seconds > 0:
        sleep(min(seconds, _LOOK_EVERY))
        seconds -= _LOOK_EVERY
        refuse_interrupted()


@contextmanager
def entered(scope: Scope) -> Iterator[None]:
    """Make *scope* current inside a `with`."""
    before = _scope.get()
    try:
        _scope.set(scope)
        yield
    finally:
        _scope.set(before)


def current_owner() -> LockOwner:
    """What would own a mutex that is taken here."""
    owner = _scope.get().owner
    if owner is not None and owner.is_here:
        return owner
    task = _current_task()
    if task is None:
        return _here.of_thread
    root = _here.of_tasks.get(task)
    if root is None:
        root = _here.of_tasks[task] = LockOwner(task=None)  # with the task it would keep it alive
    return root


def run_attempt(attempt: Attempt, body: Callable[[], T]) -> T:
    """Call *body*, and note that this thread runs *attempt*."""
    attempts = _here.attempts
    with masked():  # Ctrl-C in between would leave it in the list
        attempts.append(attempt)
        try:
            with unmasked():
                return body()
        finally:
            attempt.has_ended = True
            attempts.remove(attempt)  # not always the last one: greenlets end in any order


def innermost_attempt() -> Attempt | None:
    """The attempt of this context; in a thread that runs another one, the latter."""
    scope = _scope.get()
    if _here.attempts and (scope.owner is None or not scope.owner.is_here):
        return _here.attempts[-1]
    return scope.attempt


def attempts_around() -> Iterator[Attempt]:
    """The attempts that this code runs in, from the innermost one."""
    attempt = innermost_attempt()
    while attempt is not None:
        if not attempt.has_ended:  # as that of a context that was copied, and is used later
            yield attempt
        attempt = attempt.parent


def current_step() -> StepContext:
    """The step whose body is running.

    Raises:
        NoActiveWorkflowError: No step's body is running here.

    Example:
        >>> from iso_orchestrator import MemoryStore, Workflow
        >>> Workflow("batch", store=MemoryStore()).run_step("fetch", lambda: current_step().name)
        'fetch'
    """
    step = _scope.get().step
    if step is None:
        raise NoActiveWorkflowError("current_step()")
    return step


def count_cost(usd: float | None) -> None:
    """Note what an agent has cost, for the log and the progress."""
    runtime = _scope.get().runtime
    if usd and runtime is not None:
        runtime.costs.append(usd)


def note_step(owner: LockOwner | None, *, is_replayed: bool) -> None:
    """Note in *owner*, if it is an item, that a step of it was on record, or is run."""
    if owner is not None and owner.batch is not None:
        owner.is_replayed = is_replayed and owner.is_replayed is not False


def note_usage(usage: dict[str, Json]) -> None:
    """Note what the agent of the attempt here has used: keys as in the journal, those without a value left out."""
    attempt = _scope.get().attempt
    if attempt is not None:
        attempt.usage = {key: value for key, value in usage.items() if value is not None}


def current_item() -> ItemContext:
    """The item of the innermost `for_each`.

    Raises:
        NoActiveWorkflowError: No `for_each` is around here.

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
