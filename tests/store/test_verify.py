"""`iso-orchestrator verify`: what it says of each kind of file that docs/format.md knows, and what it leaves alone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import WatchedFS, failing, new_fold, note, put, run_python, tree

from iso_orchestrator import StoreError
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import snapshot
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.file.repair.verify import verify_all, verify_one
from iso_orchestrator.store.maintenance import Verdict, WorkflowCheck
from iso_orchestrator.store.names import record_names
from iso_orchestrator.system.filesystem import FileSystem
from iso_orchestrator.views.cli import main


@pytest.fixture
def root(memory_path: Path) -> Path:
    """A root with a workflow of five facts, each synced before the next, whose process is gone."""
    root = memory_path / "root"
    log, projection = FileStore(root).open("w", new_fold)
    for number in range(5):
        projection = put(log, projection, note(number))
        log.sync(projection.seq)
    log.close()  # as a kill does: no fresh pair is written
    return root


@pytest.fixture
def paths(root: Path) -> Paths:
    return Paths(str(root), record_names("w").short)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two reads, for tests in which no process writes."""
    monkeypatch.setattr(snapshot, "_READ_PAUSE", 0)


@pytest.fixture
def verify(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command; its exit code, output and errors."""

    def verify(*args: str, at: Path = root) -> tuple[int, str, str]:
        code = main(["verify", "--dir", str(at), *args])
        return code, *capsys.readouterr()

    return verify


def check(root: Path) -> WorkflowCheck:
    """The one workflow of a root."""
    (found,) = verify_all(FileSystem(), str(root))
    return found


def starts(journal: str) -> list[int]:
    """Where the journal's lines begin, the header's among them, and where the last one ends."""
    places = [0]
    for line in Path(journal).read_bytes().splitlines(keepends=True):
        places.append(places[-1] + len(line))
    return places


def overwrite(path: str, offset: int, data: bytes) -> None:
    """Put other bytes in a file's."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


# What is damaged, and where


def _bad_line_before_the_mark(paths: Paths) -> int:
    overwrite(paths.journal, starts(paths.journal)[2] + 12, b"#")
    return starts(paths.journal)[2]


def _missing_line(paths: Paths) -> int:
    lines = Path(paths.journal).read_bytes().splitlines(keepends=True)
    Path(paths.journal).write_bytes(b"".join(lines[:2] + lines[3:]))
    return len(b"".join(lines[:2]))


def _bad_header(paths: Paths) -> int:
    overwrite(paths.journal, 20, b"#")
    return 0


def _empty_journal(paths: Paths) -> int:
    Path(paths.journal).write_bytes(b"")
    return 0


def _snapshot_that_is_cut(paths: Paths) -> int:
    data = Path(paths.snapshot).read_bytes()
    Path(paths.snapshot).write_bytes(data[:-20])
    return _json_error(data[:-20])


def _snapshot_of_another_kind(paths: Paths) -> int:
    Path(paths.snapshot).write_bytes(b'{"version": 1}')
    return 0


def _empty_snapshot(paths: Paths) -> int:
    Path(paths.snapshot).write_bytes(b"")
    return 0


def _json_error(data: bytes) -> int:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(data)
    return caught.value.pos


DAMAGE: dict[str, tuple[Callable[[Paths], int], str]] = {
    "a bad line before the mark": (_bad_line_before_the_mark, "journal"),
    "a missing line": (_missing_line, "journal"),
    "a bad header": (_bad_header, "journal"),
    "an empty journal": (_empty_journal, "journal"),
    "a snapshot that is cut": (_snapshot_that_is_cut, "snapshot"),
    "a snapshot of another kind": (_snapshot_of_another_kind, "snapshot"),
    "an empty snapshot under a journal": (_empty_snapshot, "snapshot"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_its_file_and_offset(kind: str, root: Path, paths: Paths, verify: Any) -> None:
    """Each kind of damage ends with 1, and says in which file and at which byte it begins."""
    damage, name = DAMAGE[kind]
    offset, path = damage(paths), getattr(paths, name)
    code, out, err = verify("--json")
    (found,) = json.loads(out)["workflows"]
    worst = [file for file in found["files"] if file["verdict"] != "sound"]
    assert (code, err, found["verdict"]) == (1, "", "damaged")
    assert [(file["path"], file["offset"]) for file in worst] == [(path, offset)]
    code, out, _ = verify()
    assert code == 1
    assert f"{path}: damaged at byte {offset}: " in out


def test_both_files_are_judged_by_themselves(root: Path, paths: Paths) -> None:
    """Damage of one file does not hide that of the other."""
    _snapshot_of_another_kind(paths)
    offset = _bad_line_before_the_mark(paths)
    found = {file.path: (file.verdict, file.offset) for file in check(root).files}
    assert found == {paths.snapshot: (Verdict.DAMAGED, 0), paths.journal: (Verdict.DAMAGED, offset)}


def _half_a_line(paths: Paths) -> int:
    with open(paths.journal, "ab") as file:
        file.write(b'{"seq":6,"synced":5,"fa')
    return starts(paths.journal)[6]


def _bad_line_behind_the_mark(paths: Paths) -> int:
    overwrite(paths.journal, starts(paths.journal)[5] + 12, b"#")
    return starts(paths.journal)[5]


def _blank_snapshot(paths: Paths) -> int:
    os.unlink(paths.journal)
    Path(paths.snapshot).write_bytes(b"\0" * 100)
    return 0


@pytest.mark.parametrize(
    ("tear", "name"),
    [(_half_a_line, "journal"), (_bad_line_behind_the_mark, "journal"), (_blank_snapshot, "snapshot")],
    ids=["half a line", "a bad line behind the mark", "a blank snapshot"],
)
def test_what_a_crash_tears_is_no_damage(
    tear: Callable[[Paths], int], name: str, root: Path, paths: Paths, verify: Any
) -> None:
    """A torn end is named with its offset, ends with 0, and opening the workflow does away with it."""
    offset, path = tear(paths), getattr(paths, name)
    code, out, _ = verify()
    assert code == 0
    assert f"{path}: torn at byte {offset}: " in out
    log, projection = FileStore(root).open("w", new_fold)
    log.detach(projection)
    assert check(root).verdict is Verdict.SOUND


def test_files_of_two_programs_are_a_conflict(root: Path, paths: Paths, verify: Any) -> None:
    """A snapshot that another program wrote under a journal with facts ends with 1, and repair is pointed to."""
    record = json.loads(Path(paths.snapshot).read_bytes())
    Path(paths.snapshot).write_text(json.dumps({**record, "state": "another"}))
    code, out, _ = verify()
    assert code == 1
    assert out.startswith("conflict  w\n")
    assert "repair --help" in out
    os.unlink(paths.snapshot)
    assert check(root).verdict is Verdict.CONFLICT


@pytest.mark.parametrize("name", ["snapshot", "journal"])
def test_newer_formats_are_refused_and_no_damage(name: str, paths: Paths, verify: Any) -> None:
    """What a newer release wrote cannot be judged by this one: 3, and it says to upgrade."""
    if name == "journal":
        Path(paths.journal).write_bytes(_newer_header(paths))
    else:
        Path(paths.snapshot).write_text('{"version": 2, "workflowId": "w"}')
    code, out, _ = verify()
    assert code == 3
    assert "refused" in out
    assert "upgrade" in out


def _newer_header(paths: Paths) -> bytes:
    from zlib import crc32

    body = b'{"journal":2,"workflow":"w"'
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body))


def _hard_link(path: Path) -> None:
    victim = path.parents[2] / "victim"
    victim.write_text("of another program")
    os.link(victim, path)


PLANTS: dict[str, Callable[[Path], Any]] = {
    "symlink": lambda path: path.symlink_to("/etc/hostname"),
    "fifo": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "hard link": _hard_link,
}
# A snapshot is replaced, never written in place: a second name of it does no harm. The npm package's locks are folders.
HARMLESS = {("snapshot", "hard link"), ("record_lock", "folder")}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("snapshot", "journal", "record_lock")
        for kind in PLANTS
        if (name, kind) not in HARMLESS
    ],
)
def test_what_is_no_plain_file_is_refused(name: str, kind: str, paths: Paths, verify: Any) -> None:
    """A link, a FIFO or a folder in place of a file is reported; nothing in it is read."""
    path = Path(getattr(paths, name))
    path.unlink()
    PLANTS[kind](path)
    code, out, _ = verify()
    assert code in (1, 3)
    assert str(path) in out


def test_what_may_not_be_read_is_refused(root: Path, paths: Paths) -> None:
    """A file that this user has no right to cannot be judged."""
    error = PermissionError(errno.EACCES, "Permission denied")
    found = verify_one(WatchedFS(failing(error, "open_read", ending=".journal")), str(root), "w")
    assert found is not None
    (file,) = [file for file in found.files if file.verdict is not Verdict.SOUND]
    assert (file.path, file.verdict) == (paths.journal, Verdict.REFUSED)


# What is sound


def test_a_sound_root_is_told_in_a_line_a_workflow(root: Path, verify: Any) -> None:
    """Each sound workflow is a line with the number of its facts, and the total is the last."""
    log, projection = FileStore(root).open("other", lambda: new_fold("other"))
    log.detach(projection)
    code, out, err = verify()
    assert (code, err) == (0, "")
    assert out.splitlines() == ["sound     other, 0 facts", "sound     w, 5 facts", f"2 sound in {root}"]


def test_one_workflow_is_shown_with_all_its_files(root: Path, paths: Paths, verify: Any) -> None:
    """With an id, sound files are named too, and other workflows are not looked at."""
    (root / "workflows" / "other-00000000.json").write_bytes(b"damaged")
    code, out, _ = verify("w")
    assert code == 0
    assert f"{paths.snapshot}: sound: " in out
    assert f"{paths.journal}: sound: 5 facts" in out
    assert "other" not in out


def test_what_lies_beside_is_no_damage(root: Path, paths: Paths, verify: Any) -> None:
    """Torn tails, what a killed process left and unknown files are listed, and are sound."""
    for name in ("torn-7", "json.new", "journal.new", "json.kept-1"):
        Path(paths.folder, f"{paths.name}.{name}").write_bytes(b"anything")
    Path(paths.folder, "README").write_bytes(b"anything")
    code, out, _ = verify("--json")
    said = {file["path"]: file["says"] for found in json.loads(out)["workflows"] for file in found["files"]}
    assert code == 0
    assert "kept aside" in said[str(Path(paths.folder, f"{paths.name}.torn-7"))]
    assert "kept aside" in said[str(Path(paths.folder, f"{paths.name}.json.kept-1"))]
    assert "killed" in said[str(Path(paths.folder, f"{paths.name}.json.new"))]
    assert "left alone" in said[str(Path(paths.folder, "README"))]


def test_the_done_with_journal_of_a_broken_off_checkpoint_is_sound(root: Path, paths: Paths) -> None:
    """A snapshot newer than its journal, as a kill during a checkpoint leaves it, is sound."""
    journal = Path(paths.journal).read_bytes()
    log, projection = FileStore(root).open("w", new_fold)
    log.detach(projection)
    Path(paths.journal).write_bytes(journal)
    found = check(root)
    assert (found.verdict, found.facts) == (Verdict.SOUND, 5)


def test_a_missing_root_is_sound_and_stays_missing(verify: Any, tmp_path: Path) -> None:
    """Where there is nothing, nothing is wrong, and nothing is made."""
    missing = tmp_path / "missing"
    code, out, _ = verify(at=missing)
    assert (code, out) == (0, f"no workflows in {missing}\n")
    assert not missing.exists()


# What cannot be checked, and wrong usage


def test_an_unknown_workflow_ends_with_3(verify: Any) -> None:
    """A mistyped id is neither sound nor damaged."""
    code, out, err = verify("bacth")
    assert (code, out) == (3, "")
    assert err.startswith("iso-orchestrator: no workflow 'bacth' in ")


def test_a_root_that_is_a_file_ends_with_3(verify: Any, tmp_path: Path) -> None:
    """A root that cannot be looked at is neither sound nor damaged."""
    (tmp_path / "file").write_text("not a folder")
    code, _, err = verify(at=tmp_path / "file")
    assert code == 3
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "args", [["verify", " "], ["verify", "w", "w"], ["repair"], ["repair", "w", "--prefer", "journal"]]
)
def test_wrong_usage_ends_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments that make no sense end with 2."""
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert "usage: iso-orchestrator" in capsys.readouterr().err


# What it leaves alone


@pytest.mark.parametrize("kind", ["sound", *DAMAGE])
def test_nothing_is_opened_for_writing_locked_or_made(kind: str, root: Path, paths: Paths, hasty: None) -> None:
    """Of all doors to the disk only those are used that look."""
    if kind != "sound":
        DAMAGE[kind][0](paths)
    before = tree(root)
    times = {path: path.lstat().st_ctime_ns for path in root.rglob("*")}
    fs = WatchedFS()
    list(verify_all(fs, str(root)))
    verify_one(fs, str(root), "w")
    assert {name for name, _ in fs.calls} <= {
        *("open_read", "read_at", "close", "identify", "identify_path", "list_folder"),
    }
    assert tree(root) == before
    assert {path: path.lstat().st_ctime_ns for path in root.rglob("*")} == times


def test_it_waits_for_no_lock(root: Path, paths: Paths, verify: Any) -> None:
    """It answers while another process has the record's lock."""
    with open(paths.record_lock, "rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert verify()[0] == 0


WRITER = """
import sys
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import log as module
from support import new_fold, note, put
module._CHECKPOINT_AT_BYTES = 3000
module._CHECKPOINT_AT_RATIO = 0.1
log, projection = FileStore(sys.argv[1]).open("w", new_fold)
print("at work")
for number in range(int(sys.argv[2])):
    projection = put(log, projection, note("x" * (number % 500)))
log.detach(projection)
"""


@pytest.mark.slow
def test_a_live_writer_is_never_taken_for_damage(root: Path) -> None:
    """While a process appends and checkpoints, every check finds the workflow sound, or its end being written."""
    with run_python(WRITER, root, 1500) as writer:
        assert writer.line() == "at work"
        looks = 0
        while writer.process.poll() is None:
            found = check(root)
            assert found.verdict in (Verdict.SOUND, Verdict.TORN), found
            assert found.facts is not None
            looks += 1
        writer.end()
    assert looks > 10
    assert check(root).facts == 1505


def test_a_line_that_is_being_written_is_waited_for(root: Path, paths: Paths) -> None:
    """Half a line that is whole at the next look is nothing to tell of."""
    data, looks = Path(paths.journal).read_bytes(), 0
    Path(paths.journal).write_bytes(data[:-20])

    def go_on_writing(name: str, args: tuple[Any, ...]) -> None:
        nonlocal looks
        looks += (name, args) == ("open_read", (paths.journal,))
        if looks == 2:
            Path(paths.journal).write_bytes(data)

    (found,) = verify_all(WatchedFS(go_on_writing), str(root))
    assert [(file.verdict, file.message) for file in found.files if file.path == paths.journal] == [
        (Verdict.SOUND, "5 facts since the snapshot")
    ]


# One truth with the reader


def _is_readable(root: Path) -> bool:
    (found,) = FileStore(root).list()
    return not isinstance(found, StoreError)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["journal", "snapshot"])
def test_damaged_is_what_a_reader_refuses(
    name: str, root: Path, paths: Paths, memory_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is cut or flipped: verify ends with 0 where the workflow can be read, and only there."""
    monkeypatch.setattr("iso_orchestrator.store.file.snapshot._READ_PAUSE", 0)
    path, draw = Path(getattr(paths, name)), random.Random(7)
    data = path.read_bytes()
    cuts = [data[:size] for size in draw.sample(range(len(data)), 40)]
    places = draw.sample(range(len(data)), 60)
    flips = [data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :] for at in places]
    verdicts = set()
    for number, changed in enumerate([*cuts, *flips]):
        copy = memory_path / f"copy{number}"
        shutil.copytree(root, copy)
        (copy / path.relative_to(root)).write_bytes(changed)
        verdict = check(copy).verdict
        verdicts.add(verdict)
        assert (verdict in (Verdict.SOUND, Verdict.TORN)) == _is_readable(copy), (number, verdict)
    assert Verdict.DAMAGED in verdicts
