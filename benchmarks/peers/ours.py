"""This library, on its file store."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from iso_orchestrator import Command, FileStore, Workflow, read_workflow_record
from peers.protocol import CheckError, Mutex, Report, Result, Task, Work, peak_memory, serve

try:
    from iso_orchestrator.system.filesystem import FileSystem
except ImportError:  # an earlier version
    from iso_orchestrator.store.file.fs import FileSystem

LINE = b"x" * 399 + b"\n"


class CountingFileSystem(FileSystem):
    """The real file system, with a count of its syncs."""

    def __init__(self) -> None:
        self.syncs = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        super().sync(fd)


class WeighingFileSystem(CountingFileSystem):
    """It also counts the bytes written, of journals and of other files."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = 0
        self.other = 0

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        written = super().write_at(fd, data, offset)
        if ".journal" in os.path.basename(os.readlink(f"/proc/self/fd/{fd}")):
            self.journal += written
        else:
            self.other += written
        return written


def run(task: Task, work: Work) -> Report:
    fs = WeighingFileSystem() if task.count else CountingFileSystem()
    workflow = Workflow("bench", store=FileStore(task.folder, fs=fs))
    report: Report = {}
    journal = 0

    @workflow.step
    def job(number: int) -> dict:
        return task.body(number)

    def fan_out(numbers: Sequence[int], workers: int) -> Iterable[Result]:
        return workflow.run_for_each(numbers, job, max_parallel=workers, progress=False).values()

    with workflow:
        syncs = fs.syncs
        work(job, fan_out)
        report["syncs"] = fs.syncs - syncs
        journal = fs.journal if isinstance(fs, WeighingFileSystem) else 0
    if isinstance(fs, WeighingFileSystem):
        useful = sum(len(job.step_name(number)) + task.size for number in task.ran)
        report |= {"useful": useful, "journal": journal, "written": fs.journal + fs.other}
        if journal < useful:
            raise CheckError(f"{journal} bytes were counted, {useful} had to be written")
    done = {name: step.result for name, step in workflow.record.steps.items()} if task.steps <= 10_000 else {}
    for number in task.ran[: len(done)]:
        task.check(number, done[job.step_name(number)])
    return report


@contextmanager
def mutex(task: Task) -> Iterator[Mutex]:
    workflow = Workflow("bench", dir=task.folder)
    yield lambda: workflow.mutex("key")
    workflow.close()


def single_sync(task: Task) -> Report:
    """Blocks of raw appends, of a chain and of a fan-out by turns, so that all see the same disk."""
    fs = CountingFileSystem()
    workflow = Workflow("bench", store=FileStore(task.folder / "store", fs=fs))
    raw = os.open(task.folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    blocks: list[dict[str, float]] = []
    block = 50

    @workflow.step
    def job(number: int) -> dict:
        return task.body(number)

    def appends() -> None:
        for _ in range(block):
            os.write(raw, LINE)
            os.fdatasync(raw)

    def chain(first: int) -> None:
        for number in range(first, first + block):
            task.check(number, job(number))

    def fan_out(first: int) -> None:
        numbers = range(first, first + 8 * block)
        results = workflow.run_for_each(numbers, job, max_parallel=8, progress=False).values()
        for number, result in zip(numbers, results, strict=True):
            task.check(number, result)

    with workflow:
        chain(0)
        for first in range(block, block + 10 * block * task.steps, 10 * block):
            syncs = fs.syncs
            before = timed(appends)
            step = timed(lambda first=first: chain(first))  # type: ignore[misc]
            syncs = fs.syncs - syncs
            after = timed(appends)
            fanned = timed(lambda first=first: fan_out(first + block))  # type: ignore[misc]
            blocks.append(
                {"raw": (before + after) / 2 / block, "step": step / block, "fanned": fanned / 8 / block}
                | {"syncs": syncs / block}
            )
    os.close(raw)
    if len(workflow.record.steps) != block + 9 * block * task.steps or len(task.ran) != len(workflow.record.steps):
        raise CheckError(f"{len(task.ran)} bodies ran, {len(workflow.record.steps)} steps are recorded")
    if any(block["syncs"] < 1 for block in blocks):
        raise CheckError("a step was not synced")
    return {"blocks": blocks}


def keyed(task: Task) -> Report:
    """A fan-out over items that have keys."""
    workflow = Workflow("bench", dir=task.folder)
    running: set[str] = set()
    lock = threading.Lock()
    took: list[tuple[str, float]] = []

    def body(item: tuple[str, float]) -> None:
        key, pause = item
        with lock:
            if key in running:
                raise CheckError(f"two items of {key} overlap")
            running.add(key)
        slept = timed(lambda: time.sleep(pause))
        with lock:
            running.remove(key)
            took.append((key, slept))

    with workflow:
        seconds = timed(
            lambda: workflow.run_for_each(
                task.items, body, max_parallel=task.workers, mutex_key=lambda item: item[0], progress=False
            )
        )
    if sorted(key for key, _ in took) != sorted(key for key, _ in task.items):
        raise CheckError(f"{len(took)} of {len(task.items)} items ran")
    return {"seconds": seconds, "done": len(took), "took": took}


def command(task: Task) -> Report:
    """A command as a step, by turns with the same run by `subprocess`."""
    workflow = Workflow("bench", dir=task.folder)
    blocks: list[dict[str, float]] = []

    @workflow.command(name="command-{number}")
    def job(number: int) -> Command:
        return Command(["true"])

    def plain() -> None:
        subprocess.run(["true"], stdin=subprocess.DEVNULL, capture_output=True, check=True)

    with workflow:
        job(-1)
        for number in task.numbers:
            before = timed(plain)
            blocks.append({"plain": before, "step": timed(lambda number=number: job(number))})  # type: ignore[misc]
    return {"blocks": blocks}


def read(task: Task) -> Report:
    """Read a record without a lock."""
    records: list[Any] = []
    seconds = timed(lambda: records.append(read_workflow_record("bench", dir=task.folder)))
    if len(records[0].steps) != task.steps:
        raise CheckError(f"{len(records[0].steps)} of {task.steps} steps are recorded")
    return {"seconds": seconds, "done": task.steps, "peak": peak_memory()}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    serve(run, mutex=mutex, own={"single_sync": single_sync, "keyed": keyed, "command": command, "read": read})
