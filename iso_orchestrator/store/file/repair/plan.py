"""What to make of a damaged workflow's files, from their bytes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import attrs

from iso_orchestrator.errors import CorruptRecordError, RecordConflictError, StoreError
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.journal import Line
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.repair.merge import Difference, Side, merge
from iso_orchestrator.store.file.repair.salvage import (
    Sound,
    edited,
    keep_tokens,
    read_journal,
    read_snapshot,
    sound_prefix,
    take_in,
)

__all__ = ["Choices", "Deed", "Plan", "Repaired", "UndecidedError", "plan_of"]

Deed: TypeAlias = Literal["nothing", "repaired", "merged", "rebuilt"]


@attrs.frozen
class Repaired:
    """What a repair did.

    Attributes:
        deed: "nothing" where the workflow was sound.
        facts: Sequence of the last fact in the record.
        lost: Sequences of facts that are known to have been there and are not in the record: (first, last) of each gap.
        unread: Bytes of the journal from its first bad line on, none of which is in the record.
        lost_steps: Steps whose completion can be read among them: they will run again.
        left: What speaks of a step or lease that the record does not have: (sequence, step or key).
        differences: What both sides of a merge have, and whose was taken.
        kept: Copies of the files as they were.
    """

    deed: Deed
    facts: int
    lost: list[tuple[int, int]] = attrs.field(factory=list)
    unread: int = 0
    lost_steps: list[str] = attrs.field(factory=list)
    left: list[tuple[int, str]] = attrs.field(factory=list)
    differences: list[Difference] = attrs.field(factory=list)
    kept: list[str] = attrs.field(factory=list)


class UndecidedError(StoreError):
    """Both sides of a merge changed the same, and nobody said whose is to be taken; nothing was changed."""

    def __init__(self, workflow_id: str, differences: list[Difference]) -> None:
        super().__init__(workflow_id, differences)
        self.workflow_id = workflow_id
        self.differences = [difference for difference in differences if difference.taken is None]

    def __str__(self) -> str:
        names = ", ".join(f"{it.what} {it.name!r}" if it.name else it.what for it in self.differences)
        return (
            f"workflow {self.workflow_id!r}: journal and snapshot both changed {names}; nothing was changed. "
            "Say whose to take: --prefer journal or --prefer snapshot"
        )


@attrs.frozen
class Plan:
    """A record to be written, and what there is to say of it."""

    projection: Projection
    report: Repaired


@attrs.frozen
class Choices:
    """What the user has asked for.

    Attributes:
        merge_snapshot: Take the journal's facts onto a snapshot that another program wrote meanwhile.
        prefer: Whose steps and state a merge takes where both changed them; None: `UndecidedError`.
        without_snapshot: Where the snapshot is damaged or missing, take what the journal alone has.
    """

    merge_snapshot: bool = False
    prefer: Side | None = None
    without_snapshot: bool = False


def plan_of(snapshot: bytes | None, journal: bytes | None, paths: Paths, workflow_id: str, choices: Choices) -> Plan:
    """The record that can be made of the two files.

    Raises:
        CorruptRecordError: None, or none without what `Choices.without_snapshot` gives up.
        FormatVersionError: A newer release wrote one of them.
        RecordConflictError: It would take a merge.
        UndecidedError: It would take a choice.
    """
    sound = read_journal(journal, snapshot, paths.journal) if journal is not None else None
    if snapshot is None or (found := read_snapshot(snapshot, paths.snapshot)) is None:
        return _without_snapshot(sound, paths, workflow_id, allowed=choices.without_snapshot)
    if sound is not None and found.workflow_id != sound.header.workflow_id:
        raise RecordConflictError(paths.snapshot, paths.journal)  # two workflows: no merge makes one of them
    try:
        projection, count = sound_prefix(snapshot, sound, paths)
    except RecordConflictError:
        assert sound is not None
        if not choices.merge_snapshot:
            raise
        return _merged(snapshot, sound, paths, workflow_id, choices.prefer)
    if sound is None:
        return Plan(projection, Repaired("repaired", projection.seq))
    return Plan(*_lose("repaired", projection, sound, sound.lines[count:], paths))


def _merged(snapshot: bytes, sound: Sound, paths: Paths, workflow_id: str, prefer: Side | None) -> Plan:
    merged = merge(snapshot, sound.lines, sound.seq, paths.snapshot, prefer)
    if merged.projection is None:
        raise UndecidedError(workflow_id, merged.differences)
    projection, report = _lose("merged", merged.projection, sound, [], paths)
    return Plan(projection, attrs.evolve(report, differences=merged.differences, left=_left(merged.left)))


def _without_snapshot(sound: Sound | None, paths: Paths, workflow_id: str, *, allowed: bool) -> Plan:
    if sound is None or not sound.lines:
        raise CorruptRecordError(paths.snapshot, 0, "nothing sound is left of the workflow")
    if not allowed:
        kept = f"facts {sound.header.base + 1} to {sound.seq} in the journal are sound: --without-snapshot takes them"
        raise CorruptRecordError(paths.snapshot, 0, "the snapshot is damaged or missing", kept)
    projection = Projection.new(workflow_id, sound.lines[0].fact.at, {})

    def go_on(document: dict[str, Any]) -> None:
        document["isoOrchestrator"]["seq"] = sound.header.base

    projection = edited(projection, paths.snapshot, go_on)
    left = take_in(projection, sound.lines, paths.journal)
    projection, report = _lose("rebuilt", projection, sound, [], paths)
    before = [(1, sound.header.base)] if sound.header.base else []
    return Plan(projection, attrs.evolve(report, left=_left(left), lost=before + report.lost))


def _lose(
    deed: Deed, projection: Projection, sound: Sound, unfolded: Sequence[Line], paths: Paths
) -> tuple[Projection, Repaired]:
    """The record without the facts behind the first bad one, and what is known of them."""
    first = sound.seq - len(unfolded) + 1
    readable = [*unfolded, *sound.behind]
    if sound.lost < first:
        return projection, Repaired(deed, projection.seq, unread=sound.unread)
    unreadable = sound.lost - first + 1 - len(readable)
    projection = edited(
        projection, paths.snapshot, lambda document: keep_tokens(document, readable, max(0, unreadable))
    )
    steps = [line.fact.step for line in readable if isinstance(line.fact, f.StepCompleted)]
    return projection, Repaired(deed, projection.seq, lost=[(first, sound.lost)], unread=sound.unread, lost_steps=steps)


def _left(lines: Sequence[Line]) -> list[tuple[int, str]]:
    return [(line.seq, getattr(line.fact, "step", "") or getattr(line.fact, "key", "")) for line in lines]
