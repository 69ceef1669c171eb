"""What the benches ask: a long text of a known number of tokens, and questions that no slot has seen."""

from __future__ import annotations

from itertools import count
from typing import Any

from cacheplane.engines import make_gguf
from cacheplane.management.demo.client import Api

FAMILY, MODEL = "moonshot-v1", "moonshot-v1-32k"
TEXT = make_gguf.CORPUS / "handbook.en.txt"

_numbers = count(1)


def tokens_of(engine: Api, messages: list[dict[str, str]]) -> list[int]:
    """The token ids of messages as a prefix, as the engine's own template and tokenizer make them."""
    rendered = engine.call("POST", "/apply-template", {"messages": messages, "add_generation_prompt": False})
    asked = {"content": rendered.body["prompt"], "add_special": True, "parse_special": True}
    found: list[int] = engine.call("POST", "/tokenize", asked).body["tokens"]
    return found


def long_message(engine: Api, tokens: int) -> dict[str, str]:
    """A system message of at least `tokens` tokens, cut from the text that the project ships."""
    text = TEXT.read_text(encoding="utf-8")
    low, high = 0, len(text)
    if len(tokens_of(engine, [_system(text)])) < tokens:
        raise SystemExit(f"The text that the project ships has fewer than {tokens} tokens.")
    while high - low > 8:
        middle = (low + high) // 2
        if len(tokens_of(engine, [_system(text[:middle])])) < tokens:
            low = middle
        else:
            high = middle
    return _system(text[:high])


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def new_question() -> dict[str, str]:
    """Its number comes first, so that it shares no beginning with those before it."""
    return {"role": "user", "content": f"{next(_numbers)}. Which of the lights can be reached by road?"}


def short_message() -> dict[str, str]:
    return {
        "role": "user",
        "content": f"{next(_numbers)}. Name the three ferry routes, and say who runs them.",
    }


def asking(messages: list[dict[str, str]], *, max_tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens}
