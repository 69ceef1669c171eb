"""The neutral words for one chat call, shared by the API's dialects, the gateway and the engine adapters.

Pure: no framework, no engine's name, no wire format of a vendor beyond the message shape that all of them share
(role, content, tool calls).
"""

from __future__ import annotations

from typing import Any

import msgspec

Message = dict[str, Any]
"""One chat message as the caller sent it: `role`, `content`, and optionally `name`, `tool_calls`, `tool_call_id`.

A call's last one, an assistant's with `partial` true, is the beginning of the answer, which goes on from it."""

Tool = dict[str, Any]
"""One tool declaration: `{"type": "function", "function": {...}}`."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine says that a call used, in tokens. `prompt_tokens` includes `cached_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call, already checked. `None` means that the caller did not set it and the engine's default holds.

    `n` answers are wanted, of `max_tokens` each. An engine's adapter gives one; the gateway asks as often.
    """

    model: str
    messages: list[Message]
    max_tokens: int
    tools: list[Tool] | None = None
    tool_choice: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    n: int = 1
    response_format: dict[str, Any] | None = None


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an answer. `usage` is the engine's count up to and including this step; `choice` says of which of
    a call's answers it is a step."""

    content: str | None = None
    role: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    choice: int = 0
