"""The results of a `for_each`."""

from __future__ import annotations

from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import attrs

from iso_orchestrator.notes import add_note, message_of
from iso_orchestrator.record.model import html_table

_SHOWN = 10  # results of each kind that a notebook shows
_TEXT = 300  # characters of each

R = TypeVar("R")


@attrs.frozen
class Fulfilled(Generic[R]):
    """The result of an item that succeeded."""

    value: R

    @property
    def status(self) -> Literal["fulfilled"]:
        """The npm package's word for it."""
        return "fulfilled"


@attrs.frozen
class Rejected:
    """The result of an item that failed.

    Attributes:
        reason: The error.
        index: The item's place among the items, from 0.
        item: The item.
    """

    reason: BaseException
    index: int | None = attrs.field(default=None, eq=False)
    item: Any = attrs.field(default=None, eq=False, repr=False)

    @property
    def status(self) -> Literal["rejected"]:
        """The npm package's word for it."""
        return "rejected"


@attrs.frozen(repr=False)
class ForEachSummary(Generic[R]):
    """The results of all items, in the order of the items.

    Example:
        >>> summary = ForEachSummary([Fulfilled(1), Rejected(ValueError("no"))])
        >>> summary.fulfilled, summary.rejected
        (1, 1)
        >>> summary
        <ForEachSummary 1 fulfilled, 1 rejected>
    """

    results: list[Fulfilled[R] | Rejected]
    _name: str = attrs.field(default="", alias="_name", eq=False)  # of the function, for notes

    def __repr__(self) -> str:
        return f"<ForEachSummary {self.fulfilled} fulfilled, {self.rejected} rejected>"

    @property
    def fulfilled(self) -> int:
        """The number of items that succeeded."""
        return sum(isinstance(result, Fulfilled) for result in self.results)

    @property
    def rejected(self) -> int:
        """The number of items that failed."""
        return len(self.results) - self.fulfilled

    def values(self) -> list[R]:
        """The values of all items, if none failed.

        Raises:
            BaseException: The reason of the first item that failed, with a note that names the item's index.
        """
        values = []
        for index, result in enumerate(self.results):
            if isinstance(result, Rejected):
                note_item(result.reason, index, self._name)
                raise result.reason
            values.append(result.value)
        return values

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a row for each item, for a table or a DataFrame.

        Its columns are ``index``, ``status``, ``value``, ``error_type`` (the name of the error's class) and ``error``.

        Example:
            >>> ForEachSummary([Fulfilled(1)]).to_dicts()
            [{'index': 0, 'status': 'fulfilled', 'value': 1, 'error_type': None, 'error': None}]
        """
        return [
            {
                "index": index,
                "status": result.status,
                "value": result.value if isinstance(result, Fulfilled) else None,
                "error_type": None if isinstance(result, Fulfilled) else type(result.reason).__name__,
                "error": None if isinstance(result, Fulfilled) else result.reason,
            }
            for index, result in enumerate(self.results)
        ]

    def _repr_html_(self) -> str:
        rejected = [(number, one) for number, one in enumerate(self.results) if isinstance(one, Rejected)]
        rows = [(number, "✕ rejected", message_of(one.reason, repr)[:_TEXT]) for number, one in rejected[:_SHOWN]]
        fulfilled = ((number, one) for number, one in enumerate(self.results) if isinstance(one, Fulfilled))
        rows += [(number, "✓ fulfilled", str(one.value)[:_TEXT]) for number, one in islice(fulfilled, _SHOWN)]
        left = len(self.results) - len(rows)
        caption = (
            f"for_each: {self.fulfilled} fulfilled, {self.rejected} rejected{f', {left} not shown' if left else ''}"
        )
        return html_table(caption, ["item", "status", "value or reason"], rows)


def note_item(error: BaseException, index: int, name: str) -> None:
    """Add a note to an item's error that names the item and the function, once."""
    note = f"raised by item {index} of for_each {name!r}" if name else f"raised by item {index} of for_each"
    if not any(note in known for known in getattr(error, "__notes__", ())):
        add_note(error, note)
