"""The files that commands write their output to. They are local files, whatever store keeps the record."""

from __future__ import annotations

import os
from contextlib import suppress

from iso_orchestrator.store.files import make_folders, missing_folders, store_error, write_all
from iso_orchestrator.store.names import record_names, safe_name
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem, free_range, hole_size, stop_appending

_CHUNK = 1 << 20  # bytes


def log_folder(root: str, workflow_id: str) -> str:
    """The folder of a workflow's logs in *root*, for a store that has no folder."""
    return os.path.join(root, "logs", record_names(workflow_id).short)


def log_path(folder: str, step: str, attempt: int, *, workflow_id: str | None = None) -> str:
    """Where an attempt at a step writes its log.

    Args:
        folder: The folder of the logs.
        step: The step's name.
        attempt: The number of the attempt.
        workflow_id: Part of the name where several workflows have their logs in the folder.
    """
    prefix = "" if workflow_id is None else f"{record_names(workflow_id).short}."
    return os.path.join(folder, f"{prefix}{safe_name(step)}.{attempt}.log")


class LogFile:
    """An open log. A command is given its descriptor, and this process reads what the command writes.

    The lock belongs to the open file: it is held until the last process that inherited the descriptor has closed it,
    although the process that took the lock may be gone.

    Attributes:
        path: Where it is.
    """

    def __init__(self, fs: FileSystem, file: FileLock) -> None:
        self.path = file.path
        self._fs = fs
        self._file = file

    @classmethod
    def append(cls, path: str) -> LogFile:
        """Open a log so that every write goes to its end; made, with its folder, when it is missing.

        Raises:
            StoreError: It cannot be opened.
        """
        fs = FileSystem()
        file = FileLock(fs, path)
        try:
            make_folders(fs, *missing_folders(fs, os.path.dirname(path)))
            file.open_append()
        except OSError as error:
            raise store_error(path, error) from error
        return cls(fs, file)

    @classmethod
    def find(cls, path: str) -> LogFile | None:
        """Open a log to read it; None when there is none.

        Raises:
            StoreError: It cannot be opened.
        """
        fs = FileSystem()
        file = FileLock(fs, path)
        try:
            file.open_read()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # no file can have such a name
            return None
        except OSError as error:
            raise store_error(path, error) from error
        return cls(fs, file)

    @property
    def fd(self) -> int:
        """The descriptor to give to a command."""
        return self._file.fd

    def try_lock(self) -> bool:
        """Lock the log if no other process has it locked."""
        return self._file.try_acquire()

    def is_locked(self) -> bool:
        """Whether another process has the log locked."""
        if not self._file.try_acquire(shared=True):
            return True
        self._file.release()
        return False

    def size(self) -> int:
        """How many bytes are in it."""
        return self._fs.identify(self.fd).st_size  # `FileSystem.size` would move the position that the command shares

    def read(self, offset: int, size: int) -> bytes:
        """Read at most *size* bytes from *offset* on."""
        return self._fs.read_at(self.fd, size, offset)

    def hole_size(self, offset: int) -> int:
        """How many bytes from *offset* on were given back by `free`."""
        return hole_size(self.fd, offset)

    def free(self, begin: int, end: int) -> None:
        """Give the disk space from *begin* to *end* back, while a command writes. They read as NULs then.

        Raises:
            OSError: The file system cannot do that.
        """
        free_range(self.fd, begin, end - begin)

    def cut(self, begin: int, end: int, instead: bytes) -> None:
        """Put *instead*, which must be shorter, in the place of the bytes from *begin* to *end*. No command writes.

        Raises:
            OSError: The disk is full. No other bytes than those are lost.
        """
        stop_appending(self.fd)
        write_all(self._fs, self.fd, instead, begin)
        begin += len(instead)
        while part := self.read(end, _CHUNK):
            write_all(self._fs, self.fd, part, begin)
            begin, end = begin + len(part), end + len(part)
            with suppress(OSError):  # the next part needs the space
                self.free(begin, end)
        self._fs.truncate(self.fd, begin)

    def free_space(self) -> int | None:
        """Bytes that are free on its disk; None where that is not known."""
        try:
            disk = os.fstatvfs(self.fd)
        except (OSError, AttributeError):  # there is none on Windows
            return None
        return disk.f_bavail * disk.f_frsize

    def close(self) -> None:
        """Close it here. A command that has it open keeps the lock."""
        self._file.close_without_unlock()
