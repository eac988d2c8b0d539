"""Row 18: what any release, and the npm package, has written is read to the same record for ever.

`golden/make.py` and `golden/make_npm.mjs` made the files, once. A new format gets a folder of its own beside the old
ones, and a line in HELD; what is there is never changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from reliability.golden.make import read
from reliability.tiers import Figures
from support import new_fold, only, tree

from iso_orchestrator import FileStore, StoreError

GOLDEN = Path(__file__).parent / "golden"

HELD = {
    "format-1": "03a8b9f97c0f05428906397835071624644cbab515e1630a434d23f76d774e76",
    "npm-0.2.0": "41eb2127690e8f761833eb5910c225aae1cd19a673c1dbf06d0b1fc464eba55e",
}
"""The SHA-256 of all that is in a folder, names and bytes."""

LATER = {"step.abandoned", "steps.reset", "command.begun", "step.interrupted"}
"""Events that older releases did not make of the same facts."""

CASES = sorted(path.parent for path in GOLDEN.glob("*/*/expected"))


def as_written_down(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """What was read without what today's release tells of old facts in addition: events, and keys of their details."""
    if "error" in found or "error" in expected:
        return found
    events = []
    for old in expected["record"]["events"]:
        while (event := found["record"]["events"].pop(0))["type"] in LATER and event["type"] != old["type"]:
            pass
        if event.get("detail"):
            known = {key: value for key, value in event["detail"].items() if key in (old.get("detail") or {})}
            event = {**event, "detail": known} if known else {k: v for k, v in event.items() if k != "detail"}
        events.append(event)
    left = [event for event in found["record"]["events"] if event["type"] not in LATER]
    return {**found, "record": {**found["record"], "events": events + left}}


def digest(folder: Path) -> str:
    sums = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        sums.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return sums.hexdigest()


@pytest.fixture(params=CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def case(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture
def root(case: Path, tmp_path: Path) -> Path:
    """A root with the case's files, and nothing else."""
    root = tmp_path / "root"
    (root / "workflows").mkdir(parents=True)
    for path in case.iterdir():
        if path.name != "expected":
            shutil.copy(path, root / "workflows")
            (root / "workflows" / path.name).chmod(0o600)  # or an opening would do that
    return root


@pytest.fixture
def expected(case: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case / "expected").read_text())
    return found


@pytest.fixture
def workflow_id(root: Path) -> str:
    """The id, as the snapshot says it, in whatever format."""
    named: str = json.loads(only((root / "workflows").glob("*.json")).read_bytes())["workflowId"]
    return named


@pytest.mark.parametrize("name", HELD)
def test_old_files_never_change(name: str) -> None:
    """What is written once is the same for ever, names and bytes."""
    assert digest(GOLDEN / name) == HELD[name]


def test_every_folder_is_held() -> None:
    """No folder of files is without its sum."""
    assert {path.parent.name for path in CASES} == set(HELD)


def test_a_reader_gets_what_is_written_down(
    root: Path, workflow_id: str, expected: dict[str, Any], figures: Figures
) -> None:
    """Each file is read to the record, or refused with the error, that stands beside it; reading changes nothing."""
    before = tree(root)
    assert as_written_down(read(str(root), workflow_id), expected) == expected
    assert tree(root) == before
    figures.add(18, "golden files of all formats", 1)


def test_going_on_from_old_files_loses_nothing(root: Path, workflow_id: str, expected: dict[str, Any]) -> None:
    """Opening and closing gives files of today with the same record in them; what is refused is left as it is."""
    store, before = FileStore(root), tree(root / "workflows")
    if "error" in expected:
        with pytest.raises(StoreError) as refused:
            store.open(workflow_id, lambda: new_fold(workflow_id))
        assert type(refused.value).__name__ == expected["error"]
        assert tree(root / "workflows") == before
        return
    for _ in range(2):
        log, projection = store.open(workflow_id, lambda: new_fold(workflow_id))
        log.detach(projection)
        assert as_written_down(read(str(root), workflow_id), expected) == expected
