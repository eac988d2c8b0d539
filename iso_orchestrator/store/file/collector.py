"""The garbage collector, kept out of where much is made and nothing is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Do without the collector inside of a `with`.

    While a large record is read it looks through all of it again and again, which takes longer than the reading.
    Two threads may do this at one time: the worst is that the second one has the collector.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
