"""The garbage collector of this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause garbage collection while a large record is loaded, or its history made.

    The collector would scan all of the record again and again, which takes as long as the work itself. Two threads may
    do this at one time: at worst the collector runs during the second one's work.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
