"""Files and folders of other users, and rights that other users have on ours."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iso_orchestrator import StoreError, Workflow, list_workflows, read_workflow_record
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.log_files import LogFile

ALICE, MALLORY = 54321, 54322  # users without a name

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make files of other users"
)


@pytest.fixture
def root() -> Iterator[Path]:
    """A root of which this process has used workflow "w". All users may look into the folder above."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "root"
        use(root)
        yield root


def use(root: Path) -> None:
    workflow = Workflow("w", dir=root)
    assert workflow.run_step("step", lambda: "true") == "true"
    workflow.close()


def give(root: Path, user: int) -> None:
    for path in (root, *root.rglob("*")):
        os.chown(path, user, user)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def become(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@needs_root
def test_root_of_another_user_is_refused(root: Path) -> None:
    """What another user has planted is not opened: it would be trusted for what steps have returned."""
    give(root, MALLORY)
    for path in (root, *(path for path in root.rglob("*") if path.is_dir())):
        path.chmod(0o777)
    for user in (0, ALICE):
        with become(user):
            with pytest.raises(StoreError, match=rf"{root} belongs to user {MALLORY}.*chown.*another root"):
                use(root)
            [refused] = FileStore(root).list()
            assert isinstance(refused, StoreError)


@needs_root
@pytest.mark.parametrize("suffix", ["json", "journal"])
def test_record_of_another_user_is_refused(root: Path, suffix: str) -> None:
    """A snapshot or journal in a root of ours is neither used nor shown."""
    [planted] = root.glob(f"workflows/*.{suffix}")
    os.chown(planted, MALLORY, MALLORY)
    match = rf"{planted} belongs to user {MALLORY}, and this process runs as user root"
    with pytest.raises(StoreError, match=match):
        use(root)
    with pytest.raises(StoreError, match=match):
        read_workflow_record("w", dir=root)
    assert [check.verdict for check in FileStore(root).verify()] == ["refused"]


@needs_root
def test_root_trusts_the_user_who_called_sudo(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under sudo the files of the user who called it are trusted, and no others."""
    give(root, ALICE)
    monkeypatch.setenv("SUDO_UID", str(ALICE))
    use(root)
    with become(MALLORY), pytest.raises(StoreError, match=f"belongs to user {ALICE}"):
        use(root)
    monkeypatch.setenv("SUDO_UID", str(MALLORY))
    with pytest.raises(StoreError, match=f"belongs to user {ALICE}"):
        use(root)


@needs_root
def test_owners_are_trusted_where_the_user_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that maps users may show own files as those of another."""
    give(root, ALICE)
    monkeypatch.setenv("ISO_ORCHESTRATOR_TRUST_OWNER", "1")
    use(root)
    assert [summary.workflow_id for summary in list_workflows(dir=root)] == ["w"]


@needs_root
def test_user_after_root_is_told_what_to_do(root: Path) -> None:
    """A root that was made as root, and is then used by another user: the error names it, its owner and a way out."""
    with become(ALICE):
        for call in (lambda: use(root), lambda: read_workflow_record("w", dir=root)):
            with pytest.raises(StoreError, match=rf"{root} belongs to user root.*runs as user {ALICE}.*chown -R"):
                call()
    give(root, ALICE)
    [journal] = root.glob("workflows/*.journal")
    os.chown(journal, 0, 0)
    with become(ALICE), pytest.raises(StoreError, match=rf"{journal} belongs to user root"):
        use(root)


@needs_root
@pytest.mark.parametrize("sudo", [{"SUDO_UID": str(ALICE)}, {"ISO_ORCHESTRATOR_TRUST_OWNER": "1"}], ids=min)
def test_user_after_sudo_goes_on(monkeypatch: pytest.MonkeyPatch, sudo: dict[str, str]) -> None:
    """What root makes or replaces in a trusted user's folder is the user's, who can go on with it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, ALICE, ALICE)
        for name, value in sudo.items():
            monkeypatch.setenv(name, value)
        for number, first in enumerate((ALICE, 0)):
            root = Path(folder) / str(number)
            for user in (first, 0, ALICE):
                with become(user):
                    workflow = Workflow("w", dir=root)
                    with workflow, workflow.mutex("m"):
                        workflow.append_event("used")
                    if user == 0:
                        workflow.command(name="print")(lambda: [sys.executable, "-c", "print(1)"])()
                    workflow.close()
                assert {path.lstat().st_uid for path in (root, *root.rglob("*"))} == {ALICE}
            assert len([event for event in workflow.record.events if event.type == "used"]) == 3


@needs_root
def test_root_keeps_what_it_makes_in_another_users_folder(tmp_path: Path) -> None:
    """Without sudo the user is not trusted, so that root's own records are not given away."""
    os.chown(tmp_path, ALICE, ALICE)
    use(tmp_path / "root")
    assert {path.lstat().st_uid for path in (tmp_path / "root").rglob("*")} == {0}
    use(tmp_path / "root")


def test_rights_of_other_users_are_taken_away(root: Path) -> None:
    """Folders and files that others may write are closed to them at the opening; the root itself stays as it is."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    workflow = Workflow("w", dir=root)
    workflow.append_event("opened")
    folders = [path for path in root.rglob("*") if path.is_dir()]
    assert {mode(path) for path in folders} == {0o700}
    assert {mode(path) for path in root.rglob("w-*.journal")} == {0o600}
    assert {mode(path) for path in root.rglob("*lock")} == {0o600}
    assert mode(root) == 0o777
    workflow.close()


def test_log_that_was_made_before_is_closed_to_others(tmp_path: Path) -> None:
    """What a command prints does not go into a file that others can read or write."""
    workflow = Workflow("w", dir=tmp_path)
    result = workflow.command(name="print")(lambda: [sys.executable, "-c", "print(1)"])()
    log = Path(result.log_path)
    workflow.reset("print")
    log.chmod(0o666)
    LogFile.append(str(log)).close()
    assert mode(log) == 0o600
    workflow.close()


@needs_root
def test_log_of_another_user_is_refused(tmp_path: Path) -> None:
    """A log that another user has made beforehand is not written to."""
    log = tmp_path / "step.log"
    log.touch()
    os.chown(log, MALLORY, MALLORY)
    with pytest.raises(StoreError, match=f"belongs to user {MALLORY}"):
        LogFile.append(str(log))
    assert log.read_bytes() == b""
