from __future__ import annotations

import copy
import pickle
from typing import Any

import attrs
import pytest
from support import T0

import iso_orchestrator
from iso_orchestrator import CommandResult, errors
from iso_orchestrator.agents import AgentResult, Outcome
from iso_orchestrator.errors import OrchestratorError
from iso_orchestrator.record.model import ErrorInfo

RESULT = CommandResult(["codex", "exec"], -9, 1.5, "out", "no\nrights", "/logs/a.log")

# One of each, the builtin that catches it, and words of its message: its subject and the next step.
SAMPLES: list[tuple[OrchestratorError, type[Exception], list[str]]] = [
    (OrchestratorError("text"), Exception, ["text"]),
    (errors.WorkflowNotFoundError("w", "/root"), LookupError, ["'w'", "/root", "iso-orchestrator list"]),
    (errors.NoActiveWorkflowError("step 'a'"), RuntimeError, ["step 'a'", "inside `with workflow:`"]),
    (errors.WorkflowUsageError("text"), RuntimeError, ["text"]),
    (errors.StepNameError("a", "give name="), TypeError, ["'a'", "give name="]),
    (errors.DuplicateStepError("a", "give name="), ValueError, ["'a'", "give name="]),
    (errors.StepTimeoutError("a", 2.5), TimeoutError, ["'a'", "2.5 s", "may still run"]),
    (errors.CommandError("a", RESULT), OrchestratorError, ["'a'", "'codex'", "signal 9", "'rights'", "/logs/a.log"]),
    (
        errors.AgentError("a", attrs.evolve(RESULT, parsed=AgentResult("codex", Outcome.EMPTY, reason="no text"))),
        errors.CommandError,
        ["'a'", "codex gave an empty answer", "no text", "/logs/a.log"],
    ),
    (errors.CommandTimeoutError("a", 2.5, RESULT), errors.StepTimeoutError, ["'a'", "'codex'", "2.5 s", "timeout="]),
    (
        errors.CommandIdleError("a", 2.5, RESULT),
        errors.CommandTimeoutError,
        ["'a'", "'codex'", "2.5 s", "idle_timeout="],
    ),
    (
        errors.CommandLogError("a", RESULT, "the disk is full: free some"),
        errors.CommandError,
        ["'a'", "'codex'", "the disk is full", "free some", "/logs/a.log"],
    ),
    (errors.CommandStartError("a", "codex", "no such program"), OSError, ["'a'", "'codex'", "no such program"]),
    (
        errors.CommandLeftoverError((), 1.0, "/logs/a.log"),
        RuntimeError,
        ["/logs/a.log", "could not be identified", "end it"],
    ),
    (errors.CommandLeftoverError((7, 8), 10.0), RuntimeError, ["2 processes", "7, 8", "10 s", "end them"]),
    (errors.ResultMismatchError("the result of step 'a'", "$.at[3]", "no"), TypeError, ["'a'", "$.at[3]", "reset"]),
    (errors.SerializationError("the state", "$.at[3]", "NaN is not JSON"), TypeError, ["the state", "$.at[3]", "NaN"]),
    (
        errors.StepFailedError("a", ErrorInfo("ValueError", "no")),
        OrchestratorError,
        ["'a'", "ValueError: no", "call it again"],
    ),
    (errors.Limited(T0, "api"), OrchestratorError, ["api", "until 2026-05-14"]),
    (errors.StepRejectedError("a", {"n": 1}), OrchestratorError, ["'a'", "accept()", "{'n': 1}"]),
    (errors.StoppedError("a", 71), OrchestratorError, ["'a'", "pid 71", "the next run runs it again"]),
    (errors.StepInterruptedError("a", 3), OrchestratorError, ["'a'", "attempt 3", "workflow.reset('a')"]),
    (errors.WorkflowBusyError("w", 7, "host", T0), OrchestratorError, ["'w'", "7", "host", "2026-05-14", "wait"]),
    (errors.WorkflowBusyError("w", None, None, None), OrchestratorError, ["'w'", "unknown", "wait"]),
    (errors.MutexTimeoutError("k", 1.5, 7, "host", T0), TimeoutError, ["'k'", "1.5 s", "7", "host", "2026-05-14"]),
    (
        errors.LeaseConflictError("k", "beta", "alpha", T0),
        OrchestratorError,
        ["'k'", "'beta'", "'alpha'", "2026-05-14"],
    ),
    (errors.LeaseLostError("k", 1, 2), OrchestratorError, ["'k'", "token 1", "2", "take the lease again"]),
    (errors.StoreError("text"), OrchestratorError, ["text"]),
    (errors.CorruptRecordError("/p", 7, "why", "kept"), errors.StoreError, ["/p", "byte 7", "why", "kept", "Restore"]),
    (
        errors.DeadlockError(("a waits for mutex 'k'", "b waits for step 's'", "a")),
        errors.WorkflowUsageError,
        ["a waits for mutex 'k' -> b waits", "-> a:", "each other", "one order"],
    ),
    (errors.RecordConflictError("/p.json", "/p.jrnl"), errors.StoreError, ["/p.json", "/p.jrnl", "--merge-snapshot"]),
    (errors.FormatVersionError("/p", "version 9"), errors.StoreError, ["/p", "version 9", "upgrade"]),
]
NAMES = [type(error).__name__ for error, _, _ in SAMPLES]


def public_attributes(error: Exception) -> dict[str, Any]:
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


def test_every_error_of_the_module_has_a_sample_here() -> None:
    """A new error cannot miss these tests."""
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, Warning)
    }
    assert classes == set(NAMES)
    assert classes <= set(iso_orchestrator.__all__)


@pytest.mark.parametrize(("error", "builtin", "words"), SAMPLES, ids=NAMES)
def test_error_is_caught_by_the_root_and_by_its_builtin(
    error: OrchestratorError, builtin: type[Exception], words: list[str]
) -> None:
    """Every error can be caught as one of the package, and as the builtin that fits."""
    assert isinstance(error, OrchestratorError)
    assert isinstance(error, builtin)


def test_no_error_shows_a_text_that_is_not_escaped() -> None:
    """A new error says what it shows in `_text`, which the root escapes."""
    assert [type(error) for error, _, _ in SAMPLES if type(error).__str__ is not OrchestratorError.__str__] == []


@pytest.mark.parametrize(("error", "builtin", "words"), SAMPLES, ids=NAMES)
def test_message_says_what_it_is_about_and_what_to_do(
    error: OrchestratorError, builtin: type[Exception], words: list[str]
) -> None:
    """A message names its subject and the next step."""
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(("error", "builtin", "words"), SAMPLES, ids=NAMES)
@pytest.mark.parametrize("transport", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_error_survives_pickling_and_copying(
    transport: Any, error: OrchestratorError, builtin: type[Exception], words: list[str]
) -> None:
    """An error that crosses processes keeps its class, attributes, message and notes."""
    error = copy.copy(error)
    error.add_note("while testing")
    found = transport(error)
    assert type(found) is type(error)
    assert public_attributes(found) == public_attributes(error)
    assert str(found) == str(error)
    assert found.__notes__ == ["while testing"]


def test_a_result_that_cannot_be_pickled_keeps_no_error_from_its_process() -> None:
    """`SerializationError` takes its value along to another process, or leaves it out."""
    error = errors.SerializationError("the result", "$", "no JSON")
    for value, expected in [([1], [1]), (lambda: 1, None)]:
        error.value = value
        found = pickle.loads(pickle.dumps(error))
        assert (str(found), found.value) == (str(error), expected)


def test_time_outs_have_no_errno() -> None:
    """A time-out is a TimeoutError, hence an OSError; without errno it is not taken for an error of the kernel."""
    error = errors.MutexTimeoutError("k", 1, None, None, None)
    assert isinstance(error, OSError)
    assert error.errno is None
