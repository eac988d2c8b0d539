"""What each command of the command line does: a function that takes its options and returns its exit code.

A function imports what it alone needs: all of that takes a sixth of a command's time to start.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from iso_orchestrator import (
    FileStore,
    OrchestratorError,
    StoreError,
    Workflow,
    WorkflowUsageError,
    delete_workflow,
    open_workflow,
    read_workflow_record,
)
from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.codec import record_to_json
from iso_orchestrator.record.history import History, Outcome, StepHistory
from iso_orchestrator.record.projection import Projection
from iso_orchestrator.store import Store, default_root
from iso_orchestrator.system.clock import SystemClock, sleep
from iso_orchestrator.views import live
from iso_orchestrator.views.choice import choose_workflow, chosen_store, find_step, find_steps
from iso_orchestrator.views.completion import SCRIPTS
from iso_orchestrator.views.exports import indented_json, step_json, summary_json
from iso_orchestrator.views.terminal import Terminal
from iso_orchestrator.views.words import exit_code, failed_steps, joined

if TYPE_CHECKING:
    from iso_orchestrator.views.top import Looked

_TOP_LINES = 100  # of `top` in a pipe: what has no room is counted
_CLEAR = "\x1b[H\x1b[J"


def fail(reason: str) -> int:
    """Say on standard error why a command failed; its exit code."""
    print(f"iso-orchestrator: {escape_terminal(reason)}", file=sys.stderr)
    return 1


def do_demo(options: argparse.Namespace) -> int:
    from iso_orchestrator.examples import demo

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


def do_list(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.listing import is_listed, list_lines

    store, now, code = _store(options), SystemClock().now(), 0
    found = list[tuple[Projection, History]]()
    for projection in store.list():
        if isinstance(projection, StoreError):
            code = fail(str(projection))
            continue
        history = live.history_as_of(store, projection, now)
        if is_listed(history, failed=options.failed, running=options.running, since=options.since, now=now):
            found.append((projection, history))
    if options.json:
        lines = [
            {**summary_json(one.summary(partial(store.is_alive, one.workflow_id))), "isAlive": history.is_alive}
            for one, history in found
        ]
        print(indented_json(lines))
    elif found:
        print_lines(list_lines([history for _, history in found], Terminal.of()))
    else:
        print(f"no workflows in {escape_terminal(store.display_name)}")
    return code


def do_show(options: argparse.Namespace) -> int:
    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow, options.step])
    projection = live.read(store, workflow_id)
    history = live.history_as_of(store, projection)
    if step is not None:
        _show_step(options, projection, history, find_step(history, step))
    elif options.attempt is not None or options.result:
        raise WorkflowUsageError("--attempt and --result are for a step: show WORKFLOW STEP")
    elif options.json:
        print(indented_json(record_to_json(projection.record(partial(store.is_alive, workflow_id)))))
    else:
        print_lines(_shown(options, store, projection, history))
    return exit_code(history) if options.exit_status else 0


def _shown(options: argparse.Namespace, store: Store, projection: Projection, history: History) -> list[str]:
    from iso_orchestrator.views.logs import last_words
    from iso_orchestrator.views.overview import events_lines, head_lines, overview_lines, steps_lines
    from iso_orchestrator.views.step_report import step_lines

    terminal = Terminal.of()
    head = head_lines(history, terminal)
    parts = []
    if options.failed:
        parts += [
            step_lines(history, step, terminal, last_words(projection, step.name)) for step in failed_steps(history)
        ] or [["no step has failed"]]
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
    from iso_orchestrator.views.logs import last_words
    from iso_orchestrator.views.step_report import step_lines

    if options.result:
        if step.outcome is not Outcome.COMPLETED:
            raise WorkflowUsageError(f"step {step.name!r} has no result: it is {step.outcome.value}")
        print(indented_json(step.result))
    elif options.json:
        print(indented_json(step_json(step)))
    else:
        words = last_words(projection, step.name, options.attempt)
        print_lines(step_lines(history, step, Terminal.of(), words, options.attempt))


def do_logs(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.logs import LogOptions, Stream, log_lines

    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow, options.step])
    if step is None:
        raise WorkflowUsageError("logs needs a step: logs WORKFLOW STEP; `show` lists the steps")
    name = find_step(live.read_history(store, workflow_id), step).name
    streams = (Stream[options.stream],) if options.stream else tuple(Stream)
    how = LogOptions(options.attempt, streams, is_raw=options.raw, is_followed=options.follow)
    for line in log_lines(store, workflow_id, name, how):
        print(line, flush=options.follow)
    return 0


def do_top(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.screen import KeyAction, can_watch, watch
    from iso_orchestrator.views.top import top_lines

    store = _store(options)
    if options.workflow is not None:
        live.read(store, options.workflow)  # raises for a mistyped id
    if not options.once and can_watch():
        keys = {"w": KeyAction("why", _why_now), "s": KeyAction("stop", _stop_now, is_asked=True)}
        watch(lambda: _look(store, options.workflow)[0], store, options.every or 1.0, keys)
        return 0
    while True:
        found, errors = _look(store, options.workflow)
        terminal = Terminal.of()
        clear = _CLEAR if options.every is not None and terminal.can_set_columns else ""
        rows = terminal.height - 1 if sys.stdout.isatty() else _TOP_LINES
        print(clear + "\n".join(top_lines(found, terminal, rows=rows)), flush=True)
        for error in errors:
            fail(str(error))
        if options.once or options.every is None:
            return 1 if errors else 0
        sleep(options.every)


def _why_now(store: Store, workflow_id: str, step: str, terminal: Terminal) -> Sequence[str]:
    from iso_orchestrator.views.why import why_lines

    projection = live.read(store, workflow_id)
    history = live.history_as_of(store, projection)
    return why_lines(projection, history, find_step(history, step), terminal)


def _stop_now(store: Store, workflow_id: str, step: str, terminal: Terminal) -> Sequence[str]:
    return terminal.lines(_stop_step(store, workflow_id, step))


def do_timeline(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.timeline_file import default_file, read_page, write_timeline

    store, workflow_id = _chosen(options)
    target = options.output or default_file(workflow_id)
    shown = {"utc": options.utc, "results": not options.no_results, "logs": not options.no_logs}
    if target == "-":
        print(read_page(store, workflow_id, **shown)[0], end="")
    else:
        write_timeline(store, workflow_id, target, **shown, every=options.every, opens=options.open)
        print(escape_terminal(target))
    return 0


def _look(store: Store, workflow_id: str | None) -> tuple[list[Looked], list[StoreError]]:
    from iso_orchestrator.views.top import Looked

    found = store.list() if workflow_id is None else [live.read(store, workflow_id)]
    looked, errors = list[Looked](), list[StoreError]()
    for one in found:
        if isinstance(one, StoreError):
            errors.append(one)
        else:
            looked.append(Looked.of(store, one))
    return looked, errors


def do_why(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.why import unknown, why_lines

    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow, options.step])
    if step is None:
        raise WorkflowUsageError("why needs a step: why WORKFLOW STEP; `show` lists the steps")
    projection = live.read(store, workflow_id)
    history = live.history_as_of(store, projection)
    if not find_steps(history, step):
        return fail(unknown(history, step))
    print_lines(why_lines(projection, history, find_step(history, step), Terminal.of()))
    return 0


def do_stop(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.stopping import stop_workflow

    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow, options.step])
    projection = live.read(store, workflow_id)
    if step is None:
        print_lines(map(escape_terminal, stop_workflow(store, projection, now=options.now)))
    else:
        name = find_step(live.history_as_of(store, projection), step).name
        print(escape_terminal(_stop_step(store, workflow_id, name)))
    return 0


def _stop_step(store: Store, workflow_id: str, name: str) -> str:
    from iso_orchestrator.views.stopping import stop_step

    workflow = Workflow(workflow_id, store=store)
    try:
        return stop_step(workflow._runtime, name)
    finally:
        workflow.close()


def do_prune(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.pruning import DEFAULT_AGE, Choice, prune_lines, readable, size_text, total

    store, terminal = _store(options), Terminal.of()
    age = options.older_than
    if age is None:
        age = DEFAULT_AGE if options.keep is None else timedelta()
    choice = Choice(age, options.keep or 0, options.logs, options.failed)
    histories = readable(store)
    found = [(history, store.size_of(history.workflow_id)) for history in choice.of(histories)]
    if choice.logs:
        found = [(history, size) for history, size in found if size.logs]
    if not found:
        others = 0 if choice.failed else len(attrs.evolve(choice, failed=True).of(histories))
        print("nothing to remove" + (f"; --failed means {others} with failures or interrupted" if others else ""))
        return 0
    print_lines(prune_lines(found, choice, terminal))
    size = size_text(total((size for _, size in found), choice))
    if not options.yes:
        print(f"\n{size} would be freed; --yes removes them")
        return 0
    for history, _ in found:
        if choice.logs:
            store.delete_logs(history.workflow_id)
        else:
            delete_workflow(history.workflow_id, store=store)
    print(f"\nremoved; {size} freed")
    return 0


def do_completion(options: argparse.Namespace) -> int:
    print(SCRIPTS[options.shell], end="")
    return 0


def do_export(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.exports import FORMATS
    from iso_orchestrator.views.timeline_file import write_file

    store, workflow_id = _chosen(options)
    parts = FORMATS[options.format](live.read_history(store, workflow_id))
    if options.output == "-":
        sys.stdout.writelines(parts)
    else:
        write_file(options.output, "".join(parts))
    return 0


def do_watch(options: argparse.Namespace) -> int:
    from iso_orchestrator.views.watching import watch

    store, workflow_id = _chosen(options)
    return watch(store, workflow_id, options.timeout, lambda line: print(line, flush=True))


def _chosen(options: argparse.Namespace) -> tuple[Store, str]:
    store = _store(options)
    workflow_id, step = choose_workflow(store, [options.workflow])
    if step is not None:
        live.read(store, step)  # raises: a workflow is meant
    return store, workflow_id


def print_lines(lines: Iterable[str]) -> None:
    """Print each line."""
    for line in lines:
        print(line)


def do_fold(options: argparse.Namespace) -> int:
    store = _store(options)
    read_workflow_record(options.workflow, store=store)  # raises for a mistyped id, and creates nothing
    open_workflow(options.workflow, store=store).close()
    if not store.is_checkpointed(options.workflow):
        return fail("other processes are using the workflow; the last of them to end writes the snapshot")
    print(f"the snapshot is complete: {escape_terminal(store.path_of(options.workflow))}")
    return 0


def do_reset(options: argparse.Namespace) -> int:
    store = _store(options)
    workflow_id, _ = choose_workflow(store, [options.workflow, options.step])
    history = live.read_history(store, workflow_id)  # raises for a mistyped id, and creates nothing
    workflow = Workflow(workflow_id, store=store)
    try:
        names = workflow.reset(options.step) if options.step[:1] != "#" else []
        if not names and find_steps(history, options.step):
            names = workflow.reset(find_step(history, options.step).name)  # its number, or a name as `show` cut it
    finally:
        workflow.close()
    if not names:
        return fail(f"no step has the name {options.step!r} or matches it; `show` lists the steps")
    for name in names:
        print(f"reset {escape_terminal(name)}")
    return 0


def do_delete(options: argparse.Namespace) -> int:
    delete_workflow(options.workflow, store=_store(options))
    print(f"deleted {escape_terminal(options.workflow)}")
    return 0


def do_verify(options: argparse.Namespace) -> int:
    from iso_orchestrator.views import doctor

    try:
        text, code = doctor.verify(_store(options), options.workflow, as_json=options.json)
    except OrchestratorError as error:
        fail(str(error))
        return 3
    print(text)
    return code


def do_repair(options: argparse.Namespace) -> int:
    from iso_orchestrator.store.maintenance import RepairOptions
    from iso_orchestrator.views import doctor

    if options.prefer and not options.merge_snapshot:
        options.refuse("--prefer is for --merge-snapshot")
    allowed = RepairOptions(options.merge_snapshot, options.prefer, options.without_snapshot)
    report = _store(options).repair(options.workflow, allowed)
    print(doctor.repaired_text(options.workflow, report, as_json=options.json))
    return 0


def do_backup(options: argparse.Namespace) -> int:
    count = FileStore(options.dir).backup(options.workflow, options.file)
    print(f"{escape_terminal(options.file)} has {count} facts; `tar -xf` in another folder of workflows restores them")
    return 0


def _store(options: argparse.Namespace) -> Store:
    return chosen_store(options.store, options.dir)
