"""`/v1/chat/completions`: what comes in. Zero and null numbers mean "not set"; unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cacheplane.api.schemas.caching import INT64_MAX
from cacheplane.api.schemas.chat_reference import CacheReference, cache_reference
from cacheplane.api.schemas.decoding import decode, refuse, refuse_nul
from cacheplane.api.schemas.messages import (
    MESSAGES_MAX,
    TOOLS_MAX,
    ChatMessage,
    ToolDeclaration,
    as_call_messages,
    as_tools,
    messages_from,
)
from cacheplane.chat import ChatRequest
from cacheplane.errors import InvalidRequest

MAX_TOKENS_DEFAULT = 1024
STOPS_MAX, STOP_BYTES_MAX = 5, 32


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object"]


class ChatCompletions(msgspec.Struct):
    model: Annotated[str, Meta(max_length=128)]
    messages: Annotated[list[Any], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    """The same by the name that today's SDKs give it; `max_tokens` goes before it."""
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=0, le=5)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    response_format: ResponseFormat | None = None
    stop: str | Annotated[list[str], Meta(max_length=STOPS_MAX)] | None = None
    seed: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ToolDeclaration], Meta(max_length=TOOLS_MAX)] | msgspec.UnsetType | None = (
        msgspec.UNSET
    )
    tool_choice: Literal["none", "auto"] | None = None


class CountTokens(msgspec.Struct):
    model: Annotated[str, Meta(max_length=128)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]


class ParsedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A chat call, checked. `request.messages` holds no cache message."""

    request: ChatRequest
    reference: CacheReference | None
    is_stream: bool
    includes_usage: bool


def parse_chat(body: bytes, *, header_reference: CacheReference | None) -> ParsedChat:
    """Read a `/v1/chat/completions` body. Raises InvalidRequest."""
    raw = decode(body, ChatCompletions)
    refuse_nul(body, {"model": raw.model, "messages": raw.messages})
    reference, rest = header_reference, raw.messages
    offset = 0
    if _is_cache_message(raw.messages[0]):
        has_tools = raw.tools is not msgspec.UNSET and raw.tools is not None
        reference = cache_reference(raw.messages[0], has_tools=has_tools)
        rest, offset = raw.messages[1:], 1
    for index, item in enumerate(rest, start=offset):
        if _is_cache_message(item):
            raise InvalidRequest(
                f"Invalid request: messages[{index}].role: got 'cache', takes it first and once"
            )
    messages = messages_from(rest, offset=offset)
    tools = raw.tools if raw.tools is not msgspec.UNSET else None
    response_format = msgspec.to_builtins(raw.response_format) if raw.response_format else None
    if (
        messages
        and messages[-1].partial
        and raw.response_format
        and raw.response_format.type == "json_object"
    ):
        taken = "text beside a partial message: an answer that goes on from a text is no JSON by itself"
        raise refuse("response_format.type", "json_object", taken)
    request = ChatRequest(
        model=raw.model,
        messages=as_call_messages(messages, offset=offset),
        tools=as_tools(tools, messages),
        max_tokens=raw.max_tokens or raw.max_completion_tokens or MAX_TOKENS_DEFAULT,
        temperature=raw.temperature or 0.0,
        top_p=raw.top_p or None,
        presence_penalty=raw.presence_penalty or None,
        frequency_penalty=raw.frequency_penalty or None,
        stop=_stops(raw.stop),
        seed=raw.seed or None,
        n=raw.n or 1,
        response_format=response_format,
        tool_choice=raw.tool_choice if tools or (reference and reference.is_message) else None,
    )
    options = raw.stream_options
    return ParsedChat(
        request=request,
        reference=reference,
        is_stream=bool(raw.stream),
        includes_usage=bool(options and options.include_usage),
    )


def _is_cache_message(item: object) -> bool:
    return isinstance(item, dict) and item.get("role") == "cache"


def _stops(stop: str | list[str] | None) -> list[str] | None:
    stops = [stop] if isinstance(stop, str) else stop or []
    for index, word in enumerate(stops):
        if not 0 < len(word.encode()) <= STOP_BYTES_MAX:
            raise refuse(f"stop[{index}]", word[:40], f"1 to {STOP_BYTES_MAX} bytes")
    return stops or None
