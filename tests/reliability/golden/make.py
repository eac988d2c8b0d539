"""Writes the files of `format-1`, and beside each pair what is read from it: a record, or an error.

Made once, with the release that the format is of; what is there is never made again. A new format gets a new folder.

    PYTHONPATH=. python tests/reliability/golden/make.py tests/reliability/golden/format-1
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

from iso_orchestrator import CorruptRecordError, FileStore, StoreError
from iso_orchestrator.codec import record_to_json
from iso_orchestrator.record import facts as f
from iso_orchestrator.record.model import ErrorInfo, WorkflowStatus
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import WorkflowLog
from iso_orchestrator.store.names import record_names

ID = "Golden, № 1/a"
NAME = record_names(ID).short
SNAPSHOT, JOURNAL = f"{NAME}.json", f"{NAME}.journal"
OWNER = "5b1c0e8e2f4a9d37"
ERROR = ErrorInfo("ValueError", "no \x1b[31m", "Traceback: as it was", "E_NO", "why")


def at(seconds: float) -> datetime:
    return datetime(2026, 5, 14, 12, 0, 0, 7000, tzinfo=UTC) + timedelta(seconds=seconds)


FACTS: list[f.Fact] = [
    f.RunStarted(at(0), "run 1", OWNER, 4711, "host"),
    f.StepStarted(at(1), "fetch:1", 1, OWNER, "key", "2"),
    f.StepFailed(at(2), "fetch:1", ERROR, retrying=True),
    f.StepStarted(at(3), "fetch:1", 2, OWNER, "key", "2"),
    f.StepCompleted(at(4), "fetch:1", {"n": [1, 2.5, -0.5, 10**20, None, True], "text": "ünï \0 \ud800 😀"}, {"n": 1}),
    f.StepStarted(at(5), "send", 1, OWNER),
    f.StepFailed(at(6), "send", ErrorInfo("KeyError", "'x'")),
    f.StepStarted(at(7), "left", 1, OWNER),
    f.StepAbandoned(at(8), "left"),
    f.StepStarted(at(9), "forgotten", 1, OWNER),
    f.StepCompleted(at(10), "forgotten", None),
    f.StepsReset(at(11), ("forgotten", "never there")),
    f.StepStarted(at(12), "nothing", 1, OWNER),
    f.StepCompleted(at(13), "nothing", None),
    f.StateUpdated(at(14), {"n": 2, "deep": [[{}]]}),
    f.EventAppended(at(15), "mail.sent", "to a", {"n": 1}),
    f.EventAppended(at(15), "bare"),
    f.HeartbeatRecorded(at(16), "worker", {"phase": "one"}),
    f.HeartbeatRecorded(at(17), "quiet", None, silent=True),
    f.LeaseTouched(
        at(18), "slot", "alpha", 30.0, at(18), at(48), 1, renewed=False, detail=[1], boot_id="b", boot_expires=48.5
    ),
    f.LeaseTouched(at(19), "slot", "alpha", 1.5, at(18), at(20.5), 1, renewed=True),
    f.LeaseReleased(at(20), "slot"),
    f.LeaseTouched(at(21), "slot", "beta", 60.0, at(21), at(81), 2, renewed=False, boot_id="b", boot_expires=81.25),
    f.RunStarted(at(22), "run 2", OWNER, 4711, "host"),
    f.RunEnded(at(23), "run 1"),
    f.RunDied(at(24), "run 2"),
    f.StatusSet(at(25), WorkflowStatus.RUNNING),
    f.StatusSet(at(26), WorkflowStatus.FAILED, ERROR),
]


COMMAND_FACTS: list[f.Fact] = [
    f.CommandsMarked(at(0), "5b1c0e8e2f4a9d375b1c0e8e2f4a9d37"),
    f.StepStarted(at(1), "ask", 1, OWNER),
    f.StepLimited(at(2), "ask", at(3602), "claude"),
    f.StepStarted(at(3), "look", 1, OWNER),
    f.StepLimited(at(4), "look", at(64)),
]


WAITING_FACTS: list[f.Fact] = [
    *COMMAND_FACTS[1:3],
    f.StepWaiting(at(3), "ask too", OWNER, at(3602), "claude"),
    f.StepWaiting(at(4), "look", OWNER, at(64)),
    f.StepWaiting(at(5), "look", OWNER),
]


BEGUN_FACTS: list[f.Fact] = [
    COMMAND_FACTS[0],
    f.StepStarted(at(1), "ask", 1, OWNER),
    f.CommandBegun(at(2), "ask", "1f" * 16, "/logs/ask.1.log"),
    f.StepFailed(at(3), "ask", ERROR),
    f.StepStarted(at(4), "ask", 2, OWNER),
    f.CommandBegun(at(5), "ask", "1f" * 16, "/logs/ask.2.log"),
]


NEW_OWNER = "5b1c0e8e2f4a9d37-4711-1000-5b1c0e8e-2f4a9d37-1f1f1f1f"
USAGE = {"agent": "claude", "outcome": "failed", "costUsd": 0.25, "inputTokens": 3, "outputTokens": 4, "sessionId": "s"}

HISTORY_FACTS: list[f.Fact] = [
    f.RunStarted(at(0), "run 1", NEW_OWNER, 4711, "host", ("python", "a.py"), "/home", f"00-{'1f' * 16}-{'1f' * 8}-01"),
    f.EventAppended(at(1), "batch.started", detail={"batch": 2, "name": "review", "total": 3, "maxParallel": 2}),
    f.StepStarted(
        at(2),
        "ask",
        1,
        NEW_OWNER,
        version="2",
        item=(2, 0),
        of=3,
        parent="all",
        fn="Agent.review",
        if_interrupted="fail",
        timeout=1.5,
    ),
    f.StepFailed(at(3), "ask", ERROR, True, at(5), USAGE),
    f.StepStarted(at(5), "ask", 2, NEW_OWNER, of=3),
    f.StepLimited(at(6), "ask", at(60), "claude", USAGE),
    f.StepWaiting(at(7), "look", NEW_OWNER, at(60), "claude", (2, 1)),
    f.StepStarted(at(60), "ask", 2, NEW_OWNER),
    f.StepCompleted(at(61), "ask", 1, usage={**USAGE, "outcome": "ok"}),
    f.StepStarted(at(62), "look", 1, NEW_OWNER),
    f.RunDied(at(99), "run 1", at(62)),
    f.StepsReset(at(100), ("look",), 4712),
]


def _pair(root: str, facts: list[f.Fact], *, close: bool = False) -> dict[str, bytes]:
    """Snapshot and journal after *facts*, of a process that is there or has left."""
    log, projection = FileStore(root).open(ID, lambda: Projection.new(ID, at(0), {"n": 0}))
    for fact in facts:
        _put(log, projection, fact)
        log.sync(projection.seq)
    files = _files(root)
    log.detach(projection)
    return _files(root) if close else files


def _put(log: WorkflowLog, projection: Projection, fact: f.Fact) -> None:
    log.lock()
    log.append(log.catch_up(projection), [fact])
    log.unlock()


def _files(root: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(root, "workflows").iterdir()}


def _new(root: str) -> dict[str, bytes]:
    return _pair(root, [])


def _every_fact(root: str) -> dict[str, bytes]:
    return _pair(root, FACTS)


def _folded(root: str) -> dict[str, bytes]:
    return _pair(root, FACTS, close=True)


def _folded_and_more(root: str) -> dict[str, bytes]:
    _folded(root)
    return _pair(root, FACTS[14:16])


def _killed_in_a_run(root: str) -> dict[str, bytes]:
    return _pair(root, FACTS[:6])


def _limits_and_commands(root: str) -> dict[str, bytes]:
    _pair(root, COMMAND_FACTS[:3], close=True)
    return _pair(root, COMMAND_FACTS[3:])


def _limits_and_waits(root: str) -> dict[str, bytes]:
    _pair(root, WAITING_FACTS[:3], close=True)
    return _pair(root, WAITING_FACTS[3:])


def _commands_begun(root: str) -> dict[str, bytes]:
    _pair(root, BEGUN_FACTS[:4], close=True)
    return _pair(root, BEGUN_FACTS[4:])


def _history(root: str) -> dict[str, bytes]:
    _pair(root, HISTORY_FACTS[:4], close=True)
    return _pair(root, HISTORY_FACTS[4:])


def _torn(root: str) -> dict[str, bytes]:
    files = _every_fact(root)
    return {**files, JOURNAL: files[JOURNAL][:-40]}


def _snapshot_alone(root: str) -> dict[str, bytes]:
    return {SNAPSHOT: _folded(root)[SNAPSHOT]}


def _fold_broken_off(root: str) -> dict[str, bytes]:
    return {JOURNAL: _every_fact(root)[JOURNAL], SNAPSHOT: _files(root)[SNAPSHOT]}


def _snapshot_of_another_program(root: str) -> dict[str, bytes]:
    files = _folded(root)
    record = json.loads(files[SNAPSHOT])
    record["state"], record["theirs"] = {"by": "another"}, [1]
    return {**files, SNAPSHOT: json.dumps(record, indent=2).encode()}


def _conflict(root: str) -> dict[str, bytes]:
    files = _folded_and_more(root)
    record = json.loads(files[SNAPSHOT])
    record["state"] = {"by": "another"}
    return {**files, SNAPSHOT: json.dumps(record, indent=2).encode()}


def _damaged(root: str) -> dict[str, bytes]:
    files = _every_fact(root)
    return {**files, JOURNAL: files[JOURNAL].replace(b'"attempt":1', b'"attempt":7', 1)}


def _damaged_header(root: str) -> dict[str, bytes]:
    files = _every_fact(root)
    return {**files, JOURNAL: files[JOURNAL].replace(b'"base":0', b'"base":1', 1)}


def _newer_record(root: str) -> dict[str, bytes]:
    return {SNAPSHOT: _folded(root)[SNAPSHOT].replace(b'{"version":1,', b'{"version":2,')}


CASES: dict[str, Callable[[str], dict[str, bytes]]] = {
    "new": _new,
    "every fact": _every_fact,
    "folded": _folded,
    "folded and more": _folded_and_more,
    "killed in a run": _killed_in_a_run,
    "limits and commands": _limits_and_commands,
    "limits and waits": _limits_and_waits,
    "commands begun": _commands_begun,
    "runs, batches and usage": _history,
    "torn tail": _torn,
    "snapshot alone": _snapshot_alone,
    "fold broken off": _fold_broken_off,
    "snapshot of another program": _snapshot_of_another_program,
    "conflict": _conflict,
    "damaged": _damaged,
    "damaged header": _damaged_header,
    "newer record": _newer_record,
}


def read(root: str, workflow_id: str) -> dict[str, Any]:
    """What is read, as it is written down: the record with the npm package's keys, and the leases' tokens."""
    try:
        projection = FileStore(root).read(workflow_id)
    except StoreError as error:
        offset = {"offset": error.offset} if isinstance(error, CorruptRecordError) else {}
        return {"error": type(error).__name__, **offset}
    assert projection is not None
    record = attrs.evolve(projection.record(), is_alive=False)  # which no file tells
    found = {"record": record_to_json(record), "tokens": {key: lease.token for key, lease in record.leases.items()}}
    limits = {key: until.isoformat() for key, until in projection.limits.items()}
    limits |= {step: until.isoformat() for step, until in projection.step_limits.items()}
    found |= {"limits": limits, "commandSeed": projection.command_seed} if limits else {}
    # Not what the facts of a limit make of it, which older files were written down without.
    waits = {step: wait.until.isoformat() for step, wait in projection.waits.items() if step not in projection.steps}
    found |= {"waits": waits} if waits else {}
    logs = {step: command.log for step, command in projection.commands.items()}
    return {**found, "logs": logs} if logs else found


def main(target: str) -> None:
    for name, make in CASES.items():
        folder = Path(target, name)
        if folder.exists():
            continue  # a file of a format stays as it was once written
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as root:
            files = make(root)
            shutil.rmtree(os.path.join(root, "workflows"))
            os.mkdir(os.path.join(root, "workflows"))
            for file, data in files.items():
                Path(root, "workflows", file).write_bytes(data)
                (folder / file).write_bytes(data)
            (folder / "expected").write_text(json.dumps(read(root, ID), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
