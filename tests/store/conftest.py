"""What the tests of stores begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iso_orchestrator.store.file.log import FileWorkflowLog
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.names import record_names


@pytest.fixture
def root(memory_path: Path) -> Path:
    return memory_path / "root"


@pytest.fixture
def paths(root: Path) -> Paths:
    return Paths(str(root), record_names("w").short)


@pytest.fixture
def early_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh pair is written when the journal has a kilobyte: `rotate` makes one so long."""
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_BYTES", 1000)
    monkeypatch.setattr("iso_orchestrator.store.file.log._CHECKPOINT_AT_RATIO", 0.0)


@pytest.fixture(autouse=True)
def no_log_stays_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logs: list[FileWorkflowLog] = []
    real = FileWorkflowLog.__init__

    def init(log: FileWorkflowLog, *args: Any) -> None:
        real(log, *args)
        logs.append(log)

    monkeypatch.setattr(FileWorkflowLog, "__init__", init)
    yield
    for log in logs:
        log.close()
