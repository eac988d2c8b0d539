"""What many tests begin with, and the tiers of the reliability tests."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from reliability.tiers import Figures, Tier
from support import Run, memory_folder
from support_fanout import Gate

from iso_orchestrator import Workflow
from iso_orchestrator.views.cli import main


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow("w", dir=tmp_path)
    yield workflow
    workflow.close()


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the root; its exit code, output and errors."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main([args[0], "--dir", str(tmp_path), *args[1:]])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("reliability")
    group.addoption("--tier", choices=("quick", "full", "soak"), default="quick", help="how much is tried")
    group.addoption("--seed", type=int, default=None, help="what the randomised tests draw from")
    group.addoption("--soak-factor", type=float, default=1.0, help="a part of the soak tier's figures")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = int.from_bytes(os.urandom(4))  # the workers of xdist are given this one


def pytest_report_header(config: pytest.Config) -> str:
    option = config.option
    return f"reliability: --tier {option.tier} --seed {option.seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0, 0, 0])
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
                if name == "figure":
                    row, what, *numbers = value
                    rows[row, what] = [one + other for one, other in zip(rows[row, what], numbers, strict=True)]
    if not rows:
        return
    terminalreporter.section("what was tried")
    terminalreporter.write_line(f"{'row':>3}  {'what':<58} {'count':>10} {'violations':>10} {'seconds':>8}")
    for (row, what), (count, violations, seconds) in sorted(rows.items()):
        terminalreporter.write_line(f"{row:>3}  {what:<58} {count:>10,.0f} {violations:>10.0f} {seconds:>8.1f}")
    option = terminalreporter.config.option
    part = f" --soak-factor {option.soak_factor:g} --timeout 0" if option.tier == "soak" else ""
    again = f"pytest tests/reliability --tier {option.tier} --seed {option.seed}{part}"
    terminalreporter.write_line(f"again with: {again}")


@pytest.fixture
def tier(request: pytest.FixtureRequest) -> Tier:
    """How much this run tries, and its randomness."""
    option = request.config.option
    return Tier(option.tier, option.seed, option.soak_factor)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """What the test says that it has tried."""
    return Figures(request.node)
