"""Recorded runs of agents: recorded with the real programs, read back by the tests that run everywhere."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import attrs
from agent_cases import Case, agent_for

from iso_orchestrator.agents import AgentResult, AgentStream, Outcome, Usage

__all__ = ["DATA", "RecordedRun"]

DATA = Path(__file__).parent / "data" / "agents"


@attrs.frozen
class RecordedRun:
    """One run: its output, how and when it ended, and the session's tokens before it."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None
    stopped: str | None
    ended_at: datetime
    before: Usage | None = None

    @classmethod
    def load(cls, case: Case) -> RecordedRun:
        """The recorded run of a case."""
        stem = DATA / case.agent / case.name
        about = json.loads(stem.with_suffix(".json").read_text())
        before = Usage(**about["before"]) if about["before"] else None
        return cls(
            stdout=stem.with_suffix(".stdout").read_bytes(),
            stderr=stem.with_suffix(".stderr").read_bytes(),
            exit_code=about["exit_code"],
            stopped=about["stopped"],
            ended_at=datetime.fromisoformat(about["ended_at"]),
            before=before,
        )

    def save(self, case: Case) -> None:
        """Make this the recorded run of a case."""
        stem = DATA / case.agent / case.name
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".stdout").write_bytes(self.stdout)
        stem.with_suffix(".stderr").write_bytes(self.stderr)
        about = {
            "exit_code": self.exit_code,
            "stopped": self.stopped,
            "ended_at": self.ended_at.isoformat(timespec="milliseconds"),
            "before": attrs.asdict(self.before) if self.before else None,
        }
        stem.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")

    def scrubbed(self, names: dict[str, str]) -> RecordedRun:
        """The run without the recording machine's paths, and without claude's long lists of tools."""

        def scrub(output: bytes) -> bytes:
            for text, name in names.items():
                output = output.replace(text.encode(), name.encode())
                # Claude's name for the folder of a project.
                output = output.replace(re.sub(r"[^A-Za-z0-9]", "-", text).encode(), name.encode())
            output = re.sub(rb"https?://(?!127\.0\.0\.1)[\w.-]+", b"https://127.0.0.1", output)
            output = re.sub(rb'"(tools|slash_commands|agents|skills)":\[[^\]]*\]', rb'"\1":[]', output)
            return re.sub(rb" Python/[\d.]+", b"", output)

        return attrs.evolve(self, stdout=scrub(self.stdout), stderr=scrub(self.stderr))

    def lines(self) -> list[str]:
        """The lines of its standard output."""
        return self.stdout.decode("utf-8", "replace").splitlines()

    def stream(self, case: Case) -> AgentStream:
        """A new stream."""
        return agent_for(case).stream(before=self.before)

    def result(self, case: Case) -> AgentResult:
        """Its result."""
        stream = self.stream(case)
        for line in self.lines():
            stream.feed(line)
        stderr = self.stderr.decode("utf-8", "replace")
        return stream.result(self.exit_code, stderr, now=self.ended_at, stopped=self.stopped, zone=UTC)

    def check(self, case: Case, result: AgentResult) -> None:
        """The result is that of the case."""
        assert (result.outcome, result.strays, self.stopped) == (case.outcome, (), case.stopped), result
        assert case.says in (result.reason or ""), result
        if case.lifted_after is None:
            assert result.until is None
        else:
            assert result.until is not None
            assert abs((result.until - self.ended_at).total_seconds() - case.lifted_after) < 90
        if case.tokens is not None:
            assert result.usage is not None
            assert result.usage.input_tokens == case.tokens
        assert bool(result.text) == (result.outcome is Outcome.OK) or result.outcome in (
            Outcome.REFUSED,
            Outcome.FAILED,
        )
