"""Records to JSON and back, in the npm package's format. The keys are the format: they never change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args, get_origin
from zlib import crc32

import attrs

from iso_orchestrator.codec.json import SCALAR_HOOKS, decode, encode
from iso_orchestrator.errors import FormatVersionError
from iso_orchestrator.record.facts import Fact
from iso_orchestrator.record.model import (
    ErrorInfo,
    Heartbeat,
    Json,
    Lease,
    StepRecord,
    StepStatus,
    WorkflowEvent,
    WorkflowRecord,
    WorkflowStatus,
    truncate_to_ms,
)
from iso_orchestrator.record.projection import (
    Event,
    LastCommand,
    LeaseClock,
    Limit,
    LiveRun,
    Projection,
    StepState,
    Wait,
)

__all__ = ["RECORD_VERSION", "is_as_written", "projection_from_snapshot", "record_to_json", "snapshot_from_projection"]

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

Writer: TypeAlias = Callable[[Any], dict[str, Json]]

RECORD_VERSION = 1
_OURS = "isoOrchestrator"
_OUR_FORMAT = 1
_END = b',"crc":"%08x"}}\n'


def snapshot_from_projection(projection: Projection) -> bytes:
    """The bytes of a snapshot: one step and one event a line."""
    step_lines = ",\n".join([f"{encode(name)}:{encode(_step_json(step))}" for name, step in projection.steps.items()])
    event_lines = ",\n".join([encode(writer(Event)(event)) for event in projection.events])
    tail = {**_optional(projection), **projection.unknown, _OURS: _ours(projection)}
    parts = (
        f"{encode(_head(projection))[:-1]},",
        f'"steps":{{\n{step_lines}\n}},',
        f'"events":[\n{event_lines}\n],',
        encode(tail)[1:-2],
    )
    body = "\n".join(parts).encode("ascii")
    return body + _END % crc32(body)


def is_as_written(snapshot: bytes) -> bool:
    """Whether a snapshot is byte for byte as `snapshot_from_projection` wrote it."""
    body = snapshot[: -len(_END % 0)]
    return snapshot == body + _END % crc32(body)


def record_to_json(record: WorkflowRecord) -> dict[str, Json]:
    """The record as the npm package writes it, with its keys and no others."""
    return {
        **_head(record),
        "steps": {name: _step_json(step) for name, step in record.steps.items()},
        "events": [writer(WorkflowEvent)(event) for event in record.events],
        **_optional(record),
    }


def projection_from_snapshot(data: bytes, path: str) -> Projection:
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
    leases = read(dict[str, Lease], document.pop("leases", None) or {})
    last_error = document.pop("lastError", None)
    document.pop("version")
    tokens = read(dict[str, int], ours.get("tokens", {}))
    steps = read(dict[str, StepState], document.pop("steps", None))
    limit_keys = read(dict[str, str], ours.get("stepLimitKeys", {}))
    step_limits = read(dict[str, datetime], ours.get("stepLimits", {}))
    for name, beside in read(dict[str, dict[str, str]], ours.get("steps", {})).items():
        if (step := steps.get(name)) is not None:  # else the npm package has removed it
            step.owner, step.version = beside.get("owner"), beside.get("version")
    return Projection(
        workflow_id=read(str, document.pop("workflowId", None)),
        status=read(WorkflowStatus, document.pop("status", None)),
        created_at=read(datetime, document.pop("createdAt", None)),
        updated_at=read(datetime, document.pop("updatedAt", None)),
        state=document.pop("state", None),
        steps=steps,
        events=read(list[Event], document.pop("events", None)),
        heartbeats=read(dict[str, Heartbeat], heartbeats),
        leases={key: attrs.evolve(lease, token=tokens.get(key, 0)) for key, lease in leases.items()},
        last_error=None if last_error is None else read(ErrorInfo, last_error),
        unknown=document,
        seq=read(int, ours.get("seq", 0)),
        runs=read(dict[str, LiveRun], ours.get("runs", {})),
        run_failed=read(bool, ours.get("runFailed", False)),
        tokens=tokens,
        lease_clocks=read(dict[str, LeaseClock], ours.get("leaseClocks", {})),
        limits=read(dict[str, datetime], ours.get("limits", {})),
        step_limits={name: Limit(until, limit_keys.get(name)) for name, until in step_limits.items()},
        waits=read(dict[str, Wait], ours.get("waits", {})),
        commands=read(dict[str, LastCommand], ours.get("commands", {})),
        command_seed=None if (seed := ours.get("commandSeed")) is None else read(str, seed),
    )


def _check_version(document: dict[str, Json], ours: Json, path: str) -> None:
    version = document.get("version")
    if type(version) is not int or version < 1 or not isinstance(ours, dict):
        raise ValueError("it is not a workflow record")
    if version > RECORD_VERSION:
        raise FormatVersionError(path, f"record version {version}")
    if (found := ours.get("format", _OUR_FORMAT)) != _OUR_FORMAT:
        raise FormatVersionError(path, f"{_OURS} format {found}")


def _head(record: Projection | WorkflowRecord) -> dict[str, Json]:
    return {
        "version": RECORD_VERSION,
        "workflowId": record.workflow_id,
        "status": record.status.value,
        "createdAt": format_time(record.created_at),
        "updatedAt": format_time(record.updated_at),
        "state": record.state,
    }


def _step_json(step: StepState | StepRecord) -> dict[str, Json]:
    fields = writer(type(step))(step)
    if step.status is StepStatus.COMPLETED:
        fields.setdefault("result", None)  # the npm package cannot read a completed step without one
    return fields


def _optional(record: Projection | WorkflowRecord) -> dict[str, Json]:
    parts: dict[str, Json] = {}
    if record.heartbeats:
        parts["heartbeats"] = {key: writer(Heartbeat)(beat) for key, beat in record.heartbeats.items()}
    if record.leases:
        parts["leases"] = {key: writer(Lease)(lease) for key, lease in record.leases.items()}
    if record.last_error is not None:
        parts["lastError"] = writer(ErrorInfo)(record.last_error)
    return parts


def _ours(projection: Projection) -> dict[str, Json]:
    steps = {
        name: {key: value for key, value in (("owner", step.owner), ("version", step.version)) if value is not None}
        for name, step in projection.steps.items()
        if step.owner is not None or step.version is not None
    }
    ours: dict[str, Json] = {
        "format": _OUR_FORMAT,
        "seq": projection.seq,
        "runs": {run: writer(LiveRun)(live) for run, live in projection.runs.items()},
        "runFailed": projection.run_failed,
        "steps": steps,
        "tokens": projection.tokens,
        "leaseClocks": {key: writer(LeaseClock)(clock) for key, clock in projection.lease_clocks.items()},
    }
    limits = projection.step_limits.items()
    where_there_is_one: dict[str, Json] = {
        "limits": {key: format_time(until) for key, until in projection.limits.items()},
        "stepLimits": {step: format_time(limit.until) for step, limit in limits},
        "stepLimitKeys": {step: limit.key for step, limit in limits if limit.key is not None},
        "waits": {step: writer(Wait)(wait) for step, wait in projection.waits.items()},
        "commandSeed": projection.command_seed,
        "commands": {step: writer(LastCommand)(command) for step, command in projection.commands.items()},
    }
    return ours | {name: value for name, value in where_there_is_one.items() if value}


_JSON_FIELDS = {"result", "state", "detail"}  # kept as they are: they are JSON already
# The npm package's own objects hold its own keys and no others.
_KEPT_BESIDE = {(Lease, "token"), (StepState, "owner"), (StepState, "version"), (StepState, "seq")}


def writer(kind: type[Any]) -> Writer:
    """What makes JSON of objects of *kind*."""
    return writers[kind]


def read(kind: type[T], value: Json) -> T:
    """The object of *kind* that *value* stands for.

    Raises:
        ValueError: It stands for none.
    """
    try:
        return _converter().structure(value, kind)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def format_time(moment: datetime) -> str:
    """A time of a record, which is in UTC."""
    global _second
    of_second = (moment.second, moment.minute, moment.hour, moment.day, moment.month, moment.year)
    known = _second
    if known[0] != of_second:
        known = _second = (of_second, moment.isoformat()[:19])
    return f"{known[1]}.{moment.microsecond // 1000:03d}Z"


# The last second and its text: times come one after the other, and `isoformat` takes as long as all of the rest.
_second: tuple[tuple[int, ...], str] = ((), "")


def _parse_time(text: Json, _: type[datetime]) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no zone")
    if moment.tzinfo is UTC and moment.microsecond % 1000 == 0:
        return moment  # as this package writes them
    return truncate_to_ms(moment.astimezone(UTC))


def _reader(kind: type[Any]) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn

    return make_dict_structure_fn(
        kind,
        _converter(),
        _cattrs_forbid_extra_keys=issubclass(kind, Fact),
        _cattrs_detailed_validation=False,
        **_overrides(kind),
    )


def _overrides(kind: type[Any]) -> dict[str, Any]:
    attrs.resolve_types(kind)
    return {field.name: _override(kind, field.name) for field in attrs.fields(kind)}


def _override(kind: type[Any], name: str) -> Any:
    from cattrs.gen import override

    if (kind, name) in _KEPT_BESIDE:
        return override(omit=True)
    if name in _JSON_FIELDS:
        return override(unstruct_hook=lambda value: value, struct_hook=lambda value, _: value)
    return override(rename=_camel(name))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _read_list(kind: Any) -> Callable[[Any, Any], Any]:
    """Of a list, and of nothing else: cattrs would make three steps of the text "abc"."""
    collection, item = get_origin(kind), get_args(kind)[0]
    read = _converter().get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise TypeError(f"a list expected, not {type(value).__name__}: {value!r:.80}")
        return collection([read(element, item) for element in value])

    return structure


class _Writers(dict[type[Any], Writer]):
    """Made at their first use: compiling all of them takes 30 ms."""

    def __missing__(self, kind: type[Any]) -> Writer:
        from cattrs.gen import make_dict_unstructure_fn

        self[kind] = make_dict_unstructure_fn(kind, _converter(), _cattrs_omit_if_default=True, **_overrides(kind))
        return self[kind]


writers = _Writers()


@cache
def _converter() -> Converter:
    from cattrs import Converter  # half of what importing the package would take: with the first fact

    made = Converter(detailed_validation=False)
    for kind, hook in SCALAR_HOOKS.items():
        made.register_structure_hook(kind, hook)
    made.register_unstructure_hook(datetime, format_time)
    made.register_structure_hook(datetime, _parse_time)
    made.register_structure_hook_factory(_is_list, _read_list)
    made.register_unstructure_hook_factory(attrs.has, writer)
    made.register_structure_hook_factory(attrs.has, _reader)
    return made
