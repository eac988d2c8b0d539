"""Fixtures of many tests, the slow tests that plain `pytest` leaves out, and the tiers of the reliability tests."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from reliability.tiers import Figures, Tier
from support import Run, memory_folder
from support_fanout import Gate

from iso_orchestrator import Workflow
from iso_orchestrator.views.cli import main

# Ignored in a shell's background job, or by nohup; all children would inherit that.
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow("w", dir=tmp_path)
    yield workflow
    workflow.close()


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory, if the machine has one."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the root: exit code, output and errors."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main([args[0], "--dir", str(tmp_path), *args[1:]])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


LEFT_OUT = pytest.StashKey[int]()
"""How many slow tests this run does not run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too, which start whole processes")
    group = parser.getgroup("reliability")
    group.addoption("--tier", choices=("quick", "full", "soak"), default="quick", help="how many cases are tried")
    group.addoption("--seed", type=int, default=None, help="the seed of the randomised tests")
    group.addoption("--soak-factor", type=float, default=1.0, help="a part of the soak tier's figures")


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if option.seed is None:
        option.seed = int.from_bytes(os.urandom(4))  # the workers of xdist get this one
    option.all = option.all or option.tier != "quick"
    config.stash[LEFT_OUT] = 0
    # A loaded machine is no failure, so no example has a deadline.
    hypothesis.settings.register_profile(
        "iso",
        max_examples=100 if option.all else 20,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("iso")


@pytest.hookimpl(trylast=True)  # after -k and -m, so that only tests that would have run are counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.all:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    config.stash[LEFT_OUT] = len(slow)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(slow)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count from a worker of xdist: all workers collect the same tests."""
    node.config.stash[LEFT_OUT] = max(node.config.stash[LEFT_OUT], getattr(node, "workeroutput", {}).get("left_out", 0))


def pytest_report_header(config: pytest.Config) -> str:
    option = config.option
    return f"reliability: --tier {option.tier} --seed {option.seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left_out := terminalreporter.config.stash[LEFT_OUT]:
        terminalreporter.write_line(f"slow tests left out: {left_out} (`pytest --all` runs them)")
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
    more = " --all" if option.all and option.tier == "quick" else ""
    part = f" --soak-factor {option.soak_factor:g} --timeout 0" if option.tier == "soak" else ""
    again = f"pytest tests/reliability --tier {option.tier} --seed {option.seed}{more}{part}"
    terminalreporter.write_line(f"again with: {again}")


@pytest.fixture
def tier(request: pytest.FixtureRequest) -> Tier:
    """How many cases this run tries, and its randomness."""
    option = request.config.option
    return Tier(option.tier, option.seed, option.soak_factor)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Collects what the test has tried."""
    return Figures(request.node)
