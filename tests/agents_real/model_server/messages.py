"""Anthropic's Messages, which claude speaks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

from agents_real.model_server.protocols import Json, Protocol, Reply, ToolCall
from agents_real.model_server.scripts import LONG, Refusal, Script, Usage

__all__ = ["MESSAGES"]


def _stream(request: Json, script: Script, call: ToolCall | None) -> Reply:
    head = _head(request)
    yield {"type": "message_start", "message": {**head, "content": [], "stop_reason": None, "usage": _usage(1)}}
    if call is not None:
        yield from _block({**_tool_use(call), "input": {}}, [{"type": "input_json_delta", "partial_json": call.json}])
    elif script.words:
        deltas = ({"type": "text_delta", "text": word} for word in script.spoken())
        yield from _block({"type": "text", "text": ""}, deltas)
    delta = {"stop_reason": _stop_reason(call), "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": Usage.WRITTEN}}
    yield {"type": "message_stop"}


def _block(start: Json, deltas: Iterator[Json] | list[Json]) -> Iterator[Json]:
    yield {"type": "content_block_start", "index": 0, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}


def _head(request: Json) -> Json:
    message_id = f"msg_{uuid4().hex[:24]}"
    return {"id": message_id, "type": "message", "role": "assistant", "model": request.get("model")}


def _tool_use(call: ToolCall) -> Json:
    return {"type": "tool_use", "id": f"toolu_{uuid4().hex[:20]}", "name": call.name, "input": call.arguments}


def _stop_reason(call: ToolCall | None) -> str:
    return "end_turn" if call is None else "tool_use"


def _usage(written: int) -> Json:
    return {
        "input_tokens": Usage.READ - Usage.CACHED,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": Usage.CACHED,
        "output_tokens": written,
    }


def _whole(request: Json, script: Script, call: ToolCall | None) -> Json:
    content = [_tool_use(call)] if call is not None else [{"type": "text", "text": "".join(script.words)}]
    end = {"stop_reason": _stop_reason(call), "stop_sequence": None, "usage": _usage(Usage.WRITTEN)}
    return {**_head(request), "content": content, **end}


def _failure() -> Json:
    return {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def _refuse(refusal: Refusal) -> tuple[int, Json, dict[str, str]]:
    kind, message = refusal.anthropic
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_lab"}
    return refusal.anthropic_status or refusal.status, body, _headers(refusal)


def _headers(refusal: Refusal) -> dict[str, str]:
    if refusal.retry_after is None:
        return {}
    headers = {"retry-after": str(refusal.retry_after)}
    if refusal.retry_after == LONG:  # a plan's limit, not a rate
        limit = "anthropic-ratelimit-unified"
        headers |= {
            "x-should-retry": "false",
            f"{limit}-status": "rejected",
            f"{limit}-reset": str(int(time.time()) + refusal.retry_after),
            f"{limit}-representative-claim": "five_hour",
            f"{limit}-overage-status": "rejected",
        }
    return headers


def _has_result(request: Json) -> bool:
    # A word of the CLI's own may follow the result, in a message of its own.
    parts = [part for turn in request.get("messages", [])[-2:] for part in _parts(turn)]
    return any(part.get("type") == "tool_result" for part in parts)


def _parts(turn: Json) -> list[Json]:
    content = turn.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


MESSAGES = Protocol(_stream, _whole, _failure, _refuse, _has_result, names_events=True)
