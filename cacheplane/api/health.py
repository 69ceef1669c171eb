"""Liveness and readiness, for supervisors and balancers. They need no key and tell nothing but yes or no."""

from __future__ import annotations

from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse

from cacheplane.engines import http, registry

ENGINE_TIMEOUT_SECONDS = 3.0


def livez(request: HttpRequest) -> JsonResponse:
    """The process answers."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """Calls can be served: the database answers, its tables are there, and an engine is loaded."""
    found = {"database": _database_answers(), "engine": False}
    if found["database"]:
        found["engine"] = _engine_answers()
    ready = all(found.values())
    return JsonResponse({"status": "ok" if ready else "not ready", **found}, status=200 if ready else 503)


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM engines_engine LIMIT 1")
    except DatabaseError:
        return False
    return True


def _engine_answers() -> bool:
    return any(
        http.call(registry.adapter_of(engine).is_healthy(), timeout_seconds=ENGINE_TIMEOUT_SECONDS)
        for engine in registry.engines_in_service()
    )
