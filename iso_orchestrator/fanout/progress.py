"""The progress bar of a batch, on a terminal or in a notebook."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from threading import Lock
from typing import Any

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.errors import WorkflowUsageError

# What a write to a closed terminal, pipe or file raises. It must not make the batch fail.
_CLOSED = (OSError, ValueError)
_LABEL = 60  # characters; a longer label leaves no room for the bar


class Progress:
    """Shows how many items are done; this one shows nothing."""

    def advance(self, ok: bool) -> None:
        """Count one more item, which succeeded or failed. Any thread may call this."""

    def close(self) -> None:
        """End the display. No more items are counted."""


def reporter(progress: bool | str | None, total: int | None, name: str) -> Progress:
    """Make the display that the option *progress* asks for.

    Args:
        progress: None shows a bar if tqdm is installed, and standard error is a terminal or a notebook. A str does
            the same, and is the label. True always shows a bar, False never.
        total: The number of items; None if it is not known.
        name: The label if *progress* is no str.

    Raises:
        WorkflowUsageError: *progress* is True, and tqdm is not installed.

    Example:
        >>> display = reporter(False, 3, "apply")
        >>> display.advance(ok=True)
        >>> display.close()
    """
    if progress is False or (progress is not True and not _is_terminal() and not _is_notebook()):
        return Progress()
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        if progress is not True:
            return Progress()
        raise WorkflowUsageError(
            'progress=True needs tqdm: pip install "iso-orchestrator[progress]", or leave progress out'
        ) from error

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # otherwise tqdm starts a thread that draws the bar, which `advance` does anyway

    label = escape_terminal(progress if isinstance(progress, str) else name)[:_LABEL]
    # On a terminal that has no size, as under some CI, tqdm finds 0 columns and shows nothing.
    width: dict[str, Any] = {"ncols": 80, "dynamic_ncols": _has_width()}
    try:
        return _Bar(Bar(total=total, desc=label, file=sys.stderr, miniters=1, **width))
    except _CLOSED:
        return Progress()


class _Bar(Progress):
    """A bar of tqdm with a lock, since one thread at a time may use a bar."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = Lock()
        self._failed = 0

    def advance(self, ok: bool) -> None:
        with self._lock:
            if not ok:
                self._failed += 1
                self._bar.set_postfix_str(f"{self._failed} failed", refresh=False)
            self._draw(self._bar.update)

    def close(self) -> None:
        with self._lock:
            self._draw(self._bar.close)

    def _draw(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except _CLOSED:
            self._bar.disable = True


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # standard error is closed
        return False


def _has_width() -> bool:
    try:
        return _is_terminal() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return False


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
