"""Row 35: steps are called from steps, in contexts, threads and greenlets that are drawn at random."""

from __future__ import annotations

import contextvars
import importlib.util
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from reliability.tiers import Figures, Tier
from support import DEADLINE, wait_until
from support_processes import in_thread

from iso_orchestrator import DeadlockError, MemoryStore, NoActiveWorkflowError, StepTimeoutError, Workflow, current_step

ROW = 35
NAMES = "abcd"
DEEPEST = 5
LATE = DEADLINE / 3  # seconds
TIMEOUT = 0.1  # seconds
HAS_GREENLETS = importlib.util.find_spec("greenlet") is not None  # it is no dependency of the tests


class _Run:
    """Threads whose steps call steps of the same few names.

    Attributes:
        calls: How many calls of a step have ended, by how they ended.
        nested: Steps that ran while they ran already, except in a body that had outlived its timeout.
    """

    def __init__(self, seed: str) -> None:
        self.calls: Counter[str] = Counter()
        self._overlaps: list[tuple[str, set[str]]] = []  # steps that began, and the calls that were in their bodies
        self._late: set[str] = set()
        self._running: dict[str, set[str]] = {name: set() for name in NAMES}
        self._guard = threading.Lock()
        self._seed = seed
        self._workflow = Workflow("w", store=MemoryStore())

    @property
    def nested(self) -> list[str]:
        return [name for name, others in self._overlaps if not others <= self._late]

    def work(self, threads: int) -> list[BaseException]:
        """Call steps in so many threads at once; the errors that no caller expects."""
        futures = [in_thread(self._call, random.Random(f"{self._seed} {number}"), 0) for number in range(threads)]
        errors = [future.exception(LATE) for future in futures]
        wait_until(lambda: not any(self._running.values()), what="the end of bodies that outlived their timeouts")
        in_thread(self._workflow.close).result(LATE)
        return [error for error in errors if error is not None]

    def _call(self, draw: random.Random, depth: int) -> None:
        name, timeout = draw.choice(NAMES), draw.choice((None, TIMEOUT))
        key = str(draw.random())  # each time another one: a completed step would not run again
        try:
            self._workflow.run_step(name, self._body, name, key, draw, depth, timeout=timeout, idempotency_key=key)
            how = "ended"
        except DeadlockError:
            how = "refused"
        except StepTimeoutError:
            how = "late"
            self._late.add(key)
        with self._guard:
            self.calls[how] += 1

    def _body(self, name: str, key: str, draw: random.Random, depth: int) -> None:
        with self._guard:
            self._overlaps.append((name, self._running[name].copy()))
            self._running[name].add(key)
        try:
            if depth < DEEPEST:
                draw.choice(WAYS)(lambda: self._call(draw, depth + 1))
        finally:
            with self._guard:
                self._running[name].remove(key)


def _in_a_thread(work: Callable[[], Any]) -> None:
    try:
        current_step()
    except NoActiveWorkflowError:  # of a thread with a new context nobody can know that this one waits for it
        work()
    else:
        in_thread(contextvars.copy_context().run, work).result(LATE)


def _in_a_greenlet(work: Callable[[], Any]) -> None:
    import greenlet  # type: ignore[import-not-found, import-untyped, unused-ignore]

    greenlet.greenlet(work).switch()


WAYS: list[Callable[[Callable[[], Any]], Any]] = [
    lambda work: work(),
    lambda work: contextvars.Context().run(work),
    lambda work: contextvars.copy_context().run(work),
    _in_a_thread,
]
if HAS_GREENLETS:
    WAYS.append(_in_a_greenlet)


def test_no_step_runs_inside_of_itself_or_waits_for_itself(tier: Tier, figures: Figures) -> None:
    """Wherever a step is called, it runs once at a time, and no call hangs."""
    draw = tier.random("contexts")
    calls, found = Counter[str](), 0
    for number in range(tier.count(quick=40, full=500, soak=100_000)):
        run = _Run(f"{draw.random()} {number}")
        errors = run.work(threads=draw.choice((1, 1, 2, 4)))
        calls, found = calls + run.calls, found + len(run.nested) + len(errors)
        assert not errors, errors
        assert not run.nested
    figures.add(ROW, "calls of steps in steps, in other contexts", calls.total(), found)
    figures.add(ROW, "of these refused, since they would wait for ever", calls["refused"])
    figures.add(ROW, "of these ended by their timeout", calls["late"])
    assert calls["ended"] > 0
    assert calls["refused"] > 0
