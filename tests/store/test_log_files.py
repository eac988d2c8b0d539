"""The logs of commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from iso_orchestrator.errors import StoreError
from iso_orchestrator.store.log_files import LogFile


def test_the_log_of_a_command_is_appended_to_and_read(tmp_path: Path) -> None:
    """A log is made with its folder, and stays locked until the last process that has the file open closes it."""
    path = str(tmp_path / "deep" / "er" / "step.log")
    assert LogFile.find(path) is None
    for text in (b"one\n", b"two\n"):
        log = LogFile.append(path)
        os.write(log.fd, text)
        log.close()
    log, reader = LogFile.append(path), LogFile.find(path)
    assert reader is not None
    assert (reader.size(), reader.read(4, 3)) == (8, b"two")
    assert not reader.is_locked()
    assert log.try_lock()
    assert reader.is_locked()
    inherited = os.dup(log.fd)
    log.close()
    assert reader.is_locked()
    os.close(inherited)
    assert not reader.is_locked()
    reader.close()


@pytest.mark.parametrize("plant", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_what_is_no_log_is_refused(tmp_path: Path, plant: Any) -> None:
    """A folder or a FIFO in place of a log raises StoreError, which names it."""
    path = tmp_path / "step.log"
    plant(path)
    for use in (LogFile.append, LogFile.find):
        with pytest.raises(StoreError, match=r"step\.log"):
            use(str(path))
