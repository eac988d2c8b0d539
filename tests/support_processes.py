"""Threads and processes that use one workflow at the same time."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support import Child, run_python

PAUSE = 0.05  # seconds in which what should not happen would have happened

# What a child begins with: `say` and `hear` are its lines to the test and from it.
PROLOGUE = """
import os, signal, sys, threading, time
import iso_orchestrator
from iso_orchestrator import *
from iso_orchestrator.store import FileStore
from iso_orchestrator.testing import crash_here
from support import DEADLINE, WatchedFS, failing

root = sys.argv[1]
hear = input
def say(what):
    sys.stdout.write(f"{what}\\n")  # in one piece: several threads speak
def wait_for_ctrl_c():
    while True:
        time.sleep(0.01)  # unlike a wait of `threading`, it is ended by an interrupt at any moment, as itself
workflow = Workflow("w", dir=root)
"""


def child(code: str, root: Path | str) -> Child:
    """A process that runs *code*, with a `workflow` "w" in *root* that nobody has used yet."""
    return run_python(PROLOGUE + textwrap.dedent(code), root)


def killed(code: str, root: Path | str, said: str) -> None:
    """Run *code* as `child` does, and kill it as soon as it has said *said*."""
    with child(code, root) as process:
        while process.line() != said:
            pass
        process.kill()


def in_thread(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call *fn* in a thread of its own, which keeps no test run from ending when it hangs."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def assert_waits(waiter: Future[Any] | Child) -> None:
    """A thread does not end, or a child says nothing, for a while."""
    if isinstance(waiter, Child):
        with pytest.raises(AssertionError, match="printed nothing"):
            waiter.line(PAUSE)
        return
    with pytest.raises(TimeoutError):
        waiter.result(PAUSE)


def state_of(pid: int) -> str:
    """The letter by which Linux names a process's state; "Z" also for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
