"""The files that commands write their output to. They are local files, whatever store keeps the record."""

from __future__ import annotations

import os

from iso_orchestrator.store.files import make_folders, missing_folders, read_all, store_error
from iso_orchestrator.store.names import record_names, safe_name
from iso_orchestrator.system.file_lock import FileLock
from iso_orchestrator.system.filesystem import FileSystem


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
        except (FileNotFoundError, NotADirectoryError):
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

    def read_all(self, start: int = 0) -> bytes:
        """Read from byte *start* to the end."""
        return read_all(self._fs, self.fd, start)

    def close(self) -> None:
        """Close it here. A command that has it open keeps the lock."""
        self._file.close_without_unlock()
