"""Rows 15 and 16: whatever is done in whatever order, crashes among it, a dict would have become the same.

Two processes, each a site of its own in this one, share a store. Each can be killed: between two calls, inside a body,
and in the midst of a call before any of its system calls. What it has written stays, as it does when a process dies.
"""

from __future__ import annotations

import contextvars
import copy
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from reliability.tiers import Figures, Tier
from support import STORES

from iso_orchestrator import (
    Retry,
    Store,
    Workflow,
    WorkflowEvent,
    WorkflowNotFoundError,
    WorkflowRecord,
    delete_workflow,
    list_workflows,
    open_workflow,
    read_workflow_record,
    run_workflow,
    step,
)
from iso_orchestrator.system.filesystem import FileSystem

NOON = datetime(2026, 5, 14, 12, tzinfo=UTC)
INITIAL = {"n": 0}
IDS = ("w", "../other w")
LONG = 3600.0  # seconds; no renewal in the background comes to pass within a test

Model = dict[str, Any]


# Sites: what stands for a process.


class Killed(BaseException):
    """The process is gone; nobody catches it."""


class MortalFS(FileSystem):
    """The real file system of a process that can die before any of its calls; its files are closed then.

    Attributes:
        calls_left: Before the call after so many it dies; None: not by itself.
        torn: How much of a write is written, where it dies before that.
    """

    def __init__(self, graveyard: str) -> None:
        self.dead = False
        self.calls_left: int | None = None
        self.torn = 0.0
        self._graveyard = graveyard
        self._open: set[int] = set()

    def die(self) -> None:
        self.dead = True
        for fd in self._open:
            # The number stays taken, by a file of nobody: those who have it still may lock, unlock and close it.
            path = os.path.join(self._graveyard, str(fd))
            empty = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(empty, fd, inheritable=False)
            os.close(empty)
            os.unlink(path)

    def close(self, fd: int) -> None:
        self._open.discard(fd)
        super().close(fd)

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if self._is_last():
            super().write_at(fd, data[: round(len(data) * self.torn)], offset)
        self._count()
        return super().write_at(fd, data, offset)

    def _is_last(self) -> bool:
        return not self.dead and self.calls_left == 0

    def _count(self) -> None:
        if self._is_last():
            self.die()
        if self.dead:
            # A thread that the library has started ends without a word, as with its process.
            raise Killed if threading.current_thread() is threading.main_thread() else SystemExit
        if self.calls_left is not None:
            self.calls_left -= 1


def _mortal(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def call(self: MortalFS, *args: Any) -> Any:
        self._count()
        value = real(self, *args)
        if name.startswith("open_"):
            self._open.add(value)
        return value

    return call


for _name in set(vars(FileSystem)) - set(vars(MortalFS)):
    if not _name.startswith("_"):
        setattr(MortalFS, _name, _mortal(_name))


class FileSite:
    """A process on a folder, whose store does all by our file system: it dies in the midst of calls too."""

    def __init__(self, kind: str, root: Path, name: str) -> None:
        self.fs = MortalFS(str(root.parent))
        self.store = STORES[kind].with_fs(root, self.fs)
        self.store._identity = ("site", name)

    def die(self) -> None:
        if not self.fs.dead:
            self.fs.die()


class ViewSite:
    """What stands for a process on any other store: it dies between calls alone, and what it holds dies with it."""

    fs = None

    def __init__(self, store: Store, name: str) -> None:
        self.store = _StoreView(store, name)

    def die(self) -> None:
        self.store.die()


class _StoreView:
    """One process's view of a store that several share."""

    def __init__(self, store: Store, name: str) -> None:
        self.identity = ("site", name)
        self._store = store
        self._logs: list[_LogView] = []

    def open(self, workflow_id: str, new: Any) -> Any:
        log, projection = self._store.open(workflow_id, new)
        self._logs.append(_LogView(log))
        return self._logs[-1], projection

    def die(self) -> None:
        for log in self._logs:
            log.kill()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _LogView:
    """A hold that remembers its mutexes: the kernel would free them."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._mutexes: list[_MutexView] = []

    def mutex(self, key: str, *, whole_store: bool) -> Any:
        self._mutexes.append(_MutexView(self._log.mutex(key, whole_store=whole_store)))
        return self._mutexes[-1]

    def kill(self) -> None:
        self._log.fail("the process was killed")
        self._log.retire()
        for mutex in self._mutexes:
            mutex.kill()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class _MutexView:
    def __init__(self, mutex: Any) -> None:
        self._mutex = mutex
        self._held = False
        self.is_lost = False
        self.check = mutex.check

    def try_acquire(self) -> bool:
        self._held = self._mutex.try_acquire()
        return self._held

    def acquire(self) -> None:
        self._mutex.acquire()
        self._held = True

    def release(self) -> None:
        self.kill()

    def kill(self) -> None:
        if self._held:
            self._held = False
            self._mutex.release()

    def dispose(self) -> None:
        self._mutex.dispose()

    def holder(self) -> Any:
        return self._mutex.holder()


# The model: a record as a dict, and what each call makes of it. Each function returns what the caller gets:
# ("gives", value) or ("raises", the class's name).

Outcome = tuple[str, Any]


class World:
    """What is on record, what the sites have open, and the time.

    Attributes:
        stages: Where somebody wants them, the records before each fact.
    """

    def __init__(self) -> None:
        self.time = NOON
        self.records: dict[str, Model] = {}
        self.attached: set[tuple[int, str]] = set()
        self.alive: set[str] = set()
        self.names: dict[int, str] = {}
        self.stages: list[dict[str, Model]] | None = None

    def new_record(self) -> Model:
        return {
            "status": "idle",
            "created_at": self.time,
            "updated_at": self.time,
            "state": copy.deepcopy(INITIAL),
            "steps": {},
            "events": [],
            "heartbeats": {},
            "leases": {},
            "last_error": None,
            "runs": {},
            "run_failed": False,
            "versions": {},
            "tokens": {},
        }

    def fact(self, workflow_id: str, kind: str | None = None, message: str | None = None, detail: Any = None) -> Model:
        """Note that something happened; the record, to be changed by whoever calls, before the next fact."""
        self._keep_stage()
        record = self.records[workflow_id]
        record["updated_at"] = self.time
        if kind is not None:
            record["events"].append({"at": self.time, "type": kind, "message": message, "detail": detail})
        return record

    def _keep_stage(self) -> None:
        if self.stages is not None:
            self.stages.append(copy.deepcopy(self.records))

    def opened(self, site: int, workflow_id: str) -> Model:
        """What opening makes: the record where there is none, and the deaths of runs."""
        if (site, workflow_id) not in self.attached:
            if workflow_id not in self.records:
                self._keep_stage()
                self.records[workflow_id] = self.new_record()
            self.attached.add((site, workflow_id))
            self.record_deaths(workflow_id)
        return self.records[workflow_id]

    def record_deaths(self, workflow_id: str) -> None:
        runs = self.records[workflow_id]["runs"]
        for run in [run for run, name in runs.items() if name not in self.alive]:
            self.leave_group(workflow_id, run, ("RunDied", ...))

    def leave_group(self, workflow_id: str, run: str, error: Any) -> None:
        kind = "workflow.completed" if error is None else "workflow.failed"
        record = self.fact(workflow_id, kind, detail=None if error is None else {"error": error})
        del record["runs"][run]
        is_dead = error is not None and error[0] == "RunDied"
        if error is not None:
            record["run_failed"], record["last_error"] = record["run_failed"] or not is_dead, error
        if record["runs"]:
            record["status"] = "running"
        elif record["run_failed"] or is_dead:
            record["status"], record["run_failed"] = "failed", True
        else:
            record["status"], record["last_error"] = "completed", None

    def begin_run(self, site: int, workflow_id: str, run: str) -> None:
        self.opened(site, workflow_id)
        self.record_deaths(workflow_id)
        record = self.fact(workflow_id, "workflow.running")
        if not record["runs"]:
            record["run_failed"], record["last_error"] = False, None
        record["runs"][run] = self.names[site]
        record["status"] = "running"

    def update_state(self, site: int, workflow_id: str, change: Callable[[Any], Any]) -> Outcome:
        record = self.opened(site, workflow_id)
        state = change(copy.deepcopy(record["state"]))
        self.fact(workflow_id, "state.updated")["state"] = state
        return "gives", state

    def call_step(self, site: int, workflow_id: str, call: StepCall) -> Outcome:
        record = self.opened(site, workflow_id)
        step, name = record["steps"].get(call.name), call.name
        same = step is not None and step["key"] == call.key and record["versions"].get(name) == call.version
        if same and step["status"] == "completed":
            return "gives", step["result"]
        if same and step["status"] == "running" and call.if_interrupted == "fail":
            return "raises", "StepInterruptedError"
        attempt = step["attempts"] if same else 0
        for number in range(call.attempts):
            attempt += 1
            self._start(workflow_id, call, attempt)
            error = call.error_of(number)
            if error is None:
                return self._complete(workflow_id, call)
            last = error[0] == "SerializationError" or number == call.attempts - 1
            record = self.fact(
                workflow_id,
                "step.failed" if last else "step.retrying",
                detail={"step": name, "attempt": attempt, "error": error},
            )
            record["steps"][name] |= {"status": "failed", "updated_at": self.time, "error": error}
            record["last_error"] = error
            if last:
                return "raises", error[0]
        raise AssertionError("unreachable")

    def _start(self, workflow_id: str, call: StepCall, attempt: int) -> None:
        detail = {"step": call.name, "attempt": attempt, "idempotencyKey": call.key}
        record = self.fact(workflow_id, "step.started", detail=detail)
        record["steps"][call.name] = {
            "status": "running",
            "attempts": attempt,
            "started_at": self.time,
            "updated_at": self.time,
            "completed_at": None,
            "key": call.key,
            "result": None,
            "error": None,
        }
        record["versions"][call.name] = call.version
        if call.notes:
            self.fact(workflow_id, "noted", "inside", {"attempt": attempt})

    def _complete(self, workflow_id: str, call: StepCall) -> Outcome:
        attempt = self.records[workflow_id]["steps"][call.name]["attempts"]
        record = self.fact(workflow_id, "step.completed", detail={"step": call.name, "attempt": attempt})
        done = {"status": "completed", "updated_at": self.time, "completed_at": self.time, "result": call.result}
        record["steps"][call.name] |= done
        if not record["run_failed"]:
            record["last_error"] = None
        if call.adds:
            record["state"] = _plus(call.adds)(record["state"])
            record["events"].append({"at": self.time, "type": "state.updated", "message": None, "detail": None})
        return "gives", call.result

    def touch(self, site: int, workflow_id: str, key: str, holder: str, ttl: float, detail: Any = None) -> Outcome:
        record = self.opened(site, workflow_id)
        lease = record["leases"].get(key)
        active = lease is not None and lease["released_at"] is None and lease["expires_at"] > self.time
        if active and lease["holder"] != holder:
            return "raises", "LeaseConflictError"
        kind = "lease.renewed" if active else "lease.acquired"
        record = self.fact(workflow_id, kind, detail={"key": key, "holder": holder, "ttlMs": ttl * 1000})
        token = record["tokens"].get(key, 0) + (0 if active else 1)
        record["tokens"][key] = token
        record["leases"][key] = {
            "holder": holder,
            "acquired_at": lease["acquired_at"] if active else self.time,
            "heartbeat_at": self.time,
            "expires_at": self.time + timedelta(seconds=ttl),
            "released_at": None,
            "detail": detail if detail is not None or lease is None else lease["detail"],
            "token": token,
        }
        return "gives", token

    def release(self, site: int, workflow_id: str, key: str, holder: str | None) -> Outcome:
        record = self.opened(site, workflow_id)
        lease = record["leases"].get(key)
        if lease is None:
            return "gives", None
        if holder is not None and lease["holder"] != holder:
            return "raises", "LeaseConflictError"
        if lease["released_at"] is None:
            self.fact(workflow_id, "lease.released", detail={"key": key, "holder": lease["holder"]})
            lease = self.records[workflow_id]["leases"][key]
            lease["released_at"] = self.time
        return "gives", lease["token"]

    def reset(self, site: int, workflow_id: str, pattern: str) -> Outcome:
        record = self.opened(site, workflow_id)
        steps = record["steps"]
        prefix = pattern.rstrip("*")
        chosen = (
            [pattern] if pattern in steps else [name for name in steps if "*" in pattern and name.startswith(prefix)]
        )
        if chosen:
            record = self.fact(workflow_id, "steps.reset", detail={"steps": chosen})
            for name in chosen:
                del record["steps"][name]
                record["versions"].pop(name, None)
        return "gives", chosen

    def die(self, site: int) -> None:
        """The process is gone: what it had open is not open any more."""
        self.alive.discard(self.names[site])
        self.attached = {(other, workflow_id) for other, workflow_id in self.attached if other != site}


def _plus(amount: int) -> Callable[[Any], Any]:
    return lambda state: {**(state if isinstance(state, dict) else {}), "n": _count_of(state) + amount}


def _count_of(state: Any) -> int:
    count = state.get("n", 0) if isinstance(state, dict) else 0
    return count if isinstance(count, int) else 0


class Boom(Exception):  # noqa: N818 - what a user's body raises
    pass


class StepCall:
    """A call of a step, whose first *failures* attempts fail.

    Attributes:
        ending: What the attempts after those come to.
        adds: What the body adds to the state with its completion.
        notes: Whether the body appends an event.
    """

    def __init__(
        self,
        name: str,
        result: Any = None,
        *,
        key: str | None = None,
        version: str | None = None,
        attempts: int = 1,
        failures: int = 0,
        ending: Literal["well", "refused", "not JSON"] = "well",
        if_interrupted: Literal["rerun", "fail"] = "rerun",
        adds: int = 0,
        notes: bool = False,
    ) -> None:
        self.name, self.result, self.key, self.version = name, result, key, version
        self.attempts, self.failures, self.ending, self.if_interrupted = attempts, failures, ending, if_interrupted
        self.adds, self.notes = adds, notes

    def error_of(self, number: int) -> Any:
        """How the attempt of that number, from 0 on, fails; None: it does not."""
        if number < self.failures:
            return "Boom", f"attempt {number}"
        return {"well": None, "refused": ("StepRejectedError", ...), "not JSON": ("SerializationError", ...)}[
            self.ending
        ]

    def make(self, workflow: Workflow, inside: Callable[[], None] = lambda: None) -> Any:
        """Make the call."""
        attempt = 0

        def body() -> Any:
            nonlocal attempt
            attempt += 1
            if self.notes:
                number = workflow.record.steps[self.name].attempts
                workflow.append_event("noted", "inside", {"attempt": number})
            if self.adds:
                workflow.update_state(_plus(self.adds), with_step=True)
            inside()
            if attempt <= self.failures:
                raise Boom(f"attempt {attempt - 1}")
            return {1, 2} if self.ending == "not JSON" else copy.deepcopy(self.result)

        return workflow.run_step(
            self.name,
            body,
            idempotency_key=self.key,
            version=self.version,
            retry=Retry(self.attempts) if self.attempts % 2 else self.attempts,
            accept=(lambda _: self.ending != "refused"),
            if_interrupted=self.if_interrupted,
        )


# Records as the model has them, which knows nothing of processes, runs and options.

OURS = ("workflow.", "step.", "steps.", "mutex.", "batch.")
SURROUNDINGS = {"run", "pid", "host", "argv", "cwd", "died", "lastSeen", "since", "granted", "batch", "item", "parent"}
SURROUNDINGS |= {"version", "of", "fn", "ifInterrupted", "timeout", "retryAt"}


def plain(record: WorkflowRecord) -> Model:
    """A record in the model's words."""
    return {
        "status": str(record.status),
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "state": record.state,
        "steps": {name: _plain_step(step) for name, step in record.steps.items()},
        "events": [
            {"at": event.at, "type": event.type, "message": event.message, "detail": _plain_detail(event)}
            for event in record.events
            if event.type != "step.interrupted"  # none of a fact of its own
        ],
        "heartbeats": {key: {"at": beat.at, "detail": beat.detail} for key, beat in record.heartbeats.items()},
        "leases": {
            key: {
                "holder": lease.holder,
                "acquired_at": lease.acquired_at,
                "heartbeat_at": lease.heartbeat_at,
                "expires_at": lease.expires_at,
                "released_at": lease.released_at,
                "detail": lease.detail,
                "token": lease.token,
            }
            for key, lease in record.leases.items()
        },
        "last_error": record.last_error and _plain_error(record.last_error.name, record.last_error.message),
    }


def _plain_step(step: Any) -> Model:
    return {
        "status": str(step.status),
        "attempts": step.attempts,
        "started_at": step.started_at,
        "updated_at": step.updated_at,
        "completed_at": step.completed_at,
        "key": step.idempotency_key,
        "result": step.result,
        "error": step.error and _plain_error(step.error.name, step.error.message),
    }


def _plain_detail(event: WorkflowEvent) -> Any:
    detail = event.detail
    if isinstance(detail, dict) and event.type.startswith(OURS):
        detail = {key: value for key, value in detail.items() if key not in SURROUNDINGS} or None
    if isinstance(detail, dict) and isinstance(detail.get("error"), dict):
        error = detail["error"]
        return {**detail, "error": _plain_error(error["name"], error["message"])}
    return detail


def _plain_error(name: str, message: str) -> Any:
    """What the test's own errors say is compared; what the library's say is its own affair."""
    return (name, message) if name in ("Boom", "Error") else (name, ...)


def shown(record: Model) -> Model:
    """What of a model can be seen."""
    return {key: value for key, value in record.items() if key not in ("runs", "run_failed", "versions", "tokens")}


def difference(expected: Model | None, found: Model | None) -> str:
    if expected is None or found is None:
        return f"expected {expected}\nfound    {found}"
    fields = [key for key in expected if expected[key] != found[key]]
    return "\n".join(f"{key}:\n  expected {expected[key]}\n  found    {found[key]}" for key in fields)


# The machine.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(-1, 1)
    | st.sampled_from(["", "ß", "\0", "\ud800", "a\nb"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "é", "n"]), inner, max_size=2),
    max_leaves=4,
)
SITES = st.sampled_from([0, 0, 0, 1])
WORKFLOWS = st.sampled_from([IDS[0], IDS[0], IDS[0], IDS[1]])
STEPS = st.sampled_from(["fetch:1", "fetch:2", "send", "../✉\n"])
LEASES = st.sampled_from(["slot", "a/b"])
HOLDERS = st.sampled_from(["alpha", "beta"])
KEYS = st.sampled_from(["account", "..", "\0"])
SCOPES = st.sampled_from(["workflow", "store"])
CALLS = st.builds(
    StepCall,
    STEPS,
    JSON,
    key=st.sampled_from([None, None, "k1", "k2"]),
    version=st.sampled_from([None, None, "1"]),
    attempts=st.integers(1, 3),
    failures=st.sampled_from([0, 0, 0, 1, 2, 3]),
    ending=st.sampled_from(["well", "well", "well", "well", "refused", "not JSON"]),
    if_interrupted=st.sampled_from(["rerun", "rerun", "fail"]),
    adds=st.sampled_from([0, 0, 1, 2]),
    notes=st.booleans(),
)


@step(name="free:{number}")
def free_step(number: int) -> list[int]:
    return [number, number]


class Machine(RuleBasedStateMachine):
    """Does the same to two sites and to the model."""

    kind: ClassVar[str]
    folder: ClassVar[str]
    rules: ClassVar[int]
    crashes: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.mkdtemp(dir=self.folder)
        self.reader = STORES[self.kind](self._root())
        self.world = World()
        self.made = 0
        self.looks = 0
        self.sites: dict[int, Any] = {}
        self.workflows: dict[tuple[int, str], Workflow] = {}
        self.contexts: dict[int, contextvars.Context] = {}
        self.runs: dict[tuple[int, str], str] = {}
        for site in (0, 1):
            self._boot(site)

    def _root(self) -> Path:
        return Path(self.home, "root")

    def _boot(self, site: int) -> None:
        """Start a process."""
        self.made += 1
        name = f"{self.home} {self.made}"
        made = FileSite(self.kind, self._root(), name) if STORES[self.kind].takes_fs else ViewSite(self.reader, name)
        self.sites[site] = made
        self.contexts[site] = contextvars.Context()
        self.world.names[site] = name
        self.world.alive.add(name)
        for workflow_id in IDS:
            self.workflows[site, workflow_id] = Workflow(
                workflow_id, initial_state=INITIAL, now=lambda: self.world.time, store=made.store
            )

    def _do(self, site: int, work: Callable[[], Any]) -> Outcome:
        """What came of *work* at a site."""
        try:
            return "gives", self.contexts[site].run(work)
        except Exception as error:
            return "raises", type(error).__name__

    def _same(self, expected: Outcome, found: Outcome) -> None:
        assert expected == found, f"expected {expected}, found {found}"

    def _bury(self, site: int) -> None:
        """After a death: unwind what was running, in which nothing can be written any more, and start anew."""
        type(self).crashes += 1
        self.sites[site].die()
        for (at, workflow_id), workflow in list(self.workflows.items()):
            if at != site:
                continue
            if self.runs.pop((site, workflow_id), None) is not None:
                self._swallow(site, partial(workflow.__exit__, None, None, None))
            self._swallow(site, workflow.close)
        self._boot(site)

    def _swallow(self, site: int, work: Callable[[], Any]) -> None:
        try:
            self.contexts[site].run(work)
        except (Killed, Exception):
            return

    def _die_inside(self, site: int, work: Callable[[Callable[[], None]], Any]) -> None:
        """Do *work*, which calls what it is given when the process is to die."""

        def die() -> None:
            self.sites[site].die()
            raise Killed

        self._swallow(site, lambda: work(die))
        self.world.die(site)
        self._bury(site)

    # What is done.

    @rule(site=SITES, workflow_id=WORKFLOWS, call=CALLS)
    def run_step(self, site: int, workflow_id: str, call: StepCall) -> None:
        expected = self.world.call_step(site, workflow_id, call)
        workflow = self.workflows[site, workflow_id]
        self._same(expected, self._do(site, lambda: call.make(workflow)))

    @rule(site=SITES, workflow_id=WORKFLOWS, number=st.integers(0, 2))
    def decorated_step(self, site: int, workflow_id: str, number: int) -> None:
        workflow = self.workflows[site, workflow_id]
        made = workflow.step(name="made:{number}", retry=2)(lambda number: {"made": number})
        call = StepCall(made.step_name(number), {"made": number})
        self._same(self.world.call_step(site, workflow_id, call), self._do(site, lambda: made(number=number)))

    @rule(site=SITES, workflow_id=WORKFLOWS, numbers=st.lists(st.integers(0, 3), max_size=3), keyed=st.booleans())
    def for_each(self, site: int, workflow_id: str, numbers: list[int], keyed: bool) -> None:
        """Items that are steps; 3 fails."""
        workflow = self.workflows[site, workflow_id]
        self.world.opened(site, workflow_id)
        detail = {"name": "item", "total": len(numbers), "maxParallel": 1}
        self.world.fact(workflow_id, "batch.started", detail=detail)
        replayed = 0
        for number in numbers:
            if keyed:
                self.world.fact(workflow_id, "mutex.acquired", detail={"key": "items"})
            before = len(self.world.records[workflow_id]["events"])
            self.world.call_step(site, workflow_id, StepCall(f"item:{number}", number, failures=number // 3))
            replayed += len(self.world.records[workflow_id]["events"]) == before
            if keyed:
                self.world.fact(workflow_id, "mutex.released", detail={"key": "items"})
        failed = numbers.count(3)
        counts = {"fulfilled": len(numbers) - failed, "rejected": failed, "replayed": replayed, "unstarted": 0}
        self.world.fact(workflow_id, "batch.ended", detail=counts)

        def item(number: int) -> Any:
            return StepCall(f"item:{number}", number, failures=number // 3).make(workflow)

        def work() -> Any:
            key = "items" if keyed else None
            return workflow.run_for_each(numbers, item, mutex_key=key, stop_on_error=False)

        kind, summary = self._do(site, work)
        assert kind == "gives", summary
        assert [result.status for result in summary.results] == [
            "rejected" if number == 3 else "fulfilled" for number in numbers
        ]

    @rule(site=SITES, workflow_id=WORKFLOWS, amount=st.integers(-3, 3))
    def add_to_state(self, site: int, workflow_id: str, amount: int) -> None:
        expected = self.world.update_state(site, workflow_id, _plus(amount))
        self._same(expected, self._do(site, lambda: self.workflows[site, workflow_id].update_state(_plus(amount))))

    @rule(site=SITES, workflow_id=WORKFLOWS, value=JSON)
    def replace_state(self, site: int, workflow_id: str, value: Any) -> None:
        expected = self.world.update_state(site, workflow_id, lambda _: copy.deepcopy(value))
        self._same(expected, self._do(site, lambda: self.workflows[site, workflow_id].update_state(value)))

    @rule(site=SITES, workflow_id=WORKFLOWS, wrong=st.sampled_from(["None", "NaN", "uses the workflow"]))
    def refused_update(self, site: int, workflow_id: str, wrong: str) -> None:
        """An update that is refused changes nothing."""
        record = self.world.opened(site, workflow_id)
        workflow = self.workflows[site, workflow_id]
        if wrong == "None" and record["state"] is None:
            return
        update: Callable[[Any], Any] = {
            "None": lambda _: None,
            "NaN": lambda _: float("nan"),
            "uses the workflow": lambda _: workflow.state,
        }[wrong]
        error = {"None": "TypeError", "NaN": "SerializationError", "uses the workflow": "WorkflowUsageError"}[wrong]
        self._same(("raises", error), self._do(site, lambda: workflow.update_state(update)))

    @rule(site=SITES, workflow_id=WORKFLOWS, message=st.none() | st.text(max_size=3), detail=JSON)
    def append_event(self, site: int, workflow_id: str, message: str | None, detail: Any) -> None:
        self.world.opened(site, workflow_id)
        self.world.fact(workflow_id, "mail.sent", message, detail)
        workflow = self.workflows[site, workflow_id]
        self._same(
            ("gives", (self.world.time, "mail.sent", message, detail)),
            self._do(
                site, lambda: attributes(workflow.append_event("mail.sent", message, detail), "at type message detail")
            ),
        )

    @rule(site=SITES, workflow_id=WORKFLOWS, key=KEYS, detail=JSON, background=st.booleans())
    def heartbeat(self, site: int, workflow_id: str, key: str, detail: Any, background: bool) -> None:
        self.world.opened(site, workflow_id)
        for _ in range(2 if background else 1):
            told = {"key": key, "hasDetail": detail is not None}
            record = self.world.fact(workflow_id, "heartbeat.recorded", detail=told)
            record["heartbeats"][key] = {"at": self.world.time, "detail": detail}
        workflow = self.workflows[site, workflow_id]

        def work() -> None:
            if not background:
                workflow.heartbeat(key, detail)
                return
            with workflow.heartbeating(key, every=LONG, detail=detail):
                pass

        self._same(("gives", None), self._do(site, work))

    @rule(site=SITES, workflow_id=WORKFLOWS, key=LEASES, holder=HOLDERS, ttl=st.sampled_from([1.5, 60]), detail=JSON)
    def touch_lease(self, site: int, workflow_id: str, key: str, holder: str, ttl: float, detail: Any) -> None:
        expected = self.world.touch(site, workflow_id, key, holder, ttl, detail)
        workflow = self.workflows[site, workflow_id]
        self._same(
            expected,
            self._do(site, lambda: workflow.touch_lease(key, holder=holder, ttl=ttl, detail=detail).token),
        )

    @rule(site=SITES, workflow_id=WORKFLOWS, key=LEASES, holder=st.none() | HOLDERS)
    def release_lease(self, site: int, workflow_id: str, key: str, holder: str | None) -> None:
        expected = self.world.release(site, workflow_id, key, holder)
        workflow = self.workflows[site, workflow_id]
        self._same(expected, self._do(site, lambda: getattr(workflow.release_lease(key, holder), "token", None)))

    @rule(site=SITES, workflow_id=WORKFLOWS, key=LEASES, taken=st.booleans())
    def hold_lease(self, site: int, workflow_id: str, key: str, taken: bool) -> None:
        """A lease around something; *taken*: it runs out meanwhile, and the other site takes it."""
        workflow, thief = self.workflows[site, workflow_id], self.workflows[1 - site, workflow_id]

        def work() -> None:
            with workflow.lease(key, holder="keeper", ttl=LONG):
                workflow.append_event("kept")
                if taken:
                    self.world.time += timedelta(seconds=LONG)
                    found = self._do(1 - site, lambda: thief.touch_lease(key, holder="thief", ttl=LONG).token)
                    assert found == self.world.touch(1 - site, workflow_id, key, "thief", LONG)
                workflow.append_event("kept")

        expected = self.world.touch(site, workflow_id, key, "keeper", LONG)
        if expected[0] == "raises":
            self._same(expected, self._do(site, work))
            return
        self.world.fact(workflow_id, "kept")
        if taken:
            self._same(("raises", "LeaseLostError"), self._do(site, work))
            return
        self.world.fact(workflow_id, "kept")
        self.world.release(site, workflow_id, key, None)
        self._same(("gives", None), self._do(site, work))

    @rule(site=SITES, workflow_id=WORKFLOWS, key=KEYS, scope=SCOPES, dies=st.booleans(), elsewhere=WORKFLOWS)
    def mutex(self, site: int, workflow_id: str, key: str, scope: Any, dies: bool, elsewhere: str) -> None:
        """A mutex, entered twice, that another site cannot have meanwhile, and can have when this one is dead."""
        workflow, other = self.workflows[site, workflow_id], self.workflows[1 - site, elsewhere]
        is_one = scope == "store" or workflow_id == elsewhere

        def others() -> Outcome:
            def enter() -> None:
                with other.mutex(key, timeout=0.0 if is_one and not freed else None, scope=scope):
                    pass

            return self._do(1 - site, enter)

        def work(die: Callable[[], None]) -> None:
            with workflow.mutex(key, scope=scope), workflow.mutex(key, scope=scope):
                self._same(("raises", "MutexTimeoutError") if is_one else ("gives", None), others())
                if dies:
                    die()

        freed = False
        self.world.opened(site, workflow_id)
        self.world.fact(workflow_id, "mutex.acquired", detail={"key": key})
        self._other_mutex(1 - site, elsewhere, key, free=not is_one)
        if dies:
            self._die_inside(site, work)
        else:
            self.world.fact(workflow_id, "mutex.released", detail={"key": key})
            self._same(("gives", None), self._do(site, lambda: work(lambda: None)))
        freed = True
        self._other_mutex(1 - site, elsewhere, key, free=True)
        self._same(("gives", None), others())

    def _other_mutex(self, site: int, workflow_id: str, key: str, *, free: bool) -> None:
        self.world.opened(site, workflow_id)
        for kind in ("mutex.acquired", "mutex.released") if free else ():
            self.world.fact(workflow_id, kind, detail={"key": key})

    @rule(
        site=SITES,
        workflow_id=WORKFLOWS,
        status=st.sampled_from(["idle", "running", "completed", "failed"]),
        error=st.sampled_from([None, "no luck"]),
    )
    def set_status(self, site: int, workflow_id: str, status: str, error: str | None) -> None:
        self.world.opened(site, workflow_id)
        told = None if error is None else ("Error", error)
        record = self.world.fact(workflow_id, f"workflow.{status}", detail=None if error is None else {"error": told})
        record["status"], record["last_error"] = status, told
        workflow = self.workflows[site, workflow_id]
        kind, found = self._do(site, lambda: plain(workflow.set_status(status, error)))
        assert (kind, found) == ("gives", shown(record))

    @rule(site=SITES, workflow_id=WORKFLOWS, pattern=STEPS | st.sampled_from(["fetch:*", "*", "none"]))
    def reset(self, site: int, workflow_id: str, pattern: str) -> None:
        expected = self.world.reset(site, workflow_id, pattern)
        self._same(expected, self._do(site, lambda: self.workflows[site, workflow_id].reset(pattern)))

    @rule(site=SITES, workflow_id=WORKFLOWS)
    def begin_run(self, site: int, workflow_id: str) -> None:
        if (site, workflow_id) in self.runs:
            self._same(("raises", "WorkflowUsageError"), self._do(site, self.workflows[site, workflow_id].__enter__))
            return
        self.made += 1
        run = f"run {self.made}"
        self.world.begin_run(site, workflow_id, run)
        kind, found = self._do(site, self.workflows[site, workflow_id].__enter__)
        assert kind == "gives", found
        self.runs[site, workflow_id] = run

    @precondition(lambda self: self.runs)
    @rule(last=st.booleans(), fails=st.booleans())
    def end_run(self, last: bool, fails: bool) -> None:
        """The innermost of a site's: `with` blocks end in no other order."""
        ends = list(self.runs)[-1 if last else 0][0]
        site, workflow_id = [run for run in self.runs if run[0] == ends][-1]
        run, workflow = self.runs.pop((site, workflow_id)), self.workflows[site, workflow_id]
        self.world.record_deaths(workflow_id)
        self.world.leave_group(workflow_id, run, ("Boom", "out") if fails else None)
        self.world.attached.discard((site, workflow_id))
        error = Boom("out") if fails else None
        self._same(
            ("gives", None), self._do(site, lambda: workflow.__exit__(type(error) if error else None, error, None))
        )

    @rule(site=SITES, workflow_id=WORKFLOWS, number=st.integers(0, 2), fails=st.booleans())
    def whole_run(self, site: int, workflow_id: str, number: int, fails: bool) -> None:
        """`run_workflow`, with a free step in it."""
        if (site, workflow_id) in self.runs:
            return
        had = (site, workflow_id) in self.world.attached
        self.world.begin_run(site, workflow_id, "whole")
        self.world.call_step(site, workflow_id, StepCall(f"free:{number}", [number, number]))
        self.world.leave_group(workflow_id, "whole", ("Boom", "out") if fails else None)

        def inside(_: Workflow) -> list[int]:
            value = free_step(number)
            if fails:
                raise Boom("out")
            return value

        store = self.sites[site].store

        def work() -> Any:
            return run_workflow(
                workflow_id, inside, store=store, now=lambda: self.world.time, initial_state=INITIAL
            ).value

        expected = ("raises", "Boom") if fails else ("gives", [number, number])
        self._same(expected, self._do(site, work))
        if not had:
            self.world.attached.discard((site, workflow_id))

    @rule(site=SITES, workflow_id=WORKFLOWS)
    def close(self, site: int, workflow_id: str) -> None:
        workflow = self.workflows[site, workflow_id]
        if (site, workflow_id) in self.runs:
            self._same(("raises", "WorkflowUsageError"), self._do(site, workflow.close))
            return
        if (site, workflow_id) in self.world.attached:
            self.world.record_deaths(workflow_id)
        self.world.attached.discard((site, workflow_id))
        self._same(("gives", None), self._do(site, workflow.close))

    @rule(site=SITES, workflow_id=WORKFLOWS)
    def open(self, site: int, workflow_id: str) -> None:
        """A second object of one site shares the first's session; closing it leaves that open."""
        had = (site, workflow_id) in self.world.attached
        self.world.opened(site, workflow_id)
        store = self.sites[site].store

        def work() -> None:
            open_workflow(workflow_id, store=store, now=lambda: self.world.time, initial_state=INITIAL).close()

        self._same(("gives", None), self._do(site, work))
        if not had:
            self.world.attached.discard((site, workflow_id))

    @rule(site=SITES, workflow_id=WORKFLOWS)
    def delete(self, site: int, workflow_id: str) -> None:
        if workflow_id not in self.world.records:
            expected: Outcome = ("raises", "WorkflowNotFoundError")
        elif any(attached == workflow_id for _, attached in self.world.attached):
            expected = ("raises", "WorkflowBusyError")
        else:
            del self.world.records[workflow_id]
            expected = ("gives", None)
        store = self.sites[site].store
        self._same(expected, self._do(site, lambda: delete_workflow(workflow_id, store=store)))

    @rule()
    def all_close(self) -> None:
        """When all have left, the snapshot has everything."""
        for site, workflow_id in self.workflows:
            self.close(site=site, workflow_id=workflow_id)
        for workflow_id in IDS:
            self._look("outside", workflow_id)
        self._look_at_list()

    @rule(seconds=st.sampled_from([0.001, 1, 30, 61, 4000, -5]))
    def time_goes_by(self, seconds: float) -> None:
        self.world.time += timedelta(seconds=seconds)

    # Deaths.

    @rule(site=SITES)
    def die(self, site: int) -> None:
        """Between two calls, in whatever runs are open."""
        self.world.die(site)
        self._bury(site)

    @rule(site=SITES, workflow_id=WORKFLOWS, call=CALLS)
    def die_in_step(self, site: int, workflow_id: str, call: StepCall) -> None:
        """In the first attempt of a body, before it has done anything; what it left runs, and its owner is dead."""
        call.notes = False
        record = self.world.opened(site, workflow_id)
        known = copy.deepcopy(self.world.records)
        outcome = self.world.call_step(site, workflow_id, call)
        if self.world.records != known:  # the body is run
            self.world.records = known
            record = self.world.records[workflow_id]
            step = record["steps"].get(call.name)
            same = step is not None and step["key"] == call.key and record["versions"].get(call.name) == call.version
            self.world._start(workflow_id, call, 1 + (step["attempts"] if same else 0))
        else:
            assert outcome[0] == "gives" or outcome[1] == "StepInterruptedError"
        workflow = self.workflows[site, workflow_id]
        self._die_inside(site, lambda die: call.make(workflow, die))

    @rule(
        site=SITES,
        workflow_id=WORKFLOWS,
        what=st.sampled_from(["step", "state", "lease", "run", "event", "close"]),
        call=CALLS,
        calls_left=st.integers(0, 40),
        torn=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def die_in_call(self, site: int, workflow_id: str, what: str, call: StepCall, calls_left: int, torn: float) -> None:
        """Before any system call of a call: some of its facts are there, the first ones, or all, or none."""
        fs = self.sites[site].fs
        if fs is None or (what in ("run", "close") and (site, workflow_id) in self.runs):
            return
        self.world.stages = stages = []
        work = self._dying_work(site, workflow_id, what, call)
        self.world.stages = None
        fs.calls_left, fs.torn = calls_left, torn
        self._swallow(site, work)
        if what == "run":
            self.runs[site, workflow_id] = "dying"
        stages = [*stages, self.world.records] if fs.dead else [self.world.records]
        self.world.die(site)
        self._bury(site)
        found = self._on_disk(workflow_id)
        fitting = [stage for stage in stages if _shown(stage.get(workflow_id)) == found]
        assert fitting, "what is left is no state that the call went through; from the last: " + difference(
            _shown(stages[-1].get(workflow_id)), found
        )
        self.world.records = fitting[-1]

    def _dying_work(self, site: int, workflow_id: str, what: str, call: StepCall) -> Callable[[], Any]:
        """Have the model make a call to its end; the same to be made in earnest."""
        world, workflow = self.world, self.workflows[site, workflow_id]
        if what == "step":
            world.call_step(site, workflow_id, call)
            return lambda: call.make(workflow)
        if what == "state":
            world.update_state(site, workflow_id, _plus(1))
            return lambda: workflow.update_state(_plus(1))
        if what == "lease":
            world.touch(site, workflow_id, "slot", "alpha", 60)
            return lambda: workflow.touch_lease("slot", holder="alpha", ttl=60)
        if what == "run":
            world.begin_run(site, workflow_id, "dying")
            return workflow.__enter__
        if what == "event":
            world.opened(site, workflow_id)
            world.fact(workflow_id, "mail.sent")
            return lambda: workflow.append_event("mail.sent")
        if (site, workflow_id) in world.attached:
            world.record_deaths(workflow_id)
        return workflow.close

    # What must always hold.

    def _on_disk(self, workflow_id: str) -> Model | None:
        try:
            return plain(read_workflow_record(workflow_id, store=self.reader))
        except WorkflowNotFoundError:
            return None

    @invariant()
    def all_see_the_same(self) -> None:
        """Each site and a reader from outside see what the model has; they take turns at looking."""
        type(self).rules += 1
        self.looks += 1
        for workflow_id in IDS:
            self._look(("outside", 0, 1)[self.looks % 3], workflow_id)
        if self.looks % 10 == 0:
            self._look_at_list()

    def _look(self, who: Any, workflow_id: str) -> None:
        expected = self._expected(workflow_id)
        if who == "outside":
            found = self._on_disk(workflow_id)
        else:
            expected = expected or shown(self.world.new_record())
            workflow = self.workflows[who, workflow_id]
            found = plain(self.contexts[who].run(lambda: workflow.record))
            assert self.contexts[who].run(lambda: workflow.state) == expected["state"]
        assert expected == found, f"{workflow_id!r} as {who} sees it: {difference(expected, found)}"

    def _look_at_list(self) -> None:
        """A list has each workflow once, with its steps counted."""
        listed = {summary.workflow_id: summary for summary in list_workflows(store=self.reader)}
        assert set(listed) == set(self.world.records)
        for workflow_id, record in self.world.records.items():
            counts = {str(status): count for status, count in listed[workflow_id].steps.items()}
            statuses = [step["status"] for step in record["steps"].values()]
            assert counts == {status: statuses.count(status) for status in statuses}

    def _expected(self, workflow_id: str) -> Model | None:
        return _shown(self.world.records.get(workflow_id))

    def teardown(self) -> None:
        self._leave_all()
        shutil.rmtree(self.home)

    def _leave_all(self) -> None:
        for (site, workflow_id), workflow in self.workflows.items():
            if self.runs.pop((site, workflow_id), None) is not None:
                self._swallow(site, lambda: workflow.__exit__(None, None, None))  # noqa: B023
            self._swallow(site, workflow.close)


def _shown(record: Model | None) -> Model | None:
    return None if record is None else shown(record)


def attributes(value: Any, names: str) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in names.split())


PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", STORES)
def test_a_workflow_is_what_a_dict_would_be(tier: Tier, figures: Figures, folder: Path, kind: str, part: int) -> None:
    """After any calls, deaths and openings all see the record that a dict would have become."""
    dies_in_calls = STORES[kind].takes_fs
    whole = tier.count(quick=12, full=250, soak=20_000) if dies_in_calls else tier.count(quick=8, full=100, soak=4_000)
    examples = -(-whole // PARTS)  # two at least: the first one of a part does the first rule alone, again and again
    seed = tier.random(f"test_a_workflow_is_what_a_dict_would_be {kind} {part}").getrandbits(32)
    machine: Any = type("SeededMachine", (Machine,), {"kind": kind, "folder": folder, "rules": 0, "crashes": 0})
    run_state_machine_as_test(
        hypothesis.seed(seed)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=False,
            print_blob=False,
            # Without shrinking, which takes minutes: a walk of 50 rules is printed as it is, within a test's time.
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    row = 15 if dies_in_calls else 16
    figures.add(row, f"walks of up to 50 rules, store: {kind}", examples)
    figures.add(row, f"rules in them, store: {kind}", machine.rules)
    figures.add(row, f"deaths of processes in them, store: {kind}", machine.crashes)
