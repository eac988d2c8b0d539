"""The errors: one class a condition, each derived from the builtin that one would catch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from iso_orchestrator.names import check_key

if TYPE_CHECKING:
    from iso_orchestrator.command_line import CommandResult
    from iso_orchestrator.model import ErrorInfo

__all__ = [
    "AgentError",
    "CommandError",
    "CommandIdleError",
    "CommandLeftoverError",
    "CommandStartError",
    "CommandTimeoutError",
    "CorruptRecordError",
    "DuplicateStepError",
    "FormatVersionError",
    "LeaseConflictError",
    "LeaseLostError",
    "Limited",
    "MutexTimeoutError",
    "NoActiveWorkflowError",
    "OrchestratorError",
    "RecordConflictError",
    "SerializationError",
    "StepFailedError",
    "StepInterruptedError",
    "StepNameError",
    "StepRejectedError",
    "StepTimeoutError",
    "StoreError",
    "WorkflowBusyError",
    "WorkflowNotFoundError",
    "WorkflowUsageError",
]

# Plain classes, not slotted ones: `add_note` and several builtin bases need the instance's dict.
_error = attrs.define(slots=False, eq=False, repr=False)


class OrchestratorError(Exception):
    """The root of all errors of this package."""


@_error
class WorkflowNotFoundError(OrchestratorError, LookupError):
    """There is no record of that workflow."""

    workflow_id: str
    root: str

    def __str__(self) -> str:
        return (
            f"no workflow {self.workflow_id!r} in {self.root}; "
            "`iso-orchestrator list` shows those that are there (--dir for another root)"
        )


@_error
class NoActiveWorkflowError(OrchestratorError, RuntimeError):
    """A free decorator's function was called where no workflow is current."""

    what: str

    def __str__(self) -> str:
        return (
            f"{self.what} needs a workflow: call it inside `with workflow:` or from a function that "
            "a workflow runs, or decorate with `@workflow.step`"
        )


class WorkflowUsageError(OrchestratorError, RuntimeError):
    """A call that cannot work where it stands, such as a run inside of itself."""


@_error
class StepNameError(OrchestratorError, TypeError):
    """A call of a step cannot be given a faithful name."""

    step_name: str
    reason: str

    def __str__(self) -> str:
        return f"step {self.step_name!r}: {self.reason}"


@_error
class DuplicateStepError(StepNameError, ValueError):
    """Two different functions claim one step name."""


@_error
class StepTimeoutError(OrchestratorError, TimeoutError):
    """One attempt of a step took longer than its timeout, in seconds."""

    step_name: str
    timeout: float

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r} took longer than its timeout of {self.timeout:g} s; its thread cannot "
            "be killed and may still run, its result is dropped: raise timeout=, or have the body end by itself"
        )


@_error
class SerializationError(OrchestratorError, TypeError):
    """A value cannot be recorded without loss; `place` is where in the value, as in `$.jobs[3].at`."""

    subject: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject} cannot be kept as JSON without loss: at {self.place}: {self.reason}"


@_error
class StepFailedError(OrchestratorError):
    """Another process ran the step, and it failed there."""

    step_name: str
    error: ErrorInfo

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r} failed where it ran: {self.error.name}: {self.error.message}; "
            "call it again to run it here"
        )


@_error
class Limited(OrchestratorError):  # noqa: N818 - no error of the step: what it wants is not to be had yet
    """Raise it in a step: what it needs has a usage limit until some time.

    The attempt does not count. The workflow waits until then and tries again; killed and started again it waits only
    for the rest. Other steps of the same key do not start before.

    Args:
        until: When to try again; aware.
        key: What is limited, for all steps that name it as their `limit_key`; default: this step alone.

    Raises:
        TypeError: *until* is no datetime, or *key* no str.
        ValueError: *until* is naive.

    Example:
        >>> from datetime import UTC, timedelta
        >>> Limited(datetime.now(UTC) + timedelta(hours=1), "some-api").key
        'some-api'
    """

    until: datetime
    key: str | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.until, datetime):
            raise TypeError(f"Limited(until=...) takes a datetime, not {self.until!r:.80}")
        if self.until.tzinfo is None:
            raise ValueError("Limited(until=...) takes an aware datetime: use datetime.now(UTC) + timedelta(...)")
        try:
            self.until = self.until.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"Limited(until=...) is beyond all time in UTC: {self.until}") from None
        if self.key is not None:
            check_key(self.key, "Limited(key=...)")

    def __str__(self) -> str:
        return f"{self.key or 'the step'} is limited until {self.until.isoformat(timespec='seconds')}"


@_error
class StepRejectedError(OrchestratorError):
    """`accept` refused the result of a step."""

    step_name: str
    result: Any

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: accept() refused the result {self.result!r:.200}; it is not recorded, "
            "another call or retry= tries again"
        )


@_error
class StepInterruptedError(OrchestratorError):
    """A dead run left a step with `if_interrupted="fail"` half done."""

    step_name: str
    attempt: int

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r} was interrupted in attempt {self.attempt} and must not run twice: find out "
            f"whether it took effect, then `workflow.reset({self.step_name!r})` lets it run again"
        )


@_error
class CommandError(OrchestratorError):
    """The command of a step ended with an exit code that is no success; `result` has its output."""

    step_name: str
    result: CommandResult[Any]

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: {self.result.args[0]!r:.80} {_how_it_ended(self.result)}"
            f"{_last_words(self.result)}; mend that and call the step again, or name the code in ok_codes="
        )


@_error
class AgentError(CommandError):
    """An agent's run was no success, whatever its exit code; `result.parsed` says what it was."""

    def __str__(self) -> str:
        run = self.result.parsed
        return (
            f"step {self.step_name!r}: {run.agent} {_OUTCOMES.get(run.outcome, run.outcome)}: {run.reason}; "
            f"its output is in {self.result.log_path}; mend that and call the step again"
        )


_OUTCOMES = {
    "empty": "gave an empty answer",
    "refused": "was refused",
    "limited": "met a usage limit, nobody knows until when",
    "failed": "failed",
}


@_error
class CommandTimeoutError(CommandError, StepTimeoutError):
    """The command of a step took longer than its timeout, in seconds, and was ended with all that it had started."""

    step_name: str
    timeout: float
    result: CommandResult[Any]

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: {self.result.args[0]!r:.80} took longer than its timeout of "
            f"{self.timeout:g} s and was ended{_last_words(self.result)}; call the step again, with a longer timeout= "
            "where it needs the time"
        )


@_error
class CommandIdleError(CommandTimeoutError):
    """The command of a step printed nothing for its idle timeout, in seconds, and was ended likewise."""

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: {self.result.args[0]!r:.80} printed nothing for {self.timeout:g} s and was "
            f"ended{_last_words(self.result)}; call the step again, with a longer idle_timeout= where it works silently"
        )


@_error
class CommandStartError(OrchestratorError, OSError):
    """The command of a step could not be started: no such program or folder, no right to it, arguments too long."""

    step_name: str
    program: str
    reason: str

    def __str__(self) -> str:
        return f"step {self.step_name!r}: cannot start {self.program!r:.80}: {self.reason}"


@_error
class CommandLeftoverError(OrchestratorError, RuntimeError):
    """Processes of a command are left that could not be ended; or that have its output, `log_path`, open unfound."""

    pids: tuple[int, ...]
    seconds: float
    log_path: str | None = None

    def __str__(self) -> str:
        if self.log_path is not None:
            return (
                f"somebody has the output of a command open, {self.log_path}, who is still at work, or was left by it "
                f"and cannot be found; end that (`fuser {self.log_path}` names it), then call the step again"
            )
        some = ", ".join(map(str, self.pids[:10]))
        return (
            f"{len(self.pids)} processes of a command are still there after {self.seconds:g} s of killing them: {some}"
            f"{', ...' if len(self.pids) > 10 else ''}; end them (they are another user's, hang in the kernel, or "
            "multiply faster than they die), then call the step again"
        )


@_error
class WorkflowBusyError(OrchestratorError):
    """Someone else has in hand what was asked for."""

    workflow_id: str
    pid: int | None
    host: str | None
    since: datetime | None
    what: str = "the workflow"

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r}: {self.what} is in use by process {self.pid or 'unknown'} on "
            f"{self.host or 'an unknown host'}{_since(self.since)}; wait for it or end it"
        )


@_error
class MutexTimeoutError(OrchestratorError, TimeoutError):
    """A mutex was not free in time; pid, host and since are its holder's, where they are known."""

    key: str
    timeout: float
    pid: int | None
    host: str | None
    since: datetime | None

    def __str__(self) -> str:
        return (
            f"mutex {self.key!r} was not free within {self.timeout:g} s: held by process "
            f"{self.pid or 'unknown'} on {self.host or 'an unknown host'}{_since(self.since)}; it frees itself when "
            "that process ends"
        )


@_error
class LeaseConflictError(OrchestratorError):
    """Another holder has the lease, and it has not run out."""

    lease_key: str
    holder: str
    current_holder: str
    expires_at: datetime

    def __str__(self) -> str:
        return (
            f"lease {self.lease_key!r} is held by {self.current_holder!r} until {self.expires_at.isoformat()}; "
            f"{self.holder!r} cannot take it before it runs out or is released"
        )


@_error
class LeaseLostError(OrchestratorError):
    """The lease that fenced this code has a newer token; nothing more is recorded from here."""

    lease_key: str
    token: int
    current_token: int

    def __str__(self) -> str:
        return (
            f"lease {self.lease_key!r} was lost: token {self.token} was followed by {self.current_token}; "
            "what was done since is not recorded, take the lease again and start over"
        )


class StoreError(OrchestratorError):
    """The store cannot do what was asked."""


@_error
class CorruptRecordError(StoreError):
    """A file is damaged where no crash can have damaged it; `offset` in bytes, `kept` says what is sound."""

    path: str
    offset: int
    reason: str
    kept: str = "nothing was changed"

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged at byte {self.offset}: {self.reason}; {self.kept}. Restore the file from a copy, "
            "or let `iso-orchestrator repair WORKFLOW` bring back what is sound, or delete the workflow to start over"
        )


@_error
class RecordConflictError(StoreError):
    """Another program changed the snapshot while a journal of ours went with the old one."""

    path: str
    journal_path: str

    def __str__(self) -> str:
        return (
            f"{self.path} was changed by another program while {self.journal_path} held newer facts; both are "
            "untouched. `iso-orchestrator repair WORKFLOW --merge-snapshot` makes one record of both and keeps copies; "
            "or put back the snapshot that the journal belongs to"
        )


@_error
class FormatVersionError(StoreError):
    """A newer release wrote the file."""

    path: str
    found: str

    def __str__(self) -> str:
        return f"{self.path} has {self.found}, which this release cannot read: upgrade iso-orchestrator"


def _how_it_ended(result: CommandResult[Any]) -> str:
    if result.exit_code >= 0:
        return f"ended with exit code {result.exit_code}"
    return f"was ended by signal {-result.exit_code}"


def _last_words(result: CommandResult[Any]) -> str:
    """Where all of the output is, and its last line."""
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    said = f"; its last line is {lines[-1]!r:.200}" if lines else "; it printed nothing"
    return f"{said}, its output in {result.log_path}"


def _since(moment: datetime | None) -> str:
    return f" since {moment.isoformat(timespec='seconds')}" if moment else ""
