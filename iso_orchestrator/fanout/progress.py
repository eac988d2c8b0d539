"""The progress bar of a batch, on a terminal or in a notebook."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import RLock
from typing import Any
from weakref import WeakSet

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.system.clock import monotonic

_log = logging.getLogger("iso_orchestrator")

# What a write to a closed terminal, pipe or file raises. It must not make the batch fail.
_CLOSED = (OSError, ValueError)
_REFRESH_EVERY = 0.5  # seconds
_LABEL = 60  # characters; a longer label leaves no room for the bar


class Progress:
    """Shows how many items are done; this one shows nothing."""

    def watch(self, describe: Callable[[int], str]) -> None:
        """Show what *describe* returns for a number of failed items.

        Args:
            describe: It is called at each drawing, in any thread. It must take no lock: the display has one then.
        """

    def advance(self, ok: bool) -> None:
        """Count one more item, which succeeded or failed. Any thread may call this."""

    def refresh(self) -> None:
        """Show what has changed since. Any thread may call this, as often as it likes."""

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
    try:
        return _Bar(Bar(total=total, desc=label, file=sys.stderr, miniters=1, **_size()))
    except _CLOSED:
        _free_lock(Bar)
        return Progress()


class _Bar(Progress):
    """A bar of tqdm with a lock, since one thread at a time may use a bar. Lines of the log appear above it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = RLock()  # in the middle of a drawing a finalizer may log something
        self._failed = 0
        self._describe: Callable[[int], str] = _describe_failed
        self._hidden = 0  # threads that are logging a line
        self._drawn_at = monotonic()
        _shown.add(self)
        _log.callHandlers = _call_handlers_above_bars  # type: ignore[method-assign]  # the one place all handlers share

    def watch(self, describe: Callable[[int], str]) -> None:
        self._describe = describe

    def advance(self, ok: bool) -> None:
        with self._lock:
            self._failed += not ok
            if self._hidden:
                self._bar.n += 1
            else:
                self._draw(self._bar.update)

    def refresh(self) -> None:
        with self._lock:
            if not self._hidden and monotonic() >= self._drawn_at + _REFRESH_EVERY:
                self._draw(self._bar.refresh)

    def close(self) -> None:
        with self._lock:
            _shown.discard(self)
            self._describe = _describe_failed
            self._draw(self._bar.close)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Clear the bar, and draw it again after the block, which holds no lock: a handler may have one of its own."""
        with self._lock:
            self._hidden += 1
            if self._hidden == 1:
                self._draw(self._bar.clear)
        try:
            yield
        finally:
            with self._lock:
                self._hidden -= 1
                if not self._hidden:
                    self._draw(self._bar.refresh)

    def _draw(self, draw: Callable[[], object]) -> None:
        self._drawn_at = monotonic()
        self._bar.set_postfix_str(self._describe(self._failed), refresh=False)
        try:
            draw()
        except _CLOSED:
            self._bar.disable = True
            _free_lock(self._bar)


def _free_lock(bar: Any) -> None:
    """Free tqdm's lock after an error of a drawing, as tqdm does not: no other thread could draw any bar."""
    with suppress(RuntimeError):  # this thread does not have it
        bar.get_lock().release()


def _describe_failed(failed: int) -> str:
    return f"{failed} failed" if failed else ""


_shown: WeakSet[_Bar] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shown.clear)  # another thread of the parent may have had a bar's lock


def _call_handlers_above_bars(record: logging.LogRecord) -> None:
    """Call the package's and the program's log handlers, with the bars cleared from the terminal meanwhile."""
    with ExitStack() as stack:
        for bar in list(_shown) if _may_reach_a_terminal(_log) else ():
            stack.enter_context(bar.hidden())
        logging.Logger.callHandlers(_log, record)


def _may_reach_a_terminal(logger: logging.Logger | None) -> bool:
    """Whether any handler is not one of files: at DEBUG a bar that is drawn again for each line takes time."""
    handlers: list[logging.Handler] = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    return not handlers or not all(isinstance(handler, logging.FileHandler) for handler in handlers)


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # standard error is closed
        return False


def _size() -> dict[str, Any]:
    """Return tqdm's options: on a terminal without a size, as under `script` or CI, it finds 0 and shows nothing."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    if _is_terminal() and columns and rows:
        return {"dynamic_ncols": True}
    return {"ncols": columns or 80, "nrows": rows or 24}


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
