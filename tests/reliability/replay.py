"""Crashes, replayed: what a store asks of a disk is recorded, and each state that a crash may leave is opened.

`Machine` is what the kernel shows, `Disk` what would be left of it, `Legal` what a record may say then. A machine
is made in memory, so that a state costs a millisecond.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, NoReturn, TypeAlias

import attrs
from support import T0

from iso_orchestrator.record.facts import EventAppended, Fact
from iso_orchestrator.record.model import WorkflowEvent
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.record.workflow_record import WorkflowRecord
from iso_orchestrator.store import FileStore, WorkflowLog
from iso_orchestrator.system.filesystem import FileSystem

__all__ = [
    "ROOT",
    "WORKFLOW",
    "Checker",
    "Deleting",
    "Disk",
    "DiskOperation",
    "Killed",
    "Legal",
    "LockFiles",
    "Machine",
    "Operation",
    "ProcessFS",
    "RecordedLog",
    "RecordedStore",
    "State",
    "Stuffing",
    "Violation",
    "crash_points",
    "crash_states",
]

WORKFLOW = "w"
ROOT = "/disk/folder/root"
_TOP = "/disk"  # there from the beginning; the folder between is made with the root
_FIRST_FD = 1 << 20  # of files in memory: no descriptor of the kernel's is so high
_SECTOR = 512
_ALL_CUTS = 4096  # bytes; of more, only some cuts are tried

State: TypeAlias = dict[str, bytes | None]
"""What a crash has left: the bytes of files and None for folders, by path."""


class Violation(AssertionError):  # noqa: N818 - it is no error of the program
    """A promise was broken in a state that a crash may leave."""


class Killed(BaseException):
    """The process was killed, in the midst of a write or after an operation."""


# --- what is recorded ---


@attrs.frozen
class Made:
    """A file or folder got a name."""

    folder: int
    name: str
    number: int
    is_folder: bool


@attrs.frozen
class Renamed:
    """A name was given to another file, in one step."""

    folder: int
    name: str
    to: str
    number: int


@attrs.frozen
class Removed:
    """A name was taken away."""

    folder: int
    name: str


@attrs.frozen
class Wrote:
    """Bytes were written, or the file cut where *data* is None."""

    number: int
    offset: int
    data: bytes | None


@attrs.frozen
class Synced:
    """A file or folder was synced; it failed where *well* is False."""

    number: int
    well: bool = True


@attrs.frozen
class Begun:
    """A record was about to be made. Lives of a record are known by the time of their making."""

    life: datetime
    record: WorkflowRecord


@attrs.frozen
class Offered:
    """Facts were about to be appended behind the sequence *behind*: what each would make of the record."""

    life: datetime
    behind: int
    records: tuple[WorkflowRecord, ...]


@attrs.frozen
class Told:
    """Somebody was told "done" of all facts up to *seq*."""

    life: datetime
    seq: int


@attrs.frozen
class Deleting:
    """The record was about to be deleted."""


@attrs.frozen
class Deleted:
    """Somebody was told that the record is gone."""


DiskOperation: TypeAlias = Made | Renamed | Removed | Wrote | Synced
Mark: TypeAlias = Begun | Offered | Told | Deleting | Deleted
Operation: TypeAlias = DiskOperation | Mark
_TIGHTENING = (Told, Deleted)  # they allow less; the others allow more


# --- the machine, while it runs ---


class LockFiles:
    """Real files for locks, which the kernel has to hold, in a folder: as many as are used at one time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._made = 0
        self._free: list[str] = []

    def take(self) -> str:
        """The path of one that nobody uses."""
        if self._free:
            return self._free.pop()
        self._made += 1
        path = os.path.join(self._folder, f"{self._made}")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        return path

    def give_back(self, path: str) -> None:
        """Nobody has it open any more."""
        self._free.append(path)


class _Stat(NamedTuple):
    st_ino: int
    st_size: int
    st_ctime_ns: int
    st_mode: int
    st_dev: int = 1
    st_nlink: int = 1
    st_uid: int = 0


@attrs.define(eq=False)
class _Node:
    number: int
    data: bytearray | None
    changed: int
    is_lock: bool
    lock: str | None = None


class Machine:
    """A kernel's view of its disk: names, pages, and a log of what was asked.

    Attributes:
        log: Everything, in order.
        failing: Numbers, counted from 0, of the syncs that fail.
        syncs: How many syncs there were.
        operations: How many there were on the disk.
        fatal: The one after which its process is killed, counted from 1.
        failed: The processes of which a sync has failed.
        synced: Called after each that succeeded: what others do before its caller gets on.
    """

    def __init__(self, locks: LockFiles, state: State | None = None) -> None:
        self.log: list[Operation] = []
        self.failing: frozenset[int] = frozenset()
        self.syncs = 0
        self.operations = 0
        self.fatal: int | None = None
        self.failed: list[ProcessFS] = []
        self.synced: Callable[[], None] | None = None
        self._locks = locks
        self._lock_files: list[str] = []
        self.nodes: dict[str, _Node] = {}
        self.processes: list[ProcessFS] = []
        self._ticks = 0
        for path, data in (state or {_TOP: None}).items():
            self._add(path, None if data is None else bytearray(data))
        self.number = len(self.nodes)

    def process(self) -> ProcessFS:
        """A process, with descriptors and locks of its own."""
        process = ProcessFS(self)
        self.processes.append(process)
        return process

    def power_off(self) -> None:
        """All processes are gone."""
        for process in self.processes:
            process.kill()
        while self._lock_files:
            self._locks.give_back(self._lock_files.pop())

    def state(self) -> State:
        """What every process sees."""
        return {path: None if node.data is None else bytes(node.data) for path, node in self.nodes.items()}

    def tick(self) -> int:
        """A time that no change had before."""
        self._ticks += 1
        return self._ticks

    def make(self, path: str, data: bytearray | None) -> tuple[_Node, Made]:
        """A new file, or a folder where *data* is None."""
        folder, _, name = path.rpartition("/")
        if folder not in self.nodes:
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", path)
        self.number += 1
        node = self._add(path, data, self.number)
        return node, Made(self.nodes[folder].number, name, node.number, data is None)

    def lock_file(self) -> str:
        """A file for the kernel's locks on one of this machine's."""
        self._lock_files.append(self._locks.take())
        return self._lock_files[-1]

    def _add(self, path: str, data: bytearray | None, number: int = 0) -> _Node:
        is_lock = path.endswith("lock") and data is not None
        node = self.nodes[path] = _Node(number or len(self.nodes) + 1, data, self.tick(), is_lock)
        return node


class ProcessFS(FileSystem):
    """What one process of a machine has of its file system."""

    def __init__(self, machine: Machine) -> None:
        self.tears = False
        self.broken: set[int] = set()
        self._machine = machine
        self._nodes = machine.nodes
        self._open: dict[int, _Node] = {}
        self._next = _FIRST_FD
        self.is_killed = False

    def kill(self) -> None:
        """End the process: the kernel closes its files and frees its locks."""
        self.is_killed = True
        for fd in self._open:
            if fd < _FIRST_FD:
                os.close(fd)
        self._open.clear()

    def has_open(self, node: _Node) -> list[int]:
        """Its descriptors of that file."""
        return [fd for fd, its in self._open.items() if its is node]

    def open_read(self, path: str) -> int:
        return self._opened(self._file(path))

    def open_write(self, path: str) -> int:
        self._refuse_dead()
        return self._opened(self._file(path) if path in self._nodes else self._make(path, bytearray()))

    def open_existing(self, path: str) -> int:
        return self._opened(self._file(path))

    def open_new(self, path: str) -> int:
        self._refuse_dead()
        if path in self._nodes:
            raise FileExistsError(errno.EEXIST, "it is there", path)
        return self._opened(self._make(path, bytearray()))

    def open_append(self, path: str) -> int:
        raise NotImplementedError("what commands write is not replayed")

    def close(self, fd: int) -> None:
        self._node(fd)
        del self._open[fd]
        self.broken.discard(fd)
        if fd < _FIRST_FD:
            os.close(fd)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        data = self._node(fd).data
        assert data is not None
        return bytes(data[offset : offset + size])

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        node = self._node(fd)
        written = bytes(data[: len(data) // 2] if self.tears else data)
        assert node.data is not None
        node.data[:] = _written(bytes(node.data), [(offset, written)])
        node.changed = self._machine.tick()
        self._did(Wrote(node.number, offset, written), dies=self.tears)
        return len(written)

    def truncate(self, fd: int, size: int) -> None:
        node = self._node(fd)
        assert node.data is not None
        del node.data[size:]
        node.changed = self._machine.tick()
        self._did(Wrote(node.number, size, None))

    def sync(self, fd: int) -> None:
        node = self._node(fd)
        if fd in self.broken:  # of bytes that another's sync has lost; these here are as unsure as before
            self.broken.discard(fd)
            self._refuse()
        self._sync(node)

    def sync_folder(self, path: str) -> None:
        self._refuse_dead()
        if path == os.path.dirname(_TOP):
            return  # it was there before, as everything above is
        if path not in self._nodes:
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", path)
        self._sync(self._nodes[path])

    def replace(self, source: str, target: str) -> None:
        node = self._file(source)
        folder, _, name = source.rpartition("/")
        assert target.startswith(f"{folder}/"), "renames over folders are not modelled"
        self._nodes[target] = self._nodes.pop(source)
        node.changed = self._machine.tick()
        self._did(Renamed(self._nodes[folder].number, name, target[len(folder) + 1 :], node.number))

    def unlink(self, path: str) -> None:
        self._file(path)
        self._remove(path)

    def make_folder(self, path: str) -> bool:
        self._refuse_dead()
        node = self._nodes.get(path)
        if node is None:
            self._make(path, None)
        elif node.data is not None:
            raise NotADirectoryError(errno.ENOTDIR, "a file stands there", path)
        return node is None

    def tighten_folder(self, path: str) -> None:
        raise NotImplementedError("no other user has rights on a machine's folders")

    def remove_folder(self, path: str) -> None:
        self._refuse_dead()
        if path not in self._nodes:
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", path)
        if self.list_folder(path):
            raise OSError(errno.ENOTEMPTY, "it is not empty", path)
        self._remove(path)

    def list_folder(self, path: str) -> list[str]:
        start = len(path) + 1
        inside = f"{path}/"
        return sorted(other[start:] for other in self._nodes if other.startswith(inside) and other.find("/", start) < 0)

    def mounts(self) -> str:
        return ""

    def size(self, fd: int) -> int:
        data = self._node(fd).data
        assert data is not None
        return len(data)

    def identify(self, fd: int) -> Any:
        return _stat(self._node(fd))

    def identify_path(self, path: str) -> Any:
        node = self._nodes.get(path)
        return None if node is None else _stat(node)

    def _make(self, path: str, data: bytearray | None) -> _Node:
        node, operation = self._machine.make(path, data)
        self._did(operation)
        return node

    def _remove(self, path: str) -> None:
        del self._nodes[path]
        folder, _, name = path.rpartition("/")
        self._did(Removed(self._nodes[folder].number, name))

    def _did(self, operation: DiskOperation, *, dies: bool = False) -> None:
        machine = self._machine
        machine.log.append(operation)
        machine.operations += 1
        if dies or machine.operations == machine.fatal:
            self.kill()  # all that the library does now, on its way out, does nothing
            raise Killed

    def _opened(self, node: _Node) -> int:
        if node.is_lock:
            node.lock = node.lock or self._machine.lock_file()
            fd = os.open(node.lock, os.O_RDWR | os.O_CLOEXEC)
        else:
            fd = self._next = self._next + 1
        self._open[fd] = node
        return fd

    def _file(self, path: str) -> _Node:
        self._refuse_dead()
        node = self._nodes.get(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", path)
        if node.data is None:
            raise IsADirectoryError(errno.EISDIR, "it is a folder", path)
        return node

    def _node(self, fd: int) -> _Node:
        if fd not in self._open:
            raise OSError(errno.EBADF, "a descriptor of a process that is gone")
        return self._open[fd]

    def _refuse_dead(self) -> None:
        if self.is_killed:
            raise OSError(errno.EBADF, "the process is gone")

    def _sync(self, node: _Node) -> None:
        number = self._machine.syncs
        self._machine.syncs += 1
        if number in self._machine.failing:
            # As Linux does since 4.13: whoever has the file open is told once, whoever opens it later is not.
            for process in self._machine.processes:
                process.broken.update(fd for fd in process.has_open(node) if fd >= _FIRST_FD)
            for fd in self.has_open(node):
                self.broken.discard(fd)
            self._machine.log.append(Synced(node.number, well=False))
            self._refuse()
        self._did(Synced(node.number))
        if self._machine.synced is not None:
            self._machine.synced()

    def _refuse(self) -> NoReturn:
        self._machine.failed.append(self)
        raise OSError(errno.EIO, "Input/output error")


def _stat(node: _Node) -> _Stat:
    if node.data is None:
        return _Stat(node.number, 0, node.changed, stat.S_IFDIR | 0o700)
    return _Stat(node.number, len(node.data), node.changed, stat.S_IFREG | 0o600)


# --- the disk, when the power goes ---


def _written(data: bytes, writes: Sequence[tuple[int, bytes | None]]) -> bytes:
    if len(writes) == 1 and writes[0][1] is not None and writes[0][0] == len(data):
        return data + writes[0][1]
    made = bytearray(data)
    for offset, piece in writes:
        if piece is None:
            del made[offset:]
            continue
        if len(made) < offset:
            made.extend(bytes(offset - len(made)))
        made[offset : offset + len(piece)] = piece
    return bytes(made)


@attrs.define(eq=False)
class _File:
    """A file: what it may be without the writes since its last sync, and those."""

    bases: tuple[bytes, ...] = (b"",)
    writes: list[tuple[int, bytes | None]] = attrs.field(factory=list)
    fresh: bool = False  # changed since its fine states were made

    def sync(self, *, well: bool) -> None:
        # After a failed one its bytes are nobody's: they may be there or not, and no later sync brings them back.
        written = [_written(base, self.writes) for base in self.bases]
        self.bases = tuple(dict.fromkeys(written if well else [*self.bases, *self._halves(), *written]))
        self.writes = []
        self.fresh = True

    def whole(self) -> bytes:
        """With everything that was written."""
        return _written(self.bases[-1], self.writes)

    def coarse(self) -> list[bytes]:
        """The states between writes, and one in the midst of the last write."""
        if not self.writes:
            return list(self.bases)
        steps = range(len(self.writes) + 1)
        between = [_written(base, self.writes[:step]) for base in self.bases for step in steps]
        return list(dict.fromkeys([between[0], *between[:0:-1], *self._halves()]))

    def _halves(self) -> list[bytes]:
        offset, piece = self.writes[-1] if self.writes else (0, None)
        if not piece:
            return []
        half = [*self.writes[:-1], (offset, piece[: len(piece) // 2])]
        return [_written(base, half) for base in self.bases]


Names: TypeAlias = dict[str, int]


@attrs.define(eq=False)
class _Folder:
    """A folder: the names that it has without the changes since its last sync, and those."""

    base: Names = attrs.field(factory=dict)
    changes: list[dict[str, int | None]] = attrs.field(factory=list)
    now: Names = attrs.field(factory=dict)  # with all changes

    def change(self, change: dict[str, int | None]) -> None:
        self.changes.append(change)
        self.now = _renamed(self.now, [change])

    def sync(self, *, well: bool) -> None:
        if well:  # else the changes are as unsure as before: the next sync has them
            self.base = self.now
            self.changes = []

    def ordered(self) -> list[Names]:
        """What it has after any of the changes and those before it; everything first, then nothing."""
        steps = range(len(self.changes), -1, -1)
        return [_renamed(self.base, self.changes[:step]) for step in steps]

    def weak(self, draw: random.Random) -> list[Names]:
        """What it has after any subset of the changes; of many, some."""
        count = len(self.changes)
        if count <= 5:
            picks = list(itertools.product((True, False), repeat=count))
        else:
            one = [tuple(place == index for place in range(count)) for index in range(count)]
            picks = [*one, *(tuple(not taken for taken in pick) for pick in one)]
            picks += [tuple(draw.random() < 0.5 for _ in range(count)) for _ in range(16)]
        return [_renamed(self.base, itertools.compress(self.changes, pick)) for pick in picks]


def _renamed(names: Names, changes: Any) -> Names:
    made = dict(names)
    for change in changes:
        for name, number in change.items():
            if number is None:
                made.pop(name, None)
            else:
                made[name] = number
    return made


class Disk:
    """What has reached the disk, and what may or may not have."""

    def __init__(self, state: State | None = None) -> None:
        self.files: dict[int, _File] = {}
        self.folders: dict[int, _Folder] = {}
        self.recycled = b""  # what a file was that has lost its name: its blocks are used again
        numbers = {path: number for number, path in enumerate(state or {_TOP: None}, 1)}  # as `Machine` counts
        for path, number in numbers.items():
            data = (state or {}).get(path)
            if data is None:
                self.folders[number] = _Folder()
            else:
                self.files[number] = _File((data,))
            folder, _, name = path.rpartition("/")
            if folder:
                self.folders[numbers[folder]].base[name] = number
                self.folders[numbers[folder]].now[name] = number

    def take(self, operation: DiskOperation) -> None:
        """What *operation* changes."""
        match operation:
            case Made(folder, name, number, is_folder):
                self.folders[folder].change({name: number})
                if is_folder:
                    self.folders[number] = _Folder()
                else:
                    self.files[number] = _File()
            case Renamed(folder, name, to, number):
                self._recycle(folder, to)
                self.folders[folder].change({name: None, to: number})
            case Removed(folder, name):
                self._recycle(folder, name)
                self.folders[folder].change({name: None})
            case Wrote(number, offset, data):
                self.files[number].writes.append((offset, data))
                self.files[number].fresh = True
            case Synced(number, well):
                (self.files.get(number) or self.folders[number]).sync(well=well)

    def _recycle(self, folder: int, name: str) -> None:
        if not name.endswith(".journal"):
            return
        old = self.folders[folder].now.get(name)
        if old is not None:
            self.recycled = self.files[old].whole()


@attrs.define
class Stuffing:
    """What stands where bytes were lost, if not zeros: noise, text, or a journal that was there before."""

    draw: random.Random
    _noise: bytes = attrs.field(init=False)
    _text: bytes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._noise = self.draw.randbytes(1 << 13)
        self._text = bytes(self.draw.choices(b"abcdefghijklmnopqrstuvwxyz 0123456789", k=1 << 13))

    def garbage(self, start: int, size: int, recycled: bytes) -> bytes:
        """One of the kinds, that of a place always the same."""
        kinds = [self._noise, self._text, recycled]
        kind = kinds[(start * 7 + size) % len(kinds)]
        piece = kind[start : start + size] if kind is recycled else kind[start % 4096 : start % 4096 + size]
        return piece.ljust(size, b"x")


def fine(file: _File, stuffing: Stuffing, recycled: bytes, share: float) -> Iterator[bytes]:
    """All that a crash may leave of what was written to a file since its last sync; of that, a share."""
    for base in dict.fromkeys((file.bases[0], file.bases[-1])):
        whole = _written(base, file.writes)
        ways = _torn(whole, len(base), stuffing, recycled) if whole.startswith(base) else _cut(base, file.writes)
        for make in ways:
            if share >= 1 or stuffing.draw.random() < share:
                yield make()


Way: TypeAlias = Callable[[], bytes]  # made only when it is tried


def _torn(whole: bytes, start: int, stuffing: Stuffing, recycled: bytes) -> Iterator[Way]:
    end = len(whole)
    for cut in _cuts(start, end, stuffing.draw):
        yield lambda: whole[:cut]  # noqa: B023 - called before the next one is made
        yield lambda: whole[:cut] + bytes(end - cut)  # noqa: B023
        yield lambda: whole[:cut] + stuffing.garbage(cut, end - cut, recycled)  # noqa: B023
    if end - start > _SECTOR:
        sectors = range(start // _SECTOR, -(-end // _SECTOR))
        for lost in _subsets(sectors, stuffing.draw):
            yield lambda: _without(whole, start, lost, lambda _, size: bytes(size))  # noqa: B023
            yield lambda: _without(
                whole,
                start,
                lost,  # noqa: B023
                lambda first, size: stuffing.garbage(first, size, recycled),
            )


def _without(whole: bytes, start: int, lost: Sequence[int], instead: Callable[[int, int], bytes]) -> bytes:
    made = bytearray(whole)
    for sector in lost:
        first, last = max(start, sector * _SECTOR), min(len(whole), (sector + 1) * _SECTOR)
        made[first:last] = instead(first, last - first)
    return bytes(made)


def _cut(base: bytes, writes: Sequence[tuple[int, bytes | None]]) -> Iterator[Way]:
    for step, (offset, piece) in enumerate(writes):
        for cut in range(len(piece or b"")):
            yield lambda: _written(base, [*writes[:step], (offset, (piece or b"")[:cut])])  # noqa: B023
        yield lambda: _written(base, writes[: step + 1])  # noqa: B023


def _cuts(start: int, end: int, draw: random.Random) -> list[int]:
    if end - start <= _ALL_CUTS:
        return list(range(start, end))
    header = start + 8
    places = (start, header, start + _SECTOR, start + 4096, end)
    around = {place + step for place in places for step in range(-3, 4)}
    some = {draw.randrange(start, end) for _ in range(32)}
    return sorted(cut for cut in around | some if start <= cut < end)


def _subsets(sectors: Sequence[int], draw: random.Random) -> list[tuple[int, ...]]:
    if len(sectors) <= 4:
        return [pick for size in range(1, len(sectors) + 1) for pick in itertools.combinations(sectors, size)]
    one = [(sector,) for sector in sectors]
    others = [tuple(other for other in sectors if other != sector) for sector in sectors]
    return [*one, *others, *(tuple(s for s in sectors if draw.random() < 0.5) for _ in range(16))]


def crash_states(disk: Disk, stuffing: Stuffing, *, weak: bool, torn: float) -> Iterator[State]:
    """What a crash may leave now, the plainest first; some of them more than once.

    Args:
        disk: The disk of now.
        stuffing: What stands where bytes were lost.
        weak: Names reach the disk in any order, else in that of their changes.
        torn: Which share of the ways there are to tear, inside of a write, files that were changed since the last time.
    """
    draw = stuffing.draw
    tops, main, locks = _folders(disk)
    option: Callable[[int], list[Names]] = lambda number: (  # noqa: E731
        disk.folders[number].weak(draw) if weak else disk.folders[number].ordered()
    )
    options = {number: option(number) for number in (*tops, *main)}
    lock_options = {number: disk.folders[number].ordered() if not weak else option(number) for number in locks}
    seen = set()
    for position, pick in enumerate(_product(list(options.values()), draw)):
        names = dict(zip(options, pick, strict=True))
        for lock_names in _lock_names(lock_options, draw, all_kinds=position == 0):
            tree = tuple(_tree(disk, {**names, **lock_names}))
            if tree in seen:
                continue
            seen.add(tree)
            yield from _filled(disk, tree, draw)
    if torn and not weak:
        for picked in ({}, {number: disk.folders[number].base for number in main}):
            yield from _torn_files(disk, tuple(_tree(disk, picked)), stuffing, torn)


def _folders(disk: Disk) -> tuple[list[int], list[int], list[int]]:
    """The folders above, that of the records, and those of locks, by what is in them."""
    tops, main, locks = [], [], []
    paths = {number: path for path, number, is_folder in _tree(disk, {}) if is_folder}
    for number, folder in disk.folders.items():
        if not folder.changes:
            continue
        path = paths.get(number, "")
        if path.endswith("/workflows"):
            main.append(number)
        elif "/locks" in path or not path:
            locks.append(number)
        else:
            tops.append(number)
    return tops, main, locks


def _product(options: list[list[Names]], draw: random.Random, most: int = 64) -> Iterator[tuple[Names, ...]]:
    count = 1
    for its in options:
        count *= len(its)
    if count <= most:
        yield from itertools.product(*options)
        return
    first = [its[0] for its in options]
    yield tuple(first)
    for index, its in enumerate(options):
        for other in its[1:]:
            yield (*first[:index], other, *first[index + 1 :])
    for _ in range(most // 2):
        yield tuple(draw.choice(its) for its in options)


def _lock_names(options: dict[int, list[Names]], draw: random.Random, *, all_kinds: bool) -> Iterator[dict[int, Names]]:
    # What is left of locks matters to nobody but whoever asks which process has died: some of it is enough.
    kinds: list[Callable[[list[Names]], Names]] = [lambda its: its[0], lambda its: its[-1], draw.choice]
    for kind in kinds if all_kinds else [draw.choice(kinds)]:
        yield {number: kind(its) for number, its in options.items()}


Tree: TypeAlias = tuple[tuple[str, int, bool], ...]


def _tree(disk: Disk, names: Mapping[int, Names]) -> Iterator[tuple[str, int, bool]]:
    """All paths that lead somewhere, with what is there: a name in a folder that is lost is lost too."""
    waiting = [(_TOP, 1)]
    while waiting:
        path, number = waiting.pop()
        yield path, number, True
        for name, inner in (names[number] if number in names else disk.folders[number].now).items():
            if inner in disk.folders:
                waiting.append((f"{path}/{name}", inner))
            else:
                yield f"{path}/{name}", inner, False


def _filled(disk: Disk, tree: Tree, draw: random.Random) -> Iterator[State]:
    unsure = {n: disk.files[n].coarse() for n in _unsure(disk, tree)}
    for pick in _product_of_bytes(list(unsure.values()), draw):
        yield _state(disk, tree, dict(zip(unsure, pick, strict=True)), draw)


def _product_of_bytes(options: list[list[bytes]], draw: random.Random) -> Iterator[tuple[bytes, ...]]:
    count = 1
    for its in options:
        count *= len(its)
    if count <= 32:
        return itertools.product(*options)
    ends = itertools.product(*([its[0], its[-1]] for its in options))
    some = (tuple(draw.choice(its) for its in options) for _ in range(16))
    return itertools.chain(itertools.islice(ends, 16), some)


def _unsure(disk: Disk, tree: Tree) -> list[int]:
    """The records' files that may have lost something; what is in locks and `.gitignore` matters little."""
    return [
        number
        for path, number, is_folder in tree
        if not is_folder and "/workflows/" in path and (disk.files[number].writes or len(disk.files[number].bases) > 1)
    ]


def _torn_files(disk: Disk, tree: Tree, stuffing: Stuffing, share: float) -> Iterator[State]:
    unsure = _unsure(disk, tree)
    for number in unsure:
        file = disk.files[number]
        if not file.fresh:
            continue
        file.fresh = False
        for data in fine(file, stuffing, disk.recycled, share):
            picked = {other: stuffing.draw.choice(disk.files[other].coarse()) for other in unsure}
            yield _state(disk, tree, {**picked, number: data}, stuffing.draw)


def _state(disk: Disk, tree: Tree, picked: dict[int, bytes], draw: random.Random) -> State:
    state: State = {}
    for path, number, is_folder in tree:
        if is_folder:
            state[path] = None
            continue
        data = picked.get(number)
        if data is None:
            file = disk.files[number]
            data = file.bases[-1] if not file.writes or draw.random() < 0.5 else file.whole()
        state[path] = data
    return state


# --- what a record may say ---

_FRESH = T0 - timedelta(days=1)  # when the records are made of which no workload knows
_stores = itertools.count()


@attrs.define
class _Life:
    records: dict[int, WorkflowRecord]
    told: int = -1


@attrs.frozen
class Outcome:
    """What was found in a state: a record and the sequence of its last fact; or nothing, where *record* is None."""

    record: WorkflowRecord | None
    seq: int = 0

    @classmethod
    def of(cls, projection: Projection | None) -> Outcome:
        return cls(None) if projection is None else cls(projection.record(), projection.seq)

    @property
    def is_nothing(self) -> bool:
        """Whether there was no record, or none but what its finder has made."""
        return self.record is None or self.record.created_at < T0


class Legal:
    """What may be found after a crash of now, by the marks: all that anybody was told, and then what was begun.

    Attributes:
        nothing: There need not be a record.
        lives: The records that there may be, by the time of their making.
    """

    def __init__(self) -> None:
        self.nothing = True
        self.lives: dict[datetime, _Life] = {}

    def knows(self, outcome: Outcome) -> None:
        """That was found before."""
        if outcome.record is not None:
            self.lives[outcome.record.created_at] = _Life({outcome.seq: outcome.record})

    def take(self, mark: Mark) -> None:
        """What *mark* changes."""
        match mark:
            case Begun(life, record):
                self.lives[life] = _Life({0: record})
            case Offered(life, behind, records):
                known = self.lives[life].records
                for seq in [seq for seq in known if seq > behind]:
                    del known[seq]
                known.update(enumerate(records, behind + 1))
            case Told(life, seq):
                told = self.lives[life]
                told.told = max(told.told, seq)
                self.lives, self.nothing = {life: told}, False
            case Deleting():
                self.nothing = True
            case Deleted():
                self.lives, self.nothing = {}, True

    def judge(self, outcome: Outcome) -> None:
        """Raise when *outcome* breaks a promise."""
        record = outcome.record
        life = None if record is None else self.lives.get(record.created_at)
        if life is not None:
            self._judge(outcome, life)
        elif not outcome.is_nothing:
            raise Violation(f"a record came back that was deleted, or was never made: {record}")
        elif not self.nothing:
            told = max(life.told for life in self.lives.values())
            raise Violation(f"the record is gone, of which {told} facts were acknowledged")

    @staticmethod
    def _judge(outcome: Outcome, life: _Life) -> None:
        if outcome.seq < life.told:
            raise Violation(f"{life.told} facts were acknowledged, {outcome.seq} are left")
        if outcome.seq not in life.records:
            raise Violation(f"{outcome.seq} facts are there, of which the last was never appended")
        if outcome.record != life.records[outcome.seq]:
            raise Violation(f"{outcome.record} is there, where the facts make {life.records[outcome.seq]}")


# --- a store that is watched ---


class Oracle:
    """Marks the log of a machine: what is begun there, and what somebody is told.

    Attributes:
        facts: All that were offered in the life of now and were not found missing.
        life: When the record of now was made.
    """

    def __init__(self, machine: Machine) -> None:
        self.facts: list[Fact] = []
        self.life = T0
        self._machine = machine
        self._initial: dict[datetime, Callable[[], Projection]] = {}
        self._current: Projection | None = None

    def began(self, projection: Projection) -> Projection:
        """Somebody is about to make a record of *fold*."""
        workflow_id, made_at, state = projection.workflow_id, projection.created_at, projection.state
        self._initial[made_at] = lambda: Projection.new(workflow_id, made_at, state)
        self._machine.log.append(Begun(made_at, projection.record()))
        return projection

    def offered(self, projection: Projection, facts: Sequence[Fact]) -> None:
        """Somebody is about to append *facts* to *fold*."""
        own = self._at(projection)
        records = []
        for fact in facts:
            own.apply(fact)
            records.append(own.record())
        self.facts += facts
        self._machine.log.append(Offered(own.created_at, projection.seq, tuple(records)))

    def told(self, projection: Projection) -> None:
        """Somebody was told of *fold*."""
        if projection.created_at != self.life:
            self.life, self.facts = projection.created_at, []
        self._machine.log.append(Told(projection.created_at, projection.seq))

    def told_up_to(self, seq: int) -> None:
        """Somebody was told of the facts up to *seq*."""
        self._machine.log.append(Told(self.life, seq))

    def deleting(self) -> None:
        """Somebody is about to delete the record."""
        self._machine.log.append(Deleting())

    def deleted(self) -> None:
        """Somebody was told that it is deleted."""
        self._machine.log.append(Deleted())

    def _at(self, projection: Projection) -> Projection:
        """The fold of what was offered, made here and not by the store."""
        own = self._current
        if own is not None and own.created_at == projection.created_at and own.seq == projection.seq:
            return own
        self.facts = self.facts[: projection.seq]  # what is after was torn when its process was killed
        own = self._current = self._initial[projection.created_at]()
        for fact in self.facts:
            own.apply(fact)
        return own


class RecordedLog:
    """A log that says what it is about to append."""

    def __init__(self, log: WorkflowLog, oracle: Oracle) -> None:
        self._log = log
        self._oracle = oracle

    def append(self, projection: Projection, facts: Sequence[Fact]) -> None:
        """As the log's own."""
        self._oracle.offered(projection, facts)
        self._log.append(projection, facts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class RecordedStore:
    """A process's file store on a machine, whose log is marked."""

    def __init__(self, fs: FileSystem, oracle: Oracle) -> None:
        self.identity = ("replayed", next(_stores))  # several in one process stand for several processes
        self._store = FileStore(ROOT, fs)
        self._oracle = oracle

    def open(self, workflow_id: str, new: Callable[[], Projection]) -> tuple[WorkflowLog, Projection]:
        """As the store's own; what it gives is told."""
        log, projection = self._store.open(workflow_id, lambda: self._oracle.began(new()))
        self._oracle.told(projection)
        return RecordedLog(log, self._oracle), projection  # type: ignore[return-value]

    def delete(self, workflow_id: str) -> bool:
        """As the store's own."""
        self._oracle.deleting()
        is_deleted = self._store.delete(workflow_id)
        self._oracle.deleted()
        return is_deleted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


# --- the check of a state ---


def crash_points(log: Sequence[Operation], disk: Disk, legal: Legal, since: int = 0) -> Iterator[int]:
    """The moments of *log*, from *since* on, at which a crash is new; *disk* and *legal* are then as they were."""
    changed = True
    for index, operation in enumerate(log):
        if changed and index >= since and not isinstance(operation, _TIGHTENING):
            yield index
            changed = False
        if isinstance(operation, DiskOperation):
            disk.take(operation)
            changed = True
        else:
            legal.take(operation)
            changed = changed or isinstance(operation, _TIGHTENING)
    if changed:
        yield len(log)


class Checker:
    """Opens crash states, each distinct one once.

    Attributes:
        states: How many distinct ones there were, by model.
        recoveries: How many there were of crashes while another was opened and gone on with.
    """

    def __init__(self, locks: LockFiles, draw: random.Random) -> None:
        self.states = {"ordered": 0, "weak": 0}
        self.recoveries = 0
        self._locks = locks
        self._stuffing = Stuffing(draw)
        self._seen: dict[int, list[Outcome]] = {}
        self._seen_inside: dict[int, Outcome] = {}
        self._outcomes: dict[tuple[datetime | None, int], Outcome] = {}
        self._share = self._inside = 1.0

    @property
    def count(self) -> int:
        """All distinct ones."""
        return sum(self.states.values()) + self.recoveries

    def replay(
        self,
        log: Sequence[Operation],
        what: str,
        *,
        start: State | None = None,
        since: int = 0,
        share: float = 1.0,
        torn: float = 1.0,
        inside: float = 1.0,
    ) -> None:
        """Check the states that a crash at any point of *log*, from *since* on, may leave.

        Args:
            log: What was recorded.
            what: The workload, for the error.
            start: What was on the disk before.
            since: The states of points before it were checked already.
            share: Which share of all states is tried.
            torn: Which share of the states is made at all that a write leaves which is torn inside of it.
            inside: In which share of those tried there is another crash while they are opened, at any operation.

        Raises:
            Violation: One of them breaks a promise; what was done, and in which state, is said.
        """
        disk, legal = Disk(start), Legal()
        self._share, self._inside = share, inside
        self._outcomes.clear()
        for point in crash_points(log, disk, legal, since):
            for model in ("ordered", "weak"):
                for state in crash_states(disk, self._stuffing, weak=model == "weak", torn=torn):
                    try:
                        self._check(state, legal, model)
                    except Exception as error:
                        raise Violation(_told_of(error, what, model, log[:point], state)) from error

    def _check(self, state: State, legal: Legal, model: str) -> None:
        key = _key(state)
        outcomes = self._seen.get(key)
        if outcomes is None and not self._draws(self._share):
            return
        if outcomes is None:
            self.states[model] += 1
            outcomes = self._seen[key] = self._opened(state)
        for outcome in outcomes:
            legal.judge(outcome)

    def _opened(self, state: State) -> list[Outcome]:
        """What is found in *state*, now or after one more crash while it is opened."""
        machine = Machine(self._locks, state)
        try:
            outcome = self._kept(_use(machine))
        finally:
            machine.power_off()
        if not self._draws(self._inside):
            return [outcome]
        return [outcome, *self._crash_inside(state, machine.log, outcome)]

    def _draws(self, share: float) -> bool:
        return share >= 1 or self._stuffing.draw.random() < share

    def _kept(self, outcome: Outcome) -> Outcome:
        """One object for all that are equal: there are many."""
        made_at = outcome.record.created_at if outcome.record is not None else None
        known = self._outcomes.setdefault((made_at, outcome.seq), outcome)
        return known if known == outcome else outcome

    def _crash_inside(self, start: State, log: Sequence[Operation], outcome: Outcome) -> list[Outcome]:
        found = []
        disk, legal = Disk(start), Legal()
        legal.knows(outcome)
        for _ in crash_points(log, disk, legal):
            for state in crash_states(disk, self._stuffing, weak=False, torn=0):
                inner = self._opened_inside(state)
                if legal.nothing:
                    found.append(inner)  # nobody was told of anything yet: as legal as if nobody had opened it
                else:
                    legal.judge(inner)
        return list({(inner.seq, inner.is_nothing): inner for inner in found}.values())

    def _opened_inside(self, state: State) -> Outcome:
        key = _key(state)
        outcome = self._seen_inside.get(key)
        if outcome is None:
            self.recoveries += 1
            machine = Machine(self._locks, state)
            try:
                outcome = self._kept(Outcome.of(_open(machine, T0 - timedelta(days=2))[2]))
            finally:
                machine.power_off()
            self._seen_inside[key] = outcome
        return outcome


def _use(machine: Machine) -> Outcome:
    """Look without the lock, open, open again, append: what was found, where all of that is well."""
    looked = Outcome.of(FileStore(ROOT, machine.process()).read(WORKFLOW))
    process, _, projection = _open(machine, _FRESH)
    outcome = Outcome.of(projection)
    if looked != outcome and not (looked.record is None and outcome.is_nothing):
        raise Violation(f"a reader without the lock saw {looked}, and opening gave {outcome}")
    machine.log.append(Told(projection.created_at, projection.seq))
    pair = _pair(machine)
    process.kill()
    process, log, projection = _open(machine, _FRESH)
    if Outcome.of(projection) != outcome or _pair(machine) != pair:
        raise Violation(f"opening again changed {outcome}")
    _append(machine, log, projection, outcome)
    process.kill()
    return outcome


def _open(machine: Machine, at: datetime) -> tuple[ProcessFS, WorkflowLog, Projection]:
    def new() -> Projection:
        projection = Projection.new(WORKFLOW, at, {})
        machine.log.append(Begun(at, projection.record()))
        return projection

    process = machine.process()
    log, projection = FileStore(ROOT, process).open(WORKFLOW, new)
    return process, log, projection


def _append(machine: Machine, log: WorkflowLog, projection: Projection, outcome: Outcome) -> None:
    assert outcome.record is not None
    fact = EventAppended(T0, "after.crash")
    events = (*outcome.record.events, WorkflowEvent(fact.at, fact.type))
    expected = Outcome(attrs.evolve(outcome.record, updated_at=fact.at, events=events), outcome.seq + 1)
    machine.log.append(Offered(projection.created_at, projection.seq, (expected.record,)))
    log.lock()
    projection = log.catch_up(projection)
    log.append(projection, [fact])
    log.unlock()
    log.sync(projection.seq)
    machine.log.append(Told(projection.created_at, projection.seq))
    seen = Outcome.of(FileStore(ROOT, machine.process()).read(WORKFLOW))
    if seen != expected:
        raise Violation(f"after one more fact there is {seen}, where {expected} should be")


def _pair(machine: Machine) -> State:
    return {path: data for path, data in machine.state().items() if path.endswith((".json", ".journal"))}


def _key(state: State) -> int:
    """Equal for equal states. The names of run files are drawn anew in each run, and what locks say matters nobody."""
    runs = sum("/runs/" in path for path in state)
    files = [(path, data) for path, data in state.items() if "/runs/" not in path and not path.endswith("lock")]
    return hash((runs, *sorted(files), *sorted(path for path in state if path.endswith("record.flock"))))


def _told_of(error: Exception, what: str, model: str, log: Sequence[Operation], state: State) -> str:
    last = "\n  ".join(f"{operation!r:.300}" for operation in log[-12:])
    files = "\n  ".join(f"{path}: {'a folder' if data is None else data!r:.1500}" for path, data in state.items())
    return (
        f"{what}: crash after operation {len(log)}, {model} model: {type(error).__name__}: {error}\n"
        f"the last operations:\n  {last}\nthe state:\n  {files}"
    )
