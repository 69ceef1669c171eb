"""The bearer key of a request becomes a caller."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from cacheplane.access import api_keys
from cacheplane.access.callers import Caller, require_active


def bearer(header: str | None) -> str:
    """The key in an `Authorization` header, or an empty text: which is refused like an absent one."""
    scheme, _space, secret = (header or "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def caller_of(request: Request) -> Caller:
    """Who was authenticated; to be called in views alone, which run after it."""
    caller = request.auth
    assert isinstance(caller, Caller)
    return caller


class ApiKeyAuthentication(BaseAuthentication):
    """`request.auth` is the caller. There is no user: keys belong to projects, not to persons."""

    def authenticate(self, request: Request) -> tuple[None, Caller]:
        caller = api_keys.authenticate(bearer(request.headers.get("Authorization")))
        # Kept on Django's request too: the headers that name the caller are set outside DRF.
        request._request.caller = caller  # type: ignore[attr-defined]
        require_active(caller)
        return None, caller

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
