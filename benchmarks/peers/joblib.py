"""joblib.Memory: a cached function, two files a call."""

from __future__ import annotations

import joblib

from peers.protocol import Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    def job(number: int) -> Result:
        return task.body(number)

    work(joblib.Memory(task.folder, verbose=0).cache(job))


if __name__ == "__main__":
    serve(run)
