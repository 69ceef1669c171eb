"""Signatures by the Standard Webhooks specification.

A secret is HMAC-SHA256 of the endpoint's id and its salt under `SECRET_KEY`: it can be made again for each delivery,
so no table holds it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime

from django.conf import settings
from standardwebhooks.webhooks import Webhook

PURPOSE = "webhook secret"


def secret_of(*, endpoint_id: str, salt: str) -> str:
    """`whsec_…`: show it once, never log it."""
    message = f"{PURPOSE}:{endpoint_id}:{salt}".encode()
    digest = hmac.new(settings.SECRET_KEY.encode(), message, hashlib.sha256).digest()
    return f"whsec_{base64.b64encode(digest).decode()}"


def headers(
    *, event_id: str, body: bytes, endpoint_id: str, salts: list[str], at: datetime
) -> dict[str, str]:
    """What proves a request: one signature for each secret that is valid now."""
    instant = at.astimezone(UTC)
    signatures = [
        Webhook(secret_of(endpoint_id=endpoint_id, salt=salt)).sign(event_id, instant, body.decode())
        for salt in salts
    ]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(instant.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
