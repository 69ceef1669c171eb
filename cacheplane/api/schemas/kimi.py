"""The Kimi dialect, field by field: what comes in, what goes out. Pure: bytes and dictionaries, no framework.

Unknown fields are ignored; zero and null numbers mean "not set"; every refusal names the field, what came and what
is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from cacheplane.chat import ChatDelta, ChatRequest, Message, Tool, Usage
from cacheplane.errors import InvalidRequest

S = TypeVar("S", bound=msgspec.Struct)

MAX_TOKENS_DEFAULT = 1024
MESSAGES_MAX, TOOLS_MAX, STOPS_MAX, STOP_BYTES_MAX = 1024, 128, 5, 32
TAGS_MAX = 16
INT64_MAX = 2**63 - 1
SECONDS_DIGITS_MAX = 18

FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]


class FunctionCall(msgspec.Struct, omit_defaults=True):
    name: FunctionName
    arguments: str


class ToolCall(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    function: FunctionCall
    type: Literal["function"] = "function"


class TextPart(msgspec.Struct):
    text: str
    type: Literal["text"] = "text"


class ChatMessage(msgspec.Struct, omit_defaults=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=TOOLS_MAX)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None
    partial: bool | None = None


class CacheMessage(msgspec.Struct):
    """The first message of a call that names a cache object."""

    role: Literal["cache"]
    content: str


class FunctionDeclaration(msgspec.Struct, omit_defaults=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDeclaration(msgspec.Struct):
    function: FunctionDeclaration
    type: Literal["function"] = "function"


class CreateCache(msgspec.Struct):
    model: Annotated[str, Meta(max_length=128)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    tools: Annotated[list[ToolDeclaration], Meta(max_length=TOOLS_MAX)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: Annotated[str, Meta(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    ttl: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    expired_at: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    tags: Annotated[list[str], Meta(max_length=TAGS_MAX)] | None = None


class UpdateCache(msgspec.Struct):
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    ttl: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    expired_at: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object"]


class ChatCompletions(msgspec.Struct):
    model: Annotated[str, Meta(max_length=128)]
    messages: Annotated[list[Any], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
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


class CacheReference(msgspec.Struct, frozen=True, kw_only=True):
    """A call's cache object as its caller named it: by its id, or by a tag."""

    cache_id: str | None
    tag: str | None = None
    reset_ttl_seconds: int | None
    is_dry_run: bool
    is_message: bool


class ParsedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A chat call, checked. `request.messages` holds no cache message."""

    request: ChatRequest
    reference: CacheReference | None
    is_stream: bool
    includes_usage: bool


# --- Bytes in --------------------------------------------------------------------------------------------------

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$?(?P<path>.*)`)?$", re.DOTALL)


def decode(body: bytes, into: type[S]) -> S:
    """A typed struct from a JSON body. Raises InvalidRequest naming the field."""
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        raise InvalidRequest(explained(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"Invalid request: the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("Invalid request: the body is nested too deeply") from None


def explained(error: msgspec.ValidationError, *, root: str = "") -> str:
    """msgspec's sentence, turned round so that it begins with the field."""
    found = _AT.match(str(error))
    assert found is not None
    path = root + (found["path"] or "")
    path = path.removeprefix(".") or "body"
    what = found["what"].replace("`", "").replace("Object missing required field", "missing field")
    return f"Invalid request: {path}: {what[:1].lower()}{what[1:]}"


def _refuse(path: str, came: object, taken: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid request: {path}: got {came!r}, takes {taken}")


def _messages(raw: Sequence[object], *, offset: int = 0) -> list[ChatMessage]:
    checked = []
    for index, item in enumerate(raw, start=offset):
        try:
            checked.append(msgspec.convert(item, ChatMessage))
        except msgspec.ValidationError as error:
            raise InvalidRequest(explained(error, root=f"messages[{index}]")) from None
    return checked


def as_messages(messages: Sequence[ChatMessage], *, offset: int = 0) -> list[Message]:
    """The neutral form. Raises InvalidRequest where roles, contents and tool calls do not go together."""
    open_calls: set[str] = set()
    for index, message in enumerate(messages, start=offset):
        path = f"messages[{index}]"
        if message.partial:
            raise _refuse(f"{path}.partial", message.partial, "nothing here: partial mode is not served")
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise _refuse(f"{path}.content", None, "text; only an assistant's tool calls go without")
        if message.tool_calls is not None and message.role != "assistant":
            raise _refuse(f"{path}.tool_calls", message.role, "role assistant")
        for number, call in enumerate(message.tool_calls or ()):
            _check_arguments(call.function.arguments, path=f"{path}.tool_calls[{number}].function.arguments")
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise _refuse(f"{path}.tool_call_id", message.tool_call_id, "the id of a tool call before it")
            open_calls.discard(message.tool_call_id or "")
        elif open_calls:
            raise _refuse(path, message.role, f"a tool message that answers {sorted(open_calls)[0]!r}")
        open_calls |= {call.id for call in message.tool_calls or ()}
    if open_calls:
        raise _refuse("messages", sorted(open_calls)[0], "a tool message that answers each tool call")
    return [msgspec.to_builtins(msgspec.structs.replace(message, partial=None)) for message in messages]


def _check_arguments(arguments: str, *, path: str) -> None:
    """A model's prompt shows them as JSON: what is none, an engine cannot take."""
    try:
        msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        raise _refuse(path, arguments[:80], "JSON") from None
    except RecursionError:
        raise InvalidRequest(f"Invalid request: {path}: is nested too deeply") from None


def as_tools(tools: Sequence[ToolDeclaration] | None, messages: Sequence[ChatMessage]) -> list[Tool] | None:
    """The neutral form; `null` and `[]` are both absent. Raises InvalidRequest for a call of an undeclared tool."""
    declared = {tool.function.name for tool in tools or ()}
    if tools:
        for index, message in enumerate(messages):
            for call in message.tool_calls or ():
                if call.function.name not in declared:
                    path = f"messages[{index}].tool_calls"
                    raise _refuse(path, call.function.name, f"one of the declared tools {sorted(declared)}")
    return (
        [{"type": "function", "function": msgspec.to_builtins(tool.function)} for tool in tools]
        if tools
        else None
    )


def refuse_nul(body: bytes, value: object, *, path: str = "") -> None:
    """PostgreSQL keeps no NUL in text or JSON: say so before it does. The walk is made only when one may be there."""
    if b"\\u0000" not in body:
        return
    _walk_nul(msgspec.to_builtins(value), path)


def _walk_nul(value: object, path: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise InvalidRequest(
            f"Invalid request: {path.removeprefix('.')}: got a NUL character, takes text without it"
        )
    if isinstance(value, dict):
        for key, item in value.items():
            _walk_nul(key, f"{path}.{key[:40]}".replace("\0", "\\u0000"))
            _walk_nul(item, f"{path}.{key[:40]}".replace("\0", "\\u0000"))
    if isinstance(value, list):
        for index, item in enumerate(value):
            _walk_nul(item, f"{path}[{index}]")


def check_metadata(metadata: dict[str, str] | None) -> None:
    for key, value in (metadata or {}).items():
        if len(key) > 64:
            raise _refuse("metadata", key[:80], "keys of at most 64 characters")
        if len(value) > 512:
            raise _refuse(f"metadata.{key}", f"{len(value)} characters", "at most 512")


def check_lifetime(ttl: int | None, expired_at: int | None) -> tuple[int | None, int | None]:
    """(ttl, expired_at) with zero and negative values taken as not given. Raises InvalidRequest when both are."""
    ttl = ttl if ttl is not None and ttl > 0 else None
    expired_at = expired_at if expired_at is not None and expired_at > 0 else None
    if ttl is not None and expired_at is not None:
        raise InvalidRequest(
            f"Invalid request: ttl: got {ttl} beside expired_at {expired_at}, takes one of the two"
        )
    return ttl, expired_at


# --- A chat call -----------------------------------------------------------------------------------------------


def parse_chat(body: bytes, *, header_reference: CacheReference | None) -> ParsedChat:
    """Read a `/v1/chat/completions` body. Raises InvalidRequest."""
    raw = decode(body, ChatCompletions)
    refuse_nul(body, {"model": raw.model, "messages": raw.messages})
    reference, rest = header_reference, raw.messages
    offset = 0
    if _is_cache_message(raw.messages[0]):
        reference, rest, offset = _cache_reference(raw), raw.messages[1:], 1
    for index, item in enumerate(rest, start=offset):
        if _is_cache_message(item):
            raise InvalidRequest(
                f"Invalid request: messages[{index}].role: got 'cache', takes it first and once"
            )
    messages = _messages(rest, offset=offset)
    tools = raw.tools if raw.tools is not msgspec.UNSET else None
    if raw.n is not None and raw.n > 1:
        raise _refuse("n", raw.n, "1: several choices are not served")
    request = ChatRequest(
        model=raw.model,
        messages=as_messages(messages, offset=offset),
        tools=as_tools(tools, messages),
        max_tokens=raw.max_tokens or MAX_TOKENS_DEFAULT,
        temperature=raw.temperature or 0.0,
        top_p=raw.top_p or None,
        presence_penalty=raw.presence_penalty or None,
        frequency_penalty=raw.frequency_penalty or None,
        stop=_stops(raw.stop),
        seed=raw.seed or None,
        response_format=msgspec.to_builtins(raw.response_format) if raw.response_format else None,
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
            raise _refuse(f"stop[{index}]", word[:40], f"1 to {STOP_BYTES_MAX} bytes")
    return stops or None


def _cache_reference(raw: ChatCompletions) -> CacheReference:
    """`cache_id=ID;reset_ttl=S;dry_run=1`, or `tag=NAME;…`, in the first message's content."""
    try:
        message = msgspec.convert(raw.messages[0], CacheMessage)
    except msgspec.ValidationError as error:
        raise InvalidRequest(explained(error, root="messages[0]")) from None
    if raw.tools is not msgspec.UNSET and raw.tools is not None:
        raise InvalidRequest(
            "Invalid request: tools: got a value, takes null: the cache object brings its own tools"
        )
    options: dict[str, str] = {}
    for part in message.content.split(";"):
        name, _equals, value = part.partition("=")
        if not value or name in options or name not in ("cache_id", "tag", "reset_ttl", "dry_run"):
            taken = "cache_id=ID or tag=NAME, reset_ttl=SECONDS and dry_run=1, joined by ';'"
            raise _refuse("messages[0].content", message.content[:200], taken)
        options[name] = value
    if ("cache_id" in options) is ("tag" in options):
        raise _refuse("messages[0].content", message.content[:200], "one of cache_id and tag")
    return CacheReference(
        cache_id=options.get("cache_id"),
        tag=options.get("tag"),
        reset_ttl_seconds=_seconds(options.get("reset_ttl"), path="messages[0].content reset_ttl"),
        is_dry_run=_flag(options.get("dry_run"), path="messages[0].content dry_run"),
        is_message=True,
    )


def header_reference(
    cache_id: str | None, reset_ttl: str | None, dry_run: str | None
) -> CacheReference | None:
    """The same from `X-Msh-Context-Cache` and its two companions; None when the first is absent."""
    if not cache_id:
        return None
    return CacheReference(
        cache_id=cache_id,
        reset_ttl_seconds=_seconds(reset_ttl, path="X-Msh-Context-Cache-Reset-TTL"),
        is_dry_run=_flag(dry_run, path="X-Msh-Context-Cache-DryRun"),
        is_message=False,
    )


def _seconds(text: str | None, *, path: str) -> int | None:
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= SECONDS_DIGITS_MAX and int(text) > 0):
        raise _refuse(path, text[:40], "a whole number of seconds above 0")
    return int(text)


def _flag(text: str | None, *, path: str) -> bool:
    if text in (None, "", "0"):
        return False
    if text != "1":
        raise _refuse(path, (text or "")[:40], "1")
    return True


# --- What goes out ---------------------------------------------------------------------------------------------


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
