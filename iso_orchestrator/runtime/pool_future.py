"""What a pool gives for work: a future, and how it is fulfilled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["WorkFuture", "fulfil"]

T = TypeVar("T")


class WorkFuture(Future[T]):
    """A future whose error may be falsy: the standard library's takes one for none."""

    def result(self, timeout: float | None = None) -> T:
        """As the standard library's."""
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                error = None  # as the error's own frame it would live in a circle
        return super().result(timeout)


def fulfil(future: WorkFuture[T], work: Callable[[], T]) -> None:
    """Do *work*, unless it was cancelled, and tell *future* what came of it."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        value = work()
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)
    else:
        future.set_result(value)
