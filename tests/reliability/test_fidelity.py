"""Rows 38 and 39: results come back exactly or are refused, and different arguments have different names."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

from reliability.random_values import TEXTS, Kind, Maker, Misfit, changed_part, kinds, portrait
from reliability.tiers import Figures, Tier
from support import run_python

from iso_orchestrator import SerializationError, Step, StepNameError, Workflow

RESULTS, NAMES = 38, 39
WRONG = [0.0, 0.0, 0.1, 0.4]  # the probabilities that a part of a value is of another type

# What a process calls that reads what another one has recorded.
READ = """
import json, sys
from reliability.test_fidelity import read_all
print(json.dumps(read_all(*sys.argv[1:])))
"""


class RanAgain(Exception):  # noqa: N818 - it is a failure of the test
    """The body of a step ran whose result is recorded."""


def steps(workflow: Workflow, kind: Kind, number: int, values: dict[int, Any]) -> Step[[int], Any] | None:
    """A step that returns one of the values; None if its annotation is refused."""

    def body(case: int) -> Any:
        if case not in values:
            raise RanAgain
        return values[case]

    body.__annotations__["return"] = kind.annotation
    try:
        return workflow.step(name=f"{number}:{{case}}")(body)
    except SerializationError:
        return None


def text_of(kind: Kind, value: Any, *, exact: bool) -> str:
    try:
        return kind.text(value, exact)
    except Misfit:
        return "none of its type's" if exact else "none that may be recorded"


def try_all(workflow: Workflow, seed: str, count: int, each: int) -> tuple[dict[str, str], list[str]]:
    """Return random values from steps: the texts of the results by name, and what was wrong."""
    found: dict[str, str] = {}
    wrong: list[str] = []
    for number, kind in enumerate(kinds(seed, count)):
        values: dict[int, Any] = {}
        step = steps(workflow, kind, number, values)
        for case in range(each):
            rng = random.Random(f"{seed} {number} {case}")
            maker = Maker(rng, rng.choice(WRONG))
            values[case] = value = maker.make(kind)
            if step is None:
                if kind.is_sure:
                    wrong.append(f"{number}: {kind.annotation} is refused")
                continue
            before = text_of(kind, value, exact=False)
            told = f"{number}:{case} {kind.annotation}: {value!r:.200}"
            try:
                now = step(case)
            except SerializationError as error:
                if maker.is_right and kind.is_sure and "NaN" not in before:  # of which no set equals another
                    wrong.append(f"{told} is refused: {error}")
                continue
            except Exception as error:  # no other is promised
                wrong.append(f"{told} raises {error!r:.300}")
                continue
            after = found[f"{number}:{case}"] = text_of(kind, now, exact=True)
            if after != before:
                wrong.append(f"{told} became {now!r:.200}\n  {before:.300}\n  {after:.300}")
    return found, wrong


def read_all(folder: str, seed: str, count: str, known: str) -> list[str]:
    """Read in this process what another one recorded; tell what differs."""
    texts = json.loads(Path(known).read_text())
    workflow = Workflow("w", dir=folder)
    wrong = []
    for number, kind in enumerate(kinds(seed, int(count))):
        step = steps(workflow, kind, number, {})
        for name in [name for name in texts if name.startswith(f"{number}:")]:
            if step is None:
                wrong.append(f"{name} {kind.annotation}: refused in the second process")
                continue
            try:
                found = text_of(kind, step(int(name.partition(":")[2])), exact=True)
            except Exception as error:  # each is a violation
                found = f"{error!r:.300}"
            if found != texts[name]:
                wrong.append(f"{name} {kind.annotation}: {texts[name]:.300} was read as {found:.300}")
    workflow.close()
    return wrong


def test_results_come_back_exactly_or_are_refused(root: Path, tmp_path: Path, tier: Tier, figures: Figures) -> None:
    """A result of a random type is the same in a fresh process, or is refused, and then it is not recorded."""
    count, each = tier.pick(quick=(25, 12), full=(160, 125), soak=(3000, 100))
    seed = f"{tier.seed} fidelity"
    workflow = Workflow("w", dir=root)
    texts, wrong = try_all(workflow, seed, count, each)
    completed = {name for name, step in workflow.record.steps.items() if step.status == "completed"}
    wrong += [f"{name}: completed, and yet refused" for name in completed ^ set(texts)]
    workflow.close()
    known = tmp_path / "texts.json"
    known.write_text(json.dumps(texts))
    with run_python(READ, root, seed, count, known) as child:
        wrong += json.loads(child.line())
    figures.add(RESULTS, "results read in a fresh process, or refused", count * each, len(wrong))
    assert not wrong, f"{len(wrong)} violations; the first:\n" + "\n".join(wrong[:20])
    assert len(texts) > tier.pick(quick=0.2, full=0.3, soak=0.3) * count * each  # few kinds: much luck


# Names

NAME = """
import json, sys
from reliability.test_fidelity import names_of
print(json.dumps(names_of(*sys.argv[1:])))
"""


def takes(x: Any, y: Any = None) -> None:
    """A function whose calls are named."""


def name_of(step: Step[..., None], *args: Any) -> str | None:
    try:
        return step.step_name(*args)
    except StepNameError:
        return None


def arguments(seed: str, count: int) -> list[tuple[random.Random, tuple[Any, ...]]]:
    """The arguments of random calls, and the randomness to make others of them."""
    found = []
    all_kinds = kinds(seed, max(60, count // 125))
    for case in range(count):
        rng = random.Random(f"{seed} {case}")
        value = Maker(rng, rng.choice(WRONG)).make(rng.choice(all_kinds))
        found.append((rng, (value,) if rng.random() < 0.7 else (value, rng.choice(TEXTS))))
    return found


def others(rng: random.Random, args: tuple[Any, ...], name: str | None) -> tuple[Any, ...]:
    """Other arguments that differ little; perhaps the same ones."""
    if name is not None and rng.random() < 0.1:
        return (name[len("takes(x=") : -1].strip('"'),)  # one text that looks like all of them
    if len(args) == 2 and rng.random() < 0.3:
        return (args[0], f"{args[1]}{rng.choice(TEXTS)}")
    return (changed_part(rng, args[0]), *args[1:])


def names_of(seed: str, count: str) -> list[str | None]:
    """The names of random calls."""
    step = Workflow("names", store="memory://names").step(takes)
    return [name_of(step, *args) for _, args in arguments(seed, int(count))]


def test_no_two_different_arguments_share_a_name(tier: Tier, figures: Figures) -> None:
    """Arguments that differ in anything have different names or none, and equal ones have one name in all processes."""
    count = tier.count(quick=300, full=20_000, soak=500_000)
    seed = f"{tier.seed} names"
    step = Workflow("names", store="memory://names").step(takes)
    wrong, different, unnamed = [], 0, 0
    for rng, args in arguments(seed, count):
        name, shown = name_of(step, *args), [*map(portrait, args)]
        copied = copy.deepcopy(args)
        if name_of(step, *copied) != name and [*map(portrait, copied)] == shown:
            wrong.append(f"{args!r:.200} is named {name}, and its copy is not")
        more = others(rng, args, name)
        other_name = name_of(step, *more)
        if name is None or other_name is None:
            unnamed += 1
        elif [*map(portrait, more)] != shown:
            different += 1
            if name == other_name:
                wrong.append(f"{args!r:.200} and {more!r:.200} are both named {name}")
        elif name != other_name:
            wrong.append(f"{args!r:.200} is named {name}, and {other_name}")
    some = tier.pick(quick="100", full="1000", soak="5000")
    with run_python(NAME, seed, some, env={"PYTHONHASHSEED": "7"}) as child:
        pairs = zip(names_of(seed, some), json.loads(child.line()), strict=True)
    wrong += [f"{here} is named {there} in another process" for here, there in pairs if here != there]
    figures.add(NAMES, "pairs of arguments named", count, len(wrong))
    assert not wrong, f"{len(wrong)} violations; the first:\n" + "\n".join(wrong[:20])
    assert different > tier.pick(quick=0.2, full=0.4, soak=0.4) * count, (different, unnamed)  # few kinds: much luck
