"""Facts to JSON and back. The tags are the format: they never change."""

from __future__ import annotations

from iso_orchestrator.codec.records import read, writers
from iso_orchestrator.errors import FormatVersionError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import Json

__all__ = ["fact_from_json", "fact_to_json"]

_TAGS: dict[str, type[f.Fact]] = {
    "run.started": f.RunStarted,
    "run.ended": f.RunEnded,
    "run.died": f.RunDied,
    "step.started": f.StepStarted,
    "step.completed": f.StepCompleted,
    "step.failed": f.StepFailed,
    "step.limited": f.StepLimited,
    "step.waiting": f.StepWaiting,
    "step.abandoned": f.StepAbandoned,
    "steps.reset": f.StepsReset,
    "state.updated": f.StateUpdated,
    "status.set": f.StatusSet,
    "commands.marked": f.CommandsMarked,
    "command.begun": f.CommandBegun,
    "event.appended": f.EventAppended,
    "heartbeat.recorded": f.HeartbeatRecorded,
    "lease.touched": f.LeaseTouched,
    "lease.released": f.LeaseReleased,
}
_TAG_OF = {kind: tag for tag, kind in _TAGS.items()}


def fact_to_json(fact: f.Fact) -> tuple[str, dict[str, Json]]:
    """The tag of a fact and its fields."""
    kind = type(fact)
    return _TAG_OF[kind], writers[kind](fact)


def fact_from_json(tag: Json, fields: dict[str, Json], path: str) -> f.Fact:
    """The fact that *fields* say, from the file *path*.

    Raises:
        FormatVersionError: A newer release wrote it: the tag or a field is unknown.
        ValueError: It is none.
    """
    kind = _TAGS.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise FormatVersionError(path, f"the unknown fact {tag!r}")
    try:
        return read(kind, fields)
    except Exception as error:
        unknown = getattr(error, "extra_fields", None)  # of cattrs' ForbiddenExtraKeysError
        if not unknown:
            raise
        names = ", ".join(sorted(unknown))
        raise FormatVersionError(path, f"a fact {tag!r} with the unknown {names}") from error
