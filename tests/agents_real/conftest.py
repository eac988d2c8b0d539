"""How the tests with the real programs are told to keep what these print, and the table of what became of them."""

from __future__ import annotations

from collections import defaultdict

import pytest

AGENTS = ("codex", "claude", "opencode")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="keep the transcripts, as the data of the other tests")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
                if name == "agent":
                    case, agent, cell = value
                    rows[case][agent] = cell
    if not rows:
        return
    terminalreporter.section("what became of the agents")
    terminalreporter.write_line(
        "exit code, seconds, outcome (+: the step waits for the limit's end), processes left behind"
    )
    for case, cells in [("", dict(zip(AGENTS, AGENTS, strict=True))), *rows.items()]:
        terminalreporter.write_line(
            "".join([f"{case:22}", *(f"{cells.get(agent, ''):26}" for agent in AGENTS)]).rstrip()
        )
