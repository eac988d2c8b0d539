"""OpenAI's Responses, which codex speaks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from uuid import uuid4

from agents_real.model_server.protocols import Json, Protocol, Reply, ToolCall, openai_error, openai_headers
from agents_real.model_server.scripts import Refusal, Script, Usage

__all__ = ["RESPONSES"]


def _stream(request: Json, script: Script, call: ToolCall | None) -> Reply:
    head: Json = {"id": f"resp_{uuid4().hex}", "object": "response", "model": request.get("model"), "output": []}
    numbers = itertools.count()
    output: list[Json] = []
    for event in _events(head, script, call, output):
        yield {**event, "sequence_number": next(numbers)}


def _events(head: Json, script: Script, call: ToolCall | None, output: list[Json]) -> Iterator[Json]:
    yield {"type": "response.created", "response": {**head, "status": "in_progress"}}
    if call is not None:
        output.append(_call_item(call))
        yield {"type": "response.output_item.added", "output_index": 0, "item": output[0]}
        yield {"type": "response.output_item.done", "output_index": 0, "item": output[0]}
    elif script.words:
        yield from _message(script, output)
    response = {**head, "status": "completed", "output": output, "usage": _usage()}
    yield {"type": "response.completed", "response": response}


def _message(script: Script, output: list[Json]) -> Iterator[Json]:
    item_id = f"msg_{uuid4().hex}"
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    yield {"type": "response.output_item.added", "output_index": 0, "item": _message_item(item_id, [])}
    yield {"type": "response.content_part.added", **place, "part": _part("")}
    text = ""
    for word in script.spoken():
        text += word
        yield {"type": "response.output_text.delta", **place, "delta": word}
    output.append(_message_item(item_id, [_part(text)]))
    yield {"type": "response.output_text.done", **place, "text": text}
    yield {"type": "response.output_item.done", "output_index": 0, "item": output[0]}


def _call_item(call: ToolCall) -> Json:
    return {
        "type": "function_call",
        "id": f"fc_{uuid4().hex}",
        "call_id": f"call_{uuid4().hex[:12]}",
        "name": call.name,
        "arguments": call.json,
        "status": "completed",
    }


def _message_item(item_id: str, content: list[Json]) -> Json:
    return {"type": "message", "id": item_id, "role": "assistant", "status": "completed", "content": content}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def _usage() -> Json:
    return {
        "input_tokens": Usage.READ,
        "input_tokens_details": {"cached_tokens": Usage.CACHED},
        "output_tokens": Usage.WRITTEN,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": Usage.READ + Usage.WRITTEN,
    }


def _whole(request: Json, script: Script, call: ToolCall | None) -> Json:
    *_, last = _stream(request, script, call)
    assert isinstance(last, dict)
    response: Json = last["response"]
    return response


def _failure() -> Json:
    error = {"code": "server_error", "message": "The model failed in the middle of its answer."}
    return {"type": "response.failed", "response": {"status": "failed", "error": error}}


def _refuse(refusal: Refusal) -> tuple[int, Json, dict[str, str]]:
    return refusal.status, openai_error(refusal), openai_headers(refusal)


def _has_result(request: Json) -> bool:
    turns = request.get("input")
    return isinstance(turns, list) and bool(turns) and str(turns[-1].get("type")).endswith("call_output")


RESPONSES = Protocol(_stream, _whole, _failure, _refuse, _has_result, names_events=True)
