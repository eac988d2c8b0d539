"""Writes to a terminal or pipe that hold up nothing: what is slow or closed gets less, or nothing any more."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import TextIO

from iso_orchestrator.system.filesystem import reopen_without_waits

_COLUMNS = 80  # of a terminal that does not know its size, as under `script` or CI


class NonBlockingWriter:
    """Writes texts to a stream without ever waiting, and raises nothing.

    Not thread-safe: the caller has a lock. A text that the stream cannot take is left out. One of which it takes a part
    is completed by the next write, since half a control sequence would garble what follows.

    Args:
        stream: A text stream such as `sys.stderr`, which stays usable.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._rest = b""
        self._is_broken = False
        self._fd: int | None = None  # of the stream
        self._own: int | None = None  # the same, whose writes never wait
        try:
            self._fd = stream.fileno()
            self._own = reopen_without_waits(self._fd)
        except (OSError, ValueError, AttributeError):  # no file, closed, or one that can be opened once only
            pass

    def columns(self) -> int:
        """The width of the terminal: by the environment's ``COLUMNS``, else by itself."""
        columns = os.environ.get("COLUMNS", "")
        if columns.isdecimal() and int(columns):
            return int(columns)
        with suppress(OSError):
            return (os.get_terminal_size(self._fd).columns if self._fd is not None else 0) or _COLUMNS
        return _COLUMNS

    def can_encode(self, text: str) -> bool:
        """Whether the stream's encoding has all characters of *text*."""
        try:
            text.encode(self._encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    def write(self, text: str) -> None:
        """Write *text*, or leave it out."""
        try:
            if self._is_broken:
                return
            if self._own is not None:
                self._write_own(text.encode(self._encoding, "backslashreplace"))
            elif self._fd is None or _takes_more(self._fd):
                self._stream.write(text)
                self._stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError, LookupError):  # a closed terminal, pipe or file must not make the batch fail
            self._is_broken = True

    def close(self) -> None:
        """Close what this has opened; the stream stays open."""
        own, self._own = self._own, None
        self._is_broken = True
        if own is not None:
            os.close(own)

    def _write_own(self, data: bytes) -> None:
        assert self._own is not None
        if self._rest:
            self._rest = self._rest[os.write(self._own, self._rest) :]
        if not self._rest:
            self._rest = data[os.write(self._own, data) :]


def _takes_more(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
