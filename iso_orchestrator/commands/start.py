"""Starting a command: in a session of its own, with nothing of this process but what it is given."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from iso_orchestrator.commands.log import OutputFiles
from iso_orchestrator.commands.model import Command
from iso_orchestrator.errors import CommandStartError
from iso_orchestrator.system.processes.tree import marked_environment

__all__ = ["start"]

# Ignored and blocked signals are handed down to programs. `Popen` resets only those that Python itself ignores, and our
# code between its fork and the program could hang where the process has threads. So an interpreter goes in between if
# there are any, for some 20 ms.
_RESET = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
program, locale, *args = sys.argv[1:]
if not locale:
    os.environ.pop("LC_CTYPE", None)  # this interpreter's own, where there was none
os.execv(program, args)
"""


def start(name: str, command: Command, mark: str, files: OutputFiles) -> subprocess.Popen[bytes]:
    """Start *command*, with *mark* in its environment, its output going to *files*.

    It leads a session of its own, has no descriptors but the standard ones, and all signals at their defaults,
    whatever this process ignores or blocks.

    Raises:
        CommandStartError: It cannot be started.
    """
    environment = marked_environment(command.env, mark)
    try:
        with _input(command, os.path.dirname(files.stdout.path)) as stdin:
            return subprocess.Popen(
                _reset_signals(command, environment) if _hands_down_signals() else command.args,
                stdin=stdin,
                stdout=files.stdout.fd,
                stderr=files.stderr.fd,
                cwd=command.cwd,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise CommandStartError(name, command.args[0], _reason(error, command, environment)) from error


@contextmanager
def _input(command: Command, folder: str) -> Iterator[int]:
    """A descriptor to read the input from: of a file without a name, since writing to a pipe could wait for ever."""
    if command.input is None:
        yield subprocess.DEVNULL
        return
    import tempfile  # some milliseconds, which most commands do not need

    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(command.input)
        file.seek(0)
        yield file.fileno()


def _hands_down_signals() -> bool:
    if os.name != "posix":
        return False
    restored = {signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE)}
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    return bool(ignored - restored or signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def _reset_signals(command: Command, environment: Mapping[str, str]) -> tuple[str, ...]:
    if not sys.executable or getattr(sys, "frozen", False):
        return command.args  # no interpreter that could be started: the program gets them as they are
    program = _find(command, environment)
    locale = environment.get("LC_CTYPE", "")
    return (sys.executable, "-I", "-S", "-c", _RESET, program, locale, *command.args)


def _find(command: Command, environment: Mapping[str, str]) -> str:
    """The program's path, as `Popen` would find it."""
    import shutil  # some milliseconds, as above

    program = command.args[0]
    path = os.path.join(command.cwd or "", program) if os.path.dirname(program) else program
    found = shutil.which(path, path=os.pathsep.join(os.get_exec_path(environment)))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    return os.path.abspath(found)


def _reason(error: OSError, command: Command, environment: Mapping[str, str]) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.E2BIG:
        return f"{reason}: give long texts as input= or in a file"
    if command.cwd is not None and not os.path.isdir(command.cwd):
        return f"its folder {command.cwd!r} is not there: make it, or give another cwd="
    # The latter also where a folder of the PATH is closed to this user, and the program in none of them.
    if isinstance(error, FileNotFoundError | PermissionError) and not os.path.dirname(command.args[0]):
        path = environment.get("PATH", os.defpath)
        where = f"on the PATH {path!r:.200}"
        return f"no such program that may be run {where}: install it, or give its whole path"
    return f"{reason}; give the path of a program that may be run"
