"""Every error that the control plane raises on purpose.

    ControlPlaneError
    ├── InvalidRequest              the caller sent something that is not taken: names the field
    │   ├── PayloadTooLarge
    │   └── ContextWindowExceeded
    ├── NotAuthenticated            no key, or not a key of ours
    ├── PermissionDenied
    │   └── FeatureClosed           the beta gate
    ├── OrganizationSuspended       an operator stopped it
    ├── NotFound                    absent, or somebody else's: the two look the same
    ├── Conflict                    the object's state does not allow it
    ├── LimitExceeded               concurrency, requests, tokens: with the seconds to wait
    ├── InsufficientBalance         no money left
    ├── EngineError
    │   ├── EngineOverloaded        no slot in time, or the engine cannot be reached
    │   ├── EngineTimeout
    │   ├── LaneLost            the slot of a prefill was given to somebody else meanwhile
    │   └── EngineRejected          the engine refused the call: its own sentence
    ├── KVError
    │   ├── KVDamaged               bytes, size, checksum or fingerprint do not match: a miss
    │   └── KVStoreFull
    └── ServiceUnavailable          database or broker away: try again

Each has a `code` (stable, for logs and tests) and a sentence for a person. None knows HTTP: one table in
`cacheplane/api/exceptions.py` maps them.
"""

from __future__ import annotations

from typing import ClassVar


class ControlPlaneError(Exception):
    code: ClassVar[str] = "control_plane_error"

    def __init__(self, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(ControlPlaneError):
    code = "invalid_request"


class PayloadTooLarge(InvalidRequest):
    code = "payload_too_large"


class ContextWindowExceeded(InvalidRequest):
    code = "context_window_exceeded"


class NotAuthenticated(ControlPlaneError):
    code = "not_authenticated"


class PermissionDenied(ControlPlaneError):
    code = "permission_denied"


class FeatureClosed(PermissionDenied):
    code = "feature_closed"


class OrganizationSuspended(ControlPlaneError):
    code = "organization_suspended"


class NotFound(ControlPlaneError):
    code = "not_found"


class Conflict(ControlPlaneError):
    code = "conflict"


class LimitExceeded(ControlPlaneError):
    code = "limit_exceeded"


class InsufficientBalance(ControlPlaneError):
    code = "insufficient_balance"


class EngineError(ControlPlaneError):
    code = "engine_error"


class EngineOverloaded(EngineError):
    code = "engine_overloaded"


class EngineTimeout(EngineError):
    code = "engine_timeout"


class LaneLost(EngineError):
    code = "lane_lost"


class EngineRejected(EngineError):
    code = "engine_rejected"


class KVError(ControlPlaneError):
    code = "kv_error"


class KVDamaged(KVError):
    code = "kv_damaged"


class KVStoreFull(KVError):
    code = "kv_store_full"


class ServiceUnavailable(ControlPlaneError):
    code = "service_unavailable"
