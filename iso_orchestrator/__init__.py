"""Durable workflow primitives for plain synchronous Python: run it, kill it anywhere, run it again."""

import logging as _logging
import typing as _typing
from importlib import import_module as _import_module

from iso_orchestrator.decorators import (
    command,
    current_workflow,
    delete_workflow,
    for_each,
    list_workflows,
    open_workflow,
    read_workflow_record,
    run_workflow,
    step,
)
from iso_orchestrator.errors import (
    AgentError,
    CommandError,
    CommandIdleError,
    CommandLeftoverError,
    CommandStartError,
    CommandTimeoutError,
    CorruptRecordError,
    DuplicateStepError,
    FormatVersionError,
    LeaseConflictError,
    LeaseLostError,
    Limited,
    MutexTimeoutError,
    NoActiveWorkflowError,
    OrchestratorError,
    RecordConflictError,
    SerializationError,
    StepFailedError,
    StepInterruptedError,
    StepNameError,
    StepRejectedError,
    StepTimeoutError,
    StoreError,
    WorkflowBusyError,
    WorkflowNotFoundError,
    WorkflowUsageError,
)
from iso_orchestrator.record.model import (
    ErrorInfo,
    Heartbeat,
    Lease,
    LeaseStatus,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowRecord,
    WorkflowStatus,
    WorkflowSummary,
    lease_status,
)
from iso_orchestrator.runtime.context import ItemContext, StepContext, current_item, current_step
from iso_orchestrator.runtime.runs import RunResult
from iso_orchestrator.steps.retry import Retry, RetryContext
from iso_orchestrator.steps.step import Step
from iso_orchestrator.store import FileStore, Store
from iso_orchestrator.workflow import Workflow

# Where the names are that are imported when they are first asked for: many programs use none of them.
_LATER = {
    "Command": "commands.model",
    "CommandResult": "commands.model",
    "ForEach": "fanout.for_each",
    "ForEachSummary": "fanout.for_each",
    "Fulfilled": "fanout.for_each",
    "HeldLease": "coordination.lease",
    "MemoryStore": "store.memory",
    "Rejected": "fanout.for_each",
}

if _typing.TYPE_CHECKING:
    from iso_orchestrator.commands.model import Command, CommandResult
    from iso_orchestrator.coordination.lease import HeldLease
    from iso_orchestrator.fanout.for_each import ForEach, ForEachSummary, Fulfilled, Rejected
    from iso_orchestrator.store.memory import MemoryStore
else:  # type checkers would take a module that has it for one that has every name

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_import_module(f"{__name__}.{_LATER[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})


__version__ = "0.1.0"

__all__ = [
    "AgentError",
    "Command",
    "CommandError",
    "CommandIdleError",
    "CommandLeftoverError",
    "CommandResult",
    "CommandStartError",
    "CommandTimeoutError",
    "CorruptRecordError",
    "DuplicateStepError",
    "ErrorInfo",
    "FileStore",
    "ForEach",
    "ForEachSummary",
    "FormatVersionError",
    "Fulfilled",
    "Heartbeat",
    "HeldLease",
    "ItemContext",
    "Lease",
    "LeaseConflictError",
    "LeaseLostError",
    "LeaseStatus",
    "Limited",
    "MemoryStore",
    "MutexTimeoutError",
    "NoActiveWorkflowError",
    "OrchestratorError",
    "RecordConflictError",
    "Rejected",
    "Retry",
    "RetryContext",
    "RunResult",
    "SerializationError",
    "Step",
    "StepContext",
    "StepFailedError",
    "StepInterruptedError",
    "StepNameError",
    "StepRecord",
    "StepRejectedError",
    "StepStatus",
    "StepTimeoutError",
    "Store",
    "StoreError",
    "Workflow",
    "WorkflowBusyError",
    "WorkflowEvent",
    "WorkflowNotFoundError",
    "WorkflowRecord",
    "WorkflowStatus",
    "WorkflowSummary",
    "WorkflowUsageError",
    "command",
    "current_item",
    "current_step",
    "current_workflow",
    "delete_workflow",
    "for_each",
    "lease_status",
    "list_workflows",
    "open_workflow",
    "read_workflow_record",
    "run_workflow",
    "step",
]

_logging.getLogger("iso_orchestrator").addHandler(_logging.NullHandler())
