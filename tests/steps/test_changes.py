"""Recorded results that other code, or other arguments, made; and results that are too old."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from iso_orchestrator import StepChangedWarning, StepStatus, Workflow
from iso_orchestrator.testing import FakeClock


@pytest.fixture(autouse=True)
def _each_warning_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", StepChangedWarning)
        yield


def summarize(source: str, **names: Any) -> Callable[..., Any]:
    """The function `summarize` of a module with that source, as a notebook's cell that is run again makes it."""
    namespace = {"__name__": "module", **names}
    exec(compile(textwrap.dedent(source), "module", "exec", dont_inherit=True), namespace)
    function: Callable[..., Any] = namespace["summarize"]
    return function


GPT_4 = """
def summarize(doc, model="gpt-4"):
    return f"{doc} by {model}"
"""
GPT_5 = GPT_4.replace("gpt-4", "gpt-5")
OTHER_BODY = GPT_4.replace(" by ", " read by ")
SAME_BODY = """
# a comment, another line and a docstring are no change
def summarize(doc, model="gpt-4"):
    "Summarize a document."
    return f"{doc} by {model}"
"""


def test_a_changed_default_warns_once_and_says_what_and_how_many(workflow: Workflow) -> None:
    """The old results are returned, with one warning for the function: what changed, and how many steps it concerns."""
    step = workflow.step(summarize(GPT_4))
    assert [step("a"), step("b")] == ["a by gpt-4", "b by gpt-4"]
    changed = workflow.step(summarize(GPT_5))
    with pytest.warns(StepChangedWarning) as caught:
        assert [changed("a"), changed("b")] == ["a by gpt-4", "b by gpt-4"]
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    assert 'model was "gpt-4", is "gpt-5"' in text
    assert text.startswith(
        "recorded before a change: the results of 2 steps of summarize(), 'summarize(doc=\"a\")' among"
    )


def test_a_warning_that_is_an_error_is_raised_by_each_call(workflow: Workflow) -> None:
    """Where warnings are errors, no later call returns the old result in silence; without them it is there again."""
    workflow.step(summarize(GPT_4))("a")
    changed = workflow.step(summarize(GPT_5))
    for _ in range(2):
        with pytest.raises(StepChangedWarning, match=r'model was "gpt-4", is "gpt-5"'):
            changed("a")
    summary = workflow.for_each(max_parallel=2, stop_on_error=False)(changed)(["a", "b"])
    assert [result.status for result in summary.results] == ["rejected", "fulfilled"]
    with pytest.warns(StepChangedWarning):
        assert changed("a") == "a by gpt-4"
    assert changed("a") == "a by gpt-4"  # and warns no more


@pytest.mark.parametrize("name", [None, "one"])
def test_a_default_that_is_a_secret_is_in_no_file(tmp_path: Path, name: str | None) -> None:
    """The default of a parameter that is named like a secret may come from the environment: a digest stands for it."""
    for secret in ("sk-1", "sk-2"):
        workflow = Workflow("w", dir=tmp_path)
        step = workflow.step(name=name)(summarize("def summarize(doc, api_key=secret): return doc", secret=secret))
        if secret == "sk-2":
            with pytest.warns(StepChangedWarning, match="api_key has another value"):
                step("a")
        else:
            step("a")
        workflow.close()
        assert not any(secret.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_edited_body_warns(workflow: Workflow) -> None:
    """Other code under one name warns; comments, lines and the docstring are no part of the code."""
    assert workflow.step(summarize(GPT_4))("a") == "a by gpt-4"
    assert workflow.step(summarize(SAME_BODY))("a") == "a by gpt-4"
    with pytest.warns(StepChangedWarning, match="the code of its function"):
        assert workflow.step(summarize(OTHER_BODY))("a") == "a by gpt-4"


def test_nested_functions_and_constants_are_code(workflow: Workflow) -> None:
    """A change in a function inside of the function counts, and one in a set of constants."""
    nested = """
    def summarize(doc):
        def inner():
            return doc in {"a", "b", "c"}
        return inner()
    """
    assert workflow.step(summarize(nested))("a") is True
    assert workflow.step(summarize(nested))("a") is True
    with pytest.warns(StepChangedWarning, match="code"):
        workflow.step(summarize(nested.replace('"c"', '"d"')))("a")


def test_rerun_runs_again_what_changed_and_nothing_else(workflow: Workflow) -> None:
    """With `on_change="rerun"` the old result counts as none, and the new one is recorded in its place."""
    assert workflow.step(summarize(GPT_4))("a") == "a by gpt-4"
    changed = workflow.step(on_change="rerun")(summarize(GPT_5))
    assert [changed("a"), changed("a")] == ["a by gpt-5", "a by gpt-5"]
    record = workflow.record.steps['summarize(doc="a")']
    assert (record.attempts, record.status) == (1, StepStatus.COMPLETED)


def test_ignore_is_silent(workflow: Workflow) -> None:
    """With `on_change="ignore"` the old results are returned without a word."""
    assert workflow.step(summarize(GPT_4))("a") == "a by gpt-4"
    assert workflow.step(on_change="ignore")(summarize(GPT_5))("a") == "a by gpt-4"


def test_an_argument_that_a_name_by_hand_leaves_out_warns(workflow: Workflow) -> None:
    """A step whose name does not show an argument is noticed when that has another value; the values stay secret."""

    @workflow.step(name="publish:{number}", exclude=["client"])
    def publish(number: int, text: str, client: object = None) -> str:
        return text

    assert [publish(1, "first"), publish(1, "first", object())] == ["first", "first"]
    with pytest.warns(StepChangedWarning, match="text has another value"):
        assert publish(1, "second") == "first"
    workflow.close()
    assert "first" not in Path(workflow.record_path).read_text().replace('"result":"first"', "")


def test_a_value_that_was_the_default_is_no_change(workflow: Workflow) -> None:
    """A value that is given now and was the default then is the same one."""

    def named(model: str) -> Any:
        return workflow.step(name="named:{doc}")(summarize(GPT_4.replace("gpt-4", model)))

    assert named("gpt-4")("a") == "a by gpt-4"
    assert named("gpt-5")("a", "gpt-4") == "a by gpt-4"
    with pytest.warns(StepChangedWarning, match="model has another value"):
        named("gpt-5")("a", "gpt-6")


def test_run_step_notices_changes_too(workflow: Workflow) -> None:
    """`run_step` compares the code of the function, and all arguments."""
    assert workflow.run_step("sum", max, 1, 2) == 2
    assert workflow.run_step("sum", max, 1, 2) == 2
    with pytest.warns(StepChangedWarning, match="argument 2 has another value"):
        assert workflow.run_step("sum", max, 1, 3) == 2
    assert workflow.run_step("text", summarize(GPT_4), "a") == "a by gpt-4"
    with pytest.warns(StepChangedWarning, match="code"):
        workflow.run_step("text", summarize(OTHER_BODY), "a")


@pytest.mark.slow
def test_changes_are_noticed_by_the_next_process(tmp_path: Path) -> None:
    """What made a result is in the record: another process warns, whatever the order of its sets is."""
    script = tmp_path / "batch.py"
    source = """
    from iso_orchestrator import Workflow
    workflow = Workflow("w", dir="root")
    @workflow.step
    def check(word, known=frozenset({"a", "b", "c"})):
        return word in {"x", "y", "z"}
    print(check("x"))
    """

    def run(seed: str, text: str) -> subprocess.CompletedProcess[str]:
        script.write_text(textwrap.dedent(text))
        env = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True)

    assert (run("1", source).stderr, run("2", source).stderr) == ("", "")
    changed = run("3", source.replace('"c"', '"d"'))
    assert changed.stdout == "True\n"
    assert "StepChangedWarning" in changed.stderr
    assert 'known was {"a", "b", "c"}, is {"a", "b", "d"}' in changed.stderr


def test_a_result_that_is_too_old_counts_as_none(tmp_path: Path) -> None:
    """With `max_age` an older result runs again, in the same process and in a later one; without it none ages."""
    now = FakeClock()
    workflow = Workflow("w", dir=tmp_path, now=now)
    calls: list[datetime] = []

    @workflow.step(max_age=timedelta(hours=1))
    def price() -> int:
        calls.append(now())
        return len(calls)

    assert [price(), price()] == [1, 1]
    now.advance(3600)
    assert price() == 1
    now.advance(1)
    assert [price(), price()] == [2, 2]
    assert workflow.record.steps["price"].attempts == 1
    workflow.close()
    now.advance(3601)
    later = Workflow("w", dir=tmp_path, now=now)
    assert later.run_step("price", lambda: 3, on_change="ignore") == 2
    assert later.run_step("price", lambda: 3, on_change="ignore", max_age=3600.0) == 3
    later.close()


@pytest.mark.parametrize("max_age", [0, -1, "1h", True, timedelta(0), float("nan")])
def test_a_max_age_that_is_none_is_refused(workflow: Workflow, max_age: Any) -> None:
    """Only seconds above 0, or such a `timedelta`, are an age."""
    with pytest.raises((TypeError, ValueError), match="max_age"):
        workflow.step(max_age=max_age)(summarize(GPT_4))


def test_on_change_is_one_of_three_words(workflow: Workflow) -> None:
    """Anything else is refused at decoration."""
    with pytest.raises(ValueError, match="on_change"):
        workflow.step(on_change="raise")(summarize(GPT_4))  # type: ignore[arg-type]
