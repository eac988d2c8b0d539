"""`iso-orchestrator repair`: what it brings back, what it says is lost, and that it loses nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import T0, WatchedFS, at, failing, looked_at, new_fold, note, notes_of, put, run_python, tree

from iso_orchestrator import (
    CorruptRecordError,
    RecordConflictError,
    StepStatus,
    StoreError,
    Workflow,
    WorkflowBusyError,
    WorkflowNotFoundError,
    WorkflowStatus,
    delete_workflow,
    read_workflow_record,
)
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import ErrorInfo
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import snapshot
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.repair.repair import UndecidedError
from iso_orchestrator.store.maintenance import RepairOptions, RepairReport, Verdict
from iso_orchestrator.store.names import record_names
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.views.cli import main

FACTS = 6
NO_OPTIONS = RepairOptions()
MERGE = RepairOptions(merge_snapshot=True)
JOURNALS = RepairOptions(merge_snapshot=True, prefer="journal")
SNAPSHOTS = RepairOptions(merge_snapshot=True, prefer="snapshot")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two reads of files that no process changes."""
    monkeypatch.setattr(snapshot, "_READ_PAUSE", 0)


@pytest.fixture
def root(memory_path: Path) -> Path:
    """A root with a workflow of a few notes, each synced before the next, whose process is gone."""
    root = memory_path / "root"
    leave_behind(root, *[note(number) for number in range(1, FACTS + 1)])
    return root


@pytest.fixture
def paths(root: Path) -> Paths:
    return Paths(str(root), record_names("w").short)


def repair(
    root: str | Path, workflow_id: str, options: RepairOptions = NO_OPTIONS, fs: FileSystem | None = None
) -> RepairReport:
    """Repair a workflow of the store in that folder."""
    return FileStore(root, fs).repair(workflow_id, options)


def leave_behind(root: Path, *facts: f.Fact) -> None:
    """Record *facts* in "w", each synced before the next, as a process does that is killed then."""
    log, projection = FileStore(root).open("w", lambda: new_fold(state={"n": 0}))
    for fact in facts:
        projection = put(log, projection, fact)
        log.sync(projection.seq)
    log.close()


def notes(root: Path) -> list[str | None]:
    return notes_of(looked_at(FileStore(root)))


def starts(path: str) -> list[int]:
    """Where the lines begin, the header's among them, and where the last one ends."""
    places = [0]
    for line in Path(path).read_bytes().splitlines(keepends=True):
        places.append(places[-1] + len(line))
    return places


def spoil(path: str, offset: int) -> None:
    """Flip a bit."""
    data = bytearray(Path(path).read_bytes())
    data[offset] ^= 4
    Path(path).write_bytes(data)


def spoil_fact(paths: Paths, seq: int) -> None:
    """Flip a bit in the journal's line of the fact *seq*, which is also the line's number."""
    spoil(paths.journal, starts(paths.journal)[seq] + 30)


def assert_goes_on(root: Path, expected: Sequence[object]) -> None:
    """The workflow opens with these notes, takes one more, and is sound after that."""
    assert notes(root) == [str(text) for text in expected]
    log, projection = FileStore(root).open("w", new_fold)
    log.detach(put(log, projection, note("more")))
    assert notes(root) == [*map(str, expected), "more"]
    (found,) = FileStore(root).verify("w")
    assert found.verdict is Verdict.SOUND


def kept_bytes(done: RepairReport) -> list[bytes]:
    return [Path(path).read_bytes() for path in done.kept]


# A damaged journal


@pytest.mark.parametrize("seq", range(1, FACTS))
def test_the_longest_sound_prefix_comes_back(seq: int, root: Path, paths: Paths) -> None:
    """Whichever fact is damaged, all facts before it are in the record, and those after it are reported as lost."""
    spoil_fact(paths, seq)
    with pytest.raises(CorruptRecordError):
        FileStore(root).open("w", new_fold)
    before = [Path(path).read_bytes() for path in (paths.snapshot, paths.journal)]
    done = repair(str(root), "w")
    assert (done.action, done.facts, done.lost) == ("repaired", seq - 1, [(seq, FACTS)])
    assert kept_bytes(done) == before
    assert_goes_on(root, range(1, seq))


@pytest.mark.parametrize("place", [*range(0, 130, 10), -1])
def test_a_damaged_header_costs_nothing(place: int, root: Path, paths: Paths) -> None:
    """What the first line said follows from the snapshot, so all facts come back, whichever of its bytes is bad."""
    spoil(paths.journal, place % starts(paths.journal)[1])
    done = repair(str(root), "w")
    assert (done.action, done.facts, done.lost, done.unread) == ("repaired", FACTS, [], 0)
    assert_goes_on(root, range(1, FACTS + 1))


def test_a_header_of_another_snapshot_is_not_guessed(root: Path, paths: Paths) -> None:
    """Facts after a damaged header are taken only where the snapshot proves them; else their bytes are reported."""
    record = json.loads(Path(paths.snapshot).read_bytes())
    Path(paths.snapshot).write_text(json.dumps({**record, "state": "another"}))
    size = len(Path(paths.journal).read_bytes()) - starts(paths.journal)[1]
    spoil(paths.journal, 5)
    done = repair(str(root), "w")
    assert done.facts == 0
    assert done.unread >= size - FACTS * 10  # the header that must have been is as long as the one that was, or nearly
    assert_goes_on(root, [])


def test_an_empty_journal_leaves_the_snapshot(root: Path, paths: Paths) -> None:
    """Of a journal without a byte nothing can be said to be lost; the record is the snapshot's."""
    Path(paths.journal).write_bytes(b"")
    assert repair(str(root), "w").facts == 0
    assert_goes_on(root, [])


def test_steps_that_will_run_again_are_named(tmp_path: Path) -> None:
    """Completions after the damage are read for the report, and the steps run again."""
    leave_behind(
        tmp_path,
        f.StepStarted(T0, "lost", 1, "o"),
        f.StepCompleted(T0, "lost", 1),
        note("damaged"),
        f.StepStarted(T0, "behind", 1, "o"),
        f.StepCompleted(T0, "behind", 2),
        note("end"),
    )
    paths = Paths(str(tmp_path), record_names("w").short)
    spoil_fact(paths, 2)
    done = repair(str(tmp_path), "w")
    assert (done.facts, done.lost, done.lost_steps) == (1, [(2, 6)], ["behind"])
    with Workflow("w", dir=tmp_path) as workflow:
        assert workflow.run_step("behind", lambda: 3) == 3
        assert workflow.run_step("lost", lambda: 4) == 4


def touched(key: str, token: int) -> f.LeaseTouched:
    return f.LeaseTouched(T0, key, "holder", 1.0, T0, at(1), token, renewed=False)


def test_no_token_of_a_lease_is_handed_out_twice(tmp_path: Path) -> None:
    """Tokens of facts after the damage are not used again, nor are those of facts that cannot be read."""
    leave_behind(tmp_path, touched("a", 1), note("damaged"), touched("a", 2), touched("b", 1), note("end"), note("end"))
    paths = Paths(str(tmp_path), record_names("w").short)
    spoil_fact(paths, 2)
    repair(str(tmp_path), "w")
    workflow = Workflow("w", dir=tmp_path)
    assert workflow.touch_lease("a", holder="next", ttl=1).token > 3  # the damaged line may have given out a 2 as well
    assert workflow.touch_lease("b", holder="next", ttl=1).token > 1
    workflow.close()


# A damaged snapshot


def test_a_damaged_snapshot_is_given_up_only_when_asked(root: Path, paths: Paths) -> None:
    """Without the flag nothing is changed, and the error names it; with it the journal's facts are the record."""
    Path(paths.snapshot).write_bytes(b"{")
    before = tree(root)
    with pytest.raises(CorruptRecordError, match="--without-snapshot"):
        repair(str(root), "w")
    assert_no_change(root, before)
    done = repair(str(root), "w", RepairOptions(without_snapshot=True))
    assert (done.action, done.facts, done.lost) == ("rebuilt", FACTS, [])
    assert kept_bytes(done)[0] == b"{"
    assert_goes_on(root, range(1, FACTS + 1))


def test_a_missing_snapshot_is_given_up_only_when_asked(root: Path, paths: Paths) -> None:
    """A removed snapshot is treated as a damaged one; a copy of the journal is kept."""
    os.unlink(paths.snapshot)
    with pytest.raises(CorruptRecordError):
        repair(str(root), "w")
    done = repair(str(root), "w", RepairOptions(without_snapshot=True))
    assert [Path(path).name for path in done.kept] == [f"{paths.name}.journal.kept-1"]
    assert_goes_on(root, range(1, FACTS + 1))


def test_what_only_the_snapshot_had_is_said_to_be_lost(root: Path, paths: Paths) -> None:
    """Facts from before the journal began are lost with the snapshot, and are reported."""
    log, projection = FileStore(root).open("w", new_fold)
    log.detach(projection)
    leave_behind(root, note("later"))
    Path(paths.snapshot).write_bytes(b"")
    done = repair(str(root), "w", RepairOptions(without_snapshot=True))
    assert (done.lost, done.facts) == ([(1, FACTS)], FACTS + 1)
    assert_goes_on(root, ["later"])


def test_where_nothing_is_left_nothing_is_changed(root: Path, paths: Paths) -> None:
    """Two damaged files give no record, whatever may be given up."""
    Path(paths.snapshot).write_bytes(b"{")
    spoil(paths.journal, 5)
    before = tree(root)
    for choices in (RepairOptions(), RepairOptions(without_snapshot=True), JOURNALS):
        with pytest.raises(CorruptRecordError, match="nothing sound is left"):
            repair(str(root), "w", choices)
    assert_no_change(root, before)


def assert_no_change(root: Path, before: dict[str, tuple[int, bytes]]) -> None:
    """All files are as they were; the record's lock may have been made."""
    after = tree(root)
    assert {name: it for name, it in after.items() if name in before or not name.startswith("locks")} == before


# What is not damaged, and whom it would disturb


def test_a_sound_workflow_is_left_as_it_is(root: Path) -> None:
    """Nothing is made or changed where nothing is damaged."""
    before = tree(root)
    for choices in (RepairOptions(), JOURNALS, RepairOptions(without_snapshot=True)):
        done = repair(str(root), "w", choices)
        assert (done.action, done.facts, done.kept) == ("nothing", FACTS, [])
    assert tree(root) == before


def test_a_torn_tail_is_left_to_the_next_opening(root: Path, paths: Paths) -> None:
    """What a crash has torn is no damage."""
    with open(paths.journal, "ab") as file:
        file.write(b'{"seq":')
    before = tree(root)
    assert repair(str(root), "w").action == "nothing"
    assert tree(root) == before


def test_an_unknown_workflow_is_not_made(root: Path) -> None:
    """A mistyped id raises and makes nothing."""
    before = tree(root)
    with pytest.raises(WorkflowNotFoundError):
        repair(str(root), "bacth")
    with pytest.raises(WorkflowNotFoundError):
        repair(str(root / "missing"), "w")
    assert tree(root) == before


def test_newer_formats_are_left_alone(root: Path, paths: Paths) -> None:
    """What a newer release wrote is neither damaged nor repaired."""
    Path(paths.snapshot).write_text('{"version": 2, "workflowId": "w"}')
    before = tree(root)
    with pytest.raises(StoreError, match="upgrade"):
        repair(str(root), "w", JOURNALS)
    assert_no_change(root, before)


HOLDER = """
import sys
from iso_orchestrator import open_workflow
workflow = open_workflow("w", dir=sys.argv[1])
print("open")
input()
"""


@pytest.mark.slow
def test_a_live_process_is_not_disturbed(root: Path, paths: Paths) -> None:
    """While a process uses the workflow nothing is changed, and the error says which; once it is killed, it goes."""
    with run_python(HOLDER, root) as holder:
        assert holder.line() == "open"
        spoil(paths.snapshot, 0)  # under its hands
        before = tree(root)
        with pytest.raises(WorkflowBusyError) as caught:
            repair(str(root), "w", RepairOptions(without_snapshot=True))
        assert caught.value.pid == holder.pid
        assert tree(root) == before
        holder.kill()
    with pytest.raises(CorruptRecordError):  # the snapshot that is damaged now had all of them
        repair(str(root), "w", RepairOptions(without_snapshot=True))


def test_two_workflows_are_never_merged(root: Path, paths: Paths) -> None:
    """A snapshot of another id, which the npm package writes where two ids fall on one name, is not mixed with ours."""
    record = json.loads(Path(paths.snapshot).read_bytes())
    Path(paths.snapshot).write_text(json.dumps({**record, "workflowId": "twin"}))
    before = tree(root)
    with pytest.raises(RecordConflictError):
        repair(str(root), "w", JOURNALS)
    assert_no_change(root, before)


# Copies


def test_copies_go_with_the_workflow(root: Path, paths: Paths) -> None:
    """What a repair kept is removed by `delete`, and not before."""
    spoil_fact(paths, 2)
    done = repair(str(root), "w")
    assert_goes_on(root, [1])
    assert all(Path(path).exists() for path in done.kept)
    delete_workflow("w", dir=root)
    assert os.listdir(paths.folder) == []


def test_every_repair_keeps_its_own_copies(root: Path, paths: Paths) -> None:
    """A second damage does not replace what the first repair kept."""
    spoil_fact(paths, 4)
    first = repair(str(root), "w")
    was = kept_bytes(first)
    leave_behind(root, note(4), note(5), note(6))
    spoil_fact(paths, 1)
    second = repair(str(root), "w")
    assert not set(first.kept) & set(second.kept)
    assert kept_bytes(first) == was
    assert_goes_on(root, [1, 2, 3])


def test_files_are_for_their_owner_alone(root: Path, paths: Paths) -> None:
    """Copies and new files are 0600, whatever the old ones were."""
    spoil_fact(paths, 2)
    os.chmod(paths.journal, 0o644)
    mask = os.umask(0)
    try:
        done = repair(str(root), "w")
    finally:
        os.umask(mask)
    for path in (*done.kept, paths.snapshot, paths.journal):
        assert os.stat(path).st_mode & 0o777 == 0o600


# Crashes and errors in the midst


class _Crash(BaseException):
    """The process is gone."""


def _crash_at(call: int) -> Callable[[str, tuple[Any, ...]], None]:
    left = call

    def before(_name: str, _args: tuple[Any, ...]) -> None:
        nonlocal left
        if left == 0:
            raise _Crash
        left -= 1

    return before


def _spoiled_line(paths: Paths) -> RepairOptions:
    spoil_fact(paths, 4)
    return RepairOptions()


def _spoiled_header(paths: Paths) -> RepairOptions:
    spoil(paths.journal, 5)
    return RepairOptions()


def _foreign_snapshot(paths: Paths) -> RepairOptions:
    _written_by_another(paths, state={"n": 7})
    return JOURNALS


def _lost_snapshot(paths: Paths) -> RepairOptions:
    Path(paths.snapshot).write_bytes(b"")
    return RepairOptions(without_snapshot=True)


CASES: dict[str, tuple[Callable[[Paths], RepairOptions], list[int]]] = {
    "line": (_spoiled_line, [1, 2, 3]),
    "header": (_spoiled_header, [1, 2, 3, 4, 5, 6]),
    "foreign": (_foreign_snapshot, [1, 2, 3, 4, 5, 6]),
    "lost": (_lost_snapshot, [1, 2, 3, 4, 5, 6]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_call_loses_nothing(case: str, root: Path, paths: Paths, memory_path: Path) -> None:
    """Wherever a repair is killed, another one gives the same record, and the first bytes are still there."""
    damage, expected = CASES[case]
    choices = damage(paths)
    bytes_before = {Path(path).read_bytes() for path in (paths.snapshot, paths.journal)}
    for call in range(10_000):
        copy = memory_path / f"copy{call}"
        shutil.copytree(root, copy)
        try:
            repair(str(copy), "w", choices, fs=WatchedFS(_crash_at(call)))
        except _Crash:
            kept = {path.read_bytes() for path in (copy / "workflows").iterdir()}
            assert bytes_before <= kept, call
            repair(str(copy), "w", choices)
            kept = {path.read_bytes() for path in (copy / "workflows").iterdir()}
            assert bytes_before <= kept, call
            assert_goes_on(copy, expected)
            shutil.rmtree(copy)
        else:
            assert call > 40
            return


KILLED = """
import sys
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.maintenance import RepairOptions
from iso_orchestrator.testing import crash_here
from support import WatchedFS
left = int(sys.argv[2])
def before(name, args):
    global left
    if left == 0:
        crash_here()
    left -= name in ("write_at", "sync", "replace", "sync_folder")
FileStore(sys.argv[1], WatchedFS(before)).repair("w", RepairOptions())
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("writes", [1, 3, 5, 8, 9, 12, 14])
def test_a_killed_repair_is_done_by_the_next(writes: int, root: Path, paths: Paths) -> None:
    """A process that is killed for real in a repair leaves no lock, and nothing that another cannot mend."""
    spoil_fact(paths, 4)
    with run_python(KILLED, root, writes) as child:
        assert child.process.wait(20) == -signal.SIGKILL
    repair(str(root), "w")
    assert_goes_on(root, [1, 2, 3])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=["ENOSPC", "EIO", "EROFS"])
def test_a_call_that_fails_is_a_typed_error_and_loses_nothing(
    error: int, root: Path, paths: Paths, memory_path: Path
) -> None:
    """Whichever call of the disk fails, a StoreError says so, and the repair goes well once the disk does."""
    spoil_fact(paths, 4)
    names = ("write_at", "sync", "replace", "sync_folder", "open_new", "open_write", "make_folder")
    for after in range(1000):
        copy = memory_path / f"copy{after}"
        shutil.copytree(root, copy)
        failure = OSError(error, os.strerror(error))
        try:
            repair(str(copy), "w", fs=WatchedFS(failing(failure, *names, after=after)))
        except StoreError:
            repair(str(copy), "w")
            assert_goes_on(copy, [1, 2, 3])
        else:
            assert after > 10
            return


# A snapshot of another program


def _written_by_another(paths: Paths, *, after: float = 10, **changes: Any) -> dict[str, Any]:
    """Change the snapshot as the npm package does, which keeps what it does not know, *after* so many seconds."""
    path = Path(paths.snapshot)
    record = {**json.loads(path.read_bytes()), "updatedAt": _iso(after), **changes}
    path.write_text(json.dumps(record))
    return record


def _iso(seconds: float) -> str:
    return at(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _step(name: str, seconds: float, result: Any = None, status: str = "completed") -> dict[str, Any]:
    step = {"name": name, "status": status, "attempts": 1, "startedAt": _iso(seconds), "updatedAt": _iso(seconds)}
    return {**step, "completedAt": _iso(seconds), "result": result} if status == "completed" else step


def ran(name: str, result: Any, seconds: float = 0) -> list[f.Fact]:
    """A step that the journal has."""
    return [f.StepStarted(at(seconds), name, 1, "o"), f.StepCompleted(at(seconds), name, result)]


@pytest.fixture
def theirs(tmp_path: Path) -> Paths:
    """A root without a workflow yet."""
    return Paths(str(tmp_path / "theirs"), record_names("w").short)


def results(root: str) -> dict[str, Any]:
    return {name: step.result for name, step in read_workflow_record("w", dir=root).steps.items()}


def test_a_merge_is_done_only_when_asked(theirs: Paths) -> None:
    """Without the flag the conflict is reported and nothing is changed."""
    leave_behind(Path(theirs.root), *ran("a", 1))
    _written_by_another(theirs, steps={"b": _step("b", 10, 2)})
    before = tree(theirs.root)
    for choices in (RepairOptions(), RepairOptions(without_snapshot=True)):
        with pytest.raises(RecordConflictError):
            repair(theirs.root, "w", choices)
    assert_no_change(Path(theirs.root), before)


def test_what_only_one_has_is_in_the_merged_record(theirs: Paths) -> None:
    """A merged record has the steps, heartbeats, leases and keys of both sides, and all events, the journal's last."""
    leave_behind(
        Path(theirs.root), *ran("a", 1), note("ours"), f.HeartbeatRecorded(T0, "beat", {"by": "us"}), touched("slot", 4)
    )
    event = {"at": _iso(10), "type": "note", "message": "theirs"}
    lease = {"key": "other", "holder": "they", "acquiredAt": _iso(10), "heartbeatAt": _iso(10), "expiresAt": _iso(99)}
    _written_by_another(
        theirs,
        steps={"b": _step("b", 10, 2)},
        events=[event],
        heartbeats={"tick": {"key": "tick", "at": _iso(10)}},
        leases={"other": lease},
        tenant=7,
    )
    done = repair(theirs.root, "w", MERGE)
    record = read_workflow_record("w", dir=theirs.root)
    assert (done.action, done.differences) == ("merged", [])
    assert results(theirs.root) == {"a": 1, "b": 2}
    assert [event.message for event in record.events if event.type == "note"] == ["theirs", "ours"]
    assert set(record.heartbeats) == {"beat", "tick"}
    assert {key: (lease.holder, lease.token) for key, lease in record.leases.items()} == {
        "other": ("they", 0),
        "slot": ("holder", 4),
    }
    assert record.updated_at == at(10)
    assert json.loads(Path(theirs.snapshot).read_bytes())["tenant"] == 7


def test_a_step_that_both_ran_is_for_the_user_to_decide(theirs: Paths) -> None:
    """Nothing is done before it is said whose to take; then that one's is in the record, and the report names it."""
    leave_behind(Path(theirs.root), *ran("both", "ours"), *ran("a", 1))
    _written_by_another(theirs, steps={"both": _step("both", 10, "theirs"), "b": _step("b", 10, 2)})
    before = tree(theirs.root)
    with pytest.raises(UndecidedError, match="step 'both'") as caught:
        repair(theirs.root, "w", MERGE)
    assert [it.name for it in caught.value.differences] == ["both"]
    assert_no_change(Path(theirs.root), before)
    other = Path(theirs.root).parent / "copy"
    shutil.copytree(theirs.root, other)

    done = repair(theirs.root, "w", JOURNALS)
    assert [(it.what, it.name, it.taken) for it in done.differences] == [("step", "both", "journal")]
    assert results(theirs.root) == {"both": "ours", "a": 1, "b": 2}
    done = repair(str(other), "w", SNAPSHOTS)
    assert [(it.what, it.name, it.taken) for it in done.differences] == [("step", "both", "snapshot")]
    assert results(str(other)) == {"both": "theirs", "a": 1, "b": 2}
    types = [event.type for event in read_workflow_record("w", dir=other).events]
    assert types.count("step.completed") == 2  # what the journal had happened all the same


def test_one_outcome_that_both_have_is_no_difference(theirs: Paths) -> None:
    """A step that came to the same on both sides needs no choice."""
    leave_behind(Path(theirs.root), *ran("both", {"x": [1]}))
    _written_by_another(theirs, steps={"both": _step("both", 10, {"x": [1]})})
    assert repair(theirs.root, "w", MERGE).differences == []
    assert results(theirs.root) == {"both": {"x": [1]}}


@pytest.mark.parametrize("completed", ["journal", "snapshot"])
def test_what_is_completed_is_not_done_again(theirs: Paths, completed: str) -> None:
    """Where one side completed a step and the other did not, no choice is needed: the completed one is taken."""
    if completed == "journal":
        leave_behind(Path(theirs.root), *ran("both", "done"))
        _written_by_another(theirs, steps={"both": _step("both", 10, status="running")})
    else:
        leave_behind(
            Path(theirs.root), f.StepStarted(T0, "both", 1, "o"), f.StepFailed(T0, "both", ErrorInfo("E", "broke"))
        )
        _written_by_another(theirs, steps={"both": _step("both", 10, "done")})
    (difference,) = [it for it in repair(theirs.root, "w", MERGE).differences if it.what == "step"]
    assert (difference.name, difference.taken) == ("both", completed)
    step = read_workflow_record("w", dir=theirs.root).steps["both"]
    assert (step.status, step.result) == (StepStatus.COMPLETED, "done")


def test_what_the_other_program_did_not_touch_is_the_journals(theirs: Paths) -> None:
    """A step and a state that are older than the journal in the snapshot give way without a choice, and are named."""
    root = Path(theirs.root)
    log, projection = FileStore(root).open("w", lambda: new_fold(state={"n": 0}))
    log.detach(put(log, projection, *ran("old", "first"), f.StateUpdated(T0, {"n": 1})))
    leave_behind(root, f.StepsReset(at(5), ("old",)), *ran("old", "second", 5), f.StateUpdated(at(5), {"n": 2}))
    record = json.loads(Path(theirs.snapshot).read_bytes())
    _written_by_another(theirs, steps={**record["steps"], "b": _step("b", 10, 2)})
    done = repair(theirs.root, "w", MERGE)
    assert {(it.what, it.name, it.taken) for it in done.differences} == {
        ("step", "old", "journal"),
        ("state", "", "journal"),
    }
    assert results(theirs.root) == {"old": "second", "b": 2}
    assert read_workflow_record("w", dir=root).state == {"n": 2}


def test_a_state_that_both_changed_is_for_the_user_to_decide(theirs: Paths) -> None:
    """The state is one value: of two that were made apart one is taken, when it is said which."""
    leave_behind(Path(theirs.root), f.StateUpdated(T0, {"n": 1}))
    _written_by_another(theirs, state={"m": 1}, events=[{"at": _iso(10), "type": "state.updated"}])
    with pytest.raises(UndecidedError, match="changed state;"):
        repair(theirs.root, "w", MERGE)
    assert repair(theirs.root, "w", SNAPSHOTS).differences[0].taken == "snapshot"
    assert read_workflow_record("w", dir=theirs.root).state == {"m": 1}


def test_the_later_heartbeat_lease_and_status_are_taken(theirs: Paths) -> None:
    """Signs of life need no choice; tokens never fall."""
    leave_behind(
        Path(theirs.root),
        f.HeartbeatRecorded(at(20), "ours is later", 1),
        f.HeartbeatRecorded(at(5), "theirs is later", 1),
        touched("slot", 4),
        f.StatusSet(at(5), WorkflowStatus.FAILED, ErrorInfo("E", "broke")),
    )
    lease = {"key": "slot", "holder": "they", "acquiredAt": _iso(10), "heartbeatAt": _iso(10), "expiresAt": _iso(99)}
    beats = {key: {"key": key, "at": _iso(10), "detail": 2} for key in ("ours is later", "theirs is later")}
    _written_by_another(theirs, status="completed", heartbeats=beats, leases={"slot": lease})
    done = repair(theirs.root, "w", MERGE)
    record = read_workflow_record("w", dir=theirs.root)
    assert {(it.what, it.name, it.taken) for it in done.differences} == {
        ("heartbeat", "ours is later", "journal"),
        ("heartbeat", "theirs is later", "snapshot"),
        ("lease", "slot", "snapshot"),
        ("status", "", "snapshot"),
    }
    assert {key: beat.detail for key, beat in record.heartbeats.items()} == {"ours is later": 1, "theirs is later": 2}
    assert (record.leases["slot"].holder, record.leases["slot"].token) == ("they", 4)
    assert (record.status, record.last_error) == (WorkflowStatus.COMPLETED, None)


def test_a_run_that_was_killed_before_the_other_program_ended_well_is_past(theirs: Paths) -> None:
    """The other program's end of the workflow is not made a failure by the next opening."""
    leave_behind(Path(theirs.root), f.RunStarted(T0, "r", "o", 1, "host"), *ran("a", 1))
    _written_by_another(theirs, status="completed")
    repair(theirs.root, "w", MERGE)
    workflow = Workflow("w", dir=theirs.root)
    workflow.append_event("looked after")
    assert workflow.record.status is WorkflowStatus.COMPLETED
    assert "workflow.failed" in [event.type for event in workflow.record.events]
    workflow.close()


def test_facts_that_speak_of_what_is_gone_are_named(theirs: Paths) -> None:
    """A record that the other program began anew lacks what some facts go on from: those are left out, and said."""
    root = Path(theirs.root)
    log, projection = FileStore(root).open("w", lambda: new_fold(state={"n": 0}))
    log.detach(put(log, projection, f.StepStarted(T0, "half", 1, "o")))
    leave_behind(root, f.StepCompleted(T0, "half", 1), *ran("a", 1))
    began = {"version": 1, "workflowId": "w", "status": "idle", "createdAt": _iso(10), "updatedAt": _iso(10)}
    Path(theirs.snapshot).write_text(json.dumps({**began, "state": None, "steps": {}, "events": []}))
    done = repair(theirs.root, "w", MERGE)
    assert done.left_out == [(2, "half")]
    assert results(theirs.root) == {"a": 1}


def test_a_damaged_journal_under_a_foreign_snapshot_is_merged_as_far_as_it_is_sound(theirs: Paths) -> None:
    """Facts before the damage are merged, and those after it are reported as lost."""
    leave_behind(Path(theirs.root), *ran("a", 1), *ran("b", 2), note("end"))
    spoil_fact(theirs, 4)
    _written_by_another(theirs, steps={"c": _step("c", 10, 3)})
    done = repair(theirs.root, "w", MERGE)
    assert (done.action, done.lost) == ("merged", [(4, 5)])
    assert results(theirs.root) == {"a": 1, "b": None, "c": 3}


# On the command line


def test_the_command_says_what_it_did(root: Path, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; what is in the record, what is not, and where the copies are."""
    spoil_fact(paths, 3)
    assert main(["repair", "--dir", str(root), "w"]) == 0
    out, err = capsys.readouterr()
    head, lost, unread, *kept = out.splitlines()
    assert head == "repaired: the record has all facts up to 2"
    assert lost == "not in the record: facts 3 to 6, as far as is known"
    assert unread.startswith("not in the record: the last ")
    assert kept == [f"kept as it was: {path}.kept-1" for path in (paths.snapshot, paths.journal)]
    assert err == ""
    assert main(["repair", "--dir", str(root), "w"]) == 0
    assert capsys.readouterr().out == "nothing is damaged, nothing was changed\n"


def test_the_command_as_json(theirs: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get the report in camelCase, with both sides of each difference."""
    leave_behind(Path(theirs.root), *ran("both", "ours"))
    _written_by_another(theirs, steps={"both": _step("both", 10, "theirs")})
    args = ["repair", "--dir", theirs.root, "--json", "--merge-snapshot", "w"]
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "--prefer journal or --prefer snapshot" in err
    assert main([*args, "--prefer", "snapshot"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["workflowId"], said["deed"], said["lost"]) == ("w", "merged", [])
    (difference,) = said["differences"]
    assert (difference["journal"]["result"], difference["snapshot"]["result"]) == ("ours", "theirs")
    assert difference["taken"] == "snapshot"


def test_a_refusal_ends_with_1(root: Path, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be repaired is one line that says what to do."""
    Path(paths.snapshot).write_bytes(b"{")
    assert main(["repair", "--dir", str(root), "w"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--without-snapshot" in err
    assert main(["repair", "--dir", str(root), "bacth"]) == 1


# With the npm package itself


@pytest.mark.slow
def test_a_merge_with_what_node_wrote(tmp_path: Path) -> None:
    """After a kill, and a Node run that did not see the journal, one record has what both did, and both go on."""
    import end_to_end.test_npm_interop as npm

    if (missing := npm._what_is_missing()) is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with run_python(npm.KILLED_PYTHON, tmp_path, npm.BATCH, *npm.JOBS[:2]) as child:
        while child.line() != "all recorded":
            pass
        child.kill()
    npm.node(tmp_path, "run", ["step", npm.JOBS[1], "by node"], ["step", npm.JOBS[2], "by node"], ["add", "done", 1])
    with pytest.raises(UndecidedError) as caught:
        repair(str(tmp_path), npm.BATCH, MERGE)
    assert [(it.what, it.name) for it in caught.value.differences] == [("step", npm.JOBS[1]), ("state", "")]
    repair(str(tmp_path), npm.BATCH, JOURNALS)

    record = read_workflow_record(npm.BATCH, dir=tmp_path)
    assert [record.steps[name].result for name in npm.JOBS[:3]] == ["job 1 by python", "job 2 by python", "by node"]
    assert record.state == {"done": 3}
    assert record.status is WorkflowStatus.COMPLETED
    assert isinstance(record.updated_at, datetime)
    said = npm.node(tmp_path, "open", *[["step", name, "again"] for name in npm.JOBS[:3]])
    assert [step["ran"] for step in said] == [False] * 3
    with Workflow(npm.BATCH, dir=tmp_path) as workflow:
        assert npm.python_jobs(workflow, *npm.JOBS[:4]) == [npm.JOBS[3]]
