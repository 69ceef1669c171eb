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
    *, call_id: str, model: str, created: int, deltas: Sequence[ChatDelta], usage: Usage
) -> dict[str, Any]:
    """The whole answer, of the steps that it came in."""
    steps: dict[int, list[ChatDelta]] = {}
    for delta in deltas:
        steps.setdefault(delta.choice, []).append(delta)
    choices = []
    for index, of_choice in steps.items():
        message, finish_reason = message_out(of_choice)
        choices.append({"index": index, "message": message, "finish_reason": finish_reason})
    return {
        "id": call_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": choices,
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
            for field in ("name", "arguments"):
                known["function"][field] += call.get("function", {}).get(field) or ""
    for index, call in calls.items():
        call["id"] = tool_call_id(call["function"]["name"], index)
    if calls:
        message["tool_calls"] = [call for _index, call in sorted(calls.items())]
    reasons = [delta.finish_reason for delta in deltas if delta.finish_reason]
    return message, reasons[-1] if reasons else None


def tool_call_id(name: str, index: int) -> str:
    """The dialect's id of a tool call; engines have others, which nobody is told."""
    return f"{name}:{index}"


def tool_call_out(call: dict[str, Any]) -> dict[str, Any]:
    """A piece of a tool call; the one that names the function opens it and bears the id."""
    name = call.get("function", {}).get("name")
    if not name:
        return {key: value for key, value in call.items() if key != "id"}
    return call | {"id": tool_call_id(name, call.get("index", 0))}


def chunk_out(
    *, call_id: str, model: str, created: int, delta: ChatDelta, usage: Usage | None
) -> dict[str, Any]:
    """One `chat.completion.chunk`; with `usage` it ends an answer, and the usage up to then is in its choice."""
    content: dict[str, Any] = {}
    if delta.role is not None:
        content["role"] = delta.role
    if delta.content is not None:
        content["content"] = delta.content
    if delta.tool_calls is not None:
        content["tool_calls"] = [tool_call_out(call) for call in delta.tool_calls]
    choice: dict[str, Any] = {"index": delta.choice, "delta": content, "finish_reason": delta.finish_reason}
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
