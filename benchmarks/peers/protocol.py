"""What every Python peer shares: the workloads, their timing and the checks of their results.

A peer is a program: `python -m peers.NAME WORKLOAD PARAMETERS FOLDER`, with the parameters as a JSON object. It prints
one JSON object on its last line: `seconds`, measured inside, what was done in them, and what lets the results be
checked; or `cannot` with the reason. It ends with another code than 0 when anything is wrong. A peer that is told to
start `together` with others prints `ready` first, and begins when it gets a line.
"""

from __future__ import annotations

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
    """A run did not do what it should have done."""


class Work(Protocol):
    """What a peer calls with its step, and with its own fan-out if it has one (else threads call the step)."""

    def __call__(self, step: Step, fan_out: FanOut | None = None) -> None: ...


@dataclass
class Task:
    """One run of one workload.

    Attributes:
        workload: Its name.
        folder: Where the peer keeps its files.
        first: The number of the first step, and the place of a party among those that take a mutex in turn.
        steps: How many steps, items or turns.
        size: Bytes of a result as compact JSON.
        pause: Seconds that a step's body takes.
        workers: How many at a time.
        limit: Seconds after which no further step is begun.
        hold: Seconds for which a mutex is held.
        together: Whether to begin with others, at their word.
        leave: "close", or "kill": the process ends without tidying up.
        count: Whether to count the bytes written by kind of file.
        items: Key and seconds of each item of a keyed fan-out.
        where: The database, for a peer that has a choice.
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
        """What a step does."""
        self.ran.append(number)
        if self.pause:
            time.sleep(self.pause)
        return self.result(number)

    def result(self, number: int) -> Result:
        """The one right result of a step."""
        return {"number": f"{number:09}", "text": self._text}

    def check(self, number: int, result: object) -> None:
        if result != self.result(number):
            raise CheckError(f"step {number} gave {str(result)[:200]}")


class Cannot(Exception):  # noqa: N818  # no error: an answer
    """A peer has nothing that does this; its text says why."""


def serve(
    run: Callable[[Task, Work], Report | None],
    *,
    mutex: Callable[[Task], AbstractContextManager[Mutex]] | None = None,
    own: dict[str, Callable[[Task], Report]] | None = None,
) -> None:
    """Do what the command line asks for.

    Args:
        run: Opens the peer, calls the work with its step, and closes it. What it returns is added to the report;
            `writes_late` there says that results are written behind their caller's back, so that leaving is part of
            the steps' time.
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
    """Open the peer, call its steps, close it: each timed for itself."""
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
    if report.pop("writes_late", False):
        report["seconds"] += report["closing"]
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
    """Many steps, some at a time."""
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
    """Take and leave a mutex that nobody else wants."""
    with mutex(task) as take:
        with take():
            pass
        started = time.perf_counter()
        for _ in range(task.steps):
            with take():
                pass
        return {"seconds": time.perf_counter() - started, "done": task.steps}


def hand_over_threads(task: Task, mutex: Callable[[Task], AbstractContextManager[Mutex]]) -> Report:
    """Two threads take a mutex in turn."""
    reports: list[Report] = []
    with mutex(task) as take:
        with take():
            pass  # what opens at the first use is open
        parties = [threading.Thread(target=lambda who=who: reports.append(turns(task, take, who))) for who in (0, 1)]
        for party in parties:
            party.start()
        for party in parties:
            party.join()
    if len(reports) != len(parties):
        raise CheckError("a thread failed")
    return {"parties": sorted((report["turns"] for report in reports), key=lambda turns: turns[0]["acquired"])}


def hand_over(task: Task, mutex: Callable[[Task], AbstractContextManager[Mutex]]) -> Report:
    """One of two processes that take a mutex in turn."""
    with mutex(task) as take:
        with take():
            pass  # what opens at the first use is open
        wait_for_word(task)
        return turns(task, take, task.first)


def turns(task: Task, take: Mutex, who: int) -> Report:
    """Take the mutex, tell the other, hold it, leave it, and ask for it again when the other has it.

    So each of the two waits from just after the other has it until the other leaves it: nothing depends on luck, also
    where a mutex is not fair.
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
    """A named pipe over which one party is told that the other has the mutex."""

    def __init__(self, path: Path) -> None:
        with suppress(FileExistsError):
            os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def tell(self) -> None:
        os.write(self._fd, b".")

    def wait(self) -> None:
        os.read(self._fd, 1)


def bytes_written() -> int:
    """Bytes that this process has passed to the kernel to write; 0 where it does not tell."""
    return proc("/proc/self/io", "wchar:")


def peak_memory() -> int:
    """The most memory that this process has had, in bytes; 0 where the kernel does not tell."""
    return proc("/proc/self/status", "VmHWM:") * 1024


def proc(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
