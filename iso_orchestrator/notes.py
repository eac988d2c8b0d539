"""What the package adds to errors and logs: notes, and texts that drive no terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, _GeneratorContextManager
from datetime import datetime
from functools import wraps
from types import TracebackType
from typing import ParamSpec, TypeVar

from iso_orchestrator.checks import escape_terminal

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("iso_orchestrator")

_SHOWN = 300  # characters of a message in a line of the log


# Users' errors. Their classes may be frozen, so that every attribute that is set raises, and may have any methods.


def message_of(error: BaseException, show: Callable[[BaseException], str] = str) -> str:
    """The text of *error*, whatever its class makes of that."""
    try:
        return show(error)
    except Exception as broken:  # noqa: BLE001 - a __str__ that raises must not hide the error
        return f"<no message: its __str__ raised {type(broken).__name__}>"


def describe_error(error: BaseException, show: Callable[[BaseException], str] = str) -> str:
    """Name *error* in a line of a log: its class, and the beginning of its message, as *show* gives it."""
    message = message_of(error, show)
    shown = message if len(message) <= _SHOWN else f"{message[:_SHOWN]}..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def add_note(error: BaseException, note: str) -> None:
    """Add a note, which drives no terminal, to *error*; log it where the error takes none. Never raises."""
    try:
        error.add_note(escape_terminal(f"iso-orchestrator: {note}"))
    except Exception:  # noqa: BLE001 - the error itself is what counts
        _log.warning("%s: %s", message_of(error), note)


class _Context(_GeneratorContextManager[T]):
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None or isinstance(error, StopIteration):
            return super().__exit__(kind, error, trace)
        try:
            self.gen.throw(error)
        except StopIteration:
            return True  # the generator has suppressed the error
        except BaseException as raised:
            if raised is not error:
                raise
            BaseException.with_traceback(error, trace)
            return False
        raise RuntimeError("the generator has not ended")


def contextmanager(make: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """As in `contextlib`, whose one sets the traceback of an error as an attribute: that raises for frozen errors."""

    @wraps(make)
    def context(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Context(make, args, kwargs)  # type: ignore[arg-type]  # generators are annotated as iterators

    return context


class suppressed_as_note:  # noqa: N801 - used like a function; a generator would cost three times as much
    """Attach an error raised inside the `with` to *error* as a note, so that cleanup never hides the original error.

    Args:
        error: The original exception; None: the error inside is raised as usual.
        what: What the code inside does, for the note.
    """

    def __init__(self, error: BaseException | None, what: str) -> None:
        self._error = error
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if self._error is None or not isinstance(error, Exception):
            return False
        add_note(self._error, f"{self._what}: {message_of(error)}")
        return True


class _EscapeRecords(logging.Filter):
    """Escapes what is logged: it has texts of programs, files and users in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (escaped := escape_terminal(message)) != message:
            record.msg, record.args = escaped, None
        if record.exc_info and record.exc_text is None:
            trace = logging.Formatter().formatException(record.exc_info)
            record.exc_text = "\n".join(map(escape_terminal, trace.split("\n")))
        return True


_log.addFilter(_EscapeRecords())  # here, since every module that logs imports this one


def describe_process(pid: int | None, host: str | None, since: datetime | None) -> str:
    """Name a process in a message, as far as it is known."""
    start = f" since {since.isoformat(timespec='seconds')}" if since else ""
    return f"process {pid or 'unknown'} on {host or 'an unknown host'}{start}"
