"""How the tests with the real programs are told to keep what these print, and the table of what became of them."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="keep the transcripts, as the data of the other tests")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    rows = [
        value
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "agent"
    ]
    if rows:
        terminalreporter.section("what became of the agents")
        terminalreporter.write_line("\n".join(rows))
