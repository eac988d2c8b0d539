"""The data of a timeline as JSON, in columns, for the script `timeline.js`. All texts are made harmless here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from heapq import nlargest
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.history import AttemptSpan, History, Outcome, StepHistory, WaitFor, WaitSpan, seconds_in
from iso_orchestrator.record.model import ErrorInfo, Json
from iso_orchestrator.text import count_text, money_text
from iso_orchestrator.views.causes import folded, shortened
from iso_orchestrator.views.drawing import Clock, gap_text, named_gaps

T = TypeVar("T")

DETAILED = 20_000
"""Steps; of more than that only the important ones have results and logs in the file."""

RESULT = 600  # characters of a result that are shown
_ERROR = 4_000  # characters of a message or of a traceback
_LONGEST = 500  # steps whose details are kept in a file that gets too large
_ERRORS = 60  # that are kept then

# As `timeline.js` counts them.
_KINDS = {
    Outcome.COMPLETED: 0,
    Outcome.FAILED: 1,
    Outcome.RETRIED: 2,
    Outcome.INTERRUPTED: 4,
    Outcome.RUNNING: 5,
    WaitFor.LIMIT: 6,
    WaitFor.BACKOFF: 7,
    WaitFor.KEY: 8,
    WaitFor.PROCESS: 9,
}
_MET_LIMIT = 3
STATES = [Outcome.FAILED, Outcome.RUNNING, Outcome.WAITING, Outcome.INTERRUPTED, Outcome.COMPLETED]
"""The states of steps, those that need attention first."""
_RESET = len(STATES)


@attrs.frozen
class Trim:
    """What is left out of a file that would be too large, and what its foot says about that."""

    name: str
    apply: Callable[[dict[str, Any]], None]


def timeline_data(
    history: History, clock: Clock, *, tails: Mapping[str, str], results: bool, logs: bool
) -> dict[str, Any]:
    """Make the data of a timeline.

    Args:
        history: Of the workflow.
        clock: Its zone.
        tails: The last words of logs, by the names of their steps.
        results: Whether results are in it.
        logs: Whether the paths of logs are in it.
    """
    errors, groups, keys, texts = _Table[ErrorInfo](), _Table[str](), _Table[str](), _Table[str]([""])
    steps = history.steps
    kept = None if len(steps) <= DETAILED else _important(history)
    numbers = {step.name: index for index, step in enumerate(steps)}
    gaps, is_squeezed = named_gaps(history)
    ms = _Milliseconds(history.begun)
    offset = clock.zone.utcoffset(history.begun)
    found: dict[str, Any] = {
        "shellId": shlex.quote(escape_terminal(history.workflow_id)),
        "start": round(history.begun.timestamp() * 1000),
        "end": round(max(history.ended, history.begun).timestamp() * 1000),
        "offset": 0 if offset is None else round(offset.total_seconds() / 60),
        "zone": clock.name,
        "workers": max(1, history.totals.workers),
        "isSqueezed": is_squeezed,
        "gaps": [
            {
                "begin": ms(gap.begun),
                "end": ms(gap.ended),
                "words": gap_text(gap),
                "isWithoutProcess": gap.is_without_process,
            }
            for gap in gaps
        ],
        "runs": [
            {"begin": ms(run.begun), "end": ms(run.ended or history.now), "died": run.has_died, "isAfterDeath": after}
            for run, after in zip(history.runs, [False, *(run.has_died for run in history.runs)], strict=False)
        ],
        "steps": {
            "state": [_RESET if step.is_reset else STATES.index(step.outcome) for step in steps],
            "name": [escape_terminal(step.name) for step in steps],
            "group": [groups.index(step.group) for step in steps],
            "key": [-1 if step.key is None else keys.index(step.key) for step in steps],
            "cost": [_cost_of(step) for step in steps],
            "item": _differences(-1 if step.item is None else step.item for step in steps),
            "batch": [-1 if step.batch is None else step.batch for step in steps],
            "number": [step.number for step in steps],
        },
        "totals": {batch.number: batch.total for batch in history.batches},
        "attempts": _attempts(history, ms, numbers, errors),
        "waits": _waits(history, ms, numbers, texts),
        "details": {
            index: detail
            for index, step in enumerate(steps)
            if (kept is None or index in kept)
            and (detail := _detail(step, tails.get(step.name), results=results, logs=logs))
        },
        "groups": [escape_terminal(group) for group in groups.values],
        "keys": [escape_terminal(key) for key in keys.values],
        "texts": [escape_terminal(text) for text in texts.values],
        "errors": [_error(error) for error in errors.values],
    }
    _drop_empty(found["steps"], key=-1, cost=0, batch=-1)
    if found["steps"]["number"] == list(range(1, len(steps) + 1)):
        del found["steps"]["number"]
    return found


def trims(history: History) -> Sequence[Trim]:
    """What can be left out, what is missed least first."""
    important = _important(history)
    failed = {index for index in important if history.steps[index].outcome is Outcome.FAILED}

    def keep_details(data: dict[str, Any], indexes: set[int]) -> None:
        data["details"] = {index: detail for index, detail in data["details"].items() if index in indexes}

    def keep_errors(data: dict[str, Any]) -> None:
        data["errors"] = [error if index < _ERRORS else _LEFT_OUT for index, error in enumerate(data["errors"])]
        keep_details(data, set(sorted(failed)[:_ERRORS]))

    return [
        Trim(f"the results and logs of all but the {_LONGEST} longest steps", lambda d: keep_details(d, important)),
        Trim("the results and logs of all steps that did not fail", lambda d: keep_details(d, failed)),
        Trim(f"all errors but {_ERRORS}", keep_errors),
        Trim("the names of the steps", lambda d: d["steps"].pop("name")),
    ]


def _important(history: History) -> set[int]:
    """The steps that failed, and those with the most work."""
    failed = {index for index, step in enumerate(history.steps) if step.outcome is Outcome.FAILED}
    work = [(seconds_in(step.attempts, history.now), index) for index, step in enumerate(history.steps)]
    return failed | {index for _, index in nlargest(_LONGEST, work)}


_LEFT_OUT = {"name": "Error", "message": "left out of this file: `show` has it"}


def safe_lines(text: str) -> str:
    r"""Make a text of several lines harmless; its lines stay.

    Example:
        >>> safe_lines("one\ntwo\a")
        'one\ntwo\\x07'
    """
    return "\n".join(escape_terminal(line) for line in text.expandtabs(4).splitlines())


def result_text(result: Json) -> str:
    """The first characters of a result."""
    text = ""
    for part in json.JSONEncoder(indent=1, ensure_ascii=False).iterencode(result):
        text += part
        if len(text) > RESULT:
            return safe_lines(text[:RESULT]) + " …"
    return safe_lines(text)


class _Table(Generic[T]):
    """Values, each of them once."""

    def __init__(self, values: Iterable[T] = ()) -> None:
        self.values = list(values)
        self._places = {value: place for place, value in enumerate(self.values)}

    def index(self, value: T) -> int:
        place = self._places.setdefault(value, len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


class _Milliseconds:
    """Turns times into milliseconds after the begin of the history."""

    def __init__(self, begun: datetime) -> None:
        self._begun = begun

    def __call__(self, moment: datetime) -> int:
        return round((moment - self._begun).total_seconds() * 1000)


def _attempts(
    history: History, ms: _Milliseconds, numbers: Mapping[str, int], errors: _Table[ErrorInfo]
) -> dict[str, list[Any]]:
    spans = sorted((span for step in history.steps for span in step.attempts), key=lambda span: span.begun)
    allowed = {step.name: step.attempts_allowed or 0 for step in history.steps}
    columns: dict[str, list[Any]] = {
        "kind": [_MET_LIMIT if span.limit_until is not None else _KINDS[span.outcome] for span in spans],
        "number": [span.number for span in spans],
        "error": [-1 if span.error is None else errors.index(_without_advice(span.error)) for span in spans],
        "allowed": [allowed[span.step] for span in spans],
        "depth": [span.depth for span in spans],
        "cost": [0 if span.usage is None else span.usage.cost_usd or 0 for span in spans],
        **_times(spans, history, ms, numbers),
    }
    _drop_empty(columns, error=-1, allowed=0, depth=0, cost=0)
    return columns


def _waits(history: History, ms: _Milliseconds, numbers: Mapping[str, int], texts: _Table[str]) -> dict[str, list[Any]]:
    spans = sorted((span for step in history.steps for span in step.waits), key=lambda span: span.begun)
    columns: dict[str, list[Any]] = {
        "kind": [_KINDS[span.kind] for span in spans],
        "subject": [texts.index(span.key or "") for span in spans],
        "until": [-1 if span.until is None else ms(span.until) for span in spans],
        "by": [texts.index(span.met_by or span.holder or "") for span in spans],
        "open": [int(span.ended is None) for span in spans],
        **_times(spans, history, ms, numbers),
    }
    _drop_empty(columns, open=0)
    return columns


def _times(
    spans: Sequence[AttemptSpan | WaitSpan], history: History, ms: _Milliseconds, numbers: Mapping[str, int]
) -> dict[str, list[Any]]:
    """Columns that all bars have."""
    begins = [ms(span.begun) for span in spans]
    return {
        "step": _differences(numbers[span.step] for span in spans),
        "begin": _differences(begins),
        "length": [max(0, ms(span.ended or history.now) - begin) for span, begin in zip(spans, begins, strict=True)],
        "worker": [span.worker for span in spans],
    }


def _differences(values: Iterable[int]) -> list[int]:
    """Each value less the one before it: small numbers, which compress well."""
    return [later - earlier for earlier, later in pairwise([0, *values])]


def _drop_empty(columns: dict[str, list[Any]], **nothing: int) -> None:
    """Drop the columns that hold one value alone, which says nothing."""
    for name, value in nothing.items():
        if all(each == value for each in columns[name]):
            del columns[name]


def _detail(step: StepHistory, tail: str | None, *, results: bool, logs: bool) -> dict[str, Any]:
    usages = [span.usage for span in step.attempts if span.usage is not None]
    last = usages[-1] if usages else None
    cost = _cost_of(step)
    tokens = [
        f"{count_text(count)} {word}"
        for count, word in (() if last is None else ((last.input_tokens, "in"), (last.output_tokens, "out")))
        if count is not None
    ]
    facts = [
        ("within", step.parent),
        ("version", step.version),
        ("cost", f"{money_text(cost)}{f' over {len(usages)} attempts' if len(usages) > 1 else ''}" if cost else None),
        ("tokens", ", ".join(tokens)),
        ("session", step.session_id),
    ]
    log = next((span.log for span in reversed(step.attempts) if span.log is not None), step.log) if logs else None
    detail = {
        "facts": [(name, escape_terminal(value)) for name, value in facts if value],
        "log": log and short_path(log),
        "tail": tail,
        "result": result_text(step.result) if results and step.outcome is Outcome.COMPLETED else None,
    }
    return {name: value for name, value in detail.items() if value}


def short_path(path: str) -> str:
    """A path, with `~` for the home folder."""
    home = f"{Path.home()}/"
    return escape_terminal(f"~/{path.removeprefix(home)}" if path.startswith(home) else path)


def _error(error: ErrorInfo) -> dict[str, str]:
    found = {"name": escape_terminal(error.name), "message": safe_lines(error.message[:_ERROR])}
    if error.stack:
        found["stack"] = safe_lines(folded(error.stack)[-_ERROR:])
    return found


def _without_advice(error: ErrorInfo) -> ErrorInfo:
    """The error without the path of its log, which is that of an attempt: errors of several attempts become equal."""
    short = shortened(error.message)
    stack = error.stack and error.stack.replace(error.message, short)
    return attrs.evolve(error, message=short, stack=stack)


def _cost_of(step: StepHistory) -> float:
    costs = (span.usage.cost_usd for span in step.attempts if span.usage is not None)
    return round(sum(cost for cost in costs if cost is not None), 6)
