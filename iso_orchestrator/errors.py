"""The errors: one class for each condition, derived from the builtin exception that a caller would catch.

An error is an attrs class: its fields are its attributes and its positional arguments. attrs passes them on to
`BaseException`, so that errors can be pickled and copied. `slots=False`, since classes with slots of their own cannot
share a subclass, as `CommandTimeoutError` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from iso_orchestrator.checks import check_key

if TYPE_CHECKING:
    from iso_orchestrator.commands.model import CommandResult
    from iso_orchestrator.record.model import ErrorInfo


class OrchestratorError(Exception):
    """The root of all errors of this package."""

    _message: ClassVar[str | None] = None  # a template over the fields; None: the text that the error was made of

    def __str__(self) -> str:
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


@attrs.define(slots=False)
class DeadlockError(WorkflowUsageError):
    """Steps, mutexes, items or threads of this process wait for each other; `circle` tells of each one in words.

    One of those that wait gets it, so that the others can go on.
    """

    circle: tuple[str, ...]
    advice: str = (
        "enter mutexes in one order everywhere, and hold nothing that a step, for_each or thread needs that is "
        "waited for"
    )

    def __str__(self) -> str:
        return f"{' -> '.join(self.circle)}: these wait for each other, which would never end; {self.advice}"


@attrs.define(slots=False)
class StepNameError(OrchestratorError, TypeError):
    """A call of a step cannot be given a faithful name."""

    _message = "step {step_name!r}: {reason}"
    step_name: str
    reason: str


class DuplicateStepError(StepNameError, ValueError):
    """Two different functions claim one step name."""


@attrs.define(slots=False)
class StepTimeoutError(OrchestratorError, TimeoutError):
    """One attempt at a step took longer than its `timeout`, in seconds."""

    _message = (
        "step {step_name!r} took longer than its timeout of {timeout:g} s. Its thread cannot be killed and may still "
        "run; its result is dropped. Raise timeout=, or make the body end by itself"
    )
    step_name: str
    timeout: float


@attrs.define(slots=False)
class SerializationError(OrchestratorError, TypeError):
    """A value cannot be recorded without loss; `place` is the place in the value, such as `$.jobs[3].at`."""

    _message = "{subject} cannot be recorded as JSON without loss: at {place}: {reason}"
    subject: str
    place: str
    reason: str


@attrs.define(slots=False)
class StepFailedError(OrchestratorError):
    """The step failed in another process."""

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
    started again waits only for the rest. Other steps with the same key do not start before that time.

    Args:
        until: When to try again; an aware datetime.
        key: The name of the limited resource, for all steps with this `limit_key`; default: this step alone.

    Raises:
        TypeError: *until* is no datetime, or *key* no str.
        ValueError: *until* is naive.

    Example:
        >>> from datetime import UTC, timedelta
        >>> Limited(datetime.now(UTC) + timedelta(hours=1), "some-api").key
        'some-api'
    """

    until: datetime = attrs.field(converter=_aware_utc)
    key: str | None = attrs.field(default=None, converter=_limit_key)

    def __str__(self) -> str:
        return f"{self.key or 'the step'} is limited until {self.until.isoformat(timespec='seconds')}"


@attrs.define(slots=False)
class StepRejectedError(OrchestratorError):
    """`accept` refused the result of a step."""

    _message = (
        "step {step_name!r}: accept() refused the result {result!r:.200}, so it is not recorded; call the step again, "
        "or let retry= do that"
    )
    step_name: str
    result: Any


@attrs.define(slots=False)
class StepInterruptedError(OrchestratorError):
    """A run died during a step with `if_interrupted="fail"`, so that the outcome of the step is unknown."""

    _message = (
        "step {step_name!r} was interrupted in attempt {attempt} and must not run twice: find out whether it took "
        "effect, then let it run again with `workflow.reset({step_name!r})`"
    )
    step_name: str
    attempt: int


@attrs.define(slots=False)
class CommandError(OrchestratorError):
    """The command of a step ended with an exit code that is no success; `result` has its output."""

    step_name: str
    result: CommandResult[Any]

    def __str__(self) -> str:
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

    def __str__(self) -> str:
        run = self.result.parsed
        return (
            f"step {self.step_name!r}: {run.agent} {_OUTCOMES.get(run.outcome, run.outcome)}: {run.reason}. "
            f"Its output is in {self.result.log_path}. Remove the cause and call the step again"
        )


_OUTCOMES = {
    "empty": "gave an empty answer",
    "refused": "was refused",
    "limited": "met a usage limit that ends at an unknown time",
    "failed": "failed",
}


@attrs.define(slots=False)
class CommandTimeoutError(CommandError, StepTimeoutError):
    """The command of a step took longer than its `timeout`, in seconds; it and all its processes were ended."""

    step_name: str
    timeout: float
    result: CommandResult[Any]

    def __str__(self) -> str:
        return self._describe(
            f"took longer than its timeout of {self.timeout:g} s and was ended",
            "Call the step again, with a longer timeout= if it needs the time",
        )


class CommandIdleError(CommandTimeoutError):
    """The command of a step printed nothing for its idle timeout, in seconds; it and all its processes were ended."""

    def __str__(self) -> str:
        return self._describe(
            f"printed nothing for {self.timeout:g} s and was ended",
            "Call the step again, with a longer idle_timeout= if it works silently",
        )


@attrs.define(slots=False)
class CommandStartError(OrchestratorError, OSError):
    """The command of a step could not start: no such program or folder, no permission, or arguments too long."""

    _message = "step {step_name!r}: cannot start {program!r:.80}: {reason}"
    step_name: str
    program: str
    reason: str


@attrs.define(slots=False)
class CommandLeftoverError(OrchestratorError, RuntimeError):
    """Processes of an earlier command could not be ended, or an unidentified one still writes to `log_path`."""

    pids: tuple[int, ...]
    seconds: float
    log_path: str | None = None

    def __str__(self) -> str:
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

    workflow_id: str
    pid: int | None
    host: str | None
    since: datetime | None
    what: str = "the workflow"

    def __str__(self) -> str:
        process = describe_process(self.pid, self.host, self.since)
        return f"workflow {self.workflow_id!r}: {self.what} is in use by {process}; wait until it ends, or end it"


@attrs.define(slots=False)
class MutexTimeoutError(OrchestratorError, TimeoutError):
    """A mutex was not free in time; pid, host and since describe its holder, where they are known."""

    key: str
    timeout: float
    pid: int | None
    host: str | None
    since: datetime | None

    def __str__(self) -> str:
        return (
            f"mutex {self.key!r} was not free within {self.timeout:g} s: it is held by "
            f"{describe_process(self.pid, self.host, self.since)}, and is free when that process ends"
        )


@attrs.define(slots=False)
class LeaseConflictError(OrchestratorError):
    """Another holder has the lease, and it has not expired."""

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

    _message = (
        "lease {lease_key!r} was lost: token {token} was followed by {current_token}. Work done since then is not "
        "recorded: take the lease again and start over"
    )
    lease_key: str
    token: int
    current_token: int


class StoreError(OrchestratorError):
    """The store cannot do what was asked."""


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
    """Another program changed the snapshot while the journal held facts that go with the old one."""

    _message = (
        "{path} was changed by another program while {journal_path} held newer facts; both are untouched. "
        "`iso-orchestrator repair WORKFLOW --merge-snapshot` makes one record of both and keeps copies; "
        "or put back the snapshot that the journal belongs to"
    )
    path: str
    journal_path: str


@attrs.define(slots=False)
class FormatVersionError(StoreError):
    """A newer release wrote the file."""

    _message = "{path} has {found}, which this release cannot read: upgrade iso-orchestrator"
    path: str
    found: str


def describe_process(pid: int | None, host: str | None, since: datetime | None) -> str:
    """Name a process in a message, as far as it is known."""
    start = f" since {since.isoformat(timespec='seconds')}" if since else ""
    return f"process {pid or 'unknown'} on {host or 'an unknown host'}{start}"


@contextmanager
def suppressed_as_note(error: BaseException | None, what: str) -> Iterator[None]:
    """Attach an error raised inside the `with` to *error* as a note, so that cleanup never hides the original error.

    Args:
        error: The original exception; None: the error inside is raised as usual.
        what: What the code inside does, for the note.
    """
    try:
        yield
    except OrchestratorError as trouble:
        if error is None:
            raise
        error.add_note(f"iso-orchestrator: {what}: {trouble}")
