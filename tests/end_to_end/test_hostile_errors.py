"""Errors of users whose classes are frozen or raise in whatever is asked of them, and clocks of theirs that raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from iso_orchestrator import Retry, StoreError, Workflow
from iso_orchestrator.coordination import mutex_queue


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int = 1


class SlottedError(Exception):
    __slots__ = ("part",)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    __hash__ = None  # type: ignore[assignment]  # as a class with `__eq__` alone has it


class RudeError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("no attributes")

    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    @property
    def code(self) -> str:
        raise RuntimeError("no code")


def raising(error: Exception) -> Callable[..., Any]:
    def body(*_: object) -> None:
        raise error

    return body


def items_of(error: Exception) -> Iterator[int]:
    yield 1
    raise error


def in_block(workflow: Workflow, block: Any, error: Exception) -> None:
    del workflow
    with block:
        raise error


def with_update(workflow: Workflow, error: Exception) -> None:
    workflow.run_step("it", lambda: workflow.update_state(raising(error), with_step=True))


def kept(workflow: Workflow, error: Exception) -> None:
    summary = workflow.run_for_each([1], raising(error), stop_on_error=False, progress=False)
    assert summary._repr_html_()
    summary.values()


def parse(workflow: Workflow, error: Exception) -> None:
    workflow.command(name="it", parse=raising(error))(lambda: ["true"])()


USES: dict[str, Callable[[Workflow, Exception], object]] = {
    "a step": lambda workflow, error: workflow.run_step("it", raising(error), retry=2),
    "a retry's rule": lambda workflow, error: workflow.run_step(
        "it", raising(error), retry=Retry(2, should_retry=raising(KeyError("no rule")))
    ),
    "a step with a timeout": lambda workflow, error: workflow.run_step("it", raising(error), timeout=60),
    "accept": lambda workflow, error: workflow.run_step("it", int, accept=raising(error)),
    "a submitted step": lambda workflow, error: workflow.step(name="it")(raising(error)).submit().result(),
    "an update": lambda workflow, error: workflow.update_state(raising(error)),
    "an update with a step": with_update,
    "a run": lambda workflow, error: workflow.run(raising(error)),
    "a lease": lambda workflow, error: in_block(workflow, workflow.lease("slot"), error),
    "a heartbeat": lambda workflow, error: in_block(workflow, workflow.heartbeating("beat"), error),
    "a mutex": lambda workflow, error: in_block(workflow, workflow.mutex("key"), error),
    "an item": lambda workflow, error: workflow.run_for_each([1], raising(error), mutex_key="key", progress=False),
    "an item's key": lambda workflow, error: workflow.run_for_each([1], repr, mutex_key=raising(error), progress=False),
    "the items": lambda workflow, error: workflow.run_for_each(items_of(error), repr, progress=False),
    "a result": kept,
    "parse": parse,
}


@pytest.mark.parametrize("kind", [FrozenError, SlottedError, RudeError])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_users_error_comes_out_as_it_is(
    workflow: Workflow, use: Callable[[Workflow, Exception], object], kind: type[Exception]
) -> None:
    """What the package adds to an error never takes its place."""
    error = kind()
    try:
        use(workflow, error)
    except Exception as raised:
        assert raised is error
    else:
        pytest.fail("nothing was raised")


@pytest.mark.parametrize("kind", [FrozenError, SlottedError, RudeError])
@pytest.mark.parametrize("use", ["a step", "a run", "a lease", "a heartbeat", "a mutex", "an item"])
def test_the_users_error_comes_out_of_a_store_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, kind: type[Exception]
) -> None:
    """Even where its failure, and the end of what was around it, cannot be recorded."""
    error, fails = kind(), False
    workflow = Workflow("w", dir=tmp_path)
    session = workflow._runtime.session()
    transact = session.transact

    def failing(*args: Any, **options: Any) -> Any:
        if fails:
            raise StoreError("the disk is full")
        return transact(*args, **options)

    class Late:
        """The error, from whose creation on nothing is recorded."""

        def __call__(self, *_: object) -> None:
            nonlocal fails
            fails = True
            raise error

    monkeypatch.setattr(session, "transact", failing)
    blocks = {
        "a lease": workflow.lease("slot"),
        "a mutex": workflow.mutex("key"),
        "a heartbeat": workflow.heartbeating("b"),
    }
    late: Any = Late()
    try:
        if use in blocks:
            with blocks[use]:
                late()
        elif use == "a step":
            workflow.run_step("it", late)
        elif use == "a run":
            workflow.run(late)
        else:
            workflow.run_for_each([1], late, mutex_key="key", progress=False)
    except Exception as raised:
        assert raised is error
    fails = False
    workflow.close()


class Clock:
    """A clock that raises once, at the call of that number after `arm`."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails_at = 0

    def arm(self, number: int) -> None:
        self.calls, self.fails_at = 0, number

    def __call__(self) -> datetime:
        self.calls += 1
        if self.calls == self.fails_at:
            raise LookupError("no time")
        return datetime.now(UTC)


@pytest.mark.parametrize("what", ["a lease", "a heartbeat"])
def test_a_clock_that_raises_once_ends_no_background_thread(tmp_path: Path, what: str) -> None:
    """The next renewal, or the next beat, is recorded again."""
    clock = Clock()
    workflow = Workflow("w", dir=tmp_path, now=clock)
    block: Any = workflow.lease("it", ttl=0.2) if what == "a lease" else workflow.heartbeating("it", every=0.02)

    def last() -> datetime:
        record = workflow._runtime.session().transact(lambda projection: ((), projection.record()))
        return record.leases["it"].heartbeat_at if what == "a lease" else record.heartbeats["it"].at

    with block:
        clock.arm(1)
        wait_until(lambda: clock.calls > 1, what="a call after the one that raised")
        since = last()
        wait_until(lambda: last() > since, what="another one on record")
    workflow.close()


def states(root: Path) -> list[mutex_queue.MutexState]:
    """The mutexes of a root that this process knows."""
    return [state for (store, _, _), state in mutex_queue._registry.states.items() if store == ("file", str(root))]


@pytest.mark.parametrize("number", range(1, 8))
def test_a_clock_that_raises_once_keeps_no_mutex(tmp_path: Path, number: int) -> None:
    """Whichever thread it meets, of those that hand a mutex on to each other: others get the mutex afterwards."""
    clock = Clock()
    workflow = Workflow("w", dir=tmp_path, now=clock)

    def take() -> None:
        with workflow.mutex("key", timeout=60):
            pass

    with ThreadPoolExecutor(3) as pool:
        with suppress(LookupError), workflow.mutex("key"):
            waiting = [pool.submit(take) for _ in range(3)]
            wait_until(lambda: sum(len(state.waiters) for state in states(tmp_path)) == 3)
            clock.arm(number)
        assert all(isinstance(future.exception(60), LookupError | type(None)) for future in waiting)
    take()
    assert not states(tmp_path)
    workflow.close()


def test_a_clock_that_raises_once_fails_one_waiter_at_most(tmp_path: Path) -> None:
    """The thread that waits for another process's lock reads no clock: the caller that reads it gets the error."""
    clock = Clock()
    workflow = Workflow("w", dir=tmp_path, now=clock)
    elsewhere = workflow._runtime.session().log.mutex("key", whole_store=False)
    elsewhere.acquire()

    def take() -> None:
        with workflow.mutex("key"):
            pass

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(take) for _ in range(2)]
        wait_until(lambda: sum(len(state.waiters) for state in states(tmp_path)) == 2)
        clock.arm(1)
        elsewhere.release()
        errors = [future.exception(60) for future in waiting]
        assert errors.count(None) == 1
        assert isinstance(next(filter(None, errors)), LookupError)
    take()
    elsewhere.dispose()
    workflow.close()
