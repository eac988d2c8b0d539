"""Records compare, hash and show themselves as any attrs class does."""

from __future__ import annotations

import operator
from datetime import UTC, datetime
from unittest.mock import ANY

import pytest

from iso_orchestrator import ErrorInfo, Heartbeat, ItemContext, Retry, StepContext

NOON = datetime(2026, 5, 14, 12, tzinfo=UTC)
RECORDS = [
    ItemContext(3),
    StepContext("a", 1, 2, None),
    Heartbeat("beat", NOON),
    ErrorInfo("ValueError", "no"),
    Retry(attempts=2),
]


@pytest.mark.parametrize("record", RECORDS, ids=[type(record).__name__ for record in RECORDS])
def test_what_equals_everything_equals_a_record(record: object) -> None:
    """A record leaves it to an object of another class whether they are equal, on either side of the sign."""
    assert operator.eq(record, ANY)
    assert operator.eq(ANY, record)
    assert not operator.ne(record, ANY)


def test_records_of_different_values_or_classes_differ() -> None:
    """Nothing else is asked where the classes are the same; where nobody knows better, they differ."""
    assert ItemContext(3) == ItemContext(3)
    assert ItemContext(3) != ItemContext(4)
    assert ItemContext(3) != 3
    assert hash(ItemContext(3)) == hash(ItemContext(3))
    assert len({*RECORDS, *RECORDS}) == len(RECORDS)
