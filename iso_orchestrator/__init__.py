"""Durable workflow primitives for plain synchronous Python: run it, kill it anywhere, run it again."""

import logging as _logging

from iso_orchestrator.commands.model import Command, CommandResult
from iso_orchestrator.coordination.lease import HeldLease
from iso_orchestrator.decorators import command, for_each, step
from iso_orchestrator.errors import (
    AgentError,
    CommandError,
    CommandIdleError,
    CommandLeftoverError,
    CommandLogError,
    CommandStartError,
    CommandTimeoutError,
    CorruptRecordError,
    DeadlockError,
    DuplicateStepError,
    FormatVersionError,
    LeaseConflictError,
    LeaseLostError,
    Limited,
    MutexTimeoutError,
    NoActiveWorkflowError,
    OrchestratorError,
    RecordConflictError,
    ResultMismatchError,
    SerializationError,
    StepChangedWarning,
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
from iso_orchestrator.fanout.for_each import ForEach
from iso_orchestrator.fanout.summary import ForEachSummary, Fulfilled, Rejected
from iso_orchestrator.functions import (
    current_workflow,
    delete_workflow,
    list_workflows,
    open_workflow,
    read_workflow_record,
    run_workflow,
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
from iso_orchestrator.steps.options import Retry, RetryContext
from iso_orchestrator.steps.step import Step
from iso_orchestrator.store import FileStore, Store
from iso_orchestrator.store.memory import MemoryStore
from iso_orchestrator.workflow import Workflow

__version__ = "0.1.0"

__all__ = [
    "AgentError",
    "Command",
    "CommandError",
    "CommandIdleError",
    "CommandLeftoverError",
    "CommandLogError",
    "CommandResult",
    "CommandStartError",
    "CommandTimeoutError",
    "CorruptRecordError",
    "DeadlockError",
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
    "ResultMismatchError",
    "Retry",
    "RetryContext",
    "RunResult",
    "SerializationError",
    "Step",
    "StepChangedWarning",
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
