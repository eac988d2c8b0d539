"""The errors: one class for each condition, derived from the builtin exception that a caller would catch.

An error is an attrs class: its fields are its attributes and its positional arguments. attrs passes them on to
`BaseException`, so that errors can be pickled and copied. `slots=False`, since classes with slots of their own cannot
share a subclass, as `CommandTimeoutError` is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs

from iso_orchestrator.checks import check_key, escape_terminal
from iso_orchestrator.notes import describe_process

if TYPE_CHECKING:
    from iso_orchestrator.commands.model import CommandResult
    from iso_orchestrator.record.model import ErrorInfo


class OrchestratorError(Exception):
    """The root of all errors of this package.

    Its text drives no terminal, whatever a program printed or a file is called. The attributes are as they came.
    """

    code: ClassVar[str | None] = None
    """A short reason, for `ErrorInfo.code`: "command.exit"; the same in all releases."""
    _message: ClassVar[str | None] = None  # a template over the fields; None: the text that the error was made of

    def __str__(self) -> str:
        return escape_terminal(self._text())

    def _text(self) -> str:
        return super().__str__() if self._message is None else self._message.format_map(vars(self))


@attrs.define(slots=False)
class WorkflowNotFoundError(OrchestratorError, LookupError):
    """The root has no record of that workflow."""

    _message = "no workflow {workflow_id!r} in {root}: `iso-orchestrator list` shows all (--dir for another root)"
    workflow_id: str
    root: str


@attrs.define(slots=False)
class NoActiveWorkflowError(OrchestratorError, RuntimeError):
    """The function of a free decorator was called where no workflow is current."""

    _message = (
        "{what} needs a workflow: call it inside `with workflow:` or from a function that a workflow runs, "
        "or decorate with `@workflow.step`"
    )
    what: str


class WorkflowUsageError(OrchestratorError, RuntimeError):
    """A call that cannot work at this place, such as a run inside itself."""

    code = "workflow.usage"


@attrs.define(slots=False)
class DeadlockError(WorkflowUsageError):
    """Steps, mutexes, items or threads of this process wait for each other; `circle` tells of each one in words.

    One of those that wait gets it, so that the others can go on.
    """

    code = "deadlock"
    circle: tuple[str, ...]
    advice: str = (
        "enter mutexes in one order everywhere, and hold nothing that a step, for_each or thread needs that is "
        "waited for"
    )

    def _text(self) -> str:
        return f"{' -> '.join(self.circle)}: these wait for each other, which would never end; {self.advice}"


@attrs.define(slots=False)
class StepNameError(OrchestratorError, TypeError):
    """A call of a step cannot be given a faithful name."""

    code = "step.name"
    _message = "step {step_name!r}: {reason}"
    step_name: str
    reason: str


class DuplicateStepError(StepNameError, ValueError):
    """Two different functions claim one step name."""


@attrs.define(slots=False)
class StepTimeoutError(OrchestratorError, TimeoutError):
    """One attempt at a step took longer than its `timeout`, in seconds."""

    code = "step.timeout"
    _message = (
        "step {step_name!r} took longer than its timeout of {timeout:g} s. Its thread cannot be killed and may still "
        "run; its result is dropped. Raise timeout=, or make the body end by itself"
    )
    step_name: str
    timeout: float


@attrs.define(slots=False)
class SerializationError(OrchestratorError, TypeError):
    """A value cannot be recorded without loss; `place` is the place in the value, such as `$.jobs[3].at`.

    Attributes:
        value: What the step's body returned, so that paid work can be saved; None for an error of another kind.
    """

    code = "result.not_json"
    _message = "{subject} cannot be recorded as JSON without loss: at {place}: {reason}"
    subject: str
    place: str
    reason: str
    value: Any = attrs.field(init=False, default=None, repr=False, eq=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out a value that cannot be pickled: the error has to reach the parent of a pool's process."""
        import pickle

        kind, args, fields = cast("tuple[Any, ...]", super().__reduce__())
        try:
            pickle.dumps(self.value)
        except Exception:  # noqa: BLE001 - classes of users raise any error
            fields = {**fields, "value": None}
        return kind, args, fields


@attrs.define(slots=False)
class ResultMismatchError(SerializationError):
    """A recorded result does not fit the annotation of its step any more; nothing is lost."""

    code = "result.mismatch"
    _message = (
        "{subject}, as recorded, does not fit its annotation any more: at {place}: {reason}; mend the annotation, or "
        "let the step run again: give it another version=, or call workflow.reset()"
    )


@attrs.define(slots=False)
class StepFailedError(OrchestratorError):
    """The step failed in another process."""

    code = "step.failed_elsewhere"
    _message = (
        "step {step_name!r} failed in another process: {error.name}: {error.message}; call it again to run it here"
    )
    step_name: str
    error: ErrorInfo


def _aware_utc(until: datetime) -> datetime:
    if not isinstance(until, datetime):
        raise TypeError(f"Limited(until=...) takes a datetime, not {until!r:.80}")
    if until.tzinfo is None:
        raise ValueError("Limited(until=...) takes an aware datetime: use datetime.now(UTC) + timedelta(...)")
    try:
        return until.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"Limited(until=...) is out of range in UTC: {until}") from None


def _limit_key(key: str | None) -> str | None:
    return None if key is None else check_key(key, "Limited(key=...)")


@attrs.define(slots=False)
class Limited(OrchestratorError):  # noqa: N818 - the step has not failed: a resource is not available yet
    """Raise it in a step when something that the step needs has a usage limit until a known time.

    The attempt does not count. The workflow waits until that time and tries again. A workflow that is killed and
    started again waits only for the rest. Other steps with the same key do not start before that time. A limit of a
    second or less that the step meets again is waited for longer each time: 2 s, 4 s, and at most an hour. After
    `max_limited` limits in a row the error is raised.

    Args:
        until: When to try again; an aware datetime.
        key: The name of the limited resource, for all steps with this `limit_key`; default: this step alone.

    Attributes:
        in_a_row: How often in a row the step has met a limit, if that is a failure; else 0.

    Raises:
        TypeError: *until* is no datetime, or *key* no str.
        ValueError: *until* is naive.

    Example:
        >>> from datetime import UTC, timedelta
        >>> Limited(datetime.now(UTC) + timedelta(hours=1), "some-api").key
        'some-api'
    """

    code = "limited"
    until: datetime = attrs.field(converter=_aware_utc)
    key: str | None = attrs.field(default=None, converter=_limit_key)
    in_a_row: int = attrs.field(init=False, default=0, repr=False, eq=False)

    def _text(self) -> str:
        text = f"{self.key or 'the step'} is limited until {self.until.isoformat(timespec='seconds')}"
        if not self.in_a_row:
            return text
        cause = f": {self.__cause__}" if isinstance(self.__cause__, OrchestratorError) else ""
        return f"{text}, and the step has met {self.in_a_row} limits in a row, as many as max_limited allows{cause}"


@attrs.define(slots=False)
class StepRejectedError(OrchestratorError):
    """`accept` refused the result of a step."""

    code = "step.rejected"
    _message = (
        "step {step_name!r}: accept() refused the result {result!r:.200}, so it is not recorded; call the step again, "
        "or let retry= do that"
    )
    step_name: str
    result: Any = attrs.field(repr=lambda result: f"{result!r:.200}")


@attrs.define(slots=False)
class StepInterruptedError(OrchestratorError):
    """A run died during a step with `if_interrupted="fail"`, so that the outcome of the step is unknown."""

    code = "step.interrupted"
    _message = (
        "step {step_name!r} was interrupted in attempt {attempt} and must not run twice: find out whether it took "
        "effect, then let it run again with `workflow.reset({step_name!r})`"
    )
    step_name: str
    attempt: int


@attrs.define(slots=False)
class StoppedError(OrchestratorError):
    """`iso-orchestrator stop` has ended the command of a step. No attempt follows in this run."""

    code = "step.stopped"
    _message = "step {step_name!r} was stopped by `iso-orchestrator stop` (pid {pid}); the next run runs it again"
    step_name: str
    pid: int


@attrs.define(slots=False)
class CommandError(OrchestratorError):
    """The command of a step ended with an exit code that is no success; `result` has its output."""

    code = "command.exit"
    step_name: str
    result: CommandResult[Any]

    def _text(self) -> str:
        code = self.result.exit_code
        return self._describe(
            f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}",
            "Remove the cause and call the step again, or add the code to ok_codes=",
        )

    def _describe(self, end: str, advice: str) -> str:
        """How the command ended, its last line, and where all of its output is."""
        result = self.result
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        last = f"its last line is {lines[-1]!r:.200}" if lines else "it printed nothing"
        return (
            f"step {self.step_name!r}: {result.args[0]!r:.80} {end}; {last}. Its output is in {result.log_path}, "
            f"its standard error in {result.log_path}.stderr. {advice}"
        )


class AgentError(CommandError):
    """The run of an agent was no success, whatever its exit code; `result.parsed` has the outcome."""

    @property
    def code(self) -> str:  # type: ignore[override]  # it depends on the outcome
        """As of other errors: "agent.refused"."""
        return f"agent.{self.result.parsed.outcome}"

    def _text(self) -> str:
        run = self.result.parsed
        return (
            f"step {self.step_name!r}: {run.agent} {_OUTCOMES.get(run.outcome, run.outcome)}: {run.reason}. "
            f"Its output is in {self.result.log_path}. {_hint(run.outcome)}, and call the step again"
        )


def _hint(outcome: str) -> str:
    return "Permit it by args=, or its refusal by allow_refusals=" if outcome == "refused" else "Remove the cause"


_OUTCOMES = {
    "empty": "gave an empty answer",
    "refused": "was refused",
    "limited": "met a usage limit",
    "failed": "failed",
}


@attrs.define(slots=False)
class CommandLogError(CommandError):
    """The output of a step's command could not be logged, so that it failed or was ended; `reason` says why."""

    code = "command.log"
    step_name: str
    result: CommandResult[Any]
    reason: str

    def _text(self) -> str:
        return self._describe(
            "was ended, or failed, since its output could not be logged",
            f"The reason: {self.reason}; then call the step again",
        )


@attrs.define(slots=False)
class CommandTimeoutError(CommandError, StepTimeoutError):
    """The command of a step took longer than its `timeout`, in seconds; it and all its processes were ended."""

    code = "command.timeout"
    step_name: str
    timeout: float
    result: CommandResult[Any]

    def _text(self) -> str:
        return self._describe(
            f"took longer than its timeout of {self.timeout:g} s and was ended",
            "Call the step again, with a longer timeout= if it needs the time",
        )


class CommandIdleError(CommandTimeoutError):
    """The command of a step printed nothing for its idle timeout, in seconds; it and all its processes were ended."""

    code = "command.idle"

    def _text(self) -> str:
        return self._describe(
            f"printed nothing for {self.timeout:g} s and was ended",
            "Call the step again, with a longer idle_timeout= if it works silently",
        )


@attrs.define(slots=False)
class CommandStartError(OrchestratorError, OSError):
    """The command of a step could not start: no such program or folder, no permission, or arguments too long."""

    code = "command.start"
    _message = "step {step_name!r}: cannot start {program!r:.80}: {reason}"
    step_name: str
    program: str
    reason: str


@attrs.define(slots=False)
class CommandLeftoverError(OrchestratorError, RuntimeError):
    """Processes of an earlier command could not be ended, or an unidentified one still writes to `log_path`.

    `reason` says why they could not be searched for.
    """

    code = "command.leftover"
    pids: tuple[int, ...]
    seconds: float
    log_path: str | None = None
    reason: str | None = None

    def _text(self) -> str:
        if self.reason is not None:
            return f"processes of a command may still run: {self.reason}; then call the step again, which ends them"
        if self.log_path is not None:
            return (
                f"{self.log_path} is still open in another process that could not be identified: find it with "
                f"`fuser {self.log_path}`, end it, then call the step again"
            )
        some = ", ".join(map(str, self.pids[:10])) + (", ..." if len(self.pids) > 10 else "")
        return (
            f"{len(self.pids)} processes of a command still run after {self.seconds:g} s of killing them: {some}; end "
            "them (they belong to another user, hang in the kernel, or multiply faster than they die), then call the "
            "step again"
        )


@attrs.define(slots=False)
class WorkflowBusyError(OrchestratorError):
    """Another process uses the workflow, or the part of it that was asked for."""

    code = "workflow.busy"
    workflow_id: str
    pid: int | None
    host: str | None
    since: datetime | None
    what: str = "the workflow"

    def _text(self) -> str:
        process = describe_process(self.pid, self.host, self.since)
        return f"workflow {self.workflow_id!r}: {self.what} is in use by {process}; wait until it ends, or end it"


@attrs.define(slots=False)
class MutexTimeoutError(OrchestratorError, TimeoutError):
    """A mutex was not free in time; pid, host and since describe its holder, where they are known."""

    code = "mutex.timeout"
    key: str
    timeout: float
    pid: int | None
    host: str | None
    since: datetime | None

    def _text(self) -> str:
        return (
            f"mutex {self.key!r} was not free within {self.timeout:g} s: it is held by "
            f"{describe_process(self.pid, self.host, self.since)}, and is free when that process ends"
        )


@attrs.define(slots=False)
class LeaseConflictError(OrchestratorError):
    """Another holder has the lease, and it has not expired."""

    code = "lease.conflict"
    _message = (
        "lease {lease_key!r} is held by {current_holder!r} until {expires_at}; {holder!r} can take it after that, or "
        "when it is released"
    )
    lease_key: str
    holder: str
    current_holder: str
    expires_at: datetime


@attrs.define(slots=False)
class LeaseLostError(OrchestratorError):
    """The lease that fences this code has a newer token; nothing more is recorded from here."""

    code = "lease.lost"
    _message = (
        "lease {lease_key!r} was lost: token {token} was followed by {current_token}. Work done since then is not "
        "recorded: take the lease again and start over"
    )
    lease_key: str
    token: int
    current_token: int


class StoreError(OrchestratorError):
    """The store cannot do what was asked."""

    code = "store"


@attrs.define(slots=False)
class CorruptRecordError(StoreError):
    """A file is damaged in a way that no crash explains; `offset` is in bytes, `kept` says what is sound."""

    _message = (
        "{path} is damaged at byte {offset}: {reason}; {kept}. Restore the file from a copy, or let "
        "`iso-orchestrator repair WORKFLOW` save what is sound, or delete the workflow to start over"
    )
    path: str
    offset: int
    reason: str
    kept: str = "nothing was changed"


@attrs.define(slots=False)
class RecordConflictError(StoreError):
    """Another program changed the snapshot under a journal that goes with another one, or put back an older one."""

    _message = (
        "{path} does not go with {journal_path}: {reason}; both are untouched. Put back the snapshot that the journal "
        "belongs to, or let `iso-orchestrator repair WORKFLOW --merge-snapshot` make one record of both and keep copies"
    )
    path: str
    journal_path: str
    reason: str = "another program wrote or removed it while the journal held newer facts"


@attrs.define(slots=False)
class FormatVersionError(StoreError):
    """The file is as it was written, and cannot be read here: a newer release wrote it, or this process has a limit."""

    _message = (
        "{path} has {found}, which this process cannot read; nothing was changed: upgrade iso-orchestrator, or lift "
        "this process's limit if the reason names one"
    )
    path: str
    found: str


class StepChangedWarning(UserWarning):
    """A recorded result was returned which other code, or other arguments, made; a function is warned about once."""
