"""System checks: a wrong setting explains itself before anything is served."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register

from cacheplane.events.usage_sinks import sink_of

ABOVE_ZERO = (
    "CACHE_DEFAULT_TTL_SECONDS",
    "CACHE_SCHEDULE_LEAD_SECONDS",
    "CACHE_SCHEDULE_RETRY_SECONDS",
    "CREATE_WAITERS_MAX",
    "TAGS_PER_ORGANIZATION_MAX",
    "PRECOMPUTE_LEASE_SECONDS",
    "PRECOMPUTE_ATTEMPTS_MAX",
    "SLOT_WAIT_SECONDS",
    "CALL_TIMEOUT_SECONDS",
    "HOLD_COMPLETION_TOKENS",
    "HOT_PATH_DATABASE_THREADS",
    "BILLING_EXPORT_BATCH_EVENTS",
)


@register(Tags.security, deploy=True)
def secrets_are_set(**_kwargs: Any) -> list[CheckMessage]:
    unset = [
        name for name in ("SECRET_KEY", "API_KEY_PEPPER") if getattr(settings, name) == settings.SAMPLE_SECRET
    ]
    return [
        Error(
            f"{name} is still the sample that everybody can read.",
            hint=f"Set {name} in the environment to at least 50 random characters.",
            id="cacheplane.E001",
        )
        for name in unset
    ]


@register()
def settings_are_sensible(**_kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if settings.CACHE_STATUS_WORDS not in ("user", "reference"):
        found.append(
            Error(
                f"CACHE_STATUS_WORDS is {settings.CACHE_STATUS_WORDS!r}.",
                hint="Take `user` (active, expired) or `reference` (ready, inactive).",
                id="cacheplane.E002",
            )
        )
    if settings.DATABASES["default"]["ENGINE"] != "django.db.backends.postgresql":
        found.append(
            Error(
                "DATABASE_URL does not name a PostgreSQL database.",
                hint="Use postgres://user:password@host:5432/name (PostgreSQL 15 or newer).",
                id="cacheplane.E003",
            )
        )
    if settings.BILLING_EXPORT_URL:
        try:
            sink_of(settings.BILLING_EXPORT_URL, token="")
        except ValueError as error:
            found.append(
                Error(
                    f"BILLING_EXPORT_URL {error}.",
                    hint="For example file:///srv/usage or https://meter.example.com/api/v1/events.",
                    id="cacheplane.E005",
                )
            )
    if settings.WEBHOOK_LEASE_SECONDS <= 10:
        found.append(
            Error(
                f"WEBHOOK_LEASE_SECONDS is {settings.WEBHOOK_LEASE_SECONDS}.",
                hint="Take more than 10: so long may a request last, and it must not be sent twice meanwhile.",
                id="cacheplane.E006",
            )
        )
    for name in ABOVE_ZERO:
        value = getattr(settings, name)
        if value <= 0:
            found.append(Error(f"{name} must be above 0.", hint=f"It is {value}.", id="cacheplane.E004"))
    return found
