"""How far a batch is, on a terminal or in a notebook."""

from __future__ import annotations

import os
import sys
from threading import Lock
from typing import Any, Protocol

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.record.markup import escape_terminal

__all__ = ["Progress", "reporter"]

# What a write to a closed terminal, pipe or file raises; no reason for a job to fail.
_GONE = (OSError, ValueError)
_LABEL = 60  # characters; a longer label leaves no room for the bar


class Progress(Protocol):
    """What is told as items end."""

    def advance(self, ok: bool) -> None:
        """One more item has ended, well or not. Any thread may call it."""
        ...

    def close(self) -> None:
        """No more items will end."""
        ...


def reporter(progress: bool | str | None, total: int | None, name: str) -> Progress:
    """A display that does what *progress* asks for.

    Args:
        progress: None shows on a terminal (standard error is one) or in a notebook, where tqdm is installed.
            A str does the same and is the label. True shows always, False never.
        total: How many items there are; None where nobody knows.
        name: The label when *progress* is none.

    Raises:
        TypeError: *progress* is something else.
        WorkflowUsageError: It is True, and tqdm is not installed.

    Example:
        >>> display = reporter(False, 3, "apply")
        >>> display.advance(ok=True)
        >>> display.close()
    """
    if progress is not None and not isinstance(progress, bool | str):
        raise TypeError(f"progress must be a bool, a str or None, not {type(progress).__name__}")
    if progress is False or (progress is not True and not _is_watched()):
        return _Silent()
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        if progress is not True:
            return _Silent()
        raise WorkflowUsageError(
            'progress=True needs tqdm: pip install "iso-orchestrator[progress]", or leave progress out'
        ) from error

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # else tqdm starts a thread that refreshes what `advance` refreshes anyway

    label = escape_terminal(progress if isinstance(progress, str) else name)[:_LABEL]
    # A terminal that has no size, as under some CI, has 0 columns, and tqdm would show nothing there.
    width: dict[str, Any] = {"ncols": 80, "dynamic_ncols": _has_width()}
    try:
        return _Shown(Bar(total=total, desc=label, file=sys.stderr, miniters=1, **width))
    except _GONE:
        return _Silent()


class _Silent:
    def advance(self, ok: bool) -> None:
        pass

    def close(self) -> None:
        pass


class _Shown:
    """A bar of tqdm's, which is for one thread at a time."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = Lock()
        self._failed = 0

    def advance(self, ok: bool) -> None:
        with self._lock:
            if not ok:
                self._failed += 1
                self._bar.set_postfix_str(f"{self._failed} failed", refresh=False)
            self._show(self._bar.update)

    def close(self) -> None:
        with self._lock:
            self._show(self._bar.close)

    def _show(self, draw: Any) -> None:
        try:
            draw()
        except _GONE:
            self._bar.disable = True


def _is_watched() -> bool:
    return _is_terminal() or _is_notebook()


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def _has_width() -> bool:
    try:
        return _is_terminal() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return False


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
