"""Processes are killed on one store, anywhere and again and again, until all is done; an oracle outside has seen it."""

from __future__ import annotations

import itertools
import random
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import pytest
from reliability.oracle import (
    PHASES,
    Line,
    Link,
    Nursery,
    Oracle,
    Process,
    die,
    held_locks,
    phases_of_kills,
    violations,
    violations_of_record,
)
from reliability.tiers import Figures, Tier
from support import DEADLINE, WatchedFS, memory_folder

from iso_orchestrator import (
    LeaseConflictError,
    LeaseLostError,
    StepInterruptedError,
    Workflow,
    WorkflowStatus,
    delete_workflow,
)
from iso_orchestrator.store import FileStore

STEPS = [*(f"step {number}" for number in range(24)), *(f"once {number}" for number in range(8))]
PROCESSES = 4  # at a time, of three threads each and those that renew leases
STEPS_OF_A_LIFE = 5
PARTS = 2
EVERYWHERE = [PHASES[word] for word in ("opening", "call", "begin", "end", "leaving")]
HOW = ["at a random moment", "at a random call", "at a random moment", "after a message", "not"]


# The life of a process


@attrs.frozen
class Plan:
    """What a process is to do, and when it kills itself, where it is not left to be killed.

    Attributes:
        last: The kind of line after which it does, and how many seconds after it.
        last_call: The file system's call before which it does; 0 for none.
    """

    root: str
    workflow_id: str
    who: str
    seed: int
    last: tuple[str, float] | None = None
    last_call: int = 0


def live(link: Link, plan: dict[str, Any]) -> None:
    """Open the workflow, do a few steps of it beside the others who do, and leave."""
    _Life(Plan(**plan)).live(link)


class _Life:
    def __init__(self, plan: Plan) -> None:
        self.random = random.Random(plan.seed)
        self.oracle = Oracle(Path(plan.root, "oracle"), plan.who, plan.last)
        self.calls_left = plan.last_call
        self.fs = WatchedFS(self.before_call)
        self.workflow = Workflow(
            plan.workflow_id,
            store=FileStore(Path(plan.root, "store"), fs=self.fs),
            initial_state={"adds": 0, "steps": {}},
        )

    def live(self, link: Link) -> None:
        say = self.oracle.say
        say("opening")
        with self.workflow:
            say("opened")
            beside = threading.Thread(target=self.do_other_things, name="beside")
            beside.start()
            names = self.random.sample(STEPS, STEPS_OF_A_LIFE)
            self.workflow.run_for_each(names, self.do_item, max_parallel=2, mutex_key=key_of)
            beside.join()
            say("leaving")
        say("left")
        link.say(len(self.fs.calls))

    def before_call(self, *_: object) -> None:
        self.calls_left -= 1
        if self.calls_left == 0:
            die(self.oracle)

    def do_item(self, name: str) -> None:
        key = key_of(name)
        if key is None:
            self.do_step(name)
            return
        self.oracle.say("enter", key)
        self.pause()
        self.do_step(name)
        self.oracle.say("leave", key)

    def do_step(self, name: str) -> None:
        self.oracle.say("call", name)
        if_interrupted = "fail" if name.startswith("once") else "rerun"
        try:
            value = self.workflow.run_step(name, self.body, name, if_interrupted=if_interrupted)  # type: ignore[arg-type]
        except StepInterruptedError:
            self.oracle.say("interrupted", name)
        else:
            self.oracle.say("told", name, value)

    def body(self, name: str) -> str:
        value = f"{name} by {self.oracle.who} at {time.monotonic_ns()}"
        self.oracle.say("begin", name, value)
        self.workflow.update_state(lambda state: counted(state, name), with_step=True)
        self.pause()
        self.oracle.say("end", name, value)
        return value

    def pause(self) -> None:
        time.sleep(self.random.choice([0, 0.001, 0.004]))

    def do_other_things(self) -> None:
        things: list[Callable[[], None]] = [self.add, self.enter_mutex, self.hold_lease]
        self.random.shuffle(things)
        for do_thing in things:
            do_thing()

    def add(self) -> None:
        for _ in range(2):
            self.oracle.say("adding")
            state = self.workflow.update_state(lambda state: {**state, "adds": state["adds"] + 1})
            self.oracle.say("added", "adds", state["adds"])

    def enter_mutex(self) -> None:
        key = f"key {self.random.randrange(3)}"
        self.oracle.say("wants", key)
        with self.workflow.mutex(key):
            self.oracle.say("enter", key)
            self.pause()
            self.do_step(self.random.choice([name for name in STEPS if key_of(name) is None]))
            self.oracle.say("leave", key)

    def hold_lease(self) -> None:
        key = f"lease {self.random.randrange(2)}"
        self.oracle.say("leasing", key)
        try:
            with self.workflow.lease(key, ttl=self.random.choice([0.01, 0.1])) as held:
                self.oracle.say("leased", key, held.token)
                for _ in range(2):
                    self.workflow.append_event("under", detail={"lease": key, "token": held.token})
                    time.sleep(0.001)
        except (LeaseConflictError, LeaseLostError):
            self.oracle.say("no lease", key)


def key_of(name: str) -> str | None:
    """The mutex under which a step is called: of four steps, one has none."""
    number = int(name.split()[1]) % 4
    return None if number == 3 else f"key {number}"


def counted(state: Any, name: str) -> Any:
    """The state in which a step has counted once more."""
    return {**state, "steps": {**state["steps"], name: state["steps"].get(name, 0) + 1}}


# The storm


class Storm:
    """Processes on one store, and their deaths.

    Args:
        nursery: Where they come from.
        root: A folder for the store and the oracle.
        chance: When they die.
        kills: How many.

    Attributes:
        kills: How many so far, by `HOW`.
        found: The promises that were broken.
        phases: Where the kills found threads.
    """

    def __init__(self, nursery: Nursery, root: Path, chance: random.Random, kills: int) -> None:
        self.kills: Counter[str] = Counter()
        self.found: list[str] = []
        self.phases: Counter[str] = Counter()
        self._nursery = nursery
        self._root = root
        self._random = chance
        self._wanted = kills
        self._lives = [0.03]  # seconds of those that were left to live, so far
        self._calls = [100]  # of the file system, likewise
        self._how = itertools.cycle(HOW)
        self._words = itertools.cycle(PHASES)
        self._number = 0
        self._running: dict[str, _Running] = {}

    @property
    def is_over(self) -> bool:
        """Whether there were kills enough."""
        return self.kills.total() >= self._wanted

    def rage(self, workflow_id: str) -> None:
        """Kill until all steps of a workflow have been done, and look at what is left of it."""
        path = self._root / "oracle"
        path.unlink(missing_ok=True)
        oracle = Oracle(path, "storm")
        undone, lines = set(STEPS), []
        while undone or self._running:
            while undone and len(self._running) < PROCESSES:
                self._start(workflow_id)
            self._wait()
            self._strike(oracle)
            lines += (news := oracle.news())
            undone -= {line.about for line in news if line.what in ("told", "interrupted")}
        oracle.close()
        self.phases += phases_of_kills(lines)
        self.found += violations(lines)
        self.found += self._look(workflow_id, lines)

    def _start(self, workflow_id: str) -> None:
        self._number += 1
        plan = Plan(str(self._root), workflow_id, f"process {self._number}", self._random.getrandbits(32))
        how = "not" if self.is_over else next(self._how)
        kill_after = DEADLINE
        match how:
            case "at a random moment":
                kill_after = self._random.uniform(0, 1.1 * median(self._lives))
            case "at a random call":
                plan = attrs.evolve(plan, last_call=self._random.randint(1, int(1.1 * median(self._calls))))
            case "after a message":
                plan = attrs.evolve(plan, last=(next(self._words), self._random.choice([0, 0.0001, 0.0005, 0.002])))
        process = self._nursery.start(live, attrs.asdict(plan))
        self._running[plan.who] = _Running(process, how, time.monotonic() + kill_after)

    def _wait(self) -> None:
        """Until one ends by itself, or is to be ended."""
        first = min(running.kill_at for running in self._running.values())
        links = {running.process.link: who for who, running in self._running.items()}
        ready, _, _ = select.select(list(links), [], [], max(0.0, first - time.monotonic()))
        for link in ready:
            self._collect(links[link])

    def _collect(self, who: str) -> None:
        running = self._running.pop(who)
        lived, calls = time.monotonic() - running.since, 0
        with suppress(EOFError):
            calls = running.process.link.hear()
        code = running.process.collect()
        assert code in (0, -signal.SIGKILL), f"{who} ended with {code}"
        if code:
            self.kills[running.how] += 1
        else:
            self._lives.append(lived)
            self._calls.append(calls)

    def _strike(self, oracle: Oracle) -> None:
        now = time.monotonic()
        for who, running in list(self._running.items()):
            if running.kill_at > now:
                continue
            assert running.how == "at a random moment", f"{who} hangs"
            oracle.say("kill", who)
            running.process.kill()
            del self._running[who]
            self.kills[running.how] += running.process.exit_code == -signal.SIGKILL

    def _look(self, workflow_id: str, lines: list[Line]) -> list[str]:
        store = self._root / "store"
        found = [f"{lock} stays locked" for lock in held_locks(store)]
        workflow = Workflow(workflow_id, dir=store, on_busy="fail")
        with workflow:
            for key in {line.about for line in lines if line.what == "enter"}:
                with workflow.mutex(key, timeout=0):
                    pass
        record = workflow.record
        found += violations_of_record(lines, record)
        found += [] if record.status is WorkflowStatus.COMPLETED else [f"{workflow_id} is {record.status}"]
        projection = FileStore(store).read(workflow_id)
        assert projection is not None
        named = {f"{owner}.dead" for owner in projection.owners()}  # of steps that no process has called again
        left = [path for path in (store / "locks").rglob("*") if path.parent.name in ("runs", "mutex")]
        found += [f"{path} stays" for path in left if path.name not in named]
        delete_workflow(workflow_id, dir=store)
        return found


@pytest.mark.slow
@attrs.frozen
class _Running:
    """A process: how it is to be killed, and when."""

    process: Process
    how: str
    kill_at: float
    since: float = attrs.field(factory=time.monotonic)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_storm_of_kills_breaks_no_promise(nursery: Nursery, tier: Tier, figures: Figures, part: int) -> None:
    """Nothing acknowledged is lost or runs again, no lock stays, each result is what the body returned."""
    kills = -(-tier.count(quick=30, full=500, soak=20_000) // PARTS)
    rounds = 0
    with memory_folder() as root:
        storm = Storm(nursery, root, tier.random(f"kill storm {part}"), kills)
        while not storm.is_over and not storm.found:
            rounds += 1
            storm.rage(f"round {rounds}")
    for how, count in storm.kills.items():
        figures.add(3, f"processes killed {how}", count)
    for phase, count in storm.phases.items():
        figures.add(3, f"kills that found a thread {phase}", count)
    figures.add(3, "workflows done under kills", rounds, len(storm.found))
    assert not storm.found, f"seed {tier.seed}, part {part}, round {rounds}:\n" + "\n".join(storm.found)
    # Otherwise it has tried nothing; a few kills cannot fall everywhere.
    assert len(storm.phases) >= tier.pick(quick=4, full=9, soak=11), storm.phases
    assert tier.name == "quick" or set(EVERYWHERE) <= set(storm.phases), storm.phases


# The checker


def history(*lines: str) -> list[Line]:
    """Lines of "who what about value", of one thread each."""
    words = [line.split() for line in lines]
    return [Line(who, "main", what, about, int(value)) for who, what, about, value in words]


LEGAL = [
    "a begin step 1",
    "b enter key 0",
    "a end step 1",
    "a told step 1",
    "b leave key 0",
    "b told step 1",
    "a begin once 2",
    "a end once 2",
    "storm kill a 0",
    "b interrupted once 0",
    "b begin other 3",
    "storm kill b 0",
    "c leasing key 0",
    "d leasing key 0",
    "d leased key 2",
    "c leased key 1",
    "c begin other 4",
    "c end other 4",
    "c told other 4",
]


def test_a_legal_history_is_legal() -> None:
    """Kills, takeovers, waiting and interruptions are no violations."""
    assert violations(history(*LEGAL)) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("b begin step 5", "runs again"),
        ("b told once 2", "interrupted"),
        ("c begin once 5", "begins twice"),
        ("c interrupted step 0", "acknowledged before"),
        ("c end once 2", "nobody was in there"),
        ("b end other 3", "nobody was in there"),
        ("c leave key 0", "nobody was in there"),
    ],
    ids=lambda value: value.replace(" ", "-"),
)
def test_an_illegal_history_is_not(line: str, complaint: str) -> None:
    """One line that breaks a promise, after a legal history, is found, and it alone."""
    (found,) = violations(history(*LEGAL, line))
    assert complaint in found


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["a enter key 0", "b enter key 0"], "a, main is in there"),
        (["a begin step 1", "b begin step 2"], "a, main is in there"),
        (["a begin step 1", "storm kill a 0", "b begin step 2", "a end step 1"], "b, main was in there"),
        (
            ["a begin step 1", "a end step 1", "b begin step 2", "b end step 2", "a told step 1", "b told step 2"],
            "told",
        ),
        (["a begin step 1", "a end step 1", "a told step 2"], "no body has returned"),
        (["a begin step 1", "storm kill a 0", "b told step 1"], "no body has returned"),
        (["a added adds 1", "b added adds 1"], "update is lost"),
        (["a leasing key 0", "b leasing key 0", "a leased key 2", "b leased key 2"], "two were handed"),
        (["a leasing key 0", "a leased key 2", "b leasing key 0", "b leased key 1"], "a higher token"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else None,
)
def test_an_illegal_meeting_is_found(lines: list[str], complaint: str) -> None:
    """Two that were where one should be, or were told what one should be."""
    (found,) = violations(history(*lines))
    assert complaint in found
