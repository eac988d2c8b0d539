"""What the tests of the file store share."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from support import T0, WatchedFS, lines_of, looked_at, new_fold, note, notes_of, put

from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.log import FileWorkflowLog
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.names import record_names
from iso_orchestrator.system.filesystem import FileSystem

NPM = Path(__file__).parent / "data/npm-0.2.0"
TWINS = ("batch!/!///!!///!/!!/", "batch!!/!!//!!/!!!//!")  # two ids of one short name
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")
TAILS = {
    "half a line": b'{"seq":2,"synced":0,"fact":"event.app',
    "zeros": b"\0" * 700,
    "garbage": b"\xde\xad\n\xbe\xef" * 30,
    "a good line behind a bad one": b"rubbish\n",
}


def opened(root: Path, fs: FileSystem | None = None, workflow_id: str = "w") -> tuple[FileWorkflowLog, Projection]:
    log, projection = FileStore(root, fs).open(workflow_id, lambda: new_fold(workflow_id))
    assert isinstance(log, FileWorkflowLog)
    return log, projection


def die(log: FileWorkflowLog) -> None:
    """Leave what a killed process leaves: its files, without their locks."""
    log.close()


def rotate(log: FileWorkflowLog, projection: Projection, text: str = "long") -> Projection:
    """Append so much that a fresh pair is written, with `early_checkpoints`."""
    before = os.stat(log._paths.journal).st_ino
    projection = put(log, projection, note(text), f.EventAppended(T0, "filler", "x" * 1000))
    assert os.stat(log._paths.journal).st_ino != before
    return projection


def pair_of(paths: Paths) -> tuple[bytes, bytes]:
    return Path(paths.snapshot).read_bytes(), Path(paths.journal).read_bytes()


def written_by_node(paths: Paths, **changes: Any) -> bytes:
    """Another program replaces the snapshot as the npm package does; the new bytes."""
    document = {**json.loads(Path(paths.snapshot).read_bytes()), "updatedAt": "2027-01-01T00:00:00.000Z", **changes}
    data = json.dumps(document, indent=2).encode() + b"\n"
    aside = Path(paths.snapshot + ".tmp")
    aside.write_bytes(data)
    aside.rename(paths.snapshot)
    return data


def looks(root: Path, *messages: str) -> None:
    """Check that readers, and two openings after each other, see these notes."""
    assert notes_of(looked_at(FileStore(root))) == list(messages)
    for _ in range(2):
        log, projection = opened(root)
        assert notes_of(projection) == list(messages)
        log.detach(projection)
    assert notes_of(looked_at(FileStore(root))) == list(messages)


class Full(FileSystem):
    """A disk with so many bytes left; the write that meets its end takes what fits."""

    def __init__(self) -> None:
        self.left = 1 << 30

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if self.left == 0:
            raise NO_SPACE
        taken = super().write_at(fd, data[: self.left], offset)
        self.left -= taken
        return taken


def tear(paths: Paths, kind: str) -> bytes:
    """Put a torn tail at the end of the journal; its bytes."""
    tail = TAILS[kind]
    if kind.startswith("a good line"):
        tail += lines_of(paths.journal)[-1].replace(b'"seq":1', b'"seq":3')
    with open(paths.journal, "ab") as file:
        file.write(tail)
    return tail


class Crash(BaseException):
    """The process is gone."""


def crashing_at(number: int) -> WatchedFS:
    """A file system whose process is killed before its call of that number: from then on nothing but closing works."""
    fs = WatchedFS()

    def before(name: str, args: tuple[Any, ...]) -> None:
        if len(fs.calls) > number and name != "close":
            raise Crash

    fs.before = before
    return fs


def locked(place: Path) -> bool:
    """Whether a process has the record's lock, so that a deletion would wait for ever."""
    lock = Paths(str(place), record_names("w").short).record_lock
    if not os.path.exists(lock):
        return False
    with open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
