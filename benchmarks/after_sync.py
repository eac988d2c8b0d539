"""Time the code of a step after a sync, after an idle wait and after a busy one: `python benchmarks/after_sync.py`.

A sequential step is a sync and some code. The code is the same each time; the sync is replaced. Nothing is kept.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from iso_orchestrator import FileStore, Workflow
from iso_orchestrator.system.filesystem import FileSystem

STEPS = 500
ROUNDS = 9
WAIT = 120e-6  # seconds, about as long as a sync


class TimedSyncs(FileSystem):
    """A file system that calls *wait* in place of each sync of the journal, and times it.

    Attributes:
        seconds: The time of all waits.
    """

    def __init__(self, wait: Callable[[int], object] | None) -> None:
        self.seconds = 0.0
        self._wait = wait or super().sync

    def sync(self, fd: int) -> None:
        began = time.perf_counter()
        self._wait(fd)
        self.seconds += time.perf_counter() - began


def spin(_: int) -> None:
    end = time.perf_counter() + WAIT
    while time.perf_counter() < end:
        pass


WAITS: dict[str, Callable[[int], object] | None] = {
    "nothing": lambda _: None,
    "a busy wait": spin,
    "an idle wait (`sleep`)": lambda _: time.sleep(WAIT - 50e-6),  # it wakes some 50 us late
    "the sync": None,
}


def one_step(folder: Path, wait: Callable[[int], object] | None) -> tuple[float, float]:
    """The seconds of a step's wait, and of the rest of the step."""
    fs = TimedSyncs(wait)
    with Workflow("bench", store=FileStore(folder, fs=fs)) as workflow:
        job = workflow.step(lambda number: {"number": number, "text": "x" * 180}, name="job-{number}")
        job(-1)
        fs.seconds, began = 0.0, time.perf_counter()
        for number in range(STEPS):
            job(number)
        total = time.perf_counter() - began
        return fs.seconds / STEPS, (total - fs.seconds) / STEPS


def main() -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAITS}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR", ".")) as folder:
        for number in range(ROUNDS):
            for place, (name, wait) in enumerate(WAITS.items()):
                found[name].append(one_step(Path(folder) / f"{number}-{place}", wait))
    print(f"{'in the place of the sync':30}{'it took':>10}{'the rest of the step':>24}")
    for name, times in found.items():
        waited, rest = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
        print(f"{name:30}{waited:7.0f} us{rest:21.0f} us")


if __name__ == "__main__":
    main()
