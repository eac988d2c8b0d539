"""Deleting a workflow."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, WatchedFS, looked_at, note, notes_of, put, tree, wait_until, waits_for_a_lock
from support_store import Crash, crashing_at, die, locked, opened, tear

from iso_orchestrator import Workflow, list_workflows
from iso_orchestrator.errors import WorkflowBusyError
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths


def test_delete_leaves_no_file_of_the_workflow(root: Path, paths: Paths) -> None:
    """All files of a deleted workflow are gone, torn tails and locks among them, and nothing of others'."""
    log, projection = opened(root, workflow_id="other")
    log.detach(projection)
    before = tree(root)
    log, projection = opened(root)
    put(log, projection, note("one"))
    log.mutex("k", whole_store=False).try_acquire()
    die(log)
    tear(paths, "half a line")
    log, projection = opened(root)
    log.detach(projection)
    assert FileStore(root).delete("w")
    assert tree(root) == before


def test_delete_of_what_a_killed_process_used(root: Path) -> None:
    """A workflow whose process was killed can be deleted; one that lives is named with its process."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    with pytest.raises(WorkflowBusyError) as caught:
        FileStore(root).delete("w")
    assert caught.value.pid == os.getpid()
    die(log)
    assert FileStore(root).delete("w")


def test_crash_within_a_delete_leaves_a_record_or_none(root: Path) -> None:
    """A process killed before any call of a delete leaves the workflow whole or gone, and it can be deleted again."""
    number, finished = 0, False
    while not finished:
        place = root / str(number)
        log, projection = opened(place)
        log.detach(put(log, projection, note("one")))
        with suppress(Crash):
            finished = FileStore(place, crashing_at(number)).delete("w")
        projection = FileStore(place).read("w")
        assert projection is None or notes_of(projection) == ["one"], number
        assert FileStore(place).delete("w") is (projection is not None), number
        assert FileStore(place).read("w") is None
        assert os.listdir(place / "workflows") == [], number
        number += 1
    assert number > 15


@pytest.mark.parametrize("name", ["snapshot", "journal"])
def test_damaged_record_can_be_deleted(root: Path, paths: Paths, name: str) -> None:
    """A record that cannot be read can be deleted, as the message says."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    die(log)
    Path(getattr(paths, name)).write_bytes(b"rubbish")
    assert FileStore(root).delete("w")
    assert FileStore(root).read("w") is None
    assert os.listdir(paths.folder) == []


def test_delete_between_the_steps_of_an_opening(root: Path, paths: Paths) -> None:
    """An opening at any moment of a deletion gets a new record."""
    for number in range(40):
        place = root / str(number)
        log, projection = opened(place)
        log.detach(put(log, projection, note("old")))
        fs = WatchedFS()
        deleted: list[bool] = []

        def before(
            name: str,
            args: tuple[Any, ...],
            fs: WatchedFS = fs,
            place: Path = place,
            at_call: int = number,
            deleted: list[bool] = deleted,
        ) -> None:
            if len(fs.calls) == at_call + 1 and not locked(place):
                deleted.append(FileStore(place).delete("w"))

        fs.before = before
        log, projection = opened(place, fs)
        assert notes_of(projection) == ([] if deleted else ["old"]), number
        log.detach(put(log, projection, note("new")))
        assert notes_of(looked_at(FileStore(place)))[-1] == "new", number


def test_two_that_delete_at_once(root: Path, paths: Paths) -> None:
    """Of two that delete one workflow both end well, and nothing is left."""
    log, projection = opened(root)
    log.detach(projection)
    log, _ = opened(root)
    log.lock()
    outcomes: list[Any] = []

    def delete() -> None:
        try:
            outcomes.append(FileStore(root).delete("w"))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=delete) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: waits_for_a_lock(os.getpid()), what="the wait for the lock")
    die(log)
    for thread in threads:
        thread.join(DEADLINE)
    assert [type(outcome) for outcome in outcomes] == [bool, bool]
    assert True in outcomes
    assert FileStore(root).read("w") is None
    assert os.listdir(paths.folder) == []


@pytest.mark.parametrize("suffix", ["json.x", "journal.y", "torn-1", "json.new", "json.kept-1"])
def test_a_workflow_with_a_name_that_begins_alike_is_left(root: Path, paths: Paths, suffix: str) -> None:
    """Ids may be anything, the file names of another workflow among them."""
    ids = "w", f"{paths.name}.{suffix}"
    for workflow_id in ids:
        with Workflow(workflow_id, dir=root) as workflow:
            workflow.run_step("save", lambda: 1)
    FileStore(root).delete("w")
    assert [found.workflow_id for found in list_workflows(root)] == [ids[1]]
