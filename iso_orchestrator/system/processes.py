"""The machine's processes: start a program, find everything that it has started, and end all of it.

A program is started with a *process tag* in its environment, a word that cannot be guessed. Every process that it
starts inherits the tag. So each is found, also in a session of its own, and also after its parents have ended (an
orphan). The children of a process that was found belong to the tree with or without the tag.

Some processes are not found once their parents have ended:

- one that has cleared its environment, or has written a title over it, as PostgreSQL and nginx do;
- one that may not be inspected: another user's, as under ``sudo``, or one that has made itself undumpable;
- one that another service was asked to start: cron, systemd, a container's daemon.

While such a process has the standard output of the command open, the lock on that file shows that it runs
(`commands.output`). A server that a command leaves running for later ones, as tmux and build tools do, is found, and
is ended with the rest.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from itertools import chain
from typing import Any, ParamSpec, TypeAlias, TypeVar

import psutil  # type: ignore[import-untyped]

from iso_orchestrator.errors import CommandLeftoverError, WorkflowUsageError
from iso_orchestrator.system.clock import Backoff, monotonic, nap

P = ParamSpec("P")
R = TypeVar("R")

Process: TypeAlias = Any
"""A `psutil.Process`: known by its number and the time of its start, so that no later process is taken for it."""

TAG_VARIABLE = "ISO_ORCHESTRATOR_MARK"
"""The environment variable with the tags of the commands around a process, the innermost last."""

GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""

KILLING = 10.0
"""Seconds of SIGKILL after which `end_tree` gives up."""

_SEPARATOR = ":"
_TAG = re.compile(r"[A-Za-z0-9._-]+")

_LONGEST_WAIT = 86_400  # seconds; poll() takes milliseconds of 31 bits
_LOOK_AGAIN = 0.2  # seconds between two searches for new processes while known ones are waited for
_PASSES = 50  # over the list of processes

# A process that changes its program has no environment for a moment.
_EXEC_LOOKS = 200
_EXEC_LOOKS_WITH_ARGUMENTS = 20
_EXEC_PAUSE = 0.0005  # seconds

# A program inherits ignored and blocked signals. `Popen` resets only those that Python itself ignores, and Python code
# between its fork and the program could hang where this process has threads. So an interpreter goes in between if there
# are such signals, for some 20 ms.
_RESET_SIGNALS = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
program, locale, *args = sys.argv[1:]
if not locale:
    os.environ.pop("LC_CTYPE", None)  # this interpreter's own, where there was none
os.execv(program, args)
"""


# A process that has run out of descriptors can still end its commands: the search for their processes needs one for a
# moment, and these are closed for it.
_SPARE_DESCRIPTORS = 4
_spare_descriptors: list[int] = []


def _keep_spare_descriptors() -> None:
    while len(_spare_descriptors) < _SPARE_DESCRIPTORS:
        _spare_descriptors.extend(os.pipe())


def is_out_of_descriptors(error: OSError) -> bool:
    """Whether this process, or the system, has no more descriptors."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def _with_spare_descriptors(search: Callable[P, R]) -> Callable[P, R]:
    """Decorate a search so that it is repeated with a spare descriptor, and then until another thread closes one."""

    @wraps(search)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        give_up_at = monotonic() + KILLING
        pause = Backoff(nap)
        while True:
            try:
                return search(*args, **kwargs)
            except OSError as error:
                if not is_out_of_descriptors(error) or monotonic() >= give_up_at:
                    raise
            try:
                os.close(_spare_descriptors.pop())
            except IndexError:
                pause.rest()

    return wrapper


# Starting


def start(
    args: Sequence[str], *, env: Mapping[str, str], cwd: str | None, stdin: int | None, stdout: int, stderr: int
) -> Process:
    """Start a program, as the leader of a session of its own.

    It has no descriptors except the standard ones, and all signals at their defaults, also those that this process
    ignores or blocks.

    Args:
        args: The program and its arguments.
        env: Its whole environment, usually of `tagged_environment`.
        cwd: Its folder; None for this process's.
        stdin: A descriptor to read from; None for an empty input.
        stdout: A descriptor to write standard output to.
        stderr: The same for standard error.

    Raises:
        OSError: It cannot be started, or there would be no descriptors left to end it with.
    """
    _keep_spare_descriptors()
    return psutil.Popen(
        _through_reset(args, env, cwd) if _hands_down_signals() else args,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        start_new_session=True,
    )


def has_ended(process: Process, timeout: float) -> bool:
    """Wait at most *timeout* seconds for the end of a process that `start` gave; whether it has come."""
    try:
        process.wait(min(timeout, _LONGEST_WAIT))
    except psutil.TimeoutExpired:
        return False
    return True


def exit_code(process: Process) -> int:
    """The exit code of a process that `start` gave, after its end; minus the signal's number where one ended it.

    Raises:
        WorkflowUsageError: It is lost, since other code in this process has taken it.
    """
    code = process.wait()
    if code is None:
        raise WorkflowUsageError(
            f"the exit code of process {process.pid} is lost: this program ignores SIGCHLD, or waits for children that "
            "are not its own; it must do neither while commands run"
        )
    return int(code)  # psutil has an enum for signals


def tagged_environment(env: Mapping[str, str] | None, *tags: str) -> dict[str, str]:
    """The environment *env*, or this process's, with *tags* added to the tags that this process has itself.

    So a command inside of a command is found by both tags.

    Raises:
        ValueError: A tag has other characters than letters, digits, ``.``, ``_`` and ``-``; or none.
    """
    outer = os.environ.get(TAG_VARIABLE)
    all_tags = [*([outer] if outer else []), *map(_check_tag, tags)]
    return {**(os.environ if env is None else env), TAG_VARIABLE: _SEPARATOR.join(all_tags)}


# Finding


def tagged(tag: str) -> Iterator[Process]:
    """The living processes that have *tag*, each as soon as it is seen. Their children without the tag are left out."""
    _check_tag(tag)
    seen: set[int] = set()
    # A process that was born after a list was made, and whose parent ended before its turn in that list, is on the next
    # list. A list without new processes proves that none was missed.
    for _ in range(_PASSES):
        new = _pids() - seen
        if not new:
            break
        seen |= new
        for pid in new:
            process = _find_tagged(pid, tag)
            if process is not None:
                yield process


@_with_spare_descriptors
def _pids() -> set[int]:
    return set(psutil.pids())


@_with_spare_descriptors
def _find_tagged(pid: int, tag: str) -> Process | None:
    try:
        process = psutil.Process(pid)
        tags = _environment(process).get(TAG_VARIABLE, "").split(_SEPARATOR)
    except psutil.Error:
        return None  # it is gone, or is another user's
    except OSError as error:
        if is_out_of_descriptors(error):
            raise
        return None
    return process if tag in tags else None


@_with_spare_descriptors
def living_tree(tag: str, known: Iterable[Process] = ()) -> set[Process]:
    """All processes that are alive and have *tag* or are *known*, with the descendants of both.

    An empty set proves that none is left.

    Raises:
        WorkflowUsageError: This process is one of them.
    """
    roots = {*tagged(tag), *filter(is_alive, known)}
    if not roots:
        return set()
    members = _with_descendants(roots)
    this = psutil.Process()
    if not members.isdisjoint([this, *this.parents()]):
        raise WorkflowUsageError(
            "this process runs inside of the command that it is to end or wait for: do that from outside of it"
        )
    # A root that has ended meanwhile counts: it may have handed over to a child that was not seen.
    return roots.union(filter(is_alive, members))


@_with_spare_descriptors
def is_alive(process: Process) -> bool:
    """Whether a process has not ended. A zombie has: its parent has not asked for its exit code yet."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def runs_since(pid: int, moment: float) -> bool:
    """Whether a process of that number runs that had started by *moment*: by the boot clock, if Linux, else in UTC."""
    start_of_clock = psutil.boot_time() if psutil.LINUX else 0.0
    try:
        process = psutil.Process(pid)
        return is_alive(process) and process.create_time() - start_of_clock <= moment + 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it may not be looked at


def command_line(pid: int) -> str | None:
    """What a process runs; None where that cannot be seen."""
    try:
        return " ".join(psutil.Process(pid).cmdline()) or None
    except psutil.Error:
        return None


def send_signal(pid: int, number: int) -> None:
    """Send a signal to one process.

    Raises:
        ProcessLookupError: It has ended.
        PermissionError: It is another user's.
    """
    os.kill(pid, number)


# Ending


def end_tree(
    tag: str,
    *,
    grace: float = GRACE,
    known: Iterable[Process] = (),
    is_urgent: Callable[[], bool] = lambda: False,
) -> int:
    """End all processes that have *tag*, and their descendants: SIGTERM, time to finish, SIGKILL, until none is left.

    Where this process has no descriptor left, spare ones serve for the search. If other threads take those too, only
    the sessions that `start` began are ended, which needs none.

    Args:
        tag: The process tag.
        grace: Seconds that they have to finish.
        known: Processes that are ended with their descendants whether or not they have the tag.
        is_urgent: Asked again and again; once it is true, the time to finish is over.

    Returns:
        How many there were.

    Raises:
        CommandLeftoverError: Some are left, or may be.
        WorkflowUsageError: This process is one of them.
    """
    known = tuple(known)
    if not _has_descriptors():
        _signal_groups(known, signal.SIGTERM)
    try:
        return _end_tree(tag, grace, known, is_urgent)
    except OSError as error:
        if not is_out_of_descriptors(error):
            raise
        _signal_groups(known, signal.SIGKILL)
        raise CommandLeftoverError(tuple(process.pid for process in known), KILLING, reason=_UNSEARCHED) from error
    finally:
        with suppress(OSError):  # the next start makes up for it, or fails
            _keep_spare_descriptors()


_UNSEARCHED = "this process has no descriptors left to search for them: raise `ulimit -n`, or open fewer files"


def kill_group(process: Process) -> None:
    """Kill what is in the group of a process of `start` now. `end_tree` finds the others."""
    _signal_groups([process], signal.SIGKILL)


def _has_descriptors() -> bool:
    try:
        ends = os.pipe()
    except OSError:
        return False
    for fd in ends:
        os.close(fd)
    return True


def _signal_groups(leaders: Iterable[Process], number: int) -> None:
    """Signal the groups that processes of `start` lead, which needs no descriptor."""
    for leader in leaders:
        # What was collected raises: its number may be another's.
        with suppress(OSError, AttributeError):  # not every system has both functions
            os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.killpg(leader.pid, number)


def _end_tree(tag: str, grace: float, known: Iterable[Process], is_urgent: Callable[[], bool]) -> int:
    met, signalled = set(known), set[Process]()
    kill_at, give_up_at = monotonic() + grace, float("inf")
    while living := living_tree(tag, met):
        met |= living
        now = monotonic()
        is_killing = give_up_at < float("inf")
        if not is_killing and now < kill_at and not is_urgent():
            for process in _parents_first(living - signalled):
                _signal(process, "terminate", "resume")  # a stopped process is woken, to end
            _wait_for_end(living, kill_at, is_urgent)
        else:
            give_up_at = give_up_at if is_killing else now + KILLING
            if now >= give_up_at:
                raise CommandLeftoverError(tuple(sorted(process.pid for process in living)), KILLING)
            # The tagged are killed as soon as each is seen: one that hands over to a child again and again is gone
            # a moment later.
            for process in chain(_parents_first(living), tagged(tag)):
                _signal(process, "kill")
            _wait_for_end(living, give_up_at, lambda: False)
        signalled |= living
    return len(signalled)


def _check_tag(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise ValueError(f"a process tag must be of letters, digits, '.', '_' and '-': {tag!r:.80}")
    return tag


def _hands_down_signals() -> bool:
    if os.name != "posix":
        return False
    restored = {signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE)}
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    return bool(ignored - restored or signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def _through_reset(args: Sequence[str], env: Mapping[str, str], cwd: str | None) -> Sequence[str]:
    if not sys.executable or getattr(sys, "frozen", False):
        return args  # no interpreter that could be started: the program inherits the signals
    return (sys.executable, "-I", "-S", "-c", _RESET_SIGNALS, _find(args[0], env, cwd), env.get("LC_CTYPE", ""), *args)


def _find(program: str, env: Mapping[str, str], cwd: str | None) -> str:
    """The program's path, as `Popen` would find it."""
    import shutil  # some milliseconds

    path = os.path.join(cwd or "", program) if os.path.dirname(program) else program
    found = shutil.which(path, path=os.pathsep.join(os.get_exec_path(env)))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    return os.path.abspath(found)


def _environment(process: Process) -> Mapping[str, str]:
    environment: Mapping[str, str] = process.environ()
    for look in range(_EXEC_LOOKS):
        if environment or not psutil.LINUX:
            break
        is_changing = _may_be_changing_its_program(process, look)
        if is_changing:
            nap(_EXEC_PAUSE)
        environment = process.environ()  # also if it is not: the change may just have ended
        if not is_changing:
            break
    return environment


def _may_be_changing_its_program(process: Process, look: int) -> bool:
    if not process.exe():
        return False  # a thread of the kernel
    # The arguments are there a moment before the environment, while the process runs or waits for memory. One that has
    # cleared its environment looks the same while it is busy: that must not cost much.
    return not process.cmdline() or (
        look < _EXEC_LOOKS_WITH_ARGUMENTS and process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    )


@_with_spare_descriptors
def _with_descendants(roots: Iterable[Process]) -> set[Process]:
    processes: dict[int, Process] = {}
    children: defaultdict[int, list[Process]] = defaultdict(list)
    for pid in psutil.pids():
        with suppress(psutil.Error):
            processes[pid] = psutil.Process(pid)
            children[processes[pid].ppid()].append(processes[pid])
    members: set[Process] = set()
    waiting = [root for root in roots if processes.get(root.pid) == root]
    while waiting:
        process = waiting.pop()
        if process not in members:
            members.add(process)
            waiting += children[process.pid]
    return members


def _parents_first(processes: Iterable[Process]) -> list[Process]:
    """Sort by pid, which usually puts parents first: a parent that lost a child first could start a new one."""
    return sorted(processes, key=lambda process: process.pid)


@_with_spare_descriptors
def _signal(process: Process, *methods: str) -> None:
    with suppress(psutil.Error):  # it is gone, or is another user's
        for method in methods:
            getattr(process, method)()


def _wait_for_end(living: Iterable[Process], until: float, is_urgent: Callable[[], bool]) -> None:
    """Wait until all have ended, or it is time to search for new ones."""
    until = min(until, monotonic() + _LOOK_AGAIN)
    pause = Backoff(nap)
    while monotonic() < until and not is_urgent() and any(map(is_alive, living)):
        pause.rest()
