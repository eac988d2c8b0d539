"""Trouble on the way out must not hide the error that one leaves with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from iso_orchestrator.errors import OrchestratorError

__all__ = ["noting"]


@contextmanager
def noting(error: BaseException | None, what: str) -> Iterator[None]:
    """Where there is an *error* already, trouble inside of the `with` is a note on it and hides nothing."""
    try:
        yield
    except OrchestratorError as trouble:
        if error is None:
            raise
        error.add_note(f"iso-orchestrator: {what}: {trouble}")
