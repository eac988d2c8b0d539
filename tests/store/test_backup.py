"""Copies of a workflow in a tar file."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from support import DEADLINE, looked_at, note, notes_of, put, tree
from support_processes import assert_waits, child, in_thread
from support_store import die, opened, tear, written_by_node

from iso_orchestrator import Workflow
from iso_orchestrator.errors import CorruptRecordError, StoreError, WorkflowNotFoundError
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.maintenance import Verdict


def restored(file: Path, root: Path) -> FileStore:
    """A root with what is in the backup."""
    root.mkdir()
    subprocess.run(["tar", "-xf", file, "-C", root], check=True)
    return FileStore(root)


@pytest.mark.parametrize("alive", [True, False])
def test_backup_is_restored_by_tar(root: Path, alive: bool) -> None:
    """A backup has all that was recorded, has the two files at their places, and can be continued."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    log, projection = opened(root)
    put(log, projection, note("two"))
    if not alive:
        die(log)
    file = root.parent / "b.tar"
    assert FileStore(root).backup("w", file) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    store = restored(file, root.parent / "copy")
    assert [check.verdict for check in store.verify()] == [Verdict.SOUND]
    assert os.listdir(store.root) == ["workflows"]
    log, projection = opened(root.parent / "copy")
    assert notes_of(projection) == ["one", "two"]
    log.detach(put(log, projection, note("three")))
    assert notes_of(looked_at(store)) == ["one", "two", "three"]
    assert notes_of(looked_at(FileStore(root))) == ["one", "two"]


@pytest.mark.slow
def test_what_runs_at_the_backup_counts_as_interrupted_in_the_copy(root: Path) -> None:
    """Its process may live on, and does not run the copy's step: nobody waits for it there."""
    code = """
        workflow.run_step("it", lambda: say("in") or hear())
    """
    with child(code, root) as process:
        assert process.line() == "in"
        FileStore(root).backup("w", root.parent / "b.tar")
        restored(root.parent / "b.tar", root.parent / "copy")
        with Workflow("w", dir=root.parent / "copy") as copy:
            assert copy.run_step("it", lambda: "again", on_change="ignore") == "again"
        assert copy.record.steps["it"].attempts == 2
        assert (root.parent / "copy" / "locks").is_dir()
        process.say("go on")
        process.end()


def test_the_copy_belongs_to_the_owner_of_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may make the backup, or unpack it: the owner can use what comes out."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    if os.geteuid() == 0:
        monkeypatch.setenv("ISO_ORCHESTRATOR_TRUST_OWNER", "1")
        for path in (root, *root.rglob("*")):
            os.chown(path, 1234, 1235)
    FileStore(root).backup("w", root.parent / "b.tar")
    with tarfile.open(root.parent / "b.tar") as tar:
        owners = {(info.uid, info.gid) for info in tar.getmembers()}
    assert owners == {(root.stat().st_uid, root.stat().st_gid)}


def test_backup_waits_for_a_process_that_writes(root: Path) -> None:
    """Both files are read under the workflow's lock: no checkpoint comes between them."""
    log, projection = opened(root)
    log.lock()
    backup = in_thread(FileStore(root).backup, "w", root.parent / "b.tar")
    assert_waits(backup)
    log.append(log.catch_up(projection), [note("one")])
    log.unlock()
    assert backup.result(DEADLINE) == 1


def test_backup_leaves_a_torn_tail_out(root: Path, paths: Paths) -> None:
    """What a crash tore is in no backup, and stays where it is."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    die(log)
    tear(paths, "garbage")
    before = tree(root / "workflows")
    assert FileStore(root).backup("w", root.parent / "b.tar") == 1
    assert tree(root / "workflows") == before
    assert [check.verdict for check in restored(root.parent / "b.tar", root.parent / "copy").verify()] == ["sound"]


def test_backup_of_another_program_s_snapshot(root: Path, paths: Paths) -> None:
    """A snapshot without a journal, and one beside a journal that is done with, are copied as they are."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    data = written_by_node(paths, state={"by": "node"})
    for number in (1, 2):
        FileStore(root).backup("w", root.parent / f"{number}.tar")
        store = restored(root.parent / f"{number}.tar", root.parent / f"copy {number}")
        assert Path(store.path_of("w")).read_bytes() == data
        assert looked_at(store).state == {"by": "node"}
        Path(paths.journal).unlink(missing_ok=True)


def test_backup_refuses_what_is_damaged_missing_or_there(root: Path, paths: Paths) -> None:
    """A backup is sound, or there is none: no file is left, none is replaced, and a mistyped id makes no lock."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    store, file = FileStore(root), root.parent / "b.tar"
    before = tree(root.parent)
    with pytest.raises(WorkflowNotFoundError):
        store.backup("bacth", file)
    assert tree(root.parent) == before
    with pytest.raises(StoreError, match="No such file or directory"):
        store.backup("w", root.parent / "missing" / "b.tar")
    file.write_text("precious")
    with pytest.raises(StoreError, match=r"b\.tar exists: remove it"):
        store.backup("w", file)
    assert file.read_text() == "precious"
    file.unlink()
    Path(paths.snapshot).write_bytes(b"{}")
    with pytest.raises(CorruptRecordError):
        store.backup("w", file)
    assert sorted(os.listdir(root.parent)) == ["root"]
