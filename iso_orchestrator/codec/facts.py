"""Facts to JSON and back."""

from __future__ import annotations

from iso_orchestrator.codec.records import read, write
from iso_orchestrator.errors import FormatVersionError
from iso_orchestrator.record.facts import FACTS, Fact
from iso_orchestrator.record.model import Json

__all__ = ["fact_from_json", "fact_to_json"]


def fact_to_json(fact: Fact) -> tuple[str, dict[str, Json]]:
    """The tag of a fact and its fields."""
    return fact.tag, write(fact)


def fact_from_json(tag: Json, fields: dict[str, Json], path: str) -> Fact:
    """The fact with *tag* and *fields*, from the file *path*.

    Raises:
        FormatVersionError: A newer release wrote it: the tag or a field is unknown.
        ValueError: A field is missing, or of another type.
    """
    kind = FACTS.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise FormatVersionError(path, f"the unknown fact {tag!r}")
    try:
        return read(kind, fields)
    except Exception as error:
        unknown = getattr(error, "extra_fields", None)  # of cattrs' ForbiddenExtraKeysError
        if not unknown:
            raise
        names = ", ".join(sorted(unknown))
        raise FormatVersionError(path, f"a fact {tag!r} with the unknown {names}") from error
