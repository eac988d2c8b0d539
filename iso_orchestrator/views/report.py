"""Records as JSON for programs. It is in ASCII, so that no recorded text can drive a terminal."""

from __future__ import annotations

import json

from iso_orchestrator.codec.records import write
from iso_orchestrator.record.history import StepHistory
from iso_orchestrator.record.model import Json, StepStatus, WorkflowSummary


def summary_json(summary: WorkflowSummary) -> dict[str, Json]:
    """Turn a summary into JSON, with keys in camelCase as in a record, and a count for every step status."""
    return {**write(summary), "steps": {status.value: summary.steps.get(status, 0) for status in StepStatus}}


def step_json(step: StepHistory) -> dict[str, Json]:
    """Turn a step's history into JSON, with keys in camelCase; what is not known is left out."""
    return write(step)


def json_text(value: Json) -> str:
    """Write JSON for people and programs: indented, and in ASCII, so that it cannot drive a terminal."""
    return json.dumps(value, indent=2, allow_nan=False)
