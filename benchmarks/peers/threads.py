"""A baseline: plain functions, a `ThreadPoolExecutor` and a `threading.Lock`; nothing is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from peers.protocol import Cannot, Mutex, Task, Work, serve


def run(task: Task, work: Work) -> None:
    if task.workload == "chain":
        raise Cannot("it keeps nothing")
    work(task.body)


@contextmanager
def mutex(task: Task) -> Iterator[Mutex]:
    if task.workload == "hand_over":
        raise Cannot("of one process only")
    lock = threading.Lock()
    yield lambda: lock


if __name__ == "__main__":
    serve(run, mutex=mutex)
