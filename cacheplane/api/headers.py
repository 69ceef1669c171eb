"""The headers that every answer of the API carries."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse

from cacheplane.access.callers import Caller


def of_caller(caller: Caller) -> dict[str, str]:
    """Who was served, and on which tier."""
    return {"Msh-Uid": caller.organization_id, "Msh-Gid": caller.tier.slug}


class CallerHeadersMiddleware:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self.get_response(request)
        caller = getattr(request, "caller", None)
        if caller is not None:
            for name, value in of_caller(caller).items():
                response[name] = value
        return response
