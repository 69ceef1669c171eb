"""Messages and tools, as a chat call and a cache object both take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cacheplane.api.schemas.decoding import explained, refuse
from cacheplane.caching.digests import sorted_tools
from cacheplane.chat import Message, Tool
from cacheplane.errors import InvalidRequest

MESSAGES_MAX, TOOLS_MAX = 1024, 128

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


class FunctionDeclaration(msgspec.Struct, omit_defaults=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDeclaration(msgspec.Struct):
    function: FunctionDeclaration
    type: Literal["function"] = "function"


def messages_from(raw: Sequence[object], *, offset: int = 0) -> list[ChatMessage]:
    checked = []
    for index, item in enumerate(raw, start=offset):
        try:
            checked.append(msgspec.convert(item, ChatMessage))
        except msgspec.ValidationError as error:
            raise InvalidRequest(explained(error, into=ChatMessage, root=f"messages[{index}]")) from None
    return checked


def as_messages(messages: Sequence[ChatMessage], *, offset: int = 0) -> list[Message]:
    """The neutral form. Raises InvalidRequest where roles, contents and tool calls do not go together."""
    open_calls: set[str] = set()
    for index, message in enumerate(messages, start=offset):
        path = f"messages[{index}]"
        if message.partial:
            raise refuse(
                f"{path}.partial", message.partial, "true only on a call's last message, an assistant's"
            )
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise refuse(f"{path}.content", None, "text; only an assistant's tool calls go without")
        if message.tool_calls is not None and message.role != "assistant":
            raise refuse(f"{path}.tool_calls", message.role, "role assistant")
        for number, call in enumerate(message.tool_calls or ()):
            _check_arguments(call.function.arguments, path=f"{path}.tool_calls[{number}].function.arguments")
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise refuse(f"{path}.tool_call_id", message.tool_call_id, "the id of a tool call before it")
            open_calls.discard(message.tool_call_id or "")
        elif open_calls:
            raise refuse(path, message.role, f"a tool message that answers {sorted(open_calls)[0]!r}")
        open_calls |= {call.id for call in message.tool_calls or ()}
    if open_calls:
        raise refuse("messages", sorted(open_calls)[0], "a tool message that answers each tool call")
    return [msgspec.to_builtins(msgspec.structs.replace(message, partial=None)) for message in messages]


def as_call_messages(messages: Sequence[ChatMessage], *, offset: int = 0) -> list[Message]:
    """As `as_messages`; the last may be an assistant's with `partial`, from which the answer goes on."""
    if not messages or not messages[-1].partial:
        return as_messages(messages, offset=offset)
    last, path = messages[-1], f"messages[{offset + len(messages) - 1}]"
    if last.role != "assistant":
        raise refuse(f"{path}.partial", last.role, "role assistant beside it")
    if last.tool_calls:
        raise refuse(f"{path}.tool_calls", last.tool_calls[0].id, "none beside partial")
    if last.content is None:
        raise refuse(f"{path}.content", None, "the text that the answer goes on from")
    closed = msgspec.structs.replace(last, partial=None)
    found = as_messages([*messages[:-1], closed], offset=offset)
    found[-1]["partial"] = True
    return found


def _check_arguments(arguments: str, *, path: str) -> None:
    """A model's prompt shows them as JSON: what is none, an engine cannot take."""
    try:
        msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        raise refuse(path, arguments[:80], "JSON") from None
    except RecursionError:
        raise InvalidRequest(f"Invalid request: {path}: is nested too deeply") from None


def as_tools(tools: Sequence[ToolDeclaration] | None, messages: Sequence[ChatMessage]) -> list[Tool] | None:
    """The neutral form, its keys sorted as a cache object's are: a prompt shows tools as they come, and a call counts
    the same tokens with a cache and without. `null` and `[]` are both absent.

    Raises InvalidRequest for a call of an undeclared tool.
    """
    declared = {tool.function.name for tool in tools or ()}
    if tools:
        for index, message in enumerate(messages):
            for call in message.tool_calls or ():
                if call.function.name not in declared:
                    path = f"messages[{index}].tool_calls"
                    raise refuse(path, call.function.name, f"one of the declared tools {sorted(declared)}")
    neutral = [{"type": "function", "function": msgspec.to_builtins(tool.function)} for tool in tools or ()]
    return sorted_tools(neutral or None)
