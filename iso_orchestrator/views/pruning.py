"""`prune`: old workflows, or the logs of their commands, and how much space they take."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import attrs

from iso_orchestrator.record.history import History, Outcome
from iso_orchestrator.store import Size, Store
from iso_orchestrator.text import time_text
from iso_orchestrator.views.live import history_as_of
from iso_orchestrator.views.terminal import Cell, Column, Terminal
from iso_orchestrator.views.words import is_running, status_span, status_words

DEFAULT_AGE = timedelta(days=30)

_COLUMNS = [
    Column("workflow", is_name=True),
    Column("status"),
    Column("updated"),
    Column("record", is_right=True),
    Column("logs", is_right=True),
]


@attrs.frozen
class Choice:
    """What `prune` is to remove.

    Attributes:
        older_than: The least age of a workflow, since anything happened in it.
        keep: How many of the newest workflows stay, whatever their age.
        logs: Whether the logs alone are removed.
        failed: Whether workflows with failures, and interrupted ones that could be resumed, are removed too.
    """

    older_than: timedelta = timedelta()
    keep: int = 0
    logs: bool = False
    failed: bool = False

    def of(self, histories: Iterable[History]) -> list[History]:
        """Those of *histories* that it means, the oldest first."""
        newest_first = sorted(histories, key=lambda history: history.updated_at, reverse=True)
        return [history for history in reversed(newest_first[self.keep :]) if self._means(history)]

    def _means(self, history: History) -> bool:
        if is_running(history) or history.now - history.updated_at < self.older_than:
            return False
        return self.failed or status_words(history)[0] not in {Outcome.FAILED, Outcome.INTERRUPTED}


def readable(store: Store) -> list[History]:
    """The workflows of a store that can be read: one that is damaged is never pruned."""
    return [history_as_of(store, found) for found in store.list() if not isinstance(found, Exception)]


def prune_lines(found: list[tuple[History, Size]], choice: Choice, terminal: Terminal) -> list[str]:
    """List what would be removed, and its sizes."""
    rows: list[list[Cell]] = [
        [
            history.workflow_id,
            status_span(history, terminal),
            time_text(history.updated_at, history.now),
            "" if choice.logs else size_text(size.record),
            size_text(size.logs),
        ]
        for history, size in found
    ]
    return terminal.table(_COLUMNS, rows)


def total(sizes: Iterable[Size], choice: Choice) -> int:
    """The bytes that are freed."""
    return sum(size.logs + (0 if choice.logs else size.record) for size in sizes)


def size_text(size: int) -> str:
    """Bytes in the largest unit that they fill.

    Example:
        >>> [size_text(size) for size in (0, 8192, 3_500_000, 2_000_000_000)]
        ['0 kB', '8 kB', '3.5 MB', '2.0 GB']
    """
    units = ((10**9, "GB"), (10**6, "MB"))
    return next((f"{size / unit:.1f} {name}" for unit, name in units if size >= unit), f"{size / 1000:.0f} kB")
