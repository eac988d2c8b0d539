"""durastep on its default store: SQLite in WAL mode, synchronous FULL. A step is one transaction and one sync.

It has no fan-out. A thread sees the run only in a copy of the context, and has a connection of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import durastep

from peers.protocol import Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    @durastep.step
    def job(number: int) -> Result:
        return task.body(number)

    def fan_out(numbers: Sequence[int], workers: int) -> Iterable[Result]:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(copy_context().run, job, number) for number in numbers]
            return [future.result() for future in futures]

    with durastep.run("bench", store=durastep.SQLiteStore(task.folder / "durastep.db")):
        work(job, fan_out)


if __name__ == "__main__":
    serve(run)
