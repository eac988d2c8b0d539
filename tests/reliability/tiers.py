"""How much is tried: quick with every change, full in CI, soak in a night."""

from __future__ import annotations

import random
import time
from typing import Literal, TypeAlias, TypeVar

import attrs
import pytest

__all__ = ["Figures", "Tier", "TierName"]

TierName: TypeAlias = Literal["quick", "full", "soak"]

T = TypeVar("T")


@attrs.frozen
class Tier:
    """The tier that this run is of.

    Attributes:
        seed: What all randomness of a test is drawn from, by `random`.
        factor: By which the figures of the soak are multiplied: a short soak has less than 1.
    """

    name: TierName
    seed: int
    factor: float

    def pick(self, *, quick: T, full: T, soak: T) -> T:
        """What is to be used in this tier."""
        return {"quick": quick, "full": full, "soak": soak}[self.name]

    def count(self, *, quick: int, full: int, soak: int) -> int:
        """How often something is to be tried in this tier."""
        return (
            max(1, round(soak * self.factor)) if self.name == "soak" else self.pick(quick=quick, full=full, soak=soak)
        )

    def share(self, *, quick: float, full: float, soak: float) -> float:
        """Which part of all cases is to be tried in this tier: a short soak tries no less than the full tier."""
        if self.name == "soak":
            return min(soak, max(full, soak * self.factor))
        return self.pick(quick=quick, full=full, soak=soak)

    def random(self, test: str) -> random.Random:
        """The randomness of a test, the same for one seed whatever other tests run."""
        return random.Random(f"{self.seed} {test}")


class Figures:
    """What a test has tried and found; printed as a table when the run ends."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._since = time.monotonic()

    def add(self, row: int, what: str, count: int, violations: int = 0) -> None:
        """Say that *count* of *what* were tried for a row of the table of promises.

        Args:
            row: Its number.
            what: In the plural: ``"crash states, ordered model"``. Equal ones are added up.
            count: How many.
            violations: How many of them broke a promise.
        """
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self._item.user_properties.append(("figure", (row, what, count, violations, round(seconds, 1))))
