"""diskcache: a memoized function, and its lock, which polls. SQLite in WAL mode, synchronous NORMAL: no sync a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import diskcache

from peers.protocol import Mutex, Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    with diskcache.Cache(task.folder) as cache:

        @cache.memoize()
        def job(number: int) -> Result:
            return task.body(number)

        work(job)


@contextmanager
def mutex(task: Task) -> Iterator[Mutex]:
    with diskcache.Cache(task.folder) as cache:
        yield lambda: diskcache.Lock(cache, "key")


if __name__ == "__main__":
    serve(run, mutex=mutex)
