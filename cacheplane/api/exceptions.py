"""The one table from our errors to HTTP, in the contract's envelope `{"error": {"message", "type"}}`."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from rest_framework import exceptions as drf
from rest_framework.response import Response

from billing.errors import BillingError, InsufficientFunds, NoPrice, StatementRefused
from cacheplane import errors

log = structlog.get_logger(__name__)

TOO_LARGE = 413
# The first class that fits decides: the narrow ones come first.
TABLE: list[tuple[type[Exception], int, str]] = [
    (errors.PayloadTooLarge, TOO_LARGE, "invalid_request_error"),
    (errors.InvalidRequest, 400, "invalid_request_error"),
    (errors.NotAuthenticated, 401, "invalid_authentication_error"),
    (errors.PermissionDenied, 403, "permission_denied_error"),
    (errors.OrganizationSuspended, 403, "exceeded_current_quota_error"),
    (errors.NotFound, 404, "resource_not_found_error"),
    (errors.Conflict, 409, "invalid_request_error"),
    (errors.LimitExceeded, 429, "rate_limit_reached_error"),
    (errors.InsufficientBalance, 429, "exceeded_current_quota_error"),
    (errors.EngineOverloaded, 429, "engine_overloaded_error"),
    (errors.EngineTimeout, 504, "server_error"),
    (errors.EngineRejected, 400, "invalid_request_error"),
    (errors.KVStoreFull, 507, "server_error"),
    (errors.ServiceUnavailable, 503, "server_error"),
]
RETRY_AFTER_SECONDS = 1
RETRY_STATUSES = (429, 503)


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """An error as HTTP: status, headers, and the envelope."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def envelope(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind}}


def render(error: Exception, *, request_id: str, account_label: str = "") -> Rendered | None:
    """The answer to an error that was raised on purpose; None for any other."""
    if isinstance(error, InsufficientFunds):
        who = f"Your account {account_label} " if account_label else "Your account "
        error = errors.InsufficientBalance(f"{who}is suspended due to insufficient balance, please recharge")
    if isinstance(error, (OperationalError, InterfaceError)):
        log.error("database_unavailable", reason=type(error).__name__)
        error = errors.ServiceUnavailable("The database cannot be reached, please try again later")
    if isinstance(error, RecursionError):
        error = errors.InvalidRequest("Invalid request: the body is nested too deeply")
    if isinstance(error, StatementRefused):
        error = errors.InvalidRequest(f"Invalid request: {error}")
    if isinstance(error, NoPrice):
        log.error("no_price", reason=str(error))
        error = errors.ServiceUnavailable(f"{error} An operator can announce one.")
    for kind, status, name in TABLE:
        if isinstance(error, kind):
            headers = {}
            if status == TOO_LARGE:
                # The rest of the body is still on its way, so the connection is of no use any more.
                headers["Connection"] = "close"
            if status in RETRY_STATUSES:
                wait = getattr(error, "retry_after_seconds", None)
                headers["Retry-After"] = str(wait or RETRY_AFTER_SECONDS)
                is_too_large_for_any_minute = isinstance(error, errors.LimitExceeded) and wait is None
                if is_too_large_for_any_minute or isinstance(error, errors.InsufficientBalance):
                    # No wait helps: the SDKs heed this and do not try again.
                    headers["x-should-retry"] = "false"
            return Rendered(status=status, headers=headers, body=envelope(str(error), name))
    if isinstance(error, (errors.ControlPlaneError, BillingError)):
        # An engine's own words may quote the messages that it was sent: they are no text for a log.
        reason = "" if isinstance(error, errors.EngineError) else str(error)
        log.error("request_failed", code=getattr(error, "code", type(error).__name__), reason=reason)
        return broken(request_id)
    return None


def broken(request_id: str) -> Rendered:
    """What is said when something broke that nobody foresaw: an id to quote, never a trace."""
    body = envelope(f"The server failed to answer; please quote {request_id}", "server_error")
    return Rendered(status=500, headers={}, body=body)


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's EXCEPTION_HANDLER."""
    request = context["request"]
    # Not `request.auth`: where that is what failed, reading it would fail again.
    caller = getattr(request._request, "caller", None)
    request_id = getattr(request, "request_id", "")
    if isinstance(error, drf.MethodNotAllowed):
        taken = ", ".join(verb for verb in context["view"].allowed_methods if verb != "OPTIONS")
        message = f"Invalid request: method: got {request.method}, takes {taken}"
        return Response(envelope(message, "invalid_request_error"), status=405, headers={"Allow": taken})
    if isinstance(error, (RequestDataTooBig, errors.PayloadTooLarge)):
        error = errors.PayloadTooLarge("Invalid request: the body is larger than is taken")
    if isinstance(error, TooManyFieldsSent):
        error = errors.InvalidRequest("Invalid request: the request has more parameters than are taken")
    if isinstance(error, (Http404, drf.NotFound)):
        error = errors.NotFound("Not found")
    if isinstance(error, (drf.PermissionDenied, DjangoPermissionDenied)):
        error = errors.PermissionDenied("The API you are accessing is not open")
    if isinstance(error, drf.APIException):
        error = errors.InvalidRequest(f"Invalid request: {error.detail}")
    rendered = render(error, request_id=request_id, account_label=getattr(caller, "account_label", ""))
    if rendered is None:
        log.exception("request_broke", exc_info=error)
        rendered = broken(request_id)
    return Response(rendered.body, status=rendered.status, headers=rendered.headers)


def json_response(rendered: Rendered) -> HttpResponse:
    return HttpResponse(
        msgspec.json.encode(rendered.body),
        status=rendered.status,
        headers=rendered.headers,
        content_type="application/json",
    )


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404: the API's envelope for the API's paths, and for all others too: we serve no site."""
    return json_response(
        Rendered(
            status=404,
            headers={},
            body=envelope(f"Not found the route {request.path}", "resource_not_found_error"),
        )
    )


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400: a host that is not ours, a request that is none."""
    return json_response(
        Rendered(status=400, headers={}, body=envelope("Invalid request", "invalid_request_error"))
    )


def server_error(request: HttpRequest) -> HttpResponse:
    return json_response(broken(getattr(request, "request_id", "")))
