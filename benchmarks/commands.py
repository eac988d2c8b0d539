"""What running a command as a step's command costs, beside what it costs without: `python benchmarks/commands.py`.

Each figure is the median of what single rounds show, in which both run one after the other.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from iso_orchestrator import Command
from iso_orchestrator.checks import unique_name
from iso_orchestrator.commands.process import ProcessRunner

ROUNDS = 200
GIB = 1 << 30
MUCH = f"yes 'a line of some length, as programs print them' | head -c {GIB}"


def run(folder: Path, args: list[str]) -> None:
    ProcessRunner(name="step", command=Command(args), tag=unique_name(), log_path=str(folder / "out.log")).run()


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_command(folder: Path) -> list[tuple[str, str, str]]:
    def plain() -> None:
        subprocess.run(["true"], stdin=subprocess.DEVNULL, capture_output=True, check=True)

    run(folder, ["true"])
    extra = sorted(timed(lambda: run(folder, ["true"])) - timed(plain) for _ in range(ROUNDS))
    median, most = statistics.median(extra) * 1e3, extra[int(0.95 * ROUNDS)] * 1e3
    processes = sum(name.isdecimal() for name in os.listdir("/proc")) if os.path.isdir("/proc") else "?"
    what = f"one command, over subprocess.run, among {processes} processes"
    return [(what, f"{median:.1f} ms (95 of 100 within {most:.1f})", "5 ms")]


def much_output(folder: Path) -> list[tuple[str, str, str]]:
    plain = folder / "plain.log"

    def redirected() -> None:
        with plain.open("wb") as file:
            subprocess.run(["sh", "-c", MUCH], stdout=file, check=True)
        plain.unlink()

    def logged() -> None:
        run(folder, ["sh", "-c", MUCH])
        (folder / "out.log").unlink()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ratios = [timed(logged) / timed(redirected) for _ in range(3)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return [
        ("1 GiB of output, over `command > file`", f"{statistics.median(ratios):.2f} x", "1.3 x"),
        ("memory that it takes", f"{grown:.1f} MB", "20 MB"),
    ]


def main() -> None:
    print(f"| {'what':<64} | {'measured':<34} | {'at most':<8} |\n| {'-' * 64} | {'-' * 34} | {'-' * 8} |")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR", ".")) as name:
        for table in (one_command, much_output):
            for what, measured, bound in table(Path(name)):
                print(f"| {what:<64} | {measured:<34} | {bound:<8} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
