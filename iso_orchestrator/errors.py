"""The errors: one class a condition, each derived from the builtin that one would catch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from iso_orchestrator.checks import check_key

if TYPE_CHECKING:
    from iso_orchestrator.commands.model import CommandResult
    from iso_orchestrator.record.model import ErrorInfo

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
    "suppressed_as_note",
]


# Written out, not made by attrs: it would compile these two dozen classes at each import.
class OrchestratorError(Exception):
    """The root of all errors of this package. Its arguments are all that a subclass has, for pickle and copy."""

    def __init__(self, *args: object) -> None:
        Exception.__init__(self, *args)  # not super(): an OSError takes two arguments or more for an error number


class WorkflowNotFoundError(OrchestratorError, LookupError):
    """There is no record of that workflow."""

    def __init__(self, workflow_id: str, root: str) -> None:
        super().__init__(workflow_id, root)
        self.workflow_id = workflow_id
        self.root = root

    def __str__(self) -> str:
        return (
            f"no workflow {self.workflow_id!r} in {self.root}; "
            "`iso-orchestrator list` shows those that are there (--dir for another root)"
        )


class NoActiveWorkflowError(OrchestratorError, RuntimeError):
    """A free decorator's function was called where no workflow is current."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what} needs a workflow: call it inside `with workflow:` or from a function that "
            "a workflow runs, or decorate with `@workflow.step`"
        )


class WorkflowUsageError(OrchestratorError, RuntimeError):
    """A call that cannot work where it stands, such as a run inside of itself."""


class StepNameError(OrchestratorError, TypeError):
    """A call of a step cannot be given a faithful name."""

    def __init__(self, step_name: str, reason: str) -> None:
        super().__init__(step_name, reason)
        self.step_name = step_name
        self.reason = reason

    def __str__(self) -> str:
        return f"step {self.step_name!r}: {self.reason}"


class DuplicateStepError(StepNameError, ValueError):
    """Two different functions claim one step name."""


class StepTimeoutError(OrchestratorError, TimeoutError):
    """One attempt of a step took longer than its timeout, in seconds."""

    def __init__(self, step_name: str, timeout: float) -> None:
        super().__init__(step_name, timeout)
        self.step_name = step_name
        self.timeout = timeout

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r} took longer than its timeout of {self.timeout:g} s; its thread cannot "
            "be killed and may still run, its result is dropped: raise timeout=, or have the body end by itself"
        )


class SerializationError(OrchestratorError, TypeError):
    """A value cannot be recorded without loss; `place` is where in the value, as in `$.jobs[3].at`."""

    def __init__(self, subject: str, place: str, reason: str) -> None:
        super().__init__(subject, place, reason)
        self.subject = subject
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.subject} cannot be kept as JSON without loss: at {self.place}: {self.reason}"


class StepFailedError(OrchestratorError):
    """Another process ran the step, and it failed there."""

    def __init__(self, step_name: str, error: ErrorInfo) -> None:
        super().__init__(step_name, error)
        self.step_name = step_name
        self.error = error

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r} failed where it ran: {self.error.name}: {self.error.message}; "
            "call it again to run it here"
        )


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

    def __init__(self, until: datetime, key: str | None = None) -> None:
        if not isinstance(until, datetime):
            raise TypeError(f"Limited(until=...) takes a datetime, not {until!r:.80}")
        if until.tzinfo is None:
            raise ValueError("Limited(until=...) takes an aware datetime: use datetime.now(UTC) + timedelta(...)")
        try:
            self.until = until.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"Limited(until=...) is beyond all time in UTC: {until}") from None
        self.key = None if key is None else check_key(key, "Limited(key=...)")
        super().__init__(self.until, self.key)

    def __str__(self) -> str:
        return f"{self.key or 'the step'} is limited until {self.until.isoformat(timespec='seconds')}"


class StepRejectedError(OrchestratorError):
    """`accept` refused the result of a step."""

    def __init__(self, step_name: str, result: Any) -> None:
        super().__init__(step_name, result)
        self.step_name = step_name
        self.result = result

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: accept() refused the result {self.result!r:.200}; it is not recorded, "
            "another call or retry= tries again"
        )


class StepInterruptedError(OrchestratorError):
    """A dead run left a step with `if_interrupted="fail"` half done."""

    def __init__(self, step_name: str, attempt: int) -> None:
        super().__init__(step_name, attempt)
        self.step_name = step_name
        self.attempt = attempt

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r} was interrupted in attempt {self.attempt} and must not run twice: find out "
            f"whether it took effect, then `workflow.reset({self.step_name!r})` lets it run again"
        )


class CommandError(OrchestratorError):
    """The command of a step ended with an exit code that is no success; `result` has its output."""

    def __init__(self, step_name: str, result: CommandResult[Any]) -> None:
        super().__init__(step_name, result)
        self.step_name = step_name
        self.result = result

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: {self.result.args[0]!r:.80} {_how_it_ended(self.result)}"
            f"{_last_line(self.result)}; correct that, then call the step again, or name the code in ok_codes="
        )


class AgentError(CommandError):
    """An agent's run was no success, whatever its exit code; `result.parsed` says what it was."""

    def __str__(self) -> str:
        run = self.result.parsed
        return (
            f"step {self.step_name!r}: {run.agent} {_OUTCOMES.get(run.outcome, run.outcome)}: {run.reason}; "
            f"its output is in {self.result.log_path}; correct that, then call the step again"
        )


_OUTCOMES = {
    "empty": "gave an empty answer",
    "refused": "was refused",
    "limited": "met a usage limit, and did not say until when",
    "failed": "failed",
}


class CommandTimeoutError(CommandError, StepTimeoutError):
    """The command of a step took longer than its timeout, in seconds, and was ended with all that it had started."""

    def __init__(self, step_name: str, timeout: float, result: CommandResult[Any]) -> None:
        OrchestratorError.__init__(self, step_name, timeout, result)  # neither base alone has all of them
        self.step_name = step_name
        self.timeout = timeout
        self.result = result

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: {self.result.args[0]!r:.80} took longer than its timeout of "
            f"{self.timeout:g} s and was ended{_last_line(self.result)}; call the step again, with a longer timeout= "
            "where it needs the time"
        )


class CommandIdleError(CommandTimeoutError):
    """The command of a step printed nothing for its idle timeout, in seconds, and was ended likewise."""

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r}: {self.result.args[0]!r:.80} printed nothing for {self.timeout:g} s and was "
            f"ended{_last_line(self.result)}; call the step again, with a longer idle_timeout= where it works silently"
        )


class CommandStartError(OrchestratorError, OSError):
    """The command of a step could not be started: no such program or folder, no right to it, arguments too long."""

    def __init__(self, step_name: str, program: str, reason: str) -> None:
        super().__init__(step_name, program, reason)
        self.step_name = step_name
        self.program = program
        self.reason = reason

    def __str__(self) -> str:
        return f"step {self.step_name!r}: cannot start {self.program!r:.80}: {self.reason}"


class CommandLeftoverError(OrchestratorError, RuntimeError):
    """Processes of a command, `pids`, could not be ended; or an unknown one has its output, `log_path`, open."""

    def __init__(self, pids: tuple[int, ...], seconds: float, log_path: str | None = None) -> None:
        super().__init__(pids, seconds, log_path)
        self.pids = pids
        self.seconds = seconds
        self.log_path = log_path

    def __str__(self) -> str:
        if self.log_path is not None:
            return (
                f"{self.log_path}, the output of a command, is still open in a process that could not be identified: "
                f"find it with `fuser {self.log_path}`, end it, then call the step again"
            )
        some = ", ".join(map(str, self.pids[:10]))
        return (
            f"{len(self.pids)} processes of a command still run after {self.seconds:g} s of SIGKILL: {some}"
            f"{', ...' if len(self.pids) > 10 else ''}; end them (they are another user's, hang in the kernel, or "
            "multiply faster than they die), then call the step again"
        )


class WorkflowBusyError(OrchestratorError):
    """Someone else has in hand what was asked for."""

    def __init__(
        self, workflow_id: str, pid: int | None, host: str | None, since: datetime | None, what: str = "the workflow"
    ) -> None:
        super().__init__(workflow_id, pid, host, since, what)
        self.workflow_id = workflow_id
        self.pid = pid
        self.host = host
        self.since = since
        self.what = what

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r}: {self.what} is in use by process {self.pid or 'unknown'} on "
            f"{self.host or 'an unknown host'}{_since(self.since)}; wait for it or end it"
        )


class MutexTimeoutError(OrchestratorError, TimeoutError):
    """A mutex was not free in time; pid, host and since are its holder's, where they are known."""

    def __init__(self, key: str, timeout: float, pid: int | None, host: str | None, since: datetime | None) -> None:
        super().__init__(key, timeout, pid, host, since)
        self.key = key
        self.timeout = timeout
        self.pid = pid
        self.host = host
        self.since = since

    def __str__(self) -> str:
        return (
            f"mutex {self.key!r} was not free within {self.timeout:g} s: held by process "
            f"{self.pid or 'unknown'} on {self.host or 'an unknown host'}{_since(self.since)}; it frees itself when "
            "that process ends"
        )


class LeaseConflictError(OrchestratorError):
    """Another holder has the lease, and it has not run out."""

    def __init__(self, lease_key: str, holder: str, current_holder: str, expires_at: datetime) -> None:
        super().__init__(lease_key, holder, current_holder, expires_at)
        self.lease_key = lease_key
        self.holder = holder
        self.current_holder = current_holder
        self.expires_at = expires_at

    def __str__(self) -> str:
        return (
            f"lease {self.lease_key!r} is held by {self.current_holder!r} until {self.expires_at.isoformat()}; "
            f"{self.holder!r} cannot take it before it runs out or is released"
        )


class LeaseLostError(OrchestratorError):
    """The lease that fenced this code has a newer token; nothing more is recorded from here."""

    def __init__(self, lease_key: str, token: int, current_token: int) -> None:
        super().__init__(lease_key, token, current_token)
        self.lease_key = lease_key
        self.token = token
        self.current_token = current_token

    def __str__(self) -> str:
        return (
            f"lease {self.lease_key!r} was lost: token {self.token} was followed by {self.current_token}; "
            "what was done since is not recorded, take the lease again and start over"
        )


class StoreError(OrchestratorError):
    """The store cannot do what was asked."""


class CorruptRecordError(StoreError):
    """A file is damaged where no crash can have damaged it; `offset` in bytes, `kept` says what is sound."""

    def __init__(self, path: str, offset: int, reason: str, kept: str = "nothing was changed") -> None:
        super().__init__(path, offset, reason, kept)
        self.path = path
        self.offset = offset
        self.reason = reason
        self.kept = kept

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged at byte {self.offset}: {self.reason}; {self.kept}. Restore the file from a copy, "
            "or let `iso-orchestrator repair WORKFLOW` bring back what is sound, or delete the workflow to start over"
        )


class RecordConflictError(StoreError):
    """Another program changed the snapshot while a journal of ours went with the old one."""

    def __init__(self, path: str, journal_path: str) -> None:
        super().__init__(path, journal_path)
        self.path = path
        self.journal_path = journal_path

    def __str__(self) -> str:
        return (
            f"{self.path} was changed by another program while {self.journal_path} held newer facts; both are "
            "untouched. `iso-orchestrator repair WORKFLOW --merge-snapshot` makes one record of both and keeps copies; "
            "or put back the snapshot that the journal belongs to"
        )


class FormatVersionError(StoreError):
    """A newer release wrote the file."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(path, found)
        self.path = path
        self.found = found

    def __str__(self) -> str:
        return f"{self.path} has {self.found}, which this release cannot read: upgrade iso-orchestrator"


def _how_it_ended(result: CommandResult[Any]) -> str:
    if result.exit_code >= 0:
        return f"ended with exit code {result.exit_code}"
    return f"was ended by signal {-result.exit_code}"


def _last_line(result: CommandResult[Any]) -> str:
    """Where all of the output is, and its last line."""
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    said = f"; its last line is {lines[-1]!r:.200}" if lines else "; it printed nothing"
    return f"{said}, its output in {result.log_path} and, of its errors, in {result.log_path}.stderr"


def _since(moment: datetime | None) -> str:
    return f" since {moment.isoformat(timespec='seconds')}" if moment else ""


@contextmanager
def suppressed_as_note(error: BaseException | None, what: str) -> Iterator[None]:
    """Where there is an *error* already, trouble inside of the `with` is a note on it and hides nothing."""
    try:
        yield
    except OrchestratorError as trouble:
        if error is None:
            raise
        error.add_note(f"iso-orchestrator: {what}: {trouble}")
