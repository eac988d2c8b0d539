"""Facts, records and users' values to JSON and back, without loss or not at all."""

from iso_orchestrator.codec.facts import fact_from_json, fact_to_json, fact_to_text
from iso_orchestrator.codec.json import decode, encode, to_json
from iso_orchestrator.codec.records import (
    fold_from_snapshot,
    is_as_written,
    record_to_json,
    snapshot_from_fold,
)
from iso_orchestrator.codec.values import ResultCodec, plain_json

__all__ = [
    "ResultCodec",
    "decode",
    "encode",
    "fact_from_json",
    "fact_to_json",
    "fact_to_text",
    "fold_from_snapshot",
    "is_as_written",
    "plain_json",
    "record_to_json",
    "snapshot_from_fold",
    "to_json",
]
