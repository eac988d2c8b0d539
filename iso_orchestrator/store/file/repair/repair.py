"""Repair a damaged workflow: make a record from what is sound, and keep copies of the files that it replaces."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import attrs

from iso_orchestrator.codec import is_as_written, projection_from_snapshot
from iso_orchestrator.errors import (
    CorruptRecordError,
    RecordConflictError,
    StoreError,
    WorkflowBusyError,
    WorkflowNotFoundError,
)
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store.file.journal import Header, Line, encode_header, parse_header, read_lines
from iso_orchestrator.store.file.log import locked_record
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.repair.merge import apply_all, edited, merge
from iso_orchestrator.store.file.repair.verify import existing_paths
from iso_orchestrator.store.file.snapshot import digest, read_once, read_snapshot, replay, take_snapshot, write_pair
from iso_orchestrator.store.files import atomic_write, read_file, store_error
from iso_orchestrator.store.liveness import LivenessFiles
from iso_orchestrator.store.maintenance import Difference, RepairAction, RepairOptions, RepairReport, Side
from iso_orchestrator.system.filesystem import FileSystem


class UndecidedError(StoreError):
    """Both sides of a merge changed the same, and the options do not say whose to take; nothing was changed."""

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


def repair(fs: FileSystem, root: str, workflow_id: str, options: RepairOptions) -> RepairReport:
    """Make a damaged workflow one that opens, from what is sound of it. A sound one is left as it is.

    Args:
        fs: The file system.
        root: The folder of the store, an absolute path.
        workflow_id: The workflow.
        options: What the repair may do.

    Raises:
        CorruptRecordError: Nothing sound is left, or only what `without_snapshot` takes.
        RecordConflictError: It would take a merge.
        UndecidedError: It would take a choice between both sides of a merge.
        WorkflowBusyError: A process uses the workflow.
        WorkflowNotFoundError: There is no such workflow.
        StoreError: The files cannot be read or written. Nothing but copies was made.
    """
    try:
        paths = existing_paths(fs, root, workflow_id)
        if paths is None:
            raise WorkflowNotFoundError(workflow_id, root)
        if (report := _report_if_sound(fs, paths)) is not None:
            return report
        _refuse_in_use(fs, paths, workflow_id)  # before the wait for a lock that a live process may hold for long
        with locked_record(fs, paths) as lock:
            _refuse_in_use(fs, paths, workflow_id)
            if (report := _report_if_sound(fs, paths)) is not None:
                return report
            snapshot, journal = read_file(fs, paths.snapshot), read_file(fs, paths.journal)
            projection, report = _repaired(snapshot, journal, paths, workflow_id, options)
            kept = [_keep(fs, paths, path) for path in (paths.snapshot, paths.journal)]
            lock.begin_generation()
            write_pair(fs, paths, projection)
            LivenessFiles(fs, paths.runs).sweep(projection.owners())
            return attrs.evolve(report, kept=[path for path in kept if path is not None])
    except OSError as error:
        raise store_error(root, error) from error


def _refuse_in_use(fs: FileSystem, paths: Paths, workflow_id: str) -> None:
    liveness = LivenessFiles(fs, paths.runs)
    if (process_id := liveness.survey().living) is not None:
        info = liveness.info(process_id)
        raise WorkflowBusyError(workflow_id, info.pid, info.host, info.since)


def _report_if_sound(fs: FileSystem, paths: Paths) -> RepairReport | None:
    """The report on a workflow that opens as it is. A torn tail is left to its next opening."""
    try:
        pair = read_once(fs, paths)
    except (CorruptRecordError, RecordConflictError):
        return None
    return RepairReport("nothing", pair.projection.seq if pair.projection is not None else 0)


def _keep(fs: FileSystem, paths: Paths, path: str) -> str | None:
    """Copy a file, durably, to a name beside it; a copy that an earlier repair made of the same bytes will do."""
    data = read_file(fs, path)
    if data is None:
        return None
    numbers = [0]
    pattern = re.compile(re.escape(os.path.basename(path)) + r"\.kept-(\d+)")
    for name in fs.list_folder(paths.folder):
        if match := pattern.fullmatch(name):
            copy = os.path.join(paths.folder, name)
            if read_file(fs, copy) == data:
                return copy
            numbers.append(int(match[1]))
    copy = f"{path}.kept-{max(numbers) + 1}"
    fd, _ = atomic_write(fs, copy, data)
    fs.close(fd)
    return copy


# The record that can be made of the bytes of both files.


def _repaired(
    snapshot: bytes | None, journal: bytes | None, paths: Paths, workflow_id: str, options: RepairOptions
) -> tuple[Projection, RepairReport]:
    sound = _read_journal(journal, snapshot, paths.journal) if journal is not None else None
    if snapshot is None or (found := _read_snapshot(snapshot, paths.snapshot)) is None:
        return _rebuilt(sound, paths, workflow_id, allowed=options.without_snapshot)
    if sound is not None and found.workflow_id != sound.header.workflow_id:
        raise RecordConflictError(paths.snapshot, paths.journal)  # two workflows, which no merge makes one
    try:
        projection, count = _sound_prefix(snapshot, sound, paths)
    except RecordConflictError:
        assert sound is not None
        if not options.merge_snapshot:
            raise
        # Where another program made the snapshot, its sequence 0 says nothing of what it has.
        missing = max(0, sound.header.base - found.seq) if found.seq or is_as_written(snapshot) else 0
        return _merged(snapshot, sound, paths, workflow_id, options.prefer, missing)
    if sound is None:
        return projection, RepairReport("repaired", projection.seq)
    return _without_lost("repaired", projection, sound, sound.lines[count:], paths)


def _sound_prefix(snapshot: bytes, sound: _SoundJournal | None, paths: Paths) -> tuple[Projection, int]:
    """The longest record that snapshot and journal prove, and how many of the journal's lines are in it.

    Raises:
        RecordConflictError: The snapshot is not the journal's.
    """
    projection = projection_from_snapshot(snapshot, paths.snapshot)
    if sound is None:
        return projection, 0
    if sound.header.snapshot != digest(snapshot):
        take_snapshot(snapshot, sound.header, sound.lines, paths)
        return projection, len(sound.lines)
    for count, line in enumerate(sound.lines):
        try:
            replay(projection, [line], paths.journal)
        except CorruptRecordError:
            # The fact may have changed a part of the projection before it failed.
            projection = projection_from_snapshot(snapshot, paths.snapshot)
            replay(projection, sound.lines[:count], paths.journal)
            return projection, count
    return projection, len(sound.lines)


def _merged(
    snapshot: bytes, sound: _SoundJournal, paths: Paths, workflow_id: str, prefer: Side | None, missing: int
) -> tuple[Projection, RepairReport]:
    merged = merge(snapshot, sound.lines, sound.seq, paths.snapshot, prefer)
    if merged.projection is None:
        raise UndecidedError(workflow_id, merged.differences)
    projection, report = _without_lost("merged", merged.projection, sound, [], paths, missing)
    return projection, attrs.evolve(report, differences=merged.differences, left_out=_named(merged.left_out))


def _rebuilt(
    sound: _SoundJournal | None, paths: Paths, workflow_id: str, *, allowed: bool
) -> tuple[Projection, RepairReport]:
    if sound is None or not sound.lines:
        raise CorruptRecordError(paths.snapshot, 0, "nothing sound is left of the workflow")
    if not allowed:
        kept = f"facts {sound.header.base + 1} to {sound.seq} in the journal are sound: --without-snapshot takes them"
        raise CorruptRecordError(paths.snapshot, 0, "the snapshot is damaged or missing", kept)
    projection = Projection.new(workflow_id, sound.lines[0].fact.at, {})

    def set_seq(document: dict[str, Any]) -> None:
        document["isoOrchestrator"]["seq"] = sound.header.base

    projection = edited(projection, paths.snapshot, set_seq)
    left_out = apply_all(projection, sound.lines, paths.journal)
    projection, report = _without_lost("rebuilt", projection, sound, [], paths)
    before = [(1, sound.header.base)] if sound.header.base else []
    return projection, attrs.evolve(report, left_out=_named(left_out), lost=before + report.lost)


def _without_lost(
    action: RepairAction,
    projection: Projection,
    sound: _SoundJournal,
    unapplied: Sequence[Line],
    paths: Paths,
    missing: int = 0,
) -> tuple[Projection, RepairReport]:
    """The record without the facts from the first bad one on, and what is known of them.

    As many facts as *missing* are in neither file: those before the journal's first.
    """
    base, first = sound.header.base, sound.seq - len(unapplied) + 1
    lost = [gap for gap in ((base - missing + 1, base), (first, sound.lost)) if gap[0] <= gap[1]]
    if not lost:
        return projection, RepairReport(action, projection.seq, unread=sound.unread)
    readable = [line for line in (*unapplied, *sound.after) if line.seq >= first]
    unreadable = max(0, sum(last - first + 1 for first, last in lost) - len(readable))

    def raise_tokens(document: dict[str, Any]) -> None:
        """No token of a lease may be handed out twice, so count each lost fact as one token of each lease."""
        tokens = document["isoOrchestrator"]["tokens"]
        for line in readable:
            if isinstance(line.fact, f.LeaseTouched):
                tokens[line.fact.key] = max(tokens.get(line.fact.key, 0), line.fact.token)
        for key in tokens:
            tokens[key] += unreadable

    projection = edited(projection, paths.snapshot, raise_tokens)
    steps = [line.fact.step for line in readable if isinstance(line.fact, f.StepCompleted)]
    return projection, RepairReport(action, projection.seq, lost=lost, unread=sound.unread, lost_steps=steps)


def _named(lines: Sequence[Line]) -> list[tuple[int, str]]:
    return [(line.seq, getattr(line.fact, "step", "") or getattr(line.fact, "key", "")) for line in lines]


# The bytes of damaged files.


@attrs.frozen
class _SoundJournal:
    """What is sound of a journal.

    Attributes:
        header: The first line; where it is damaged, as it must have been.
        lines: The lines before the first bad one.
        after: Sound lines after that, in order.
        lost: The highest sequence of which a fact is known to have existed.
        unread: Bytes from the first bad line to the end of the file.
    """

    header: Header
    lines: list[Line]
    after: list[Line]
    lost: int
    unread: int

    @property
    def seq(self) -> int:
        """Sequence of the last fact before the first bad line."""
        return self.header.base + len(self.lines)


def _read_snapshot(data: bytes, path: str) -> Projection | None:
    try:
        return read_snapshot(data, path)
    except CorruptRecordError:
        return None


def _read_journal(data: bytes, snapshot: bytes | None, path: str) -> _SoundJournal | None:
    """What is sound of a journal; None where its header is damaged and the snapshot does not tell what it was."""
    header = _read_header(data, snapshot, path)
    if header is None:
        return None
    found = read_lines(data[header.size :], header, header.size, header.base + 1, header.base, path)
    after = {line.seq: line for line in found.after}
    lost = max([found.mark, *after])
    return _SoundJournal(header, found.lines, [after[seq] for seq in sorted(after)], lost, len(data) - found.end)


def _read_header(data: bytes, snapshot: bytes | None, path: str) -> Header | None:
    try:
        return parse_header(data, path)
    except CorruptRecordError:
        if snapshot is None or (projection := _read_snapshot(snapshot, path)) is None:
            return None
    # Everything in it follows from the snapshot that the journal continues. Its checksum starts those of the lines, so
    # that no line fits when this is another snapshot.
    return parse_header(encode_header(projection.workflow_id, projection.seq, digest(snapshot)), path)
