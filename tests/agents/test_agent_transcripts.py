"""What the real programs printed, whole and cut off anywhere, and what is made of it."""

from __future__ import annotations

import attrs
import pytest
from agent_cases import CASES, Case
from agent_transcripts import DATA, Transcript

from iso_orchestrator.agents import AgentResult, Outcome
from iso_orchestrator.codec.values import ResultCodec

GOOD = [case for case in CASES if case.outcome is Outcome.OK]
CUT_AT_EVERY_BYTE = [case for case in GOOD if case.name in ("ok", "tool")]


def killed(transcript: Transcript, stdout: bytes, exit_code: int | None = -9) -> Transcript:
    """The same run, with only so much of its output."""
    return attrs.evolve(transcript, stdout=stdout, exit_code=exit_code)


def test_every_transcript_is_a_case() -> None:
    """There is one transcript for each case, and none besides."""
    recorded = {f"{path.parent.name}-{path.stem}" for path in DATA.rglob("*.json")}
    assert recorded == {str(case) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_has_its_outcome(case: Case) -> None:
    """Each run is judged as the table of cases has it, and nothing in it is not understood."""
    transcript = Transcript.load(case)
    transcript.check(case, transcript.result(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_result_can_be_recorded(case: Case) -> None:
    """A result comes back from the record as it was."""
    result = Transcript.load(case).result(case)
    codec = ResultCodec(AgentResult)
    assert codec.load(codec.dump(result, "the result"), "the result") == result


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_killed_run_is_never_ok(case: Case) -> None:
    """Whatever was printed before a signal, or before the end of a run that was stopped, it is not ok."""
    transcript = Transcript.load(case)
    assert attrs.evolve(transcript, exit_code=-15).result(case).outcome in (Outcome.FAILED, Outcome.LIMITED)
    assert attrs.evolve(transcript, exit_code=143).result(case).outcome in (Outcome.FAILED, Outcome.LIMITED)
    assert attrs.evolve(transcript, exit_code=None).result(case).outcome in (Outcome.FAILED, Outcome.LIMITED)
    assert attrs.evolve(transcript, stopped="Ctrl-C").result(case).outcome in (Outcome.FAILED, Outcome.LIMITED)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cut_after_any_line_it_is_not_ok(case: Case) -> None:
    """A run that ends before its last line, even with 0, has no answer that is closed."""
    transcript = Transcript.load(case)
    lines = transcript.stdout.splitlines(keepends=True)
    for count in range(len(lines)):
        for exit_code in (0, -9):
            cut = killed(transcript, b"".join(lines[:count]), exit_code)
            assert cut.result(case).outcome is not Outcome.OK, count


@pytest.mark.parametrize("case", CUT_AT_EVERY_BYTE, ids=str)
def test_cut_at_any_byte_it_is_not_ok(case: Case) -> None:
    """A last line that was written in part is no closing event; only its newline may be missing."""
    transcript = Transcript.load(case)
    whole = transcript.stdout.rstrip(b"\n")
    for size in range(len(whole)):
        assert killed(transcript, whole[:size], exit_code=0).result(case).outcome is not Outcome.OK, size
    assert killed(transcript, whole, exit_code=0).result(case).outcome is Outcome.OK


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_the_session_is_known_before_the_answer(case: Case) -> None:
    """The session's name is there with the first event that has it, and stays."""
    transcript = Transcript.load(case)
    stream = transcript.stream(case)
    stream.feed(transcript.lines()[0])
    first = stream.session_id
    assert first is not None
    assert transcript.result(case).session_id == first


def test_a_limit_has_the_end_that_the_event_names() -> None:
    """Where claude tells a limit's end by the second, that is taken, and not the minute of its text."""
    case = next(case for case in CASES if case.name == "limit429_plan")
    transcript = Transcript.load(case)
    result = transcript.result(case)
    assert result.until is not None
    assert f'"resetsAt":{result.until.timestamp():.0f},'.encode() in transcript.stdout


@pytest.mark.parametrize("name", ["codex", "claude", "opencode"])
def test_an_unknown_session_is_forgotten(name: str) -> None:
    """Where the CLI has no such session, none is left to go on with."""
    case = next(case for case in CASES if (case.agent, case.name) == (name, "resumed_unknown"))
    assert Transcript.load(case).result(case).session_id is None


def test_usage_of_a_resumed_session_is_of_this_run() -> None:
    """Codex counts a session's tokens: what was there before is taken off, and the total is kept for the next run."""
    case = next(case for case in CASES if str(case) == "codex-resumed")
    transcript = Transcript.load(case)
    result = transcript.result(case)
    assert transcript.before is not None
    assert result.usage is not None
    assert result.session_usage == transcript.before + result.usage
    assert result.usage.input_tokens == 120


def test_a_total_of_another_session_tells_nothing() -> None:
    """A total that is less than the one before belongs to another session: this run's share is not known."""
    case = next(case for case in CASES if str(case) == "codex-ok")
    transcript = Transcript.load(case)
    total = transcript.result(case).session_usage
    assert total is not None
    result = attrs.evolve(transcript, before=total + total).result(case)
    assert (result.usage, result.session_usage) == (None, total)
