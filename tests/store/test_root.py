"""The root of a file store: what is made in it, and what must not stand there."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import WatchedFS, looked_at, new_fold, note, notes_of, only, put, refusal, run_python, tree
from support_store import TWINS, looks, opened

from iso_orchestrator.errors import CorruptRecordError, StoreError
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths

# The first steps: making the root, the record and the files.


def test_files_are_for_their_owner_alone(root: Path) -> None:
    """Files are 0600 and folders 0700 under any umask, and git ignores the root."""
    before = os.umask(0)
    try:
        log, projection = opened(root / "deep" / "er")
        put(log, projection, note("one"))
        mutex = log.mutex("k", whole_store=True)
        mutex.acquire()
    finally:
        os.umask(before)
    found = tree(root.parent)
    assert {stat.S_IMODE(mode) for mode, _ in found.values() if stat.S_ISDIR(mode)} == {0o700}
    assert {stat.S_IMODE(mode) for mode, _ in found.values() if stat.S_ISREG(mode)} == {0o600}
    assert found["root/deep/er/.gitignore"][1] == b"*\n"
    mutex.release()
    log.detach(projection)


OPENER = """
import sys
from support import *
from iso_orchestrator.store import FileStore

store = FileStore(sys.argv[1])
print("ready")
input()
log, projection = store.open("w", lambda: new_fold("w", {"by": sys.argv[2]}))
projection = put(log, projection, note(sys.argv[2]))
log.sync(projection.seq)
log.detach(projection)
print(projection.state["by"])
"""


@pytest.mark.slow
def test_many_processes_that_open_at_once_make_one_record(root: Path) -> None:
    """Of processes that all find nothing, one makes the record, and all others use it."""
    children = [run_python(OPENER, root, name) for name in "abcde"]
    try:
        for child in children:
            assert child.line() == "ready"
        for child in children:
            child.say()
        makers = {child.line() for child in children}
        for child in children:
            assert child.end() == []
    finally:
        for child in children:
            child.__exit__()
    maker = only(makers)
    projection = looked_at(FileStore(root))
    assert projection.state == {"by": maker}
    assert sorted(map(str, notes_of(projection))) == list("abcde")


def test_root_that_two_make_at_once_is_made_by_both(root: Path) -> None:
    """A process that finds every file made by another just before it could is not disturbed."""
    helper = FileStore(root)

    def before(name: str, args: tuple[Any, ...]) -> None:
        if name in ("open_new", "open_write", "make_folder") and not root.joinpath("locks").exists():
            helper.open("other", lambda: new_fold("other"))[0].detach(None)

    _, projection = opened(root, WatchedFS(before))
    assert projection.workflow_id == "w"
    assert sorted(
        projection.workflow_id for projection in FileStore(root).list() if isinstance(projection, Projection)
    ) == ["other", "w"]


@pytest.mark.parametrize("missing", [False, True])
def test_looking_makes_and_changes_nothing(root: Path, missing: bool) -> None:
    """Reading, listing and asking for a path touch no file, in a root that is not there as in one that is in use."""
    store = FileStore(root)
    if not missing:
        log, projection = opened(root)
        put(log, projection, note("one"))
    before = tree(root.parent)
    assert (store.read("w") is None) is missing
    assert store.read("unknown") is None
    assert len(list(store.list())) == (0 if missing else 1)
    assert store.path_of("w").startswith(str(root))
    if missing:
        assert store.delete("w") is False
    assert tree(root.parent) == before


def test_looking_opens_nothing_for_writing(root: Path) -> None:
    """A reader needs no right to write: it makes only calls that change nothing."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    fs = WatchedFS()
    FileStore(root, fs).read("w")
    list(FileStore(root, fs).list())
    assert {name for name, _ in fs.calls} <= {
        "open_read",
        "read_at",
        "close",
        "list_folder",
        "identify",
        "identify_path",
    }


@pytest.mark.parametrize("where", ["", "below"])
def test_root_that_is_a_file_is_refused(root: Path, where: str) -> None:
    """A root that is a file, or under one, raises StoreError for every use, and the file stays as it was."""
    root.write_text("mine")
    store = FileStore(root / where)
    uses: list[Callable[[], Any]] = [
        lambda: store.open("w", new_fold),
        lambda: store.read("w"),
        lambda: list(store.list()),
        lambda: store.delete("w"),
        lambda: store.path_of("w"),
    ]
    for use in uses:
        with pytest.raises(StoreError, match=str(root)):
            use()
    assert root.read_text() == "mine"


def test_relative_root_is_where_it_was_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative root belongs to the current directory of the moment at which it was named."""
    monkeypatch.chdir(root.parent)
    store = FileStore("root")
    monkeypatch.chdir("/")
    log, projection = store.open("w", new_fold)
    log.detach(projection)
    assert (root / "workflows").is_dir()
    assert store.identity == FileStore(root).identity


# Names that collide.


@pytest.mark.parametrize("ids", [TWINS, TWINS[::-1]])
def test_ids_of_one_short_name_have_two_records(root: Path, ids: tuple[str, str]) -> None:
    """The second id takes the long name; both are found again by opening, reading, listing and deleting."""
    store = FileStore(root)
    first, second = ids
    for workflow_id in ids:
        log, projection = opened(root, workflow_id=workflow_id)
        assert projection.workflow_id == workflow_id
        log.detach(put(log, projection, note(f"of {workflow_id}")))
    for workflow_id in ids:
        assert notes_of(looked_at(store, workflow_id)) == [f"of {workflow_id}"]
        log, projection = opened(root, workflow_id=workflow_id)
        assert notes_of(projection) == [f"of {workflow_id}"]
        assert log.path == store.path_of(workflow_id)
        log.detach(projection)
    assert store.path_of(first) != store.path_of(second)
    assert {projection.workflow_id for projection in store.list() if isinstance(projection, Projection)} == set(ids)
    assert store.delete(first)
    assert store.read(first) is None
    assert notes_of(looked_at(store, second)) == [f"of {second}"]
    log, projection = opened(root, workflow_id=first)
    assert notes_of(projection) == []
    log.detach(projection)
    assert notes_of(looked_at(store, second)) == [f"of {second}"]


def test_id_that_is_not_there_is_not_read_or_deleted_under_its_twins_name(root: Path) -> None:
    """A workflow whose short name another id has does not exist, and asking for it changes nothing."""
    store = FileStore(root)
    log, projection = opened(root, workflow_id=TWINS[0])
    log.detach(put(log, projection, note("mine")))
    assert store.read(TWINS[1]) is None
    assert store.delete(TWINS[1]) is False
    assert notes_of(looked_at(store, TWINS[0])) == ["mine"]


def test_twins_are_used_at_one_time(root: Path) -> None:
    """Two ids of one short name exclude each other in nothing."""
    log_a, a = opened(root, workflow_id=TWINS[0])
    log_b, b = opened(root, workflow_id=TWINS[1])
    log_a.lock()
    assert notes_of(put(log_b, b, note("b"))) == ["b"]
    log_a.unlock()
    assert notes_of(put(log_a, a, note("a"))) == ["a"]
    one, other = log_a.mutex("k", whole_store=False), log_b.mutex("k", whole_store=False)
    assert one.try_acquire()
    assert other.try_acquire()
    one.release()
    other.release()


# What should not stand there.


@pytest.mark.parametrize("name", ["snapshot", "journal", "record_lock"])
@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_what_is_planted_at_a_files_name_is_refused(root: Path, paths: Paths, name: str, kind: str) -> None:
    """A symlink, a FIFO or a folder at a file's name raises StoreError without a hang; no target is touched."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    path, target = Path(getattr(paths, name)), root.parent / "target"
    target.write_bytes(path.read_bytes())
    path.unlink()
    plant = {"symlink": lambda: path.symlink_to(target), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}
    plant[kind]()
    before = target.read_bytes()
    store = FileStore(root)
    with pytest.raises(StoreError):
        store.open("w", new_fold)
    if name == "record_lock":
        assert notes_of(looked_at(store)) == ["one"]  # readers take no lock
    else:
        with pytest.raises(StoreError):
            store.read("w")
        assert isinstance(only(store.list()), StoreError)
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["journal", "record_lock"])
def test_second_name_of_a_file_is_refused(root: Path, paths: Paths, name: str) -> None:
    """A hard link to a file that is written in place raises StoreError: another program may use the other name."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    path, target = Path(getattr(paths, name)), root.parent / "target"
    os.link(path, target)
    before = target.read_bytes()
    with pytest.raises(StoreError, match="hard link"):
        opened(root)
    assert target.read_bytes() == before
    assert notes_of(looked_at(FileStore(root))) == ["one"]
    target.unlink()
    looks(root, "one")


def test_what_is_planted_among_the_run_files_is_refused(root: Path, paths: Paths) -> None:
    """A FIFO or symlink in place of a liveness file raises StoreError without a hang."""
    log, projection = opened(root)
    log.detach(projection)
    os.mkfifo(Path(paths.runs) / f"{'0' * 16}.flock")
    with pytest.raises(StoreError, match="not a regular file"):
        opened(root)


def test_one_damaged_record_does_not_hide_the_others(root: Path, paths: Paths) -> None:
    """A list has an error in the place of a record that cannot be read, and all others."""
    for workflow_id in ("a", "w", "z"):
        log, projection = opened(root, workflow_id=workflow_id)
        log.detach(projection)
    Path(paths.snapshot).write_bytes(b"{")
    Path(paths.journal).unlink()
    (Path(paths.folder) / "notes.txt").write_text("not ours")
    found = list(FileStore(root).list())
    assert [entry.workflow_id for entry in found if isinstance(entry, Projection)] == ["a", "z"]
    assert [type(entry) for entry in found if not isinstance(entry, Projection)] == [CorruptRecordError]


def test_root_that_is_removed_under_a_process_is_an_error(root: Path) -> None:
    """A process whose folder was removed does not continue in a folder that was made since."""
    log, projection = opened(root)
    projection = put(log, projection, note("old"))
    shutil.rmtree(root)
    refusal(log, projection)
    other, its = opened(root)
    for known in (projection, None):
        with pytest.raises(StoreError):
            put(log, known, note("stray"))
    assert notes_of(put(other, its, note("new"))) == ["new"]
    assert notes_of(looked_at(FileStore(root))) == ["new"]


def test_new_root_in_the_place_of_an_empty_one_is_noticed_too(root: Path) -> None:
    """The same where the old record had no facts, so that the new one looks like what came next."""
    log, projection = opened(root)
    shutil.rmtree(root)
    opened(root)
    with pytest.raises(StoreError):
        put(log, projection, note("stray"))
    assert notes_of(looked_at(FileStore(root))) == []
