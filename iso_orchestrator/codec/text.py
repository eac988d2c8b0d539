"""What is written for every step, as JSON text at once: by way of a dict it would take three times as long.

Each function writes what `mapping.writer` and `encode` make together; a test holds it.
"""

from __future__ import annotations

from datetime import datetime
from json.encoder import encode_basestring_ascii as quote

from iso_orchestrator.codec.json import encode
from iso_orchestrator.codec.mapping import format_time, writer
from iso_orchestrator.record.facts import ABSENT, StepCompleted, StepStarted
from iso_orchestrator.record.model import ErrorInfo, StepStatus
from iso_orchestrator.record.projection import Event, StepState

__all__ = ["completed_text", "event_text", "started_text", "step_text"]

_COMPLETED = StepStatus.COMPLETED  # looked up once: an enum's member by its class takes as long as a call


def started_text(fact: StepStarted) -> str:
    """The members of a `StepStarted`, without their braces."""
    head = f'"at":"{format_time(fact.at)}","step":{quote(fact.step)},"attempt":{fact.attempt}'
    return f'{head},"owner":{quote(fact.owner)}{_identity(fact)}'


def completed_text(fact: StepCompleted) -> str:
    """The members of a `StepCompleted`, without their braces."""
    text = f'"at":"{format_time(fact.at)}","step":{quote(fact.step)},"result":{encode(fact.result)}'
    return text if fact.state is ABSENT else f'{text},"state":{encode(fact.state)}'


def step_text(step: StepState) -> str:
    """A step of a snapshot."""
    head = f'{{"name":{quote(step.name)},"status":{quote(step.status)},"attempts":{step.attempts}'
    text = f'{head},"updatedAt":"{format_time(step.updated_at)}"'
    if step.started_at is not None:
        text += _time("startedAt", step.started_at)
    if step.completed_at is not None:
        text += _time("completedAt", step.completed_at)
    if step.idempotency_key is not None:
        text += f',"idempotencyKey":{quote(step.idempotency_key)}'
    if step.result is not None or step.status is _COMPLETED:  # the npm package cannot read a completed one without
        text += f',"result":{encode(step.result)}'
    if step.error is not None:
        text += f',"error":{encode(writer(ErrorInfo)(step.error))}'
    return text + "}"


def event_text(event: Event) -> str:
    """An event of a snapshot."""
    text = f'{{"at":"{format_time(event.at)}","type":{quote(event.type)}'
    if event.message is not None:
        text += f',"message":{quote(event.message)}'
    if event.detail is not None:
        text += f',"detail":{encode(event.detail)}'
    return text + "}"


def _identity(fact: StepStarted) -> str:
    key, version = fact.idempotency_key, fact.version
    if key is None and version is None:
        return ""
    text = "" if key is None else f',"idempotencyKey":{quote(key)}'
    return text if version is None else f'{text},"version":{quote(version)}'


def _time(key: str, moment: datetime) -> str:
    return f',"{key}":"{format_time(moment)}"'
