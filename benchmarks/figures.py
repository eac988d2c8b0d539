"""The figures that the README names, measured side by side in one go: `python benchmarks/figures.py [--quick]`.

Absolute times say little on a shared machine: each ratio is taken within one round, of runs that follow each other,
and the median over all rounds is printed. Every run's results are checked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from iso_orchestrator import FileStore, Workflow
from iso_orchestrator.store.file.fs import FileSystem

LINE = b"x" * 399 + b"\n"
RESULT = {"outcome": "APPLIED", "text": "y" * 160}


class CountingFileSystem(FileSystem):
    """The real one, which counts its syncs."""

    def __init__(self) -> None:
        self.syncs = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        super().sync(fd)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR", ".")) as path:
        yield Path(path)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def chain(workflow: Workflow, first: int, count: int) -> None:
    @workflow.step
    def job(number: int) -> dict[str, str]:
        return RESULT

    for number in range(first, first + count):
        assert job(number) == RESULT


def raw_appends(path: Path, count: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(count):
            os.write(fd, LINE)
            os.fdatasync(fd)
    finally:
        os.close(fd)


def sequential(rounds: int, count: int) -> list[tuple[str, str, str]]:
    steps, raws, syncs = [], [], []
    with folder() as root:
        fs = CountingFileSystem()
        workflow = Workflow("chain", store=FileStore(root / "store", fs=fs))
        with workflow:
            chain(workflow, 0, 50)
            for number in range(rounds):
                raws.append(timed(lambda: raw_appends(root / "raw", count)) / count)
                before, first = fs.syncs, 50 + number * count
                steps.append(timed(lambda first=first: chain(workflow, first, count)) / count)  # type: ignore[misc]
                syncs.append((fs.syncs - before) / count)
        assert len(workflow.record.steps) == 50 + rounds * count
    ratio = statistics.median(step / raw for step, raw in zip(steps, raws, strict=True))
    return [
        ("one appended write + fdatasync of 400 bytes", f"{statistics.median(raws) * 1e6:.1f} us", ""),
        ("one sequential step", f"{statistics.median(steps) * 1e6:.1f} us", ""),
        ("one sequential step over that write", f"{ratio:.2f} x", "2 x"),
        ("syncs a step, folds included", f"{statistics.mean(syncs):.3f}", "1 and a little"),
    ]


def growth(rounds: int, count: int) -> list[tuple[str, str, str]]:
    ratios = []
    for _ in range(rounds):
        with folder() as root, Workflow("growth", dir=root) as workflow:
            chain(workflow, -1, 1)
            first = timed(lambda: chain(workflow, 0, count))
            second = timed(lambda: chain(workflow, count, count))
            ratios.append(second / first)
    shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
    label = f"steps {count + 1:,} to {2 * count:,} over steps 1 to {count:,}, folds included"
    return [(label, f"{statistics.median(ratios):.2f} x  ({shown})", "1.15 x")]


def recorded(rounds: int, count: int) -> list[tuple[str, str, str]]:
    with folder() as root, Workflow("recorded", dir=root) as workflow:
        chain(workflow, 0, count)
        cost = statistics.median(timed(lambda: chain(workflow, 0, count)) / count for _ in range(rounds))
    return [("a completed step's recorded result", f"{cost * 1e6:.1f} us", "25 us")]


def opening(rounds: int, count: int) -> list[tuple[str, str, str]]:
    opened, read, folded = [], [], []
    with folder() as root:
        with Workflow("opening", dir=root) as workflow:
            chain(workflow, 0, count)
        for _ in range(rounds):
            again = Workflow("opening", dir=root)
            opened.append(timed(lambda again=again: again._handle.session()))  # type: ignore[misc]
            assert len(again.record.steps) == count
            again.append_event("changed")  # a fold writes only what is new
            folded.append(timed(again.close))
            read.append(timed(lambda again=again: again.record))  # type: ignore[misc]
    return [
        (f"opening a record of {count:,} steps", f"{statistics.median(opened):.2f} s", "1 s"),
        (f"folding a record of {count:,} steps", f"{statistics.median(folded):.2f} s", "1 s"),
        (f"reading a record of {count:,} steps without a lock", f"{statistics.median(read):.2f} s", ""),
    ]


def keyed(rounds: int, pause: float) -> list[tuple[str, str, str]]:
    keys = ["A"] * 20 + [f"other-{number}" for number in range(20)]
    optimum = 20 * pause
    times = []
    for _ in range(rounds):
        with folder() as root, Workflow("keyed", dir=root) as workflow:
            run = timed(
                lambda w=workflow: w.run_for_each(  # type: ignore[misc]
                    keys, lambda _: time.sleep(pause), max_parallel=4, mutex_key=lambda key: key, progress=False
                )
            )
            times.append(run)
    label = f"20 items of one key and 20 of others, {pause * 1e3:.0f} ms each, 4 at a time, over the optimum"
    return [(label, f"{statistics.median(times) / optimum:.2f} x", "1.15 x")]


def importing(rounds: int) -> list[tuple[str, str, str]]:
    # With the bytecode that pip compiles: an editable install would compile all of it each time where that is off.
    cached = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def run(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, env=cached))

    run("import iso_orchestrator")
    extra = [run("import iso_orchestrator") - run("pass") for _ in range(rounds)]
    cattrs = [run("import iso_orchestrator") / run("import cattrs") for _ in range(rounds)]
    loaded = "import sys, iso_orchestrator; sys.exit(any(m in sys.modules for m in ('tqdm', 'tenacity', 'IPython')))"
    run(loaded)
    return [
        ("import, over a bare interpreter", f"{statistics.median(extra) * 1e3:.0f} ms", "120 ms"),
        ("interpreter with the import, over one with cattrs alone", f"{statistics.median(cattrs):.2f} x", ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small runs, in some ten seconds")
    quick = parser.parse_args().quick
    rounds, size = (3, 10) if quick else (9, 1)
    tables = [
        lambda: sequential(rounds, 1_000 // size),
        lambda: growth(1 if quick else 5, 10_000 // size),
        lambda: recorded(rounds, 5_000 // size),
        lambda: opening(3, 20_000 // size),
        lambda: keyed(rounds, 0.02),
        lambda: importing(rounds),
    ]
    print(f"| {'what':<90} | {'measured':<34} | {'at most':<14} |\n| {'-' * 90} | {'-' * 34} | {'-' * 14} |")
    for table in tables:
        for what, measured, bound in table():
            print(f"| {what:<90} | {measured:<34} | {bound:<14} |", flush=True)


if __name__ == "__main__":
    main()
