"""Tools such as freezegun, which stop the clocks of a test's process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType

import pytest
from support import DEADLINE
from support_fanout import blocked

from iso_orchestrator import CommandIdleError, CommandTimeoutError, MutexTimeoutError, StepTimeoutError, Workflow

IGNORED = ("_pytest", "threading", "queue", "support")  # freezegun leaves the first three alone


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the clock in `time`, and in each module that has its function by name, as freezegun does."""
    real = {time.monotonic: lambda: 1.0, time.perf_counter: lambda: 1.0, time.time: lambda: 1.8e9}
    real[time.time_ns] = lambda: 18 * 10**17
    for module in [found for name, found in sys.modules.items() if not name.startswith(IGNORED)]:
        for name, value in list(vars(module).items()):
            if isinstance(value, BuiltinFunctionType) and value in real:
                monkeypatch.setattr(module, name, real[value])
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    ("options", "error"), [({"timeout": 0.3}, CommandTimeoutError), ({"idle_timeout": 0.3}, CommandIdleError)]
)
def test_a_command_ends_at_its_time_limit(
    workflow: Workflow, options: dict[str, float], error: type[CommandTimeoutError]
) -> None:
    """Time limits are of real time."""

    @workflow.command(**options)
    def sleeps() -> list[str]:
        return ["sleep", "20"]

    with pytest.raises(error):
        sleeps()


@pytest.mark.usefixtures("frozen")
def test_waits_end_at_their_time_limit(workflow: Workflow, tmp_path: Path) -> None:
    """The wait for a mutex that another object has, and a step's body."""
    with workflow.mutex("key"):
        waits = blocked(Workflow("w", dir=tmp_path).mutex("key", timeout=0.2).__enter__)
        assert isinstance(waits.exception(DEADLINE), MutexTimeoutError)
    over = threading.Event()
    with pytest.raises(StepTimeoutError):
        workflow.run_step("waits", lambda: over.wait(DEADLINE), timeout=0.2)
    over.set()
