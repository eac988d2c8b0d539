"""Durable workflow primitives for plain synchronous Python: run it, kill it anywhere, run it again."""

import logging as _logging

from iso_orchestrator.command import CommandStep
from iso_orchestrator.command_line import Command, CommandResult
from iso_orchestrator.context import ItemContext, StepContext, current_item, current_step
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
from iso_orchestrator.for_each import ForEach, ForEachSummary, Fulfilled, Rejected
from iso_orchestrator.functions import (
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
from iso_orchestrator.lease import HeldLease
from iso_orchestrator.model import (
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
from iso_orchestrator.retry import Retry, RetryContext
from iso_orchestrator.runs import RunResult
from iso_orchestrator.step import Step
from iso_orchestrator.store import FileStore, MemoryStore, Store
from iso_orchestrator.workflow import Workflow

__version__ = "0.1.0"

__all__ = [
    "AgentError",
    "Command",
    "CommandError",
    "CommandIdleError",
    "CommandLeftoverError",
    "CommandResult",
    "CommandStartError",
    "CommandStep",
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
