"""mundane-sdk: one SQLite file a run, rollback journal, synchronous FULL. A step is two transactions and eight syncs.

A run has one connection, which only one thread may use, so a fan-out is asynchronous. One process at a time may run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import mundane

from peers.protocol import Cannot, Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    if task.together:
        raise Cannot("one process at a time")
    path = str(task.folder / "mundane.db")

    def fan_out(numbers: Sequence[int], workers: int) -> Iterable[Result]:
        async def many(context: mundane.Context) -> list[Result]:
            free = asyncio.Semaphore(workers)

            async def one(number: int) -> Result:
                async with free:
                    return await context.astep(f"job-{number}", lambda: task.async_body(number))

            return await asyncio.gather(*(one(number) for number in numbers))

        return asyncio.run(mundane.arun(path, many))

    def flow(context: mundane.Context) -> None:
        work(lambda number: context.step(f"job-{number}", lambda: task.body(number)))

    if task.workload == "fan_out":
        work(task.body, fan_out)
    else:
        mundane.run(path, flow)


if __name__ == "__main__":
    serve(run)
