"""The package's own classes to JSON and back: facts, and snapshots in the npm package's format.

One rule for all of them: keys are the fields in camelCase, a field with its default is left out, times are texts, and
nothing is coerced. A field annotated `Json` is kept as it is, and one with `init=False` is not written.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin
from zlib import crc32

import attrs

from iso_orchestrator.codec.json import SCALAR_HOOKS, decode, encode
from iso_orchestrator.errors import FormatVersionError
from iso_orchestrator.record.facts import FACTS, Fact
from iso_orchestrator.record.model import Json, StepStatus, format_time, truncate_to_ms
from iso_orchestrator.record.projection import Projection, StepState
from iso_orchestrator.record.workflow_record import WorkflowRecord

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


def fact_to_json(fact: Fact) -> tuple[str, dict[str, Json]]:
    """The tag of a fact and its fields."""
    return fact.tag, write(fact)


def fact_from_json(tag: Json, fields: dict[str, Json]) -> Fact:
    """The fact with *tag* and *fields*.

    Raises:
        ValueError: The tag or a field is unknown, or a field is missing or of another type.
    """
    kind = FACTS.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise ValueError(f"the unknown fact {tag!r}")
    try:
        return read(kind, fields)
    except Exception as error:
        unknown = getattr(error, "extra_fields", None)  # of cattrs' ForbiddenExtraKeysError
        if not unknown:
            raise
        names = ", ".join(sorted(unknown))
        raise ValueError(f"a fact {tag!r} with the unknown {names}") from error


def snapshot_from_projection(projection: Projection) -> bytes:
    """The bytes of a snapshot: one step and one event a line.

    Fields of the projection and of its steps that the npm package does not know go into `isoOrchestrator`.
    """
    document = record_to_json(projection)
    ours = dict(_FORMAT_1)
    ours["steps"] = {
        name: extra
        for name, step in document["steps"].items()
        if (extra := {key: step.pop(key) for key in _STEP_EXTRAS if key in step})
    }
    unknown = document.pop("unknown", {})
    ours |= {key: document.pop(key) for key in _EXTRAS if key in document}
    step_lines = ",\n".join([f"{encode(name)}:{encode(step)}" for name, step in document.pop("steps").items()])
    event_lines = ",\n".join([encode(event) for event in document.pop("events")])
    head = {key: document.pop(key) for key in _HEAD}
    parts = (
        f"{encode(head)[:-1]},",
        f'"steps":{{\n{step_lines}\n}},',
        f'"events":[\n{event_lines}\n],',
        encode({**document, **unknown, _OURS: ours})[1:-2],
    )
    body = "\n".join(parts).encode("ascii")
    return body + _END % crc32(body)


def is_as_written(snapshot: bytes) -> bool:
    """Whether a snapshot is byte for byte as `snapshot_from_projection` wrote it."""
    body = snapshot[: -len(_END % 0)]
    return snapshot == body + _END % crc32(body)


def record_to_json(record: WorkflowRecord | Projection) -> dict[str, Json]:
    """A record as the npm package writes it; a projection, with its further fields among the others."""
    document = {**dict.fromkeys(_HEAD), "steps": {}, "events": [], **write(record), "version": _VERSION}
    if isinstance(record, WorkflowRecord):
        # A projection has the npm package's words, in which a step that met a limit is `failed`.
        waiting = [name for name, step in record.steps.items() if step.status is StepStatus.WAITING]
        for name in waiting:
            if record.steps[name].started_at is None:
                del document["steps"][name]  # it has not begun
            else:
                document["steps"][name]["status"] = "failed"
    for step in document["steps"].values():
        if step["status"] == "completed":
            step.setdefault("result", None)  # the npm package cannot read a completed step without one
    for lease in document.get("leases", {}).values():
        lease.pop("token", None)  # in `tokens`, which outlive a lease that the npm package removes
    return document


def projection_from_snapshot(data: bytes, path: str) -> Projection:
    """The record in a snapshot, of this package or of the npm package.

    Raises:
        FormatVersionError: A newer release wrote it.
        ValueError: It is no record.
    """
    document = decode(data)
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - damaged data, not a wrong argument
    ours = document.pop(_OURS, {})
    _check_version(document, ours, path)
    fields = {key: document.pop(key, None) for key in _RECORD}
    fields["heartbeats"] = fields["heartbeats"] or {}
    # Put the parts of steps and leases that stand under `isoOrchestrator` back into them.
    fields["steps"] = read(_OBJECTS, fields["steps"])
    extras = read(_OBJECTS, ours.get("steps", {}))
    for name, step in fields["steps"].items():
        extra = extras.get(name, {})
        for key in _STEP_EXTRAS:
            step.pop(key, None)  # another program's
            if key in extra:
                step[key] = extra[key]
    fields["leases"] = read(_OBJECTS, fields["leases"] or {})
    tokens = read(dict[str, int], ours.get("tokens", {}))
    for key, lease in fields["leases"].items():
        lease["token"] = tokens.get(key, 0)
    fields |= {key: ours[key] for key in _EXTRAS if key in ours}
    document.pop("version")  # all that is left now is another program's
    return read(Projection, {**fields, "unknown": document})


def _check_version(document: dict[str, Json], ours: Json, path: str) -> None:
    version = document.get("version")
    if type(version) is not int or version < 1 or not isinstance(ours, dict):
        raise ValueError("it is not a workflow record")
    if version > _VERSION:
        raise FormatVersionError(path, f"record version {version}")
    if (found := ours.get("format", _FORMAT_1["format"])) != _FORMAT_1["format"]:
        raise FormatVersionError(path, f"{_OURS} format {found}")


def write(value: Any) -> dict[str, Json]:
    """The JSON of an object of the package's own classes."""
    written: dict[str, Json] = _converter().unstructure(value)
    return written


def read(kind: type[T], value: Json) -> T:
    """The object of *kind* that *value* stands for.

    Raises:
        ValueError: It stands for none.
    """
    try:
        return _converter().structure(value, kind)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


@cache
def _converter() -> Converter:
    from cattrs import Converter  # with the first fact: it takes as long to import as the rest of the package

    made = Converter(detailed_validation=False, unstruct_collection_overrides={tuple: list})
    for scalar, hook in SCALAR_HOOKS.items():
        made.register_structure_hook(scalar, hook)
    made.register_unstructure_hook_func(lambda kind: kind is Any, lambda value: value)
    made.register_unstructure_hook(datetime, format_time)
    made.register_structure_hook(datetime, _parse_time)
    made.register_structure_hook_factory(_is_list, _list_reader)
    made.register_unstructure_hook_factory(attrs.has, _class_writer)
    made.register_structure_hook_factory(attrs.has, _class_reader)
    return made


def _class_writer(kind: type[Any]) -> Callable[[Any], dict[str, Json]]:
    from cattrs.gen import make_dict_unstructure_fn

    return make_dict_unstructure_fn(kind, _converter(), _cattrs_omit_if_default=True, **_names(kind))


def _class_reader(kind: type[Any]) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn

    return make_dict_structure_fn(
        kind,
        _converter(),
        _cattrs_forbid_extra_keys=issubclass(kind, Fact),
        _cattrs_detailed_validation=False,
        **_names(kind),
    )


def _names(kind: type[Any]) -> dict[str, Any]:
    from cattrs.gen import override

    attrs.resolve_types(kind)
    return {field.name: override(rename=_camel(field.name)) for field in attrs.fields(kind) if field.init}


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _list_reader(kind: Any) -> Callable[[Any, Any], Any]:
    collection, item = get_origin(kind), get_args(kind)[0]
    read_item = _converter().get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:  # cattrs would make three steps of the text "abc"
            raise TypeError(f"a list expected, not {type(value).__name__}: {value!r:.80}")
        return collection([read_item(element, item) for element in value])

    return structure


def _parse_time(text: Json, _: type[datetime]) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no zone")
    if moment.tzinfo is UTC and moment.microsecond % 1000 == 0:
        return moment  # as this package writes them
    return truncate_to_ms(moment.astimezone(UTC))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _keys(kind: type[Any]) -> list[str]:
    return [_camel(field.name) for field in attrs.fields(kind) if field.init]


_VERSION = 1
_OURS = "isoOrchestrator"
_OBJECTS = dict[str, dict[str, Json]]
# The keys of the npm package. They are not derived from our classes: a field that a class gets must not become one.
_HEAD = ("version", "workflowId", "status", "createdAt", "updatedAt", "state")
_RECORD = (*_HEAD[1:], "steps", "events", "heartbeats", "leases", "lastError")
_STEP = ("name", "status", "attempts", "updatedAt", "startedAt", "completedAt", "idempotencyKey", "result", "error")
_EXTRAS = [key for key in _keys(Projection) if key not in (*_RECORD, "unknown")]
_STEP_EXTRAS = [key for key in _keys(StepState) if key not in _STEP]
# What `isoOrchestrator` has even where it is empty. Keys that came later are left out then.
_FORMAT_1 = {"format": 1, "seq": 0, "runs": {}, "runFailed": False, "steps": {}, "tokens": {}, "leaseClocks": {}}
_END = b',"crc":"%08x"}}\n'
