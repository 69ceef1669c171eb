"""`POST /v1/chat/completions`: the hot path, spoken in plain ASGI, beside Django.

A call is one task. A second one listens for the caller's goodbye and cancels the first, wherever it is; what the
engine had produced by then is charged, and the engine stops.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog
from django.conf import settings
from starlette.types import Receive, Scope, Send

from cacheplane import database
from cacheplane.access import api_keys
from cacheplane.access.callers import Caller, require_active
from cacheplane.api import bodies, exceptions
from cacheplane.api.authentication import bearer
from cacheplane.api.headers import of_caller
from cacheplane.api.schemas import kimi
from cacheplane.chat import ChatDelta, Usage
from cacheplane.errors import EngineTimeout
from cacheplane.gateway import calls
from cacheplane.gateway.calls import Call, DryRun
from cacheplane.gateway.completion import Completion
from cacheplane.gateway.matching import Prefix, Reference
from cacheplane.logs import new_request_id

log = structlog.get_logger("cacheplane.request")

GATEWAY_ID = uuid.uuid4()
"""Names this process in the rows of its calls in flight, so that they are ended when it dies."""

STATUS_CALLER_GONE = 499
_encode = msgspec.json.Encoder(decimal_format="string").encode


class CallerGone(Exception):
    """The connection was closed from the other side."""


class ChatCompletions:
    """The ASGI endpoint. One instance serves all requests; all state is in the task."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        started = time.perf_counter()
        try:
            await exchange.serve()
        finally:
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=exchange.status,
                request_id=exchange.request_id,
                organization=exchange.caller.organization_id if exchange.caller else None,
                duration_ms=round((time.perf_counter() - started) * 1000, 2),
                **exchange.told,
            )


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.request_id = new_request_id()
        self.caller: Caller | None = None
        self.status = STATUS_CALLER_GONE
        self.told: dict[str, Any] = {}
        """What the log says of the call beside its status: counts, never texts."""
        self._has_read = self._has_begun = self._has_ended = False

    async def serve(self) -> None:
        try:
            if self._scope["method"] != "POST":
                await self._json(405, {"Allow": "POST"}, _wrong_method(self._scope["method"]))
                return
            headers = _headers(self._scope)
            # Before the body: whoever has no key is not listened to at length.
            self.caller = await _authenticated(headers)
            body = await self._body()
            await self._until_gone(self._answer(body, headers))
        except CallerGone:
            self.status = STATUS_CALLER_GONE
        # The edge: whatever it is, the caller gets the envelope or a stream without its end.
        except Exception as error:  # noqa: BLE001
            if not self._has_read:
                await bodies.discard_rest(self._receive)
            await self._fail(error)

    async def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        assert self.caller is not None
        parsed = kimi.parse_chat(
            body,
            header_reference=kimi.header_reference(
                headers.get("x-msh-context-cache"),
                headers.get("x-msh-context-cache-reset-ttl"),
                headers.get("x-msh-context-cache-dryrun"),
            ),
        )
        call = Call(
            request=parsed.request,
            reference=_reference(parsed.reference),
            request_id=self.request_id,
            is_live=parsed.is_stream,
        )
        if call.reference is not None and call.reference.is_dry_run:
            await self._answer_dry_run(call, await calls.dry_run(self.caller, call))
            return
        running = await calls.open_call(self.caller, call, gateway_id=GATEWAY_ID)
        try:
            async with asyncio.timeout(settings.CALL_TIMEOUT_SECONDS):
                await running.start()
                if parsed.is_stream:
                    await self._stream(running, includes_usage=parsed.includes_usage)
                else:
                    await self._whole(running)
        except TimeoutError:
            raise EngineTimeout(
                f"The call took longer than {settings.CALL_TIMEOUT_SECONDS:.0f} seconds and was ended"
            ) from None
        finally:
            await running.finish()
            self._tell(running)
        if not parsed.is_stream:
            await self._send_whole(running)

    # --- Three kinds of answer ---------------------------------------------------------------------------------

    async def _whole(self, running: Completion) -> None:
        self._deltas = [delta async for delta in running.deltas()]

    async def _send_whole(self, running: Completion) -> None:
        assert running.usage is not None
        body = kimi.completion_out(
            call_id=f"cmpl-{running.wanted.call_id.hex}",
            model=running.wanted.model,
            created=int(time.time()),
            deltas=self._deltas,
            usage=running.usage,
        )
        await self._json(200, _hit_headers(running), body)

    async def _stream(self, running: Completion, *, includes_usage: bool) -> None:
        await self._begin(
            200,
            {
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                **_hit_headers(running),
            },
        )
        async with aclosing(_chunks(running, includes_usage=includes_usage)) as chunks:
            async for chunk in chunks:
                await self._piece(b"data: " + _encode(chunk) + b"\n\n")
        await self._piece(b"data: [DONE]\n\n", more=False)

    async def _answer_dry_run(self, call: Call, found: DryRun) -> None:
        prompt, cached = found.prompt_tokens, found.prefix.tokens
        body = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": found.model,
            "choices": [],
            "usage": kimi.usage_out(Usage(prompt_tokens=prompt, completion_tokens=0, cached_tokens=cached)),
            "estimate": {
                "hit_tokens": cached,
                "price": found.price,
                "price_uncached": found.price_uncached,
                "currency": found.currency,
            },
        }
        await self._json(200, _cache_headers(found.prefix, ends_at=found.prefix.ends_at), body)

    # --- The wire ----------------------------------------------------------------------------------------------

    async def _body(self) -> bytes:
        pieces, size = [], 0
        while True:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise CallerGone
            pieces.append(event.get("body", b""))
            size += len(pieces[-1])
            if size > settings.REQUEST_BODY_BYTES_MAX:
                self._has_read = not event.get("more_body")
                raise bodies.too_large()
            if not event.get("more_body"):
                self._has_read = True
                return b"".join(pieces)

    async def _until_gone(self, answering: Any) -> None:
        """Run the answer; cancel it when the caller hangs up."""
        answer = asyncio.ensure_future(answering)
        gone = asyncio.ensure_future(self._goodbye())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not self._has_ended:
                answer.cancel()
                await asyncio.wait({answer})
                if answer.cancelled():
                    raise CallerGone
            await answer
        finally:
            gone.cancel()
            answer.cancel()

    async def _goodbye(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self._has_begun = True
        always = {"Msh-Request-Id": self.request_id}
        if self.caller is not None:
            always |= of_caller(self.caller)
        raw = [(name.lower().encode(), value.encode()) for name, value in (always | headers).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _piece(self, body: bytes, *, more: bool = True) -> None:
        # A caller who closes the connection after the last piece has not hung up on us.
        self._has_ended = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _json(self, status: int, headers: dict[str, str], body: dict[str, Any]) -> None:
        encoded = _encode(body)
        about = {"Content-Type": "application/json", "Content-Length": str(len(encoded))}
        await self._begin(status, about | headers)
        await self._piece(encoded, more=False)

    async def _fail(self, error: Exception) -> None:
        label = self.caller.account_label if self.caller is not None else ""
        rendered = exceptions.render(error, request_id=self.request_id, account_label=label)
        if rendered is None:
            log.exception("request_broke", request_id=self.request_id, exc_info=error)
            rendered = exceptions.broken(self.request_id)
        if not self._has_begun:
            await self._json(rendered.status, rendered.headers, rendered.body)
            return
        # The status line is gone: an error event, and no [DONE], tell the caller that the answer is not whole.
        await self._piece(b"data: " + _encode(rendered.body) + b"\n\n", more=False)
        self.status = rendered.status

    def _tell(self, running: Completion) -> None:
        self.told = {"model": running.wanted.model, "is_hit": running.is_hit}
        if running.usage is not None:
            self.told |= {
                "prompt_tokens": running.usage.prompt_tokens,
                "cached_tokens": running.usage.cached_tokens,
                "completion_tokens": running.usage.completion_tokens,
            }


async def _chunks(running: Completion, *, includes_usage: bool) -> AsyncGenerator[dict[str, Any]]:
    """The stream's events: the finishing one of each answer waits for the usage up to it, which it carries."""
    about: dict[str, Any] = {
        "call_id": f"cmpl-{running.wanted.call_id.hex}",
        "model": running.wanted.model,
        "created": int(time.time()),
    }
    last, usage = ChatDelta(finish_reason="stop"), running.usage
    async with aclosing(running.deltas()) as deltas:
        async for delta in deltas:
            if delta.choice != last.choice:
                yield kimi.chunk_out(**about, delta=last, usage=usage)
                last = ChatDelta(finish_reason="stop", choice=delta.choice)
            usage = running.usage
            if delta.finish_reason is not None:
                last = delta
            elif delta.content is not None or delta.role is not None or delta.tool_calls is not None:
                yield kimi.chunk_out(**about, delta=delta, usage=None)
    # Settled before the caller sees the end: whoever asks for the balance then, sees this call in it.
    await running.finish()
    assert running.usage is not None
    yield kimi.chunk_out(**about, delta=last, usage=running.usage)
    if includes_usage:
        yield kimi.usage_chunk_out(**about, usage=running.usage)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _authenticated(headers: dict[str, str]) -> Caller:
    secret = bearer(headers.get("authorization"))
    caller = api_keys.cached(secret)
    if caller is None:
        caller = await database.run(api_keys.authenticate, secret)
    require_active(caller)
    return caller


def _reference(found: kimi.CacheReference | None) -> Reference | None:
    if found is None:
        return None
    return Reference(
        cache_id=found.cache_id,
        tag=found.tag,
        reset_ttl_seconds=found.reset_ttl_seconds,
        is_dry_run=found.is_dry_run,
        is_message=found.is_message,
    )


def _hit_headers(running: Completion) -> dict[str, str]:
    """Said on a hit alone, and only once the engine has reported it."""
    prefix, reset_ttl = running.wanted.prefix, running.reset_ttl
    if prefix is None or not running.is_hit:
        return {}
    # The end that the call leaves behind: a reset counts from now, at the earliest.
    ends_at = prefix.ends_at if reset_ttl is None else running.now + timedelta(seconds=reset_ttl[1])
    return _cache_headers(prefix, ends_at=ends_at)


def _cache_headers(prefix: Prefix, *, ends_at: datetime) -> dict[str, str]:
    unix_seconds = str(int(ends_at.timestamp()))
    return {
        "Msh-Context-Cache-Id": prefix.cache_id,
        "Msh-Context-Cache-Token-Saved": str(prefix.tokens),
        "Msh-Context-Cache-Token-Exp": unix_seconds,
        "Msh-Context-Cache-Token-Ttl": unix_seconds,
    }


def _wrong_method(method: str) -> dict[str, Any]:
    return exceptions.envelope(f"Invalid request: method: got {method}, takes POST", "invalid_request_error")
