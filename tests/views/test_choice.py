"""Which workflow and which step the words of a command mean."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import attrs
import pytest

from iso_orchestrator import Workflow, WorkflowNotFoundError, WorkflowUsageError, open_workflow
from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.record.history import History, Outcome, StepHistory, Totals
from iso_orchestrator.record.model import WorkflowStatus
from iso_orchestrator.store import find_store
from iso_orchestrator.text import cut
from iso_orchestrator.views.choice import choose_workflow, chosen_store, find_step

NOW = datetime(2026, 11, 28, tzinfo=UTC)
TOTALS = Totals({}, {}, **{field.name: 0 for field in attrs.fields(Totals)[2:]} | {"waited": {}})  # type: ignore[arg-type]


def history(*names: str) -> History:
    steps = tuple(StepHistory(name, number, "g", Outcome.COMPLETED, result={}) for number, name in enumerate(names, 1))
    return History("w", WorkflowStatus.IDLE, NOW, NOW, NOW, False, (), steps, (), (), (), TOTALS)


def test_a_step_is_its_name_its_number_a_cut_name_or_a_pattern() -> None:
    """A name comes first, also one that looks like a number, a cut name or a pattern."""
    names = ["#2", "fetch", "a…b", "a long b", "x*", "xyz", "bell \x07 and much more text", "set [1]"]
    found = history(*names)
    assert all(find_step(found, name).name == name for name in names)
    assert find_step(found, "#3").name == "a…b"
    assert find_step(found, "fe*").name == "fetch"
    assert find_step(found, "x?z").name == "xyz"
    for name in names[4:]:
        for width in (6, 16, 20):
            for mark in ("…", "..."):
                shown = cut(escape_terminal(name), width, mark)
                assert find_step(found, shown).name == name or shown == "x*"


def test_several_steps_are_listed_and_none_is_an_error() -> None:
    """A text that means several steps, or none, is an error that helps; a long list is cut."""
    found = history(*(f"ask:{number}" for number in range(30)))
    with pytest.raises(WorkflowUsageError, match=r"could be 30 steps: #1 ask:0, .*#10 ask:9, and 20 more$"):
        find_step(found, "ask:*")
    for text in ("nobody", "#31", "#", "b…d", ""):
        with pytest.raises(WorkflowUsageError, match="has no step"):
            find_step(found, text)


def test_the_only_workflow_may_be_left_out(tmp_path: Path) -> None:
    """A single word is a workflow if there is one, else a step of the only one; two are what they are."""
    store = find_store(None, tmp_path)
    with pytest.raises(WorkflowUsageError, match="no workflows in"):
        choose_workflow(store, [])
    open_workflow("w", dir=tmp_path).close()
    assert choose_workflow(store, []) == ("w", None)
    assert choose_workflow(store, ["w", None]) == ("w", None)
    assert choose_workflow(store, [None, "#3"]) == ("w", "#3")
    assert choose_workflow(store, ["v", "step"]) == ("v", "step")
    open_workflow("other", dir=tmp_path).close()
    with pytest.raises(WorkflowUsageError, match=r"one of the 2 workflows: 'other', 'w'$"):
        choose_workflow(store, [])
    with pytest.raises(WorkflowNotFoundError, match="no workflow '#3'"):
        choose_workflow(store, ["#3"])
    assert choose_workflow(store, ["other"]) == ("other", None)
    for words in (["o…r"], ["o...er", "#3"]):
        assert choose_workflow(store, words) == ("other", *[*words[1:], None][:1])
    with pytest.raises(WorkflowNotFoundError, match="no workflow 'x…r'"):
        choose_workflow(store, ["x…r"])


def test_the_nearest_folder_of_workflows_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an option and without the environment, a folder further up serves as the current one's would."""
    monkeypatch.delenv("ISO_ORCHESTRATOR_DIR", raising=False)
    below = tmp_path / "one" / "two"
    below.mkdir(parents=True)
    Workflow("w", dir=tmp_path / ".iso-orchestrator").run_step("step", lambda: 1)
    monkeypatch.chdir(below)
    assert chosen_store(None, None).display_name == str(tmp_path / ".iso-orchestrator")
    assert chosen_store("memory://chosen", None).display_name == "memory://chosen"
    assert chosen_store(None, str(below)).display_name == str(below)
    (below / ".iso-orchestrator").mkdir()
    assert chosen_store(None, None).display_name == str(below / ".iso-orchestrator")
    monkeypatch.setenv("ISO_ORCHESTRATOR_DIR", str(tmp_path / "elsewhere"))
    assert chosen_store(None, None).display_name == str(tmp_path / "elsewhere")
