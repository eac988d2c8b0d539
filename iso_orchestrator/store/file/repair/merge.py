"""Merge a journal's facts into a snapshot that another program wrote, as docs/format.md says under "Repair"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import attrs

from iso_orchestrator.codec import decode, encode, fact_to_json, projection_from_snapshot, snapshot_from_projection
from iso_orchestrator.errors import CorruptRecordError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import Json
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.journal import Line
from iso_orchestrator.store.file.snapshot import replay
from iso_orchestrator.store.maintenance import Difference, Side

_OURS = "isoOrchestrator"
_OUTCOME = ("status", "result", "error", "idempotencyKey")  # of a step; times and attempts differ in any case


@attrs.frozen
class Merged:
    """A merged record.

    Attributes:
        projection: None while a difference is not decided.
        differences: What both sides have, with different values.
        left_out: Lines about something that is not in the snapshot.
    """

    projection: Projection | None
    differences: list[Difference]
    left_out: list[Line]


def merge(snapshot: bytes, lines: Sequence[Line], seq: int, path: str, prefer: Side | None) -> Merged:
    """Apply the facts of a journal to a snapshot that they do not continue.

    All facts are applied; their events come after the snapshot's. Where a step, the state, the status, a heartbeat or
    a lease then differs from the snapshot's, that is a difference, and is reported. The journal's value is taken where
    the other program has not changed it since the journal began, by the clocks of both. Of heartbeats, leases and the
    status the later value is taken. Everything else is decided by *prefer*.

    Args:
        snapshot: The other program's snapshot.
        lines: The sound lines of the journal.
        seq: Sequence of the last of them, or of the fact that they continue.
        path: The snapshot's path.
        prefer: Whose steps and state are taken where both sides changed them.
    """
    theirs: dict[str, Any] = decode(snapshot)
    projection = projection_from_snapshot(snapshot, path)
    left_out = apply_all(projection, lines, path)
    times = [line.fact.at for line in lines] or [projection.updated_at]
    _end_runs(projection, times[-1])
    ours: dict[str, Any] = decode(snapshot_from_projection(projection))
    began = times[0]
    found = [
        *_steps(ours, theirs, lines, began, prefer),
        *_state(ours, theirs, lines, began, prefer),
        *_later(ours, theirs, "heartbeat", "heartbeats", "at"),
        *_later(ours, theirs, "lease", "leases", "heartbeatAt"),
        *_status(ours, theirs),
    ]
    if any(difference.taken is None for difference in found):
        return Merged(None, found, left_out)

    def edit(document: dict[str, Any]) -> None:
        for difference in found:
            if difference.taken == "snapshot":
                _put_back(document, theirs, difference)
        document["updatedAt"] = max(document["updatedAt"], theirs["updatedAt"], key=_time)
        document[_OURS]["seq"] = max(document[_OURS]["seq"], seq)  # else the old journal would be in conflict again

    return Merged(edited(projection, path, edit), found, left_out)


def apply_all(projection: Projection, lines: Sequence[Line], path: str) -> list[Line]:
    """Apply *lines* to a projection that they do not continue; those about something that does not exist."""
    left_out = []
    for line in lines:
        try:
            replay(projection, [line], path)
        except CorruptRecordError:
            left_out.append(line)
    return left_out


def edited(projection: Projection, path: str, edit: Callable[[dict[str, Any]], None]) -> Projection:
    """*projection* with the JSON of its snapshot changed by *edit*."""
    document = decode(snapshot_from_projection(projection))
    edit(document)
    return projection_from_snapshot(encode(document).encode("ascii"), path)


def _end_runs(projection: Projection, at: datetime) -> None:
    """Note that all runs have died: no process uses the workflow, and the other program took over after them."""
    for run in list(projection.runs):
        projection.apply(f.RunDied(at, run))


def _steps(
    ours: dict[str, Any], theirs: dict[str, Any], lines: Sequence[Line], began: datetime, prefer: Side | None
) -> list[Difference]:
    found = []
    for name in _named_steps(lines):
        mine, other = ours["steps"].get(name), theirs["steps"].get(name)
        if other is None or (mine is not None and _outcome(mine) == _outcome(other)):
            continue
        taken: Side | None = prefer if _time(other["updatedAt"]) >= began else "journal"
        if mine is not None and (mine["status"] == "completed") != (other["status"] == "completed"):
            taken = "journal" if mine["status"] == "completed" else "snapshot"  # a completed step does not run again
        found.append(Difference("step", name, mine, other, taken))
    return found


def _state(
    ours: dict[str, Any], theirs: dict[str, Any], lines: Sequence[Line], began: datetime, prefer: Side | None
) -> list[Difference]:
    touched = any("state" in fact_to_json(line.fact)[1] for line in lines)
    if not touched or ours["state"] == theirs.get("state"):
        return []
    updates = [event["at"] for event in theirs["events"] if event["type"] == "state.updated"]
    since = any(_time(at) >= began for at in updates)
    return [Difference("state", "", ours["state"], theirs.get("state"), prefer if since else "journal")]


def _later(ours: dict[str, Any], theirs: dict[str, Any], what: str, part: str, clock: str) -> list[Difference]:
    found = []
    for key, other in (theirs.get(part) or {}).items():
        mine = ours.get(part, {}).get(key)
        if mine is not None and mine != other and not _is_same(mine, other, clock):
            taken: Side = "snapshot" if _time(other[clock]) > _time(mine[clock]) else "journal"
            found.append(Difference(what, key, mine, other, taken))
    return found


def _status(ours: dict[str, Any], theirs: dict[str, Any]) -> list[Difference]:
    mine, other = ({"status": it["status"], "lastError": it.get("lastError")} for it in (ours, theirs))
    if mine["status"] == other["status"] and _message(mine) == _message(other):
        return []
    later: Side = "snapshot" if _time(theirs["updatedAt"]) > _time(ours["updatedAt"]) else "journal"
    return [Difference("status", "", mine, other, later)]


def _put_back(document: dict[str, Any], theirs: dict[str, Any], difference: Difference) -> None:
    kept, name = theirs.get(_OURS) or {}, difference.name
    if difference.what == "state":
        document["state"] = difference.snapshot
    elif difference.what == "status":
        document.update(difference.snapshot)
    elif difference.what == "step":
        document["steps"][name] = difference.snapshot
        _put(document[_OURS]["steps"], name, (kept.get("steps") or {}).get(name))
    else:
        document[f"{difference.what}s"][name] = difference.snapshot
        if difference.what == "lease":
            _put(document[_OURS]["leaseClocks"], name, None)  # it was of the journal's holder


def _put(items: dict[str, Any], name: str, value: Json) -> None:
    items.pop(name, None)
    if value is not None:
        items[name] = value


def _named_steps(lines: Sequence[Line]) -> list[str]:
    names: dict[str, None] = {}
    for line in lines:
        fields = fact_to_json(line.fact)[1]
        if "step" in fields:
            names[fields["step"]] = None
        names |= dict.fromkeys(fields.get("steps", ()))
    return list(names)


def _outcome(step: dict[str, Any]) -> list[Json]:
    return [step.get(field) for field in _OUTCOME]


def _is_same(mine: dict[str, Any], other: dict[str, Any], clock: str) -> bool:
    """Whether both are equal, since two programs can write one time in two ways."""
    fields = set(mine) | set(other)
    return _time(mine[clock]) == _time(other[clock]) and all(
        mine.get(field) == other.get(field) for field in fields if not field.endswith(("At", "at"))
    )


def _message(state: dict[str, Any]) -> Json:
    return (state["lastError"] or {}).get("message")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
