"""The history of a workflow, made from the events of its record. No I/O and no clock.

The events are read once, in their order. Records of earlier releases say less, and what they leave out is derived
where it is certain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from iso_orchestrator.record.details import Detail, Item, error_in, get, holder_in, item_in, time_in, usage_in
from iso_orchestrator.record.drafts import (
    AttemptDraft,
    BatchDraft,
    LimitDrafts,
    RunDraft,
    StepDraft,
    WaitDraft,
    history_of_step,
)
from iso_orchestrator.record.events import RUN_DIED
from iso_orchestrator.record.history import History, Outcome, WaitFor, WaitSpan
from iso_orchestrator.record.measures import measure, place
from iso_orchestrator.record.model import ErrorInfo, StepRecord, StepStatus

if TYPE_CHECKING:
    from iso_orchestrator.record.workflow_record import WorkflowRecord

_INTERRUPTIONS = {KeyboardInterrupt.__name__, SystemExit.__name__}


def history_of(
    record: WorkflowRecord, *, now: datetime, dead: Collection[str] = (), logs: Mapping[str, str] | None = None
) -> History:
    """Reconstruct what happened in a workflow.

    Args:
        record: Of the workflow. With `is_alive` False all its runs that have not ended are taken as dead.
        now: When that was so.
        dead: The steps that run or wait on record, but whose process is gone.
        logs: The log of the last command of each step: only records of this release have it in their events.
    """
    reader = _Reader(now)
    for event in record.events:
        handler = _HANDLERS.get(event.type)
        if handler is not None and isinstance(event.detail, dict | None):
            handler(reader, event.at, event.detail or {})
        reader.see(event.at, event.type)
    reader.end(record, frozenset(dead))
    return reader.history(record, logs or {})


class _Reader:
    """The drafts of a history, after the events so far."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._last_seen: datetime | None = None  # the last event
        self._count = 0  # of attempts
        self._runs: list[RunDraft] = []
        self._alive: list[RunDraft] = []
        self._recorded: dict[int, RunDraft] = {}  # by their numbers in details
        self._steps: dict[str, StepDraft] = {}
        self._limits = LimitDrafts()
        self._batches: dict[int, BatchDraft] = {}
        self._last_death: datetime | None = None
        self._keys = _Keys()

    def see(self, at: datetime, kind: str) -> None:
        """Note that a process was alive then: the only one that has a run, if no event says which."""
        self._last_seen = at if self._last_seen is None else max(self._last_seen, at)
        if kind != "mutex.acquired":
            self._keys.forget_last()
        if len(self._alive) == 1 and self._alive[0].recorded is None and kind != "steps.reset":
            self._alive[0].see(at)

    def begin_run(self, at: datetime, detail: Detail) -> None:
        recorded = get(detail, "run", int)
        if recorded is None and self._recorded:
            return  # no run of this release: the status was set by hand
        run = RunDraft(len(self._runs) + 1, at, at, recorded, detail)
        self._runs.append(run)
        self._alive.append(run)
        if recorded is not None:
            self._recorded[recorded] = run

    def end_run(self, at: datetime, detail: Detail) -> None:
        error = error_in(detail)
        run = self._ended_run(detail, error)
        if run is None:
            return
        has_died = detail.get("died") is True or (error is not None and error.name == RUN_DIED)
        if has_died:
            self._bury(run, time_in(detail, "lastSeen"), found_dead=at)
        else:
            self._end_run(run, at)
            run.outcome = outcome_of(error)
        run.error = error

    def _ended_run(self, detail: Detail, error: ErrorInfo | None) -> RunDraft | None:
        recorded = get(detail, "run", int)
        if recorded is not None:
            run = self._recorded.get(recorded)
            return run if run in self._alive else None
        # Without a number the status may have been set by hand, so that no run of this release has ended.
        found = [run for run in self._alive if run.recorded is None]
        if error is not None and error.name == RUN_DIED:
            found = [run for run in found if f"since {run.begun.isoformat()} " in error.message] or found
        return found[0] if found else None

    def _bury(self, run: RunDraft, last_seen: datetime | None, found_dead: datetime | None) -> None:
        run.has_died, run.found_dead = True, found_dead
        self._end_run(run, run.last_seen if last_seen is None else max(last_seen, run.last_seen))
        run.outcome, self._last_death = Outcome.INTERRUPTED, run.ended

    def _end_run(self, run: RunDraft, at: datetime) -> None:
        run.ended = at = max(run.begun, at)
        self._alive.remove(run)
        for step in run.steps.values():
            step.interrupt(at)
        for batch in run.batches.values():
            batch.ended = max(batch.begun, at)
        run.steps.clear()

    def begin_step(self, at: datetime, detail: Detail) -> None:
        step = self._step_of(detail)
        if step is None:
            return
        run = self._run_of(detail)
        if step.attempt is not None:
            step.interrupt(self._left(step, step.attempt, at))
        waited = step.end_wait(at)
        self._count += 1
        number = get(detail, "attempt", int) or len(step.attempts) + 1
        attempt = AttemptDraft(at, step.name, number, run, order=self._count)
        if waited is not None and waited.kind is WaitFor.BACKOFF and waited.attempt is not None:
            attempt.after = waited.attempt
        parent = self._steps.get(get(detail, "parent", str) or "")
        attempt.inside = None if parent is None else parent.attempt
        for wait in reversed(step.waits):
            if wait.attempt is not None:
                break
            wait.attempt = attempt
        self._keys.take(step)
        step.attempt = attempt
        step.attempts.append(attempt)
        step.is_reset, step.detail, step.retry_at = False, detail, None
        self._hold(step, run, at)

    def _left(self, step: StepDraft, attempt: AttemptDraft, at: datetime) -> datetime:
        """When the process of an attempt died or left it, which no event tells, since the next one began at *at*."""
        seen = self._last_death if step.run is None else step.run.last_seen
        return at if seen is None or seen < attempt.begun else min(at, seen)

    def complete_step(self, at: datetime, detail: Detail) -> None:
        self._end_attempt(at, detail, Outcome.COMPLETED)

    def fail_step(self, at: datetime, detail: Detail) -> None:
        self._end_attempt(at, detail, outcome_of(error_in(detail)))

    def retry_step(self, at: datetime, detail: Detail) -> None:
        attempt = self._end_attempt(at, detail, Outcome.RETRIED)
        if attempt is not None:
            step = self._steps[attempt.step]
            step.retry_at = time_in(detail, "retryAt")
            self._begin_wait(step, attempt.run, WaitDraft(step.name, WaitFor.BACKOFF, at, attempt, until=step.retry_at))

    def limit_step(self, at: datetime, detail: Detail) -> None:
        attempt = self._end_attempt(at, detail, Outcome.RETRIED)
        until, key = time_in(detail, "until"), get(detail, "limitKey", str)
        if attempt is None or until is None:
            return
        attempt.limit_until, attempt.limit_key = until, key
        met_by = self._limits.meet(attempt.step, key, at, until)
        step = self._steps[attempt.step]
        wait = WaitDraft(step.name, WaitFor.LIMIT, at, attempt, until=until, key=key, met_by=met_by)
        self._begin_wait(step, attempt.run, wait)

    def wait_step(self, at: datetime, detail: Detail) -> None:
        step = self._step_of(detail)
        if step is None:
            return
        attempt = step.attempts[-1] if step.attempts else None
        if detail.get("for") == "process":
            step.onlookers.append(WaitDraft(step.name, WaitFor.PROCESS, at, attempt, holder=holder_in(detail)))
            step.waits.append(step.onlookers[-1])
        elif step.attempt is None:
            key, until = get(detail, "limitKey", str), time_in(detail, "until")
            met_by = self._limits.met_by(key)
            wait = WaitDraft(step.name, WaitFor.LIMIT, at, attempt, until=until, key=key, met_by=met_by)
            self._begin_wait(step, self._run_of(detail), wait)

    def wait_for_key(self, at: datetime, detail: Detail) -> None:
        key = get(detail, "key", str)
        if key is not None:
            wait = WaitDraft("", WaitFor.KEY, at, None, key=key, holder=holder_in(detail))
            self._keys.wait(self._user_of(detail), item_in(detail), wait)

    def acquire_key(self, at: datetime, detail: Detail) -> None:
        key = get(detail, "key", str)
        if key is not None:
            since, granted = time_in(detail, "since"), time_in(detail, "granted")
            self._keys.acquire(self._user_of(detail), item_in(detail), key, since or at, granted or at)

    def release_key(self, _at: datetime, detail: Detail) -> None:
        self._keys.release(get(detail, "key", str) or "")

    def begin_batch(self, at: datetime, detail: Detail) -> None:
        number = get(detail, "batch", int)
        if number is not None:
            run = self._run_of(detail)
            batch = self._batches[number] = BatchDraft(number, at, run, detail)
            if run is not None:
                run.see(at)
                run.batches[number] = batch

    def end_batch(self, at: datetime, detail: Detail) -> None:
        batch = self._batches.get(get(detail, "batch", int) or 0)
        if batch is not None:
            batch.ended, batch.counts = max(batch.begun, at), detail
            for step in batch.items.values():
                step.end_wait(at)
            if batch.run is not None:
                batch.run.see(at)
                batch.run.batches.pop(batch.number, None)

    def interrupt_step(self, at: datetime, detail: Detail) -> None:
        step = self._known(detail)
        if step is not None:
            last_seen = at if step.run is None else step.run.last_seen
            step.interrupt(time_in(detail, "lastSeen") or last_seen)

    def abandon_step(self, at: datetime, detail: Detail) -> None:
        step = self._known(detail)
        if step is not None:
            step.end_attempt(at, Outcome.INTERRUPTED)
            if step.run is not None:
                step.run.see(at)
            if step.wait is not None and step.wait.kind is WaitFor.BACKOFF:
                step.end_wait(at)  # one for a limit goes on, in an item of a `for_each` that has no worker

    def reset_steps(self, at: datetime, detail: Detail) -> None:
        names = detail.get("steps")
        for name in names if isinstance(names, list) else ():
            step = self._steps.get(name) if isinstance(name, str) else None
            if step is not None:
                step.interrupt(at)
                step.is_reset = True
                self._limits.lift(step, at)

    def begin_command(self, _at: datetime, detail: Detail) -> None:
        step = self._known(detail)
        if step is not None and step.attempt is not None:
            step.attempt.log = get(detail, "log", str)

    def end(self, record: WorkflowRecord, dead: frozenset[str]) -> None:
        """End what the record has as running, and what no process does any more."""
        if not record.is_alive:
            for run in list(self._alive):
                self._bury(run, None, found_dead=None)
        for step in self._steps.values():
            known = record.steps.get(step.name)
            is_over = known is None or (step.attempt is not None and known.status is not StepStatus.RUNNING)
            if step.name in dead or (is_over and step.attempts):
                last_seen = self._last_seen if step.run is None else step.run.last_seen
                step.interrupt(last_seen or self._now)
        for batch in self._batches.values():
            if batch.ended is None and batch.run is None and not any(map(StepDraft.is_busy, batch.items.values())):
                batch.ended = self._last_seen
        for name, known in record.steps.items():
            if name not in self._steps:
                self._add_without_events(known)

    def history(self, record: WorkflowRecord, logs: Mapping[str, str]) -> History:
        attempts = [attempt for step in self._steps.values() for attempt in step.attempts]
        for step in self._steps.values():
            for wait in step.waits:
                if wait.kind is WaitFor.BACKOFF and wait.attempt is not None:
                    wait.attempt.held_until = wait.ended or self._now
        place(attempts, self._now)
        steps = tuple(
            [history_of_step(step, record.steps.get(name), logs.get(name)) for name, step in self._steps.items()]
        )
        runs = tuple([run.span() for run in self._runs])
        batches = tuple([batch.finished() for batch in self._batches.values()])
        gaps, totals = measure(runs, steps, batches, self._now)
        return History(
            record.workflow_id,
            record.status,
            record.created_at,
            record.updated_at,
            self._now,
            record.is_alive,
            runs,
            steps,
            tuple(self._limits.spans),
            batches,
            gaps,
            totals,
            state=record.state,
            last_error=record.last_error,
            item_waits=tuple(self._item_waits()) if record.is_alive else (),
        )

    def _item_waits(self) -> Iterator[WaitSpan]:
        for (number, index), wait in self._keys.pending():
            batch = self._batches.get(number)
            if batch is not None and batch.ended is None:
                wait.step = f"{batch.name}[{index}]"
                yield wait.span()

    def _end_attempt(self, at: datetime, detail: Detail, outcome: Outcome) -> AttemptDraft | None:
        step = self._known(detail)
        if step is None:
            return None
        step.end_wait(at)
        attempt = step.end_attempt(at, outcome, get(detail, "attempt", int))
        if attempt is not None:
            attempt.error, attempt.usage = error_in(detail), usage_in(detail)
            if outcome is not Outcome.RETRIED:
                step.dismiss(at)
            if attempt.run is not None:
                attempt.run.steps.pop(step.name, None)
                attempt.run.see(at)
        return attempt

    def _begin_wait(self, step: StepDraft, run: RunDraft | None, wait: WaitDraft) -> None:
        if step.wait is not None and step.wait.kind is not wait.kind:
            step.end_wait(wait.begun)
        if step.wait is None:
            step.wait = wait
            step.waits.append(wait)
        self._hold(step, run, wait.begun)

    def _hold(self, step: StepDraft, run: RunDraft | None, at: datetime) -> None:
        if step.run is not run and step.run is not None:
            step.run.steps.pop(step.name, None)
        step.run = run
        if run is not None and run.ended is None:
            run.steps[step.name] = step
            run.see(at)

    def _known(self, detail: Detail) -> StepDraft | None:
        name = detail.get("step")
        return self._steps.get(name) if isinstance(name, str) else None

    def _user_of(self, detail: Detail) -> StepDraft | None:
        """The step of the event of a key: that of the item, or the one whose body uses it."""
        item = item_in(detail)
        if item is None:
            return self._known(detail)
        return self._batches[item[0]].items.get(item[1]) if item[0] in self._batches else None

    def _step_of(self, detail: Detail) -> StepDraft | None:
        """The step of an event, which may be the first about it."""
        name = detail.get("step")
        if not isinstance(name, str):
            return None
        step = self._steps.get(name)
        if step is None:
            step = self._steps[name] = StepDraft(name, len(self._steps) + 1)
        item = item_in(detail)
        if item is not None and step.item != item:
            step.item = item
            if item[0] in self._batches:
                self._batches[item[0]].items.setdefault(item[1], step)
            self._keys.adopt(step)
        return step

    def _run_of(self, detail: Detail) -> RunDraft | None:
        recorded = get(detail, "run", int)
        if recorded is not None:
            return self._recorded.get(recorded)
        if "pid" in detail or len(self._alive) != 1 or self._alive[0].recorded is not None:
            return None
        return self._alive[0]

    def _add_without_events(self, known: StepRecord) -> None:
        """Add a step that another program wrote without its events."""
        step = self._steps[known.name] = StepDraft(known.name, len(self._steps) + 1)
        if known.started_at is None:
            return
        attempt = AttemptDraft(known.started_at, known.name, known.attempts, None)
        step.attempts.append(attempt)
        outcome = Outcome.COMPLETED if known.status is StepStatus.COMPLETED else outcome_of(known.error)
        attempt.outcome = Outcome.INTERRUPTED if known.status is StepStatus.RUNNING else outcome
        attempt.ended = max(known.started_at, known.completed_at or known.updated_at)
        attempt.error = known.error


class _Keys:
    """Which step ran under which mutex key, and who waited for one."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, Item | str | None], WaitDraft] = {}  # those that go on
        self._pending: dict[Item, list[WaitDraft]] = {}  # of items whose steps have not begun
        self._of_items: dict[Item, str] = {}
        self._last: str | None = None  # the key that the last event acquired, in records of earlier releases
        self._unclaimed: set[str] = set()
        self._claims: dict[str, StepDraft] = {}

    def wait(self, step: StepDraft | None, item: Item | None, wait: WaitDraft) -> None:
        self._waits[wait.key or "", _user(step, item)] = wait
        if step is not None:
            wait.step, wait.attempt = step.name, step.attempt
            step.waits.append(wait)
        elif item is not None:
            self._pending.setdefault(item, []).append(wait)

    def acquire(self, step: StepDraft | None, item: Item | None, key: str, since: datetime, granted: datetime) -> None:
        wait = self._waits.pop((key, _user(step, item)), None)
        if wait is None and since < granted:
            self.wait(step, item, wait := WaitDraft("", WaitFor.KEY, since, None, key=key))
            del self._waits[key, _user(step, item)]
        if wait is not None:
            wait.begun, wait.ended = min(since, wait.begun), max(since, granted)
        if item is not None:
            self._of_items[item] = key
        elif step is not None:
            step.key = step.key or key
        else:
            self._last = key
            self._unclaimed.add(key)

    def forget_last(self) -> None:
        """Note that the next event is not the first one after that of a key."""
        self._last = None

    def pending(self) -> Iterator[tuple[Item, WaitDraft]]:
        """The waits that go on of items whose steps have not begun."""
        return ((item, wait) for item, waits in self._pending.items() for wait in waits if wait.ended is None)

    def adopt(self, step: StepDraft) -> None:
        """Give a step what its item has waited for."""
        if step.item is not None:
            for wait in self._pending.pop(step.item, ()):
                wait.step = step.name
                step.waits.append(wait)

    def take(self, step: StepDraft) -> None:
        """Note that a step begins: under the key of its item.

        In records of earlier releases it is that which the event before acquired, if all others that are held belong to
        other steps, and if the step ends before it is released. Nothing else is certain.
        """
        if step.item is not None:
            step.key = self._of_items.get(step.item, step.key)
        elif self._last is not None and self._unclaimed == {self._last}:
            self._claims[self._last] = step
            self._unclaimed.clear()

    def release(self, key: str) -> None:
        self._unclaimed.discard(key)
        step = self._claims.pop(key, None)
        if step is not None and not step.is_busy():
            step.key = key


def _user(step: StepDraft | None, item: Item | None) -> Item | str | None:
    return step.name if item is None and step is not None else item


_HANDLERS: dict[str, Callable[[_Reader, datetime, Detail], None]] = {
    "workflow.running": _Reader.begin_run,
    "workflow.completed": _Reader.end_run,
    "workflow.failed": _Reader.end_run,
    "step.started": _Reader.begin_step,
    "step.completed": _Reader.complete_step,
    "step.failed": _Reader.fail_step,
    "step.retrying": _Reader.retry_step,
    "step.limited": _Reader.limit_step,
    "step.waiting": _Reader.wait_step,
    "step.interrupted": _Reader.interrupt_step,
    "step.abandoned": _Reader.abandon_step,
    "steps.reset": _Reader.reset_steps,
    "command.begun": _Reader.begin_command,
    "mutex.waiting": _Reader.wait_for_key,
    "mutex.acquired": _Reader.acquire_key,
    "mutex.released": _Reader.release_key,
    "batch.started": _Reader.begin_batch,
    "batch.ended": _Reader.end_batch,
}


def outcome_of(error: ErrorInfo | None) -> Outcome:
    """What comes of a run or step that ended with *error*."""
    if error is None:
        return Outcome.COMPLETED
    return Outcome.INTERRUPTED if error.name in _INTERRUPTIONS else Outcome.FAILED
