"""What `verify` and `repair` say, for people and as JSON."""

from __future__ import annotations

from collections import Counter

from iso_orchestrator.record.markup import escape_terminal
from iso_orchestrator.record.model import Json
from iso_orchestrator.store import Store
from iso_orchestrator.store.maintenance import Difference, FileCheck, RepairReport, Verdict, WorkflowCheck
from iso_orchestrator.views.report import json_text

__all__ = ["EXIT_CODES", "REPAIR_HELP", "VERIFY_HELP", "repaired_text", "verify"]

EXIT_CODES = {Verdict.SOUND: 0, Verdict.TORN: 0, Verdict.REFUSED: 3, Verdict.CONFLICT: 1, Verdict.DAMAGED: 1}

VERIFY_HELP = """
Says of every file what is the matter with it, and where, in bytes. Nothing is locked, made or changed, and processes
that are at work are in nobody's way.

  sound     it is as it was written
  torn      its end was cut or mangled by a crash, or is being written now: no damage, nothing that anybody was told to
            be recorded is lost, and the next opening deals with it
  refused   it cannot be looked at: no right to, not a regular file, or written by a newer release
  conflict  snapshot and journal are sound and do not belong together: another program wrote the snapshot
  damaged   what was recorded cannot be read; `repair` brings back what is before the damage

exit codes: 0 sound or torn; 1 damaged or in conflict; 2 wrong usage; 3 something could not be checked, and nothing that
could be is damaged
"""

REPAIR_HELP = """
Makes a damaged workflow one that opens. A sound one, or one that is only torn, is left as it is. The files are kept as
they were, beside the new ones, as NAME.kept-1 and so on, until `delete` removes the workflow. Refused while a process
uses the workflow.

A damaged journal: the record is what the snapshot and all facts before the damage make. Facts behind it are not in the
record, however well they can be read, since what they rest on is gone; steps that they completed are named, and run
again. No lease's token is handed out twice.

A snapshot that another program (the npm package) wrote under a journal: with --merge-snapshot, and not without it, the
journal's facts are taken in on top of that snapshot. Steps, state, heartbeats and leases that only one side has are
kept, and so are all events, the journal's behind the snapshot's. What both have, and not alike, is named, with whose
was taken: of a step the completed one; else the journal's where the other program has not changed it since the journal
began, by the clocks of both; of heartbeats, leases and the status the later one. A step or state that both changed is
for you to decide: nothing is done before you say --prefer journal or --prefer snapshot. The other side's is lost to
the record, and is in the files that are kept.

A damaged or missing snapshot: refused, unless --without-snapshot says to take what the journal alone has. What only the
snapshot had is lost: the initial state, and all that happened before the journal began; tokens of leases that the
journal does not speak of begin anew.

exit codes: 0 it opens now, or did before; 1 refused, and nothing was changed; 2 wrong usage
"""


def verify(store: Store, workflow_id: str | None, *, as_json: bool) -> tuple[str, int]:
    """Check a workflow, or all of the store; the text of the report, and the exit code.

    Raises:
        StoreError: The store cannot be looked at.
        WorkflowNotFoundError: There is no such workflow.
    """
    root = store.display_name
    checks = list(store.verify(workflow_id))
    worst = Verdict.worst(check.verdict for check in checks)
    if as_json:
        text = json_text({"root": root, "verdict": worst.value, "workflows": [_check_json(check) for check in checks]})
    else:
        text = _checks_text(root, checks, every_file=workflow_id is not None)
    return text, EXIT_CODES[worst]


def repaired_text(workflow_id: str, done: RepairReport, *, as_json: bool) -> str:
    """What a repair did."""
    if as_json:
        return json_text(_repaired_json(workflow_id, done))
    lines = [_action(done)]
    lines += [f"not in the record: facts {first} to {last}, as far as is known" for first, last in done.lost]
    if done.unread:
        lines.append(f"not in the record: the last {done.unread} bytes of the journal")
    lines += [f"completed among them, will run again: step {_quoted(step)}" for step in done.lost_steps]
    lines += [
        f"left out, since what it speaks of is not there: fact {seq}, {_quoted(name)}" for seq, name in done.left_out
    ]
    lines += [_difference_text(difference) for difference in done.differences]
    lines += [f"kept as it was: {escape_terminal(path)}" for path in done.kept]
    return "\n".join(lines)


def _checks_text(root: str, checks: list[WorkflowCheck], *, every_file: bool) -> str:
    lines = []
    for check in checks:
        if check.workflow_id is None and check.verdict is Verdict.SOUND and not every_file:
            continue  # locks without a record, and what is none of ours
        named = escape_terminal(check.workflow_id or check.name or root)
        facts = f", {check.facts} facts" if check.facts is not None else ""
        lines.append(f"{check.verdict:<8}  {named}{facts}")
        lines += [_file_text(file) for file in check.files if every_file or file.verdict is not Verdict.SOUND]
    counts = Counter(check.verdict for check in checks if check.workflow_id is not None or check.verdict != "sound")
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]) or "no workflows"
    return "\n".join([*lines, f"{total} in {escape_terminal(root)}"])


def _file_text(file: FileCheck) -> str:
    place = f" at byte {file.offset}" if file.offset is not None else ""
    return f"    {escape_terminal(file.path)}: {file.verdict}{place}: {escape_terminal(file.message)}"


def _check_json(check: WorkflowCheck) -> dict[str, Json]:
    return {
        "name": check.name,
        "workflowId": check.workflow_id,
        "verdict": check.verdict.value,
        "facts": check.facts,
        "files": [
            {"path": file.path, "verdict": file.verdict.value, "offset": file.offset, "says": file.message}
            for file in check.files
        ],
    }


def _action(done: RepairReport) -> str:
    return {
        "nothing": "nothing is damaged, nothing was changed",
        "repaired": f"repaired: the record has all facts up to {done.facts}",
        "merged": "merged: the record has the snapshot's and the journal's",
        "rebuilt": f"rebuilt from the journal alone: what only the snapshot had is lost; the last fact is {done.facts}",
    }[done.action]


def _difference_text(difference: Difference) -> str:
    what = f"{difference.what} {_quoted(difference.name)}" if difference.name else difference.what
    return f"both have the {what}: the {difference.taken}'s was taken"


def _quoted(text: str) -> str:
    return escape_terminal(repr(text))


def _repaired_json(workflow_id: str, done: RepairReport) -> dict[str, Json]:
    return {
        "workflowId": workflow_id,
        "deed": done.action,
        "facts": done.facts,
        "lost": [list(gap) for gap in done.lost],
        "unreadBytes": done.unread,
        "lostSteps": done.lost_steps,
        "left": [{"fact": seq, "of": name} for seq, name in done.left_out],
        "differences": [
            {"what": it.what, "name": it.name, "journal": it.journal, "snapshot": it.snapshot, "taken": it.taken}
            for it in done.differences
        ],
        "kept": done.kept,
    }
