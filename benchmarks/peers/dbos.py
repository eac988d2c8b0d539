"""DBOS on its system database: SQLite with its defaults (a rollback journal, synchronous FULL), or PostgreSQL.

A chain is one workflow of N steps. It is killed before its end and then recovered, and its steps return what was
recorded. A fan-out is one asynchronous workflow. A step on SQLite is four syncs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dbos import DBOS, DBOSConfig, SetWorkflowID

from peers.protocol import Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    url = task.where or f"sqlite:///{task.folder / 'dbos.sqlite'}"
    name = f"bench-{task.first}"
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url,
        "log_level": "ERROR",
        "executor_id": name,
        "application_version": "1",
    }
    DBOS(config=config)

    @DBOS.step()
    def step(number: int) -> Result:
        return task.body(number)

    @DBOS.step()
    async def step_of_many(number: int) -> Result:
        return await task.async_body(number)

    @DBOS.workflow()
    async def many(numbers: Sequence[int], workers: int) -> list[Result]:
        free = asyncio.Semaphore(workers)

        async def one(number: int) -> Result:
            async with free:
                return await step_of_many(number)

        return await asyncio.gather(*(one(number) for number in numbers))

    @DBOS.workflow()
    def flow() -> None:
        work(step)

    DBOS.launch()
    if task.workload == "fan_out":
        work(step, lambda numbers, workers: asyncio.run(many(list(numbers), workers)))
    elif any(status.workflow_id == name for status in DBOS.list_workflows()):
        DBOS.retrieve_workflow(name).get_result()
    else:
        task.leave = "kill"
        with SetWorkflowID(name):
            flow()
    DBOS.destroy()


if __name__ == "__main__":
    serve(run)
