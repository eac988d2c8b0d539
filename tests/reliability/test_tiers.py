"""The tiers themselves."""

from __future__ import annotations

from reliability.tiers import Tier


def test_randomness_is_by_seed_and_test() -> None:
    """Two tests of one run draw differently, and each the same again with the same seed."""
    tier = Tier("quick", 7, 1.0)
    draws = [tier.random(name).random() for name in ("a", "b", "a")]
    assert draws[0] == draws[2] != draws[1]
    assert Tier("quick", 8, 1.0).random("a").random() != draws[0]


def test_a_short_soak_tries_a_part() -> None:
    """A soak's counts are multiplied, those of the other tiers are not."""
    assert Tier("soak", 7, 0.01).count(quick=1, full=2, soak=1000) == 10
    assert Tier("full", 7, 0.01).count(quick=1, full=2, soak=1000) == 2
    assert Tier("soak", 7, 0.01).share(quick=0.1, full=0.2, soak=1.0) == 0.2
    assert Tier("soak", 7, 0.5).share(quick=0.1, full=0.2, soak=1.0) == 0.5
