"""A command line, the options of its step, and its result."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Generic, Literal, TypeAlias, TypeVar

import attrs

from iso_orchestrator.steps.options import StepKeywords

T = TypeVar("T")

IfLeft: TypeAlias = Literal["end", "wait"]
IfRunnerDies: TypeAlias = Literal["end", "leave"]


class CommandKeywords(StepKeywords, total=False):
    """Options of a command besides `parse` and those of a step.

    idle_timeout: Seconds without output. Default: no limit.
    close_grace: Seconds that an agent has to end by itself after its closing event; then it is ended, and its answer
        counts. No `idle_timeout` ends it meanwhile. None: until its `timeout`, or for ever. Default: 10.
    ok_codes: The exit codes that count as success, where no agent judges the run. Default: 0 alone.
    log_dir: The folder of the logs, which several workflows may share. Default: ``logs/`` in the workflow's folder.
    max_log_bytes: Bytes of its standard output, and of its standard error, that are logged. Of more the first and last
        halves are kept, with a line between them that says how much was left out; `parse` gets that too. Default:
        2**30, a GiB.
    if_left: What to do with processes that a killed run left: "end" them (the default), or "wait" until they end.
    if_runner_dies: What happens to the command if the process that runs it is killed: it is ended within 2 seconds
        ("end", the default), or is left running ("leave", the default with ``if_left="wait"``).
    """

    idle_timeout: float | None
    close_grace: float | None
    ok_codes: Collection[int]
    log_dir: str | os.PathLike[str] | None
    max_log_bytes: int
    if_left: IfLeft
    if_runner_dies: IfRunnerDies


_UNSPLIT = "a command line must be a list of a program and its arguments, not one str: use a list, or shlex.split()"


def _arguments(args: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(args, str | bytes):
        raise TypeError(f"{_UNSPLIT}; it is {args!r:.80}")
    if not isinstance(args, Sequence):
        raise TypeError(f"a command line must be a list of str, not {type(args).__name__}: {args!r:.80}")
    if not args:
        raise ValueError("a command line must have a program: the list is empty")
    texts = tuple(_argument(place, value) for place, value in enumerate(args))
    if not texts[0]:
        raise ValueError("a command line's program must not be empty")
    return texts


def _argument(place: int, value: object) -> str:
    what = f"args[{place}] of a command line"
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{what} must be a str or a path, not {type(value).__name__}: {value!r:.80}")
    return _passable(os.fsdecode(value), what)


def _folder(cwd: str | os.PathLike[str] | None) -> str | None:
    if cwd is None:
        return None
    if not isinstance(cwd, str | os.PathLike):
        raise TypeError(f"cwd must be a str or a path, not {type(cwd).__name__}: {cwd!r:.80}")
    return _passable(os.fsdecode(cwd), "cwd")


def _input(value: str | bytes | None) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError(f"input must be a str or bytes, not {type(value).__name__}")
    return value.encode()


def _environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of str to str, not {type(env).__name__}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env must be a mapping of str to str: {name!r:.80} is not, or its value is not")
        if not name or "=" in name:
            raise ValueError(f"env has a name that is empty or has '=' in it: {name!r:.80}")
        _passable(name + value, f"env[{name!r:.80}]")
    return dict(env)


def _passable(text: str, what: str) -> str:
    """*text*, if the operating system can be given it."""
    if "\0" in text:
        raise ValueError(f"{what} has a NUL in it, which no program can be given: {text!r:.80}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{what} has lone surrogates, which no program can be given: {text!r:.80}") from None
    return text


@attrs.frozen
class Command:
    """A command line with its input, folder and environment. Checked when it is made.

    Attributes:
        args: The program and its arguments, as they are: no shell reads them. A program without a slash is searched
            on the `PATH` of `env`.
        input: The whole standard input; a str is given as UTF-8. None is an empty one.
        cwd: The folder that it runs in; None for this process's.
        env: Its whole environment, as for `subprocess.run`; None for this process's. To add to that:
            ``{**os.environ, "NAME": "value"}``.

    Raises:
        TypeError: An argument has another type, or the command line is one str.
        ValueError: The operating system cannot pass it on: an empty list, a NUL, lone surrogates.

    Example:
        >>> Command(["codex", "exec", "--json", "-"], input="Say hello.").args
        ('codex', 'exec', '--json', '-')
    """

    args: tuple[str, ...] = attrs.field(converter=_arguments)
    # Not shown: an environment has secrets in it, and a prompt is long.
    input: bytes | None = attrs.field(default=None, converter=_input, repr=False)
    cwd: str | None = attrs.field(default=None, converter=_folder)
    env: dict[str, str] | None = attrs.field(default=None, converter=_environment, repr=False)


@attrs.frozen
class CommandResult(Generic[T]):
    r"""The result of a command that has ended.

    Attributes:
        args: The program and its arguments.
        exit_code: The exit code; minus the signal's number where a signal ended it.
        duration: Seconds from its start to its end.
        stdout: The last 64 KiB of its standard output. Bytes that are no UTF-8 are spelled out: ``\xff``.
        stderr: The last 64 KiB of its standard error.
        log_path: The file with its standard output, up to `max_log_bytes`. That of standard error has ``.stderr`` after
            the same name.
        parsed: The standard output as `parse=` read it; None without `parse=`.
    """

    args: list[str]
    exit_code: int
    duration: float
    stdout: str
    stderr: str
    log_path: str
    parsed: T = None  # type: ignore[assignment]  # until it is parsed


def as_command(value: object) -> Command:
    """The `Command` that a step's function returned, as a command, a list of arguments, or an agent's command.

    Raises:
        TypeError: It returned something else.
        ValueError: The operating system cannot pass it on.
    """
    build = getattr(value, "build", None)
    if callable(build):
        value = build()
    return value if isinstance(value, Command) else Command(value)  # type: ignore[arg-type]  # checked by Command


def heartbeat_key(step: str) -> str:
    """The key of the heartbeats of a step's command."""
    return f"command:{step}"


def printable(text: str) -> str:
    r"""*text* with its lone surrogates spelled out, which UTF-8 cannot hold: as in a file's name that is no UTF-8.

    Example:
        >>> printable(b"caf\xe9".decode("utf-8", "surrogateescape")).replace(chr(92), "/")
        'caf/udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode()
