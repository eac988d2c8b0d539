"""Which workflow and which step the words of a command mean."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.errors import StoreError, WorkflowNotFoundError, WorkflowUsageError
from iso_orchestrator.record.history import History, StepHistory
from iso_orchestrator.store import Store, default_root, find_store, store_in_use

_LISTED = 10  # steps, or workflows, that a text could mean
_CUTS = re.compile(r"…|\.\.\.")  # as `views.terminal` marks them, in UTF-8 and in other encodings


def chosen_store(url: str | None, root: str | None) -> Store:
    """The store of a command: by its option `--store` or `--dir`, else the environment, else the nearest folder.

    The nearest folder is `.iso-orchestrator` in the current folder, or in the nearest one above that has it.

    Raises:
        StoreError: No store has that kind of URL.
    """
    return store_in_use(find_store(url, root or (None if url else _root_above())))


def choose_workflow(store: Store, words: Sequence[str | None]) -> tuple[str, str | None]:
    """Return the workflow and the step that *words* name: both, one of them, or none.

    Where the store has one workflow, its id may be left out: a single word that is not its id is a step. An id may be
    given as `list` cut it.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        WorkflowUsageError: No word is given, and there is not one workflow; the message lists them.
    """
    first, second = [*(word for word in words if word is not None), None, None][:2]
    if first is not None and (_exists(store, first) or (second is not None and not _CUTS.search(first))):
        return first, second
    ids = [found.workflow_id for found in store.list() if not isinstance(found, StoreError)]
    if first is not None and len(meant := [one for one in ids if _is_cut(escape_terminal(one), first)]) == 1:
        return meant[0], second
    if first is not None and second is not None:
        return first, second
    if len(ids) == 1:
        return ids[0], first
    if first is not None:
        raise WorkflowNotFoundError(first, store.display_name)
    if not ids:
        raise WorkflowUsageError(f"no workflows in {escape_terminal(store.display_name)}")
    raise WorkflowUsageError(f"name one of the {len(ids)} workflows: {_listed([repr(one) for one in ids])}")


def _exists(store: Store, workflow_id: str) -> bool:
    # A large record takes seconds to read, so its file is enough; a store without files is asked.
    return os.path.exists(store.path_of(workflow_id)) or store.read(workflow_id) is not None


def find_step(history: History, text: str) -> StepHistory:
    """Find the step that *text* means: its name, its number `#34`, a name as it was cut, or a pattern.

    Raises:
        WorkflowUsageError: No step is meant, or several are; the message lists those.

    Example:
        `review:mobile:tim…t midnight` is the step that begins and ends so; `apply:*` the only one that begins so.
    """
    found = find_steps(history, text)
    if len(found) == 1:
        return found[0]
    if found:
        names = [f"#{step.number} {step.name}" for step in found]
        raise WorkflowUsageError(f"{text!r} could be {len(found)} steps: {_listed(names)}")
    raise WorkflowUsageError(f"workflow {history.workflow_id!r} has no step {text!r}; `show` lists its steps")


def find_steps(history: History, text: str) -> list[StepHistory]:
    """Find the steps that *text* could mean, as `find_step` reads it."""
    if (named := next((step for step in history.steps if step.name == text), None)) is not None:
        return [named]
    if number := re.fullmatch(r"#([0-9]{1,9})", text):
        return [step for step in history.steps if step.number == int(number[1])]
    return _matching(history.steps, text)


def _matching(steps: Sequence[StepHistory], text: str) -> list[StepHistory]:
    # A name is shown with its controls escaped, and with its middle cut out. In a pattern "[" begins a set of
    # characters, so a name that was shown is compared as it is first.
    shown = [(step, escape_terminal(step.name)) for step in steps]
    found = [step for step, name in shown if name == text] or [step for step, name in shown if _is_cut(name, text)]
    return found or [step for step in steps if fnmatch.fnmatchcase(step.name, text)]


def _is_cut(name: str, text: str) -> bool:
    """Whether *text* is *name* with its middle cut out."""
    ends = [(text[: cut.start()], text[cut.end() :]) for cut in _CUTS.finditer(text)]
    return any(name.startswith(a) and name.endswith(b) and len(a + b) < len(name) for a, b in ends)


def _listed(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def _root_above() -> str | None:
    """The nearest folder of workflows above the current one; None for what `find_store` takes by default."""
    if os.environ.get("ISO_ORCHESTRATOR_STORE") or os.environ.get("ISO_ORCHESTRATOR_DIR"):
        return None
    folder = os.getcwd()
    while not os.path.isdir(root := os.path.join(folder, default_root())):
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return None
    return None if folder == os.getcwd() else root
