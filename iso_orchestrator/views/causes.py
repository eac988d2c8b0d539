"""Errors in few words: what a line of a report says of one, and the part of a traceback that is the user's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

import iso_orchestrator
from iso_orchestrator.record.model import ErrorInfo
from iso_orchestrator.text import counted

_FRAME = re.compile(r'  File "(?P<path>.*)", line \d+, in ')
# What messages repeat that a report shows already: the step's name in front, and the log and advice at the end.
_STEP = re.compile(r"step (?:'[^']*'|\"[^\"]*\"):? ")
_ADVICE = re.compile(r"\. Its output is in .*", re.DOTALL)
_AFTER_THE_LOG = re.compile(r"\. Its output is in .*\.(?:log|stderr)\. (?!Remove the cause, and)(.*)", re.DOTALL)


def brief(error: ErrorInfo) -> str:
    """The class and the message of *error*, without what a report says beside it.

    Example:
        >>> brief(ErrorInfo("AgentError", "step 'ask': claude failed: no key. Its output is in /x.log. Ask again"))
        'AgentError: claude failed: no key'
    """
    message = " ".join(shortened(error.message).split())
    return f"{error.name}: {message}" if message else error.name  # Ctrl-C has no message


def shortened(message: str) -> str:
    """The message of an error, without the step's name, and without where its output is and what to do."""
    return _ADVICE.sub("", _STEP.sub("", message, count=1))


def advice(message: str) -> str:
    """What the message of a command's error says to do, where that is more than to remove the cause; else "".

    Example:
        >>> advice("step 'ask': claude was refused: Bash: make. Its output is in /x.log. Permit it by args=")
        'Permit it by args='
    """
    found = _AFTER_THE_LOG.search(message)
    return "" if found is None else found[1]


def user_frames(stack: str) -> tuple[list[str], int]:
    r"""The lines of a traceback without the frames of libraries, and how many of those there are.

    Example:
        >>> user_frames('Traceback:\n  File "job.py", line 3, in work\n    work()\nOSError: no space')
        (['  File "job.py", line 3, in work', '    work()'], 0)
    """
    lines = list(_lines_of(stack))
    left_out = sum(is_library is True and _FRAME.match(line) is not None for line, is_library in lines)
    return [line for line, is_library in lines if is_library is False], left_out


def folded(stack: str) -> str:
    """A traceback in which the frames of libraries are counted instead of shown."""
    shown = list[str]()
    for is_hidden, group in groupby(_lines_of(stack), lambda found: found[1] is True):
        lines = [line for line, _ in group]
        frames = sum(_FRAME.match(line) is not None for line in lines)
        shown += [f"  … {counted(frames, 'frame')} of libraries"] if is_hidden else lines
    return "\n".join(shown)


def _lines_of(stack: str) -> Iterator[tuple[str, bool | None]]:
    """Each line of a traceback, and whether its frame is one of a library; None outside of frames."""
    is_library = None
    for line in stack.splitlines():
        if frame := _FRAME.match(line):
            is_library = _is_library(frame["path"])
        elif not line.startswith("    "):
            is_library = None
        yield line, is_library


def _is_library(path: str) -> bool:
    return path.startswith(("<frozen", *_library_folders())) or bool(
        {"site-packages", "dist-packages"} & set(Path(path).parts)
    )


@cache
def _library_folders() -> tuple[str, ...]:
    import sysconfig  # some milliseconds, which most commands do not need

    ours = str(Path(iso_orchestrator.__file__).parent)
    return (f"{ours}/", f"{sysconfig.get_path('stdlib')}/")
