"""The files that a command writes its output to: read while it runs, and after it has ended.

The file of standard output stays locked as long as any process of the command has it open. That begins with the fork of
the command's first process, before this has the command's environment and its process tag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from iso_orchestrator.errors import CommandLeftoverError
from iso_orchestrator.store.log_files import LogFile
from iso_orchestrator.system.clock import Backoff, monotonic
from iso_orchestrator.system.interrupts import undo_on_error

TAIL = 1 << 16
"""Bytes of the end of each file that a result has."""

LONGEST_LINE = 1 << 20
"""Bytes of a line that a reader of lines is given; the rest of it is left out."""

_CHUNK = 1 << 16
_HOLDING = 1.0  # seconds
_LEFT_OUT = "[iso-orchestrator: {} bytes of the output were left out here]"
_SLACK = 1 << 24  # bytes beyond the limit of a log before its middle is given back
_LEAST_END = 1 << 20  # bytes of the end that are kept while the command writes, for the result and readers of lines
_FULL = 1 << 20  # bytes; a disk with less is full
_FIRST_LOOK = 0.01  # seconds; a command can fill a small disk soon
_LONGEST_LOOK = 1.0
_LAST_LINE = 1 << 12  # bytes that are searched for the last line


class LogReader:
    """Reads a command's log while it grows, without its first *start* bytes. A longer line is cut at *longest_line*."""

    def __init__(self, file: LogFile, start: int = 0, longest_line: int = LONGEST_LINE) -> None:
        self.path = file.path
        self._file = file
        self.start = start
        self._longest_line = longest_line
        self._offset = 0  # of the next byte that is searched for lines
        self._begun = bytearray()  # a line without its end

    def size(self) -> int:
        """Bytes that were written so far."""
        return self._file.size() - self.start

    def read(self, offset: int, size: int) -> bytes:
        """At most *size* bytes from *offset* on."""
        return self._file.read(self.start + offset, size)

    def tail(self, limit: int = TAIL) -> str:
        """The last *limit* bytes, from a whole character on."""
        offset = max(0, self.size() - limit)
        data = b""
        while part := self.read(offset + len(data), limit - len(data)):
            data += part
        return _text(data if offset == 0 else _from_whole_character(data))

    def text(self) -> str:
        """All of it, with a line in the place of what was left out."""
        parts, offset = [], 0
        while data := self._chunk(offset):
            skipped = self._hole_size(offset, data)
            parts.append(f"\n{_LEFT_OUT.format(skipped)}\n".encode() if skipped else data)
            offset += skipped or len(data)
        return _text(b"".join(parts))

    def free_space(self) -> int | None:
        """Bytes that are free on its disk; None where that is not known."""
        return self._file.free_space()

    def last_line(self) -> str:
        """The last line that is not blank, whether or not its end is there yet."""
        lines = reversed(self.tail(_LAST_LINE).split("\n"))
        return next((line.strip() for line in lines if line.strip()), "")

    def lines(self) -> Iterator[str]:
        """The lines that were completed since the last call; bytes that are no UTF-8 are spelled out.

        Lines that come meanwhile are left for the next call: they may never cease. A caller may stop at any line, and
        gets the next one from the next call. A line says what was left out.
        """
        size = self.size()
        while self._offset < size and (data := self._chunk(self._offset)):
            if skipped := self._hole_size(self._offset, data):
                yield from self.rest()
                self._offset += skipped
                yield _LEFT_OUT.format(skipped)
                continue
            *ends, rest = data.split(b"\n")
            for end in ends:
                self._offset += len(end) + 1
                self._add(end)
                yield self._taken()
            self._offset += len(rest)
            self._add(rest)

    def rest(self) -> Iterator[str]:
        """The line after `lines` that has no end, if there is one."""
        if self._begun:
            yield self._taken()

    def close(self) -> None:
        """Close it. A command that has it open keeps the lock."""
        self._file.close()

    def _chunk(self, offset: int) -> bytes:
        """Read to the next multiple of its size in the file, where the middle of a log begins and ends."""
        return self.read(offset, _CHUNK - (self.start + offset) % _CHUNK)

    def _hole_size(self, offset: int, data: bytes) -> int:
        """How many bytes were left out at *offset*, where *data* was read."""
        return 0 if data.strip(b"\0") else self._file.hole_size(self.start + offset)

    def _add(self, data: bytes) -> None:
        self._begun += data[: self._longest_line - len(self._begun)]

    def _taken(self) -> str:
        line = bytes(self._begun)
        self._begun.clear()
        return _text(line.removesuffix(b"\r"))


class OutputFile(LogReader):
    """A file that a command is given to append its output to. What is in it already is left out.

    The command writes to the file itself, so that its output is complete after a crash of this process. What is above
    the limit is taken from the middle of the file meanwhile.

    Args:
        path: The file.
        limit: Bytes that are kept, half of them from the beginning; None for no limit.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(self, path: str, limit: int | None) -> None:
        file = LogFile.append(path)
        super().__init__(file, start=file.size())
        self._limit = limit
        self._freed_to = 0

    @property
    def fd(self) -> int:
        """The descriptor to give to the command."""
        return self._file.fd

    def free_middle(self, limit: int | None = None, slack: int | None = None) -> None:
        """Give the space of what is above a limit back, while the command writes. The default is its own limit.

        Raises:
            OSError: The file system cannot do that.
        """
        limit = self._limit if limit is None else limit
        if limit is None:
            return
        kept = limit // 2
        begin = max(self._freed_to, -(-(self.start + kept) // _CHUNK) * _CHUNK)
        end = (self.start + self.size() - max(kept, _LEAST_END)) // _CHUNK * _CHUNK
        if end - begin >= (_SLACK if slack is None else slack):
            self._file.free(begin, end)
            self._freed_to = end

    def cut(self, limit: int | None = None) -> None:
        """Leave the middle of the output out, above a limit. For after the command's end."""
        limit = self._limit if limit is None else limit
        left_out = 0 if limit is None else self.size() - limit // 2 * 2
        mark = f"\n{_LEFT_OUT.format(left_out)}\n".encode()
        if limit is None or left_out <= len(mark):
            return
        begin = self.start + limit // 2
        with suppress(OSError):  # the disk is full: readers skip what was freed
            self._file.cut(begin, begin + left_out, mark)

    def hold(self) -> None:
        """Lock it for the command that is given it.

        Raises:
            CommandLeftoverError: Another command has it.
        """
        if os.name != "posix":
            return  # Windows would keep the command itself from writing
        pause = Backoff()
        # A process that another thread is just forking has this file open too, until it has its own program.
        give_up_at = monotonic() + _HOLDING
        while not self._file.try_lock():
            if monotonic() >= give_up_at:
                raise CommandLeftoverError((), _HOLDING, self.path)
            pause.rest()
        self.start = self._file.size()  # again: the command that had it locked may have gone on writing


DISK_FULL = "the disk of its log is full: free some space, or lower max_log_bytes="
"""What an error says of a command whose output had no more space."""


class OutputFiles:
    """The file of a command's standard output, and beside it that of standard error.

    Args:
        path: The file of standard output.
        limit: Bytes of each that are kept, half of them from the beginning; None for no limit.

    Attributes:
        is_disk_full: Whether they fill their disk, or it was full at the command's end.
        look_in: Seconds until the next `look` is due.

    Raises:
        CommandLeftoverError: Another command has the file of standard output open.
        StoreError: One of them cannot be opened.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        self.stdout = OutputFile(path, limit)
        with undo_on_error(self.stdout.close):
            self.stdout.hold()
            self.stderr = OutputFile(f"{path}.stderr", limit)
        self.is_disk_full = False
        self.look_in = _FIRST_LOOK
        self._size = 0
        self._looked_at = monotonic()

    def look(self) -> str | None:
        """Keep the files within their limit while the command writes; why it must be ended at once, if it must."""
        now, size = monotonic(), self.size()
        grown, seconds = size - self._size, now - self._looked_at
        self._size, self._looked_at = size, now
        try:
            self.stdout.free_middle()
            self.stderr.free_middle()
        except OSError as error:
            return (
                f"it is longer than max_log_bytes, and cannot be cut on this disk ({error.strerror}): raise the limit"
            )
        free = self.stdout.free_space()
        self.look_in = min(_LONGEST_LOOK, 2 * self.look_in)
        if grown and free is not None:
            # At this pace the disk would be full before the next look. A short log is not to blame for a full disk.
            self.is_disk_full = free < 2 * grown and size >= _FULL
            self.look_in = max(_FIRST_LOOK, min(self.look_in, seconds * free / grown / 8))
        return DISK_FULL if self.is_disk_full else None

    def make_room(self) -> None:
        """Give the space of a log that has filled the disk back, so that other steps are recorded."""
        if self.is_disk_full:
            with suppress(OSError):  # not every file system can do that
                self.stdout.free_middle(_FULL, slack=1)
                self.stderr.free_middle(_FULL, slack=1)

    def finish(self, *, has_failed: bool) -> None:
        """Cut the files to their limit after the command's end; to less for one that failed on a full disk."""
        free = self.stdout.free_space()
        self.is_disk_full = self.is_disk_full or (free is not None and free < _FULL)
        for file in (self.stdout, self.stderr):
            file.cut(_FULL if has_failed and self.is_disk_full else None)

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


def last_line_of(path: str) -> str:
    """The last line of a log that is not blank; "" where the log is gone.

    Raises:
        StoreError: The log cannot be opened.
    """
    file = LogFile.find(path)
    if file is None:
        return ""
    with closing(LogReader(file)) as log:
        return log.last_line()


def is_output_open(path: str) -> bool:
    """Whether a process of a command has that file open as its standard output; False where there is no such file.

    Raises:
        StoreError: The file cannot be opened.
    """
    file = LogFile.find(path)
    if file is None:
        return False
    with closing(file):
        return file.is_locked()


@contextmanager
def input_file(data: bytes | None, folder: str) -> Iterator[int | None]:
    """A descriptor to read *data* from, in a file without a name: a write to a pipe could wait for ever."""
    if data is None:
        yield None
        return
    import tempfile  # some milliseconds, which most commands do not need

    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _from_whole_character(data: bytes) -> bytes:
    """*data* without the last bytes of a character whose first bytes were cut off."""
    for start in range(min(4, len(data))):
        if data[start] & 0xC0 != 0x80:
            return data[start:]
    return data
