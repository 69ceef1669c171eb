"""Bodies of the REST part: raw bytes in, for a typed schema to read; JSON out, money exact."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from django.conf import settings
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cacheplane.api import exceptions
from cacheplane.api.schemas import kimi
from cacheplane.errors import InvalidRequest, PayloadTooLarge
from cacheplane.logs import new_request_id

S = TypeVar("S", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder(decimal_format="number")

DISCARDED_BYTES_MAX = 64 << 20
DISCARDING_SECONDS_MAX = 10.0


class BoundedBodies:
    """Goes around Django, which keeps a whole body before it looks at it: one without an end would fill the disk."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size_bytes = 0

        async def bounded() -> Message:
            nonlocal size_bytes
            message = await receive()
            size_bytes += len(message.get("body", b""))
            if size_bytes > settings.REQUEST_BODY_BYTES_MAX:
                if message.get("more_body"):
                    await discard_rest(receive)
                raise too_large()
            return message

        try:
            await self._application(scope, bounded, send)
        except PayloadTooLarge as error:
            await _refuse(error, send)


async def _refuse(error: PayloadTooLarge, send: Send) -> None:
    request_id = new_request_id()
    rendered = exceptions.render(error, request_id=request_id)
    assert rendered is not None
    headers = {"Content-Type": "application/json", "Msh-Request-Id": request_id, **rendered.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": rendered.status, "headers": raw})
    await send({"type": "http.response.body", "body": msgspec.json.encode(rendered.body)})


async def discard_rest(receive: Receive) -> None:
    """Take in what is still coming of a body that is refused, and keep none of it, for a while: whoever is still
    sending when the connection closes sees it broken, and never the reason."""
    left = DISCARDED_BYTES_MAX
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARDING_SECONDS_MAX):
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message.get("body", b""))


def too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"Invalid request: body: takes at most {settings.REQUEST_BODY_BYTES_MAX} bytes")


class JsonAlways(BaseContentNegotiation):
    """Each view speaks one format, whatever a caller says that it accepts."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        return None

    def select_renderer(self, request: Any, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


class JsonRenderer(BaseRenderer):
    media_type = "application/json"
    format = "json"
    charset = None

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None
    ) -> bytes:
        return b"" if data is None else _encoder.encode(data)


def read(request: Request, into: type[S]) -> S:
    """The request's body, whatever its content type, as a typed struct. Raises InvalidRequest naming the field."""
    body = request._request.body  # `request.data` takes a body without a Content-Length for none
    if not body:
        raise InvalidRequest("Invalid request: body: got nothing, takes a JSON object")
    value = kimi.decode(body, into)
    kimi.refuse_nul(body, value)
    return value
