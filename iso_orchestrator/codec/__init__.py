"""Facts, records and users' values to JSON and back; what JSON cannot hold without loss is refused."""

from iso_orchestrator.codec.json import decode, encode, to_json
from iso_orchestrator.codec.records import (
    fact_from_json,
    fact_to_json,
    is_as_written,
    projection_from_snapshot,
    record_to_json,
    snapshot_from_projection,
)
from iso_orchestrator.codec.values import ResultCodec, Unresolved, plain_json, updated_state

__all__ = [
    "ResultCodec",
    "Unresolved",
    "decode",
    "encode",
    "fact_from_json",
    "fact_to_json",
    "is_as_written",
    "plain_json",
    "projection_from_snapshot",
    "record_to_json",
    "snapshot_from_projection",
    "to_json",
    "updated_state",
]
