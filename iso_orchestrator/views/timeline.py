"""The timeline of a workflow: one HTML file that shows all of a history, without a network and also without script.

All texts are escaped; the policy in the page allows its own style sheet and script alone, by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from iso_orchestrator.record.history import History
from iso_orchestrator.views.drawing import Clock
from iso_orchestrator.views.timeline_data import DETAILED, timeline_data, trims
from iso_orchestrator.views.timeline_sections import Page
from iso_orchestrator.views.timeline_words import safe
from iso_orchestrator.views.words import status_words

BUDGET = 1_900_000
"""Bytes of a file, at most; the foot says what was left out for that."""

_PLAIN = 200_000  # bytes of data; more is compressed


def timeline_page(
    history: History,
    *,
    utc: bool = False,
    results: bool = True,
    logs: bool = True,
    tails: Mapping[str, str] = {},
    every: float | None = None,
    timeline_first: bool = False,
) -> str:
    """Make the HTML file of a history.

    Args:
        history: Of the workflow.
        utc: Whether times are UTC instead of this machine's.
        results: Whether the results of steps are in it.
        logs: Whether the paths of logs are in it.
        tails: The last words of logs, by the names of their steps.
        every: Seconds after which a browser reads the file again.
        timeline_first: Whether the timeline stands above the failures.
    """
    page = Page(history, Clock.of(history, utc=utc), tails, logs=logs)
    data = timeline_data(history, page.clock, tails=tails, results=results, logs=logs)
    left_out: list[str] = []
    cuts = list(trims(history))
    if len(history.steps) > DETAILED:
        left_out.append(cuts.pop(0).name)
    body = page.body(timeline_first=timeline_first)
    foot = [] if results else ["No results are in it."]
    while True:
        omitted = [f"Left out for its size: {', '.join(left_out)}."] if left_out else []
        text = _document(page, body, data, [*foot, *omitted], every)
        if len(text.encode()) <= BUDGET or not cuts:
            return text
        cuts[0].apply(data)
        left_out.append(cuts.pop(0).name)


def _document(page: Page, body: str, data: dict[str, Any], foot: Sequence[str], every: float | None) -> str:
    style, script = _asset("timeline.css"), _asset("timeline.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    refresh = "" if every is None else f'<meta http-equiv="refresh" content="{max(1, round(every))}">'
    foot = ["Made from the record by iso-orchestrator.", f"Times are {page.clock.name}.", *foot]
    title = safe(f"{page.history.workflow_id}: {status_words(page.history)[1]}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">{refresh}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{style}</style></head>\n"
        f"<body>{body}\n<footer>{safe(' '.join(foot))} This file asks for nothing from anywhere.</footer>\n"
        f"{_data_element(data)}<script>{script}</script></body></html>\n"
    )


def _data_element(data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    kind = "application/json"
    if len(text) > _PLAIN:
        text = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        kind = "application/gzip"
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="{kind}" id="data">{text}</script>\n'


@cache
def _asset(name: str) -> str:
    data = pkgutil.get_data("iso_orchestrator.views", name)
    if data is None:  # no loader of Python's own does that
        raise FileNotFoundError(name)
    return data.decode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
