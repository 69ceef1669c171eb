"""Bodies of the REST part: raw bytes in, for a typed schema to read; JSON out, money exact."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from django.conf import settings
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from cacheplane.api.schemas import kimi
from cacheplane.errors import InvalidRequest, PayloadTooLarge

S = TypeVar("S", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder(decimal_format="number")


class RawParser(BaseParser):
    """Whatever the content type says, the body is kept as it came: the schema reads it once."""

    media_type = "*/*"

    def parse(  # type: ignore[override]  # DRF passes on whatever it gets
        self, stream: Any, media_type: str | None = None, parser_context: Any = None
    ) -> bytes:
        return bytes(stream.read(settings.REQUEST_BODY_BYTES_MAX + 1))


class JsonRenderer(BaseRenderer):
    media_type = "application/json"
    format = "json"
    charset = None

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None
    ) -> bytes:
        return b"" if data is None else _encoder.encode(data)


def read(request: Request, into: type[S]) -> S:
    """The request's body as a typed struct. Raises InvalidRequest naming the field."""
    body = request.data
    if not isinstance(body, bytes):
        raise InvalidRequest("Invalid request: body: got nothing, takes a JSON object")
    if len(body) > settings.REQUEST_BODY_BYTES_MAX:
        raise PayloadTooLarge(f"Invalid request: body: takes at most {settings.REQUEST_BODY_BYTES_MAX} bytes")
    value = kimi.decode(body, into)
    kimi.refuse_nul(body, value)
    return value
