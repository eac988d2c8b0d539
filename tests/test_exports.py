"""What `import iso_orchestrator` provides, and what it loads."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import iso_orchestrator
from iso_orchestrator.testing import in_memory

LATER = {
    "IPython",
    "cattrs",
    "iso_orchestrator.agents",
    "opentelemetry",
    "iso_orchestrator.commands.step",
    "iso_orchestrator.views",
    "portalocker",
    "psutil",
    "tenacity",
}


def test_all_is_sorted_and_true() -> None:
    """`__all__` is sorted, has no name twice, and each name exists."""
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
        "StepChangedWarning",
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
        "ResultMismatchError",
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


@pytest.mark.slow
def test_importing_loads_nothing_optional_and_starts_no_thread() -> None:
    """A bare import starts no thread, and loads no extra, no heavy library, no command, agent or view."""
    code = f"import sys, threading, iso_orchestrator; print({LATER!r} & sys.modules.keys(), threading.active_count())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set() 1"


def test_all_names_come_with_a_star() -> None:
    """`from iso_orchestrator import *` gives each name of `__all__`."""
    names: dict[str, object] = {}
    exec("from iso_orchestrator import *", names)
    assert set(iso_orchestrator.__all__) <= set(names)


@pytest.mark.parametrize(
    "module", [found.name for found in pkgutil.walk_packages(iso_orchestrator.__path__, "iso_orchestrator.")]
)
def test_examples_in_docstrings_run(module: str) -> None:
    """Each example in a docstring has the output that it shows."""
    if module.endswith("__main__"):
        return
    with in_memory():
        assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_public_classes_and_functions_have_docstrings() -> None:
    """Each public name has a docstring."""
    assert [name for name in iso_orchestrator.__all__ if not getattr(iso_orchestrator, name).__doc__] == []


@pytest.mark.slow
def test_no_module_takes_the_name_of_an_export() -> None:
    """Importing a module later does not replace an export of the same name."""
    code = (
        "import iso_orchestrator, pkgutil, importlib\n"
        "before = {name: getattr(iso_orchestrator, name) for name in iso_orchestrator.__all__}\n"
        "for found in pkgutil.walk_packages(iso_orchestrator.__path__, 'iso_orchestrator.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "print([name for name, value in before.items() if getattr(iso_orchestrator, name) is not value])\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert finished.stdout == "[]\n"
