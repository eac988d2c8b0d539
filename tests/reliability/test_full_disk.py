"""Disks that are really full, and folders that really cannot be written, in processes of their own."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from reliability.faults import WORKLOADS, Client, Durability, check_all, paths_of, prepared
from reliability.tiers import Figures, Tier
from support import memory_folder, run_python, tree

from iso_orchestrator import CommandLogError, Rejected, StoreError, Workflow, list_workflows, read_workflow_record
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file import log as log_module

pytestmark = pytest.mark.slow

NOBODY = 65534

# Of <sched.h> and <sys/mount.h>, which Python has only in later versions, or not at all.
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2


# What the children do. Each answers in a line of JSON: what it tried, or the reason why it cannot.

ALONE = [name for name in WORKLOADS if name != "peers"]  # a limit is for a process, and a peer is in it


class NotHere(Exception):  # noqa: N818 - no error: the machine cannot do what the test needs
    """Why not."""


def answer(work: Callable[[], int]) -> None:
    """Say what came of *work*."""
    log_module._CHECKPOINT_AT_BYTES = 2000
    log_module._CHECKPOINT_AT_RATIO = 0.0
    log_module._log.disabled = True
    try:
        print(json.dumps({"tried": work()}))
    except NotHere as reason:
        print(json.dumps({"reason": str(reason)}))
    except BaseException:
        print(json.dumps({"trouble": traceback.format_exc()}))


class Mounts:
    """Mounts that nobody else sees, and that end with this process."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise NotHere("only Linux has mounts of a process's own")
        self._libc = ctypes.CDLL(None, use_errno=True)
        who = os.getuid(), os.getgid()
        if self._libc.unshare(CLONE_NEWNS):
            if self._libc.unshare(CLONE_NEWNS | CLONE_NEWUSER):
                raise NotHere(f"this machine gives a process no mounts of its own ({os.strerror(ctypes.get_errno())})")
            self._keep_name(*who)
        self._mount("none", "/", None, MS_REC | MS_PRIVATE, None)

    def disk(self, path: Path, options: str) -> None:
        """A disk in memory."""
        path.mkdir(exist_ok=True)
        self._mount("tmpfs", str(path), "tmpfs", 0, options)

    def resize(self, path: Path, options: str) -> None:
        """The same with another size."""
        self._mount("tmpfs", str(path), "tmpfs", MS_REMOUNT, options)

    def read_only(self, path: Path) -> None:
        """Nothing below *path* can be written any more."""
        self._mount(str(path), str(path), None, MS_BIND, None)
        self.make_read_only(path)

    def make_read_only(self, path: Path) -> None:
        """The same for a mount that is there."""
        self._mount("none", str(path), None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)

    def undo(self, path: Path) -> None:
        """Take the last mount there away."""
        if self._libc.umount2(os.fsencode(path), MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount")

    def _keep_name(self, user: int, group: int) -> None:
        """In a user namespace one is nobody until this is said."""
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        except OSError as error:
            raise NotHere(f"this machine gives a process no users of its own ({error.strerror})") from error

    def _mount(self, source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
        texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
        data = None if options is None else options.encode()
        if self._libc.mount(*texts, ctypes.c_ulong(flags), data):
            number = ctypes.get_errno()
            raise NotHere(f"this process may not mount ({os.strerror(number)})")


def fill(folder: Path, sizes: Sequence[str]) -> int:
    """Every workload on disks of these sizes; all goes on when there is room. How often a disk was full."""
    mounts = Mounts()
    full = 0
    for size in sizes:
        for workload in ALONE:
            disk = folder / "disk"
            mounts.disk(disk, "size=4m,nr_inodes=200")
            prepared(disk / "root", workload)
            full += crowded(
                disk / "root",
                workload,
                begin=lambda disk=disk, size=size: mounts.resize(disk, shrunk(disk, size)),  # type: ignore[misc]
                end=lambda disk=disk: mounts.resize(disk, "size=4m,nr_inodes=200"),  # type: ignore[misc]
            )
            mounts.undo(disk)
    return full


def shrunk(disk: Path, size: str) -> str:
    """The options that leave so many pages, or so many names."""
    what, _, left = size.partition(" ")
    info = os.statvfs(disk)
    if what == "pages":
        return f"size={(info.f_blocks - info.f_bfree + int(left)) * info.f_frsize},nr_inodes=200"
    return f"size=4m,nr_inodes={info.f_files - info.f_ffree + int(left)}"


def only_root(folder: Path) -> int:
    """The life of a client on a machine on which everything else is read-only."""
    mounts = Mounts()
    mounts.disk(folder / "disk", "size=4m")
    os.chdir("/")
    for name in ("TMPDIR", "TEMP", "TMP"):
        os.environ.pop(name, None)
    for place in filter(os.path.ismount, ("/", "/tmp", "/var/tmp", "/usr/tmp")):
        mounts.make_read_only(Path(place))
    client = Client(folder / "disk/root", Durability())
    WORKLOADS["append"](client)
    client.leave()
    assert client.diary.errors == [], client.diary.errors[0]
    check_all(client.root, client.diary)
    return 1


def limit(folder: Path, sizes: Sequence[str]) -> int:
    """Every workload with files that cannot grow beyond these sizes. How often one did not suffice."""
    full = 0
    Workflow("first", dir=folder / "first").append_event("note")  # what is loaded late is loaded now
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sizes:
        for workload in ALONE:
            prepared(folder / "root", workload)
            full += crowded(
                folder / "root",
                workload,
                begin=lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), hard)),  # type: ignore[misc]
                end=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)),
            )
            shutil.rmtree(folder / "root")
    return full


def crowded(root: Path, workload: str, begin: Callable[[], None], end: Callable[[], None]) -> bool:
    """A client's life without room, and then with it; whether room was wanting."""
    client = Client(root, Durability())
    begin()
    try:
        WORKLOADS[workload](client)
        if client.diary.told["note"]:
            found = {event.message for event in read_workflow_record("w", dir=root).events}
            assert set(client.diary.told["note"]) <= found, "what was acknowledged cannot be read on the full disk"
    finally:
        end()
    errors = len(client.diary.errors)
    client.leave()  # who could not record how a step had ended is dead to others until then
    client.note("room again")
    assert "room again" in client.diary.told["note"], client.diary.errors[-1:]
    client.leave()
    check_all(root, client.diary)
    return errors > 0


FLOODS = [
    "yes",
    "while :; do echo 'a line that does not mind where it goes' || :; done",
    "trap '' TERM; while :; do head -c 2000000 /dev/zero; sleep 0.05; done",
    "echo begun; yes >&2",
]


def flood(folder: Path, floods: Sequence[str]) -> int:
    """A command that fills a small disk, beside many that do not; how many there were."""
    mounts = Mounts()
    for code in floods:
        disk = folder / "disk"
        mounts.disk(disk, "size=8m")
        workflow = Workflow("w", dir=disk / "root")
        work = workflow.command(lambda code: ["sh", "-c", code], name="{code}", timeout=60)
        codes = [code, *(f"sleep 0.02; echo {number}" for number in range(12))]
        with workflow:
            summary = workflow.for_each(max_parallel=2, stop_on_error=False)(work)(codes)
        assert [type(one.reason) for one in summary.results if isinstance(one, Rejected)] == [CommandLogError], summary
        assert isinstance(summary.results[0], Rejected)
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 5 << 20
        mounts.undo(disk)
    return len(floods)


def never_written(root: Path, close: Callable[[], None], give_back: Callable[[], None]) -> int:
    """A root that cannot be written is read, and nothing else; *give_back* lets it be written again."""
    tried = 0
    for left_open in (False, True):
        workflow = Workflow("w", dir=root, initial_state=[])
        workflow.append_event("note", f"open: {left_open}")
        workflow.run_step("step", lambda: "done")
        if left_open:
            copy_of_killed(root, workflow)
        else:
            workflow.close()
        close()
        before = tree(root)
        record = read_workflow_record("w", dir=root)
        assert record.steps["step"].result == "done"
        assert [summary.workflow_id for summary in list_workflows(dir=root)] == ["w"]
        other = Workflow("w", dir=root)
        assert other.record == record
        for deed in writing(root, other):
            with pytest.raises(StoreError):
                deed()
            tried += 1
        assert tree(root) == before
        give_back()
        other.append_event("note", "after")
        other.close()
        after = read_workflow_record("w", dir=root)
        assert [event.message for event in after.events if event.type == "note"][-2:] == [f"open: {left_open}", "after"]
    return tried


def writing(root: Path, workflow: Workflow) -> list[Callable[[], object]]:
    """What writes."""
    return [
        lambda: workflow.append_event("note", "more"),
        lambda: workflow.update_state([]),
        lambda: workflow.run_step("another", lambda: pytest.fail("it ran")),
        lambda: workflow.touch_lease("slot", holder="alpha", ttl=30),
        lambda: workflow.mutex("m").__enter__(),
        lambda: FileStore(root).delete("w"),
        lambda: Workflow("new", dir=root).append_event("note", "new"),
    ]


def copy_of_killed(root: Path, workflow: Workflow) -> None:
    """The files as a kill leaves them, in the place of those that closing makes."""
    paths = paths_of(root)
    files = {path: Path(path).read_bytes() for path in (paths.snapshot, paths.journal)}
    workflow.close()
    for path, data in files.items():
        Path(path).write_bytes(data)


def mounted_read_only(folder: Path) -> int:
    mounts, root = Mounts(), folder / "root"
    return never_written(root, lambda: mounts.read_only(root), lambda: mounts.undo(root))


def without_rights(folder: Path) -> int:
    """As somebody to whom the rights of a folder mean something."""
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    root = folder / "root"

    def change(folders: int, files: int) -> None:
        below = sorted(root.rglob("*"))
        root.chmod(0o700)
        for path in below:
            path.chmod(0o700 if path.is_dir() else files)
        for path in [path for path in reversed(below) if path.is_dir()] + [root]:
            path.chmod(folders)

    return never_written(root, lambda: change(0o500, 0o400), lambda: change(0o700, 0o600))


# The tests.


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as folder:
        folder.chmod(0o711)
        yield folder


def tried_by(work: str, folder: Path, *args: object) -> int:
    """What a child says that it has tried; the test is skipped where it cannot."""
    code = f"import sys; from pathlib import Path; from reliability.test_full_disk import *; answer(lambda: {work})"
    with run_python(code, folder, *args) as child:
        said = json.loads(child.line(100))
        child.end()
    if "reason" in said:
        pytest.skip(said["reason"])
    assert "trouble" not in said, said["trouble"]
    count: int = said["tried"]
    return count


@pytest.mark.parametrize("what", ["pages", "names"])
def test_a_full_disk_is_a_typed_error_and_loses_nothing(folder: Path, tier: Tier, figures: Figures, what: str) -> None:
    """Whenever a disk has no room, or no name, left: a StoreError, all that was acknowledged, and on when there is."""
    sizes = [f"{what} {left}" for left in tier.pick(quick=(2, 5), full=range(1, 16), soak=range(1, 16))]
    full = tried_by("fill(Path(sys.argv[1]), sys.argv[2:])", folder, *sizes)
    assert full > len(sizes), "hardly a disk was full"
    figures.add(7, f"workloads on full disks, {what}", full)


def test_a_command_that_fills_the_disk_fails_alone(folder: Path, tier: Tier, figures: Figures) -> None:
    """It is ended if it goes on, whatever it prints to; its log gives the space back, and all others are recorded."""
    floods = [flood for flood in FLOODS for _ in range(tier.pick(quick=1, full=1, soak=20))]
    figures.add(7, "commands that fill a disk", tried_by("flood(Path(sys.argv[1]), sys.argv[2:])", folder, *floods))


def test_files_that_may_not_grow_are_a_typed_error_and_lose_nothing(folder: Path, tier: Tier, figures: Figures) -> None:
    """The same where a limit stops the growth of files, in the midst of a line and between two."""
    sizes = tier.pick(quick=(0, 690), full=(0, 1, *range(300, 3000, 130)), soak=range(0, 3000, 20))
    full = tried_by("limit(Path(sys.argv[1]), sys.argv[2:])", folder, *sizes)
    assert full > len(sizes), "hardly a limit was reached"
    figures.add(7, "workloads under a limit of file size", full)


def test_nothing_but_the_root_has_to_be_writable(folder: Path, figures: Figures) -> None:
    """Where every other folder, those for temporary files among them, is read-only, a workflow works as ever."""
    figures.add(7, "machines that are read-only but for the root", tried_by("only_root(Path(sys.argv[1]))", folder))


@pytest.mark.parametrize("how", ["mounted_read_only", "without_rights"])
def test_a_root_that_cannot_be_written_is_read(folder: Path, figures: Figures, how: str) -> None:
    """Looking works; whatever would write is a StoreError, and leaves no trace; what was open goes on later."""
    figures.add(7, "uses of a root that cannot be written", tried_by(f"{how}(Path(sys.argv[1]))", folder))
