"""Calls to the API over plain HTTP with the standard library; streamed answers are timed event by event."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from cacheplane.management.demo.errors import DemoError, ServerAway

TIMEOUT_SECONDS = 600.0
"""Above the server's own five minutes, so that the server is the one to say that it took too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer. `headers` have lower-case names; amounts in `body` are Decimal."""

    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A streamed answer. Times are seconds since the request was sent; tokens are the server's usage."""

    first_token_seconds: float
    total_seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    text: str
    is_hit: bool
    request_id: str


class Api:
    """One server and one key. A call at a time, on one connection that is kept alive."""

    def __init__(self, base_url: str, api_key: str = "") -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DemoError(f"{base_url} is not a URL of a server; it looks like http://127.0.0.1:8000.")
        self._parts = parts
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        """Raises DemoError with the server's own sentence, ServerAway when there is none to hear."""
        response = self._send(method, path, body)
        return Answer(headers=_headers(response), body=self._read(response))

    def ask(self, body: dict[str, Any], *, headers: dict[str, str] | None = None) -> Asked:
        """Stream `/v1/chat/completions` and time it. Raises DemoError."""
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        started = time.perf_counter()
        response = self._send("POST", "/v1/chat/completions", streamed, headers=headers)
        first: float | None = None
        text: list[str] = []
        usage: dict[str, Any] = {}
        is_whole = False
        try:
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    is_whole = True
                    continue
                if first is None:
                    first = time.perf_counter() - started
                event = json.loads(line[6:])
                if "error" in event:
                    raise DemoError(f"The server broke off its answer: {event['error']['message']}.")
                text += [choice["delta"].get("content") or "" for choice in event["choices"]]
                usage = event.get("usage") or usage
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise DemoError(f"The server broke off its answer: {error}.") from error
        if not is_whole or first is None:
            raise DemoError("The server ended its answer before it was whole.")
        about = _headers(response)
        return Asked(
            first_token_seconds=first,
            total_seconds=time.perf_counter() - started,
            prompt_tokens=usage.get("prompt_tokens", 0),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
            text="".join(text),
            is_hit="msh-context-cache-id" in about,
            request_id=about.get("msh-request-id", ""),
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None, *, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        encoded = json.dumps(body, ensure_ascii=False).encode() if body is not None else None
        response = self._exchange(method, path, encoded, self._headers | (headers or {}))
        if response.status >= 400:
            raise DemoError(_refusal(method, path, response.status, response.read(), self.base_url))
        return response

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        is_reused = self._connection is not None
        try:
            connection = self._connected()
            connection.request(method, self._parts.path + path, body, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A server may close a connection that lay idle; nothing of the request was answered then.
            if is_reused and isinstance(error, (http.client.RemoteDisconnected, ConnectionError)):
                return self._exchange(method, path, body, headers)
            raise ServerAway(f"No server answers at {self.base_url}: {_reason(error)}.") from error

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            kind = (
                http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
            )
            self._connection = kind(self._parts.hostname or "", self._parts.port, timeout=TIMEOUT_SECONDS)
        return self._connection

    def _read(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        try:
            body = json.loads(response.read(), parse_float=Decimal)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise DemoError(f"{self.base_url} does not answer as this API does: {_reason(error)}.") from error
        if not isinstance(body, dict):
            raise DemoError(f"{self.base_url} does not answer as this API does.")
        return body


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


def _refusal(method: str, path: str, status: int, raw: bytes, base_url: str) -> str:
    try:
        said = json.loads(raw)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = raw[:200].decode(errors="replace") or "it gave no reason"
    hint = "; give a key of this server with --api-key" if status == 401 else ""
    return f"The server at {base_url} refused {method} {path} ({status}): {str(said).rstrip('.')}{hint}."
