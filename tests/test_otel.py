"""Spans of OpenTelemetry, as the SDK exports them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `test`")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from iso_orchestrator import CommandError, Limited, MemoryStore, Retry, Workflow
from iso_orchestrator.agents import Claude
from iso_orchestrator.otel import instrument

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAND_IN = [sys.executable, "-m", "iso_orchestrator.agents.stand_in", "claude"]


class Spans:
    """A provider whose spans stay in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def workflow(self, **options: Any) -> Workflow:
        workflow = Workflow("batch", **({"store": MemoryStore()} | options))
        instrument(workflow, tracer_provider=self.provider)
        return workflow

    def all(self) -> list[ReadableSpan]:
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Spans]:
    monkeypatch.delenv("TRACEPARENT", raising=False)
    monkeypatch.setenv("ISO_ORCHESTRATOR_DIR", str(tmp_path))  # for the logs of commands
    yield Spans()
    assert not trace.get_current_span().get_span_context().is_valid  # nothing of the run stays current


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def test_a_run_has_a_span_for_each_attempt(spans: Spans) -> None:
    """Attempts are inside of their run, nested ones in the step around, also in the threads of a for_each."""
    workflow = spans.workflow()
    tries = []

    @workflow.step(name="fetch:{n}", retry=2)
    def fetch(n: int) -> int:
        tries.append(n)
        if tries == [2] or (tries.count(2) == 1 and n == 2):
            raise ValueError("not yet")
        return workflow.run_step(f"nested({n})", abs, n)

    with workflow:
        workflow.run_for_each([1, 2], fetch, max_parallel=2)
    [run] = spans.named("workflow.run")
    attempts, nested = spans.named("step fetch"), spans.named("step nested")
    assert (run.kind, run.parent, run.status.status_code) == (SpanKind.INTERNAL, None, StatusCode.UNSET)
    assert run.attributes["iso_orchestrator.workflow.id"] == "batch"
    shown = [(s.attributes["iso_orchestrator.step.name"], s.attributes["iso_orchestrator.attempt"]) for s in attempts]
    assert sorted(shown) == [("fetch:1", 1), ("fetch:2", 1), ("fetch:2", 2)]
    assert {parent_of(span) for span in attempts} == {run.context.span_id}
    [failed] = [span for span in attempts if span.status.status_code is StatusCode.ERROR]
    assert failed.attributes["error.type"] == "ValueError"
    assert failed.status.description == "not yet"
    done = [span for span in attempts if span is not failed]
    assert sorted(map(parent_of, nested)) == sorted(span.context.span_id for span in done)
    assert all(span.end_time >= span.start_time for span in spans.all())


def test_the_span_of_a_step_is_current_in_its_body(spans: Spans) -> None:
    """A user's own spans are inside of the step's, and after a failed run nothing is current any more."""
    workflow = spans.workflow()

    def work() -> None:
        spans.provider.get_tracer("mine").start_span("mine").end()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), workflow:
        workflow.run_step("work", work)
    [step], [mine], [run] = map(spans.named, ("step work", "mine", "workflow.run"))
    assert parent_of(mine) == step.context.span_id
    assert run.attributes["error.type"] == "ValueError"
    assert run.status.status_code is StatusCode.ERROR


def test_a_run_continues_the_trace_around_it(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is the current span, or that of the environment."""
    monkeypatch.setenv("TRACEPARENT", PARENT)
    workflow = spans.workflow()
    with workflow:
        pass
    with spans.provider.get_tracer("mine").start_as_current_span("mine") as mine, workflow:
        pass
    first, second = spans.named("workflow.run")
    assert f"{first.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{parent_of(first):016x}" == PARENT.split("-")[2]
    assert parent_of(second) == mine.get_span_context().span_id


def test_waits_of_a_second_have_spans(spans: Spans) -> None:
    """A limit and a pause between attempts have one, shorter waits have none."""
    workflow = spans.workflow()
    errors: list[Exception] = [
        Limited(datetime.now(UTC) + timedelta(seconds=1.2), key="site"),
        ValueError("once"),
        ValueError("twice"),
    ]

    @workflow.step(retry=Retry(attempts=3, wait=lambda state: 1.1 if state.attempt_number == 1 else 0.1))
    def fetch() -> None:
        if errors:
            raise errors.pop(0)

    with workflow:
        fetch()
    [limit], [backoff] = spans.named("wait limit"), spans.named("wait backoff")
    for wait in (limit, backoff):
        assert 1.0 <= (wait.end_time - wait.start_time) / 1e9 < 10
        assert wait.attributes["iso_orchestrator.step.name"] == "fetch"
    types = [span.attributes.get("error.type") for span in spans.named("step fetch")]
    assert types == ["Limited", "ValueError", "ValueError", None]


def test_items_and_keys_are_attributes(spans: Spans) -> None:
    """A step of an item says which item of which batch it is, and under which key; a long wait for that has a span."""
    workflow = spans.workflow()

    @workflow.for_each(max_parallel=2, mutex_key="{shop}")
    @workflow.step(name="review:{shop}")
    def review(shop: str) -> None: ...

    holding, free = threading.Event(), threading.Event()

    def hold() -> None:
        with workflow.mutex("mail"):
            holding.set()
            free.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(20)
    timer = threading.Timer(1.2, free.set)
    timer.start()
    with workflow:
        review(["shop", "mail"])
        workflow.run_step("review:alone", lambda: None)
    holder.join()
    shown = {
        span.attributes["iso_orchestrator.step.name"]: [
            span.attributes.get(f"iso_orchestrator.{name}") for name in ("batch", "item", "key")
        ]
        for span in spans.named("step review")
    }
    assert shown == {
        "review:shop": ["review", 0, "shop"],
        "review:mail": ["review", 1, "mail"],
        "review:alone": [None, None, None],
    }
    [wait] = spans.named("wait key")
    assert 1.0 <= (wait.end_time - wait.start_time) / 1e9 < 20
    assert wait.attributes["iso_orchestrator.key"] == "mail"
    assert [listener.has_failed for listener in workflow._runtime.listeners] == [False]


def test_a_command_has_a_span_and_is_told_of_it(spans: Spans) -> None:
    """A command's span has its program, but no arguments; its environment names that span."""
    workflow = spans.workflow()

    @workflow.command(name="show:{code}")
    def show(code: int) -> list[str]:
        return ["sh", "-c", 'echo "$TRACEPARENT"; exit "$1"', "sh", str(code)]

    with workflow:
        told = show(0).stdout.strip()
        with pytest.raises(CommandError):
            show(3)
    good, bad = spans.named("sh")
    assert good.kind is SpanKind.CLIENT
    assert told.split("-")[1:3] == [f"{good.context.trace_id:032x}", f"{good.context.span_id:016x}"]
    assert parent_of(good) == spans.named("step show")[0].context.span_id
    assert good.attributes["process.executable.name"] == "sh"
    assert good.attributes["process.pid"] > 1
    assert (good.attributes["process.exit.code"], bad.attributes["process.exit.code"]) == (0, 3)
    assert (bad.attributes["error.type"], bad.status.status_code) == ("CommandError", StatusCode.ERROR)
    assert not any("TRACEPARENT" in str(span.attributes) for span in spans.all())


def test_an_agent_has_the_attributes_of_the_conventions(spans: Spans) -> None:
    """An agent's span says what was asked of which model, the tokens and the cost."""
    workflow = spans.workflow()
    claude = Claude(program=STAND_IN, args=["--model", "opus"])

    @workflow.command(parse=claude)
    def ask():
        return claude.command("Say hello.")

    with workflow:
        result = ask().parsed
    [span] = spans.named("invoke_agent claude")
    assert span.kind is SpanKind.CLIENT
    expected = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "claude",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "opus",
        "gen_ai.conversation.id": result.session_id,
        "gen_ai.usage.input_tokens": result.usage.input_tokens,
        "gen_ai.usage.output_tokens": result.usage.output_tokens,
        "iso_orchestrator.cost_usd": result.cost_usd,
        "process.exit.code": 0,
    }
    assert {name: span.attributes[name] for name in expected} == expected


DYING = """
import os, signal, sys
from opentelemetry.sdk.trace import TracerProvider
from iso_orchestrator import Workflow
from iso_orchestrator.otel import instrument
workflow = Workflow("batch", dir=sys.argv[1])
instrument(workflow, tracer_provider=TracerProvider())
with workflow:
    workflow.run_step("die", lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_resumed_run_has_a_link_to_the_run_that_died(spans: Spans, tmp_path: Path) -> None:
    """The link leads to the span that the killed process could not export; a run after a good end has none."""
    died = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], env={**os.environ})
    assert died.returncode == -signal.SIGKILL
    workflow = spans.workflow(dir=tmp_path, store=None)
    with workflow:
        workflow.run_step("die", lambda: None)
    with workflow:
        pass
    [traced, *_] = [event.detail for event in workflow.record.events if event.type == "workflow.traced"]
    first, second = spans.named("workflow.run")
    [link] = first.links
    assert traced["traceparent"].split("-")[1:3] == [f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}"]
    assert link.context.span_id != first.context.span_id
    assert not second.links


def test_a_second_call_does_nothing(spans: Spans) -> None:
    """No span is made twice."""
    workflow = spans.workflow()
    instrument(workflow, tracer_provider=spans.provider)
    workflow.run_step("one", lambda: 1)
    assert len(spans.all()) == 1


def test_without_opentelemetry_it_says_what_to_install() -> None:
    """The import names the extra that is missing."""
    code = "import sys; sys.modules['opentelemetry'] = None; import iso_orchestrator.otel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert 'pip install "iso-orchestrator[otel]"' in done.stderr
