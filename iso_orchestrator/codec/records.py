"""Facts and records to JSON and back. The tags and keys here are the format: they never change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args, get_origin

import attrs
from cattrs import Converter, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from iso_orchestrator import facts as f
from iso_orchestrator.codec.json import decode, encode
from iso_orchestrator.codec.strict import register_strict_scalars
from iso_orchestrator.errors import FormatVersionError
from iso_orchestrator.fold import Fold, LeaseClock, LiveRun, StepNote
from iso_orchestrator.model import (
    ErrorInfo,
    Heartbeat,
    Json,
    Lease,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowRecord,
    WorkflowStatus,
)

__all__ = [
    "RECORD_VERSION",
    "fact_from_json",
    "fact_to_json",
    "fold_from_snapshot",
    "record_to_json",
    "snapshot_from_fold",
]

RECORD_VERSION = 1
_OURS = "isoOrchestrator"
_OUR_FORMAT = 1

_TAGS: dict[str, type[f.Fact]] = {
    "run.started": f.RunStarted,
    "run.ended": f.RunEnded,
    "run.died": f.RunDied,
    "step.started": f.StepStarted,
    "step.completed": f.StepCompleted,
    "step.failed": f.StepFailed,
    "step.abandoned": f.StepAbandoned,
    "steps.reset": f.StepsReset,
    "state.updated": f.StateUpdated,
    "status.set": f.StatusSet,
    "event.appended": f.EventAppended,
    "heartbeat.recorded": f.HeartbeatRecorded,
    "lease.touched": f.LeaseTouched,
    "lease.released": f.LeaseReleased,
}
_TAG_OF = {kind: tag for tag, kind in _TAGS.items()}

T = TypeVar("T")


def fact_to_json(fact: f.Fact) -> tuple[str, dict[str, Json]]:
    """The tag of a fact and its fields."""
    kind = type(fact)
    return _TAG_OF[kind], _unstructure[kind](fact)


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
        return _read(kind, fields)
    except ForbiddenExtraKeysError as error:
        names = ", ".join(sorted(error.extra_fields))
        raise FormatVersionError(path, f"a fact {tag!r} with the unknown {names}") from error


def snapshot_from_fold(fold: Fold) -> bytes:
    """The bytes of a snapshot: one step and one event a line."""
    step_lines = ",\n".join(f"{encode(name)}:{encode(_step_json(step))}" for name, step in fold.steps.items())
    write_event = _unstructure[WorkflowEvent]
    event_lines = ",\n".join(encode(write_event(event)) for event in fold.events)
    tail = {**_optional(fold), **fold.unknown, _OURS: _ours(fold)}
    text = (
        f'{encode(_head(fold))[:-1]},\n"steps":{{\n{step_lines}\n}},\n"events":[\n{event_lines}\n],\n{encode(tail)[1:]}\n'
    )
    return text.encode("ascii")


def record_to_json(record: WorkflowRecord) -> dict[str, Json]:
    """The record as the npm package writes it, with its keys and no others."""
    return {
        **_head(record),
        "steps": {name: _step_json(step) for name, step in record.steps.items()},
        "events": [_unstructure[WorkflowEvent](event) for event in record.events],
        **_optional(record),
    }


def fold_from_snapshot(data: bytes, path: str) -> Fold:
    """The record in a snapshot, the npm package's ones among them.

    Raises:
        FormatVersionError: A newer release wrote it.
        ValueError: It is no record.
    """
    document = decode(data)
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - damaged data, not a wrong argument
    ours = document.pop(_OURS, {})
    _check_version(document, ours, path)
    heartbeats = document.pop("heartbeats", None) or {}
    leases = _read(dict[str, Lease], document.pop("leases", None) or {})
    last_error = document.pop("lastError", None)
    document.pop("version")
    tokens = _read(dict[str, int], ours.get("tokens", {}))
    return Fold(
        workflow_id=_read(str, document.pop("workflowId", None)),
        status=_read(WorkflowStatus, document.pop("status", None)),
        created_at=_read(datetime, document.pop("createdAt", None)),
        updated_at=_read(datetime, document.pop("updatedAt", None)),
        state=document.pop("state", None),
        steps=_read(dict[str, StepRecord], document.pop("steps", None)),
        events=_read(list[WorkflowEvent], document.pop("events", None)),
        heartbeats=_read(dict[str, Heartbeat], heartbeats),
        leases={key: attrs.evolve(lease, token=tokens.get(key, 0)) for key, lease in leases.items()},
        last_error=None if last_error is None else _read(ErrorInfo, last_error),
        unknown=document,
        seq=_read(int, ours.get("seq", 0)),
        runs=_read(dict[str, LiveRun], ours.get("runs", {})),
        run_failed=_read(bool, ours.get("runFailed", False)),
        notes={
            name: StepNote(note.get("owner"), note.get("version"), 0)
            for name, note in _read(dict[str, dict[str, str]], ours.get("steps", {})).items()
        },
        tokens=tokens,
        lease_clocks=_read(dict[str, LeaseClock], ours.get("leaseClocks", {})),
    )


def _check_version(document: dict[str, Json], ours: Json, path: str) -> None:
    version = document.get("version")
    if type(version) is not int or version < 1 or not isinstance(ours, dict):
        raise ValueError("it is not a workflow record")
    if version > RECORD_VERSION:
        raise FormatVersionError(path, f"record version {version}")
    if (found := ours.get("format", _OUR_FORMAT)) != _OUR_FORMAT:
        raise FormatVersionError(path, f"{_OURS} format {found}")


def _head(record: Fold | WorkflowRecord) -> dict[str, Json]:
    return {
        "version": RECORD_VERSION,
        "workflowId": record.workflow_id,
        "status": record.status.value,
        "createdAt": _format_time(record.created_at),
        "updatedAt": _format_time(record.updated_at),
        "state": record.state,
    }


def _step_json(step: StepRecord) -> dict[str, Json]:
    fields = _unstructure[StepRecord](step)
    if step.status is StepStatus.COMPLETED:
        fields["result"] = step.result  # the npm package cannot read a completed step without one
    return fields


def _optional(record: Fold | WorkflowRecord) -> dict[str, Json]:
    parts: dict[str, Json] = {}
    if record.heartbeats:
        parts["heartbeats"] = {key: _unstructure[Heartbeat](beat) for key, beat in record.heartbeats.items()}
    if record.leases:
        parts["leases"] = {key: _unstructure[Lease](lease) for key, lease in record.leases.items()}
    if record.last_error is not None:
        parts["lastError"] = _unstructure[ErrorInfo](record.last_error)
    return parts


def _ours(fold: Fold) -> dict[str, Json]:
    notes = {
        name: {key: value for key, value in (("owner", note.owner), ("version", note.version)) if value is not None}
        for name, note in fold.notes.items()
        if note.owner is not None or note.version is not None
    }
    return {
        "format": _OUR_FORMAT,
        "seq": fold.seq,
        "runs": {run: _unstructure[LiveRun](live) for run, live in fold.runs.items()},
        "runFailed": fold.run_failed,
        "steps": notes,
        "tokens": fold.tokens,
        "leaseClocks": {key: _unstructure[LeaseClock](clock) for key, clock in fold.lease_clocks.items()},
    }


def _read(kind: type[T], value: Json) -> T:
    try:
        return _converter.structure(value, kind)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _format_time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"  # always UTC: the last six are +00:00


def _parse_time(text: Json, _: type[datetime]) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no zone")
    return moment.astimezone(UTC)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


_JSON_FIELDS = {"result", "state", "detail"}
_KEPT_BESIDE = {(Lease, "token")}  # the npm package's own objects hold its own keys and no others


def _hooks(kind: type[Any]) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    attrs.resolve_types(kind)
    overrides = {}
    for field in attrs.fields(kind):
        if field.name in _JSON_FIELDS:
            overrides[field.name] = override(
                rename=_camel(field.name), unstruct_hook=_as_is, struct_hook=lambda value, _: value
            )
        elif (kind, field.name) in _KEPT_BESIDE:
            overrides[field.name] = override(omit=True)
        else:
            overrides[field.name] = override(rename=_camel(field.name))
    # cattrs writes these functions at run time and types their keywords for its own switches.
    write = make_dict_unstructure_fn(kind, _converter, _cattrs_omit_if_default=True, **overrides)  # type: ignore[arg-type]
    read = make_dict_structure_fn(
        kind,
        _converter,
        _cattrs_forbid_extra_keys=issubclass(kind, f.Fact),
        _cattrs_detailed_validation=False,
        **overrides,  # type: ignore[arg-type]
    )
    return write, read


def _as_is(value: Any) -> Any:
    return value


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _read_list(kind: Any) -> Callable[[Any, Any], Any]:
    """Of a list, and of nothing else: cattrs would make three steps of the text "abc"."""
    collection, item = get_origin(kind), get_args(kind)[0]
    read = _converter.get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise TypeError(f"a list expected, not {type(value).__name__}: {value!r:.80}")
        return collection([read(element, item) for element in value])

    return structure


_converter = Converter(detailed_validation=False)
register_strict_scalars(_converter)
_converter.register_unstructure_hook(datetime, _format_time)
_converter.register_structure_hook(datetime, _parse_time)
_converter.register_structure_hook_factory(_is_list, _read_list)
_unstructure: Mapping[type[Any], Callable[[Any], dict[str, Json]]] = {}
for _kind in (
    ErrorInfo,
    StepRecord,
    WorkflowEvent,
    Heartbeat,
    Lease,
    LiveRun,
    LeaseClock,
    *_TAG_OF,
):
    _write_hook, _read_hook = _hooks(_kind)
    _converter.register_unstructure_hook(_kind, _write_hook)
    _converter.register_structure_hook(_kind, _read_hook)
    _unstructure[_kind] = _write_hook  # type: ignore[index]
