"""Programs in which gevent has replaced Python's threads."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run_python

pytest.importorskip("gevent")

PATCHED = """
import sys, warnings
from gevent import monkey
warnings.simplefilter("ignore")
{first}
from iso_orchestrator import Workflow, WorkflowUsageError
{second}
workflow = Workflow("w", dir=sys.argv[1])
try:
    print(workflow.run_step("step", lambda: "ran"))
except WorkflowUsageError as error:
    print(error)
"""


@pytest.mark.parametrize("order", ["first", "second"])
def test_patched_threads_are_refused(tmp_path: Path, order: str) -> None:
    """A workflow is not opened with gevent's threads, whichever was imported first: waits for locks would hang."""
    code = PATCHED.format(**{"first": "", "second": "", order: "monkey.patch_all()"})
    with run_python(code, tmp_path) as child:
        assert "gevent.monkey.patch_all(thread=False)" in child.line()
        child.end()


def test_gevent_without_its_threads_is_let_be(tmp_path: Path) -> None:
    """What the error advises works, and a program that only imports gevent is not refused."""
    for first in ("monkey.patch_all(thread=False)", ""):
        with run_python(PATCHED.format(first=first, second=""), tmp_path) as child:
            assert child.line() == "ran"
            child.end()


def test_mutexes_wait_for_other_processes_beside_gevent(tmp_path: Path) -> None:
    """With Python's own threads a process that gevent has patched waits for a mutex, and gets it."""
    hold = (
        "import sys\nfrom iso_orchestrator import Workflow\n"
        "with Workflow('w', dir=sys.argv[1]).mutex('key'):\n    print('held'); input()\n"
    )
    wait = (
        PATCHED.format(first="monkey.patch_all(thread=False)", second="") + "with workflow.mutex('key'): print('in')\n"
    )
    with run_python(hold, tmp_path) as holder:
        assert holder.line() == "held"
        with run_python(wait, tmp_path) as waiter:
            assert waiter.line() == "ran"
            holder.say()
            assert waiter.line() == "in"
            waiter.end()
