"""How many cases are tried: quick with every change, full in CI, soak in a night."""

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
    """The tier of this run.

    Attributes:
        seed: The seed of all randomness, see `random`.
        factor: The figures of the soak are multiplied by it: a short soak has less than 1.
    """

    name: TierName
    seed: int
    factor: float

    def pick(self, *, quick: T, full: T, soak: T) -> T:
        """The value for this tier."""
        return {"quick": quick, "full": full, "soak": soak}[self.name]

    def count(self, *, quick: int, full: int, soak: int) -> int:
        """The number of cases in this tier."""
        return (
            max(1, round(soak * self.factor)) if self.name == "soak" else self.pick(quick=quick, full=full, soak=soak)
        )

    def share(self, *, quick: float, full: float, soak: float) -> float:
        """The part of all cases that this tier tries: a short soak tries no less than the full tier."""
        if self.name == "soak":
            return min(soak, max(full, soak * self.factor))
        return self.pick(quick=quick, full=full, soak=soak)

    def skip_quick(self, why: str) -> None:
        """Skip the test in the quick tier: it says little with few cases, and many take too long."""
        if self.name == "quick":
            pytest.skip(f"not in the quick tier: {why}")

    def random(self, test: str) -> random.Random:
        """The randomness of a test, the same for one seed whatever other tests run."""
        return random.Random(f"{self.seed} {test}")


class Figures:
    """The number of cases that a test tried, and of violations: printed as a table when the run ends."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._since = time.monotonic()

    def add(self, row: int, what: str, count: int, violations: int = 0) -> None:
        """Record that *count* of *what* were tried for a row of the table of promises.

        Args:
            row: Its number.
            what: In the plural: ``"crash states, ordered model"``. Equal ones are added up.
            count: The number of cases.
            violations: The number of cases that broke a promise.
        """
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self._item.user_properties.append(("figure", (row, what, count, violations, round(seconds, 1))))
