"""A journal's facts on a snapshot that another program wrote: the rule is in FORMAT.md, under "Repair"."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import attrs

from iso_orchestrator.codec import decode, fact_to_json, projection_from_snapshot, snapshot_from_projection
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import Json
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.journal import Line
from iso_orchestrator.store.file.repair.salvage import edited, take_in

__all__ = ["Difference", "Merged", "Side", "merge"]

Side: TypeAlias = Literal["journal", "snapshot"]

_OURS = "isoOrchestrator"
_OUTCOME = ("status", "result", "error", "idempotencyKey")  # of a step; times and attempts differ in any case


@attrs.frozen
class Difference:
    """Something that both sides have, and not alike.

    Attributes:
        what: "step", "state", "status", "heartbeat" or "lease".
        name: The step's, or the key; empty for the state and the status.
        journal: What the journal made of it, as JSON of the record; None where it removed it.
        snapshot: What the other program's snapshot has.
        taken: Whose is in the merged record; None where that is for the user to say.
    """

    what: str
    name: str
    journal: Json
    snapshot: Json
    taken: Side | None


@attrs.frozen
class Merged:
    """A merged record.

    Attributes:
        fold: None while a difference is not decided.
        left: Lines that speak of what is not in the snapshot.
    """

    projection: Projection | None
    differences: list[Difference]
    left: list[Line]


def merge(snapshot: bytes, lines: Sequence[Line], seq: int, path: str, prefer: Side | None) -> Merged:
    """The facts of a journal on top of a snapshot that is not the one they went on from.

    All of them are taken in, their events behind the snapshot's. Where a step, the state, the status, a heartbeat or a
    lease is then another than the snapshot's, it is a difference, and named. What the other program has not changed
    since the journal began, by the clocks of both, is the journal's; of heartbeats, leases and the status the later one
    is taken; of all else *prefer* decides.

    Args:
        snapshot: The other program's.
        lines: The journal's sound ones; there is at least one.
        seq: Of the last of them.
        path: The snapshot's.
        prefer: Whose steps and state are taken where both changed them.
    """
    theirs: dict[str, Any] = decode(snapshot)
    projection = projection_from_snapshot(snapshot, path)
    left = take_in(projection, lines, path)
    _end_runs(projection, lines[-1].fact.at)
    ours: dict[str, Any] = decode(snapshot_from_projection(projection))
    began = lines[0].fact.at
    found = [
        *_steps(ours, theirs, lines, began, prefer),
        *_state(ours, theirs, lines, began, prefer),
        *_later(ours, theirs, "heartbeat", "heartbeats", "at"),
        *_later(ours, theirs, "lease", "leases", "heartbeatAt"),
        *_status(ours, theirs),
    ]
    if any(difference.taken is None for difference in found):
        return Merged(None, found, left)

    def edit(document: dict[str, Any]) -> None:
        for difference in found:
            if difference.taken == "snapshot":
                _put_back(document, theirs, difference)
        document["updatedAt"] = max(document["updatedAt"], theirs["updatedAt"], key=_time)
        document[_OURS]["seq"] = max(document[_OURS]["seq"], seq)  # else the old journal would be a conflict again

    return Merged(edited(projection, path, edit), found, left)


def _end_runs(projection: Projection, at: datetime) -> None:
    """Nobody uses the workflow: what has not ended has died, and before the other program took over."""
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
            taken = "journal" if mine["status"] == "completed" else "snapshot"  # what is done is not done again
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
            _put(document[_OURS]["leaseClocks"], name, None)  # of the journal's holder


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
    """Whether they are one, written by two programs: a time can be spelled in two ways."""
    fields = set(mine) | set(other)
    return _time(mine[clock]) == _time(other[clock]) and all(
        mine.get(field) == other.get(field) for field in fields if not field.endswith(("At", "at"))
    )


def _message(state: dict[str, Any]) -> Json:
    return (state["lastError"] or {}).get("message")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
