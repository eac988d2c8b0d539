"""Work that an interrupt hurries and does not break off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from iso_orchestrator.system.interrupts import OneShotEvent, start

__all__ = ["Work", "run_uninterrupted"]

Work: TypeAlias = Callable[[Callable[[], bool]], object]
"""Is given a function that says whether an interrupt has come."""

_STARTS = 3


def run_uninterrupted(work: Work) -> None:
    """Do *work* to its end, in a thread that no signal handler interrupts. The interpreter does not end before it.

    Raises:
        BaseException: What the work raises; else the interrupt that came meanwhile, as by Ctrl-C.
    """
    errand = _Task(work)
    if errand.is_begun():
        errand.wait()
    else:
        work(errand.is_urgent)  # there are no threads to be had, as when the interpreter ends


class _Task:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._claim = threading.Lock()  # whoever takes it does the work, and never gives it back
        self._ended = OneShotEvent()
        self._interrupt: BaseException | None = None
        self._error: BaseException | None = None

    def is_begun(self) -> bool:
        """Begin it; whether that was possible."""
        for _ in range(_STARTS):
            try:
                start(threading.Thread(target=self._run, name="iso-orchestrator ending").start)
                return True
            except BaseException as error:  # noqa: BLE001 - an interrupt is raised by `wait`
                self._note(error)  # and the thread may have begun all the same
        return self._claim.locked()

    def is_urgent(self) -> bool:
        """Whether an interrupt has come."""
        return self._interrupt is not None

    def wait(self) -> None:
        """Wait for its end, whatever comes."""
        while not self._ended.is_set():
            try:
                self._ended.wait()
            except BaseException as error:  # noqa: BLE001 - it is raised below
                self._note(error)
        if self._error is not None:
            raise self._error
        if self._interrupt is not None:
            raise self._interrupt

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._work(self.is_urgent)
        except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits
            self._error = error
        finally:
            self._ended.set()

    def _note(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            self._interrupt = error
