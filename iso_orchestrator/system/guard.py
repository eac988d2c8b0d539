"""The guard: a small process that ends the commands of this process when this process has been killed.

A process that is killed (SIGKILL, the OOM killer) cannot end its commands. So it starts a guard before its first
command, and gives each command a process tag that all its commands have in common, the *runner tag*. The guard waits
for the end of this process, and then ends what has that tag. It learns of the end by a pipe, whose writing end this
process alone has, and on Linux by a pidfd too: other code may close the pipe, or keep it open in a forked child.

The guard is an interpreter without the package (8 MB), which it imports when it is needed. It is no child of this
process, so that code which waits for all children does not wait for it. It has a session of its own, where no Ctrl-C
reaches it, and none of this process's descriptors. A process that ends normally has ended its commands itself and
dismisses the guard.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress

from iso_orchestrator.checks import unique_name
from iso_orchestrator.notes import message_of
from iso_orchestrator.system.clock import monotonic, nap
from iso_orchestrator.system.interrupts import masked
from iso_orchestrator.system.processes import end_tree

_log = logging.getLogger("iso_orchestrator")

KILL_AFTER = 1.2
"""Seconds from the runner's death to the guard's SIGKILL. SIGTERM comes as soon as the processes are found."""

# A process that was forked for a command just before the runner's death gets the tag when it has its program.
_LOOK_FOR = 1.0  # seconds
_LOOK_AGAIN = 0.1

_START_WITHIN = 10.0  # seconds; sys.executable may be another program, which embeds Python

# What stands in for the package's own `__init__`, which would import all of it, halves the time of the import.
_GUARD = """# The guard of iso-orchestrator: ends the commands of a process that was killed.
import os, select, signal, sys, time
runner, tag, package, *path = sys.argv[1:]
try:
    death = [os.pidfd_open(int(runner))]
except (AttributeError, OSError):
    death = []
if os.getppid() != int(runner):
    death = []  # it has ended, and another may have its number; or it sees other numbers than this process
signal.pthread_sigmask(signal.SIG_SETMASK, ())
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
if "ISO_ORCHESTRATOR_MARK" in os.environ:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # inside of a command, whose end is that of its commands
if os.fork():
    os._exit(0)
waiting = [0, *death]
while True:
    ready = select.select(waiting, [], [])[0]
    if 0 in ready and os.read(0, 1):
        os._exit(0)  # dismissed
    if not death or death[0] in ready:
        break
    waiting = death  # the runner lives, but other code in it has closed the pipe
died_at = time.monotonic()
import types
sys.path[:] = path
sys.modules["iso_orchestrator"] = types.ModuleType("iso_orchestrator")
sys.modules["iso_orchestrator"].__path__ = [package]
from iso_orchestrator.system.guard import end_commands
end_commands(tag, died_at)
"""

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_runner_tag = unique_name() + unique_name()
_pipe: tuple[int, int] | None = None  # the writing end, and its inode, since other code may close and reuse it
_starting = threading.Lock()
_has_warned = False


def runner_tag() -> str:
    """Start the guard of this process if none runs; the tag by which it finds this process's commands.

    A warning is logged, once, if it cannot be started: what a kill of this process leaves then runs on.
    """
    global _has_warned
    if os.name == "posix":
        with masked(), _starting:
            try:
                if not _is_running():
                    _start()
            except (OSError, ValueError) as error:
                if not _has_warned:
                    _has_warned = True
                    _log.warning(
                        "no guard can be started (%s): if this process is killed, its commands run on until their "
                        "steps are run again",
                        message_of(error),
                    )
    return _runner_tag


def dismiss() -> None:
    """End the guard of this process, none of whose commands runs any more."""
    with _starting:
        _dismiss()


def end_commands(tag: str, died_at: float) -> None:
    """End what has a runner tag after the runner's death, until nothing more of it comes: for the guard."""
    while end_tree(tag, grace=max(0.0, died_at + KILL_AFTER - monotonic())) or monotonic() < died_at + _LOOK_FOR:
        nap(_LOOK_AGAIN)


def _is_running() -> bool:
    """Whether the guard has the pipe open; a write would raise SIGPIPE, which a program may have turned on."""
    if _pipe is None or not _is_open(*_pipe):
        return False
    poll = select.poll()
    poll.register(_pipe[0], 0)
    return not poll.poll(0)


def _is_open(fd: int, inode: int) -> bool:
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


def _dismiss() -> None:
    if _pipe is not None and _is_running():
        with suppress(BrokenPipeError):  # it has just been killed
            os.write(_pipe[0], b".")
    _close_pipe()


def _start() -> None:
    global _pipe
    _close_pipe()
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("sys.executable is no Python interpreter")
    reading, writing = os.pipe()
    _pipe = writing, os.fstat(writing).st_ino
    try:
        path = [os.path.abspath(entry) for entry in sys.path if entry]
        args = ["-I", "-S", "-B", "-c", _GUARD, str(os.getpid()), _runner_tag, _PACKAGE, *path]
        # Its first process forks the guard and ends.
        guard = subprocess.Popen(
            [sys.executable, *args],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            code = guard.wait(_START_WITHIN)
        except subprocess.TimeoutExpired:
            guard.kill()
            code = guard.wait()
        if code:
            raise OSError(f"{sys.executable} ended with exit code {code}")
    except BaseException:
        _dismiss()
        raise
    finally:
        os.close(reading)


def _close_pipe() -> None:
    global _pipe
    if _pipe is not None and _is_open(*_pipe):
        os.close(_pipe[0])
    _pipe = None


def _detach_after_fork() -> None:
    # The child is a runner of its own. While it has the pipe open, its parent seems to live.
    global _runner_tag, _starting
    _runner_tag, _starting = unique_name() + unique_name(), threading.Lock()
    _close_pipe()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_detach_after_fork)
