"""A floor: the kernel's lock on an open file, waited for by the kernel."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from peers.protocol import Cannot, Mutex, Task, Work, serve


def run(task: Task, work: Work) -> None:
    raise Cannot("a lock only")


@contextmanager
def mutex(task: Task) -> Iterator[Mutex]:
    @contextmanager
    def take() -> Iterator[None]:
        fd = os.open(task.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    yield take


if __name__ == "__main__":
    serve(run, mutex=mutex)
