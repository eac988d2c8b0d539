"""The progress of a batch: a line on a terminal, a cell in a notebook, else lines of the log.

No thread draws: the one that ends an item does, and the calling thread while it waits. None of them waits for that:
where standard error is slow, a drawing is left out.
"""

from __future__ import annotations

import html
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.fanout.status import ASCII, LINES, BatchStatus, LimitInForce, soonest_limit, time_left
from iso_orchestrator.record.projection import Wait
from iso_orchestrator.runtime.context import current_owner
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.system.clock import monotonic
from iso_orchestrator.system.streams import NonBlockingWriter

_log = logging.getLogger("iso_orchestrator")

_WRITES, _SPAN = 5, 0.5  # writes in so many seconds, at most: the calling thread looks once a second
_CELL_EVERY = 0.25  # seconds between two drawings of a cell
_LINE_EVERY = 60.0  # seconds between two lines of the log
_NEWS_EVERY = 30.0  # seconds between two that tell of failures and limits


class Progress:
    """Tells how far a batch is; this one tells nothing."""

    def time(self) -> float:
        """The time that `advance` needs, in seconds."""
        return 0.0

    def advance(self, ok: bool, seconds: float = 0.0, *, is_replayed: bool = False) -> None:
        """Count one more item, which succeeded or failed. Any thread may call this.

        Args:
            ok: Whether it succeeded.
            seconds: How long it held a worker.
            is_replayed: Whether its result was on record before.
        """

    def refresh(self) -> None:
        """Show what has changed since. Any thread may call this, as often as it likes."""

    def close(self) -> None:
        """End the display. No more items are counted."""


def reporter(
    progress: bool | str | None, runtime: WorkflowRuntime, name: str, total: int | None, max_parallel: int = 1
) -> Progress:
    """Make the display that the option *progress* asks for.

    Args:
        progress: None and a str: a line on a terminal, a cell in a notebook, else lines of the log. True: the last to
            standard error. False: nothing. A str is the label, too.
        runtime: The workflow's.
        name: The label if *progress* is no str.
        total: The number of items; None if it is not known.
        max_parallel: Items at a time.
    """
    if progress is False:
        return Progress()
    batch = runtime, progress if isinstance(progress, str) else name, total, max_parallel
    if _is_terminal():
        return _Line(*batch)
    if _is_notebook():
        return _Cell(*batch)
    if progress is True:
        return _LinesToStderr(*batch)
    if _log.isEnabledFor(logging.INFO) and current_owner().work is None:  # what is in an item is the item's
        return _Lines(*batch)
    return Progress()


class _Counted(Progress):
    """Counts items, and refreshes the display at each one."""

    def __init__(self, runtime: WorkflowRuntime, label: str, total: int | None, max_parallel: int) -> None:
        self._runtime = runtime
        self._label = escape_terminal(label)
        self._total = total
        self._max_parallel = max_parallel
        self._costs_before = len(runtime.costs)
        self._guard = Lock()
        self._done = self._failed = self._replayed = self._timed = 0
        self._seconds = 0.0  # that the items of this run held a worker
        self._waits: Sequence[Wait] = ()
        self._began = self.time()

    def time(self) -> float:
        return self._runtime.clock.now().timestamp()

    def advance(self, ok: bool, seconds: float = 0.0, *, is_replayed: bool = False) -> None:
        with self._guard:
            self._done += 1
            self._failed += not ok
            if is_replayed:
                self._replayed += 1
            else:
                self._timed += 1
                self._seconds += seconds
        self.refresh()

    def _limit(self) -> LimitInForce | None:
        waits = self._runtime.limit_waits()
        self._waits = self._waits if waits is None else waits
        return soonest_limit(((wait.key, wait.until) for wait in self._waits), self._runtime.clock.now())

    def _status(self, *, is_over: bool = False) -> BatchStatus:
        now = self._runtime.clock.now()
        limit = None if is_over else self._limit()
        left = 0 if self._total is None or is_over else self._total - self._done
        rest = 0.0 if limit is None else limit.seconds_left
        return BatchStatus(
            label=self._label,
            total=self._total,
            done=self._done,
            failed=self._failed,
            replayed=self._replayed,
            limit=limit,
            seconds_gone=now.timestamp() - self._began,
            seconds_left=time_left(left, self._timed, self._seconds, self._max_parallel, rest),
            cost=sum(self._runtime.costs[self._costs_before :]),
            is_over=is_over,
        )


# Lines of the log.


class _Lines(_Counted):
    """Logs a line after a minute and then each minute, and at failures and limits."""

    def __init__(self, *batch: Any) -> None:
        super().__init__(*batch)
        self._line_at = self._began
        self._news_at = self._began - _NEWS_EVERY
        self._has_news = self._has_limit = False
        self._failures_told = 0

    def refresh(self) -> None:
        now = self.time()
        has_limit = self._limit() is not None
        with self._guard:
            self._has_news |= self._failed > self._failures_told or has_limit != self._has_limit
            self._has_limit, self._failures_told = has_limit, self._failed
            is_due = now >= self._line_at + _LINE_EVERY or (self._has_news and now >= self._news_at + _NEWS_EVERY)
            if not is_due:
                return
            self._line_at = now
            if self._has_news:
                self._has_news, self._news_at = False, now
        self._write(f"{self._runtime.workflow_id} {self._status().sentence()}")

    def _write(self, line: str) -> None:
        _log.info("%s", line)


class _LinesToStderr(_Lines):
    def __init__(self, *batch: Any) -> None:
        super().__init__(*batch)
        self._stderr = NonBlockingWriter(sys.stderr)

    def close(self) -> None:
        self._write(f"{self._runtime.workflow_id} {self._status(is_over=True).sentence()}")
        self._stderr.close()

    def _write(self, line: str) -> None:
        now = self._runtime.clock.now().astimezone()
        with self._guard:
            self._stderr.write(f"{now:%H:%M:%S} {escape_terminal(line)}\n")


# A cell of a notebook.


class _Cell(_Counted):
    def __init__(self, *batch: Any) -> None:
        super().__init__(*batch)
        self._drawing = Lock()
        self._next_at = monotonic() + _CELL_EVERY
        self._handle = sys.modules["IPython"].display.display(self._bundle(self._status()), raw=True, display_id=True)

    def close(self) -> None:
        with self._drawing:
            self._draw(self._status(is_over=True))

    def refresh(self) -> None:
        if monotonic() < self._next_at or not self._drawing.acquire(blocking=False):
            return
        try:
            self._next_at = monotonic() + _CELL_EVERY
            self._draw(self._status())
        finally:
            self._drawing.release()

    def _draw(self, status: BatchStatus) -> None:
        try:
            self._handle.update(self._bundle(status), raw=True)
        except Exception as error:  # noqa: BLE001 - a page that is gone must not make the batch fail
            self._next_at = float("inf")
            _log.debug("the progress of %s cannot be shown any more: %s", self._label, error)

    @staticmethod
    def _bundle(status: BatchStatus) -> dict[str, str]:
        words = status.sentence()
        value = "" if status.total is None else f' max="{status.total}" value="{status.done}"'
        return {"text/plain": words, "text/html": f"<progress{value}></progress> {html.escape(words)}"}


# A line on a terminal.


class _Line(_Counted):
    """Of several batches at a time, the first has the line. Log messages appear above it."""

    def __init__(self, *batch: Any) -> None:
        super().__init__(*batch)
        self._stderr = NonBlockingWriter(sys.stderr)
        self._signs = LINES if self._stderr.can_encode("".join(LINES)) else ASCII
        self._lock = RLock()  # in the middle of a drawing a finalizer may log something
        self._hidden = 0  # threads that are logging a message
        self._is_drawn = False
        self._written: deque[float] = deque(maxlen=_WRITES)  # when
        _shown.append(self)
        _put_messages_above_lines()
        self.refresh()

    def close(self) -> None:
        with self._lock:
            is_first = self._is_first
            if self in _shown:  # not in a child that was forked in an item
                _shown.remove(self)
            if is_first:
                self._draw(self._status(is_over=True), "\n")
            self._stderr.close()

    def refresh(self) -> None:
        if self._is_early or not self._is_first or not self._lock.acquire(blocking=False):
            return
        try:
            if not self._hidden:
                self._draw(self._status())
        finally:
            self._lock.release()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Clear the line, and draw it again after the block, which holds no lock: a handler may have one of its own."""
        with self._lock:
            self._hidden += 1
            if self._is_drawn:
                self._is_drawn = False
                self._write("\r\x1b[K")
        try:
            yield
        finally:
            with self._lock:
                self._hidden -= 1
                if not self._hidden and not self._is_early and self._is_first:
                    self._draw(self._status())

    @property
    def _is_first(self) -> bool:
        return next(iter(_shown), None) is self

    @property
    def _is_early(self) -> bool:
        return len(self._written) == _WRITES and monotonic() < self._written[0] + _SPAN

    def _draw(self, status: BatchStatus, end: str = "") -> None:
        line = status.line(self._stderr.columns() - 1, self._signs)  # in the last column some terminals wrap the line
        self._is_drawn = True
        self._write(f"\r{line}\x1b[K{end}")

    def _write(self, text: str) -> None:
        self._written.append(monotonic())
        self._stderr.write(text)


_shown: list[_Line] = []
_call_handlers: Callable[[logging.Logger, logging.LogRecord], None] | None = None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shown.clear)  # another thread of the parent may have had a line's lock


def _put_messages_above_lines() -> None:
    """Make all loggers of the program clear the line while their handlers write.

    Handlers are left alone: a program may replace them at any time, and draw on the terminal by itself.
    """
    global _call_handlers
    if _call_handlers is None:
        _call_handlers = logging.Logger.callHandlers
        logging.Logger.callHandlers = _call_handlers_above_lines  # type: ignore[assignment, method-assign]


def _call_handlers_above_lines(logger: logging.Logger, record: logging.LogRecord) -> None:
    assert _call_handlers is not None
    line = next(iter(_shown), None)
    if line is None or not _may_reach_a_terminal(logger):
        return _call_handlers(logger, record)
    with line.hidden():
        return _call_handlers(logger, record)


def _may_reach_a_terminal(logger: logging.Logger | None) -> bool:
    """Whether any handler is not one of files: at DEBUG a line that is drawn again for each message takes time."""
    handlers: list[logging.Handler] = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    return not handlers or not all(isinstance(handler, logging.FileHandler) for handler in handlers)


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # standard error is closed
        return False


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
