"""The command line: `iso-orchestrator`, or `python -m iso_orchestrator`."""

from __future__ import annotations

import argparse
import io
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from iso_orchestrator import (
    FileStore,
    OrchestratorError,
    StoreError,
    Workflow,
    __version__,
    delete_workflow,
    open_workflow,
    read_workflow_record,
)
from iso_orchestrator.checks import check_key, escape_terminal
from iso_orchestrator.codec import record_to_json
from iso_orchestrator.examples import demo
from iso_orchestrator.record.model import Json, WorkflowSummary
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import Store, default_root, find_store, has_live_run, store_in_use
from iso_orchestrator.store.maintenance import RepairOptions
from iso_orchestrator.system.clock import SystemClock, sleep
from iso_orchestrator.views import doctor, live
from iso_orchestrator.views.report import json_text, record_text, status_text, summaries_text, summary_json
from iso_orchestrator.views.timeline_file import default_file, page_of, write_timeline

_CLEAR = "\x1b[H\x1b[J"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name. Default: those of this process.

    Returns:
        The exit code: 0; 1 if the command failed, and standard error says why; 130 after Ctrl-C.

    Raises:
        SystemExit: The usage was wrong (2), or help was asked for (0).
    """
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the encoding may lack characters of an id
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except OrchestratorError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
        return 130
    except BrokenPipeError:  # the reader, `| head` for example, has ended
        with suppress(BrokenPipeError):
            sys.stdout.close()  # else the interpreter prints an error when it flushes at exit
        return 0
    return code


def _fail(reason: str) -> int:
    print(f"iso-orchestrator: {escape_terminal(reason)}", file=sys.stderr)
    return 1


def _demo(options: argparse.Namespace) -> int:
    root = options.dir or default_root()
    if options.fresh:
        demo.start_over(root)
    return demo.run(root, pace=options.pace, ledger=options.ledger, command=_demo_command(options))


def _demo_command(options: argparse.Namespace) -> str:
    """Return the command that continues the demo, without --fresh, which would start over."""
    words = ["python", "-m", "iso_orchestrator"] if Path(sys.argv[0]).name == "__main__.py" else ["iso-orchestrator"]
    words.append("demo")
    if options.dir:
        words += ["--dir", options.dir]
    return escape_terminal(shlex.join(words))


def _list(options: argparse.Namespace) -> int:
    shown: list[tuple[WorkflowSummary, str]] = []
    lines: list[dict[str, Json]] = []
    code = 0
    store = _store(options)
    for found in store.list():
        if isinstance(found, StoreError):
            code = _fail(str(found))
        else:
            is_alive = has_live_run(store, found)
            summary = found.summary()
            shown.append((summary, status_text(found, SystemClock().now(), is_alive=is_alive)))
            lines.append({**summary_json(summary), "isAlive": is_alive})
    if options.json:
        print(json_text(lines))
    elif shown:
        print(summaries_text(shown))
    else:
        print(f"no workflows in {escape_terminal(store.display_name)}")
    return code


def _show(options: argparse.Namespace) -> int:
    store = _store(options)
    projection = live.read(store, options.workflow)
    is_alive = has_live_run(store, projection)
    if options.json:
        print(json_text(record_to_json(projection.record(is_alive=is_alive))))
    else:
        status = status_text(projection, SystemClock().now(), is_alive=is_alive)
        lives = partial(store.is_alive, options.workflow)
        print(record_text(projection, store.path_of(options.workflow), status, lives))
    return 0


def _logs(options: argparse.Namespace) -> int:
    for line in live.log_lines(_store(options), options.workflow, options.step, follow=options.follow):
        print(line, flush=options.follow)
    return 0


def _top(options: argparse.Namespace) -> int:
    store = _store(options)
    if options.workflow is not None:
        read_workflow_record(options.workflow, store=store)  # raises for a mistyped id
    while True:
        found = list(store.list())
        projections = [
            projection
            for projection in found
            if isinstance(projection, Projection) and options.workflow in (None, projection.workflow_id)
        ]
        errors = [error for error in found if isinstance(error, StoreError)] if options.workflow is None else []
        text = live.top_text(projections, SystemClock().now(), store)
        print(f"{_CLEAR if options.every is not None and sys.stdout.isatty() else ''}{text}", flush=True)
        for error in errors:
            _fail(str(error))
        if options.every is None:
            return 1 if errors else 0
        sleep(options.every)


def _timeline(options: argparse.Namespace) -> int:
    target = options.output or default_file(options.workflow)
    shown = {"utc": options.utc, "results": not options.no_results, "logs": not options.no_logs}
    if target == "-":
        print(page_of(live.read_history(_store(options), options.workflow), **shown), end="")
        return 0
    write_timeline(_store(options), options.workflow, target, **shown, every=options.every, opens=options.open)
    print(escape_terminal(target))
    return 0


def _fold(options: argparse.Namespace) -> int:
    store = _store(options)
    read_workflow_record(options.workflow, store=store)  # raises for a mistyped id, and creates nothing
    open_workflow(options.workflow, store=store).close()
    if not store.is_checkpointed(options.workflow):
        return _fail("other processes are using the workflow; the last of them to end writes the snapshot")
    print(f"the snapshot is complete: {escape_terminal(store.path_of(options.workflow))}")
    return 0


def _reset(options: argparse.Namespace) -> int:
    store = _store(options)
    read_workflow_record(options.workflow, store=store)  # raises for a mistyped id, and creates nothing
    workflow = Workflow(options.workflow, store=store)
    try:
        names = workflow.reset(options.step)
    finally:
        workflow.close()
    if not names:
        return _fail(f"no step has the name {options.step!r} or matches it; `show` lists the steps")
    for name in names:
        print(f"reset {escape_terminal(name)}")
    return 0


def _delete(options: argparse.Namespace) -> int:
    delete_workflow(options.workflow, store=_store(options))
    print(f"deleted {escape_terminal(options.workflow)}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    try:
        text, code = doctor.verify(_store(options), options.workflow, as_json=options.json)
    except OrchestratorError as error:
        _fail(str(error))
        return 3
    print(text)
    return code


def _repair(options: argparse.Namespace) -> int:
    if options.prefer and not options.merge_snapshot:
        options.refuse("--prefer is for --merge-snapshot")
    allowed = RepairOptions(options.merge_snapshot, options.prefer, options.without_snapshot)
    report = _store(options).repair(options.workflow, allowed)
    print(doctor.repaired_text(options.workflow, report, as_json=options.json))
    return 0


def _backup(options: argparse.Namespace) -> int:
    count = FileStore(options.dir).backup(options.workflow, options.file)
    print(f"{escape_terminal(options.file)} has {count} facts; `tar -xf` in another folder of workflows restores them")
    return 0


def _store(options: argparse.Namespace) -> Store:
    return store_in_use(find_store(options.store, options.dir))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iso-orchestrator",
        description="Show, check, repair and delete durable workflows.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        command.add_argument(
            "--dir",
            metavar="DIR",
            help="the folder of workflows (default: $ISO_ORCHESTRATOR_DIR, else .iso-orchestrator)",
        )
        command.set_defaults(run=run)
        return command

    def with_store(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = add(name, run, text)
        command.add_argument("--store", metavar="URL", help="the URL of a store, instead of a folder")
        return command

    _add_demo_options(add("demo", _demo, "run a batch of jobs that continues after Ctrl-C or a kill"))
    logs_ = with_store("logs", _logs, "print the output of a step's command")
    top_ = with_store("top", _top, "show the steps that run or wait now, and the limits in force")
    list_ = with_store("list", _list, "list the workflows, and change nothing")
    show = with_store("show", _show, "show a workflow's record, and change nothing")
    timeline = with_store(
        "timeline", _timeline, "write a picture of a workflow, with all of its details, as an HTML file"
    )
    fold = with_store("fold", _fold, "write everything that happened into the snapshot, for other programs to read")
    reset = with_store("reset", _reset, "forget steps, so that they run again")
    backup = add("backup", _backup, "copy a workflow into a tar file, also while processes use it")
    delete = with_store("delete", _delete, "delete a workflow that no process is using")
    _add_doctor_options(
        with_store("verify", _verify, "check every file, and change nothing"),
        with_store("repair", _repair, "recover the undamaged part of a workflow"),
    )
    for command in (list_, show):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (show, timeline, logs_, fold, reset, backup, delete):
        command.add_argument("workflow", type=_workflow_id, metavar="WORKFLOW", help="its id, as `list` shows it")
    _add_timeline_options(timeline)
    backup.add_argument("file", metavar="FILE", help="the new tar file")
    logs_.add_argument("step", metavar="STEP", help="the step's name, as `show` has it")
    logs_.add_argument("-f", "--follow", action="store_true", help="wait for more until the step has ended")
    top_.add_argument(
        "workflow", nargs="?", type=_workflow_id, metavar="WORKFLOW", help="its id (default: all of the folder)"
    )
    top_.add_argument("--every", type=_seconds, metavar="SECONDS", help="repeat at this interval, until Ctrl-C")
    reset.add_argument("step", metavar="NAME_OR_PATTERN", help="a step's name, or a pattern such as 'apply:*'")
    return parser


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


def _add_timeline_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", metavar="FILE", help="default: the workflow's id and .html; - is stdout")
    command.add_argument("--open", action="store_true", help="open it in a browser")
    command.add_argument("--utc", action="store_true", help="show times in UTC instead of this machine's zone")
    command.add_argument(
        "--every",
        type=_seconds,
        metavar="SECONDS",
        help="write it again at this interval, until the workflow has ended",
    )
    command.add_argument("--no-results", action="store_true", help="leave out what steps returned, for others to read")
    command.add_argument("--no-logs", action="store_true", help="leave out the last words and the paths of logs")


def _add_doctor_options(verify: argparse.ArgumentParser, repairing: argparse.ArgumentParser) -> None:
    verify.add_argument(
        "workflow", nargs="?", type=_workflow_id, metavar="WORKFLOW", help="its id (default: every file of the folder)"
    )
    repairing.add_argument(
        "workflow", type=_workflow_id, metavar="WORKFLOW", help="its id, as `list` or `verify` shows it"
    )
    repairing.set_defaults(refuse=repairing.error)
    choice = repairing.add_mutually_exclusive_group()
    choice.add_argument(
        "--merge-snapshot", action="store_true", help="merge a snapshot that another program wrote with the journal"
    )
    choice.add_argument("--without-snapshot", action="store_true", help="rebuild the record from the journal alone")
    repairing.add_argument(
        "--prefer", choices=("journal", "snapshot"), help="which side wins where both changed a step or the state"
    )
    for command, text in ((verify, doctor.VERIFY_HELP), (repairing, doctor.REPAIR_HELP)):
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
