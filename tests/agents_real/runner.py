"""Runs a case as a step of a workflow, in a process of its own, which the tests watch, signal and kill."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import attrs
import psutil
from agent_cases import Case, agent_for
from agents_real.homes import Home
from agents_real.install import program
from recorded_runs import RecordedRun
from support import Child, run_python

from iso_orchestrator import CommandResult, Workflow, read_workflow_record
from iso_orchestrator.agents import Agent, AgentCommand, AgentResult, AgentStream, Usage, last_session

__all__ = ["Plan", "alive", "started"]

STEP = "say hello"
MARK = "ISO_ORCHESTRATOR_MARK"


@attrs.frozen
class Plan:
    """A case in a home, as a step that is the same in all cases of that home.

    Attributes:
        url: The model's.
        key: The step's idempotency key: its own, or that of the case whose step is tried again.
        session: To go on with; None for that of the last attempt, where there is one.
    """

    case: Case
    home: Home
    url: str
    key: str
    session: str | None = None

    @property
    def workflows(self) -> Path:
        """The folder of the workflow `w`."""
        return self.home.root / "workflows"

    @property
    def folder(self) -> Path:
        """What is kept of this case."""
        return self.home.root / "cases" / self.case.name

    def ended(self) -> CommandResult[AgentResult] | Exception:
        """What the step returned, or raised."""
        ended: CommandResult[AgentResult] | Exception = pickle.loads((self.folder / "ended").read_bytes())
        return ended

    def transcript(self) -> RecordedRun:
        """All that the program printed, and what the library knew when it judged it."""
        judged: RecordedRun = pickle.loads((self.folder / "judged").read_bytes())
        beat = read_workflow_record("w", dir=self.workflows).heartbeats[f"command:{STEP}"]
        assert isinstance(beat.detail, dict)
        return attrs.evolve(judged, stdout=Path(str(beat.detail["log"])).read_bytes())

    def perform(self) -> None:
        """Run the step. Nothing of this process's environment reaches the program."""
        case, agent = self.case, agent_for(self.case, str(program(self.case.agent)))
        os.environ.clear()
        os.environ.update(self._environment())
        time.tzset()
        workflow = Workflow("w", dir=self.workflows)

        @workflow.command(
            name=STEP,
            idempotency_key=self.key,
            parse=_Observed(agent, self.folder),  # type: ignore[arg-type]  # as an agent
            timeout=case.timeout,
            idle_timeout=case.idle,
            log_dir=self.home.root / "logs" / self.key,
        )
        def say_hello() -> AgentCommand:
            assert not alive(self.home), "somebody is left of the attempt before"
            session = self.session or last_session()
            assert (session is None) == (case.resume is None and case.session is None)
            return agent.command("Say hello.", resume=session, cwd=self.home.work)

        self._keep("ended", _outcome_of(say_hello))
        workflow.close()

    def _environment(self) -> dict[str, str]:
        settings = {**self.home.environment(self.url), **self.case.env}
        return {name: value for name, value in settings.items() if value is not None}

    def _keep(self, name: str, value: object) -> None:
        _keep(self.folder / name, value)


def _outcome_of(step: Any) -> object:
    try:
        return step()
    except Exception as error:
        return error


@attrs.frozen
class _Observed:
    """An agent that keeps what its runs are classified by."""

    agent: Agent
    folder: Path
    annotation: ClassVar[Any] = AgentResult
    begin = Agent.begin

    @property
    def name(self) -> str:
        return self.agent.name

    limit_key = name

    def stream(self, *, before: Usage | None = None) -> AgentStream:
        return _ObservedStream(self, before)


class _ObservedStream(AgentStream):
    def __init__(self, observed: _Observed, before: Usage | None) -> None:
        super().__init__(observed.agent, before)
        self._folder = observed.folder
        self._usage_before = before

    def result(
        self, exit_code: int | None, stderr: str = "", *, now: datetime, stopped: str | None = None, **rest: Any
    ) -> AgentResult:
        judged = RecordedRun(b"", stderr.encode(), exit_code, stopped, now, self._usage_before)
        _keep(self._folder / "judged", judged)
        return super().result(exit_code, stderr, now=now, stopped=stopped, **rest)


def _keep(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


_CODE = """
import pickle, sys
from pathlib import Path
pickle.loads(Path(sys.argv[1]).read_bytes()).perform()
print("over")
"""


@contextmanager
def started(plan: Plan) -> Iterator[Child]:
    """A process that performs a plan, and says "over"; it and all of the case are killed at the end."""
    _keep(plan.folder / "plan", plan)
    try:
        with run_python(_CODE, plan.folder / "plan") as runner:
            yield runner
    finally:
        for process in alive(plan.home):
            process.send_signal(signal.SIGKILL)


def alive(home: Home) -> list[psutil.Process]:
    """All who run in a home: by its name and the library's mark in their environment, or by their folder."""
    processes = psutil.process_iter(["environ", "cwd", "status", "cmdline", "create_time"])
    return [process for process in processes if _is_of(home, process.info)]


def _is_of(home: Home, info: dict[str, Any]) -> bool:
    environment = info["environ"] or {}
    is_marked = MARK in environment and environment.get("HOME") == str(home.home)
    is_inside = Path(info["cwd"] or "/").is_relative_to(home.root)
    return (is_marked or is_inside) and info["status"] != psutil.STATUS_ZOMBIE
