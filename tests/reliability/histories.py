"""Real histories: threads of forked processes on one store, each call with the times between which it happened.

`python -c "from reliability.histories import serve; serve()"` reads a plan a line, as JSON, and prints the history that
came of it. A process of its own, which has one thread: it forks those that play, and kills some.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from reliability.linearizability import UNKNOWN, Call, Model, mutex_model, record_model

from iso_orchestrator import (
    LeaseConflictError,
    LeaseLostError,
    MemoryStore,
    MutexTimeoutError,
    StepFailedError,
    Workflow,
    WorkflowBusyError,
    WorkflowRecord,
    read_workflow_record,
)

__all__ = ["Plan", "history_of", "model_of", "parse", "record_in_memory", "serve"]

STEPS = [f"step {number}" for number in range(4)]
LEASES = ["slot", "account", "brief"]
BRIEF = frozenset([2])
MUTEXES = {"mutex a": "workflow", "mutex b": "store"}
_LONG, _SHORT = 1000.0, 0.002  # seconds; the one never runs out, the other may have at any time

now = time.monotonic_ns


def model_of(thing: str) -> Model:
    """The model of what `Call.thing` names."""
    return mutex_model if thing in MUTEXES else record_model(len(STEPS), len(LEASES), BRIEF)


@attrs.frozen
class Plan:
    """What a history is made of.

    Attributes:
        seed: What each thread draws its calls from.
        processes: How many play.
        threads: Of each.
        calls: Of each thread.
        kills: How many of the processes are killed.
        folder: The root.
    """

    seed: str
    processes: int
    threads: int
    calls: int
    kills: int
    folder: str


# What a process writes: a line of JSON when a call begins and one when it returns, the last of which it may not live
# to write. The page cache outlives it.


class _Journal:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *line: Any) -> None:
        os.write(self._fd, (json.dumps(line) + "\n").encode())


def history_of(lines: Iterator[list[Any]]) -> list[Call]:
    """The calls that a process, or several, have written down."""
    begun: dict[str, Call] = {}
    ended: list[Call] = []
    for what, who, moment, *rest in lines:
        if what == "call":
            thing, asked = rest
            begun[who] = Call(who, tuple(asked), UNKNOWN, moment, None, thing)
        elif what == "return":
            ended.append(attrs.evolve(begun.pop(who), outcome=_frozen(rest[0]), returned=moment))
        else:
            raise AssertionError(f"{who} raised what no call may raise:\n{rest[0]}")
    return [*ended, *begun.values()]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


class _Player:
    """One thread's calls, drawn one after the other."""

    def __init__(self, who: str, rng: random.Random, open_workflow: Callable[[], Workflow], journal: Any) -> None:
        self.who = who
        self.rng = rng
        self.workflow = open_workflow()
        self._journal = journal
        self._number = 0
        self._leave_mutex: Callable[[], None] | None = None
        self._lease: contextlib.AbstractContextManager[Any] | None = None
        self._leased: tuple[int, int] = (0, 0)

    def play(self, calls: int) -> None:
        """Make so many calls, and let go of what is held."""
        try:
            while self._number < calls:
                self._one()
            self._let_go()
            self.workflow.close()
        except BaseException:
            self._journal.write("error", self.who, now(), traceback.format_exc())

    def _one(self) -> None:
        if self._lease is not None:
            self.rng.choice([self._fenced_add, self._fenced_add, self._leave])()
        elif self._leave_mutex is not None and self.rng.random() < 0.4:
            self._leave_mutex()
        else:
            self.rng.choices(*_WEIGHTS)[0](self)

    def _let_go(self) -> None:
        if self._lease is not None:
            self._leave()
        if self._leave_mutex is not None:
            self._leave_mutex()

    def _call(self, asked: tuple[Any, ...], work: Callable[[], Any], thing: str = "record") -> Any:
        self._journal.write("call", self.who, now(), thing, asked)
        outcome = work()
        self._journal.write("return", self.who, now(), outcome)
        return outcome

    def _name(self) -> str:
        self._number += 1
        return f"{self.who}#{self._number}"

    def put(self) -> None:
        name = self._name()
        self._call(("put", name), lambda: self.workflow.update_state({"last": name, "count": 0}) and "ok")

    def add(self) -> None:
        name = self._name()
        self._call(("add", name), lambda: self._added(name))

    def _added(self, name: str) -> Any:
        before: list[Any] = []
        self.workflow.update_state(_adding(name, before))
        return before[-1]

    def state(self) -> None:
        self._number += 1
        self._call(("state",), lambda: _value(self.workflow.state))

    def look(self) -> None:
        self._number += 1
        self._call(("look",), lambda: _seen(self.workflow.record))

    def run(self) -> None:
        index, name = self.rng.randrange(len(STEPS)), self._name()
        how = self.rng.choices(["plain", "adds", "fails"], [3, 2, 1])[0]
        self._call(("run", index, name, how), lambda: self._ran(index, name, how))

    def _ran(self, index: int, name: str, how: str) -> Any:
        runs = 0
        before: list[Any] = []

        def body() -> str:
            nonlocal runs
            runs += 1
            if how == "adds":
                self.workflow.update_state(_adding(name, before), with_step=True)
            time.sleep(0)
            if how == "fails":
                raise _Planned(name)
            return name

        try:
            result = self.workflow.run_step(STEPS[index], body)
        except _Planned as error:
            return ["failed"] if runs == 1 and str(error) == name else ["failed with", str(error)]
        except StepFailedError as error:
            return ["failed with", error.error.message]
        if result == name and runs == 1:
            return ["ran", before[-1] if before else None]
        return ["known", result] if not runs else ["known", result, "after its body was run"]

    def reset(self) -> None:
        index = self.rng.randrange(len(STEPS))
        self._number += 1
        self._call(("reset", index), lambda: self._was_reset(STEPS[index]))

    def _was_reset(self, step: str) -> str:
        try:
            self.workflow.reset(step)
        except WorkflowBusyError:
            return "busy"
        return "reset"

    def touch(self) -> None:
        index, holder = self.rng.randrange(len(LEASES)), self.rng.choice(["alpha", "beta", self.who])
        self._number += 1
        self._call(("touch", index, holder), lambda: self._touched(index, holder))

    def _touched(self, index: int, holder: str) -> Any:
        ttl = _SHORT if index in BRIEF else _LONG
        try:
            return ["token", self.workflow.touch_lease(LEASES[index], holder=holder, ttl=ttl).token]
        except LeaseConflictError as error:
            return ["conflict", error.current_holder]

    def release(self) -> None:
        index, holder = self.rng.randrange(len(LEASES)), self.rng.choice(["alpha", "beta", None, None])
        self._number += 1
        self._call(("release", index, holder), lambda: self._released(index, holder))

    def _released(self, index: int, holder: str | None) -> Any:
        try:
            lease = self.workflow.release_lease(LEASES[index], holder)
        except LeaseConflictError as error:
            return ["conflict", error.current_holder]
        return ["none"] if lease is None else ["released", lease.token]

    def hold(self) -> None:
        index = self.rng.choice([index for index in range(len(LEASES)) if index not in BRIEF])
        holder = self._name()
        self._call(("touch", index, holder), lambda: self._held(index, holder))

    def _held(self, index: int, holder: str) -> Any:
        lease = self.workflow.lease(LEASES[index], holder=holder, ttl=_LONG)
        try:
            token = lease.__enter__().token
        except LeaseConflictError as error:
            return ["conflict", error.current_holder]
        self._lease, self._leased = lease, (index, token)
        return ["token", token]

    def _fenced_add(self) -> None:
        name = self._name()
        self._call(("fenced add", *self._leased, name), lambda: self._added_under_lease(name))

    def _added_under_lease(self, name: str) -> Any:
        try:
            return ["added", self._added(name)]
        except LeaseLostError as error:
            return ["lost", error.current_token]

    def _leave(self) -> None:
        self._number += 1
        self._call(("leave", *self._leased), self._left)

    def _left(self) -> Any:
        assert self._lease is not None
        lease, self._lease = self._lease, None
        try:
            lease.__exit__(None, None, None)
        except LeaseLostError as error:
            return ["lost", error.current_token]
        return ["left"]

    def lock(self) -> None:
        if self._leave_mutex is not None:
            return
        key, timeout = self.rng.choice(list(MUTEXES)), self.rng.choice([None, 0.0, 0.001])
        self._number += 1
        self._call(("acquire", self.who), lambda: self._locked(key, timeout), key)

    def _locked(self, key: str, timeout: float | None) -> Any:
        mutex = self.workflow.mutex(key, timeout=timeout, scope=MUTEXES[key])  # type: ignore[arg-type]
        try:
            mutex.__enter__()
        except MutexTimeoutError:
            return ["timeout"]

        def leave() -> None:
            self._number += 1
            self._leave_mutex = None
            self._call(("release", self.who), lambda: mutex.__exit__(None, None, None) or ["released"], key)

        self._leave_mutex = leave
        return ["acquired"]

    def close(self) -> None:
        self._number += 1
        self.workflow.close()  # it changes nothing that can be seen


_WEIGHTS: tuple[list[Callable[[_Player], None]], list[int]] = (
    [
        _Player.put,
        _Player.add,
        _Player.state,
        _Player.look,
        _Player.run,
        _Player.reset,
        _Player.touch,
        _Player.release,
        _Player.hold,
        _Player.lock,
        _Player.close,
    ],
    [1, 6, 4, 6, 12, 4, 6, 4, 3, 6, 1],
)


class _Planned(Exception):  # noqa: N818 - a failure that a plan asks for
    pass


def _adding(name: str, before: list[Any]) -> Callable[[Any], Any]:
    def add(state: Any) -> Any:
        before.append(_value(state))
        return {"last": name, "count": state["count"] + 1}

    return add


def _value(state: Any) -> list[Any]:
    return [state["last"], state["count"]]


def _seen(record: WorkflowRecord) -> Any:
    done = [record.steps[name].result if name in record.steps else None for name in STEPS]
    leases = [record.leases.get(key) for key in LEASES]
    shown = [lease and [lease.holder, lease.token, lease.released_at is not None] for lease in leases]
    return [_value(record.state), done, shown]


_NEW = {"last": "", "count": 0}


def record_in_memory(plan: Plan) -> list[Call]:
    """A history of threads of this process on a store in its memory."""
    lines: list[Any] = []
    store = MemoryStore()

    class Kept:
        def write(self, *line: Any) -> None:
            lines.append(json.loads(json.dumps(line)))

    _play(plan, 0, lambda: Workflow("w", store=store, initial_state=_NEW), Kept())
    return history_of(iter(lines))


def _play(plan: Plan, process: int, open_workflow: Callable[[], Workflow], journal: Any) -> None:
    threads = []
    for number in range(plan.threads):
        who = f"{process}/{number}"
        player = _Player(who, random.Random(f"{plan.seed} {who}"), open_workflow, journal)
        threads.append(threading.Thread(target=player.play, args=(plan.calls,)))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)  # many changes of threads, at whatever places
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def serve() -> None:
    """Record histories, a plan a line."""
    for line in sys.stdin:
        plan = Plan(**json.loads(line))
        history = _record(plan)
        calls = [(call.who, call.asked, _spoken(call), call.invoked, call.returned, call.thing) for call in history]
        print(json.dumps(calls), flush=True)


def parse(line: str) -> list[Call]:
    """What `serve` has printed."""
    calls = []
    for who, asked, outcome, invoked, returned, thing in json.loads(line):
        calls.append(
            Call(who, _frozen(asked), UNKNOWN if returned is None else _frozen(outcome), invoked, returned, thing)
        )
    return calls


def _spoken(call: Call) -> Any:
    return None if call.outcome is UNKNOWN else call.outcome


def _record(plan: Plan) -> list[Call]:
    Path(plan.folder).mkdir()
    root = os.path.join(plan.folder, "root")
    Workflow("w", dir=root, initial_state=_NEW).run(lambda _: None)
    reader, writer = os.pipe()
    journals = [os.path.join(plan.folder, f"{process}.jsonl") for process in range(plan.processes)]
    pids = [_fork(plan, process, root, journals[process], reader, writer) for process in range(plan.processes)]
    os.close(reader)
    os.close(writer)  # the start
    deaths = _kill_some(plan, pids)
    for process, pid in enumerate(pids):
        if process not in deaths:
            _, status = os.waitpid(pid, 0)
            assert status == 0, f"process {process} ended with {status}"
    history: list[Call] = []
    for path in journals:
        history += history_of(_lines(path))
    for process, (invoked, returned) in deaths.items():
        history += [Call("killer", ("die", str(process)), ("dead",), invoked, returned, key) for key in MUTEXES]
    return [*history, *_last_looks(root)]


def _lines(path: str) -> Iterator[list[Any]]:
    text = Path(path).read_text() if os.path.exists(path) else ""
    return (json.loads(line) for line in text.splitlines())


def _fork(plan: Plan, process: int, root: str, journal: str, reader: int, writer: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.close(writer)
        os.read(reader, 1)  # until all are there
        _play(plan, process, lambda: Workflow("w", dir=root, initial_state=_NEW), _Journal(journal))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _kill_some(plan: Plan, pids: list[int]) -> dict[int, tuple[int, int]]:
    """Kill some at random times, those among them that have ended; when each died."""
    rng = random.Random(f"{plan.seed} kills")
    deaths: dict[int, tuple[int, int]] = {}
    usual = plan.processes * plan.threads * plan.calls * 150e-6  # seconds that the whole takes, about
    for process in rng.sample(range(plan.processes), plan.kills):
        time.sleep(rng.uniform(0, usual / plan.kills))
        invoked = now()
        os.kill(pids[process], signal.SIGKILL)
        os.waitpid(pids[process], 0)
        deaths[process] = invoked, now()
    return deaths


def _last_looks(root: str) -> list[Call]:
    """What is there in the end: for one who only looks, and for one who opens."""
    invoked = now()
    seen = [_seen(read_workflow_record("w", dir=root)), now()]
    workflow = Workflow("w", dir=root)
    workflow.append_event("opened")
    again = [_seen(workflow.record), now()]
    workflow.close()
    last = [_seen(read_workflow_record("w", dir=root)), now()]
    times = [invoked, seen[1], again[1], last[1]]
    return [
        Call("last", ("look",), _frozen(outcome), begun, ended)
        for (outcome, _), begun, ended in zip([seen, again, last], times, times[1:], strict=False)
    ]
