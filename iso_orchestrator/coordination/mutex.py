"""Keyed mutexes over threads and processes: in this process in order, between processes by the kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any, TypeVar

from iso_orchestrator.checks import check_key, check_wait
from iso_orchestrator.coordination.mutex_queue import Held, MutexScope, Waiter, find_entry, find_hold
from iso_orchestrator.errors import MutexTimeoutError, suppressed_as_note
from iso_orchestrator.record.facts import EventAppended
from iso_orchestrator.runtime.context import current_owner
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.steps.step import check_callable
from iso_orchestrator.system.interrupts import OneShotEvent

__all__ = ["Mutex", "check_scope", "record_acquired", "release"]

F = TypeVar("F", bound=Callable[..., Any])


def record_acquired(runtime: WorkflowRuntime, key: str) -> None:
    """Append the event that a mutex was acquired."""
    _record(runtime, "mutex.acquired", key)


def release(runtime: WorkflowRuntime, key: str, hold: Held, error: BaseException | None) -> None:
    """Record that a mutex is released, and release it; a failure to record does not hide *error*."""
    try:
        with suppressed_as_note(error, f"the release of mutex {key!r} was not recorded"):
            if hold.depth == 1:
                _record(runtime, "mutex.released", key)
    finally:
        hold.release()


class Mutex(ContextDecorator):
    """`workflow.mutex(key)`: a context manager and a decorator."""

    def __init__(self, runtime: WorkflowRuntime, key: str, timeout: float | None, scope: MutexScope) -> None:
        self._runtime = runtime
        self._key = check_key(key, "a mutex key")
        self._timeout = check_wait(timeout, "timeout")
        self._scope: MutexScope = check_scope(scope)

    def __call__(self, fn: F) -> F:
        """Take the mutex around every call of *fn*.

        Raises:
            TypeError: It is no plain function: the body of another would run when the mutex is free again.
        """
        check_callable(fn, "what a mutex guards")
        return super().__call__(fn)

    def __enter__(self) -> None:
        hold = find_hold(self._runtime, self._key, self._scope, current_owner())
        if hold is not None:
            hold.enter_again()
            return
        hold = self._wait()
        try:
            record_acquired(self._runtime, self._key)
        except BaseException:
            hold.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold = find_hold(self._runtime, self._key, self._scope, current_owner())
        if hold is not None:
            release(self._runtime, self._key, hold, error)

    def _wait(self) -> Held:
        answered = OneShotEvent()
        answers: list[Held | BaseException] = []

        def answer(outcome: Held | BaseException) -> None:
            answers.append(outcome)
            answered.set()

        waiter = Waiter(current_owner(), granted=answer, failed=answer)
        entry = find_entry(self._runtime, self._key, self._scope)
        try:
            while not entry.enqueue(waiter):
                entry = find_entry(self._runtime, self._key, self._scope)
            if not answered.wait(self._timeout) and entry.withdraw(waiter):
                who = entry.holder()
                raise MutexTimeoutError(self._key, self._timeout or 0.0, who.pid, who.host, who.since)
            answered.wait()
            outcome = answers[0]
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        except BaseException:
            entry.abandon(waiter)
            raise


def check_scope(value: str) -> MutexScope:
    """The scope, if it is one."""
    if value not in ("workflow", "store"):
        raise ValueError(f'a mutex\'s scope is "workflow" or "store", not {value!r}')
    return value  # type: ignore[return-value]  # mypy does not narrow a str by `in`


def _record(runtime: WorkflowRuntime, kind: str, key: str) -> None:
    at = runtime.clock.now()
    runtime.transact(lambda _: ([EventAppended(at, kind, detail={"key": key})], None), durable=False)
