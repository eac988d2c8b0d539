"""Errors in few words: what a line of a report says of one, and the part of a traceback that is the user's."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import iso_orchestrator
from iso_orchestrator.record.model import ErrorInfo

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
    lines, left_out, is_shown = list[str](), 0, False
    for line in stack.splitlines():
        if frame := _FRAME.match(line):
            is_shown = not _is_library(frame["path"])
            left_out += not is_shown
        elif not line.startswith("    "):
            is_shown = False
        if is_shown:
            lines.append(line)
    return lines, left_out


def folded(stack: str) -> str:
    """A traceback in which the frames of libraries are counted instead of shown."""
    lines, hidden, is_hidden = list[str](), 0, False
    for line in stack.splitlines():
        if frame := _FRAME.match(line):
            is_hidden = _is_library(frame["path"])
            hidden += is_hidden
        elif not line.startswith("    "):
            is_hidden = False
        if is_hidden:
            continue
        if hidden:
            lines.append(f"  … {hidden} {'frame' if hidden == 1 else 'frames'} of libraries")
            hidden = 0
        lines.append(line)
    return "\n".join(lines)


def _is_library(path: str) -> bool:
    return path.startswith(("<frozen", *_library_folders())) or bool(
        {"site-packages", "dist-packages"} & set(Path(path).parts)
    )


@cache
def _library_folders() -> tuple[str, ...]:
    import sysconfig  # some milliseconds, which most commands do not need

    ours = str(Path(iso_orchestrator.__file__).parent)
    return (f"{ours}/", f"{sysconfig.get_path('stdlib')}/")
