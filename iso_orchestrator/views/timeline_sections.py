"""The sections of a timeline's page as HTML: what it says without script, too."""

from __future__ import annotations

import html
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise

from iso_orchestrator.record.history import (
    AttemptSpan,
    History,
    Outcome,
    RunSpan,
    StepHistory,
    WaitFor,
    WaitSpan,
    seconds_in,
)
from iso_orchestrator.record.model import ErrorInfo
from iso_orchestrator.text import count_text, counted, money_text
from iso_orchestrator.views.causes import advice, folded, shortened
from iso_orchestrator.views.drawing import CLASSES, Clock, drawing, named_gaps
from iso_orchestrator.views.terminal import NONE, SIGNS
from iso_orchestrator.views.timeline_data import STATES, safe_lines, short_path
from iso_orchestrator.views.timeline_words import (
    causes,
    duration,
    error_of,
    lede,
    safe,
)
from iso_orchestrator.views.words import cost_text, expected_steps, met_first, status_words, wait_text, what_next

_CAUSES, _NAMES = 40, 12  # causes that are listed, and steps of each
_ROWS = 120  # of the table without script
_NOW, _RUNS, _KEYS = 50, 30, 5  # that are listed
_BARS = 5_000  # of the picture without script
_MESSAGE, _STACK = 600, 4_000  # characters

_NUMBER = ' class="number"'
_COLUMNS = ("began", "took", "attempts", "waited", "cost", "key")
_HATCHED = ("try", "lim", "back", "key", "cut")
_HINT = (
    "<kbd>←</kbd> <kbd>→</kbd> <kbd>↑</kbd> <kbd>↓</kbd> attempts, <kbd>f</kbd> next failure, <kbd>+</kbd> "
    "<kbd>\u2212</kbd> <kbd>0</kbd> zoom, <kbd>Ctrl</kbd> wheel zooms, drag moves, <kbd>Enter</kbd> details, "
    "<kbd>/</kbd> filter"
)


class Page:
    """The sections of a page.

    Args:
        history: Of the workflow.
        clock: Names the times.
        tails: The last words of logs, by the names of their steps; those of running steps are shown as what they do.
        logs: Whether the paths of logs are shown.
    """

    def __init__(self, history: History, clock: Clock, tails: Mapping[str, str], *, logs: bool) -> None:
        self.history, self.clock = history, clock
        self._tails, self._logs, self._totals = tails, logs, history.totals
        self._index = {step.name: index for index, step in enumerate(history.steps)}

    def body(self, *, timeline_first: bool = False) -> str:
        """All of it, except the data of the script."""
        what_failed, timeline = self._failures(), self._timeline()
        middle = [timeline, what_failed] if timeline_first else [what_failed, timeline]
        sections = [self._tiles(), self._now(), *middle, self._where(), self._steps(), self._runs()]
        return f"{_hatches()}{self._head()}\n<main>{''.join(sections)}</main>"

    def _head(self) -> str:
        outcome, words = status_words(self.history)
        pill = words if outcome is None else f"{SIGNS[outcome]} {words}"
        span = self.clock.span(self.history.begun, self.history.ended)
        return (
            f'<header class="top"><div class="title"><h1>{safe(self.history.workflow_id)}</h1>'
            f'<span class="pill {outcome or ""}">{safe(pill)}</span></div>'
            f'<p class="lede">{safe(lede(self.history))} <span class="mute">{safe(span)}</span></p></header>'
        )

    def _tiles(self) -> str:
        totals, steps = self._totals, self._totals.steps
        failed, lost = steps.get(Outcome.FAILED, 0), totals.lost
        open_ = steps.get(Outcome.RUNNING, 0) + steps.get(Outcome.WAITING, 0)
        tried = totals.attempts.get(Outcome.RETRIED, 0), totals.attempts.get(Outcome.INTERRUPTED, 0)
        waits = ", ".join(f"{kind.value} {duration(seconds)}" for kind, seconds in totals.waited.items() if seconds)
        tokens = f"{count_text(totals.output_tokens)} tokens out, {count_text(totals.input_tokens)} in"
        cost_failed = f"{money_text(totals.cost_failed)} of it in attempts that failed. " if totals.cost_failed else ""
        kept_cost = f"{money_text(totals.kept_cost)}, " if totals.kept_cost else ""
        tiles = [
            ("Steps", f"{steps.get(Outcome.COMPLETED, 0)}<small> / {expected_steps(self.history)}</small>", [
                f"<em>{failed} failed</em>" if failed else "", f"{open_} under way" if open_ else ""]),
            ("Took", duration(totals.took), [
                f"{duration(totals.work)} of work, {totals.busy:.1f} at a time of {totals.workers}"
                + (f"; no process for {duration(totals.away)}" if totals.away >= 1 else "")]),
            ("Attempts", str(sum(totals.attempts.values())), [
                f"{tried[0]} failed and tried again, {tried[1]} interrupted"]),
            ("Waited", duration(sum(totals.waited.values())), [waits or "for nothing"]),
            ("Cost", NONE if totals.cost is None else money_text(totals.cost), [
                "no agent said" if totals.cost is None else cost_failed + tokens]),
            ("Saved by resuming", duration(totals.kept_work), [
                f"{kept_cost}{counted(totals.kept_steps, 'step')}{f'; {duration(lost)} lost' if lost else ''}"])
            if totals.kept_steps or totals.deaths
            else ("Resumed", "never", [f"{counted(len(self.history.runs), 'run')}, no crash"]),
        ]  # fmt: skip
        return (
            '<div class="tiles">'
            + "".join(
                f'<div class="tile"><h3>{name}</h3><b>{value}</b><p>{", ".join(filter(None, texts))}</p></div>'
                for name, value, texts in tiles
            )
            + "</div>"
        )

    def _now(self) -> str:
        found = [step for step in self.history.steps if step.outcome in {Outcome.RUNNING, Outcome.WAITING}]
        if not found or not self.history.is_alive:
            return ""
        rows = []
        for step in found[:_NOW]:
            if step.outcome is Outcome.WAITING:
                wait = step.waits[-1]
                since, what = wait.begun, wait_text(wait, self.clock.time) + met_first(wait)
            else:
                since, what = step.attempts[-1].begun, self._last_line(step)
            rows.append(
                f'<li><span class="sign {step.outcome.value}" aria-hidden="true">{SIGNS[step.outcome]}</span>'
                f"{self._link(step)}"
                f"<span>{duration((self.history.now - since).total_seconds())}</span>"
                f'<span class="line mono mute">{safe(what)}</span></li>'
            )
        title = f"Now: {counted(len(found), 'step')} at {self.clock.time(self.history.now)}"
        more = f'<p class="hint">and {len(found) - _NOW} more</p>' if len(found) > _NOW else ""
        return _card("now", title, f'<ul class="now">{"".join(rows)}</ul>{more}')

    def _last_line(self, step: StepHistory) -> str:
        lines = self._tails.get(step.name, "").strip().splitlines()
        return lines[-1] if lines else f"attempt {step.attempts[-1].number}"

    def _failures(self) -> str:
        found, following = causes(self.history), self._what_next()
        if not found:
            return f'<section class="card">{following}</section>' if following else ""
        title = f"What failed: {counted(sum(len(steps) for _, steps in found), 'step')}, {counted(len(found), 'cause')}"
        more = f'<p class="hint">and {len(found) - _CAUSES} more causes: the table of steps has all of them</p>'
        body = "".join(self._cause(error, steps) for error, steps in found[:_CAUSES])
        return _card("fail", title, body + (more if len(found) > _CAUSES else "") + following, "card fail")

    def _what_next(self) -> str:
        text = safe(what_next(self.history))
        if self.history.runs and (argv := self.history.runs[-1].argv):
            text = text.replace("the script again", f"<code>{safe(shlex.join(argv)[:300])}</code> again")
        return f'<p class="next"><b>What next:</b> {text}</p>' if text else ""

    def _cause(self, error: ErrorInfo, steps: list[StepHistory]) -> str:
        items = "".join(
            f'<li>{self._link(step)} <span class="mute">{self._ending(step)}</span></li>' for step in steps[:_NAMES]
        )
        more = f"<li>and {len(steps) - _NAMES} more</li>" if len(steps) > _NAMES else ""
        message = shortened(error.message)
        example = next((step for step in steps if step.name in self._tails), steps[0])
        if tail := self._tails.get(example.name):
            words, text = "Last words in its log", tail
        else:
            words, text = "Traceback", safe_lines(folded(error_of(example).stack or "")[-_STACK:])
        details = f"<details><summary>{words}</summary><pre>{html.escape(text)}</pre></details>" if text else ""
        hint = f"<p>{safe(text)}.</p>" if (text := advice(error.message)) else ""
        log = example.log if self._logs else None
        path = f'<p class="mono mute">{html.escape(short_path(log))}</p>' if log else ""
        return (
            f'<div class="cause"><p><span class="sign failed" aria-hidden="true">✕</span> <b>{safe(error.name)}</b> '
            f'{safe(message[:_MESSAGE])} <span class="mute">{counted(len(steps), "step")}</span></p>'
            f"<ul>{items}{more}</ul>{hint}{details}{path}</div>"
        )

    def _ending(self, step: StepHistory) -> str:
        at = "" if step.ended is None else f", last at {self.clock.time(step.ended)}"
        return f"{counted(step.attempt_count or len(step.attempts), 'attempt')}{at}"

    def _link(self, step: StepHistory) -> str:
        return f'<a href="#s{step.number}" data-step="{self._index[step.name]}">{safe(step.name)}</a>'

    def _timeline(self) -> str:
        label = safe(f"{lede(self.history)} Arrow keys go from attempt to attempt, Enter opens the details.")
        squeezed = ' aria-pressed="true"' if named_gaps(self.history)[1] else ' aria-pressed="false"'
        squeeze = (
            f'<button type="button" id="squeeze"{squeezed}>Squeeze idle time</button>'
            if named_gaps(self.history)[0]
            else ""
        )
        return (
            '<section class="card" aria-labelledby="h-timeline"><div class="titled"><h2 id="h-timeline">Timeline</h2>'
            '<span class="choice with-script" role="group" aria-label="A row for each">'
            f"{_buttons('mode', [('workers', 'Workers'), ('keys', 'Keys'), ('steps', 'Steps')])}</span>"
            f'<span class="with-script">{squeeze}</span>'
            '<span class="choice with-script" role="group" aria-label="Zoom">'
            '<button type="button" id="zoom-out" aria-label="Zoom out">\u2212</button>'
            '<button type="button" id="zoom-in" aria-label="Zoom in">+</button>'
            f'<button type="button" id="fit">Fit</button></span></div>{self._tools()}'
            '<div class="with-script"><div id="timeline"><canvas id="overview" aria-hidden="true"></canvas>'
            '<div id="scroller" tabindex="-1"><div id="space"><canvas id="gantt" tabindex="0" role="application" '
            f'aria-roledescription="timeline" aria-label="{label}"></canvas></div></div>'
            '<div id="tip" hidden></div></div>'
            f'<p class="hint">{_HINT}</p></div>'
            f'<div class="without-script">{drawing(self.history, self.clock, CLASSES, bars=_BARS)}</div>{_legend()}'
            '<aside class="panel with-script" id="panel" tabindex="-1" aria-label="Details of a step" hidden></aside>'
            '<div id="live" class="unseen" aria-live="polite"></div></section>'
        )

    def _tools(self) -> str:
        chips = {
            "failed": ("Failed", lambda step: step.outcome is Outcome.FAILED),
            "retried": ("Retried", lambda step: len(step.attempts) > 1),
            "waited": ("Waited", lambda step: seconds_in(step.waits, self.history.now) > 0),
            "interrupted": ("Interrupted", lambda step: any(a.outcome is Outcome.INTERRUPTED for a in step.attempts)),
            "open": ("Not done", lambda step: step.outcome in {Outcome.RUNNING, Outcome.WAITING}),
        }
        counts = {name: sum(map(test, self.history.steps)) for name, (_, test) in chips.items()}
        shown = [("all", "All"), *((name, f"{chips[name][0]} {count}") for name, count in counts.items() if count)]
        groups: dict[str, int] = {}
        for step in self.history.steps:
            groups[step.group] = groups.get(step.group, 0) + 1
        options = "".join(
            f'<option value="{place}">{safe(group[:80])} ({count})</option>'
            for place, (group, count) in enumerate(groups.items())
            if place < 200
        )
        return (
            '<div class="tools with-script"><span class="choice" role="group" aria-label="Which steps">'
            f"{_buttons('chip', shown)}</span>"
            '<input type="search" id="search" placeholder="Name, key or error  ( / )" '
            'aria-label="Filter by name, key or error">'
            f'<select id="group" aria-label="Group"><option value="-1">All groups</option>{options}</select>'
            '<span id="count" class="mute" role="status"></span></div>'
        )

    def _where(self) -> str:
        totals, waited = self._totals, self._totals.waited
        running = totals.work - totals.counted - totals.failed - totals.lost
        place = totals.workers * max(0.0, totals.took - totals.away)
        shares = [
            ("ok", "work that counted", totals.counted),
            ("try", "attempts that failed", totals.failed),
            ("cut", "interrupted", totals.lost),
            ("run", "running now", running),
            ("back", "back-off", waited.get(WaitFor.BACKOFF, 0.0)),
            ("lim", "waiting for limits", _held_by_limits(self.history)),
        ]
        idle = place - sum(seconds for _, _, seconds in shares)
        shares = [share for share in [*shares, ("idle", "idle: no item could begin", idle)] if share[2] > 1e-3]
        whole = sum(seconds for _, _, seconds in shares) or 1.0
        at, bars = 0.0, []
        for paint, name, seconds in shares:
            wide = 1000 * seconds / whole
            title = f"<title>{name}: {duration(seconds)}</title>"
            bars.append(f'<rect class="solid-{paint}" x="{at:.1f}" width="{wide:.1f}" height="18">{title}</rect>')
            at += wide
        legend = "".join(
            f"<li>{_swatch(f'solid-{paint}')}{name} <b>{_percent(seconds / whole)}</b></li>"
            for paint, name, seconds in shares
        )
        body = (
            '<div class="where"><div><div class="shares"><svg viewBox="0 0 1000 18" preserveAspectRatio="none" '
            f'width="100%" height="18" aria-hidden="true">{"".join(bars)}</svg></div>'
            f'<ul class="legend">{legend}</ul></div>{self._busiest_keys()}</div>'
        )
        return _card("where", "Where the workers\u2019 time went", body) if shares else ""

    def _busiest_keys(self) -> str:
        seconds: defaultdict[str, float] = defaultdict(float)
        counts: defaultdict[str, int] = defaultdict(int)
        for step in self.history.steps:
            if step.key is not None:
                seconds[step.key] += seconds_in(step.attempts, self.history.now)
                counts[step.key] += 1
        busiest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:_KEYS]
        if not busiest:
            return ""
        most = seconds[busiest[0]] or 1.0
        rows = "".join(
            f'<span title="{safe(key[:200])}">{safe(key[:200])}</span>'
            '<svg viewBox="0 0 100 10" preserveAspectRatio="none" width="100%" height="10" aria-hidden="true">'
            f'<rect class="solid-ok" width="{100 * seconds[key] / most:.1f}" height="10"/></svg>'
            f'<span class="mute">{duration(seconds[key])}, {counted(counts[key], "step")}</span>'
            for key in busiest
        )
        return f'<div><h3>The busiest keys</h3><div class="ranking">{rows}</div>{self._bottleneck(busiest[0])}</div>'

    def _bottleneck(self, key: str) -> str:
        """Say so where one key was in use for most of the time: its waits count, since nothing else runs under it."""
        steps = [step for step in self.history.steps if step.key == key]
        held: list[AttemptSpan | WaitSpan] = [span for step in steps for span in step.attempts]
        held += [wait for step in steps for wait in step.waits if wait.kind is not WaitFor.KEY]
        busy = seconds_in(held, self.history.now)
        part = busy / max(self._totals.took - self._totals.away, 1e-3)
        if part < 0.6:
            return ""
        return (
            f'<p class="hint">Steps of one key run one at a time: <b>{safe(key[:200])}</b> alone accounts for '
            f"{min(100, 100 * part):.0f}\xa0% of the time; no more workers would make it shorter.</p>"
        )

    def _steps(self) -> str:
        names = {"name": "Step", **{name: name.capitalize() for name in _COLUMNS}}
        head = '<span role="columnheader"><button type="button" data-sort="state" aria-label="State">●</button></span>'
        head += "".join(
            f'<span{"" if name in {"name", "key"} else _NUMBER} role="columnheader">'
            f'<button type="button" data-sort="{name}">{text}</button></span>'
            for name, text in names.items()
        )
        return _card("steps", "Steps", (
            '<div class="with-script" id="rows" role="table" aria-label="Steps" tabindex="-1">'
            f'<div class="grid head" role="row">{head}</div><div id="tall" role="rowgroup"></div></div>'
            f'<div class="without-script">{self._table()}</div>'
        ))  # fmt: skip

    def _table(self) -> str:
        def rank(step: StepHistory) -> tuple[int, int]:
            return STATES.index(step.outcome), -len(step.attempts)

        steps = sorted(self.history.steps, key=rank)
        rows = "".join(
            f'<tr><td><span class="sign {step.outcome.value}">{SIGNS[step.outcome]}</span> {step.outcome.value}</td>'
            f"<td>{safe(step.name)}</td>"
            + "".join(f'<td class="number">{cell}</td>' for cell in self._cells(step))
            + "</tr>"
            for step in steps[:_ROWS]
        )
        left = len(steps) - _ROWS
        more = (
            f'<p class="hint">{left} more steps, all of them without a failure or after {_ROWS} others</p>'
            if left > 0
            else ""
        )
        return (
            f"<table><thead><tr><th>State</th><th>Step</th><th{_NUMBER}>Began</th><th{_NUMBER}>Work</th>"
            f"<th{_NUMBER}>Attempts</th><th{_NUMBER}>Cost</th></tr></thead><tbody>{rows}</tbody></table>{more}"
        )

    def _cells(self, step: StepHistory) -> Iterator[str]:
        yield NONE if step.begun is None else self.clock.time(step.begun)
        yield duration(seconds_in(step.attempts, self.history.now))
        yield str(step.attempt_count or len(step.attempts))
        yield cost_text([step]) or NONE

    def _runs(self) -> str:
        runs = self.history.runs
        if not runs:
            return ""
        rows = "".join(f"<li>{self._run(run)}</li>" for run in runs[-_RUNS:])
        earlier = f'<p class="hint">and {len(runs) - _RUNS} earlier ones</p>' if len(runs) > _RUNS else ""
        return _card("runs", "Runs", f'<ul class="runs">{rows}</ul>{earlier}')

    def _run(self, run: RunSpan) -> str:
        outcome = "died" if run.has_died else run.outcome.value
        text = safe(f"{self.clock.span(run.begun, run.ended or self.history.now)}: {outcome}")
        if run.pid is not None:
            text += safe(f", process {run.pid}{f' on {run.host}' if run.host else ''}")
        if run.argv:
            text += f", <code>{safe(shlex.join(run.argv)[:300])}</code>"
        if run.error is not None and not run.has_died:
            text += safe(f"; {run.error.name}: {run.error.message[:_MESSAGE]}")
        return text + (f"; found dead at {self.clock.time(run.found_dead)}" if run.found_dead is not None else "")


def _card(name: str, title: str, body: str, kind: str = "card") -> str:
    return f'<section class="{kind}" aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2>{body}</section>\n'


def _buttons(name: str, texts: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f'<button type="button" data-{name}="{value}" aria-pressed="{"false" if place else "true"}">{text}</button>'
        for place, (value, text) in enumerate(texts)
    )


def _percent(part: float) -> str:
    return f"{100 * part:.0f}\xa0%" if part >= 0.005 else "&lt;\xa01\xa0%"


def _held_by_limits(history: History) -> float:
    """Seconds of workers that had nothing to do since items waited for a limit: more items may wait than there are."""
    changes: list[tuple[datetime, int, int]] = []  # a moment, and how many more are busy and wait from then on
    for step in history.steps:
        for span in step.attempts:
            if span.depth == 0:
                changes += [(span.begun, 1, 0), (span.ended or history.now, -1, 0)]
        for wait in step.waits:
            busy, limited = int(wait.kind is WaitFor.BACKOFF), int(wait.kind is WaitFor.LIMIT)
            changes += [(wait.begun, busy, limited), (wait.ended or history.now, -busy, -limited)]
    changes.sort()
    seconds, working, waiting = 0.0, 0, 0
    for (begun, more_busy, more_waiting), (ended, _, _) in pairwise(changes):
        working, waiting = working + more_busy, waiting + more_waiting
        held = min(waiting, history.totals.workers - working)
        seconds += max(0, held) * (ended - begun).total_seconds()
    return seconds


def _swatch(name: str) -> str:
    return (
        '<svg width="18" height="12" aria-hidden="true">'
        f'<rect class="{name}" x=".5" y=".5" width="17" height="11" rx="2.5"/></svg>'
    )


def _legend() -> str:
    texts = {
        "ok": "✓ succeeded",
        "bad": "✕ failed",
        "try": "↻ failed, tried again",
        "cut": "† interrupted",
        "run": "● running",
        "back": "back-off",
        "lim": "waiting for a limit",
        "key": "waiting for a key",
    }
    items = "".join(f"<li>{_swatch(f'swatch-{paint}')}{text}</li>" for paint, text in texts.items())
    return f'<ul class="legend">{items}</ul>'


def _hatches() -> str:
    patterns = "".join(
        f'<pattern id="hatch-{paint}" class="hatch-{paint}" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<rect width="6" height="6" stroke="none"/><path d="M-1 1L1 -1M0 6L6 0M5 7L7 5" stroke-opacity=".5"/></pattern>'
        for paint in _HATCHED
    )
    return f'<svg width="0" height="0" aria-hidden="true"><defs>{patterns}</defs></svg>'
