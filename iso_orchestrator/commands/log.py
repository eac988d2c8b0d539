"""The files that a command writes its output to, and what is read from them while it runs and when it has ended.

The file of standard output is locked as long as anybody of the command has it open: from the moment in which a process
is forked for it, before it has the command's environment and its mark, whoever has died by then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

from iso_orchestrator.errors import CommandLeftoverError
from iso_orchestrator.store import Store
from iso_orchestrator.store.log_files import LogFile
from iso_orchestrator.system.clock import Backoff, monotonic
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["LONGEST_LINE", "TAIL", "Lines", "OutputFile", "OutputFiles", "is_output_open", "last_line_of"]

TAIL = 1 << 16
"""Bytes of the end of each file that a result has."""

LONGEST_LINE = 1 << 20
"""Bytes of a line; what is longer is cut."""

_CHUNK = 1 << 16
_HOLDING = 1.0  # seconds
_LAST_LINE = 1 << 12  # bytes that are looked at for the last line


class OutputFile:
    """One of the files, which stays open. What is in it already is of no concern."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.path = path
        self._file = LogFile.append(fs, path)
        self._start = self._file.size()

    @property
    def fd(self) -> int:
        """The descriptor that the command is given."""
        return self._file.fd

    def hold(self) -> None:
        """Lock it for the command that is given it.

        Raises:
            CommandLeftoverError: Another command has it.
        """
        if os.name != "posix":
            return  # Windows would keep the command itself from writing
        pause = Backoff()
        # A process that another thread forks just now has this file open too, until it has its own program.
        give_up_at = monotonic() + _HOLDING
        while not self._file.try_lock():
            if monotonic() >= give_up_at:
                raise CommandLeftoverError((), _HOLDING, self.path)
            pause.rest()

    def size(self) -> int:
        """Bytes that were written so far."""
        return self._file.size() - self._start

    def read(self, offset: int, size: int) -> bytes:
        """At most *size* bytes from *offset* on."""
        return self._file.read(self._start + offset, size)

    def tail(self, limit: int = TAIL) -> str:
        """The end of it, from a whole character on."""
        offset = max(0, self.size() - limit)
        data = b""
        while part := self.read(offset + len(data), limit - len(data)):
            data += part
        return _text(data if offset == 0 else _from_whole_character(data))

    def last_line(self) -> str:
        """Its last line that is not blank, as far as it is there yet."""
        return _last_line(self.tail(_LAST_LINE))

    def close(self) -> None:
        """Close it."""
        self._file.close()


def last_line_of(store: Store, path: str) -> str:
    """The last line of a log that is not blank; "" where the log is gone."""
    file = store.find_log(path)
    if file is None:
        return ""
    with closing(file):
        return _last_line(_text(file.read(max(0, file.size() - _LAST_LINE), _LAST_LINE)))


class OutputFiles:
    """The file of standard output, and beside it that of standard error."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.stdout = OutputFile(fs, path)
        try:
            self.stdout.hold()
            self.stderr = OutputFile(fs, f"{path}.stderr")
        except BaseException:
            self.stdout.close()
            raise

    def size(self) -> int:
        """Bytes that were written to both so far."""
        return self.stdout.size() + self.stderr.size()

    def last_line(self) -> str:
        """The last line of standard output; of standard error where that has none."""
        return self.stdout.last_line() or self.stderr.last_line()

    def close(self) -> None:
        """Close both."""
        try:
            self.stdout.close()
        finally:
            self.stderr.close()


class Lines:
    """Hands on what is written to a file, line by line as it comes, with no more than a line in memory.

    Args:
        file: The file.
        consumer: Is given each line without its end; bytes that are no UTF-8 are spelled out.
    """

    def __init__(self, file: OutputFile, consumer: Callable[[str], None]) -> None:
        self._file = file
        self._consumer = consumer
        self._offset = 0
        self._begun = bytearray()

    def feed(self, until: float = float("inf")) -> bool:
        """Hand on the lines that are complete by now; not those that come meanwhile, which may never cease.

        Args:
            until: A moment of the monotonic clock, behind which no further one is.

        Returns:
            Whether that was all.
        """
        size = self._file.size()
        while self._offset < size and (data := self._file.read(self._offset, _CHUNK)):
            *ends, rest = data.split(b"\n")
            for end in ends:
                self._offset += len(end) + 1
                self._add(end)
                self._hand_on()
                if monotonic() >= until:
                    return False
            self._offset += len(rest)
            self._add(rest)
        return True

    def finish(self) -> None:
        """Hand on all that is left; the last line need not have an end."""
        self.feed()
        if self._begun:
            self._hand_on()

    def _add(self, data: bytes) -> None:
        self._begun += data[: LONGEST_LINE - len(self._begun)]

    def _hand_on(self) -> None:
        line = bytes(self._begun)
        self._begun.clear()
        self._consumer(_text(line.removesuffix(b"\r")))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")


def is_output_open(fs: FileSystem, path: str) -> bool:
    """Whether anybody of a command has that file open as its standard output; False where there is no such file."""
    file = LogFile.find(fs, path)
    if file is None:
        return False
    with closing(file):
        return file.is_locked()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _from_whole_character(data: bytes) -> bytes:
    """*data* without the last bytes of a character of which the first ones were cut off."""
    for start in range(min(4, len(data))):
        if data[start] & 0xC0 != 0x80:
            return data[start:]
    return data
