"""Equality, hash and representation of the package's records, once for all of them."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["Value"]


class Value:
    """A base of attrs classes with ``eq=False, repr=False``, which compare and show themselves as any attrs class.

    attrs would compile these methods anew for each class, which takes longer than all the rest of it.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented  # the other may know better, as unittest.mock.ANY does
        return _values(other) == _values(self)

    def __hash__(self) -> int:
        return hash((type(self), *_values(self)))

    def __repr__(self) -> str:
        names = [field.name for field in attrs.fields(type(self))]  # type: ignore[arg-type]  # attrs classes alone
        fields = (f"{name}={value!r}" for name, value in zip(names, _values(self), strict=True))
        return f"{type(self).__name__}({', '.join(fields)})"


def _values(record: Any) -> list[Any]:
    return [getattr(record, field.name) for field in attrs.fields(type(record))]
