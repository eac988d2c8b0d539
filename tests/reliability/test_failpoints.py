"""Processes that are killed, or stand still, at each place where the store calls the file system.

Every call of the door to the file system is a failpoint, named by where it stands: ``log.append:write_at``. The
processes are forks of one, which is started once: a Python for each would cost more than all the rest.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest
from reliability.faults import (
    METHODS,
    WORKLOADS,
    Client,
    Diary,
    Double,
    Peer,
    check_all,
    paths_of,
    prepared,
)
from reliability.tiers import Figures, Tier
from support import T0, Child, memory_folder, new_fold, note, put, run_python, waits_for_a_lock

from iso_orchestrator import WorkflowBusyError
from iso_orchestrator.record.facts import RunStarted
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import log as log_module
from iso_orchestrator.system import file_lock

STORE = Path(log_module.__file__).parent
FILE_LOCK = Path(file_lock.__file__)
DEADLINE = 60.0  # seconds; reached only by what hangs
GRACE = 0.1  # seconds that a peer works beside a process that stands still, at most


# The failpoints.


def failpoints() -> set[str]:
    """All that stand in the source."""
    found: set[str] = set()
    for module, tree in modules("store").items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                found |= {f"{module}.{function.name}:{method}" for method in calls_in(function)}
    return found


def modules(first: str) -> dict[str, ast.Module]:
    """A module of the store and all that it needs there; what repairs a damaged root is not among them."""
    found: dict[str, ast.Module] = {}
    names = [first]
    while names:
        name = names.pop()
        (path,) = [
            path for path in (FILE_LOCK, STORE / f"{name}.py", STORE.parent / f"{name}.py") if is_module(path, name)
        ]
        found[name] = ast.parse(path.read_text("utf-8"))
        imports = [node.module or "" for node in ast.walk(found[name]) if isinstance(node, ast.ImportFrom)]
        places = [module.rpartition(".") for module in imports]
        names += [
            stem for package, _, stem in places if package.endswith((".store.file", ".store")) and stem not in found
        ]
        if FILE_LOCK.stem not in found and FILE_LOCK.stem in {stem for _, _, stem in places}:
            names.append(FILE_LOCK.stem)
    return found


def is_module(path: Path, name: str) -> bool:
    return path.stem == name and path.exists()


def calls_in(function: ast.FunctionDef) -> Iterator[str]:
    """The methods of the file system that a function calls itself, not in one inside of it."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            door = node.func.value
            if (isinstance(door, ast.Name) and door.id == "fs") or (
                isinstance(door, ast.Attribute) and door.attr == "_fs"
            ):
                yield node.func.attr


def is_of_store(path: Path) -> bool:
    """Whether a module is one of those that have failpoints."""
    return path.parent in (STORE, STORE.parent) or path == FILE_LOCK


def name_of(frame: FrameType | None, method: str) -> str:
    """The failpoint at which *method* is called."""
    while frame is not None and not is_of_store(Path(frame.f_code.co_filename)):
        frame = frame.f_back
    assert frame is not None, f"{method} is called from outside of the store"
    function = [part for part in frame.f_code.co_qualname.split(".") if not part.startswith("<")][-1]
    return f"{Path(frame.f_code.co_filename).stem}.{function}:{method}"


# What processes do.


@attrs.frozen
class Strike:
    """When a process is struck: at its *nth* call at a failpoint, before it or after it."""

    name: str
    nth: int
    after: bool
    signal: int


class Failpoints(Double):
    """Counts the calls at each failpoint, and strikes its own process at one.

    Args:
        strike: Where.
        refused: At these the first call finds no room.
    """

    def __init__(self, strike: Strike | None, refused: tuple[str, ...]) -> None:
        super().__init__()
        self.hits: Counter[str] = Counter()
        self._strike = strike
        self._refused = set(refused)

    def around(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """The real call, struck where it should be."""
        failpoint = name_of(sys._getframe(1), name)
        self.hits[failpoint] += 1
        strike = self._strike
        due = strike is not None and strike.name == failpoint and self.hits[failpoint] == strike.nth
        if strike is not None and due and not strike.after:
            os.kill(os.getpid(), strike.signal)
        try:
            return super().around(name, lambda: self._call(failpoint, call), args)
        finally:
            if strike is not None and due and strike.after:
                os.kill(os.getpid(), strike.signal)

    def _call(self, failpoint: str, call: Callable[[], Any]) -> Any:
        if failpoint in self._refused:
            self._refused.remove(failpoint)
            raise OSError(28, "No space left on device")
        return call()


def look(client: Client) -> None:
    """Everything that only reads; and what is refused to others while somebody uses the workflow."""
    client.note("one")
    assert FileStore(client.root, client.fs).read("w") is not None
    assert len(list(client.store.list())) == 1
    with suppress(WorkflowBusyError):
        FileStore(client.root, client.fs).delete("w")
    with suppress(WorkflowBusyError):
        FileStore(client.root, client.fs).delete_logs("w")
    assert FileStore(client.root, client.fs).size_of("w").record > 0
    with client.workflow.mutex("m"):
        client.step("step")
        client.step("step")
        assert client.workflow.record.workflow_id == "w"


def no_room(client: Client) -> None:
    """An append and a fold find the disk full, once each."""
    client.note("one")
    client.note("two")
    client.note("x" * 2000)
    client.leave()
    client.note("three")
    client.leave()


def torn_peer(client: Client) -> None:
    """Beside a process that lives, another leaves half a line, at an opening and in the midst of the work."""
    peer = Peer(client)
    peer.append("one")
    tear(client.root)
    client.note("two")
    tear(client.root)
    client.note("three")
    client.leave()
    peer.log.close()


def tear(root: Path) -> None:
    with open(paths_of(root).journal, "ab") as file:
        file.write(b"torn")


def foreign(client: Client) -> None:
    """Another program only copies the snapshot, so that it is to be looked at again.

    Under the lock: a peer that folds between its two calls would have what it folded put back.
    """
    client.note("one")
    paths = paths_of(client.root)
    with open(paths.record_lock, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.copy(paths.snapshot, f"{paths.snapshot}.copy")
        os.replace(f"{paths.snapshot}.copy", paths.snapshot)
    client.note("two")


def folders_as_locks(client: Client) -> None:
    """A workflow is deleted whose mutexes are folders, as the npm package has them, and whose journal is in use."""
    client.note("one")
    client.attempt(lambda: client.store.delete("other"))
    client.note("two")


def dead_runner(client: Client) -> None:
    """A killed process has left a run on record, and folders that others may look into."""
    client.note("one")


LIVES: dict[str, Callable[[Client], None]] = {
    **WORKLOADS,
    "look": look,
    "no room": no_room,
    "torn beside a peer": torn_peer,
    "foreign": foreign,
    "folders as locks": folders_as_locks,
    "dead runner": dead_runner,
}
REFUSED = {"no room": ("log.append:write_at", "files.atomic_write:replace")}


def prepare(root: Path, life: str) -> None:
    """What is there before a life."""
    prepared(root, "delete" if life == "folders as locks" else life)
    if life == "dead runner":
        log, projection = FileStore(root).open("w", new_fold)
        put(log, projection, RunStarted(T0, "run", log.process_id, 1, "host"))
        log.close()
        Path(paths_of(root).locks).chmod(0o755)
    if life == "folders as locks":
        folder = Path(paths_of(root, "other").mutexes) / "npm-1234567890"
        folder.mkdir(parents=True)
        (folder / "owner.json").write_text("{}")
        log, projection = FileStore(root).open("other", lambda: new_fold("other", []))
        log.sync(put(log, projection, note("newer")).seq)
        log.close()  # as a kill leaves it: the journal has what the snapshot lacks


def live(root: Path, life: str, diary: Path, strike: Strike | None) -> Counter[str]:
    """One life, which may not come to its end; how often it came to each failpoint."""
    fs = Failpoints(strike, REFUSED.get(life, ()))
    client = Client(root, fs, Diary(diary))
    LIVES[life](client)
    client.leave()
    return fs.hits


def live_beside(root: Path, diary: Path) -> None:
    """The life of a peer: it does things of its own, then what both do."""
    client = Client(root, Double(), Diary(diary))
    client.note("peer")
    client.note("peer " + "x" * 2000)
    client.step("of the peer")
    with client.workflow.mutex("m"):
        client.add("peer")
    client.step("step")
    client.step("step 0")
    client.leave()


# The process that forks them.


@attrs.frozen
class Case:
    """One life, and what is done to it."""

    life: str
    strike: Strike

    @property
    def beside(self) -> bool:
        """It is stopped, a peer lives beside it, and it goes on; else it is killed."""
        return self.strike.signal == signal.SIGSTOP


def serve() -> None:
    """In a process of its own: answer a line of JSON by one, until there are no more."""
    log_module._CHECKPOINT_AT_BYTES = 2000
    log_module._CHECKPOINT_AT_RATIO = 0.0
    log_module._log.disabled = True
    for line in sys.stdin:
        request = json.loads(line)
        root = Path(request["root"])
        try:
            answer = survey(root) if "life" not in request else {"trouble": trouble_of(root, case_of(request))}
        except BaseException:
            answer = {"trouble": traceback.format_exc()}
        shutil.rmtree(root, ignore_errors=True)
        print(json.dumps(answer))


def case_of(request: dict[str, Any]) -> Case:
    return Case(request["life"], Strike(*request["strike"]))


def survey(root: Path) -> dict[str, dict[str, int]]:
    """How often each life comes to each failpoint, when it is let be."""
    hits = {}
    for life in LIVES:
        diary, out = root / f"{life}.diary", root / f"{life}.hits"
        root.mkdir(exist_ok=True)
        prepare(root / life, life)
        pid = forked(
            lambda life=life, diary=diary, out=out: out.write_text(json.dumps(live(root / life, life, diary, None)))
        )  # type: ignore[misc]
        assert ended(pid) == 0, f"{life} failed by itself"
        if life not in REFUSED:
            assert Diary(diary).errors == []
        hits[life] = json.loads(out.read_text())
    return hits


def trouble_of(root: Path, case: Case) -> str:
    """What is wrong after a life that was struck; nothing, if all is well."""
    root.mkdir()
    place, diary, peer = root / "root", root / "diary", root / "peer"
    prepare(place, case.life)
    pid = forked(lambda: live(place, case.life, diary, case.strike))
    if case.beside:
        stopped_beside(pid, place, peer)
    elif (code := ended(pid)) != -signal.SIGKILL:
        return f"it ended with {code} before it could be killed"
    diaries = [Diary(path) for path in (diary, peer) if path.exists()]
    if case.beside and case.life not in REFUSED:
        assert [diary.errors for diary in diaries] == [[], []]
        ran = [step for diary in diaries for step in diary.ran]
        assert len(ran) == len(set(ran)), f"both ran a step: {ran}"
    out = root / "trouble"
    code = ended(forked(lambda: check_all(place, *diaries), out))
    return "" if code == 0 else f"the check ended with {code}: {out.read_text() if out.exists() else 'no word'}"


def stopped_beside(pid: int, root: Path, diary: Path) -> None:
    """Wait until a process stands still, let a peer work beside it, and let it go on."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended with {os.waitstatus_to_exitcode(status)} before it could be stopped"
    peer = forked(lambda: live_beside(root, diary))
    peers_code = None
    until = time.monotonic() + GRACE
    while peers_code is None and time.monotonic() < until and not waits_for_a_lock(peer):
        time.sleep(0.001)
        peers_code = code_of(peer)
    os.kill(pid, signal.SIGCONT)
    assert ended(pid) == 0, "it failed after it had stood still"
    assert (ended(peer) if peers_code is None else peers_code) == 0, "its peer failed"


def forked(work: Callable[[], object], out: Path | None = None) -> int:
    """Do *work* in a process of its own, which gives up after a deadline."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(int(DEADLINE))
        work()
        code = 0
    except BaseException:
        text = traceback.format_exc()
        sys.stderr.write(text)
        if out is not None:
            out.write_text(text)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """How a process ended, when it has; a signal is a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def code_of(pid: int) -> int | None:
    """The same, if it has ended."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


# The tests.


class Server:
    """The process that forks, as the tests talk to it."""

    def __init__(self, child: Child, folder: Path) -> None:
        self._child = child
        self._folder = folder
        self._number = 0
        self.hits: dict[str, dict[str, int]] = self._request_key({})

    def check(self, case: Case) -> None:
        """Nothing is wrong after that life."""
        answer = self._request_key({"life": case.life, "strike": attrs.astuple(case.strike)})
        assert not answer["trouble"], f"{case}\n{answer['trouble']}"

    def lives_at(self, failpoint: str) -> list[str]:
        """The lives that come to it."""
        return [life for life, hits in self.hits.items() if failpoint in hits]

    def case(self, failpoint: str, life: str, after: bool, number: int, randomness: random.Random) -> Case:
        """A strike at any of the times at which that life comes there."""
        return Case(life, Strike(failpoint, randomness.randint(1, self.hits[life][failpoint]), after, number))

    def _request_key(self, question: dict[str, Any]) -> Any:
        self._number += 1
        self._child.say(json.dumps({**question, "root": str(self._folder / str(self._number))}))
        return json.loads(self._child.line(4 * DEADLINE))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with memory_folder() as folder, run_python("from reliability.test_failpoints import serve; serve()") as child:
        yield Server(child, folder)


# Of what commands write, and of their marks: `test_commands` kills their runners at any time.
OF_COMMANDS = {
    "file_lock.open_append:open_append",
    "file_lock.close_without_unlock:close",
    "store.location_id:identify_path",
}
# Only come to where a lock file was removed: `tests/store/test_cleaners.py`.
OF_CLEANERS = {"liveness.release:open_write", "liveness.release:close"}
# Only come to where another program sets files back (`test_gone_back.py`), and by a backup, which changes nothing.
OF_OTHERS = {"log._refuse_unsealed:size", "store._write_tar:close", "store._write_tar:identify_path"}
NAMES = sorted(set(failpoints()) - OF_COMMANDS - OF_CLEANERS - OF_OTHERS)
PARTS = 4  # of the failpoints, for as many workers


def drawn(server: Server, tier: Tier, number: int, part: int) -> list[Case]:
    """The cases of a part of the failpoints: in full, before and after each, in two of the lives that come there."""
    names = NAMES[part::PARTS]
    if tier.name == "quick":
        names = tier.random("failpoints").sample(names, min(len(names), 4 if number == signal.SIGKILL else 1))
    cases = []
    for seed in range(tier.count(quick=1, full=1, soak=20)):
        for name in names:
            randomness = tier.random(f"{name} {number} {seed}")
            lives = server.lives_at(name)
            for life in randomness.sample(lives, tier.pick(quick=1, full=min(2, len(lives)), soak=len(lives))):
                afters = tier.pick(quick=[randomness.random() < 0.5], full=[False, True], soak=[False, True])
                cases += [server.case(name, life, after, number, randomness) for after in afters]
    return cases


@pytest.mark.slow
def test_every_failpoint_in_the_source_is_come_to(server: Server) -> None:
    """The lives come to each place at which the store calls the file system, and to none that is not listed."""
    come_to = {name for hits in server.hits.values() for name in hits}
    assert come_to == set(NAMES)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_process_killed_at_a_failpoint_loses_nothing(server: Server, tier: Tier, figures: Figures, part: int) -> None:
    """Nothing it was told is lost, nothing it completed runs again, and none of its locks stays."""
    cases = drawn(server, tier, signal.SIGKILL, part)
    for case in cases:
        server.check(case)
    figures.add(4, "kills at named failpoints", len(cases))


@pytest.mark.parametrize("part", range(PARTS))
def test_a_process_that_stands_still_at_a_failpoint_loses_nothing(
    server: Server, tier: Tier, figures: Figures, part: int
) -> None:
    """A peer works or waits meanwhile; both are told the truth, and no step runs twice."""
    cases = drawn(server, tier, signal.SIGSTOP, part)
    for case in cases:
        server.check(case)
    figures.add(4, "stops at named failpoints", len(cases))
