"""Histories that were never run: of any size, with all that views draw."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import attrs

from iso_orchestrator.record.history import (
    AttemptSpan,
    Batch,
    History,
    LimitSpan,
    Outcome,
    RunSpan,
    StepHistory,
    Usage,
    WaitFor,
    WaitSpan,
)
from iso_orchestrator.record.measures import measure
from iso_orchestrator.record.model import ErrorInfo, WorkflowStatus

BEGUN = datetime(2026, 11, 28, 22, 33, 30, 739_000, tzinfo=UTC)
NIGHT = timedelta(hours=9, minutes=12)
WORKERS = 8


def made_history(steps: int, *, seed: int = 1, is_alive: bool = False, has_night: bool = False) -> History:
    """A history of *steps* steps on 8 workers: retries, failures, waits for keys and a limit, a death and a resume."""
    maker = _Maker(random.Random(seed), steps, has_night)
    return maker.history(is_alive=is_alive)


class _Maker:
    def __init__(self, chance: random.Random, count: int, has_night: bool) -> None:
        self._chance, self._count = chance, count
        self._free = [BEGUN] * WORKERS
        self._night = NIGHT if has_night else timedelta()
        self._died: datetime | None = None
        self._limit: LimitSpan | None = None
        self._resumed = BEGUN

    def history(self, *, is_alive: bool) -> History:
        steps = [self._step(number) for number in range(1, self._count + 1)]
        end = max(self._free)
        if is_alive:
            steps.append(self._open_step(self._count + 1, end))
        assert self._died is not None
        state = Outcome.RUNNING if is_alive else Outcome.COMPLETED
        runs = (
            RunSpan(1, BEGUN, self._died, Outcome.INTERRUPTED, 24752, "vm", True, self._resumed, argv=("batch.py",)),
            RunSpan(2, self._resumed, None if is_alive else end, state, 24853, "vm"),
        )  # fmt: skip
        batches = (Batch(1, "review", self._resumed, None if is_alive else end, self._count, WORKERS, run=2),)
        now = end + timedelta(seconds=9)
        return History(
            "nightly-reviews",
            WorkflowStatus.RUNNING if is_alive else WorkflowStatus.COMPLETED,
            BEGUN,
            now if is_alive else end,
            now,
            is_alive,
            runs,
            tuple(steps),
            () if self._limit is None else (self._limit,),
            batches,
            *measure(runs, steps, batches, now),
        )

    def _step(self, number: int) -> StepHistory:
        chance, worker = self._chance, min(range(WORKERS), key=self._free.__getitem__)
        name, key = f"review:{number % 97}:the change {number}", f"key {number % 97}"
        at = self._free[worker]
        attempts: list[AttemptSpan] = []
        waits: list[WaitSpan] = []
        if number == self._count // 3:
            self._die()
            at = self._resumed
        if number == self._count // 2:
            self._limit = LimitSpan("claude", at, at + timedelta(seconds=30), name)
        if self._limit is not None and at < self._limit.until:
            until = self._limit.until
            waits.append(
                WaitSpan(name, WaitFor.LIMIT, at, until, until, "claude", met_by=self._limit.met_by, worker=worker)
            )
            at = until
        if chance.random() < 0.05:
            wait = WaitSpan(name, WaitFor.KEY, at - timedelta(seconds=1), at, key=key, holder="pid 2275", worker=worker)
            waits.append(wait)
        tries = 1 + (chance.random() < 0.1) + (chance.random() < 0.02)
        fails = chance.random() < 0.01
        for attempt in range(1, tries + 1):
            end = at + timedelta(milliseconds=chance.randint(50, 4000))
            outcome = Outcome.RETRIED if attempt < tries else Outcome.FAILED if fails else Outcome.COMPLETED
            error = None if outcome is Outcome.COMPLETED else _error(number)
            cost = Usage("claude", cost_usd=0.01, input_tokens=900, output_tokens=70, session_id=f"session {number}")
            attempts.append(AttemptSpan(name, attempt, at, end, outcome, worker, error=error, run=2, usage=cost))
            at = end
            if attempt < tries:
                at += timedelta(seconds=1)
                waits.append(WaitSpan(name, WaitFor.BACKOFF, end, at, at, worker=worker))
        self._free[worker] = at
        return StepHistory(
            name,
            number,
            "review",
            attempts[-1].outcome,
            tuple(attempts),
            tuple(waits),
            len(attempts),
            3,
            key=key,
            batch=1,
            item=number - 1,
            result={"repository": number % 97, "head": f"{chance.getrandbits(28):07x}"},
            error=attempts[-1].error,
        )

    def _die(self) -> None:
        self._died = max(self._free)
        self._resumed = self._died + timedelta(seconds=5) + self._night
        self._free = [self._resumed] * WORKERS

    def _open_step(self, number: int, at: datetime) -> StepHistory:
        name = "review:mobile:time zones at midnight"
        attempt = AttemptSpan(name, 1, at, None, Outcome.RUNNING, 0, run=2)
        return StepHistory(name, number, "review", Outcome.RUNNING, (attempt,), (), 1, 3)


def _error(number: int) -> ErrorInfo:
    kind = number % 3
    messages = [f"Prompt is too long: {number} tokens", "API Error: 529 overloaded_error", f"no file {number:08x}.txt"]
    frame = f'  File "job.py", line {kind}, in review\n    ask()'
    stack = f"Traceback (most recent call last):\n{frame}\nOSError: {messages[kind]}"
    return ErrorInfo("OSError", messages[kind], stack)


def renamed(history: History, name: str) -> History:
    """The same history, with another name for its first step."""
    first = history.steps[0]
    spans = tuple(attrs.evolve(span, step=name) for span in first.attempts)
    waits = tuple(attrs.evolve(span, step=name) for span in first.waits)
    step = attrs.evolve(first, name=name, attempts=spans, waits=waits)
    return attrs.evolve(history, steps=(step, *history.steps[1:]))
