"""Rows 33, 34 and 36: what excludes when a process cannot write, its lock files are removed, or portalocker is changed.

Rooms without any lock tell whether two were where one should be.
"""

from __future__ import annotations

import fcntl
import random
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import portalocker
import pytest
from reliability.oracle import Link, Nursery, Process, Room
from reliability.tiers import Figures, Tier
from support import WatchedFS, memory_folder

from iso_orchestrator import StoreError, Workflow
from iso_orchestrator.store import FileStore
from iso_orchestrator.system import file_lock

PROCESSES = 3
THREADS = 3
STEPS = 6
LONGEST_BODY = 0.1  # seconds; a process that waits for a step looks every 0.02
LONGEST_HOLD = 0.02  # seconds
BETWEEN_CLEANINGS = 2 * LONGEST_HOLD


def run_steps(link: Link, root: str, seed: str, fails_at: int | None) -> None:
    """Run the same steps as other processes do, in some threads; report who was met in a body, and say what failed.

    From the sync of the number *fails_at* on, none succeeds.
    """
    randomness, fs = random.Random(seed), WatchedFS()

    def before(name: str, _: object) -> None:
        if name == "sync" and fails_at is not None and fs.count("sync") > fails_at:
            raise OSError(5, "Input/output error")

    fs.before = before
    workflow = Workflow("w", store=FileStore(root, fs))
    met: list[str] = []
    failures: list[str] = []
    names = [f"step {number}" for number in range(STEPS)]
    orders = [randomness.sample(names, STEPS) for _ in range(THREADS)]
    naps = {name: randomness.random() * LONGEST_BODY for name in names}

    def body(name: str) -> None:
        room = Room(Path(root), name.replace(" ", "-"))
        with room.entered():
            time.sleep(naps[name])
        met.extend(room.overlaps)

    def work(order: list[str]) -> None:
        for name in order:
            try:
                workflow.run_step(name, body, name)
            except StoreError as error:
                failures.append(str(error))

    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    link.say([met, failures])
    link.hear()  # it lives on: others must not have to wait for its end
    with suppress(StoreError):
        workflow.close()


def _ends(processes: list[Process]) -> tuple[list[str], list[str]]:
    """Who was met, and what failed, in all processes; and let them end."""
    met, failures = [], []
    for process in processes:
        of_it, its = process.hear()
        met += of_it
        failures += its
    for process in processes:
        process.say()
        process.end()
    return met, failures


def test_a_step_runs_once_at_a_time_although_syncs_fail(nursery: Nursery, tier: Tier, figures: Figures) -> None:
    """A process whose syncs fail from some moment on keeps its steps until their bodies have ended, and no longer."""
    draw = tier.random("failed syncs and bodies")
    rounds = tier.count(quick=1, full=15, soak=1000)
    with memory_folder() as folder:
        for number in range(rounds):
            root = str(folder / str(number))
            at = [draw.randrange(3, STEPS), None, None]
            processes = [nursery.start(run_steps, root, f"{draw.random()}", fails_at) for fails_at in at]
            met, failures = _ends(processes)
            assert not met, f"seed {tier.seed}, round {number}: {met}"
            assert all("sync" in failure for failure in failures), failures
    figures.add(33, "steps beside processes whose syncs fail", rounds * STEPS)


# What a process may be told: the others where it was about to open or make the workflow.
OF_CLEANINGS = ("was removed", "No such file or directory", "is gone")
CLEANINGS = ("all locks", "a liveness file", "the record's lock")


def _clean(root: Path, what: str) -> None:
    with suppress(OSError):  # there is nothing yet, or a process makes it again meanwhile
        if what == "all locks":
            shutil.rmtree(root / "locks")
        elif what == "a liveness file":
            next(root.glob("locks/*/runs/*.flock")).unlink()
        else:
            next(root.glob("locks/*/record.flock")).unlink()


@pytest.mark.parametrize("what", CLEANINGS)
def test_a_step_runs_once_at_a_time_although_locks_are_removed(
    nursery: Nursery, tier: Tier, figures: Figures, what: str
) -> None:
    """A cleaner of lock files may stop a process from recording; it lets no two run one step."""
    draw = tier.random(f"cleaned {what}")
    rounds = tier.count(quick=1, full=8, soak=500)
    with memory_folder() as folder:
        for number in range(rounds):
            root = folder / str(number)
            processes = [nursery.start(run_steps, str(root), f"{draw.random()}", None) for _ in range(PROCESSES)]
            time.sleep(draw.random() * 2 * LONGEST_BODY)
            with suppress(StopIteration):
                _clean(root, what)
            processes.append(nursery.start(run_steps, str(root), f"{draw.random()}", None))
            met, failures = _ends(processes)
            assert not met, f"seed {tier.seed}, round {number}: {met}"
            other = [failure for failure in failures if not any(text in failure for text in OF_CLEANINGS)]
            assert not other, other[0]
            completed = Workflow("w", dir=root).record.steps
            assert len(completed) == STEPS or failures
    figures.add(34, f"steps after the removal of {what}", rounds * STEPS)


def enter(link: Link, root: str, seed: str, times: int, locker: int | None) -> None:
    """Enter the mutex "key" so many times; report who was met there, and how often a loss was told.

    Args:
        link: To the test.
        root: The workflow's.
        seed: Of all randomness.
        times: How often.
        locker: What this program sets in portalocker, by its number; None: nothing.
    """
    if locker is not None:
        file_lock._kernel.cache_clear()  # as if the library had not been used before
        portalocker.portalocker.LOCKER = LOCKERS[locker]  # type: ignore[assignment]
    randomness, told = random.Random(seed), 0
    room = Room(Path(root))
    for _ in range(times):
        workflow = Workflow("w", dir=root)  # a new one, which has no file of the mutex open
        try:
            with workflow.mutex("key"), room.entered():
                time.sleep(randomness.random() * LONGEST_HOLD)
        except StoreError:
            told += 1
        workflow.close()
    link.say([room.overlaps, told])


def _does_nothing(*_: object) -> None:
    """A locker that locks nothing."""


LOCKERS = [
    fcntl.lockf,
    (_does_nothing, _does_nothing),
    portalocker.portalocker.LockfLocker,
    portalocker.portalocker.LockfLocker(),
]


def test_a_mutex_whose_file_is_removed_has_one_holder_or_tells_that_it_had_two(
    nursery: Nursery, tier: Tier, figures: Figures
) -> None:
    """A holder that others have joined, after the removal of its mutex's file, is told so when it leaves the mutex."""
    draw = tier.random("cleaned mutexes")
    times = tier.count(quick=12, full=100, soak=5000)
    told = cleanings = 0
    overlapped = set()  # holds during which others came in, by their numbers
    with memory_folder() as folder:
        root = folder / "root"
        processes = [nursery.start(enter, str(root), f"{draw.random()}", times, None) for _ in range(PROCESSES)]
        end = time.monotonic() + PROCESSES * times * LONGEST_HOLD / 3
        while time.monotonic() < end:
            time.sleep(BETWEEN_CLEANINGS + draw.random() * LONGEST_HOLD)
            for path in root.glob("locks/*/mutex/*"):
                path.unlink(missing_ok=True)
                cleanings += 1
        for process in processes:
            met, its = process.hear()
            overlapped |= {who.rpartition(" ")[2] for who in met}
            told += its
            process.end()
    assert cleanings
    assert len(overlapped) <= told, f"seed {tier.seed}: {len(overlapped)} holds overlapped, and {told} were told"
    figures.add(34, "entries into a mutex whose file is removed", PROCESSES * times)


def test_a_mutex_excludes_whatever_is_set_in_portalocker(nursery: Nursery, tier: Tier, figures: Figures) -> None:
    """Programs that have changed portalocker for their own files, each in another way, share a mutex."""
    draw = tier.random("lockers")
    times = tier.count(quick=10, full=100, soak=5000)
    with memory_folder() as folder:
        root = str(folder / "root")
        lockers = [None, *draw.sample(range(len(LOCKERS)), PROCESSES)]
        processes = [nursery.start(enter, root, f"{draw.random()}", times, locker) for locker in lockers]
        met = [process.hear() for process in processes]
        for process in processes:
            process.end()
    assert met == [[[], 0]] * len(processes), f"seed {tier.seed}, lockers {lockers}"
    figures.add(36, "entries of programs with other lockers", times * len(processes))
