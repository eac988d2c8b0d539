from __future__ import annotations

import operator
from unittest.mock import ANY

import pytest
from support import T0

from iso_orchestrator import ErrorInfo, Heartbeat, ItemContext, Retry, StepContext

RECORDS = [
    ItemContext(3),
    StepContext("a", 1, 2, None),
    Heartbeat("beat", T0),
    ErrorInfo("ValueError", "no"),
    Retry(attempts=2),
]


@pytest.mark.parametrize("record", RECORDS, ids=[type(record).__name__ for record in RECORDS])
def test_what_equals_everything_equals_a_record(record: object) -> None:
    """A record leaves the comparison with an object of another class to that object."""
    assert operator.eq(record, ANY)
    assert operator.eq(ANY, record)
    assert not operator.ne(record, ANY)


def test_records_are_values() -> None:
    """Records of one class with equal fields are equal and have one hash; others differ."""
    assert ItemContext(3) == ItemContext(3)
    assert ItemContext(3) != ItemContext(4)
    assert ItemContext(3) != 3
    assert len({*RECORDS, *RECORDS}) == len(RECORDS)
