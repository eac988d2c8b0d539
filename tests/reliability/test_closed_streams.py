"""Processes whose standard streams are closed, as a daemon's are: what a library prints there gets into no file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from reliability.tiers import Figures, Tier
from support import DEADLINE, looked_at, notes_of

from iso_orchestrator.store import FileStore

# A process that closes some of its standard streams before each use, and prints to all of them after it.
CODE = """
import json, os, random, sys, traceback
from contextlib import suppress

seed, count, root, found = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
draw = random.Random(seed)
for fd in draw.sample(range(3), draw.randrange(1, 4)):
    os.close(fd)
from iso_orchestrator import Command, Workflow

def low():
    files = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in range(3) if os.path.exists(f"/proc/self/fd/{fd}")}
    return [(fd, path) for fd, path in files.items() if path.startswith((root, "pipe:")) and fd not in given]

def print_everywhere():
    for fd in range(3):
        with suppress(OSError):
            os.write(fd, b"perror: no such thing\\n")

def report(*error):
    with open(found, "w") as file:
        traceback.print_exception(*error, file=file)

sys.excepthook = report
given = {fd for fd in range(3) if os.path.exists(f"/proc/self/fd/{fd}")}
bad = []
for number in range(count):
    for fd in draw.sample(range(3), draw.randrange(3)):
        with suppress(OSError):
            os.close(fd)
            given.discard(fd)
    with Workflow("w", dir=root) as workflow:
        workflow.append_event("note", str(number))
        bad += low()
        print_everywhere()
        match draw.randrange(4):
            case 0:
                workflow.run_step(f"step {number}", print_everywhere)
            case 1:
                with workflow.mutex(f"key {number}"):
                    bad += low()
                    print_everywhere()
            case 2:
                with workflow.lease(f"lease {number}"):
                    print_everywhere()
            case 3:
                run = workflow.command(name=f"cat {number}")(lambda: Command(["cat"], input="said"))
                assert run().stdout == "said"
                bad += low()
    print_everywhere()
with open(found, "w") as file:
    json.dump(bad, file)
"""


def test_what_is_printed_to_a_closed_stream_gets_into_no_file(root: Path, tier: Tier, figures: Figures) -> None:
    """No file, lock, log or pipe is open as descriptor 0, 1 or 2, whichever of them were closed, and when."""
    seeds = tier.random("closed streams")
    processes, uses = tier.pick(quick=(1, 4), full=(6, 12), soak=(200, 40))
    broken = 0
    for _ in range(processes):
        seed = seeds.getrandbits(32)
        folder, found = root / str(seed), root / f"{seed}.json"
        args = [sys.executable, "-c", CODE, str(seed), str(uses), str(folder), str(found)]
        ended = subprocess.run(args, stdin=subprocess.DEVNULL, timeout=DEADLINE, check=False)
        assert ended.returncode == 0, f"seed {seed}: {found.read_text()}"
        broken += len(json.loads(found.read_text()))
        assert [check.verdict for check in FileStore(folder).verify()] == ["sound"]
        assert notes_of(looked_at(FileStore(folder))) == [str(number) for number in range(uses)]
    figures.add(29, "uses with closed standard streams", processes * uses, broken)
    assert broken == 0
