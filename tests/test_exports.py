"""What `import iso_orchestrator` gives, and what it costs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import iso_orchestrator

EXTRAS = ("tqdm", "tenacity", "psutil", "portalocker", "IPython", "rich")


def test_all_is_sorted_and_true() -> None:
    """`__all__` is sorted, has no name twice, and each is there."""
    names = iso_orchestrator.__all__
    assert names == sorted(set(names))
    assert all(hasattr(iso_orchestrator, name) for name in names)


def test_all_holds_the_contract() -> None:
    """Every name of the public surface can be imported from the package itself."""
    contract = {
        "Workflow",
        "RunResult",
        "step",
        "for_each",
        "Retry",
        "RetryContext",
        "Fulfilled",
        "Rejected",
        "ForEachSummary",
        "run_workflow",
        "open_workflow",
        "read_workflow_record",
        "list_workflows",
        "delete_workflow",
        "lease_status",
        "current_workflow",
        "current_step",
        "current_item",
        "StepContext",
        "ItemContext",
        "Command",
        "CommandResult",
        "WorkflowRecord",
        "StepRecord",
        "WorkflowEvent",
        "Heartbeat",
        "Lease",
        "ErrorInfo",
        "WorkflowStatus",
        "StepStatus",
        "LeaseStatus",
        "OrchestratorError",
        "WorkflowNotFoundError",
        "NoActiveWorkflowError",
        "StepNameError",
        "StepTimeoutError",
        "SerializationError",
        "StepFailedError",
        "StepRejectedError",
        "StepInterruptedError",
        "CommandError",
        "WorkflowBusyError",
        "MutexTimeoutError",
        "LeaseConflictError",
        "LeaseLostError",
        "CorruptRecordError",
        "RecordConflictError",
        "StoreError",
    }
    assert contract <= set(iso_orchestrator.__all__)


def test_importing_loads_no_extra_and_starts_no_thread() -> None:
    """A bare import loads no optional library, no lock library yet, and starts no thread."""
    code = (
        "import sys, threading, iso_orchestrator; "
        f"print([name for name in {EXTRAS!r} if name in sys.modules], threading.active_count())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[] 1"


def test_importing_loads_nothing_of_what_many_programs_leave_alone() -> None:
    """Batches, leases, commands and the store in memory are loaded at their first use."""
    rooms = ("batch", "command_line", "command_step", "lease", "pool_future", "scheduler", "store.memory")
    code = (
        "import sys, iso_orchestrator; "
        f"print([room for room in {rooms!r} if f'iso_orchestrator.{{room}}' in sys.modules], "
        "'concurrent.futures' in sys.modules, set(iso_orchestrator.__all__) <= set(dir(iso_orchestrator)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[] False True"


def test_all_names_come_with_a_star() -> None:
    """`from iso_orchestrator import *` gives each name of `__all__`."""
    names: dict[str, object] = {}
    exec("from iso_orchestrator import *", names)
    assert set(iso_orchestrator.__all__) <= set(names)


def test_a_name_that_is_not_there_is_refused() -> None:
    """The package has the names that it says it has, and no others."""
    with pytest.raises(AttributeError, match="no attribute 'ForEver'"):
        _ = iso_orchestrator.ForEver  # type: ignore[attr-defined]  # that is what is tried


@pytest.mark.parametrize(
    "module", [found.name for found in pkgutil.walk_packages(iso_orchestrator.__path__, "iso_orchestrator.")]
)
def test_examples_in_docstrings_run(module: str) -> None:
    """Each example in a docstring does what it shows."""
    if module.endswith("__main__"):
        return
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_public_classes_and_functions_have_docstrings() -> None:
    """Everything that can be imported from the package says what it is."""
    assert [name for name in iso_orchestrator.__all__ if not getattr(iso_orchestrator, name).__doc__] == []


def test_no_module_takes_the_name_of_an_export() -> None:
    """A module that is imported later would stand in the export's place."""
    code = (
        "import iso_orchestrator, pkgutil, importlib\n"
        "before = {name: getattr(iso_orchestrator, name) for name in iso_orchestrator.__all__}\n"
        "for found in pkgutil.walk_packages(iso_orchestrator.__path__, 'iso_orchestrator.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "print([name for name, value in before.items() if getattr(iso_orchestrator, name) is not value])\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert finished.stdout == "[]\n"
