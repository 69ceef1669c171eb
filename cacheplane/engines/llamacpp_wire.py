"""What llama.cpp's server says on the wire, typed, and its errors in our words. Opens no connection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cacheplane.chat import ChatRequest, Message, Tool, Usage
from cacheplane.errors import (
    ContextWindowExceeded,
    EngineError,
    EngineOverloaded,
    EngineRejected,
)

_EVENT_BYTES_MAX = 16 << 20  # one event of a stream; the last one of a prefill repeats its prompt


class Timings(msgspec.Struct, frozen=True):
    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.cache_n + self.prompt_n,
            completion_tokens=self.predicted_n,
            cached_tokens=self.cache_n,
        )


class Failure(msgspec.Struct, frozen=True):
    message: str = ""
    type: str = ""
    code: int = 0
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class FailureBody(msgspec.Struct, frozen=True):
    error: Failure


class _CachedTokens(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _UsageBlock(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _CachedTokens = _CachedTokens()

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.prompt_tokens_details.cached_tokens,
        )


class _Delta(msgspec.Struct, frozen=True):
    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _PromptProgress(msgspec.Struct, frozen=True):
    total: int
    processed: int


class Chunk(msgspec.Struct, frozen=True):
    """One event of a streamed chat; with `prompt_progress` it only says how far the prompt is."""

    prompt_progress: _PromptProgress | None = None
    choices: list[_Choice] = []
    usage: _UsageBlock | None = None
    timings: Timings | None = None
    error: Failure | None = None


class PrefillEvent(msgspec.Struct, frozen=True):
    """One event of a streamed completion."""

    stop: bool = False
    tokens_evaluated: int = 0
    prompt_progress: _PromptProgress | None = None
    timings: Timings | None = None
    error: Failure | None = None


class SlotAction(msgspec.Struct, frozen=True):
    n_saved: int = -1
    n_written: int = -1
    n_restored: int = -1


class SlotState(msgspec.Struct, frozen=True):
    id: int
    is_processing: bool


class InputTokens(msgspec.Struct, frozen=True):
    input_tokens: int


class Rendered(msgspec.Struct, frozen=True):
    prompt: str


class Tokenized(msgspec.Struct, frozen=True):
    tokens: list[int]


class _Piece(msgspec.Struct, frozen=True):
    piece: str | list[int]


class Pieces(msgspec.Struct, frozen=True):
    """Tokens by their texts. One that is no text by itself comes as bytes."""

    tokens: list[_Piece]

    def texts(self) -> set[str]:
        return {token.piece for token in self.tokens if isinstance(token.piece, str)}


class _GenerationSettings(msgspec.Struct, frozen=True):
    n_ctx: int


class Props(msgspec.Struct, frozen=True):
    default_generation_settings: _GenerationSettings
    total_slots: int
    model_path: str = ""
    model_alias: str = ""
    model_ftype: str = ""
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""
    build_info: str = ""


class ModelEntry(msgspec.Struct, frozen=True):
    id: str
    tags: list[str] = []
    meta: dict[str, Any] | None = None


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelEntry]


def chat_body(request: ChatRequest, *, slot: int, reuse_tokens: bool) -> bytes:
    """The streamed call. `timings_per_token` makes every event carry the counts up to it, so that a call that
    is given up in the middle is still counted exactly. `return_progress` makes it write while it works on the
    prompt: only so does it notice that nobody reads any more, when other calls keep it from looking."""
    body: dict[str, Any] = conversation(request.messages, request.tools) | {
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        "return_progress": True,
        "reasoning_format": "none",  # a model that thinks aloud does so in its content; else it would be lost
        "id_slot": slot,
        "cache_prompt": reuse_tokens,
    }
    for name in _OPTIONAL:
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.seed is not None:
        body["seed"] = request.seed % _SEED_BY_CHANCE
    return msgspec.json.encode(body)


_SEED_BY_CHANCE = 0xFFFF_FFFF
"""The server takes 32 bits of a seed; these ones mean that it draws one by itself."""

_OPTIONAL = (
    "tool_choice",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "response_format",
)


def conversation(messages: Sequence[Message], tools: Sequence[Tool] | None) -> dict[str, Any]:
    """Messages and tools as the server takes them. Texts in parts are joined here, and escapes in tool calls are
    resolved: what is then encoded shows every text as the template will see it."""
    taken = [_as_taken(message) for message in messages]
    body: dict[str, Any] = {"messages": taken}
    if tools:
        body["tools"] = list(tools)
    if messages and messages[-1].get("partial"):
        if taken[-1]["content"]:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        else:
            taken.pop()  # nothing to go on from: the answer begins as ever
    return body


def plain_turns(messages: Sequence[Message]) -> tuple[tuple[str, ...], int] | None:
    """(roles, bytes of all texts) of messages that are a role and a text; None if one is anything else."""
    size_bytes = 0
    for message in messages:
        text = message.get("content")
        if len(message) != 2 or not isinstance(text, str):
            return None
        size_bytes += len(text.encode())
    return tuple(message["role"] for message in messages), size_bytes


def _as_taken(message: Message) -> Message:
    if isinstance(message.get("content"), list):
        message = message | {"content": "\n".join(part["text"] for part in message["content"])}
    if "partial" in message:
        message = {name: value for name, value in message.items() if name != "partial"}
    if message.get("tool_calls"):
        message = message | {"tool_calls": [_without_escapes(call) for call in message["tool_calls"]]}
    return message


def _without_escapes(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if "\\u" not in arguments:
        return call
    plain = msgspec.json.encode(msgspec.json.decode(arguments)).decode()
    return call | {"function": call["function"] | {"arguments": plain}}


_SIGNS = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z_/]{1,32}\]")
_COMMON_SIGNS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
)


def possible_control_tokens(props: Props) -> set[str]:
    """Texts that may be control tokens of the model; its tokenizer decides which are."""
    signs = {props.bos_token, props.eos_token, *_COMMON_SIGNS, *_SIGNS.findall(props.chat_template)}
    return {sign for sign in signs if sign}


def defusals(control_tokens: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """(as it stands in a JSON text, as it is sent instead): a space within, and it is a text like any other."""
    found = []
    for token in sorted(control_tokens):
        inner = msgspec.json.encode(token)[1:-1]
        found.append((inner, inner[:1] + b" " + inner[1:]))
    return found


class EventReader:
    """Cuts a streamed answer into the data of its server-sent events. Whether the last came, its reader knows."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _EVENT_BYTES_MAX:
            raise EngineError("The engine sent an event without an end.")
        found = []
        for line in lines:
            if line.startswith(b"data: ") and line[6:12] != b"[DONE]":
                found.append(line[6:])
            elif line.startswith(b"error: "):  # how older servers tell it
                found.append(b'{"error":' + line[7:] + b"}")
        return found


def failure(status: int, body: bytes) -> Exception:
    """The engine's refusal as an error of ours."""
    try:
        told = msgspec.json.decode(body, type=FailureBody).error
    except msgspec.DecodeError:
        told = Failure(message=body[:200].decode(errors="replace"))
    return translated(told, status=status)


def translated(told: Failure, *, status: int) -> Exception:
    sentence = _without_paths(told.message) or f"status {status}"
    if told.type == "exceed_context_size_error":
        return ContextWindowExceeded(
            f"The prompt has {told.n_prompt_tokens} tokens; the model's window takes {told.n_ctx}."
        )
    if "does not match the expected" in told.message:
        return EngineRejected(
            "The model's answer is no call of the declared tools, and nothing else was read."
        )
    if "JSON schema error" in sentence or "failed to parse grammar" in sentence:
        what = sentence.rpartition("JSON schema error ")[2]
        return EngineRejected(f"Invalid request: tools: got a schema that the engine cannot take: {what}")
    if status in (429, 503):
        return EngineOverloaded(f"The engine is not ready: {sentence}", retry_after_seconds=1)
    if 400 <= status < 500 or status == 501:
        return EngineRejected(f"The engine refused the call: {sentence}")
    return EngineError(f"The engine failed: {sentence}")


def _without_paths(sentence: str) -> str:
    return re.sub(r"(?:/[\w.@+-]+){2,}/?", "…", sentence)
