"""Whether a history of concurrent calls could have come about one call after the other.

The search is that of Wing and Gong (1993), "Testing and Verifying Concurrent Objects", with the memory of Lowe (2017),
"Testing for linearizability": it tries the calls in every order that real time allows, and never twice what the same
calls have made of the same state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, Final, TypeAlias

import attrs

__all__ = ["UNKNOWN", "Call", "Model", "Verdict", "check", "mutex_model", "record_model"]


class _Unknown(Enum):
    UNKNOWN = "unknown"


UNKNOWN: Final = _Unknown.UNKNOWN
"""The outcome of a call that never returned: its process died in it."""


@attrs.frozen
class Call:
    """A call and what came of it.

    Attributes:
        who: The thread that called; a thread calls one thing at a time.
        asked: What was asked, the name of the operation first.
        outcome: What was answered, or UNKNOWN.
        invoked: When, on a clock that all share.
        returned: Likewise; None when it never did.
        thing: What it was asked of: calls of one thing are judged together, and things apart from each other.
    """

    who: str
    asked: tuple[Any, ...]
    outcome: Hashable
    invoked: int
    returned: int | None = None
    thing: str = "record"


Step: TypeAlias = Callable[[Any, tuple[Any, ...], Any], Iterable[Hashable]]


@attrs.frozen
class Model:
    """A thing as it is when one call comes after the other.

    Attributes:
        initial: Its state before the first call.
        step: From a state, what was asked and what was answered to the states that can follow: none when such an
            answer is impossible, several when the outcome is UNKNOWN or left open.
    """

    initial: Hashable
    step: Step


@attrs.frozen
class Verdict:
    """What `check` found.

    Attributes:
        legal: Whether there is an order.
        tried: How many pairs of calls made and state were seen.
        thing: What the calls that have no order were asked of.
        longest: The longest order that was possible.
        stuck: The calls of which none can come next after it.
    """

    legal: bool
    tried: int
    thing: str = ""
    longest: tuple[Call, ...] = ()
    stuck: tuple[Call, ...] = ()

    def __str__(self) -> str:
        if self.legal:
            return f"legal, after {self.tried} tries"
        shown = [f"  {call}" for call in self.longest[-12:]]
        stuck = [f"  {call}" for call in self.stuck]
        return "\n".join(
            [
                f"{self.thing} has no order; the longest that is possible ends with",
                *shown,
                "and none of",
                *stuck,
                "fits",
            ]
        )


def check(history: Iterable[Call], model_of: Callable[[str], Model]) -> Verdict:
    """Judge a history, each thing by its own model.

    Things can be judged one by one, since a history has an order if those of all its things have (Herlihy and
    Wing 1990, "Linearizability: A Correctness Condition for Concurrent Objects").
    """
    by_thing: dict[str, list[Call]] = defaultdict(list)
    for call in history:
        by_thing[call.thing].append(call)
    tried = 0
    for thing, calls in by_thing.items():
        verdict = _check_one(calls, model_of(thing))
        tried += verdict.tried
        if not verdict.legal:
            return attrs.evolve(verdict, thing=thing, tried=tried)
    return Verdict(True, tried)


def _check_one(calls: Sequence[Call], model: Model) -> Verdict:
    ended = sorted((call for call in calls if call.returned is not None), key=lambda call: call.invoked)
    # Behind the others in the order of trying: what never returned need not have happened.
    search = _Search(ended, [call for call in calls if call.returned is None], model.step)
    legal = search.finds_an_order(model.initial)
    return Verdict(legal, len(search.seen), longest=search.longest, stuck=search.stuck)


class _Search:
    """Depth first. What was made is a set of bits: those of *ended*, then those of *pending*."""

    def __init__(self, ended: Sequence[Call], pending: Sequence[Call], step: Step) -> None:
        self.seen: set[tuple[int, Hashable]] = set()
        self._longest: tuple[int, ...] = ()
        self._longest_done = 0
        self._calls = [*ended, *pending]
        self._ended = len(ended)
        self._all_ended = (1 << len(ended)) - 1
        self._step = step

    def finds_an_order(self, initial: Hashable) -> bool:
        """Whether there is one that has all calls that ended."""
        made: list[int] = []
        ways = [self._ways(0, initial)]
        self._note(made, 0)
        while ways:
            way = next(ways[-1], None)
            if way is None:
                ways.pop()
                del made[-1:]
                continue
            index, done, state = way
            if (done, state) in self.seen:
                continue
            self.seen.add((done, state))
            made.append(index)
            self._note(made, done)
            if done & self._all_ended == self._all_ended:
                return True
            ways.append(self._ways(done, state))
        return self._all_ended == 0

    def _note(self, made: Sequence[int], done: int) -> None:
        if made and len(made) <= len(self._longest):
            return
        self._longest = tuple(made)
        self._longest_done = done

    @property
    def longest(self) -> tuple[Call, ...]:
        """The longest order that was possible."""
        return tuple(self._calls[index] for index in self._longest)

    @property
    def stuck(self) -> tuple[Call, ...]:
        """What could come next after the longest."""
        return tuple(self._calls[index] for index in self._next(self._longest_done))

    def _ways(self, done: int, state: Hashable) -> Iterator[tuple[int, int, Hashable]]:
        for index in self._next(done):
            call = self._calls[index]
            for after in self._step(state, call.asked, call.outcome):
                yield index, done | 1 << index, after

    def _next(self, done: int) -> list[int]:
        """The calls that can come next: those that began before any that is still to come had ended."""
        found: list[int] = []
        ended = done & self._all_ended
        index = (~ended & (ended + 1)).bit_length() - 1  # the first that is to come: all before it are done
        first_end = None
        while index < self._ended:
            call = self._calls[index]
            if first_end is not None and call.invoked > first_end:
                break
            if not done >> index & 1:
                found.append(index)
                assert call.returned is not None
                first_end = call.returned if first_end is None else min(first_end, call.returned)
            index += 1
        found.sort(key=lambda number: self._calls[number].returned or 0)
        pending = (index for index in range(self._ended, len(self._calls)) if not done >> index & 1)
        found.extend(index for index in pending if first_end is None or self._calls[index].invoked <= first_end)
        return found


# A mutex: its state is who has it, as "process/thread", or "".


def _mutex(holder: str, asked: tuple[Any, ...], outcome: Any) -> tuple[str, ...]:
    match asked, outcome:
        case ("acquire", who), ("acquired",) | _Unknown.UNKNOWN:
            return (who,) if holder == "" else ()
        case ("acquire", _), ("timeout",):
            return (holder,)  # whoever waits in time for nothing may have been unlucky
        case ("release", who), ("released",) | _Unknown.UNKNOWN:
            return ("",) if holder == who else ()
        case ("die", process), ("dead",):
            return ("",) if holder.partition("/")[0] == process else (holder,)
    return ()


mutex_model = Model("", _mutex)


# The record: the state, the steps and the leases of a workflow, which a look shows all at once.

Value: TypeAlias = tuple[str, int]
StepNow: TypeAlias = tuple[str, str] | None  # ("done" or "failed", by which call)
LeaseNow: TypeAlias = tuple[str, int, bool] | None  # holder, token, whether it is released


@attrs.frozen(cache_hash=True)
class _Record:
    value: Value
    steps: tuple[StepNow, ...]
    leases: tuple[LeaseNow, ...]

    def with_step(self, index: int, step: StepNow) -> _Record:
        return _Record(self.value, (*self.steps[:index], step, *self.steps[index + 1 :]), self.leases)

    def with_lease(self, index: int, lease: LeaseNow) -> _Record:
        return _Record(self.value, self.steps, (*self.leases[:index], lease, *self.leases[index + 1 :]))

    def with_value(self, value: Value) -> _Record:
        return _Record(value, self.steps, self.leases)

    def added(self, who: str) -> _Record:
        return self.with_value((who, self.value[1] + 1))

    def seen(self) -> tuple[Value, tuple[str | None, ...], tuple[LeaseNow, ...]]:
        """What a look at the record shows."""
        return self.value, tuple(step[1] if step and step[0] == "done" else None for step in self.steps), self.leases


def record_model(steps: int, leases: int, brief: frozenset[int] = frozenset()) -> Model:
    """The model of a workflow.

    Args:
        steps: How many steps it has.
        leases: How many leases.
        brief: Those that may have run out at any time.
    """

    def step(record: _Record, asked: tuple[Any, ...], outcome: Any) -> Iterable[_Record]:
        after = _OPERATIONS[asked[0]](record, asked[1:], asked[0] in _ON_LEASES and asked[1] in brief)
        if outcome is UNKNOWN:
            return tuple(state for _, state in after)
        return tuple(state for answer, state in after if answer == outcome)

    return Model(_Record(("", 0), (None,) * steps, (None,) * leases), step)


# Each operation: the answers that are possible, and what the record is after each.
_Answers: TypeAlias = list[tuple[Hashable, _Record]]


def _put(record: _Record, asked: tuple[Any, ...], _: bool) -> _Answers:
    return [("ok", record.with_value((asked[0], 0)))]


def _add(record: _Record, asked: tuple[Any, ...], _: bool) -> _Answers:
    return [(record.value, record.added(asked[0]))]


def _look(record: _Record, _: tuple[Any, ...], __: bool) -> _Answers:
    return [(record.seen(), record)]


def _look_at_state(record: _Record, _: tuple[Any, ...], __: bool) -> _Answers:
    return [(record.value, record)]


def _run(record: _Record, asked: tuple[Any, ...], _: bool) -> _Answers:
    """A step whose body returns the call's own name, adds one to the state with it, or fails."""
    index, who, how = asked
    now = record.steps[index]
    if now is not None and now[0] == "done":
        return [(("known", now[1]), record)]
    told: _Answers = [(("failed with", now[1]), record)] if now is not None else []  # of whoever it waited for
    if how == "fails":
        return [(("failed",), record.with_step(index, ("failed", who))), *told]
    ran = record.with_step(index, ("done", who))
    if how == "adds":
        return [(("ran", record.value), ran.added(who)), *told]
    return [(("ran", None), ran), *told]


def _reset(record: _Record, asked: tuple[Any, ...], _: bool) -> _Answers:
    return [("reset", record.with_step(asked[0], None)), ("busy", record)]


def _touch(record: _Record, asked: tuple[Any, ...], may_have_run_out: bool) -> _Answers:
    index, holder = asked
    lease = record.leases[index]
    token = lease[1] if lease else 0
    acquired = ("token", token + 1), record.with_lease(index, (holder, token + 1, False))
    if lease is None or lease[2]:
        return [acquired]
    own = lease[0] == holder
    kept: tuple[Hashable, _Record] = (("token", token), record) if own else (("conflict", lease[0]), record)
    return [kept, acquired] if may_have_run_out else [kept]


def _release(record: _Record, asked: tuple[Any, ...], _: bool) -> _Answers:
    index, holder = asked
    lease = record.leases[index]
    if lease is None:
        return [(("none",), record)]
    if holder is not None and lease[0] != holder:
        return [(("conflict", lease[0]), record)]
    return [(("released", lease[1]), record.with_lease(index, (lease[0], lease[1], True)))]


def _fenced_add(record: _Record, asked: tuple[Any, ...], _: bool) -> _Answers:
    index, token, who = asked
    lost = _lost(record, index, token)
    return [lost] if lost else [(("added", record.value), record.added(who))]


def _leave(record: _Record, asked: tuple[Any, ...], _: bool) -> _Answers:
    index, token = asked
    lost = _lost(record, index, token)
    lease = record.leases[index]
    return [lost] if lost or lease is None else [(("left",), record.with_lease(index, (lease[0], token, True)))]


def _lost(record: _Record, index: int, token: int) -> tuple[Hashable, _Record] | None:
    lease = record.leases[index]
    return None if lease is None or lease[1] == token else (("lost", lease[1]), record)


_OPERATIONS: dict[str, Callable[[_Record, tuple[Any, ...], bool], _Answers]] = {
    "put": _put,
    "add": _add,
    "look": _look,
    "state": _look_at_state,
    "run": _run,
    "reset": _reset,
    "touch": _touch,
    "release": _release,
    "fenced add": _fenced_add,
    "leave": _leave,
}
_ON_LEASES = {"touch", "release", "leave"}
