"""Prefect: tasks with kept results, cached by their inputs.

It has no way without its server: with no address of one it starts its own, a process on this machine with SQLite, and
ends it. The results are files that it writes and does not sync.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from peers.protocol import Cannot, Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    if task.together:
        raise Cannot("each process would start a server of its own")
    os.environ |= {
        "PREFECT_HOME": str(task.folder),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    from prefect import flow
    from prefect import task as prefect_task
    from prefect.cache_policies import INPUTS
    from prefect.task_runners import ThreadPoolTaskRunner

    @prefect_task(persist_result=True, cache_policy=INPUTS)
    def job(number: int) -> Result:
        return task.body(number)

    def fan_out(numbers: Sequence[int], workers: int) -> Iterable[Result]:
        return job.map(numbers).result()

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=task.workers))
    def bench() -> None:
        work(job, fan_out)

    bench()


if __name__ == "__main__":
    serve(run)
