"""32 threads on one workflow, switched between as often as Python can: no update is lost, no step runs twice."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from reliability.oracle import held_locks
from reliability.tiers import Figures, Tier
from support import DEADLINE, STORES, memory_folder
from support_processes import in_thread

from iso_orchestrator import StepStatus, Workflow
from iso_orchestrator.store import Store

THREADS = 32
TIMES = 3
SHARED = 5  # steps that all threads call


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class _Crowd:
    """The threads, and what each of them was told.

    Attributes:
        numbers: What the state's counter was after each of their updates.
        in_mutex: A counter without any lock of its own.
        ran: The steps whose bodies ran.
        results: What callers got of the steps that all of them call.
        tokens: Of the lease that they take one after another.
    """

    def __init__(self, store: Store) -> None:
        self.numbers: list[int] = []
        self.in_mutex = 0
        self.ran: list[str] = []
        self.results: set[tuple[str, int]] = set()
        self.tokens: list[int] = []
        self._store = store
        self._shared = self.workflow()
        self._start = threading.Barrier(THREADS)

    def workflow(self) -> Workflow:
        return Workflow("w", store=self._store, initial_state={"adds": 0, "steps": 0})

    def work(self) -> None:
        futures = [in_thread(self._thread, number) for number in range(THREADS)]
        for future in futures:
            future.result(4 * DEADLINE)
        self._shared.close()

    def _thread(self, number: int) -> None:
        own = number % 4 == 0  # an object of its own, which it closes while others work
        workflow = self.workflow() if own else self._shared
        self._start.wait(DEADLINE)
        for time in range(TIMES):
            self._do_all(workflow, f"{number}, {time}")
            if own:
                workflow.close()

    def _do_all(self, workflow: Workflow, name: str) -> None:
        self.numbers.append(workflow.update_state(_add("adds"))["adds"])
        workflow.run_step(f"own {name}", self._body, workflow, f"own {name}")
        for number in range(SHARED):
            shared = f"shared {number}"
            self.results.add((shared, workflow.run_step(shared, self._body, workflow, shared)))
        with workflow.mutex("slot"):
            before = self.in_mutex
            workflow.append_event("inside", name)
            self.in_mutex = before + 1
        with workflow.mutex("lease"), workflow.lease("lease", ttl=DEADLINE) as held:
            self.tokens.append(held.token)
        submitted = f"submitted {name}"
        workflow.step(name=submitted)(lambda: self._body(workflow, submitted)).submit().result(DEADLINE)
        workflow.heartbeat(name)

    def _body(self, workflow: Workflow, name: str) -> int:
        workflow.update_state(_add("steps"), with_step=True)
        self.ran.append(name)
        return threading.get_ident()


def _add(key: str) -> Any:
    return lambda state: {**state, key: state[key] + 1}


@pytest.mark.parametrize("kind", STORES)
def test_no_update_is_lost_between_threads(tier: Tier, figures: Figures, kind: str) -> None:
    """Of what threads do at the same time everything is on record once, and each is told what is true."""
    rounds = tier.count(quick=1, full=20, soak=500)
    for _ in range(rounds):
        with memory_folder() as root:
            crowd = _Crowd(STORES[kind](root / "store"))
            crowd.work()
            _check(crowd)
            assert held_locks(root / "store") == []
            assert list(root.rglob("runs/*")) == []
    figures.add(23, f"rounds of 32 threads, {kind} store", rounds)


def _check(crowd: _Crowd) -> None:
    everyone = THREADS * TIMES
    record = crowd.workflow().record
    assert sorted(crowd.numbers) == list(range(1, everyone + 1))
    assert crowd.in_mutex == everyone
    assert sorted(crowd.tokens) == list(range(1, everyone + 1))
    assert [name for name, times in Counter(crowd.ran).items() if times > 1] == []
    assert len(crowd.ran) == len(record.steps) == 2 * everyone + SHARED
    assert {(step.status, step.attempts) for step in record.steps.values()} == {(StepStatus.COMPLETED, 1)}
    assert crowd.results == {(f"shared {n}", record.steps[f"shared {n}"].result) for n in range(SHARED)}
    assert record.state == {"adds": everyone, "steps": len(record.steps)}
    assert len({event.message for event in record.events if event.type == "inside"}) == everyone
    assert len(record.heartbeats) == everyone
    kinds = Counter(event.type for event in record.events)
    assert kinds["step.completed"] == kinds["step.started"] == len(record.steps)
    assert kinds["mutex.acquired"] == kinds["mutex.released"] == 2 * everyone
