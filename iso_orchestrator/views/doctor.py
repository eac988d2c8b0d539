"""The reports of `verify` and `repair`, as text and as JSON."""

from __future__ import annotations

from collections import Counter

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.model import Json
from iso_orchestrator.store import Store
from iso_orchestrator.store.maintenance import Difference, FileCheck, RepairReport, Verdict, WorkflowCheck
from iso_orchestrator.views.exports import indented_json

EXIT_CODES = {Verdict.SOUND: 0, Verdict.TORN: 0, Verdict.REFUSED: 3, Verdict.CONFLICT: 1, Verdict.DAMAGED: 1}


def verify(store: Store, workflow_id: str | None, *, as_json: bool) -> tuple[str, int]:
    """Check the files of a workflow, or of all workflows; the report, and the exit code.

    Raises:
        StoreError: The store cannot be read.
        WorkflowNotFoundError: There is no such workflow.
    """
    root = store.display_name
    checks = list(store.verify(workflow_id))
    worst = Verdict.worst(check.verdict for check in checks)
    if as_json:
        found: list[Json] = [_check_json(check) for check in checks]
        text = indented_json({"root": root, "verdict": worst.value, "workflows": found})
    else:
        text = _checks_text(root, checks, every_file=workflow_id is not None)
    return text, EXIT_CODES[worst]


def repaired_text(workflow_id: str, done: RepairReport, *, as_json: bool) -> str:
    """Report a repair."""
    if as_json:
        return indented_json(_repaired_json(workflow_id, done))
    lines = [_action(done)]
    lines += [f"not in the record: facts {first} to {last}, as far as is known" for first, last in done.lost]
    if done.unread:
        lines.append(f"not in the record: the last {done.unread} bytes of the journal")
    lines += [f"completed in a lost fact, will run again: step {_quoted(step)}" for step in done.lost_steps]
    lines += [
        f"left out, since it refers to something lost: fact {seq}, {_quoted(name)}" for seq, name in done.left_out
    ]
    lines += [_difference_text(difference) for difference in done.differences]
    lines += [f"kept as it was: {escape_terminal(path)}" for path in done.kept]
    return "\n".join(lines)


def _checks_text(root: str, checks: list[WorkflowCheck], *, every_file: bool) -> str:
    lines = []
    for check in checks:
        if check.workflow_id is None and check.verdict is Verdict.SOUND and not every_file:
            continue  # locks without a record, and files of other programs
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
        "merged": "merged: the record has the snapshot's and the journal's facts",
        "rebuilt": f"rebuilt from the journal alone, up to fact {done.facts}: what only the snapshot had is lost",
    }[done.action]


def _difference_text(difference: Difference) -> str:
    what = f"{difference.what} {_quoted(difference.name)}" if difference.name else difference.what
    return f"both sides have the {what}: the {difference.taken}'s was taken"


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
