"""Programs for the tests of commands, and ways to find and end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
from support import wait_until

from iso_orchestrator.agents import stand_in
from iso_orchestrator.checks import unique_name
from iso_orchestrator.commands.model import Command, CommandResult
from iso_orchestrator.commands.output import OutputFiles
from iso_orchestrator.commands.process import ProcessRunner
from iso_orchestrator.system.processes import tagged, tagged_environment

STAND_IN = [sys.executable, "-I", "-S", stand_in.__file__]
"""The stand-in for an agent, by its path: with `-m` it would import the package first."""

FOREVER = "1000"  # seconds of a sleep that does not end by itself in a test


def python(code: str, *args: object) -> list[str]:
    """The command line of a Python program that starts fast."""
    return [sys.executable, "-I", "-S", "-u", "-c", code, *map(str, args)]


def shell(code: str, *args: object) -> list[str]:
    return ["sh", "-c", code, "sh", *map(str, args)]


def hidden(folder: object, code: str) -> list[str]:
    """A command line with a descendant that has no tag, ignores SIGTERM, and has the output open.

    The descendant appends its process id to the file "pids" in *folder*. The command writes its own to the file
    "leader", and continues with *code*.
    """
    stranger = f"trap '' TERM; echo $$ >> \"$1/pids\"; exec sleep {FOREVER}"
    return shell(f'echo $$ > "$1/leader"; (setsid env -i "PATH=$PATH" sh -c "$2" sh "$1" &); {code}', folder, stranger)


@attrs.define(kw_only=True, eq=False)
class CommandRun(ProcessRunner):
    """A run that opens and closes its files."""

    files: OutputFiles = attrs.field(init=False)
    log_path: str
    max_log_bytes: int | None = None

    def run(self) -> CommandResult[Any]:
        with closing(OutputFiles(self.log_path, self.max_log_bytes)) as self.files:
            return ProcessRunner.run(self)


def command_run(folder: Path, args: Sequence[str] | Command, **options: Any) -> CommandRun:
    """A run of a command line in *folder*, with a tag of its own."""
    command = args if isinstance(args, Command) else Command(args)
    defaults = {"name": "step", "tag": unique_name(), "log_path": str(folder / "out.log"), "grace": 0.2}
    return CommandRun(command=command, **{**defaults, **options})


@contextmanager
def running(tag: str, args: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs with *tag*; killed at the end with all processes that have the tag."""
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(
            args, env=tagged_environment(None, tag), stdin=subprocess.DEVNULL, stdout=nowhere, start_new_session=True
        )
    try:
        yield process
    finally:
        kill_all(tag)
        process.kill()
        process.wait()


def find(tag: str) -> list[int]:
    """The ids of the processes that have *tag*, in order."""
    return sorted(process.pid for process in tagged(tag))


def kill_all(tag: str) -> None:
    """Kill all processes that have *tag*, by nothing of the package except its way to find them."""

    def are_gone() -> bool:
        pids = find(tag)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(are_gone, what="the end of what was killed")


def wait_for_file(path: Path) -> str:
    """The text of a file, as soon as there is some."""
    return wait_until(lambda: path.exists() and path.read_text(), what=f"something in {path.name}")  # type: ignore[no-any-return]
