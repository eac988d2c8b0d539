"""Steps, `for_each` functions and workflows that are sent to other processes."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from iso_orchestrator import Workflow

BATCH = """
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from iso_orchestrator import Workflow

workflow = Workflow("pool", dir="root")

@workflow.step
def square(number: int) -> list[int]:
    return [number * number, os.getpid()]

@workflow.for_each(progress=False)
@workflow.step
def negate(number: int) -> int:
    return -number

class Shop:
    def __init__(self, city):
        self.city = city

    @workflow.step(exclude=("self",))
    def price(self, item: str) -> str:
        return f"{item} in {self.city}"

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        squares = list(pool.map(square, [1, 2, 3]))
        print([number for number, _ in squares], os.getpid() not in [pid for _, pid in squares])
        print(pool.submit(negate, [1, 2]).result().values())
        print(pool.submit(Shop("Bonn").price, "tea").result())
        print(pool.submit(workflow.run_step, "length", len, "abc").result())
    print(len(workflow.record.steps))
"""


@pytest.mark.slow
def test_a_process_pool_runs_steps(tmp_path: Path) -> None:
    """What a module has is found by its name in the processes of a pool, which share the record."""
    (tmp_path / "batch.py").write_text(textwrap.dedent(BATCH))
    run = subprocess.run([sys.executable, "batch.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["[1, 4, 9] True", "[-1, -2]", "tea in Bonn", "3", "7"]


def test_a_workflow_in_memory_is_not_sent(tmp_path: Path) -> None:
    """A copy of a workflow uses the same record; one in memory, which no other process has, is refused."""
    workflow = Workflow("w", dir=tmp_path)
    copy = pickle.loads(pickle.dumps(workflow))
    assert copy.run_step("add", lambda: 3) == 3
    assert workflow.record.steps["add"].result == 3
    copy.close()
    with pytest.raises(TypeError, match="memory cannot be pickled"):
        pickle.dumps(Workflow("w", store="memory://pickled"))


def test_a_local_step_is_not_sent(workflow: Workflow) -> None:
    """A step that no module has cannot be found by its name."""

    @workflow.step
    def local() -> None: ...

    with pytest.raises((pickle.PicklingError, AttributeError), match="local"):
        pickle.dumps(local)


@pytest.mark.parametrize("make", ["step", "for_each"])
def test_what_has_no_name_is_copied_and_not_pickled(workflow: Workflow, make: str) -> None:
    """A step of a partial has no name in a module: `copy` gives it back, and `pickle` says that it is not found."""
    function = functools.partial(lambda text, base: int(text, base), base=2)
    made: Any = workflow.step(name="n:{text}")(function) if make == "step" else workflow.for_each()(function)
    assert copy.copy(made) is made
    assert copy.deepcopy([made])[0] is made
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(made)


def test_a_copy_of_a_workflow_has_all_its_options(tmp_path: Path) -> None:
    """What a copied or pickled workflow was made with is what the copy is made with."""
    made = Workflow("w", dir=tmp_path, max_workers=1, on_busy="wait", initial_state={"n": 1})
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.state == {"n": 1}
        threads = [other.step(name=name)(lambda: threading.get_ident()).submit() for name in ("a", "b", "c")]
        assert len({each.result() for each in threads}) == 1
        other.reset("*")
        other.close()
