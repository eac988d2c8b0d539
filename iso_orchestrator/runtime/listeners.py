"""Functions of the user's that are called with the events of this process: `Workflow(on_event=...)`."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import attrs

from iso_orchestrator.notes import describe_error
from iso_orchestrator.record.model import WorkflowEvent
from iso_orchestrator.record.projection import copy_json

_log = logging.getLogger("iso_orchestrator")


@attrs.define(eq=False)
class Listener:
    """A function that is called with events. What it raises is logged once, and dropped."""

    function: Callable[[WorkflowEvent], object]
    has_failed: bool = False

    def __call__(self, event: WorkflowEvent) -> None:
        """Call the function."""
        try:
            self.function(event)
        except BaseException as error:  # noqa: BLE001 - what was recorded must not look as if it had failed
            if not self.has_failed:
                self.has_failed = True
                _log.warning("on_event=%r raised, which is logged once: %s", self.function, describe_error(error))


class HasListeners(Protocol):
    """A `WorkflowRuntime`, as far as this module knows it."""

    listeners: tuple[Listener, ...]


class Listening:
    """What listens to the events of one session, and the events that were appended and not told yet."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # Weak: a function may refer to its workflow, which would never be dropped.
        self._refs: tuple[weakref.ref[HasListeners], ...] = ()
        self._here = _Here()

    def add(self, listening: HasListeners) -> None:
        """Tell the listeners of *listening* of each event from now on, as long as that object lives."""
        with self._guard:
            known = [ref for ref in self._refs if ref() not in (None, listening)]
            self._refs = (*known, weakref.ref(listening))

    def note(self, events: list[WorkflowEvent]) -> None:
        """Note events that this thread has appended."""
        if self._refs and not self._here.is_telling:  # a listener would be told of its own events for ever
            self._here.untold += events

    def tell(self) -> None:
        """Call the listeners with what this thread has noted. It has no lock."""
        here = self._here
        if not here.untold:
            return
        events, here.untold = here.untold, []
        listeners = [listener for ref in self._refs for listener in getattr(ref(), "listeners", ())]
        here.is_telling = True
        try:
            for event in events:
                for listener in listeners:
                    listener(attrs.evolve(event, detail=copy_json(event.detail)))
        finally:
            here.is_telling = False


class _Here(threading.local):
    """What this thread has."""

    def __init__(self) -> None:
        self.untold: list[WorkflowEvent] = []
        self.is_telling = False
