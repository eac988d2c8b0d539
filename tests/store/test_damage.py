"""Torn tails and damaged files."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from zlib import crc32

import pytest
from support import caught_up, lines_of, looked_at, new_fold, note, notes_of, only, put, tree
from support_store import TAILS, die, looks, opened, tear

from iso_orchestrator.errors import CorruptRecordError, FormatVersionError
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.maintenance import RepairOptions, Verdict


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize("alive", [False, True])
def test_torn_tail_is_kept_aside_reported_and_cut(
    root: Path, paths: Paths, caplog: pytest.LogCaptureFixture, kind: str, alive: bool
) -> None:
    """A torn journal can be opened: its sound facts are in the record, the rest is kept in a file, with a warning."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    end = os.stat(paths.journal).st_size
    if not alive:
        die(log)
    tail = tear(paths, kind)
    assert notes_of(looked_at(FileStore(root))) == ["one"]  # a reader cuts nothing
    assert os.stat(paths.journal).st_size == end + len(tail)
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        other, its = opened(root)
    assert notes_of(its) == ["one"]
    assert Path(paths.torn(end)).read_bytes() == tail
    assert str(end) in only(caplog.messages)
    assert paths.torn(end) in only(caplog.messages)
    its = put(other, its, note("two"))
    if alive:
        assert notes_of(put(log, projection, note("three"))) == ["one", "two", "three"]
        assert notes_of(caught_up(other, its)) == ["one", "two", "three"]
    assert notes_of(looked_at(FileStore(root)))[:2] == ["one", "two"]


def test_a_second_torn_tail_of_one_place_is_kept_beside_the_first(root: Path, paths: Paths) -> None:
    """What was kept aside is not overwritten by what is torn at the same offset later."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    end = os.stat(paths.journal).st_size
    for number in (1, 2, 3):
        with open(paths.journal, "ab") as file:
            file.write(b"torn %d" % number)
        projection = caught_up(log, projection)
        assert os.stat(paths.journal).st_size == end
    assert [Path(paths.torn(end, number)).read_bytes() for number in (1, 2, 3)] == [b"torn 1", b"torn 2", b"torn 3"]
    log.detach(projection)
    assert FileStore(root).delete("w")
    assert os.listdir(paths.folder) == []


@pytest.mark.parametrize("kind", TAILS)
def test_torn_tail_of_a_killed_peer_is_cut_while_going_on(
    root: Path, paths: Paths, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A process in the midst of its work cuts the half line of one that was killed, before it appends."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    end = os.stat(paths.journal).st_size
    tail = tear(paths, kind)
    assert not log.is_current()
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        projection = put(log, projection, note("two"))
    assert Path(paths.torn(end)).read_bytes() == tail
    assert len(caplog.messages) == 1
    assert [json.loads(line)["seq"] for line in lines_of(paths.journal)[1:]] == [1, 2]
    assert notes_of(looked_at(FileStore(root))) == notes_of(projection) == ["one", "two"]


def test_torn_tail_of_a_journal_without_lines(root: Path, paths: Paths) -> None:
    """A journal whose first line was torn has none, and takes new ones."""
    log, _ = opened(root)
    die(log)
    end = os.stat(paths.journal).st_size
    with open(paths.journal, "ab") as file:
        file.write(b"\0" * 9)
    log, projection = opened(root)
    assert (projection.seq, os.stat(paths.journal).st_size) == (0, end)
    log.detach(put(log, projection, note("one")))
    looks(root, "one")


def test_damage_before_a_mark_is_never_written_over(root: Path, paths: Paths) -> None:
    """A bad line before one that tells of a sync raises with file and offset for all, and changes nothing."""
    log, projection = opened(root)
    projection = put(log, projection, note("one"))
    log.sync(projection.seq)
    put(log, projection, note("two"))
    die(log)
    header, first, second = lines_of(paths.journal)
    Path(paths.journal).write_bytes(header + first.replace(b"one", b"uno") + second)
    before = tree(root / "workflows")
    store = FileStore(root)
    for use in (lambda: store.open("w", new_fold), lambda: store.read("w")):
        with pytest.raises(CorruptRecordError) as caught:
            use()
        assert (caught.value.path, caught.value.offset) == (paths.journal, len(header))
    assert isinstance(only(store.list()), CorruptRecordError)
    assert tree(root / "workflows") == before


@pytest.mark.parametrize("name", ["snapshot", "journal"])
@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 400, b"[1]\n", b'{"version":1}', b"\xff\xfe", b"[" * 9000])
def test_file_that_is_none_of_ours_raises_and_stays(root: Path, paths: Paths, name: str, data: bytes) -> None:
    """A snapshot or a first line that no crash leaves raises CorruptRecordError, and is not touched."""
    log, projection = opened(root)
    put(log, projection, note("one"))
    die(log)
    path = getattr(paths, name)
    Path(path).write_bytes(data)
    before = tree(root / "workflows")
    store = FileStore(root)
    for use in (lambda: store.open("w", new_fold), lambda: store.read("w")):
        with pytest.raises(CorruptRecordError) as caught:
            use()
        assert caught.value.path == path
    assert isinstance(only(store.list()), CorruptRecordError)
    assert tree(root / "workflows") == before


@pytest.mark.parametrize("data", [b"", b"\0" * 300, b"\n"])
def test_blank_snapshot_without_a_journal_is_begun_anew(
    root: Path, paths: Paths, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """A record that another program lost in a power cut does not stand in the way, and is kept aside."""
    os.makedirs(paths.folder)
    Path(paths.snapshot).write_bytes(data)
    assert FileStore(root).read("w") is None
    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    assert Path(paths.torn(0)).read_bytes() == data
    assert paths.torn(0) in caplog.text
    looks(root, "one")


def test_sound_snapshot_that_cannot_be_read_is_no_damage(root: Path, paths: Paths) -> None:
    """A snapshot with a right checksum and a value of a later release is refused, by `repair` too, and stays."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    body, _, _ = Path(paths.snapshot).read_bytes().replace(b'"status":"idle"', b'"status":"paused"').rpartition(b",")
    Path(paths.snapshot).write_bytes(body + b',"crc":"%08x"}}\n' % crc32(body))
    os.unlink(paths.journal)
    before = tree(root / "workflows")
    store = FileStore(root)
    for use in (lambda: opened(root), lambda: store.read("w"), lambda: store.repair("w", RepairOptions())):
        with pytest.raises(FormatVersionError, match=r"a sound record \('paused' .*upgrade") as caught:
            use()
        assert caught.value.path == paths.snapshot
    assert only(store.verify()).verdict is Verdict.REFUSED
    assert tree(root / "workflows") == before


def test_newer_formats_are_refused_and_left_alone(root: Path, paths: Paths) -> None:
    """Files of a newer release raise FormatVersionError when they are opened or read, and stay as they are."""
    log, projection = opened(root)
    log.detach(put(log, projection, note("one")))
    document = json.loads(Path(paths.snapshot).read_bytes())
    os.unlink(paths.journal)
    for part in ({"version": 2}, {"isoOrchestrator": {**document["isoOrchestrator"], "format": 2}}):
        Path(paths.snapshot).write_text(json.dumps({**document, **part}))
        before = tree(root / "workflows")
        for use in (lambda: opened(root), lambda: FileStore(root).read("w")):
            with pytest.raises(FormatVersionError, match="upgrade") as caught:
                use()
            assert caught.value.path == paths.snapshot
        assert tree(root / "workflows") == before
