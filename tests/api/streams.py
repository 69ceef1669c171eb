"""Answers read as a caller reads them from the wire: event by event, to the end, or until the caller hangs up."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit


class Caller(Protocol):
    base_url: str
    key: str


class Call:
    """One chat call over a connection of its own. Leaving the block before the end is hanging up."""

    def __init__(self, caller: Caller, *messages: dict[str, Any], **fields: Any) -> None:
        headers = fields.pop("headers", None) or {}
        self._body = json.dumps(
            {"model": "moonshot-v1-8k", "messages": list(messages), "max_tokens": 4} | fields
        ).encode()
        self._headers = {
            "Authorization": f"Bearer {caller.key}",
            "Content-Type": "application/json",
        } | headers
        self._connection = http.client.HTTPConnection(urlsplit(caller.base_url).netloc, timeout=120)
        self._answer: http.client.HTTPResponse | None = None

    def __enter__(self) -> Call:
        self._connection.request("POST", "/v1/chat/completions", self._body, self._headers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._answer is not None:
            self._answer.close()
        self._connection.close()

    @property
    def answer(self) -> http.client.HTTPResponse:
        """The head of the answer; waits for it."""
        if self._answer is None:
            self._answer = self._connection.getresponse()
        return self._answer

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.answer.getheaders()}

    def events(self) -> Iterator[dict[str, Any] | str]:
        """Each event's JSON; `[DONE]` as the text that it is."""
        while line := self.answer.readline():
            if line.startswith(b"data: "):
                data = line.removeprefix(b"data: ").strip()
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)


@dataclass
class Streamed:
    """A stream that was read to its end."""

    status: int
    headers: dict[str, str]
    chunks: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False

    @property
    def text(self) -> str:
        deltas = (choice["delta"] for chunk in self.chunks for choice in chunk["choices"])
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def last(self) -> dict[str, Any]:
        """The choice that ends the answer."""
        return next(c["choices"][0] for c in reversed(self.chunks) if c["choices"])

    @property
    def usage(self) -> dict[str, Any]:
        return dict(self.last["usage"])


def streamed(caller: Caller, *messages: dict[str, Any], **fields: Any) -> Streamed:
    with Call(caller, *messages, stream=True, **fields) as call:
        found = Streamed(status=call.answer.status, headers=call.headers)
        for event in call.events():
            assert not found.is_done, "nothing follows [DONE]"
            if isinstance(event, str):
                found.is_done = True
            else:
                found.chunks.append(event)
    return found
