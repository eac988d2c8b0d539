"""Streams: any output of a CLI gives a sound result, and raises no error."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from agent_cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import RecordedRun

from iso_orchestrator.agents import Agent, AgentResult, Claude, Codex, OpenCode, Outcome, Transcript
from iso_orchestrator.codec.values import ResultCodec

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
AGENTS: list[Agent] = [Codex(), Claude(), OpenCode()]
IDS = [agent.name for agent in AGENTS]

ODD_LINES = [
    "",
    "not JSON",
    "null",
    "[]",
    "3",
    '"type"',
    "{}",
    '{"type": null}',
    '{"type": "a new kind of event"}',
    '{"type": "error", "message": null}',
    '{"type": "error", "error": {}}',
    '{"type": "error", "error": {"data": {"message": "", "statusCode": 429, "responseHeaders": []}}}',
    '{"type": "turn.completed", "usage": {"input_tokens": -1, "output_tokens": 1e3, "cached_input_tokens": true}}',
    '{"type": "result", "is_error": false, "subtype": "success", "result": null, "usage": [], "modelUsage": {"m": 3}}',
    '{"type": "result", "errors": [[]], "permission_denials": [null, {}], "total_cost_usd": "much"}',
    '{"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1e300}}',
    '{"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": -99999999999999}}',
    '{"type": "step_finish", "part": {"reason": {}, "tokens": {"cache": {}}, "cost": -1}}',
    '{"type": "text", "timestamp": ' + "9" * 400 + ', "part": {"text": "a"}}',
    '{"type": "thread.started", "thread_id": "--dangerously-bypass-approvals-and-sandbox"}',
    '{"type": "item.completed", "item": {"type": "agent_message", "text": "\\ud800"}}',
    '{"type": "turn.failed", "error": {"message": "try again at 99:99 PM, resets Feb 31st, 2026 3pm (Nowhere/Land)"}}',
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"type": "x", "n": NaN}',
    "\udcff\udcfe",
    "\x00\x1b[31m",
    "x" * 1_000_000,
]


def words(text: str) -> list[str]:
    return text.split()


KINDS = words(
    "thread.started turn.started turn.completed turn.failed item.completed error system assistant user result "
    "rate_limit_event step_start step_finish text tool_use reasoning"
)
KEYS = words(
    "subtype session_id thread_id sessionID item part message error data content text name result usage modelUsage "
    "is_error tokens cost reason state status input rate_limit_info resetsAt timestamp permission_denials errors"
)

atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["rejected", "success"])
values = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
events = st.builds(
    lambda kind, rest: json.dumps({"type": kind, **rest}),
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(KEYS), values, max_size=5),
)
lines = st.one_of(events, st.text(), st.sampled_from(ODD_LINES[:-4]))


def fed(agent: Agent, printed: list[str], exit_code: int | None = 0, stderr: str = "") -> AgentResult:
    """The result of an agent that printed some lines."""
    stream = agent.stream()
    for line in printed:
        stream.feed(line)
    return stream.result(exit_code, stderr, now=NOW, zone=UTC)


def recorded(result: AgentResult) -> Any:
    """A result, written to a record and read back."""
    codec = ResultCodec(AgentResult)
    data, _ = codec.round_trip(result, "the result")
    json.dumps(data, ensure_ascii=False).encode()
    return codec.load(data, "the result")


@pytest.mark.parametrize("agent", AGENTS, ids=IDS)
@pytest.mark.parametrize("line", ODD_LINES, ids=lambda line: line[:30])
def test_odd_lines_alone_are_not_ok(agent: Agent, line: str) -> None:
    """A line of garbage raises no error, and its result can be recorded."""
    result = fed(agent, [line])
    assert result.outcome is not Outcome.OK
    assert recorded(result) == result


@pytest.mark.parametrize("case", [case for case in CASES if case.name == "tool"], ids=str)
def test_odd_lines_between_good_ones_change_nothing(case: Any) -> None:
    """A good run with garbage in the middle is ok, and the garbage is kept as it came."""
    run = RecordedRun.load(case)
    garbage = ["not JSON", '{"type": "a new kind of event"}', "[1]"]
    good = run.lines()
    stream = run.stream(case)
    for line in [*good[:2], *garbage, *good[2:]]:
        stream.feed(line)
    result = stream.result(0, now=NOW)
    assert (result.outcome, result.strays) == (Outcome.OK, tuple(garbage))


@given(printed=st.lists(lines, max_size=12), exit_code=st.sampled_from([0, 1, -15, 143, None]), stderr=st.text())
@pytest.mark.parametrize("agent", AGENTS, ids=IDS)
def test_no_output_raises(agent: Agent, printed: list[str], exit_code: int | None, stderr: str) -> None:
    """Any lines in any order give a result that can be recorded, ok only with an answer and a closed turn."""
    result = fed(agent, printed, exit_code, stderr)
    if result.outcome is Outcome.OK:
        assert result.closing is not None
        assert result.text.strip()
        assert result.reason is None
    else:
        assert result.reason
    assert (result.until is None) or result.outcome is Outcome.LIMITED
    assert recorded(result) == result


def test_unparsed_lines_are_bounded() -> None:
    """The last twenty lines that were not understood are kept, each cut at 500 characters."""
    result = fed(Codex(), [f"{number} {'x' * 10_000}" for number in range(1000)])
    assert [stray.split()[0] for stray in result.strays] == [str(number) for number in range(980, 1000)]
    assert max(map(len, result.strays)) == 500


def test_an_answer_may_be_long() -> None:
    """An answer of ten megabytes is kept whole, and its event is not kept beside it."""
    answer = "a" * 10_000_000
    closing = {"type": "result", "subtype": "success", "is_error": False, "result": answer}
    result = fed(Claude(), [json.dumps(closing)])
    assert (result.outcome, len(result.text), result.closing) == (Outcome.OK, len(answer), None)


def test_the_last_line_is_for_people() -> None:
    """A running stream has a line to show: what the agent last said or did, never JSON."""
    stream = Claude().stream()
    shown = []
    for content in (
        {"type": "text", "text": "I look.\nThen I act.\n"},
        {"type": "tool_use", "name": "Bash", "input": {"command": "ls"}},
    ):
        stream.feed(json.dumps({"type": "assistant", "message": {"content": [content]}}))
        shown.append(stream.last_line)
    assert shown == ["Then I act.", "Bash: ls"]


def test_an_error_before_a_good_end_does_not_count() -> None:
    """Codex reconnects after an error; the end of the turn decides."""
    answer = '{"type":"item.completed","item":{"type":"agent_message","text":"Hello."}}'
    error = '{"type":"error","message":"Reconnecting... 1/5 (429 Too Many Requests)"}'
    assert fed(Codex(), [error, answer, '{"type":"turn.completed"}']).outcome is Outcome.OK
    assert fed(Codex(), [answer, '{"type":"turn.completed"}', error]).outcome is Outcome.LIMITED


@pytest.mark.parametrize(("days", "is_known"), [(7.9, True), (8.1, False), (1_136_000, False)])
def test_a_limit_that_ends_in_years_ends_at_an_unknown_time(days: float, is_known: bool) -> None:
    """The longest limits are of weeks. Milliseconds that are taken for seconds would be waited for until 5138."""
    until = (NOW + timedelta(days=days)).replace(microsecond=0)
    event = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": until.timestamp()}}
    result = fed(Claude(), [json.dumps(event)], 1)
    assert result.outcome is Outcome.LIMITED
    assert result.until == (until if is_known else None)


def test_an_answer_about_limits_is_no_limit() -> None:
    """Only errors are searched for limits: an agent may write about limits, and fail for another reason."""
    answer = '{"type":"item.completed","item":{"type":"agent_message","text":"You\'ve hit your usage limit."}}'
    assert fed(Codex(), [answer, '{"type":"turn.completed"}']).outcome is Outcome.OK
    assert fed(Codex(), [answer, '{"type":"turn.failed","error":{"message":"no"}}'], 1).outcome is Outcome.FAILED


def test_an_old_error_in_the_log_is_not_why_it_stopped() -> None:
    """Opencode's log counts only after the last event: it has recovered from older errors."""
    log = (
        'timestamp=2026-11-22T11:59:00.000Z level=ERROR run=1 message="stream error" error.error="Rate limit reached."'
    )
    step = '{"type":"step_start","timestamp":%d,"sessionID":"ses_1","part":{}}'
    before, after = (NOW.timestamp() - 120) * 1000, (NOW.timestamp() - 30) * 1000
    assert fed(OpenCode(), [step % before], -15, log).outcome is Outcome.LIMITED
    assert fed(OpenCode(), [step % after], -15, log).outcome is Outcome.FAILED
    assert fed(OpenCode(), [step % after], -15, log.replace("-11-22T", "-99-99T")).outcome is Outcome.LIMITED
    assert fed(OpenCode(), [], -15, log.replace("run=1", "run=1 small=true agent=title")).outcome is Outcome.FAILED


def test_the_provider_says_when_to_try_again() -> None:
    """Opencode's error has the headers of the refusal: seconds from the event, or a date."""
    at = NOW - timedelta(seconds=30)
    for header, seconds in (({"retry-after": "90"}, 60), ({"retry-after-ms": "1500"}, -28.5), ({}, None)):
        data = {"message": "no", "statusCode": 429, "responseHeaders": header}
        error = {"type": "error", "timestamp": at.timestamp() * 1000, "error": {"name": "APIError", "data": data}}
        result = fed(OpenCode(), [json.dumps(error)], 1)
        expected = None if seconds is None else NOW + timedelta(seconds=seconds)
        assert (result.outcome, result.until) == (Outcome.LIMITED, expected)


def test_a_model_may_refuse() -> None:
    """A model's own refusal, and a provider's filter, are refusals too."""
    closing = {"type": "result", "subtype": "success", "is_error": False, "result": "", "stop_reason": "refusal"}
    assert fed(Claude(), [json.dumps(closing)]).outcome is Outcome.REFUSED
    finish = {"type": "step_finish", "part": {"reason": "content-filter"}}
    assert fed(OpenCode(), [json.dumps(finish)]).outcome is Outcome.REFUSED


def test_only_refusals_of_tools_can_be_allowed() -> None:
    """All refusals of tools are allowed, or those of the named ones; they stay in the result. A model's never are."""
    event = {"type": "result", "subtype": "success", "is_error": False, "result": "The plan: ..."}
    denials = [{"tool_name": "ExitPlanMode"}, {"tool_name": "Bash", "tool_input": {"command": "ls"}}]
    closing = json.dumps({**event, "permission_denials": denials})
    for allowed, outcome, reason in (
        (False, Outcome.REFUSED, "ExitPlanMode; Bash: ls"),
        ({"ExitPlanMode"}, Outcome.REFUSED, "Bash: ls"),
        (["ExitPlanMode", "Bash"], Outcome.OK, None),
        (True, Outcome.OK, None),
    ):
        result = fed(Claude(allow_refusals=allowed), [closing])
        assert (result.outcome, result.reason) == (outcome, reason)
        assert result.refusals == ("ExitPlanMode", "Bash: ls")
    for agent in (Codex(allow_refusals={"command_execution"}), OpenCode(allow_refusals={"bash"})):
        assert agent.allow_refusals is not True
    refusal = json.dumps({**event, "stop_reason": "refusal"})
    assert fed(Claude(allow_refusals=True), [refusal]).outcome is Outcome.REFUSED


@pytest.mark.parametrize("names", ["ExitPlanMode", None, 1, [1]])
def test_names_of_tools_are_checked(names: Any) -> None:
    """A single str would be taken for a set of letters."""
    with pytest.raises(TypeError, match="allow_refusals takes "):
        Claude(allow_refusals=names)


def test_an_allowed_refusal_closes_no_turn() -> None:
    """Opencode ends at a refusal, without an answer: that is no success, also where the refusal is allowed."""
    state = {"status": "error", "error": "The user rejected permission to use this specific tool call."}
    tool = {"type": "tool_use", "part": {"tool": "bash", "state": {**state, "input": {"command": "ls"}}}}
    finish = {"type": "step_finish", "part": {"reason": "tool-calls"}}
    printed = [json.dumps(tool), json.dumps(finish)]
    assert fed(OpenCode(), printed).outcome is Outcome.REFUSED
    result = fed(OpenCode(allow_refusals=True), printed)
    assert (result.outcome, result.reason) == (Outcome.FAILED, "ended with 0: it never closed its turn")


@pytest.mark.parametrize("exit_code", [0, 1, -15, None])
def test_an_answer_counts_with_any_exit_code(exit_code: int | None) -> None:
    """A closed turn with text is ok. Without text it is empty, or what the error says."""
    say = '{"type":"item.completed","item":{"type":"agent_message","text":"Hello."}}'
    end = '{"type":"turn.completed"}'
    assert fed(Codex(), [say, end], exit_code, "error: usage limit reached").outcome is Outcome.OK
    assert fed(Codex(), [end], exit_code).outcome is Outcome.EMPTY
    assert fed(Codex(), [say], exit_code).outcome is Outcome.FAILED
    stream = Codex().stream()
    for line in (say, end):
        stream.feed(line)
    assert stream.result(exit_code, now=NOW, stopped="Ctrl-C").outcome is Outcome.FAILED


@pytest.mark.parametrize("agent", AGENTS, ids=IDS)
def test_output_without_events_says_so(agent: Agent) -> None:
    """Plain text instead of events, as with another output format, is named as the reason, and is no limit."""
    for exit_code, stderr in ((0, ""), (0, "Warning: no stdin data"), (1, "")):
        result = fed(agent, ["You've hit your", "usage limit."], exit_code, stderr)
        assert result.outcome is Outcome.FAILED
        assert result.reason is not None
        assert "none of its output is an event (the last line: 'usage limit.')" in result.reason
    assert fed(agent, []).reason == "ended with 0: it printed no events"
    assert fed(agent, [], 1, "error: unknown flag").reason == "ended with 1: error: unknown flag"


def test_now_is_aware() -> None:
    """A naive clock is refused."""
    with pytest.raises(ValueError, match="naive"):
        Codex().stream().result(0, now=datetime(2026, 1, 1))


def test_an_agent_of_ones_own_is_one_small_class() -> None:
    """Another CLI needs two methods, and is classified as the others are."""

    @attrs.frozen(kw_only=True)
    class Plain(Agent):
        name = "plain"

        def arguments(self, session_id: str | None, *, resume: bool) -> list[str]:
            return ["--json", *self.args]

        def read(self, event: dict[str, Any], transcript: Transcript) -> bool:
            match event:
                case {"answer": str(answer)}:
                    transcript.say(answer)
                    transcript.close()
                case _:
                    return False
            return True

    agent = Plain(args=["--fast"])
    assert agent.command("Go.").args == ("plain", "--json", "--fast")
    assert fed(agent, ['{"answer": "Yes."}']).outcome is Outcome.OK
    assert fed(agent, ['{"answer": ""}']).outcome is Outcome.EMPTY
    assert fed(agent, [], 1, "usage limit reached, try again in 5m").until == NOW + timedelta(minutes=6)
