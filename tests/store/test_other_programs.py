"""Snapshots that other programs write, the npm package among them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import WatchedFS, at, caught_up, lines_of, looked_at, new_fold, note, only, put, refusal, tree
from support_store import NPM, die, looks, opened, rotate, written_by_node

from iso_orchestrator.errors import RecordConflictError
from iso_orchestrator.record import facts as f
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths


def test_foreign_snapshot_under_a_journal_with_facts_is_a_conflict(root: Path, paths: Paths) -> None:
    """If another program wrote the snapshot while the journal held newer facts, all uses raise, and both files stay."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    written_by_node(paths)
    before = tree(root / "workflows")
    store = FileStore(root)
    uses: list[Callable[[], Any]] = [
        lambda: store.read("w"),
        lambda: store.open("w", new_fold),
        lambda: put(log, projection, note("two")),
        lambda: caught_up(log, None),
        lambda: log.detach(projection),
        lambda: store.open("w", new_fold),  # with nobody alive
    ]
    for use in uses:
        with pytest.raises(RecordConflictError) as caught:
            use()
        assert (caught.value.path, caught.value.journal_path) == (paths.snapshot, paths.journal)
        assert tree(root / "workflows") == before
    assert isinstance(only(store.list()), RecordConflictError)


def test_foreign_snapshot_under_a_journal_without_facts_wins(root: Path, paths: Paths) -> None:
    """A workflow that was closed well, and then changed by another program, is taken as that left it."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    written_by_node(paths, state={"by": "node"})
    assert looked_at(FileStore(root)).state == {"by": "node"}
    log, projection = opened(root)
    assert projection.state == {"by": "node"}
    log.detach(put(log, projection, note("two")))
    assert looked_at(FileStore(root)).state == {"by": "node"}
    looks(root, "one", "two")


def test_foreign_snapshot_is_seen_by_a_process_that_has_written_nothing_yet(root: Path, paths: Paths) -> None:
    """A process with an empty journal continues from what another program wrote."""
    log, projection = opened(root)
    written_by_node(paths, state={"by": "node"})
    projection = put(log, projection, note("one"))
    assert projection.state == {"by": "node"}
    log.detach(projection)
    assert looked_at(FileStore(root)).state == {"by": "node"}


def test_foreign_snapshot_is_not_lost_by_who_leaves(root: Path, paths: Paths) -> None:
    """The last process to detach does not overwrite a snapshot that another program wrote."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    data = written_by_node(paths, state={"by": "node"})
    with pytest.raises(RecordConflictError):
        log.detach(projection)
    assert Path(paths.snapshot).read_bytes() == data
    assert len(lines_of(paths.journal)) == 2


def test_foreign_snapshot_is_not_lost_by_growth(root: Path, paths: Paths, early_checkpoints: None) -> None:
    """A checkpoint does not overwrite a foreign snapshot that appeared during the append."""
    data: list[bytes] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name == "write_at" and len(args[1]) > 1000:
            fs.before = None
            data.append(written_by_node(paths, state={"by": "node"}))

    fs = WatchedFS()
    log, projection = opened(root, fs)
    fs.before = before
    put(log, projection, note("x" * 1000))
    assert [Path(paths.snapshot).read_bytes()] == data
    assert b"x" * 1000 in Path(paths.journal).read_bytes()
    assert isinstance(refusal(log, projection), RecordConflictError)


def test_foreign_snapshot_is_not_lost_by_who_follows_a_checkpoint(
    root: Path, paths: Paths, early_checkpoints: None
) -> None:
    """A process that goes over to a peer's new journal notices that the snapshot is not the journal's."""
    log_a, a = opened(root)
    log_b, b = opened(root)
    rotate(log_b, b, "checkpointed")
    die(log_b)
    written_by_node(paths, state={"by": "node"})
    a = put(log_a, a, note("after"))
    assert a.state == {"by": "node"}  # the new journal had no facts
    log_a.detach(a)
    assert looked_at(FileStore(root)).state == {"by": "node"}
    looks(root, "checkpointed", "after")


def test_snapshot_that_is_only_touched_is_no_conflict(root: Path, paths: Paths) -> None:
    """A backup, a chmod or a copy back changes no byte, and is no conflict."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    os.utime(paths.snapshot)
    projection = put(log, projection, note("two"))
    shutil.copy(paths.snapshot, f"{paths.snapshot}.copy")
    os.replace(f"{paths.snapshot}.copy", paths.snapshot)
    log.detach(put(log, projection, note("three")))
    looks(root, "one", "two", "three")


def test_missing_snapshot_under_a_journal_is_a_conflict(root: Path, paths: Paths) -> None:
    """A journal whose snapshot is gone cannot be read, and is not taken for nothing."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    die(log)
    os.unlink(paths.snapshot)
    before = tree(root / "workflows")
    with pytest.raises(RecordConflictError):
        opened(root)
    with pytest.raises(RecordConflictError):
        FileStore(root).read("w")
    assert tree(root / "workflows") == before


def test_npm_record_is_gone_on_with_and_given_back(root: Path) -> None:
    """A record begun under Node is found by its name, and after our work has all of it, in Node's own keys."""
    original = json.loads((NPM / "failed.json").read_bytes())
    store = FileStore(root)
    path = Path(store.path_of(original["workflowId"]))
    assert path.name == "nightly-batch-7-a2377942.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**original, "dashboard": [1]}, indent=2))
    log, projection = store.open(original["workflowId"], new_fold)
    projection = put(
        log, projection, f.StepStarted(at(1), "ours", 1, log.process_id), f.StepCompleted(at(2), "ours", None)
    )
    log.detach(projection)
    written = json.loads(path.read_bytes())
    assert written["dashboard"] == [1]
    assert written["steps"].pop("ours") == {
        "name": "ours",
        "status": "completed",
        "attempts": 1,
        "startedAt": "2026-05-14T12:00:01.007Z",
        "updatedAt": "2026-05-14T12:00:02.007Z",
        "completedAt": "2026-05-14T12:00:02.007Z",
        "result": None,
    }
    for key in ("steps", "state", "heartbeats", "leases", "createdAt", "version", "workflowId"):
        assert written[key] == original[key]
    assert written["events"][: len(original["events"])] == original["events"]
