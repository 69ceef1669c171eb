"""The Kimi dialect, by the names of its parts. Pure: bytes and dictionaries, no framework."""

from cacheplane.api.schemas.caching import (
    CreateCache,
    SpendingBudget,
    UpdateCache,
    WeeklySchedule,
    check_budget,
    check_lifetime,
    check_metadata,
)
from cacheplane.api.schemas.chat_answer import (
    chunk_out,
    completion_out,
    message_out,
    usage_chunk_out,
    usage_out,
)
from cacheplane.api.schemas.chat_call import ChatCompletions, CountTokens, ParsedChat, parse_chat
from cacheplane.api.schemas.chat_reference import CacheReference, header_reference
from cacheplane.api.schemas.decoding import decode, refuse_nul
from cacheplane.api.schemas.messages import MESSAGES_MAX, ChatMessage, as_messages, as_tools

__all__ = [
    "MESSAGES_MAX",
    "CacheReference",
    "ChatCompletions",
    "ChatMessage",
    "CountTokens",
    "CreateCache",
    "ParsedChat",
    "SpendingBudget",
    "UpdateCache",
    "WeeklySchedule",
    "as_messages",
    "as_tools",
    "check_budget",
    "check_lifetime",
    "check_metadata",
    "chunk_out",
    "completion_out",
    "decode",
    "header_reference",
    "message_out",
    "parse_chat",
    "refuse_nul",
    "usage_chunk_out",
    "usage_out",
]
