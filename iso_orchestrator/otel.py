"""Spans of OpenTelemetry for a workflow: its runs, steps, waits, commands and agents. Needs the extra ``otel``.

They are made from the events that this process appends, and have the times of those. While a run or a step goes on, its
span is the current one, so that spans of other libraries are inside of it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import attrs

from iso_orchestrator.agents.turn import AgentResult
from iso_orchestrator.commands.model import Command, CommandResult
from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.notes import message_of
from iso_orchestrator.record.drafts import group_of
from iso_orchestrator.record.events import RUN_DIED
from iso_orchestrator.record.facts import EventAppended
from iso_orchestrator.record.model import Json, WorkflowEvent
from iso_orchestrator.runtime.runtime import WorkflowRuntime
from iso_orchestrator.workflow import Workflow

try:
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as missing:
    raise WorkflowUsageError('iso_orchestrator.otel needs pip install "iso-orchestrator[otel]"') from missing

# All names of spans and attributes. Those of `gen_ai` are in development: they may change with the conventions.
RUN, STEP, WAIT, INVOKE_AGENT = "workflow.run", "step", "wait", "invoke_agent"
WORKFLOW_ID = "iso_orchestrator.workflow.id"
RUN_NUMBER = "iso_orchestrator.run"
STEP_NAME = "iso_orchestrator.step.name"
ATTEMPT = "iso_orchestrator.attempt"
KEY = "iso_orchestrator.key"
BATCH = "iso_orchestrator.batch"
ITEM = "iso_orchestrator.item"
COST = "iso_orchestrator.cost_usd"  # no convention has it
ERROR_TYPE = "error.type"
EXECUTABLE, PID, EXIT_CODE = "process.executable.name", "process.pid", "process.exit.code"
OPERATION = "gen_ai.operation.name"
AGENT = "gen_ai.agent.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
CONVERSATION = "gen_ai.conversation.id"
USAGE = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
}
PROVIDERS = {"codex": "openai", "claude": "anthropic"}

TRACED = "workflow.traced"
"""The event that says which span a run has, so that the run after its death can link to it."""

_LEAST_WAIT = timedelta(seconds=1)
_LONGEST_STATUS = 300  # characters of an error
_MODEL_OPTIONS = ("-m", "--model")

_instrumented: weakref.WeakSet[WorkflowRuntime] = weakref.WeakSet()
_propagator = TraceContextTextMapPropagator()


def instrument(workflow: Workflow, *, tracer_provider: trace.TracerProvider | None = None) -> None:
    """Make spans of what this process does in *workflow* from now on. A second call does nothing.

    A run is inside of the span that is current where it begins, else in that of the environment's ``TRACEPARENT``. One
    after a run that died has a link to it. Commands get a ``TRACEPARENT`` of their own.

    Args:
        workflow: The workflow.
        tracer_provider: Makes the spans. Default: the global one.

    Example:
        >>> from iso_orchestrator import Workflow
        >>> workflow = Workflow("batch", store="memory://otel")
        >>> instrument(workflow)
    """
    runtime = workflow._runtime
    if runtime in _instrumented:
        return
    _instrumented.add(runtime)
    tracing = _Tracing(runtime, trace.get_tracer("iso_orchestrator", tracer_provider=tracer_provider))
    runtime.add_listener(tracing.on_event)
    runtime.around_command = tracing.around_command


@attrs.frozen
class _Open:
    """A span that has begun, and what was current before it. *number* is that of a run."""

    span: trace.Span
    before: context.Context
    number: Json = None


class _Tracing:
    """Turns events into spans. Those of one step, and those of one run, come in order and in one thread."""

    def __init__(self, runtime: WorkflowRuntime, tracer: trace.Tracer) -> None:
        self._runtime = weakref.ref(runtime)
        self._now = runtime.clock.now
        self._common = {WORKFLOW_ID: runtime.workflow_id}
        self._tracer = tracer
        self._runs: list[_Open] = []
        self._steps: dict[str, _Open] = {}
        self._waits: dict[str, tuple[str, datetime]] = {}  # of steps: what they wait for, since when
        self._batches: dict[Json, str] = {}
        self._keys: dict[object, str] = {}  # mutex keys of items and steps

    def on_event(self, event: WorkflowEvent) -> None:
        """Begin and end spans."""
        detail: dict[str, Any] = event.detail if isinstance(event.detail, dict) else {}
        match event.type:
            case "workflow.running":
                self._begin_run(event.at, detail)
            case "workflow.completed" | "workflow.failed" if not _is_death(detail):
                self._end_run(event.at, detail)
            case "batch.started":
                self._batches[detail["batch"]] = detail["name"]
            case "batch.ended":
                self._batches.pop(detail["batch"], None)
            case "mutex.acquired":
                self._note_key(detail)
            case "mutex.released":
                self._keys = {owner: key for owner, key in self._keys.items() if key != detail["key"]}
            case "step.waiting" if detail.get("for") is None:
                self._waits.setdefault(detail["step"], ("limit", event.at))
            case "step.started":
                self._begin_step(event.at, detail)
            case "step.completed" | "step.failed" | "step.abandoned":
                self._end_step(event.at, detail)
            case "step.retrying":
                self._end_step(event.at, detail)
                self._waits[detail["step"]] = "backoff", event.at
            case "step.limited":
                self._end_step(event.at, {**detail, "error": {"name": "Limited"}})
                self._waits[detail["step"]] = "limit", event.at

    # Runs.

    def _begin_run(self, at: datetime, detail: dict[str, Any]) -> None:
        parent = context.get_current()
        if not trace.get_current_span(parent).get_span_context().is_valid:
            parent = _propagator.extract({"traceparent": os.environ.get("TRACEPARENT", "")}, parent)
        links = [trace.Link(dead) for dead in self._dead_runs()]
        attributes = self._common | ({RUN_NUMBER: detail["run"]} if "run" in detail else {})
        span = self._tracer.start_span(RUN, parent, attributes=attributes, links=links, start_time=_ns(at))
        self._runs.append(_enter(span, detail.get("run")))
        runtime, carrier = self._runtime(), _carrier()
        if runtime is not None and carrier:
            traced = EventAppended(at, TRACED, detail={**carrier, "run": detail.get("run")})
            runtime.transact(lambda _: ([traced], None), durable=False, fences=())

    def _end_run(self, at: datetime, detail: dict[str, Any]) -> None:
        # The status that a user sets has events of the same types, without a number.
        run = next((run for run in reversed(self._runs) if run.number == detail.get("run")), None)
        if run is not None:
            self._runs.remove(run)
            if not self._runs:
                self._waits.clear()  # of steps that the run has given up
            _leave(run, at, detail.get("error"))

    def _dead_runs(self) -> list[trace.SpanContext]:
        """The spans of the runs that have died since the last one before this began."""
        runtime = self._runtime()
        events: list[WorkflowEvent] = [] if runtime is None else runtime.look(lambda projection: [*projection.events])
        spans: dict[Json, str] = {}  # of runs: by their number, else in their order
        dead: list[Json] = []
        since: list[Json] = []
        last: Json = 0
        for event in events:
            detail: dict[str, Any] = event.detail if isinstance(event.detail, dict) else {}
            if event.type == "workflow.running":
                dead, since = since, []
                last = detail.get("run", len(spans) + 1)
                spans[last] = detail.get("traceparent", "")
            elif event.type == TRACED:
                spans[detail.get("run", last)] = detail.get("traceparent", "")
            elif event.type == "workflow.failed" and _is_death(detail):
                since.append(detail.get("run", last))
        found = (trace.get_current_span(_propagator.extract({"traceparent": spans.get(run, "")})) for run in dead)
        return [span.get_span_context() for span in found if span.get_span_context().is_valid]

    # Steps.

    def _begin_step(self, at: datetime, detail: dict[str, Any]) -> None:
        name = detail["step"]
        attributes = {**self._common, STEP_NAME: name, ATTEMPT: detail["attempt"]}
        item = detail.get("item")
        if item:
            number, attributes[ITEM] = item
            attributes |= {BATCH: self._batches[number]} if number in self._batches else {}
        key = self._keys.get(name) or self._keys.get(tuple(item or ()))
        if key is not None:
            attributes[KEY] = key
        kind, since = self._waits.pop(name, ("", at))
        if kind:
            self._wait(kind, since, at, {STEP_NAME: name})
        span = self._tracer.start_span(f"{STEP} {group_of(name)}", attributes=attributes, start_time=_ns(at))
        self._steps[name] = _enter(span)

    def _end_step(self, at: datetime, detail: dict[str, Any]) -> None:
        step = self._steps.pop(detail["step"], None)
        if step is not None:
            _leave(step, at, detail.get("error"))

    def _note_key(self, detail: dict[str, Any]) -> None:
        owner = tuple(detail["item"]) if detail.get("item") else detail.get("step")
        if owner is not None:
            self._keys[owner] = detail["key"]
        if "since" in detail and "granted" in detail:
            since, granted = map(datetime.fromisoformat, (detail["since"], detail["granted"]))
            self._wait("key", since, granted, {KEY: detail["key"]})

    def _wait(self, kind: str, since: datetime, until: datetime, attributes: dict[str, str]) -> None:
        if until - since >= _LEAST_WAIT:
            span = self._tracer.start_span(
                f"{WAIT} {kind}", attributes={**self._common, **attributes}, start_time=_ns(since)
            )
            span.end(_ns(until))

    # Commands.

    def around_command(
        self, command: Command, run: Callable[[Command], CommandResult[Any]], pid: Callable[[], int | None]
    ) -> CommandResult[Any]:
        """Run a command in a span of its own, whose trace it is told by its environment."""
        name = os.path.basename(command.args[0])
        span = self._tracer.start_span(
            name, kind=trace.SpanKind.CLIENT, attributes={EXECUTABLE: name}, start_time=_ns(self._now())
        )
        result: CommandResult[Any] | None = None
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                carrier = {key.upper(): value for key, value in _carrier().items()}
                env = {**(os.environ if command.env is None else command.env), **carrier}
                result = run(attrs.evolve(command, env=env) if carrier else command)
                return result
        except BaseException as error:
            result = getattr(error, "result", None) or getattr(error.__cause__, "result", None)
            _set_error(span, {"name": type(error).__name__, "message": message_of(error)})
            raise
        finally:
            span.set_attributes(_told_of(command, pid(), result))
            if result is not None and isinstance(result.parsed, AgentResult):
                span.update_name(f"{INVOKE_AGENT} {result.parsed.agent}")
            span.end(_ns(self._now()))


def _told_of(command: Command, pid: int | None, result: CommandResult[Any] | None) -> dict[str, Any]:
    """The attributes of a command that has ended."""
    attributes: dict[str, Any] = {PID: pid}
    if result is not None:
        attributes[EXIT_CODE] = result.exit_code
        if isinstance(result.parsed, AgentResult):
            attributes |= _told_of_agent(command, result.parsed)
    return {name: value for name, value in attributes.items() if value is not None}


def _told_of_agent(command: Command, agent: AgentResult) -> dict[str, Any]:
    words = [word for argument in command.args for word in argument.split("=", 1)]
    models = [after for word, after in pairwise(words) if word in _MODEL_OPTIONS]  # of which the last counts
    usage = {name: getattr(agent.usage, field, None) for field, name in USAGE.items()}
    return {
        OPERATION: INVOKE_AGENT,
        AGENT: agent.agent,
        PROVIDER: PROVIDERS.get(agent.agent, agent.agent),
        MODEL: models[-1] if models else None,
        CONVERSATION: agent.session_id,
        COST: agent.cost_usd,
        **usage,
    }


def _enter(span: trace.Span, number: Json = None) -> _Open:
    before = context.get_current()
    context.attach(trace.set_span_in_context(span))
    return _Open(span, before, number)


def _leave(one: _Open, at: datetime, error: dict[str, Any] | None) -> None:
    if error is not None:
        _set_error(one.span, error)
    one.span.end(_ns(at))
    # Not `detach`: a run may end in another context than it began in. There, something else is current.
    if trace.get_current_span() is one.span:
        context.attach(one.before)


def _set_error(span: trace.Span, error: dict[str, Any]) -> None:
    span.set_attribute(ERROR_TYPE, error["name"])
    span.set_status(trace.StatusCode.ERROR, str(error.get("message", ""))[:_LONGEST_STATUS])


def _is_death(detail: dict[str, Any]) -> bool:
    return (detail.get("error") or {}).get("name") == RUN_DIED


def _carrier() -> dict[str, str]:
    """The current span, as the W3C writes it; empty if there is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1000) * 1_000_000
