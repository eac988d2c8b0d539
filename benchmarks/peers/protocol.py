"""The workloads of the Python peers, their timing, and the checks of their results.

A peer is a program: `python -m peers.NAME WORKLOAD PARAMETERS FOLDER`, with the parameters as a JSON object. Its last
line is a JSON object: the measured `seconds`, how much was `done`, and what the caller checks; or `cannot`, with the
reason. After an error its exit code is not 0. A peer that starts `together` with others prints `ready`, and begins when
it has read a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Result = dict[str, str]
Step = Callable[[int], Result]
FanOut = Callable[[Sequence[int], int], Iterable[Result]]
Report = dict[str, Any]
Mutex = Callable[[], AbstractContextManager[Any]]


class CheckError(Exception):
    """A result is wrong, or a body ran too often."""


class Work(Protocol):
    """Called by a peer with its step, and with its fan-out if it has one; else a thread pool calls the step."""

    def __call__(self, step: Step, fan_out: FanOut | None = None) -> None: ...


@dataclass
class Task:
    """One run of one workload.

    Attributes:
        workload: Its name.
        folder: Where the peer keeps its files.
        first: The number of the first step; 0 or 1 for the two that acquire a mutex by turns.
        steps: How many steps, items or turns.
        size: Bytes of a result as compact JSON.
        pause: Seconds that a step's body takes.
        workers: How many at a time.
        limit: Seconds after which no step is begun.
        hold: Seconds for which a mutex is held.
        together: Whether to wait for a line before the work begins.
        leave: "close", or "kill": the process exits without closing anything.
        count: Whether to count the bytes written by kind of file.
        items: Key and seconds of each item of a keyed fan-out.
        where: The URL of the database, if it is not a file.
        ran: The numbers of the steps whose bodies ran.
    """

    workload: str
    folder: Path
    first: int = 0
    steps: int = 100
    size: int = 200
    pause: float = 0.0
    workers: int = 1
    limit: float = 30.0
    hold: float = 0.0
    together: bool = False
    leave: str = "close"
    count: bool = False
    items: Sequence[tuple[str, float]] = ()
    where: str = ""
    ran: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = "y" * (self.size - len(json.dumps({"number": "0" * 9, "text": ""}, separators=(",", ":"))))

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.steps)

    def body(self, number: int) -> Result:
        """The body of a step."""
        self.ran.append(number)
        if self.pause:
            time.sleep(self.pause)
        return self.result(number)

    async def async_body(self, number: int) -> Result:
        """The body of an asynchronous step."""
        self.ran.append(number)
        if self.pause:
            await asyncio.sleep(self.pause)
        return self.result(number)

    def result(self, number: int) -> Result:
        """The one right result of a step."""
        return {"number": f"{number:09}", "text": self._text}

    def check(self, number: int, result: object) -> None:
        if result != self.result(number):
            raise CheckError(f"step {number} gave {str(result)[:200]}")


class Cannot(Exception):  # noqa: N818  # an answer, not an error
    """The peer cannot do the workload; the text says why."""


def serve(
    run: Callable[[Task, Work], Report | None],
    *,
    mutex: Callable[[Task], AbstractContextManager[Mutex]] | None = None,
    own: dict[str, Callable[[Task], Report]] | None = None,
) -> None:
    """Run the workload of the command line, and print its report.

    Args:
        run: Opens the peer, calls the work with its step, and closes the peer. What it returns is added to the report.
        mutex: Opens the peer's mutex.
        own: The peer's own workloads.
    """
    workload, parameters, folder = sys.argv[1:]
    task = Task(workload, Path(folder), **json.loads(parameters))
    workloads: dict[str, Callable[[Task], Report]] = {
        "chain": lambda task: steps(task, run, chain),
        "fan_out": lambda task: steps(task, run, fan_out),
        **(own or {}),
    }
    if mutex is not None:
        workloads |= {
            "mutex": lambda task: uncontended(task, mutex),
            "hand_over_threads": lambda task: hand_over_threads(task, mutex),
            "hand_over": lambda task: hand_over(task, mutex),
        }
    try:
        if workload not in workloads:
            raise Cannot("it has none")
        answer(workloads[workload](task))
    except Cannot as reason:
        answer({"cannot": str(reason)})


def answer(report: Report) -> None:
    print(json.dumps(report), flush=True)


def wait_for_word(task: Task) -> None:
    if task.together:
        print("ready", flush=True)
        sys.stdin.readline()


def steps(task: Task, run: Callable[[Task, Work], Report | None], loop: Callable[..., Report]) -> Report:
    """Open the peer, call its steps, and close it, each timed."""
    report: Report = {}
    closing = 0.0
    began = time.monotonic()

    def work(step: Step, fan_out: FanOut | None = None) -> None:
        nonlocal closing
        report["opening"] = time.monotonic() - began
        wait_for_word(task)
        written = bytes_written()
        report["began"] = time.monotonic()
        report.update(loop(task, step, fan_out))
        report["ended"] = time.monotonic()
        report["bytes"] = bytes_written() - written
        report["peak"] = peak_memory()
        report["ran"] = len(task.ran)
        if len(set(task.ran)) != len(task.ran):
            raise CheckError("a step ran twice")
        if task.leave == "kill":
            answer(report)
            os._exit(0)
        closing = time.monotonic()

    report |= run(task, work) or {}
    report["closing"] = time.monotonic() - closing
    report["peak_closed"] = peak_memory()
    return report


def chain(task: Task, step: Step, fan_out: FanOut | None) -> Report:
    """One step after the other."""
    clock = time.perf_counter
    middle = task.first + task.steps // 2
    done = 0
    half = 0.0
    started = clock()
    end = started + task.limit
    for number in task.numbers:
        if number == middle:
            half = clock() - started
        task.check(number, step(number))
        done += 1
        if clock() > end:
            break
    return {"seconds": clock() - started, "first_half": half, "done": done}


def fan_out(task: Task, step: Step, fan_out: FanOut | None) -> Report:
    """Many steps, `workers` of them at a time."""
    started = time.perf_counter()
    results = list((fan_out or in_threads(step))(task.numbers, task.workers))
    seconds = time.perf_counter() - started
    for number, result in zip(task.numbers, results, strict=True):
        task.check(number, result)
    return {"seconds": seconds, "done": len(results)}


def in_threads(step: Step) -> FanOut:
    def fan_out(numbers: Sequence[int], workers: int) -> Iterable[Result]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(step, numbers))

    return fan_out


def uncontended(task: Task, mutex: Callable[[Task], AbstractContextManager[Mutex]]) -> Report:
    """Acquire and release a mutex without another waiter."""
    with mutex(task) as take:
        with take():
            pass
        started = time.perf_counter()
        for _ in range(task.steps):
            with take():
                pass
        return {"seconds": time.perf_counter() - started, "done": task.steps}


def hand_over_threads(task: Task, mutex: Callable[[Task], AbstractContextManager[Mutex]]) -> Report:
    """Two threads that acquire a mutex by turns."""
    reports: list[Report] = []
    with mutex(task) as take:
        with take():
            pass  # what opens at first use is open now
        parties = [threading.Thread(target=lambda who=who: reports.append(turns(task, take, who))) for who in (0, 1)]
        for party in parties:
            party.start()
        for party in parties:
            party.join()
    if len(reports) != len(parties):
        raise CheckError("a thread failed")
    return {"parties": sorted((report["turns"] for report in reports), key=lambda turns: turns[0]["acquired"])}


def hand_over(task: Task, mutex: Callable[[Task], AbstractContextManager[Mutex]]) -> Report:
    """One of two processes that acquire a mutex by turns."""
    with mutex(task) as take:
        with take():
            pass  # what opens at first use is open now
        wait_for_word(task)
        return turns(task, take, task.first)


def turns(task: Task, take: Mutex, who: int) -> Report:
    """Acquire the mutex, tell the other party, hold it, release it, and ask for it again when the other has it.

    So each party waits from the other's acquisition to its release, and the mutex changes hands each time, even if it
    is not fair.
    """
    mine, others = (Channel(task.folder / f"turn-{party}") for party in (who, 1 - who))
    done: list[dict[str, float]] = []
    if who == 1:
        mine.wait()
    for _ in range(task.steps):
        asked, cpu = time.monotonic(), time.process_time()
        with take():
            acquired = time.monotonic()
            cpu = time.process_time() - cpu
            others.tell()
            time.sleep(task.hold)
            released = time.monotonic()
        done.append({"asked": asked, "acquired": acquired, "released": released, "cpu": cpu})
        mine.wait()
    others.tell()  # the other's last wait
    return {"turns": done}


class Channel:
    """A named pipe: one party tells the other that it has the mutex."""

    def __init__(self, path: Path) -> None:
        with suppress(FileExistsError):
            os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def tell(self) -> None:
        os.write(self._fd, b".")

    def wait(self) -> None:
        os.read(self._fd, 1)


def bytes_written() -> int:
    """Bytes that this process has passed to the kernel to write; 0 if the kernel does not count them."""
    return proc("/proc/self/io", "wchar:")


def peak_memory() -> int:
    """The peak memory of this process, in bytes; 0 if the kernel does not count it."""
    return proc("/proc/self/status", "VmHWM:") * 1024


def proc(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
