"""cattrs without its coercions: it makes True of "false", 3 of 3.9 and 'None' of None."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = ["register_strict_scalars"]


def register_strict_scalars(converter: Converter) -> None:
    """Take ints, floats, texts and bools only for what they are; an int is fine where a float is asked."""
    for kind, accepted in _ACCEPTED.items():
        converter.register_structure_hook(kind, _strict(kind, accepted))


# What JSON has for each of them, by exact type: bool is a subclass of int.
_ACCEPTED: dict[type[Any], tuple[type[Any], ...]] = {
    int: (int,),
    float: (float, int),
    str: (str,),
    bool: (bool,),
    type(None): (type(None),),
}


def _strict(kind: type[Any], accepted: tuple[type[Any], ...]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, asked: Any) -> Any:
        if type(value) not in accepted:
            raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}: {value!r:.80}")
        # cattrs asks the hook of a class for its subclasses too, enums among them.
        if type(value) is asked or asked is None:
            return value
        if (made := asked(value)) != value:
            raise ValueError(f"{value!r:.80} is no {asked.__name__}")
        return made

    return structure
