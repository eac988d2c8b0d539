"""Row 20: what an attacker plants under the names that the store uses, before it comes and while it is there."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from reliability.tiers import Figures, Tier
from support import WatchedFS, new_fold, note, put
from support_processes import in_thread

from iso_orchestrator import OrchestratorError
from iso_orchestrator.record import facts as f
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import snapshot
from iso_orchestrator.store.maintenance import RepairOptions
from iso_orchestrator.system.filesystem import FileSystem

ROW = 20
HANG = 30.0  # seconds; no case takes one
STATES = ("left by a kill", "torn", "damaged", "without a snapshot")
OWNER = "0" * 16  # a run file's name, whose process is gone


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest between two looks: what is planted stays."""
    monkeypatch.setattr(snapshot, "_READ_PAUSE", 0)


# What the store does


def _use(fs: FileSystem, root: str) -> Iterator[Callable[[], Any]]:
    """All that opens, makes, moves, lists or removes something, one deed after the other."""
    files = FileStore(root, fs)
    held: list[Any] = []

    def opened() -> Any:
        held[:] = files.open("w", new_fold)
        return held

    def appended() -> None:
        held[1] = put(held[0], held[1], note("more"))

    def locked(*, whole_store: bool) -> None:
        mutex = held[0].mutex("key", whole_store=whole_store)
        if mutex.try_acquire():
            mutex.release()
            mutex.dispose()
        mutex.holder()

    yield lambda: files.read("w")
    yield lambda: list(files.list())
    yield lambda: list(files.verify())
    yield lambda: files.repair("w", RepairOptions(without_snapshot=True))
    yield opened
    if held:
        log = held[0]
        yield appended
        yield lambda: log.sync(held[1].seq)
        yield lambda: locked(whole_store=False)
        yield lambda: locked(whole_store=True)
        yield lambda: log.is_alive(OWNER)
        yield lambda: log.process_info(OWNER)
        yield lambda: log.detach(held[1])
        log.close()
    yield lambda: files.path_of("w")
    yield lambda: files.delete("w")


def use(fs: FileSystem, root: str) -> Counter[str]:
    """Do all of it; how each deed ended. Anything but success and the library's own errors is raised."""
    ends: Counter[str] = Counter()
    for deed in _use(fs, root):
        try:
            deed()
        except OrchestratorError as error:
            ends[type(error).__name__] += 1
        else:
            ends["well"] += 1
    return ends


def make(root: Path, state: str) -> None:
    """A root as a killed process leaves it, and then some."""
    log, projection = FileStore(root).open("w", new_fold)
    lease = f.LeaseTouched(note("").at, "slot", "holder", 1.0, note("").at, note("").at, 1, renewed=False)
    for fact in (lease, note(1), note(2)):
        projection = put(log, projection, fact)
        log.sync(projection.seq)
    mutex = log.mutex("key", whole_store=False)
    mutex.acquire()
    mutex.release()
    mutex.dispose()
    log.close()
    (runs,) = (root / "locks").glob("w-*/runs")
    (run,) = runs.iterdir()
    run.rename(runs / f"{OWNER}.flock")
    (journal,) = (root / "workflows").glob("*.journal")
    data = journal.read_bytes()
    if state == "torn":
        journal.write_bytes(data + b"half")
    elif state == "damaged":
        lines = data.splitlines(keepends=True)
        journal.write_bytes(b"".join([*lines[:2], lines[2].replace(b"note", b"nope"), *lines[3:]]))
    elif state == "without a snapshot":
        journal.with_suffix(".json").write_bytes(b"{")


def named_paths(root: Path, folder: Path) -> list[str]:
    """Every path that a call of the store names, relative to the root; those of unique names left out."""
    copy = folder / "watched"
    shutil.copytree(root, copy)
    fs = WatchedFS()
    use(fs, str(copy))
    found = {argument for _, arguments in fs.calls for argument in arguments if isinstance(argument, str)}
    inside = {os.path.relpath(path, copy) for path in found if path.startswith(f"{copy}/")}
    shutil.rmtree(copy)
    return sorted(path for path in inside if not path.endswith(".flock") or OWNER in path or "record" in path)


# What is planted

Plant = Callable[[Path, Path], None]


def _symlink_to_a_file(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "file")


def _symlink_to_a_folder(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "folder")


def _symlink_to_nothing(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "nothing")


def _symlink_to_a_device(path: Path, _victim: Path) -> None:
    path.symlink_to("/dev/zero")


def _hard_link(path: Path, victim: Path) -> None:
    os.link(victim / "file", path)


def _fifo(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, _victim: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's path is short
    os.close(here)


def _device(path: Path, _victim: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def _folder(path: Path, _victim: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("precious")


def _file(path: Path, _victim: Path) -> None:
    path.write_text("no folder")


PLANTS: dict[str, Plant] = {
    "symlink to a file": _symlink_to_a_file,
    "symlink to a folder": _symlink_to_a_folder,
    "symlink to nothing": _symlink_to_nothing,
    "symlink to a device": _symlink_to_a_device,
    "hard link": _hard_link,
    "fifo": _fifo,
    "socket": _socket,
    "device": _device,
    "folder": _folder,
    "file": _file,
}


def _can_make_devices(folder: Path) -> bool:
    try:
        _device(folder / "device", folder)
    except PermissionError:
        return False
    (folder / "device").unlink()
    return True


def _can_bind_sockets() -> bool:
    return Path("/proc/self/fd").is_dir()


def plant(plant: Plant, path: Path, victim: Path) -> None:
    """Put something in a path's place; what was there is where the links lead, so that following them would work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, victim / "folder", dirs_exist_ok=True)
        shutil.rmtree(path)
    elif path.exists():
        (victim / "file").write_bytes(path.read_bytes())
        path.unlink()
    plant(path, victim)


def make_victim(victim: Path) -> None:
    """A folder of somebody's, with files that have the names of ours."""
    (victim / "folder" / "mutex").mkdir(parents=True)
    (victim / "folder" / "runs").mkdir()
    for name in ("folder/precious", "folder/key-00.lock", "folder/record.flock", "folder/mutex/precious", "file"):
        (victim / name).write_text("precious")
        (victim / name).chmod(0o640)


def snapshot_of(victim: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is in a folder, with modes, times and bytes."""
    found = {}
    for path in sorted([victim, *victim.rglob("*")]):
        info = path.lstat()
        found[str(path)] = (info.st_mode, info.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("state", STATES)
def test_what_is_planted_is_refused(kind: str, state: str, folder: Path, tier: Tier, figures: Figures) -> None:
    """Whatever stands under a name of the store: success or a typed error, no hang, its target untouched."""
    if kind == "device" and not _can_make_devices(folder):
        pytest.skip("making a device takes the administrator's rights; the symlink to one is tried in any case")
    if kind == "socket" and not _can_bind_sockets():
        pytest.skip("needs /proc to give a socket a long path")
    root = folder / "root"
    make(root, state)
    paths = named_paths(root, folder)
    assert len(paths) > 15
    if tier.name == "quick" and state != STATES[0]:
        paths = _new_paths(paths, folder)
    broken = []
    for number, name in enumerate(paths):
        case = folder / str(number)
        shutil.copytree(root, case / "root")
        make_victim(case / "victim")
        plant(PLANTS[kind], case / "root" / name, case / "victim")
        before, descriptors = snapshot_of(case / "victim"), open_files()
        try:
            in_thread(use, FileSystem(), str(case / "root")).result(HANG)
        except Exception as error:
            broken.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if snapshot_of(case / "victim") != before:
                broken.append(f"{name}: the target was touched: {_changes(before, snapshot_of(case / 'victim'))}")
            if open_files() != descriptors:
                broken.append(f"{name}: {open_files() - descriptors} descriptors stayed open")
        shutil.rmtree(case)
    figures.add(ROW, "paths with something planted", len(paths), len(broken))
    assert not broken, f"{kind}, {state}:\n" + "\n".join(broken)


def _new_paths(paths: list[str], folder: Path) -> list[str]:
    """Those that the first state does not have."""
    make(folder / "first", STATES[0])
    return sorted({*paths} - {*named_paths(folder / "first", folder)})


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(
        os.path.basename(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


# Swapped while the store works


@contextmanager
def swapping(path: Path, planted: Path) -> Iterator[Counter[str]]:
    """A thread that puts *planted* in the place of *path* and takes it away again, over and over."""
    begun, end, done = threading.Event(), threading.Event(), Counter[str]()
    aside = path.with_name(f"{path.name}.aside-of-the-attacker")

    def swap() -> None:
        while not end.is_set():
            done["swaps"] += _renamed(path, aside)
            _renamed(planted, path)
            _renamed(path, planted)
            _renamed(aside, path)
            begun.set()

    thread = threading.Thread(target=swap, daemon=True)
    thread.start()
    try:
        assert begun.wait(HANG)
        yield done
    finally:
        end.set()
        thread.join(HANG)


def _renamed(source: Path, target: Path) -> bool:
    try:
        os.rename(source, target)
    except OSError:
        return False
    return True


RACED = ("snapshot", "journal", "record.flock", "mutex file", "run folder", "mutex folder", "locks folder")
RACES = [(name, kind) for name in RACED for kind in ("symlink", "hard link", "fifo") if "folder" not in name]
RACES += [(name, "symlink") for name in RACED if "folder" in name]


def _raced_path(root: Path, name: str) -> Path:
    (locks,) = (root / "locks").glob("w-*")
    return {
        "snapshot": root / "workflows" / f"{locks.name}.json",
        "journal": root / "workflows" / f"{locks.name}.journal",
        "record.flock": locks / "record.flock",
        "mutex file": next((locks / "mutex").iterdir()),
        "run folder": locks / "runs",
        "mutex folder": locks / "mutex",
        "locks folder": locks,
    }[name]


@pytest.mark.parametrize(("name", "kind"), RACES)
def test_what_is_swapped_while_the_store_works_is_never_followed(
    name: str, kind: str, folder: Path, tier: Tier, figures: Figures
) -> None:
    """Between any two calls a file may be another: success or a typed error, no hang, the target untouched.

    A folder that is swapped is followed as every path is: who can do that can write in the root, which is 0700.
    """
    template = folder / "template"
    make(template, STATES[0])
    races = tier.count(quick=2, full=67, soak=3400)
    broken, swaps = [], 0
    for number in range(races):
        case = folder / str(number)
        shutil.copytree(template, case / "root")
        make_victim(case / "victim")
        path, planted = _raced_path(case / "root", name), case / "planted"
        target = "folder" if "folder" in name else "file"
        if kind == "symlink":
            planted.symlink_to(case / "victim" / target)
        else:
            PLANTS[kind](planted, case / "victim")
        before = snapshot_of(case / "victim")
        try:
            with swapping(path, planted) as done:
                in_thread(use, FileSystem(), str(case / "root")).result(HANG)
        except Exception as error:
            broken.append(f"{type(error).__name__}: {error}")
        swaps += done["swaps"]
        if target == "file" and snapshot_of(case / "victim") != before:
            broken.append(f"the target was touched: {_changes(before, snapshot_of(case / 'victim'))}")
        shutil.rmtree(case)
    figures.add(ROW, "uses raced by a thread that swaps", races, len(broken))
    assert swaps > 0
    assert not broken, f"{name}, {kind}: {Counter(broken).most_common(5)}"


# Rights


@pytest.mark.parametrize("part", range(4))
def test_rights_are_the_owner_s_alone_under_any_umask(part: int, folder: Path, figures: Figures) -> None:
    """Files are 0600 and folders 0700, whatever the umask takes from others."""
    wrong, masks = [], range(part * 16, part * 16 + 16)
    for mask in masks:
        root = folder / f"{mask:03o}" / "deep" / "root"
        before = os.umask(mask)
        try:
            make(root, "damaged")
            FileStore(root).repair("w", RepairOptions())
            log, projection = FileStore(root).open("w", new_fold)
            log.mutex("key", whole_store=True).try_acquire()
            wrong += [f"umask {mask:03o}: {entry}" for entry in _wrong_rights(folder / f"{mask:03o}")]
            log.detach(put(log, projection, note("more")))
            wrong += [f"umask {mask:03o}: {entry}" for entry in _wrong_rights(folder / f"{mask:03o}")]
        finally:
            os.umask(before)
    figures.add(ROW, "umasks", len(masks), len(wrong))
    assert not wrong, wrong[:10]


def test_no_umask_makes_anything_open_to_others(folder: Path, figures: Figures) -> None:
    """A umask that takes rights from the owner too ends in success or a typed error, and opens nothing to others."""
    masks = [0o100, 0o200, 0o277, 0o377, 0o400, 0o700, 0o777]
    for mask in masks:
        root = folder / f"{mask:03o}"
        before = os.umask(mask)
        try:
            use(FileSystem(), str(root))
        finally:
            os.umask(before)
        if root.exists():
            os.chmod(root, 0o700)
            assert all(path.lstat().st_mode & 0o177 == 0 for path in root.rglob("*") if path.is_file())
    figures.add(ROW, "umasks that bind the owner", len(masks))


def _wrong_rights(top: Path) -> list[str]:
    wrong = []
    for path in top.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        if (mode := stat.S_IMODE(path.lstat().st_mode)) != wanted:
            wrong.append(f"{path.relative_to(top)} is {mode:03o}")
    return wrong
