"""Structured logs: one JSON line an event, with the request's id, never with a message's text or a key."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

import structlog
from django.http import HttpRequest, HttpResponse

request_log = structlog.get_logger("cacheplane.request")

SECRET_IN_TEXT = re.compile(r"(sk-[A-Za-z0-9]{4})[A-Za-z0-9_-]+")


def hide_keys(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """The last belt: a key that slipped into a logged string (a library's error, a URL) is cut to its opening."""
    for name, value in event.items():
        if isinstance(value, str) and "sk-" in value:
            event[name] = SECRET_IN_TEXT.sub(r"\1…", value)
    return event


def configure(config: dict[str, Any]) -> None:
    """Django's LOGGING_CONFIG: structlog renders its own events and those of every standard logger alike."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_keys,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(config["level"])
    for noisy in ("aiohttp.access", "uvicorn.access", "kombu", "django.request"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for chatty in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        # Two lines for each tick, every few seconds; what a job did, it says itself.
        logging.getLogger(chatty).setLevel(logging.WARNING)


def new_request_id() -> str:
    return f"req-{uuid.uuid4().hex}"


class RequestLogMiddleware:
    """Names each request, says the name in `Msh-Request-Id`, and logs method, path, status and milliseconds."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        started = time.perf_counter()
        request.request_id = new_request_id()  # type: ignore[attr-defined]
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request.request_id)  # type: ignore[attr-defined]
        response: HttpResponse = self.get_response(request)
        response["Msh-Request-Id"] = request.request_id  # type: ignore[attr-defined]
        if request.path not in ("/livez", "/readyz"):
            request_log.info(
                "request",
                method=request.method,
                path=request.path,
                status=response.status_code,
                duration_ms=round((time.perf_counter() - started) * 1000, 2),
            )
        return response
