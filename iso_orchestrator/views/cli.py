"""The command line: `iso-orchestrator`, or `python -m iso_orchestrator`."""

from __future__ import annotations

import argparse
import io
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from iso_orchestrator import (
    FileStore,
    OrchestratorError,
    StoreError,
    Workflow,
    WorkflowUsageError,
    __version__,
    delete_workflow,
    open_workflow,
    read_workflow_record,
)
from iso_orchestrator.checks import check_key, escape_terminal
from iso_orchestrator.codec import record_to_json
from iso_orchestrator.examples import demo
from iso_orchestrator.record.history import History, Outcome, StepHistory
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import Store, default_root
from iso_orchestrator.store.maintenance import RepairOptions
from iso_orchestrator.system.clock import SystemClock, sleep
from iso_orchestrator.views import doctor, live
from iso_orchestrator.views.choice import choose_workflow, chosen_store, find_step
from iso_orchestrator.views.listing import is_listed, list_lines
from iso_orchestrator.views.logs import LogOptions, Stream, last_words, log_lines
from iso_orchestrator.views.overview import events_lines, head_lines, overview_lines, steps_lines
from iso_orchestrator.views.report import json_text, step_json, summary_json
from iso_orchestrator.views.screen import KeyAction, can_watch
from iso_orchestrator.views.screen import watch as watch_top
from iso_orchestrator.views.step_report import step_lines
from iso_orchestrator.views.terminal import Terminal
from iso_orchestrator.views.top import Looked, top_lines
from iso_orchestrator.views.watching import watch
from iso_orchestrator.views.words import exit_code, joined, steps_of

STEP_HELP = "its name, its number `#34`, a name as `show` cut it, or a pattern that one step matches"

_TOP_KEYS: dict[str, KeyAction] = {}  # of `top`, for the step that is chosen, besides its own
_TOP_LINES = 100  # of `top` in a pipe: what has no room is counted
_CLEAR = "\x1b[H\x1b[J"
_AGES = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1), "s": timedelta(seconds=1)}


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
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the encoding may lack characters of an id
    try:
        if options.store and not options.has_store:
            options.refuse("--store is not for this command, which works on a folder")
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
    store, now, code = _store(options), SystemClock().now(), 0
    found = list[tuple[Projection, History]]()
    for projection in store.list():
        if isinstance(projection, StoreError):
            code = _fail(str(projection))
            continue
        history = live.history_as_of(store, projection, now)
        if is_listed(history, failed=options.failed, running=options.running, since=options.since, now=now):
            found.append((projection, history))
    if options.json:
        lines = [{**summary_json(one.summary()), "isAlive": history.is_alive} for one, history in found]
        print(json_text(lines))
    elif found:
        _print(list_lines([history for _, history in found], Terminal.of()))
    else:
        print(f"no workflows in {escape_terminal(store.display_name)}")
    return code


def _show(options: argparse.Namespace) -> int:
    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow, options.step])
    projection = live.read(store, workflow_id)
    history = live.history_as_of(store, projection)
    if step is not None:
        _show_step(options, projection, history, find_step(history, step))
    elif options.attempt is not None or options.result:
        raise WorkflowUsageError("--attempt and --result are for a step: show WORKFLOW STEP")
    elif options.json:
        print(json_text(record_to_json(projection.record(is_alive=history.is_alive))))
    else:
        _print(_shown(options, store, projection, history))
    return exit_code(history) if options.exit_status else 0


def _shown(options: argparse.Namespace, store: Store, projection: Projection, history: History) -> list[str]:
    terminal = Terminal.of()
    head = head_lines(history, terminal)
    parts = []
    if options.failed:
        failed = [step for step in steps_of(history) if step.outcome is Outcome.FAILED]
        parts += [step_lines(history, step, terminal, last_words(projection, step.name)) for step in failed] or [
            ["no step has failed"]
        ]
    if options.steps:
        parts.append(steps_lines(history, terminal))
    if options.events is not None:
        parts.append(events_lines(projection.events[-options.events :] if options.events else [], terminal))
    return (
        joined([head, *parts])
        if parts
        else overview_lines(projection, history, terminal, store.path_of(history.workflow_id))
    )


def _show_step(options: argparse.Namespace, projection: Projection, history: History, step: StepHistory) -> None:
    if options.result:
        if step.outcome is not Outcome.COMPLETED:
            raise WorkflowUsageError(f"step {step.name!r} has no result: it is {step.outcome.value}")
        print(json_text(step.result))
    elif options.json:
        print(json_text(step_json(step)))
    else:
        words = last_words(projection, step.name, options.attempt)
        _print(step_lines(history, step, Terminal.of(), words, options.attempt))


def _logs(options: argparse.Namespace) -> int:
    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow, options.step])
    if step is None:
        raise WorkflowUsageError("logs needs a step: logs WORKFLOW STEP; `show` lists the steps")
    name = find_step(live.read_history(store, workflow_id), step).name
    streams = options.streams or tuple(Stream)
    how = LogOptions(options.attempt, streams, is_raw=options.raw, is_followed=options.follow)
    for line in log_lines(store, workflow_id, name, how):
        print(line, flush=options.follow)
    return 0


def _top(options: argparse.Namespace) -> int:
    store = _store(options)
    if options.workflow is not None:
        live.read(store, options.workflow)  # raises for a mistyped id
    if not options.once and can_watch():
        watch_top(lambda: _look(store, options.workflow)[0], store, options.every or 1.0, _TOP_KEYS)
        return 0
    while True:
        found, errors = _look(store, options.workflow)
        terminal = Terminal.of()
        clear = _CLEAR if options.every is not None and terminal.can_set_columns else ""
        rows = terminal.height - 1 if sys.stdout.isatty() else _TOP_LINES
        print(clear + "\n".join(top_lines(found, terminal, rows=rows)), flush=True)
        for error in errors:
            _fail(str(error))
        if options.once or options.every is None:
            return 1 if errors else 0
        sleep(options.every)


def _look(store: Store, workflow_id: str | None) -> tuple[list[Looked], list[StoreError]]:
    found = store.list() if workflow_id is None else [live.read(store, workflow_id)]
    looked, errors = list[Looked](), list[StoreError]()
    for one in found:
        if isinstance(one, StoreError):
            errors.append(one)
        else:
            looked.append(Looked.of(store, one))
    return looked, errors


def _watch(options: argparse.Namespace) -> int:
    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow])
    if step is not None:
        live.read(store, step)  # raises: a workflow is meant
    return watch(store, workflow_id, options.timeout, lambda line: print(line, flush=True))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


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
    return chosen_store(options.store, options.dir)


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
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        _add_place(command, argparse.SUPPRESS)  # else it would hide one in front of the command
        command.set_defaults(run=run, has_store=False, refuse=command.error)
        return command

    def with_store(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = add(name, run, text)
        _add_store(command, argparse.SUPPRESS)
        command.set_defaults(has_store=True)
        return command

    _add_demo_options(add("demo", _demo, "run a batch of jobs that continues after Ctrl-C or a kill"))
    logs_ = with_store("logs", _logs, "print the output of a step's command")
    top_ = with_store("top", _top, "show the steps that run or wait now, and the limits in force")
    watch_ = with_store("watch", _watch, "wait until a workflow has ended; the exit code tells how")
    list_ = with_store("list", _list, "list the workflows, and change nothing")
    show = with_store("show", _show, "show a workflow or one of its steps, and change nothing")
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
    for command in (show, logs_, watch_):
        command.add_argument(
            "workflow", nargs="?", type=_workflow_id, metavar="WORKFLOW", help="its id (default: the only one)"
        )
    for command in (fold, reset, backup, delete):
        command.add_argument("workflow", type=_workflow_id, metavar="WORKFLOW", help="its id, as `list` shows it")
    for command in (show, logs_):
        command.add_argument("step", nargs="?", metavar="STEP", help=STEP_HELP)
        command.add_argument("--attempt", type=int, metavar="N", help="one attempt (default: the last one)")
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
    for stream, name in ((Stream.STDOUT, "output"), (Stream.STDERR, "error")):
        streams.add_argument(
            f"--{stream.name.lower()}",
            dest="streams",
            action="store_const",
            const=(stream,),
            help=f"standard {name} alone",
        )
    command.add_argument("--raw", action="store_true", help="print an agent's stream as it came, not as its words")
    command.add_argument("-f", "--follow", action="store_true", help="wait for more until the step has ended")


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
