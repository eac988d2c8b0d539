"""OpenAI's chat completions, which opencode speaks to most providers."""

from __future__ import annotations

from uuid import uuid4

from agents_real.model_server.protocols import Json, Protocol, Reply, ToolCall, openai_error, openai_headers
from agents_real.model_server.scripts import Refusal, Script, Usage

__all__ = ["CHAT"]


def _stream(request: Json, script: Script, call: ToolCall | None) -> Reply:
    head = {"id": f"chatcmpl-{uuid4().hex}", "object": "chat.completion.chunk", "model": request.get("model")}
    yield {**head, "choices": [_choice({"role": "assistant", "content": ""})]}
    if call is not None:
        yield {**head, "choices": [_choice({"tool_calls": [_call(call)]})]}
    else:
        for word in script.spoken():
            yield {**head, "choices": [_choice({"content": word})]}
    yield {**head, "choices": [_choice({}, "stop" if call is None else "tool_calls")]}
    yield {**head, "choices": [], "usage": _usage()}
    yield "[DONE]"


def _choice(delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _call(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.json}
    return {"index": 0, "id": f"call_{uuid4().hex[:12]}", "type": "function", "function": function}


def _usage() -> Json:
    return {
        "prompt_tokens": Usage.READ,
        "completion_tokens": Usage.WRITTEN,
        "total_tokens": Usage.READ + Usage.WRITTEN,
        "prompt_tokens_details": {"cached_tokens": Usage.CACHED},
    }


def _whole(request: Json, script: Script, call: ToolCall | None) -> Json:
    message: Json = {"role": "assistant", "content": "".join(script.words)}
    if call is not None:
        message = {"role": "assistant", "content": None, "tool_calls": [_call(call)]}
    choice = {"index": 0, "message": message, "finish_reason": "stop" if call is None else "tool_calls"}
    return {"id": f"chatcmpl-{uuid4().hex}", "object": "chat.completion", "choices": [choice], "usage": _usage()}


def _failure() -> Json:
    return {"error": {"message": "The model failed in the middle of its answer.", "type": "server_error"}}


def _refuse(refusal: Refusal) -> tuple[int, Json, dict[str, str]]:
    return refusal.status, openai_error(refusal), openai_headers(refusal)


def _has_result(request: Json) -> bool:
    turns = request.get("messages")
    return isinstance(turns, list) and bool(turns) and turns[-1].get("role") == "tool"


CHAT = Protocol(_stream, _whole, _failure, _refuse, _has_result, names_events=False)
