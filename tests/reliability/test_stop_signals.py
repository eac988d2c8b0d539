"""Batches of commands that Ctrl-C or SIGTERM stops at any moment leave no process."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from reliability.tiers import Figures, Tier
from support import DEADLINE
from support_commands import FOREVER, find, kill_all
from support_processes import child

from iso_orchestrator import FileStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the programs of this test are for Linux"),
]

GRACE = 0.3  # seconds
PROGRAMS = [
    "exec sleep FOREVER",
    "trap '' TERM; for i in $(seq 2000); do sleep 0.05; done",
    "sleep FOREVER & setsid sleep FOREVER & wait",
    "trap '' TERM; setsid sh -c 'for i in $(seq 2000); do sleep 0.05; done'",
]
SHAPES = [
    "batch(range(12))",
    "batch(range(12), executor=ThreadPoolExecutor(8))",
    "workflow.run_for_each('a', lambda _: batch(range(12)))",
    "workflow.run_for_each('ab', lambda _: batch(range(12)), max_parallel=2)",
    "workflow.run_for_each(range(12), work)",
    "[work.submit(number) for number in range(12)][0].result()",
]
RUNNER = """
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import iso_orchestrator.commands.step as commands

signal.signal(signal.SIGINT, signal.default_int_handler)
commands.ProcessRunner = partial(commands.ProcessRunner, grace={grace})
programs = {programs}

@workflow.command
def work(number):
    return ["sh", "-c", programs[number % len(programs)]]

def batch(items, **options):
    workflow.run_for_each(items, work, max_parallel=8, **options)

try:
    with workflow:
        say("begun")
        {shape}
        say("done")
except KeyboardInterrupt:
    say("interrupted")
"""


def tags_in(root: Path) -> Iterator[str]:
    projection = FileStore(root).read("w")
    return iter(()) if projection is None else (command.mark for command in projection.commands.values())


def test_batches_that_are_stopped_leave_no_process(tier: Tier, figures: Figures, tmp_path: Path) -> None:
    """Whatever has begun is ended within the grace, also if it ignores SIGTERM; and the program ends as it should."""
    chance = tier.random("stopped batches")
    found: list[str] = []
    count = tier.count(quick=1, full=6, soak=1000)
    for number in range(count):
        root, sent = tmp_path / str(number), chance.choice([signal.SIGINT, signal.SIGTERM])
        programs = [program.replace("FOREVER", FOREVER) for program in chance.choices(PROGRAMS, k=4)]
        code = RUNNER.format(grace=GRACE, programs=programs, shape=chance.choice(SHAPES))
        with child(code, root) as runner:
            assert runner.line() == "begun"
            time.sleep(chance.random() * 0.4)  # what is random is the moment
            began = time.monotonic()
            runner.process.send_signal(sent)
            ended = runner.process.wait(DEADLINE)
        seconds = time.monotonic() - began
        left = {tag: pids for tag in tags_in(root) if (pids := find(tag))}
        for tag in left:
            kill_all(tag)
        if left or seconds > DEADLINE / 4 or ended != (0 if sent == signal.SIGINT else -sent):
            found.append(f"{sent.name}: ended with {ended} after {seconds:.1f} s, left {left}, of {code}")
    figures.add(40, "batches of commands stopped", count, len(found))
    assert not found, f"seed {tier.seed}: {found}"
