"""What many tests of the promises begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from reliability.oracle import Nursery
from reliability.replay import LockFiles


@pytest.fixture
def folder(memory_path: Path) -> Path:
    """In memory, where there is such a folder: what is tried is not the disk."""
    return memory_path


@pytest.fixture
def root(memory_path: Path) -> Path:
    """Likewise, for a store."""
    return memory_path


@pytest.fixture(scope="module")
def nursery(request: pytest.FixtureRequest) -> Iterator[Nursery]:
    """Where processes are forked that know the test's module."""
    with Nursery(request.module.__name__) as nursery:
        yield nursery


@pytest.fixture
def locks(tmp_path: Path) -> LockFiles:
    """The lock files of replayed machines, which are real ones."""
    return LockFiles(str(tmp_path))
