"""Row 14: what threads and processes saw of one workflow has an order in which it happened."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import attrs
import pytest
from reliability.histories import Plan, model_of, parse, record_in_memory
from reliability.linearizability import UNKNOWN, Call, Model, check, mutex_model, record_model
from reliability.tiers import Figures, Tier
from support import Child, run_python

PARTS = 6


@pytest.fixture(scope="module")
def recorder() -> Iterator[Child]:
    with run_python("from reliability.histories import serve; serve()") as child:
        yield child
        child.end()


def assert_legal(history: list[Call], plan: Plan) -> None:
    verdict = check(history, model_of)
    if verdict.legal:
        return
    text = "\n".join(map(str, sorted(history, key=lambda call: call.invoked)))
    raise AssertionError(f"{plan}\n{verdict}\nthe whole history:\n{text}")


@pytest.mark.parametrize("part", range(PARTS))
def test_real_histories_are_legal(tier: Tier, figures: Figures, recorder: Child, folder: Path, part: int) -> None:
    """What processes saw of one store, some of them killed, could have come about one call after the other."""
    count = tier.count(quick=6, full=150, soak=10_000)
    calls = tier.pick(quick=100, full=300, soak=500)
    seen = 0
    for number in range(part, count, PARTS):
        processes, threads = [(3, 3), (2, 4), (4, 1)][number % 3]
        plan = Plan(
            seed=f"{tier.seed} {number}",
            processes=processes,
            threads=threads,
            calls=-(-calls // (processes * threads)),
            kills=number % 4 // 2,
            folder=f"{folder}/{number}",
        )
        recorder.say(json.dumps(attrs.asdict(plan)))
        history = parse(recorder.line())
        assert_legal(history, plan)
        seen += len(history)
    figures.add(14, "histories of threads and killed processes", len(range(part, count, PARTS)))
    figures.add(14, "calls in them", seen)


def test_histories_in_memory_are_legal(tier: Tier, figures: Figures) -> None:
    """What threads saw of the store in memory could have come about one call after the other."""
    count = tier.count(quick=5, full=30, soak=1_000)
    for number in range(count):
        plan = Plan(f"{tier.seed} {number}", 1, 4, tier.pick(quick=25, full=75, soak=125), 0, "")
        assert_legal(record_in_memory(plan), plan)
    figures.add(14, "histories of threads on the store in memory", count)


# What follows tries the checker. A line of a history: who, what was asked, what was answered, from when to when.

Line = tuple[str, tuple[Any, ...], Any, int, int | None]
A, B, C = "1/0", "1/1", "2/0"


def calls(lines: list[Line]) -> list[Call]:
    return [Call(who, asked, outcome, invoked, returned) for who, asked, outcome, invoked, returned in lines]


def is_legal(model: Model, lines: list[Line]) -> bool:
    return check(calls(lines), lambda _: model).legal


def seen(value: tuple[str, int] = ("", 0), step: str | None = None, lease: tuple[str, int, bool] | None = None) -> Any:
    return value, (step,), (lease,)


RECORD = record_model(1, 1)
BRIEF = record_model(1, 1, frozenset([0]))

ILLEGAL_MUTEX: dict[str, list[Line]] = {
    "two have it": [(A, ("acquire", A), ("acquired",), 1, 2), (B, ("acquire", B), ("acquired",), 3, 4)],
    "two got it at one time": [(A, ("acquire", A), ("acquired",), 1, 4), (B, ("acquire", B), ("acquired",), 2, 3)],
    "got before it was let go": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (B, ("acquire", B), ("acquired",), 3, 4),
        (A, ("release", A), ("released",), 5, 6),
    ],
    "released by another": [(A, ("acquire", A), ("acquired",), 1, 2), (B, ("release", B), ("released",), 3, 4)],
    "released twice": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (A, ("release", A), ("released",), 3, 4),
        (A, ("release", A), ("released",), 5, 6),
    ],
    "released by nobody who had it": [(A, ("release", A), ("released",), 1, 2)],
    "the death of one frees what another process has": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        ("killer", ("die", "2"), ("dead",), 3, 4),
        (C, ("acquire", C), ("acquired",), 5, 6),
    ],
    "got before its holder died": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (C, ("acquire", C), ("acquired",), 3, 4),
        ("killer", ("die", "1"), ("dead",), 5, 6),
    ],
    "released after it was freed by a death": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        ("killer", ("die", "1"), ("dead",), 3, 4),
        (A, ("release", A), ("released",), 5, 6),
    ],
    "an unfinished release frees it once only": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (A, ("release", A), UNKNOWN, 3, None),
        (B, ("acquire", B), ("acquired",), 4, 5),
        (C, ("acquire", C), ("acquired",), 6, 7),
    ],
    "an unfinished release frees nothing before it began": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (B, ("acquire", B), ("acquired",), 3, 4),
        (A, ("release", A), UNKNOWN, 5, None),
    ],
}

LEGAL_MUTEX: dict[str, list[Line]] = {
    "handed on while both calls go on": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (B, ("acquire", B), ("acquired",), 3, 6),
        (A, ("release", A), ("released",), 4, 7),
    ],
    "the release returned long after the next had it": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (A, ("release", A), ("released",), 3, 20),
        (B, ("acquire", B), ("acquired",), 4, 5),
        (B, ("release", B), ("released",), 6, 7),
        (C, ("acquire", C), ("acquired",), 8, 9),
    ],
    "an unfinished release took effect": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (A, ("release", A), UNKNOWN, 3, None),
        (C, ("acquire", C), ("acquired",), 4, 5),
    ],
    "an unfinished acquisition took none": [
        (A, ("acquire", A), UNKNOWN, 1, None),
        (C, ("acquire", C), ("acquired",), 2, 3),
    ],
    "freed in the midst of the death": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        ("killer", ("die", "1"), ("dead",), 3, 6),
        (C, ("acquire", C), ("acquired",), 4, 5),
    ],
    "waited in vain": [
        (A, ("acquire", A), ("acquired",), 1, 2),
        (B, ("acquire", B), ("timeout",), 3, 4),
        (A, ("release", A), ("released",), 5, 6),
    ],
    "one moment for the end of one and the start of the other": [
        (A, ("release", A), ("released",), 3, 3),
        (A, ("acquire", A), ("acquired",), 1, 3),
    ],
}

ILLEGAL_RECORD: dict[str, list[Line]] = {
    "an update is lost": [
        (A, ("add", "a"), ("", 0), 1, 2),
        (B, ("add", "b"), ("", 0), 3, 4),
    ],
    "an update of two at one time is lost": [
        (A, ("add", "a"), ("", 0), 1, 4),
        (B, ("add", "b"), ("", 0), 2, 3),
    ],
    "an old state is read": [
        (A, ("add", "a"), ("", 0), 1, 2),
        (B, ("state",), ("", 0), 3, 4),
    ],
    "a state is read before it was made": [
        (B, ("state",), ("a", 1), 1, 2),
        (A, ("add", "a"), ("", 0), 3, 4),
    ],
    "two readers disagree about the order": [
        (A, ("put", "a"), "ok", 1, 10),
        (B, ("put", "b"), "ok", 1, 10),
        (C, ("state",), ("a", 0), 2, 3),
        (C, ("state",), ("b", 0), 4, 5),
        ("3/0", ("state",), ("b", 0), 2, 3),
        ("3/0", ("state",), ("a", 0), 4, 5),
    ],
    "a reader goes back": [
        (A, ("add", "a"), ("", 0), 1, 10),
        (B, ("state",), ("a", 1), 2, 3),
        (B, ("state",), ("", 0), 4, 5),
    ],
    "an unfinished update comes and goes": [
        (A, ("add", "a"), UNKNOWN, 1, None),
        (B, ("state",), ("a", 1), 2, 3),
        (B, ("state",), ("", 0), 4, 5),
    ],
    "an unfinished update happens twice": [
        (A, ("add", "a"), UNKNOWN, 1, None),
        (B, ("state",), ("a", 1), 2, 3),
        (B, ("put", "b"), "ok", 4, 5),
        (B, ("state",), ("a", 1), 6, 7),
    ],
    "an unfinished update happens before it began": [
        (B, ("state",), ("a", 1), 1, 2),
        (A, ("add", "a"), UNKNOWN, 3, None),
    ],
    "a step is completed twice": [
        (A, ("run", 0, "a", "plain"), ("ran", None), 1, 2),
        (B, ("run", 0, "b", "plain"), ("ran", None), 3, 4),
    ],
    "a step is completed twice at one time": [
        (A, ("run", 0, "a", "plain"), ("ran", None), 1, 4),
        (B, ("run", 0, "b", "plain"), ("ran", None), 2, 3),
    ],
    "a result is known that nobody has returned": [(B, ("run", 0, "b", "plain"), ("known", "a"), 1, 2)],
    "a result is known before it was recorded": [
        (B, ("run", 0, "b", "plain"), ("known", "a"), 1, 2),
        (A, ("run", 0, "a", "plain"), ("ran", None), 3, 4),
    ],
    "a result is known after a reset": [
        (A, ("run", 0, "a", "plain"), ("ran", None), 1, 2),
        (A, ("reset", 0), "reset", 3, 4),
        (B, ("run", 0, "b", "plain"), ("known", "a"), 5, 6),
    ],
    "a body ran, and another result counted": [
        (A, ("run", 0, "a", "plain"), ("ran", None), 1, 2),
        (B, ("run", 0, "b", "plain"), ("known", "a", "after its body was run"), 3, 4),
    ],
    "a step failed after it was completed": [
        (A, ("run", 0, "a", "plain"), ("ran", None), 1, 2),
        (B, ("run", 0, "b", "fails"), ("failed",), 3, 4),
    ],
    "a failure is told that nobody had": [(B, ("run", 0, "b", "plain"), ("failed with", "a"), 1, 2)],
    "a failure is told from before a success": [
        (A, ("run", 0, "a", "fails"), ("failed",), 1, 2),
        (A, ("run", 0, "c", "plain"), ("ran", None), 3, 4),
        (B, ("run", 0, "b", "plain"), ("failed with", "a"), 5, 6),
    ],
    "a step adds without what was there": [
        (A, ("add", "a"), ("", 0), 1, 2),
        (B, ("run", 0, "b", "adds"), ("ran", ("", 0)), 3, 4),
    ],
    "a step is seen without what it adds": [
        (B, ("run", 0, "b", "adds"), ("ran", ("", 0)), 1, 10),
        (C, ("look",), seen(("", 0), "b"), 2, 3),
    ],
    "what a step adds is seen without it": [
        (B, ("run", 0, "b", "adds"), ("ran", ("", 0)), 1, 10),
        (C, ("look",), seen(("b", 1), None), 2, 3),
    ],
    "two looks see two things in two orders": [
        (A, ("add", "a"), ("", 0), 1, 10),
        (B, ("run", 0, "b", "plain"), ("ran", None), 1, 10),
        (C, ("look",), seen(("a", 1), None), 2, 3),
        ("3/0", ("look",), seen(("", 0), "b"), 4, 5),
    ],
    "two hold a lease": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (B, ("touch", 0, "beta"), ("token", 2), 3, 4),
    ],
    "two acquisitions have one token": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (A, ("release", 0, "alpha"), ("released", 1), 3, 4),
        (B, ("touch", 0, "beta"), ("token", 1), 5, 6),
    ],
    "a renewal has a new token": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (A, ("touch", 0, "alpha"), ("token", 2), 3, 4),
    ],
    "a token is left out": [(A, ("touch", 0, "alpha"), ("token", 2), 1, 2)],
    "a lease that nobody has is refused": [(A, ("touch", 0, "alpha"), ("conflict", "beta"), 1, 2)],
    "a released lease is refused": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (A, ("release", 0, None), ("released", 1), 3, 4),
        (B, ("touch", 0, "beta"), ("conflict", "alpha"), 5, 6),
    ],
    "another's lease is released": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (B, ("release", 0, "beta"), ("released", 1), 3, 4),
    ],
    "something is added under an old token": [
        (A, ("touch", 0, "a"), ("token", 1), 1, 2),
        (B, ("release", 0, None), ("released", 1), 3, 4),
        (B, ("touch", 0, "b"), ("token", 2), 5, 6),
        (A, ("fenced add", 0, 1, "x"), ("added", ("", 0)), 7, 8),
    ],
    "a lease that nobody took is lost": [
        (A, ("touch", 0, "a"), ("token", 1), 1, 2),
        (A, ("fenced add", 0, 1, "x"), ("lost", 2), 3, 4),
    ],
    "a lost lease is left as if it were not": [
        (A, ("touch", 0, "a"), ("token", 1), 1, 2),
        (B, ("release", 0, None), ("released", 1), 3, 4),
        (B, ("touch", 0, "b"), ("token", 2), 5, 6),
        (A, ("leave", 0, 1), ("left",), 7, 8),
    ],
    "leaving a lost lease releases the new one": [
        (A, ("touch", 0, "a"), ("token", 1), 1, 2),
        (B, ("release", 0, None), ("released", 1), 3, 4),
        (B, ("touch", 0, "b"), ("token", 2), 5, 6),
        (A, ("leave", 0, 1), ("lost", 2), 7, 8),
        (C, ("look",), seen(lease=("b", 2, True)), 9, 10),
    ],
}

LEGAL_RECORD: dict[str, list[Line]] = {
    "nothing happened": [],
    "only what never returned": [(A, ("add", "a"), UNKNOWN, 1, None)],
    "updates in an order other than that of their starts": [
        (A, ("add", "a"), ("b", 1), 1, 10),
        (B, ("add", "b"), ("", 0), 5, 9),
    ],
    "a read that lasts sees what came in the meantime": [
        (B, ("state",), ("a", 1), 1, 10),
        (A, ("add", "a"), ("", 0), 2, 3),
        (A, ("add", "c"), ("a", 1), 4, 5),
    ],
    "an unfinished update happens late": [
        (A, ("add", "a"), UNKNOWN, 1, None),
        (B, ("state",), ("", 0), 2, 3),
        (B, ("state",), ("a", 1), 4, 5),
    ],
    "an unfinished update never happens": [
        (A, ("add", "a"), UNKNOWN, 1, None),
        (B, ("add", "b"), ("", 0), 2, 3),
        (B, ("state",), ("b", 1), 4, 5),
    ],
    "two unfinished updates, of which one happened": [
        (A, ("add", "a"), UNKNOWN, 1, None),
        (C, ("add", "c"), UNKNOWN, 1, None),
        (B, ("add", "b"), ("c", 1), 2, 3),
    ],
    "an unfinished step has been completed": [
        (A, ("run", 0, "a", "plain"), UNKNOWN, 1, None),
        (B, ("run", 0, "b", "plain"), ("known", "a"), 2, 3),
    ],
    "an unfinished step has not": [
        (A, ("run", 0, "a", "plain"), UNKNOWN, 1, None),
        (B, ("run", 0, "b", "plain"), ("ran", None), 2, 3),
    ],
    "a waiter gets the outcome that it waited for, though the step was reset since": [
        (A, ("run", 0, "a", "plain"), ("ran", None), 1, 4),
        (B, ("run", 0, "b", "plain"), ("known", "a"), 2, 20),
        (A, ("reset", 0), "reset", 5, 6),
        (C, ("run", 0, "c", "plain"), ("ran", None), 7, 8),
    ],
    "a waiter gets the failure that it waited for, though the step succeeded since": [
        (A, ("run", 0, "a", "fails"), ("failed",), 1, 4),
        (B, ("run", 0, "b", "plain"), ("failed with", "a"), 2, 20),
        (A, ("run", 0, "c", "plain"), ("ran", None), 5, 6),
    ],
    "a failed step is run again": [
        (A, ("run", 0, "a", "fails"), ("failed",), 1, 2),
        (B, ("run", 0, "b", "adds"), ("ran", ("", 0)), 3, 4),
        (C, ("look",), seen(("b", 1), "b"), 5, 6),
    ],
    "a reset is refused while somebody runs the step": [
        (A, ("run", 0, "a", "plain"), ("ran", None), 1, 10),
        (B, ("reset", 0), "busy", 2, 3),
        (B, ("run", 0, "b", "plain"), ("known", "a"), 4, 11),
    ],
    "a lease is taken over in the midst of a fenced update": [
        (A, ("touch", 0, "a"), ("token", 1), 1, 2),
        (A, ("fenced add", 0, 1, "x"), ("added", ("", 0)), 3, 20),
        (B, ("release", 0, None), ("released", 1), 4, 5),
        (B, ("touch", 0, "b"), ("token", 2), 6, 7),
        (A, ("leave", 0, 1), ("lost", 2), 21, 22),
    ],
    "a lease that was released fences nobody until it is taken": [
        (A, ("touch", 0, "a"), ("token", 1), 1, 2),
        (B, ("release", 0, None), ("released", 1), 3, 4),
        (A, ("fenced add", 0, 1, "x"), ("added", ("", 0)), 5, 6),
        (A, ("leave", 0, 1), ("left",), 7, 8),
    ],
    "an unfinished touch explains a conflict": [
        (A, ("touch", 0, "a"), UNKNOWN, 1, None),
        (B, ("touch", 0, "b"), ("conflict", "a"), 2, 3),
    ],
    "an unfinished touch and release explain a token": [
        (A, ("touch", 0, "a"), UNKNOWN, 1, None),
        (B, ("release", 0, None), ("released", 1), 2, 3),
        (C, ("touch", 0, "c"), ("token", 2), 4, 5),
    ],
}

ILLEGAL_BRIEF: dict[str, list[Line]] = {
    "a token is given out twice": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (B, ("touch", 0, "beta"), ("token", 1), 3, 4),
    ],
    "a lease is taken over, and a third is told of the first holder": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (B, ("touch", 0, "beta"), ("token", 2), 3, 4),
        (C, ("touch", 0, "gamma"), ("conflict", "alpha"), 5, 6),
    ],
}

LEGAL_BRIEF: dict[str, list[Line]] = {
    "it may run out and may not": [
        (A, ("touch", 0, "alpha"), ("token", 1), 1, 2),
        (B, ("touch", 0, "beta"), ("conflict", "alpha"), 3, 4),
        (B, ("touch", 0, "beta"), ("token", 2), 5, 6),
        (B, ("touch", 0, "beta"), ("token", 2), 7, 8),
        (B, ("touch", 0, "beta"), ("token", 3), 9, 10),
    ],
}

MODELS = {"mutex": mutex_model, "record": RECORD, "brief": BRIEF}
ILLEGAL = {"mutex": ILLEGAL_MUTEX, "record": ILLEGAL_RECORD, "brief": ILLEGAL_BRIEF}
LEGAL = {"mutex": LEGAL_MUTEX, "record": LEGAL_RECORD, "brief": LEGAL_BRIEF}


def cases(table: dict[str, dict[str, list[Line]]]) -> Any:
    return [
        pytest.param(MODELS[kind], lines, id=name) for kind, named in table.items() for name, lines in named.items()
    ]


@pytest.mark.parametrize(("model", "lines"), cases(ILLEGAL))
def test_an_illegal_history_is_found_out(figures: Figures, model: Model, lines: list[Line]) -> None:
    """The checker refuses what cannot have happened, in whatever order the calls are written down."""
    assert not is_legal(model, lines)
    assert not is_legal(model, lines[::-1])
    figures.add(14, "illegal histories refused", 1)


@pytest.mark.parametrize(("model", "lines"), cases(LEGAL))
def test_a_legal_history_is_let_pass(figures: Figures, model: Model, lines: list[Line]) -> None:
    """The checker lets pass what can have happened, however odd it looks, in whatever order it is written down."""
    assert is_legal(model, lines)
    assert is_legal(model, lines[::-1])
    figures.add(14, "odd but legal histories let pass", 1)


def test_each_thing_has_its_own_order() -> None:
    """Mutexes of two keys exclude nobody, and what is wrong with one of them is named."""
    two = [Call(who, ("acquire", who), ("acquired",), 1, 2, thing) for who, thing in ((A, "one"), (B, "two"))]
    assert check(two, lambda _: mutex_model).legal
    third = Call(C, ("acquire", C), ("acquired",), 1, 2, "two")
    verdict = check([*two, third], lambda _: mutex_model)
    assert (verdict.legal, verdict.thing) == (False, "two")
    assert "two has no order" in str(verdict)


def _by_all_orders(history: list[Call], model: Model) -> bool:
    """The same by trying everything: each subset of what never returned, in each order that real time allows."""
    ended = [call for call in history if call.returned is not None]
    pending = [call for call in history if call.returned is None]
    for bits in range(1 << len(pending)):
        chosen = ended + [call for index, call in enumerate(pending) if bits >> index & 1]
        if any(_fits(order, model) for order in permutations(chosen)):
            return True
    return False


def _fits(order: tuple[Call, ...], model: Model) -> bool:
    states = {model.initial}
    for index, call in enumerate(order):
        if any(later.returned is not None and later.returned < call.invoked for later in order[index:]):
            return False
        states = {after for state in states for after in model.step(state, call.asked, call.outcome)}
    return bool(states)


def _random_history(rng: random.Random) -> list[Call]:
    """Few calls on one value, with answers that are as often wrong as right."""
    history = []
    for number in range(rng.randint(1, 6)):
        invoked = rng.randrange(12)
        asked = rng.choice([("put", f"p{number}"), ("add", f"p{number}"), ("state",)])
        value = (f"p{rng.randrange(3)}", rng.randrange(3)) if rng.random() < 0.6 else ("", 0)
        outcome: Any = "ok" if asked[0] == "put" else value
        returned = invoked + rng.randrange(8)
        pending = rng.random() < 0.2
        history.append(
            Call(f"{number}", asked, UNKNOWN if pending else outcome, invoked, None if pending else returned)
        )
    return history


def test_the_search_agrees_with_trying_everything(tier: Tier, figures: Figures) -> None:
    """On short histories the checker says what a search through all orders says."""
    rng = tier.random("test_the_search_agrees_with_trying_everything")
    count = tier.count(quick=60, full=3_000, soak=200_000)
    legal = 0
    for _ in range(count):
        history = _random_history(rng)
        expected = _by_all_orders(history, RECORD)
        assert check(history, lambda _: RECORD).legal == expected, history
        legal += expected
    assert 0.1 < legal / count < 0.9, "the histories say little when nearly all of them are of one kind"
    figures.add(14, "short histories judged by all orders too", count)
