"""redun with its own SQLite database, its defaults: a rollback journal, synchronous FULL.

A chain is one execution a step: an expression of many steps, each an argument of the next, evaluates by recursion.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Sequence

from redun import Scheduler
from redun import task as redun_task
from redun.config import Config
from sqlalchemy.exc import SQLAlchemyError

from peers.protocol import Cannot, Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    config = {
        "backend": {"db_uri": f"sqlite:///{task.folder / 'redun.db'}"},
        "executors.default": {"type": "local", "max_workers": str(task.workers)},
    }
    scheduler = Scheduler(config=Config(config))
    with (task.folder / "migrating").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two that make the tables at one time fail
        scheduler.load(migrate=True)

    @redun_task(namespace="bench", version="1")
    def job(number: int) -> Result:
        return task.body(number)

    def fan_out(numbers: Sequence[int], workers: int) -> Iterable[Result]:
        return scheduler.run([job(number) for number in numbers])

    try:
        work(lambda number: scheduler.run(job(number)), fan_out)
    except SQLAlchemyError as error:
        if not task.together:
            raise
        raise Cannot(f"several processes at one database: {type(error).__name__}") from error


if __name__ == "__main__":
    serve(run)
