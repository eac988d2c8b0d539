"""File systems that fail, and what the tests of faults share."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
from support import new_fold, note, put

from iso_orchestrator import StoreError, Workflow, WorkflowRecord, open_workflow
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.names import record_names
from iso_orchestrator.system.filesystem import FileSystem

__all__ = [
    "KINDS",
    "METHODS",
    "WORKLOADS",
    "Client",
    "Diary",
    "Double",
    "Durability",
    "Failing",
    "Fault",
    "Kind",
    "Peer",
    "check_all",
    "notes_in",
    "open_files",
    "paths_of",
    "prepared",
]

METHODS = tuple(name for name in vars(FileSystem) if not name.startswith("_"))
OPENING = frozenset({"open_read", "open_write", "open_existing", "open_new"})
MAKING = frozenset({"open_write", "open_new", "write_at", "replace", "make_folder", "sync", "sync_folder", "truncate"})
NAMING = frozenset({"open_write", "open_existing", "open_new", "replace", "unlink", "make_folder", "remove_folder"})
LOOKING = frozenset({"open_read", "list_folder", "identify_path"})

T = TypeVar("T")


class Double(FileSystem):
    """The real file system, with a place around each of its calls."""

    def around(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """What the method *name* does: *call* is the real one."""
        return call()


def _around(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def method(self: Double, *args: Any) -> Any:
        return self.around(name, partial(real, self, *args), args)

    return method


for _name in METHODS:
    setattr(Double, _name, _around(_name))


class Durability(Double):
    """Knows what of the records would not survive a power cut: bytes and names that no sync has covered."""

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}
        self._dirty: set[int] = set()
        self._folders: set[str] = set()

    @property
    def unsynced(self) -> list[str]:
        """The files and folders that have something to lose; locks are not among them."""
        files = [self._paths.get(fd, "?") for fd in self._dirty]
        return sorted(path for path in (*files, *self._folders) if f"{os.sep}locks" not in path)

    def beside(self) -> Durability:
        """What another process uses on the same disk: a folder that it syncs is synced."""
        other = Durability()
        other._folders = self._folders
        return other

    def around(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """Note what the call leaves to be synced."""
        # A failed write may have written, and a failed sync has synced nothing.
        if name in ("write_at", "truncate"):
            self._dirty.add(args[0])
        elif name == "close":  # a journal that is replaced, or one that others have
            self._dirty.discard(args[0])
        result = call()
        if name in OPENING:
            self._paths[result] = args[0]
        elif name == "replace" or (name == "make_folder" and result):
            self._folders.add(os.path.dirname(args[-1]))
        elif name == "sync":
            self._dirty.discard(args[0])
        elif name == "sync_folder":
            self._folders.discard(args[0])
        return result


@attrs.frozen
class Kind:
    """How a call can fail.

    Attributes:
        number: The system's; 0 where it takes less than it was given, and that is all.
        methods: The calls that can fail so.
        takes_half: A write takes half of its bytes first, as that of a disk that fills up does.
    """

    number: int
    methods: frozenset[str]
    takes_half: bool = False


KINDS: dict[str, Kind] = {
    "EIO": Kind(errno.EIO, frozenset(METHODS)),
    "ENOSPC": Kind(errno.ENOSPC, MAKING),
    "EDQUOT": Kind(errno.EDQUOT, MAKING),
    "EROFS": Kind(errno.EROFS, NAMING | {"write_at", "truncate"}),
    "EACCES": Kind(errno.EACCES, NAMING | LOOKING),
    "EMFILE": Kind(errno.EMFILE, OPENING | {"list_folder", "sync_folder"}),
    "short": Kind(0, frozenset({"write_at"}), takes_half=True),
    "half, then ENOSPC": Kind(errno.ENOSPC, frozenset({"write_at"}), takes_half=True),
}


@attrs.frozen
class Fault:
    """Which call fails how.

    Attributes:
        kind: A key of `KINDS`.
        at: The number of the call among those that can fail so, counted from 1.
        for_ever: All later ones do too.
    """

    kind: str
    at: int
    for_ever: bool = False


class Failing(Durability):
    """Calls fail as the faults say.

    Attributes:
        calls: How many calls of each method there were.
        struck: How many of them failed.
        healed: Whether everything works again.
    """

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.struck = 0
        self.healed = False
        self._faults = faults
        self._counts = [0] * len(faults)

    def around(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """The real call, or its failure."""
        self.calls[name] += 1
        return super().around(name, lambda: self._call_or_fail(name, call, args), args)

    def can_fail(self, kind: str) -> int:
        """How many calls of this run can fail in that way."""
        return sum(self.calls[method] for method in KINDS[kind].methods)

    def _call_or_fail(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        for index, fault in enumerate(self._faults):
            if self.healed or name not in KINDS[fault.kind].methods:
                continue
            self._counts[index] += 1
            if self._is_due(fault, self._counts[index]):
                self.struck += 1
                return self._fail(fault, self._counts[index], name, call, args)
        return call()

    def _is_due(self, fault: Fault, count: int) -> bool:
        kind = KINDS[fault.kind]
        last = fault.at + 1 if kind.takes_half and kind.number else fault.at
        return fault.at <= count and (fault.for_ever or count <= last)

    def _fail(self, fault: Fault, count: int, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        kind = KINDS[fault.kind]
        if kind.takes_half and (count == fault.at or not kind.number):
            fd, data, offset = args
            return FileSystem.write_at(self, fd, data[: (len(data) + 1) // 2], offset)
        if name == "close":
            call()  # whatever the kernel says, the descriptor is gone
        raise OSError(kind.number, os.strerror(kind.number))


def open_files() -> int:
    """How many files this process has open; 0 where nobody says."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def paths_of(root: Path | str, workflow_id: str = "w") -> Paths:
    """Where a workflow's files are."""
    return Paths(str(root), record_names(workflow_id).short)


def notes_in(record: WorkflowRecord) -> list[str]:
    """The messages of all events of type "note", in order."""
    return [str(event.message) for event in record.events if event.type == "note"]


def check_order(found: Sequence[str], tried: Sequence[str], told: Sequence[str]) -> None:
    """What is found of it was tried in that order and once each; and all that was acknowledged is found."""
    own = [text for text in found if text in set(tried)]
    assert own == [text for text in tried if text in set(own)], f"{own} of {tried}"
    assert set(own) >= set(told), f"lost: {sorted(set(told) - set(own))}"


class Diary:
    """What a client asked for and was told, written down where a kill does not reach it.

    Attributes:
        tried: All that was asked for, by what it is ("note", "state", "step"), in order.
        told: What of it was acknowledged.
        ran: The steps whose bodies ran.
        tokens: The fencing tokens that were handed out, by lease.
        errors: The errors.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.tried: dict[str, list[str]] = {"note": [], "state": [], "step": []}
        self.told: dict[str, list[str]] = {"note": [], "state": [], "step": []}
        self.ran: list[str] = []
        self.tokens: dict[str, list[int]] = {}
        self.errors: list[str] = []
        self._file = -1
        if path is not None:
            for line in path.read_text().splitlines() if path.exists() else ():
                self._take(json.loads(line))
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *entry: Any) -> None:
        """Note something: a word of what, and what."""
        self._take(entry)
        if self._file >= 0:
            os.write(self._file, json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)

    def _take(self, entry: Sequence[Any]) -> None:
        match entry:
            case "tried" | "told" as what, kind, text:
                texts = getattr(self, what)[kind]
                texts += [text] if text not in texts else []
            case "token", key, token:
                self.tokens.setdefault(key, []).append(token)
            case "ran", step:
                self.ran.append(step)
            case "error", text:
                self.errors.append(text)


class Client:
    """Who uses a workflow in a root, and goes on after each error."""

    def __init__(self, root: Path, fs: Double, diary: Diary | None = None) -> None:
        self.root = root
        self.fs = fs
        self.diary = diary or Diary()
        self.store = FileStore(root, fs)
        self.workflow = Workflow("w", store=self.store, initial_state=[])

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The value of *work*; None when the store refused it. What is no `StoreError` goes on."""
        try:
            return work()
        except StoreError as error:
            self.diary.write("error", repr(error))
            return None

    def note(self, text: str) -> None:
        """Append an event."""
        self._request_key("note", text, lambda: self.workflow.append_event("note", text))

    def add(self, text: str) -> None:
        """Put a word into the state."""
        self._request_key("state", text, lambda: self.workflow.update_state(lambda state: [*state, text]))

    def step(self, name: str) -> None:
        """Run a step, or get its result."""

        def body() -> str:
            self.diary.write("ran", name)
            return f"result of {name}"

        self._request_key("step", name, lambda: self.workflow.run_step(name, body))

    def touch(self, key: str) -> None:
        """Acquire a lease or renew it."""
        lease = self.attempt(lambda: self.workflow.touch_lease(key, holder="client", ttl=3600))
        if lease is not None:
            self.is_given(key, lease.token)

    def is_given(self, key: str, token: int) -> None:
        """A token was handed out."""
        self._is_durable(f"token {token} of {key}")
        self.diary.write("token", key, token)

    def leave(self) -> None:
        """Close the workflow, whether that goes well or not."""
        self.attempt(self.workflow.close)

    def _request_key(self, kind: str, text: str, work: Callable[[], Any]) -> None:
        self.diary.write("tried", kind, text)
        done = self.attempt(lambda: (work(), self._is_durable(text)))
        if done is not None:
            self.diary.write("told", kind, text)

    def _is_durable(self, what: str) -> None:
        if isinstance(self.fs, Durability):
            assert self.fs.unsynced == [], f"{what} is acknowledged, and a power cut would take {self.fs.unsynced}"


def check_all(root: Path, *diaries: Diary) -> None:
    """Whoever comes next finds a sound record with all that the clients were told, and nobody in the way.

    They have closed the workflow, or are dead. At the end there is none any more.
    """
    before = FileStore(root).read("w")
    seen = before.record() if before is not None else None
    if seen is not None:
        check_record(seen, diaries)
    workflow = open_workflow("w", dir=root, initial_state=[])
    record = workflow.record
    assert seen is None or seen.steps == record.steps, "opening changed the steps"
    check_record(record, diaries)
    check_steps(workflow, diaries)
    check_leases(workflow, diaries)
    for scope in ("workflow", "store"):
        with workflow.mutex("m", timeout=0, scope=scope):  # type: ignore[arg-type]
            workflow.append_event("note", f"after, {scope}")
    last = workflow.record
    assert notes_in(last)[-2:] == ["after, workflow", "after, store"]
    workflow.close()
    again = FileStore(root).read("w")
    assert again is not None
    assert again.record() == last
    check_leftovers(root)


def check_record(record: WorkflowRecord, diaries: Sequence[Diary]) -> None:
    """Each client's words are there, in order, and no others."""
    done = {name for name, step in record.steps.items() if step.result is not None}
    assert all(record.steps[name].result == f"result of {name}" for name in done)
    for diary in diaries:
        check_order(notes_in(record), diary.tried["note"], diary.told["note"])
        check_order(record.state, diary.tried["state"], diary.told["state"])
        assert done >= set(diary.told["step"]), f"lost: {sorted(set(diary.told['step']) - done)}"
    for kind, found in (("note", notes_in(record)), ("state", record.state), ("step", list(record.steps))):
        assert set(found) <= {text for diary in diaries for text in diary.tried[kind]}, "what nobody wrote"


def check_steps(workflow: Workflow, diaries: Sequence[Diary]) -> None:
    """No step that was acknowledged runs again; all others can be run."""
    told = {name for diary in diaries for name in diary.told["step"]}
    for name in {name: None for diary in diaries for name in diary.tried["step"]}:
        ran: list[str] = []
        result = workflow.run_step(name, lambda name=name, ran=ran: ran.append(name) or f"result of {name}")  # type: ignore[misc]
        assert result == f"result of {name}"
        assert not (ran and name in told), f"step {name} was acknowledged and ran again"


def check_leases(workflow: Workflow, diaries: Sequence[Diary]) -> None:
    """The next token is higher than all that were handed out."""
    keys = {key for diary in diaries for key in diary.tokens}
    for key in sorted(keys):
        highest = max(token for diary in diaries for token in diary.tokens.get(key, [0]))
        workflow.release_lease(key)
        token = workflow.touch_lease(key, holder="next", ttl=60).token
        assert token > highest, f"token {token} of {key} after {highest}"
        workflow.release_lease(key)


def check_leftovers(root: Path) -> None:
    """Nothing is left of those who are gone, nor of the workflow when it is deleted."""
    paths = paths_of(root)
    own = [name for name in os.listdir(paths.folder) if name.startswith(paths.name)]
    assert [name for name in own if name.endswith(".new")] == []
    assert os.listdir(paths.runs) == []
    assert FileStore(root).delete("w")
    assert [name for name in os.listdir(paths.folder) if name.startswith(paths.name)] == []
    assert not os.path.exists(paths.locks)


# What clients do.


def append(client: Client) -> None:
    for number in range(3):
        client.note(f"note {number}")
        client.add(f"word {number}")
        client.step(f"step {number}")


def projection(client: Client) -> None:
    for number in range(4):
        client.note(f"{number} " + "x" * 900)
        client.step(f"step {number}")


def open_again(client: Client) -> None:
    client.note("before")
    client.leave()
    client.note("between")
    client.leave()
    client.step("step")


def open_torn(client: Client) -> None:
    """The workflow was left by a killed process, with half a line at the journal's end."""
    client.diary.write("tried", "note", "earlier")
    client.diary.write("told", "note", "earlier")
    client.note("after")
    client.step("step")


def leave(client: Client) -> None:
    """Runs that begin and end, the last with an error."""

    def run(text: str) -> None:
        with client.workflow:
            client.note(text)
            client.step(f"step {text}")

    client.attempt(lambda: run("first"))
    client.attempt(lambda: run("second"))


def lease(client: Client) -> None:
    def hold() -> None:
        with client.workflow.lease("held", ttl=3600) as held:
            client.is_given("held", held.token)
            client.note("inside")

    client.touch("touched")
    client.touch("touched")
    client.attempt(hold)
    client.attempt(lambda: client.workflow.release_lease("touched"))
    client.touch("touched")


def delete(client: Client) -> None:
    """Another workflow of the root is deleted, and made again."""
    deleted = client.attempt(lambda: client.store.delete("other"))
    if deleted is not None:
        assert deleted
        assert FileStore(client.root).read("other") is None, "it was said to be deleted"
    client.note("after")
    other = Workflow("other", store=client.store)
    client.attempt(lambda: other.append_event("note", "new"))
    client.attempt(other.close)


def mutex(client: Client) -> None:
    def hold(text: str, scope: str) -> None:
        with client.workflow.mutex("m", scope=scope):  # type: ignore[arg-type]
            client.note(text)

    client.attempt(lambda: hold("first", "workflow"))
    client.attempt(lambda: hold("second", "store"))
    client.attempt(lambda: hold("third", "workflow"))


def peers(client: Client) -> None:
    """Another process appends and folds in between."""
    client.note("one")
    peer = Peer(client)
    try:
        peer.append("two")
        client.step("step")
        peer.append("three " + "x" * 2000)
        peer.append("four")
        client.note("five")
        peer.append("six " + "x" * 2000)
        peer.append("seven " + "x" * 2000)
        client.add("word")
        client.leave()
    finally:
        peer.log.close()


class Peer:
    """Another process, as far as files and locks go; nothing of it fails."""

    def __init__(self, client: Client) -> None:
        fs = client.fs.beside() if isinstance(client.fs, Durability) else None
        self.log, self._known = FileStore(client.root, fs).open("w", lambda: new_fold("w", []))
        self._diary = client.diary

    def append(self, text: str) -> None:
        """Append an event, durably."""
        self._diary.write("tried", "note", text)
        self._known = put(self.log, self._known, note(text))
        self.log.sync(self._known.seq)
        self._diary.write("told", "note", text)


WORKLOADS: dict[str, Callable[[Client], None]] = {
    "append": append,
    "fold": projection,
    "open": open_again,
    "open torn": open_torn,
    "leave": leave,
    "lease": lease,
    "delete": delete,
    "mutex": mutex,
    "peers": peers,
}


def prepared(root: Path, workload: str) -> None:
    """What is there before."""
    root.parent.mkdir(parents=True, exist_ok=True)
    if workload == "append":
        return  # it makes the root
    root.mkdir()
    if workload == "delete":
        other = Workflow("other", dir=root)
        with other.mutex("left behind"):
            other.append_event("note", "old")
        other.close()
    if workload == "open torn":
        log, known = FileStore(root).open("w", lambda: new_fold("w", []))
        log.sync(put(log, known, note("earlier")).seq)
        log.close()  # as a kill leaves it
        with open(paths_of(root).journal, "ab") as file:
            file.write(b'{"seq":2,"synced":1,"fact":"event.app')
