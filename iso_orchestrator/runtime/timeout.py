"""A limit to how long a plain function is waited for: it cannot be killed, only left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

from iso_orchestrator.errors import StepTimeoutError
from iso_orchestrator.runtime.context import current_owner
from iso_orchestrator.system.interrupts import OneShotEvent, start

__all__ = ["call_with_timeout"]

R = TypeVar("R")


def call_with_timeout(name: str, body: Callable[[], R], timeout: float) -> R:
    """Call *body* in a thread of its own, which is left to itself when it takes longer than *timeout* seconds.

    The mutexes that are held around it stay held until it really ends.

    Raises:
        StepTimeoutError: It took longer.
    """
    outcome: list[R] = []
    failure: list[BaseException] = []
    holds = [hold for owner in current_owner().chain() for hold in owner.holds]
    at_end: list[Callable[[], None]] = []
    guard = threading.Lock()
    ended = OneShotEvent()

    def work() -> None:
        try:
            outcome.append(body())
        except BaseException as error:  # noqa: BLE001 - it is raised again where the caller waits
            failure.append(error)
        with guard:
            ended.set()
        for release in at_end:
            release()

    thread = threading.Thread(
        target=copy_context().run, args=(work,), name=f"iso-orchestrator step {name}"[:60], daemon=True
    )
    try:
        start(thread.start)
        ended.wait(timeout)
    finally:
        with guard:
            is_left = not ended.is_set()
            if is_left:
                at_end.extend(hold.leave_behind() for hold in holds)
    if is_left:
        raise StepTimeoutError(name, timeout)
    if failure:
        raise failure[0]
    return outcome[0]
