"""Run one case for one peer: start its programs, and check their answers."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from install import ENVIRONMENTS, is_installed, python_of
from postgres import Cluster
from results import Report
from suite import COUNT_LIMIT, Case, Peer, optimum

HERE = Path(__file__).parent
PATIENCE = 120.0  # seconds that a program may take beyond its limits
SYNC_CALLS = "fsync,fdatasync,sync_file_range,msync"


class RunError(Exception):
    """A program failed, or its report is wrong."""


@dataclass
class Bench:
    """What all cases share.

    Attributes:
        place: A folder on the disk that is measured.
        cluster: The PostgreSQL server, if there is one.
        costs: The seconds of a step by peer, from the longest chain so far.
        built: The folders of large records, by peer and ending; each round opens a copy.
    """

    place: Path
    cluster: Cluster | None
    costs: dict[str, float] = field(default_factory=dict)
    built: dict[tuple[str, str], Path] = field(default_factory=dict)

    def is_there(self, peer: Peer) -> bool:
        """Whether a peer can be run."""
        return (peer.environment is None or is_installed(peer.environment)) and (
            not peer.postgres or self.cluster is not None
        )

    def package(self, peer: Peer) -> Path:
        """The file of the version of this library that a peer's programs import."""
        command = [interpreter(peer), "-c", "import iso_orchestrator; print(iso_orchestrator.__file__)"]
        found = subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, cwd=self.place, env=environment(peer)
        )
        return Path(found.stdout.strip())

    @contextmanager
    def folder(self, peer: Peer) -> Iterator[Path]:
        """A new folder. At the end it is removed, with its database if the peer has one."""
        path = Path(tempfile.mkdtemp(dir=self.place))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            if peer.postgres and self.cluster is not None:
                self.cluster.drop(path.name)

    def command(self, peer: Peer, parameters: dict[str, Any], folder: Path) -> list[str]:
        parameters = dict(parameters)
        if peer.postgres and self.cluster is not None:
            parameters["where"] = self.cluster.url(folder.name)
        workload = parameters.pop("do")
        if peer.program.endswith(".mjs"):
            program = ["node", str(HERE / "peers" / peer.program)]
        else:
            program = [interpreter(peer), "-m", f"peers.{peer.program}"]
        return [*program, workload, json.dumps(parameters), str(folder)]

    def call(self, peer: Peer, parameters: dict[str, Any], folder: Path, before: tuple[str, ...] = ()) -> Report:
        """Run a peer's program to its end."""
        return answer(self.start(peer, parameters, folder, before), parameters, folder)

    def start(
        self, peer: Peer, parameters: dict[str, Any], folder: Path, before: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """Start a peer's program, as the argument of the command *before* if there is one."""
        with (folder / "stderr").open("a") as errors:
            return subprocess.Popen(
                [*before, *self.command(peer, parameters, folder)],
                cwd=folder,
                env=environment(peer),
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )


def measure(bench: Bench, peer: Peer, case: Case) -> Report:
    """The report of one run. A peer that cannot do the case reports `cannot`, with the reason."""
    with bench.folder(peer) as folder:
        return HOW[case.how](bench, peer, dict(case.parameters), folder)


def once(bench: Bench, peer: Peer, parameters: dict[str, Any], folder: Path) -> Report:
    if parameters["do"] == "fan_out":
        cost = max(cost_of(bench, peer), parameters["pause"] / parameters["workers"])
        parameters["steps"] = max(min(parameters["steps"], int(COUNT_LIMIT / cost)), min(parameters["steps"], 50))
    elif parameters["do"] == "mutex":
        cost = 2 * cost_of(bench, peer)
        parameters["steps"] = max(min(parameters["steps"], int(COUNT_LIMIT / cost)), 20)
    report = bench.call(peer, parameters, folder)
    if "ran" in report and report["ran"] != report["done"]:
        raise RunError(f"{peer.name}: {report['ran']} bodies ran, {report['done']} steps were done")
    least = report.get("done", 0) if parameters["do"] == "chain" else 1
    if report.get("syncs", least) < least:
        raise RunError(f"{peer.name}: {report['done']} steps, {report['syncs']} syncs")
    report = {name: part for name, part in report.items() if name not in ("began", "ended")}
    if "took" in report:
        report["optimum"] = optimum(report.pop("took"), parameters["workers"])
    return taken_in_turn(report.pop("parties"), parameters) | report if "parties" in report else report


def twice(bench: Bench, peer: Peer, parameters: dict[str, Any], folder: Path) -> Report:
    """A chain, and the same resumed."""
    known = bench.costs.get(peer.name, 0.0)
    if "size" not in parameters and known * parameters["steps"] > 2 * parameters["limit"]:
        return {"cannot": f"more than {2 * parameters['limit']:.0f} s"}
    first = once(bench, peer, parameters, folder)
    if "cannot" in first:
        return first
    if "size" not in parameters:
        bench.costs[peer.name] = first["seconds"] / first["done"]
    again = bench.call(peer, {**parameters, "steps": first["done"]}, folder)
    if again["ran"]:
        raise RunError(f"{peer.name}: {again['ran']} recorded steps ran again")
    return {**first, "again": again}


def processes(bench: Bench, peer: Peer, parameters: dict[str, Any], folder: Path) -> Report:
    """Four processes with steps of their own on one workflow. They start together."""
    steps = parameters["steps"]
    ordered = [{"do": "chain", "steps": steps, "first": steps * which} for which in range(4)]
    reports = together(bench, peer, ordered, folder)
    if cannot := next((report for report in reports if "cannot" in report), None):
        return cannot
    seconds = max(report["ended"] for report in reports) - min(report["began"] for report in reports)
    return {"seconds": seconds, "done": sum(report["done"] for report in reports)}


def waiting(bench: Bench, peer: Peer, parameters: dict[str, Any], folder: Path) -> Report:
    """Two processes that acquire a mutex by turns."""
    reports = together(bench, peer, [{**parameters, "first": who} for who in (0, 1)], folder)
    if "cannot" in reports[0]:
        return reports[0]
    return taken_in_turn([report["turns"] for report in reports], parameters)


def taken_in_turn(parties: list[list[dict[str, float]]], parameters: dict[str, Any]) -> Report:
    """The time from one party's release to the other's acquisition, in both directions; and the CPU share of waiting.

    Raises:
        RunError: both parties had the mutex at one time, or one of them had it twice in a row.
    """
    turns = sorted((turn["acquired"], who, turn) for who, party in enumerate(parties) for turn in party)
    gaps: tuple[list[float], list[float]] = ([], [])
    for (_, one, before), (_, other, after) in itertools.pairwise(turns):
        gap = after["acquired"] - before["released"]
        if one == other or gap < 0:
            raise RunError(f"a mutex went from {one} to {other} in {gap} s")
        gaps[other].append(gap)
    if len(turns) != 2 * parameters["steps"]:
        raise RunError(f"{len(turns)} turns")
    waits = parties[1]
    cpu = sum(turn["cpu"] for turn in waits) / sum(turn["acquired"] - turn["asked"] for turn in waits)
    both = [statistics.median(way) for way in gaps if way]
    return {"seconds": max(both), "ways": both, "worst": max(itertools.chain(*gaps)), "cpu": cpu}


def together(bench: Bench, peer: Peer, ordered: list[dict[str, Any]], folder: Path) -> list[Report]:
    """Several programs of a peer at one time. None begins before all are ready."""
    begun = [(bench.start(peer, {**parameters, "together": True}, folder), parameters) for parameters in ordered]
    answers: list[Report] = []
    for program, _ in begun:
        line = program.stdout.readline() if program.stdout else ""
        if line.strip() != "ready":
            answers.append(json.loads(line) if line.startswith("{") else {"cannot": "it did not begin"})
    if answers:
        for program, _ in begun:
            end(program)
        return answers
    for program, _ in begun:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    return [answer(program, parameters, folder) for program, parameters in begun]


def opened(bench: Bench, peer: Peer, parameters: dict[str, Any], folder: Path) -> Report:
    """A large record, opened and resumed in a fresh process; this library also reads it without a lock."""
    every = {"do": "chain", "steps": parameters["steps"], "limit": 900.0}
    key = (peer.name, parameters["leave"])
    if key not in bench.built:
        built = Path(tempfile.mkdtemp(dir=bench.place))
        bench.call(peer, {**every, "leave": parameters["leave"]}, built)
        bench.built[key] = built
    copy = folder / "copy"
    shutil.copytree(bench.built[key], copy)
    os.sync()
    read = bench.call(peer, {"do": "read", "steps": parameters["steps"]}, copy)
    again = bench.call(peer, every, copy)
    if again["ran"]:
        raise RunError(f"{peer.name}: {again['ran']} recorded steps ran again")
    return {**again, "read": read}


def imported(bench: Bench, peer: Peer, parameters: dict[str, Any], folder: Path) -> Report:
    """Interpreters that import the peer's package, by turns with bare ones, and with ones that import cattrs."""
    if peer.imports is None:
        return {"cannot": "nothing to import"}
    programs = {"bare": "pass", "package": f"import {peer.imports}"}
    if peer.environment is None:
        programs["cattrs"] = "import cattrs"
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number, (name, code) in itertools.product(range(parameters["times"] + 1), programs.items()):
        started = time.perf_counter()
        subprocess.run([interpreter(peer), "-c", code], check=True, cwd=folder, env=environment(peer))
        if number:  # the first may compile it
            times[name].append(time.perf_counter() - started)
    bare = statistics.median(times.pop("bare"))
    return {name: statistics.median(taken) - bare for name, taken in times.items()}


HOW: dict[str, Callable[[Bench, Peer, dict[str, Any], Path], Report]] = {
    "once": once,
    "twice": twice,
    "processes": processes,
    "waiting": waiting,
    "opened": opened,
    "imported": imported,
}


def count_syncs(bench: Bench, peer: Peer, few: int = 10, more: int = 60) -> Report:
    """Syncs in a step, counted by the kernel: those of a longer chain minus those of a shorter one, over the steps."""
    if peer.program == "threads":
        return {"cannot": "no steps"}
    if shutil.which("strace") is None:
        return {"cannot": "strace is not installed"}
    counts = []
    for steps in (few, more):
        with bench.folder(peer) as folder:
            before = served(bench, peer)
            strace = ("strace", "-f", "-c", "-e", f"trace={SYNC_CALLS}", "-o", str(folder / "calls"))
            bench.call(peer, {"do": "chain", "steps": steps}, folder, strace)
            table = (folder / "calls").read_text()
            counts.append(syncs_in(table) + served(bench, peer) - before)
    return {"syncs": max(counts[1] - counts[0], 0) / (more - few)}


def served(bench: Bench, peer: Peer) -> int:
    """How often the peer's server has synced since its start."""
    return (bench.cluster.syncs() or 0) if peer.postgres and bench.cluster is not None else 0


def syncs_in(table: str) -> int:
    lines = re.findall(rf"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s.*\b(?:{SYNC_CALLS.replace(',', '|')})$", table, re.M)
    return sum(int(calls) for calls in lines)


def cost_of(bench: Bench, peer: Peer) -> float:
    """Seconds of a step, roughly."""
    if peer.name not in bench.costs:
        with bench.folder(peer) as folder:
            report = bench.call(peer, {"do": "chain", "steps": 100}, folder)
        bench.costs[peer.name] = report["seconds"] / report["done"] if "done" in report else 1e-5
    return bench.costs[peer.name]


def end(program: subprocess.Popen[str]) -> None:
    """Kill a program and its children."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.communicate()


def answer(program: subprocess.Popen[str], parameters: dict[str, Any], folder: Path) -> Report:
    """Wait for a program's end, and read its last line."""
    patience = PATIENCE + 2 * parameters.get("limit", 30.0)
    try:
        out, _ = program.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        end(program)
        return {"cannot": f"stopped after {patience:.0f} s"}
    except BaseException:
        end(program)
        raise
    if program.returncode != 0 or not out.strip():
        told = (folder / "stderr").read_text(errors="replace").strip().splitlines()[-3:]
        raise RunError(f"{parameters} ended with {program.returncode}: {' | '.join(told)}")
    report = json.loads(out.splitlines()[-1])
    if report.get("done", 0) > parameters.get("steps", 0) and "items" not in parameters:
        raise RunError(f"{parameters}: {report['done']} steps were done")
    return report


def interpreter(peer: Peer) -> str:
    return sys.executable if peer.environment is None else str(python_of(peer.environment))


def environment(peer: Peer) -> dict[str, str]:
    """The variables of a peer's program. Python keeps bytecode, so that no timed import compiles."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join([str(HERE), *([peer.checkout] if peer.checkout else [])])
    return {**kept, "PYTHONPATH": path, "NPM_PEER": str(ENVIRONMENTS / "npm"), "PYTHONWARNINGS": "ignore"}
