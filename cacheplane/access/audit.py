"""The operators' log: who changed access or money, when, and why. Only ever appended to."""

from __future__ import annotations

from typing import Any

from cacheplane.access.models import AuditEntry
from cacheplane.errors import InvalidRequest

REASON_CHARS_MAX = 500


def record(
    *,
    operator: str,
    action: str,
    subject: str,
    organization_id: str | None = None,
    reason: str = "",
    detail: dict[str, Any] | None = None,
) -> AuditEntry:
    """Append one entry, in the caller's transaction: the act and its record stand or fall together.

    `action` is noun and verb (`api_key.revoke`), `subject` the id acted on. Never put a secret into `detail`.
    """
    return AuditEntry.objects.create(
        operator=operator,
        action=action,
        subject=subject,
        organization_id=organization_id,
        reason=reason,
        detail=detail or {},
    )


def required_reason(reason: str) -> str:
    """The reason without outer blanks; InvalidRequest when nothing is left or it is too long."""
    stripped = reason.strip()
    if not stripped:
        raise InvalidRequest("Invalid request: reason is empty, it takes a sentence that says why")
    if len(stripped) > REASON_CHARS_MAX:
        raise InvalidRequest(
            f"Invalid request: reason has {len(stripped)} characters, it takes at most {REASON_CHARS_MAX}"
        )
    return stripped
