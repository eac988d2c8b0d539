"""What `verify` and `repair` report, on any store."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal, TypeAlias

import attrs

from iso_orchestrator.record.model import Json

Side: TypeAlias = Literal["journal", "snapshot"]
RepairAction: TypeAlias = Literal["nothing", "repaired", "merged", "rebuilt"]


class Verdict(StrEnum):
    """The state of a file, from best to worst."""

    SOUND = "sound"
    TORN = "torn"  # by a crash, or by a writer at work: no damage, the next opening deals with it
    REFUSED = "refused"  # it cannot be read, or is a kind of file that the library does not open
    CONFLICT = "conflict"  # sound files that do not belong together
    DAMAGED = "damaged"

    @staticmethod
    def worst(verdicts: Iterable[Verdict]) -> Verdict:
        """The worst of *verdicts*; sound where there are none."""
        return max(verdicts, key=list(Verdict).index, default=Verdict.SOUND)


@attrs.frozen
class FileCheck:
    """The state of one file.

    Attributes:
        message: What is wrong with it, or what it contains.
        offset: Where the damage or the torn tail begins, in bytes.
    """

    path: str
    verdict: Verdict
    message: str
    offset: int | None = None


@attrs.frozen
class WorkflowCheck:
    """The state of one workflow's files, or of other files in the store.

    Attributes:
        name: The name of its files, without a suffix.
        workflow_id: None where no file can be read that has it.
        facts: How many facts are in the record; None where it cannot be read.
        files: The files, in no order.
    """

    name: str
    workflow_id: str | None
    facts: int | None
    files: tuple[FileCheck, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict on its worst file."""
        return Verdict.worst(file.verdict for file in self.files)


@attrs.frozen
class RepairOptions:
    """What a repair may do.

    Attributes:
        merge_snapshot: Merge the journal's facts into a snapshot that another program wrote meanwhile.
        prefer: Whose steps and state a merge takes where both sides changed them; None: refuse.
        without_snapshot: Where the snapshot is damaged or missing, take what the journal alone has.
    """

    merge_snapshot: bool = False
    prefer: Side | None = None
    without_snapshot: bool = False


@attrs.frozen
class Difference:
    """A part of the record that both sides of a merge have, with different values.

    Attributes:
        what: "step", "state", "status", "heartbeat" or "lease".
        name: The step's name, or the key; empty for the state and the status.
        journal: The journal's value, as JSON of the record; None where it removed the part.
        snapshot: The value in the other program's snapshot.
        taken: Whose value is in the merged record; None where the user has to decide.
    """

    what: str
    name: str
    journal: Json
    snapshot: Json
    taken: Side | None


@attrs.frozen
class RepairReport:
    """What a repair did.

    Attributes:
        action: "nothing" where the workflow was sound.
        facts: Sequence of the last fact in the record.
        lost: Facts that are known to have existed and are not in the record: (first, last) sequence of each gap.
        unread: Bytes of the journal from its first bad line on, none of which is in the record.
        lost_steps: Steps whose completion can be read among the lost facts: they will run again.
        left_out: Facts about a step or lease that the record does not have: (sequence, step or key).
        differences: What both sides of a merge have, and whose value was taken.
        kept: Copies of the files as they were before.
    """

    action: RepairAction
    facts: int
    lost: list[tuple[int, int]] = attrs.field(factory=list)
    unread: int = 0
    lost_steps: list[str] = attrs.field(factory=list)
    left_out: list[tuple[int, str]] = attrs.field(factory=list)
    differences: list[Difference] = attrs.field(factory=list)
    kept: list[str] = attrs.field(factory=list)
