"""What a notebook shows: a workflow at a glance, without script, and its timeline in a frame."""

from __future__ import annotations

import html
from datetime import UTC, datetime

from iso_orchestrator.record.history import History, Outcome
from iso_orchestrator.record.reconstruction import history_of
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.store import Store
from iso_orchestrator.text import counted, money_text
from iso_orchestrator.views.drawing import INLINE, Clock, drawing
from iso_orchestrator.views.terminal import SIGNS
from iso_orchestrator.views.timeline import BUDGET
from iso_orchestrator.views.timeline_file import read_page, write_file
from iso_orchestrator.views.timeline_words import duration, error_of, safe
from iso_orchestrator.views.words import failed_steps, status_words

_FAILURES = 10
_TEXT = 300  # characters of a name or of an error
_BARS = 1_500  # of the picture: about 40 kB
_COLOURS = {
    Outcome.FAILED: "#c9372c",
    Outcome.RUNNING: "#1f6fc4",
    Outcome.INTERRUPTED: "#6b7079",
    Outcome.COMPLETED: "#3f8a77",
}
_CELL = "text-align:left;vertical-align:top"


class Timeline:
    """The timeline of a workflow, as it was when this was made: a notebook shows it in a frame.

    Attributes:
        html: The whole file.

    Example:
        >>> from iso_orchestrator import Workflow
        >>> workflow = Workflow("batch", store="memory://timeline")
        >>> with workflow:
        ...     workflow.run_step("fetch", lambda: 1)
        1
        >>> workflow.timeline().html[:15]
        '<!DOCTYPE html>'
    """

    def __init__(self, store: Store, workflow_id: str, now: datetime) -> None:
        self.html, self._history = read_page(store, workflow_id, now=now, timeline_first=True)

    def __repr__(self) -> str:
        return f"<Timeline of {self._history.workflow_id!r}, {len(self.html)} characters>"

    def write(self, path: str) -> None:
        """Write it to a file, in place of what is there.

        Raises:
            StoreError: The file cannot be written.
        """
        write_file(path, self.html)

    def _repr_html_(self) -> str:
        if len(self.html.encode()) > BUDGET:
            return glance(self._history)
        # The frame has an origin of its own: its script reaches neither the notebook nor the network.
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" width="100%" height="760" '
            'style="border:0" title="Timeline"></iframe>'
        )


def record_html(record: WorkflowRecord) -> str:
    """Show the workflow of a record at a glance."""
    return glance(history_of(record, now=datetime.now(UTC)))


def glance(history: History) -> str:
    """The state, numbers, picture and first failures of a workflow: less than 60 kB, with inline attributes alone."""
    outcome, words = status_words(history)
    totals = history.totals
    numbers = [
        f"<b>{totals.steps.get(Outcome.COMPLETED, 0)}</b> of {counted(sum(totals.steps.values()), 'step')}",
        f"<b>{counted(sum(totals.attempts.values()), 'attempt')}</b>",
        f"<b>{duration(totals.took)}</b>",
        *([f"<b>{money_text(totals.cost)}</b>"] if totals.cost is not None else []),
        *([f"resumed, <b>{duration(totals.kept_work)}</b> saved"] if totals.kept_steps else []),
    ]
    return (
        f'<div><div><b style="font-size:1.15em">{safe(history.workflow_id[:_TEXT])}</b> '
        f"{_status(outcome, words)}</div>"
        f"<div>{' · '.join(numbers)}</div>"
        f"{drawing(history, Clock.of(history, utc=False), INLINE, bars=_BARS)}{_failures(history)}</div>"
    )


def _status(outcome: Outcome | None, words: str) -> str:
    return safe(words) if outcome is None else f'<b style="color:{_COLOURS[outcome]}">{SIGNS[outcome]} {words}</b>'


def _failures(history: History) -> str:
    failed = failed_steps(history)
    rows = "".join(
        f'<tr><td style="{_CELL}">✕ #{step.number}</td><td style="{_CELL}">{safe(step.name[:_TEXT])}</td>'
        f'<td style="{_CELL}">{len(step.attempts)}</td>'
        f'<td style="{_CELL}">{safe(f"{error_of(step).name}: {error_of(step).message}"[:_TEXT])}</td></tr>'
        for step in failed[:_FAILURES]
    )
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("", "step", "attempts", "error"))
    more = f"<div>and {len(failed) - _FAILURES} more</div>" if len(failed) > _FAILURES else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}" if rows else ""
