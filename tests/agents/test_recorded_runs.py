"""The recorded output of the real programs, whole and cut anywhere, and its results."""

from __future__ import annotations

import attrs
import pytest
from agent_cases import CASES, Case
from recorded_runs import DATA, RecordedRun

from iso_orchestrator.agents import AgentResult, Outcome
from iso_orchestrator.codec.values import ResultCodec

GOOD = [case for case in CASES if case.outcome is Outcome.OK]
CUT_AT_EVERY_BYTE = [case for case in GOOD if case.name in ("ok", "tool")]


def killed(run: RecordedRun, stdout: bytes, exit_code: int | None = -9) -> RecordedRun:
    """The same run, with only so much of its output."""
    return attrs.evolve(run, stdout=stdout, exit_code=exit_code)


def test_each_case_has_its_recorded_run() -> None:
    """There is one recorded run for each case, and no other."""
    recorded = {f"{path.parent.name}-{path.stem}" for path in DATA.rglob("*.json")}
    assert recorded == {str(case) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_has_its_outcome(case: Case) -> None:
    """Each run has the outcome of the table of cases, and all its lines are understood."""
    run = RecordedRun.load(case)
    run.check(case, run.result(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_result_can_be_recorded(case: Case) -> None:
    """A result is read back from the record as it was."""
    result = RecordedRun.load(case).result(case)
    codec = ResultCodec(AgentResult)
    assert codec.round_trip(result, "the result")[1] == result


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_killed_run_is_ok_only_after_it_was_closed(case: Case) -> None:
    """With any exit code, a run that has closed its turn with an answer is ok. One that was stopped before is not."""
    run = RecordedRun.load(case)
    for exit_code in (1, -15, 143, None):
        outcome = attrs.evolve(run, exit_code=exit_code).result(case).outcome
        assert (outcome is Outcome.OK) is (case.outcome is Outcome.OK)
    assert attrs.evolve(run, stopped="Ctrl-C").result(case).outcome in (Outcome.FAILED, Outcome.LIMITED)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cut_after_any_line_it_is_not_ok(case: Case) -> None:
    """A run that ends before its last line, even with 0, has not closed its turn."""
    run = RecordedRun.load(case)
    lines = run.stdout.splitlines(keepends=True)
    for count in range(len(lines)):
        for exit_code in (0, -9):
            cut = killed(run, b"".join(lines[:count]), exit_code)
            assert cut.result(case).outcome is not Outcome.OK, count


@pytest.mark.parametrize("case", CUT_AT_EVERY_BYTE, ids=str)
def test_cut_at_any_byte_it_is_not_ok(case: Case) -> None:
    """A last line that is not complete is no closing event; only its newline may be missing."""
    run = RecordedRun.load(case)
    whole = run.stdout.rstrip(b"\n")
    for size in range(len(whole)):
        assert killed(run, whole[:size], exit_code=0).result(case).outcome is not Outcome.OK, size
    assert killed(run, whole, exit_code=0).result(case).outcome is Outcome.OK


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_the_session_is_known_before_the_answer(case: Case) -> None:
    """The first event that has the session gives it, and it stays."""
    run = RecordedRun.load(case)
    stream = run.stream(case)
    stream.feed(run.lines()[0])
    first = stream.session_id
    assert first is not None
    assert run.result(case).session_id == first


def test_a_limit_has_the_end_that_the_event_names() -> None:
    """Claude's event has the second of the end, which counts more than the minute in its text."""
    case = next(case for case in CASES if case.name == "limit429_plan")
    run = RecordedRun.load(case)
    result = run.result(case)
    assert result.until is not None
    assert f'"resetsAt":{result.until.timestamp():.0f},'.encode() in run.stdout


@pytest.mark.parametrize("name", ["codex", "claude", "opencode"])
def test_an_unknown_session_is_not_resumed_again(name: str) -> None:
    """A run that the CLI had no session for has no session to resume."""
    case = next(case for case in CASES if (case.agent, case.name) == (name, "resumed_unknown"))
    assert RecordedRun.load(case).result(case).session_id is None


def test_usage_of_a_resumed_session_is_of_this_run() -> None:
    """Codex counts a session's tokens: those of before are subtracted, and the total is kept for the next run."""
    case = next(case for case in CASES if str(case) == "codex-resumed")
    run = RecordedRun.load(case)
    result = run.result(case)
    assert run.before is not None
    assert result.usage is not None
    assert result.session_usage == run.before + result.usage
    assert result.usage.input_tokens == 120


def test_a_total_of_another_session_is_not_used() -> None:
    """A total below the one before belongs to another session: the tokens of this run are not known."""
    case = next(case for case in CASES if str(case) == "codex-ok")
    run = RecordedRun.load(case)
    total = run.result(case).session_usage
    assert total is not None
    result = attrs.evolve(run, before=total + total).result(case)
    assert (result.usage, result.session_usage) == (None, total)
