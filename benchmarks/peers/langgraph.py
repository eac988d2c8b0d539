"""LangGraph's functional API with SqliteSaver, its defaults: sqlite3 in WAL mode, synchronous FULL.

A task's result is written by a thread in the background: the caller has it before it is on the disk. The entrypoint
fails after its tasks, so that it can be resumed with their results.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.func import entrypoint, task

from peers.protocol import Cannot, Report, Result, Task, Work, serve

ITS_OWN_THREADS = 2  # the entrypoint and its stream sit in the same pool as the tasks, which deadlock with fewer


class StoppedError(Exception):
    """The end of a first run."""


def run(bench: Task, work: Work) -> Report:
    if bench.together:
        raise Cannot("several processes cannot share a thread of it")
    path = bench.folder / "checkpoints.db"
    is_new = not path.exists()

    free = threading.Semaphore(bench.workers)  # its pool does not always need its own threads

    @task
    def job(number: int) -> Result:
        with free:
            return bench.body(number)

    def fan_out(numbers: Sequence[int], workers: int) -> Iterable[Result]:
        return [future.result() for future in [job(number) for number in numbers]]

    with SqliteSaver.from_conn_string(str(path)) as saver:

        @entrypoint(checkpointer=saver)
        def flow(name: str) -> None:
            work(lambda number: job(number).result(), fan_out)
            if is_new:
                raise StoppedError

        with suppress(StoppedError):
            config: dict[str, Any] = {"configurable": {"thread_id": "bench"}}
            if bench.workload == "fan_out":
                config["max_concurrency"] = bench.workers + ITS_OWN_THREADS
            flow.invoke("bench" if is_new else None, config, durability="sync")
    return {"writes_late": True}


if __name__ == "__main__":
    serve(run)
