"""Tests that are tested: each of the faults that would break a promise is put into the code, and a test notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reliability.planted_faults import FAULTS, MORE_FAULTS, QUICK, Fault
from reliability.tiers import Figures, Tier

COUNT = 21  # of the faults that are known to matter
HANGS = 60  # seconds; no test takes so long
NOTICED = 5  # seconds; a test that waits so long for something has noticed the fault

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "iso_orchestrator"

each_fault = pytest.mark.parametrize("fault", [*FAULTS, *MORE_FAULTS], ids=lambda fault: fault.name)

Run = subprocess.CompletedProcess[str]


def with_fault(fault: Fault, project: Path) -> str:
    """The source of the fault's module with the fault in it."""
    source = (project / PACKAGE / fault.module).read_text(encoding="utf-8")
    found = source.count(fault.text)
    assert found == 1, (
        f"{fault.name!r} cannot be planted: {fault.module} has {found} times\n{fault.text}\n"
        "The code has changed. Write the fault anew in planted_faults.py, for the line that does this now, and see "
        f"that it is caught: pytest tests/reliability/{Path(__file__).name} --tier soak -k {fault.name!r}"
    )
    return source.replace(fault.text, fault.instead)


@each_fault
def test_a_fault_can_still_be_planted(fault: Fault) -> None:
    """What it takes the place of stands in the code, once, and with it the module is Python."""
    compile(with_fault(fault, PROJECT), fault.module, "exec")


@pytest.mark.slow
def test_each_fault_names_a_test_that_exists() -> None:
    """There are as many faults as matter, no two of one name, and pytest finds the tests that are to catch them."""
    faults = [*FAULTS, *MORE_FAULTS]
    assert len(FAULTS) == COUNT
    assert len({fault.name for fault in faults}) == len(faults)
    found = run(PROJECT, "--collect-only", *sorted({fault.caught_by for fault in faults}))
    assert found.returncode == 0, f"a test that planted_faults.py names is not there:\n{found.stdout}{found.stderr}"


@pytest.mark.timeout(10 * HANGS)
def test_what_catches_faults_passes_without_them(tier: Tier) -> None:
    """They run together, as far as their options are the same: what pytest takes to start is not paid for each.

    Below the soak tier those with a quick tier's options are left out: `pytest --all` runs them with all the others.
    """
    tier.skip_quick("they run with all the others")
    by_options: dict[tuple[str, ...], set[str]] = {}
    for fault in [*FAULTS, *MORE_FAULTS]:
        if fault.options != QUICK or tier.name == "soak":
            by_options.setdefault(fault.options, set()).add(fault.caught_by)
    for options, tests in by_options.items():
        sound = run(PROJECT, *options, *sorted(tests), timeout=10 * HANGS)
        assert sound.returncode == 0, f"{' '.join(options)}: a test fails without any fault:\n{sound.stdout}"


@each_fault
@pytest.mark.timeout(5 * HANGS)
def test_a_planted_fault_is_caught(
    fault: Fault,
    memory_path: Path,
    tier: Tier,
    figures: Figures,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The test that is named for a fault fails with it."""
    tier.skip_quick("a run of pytest for each fault")
    copy(memory_path)
    (memory_path / PACKAGE / fault.module).write_text(with_fault(fault, memory_path), encoding="utf-8")
    tried = run(memory_path, "-x", *fault.options, fault.caught_by)
    is_caught = tried.returncode == 1 and f"\nFAILED {fault.caught_by}" in tried.stdout
    what = "planted faults caught" if fault in FAULTS else "planted faults caught, of those that were once there"
    figures.add(0, what, int(is_caught), int(not is_caught))
    with capsys.disabled():
        print(f"\n{fault.name} -> {fault.caught_by if is_caught else 'NOT CAUGHT'}")
    assert is_caught, (
        f"{fault.caught_by} {' '.join(fault.options)} ends with {tried.returncode} where {fault.module} has\n"
        f"{fault.instead}\nin the place of\n{fault.text}\n{tried.stdout}{tried.stderr}"
    )


# Says which package the tests were of: another one may be installed, and be found first.
_PLUGIN = f"""
import {PACKAGE}

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("tested: " + {PACKAGE}.__file__)
"""


def copy(project: Path) -> None:
    """A copy of the package and its tests, to be changed; what is compiled already goes with them."""
    left_out = shutil.ignore_patterns(".*", "*.pyc.*")  # the latter have a name only while they are written
    for name in (PACKAGE, "tests"):
        shutil.copytree(PROJECT / name, project / name, ignore=left_out)
    shutil.copy(PROJECT / "pyproject.toml", project)
    (project / "tested_package.py").write_text(_PLUGIN, encoding="utf-8")


def run(project: Path, *args: str, timeout: float = 2 * HANGS) -> Run:
    """Run pytest in a copy, or in the project itself; what it said of the copy's own package."""
    is_copy = project != PROJECT
    limit = 4 * NOTICED if is_copy else HANGS
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", f"--timeout={limit}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(project), environment.get("PYTHONPATH")]))
    if is_copy:
        environment["ISO_TESTS_DEADLINE"] = str(NOTICED)
    done = subprocess.run(
        [*command, *(["-p", "tested_package"] if is_copy else []), "--all", *args],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    tested = f"\ntested: {project / PACKAGE / '__init__.py'}\n"
    assert not is_copy or tested in done.stdout, f"another package was tested:\n{done.stdout}{done.stderr}"
    return done
