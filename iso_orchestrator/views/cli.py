"""The command line: `iso-orchestrator`, or `python -m iso_orchestrator`."""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from iso_orchestrator import (
    OrchestratorError,
    __version__,
)
from iso_orchestrator.checks import check_key
from iso_orchestrator.views import commands
from iso_orchestrator.views.choice import chosen_store
from iso_orchestrator.views.commands import fail, print_lines
from iso_orchestrator.views.completion import COMPLETE, SCRIPTS, completions
from iso_orchestrator.views.exports import FORMATS

STEP_HELP = "its name, its number `#34`, a name as `show` cut it, or a pattern that one step matches"

_AGES = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1), "s": timedelta(seconds=1)}

_VERIFY_HELP = """
Checks every file and reports each problem with its place in bytes. Nothing is locked, created or changed, and running
processes are not disturbed.

  sound     as it was written
  torn      a crash cut or damaged its end, or it is being written now; nothing that a process was told is recorded
            is lost, and the next opening repairs the file
  refused   it could not be checked: no permission, not a regular file, or written by a newer release
  conflict  snapshot and journal are sound but do not belong together: another program wrote the snapshot, or put
            back an older one
  damaged   recorded data cannot be read; `repair` recovers what was written before the damage

exit codes: 0 sound or torn; 1 damaged or in conflict; 2 wrong usage; 3 something could not be checked, and nothing
else is damaged
"""

_REPAIR_HELP = """
Repairs a damaged workflow, so that it opens again. A sound or torn workflow is not changed. The old files are kept
beside the new ones, as NAME.kept-1 and so on, until `delete` removes the workflow. Refused while a process uses the
workflow.

Damaged journal: the new record has the snapshot and all facts before the damage. Facts after the damage are left out
even if they can be read, because the facts that they depend on are lost. Steps that those facts completed are
listed, and run again. No lease gets a token that was in use before.

Snapshot that another program (the npm package) wrote while there was a journal: refused, unless --merge-snapshot is
given. Then the journal's facts are added to that snapshot. What only one side has is kept. Where both sides have a
different version, the report names the side that was taken: for a step, the completed one; for heartbeats, leases and
the status, the later one. For a step or a state that both sides changed, the repair stops and does nothing, until you
decide with --prefer journal or --prefer snapshot. The other version is then only in the kept files. If the snapshot is
an older copy, the report names the facts that are in neither file.

Damaged or missing snapshot: refused, unless --without-snapshot is given. Then the record is rebuilt from the journal
alone. What only the snapshot had is lost: the initial state, and everything before the journal began. Lease tokens
that the journal does not have start again at 1.

exit codes: 0 the workflow opens; 1 refused, and nothing was changed; 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name. Default: those of this process.

    Returns:
        The exit code: 0; 1 if the command failed, and standard error says why; 3 if `verify` found damage; 10 to 12
        from `watch` and `show --exit-status`; 130 after Ctrl-C.

    Raises:
        SystemExit: The usage was wrong (2), or help was asked for (0).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == COMPLETE:
        print_lines(completions(_parser(), words[2:], chosen_store))
        return 0
    options = _parser().parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the encoding may lack characters of an id
    try:
        if options.store and not options.has_store:
            options.refuse("--store is not for this command, which works on a folder")
        code: int = options.run(options)
        sys.stdout.flush()
    except OrchestratorError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
        return 130
    except BrokenPipeError:  # the reader, `| head` for example, has ended
        with suppress(BrokenPipeError):
            sys.stdout.close()  # else the interpreter prints an error when it flushes at exit
        return 0
    return code


class _Command(argparse.ArgumentParser):
    """Takes options between arguments of which some may be left out, as in `show W --json STEP`."""

    _is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._is_mixing:  # called by the method below
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False


def _add_place(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--dir",
        metavar="DIR",
        default=default,
        help="the folder of workflows (default: $ISO_ORCHESTRATOR_DIR, else .iso-orchestrator here or further up)",
    )


def _add_store(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument("--store", metavar="URL", default=default, help="the URL of a store, instead of a folder")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iso-orchestrator",
        description="Show, check, repair and delete durable workflows.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_place(parser, None)
    _add_store(parser, None)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        _add_place(command, argparse.SUPPRESS)  # else it would hide one in front of the command
        command.set_defaults(run=run, has_store=False, refuse=command.error)
        return command

    def with_store(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = add(name, run, text)
        _add_store(command, argparse.SUPPRESS)
        command.set_defaults(has_store=True)
        return command

    _add_demo_options(add("demo", commands.do_demo, "run a batch of jobs that continues after Ctrl-C or a kill"))
    logs_ = with_store("logs", commands.do_logs, "print the output of a step's command")
    top_ = with_store("top", commands.do_top, "show the steps that run or wait now, and the limits in force")
    watch_ = with_store("watch", commands.do_watch, "wait until a workflow has ended; the exit code tells how")
    list_ = with_store("list", commands.do_list, "list the workflows, and change nothing")
    show = with_store("show", commands.do_show, "show a workflow or one of its steps, and change nothing")
    why = with_store("why", commands.do_why, "say whether a step ran or will run again, and what holds it back")
    stop = with_store("stop", commands.do_stop, "stop a workflow's processes here, or end the command of one step")
    prune = with_store("prune", commands.do_prune, "list old workflows and their sizes, and remove them if told to")
    completion = add(
        "completion", commands.do_completion, "print a script that completes commands, workflows and steps"
    )
    export = with_store("export", commands.do_export, "write a workflow's history for other programs")
    timeline = with_store(
        "timeline", commands.do_timeline, "write a picture of a workflow as an HTML file, with all details"
    )
    fold = with_store(
        "fold", commands.do_fold, "write everything that happened into the snapshot, for other programs to read"
    )
    reset = with_store("reset", commands.do_reset, "forget steps, so that they run again")
    backup = add("backup", commands.do_backup, "copy a workflow into a tar file, also while processes use it")
    delete = with_store("delete", commands.do_delete, "delete a workflow that no process is using")
    _add_doctor_options(
        with_store("verify", commands.do_verify, "check every file, and change nothing"),
        with_store("repair", commands.do_repair, "recover the undamaged part of a workflow"),
    )
    for command in (list_, show):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (show, timeline, logs_, watch_, why, stop, export):
        command.add_argument(
            "workflow", nargs="?", type=_workflow_id, metavar="WORKFLOW", help="its id (default: the only one)"
        )
    for command in (fold, reset, backup, delete):
        command.add_argument("workflow", type=_workflow_id, metavar="WORKFLOW", help="its id, as `list` shows it")
    for command in (show, logs_, why, stop):
        command.add_argument("step", nargs="?", metavar="STEP", help=STEP_HELP)
    for command in (show, logs_):
        command.add_argument("--attempt", type=int, metavar="N", help="one attempt (default: the last one)")
    prune.add_argument(
        "--older-than", type=_age, metavar="AGE", help="since anything happened: 30d, 12h (default: 30d)"
    )
    prune.add_argument("--keep", type=_count, metavar="N", help="leave the newest N; then the default age is 0")
    prune.add_argument("--logs", action="store_true", help="remove the logs of commands, and keep the records")
    prune.add_argument("--failed", action="store_true", help="also those with failures, and interrupted ones")
    prune.add_argument("--yes", action="store_true", help="remove them")
    completion.add_argument("shell", choices=list(SCRIPTS), metavar="SHELL", help=", ".join(SCRIPTS))
    completion.epilog = 'For bash: eval "$(iso-orchestrator completion bash)" in ~/.bashrc'
    stop.add_argument("--now", action="store_true", help="send SIGTERM instead of what Ctrl-C sends")
    export.add_argument(
        "--format", choices=list(FORMATS), required=True, help="a trace for Perfetto; a row a step; a line an attempt"
    )
    export.add_argument("-o", "--output", metavar="FILE", default="-", help="default: standard output")
    _add_timeline_options(timeline)
    backup.add_argument("file", metavar="FILE", help="the new tar file")
    _add_list_options(list_)
    _add_show_options(show)
    _add_logs_options(logs_)
    _add_top_options(top_)
    watch_.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up after that time, with 12")
    watch_.epilog = "Exit codes: 0 completed, 10 ended with failures, 11 its process died, 12 still running."
    reset.add_argument("step", metavar="NAME_OR_PATTERN", help="a step's name, or a pattern such as 'apply:*'")
    return parser


def _add_list_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--failed", action="store_true", help="those with failures")
    command.add_argument("--running", action="store_true", help="those that run now")
    command.add_argument("--since", type=_age, metavar="AGE", help="those that changed since then: 2d, 12h, 30m, 90s")


def _add_show_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--failed", action="store_true", help="show each failed step, as `show WORKFLOW STEP` does")
    command.add_argument("--steps", action="store_true", help="show a line for each step")
    command.add_argument("--events", type=_count, metavar="N", help="show the last N events")
    command.add_argument("--result", action="store_true", help="print the step's whole result, as JSON")
    command.add_argument(
        "--exit-status",
        action="store_true",
        help="end with 0 if it completed, 10 with failures, 11 if its process died, 12 if it runs",
    )


def _add_logs_options(command: argparse.ArgumentParser) -> None:
    streams = command.add_mutually_exclusive_group()
    for stream, name in (("STDOUT", "output"), ("STDERR", "error")):
        streams.add_argument(
            f"--{stream.lower()}", dest="stream", action="store_const", const=stream, help=f"standard {name} alone"
        )
    command.add_argument("--raw", action="store_true", help="print an agent's stream as it came, not as its words")
    command.add_argument("-f", "--follow", action="store_true", help="wait for more until the step has ended")


def _add_timeline_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--every", type=_seconds, metavar="SECONDS", help="write it again until the workflow ends")
    command.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        help="default: the workflow's id and .html; - is standard output",
    )
    command.add_argument("--open", action="store_true", help="open it in a browser")
    command.add_argument("--utc", action="store_true", help="show times in UTC instead of this machine's zone")
    command.add_argument(
        "--no-results", action="store_true", help="leave out what steps returned, for a file that goes to others"
    )
    command.add_argument("--no-logs", action="store_true", help="leave out the last words and the paths of logs")


def _add_top_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "workflow", nargs="?", type=_workflow_id, metavar="WORKFLOW", help="its id (default: all of the folder)"
    )
    command.add_argument("--once", action="store_true", help="print once, also on a terminal")
    command.add_argument("--every", type=_seconds, metavar="SECONDS", help="look again at this interval (default: 1)")


def _add_demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--fresh", action="store_true", help="start over: delete an earlier demo")
    command.add_argument(
        "--pace",
        type=_seconds,
        default=0.4,
        metavar="SECONDS",
        help="the average time of a job (default: %(default)s)",
    )
    command.add_argument("--ledger", metavar="FILE", help="append a line to FILE for each finished job")


def _add_doctor_options(verify: argparse.ArgumentParser, repairing: argparse.ArgumentParser) -> None:
    verify.add_argument(
        "workflow", nargs="?", type=_workflow_id, metavar="WORKFLOW", help="its id (default: every file of the folder)"
    )
    repairing.add_argument(
        "workflow", type=_workflow_id, metavar="WORKFLOW", help="its id, as `list` or `verify` shows it"
    )
    choice = repairing.add_mutually_exclusive_group()
    choice.add_argument(
        "--merge-snapshot", action="store_true", help="merge a snapshot that another program wrote with the journal"
    )
    choice.add_argument("--without-snapshot", action="store_true", help="rebuild the record from the journal alone")
    repairing.add_argument(
        "--prefer", choices=("journal", "snapshot"), help="which side wins where both changed a step or the state"
    )
    for command, text in ((verify, _VERIFY_HELP), (repairing, _REPAIR_HELP)):
        command.add_argument("--json", action="store_true", help="print JSON")
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = text


def _workflow_id(text: str) -> str:
    try:
        return check_key(text, "WORKFLOW")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds) or seconds < 0:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"not a count: {text!r}")
    return count


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([dhms])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"not an age: {text!r}; use 2d, 12h, 30m or 90s")
    return int(found[1]) * _AGES[found[2]]
