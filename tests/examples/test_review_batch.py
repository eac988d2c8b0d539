"""The example of a batch of reviews: after any interruption, each review is paid for once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import DEADLINE, wait_until, without_log

from iso_orchestrator import WorkflowNotFoundError, WorkflowRecord, list_workflows, read_workflow_record
from iso_orchestrator.examples.review_batch import SAMPLE, main

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
ITEMS = [
    {"repository": "shop", "subject": "prices are floats"},
    {"repository": "shop", "subject": 'a cart, and "no" coupon'},
    {"repository": "mailer", "subject": "retries send twice"},
]


class Batch:
    """A place to run the example in, and the log of its agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "reviews.jsonl"
        self._log = folder / "log"

    def start(self, *args: object, agent: str = "ok", seconds: float = 0.05) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "iso_orchestrator.examples.review_batch", *map(str, args)],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "STAND_IN_LOG": str(self._log),
                "STAND_IN_AGENT": agent,
                "STAND_IN_SECONDS": str(seconds),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, *args: object, agent: str = "ok") -> tuple[int, str, str]:
        process = self.start(*args, agent=agent)
        out, err = process.communicate(timeout=3 * DEADLINE)
        return process.returncode, out, without_log(err)

    def rows(self) -> list[dict[str, Any]]:
        """The results, one an item."""
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]

    def runs(self) -> list[dict[str, Any]]:
        """The agent's runs."""
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def record(self) -> WorkflowRecord | None:
        found = list_workflows(dir=self.folder / ".iso-orchestrator")
        try:
            return read_workflow_record(found[0].workflow_id, dir=self.folder / ".iso-orchestrator") if found else None
        except WorkflowNotFoundError:
            return None

    def done(self) -> set[str]:
        """The steps that are recorded as completed."""
        record = self.record()
        return {step.name for step in record.steps.values() if step.status == "completed"} if record else set()


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def prompt(item: dict[str, str]) -> str:
    return f"Review the change {item['subject']!r} in the repository {item['repository']}. Answer in three sentences."


def row(item: dict[str, str]) -> dict[str, object]:
    """The result of a review by the stand-in."""
    return {**item, "outcome": "ok", "review": f"Done: {prompt(item)}", "cost_usd": 0.001}


def written(folder: Path, items: Sequence[dict[str, str]], suffix: str) -> Path:
    """A file of items."""
    path = folder / f"items.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, items)) + "\n\n")
    else:
        quoted = [[value.replace('"', '""') for value in item.values()] for item in items]
        lines = [list(items[0]), *([f'"{value}"' for value in values] for values in quoted)]
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_each_item_is_reviewed_once(batch: Batch, suffix: str) -> None:
    """The results are in the items' order, and a second run prints the same and runs no agent."""
    items = written(batch.folder, ITEMS, suffix)
    code, out, err = batch.run(items)
    assert (code, err) == (0, "")
    assert "3 of 3 reviewed" in out
    assert batch.rows() == [row(item) for item in ITEMS]
    assert sorted(run["prompt"] for run in batch.runs()) == sorted(map(prompt, ITEMS))
    batch.results.unlink()
    assert batch.run(items) == (0, out, "")
    assert batch.rows() == [row(item) for item in ITEMS]
    assert len(batch.runs()) == len(ITEMS)


def test_a_killed_batch_continues_where_it_was(batch: Batch) -> None:
    """A finished review is not repeated, a running one is resumed in its session, and no agent is left."""
    process = batch.start(seconds=0.3)
    wait_until(lambda: len(batch.done()) >= 2 and len(batch.runs()) > len(batch.done()), what="two reviews, and more")
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGKILL
    done, before = batch.done(), batch.runs()
    code, out, err = batch.run()
    assert (code, err) == (0, "")
    assert f"{len(SAMPLE)} of {len(SAMPLE)} reviewed" in out
    assert batch.rows() == [row(item) for item in SAMPLE]
    names = {prompt(item): f"review:{item['repository']}:{item['subject']}" for item in SAMPLE}
    counts = Counter(names[run["prompt"]] for run in batch.runs())
    assert {name for name, count in counts.items() if count == 1} >= done
    begun = {run["prompt"]: run["session"] for run in before if names[run["prompt"]] not in done}
    for run in batch.runs()[len(before) :]:
        assert run["session"] == begun.get(run["prompt"], run["session"])
    assert [run["pid"] for run in batch.runs() if is_running(run["pid"])] == []


def test_two_at_a_time_and_one_at_a_time_per_repository(batch: Batch) -> None:
    """Two reviews run at one time, never three, and never two of one repository."""
    assert batch.run()[0] == 0
    record, running, most = batch.record(), list[str](), 0
    assert record is not None
    for event in record.events:
        assert isinstance(event.detail, dict) or not event.type.startswith("step.")
        if event.type == "step.started":
            running.append(str(event.detail["step"]))
        elif event.type == "step.completed":
            running.remove(str(event.detail["step"]))
        repositories = [name.split(":")[1] for name in running]
        assert len(repositories) == len(set(repositories))
        most = max(most, len(running))
    assert most == 2


def test_a_failure_is_a_result_too(batch: Batch) -> None:
    """The other items are reviewed, the exit code is 1, and the next run tries the failed one again."""
    items = written(batch.folder, ITEMS, "jsonl")
    code, out, err = batch.run(items, "--parallel", "1", agent="fails,fails,ok")
    assert (code, err) == (1, "")
    assert "2 of 3 reviewed" in out
    failed, *rest = batch.rows()
    assert (failed["outcome"], failed["repository"]) == ("failed", "shop")
    assert "the model is not there" in failed["error"]
    assert rest == [row(item) for item in ITEMS[1:]]
    assert batch.run(items)[0] == 0
    assert batch.rows() == [row(item) for item in ITEMS]
    assert len(batch.runs()) == 5


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.tsv", None, "No such file"),
        ("items.tsv", b"repository\nshop\n", "item 1 has no subject"),
        ("items.tsv", b"repository\tsubject\nshop\tx\n\tx\n", "item 2 has no repository"),
        ("items.tsv", b"repository\tsubject\nshop\tx\ty\n", "item 1 has a value that is no text, or more"),
        ("items.tsv", b"repository\tsubject\nshop\n", "item 1 has a value that is no text, or more"),
        ("items.tsv", b"repository\tsubject\nshop\tcaf\xe9\n", "can't decode byte 0xe9"),
        ("items.jsonl", b'{"repository": "shop", "subject": "x"}\n\n{oops\n', "line 3 is no JSON"),
        ("items.jsonl", b'["shop", "x"]\n', "item 1 has a value that is no text"),
        ("items.jsonl", b'{"repository": "shop", "subject": 1}\n', "item 1 has a value that is no text"),
        ("items.jsonl", b'{"repository": " ", "subject": ""}\n', "item 1 has no repository and no subject"),
    ],
)
def test_bad_items_are_refused_before_any_is_reviewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, says: str
) -> None:
    """One line has the file, the item, and what is wrong with it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        main([str(path)])
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == ([path] if content is not None else [])


def test_a_missing_folder_for_results_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped folder is found before an hour of reviews, and not after it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no such folder"):
        main(["--results", "nowhere/reviews.jsonl"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["--parallel", "0"], ["--parallel", "two"], ["--agent", "nobody"]])
def test_wrong_usage_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    """No file is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []
