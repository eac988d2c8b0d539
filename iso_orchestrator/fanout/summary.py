"""The results of a `for_each`."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import attrs

from iso_orchestrator.notes import add_note, message_of
from iso_orchestrator.record.model import html_table

_SHOWN = 200  # rows of the table in a notebook

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
                note_item(result.reason, index)
                raise result.reason
            values.append(result.value)
        return values

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a row for each item, for a table or a DataFrame: ``index``, ``status``, ``value`` and ``error``.

        Example:
            >>> ForEachSummary([Fulfilled(1)]).to_dicts()
            [{'index': 0, 'status': 'fulfilled', 'value': 1, 'error': None}]
        """
        return [
            {
                "index": index,
                "status": result.status,
                "value": result.value if isinstance(result, Fulfilled) else None,
                "error": None if isinstance(result, Fulfilled) else result.reason,
            }
            for index, result in enumerate(self.results)
        ]

    def _repr_html_(self) -> str:
        rows = [
            (index, result.status, result.value if isinstance(result, Fulfilled) else message_of(result.reason, repr))
            for index, result in enumerate(self.results[:_SHOWN])
        ]
        cut = f", the first {_SHOWN} shown" if len(self.results) > _SHOWN else ""
        caption = f"for_each: {self.fulfilled} fulfilled, {self.rejected} rejected{cut}"
        return html_table(caption, ["item", "status", "value or reason"], rows)


def note_item(error: BaseException, index: int) -> None:
    """Add a note to an item's error that names the item, once."""
    note = f"raised by item {index} of for_each"
    if not any(note in known for known in getattr(error, "__notes__", ())):
        add_note(error, note)
