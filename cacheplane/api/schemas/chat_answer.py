"""`/v1/chat/completions`: what goes out, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cacheplane.chat import ChatDelta, Usage


def usage_out(usage: Usage) -> dict[str, Any]:
    """Usage in both shapes at once: `cached_tokens` beside the counts, and OpenAI's details."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def completion_out(
    *,
    call_id: str,
    model: str,
    created: int,
    message: dict[str, Any],
    finish_reason: str | None,
    usage: Usage,
) -> dict[str, Any]:
    return {
        "id": call_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": usage_out(usage),
    }


def message_out(deltas: Sequence[ChatDelta]) -> tuple[dict[str, Any], str | None]:
    """(message, finish reason) of an answer's steps put together."""
    text = "".join(delta.content for delta in deltas if delta.content)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for call in delta.tool_calls or ():
            known = calls.setdefault(
                call.get("index", 0),
                {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
            )
            known["id"] = call.get("id") or known["id"]
            for field in ("name", "arguments"):
                known["function"][field] += call.get("function", {}).get(field) or ""
    if calls:
        message["tool_calls"] = [call for _index, call in sorted(calls.items())]
    reasons = [delta.finish_reason for delta in deltas if delta.finish_reason]
    return message, reasons[-1] if reasons else None


def chunk_out(
    *, call_id: str, model: str, created: int, delta: ChatDelta, usage: Usage | None
) -> dict[str, Any]:
    """One `chat.completion.chunk`; with `usage` it is the last, which carries the usage in its choice."""
    content: dict[str, Any] = {}
    if delta.role is not None:
        content["role"] = delta.role
    if delta.content is not None:
        content["content"] = delta.content
    if delta.tool_calls is not None:
        content["tool_calls"] = delta.tool_calls
    choice: dict[str, Any] = {"index": 0, "delta": content, "finish_reason": delta.finish_reason}
    if usage is not None:
        choice["usage"] = usage_out(usage)
    return {
        "id": call_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [choice],
    }


def usage_chunk_out(*, call_id: str, model: str, created: int, usage: Usage) -> dict[str, Any]:
    """The extra last chunk of `stream_options.include_usage`: no choice, only usage."""
    return {
        "id": call_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [],
        "usage": usage_out(usage),
    }
