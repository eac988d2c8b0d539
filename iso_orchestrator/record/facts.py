"""What can happen to a workflow: one small immutable class each.

Features decide which facts to append; `projection` says what they make of a record.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Final, Literal

import attrs

from iso_orchestrator.record.model import ErrorInfo, Json, WorkflowStatus

__all__ = [
    "ABSENT",
    "CommandBegun",
    "CommandsMarked",
    "EventAppended",
    "Fact",
    "HeartbeatRecorded",
    "LeaseReleased",
    "LeaseTouched",
    "RunDied",
    "RunEnded",
    "RunStarted",
    "StateUpdated",
    "StatusSet",
    "StepAbandoned",
    "StepCompleted",
    "StepFailed",
    "StepLimited",
    "StepStarted",
    "StepWaiting",
    "StepsReset",
]


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT
"""No value, where None is one."""


@attrs.frozen
class Fact:
    """Something that happened, and when."""

    at: datetime


@attrs.frozen
class RunStarted(Fact):
    """A `with workflow:` was entered, by a process that holds the run file *owner*."""

    run: str
    owner: str
    pid: int
    host: str


@attrs.frozen
class RunEnded(Fact):
    """A run ended by itself."""

    run: str
    error: ErrorInfo | None = None


@attrs.frozen
class RunDied(Fact):
    """A run was found whose process is gone."""

    run: str


@attrs.frozen
class StepStarted(Fact):
    """An attempt began."""

    step: str
    attempt: int
    owner: str
    idempotency_key: str | None = None
    version: str | None = None


@attrs.frozen
class StepCompleted(Fact):
    """An attempt succeeded; *state* is the workflow's new one, where the step brought it."""

    step: str
    result: Json
    state: Json | Literal[_Absent.ABSENT] = ABSENT


@attrs.frozen
class StepFailed(Fact):
    """An attempt failed; *retrying*: its runner will try again, and keeps the step in hand."""

    step: str
    error: ErrorInfo
    retrying: bool = False


@attrs.frozen
class StepLimited(Fact):
    """An attempt met a usage limit, and does not count: neither the step nor another of *key* begins before *until*."""

    step: str
    until: datetime
    key: str | None = None


@attrs.frozen
class StepWaiting(Fact):
    """Who called a step waits for the end of a limit before an attempt begins; without *until*: waits no longer."""

    step: str
    owner: str
    until: datetime | None = None
    key: str | None = None


@attrs.frozen
class StepAbandoned(Fact):
    """An attempt ended without an outcome: nobody need wait for it."""

    step: str


@attrs.frozen
class StepsReset(Fact):
    """Steps were forgotten, so that they run again."""

    steps: tuple[str, ...]


@attrs.frozen
class StateUpdated(Fact):
    """The state was replaced."""

    state: Json


@attrs.frozen
class StatusSet(Fact):
    """The status was set by hand."""

    status: WorkflowStatus
    error: ErrorInfo | None = None


@attrs.frozen
class CommandsMarked(Fact):
    """What the marks of this workflow's commands are made of, by which their processes are found."""

    seed: str


@attrs.frozen
class CommandBegun(Fact):
    """A step's command is about to begin, with *mark*, its output going to *log*; of those before nobody is left."""

    step: str
    mark: str
    log: str


@attrs.frozen
class EventAppended(Fact):
    """An event that changes nothing else."""

    type: str
    message: str | None = None
    detail: Json = None


@attrs.frozen
class HeartbeatRecorded(Fact):
    """A sign of life; *silent*: without an event, one of many in a background series."""

    key: str
    detail: Json = None
    silent: bool = False


@attrs.frozen
class LeaseTouched(Fact):
    """A lease was acquired, or renewed by its holder.

    Attributes:
        ttl: Seconds.
        boot_id: Which boot *boot_expires*, seconds since it, belongs to; both None without a boot clock.
    """

    key: str
    holder: str
    ttl: float
    acquired_at: datetime
    expires_at: datetime
    token: int
    renewed: bool
    detail: Json = None
    boot_id: str | None = None
    boot_expires: float | None = None


@attrs.frozen
class LeaseReleased(Fact):
    """A lease was given back."""

    key: str
